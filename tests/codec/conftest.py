"""What the codec's tests share. Examples and sizes follow the kernel: the reference codes a few KB a second."""

import pytest
from hypothesis import HealthCheck, settings

from nbmf.codec import kernel
from nbmf.codec.codec import Codec

settings.register_profile(
    "nbmf", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("nbmf")


@pytest.fixture(scope="session")
def codec() -> Codec:
    return Codec()


@pytest.fixture
def only_c() -> None:
    """For values too large for the reference, which is held to the same bytes on smaller ones."""
    if kernel.backend != "c":
        pytest.skip("too large a value for the NumPy kernel")
