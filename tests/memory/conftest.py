"""What the tests of `Memory` share: one PostgreSQL server for a test run, and stores of every kind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "store"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a running server."""
    from postgres_server import running_server

    with running_server() as url:
        yield url


@pytest.fixture(params=["plain", "encrypted", "postgres"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The arguments that open one empty store, in a folder or on a server, with a cold tier."""
    if request.param != "postgres":
        key = bytes(range(32)) if request.param == "encrypted" else b""
        return {"address": tmp_path / "s", "key": key, "embedder": None}
    import psycopg

    url = request.getfixturevalue("postgres")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS nbmf CASCADE")
    return {"address": url, "cold": tmp_path / "cold", "embedder": None}
