"""The stores that `nbmf bench store` measures beside NBMF, each holding the same records, and NBMF as one of them."""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import random
import sqlite3
import tempfile
import time
import tracemalloc
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import zstandard

from nbmf.bench import peers as compressors
from nbmf.bench.figures import percentiles
from nbmf.bench.records import SEED, Record
from nbmf.codec.values import from_raw
from nbmf.errors import NbmfError
from nbmf.memory import Memory
from nbmf.memory.aging import disk_bytes
from nbmf.memory.items import GetOp, PutOp
from nbmf.quickstart import PEER_LEVEL, timed

LANGGRAPH: Final = "langgraph.store.sqlite"
PAGE_SIZES: Final = (4096, 8192, 16384)  # bytes; the best for the peer is kept
TUNING: Final = 2000  # records on which a table's layout is chosen
DICTIONARY: Final = 110 << 10  # bytes of the zstd dictionary, or DICTIONARY_DATA times less than the values have
CACHE: Final = 8192  # KiB of pages, as NBMF's own connections have
IN_MEMORY: Final = 20_000  # records, at most, in the store that is not durable
IN_MEMORY_TIMED: Final = 2000
WRAPPED: Final = "value"  # LangGraph keeps JSON objects alone; any other value is put under this name

MISSING: Final = object()

Namespace = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A record to put, and where."""

    namespace: Namespace
    key: str
    record: Record


class Store(Protocol):
    """A store that is open. A `put_many` that returned is durable."""

    def put_many(self, entries: Sequence[Entry]) -> None: ...

    def get(self, namespace: Namespace, key: str) -> Any: ...

    def get_many(self, addresses: Sequence[tuple[Namespace, str]]) -> list[Any]:
        """The values, MISSING where there is none."""

    def compact(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Contestant:
    """A store to measure; `open` opens it in a folder that is there."""

    name: str
    setting: str
    open: Callable[[Path], Store]


def require() -> None:
    """Raises NbmfError when a peer is missing, before any work is done."""
    module(LANGGRAPH)


def module(name: str) -> Any:
    """LangGraph's package. Raises NbmfError, naming the extra that brings it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NbmfError(
            "the peer langgraph-checkpoint-sqlite isn't installed: pip install 'nbmf[bench]', or go without with "
            "--no-peers"
        ) from None


# -- NBMF --------------------------------------------------------------------------------------------------------------


class Nbmf:
    """A Memory as a Store."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def put_many(self, entries: Sequence[Entry]) -> None:
        self.memory.put_many([PutOp(one.namespace, one.key, one.record.value, one.record.kind) for one in entries])

    def get(self, namespace: Namespace, key: str) -> Any:
        return self.memory.get(namespace, key)

    def get_many(self, addresses: Sequence[tuple[Namespace, str]]) -> list[Any]:
        return [item.value if item else MISSING for item in self.memory.batch([GetOp(*at) for at in addresses])]

    def compact(self) -> None:
        self.memory.compact()

    def close(self) -> None:
        self.memory.close()


# -- LangGraph ---------------------------------------------------------------------------------------------------------


class LangGraph:
    """LangGraph's SqliteStore as it comes, without its vector index."""

    def __init__(self, folder: Path) -> None:
        package = module(LANGGRAPH)
        self._ops = module("langgraph.store.base")
        self._orjson = module("orjson")
        self._stack = contextlib.ExitStack()
        self._store = self._stack.enter_context(package.SqliteStore.from_conn_string(str(folder / "store.db")))
        self._store.setup()

    def put_many(self, entries: Sequence[Entry]) -> None:
        ops = [self._ops.PutOp(one.namespace, one.key, self._object(one.record.value)) for one in entries]
        self._store.batch(ops)

    def _object(self, value: Any) -> dict[str, Any]:
        try:
            self._orjson.dumps(value)
        except TypeError:  # an integer of more than 64 bits, a lone surrogate
            return {WRAPPED: json.dumps(value), "json": True}
        return value if type(value) is dict and WRAPPED not in value else {WRAPPED: value}

    def get(self, namespace: Namespace, key: str) -> Any:
        return self.get_many([(namespace, key)])[0]

    def get_many(self, addresses: Sequence[tuple[Namespace, str]]) -> list[Any]:
        items = self._store.batch([self._ops.GetOp(namespace, key) for namespace, key in addresses])
        return [MISSING if item is None else _unwrapped(item.value) for item in items]

    def compact(self) -> None:
        self._store.conn.execute("VACUUM")

    def close(self) -> None:
        self._stack.close()


