"""The second half of the quickstart: a store in a temporary directory that puts, finds and forgets the samples."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from nbmf import samples, transcode
from nbmf.codec import kernel
from nbmf.memory import Item, Memory, PutOp
from nbmf.report import Tick
from nbmf.store.base import Namespace
from nbmf.store_access import namespace_text
from nbmf.store_report import counted, preview

SEED: Final = 2025
GENERATED: Final = 1000  # samples put beside the shipped ones
BATCH: Final = 200  # records to a transaction
TRACE_LEAST: Final = 12  # bytes of a blob that cannot be in a file by chance

ANN: Final[Namespace] = ("users", "ann")
HERS: Final[dict[str, dict[str, Any]]] = {
    "drink-order": {"text": "Prefers green tea in the morning, no sugar", "confidence": 0.9},
    "travel-seat": {"text": "Wants an aisle seat on the train to Berlin", "confidence": 0.7},
    "pet-name": {"text": "Has a cat named Miso who hates Mondays", "confidence": 0.95},
}
SHOWN: Final = "drink-order"
QUERY: Final = "her favourite beverage"
FILTER: Final = {"confidence": {"$gte": 0.8}}
FOUND: Final = 3  # records of a search
INDENT: Final = 8  # columns before what a step gave
ROUNDS: Final = 9  # times a read is timed

NO_SEARCH: Final = "needs the embedder that comes with pip install 'nbmf[search]'"


@dataclass(frozen=True)
class Found:
    """A record that a search found, its value on one line."""

    score: float | None
    namespace: str
    key: str
    value: str


@dataclass(frozen=True)
class Result:
    """What the store did. Times are ms, but for `put_seconds`, which is for all records, verified and durable."""

    records: int
    put_seconds: float
    put_one_ms: float
    raw_bytes: int  # values
    key_bytes: int  # keys and namespaces
    blob_bytes: int
    index_bytes: int  # the semantic index on the disk
    disk_bytes: int  # every file, once compacted and closed
    json_bytes: int  # the same records as JSON text in rows of a SQLite database
    got: str
    get_warm_ms: float
    get_hot_ms: float
    found: list[Found] | None  # by QUERY; None without an embedder
    search_ms: float | None
    filtered: list[Found]
    forgotten: int
    traces: int  # blobs and keys of forgotten records that are still in any file
    sound: bool


def run(limit: int | None = None, tick: Tick | None = None) -> Result:
    """Opens a store in a temporary directory and uses it: at most `limit` samples of each kind."""
    with tempfile.TemporaryDirectory(prefix="nbmf-quickstart-") as folder:
        path = Path(folder) / "agent.nbmf"
        puts = _puts(limit)
        with Memory.open(path, key=b"") as memory:
            return _use(memory, path, puts, tick)


def _puts(limit: int | None) -> list[PutOp]:
    drawn = [*samples.load(), *samples.generate(GENERATED, SEED)]
    if kernel.backend != "c":  # the reference takes a second for a few hundred bytes
        drawn, limit = [one for one in drawn if one.kind == "short"], 1
    kept: dict[str, int] = {}
    puts = []
    for sample in drawn:
        number = kept[sample.kind] = kept.get(sample.kind, 0) + 1
        if limit is None or number <= limit:
            puts.append(PutOp(("samples", sample.kind), f"{sample.kind}-{number}", sample.value, sample.kind))
    return puts


def _use(memory: Memory, path: Path, puts: Sequence[PutOp], tick: Tick | None) -> Result:
    hers = [PutOp(ANN, key, value, "fact") for key, value in HERS.items()]
    memory.put_many(hers[1:])  # which also loads what the first put needs
    started = time.perf_counter()
    for at in range(0, len(puts), BATCH):
        memory.put_many(puts[at : at + BATCH])
        if tick:
            tick("putting records", min(at + BATCH, len(puts)), len(puts))
    put_seconds = time.perf_counter() - started
    put_one_ms = _ms(lambda: memory.put(ANN, SHOWN, HERS[SHOWN], cls="fact"))[1]

    warm, hot = [], []
    for _ in range(ROUNDS):
        memory.hot.clear()
        got, spent = _ms(lambda: memory.get(ANN, SHOWN))
        warm.append(spent)
        again, spent = _ms(lambda: memory.get(ANN, SHOWN))
        hot.append(spent)
    found, search_ms = None, None
    if memory.recall.on:
        memory.search((), QUERY)  # builds the index
        found, search_ms = _ms(lambda: memory.search((), QUERY, limit=FOUND))
    filtered = memory.search(("users",), filter=FILTER, limit=FOUND)
    memory.compact()
    stats = memory.stats(measure=True)
    sizes = _closed_size(memory, path)

    with Memory.open(path, key=b"") as reopened:
        blobs = [record.blob for record, _ in reopened.live(ANN, None)]
        forgotten = reopened.forget(ANN)
        sound = not list(reopened.check())
    marks = [blob for blob in blobs if len(blob) >= TRACE_LEAST] + [key.encode() for key in HERS]
    files = [file.read_bytes() for file in path.rglob("*") if file.is_file()]
    return Result(
        records=len(puts) + len(hers),
        put_seconds=put_seconds,
        put_one_ms=put_one_ms,
        raw_bytes=stats["raw_bytes"],
        key_bytes=stats["key_bytes"],
        blob_bytes=stats["blob_bytes"],
        index_bytes=stats["warm"].get("codes", 0) if memory.recall.on else 0,
        disk_bytes=sizes,
        json_bytes=_json_bytes(path.with_name("rows.db"), [*puts, *hers]),
        got=preview(got if got == again else None),
        get_warm_ms=median(warm),
        get_hot_ms=median(hot),
        found=None if found is None else _found(found),
        search_ms=search_ms,
        filtered=_found(filtered),
        forgotten=forgotten,
        traces=sum(mark in data for mark in marks for data in files),
        sound=sound,
    )


def _ms(call: Any) -> tuple[Any, float]:
    started = time.perf_counter_ns()
    result = call()
    return result, (time.perf_counter_ns() - started) / 1e6


def _closed_size(memory: Memory, path: Path) -> int:
    memory.close()
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _json_bytes(path: Path, puts: Sequence[PutOp]) -> int:
    """The same records as many stores keep them: JSON text, one row each, no index but the key's."""
    rows = [("/".join(put.namespace), put.key, transcode.raw_bytes(put.value).decode(), put.cls) for put in puts]
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "CREATE TABLE record (namespace TEXT, key TEXT, value TEXT, class TEXT, created TEXT, updated TEXT, "
            "PRIMARY KEY (namespace, key))"
        )
        time_text = "2025-01-01T00:00:00.000Z"
        database.executemany(
            "INSERT INTO record VALUES (?, ?, ?, ?, ?, ?)", [(*row, time_text, time_text) for row in rows]
        )
        database.commit()
        database.execute("VACUUM")
    return path.stat().st_size


