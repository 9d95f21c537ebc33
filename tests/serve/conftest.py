"""What the tests of the servers share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbmf import Memory

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    """An empty store without encryption and without an embedder."""
    with Memory.open(tmp_path / "store", key=b"", embedder=None) as opened:
        yield opened