def _unwrapped(value: dict[str, Any]) -> Any:
    if value.keys() == {WRAPPED, "json"}:
        return json.loads(value[WRAPPED])
    return value[WRAPPED] if value.keys() == {WRAPPED} else value


def in_memory(entries: Sequence[Entry]) -> dict[str, Any]:
    """LangGraph's InMemoryStore: nothing of it is durable, so it has no bytes on disk, only in memory.

    Its memory is what it allocates for the records themselves, read anew from their raw bytes, and for itself.
    """
    package, ops = module("langgraph.store.memory"), module("langgraph.store.base")
    some = entries if len(entries) <= IN_MEMORY else random.Random(SEED).sample(list(entries), IN_MEMORY)
    tracemalloc.start()
    try:
        store = package.InMemoryStore()
        before = tracemalloc.get_traced_memory()[0]
        for one in some:
            value = from_raw(one.record.value_type, one.record.raw)
            store.put(one.namespace, one.key, value if type(value) is dict else {WRAPPED: value})
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    puts, gets = [], []
    for one in some[:IN_MEMORY_TIMED]:
        value = one.record.value if type(one.record.value) is dict else {WRAPPED: one.record.value}
        puts.append(timed(lambda one=one, value=value: store.put(one.namespace, one.key, value))[1])  # type: ignore[misc]
        gets.append(timed(lambda one=one: store.batch([ops.GetOp(one.namespace, one.key)]))[1])  # type: ignore[misc]
    return {
        "store": "LangGraph InMemoryStore",
        "records": len(some),
        "memory_bytes": taken,
        "memory_bytes_a_record": taken / len(some),
        "put_ms": percentiles(puts),
        "get_ms": percentiles(gets),
    }


# -- SQLite by hand ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """How a table lies in its file."""

    rowid: bool
    page: int  # bytes

    def __str__(self) -> str:
        return f"{'rowid table with an index' if self.rowid else 'WITHOUT ROWID'}, pages of {self.page}"


LAYOUTS: Final = tuple(Layout(rowid, page) for rowid, page in itertools.product((False, True), PAGE_SIZES))


