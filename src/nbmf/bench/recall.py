"""`nbmf bench recall`: whether a search finds the record that its words are from, beside exact search and keywords.

Every contestant holds the same records and is asked the same queries: a few words in a row out of a record. A hit is
that record, or one of equal value.
"""

from __future__ import annotations

import random
import re
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from nbmf import samples
from nbmf.bench.conditions import about_model, conditions
from nbmf.bench.figures import RESAMPLES, interval, percentiles
from nbmf.bench.records import SEED, load, record
from nbmf.bench.store import BATCH, mixed, queries
from nbmf.bench.store_peers import Entry, module
from nbmf.codec.codec import Codec
from nbmf.errors import DataError, NbmfError
from nbmf.memory import Memory
from nbmf.memory.items import PutOp
from nbmf.quickstart import timed
from nbmf.report import Tick
from nbmf.store.embed import Embedder, WordLlama, text_of

RECORDS: Final = 5000
QUERIES: Final = 300
TOP: Final = 10
LEAST: Final = 20
LANGGRAPH: Final = "LangGraph InMemoryStore"
EXACT: Final = "exact cosine, float32"
KEYWORDS: Final = "SQLite FTS5, BM25"

Answer = list[int]  # numbers of entries, the best first
Search = Callable[[str], Answer]
Make = Callable[[], tuple[Search, dict[str, Any]]]


def run(data: Sequence[str | Path], *, limit: int | None = None, peers: bool = True, tick: Tick) -> dict[str, Any]:
    """Hits, ranks, latencies and bytes of searches over the records of `data`, or generated ones.

    Raises NbmfError (nbmf[search] or nbmf[bench] is missing), DataError (too few records).
    """
    if peers:
        module("langgraph.store.memory")
    embedder = WordLlama()
    if data:
        found, every = load(data, limit or RECORDS, tick)
    else:
        found = [record(one.value, one.kind, "generated") for one in samples.generate(limit or RECORDS, SEED)]
        every = len(found)
    entries = mixed([one for one in found if text_of(one.value).strip()])
    if len(entries) < LEAST:
        raise DataError(f"{len(entries)} records with text are too few to measure recall: {LEAST} is the least")
    asked = list(_asked(entries))
    with tempfile.TemporaryDirectory(prefix="nbmf-bench-") as name:
        rows, exact = [], []
        for place, (what, contestant) in enumerate(_contestants(entries, embedder, Path(name), peers)):
            tick("searching", place, 4 if peers else 3)
            row, answers = _measured(what, contestant, entries, asked)
            rows.append(row)
            if what == EXACT:
                exact = answers
        result = {
            **conditions("bench recall", data, limit, every),
            "model": about_model(Codec(), "base", "fast"),
            "embedder": embedder.id,
            "records": len(entries),
            "queries": len(asked),
            "top": TOP,
            "searches": rows,
        }
    if not data:
        result["data"]["files"] = ["generated samples"]
    for row in rows:
        row["of_exact_top"] = _overlap(row.pop("answers"), exact)
    return result


def _asked(entries: Sequence[Entry]) -> list[tuple[str, int]]:
    """A query, and the number of the entry that it is from."""
    numbers = random.Random(SEED).sample(range(len(entries)), min(QUERIES, len(entries)))
    return [(queries([entries[number]], 1)[0][1], number) for number in numbers]


def _measured(
    name: str,
    make: Callable[[], tuple[Search, dict[str, Any]]],
    entries: Sequence[Entry],
    asked: Sequence[tuple[str, int]],
) -> tuple[dict[str, Any], list[Answer]]:
    search, about = make()
    first = timed(lambda: search(asked[0][0]))[1]
    ranks, answers, spent = [], [], []
    for query, number in asked:
        answer, took = timed(lambda query=query: search(query))  # type: ignore[misc]
        spent.append(took)
        answers.append(answer)
        wanted = entries[number].record
        same = (
            place
            for place, one in enumerate(answer, 1)
            if (entries[one].record.value_type, entries[one].record.raw) == (wanted.value_type, wanted.raw)
        )
        ranks.append(next(same, 0))
    found = np.array(ranks)
    share = 1 / np.maximum(found, 1) * (found > 0)
    return {
        "search": name,
        "hit_at_1": float((found == 1).mean()),
        f"hit_at_{TOP}": float((found > 0).mean()),
        "interval_95": _interval(found > 0),
        "mean_reciprocal_rank": float(share.mean()),
        "search_ms": percentiles(spent),
        "first_search_ms": first,
        **about,
        "answers": answers,
    }, answers


