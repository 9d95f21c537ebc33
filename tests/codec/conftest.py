"""What the codec's tests share. Examples and sizes follow the kernel: the reference codes a few KB a second."""

import pytest

from nbmf.codec import kernel
from nbmf.codec.codec import Codec


@pytest.fixture(scope="session")
def codec() -> Codec:
    return Codec()


@pytest.fixture
def only_c() -> None:
    """For values too large for the reference, which is held to the same bytes on smaller ones."""
    if kernel.backend != "c":
        pytest.skip("too large a value for the NumPy kernel")