class Rows:
    """A row a record: number of its namespace, key, value, and the time of its last change in ms. WAL, FULL."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._raw = sqlite3.connect(folder / "store.db", isolation_level=None)
        self._raw.execute(f"PRAGMA page_size = {layout.page}")
        for pragma in ("journal_mode = WAL", "synchronous = FULL", f"cache_size = -{CACHE}"):
            self._raw.execute(f"PRAGMA {pragma}").fetchall()
        self._raw.execute("CREATE TABLE IF NOT EXISTS namespace (id INTEGER PRIMARY KEY, path TEXT UNIQUE)")
        self._raw.execute(
            "CREATE TABLE IF NOT EXISTS record (namespace INT, key, kind INT, value, updated INT, "
            f"PRIMARY KEY (namespace, key)) {'' if layout.rowid else 'WITHOUT ROWID'}"
        )
        self._numbers: dict[Namespace, int] = {}

    def pack(self, record: Record) -> tuple[int, str | bytes]:
        """What the columns `kind` and `value` hold."""
        try:
            text = json.dumps(record.value, ensure_ascii=False, separators=(",", ":"))
            text.encode()
        except UnicodeEncodeError:  # a lone surrogate
            text = json.dumps(record.value, separators=(",", ":"))
        return 0, text

    def unpack(self, kind: int, stored: Any) -> Any:
        return json.loads(stored)

    def pack_key(self, key: str) -> str | bytes:
        return key

    def _number(self, namespace: Namespace, make: bool) -> int:
        number = self._numbers.get(namespace)
        if number is None:
            path = "/".join(namespace)
            if make:
                self._raw.execute("INSERT OR IGNORE INTO namespace (path) VALUES (?)", (path,))
            row = self._raw.execute("SELECT id FROM namespace WHERE path = ?", (path,)).fetchone()
            number = self._numbers[namespace] = int(row[0]) if row else -1
        return number

    def put_many(self, entries: Sequence[Entry]) -> None:
        now = time.time_ns() // 1_000_000
        packed = [self.pack(one.record) for one in entries]
        self._raw.execute("BEGIN IMMEDIATE")
        self._raw.executemany(
            "INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?)",
            [
                (self._number(one.namespace, True), self.pack_key(one.key), *kept, now)
                for one, kept in zip(entries, packed, strict=True)
            ],
        )
        self._raw.execute("COMMIT")

    def get(self, namespace: Namespace, key: str) -> Any:
        row = self._raw.execute(
            "SELECT kind, value FROM record WHERE namespace = ? AND key = ?",
            (self._number(namespace, False), self.pack_key(key)),
        ).fetchone()
        return MISSING if row is None else self.unpack(*row)

    def get_many(self, addresses: Sequence[tuple[Namespace, str]]) -> list[Any]:
        return [self.get(*at) for at in addresses]

    def compact(self) -> None:
        self._raw.execute("VACUUM")
        self._raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        self._raw.close()


class ZstdRows(Rows):
    """`Rows` whose values are zstd frames, made with a dictionary that lies in the file, and whose UUIDs are bytes."""

    def __init__(self, folder: Path, layout: Layout, learned: bytes) -> None:
        super().__init__(folder, layout)
        self._raw.execute("CREATE TABLE IF NOT EXISTS dictionary (data BLOB)")
        if self._raw.execute("SELECT data FROM dictionary").fetchone() is None:
            self._raw.execute("INSERT INTO dictionary VALUES (?)", (learned,))
        dictionary = zstandard.ZstdCompressionDict(learned)
        self._compressor = compressors.compressor_with(dictionary)
        self._decompressor = zstandard.ZstdDecompressor(dictionary, format=zstandard.FORMAT_ZSTD1_MAGICLESS)

    def pack(self, record: Record) -> tuple[int, str | bytes]:
        frame = self._compressor.compress(record.raw)
        if len(frame) < len(record.raw):
            return 2 * record.value_type + 1, frame
        return 2 * record.value_type, record.raw

    def unpack(self, kind: int, stored: Any) -> Any:
        if kind & 1:
            stored = self._decompressor.decompress(stored, max_output_size=1 << 26)
        return from_raw(kind >> 1, stored)

    def pack_key(self, key: str) -> str | bytes:
        return uuid.UUID(key).bytes if len(key) == 36 and key.count("-") == 4 else key


# -- all of them -------------------------------------------------------------------------------------------------------


def dictionary(entries: Sequence[Entry]) -> bytes:
    """A zstd dictionary of a sample of the very records, in the peer's favour."""
    raws = [one.record.raw for one in entries]
    size = min(DICTIONARY, max(1024, sum(map(len, raws)) // compressors.DICTIONARY_DATA))
    random.Random(SEED).shuffle(raws)
    return compressors.dictionary(raws, size).as_bytes()


def smallest(entries: Sequence[Entry], open: Callable[[Path, Layout], Store]) -> Layout:
    """The layout in which a sample of the entries takes the fewest bytes."""
    sample = entries[:: max(1, len(entries) // TUNING)]
    sizes: dict[Layout, int] = {}
    for layout in LAYOUTS:
        with tempfile.TemporaryDirectory() as name:
            store = open(Path(name), layout)
            store.put_many(sample)
            store.compact()
            store.close()
            sizes[layout] = disk_bytes(Path(name))
    return min(sizes, key=lambda layout: sizes[layout])


def contestants(entries: Sequence[Entry]) -> list[Contestant]:
    """The peers, each with the layout that suits these entries best."""
    learned = dictionary(entries)
    plain = smallest(entries, Rows)
    packed = smallest(entries, lambda folder, layout: ZstdRows(folder, layout, learned))
    return [
        Contestant("LangGraph SqliteStore", "as it comes, no vector index", LangGraph),
        Contestant("SQLite, JSON text", str(plain), lambda folder: Rows(folder, plain)),
        Contestant(
            "SQLite, zstd rows",
            f"level {PEER_LEVEL}, {len(learned):,} byte dictionary of a sample of the records, {packed}",
            lambda folder: ZstdRows(folder, packed, learned),
        ),
    ]