def _interval(hits: Any) -> list[float]:
    draw = np.random.default_rng(SEED)
    return interval(hits[draw.integers(0, len(hits), (RESAMPLES, len(hits)))].mean(axis=1))


def _overlap(answers: Sequence[Answer], exact: Sequence[Answer]) -> float:
    """The share of exact search's answers that another gives too."""
    shares = [len(set(a) & set(b)) / len(b) for a, b in zip(answers, exact, strict=True) if b]
    return sum(shares) / len(shares) if shares else 1.0


# -- contestants -------------------------------------------------------------------------------------------------------


def _contestants(entries: Sequence[Entry], embedder: WordLlama, folder: Path, peers: bool) -> list[tuple[str, Make]]:
    found: list[tuple[str, Make]] = [
        ("nbmf", lambda: _ours(entries, embedder, folder / "store")),
        (EXACT, lambda: _exact(entries, embedder)),
        (KEYWORDS, lambda: _keywords(entries)),
    ]
    return [*found, (LANGGRAPH, lambda: _langgraph(entries, embedder))] if peers else found


def _ours(entries: Sequence[Entry], embedder: WordLlama, folder: Path) -> tuple[Search, dict[str, Any]]:
    with Memory.open(folder, embedder=embedder, key=b"") as memory:
        for at in range(0, len(entries), BATCH):
            batch = entries[at : at + BATCH]
            memory.put_many([PutOp(one.namespace, one.key, one.record.value) for one in batch])
        memory.compact()
        codes = memory.stats()["warm"].get("codes", 0)
    memory = Memory.open(folder, embedder=embedder, key=b"")
    numbers = {(one.namespace, one.key): number for number, one in enumerate(entries)}

    def search(query: str) -> Answer:
        return [numbers[item.namespace, item.key] for item in memory.search((), query, limit=TOP)]

    search(entries[0].key)
    return search, {"bytes_a_record": codes / len(entries), "memory_bytes": memory.recall.bytes}


def _exact(entries: Sequence[Entry], embedder: Embedder) -> tuple[Search, dict[str, Any]]:
    vectors = embedder.embed([text_of(one.record.value) for one in entries])

    def search(query: str) -> Answer:
        near = vectors @ embedder.embed([query])[0]
        best = np.argpartition(-near, min(TOP, len(near) - 1))[:TOP]
        return [int(number) for number in best[np.argsort(-near[best], kind="stable")]]

    return search, {"bytes_a_record": 4 * vectors.shape[1], "memory_bytes": vectors.nbytes}


def _keywords(entries: Sequence[Entry]) -> tuple[Search, dict[str, Any]]:
    database = sqlite3.connect(":memory:")
    try:
        database.execute("CREATE VIRTUAL TABLE record USING fts5(text, content='')")
    except sqlite3.OperationalError as error:
        raise NbmfError(f"this Python's SQLite has no FTS5: {error}") from error
    rows = [(number, text_of(one.record.value)) for number, one in enumerate(entries)]
    database.executemany("INSERT INTO record (rowid, text) VALUES (?, ?)", rows)
    size = database.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0]

    def search(query: str) -> Answer:
        words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", query))
        if not words:
            return []
        sql = "SELECT rowid FROM record WHERE record MATCH ? ORDER BY rank LIMIT ?"
        return [int(number) for (number,) in database.execute(sql, (words, TOP))]

    return search, {"bytes_a_record": size / len(entries), "memory_bytes": size}


def _langgraph(entries: Sequence[Entry], embedder: Embedder) -> tuple[Search, dict[str, Any]]:
    """With the same embedder; a value that is no JSON object lies under a name of its own."""
    package = module("langgraph.store.memory")

    def embed(texts: Sequence[str]) -> list[list[float]]:
        return [[float(part) for part in vector] for vector in embedder.embed(list(texts))]

    store = package.InMemoryStore(index={"dims": embedder.dim, "embed": embed, "fields": ["text"]})
    numbers = {}
    for number, one in enumerate(entries):
        numbers[one.namespace, one.key] = number
        store.put(one.namespace, one.key, {"text": text_of(one.record.value)})

    def search(query: str) -> Answer:
        return [numbers[tuple(item.namespace), item.key] for item in store.search((), query=query, limit=TOP)]

    return search, {"bytes_a_record": 4 * embedder.dim, "memory_bytes": 4 * embedder.dim * len(entries)}
