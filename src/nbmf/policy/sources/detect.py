"""Which kind of source an address is, by what it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

from nbmf.errors import NbmfError, PolicyError, StoreError
from nbmf.policy.sources.base import DEFAULT_NAMESPACE, Item, Source, Unreadable, parse_text, printable
from nbmf.policy.sources.jsonl import SUFFIXES, JsonLines, files_in, lines_of
from nbmf.policy.sources.langgraph import MAGIC, LangGraphStore
from nbmf.policy.sources.mcp_graph import McpGraph, is_graph
from nbmf.policy.sources.stub_store import StubStore, is_stub_store
from nbmf.store.base import Namespace

# What `open_source` takes as `kind`, and what each is.
KINDS: Final = {
    "stub": "a folder records/ of the old store",
    "jsonl": "JSON lines: records, data lines or plain values",
    "jsonl-values": "JSON lines, each a plain value whatever its fields",
    "langgraph": "the SQLite database of LangGraph's SqliteStore",
    "mcp": "the MCP reference memory server's memory.jsonl",
}
LOOKED_AT: Final = 100  # lines of a file, until one is JSON


class StoreSource(Source):
    """Another NBMF store. `items` gives its records anew, in one order, at each call; `count` and `size` if known."""

    kind = "nbmf"

    def __init__(
        self,
        address: str,
        items: Callable[[], Iterator[Item]],
        *,
        count: Callable[[], int] | None = None,
        size: Callable[[], int] | None = None,
    ) -> None:
        self.address = address
        self._items = items
        self._count = count
        self._size = size

    def items(self) -> Iterator[Item]:
        return self._items()

    def count(self) -> int | None:
        return self._count() if self._count else None

    def size(self) -> int | None:
        return self._size() if self._size else None


def open_source(
    path: str | Path, kind: str | None = None, *, key: bytes | None = None, namespace: Namespace | None = None
) -> Source:
    """The source at `path`, of `kind` (one of KINDS) or of the kind that its content shows.

    `key` opens the old store's sealed records. `namespace` takes items that have none of their own, and stands above
    the namespaces of LangGraph and MCP. Raises PolicyError when no kind fits, StoreError when it cannot be read.
    """
    path = Path(path)
    try:
        kind = kind or detect(path)
        if kind == "stub":
            return StubStore(path, key=key, namespace=namespace or DEFAULT_NAMESPACE)
        if kind in ("jsonl", "jsonl-values"):
            return JsonLines(path, bare=kind != "jsonl", namespace=namespace or DEFAULT_NAMESPACE)
        if kind == "langgraph":
            return LangGraphStore(path, namespace=namespace or ())
        if kind == "mcp":
            return McpGraph(path, namespace=namespace or ())
    except OSError as error:
        raise StoreError(f"{printable(str(path))} cannot be read: {error.strerror or error}") from None
    raise PolicyError(f"source kind {kind!r} is none of {', '.join(KINDS)}"[:200])


def detect(path: Path) -> str:
    """The kind of what is at `path`, by its content. Raises PolicyError saying what was found instead."""
    name = printable(str(path))
    if not path.exists():
        raise StoreError(f"{name} does not exist")
    if path.is_dir():
        if is_stub_store(path):
            return "stub"
        if files_in(path):
            return "jsonl"
        raise PolicyError(f"{name} is a folder with neither records of the old store nor {', '.join(SUFFIXES)} files")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            return "langgraph"  # whose reader refuses databases without its table
    return _kind_of_lines(path, name)


def _kind_of_lines(path: Path, name: str) -> str:
    lines = 0
    for _, line in islice(lines_of(path), LOOKED_AT):
        lines += 1
        value = None if isinstance(line, Unreadable) else _value(line)
        if value is not None:
            return "mcp" if is_graph(value[0]) else "jsonl"
    if not lines:
        raise PolicyError(f"{name} is empty: name its kind, one of {', '.join(KINDS)}")
    raise PolicyError(f"{name} is neither JSON lines nor a SQLite database: name its kind, one of {', '.join(KINDS)}")


def _value(line: bytes) -> tuple[Any] | None:
    try:
        return (parse_text(line),)
    except NbmfError:
        return None


__all__ = ["KINDS", "StoreSource", "detect", "open_source"]