def _found(items: Sequence[Item]) -> list[Found]:
    return [Found(item.score, namespace_text(item.namespace), item.key, preview(item.value)) for item in items]


# -- showing -----------------------------------------------------------------------------------------------------------


def render(result: Result, out: Console) -> None:
    """Each operation as one writes it, and what came of it."""
    at = f'{ANN!r}, "{SHOWN}"'.replace("'", '"')
    out.print("[bold]A store.[/bold] The same codec under a database of records, in a folder of its own.\n")
    _step(out, 'mem = nbmf.Memory.open("agent.nbmf")', "")
    _step(
        out,
        "mem.put_many(samples)",
        f"{counted(result.records)} in {result.put_seconds:.1f} s, each decoded again before it counts as written",
    )
    _step(out, f'mem.put({at}, {{…}}, cls="fact")', f"on the disk for good after {result.put_one_ms:.1f} ms")
    _step(out, f"mem.get({at})", f"{result.get_warm_ms:.2f} ms; {result.get_hot_ms:.2f} ms once decoded")
    out.print(Text(" " * INDENT + result.got, style="cyan"), no_wrap=True, overflow="ellipsis")
    searched = f'mem.search((), "{QUERY}")'
    if result.found is None:
        _step(out, searched, NO_SEARCH)
    else:
        _step(out, searched, f"by meaning, whatever the words: {result.search_ms:.1f} ms")
        _records(result.found, out)
    _step(out, f"mem.search({ANN[:1]!r}, filter={FILTER!r})".replace("'", '"'), "by fields, the latest first")
    _records(result.filtered, out)
    _step(out, "mem.compact(); mem.stats()", "in bytes")
    _sizes(result, out)
    gone = "nothing of them is left in any file" if not result.traces else f"{result.traces} traces are left in files"
    _step(
        out,
        f"mem.forget({ANN!r})".replace("'", '"'),
        f"{counted(result.forgotten)}: {gone}, and the rest is {'sound' if result.sound else 'NOT sound'}",
    )


def _step(out: Console, code: str, said: str) -> None:
    _line(out, Text("  " + code, style="bold"), said)


def _line(out: Console, line: Text, said: str) -> None:
    """What was said goes to a line of its own where the first has no room for it."""
    room = out.width - line.cell_len - 2
    out.print(line + Text("  " + said, style="dim") if said and len(said) <= room else line)
    if len(said) > room:
        out.print(Padding(Text(said, style="dim"), (0, 0, 0, INDENT)))


def _records(found: Sequence[Found], out: Console) -> None:
    addresses = [f"{one.namespace} {one.key}" for one in found]
    longest = max(map(len, addresses), default=0)
    for one, address in zip(found, addresses, strict=True):
        score = "" if one.score is None else f"{one.score:.2f}"
        line = Text.assemble(
            (score.rjust(INDENT - 2), "green"), ("  " + address.ljust(longest), "cyan"), "  ", one.value
        )
        out.print(line, no_wrap=True, overflow="ellipsis")


def _sizes(result: Result, out: Console) -> None:
    parts = f"every file: {result.blob_bytes:,} of values"
    if result.index_bytes:
        parts += f", {result.index_bytes:,} to search by meaning"
    for name, size, style, said in (
        ("the values and keys themselves", result.raw_bytes + result.key_bytes, "", ""),
        ("the same records as JSON in SQLite", result.json_bytes, "", "no search by meaning"),
        ("agent.nbmf", result.disk_bytes, "bold green", parts),
    ):
        _line(out, Text.assemble(" " * INDENT, name.ljust(34), (f"{size:>11,}", style)), said)
