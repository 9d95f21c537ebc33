"""Runs LangGraph's own tests of its SQLite store against NBMFStore.

The tests come from the source distribution of langgraph-checkpoint-sqlite, which pip fetches, with the pytest plugin
that they need; none of it is kept here.
They import their stores by name, so those names are bound to other stores first. What cannot hold for a store without
SQL is in EXCLUDED with the reason, is run all the same, and must fail: an exclusion that is not needed is an error.

    python scripts/langgraph_suite.py [--store nbmf|memory|sqlite] [--json FILE] [--sdist FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

VERSION: Final = "3.1.2"
NAME: Final = f"langgraph_checkpoint_sqlite-{VERSION}"
PLUGIN: Final = "pytest-asyncio==1.5.0"
FILES: Final = ("tests/test_store.py", "tests/test_async_store.py", "tests/test_ttl.py")

# Of a test's name without its parameters: why it cannot hold.
EXCLUDED: Final = {
    "test_store.py::test_vector_store_initialization": (
        "looks for a table of vectors through the store's SQLite connection; vectors lie in the records here"
    ),
    "test_store.py::test_nonnull_migrations": "reads the SQL of SqliteStore's migrations; NBMF keeps its own elsewhere",
    "test_store.py::test_sql_injection_vulnerability": (
        "wants a field's name refused that SQL could not quote; no SQL is made of it here, and it matches nothing"
    ),
    "test_ttl.py::test_ttl_override_default": (
        "wants a get to leave the ttl as it is unless refresh_on_read is set; TTLConfig says that it defaults to True"
    ),
}


def fetch(folder: Path) -> Path:
    """The unpacked source distribution in a folder, fetched if it is not there. Raises CalledProcessError."""
    root = folder / NAME
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    if not (root / FILES[0]).exists():
        source = ["--no-deps", "--no-binary", ":all:", "--dest", str(folder)]
        subprocess.run([*pip, "download", *source, f"langgraph-checkpoint-sqlite=={VERSION}"], check=True)
        with tarfile.open(folder / f"{NAME}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    if not (folder / "plugin").exists():
        subprocess.run([*pip, "install", "--no-deps", "--target", str(folder / "plugin"), PLUGIN], check=True)
    return root


def _place(conn_string: str) -> str:
    """A folder for a store: the tests make an empty file for each database."""
    return conn_string if conn_string == ":memory:" else f"{conn_string}.nbmf"


def stores(kind: str) -> tuple[type, type]:
    """What stands for SqliteStore and for AsyncSqliteStore."""
    if kind == "nbmf":
        from nbmf.integrations.langgraph import AsyncNBMFStore, NBMFStore

        class Sync(NBMFStore):
            @classmethod
            def from_conn_string(cls, conn_string: str, **options: Any) -> Any:
                return super().from_conn_string(_place(conn_string), **options)

        class Async(AsyncNBMFStore):
            @classmethod
            def from_conn_string(cls, conn_string: str, **options: Any) -> Any:
                return super().from_conn_string(_place(conn_string), **options)

        return Sync, Async
    if kind == "memory":
        from langgraph.store.memory import InMemoryStore

        class Memory(InMemoryStore):
            def setup(self) -> None:
                """A store in memory has nothing to set up."""

            @classmethod
            @contextlib.contextmanager
            def from_conn_string(cls, conn_string: str, index: Any = None, ttl: Any = None) -> Iterator[Memory]:
                yield cls(index=index)

        class AsyncMemory(InMemoryStore):
            async def setup(self) -> None:
                """A store in memory has nothing to set up."""

            @classmethod
            @contextlib.asynccontextmanager
            async def from_conn_string(cls, conn_string: str, index: Any = None, ttl: Any = None) -> AsyncIterator[Any]:
                yield cls(index=index)

        return Memory, AsyncMemory
    from langgraph.store.sqlite import AsyncSqliteStore, SqliteStore

    return SqliteStore, AsyncSqliteStore


class Suite:
    """The pytest plugin that binds the names, marks what is excluded, and counts."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.outcomes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def pytest_configure(self, config: pytest.Config) -> None:
        import langgraph.store.sqlite as package
        import langgraph.store.sqlite.aio as aio

        config.addinivalue_line("markers", "flaky(retries): one that depends on the time of day")
        sync, asynchronous = stores(self.kind)
        for module, name, store in (
            (package, "SqliteStore", sync),
            (package, "AsyncSqliteStore", asynchronous),
            (aio, "AsyncSqliteStore", asynchronous),
        ):
            setattr(module, name, store)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            name = item.nodeid.removeprefix("tests/").partition("[")[0]
            if self.kind == "nbmf" and name in EXCLUDED:
                item.add_marker(pytest.mark.xfail(reason=EXCLUDED[name], strict=True))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            excluded = hasattr(report, "wasxfail") and report.outcome == "skipped"
            self.outcomes[report.nodeid] = "excluded" if excluded else report.outcome
            if report.failed:
                self.reasons[report.nodeid] = str(report.longreprtext).strip().splitlines()[-1][:200]

    def summary(self) -> dict[str, Any]:
        counts = dict.fromkeys(("passed", "excluded", "failed", "skipped"), 0)
        for outcome in self.outcomes.values():
            counts[outcome] += 1
        return {
            "store": self.kind,
            "suite": NAME,
            "tests": len(self.outcomes),
            **counts,
            "failures": self.reasons,
            "exclusions": {
                name: EXCLUDED[name.removeprefix("tests/").partition("[")[0]]
                for name, outcome in self.outcomes.items()
                if outcome == "excluded"
            },
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--store", choices=("nbmf", "memory", "sqlite"), default="nbmf")
    parser.add_argument("--json", type=Path, help="where the summary goes; else to the standard output")
    parser.add_argument("--sdist", type=Path, help="where the distribution lies, or is put")
    parser.add_argument("--verbose", action="store_true", help="show what pytest says")
    options = parser.parse_args()
    target = options.json.absolute() if options.json else None
    with tempfile.TemporaryDirectory(prefix="nbmf-suite-") as scratch:
        root = fetch((options.sdist or Path(scratch)).resolve())
        os.environ["TMPDIR"] = tempfile.tempdir = scratch  # where the tests put their databases
        suite = Suite(options.store)
        arguments = [
            "-c",
            str(root / "pyproject.toml"),
            "--rootdir",
            str(root),
            "-p",
            "no:cacheprovider",
            "-p",
            "pytest_asyncio",
        ]
        sys.path.insert(0, str(root.parent / "plugin"))
        os.chdir(root)
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(sys.stderr if options.verbose else nowhere),
        ):
            code = pytest.main([*arguments, "-q", "--tb=short", *FILES], plugins=[suite])
    text = json.dumps(suite.summary(), indent=2, ensure_ascii=False)
    if target:
        target.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
