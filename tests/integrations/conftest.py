"""One PostgreSQL server for the tests of the column types."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "store"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a running server."""
    from postgres_server import running_server

    with running_server() as url:
        yield url
