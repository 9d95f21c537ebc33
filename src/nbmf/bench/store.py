"""Measures the store: bytes on disk, latency, ingest, cold archives and growth, beside other stores in the same run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import random
import shutil
import sqlite3
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from nbmf.bench import conditions, curves, growth, store_peers
from nbmf.bench import records as reading
from nbmf.bench.figures import percentiles
from nbmf.bench.records import SEED, Record, is_equal
from nbmf.bench.store_peers import MISSING, Contestant, Entry, Namespace, Nbmf
from nbmf.codec.codec import Codec
from nbmf.doctor import filesystem
from nbmf.errors import DataError, UnsupportedValue
from nbmf.memory import Memory
from nbmf.policy.policy import Policy
from nbmf.quickstart import timed
from nbmf.report import Tick
from nbmf.store.embed import text_of

RECORDS: Final = 200_000
SPARE: Final = 1000  # one more is drawn for so many, to stand in for those that are refused
BATCH: Final = 1000  # records of one put_many, which is one transaction
OF_NAMESPACE: Final = 50  # records, on average
OF_TENANT: Final = 5000  # records, on average
LATENCY_AT: Final = 100_000  # records in a store when its latencies are taken
PUTS: Final = 1000  # single puts that are timed, at most
GETS: Final = 2000
SEARCHES: Final = 300
SHARE: Final = 10  # one in so many records is put, got and searched for, where a store has few
APART: Final = 3  # as many times the records of a block lie between two cold reads, in the archives' order
PACK_SOURCES: Final = 8  # tenants that learn packs: the sources with the most records
PACK_RECORDS: Final = 20_000  # records of those together, at most
WORDS: Final = (3, 8)  # of a query
QUERY: Final = "what does Ann like to drink"  # the first one, and where a record has no words
KEY_PREFIXES: Final = {"turn": "msg", "chat": "msg", "tool_call": "call", "tool_result": "result", "log": "log"}
NEEDS: Final = {  # packages of what can be left out, and the extra that brings them
    "encryption": (("apsw", "cryptography"), "nbmf[encrypt]"),
    "semantic index": (("wordllama", "tokenizers"), "nbmf[search]"),
}
PLAIN: Final = "nbmf"
LOG: Final = "log"  # of `Memory.stats`: gone once the store is closed, and if not, it is among the files
LEAST: Final = 20  # records that can be measured
PACK_LEAST: Final = 100  # records that a tenant needs to learn a pack
DEMOTE: Final = '[default]\ncold_after = "0s"\n'


# -- records -----------------------------------------------------------------------------------------------------------


def drawn(files: Sequence[str | Path], limit: int, tick: Tick) -> tuple[list[Record], int, int]:
    """`limit` records of these files, drawn by a fixed seed and kept in order; how many there are, how many no store
    takes (NaN is no JSON). Only those that are drawn are held in memory. Raises DataError.
    """
    if not files:
        found, every = reading.load((), limit, tick)
        return found, every, 0
    if any(map(reading.is_store, files)):
        found, every = reading.load(files, limit, tick)
        return found, every, 0
    paths = list(reading.paths(files))
    every = 0
    for path in paths:
        every += sum(1 for _ in reading.lines(path))
        tick("counting records", every)
    wanted = set(random.Random(SEED).sample(range(every), min(every, limit + limit // SPARE)))
    kept: list[Record] = []
    refused = 0
    place = -1
    for path in paths:
        for number, line in reading.lines(path):
            place += 1
            if place not in wanted or len(kept) == limit:
                continue
            try:
                kept.append(reading.parsed(path, number, line))
            except DataError as error:
                if not isinstance(error.__cause__, UnsupportedValue):
                    raise
                refused += 1
            tick("reading records", len(kept), limit)
    return kept, every, refused


def lay_out(records: Sequence[Record], tenants: Sequence[str]) -> list[Entry]:
    """Addresses for records: `tenants` names the tenant of each, whose users have OF_NAMESPACE records on average.

    Half of the keys are UUIDs, half short texts such as "msg-000012", by a fixed seed.
    """
    draw = random.Random(SEED)
    users = {tenant: max(1, round(count / OF_NAMESPACE)) for tenant, count in Counter(tenants).items()}
    numbers: Counter[tuple[Namespace, str]] = Counter()
    entries = []
    for record, tenant in zip(records, tenants, strict=True):
        namespace = (tenant, f"user-{draw.randrange(users[tenant]):04d}")
        if draw.random() < 0.5:
            key = str(uuid.UUID(int=draw.getrandbits(128), version=4))
        else:
            prefix = KEY_PREFIXES.get(record.kind, "pref")
            numbers[namespace, prefix] += 1
            width = 6 if prefix == "msg" else 1
            key = f"{prefix}-{numbers[namespace, prefix]:0{width}d}"
        entries.append(Entry(namespace, key, record))
    return entries


def mixed(records: Sequence[Record]) -> list[Entry]:
    """Records of every source in each tenant: nothing that a tenant's records have in common is there to be used."""
    draw = random.Random(SEED)
    tenants = max(1, round(len(records) / OF_TENANT))
    return lay_out(records, [f"tenant-{draw.randrange(tenants):02d}" for _ in records])


def by_source(records: Sequence[Record]) -> list[Entry]:
    """The sources with the most records, a tenant each."""
    counts = Counter(record.source for record in records)
    chosen = {source for source, count in counts.most_common(PACK_SOURCES) if count >= PACK_LEAST}
    room = Counter(dict.fromkeys(chosen, PACK_RECORDS // PACK_SOURCES))
    kept = []
    for record in records:
        if room[record.source] > 0:
            room[record.source] -= 1
            kept.append(record)
    return lay_out(kept, [record.source for record in kept])


def sums(entries: Sequence[Entry]) -> dict[str, int]:
    """Raw bytes: of the values, of the keys, and of the namespaces, told with every record."""
    return {
        "records": len(entries),
        "value_bytes": sum(len(one.record.raw) for one in entries),
        "key_bytes": sum(len(one.key.encode()) for one in entries),
        "namespace_bytes": sum(len(segment.encode()) for one in entries for segment in one.namespace),
    }


# -- one store ---------------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, int]:
    """Bytes of every file in a folder and below."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def ratios(found: dict[str, int], disk: int) -> dict[str, float]:
    """Raw bytes / bytes on disk: of values and keys, and of namespaces too."""
    raw = found["value_bytes"] + found["key_bytes"]
    return {"ratio": raw / disk, "ratio_with_namespaces": (raw + found["namespace_bytes"]) / disk}


def put_all(store: store_peers.Store, entries: Sequence[Entry], tick: Callable[[int], None]) -> float:
    """Seconds that BATCH records at a time take to put."""
    spent = 0.0
    for at in range(0, len(entries), BATCH):
        batch = entries[at : at + BATCH]
        spent += timed(lambda batch=batch: store.put_many(batch))[1]  # type: ignore[misc]
        tick(at + len(batch))
    return spent / 1000


def exact(store: store_peers.Store, entries: Sequence[Entry], tick: Callable[[int], None]) -> int:
    """How many records come back equal to what was put; read namespace by namespace."""
    order = sorted(entries, key=lambda one: (one.namespace, one.key))
    count = 0
    for at in range(0, len(order), BATCH):
        batch = order[at : at + BATCH]
        found = store.get_many([(one.namespace, one.key) for one in batch])
        count += sum(
            value is not MISSING and is_equal(one.record, value) for one, value in zip(batch, found, strict=True)
        )
        tick(at + len(batch))
    return count


def latencies(
    contestant: Contestant, folder: Path, there: Sequence[Entry], new: Sequence[Entry], tick: Tick
) -> dict[str, Any]:
    """ms of single calls: puts of new records, reads of those that are there, each twice, in a store opened anew."""
    what = f"timing {contestant.name}"
    store = contestant.open(folder)
    spent = []
    for one in new:
        spent.append(timed(lambda one=one: store.put_many([one]))[1])  # type: ignore[misc]
        tick(what, len(spent), len(new))
    store.close()
    first_put, *put = spent  # the first loads the model's tables, and the embedder
    chosen = random.Random(SEED).sample(there, min(GETS + 1, len(there) // 2))
    store = contestant.open(folder)
    first_get = timed(lambda: store.get(chosen[0].namespace, chosen[0].key))[1]
    wall, cpu = time.perf_counter(), time.process_time()
    rounds = []
    for _ in range(2):
        spent = []
        for one in chosen[1:]:
            spent.append(timed(lambda one=one: store.get(one.namespace, one.key))[1])  # type: ignore[misc]
        rounds.append(spent)
    found: dict[str, Any] = {
        "records": len(there),
        "put_ms": percentiles(put),
        "get_ms": percentiles(rounds[0]),
        "get_again_ms": percentiles(rounds[1]),
        "first_put_ms": first_put,
        "first_get_ms": first_get,
        "puts": len(put),
        "gets": len(rounds[0]),
        # Well under 1, other programs took the core away.
        "cpu_share": (time.process_time() - cpu) / (time.perf_counter() - wall),
    }
    if isinstance(store, Nbmf) and store.memory.recall.on:
        found |= searches(store.memory, there, tick)
    store.close()
    return found


def queries(entries: Sequence[Entry], count: int) -> list[tuple[str, str]]:
    """A tenant and a few words that one of its records holds."""
    draw = random.Random(SEED)
    found = []
    for one in draw.sample(entries, min(count, len(entries))):
        words = text_of(one.record.value).split()
        wanted = draw.randint(*WORDS)
        start = draw.randrange(max(1, len(words) - wanted))
        found.append((one.namespace[0], " ".join(words[start : start + wanted]) or QUERY))
    return found


def searches(memory: Memory, entries: Sequence[Entry], tick: Tick) -> dict[str, Any]:
    """ms of searches over the whole store and within one tenant; and of the first, which reads the index."""
    first = timed(lambda: memory.search((), query=QUERY))[1]
    asked = queries(entries, 2 * min(SEARCHES, max(1, len(entries) // SHARE)))
    spent: tuple[list[float], list[float]] = [], []
    for place, (tenant, query) in enumerate(asked):
        prefix = (tenant,) if place % 2 else ()
        spent[place % 2].append(timed(lambda prefix=prefix, query=query: memory.search(prefix, query=query))[1])  # type: ignore[misc]
        tick("searching", place + 1, len(asked))
    return {
        "first_search_ms": first,
        "search_ms": percentiles(spent[0]),
        "search_tenant_ms": percentiles(spent[1]),
        "searches": len(spent[0]),
        "index_memory_bytes": memory.recall.bytes,
    }


def measured(
    contestant: Contestant, folder: Path, entries: Sequence[Entry], tick: Tick, timings: bool = True
) -> dict[str, Any]:
    """Everything about one store: it is filled, compacted, closed, counted and read back.

    With `timings`, its latencies are taken once it holds LATENCY_AT records, or all but the few that are put singly.
    """
    folder.mkdir()
    name = contestant.name
    held = max(2, min(PUTS, len(entries) // SHARE)) if timings else 0
    at = min(LATENCY_AT if timings else len(entries), len(entries) - held)
    store = contestant.open(folder)
    seconds = put_all(store, entries[:at], lambda done: tick(f"filling {name}", done, len(entries)))
    times = {}
    if timings:
        store.close()
        times["latency"] = latencies(contestant, folder, entries[:at], entries[at : at + held], tick)
        store = contestant.open(folder)
    seconds += put_all(
        store, entries[at + held :], lambda done: tick(f"filling {name}", at + held + done, len(entries))
    )
    _, compacting = timed(store.compact)
    about = inside(store.memory) if isinstance(store, Nbmf) else {}
    store.close()
    files = files_of(folder)
    store = contestant.open(folder)
    same = exact(store, entries, lambda done: tick(f"reading {name} back", done, len(entries)))
    store.close()
    found = sums(entries)
    disk = sum(files.values())
    return {
        "store": name,
        "setting": contestant.setting,
        **found,
        "disk_bytes": disk,
        "bytes_a_record": disk / len(entries),
        **ratios(found, disk),
        "exact": same,
        "ingest_records_s": (len(entries) - held) / seconds,
        "compact_seconds": compacting / 1000,
        **times,
        **about,
        "files": shown(files),
    }


def shown(files: dict[str, int]) -> dict[str, int]:
    """Files by name; those of a folder together."""
    sums: Counter[str] = Counter()
    for name, size in files.items():
        top, slash, _ = name.partition("/")
        sums[top + slash] += size
    return dict(sums)


def inside(memory: Memory) -> dict[str, Any]:
    """Bytes by part, as `Memory.stats` tells them, and of the blobs alone."""
    stats = memory.stats()
    parts = {name: size for name, size in stats["warm"].items() if name not in ("count", LOG)}
    parts |= {f"archive {name}": size for name, size in stats["cold"].items() if name != "count"}
    if stats["packs"]:
        parts["packs"] = stats["packs"]
    blobs = sum(len(record.blob) for record, tier in memory.live((), None) if tier == "warm")
    return {"blob_bytes": blobs, "parts": {name: size for name, size in parts.items() if size}}


def contestant(name: str, setting: str, policy: Policy | None = None, **options: Any) -> Contestant:
    """NBMF, opened with these options of `Memory.open`."""

    def open(folder: Path) -> Nbmf:
        return Nbmf(Memory.open(folder, policy=policy or Policy.default(), **options))

    return Contestant(name, setting, open)


# -- cold and packs ----------------------------------------------------------------------------------------------------


def demoted(folder: Path, tick: Tick) -> tuple[dict[str, Any], float]:
    """Moves every record of a store into archives: what its parts then are, and the seconds that took."""
    with Memory.open(folder, policy=Policy.parse(DEMOTE), embedder=None) as memory:
        _, spent = timed(lambda: memory.compact(tick))
        return inside(memory), spent / 1000


def archived(about: dict[str, Any]) -> dict[str, int]:
    return {name: about["parts"].get(f"archive {name}", 0) for name in ("blocks", "indexes", "manifest")}


def cold(warm: dict[str, Any], folder: Path, entries: Sequence[Entry], tick: Tick) -> dict[str, Any]:
    """A store, whose figures while warm are `warm`, all in archives: bytes, and reads that no cached block answers."""
    about, seconds = demoted(folder, tick)
    files = files_of(folder)
    disk = sum(files.values())
    blocks = archived(about)
    with Memory.open(folder, embedder=None) as memory:
        order = sorted(entries, key=lambda one: (one.namespace, one.key))
        block = (
            (memory.policy.archive.primer_bytes + memory.policy.archive.block_bytes)
            * len(order)
            // max(1, sums(order)["value_bytes"])
        )
        step = max(1, min(APART * block, len(order) // SHARE))
        chosen = order[step // 2 :: step]
        random.Random(SEED).shuffle(chosen)
        memory.get(order[0].namespace, order[0].key)
        spent = []
        for one in chosen:
            spent.append(timed(lambda one=one: memory.get(one.namespace, one.key))[1])  # type: ignore[misc]
            tick("reading archives", len(spent), len(chosen))
    with Memory.open(folder, embedder=None) as memory:
        same = exact(Nbmf(memory), entries, lambda done: tick("reading archives back", done, len(entries)))
    return {
        "records": len(entries),
        "warm_blob_bytes": warm["blob_bytes"],
        **{f"archive_{name}_bytes": size for name, size in blocks.items()},
        "blobs_over_blocks": warm["blob_bytes"] / blocks["blocks"],
        "warm_disk_bytes": warm["disk_bytes"],
        "disk_bytes": disk,
        "warm_over_cold_disk": warm["disk_bytes"] / disk,
        **ratios(sums(entries), disk),
        "exact": same,
        "get_ms": percentiles(spent),
        "gets": len(spent),
        "records_apart": step,
        "demote_seconds": seconds,
        "parts": about["parts"],
        "files": shown(files),
    }


def packs(folder: Path, entries: Sequence[Entry], tick: Tick) -> dict[str, Any] | None:
    """Tenants that hold one source each: warm, with packs learned from their own records, and in archives."""
    if not entries:
        return None
    found = sums(entries)
    row: dict[str, Any] = {"tenants": len({one.namespace[0] for one in entries}), **found}
    store = contestant("", "", embedder=None)
    filled = store.open(folder)
    put_all(filled, entries, lambda done: tick("filling tenants of one source", done, len(entries)))
    filled.compact()
    plain = inside(filled.memory) if isinstance(filled, Nbmf) else {}
    filled.close()
    row["warm"] = {"disk_bytes": sum(files_of(folder).values()), "blob_bytes": plain["blob_bytes"]}
    archive = folder.with_name("archive")
    shutil.copytree(folder, archive)
    about, _ = demoted(archive, tick)
    row["cold"] = {"disk_bytes": sum(files_of(archive).values()), "block_bytes": archived(about)["blocks"]}
    shutil.rmtree(archive)
    with Memory.open(folder, embedder=None) as memory:
        for place, tenant in enumerate(sorted({one.namespace[0] for one in entries})):
            tick("learning packs", place, row["tenants"])
            memory.adapt(tenant)
        memory.compact()
        learned = inside(memory)
    with Memory.open(folder, embedder=None) as memory:
        same = exact(Nbmf(memory), entries, lambda done: tick("reading packed records back", done, len(entries)))
    row["packed"] = {
        "disk_bytes": sum(files_of(folder).values()),
        "blob_bytes": learned["blob_bytes"],
        "pack_bytes": learned["parts"].get("packs", 0),
        "exact": same,
    }
    for name in ("warm", "cold", "packed"):
        row[name] |= ratios(found, row[name]["disk_bytes"])
    return row


# -- conditions --------------------------------------------------------------------------------------------------------


def commits(folder: Path, size: int, count: int) -> dict[str, float]:
    """ms of a commit of one row of `size` bytes in a bare SQLite file, WAL and FULL: what the disk itself costs."""
    raw = sqlite3.connect(folder / "bare.db", isolation_level=None)
    try:
        for pragma in ("journal_mode = WAL", "synchronous = FULL"):
            raw.execute(f"PRAGMA {pragma}").fetchall()
        raw.execute("CREATE TABLE row (data BLOB)")
        data = os.urandom(size)
        return percentiles([timed(lambda: raw.execute("INSERT INTO row VALUES (?)", (data,)))[1] for _ in range(count)])
    finally:
        raw.close()


def versions() -> dict[str, str]:
    """What the stores are made of."""
    found = {"sqlite": sqlite3.sqlite_version}
    for name in ("langgraph-checkpoint-sqlite", "apsw-sqlite3mc", "wordllama"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def left_out() -> dict[str, str]:
    """What cannot be measured here, and the extra that it needs."""
    return {
        what: extra
        for what, (packages, extra) in NEEDS.items()
        if any(importlib.util.find_spec(package) is None for package in packages)
    }


# -- the command -------------------------------------------------------------------------------------------------------


def ours(missing: dict[str, str]) -> list[Contestant]:
    """NBMF, in each way that can be measured here; without anything added first."""
    found = [contestant(PLAIN, "no semantic index, no encryption", embedder=None)]
    if "encryption" not in missing:
        key = random.Random(SEED).randbytes(32)
        found.append(contestant("nbmf, encrypted", "every tenant under a key of its own", embedder=None, key=key))
    if "semantic index" not in missing:
        found.append(contestant("nbmf, semantic index", "the static embedder"))
    return found


def run(
    files: Sequence[str | Path],
    *,
    records: int = RECORDS,
    scale: int | None = None,
    unseen: Sequence[str | Path] = (),
    peers: bool = True,
    tick: Tick,
) -> dict[str, Any]:
    """Everything about the store, on at most `records` of the records in `files`, or of the shipped samples.

    `scale`: records of the largest store of the growth part, which are generated; None: `records`, 0: no such part.
    `unseen`: files of records that the model was not trained on; of those, bytes are measured. The stores lie in the
    system's folder for temporary files (TMPDIR). Raises NbmfError (a peer is missing), DataError (too few records).
    """
    if peers:
        store_peers.require()
    found, every, refused = drawn(files, records, tick)
    if len(found) < LEAST:
        raise DataError(f"{len(found)} records are too few to measure a store: {LEAST} is the least")
    missing = left_out()
    entries = mixed(found)
    with tempfile.TemporaryDirectory(prefix="nbmf-bench-") as name:
        folder = Path(name)
        rows = []
        for place, one in enumerate([*ours(missing), *(store_peers.contestants(entries) if peers else ())]):
            rows.append(measured(one, folder / str(place), entries, tick))
            if place:  # the first goes on to be archived
                shutil.rmtree(folder / str(place))
        result = {
            **conditions.conditions("bench store", files, records, every),
            "model": conditions.about_model(Codec(), "base", "fast"),
            "store": {
                "versions": versions(),
                "filesystem": filesystem(folder),
                "refused": refused,
                "namespaces": len({one.namespace for one in entries}),
                "tenants": len({one.namespace[0] for one in entries}),
                **sums(entries),
            },
            "left_out": missing,
            "stores": rows,
            "commit_ms": commits(folder, max(1, rows[0]["blob_bytes"] // len(entries)), min(PUTS, len(entries))),
            **aged(rows[0], folder / "0", entries, by_source(found), tick),
        }
        if peers:
            result["in_memory"] = store_peers.in_memory(entries)
        if unseen:
            result["unseen"] = not_trained_on(unseen, records, peers, folder, tick)
        if most := records if scale is None else scale:
            result["growth"] = growth.grow(folder / "growth", most, tick)
            result["fits"] = growth_fits(result["growth"])
    return result


def growth_fits(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The curves through the rows of the growth part; None where there are too few of them."""
    counts = [row["records"] for row in rows]
    return {
        "bytes_a_record": curves.falling(counts, [row["bytes_a_record"] for row in rows]),
        "get_ms": curves.slow(counts, [row["get_ms"]["p50"] for row in rows]),
        "put_ms": curves.slow(counts, [row["put_ms"]["p50"] for row in rows]),
    }


def aged(
    warm: dict[str, Any], folder: Path, entries: Sequence[Entry], apart: Sequence[Entry], tick: Tick
) -> dict[str, Any]:
    """What archives and packs make of the store in `folder`, and of tenants of one source; the folder goes."""
    found = {
        "cold": cold(warm, folder, entries, tick),
        "one_source_tenants": packs(folder.with_name("packs"), apart, tick),
    }
    shutil.rmtree(folder)
    shutil.rmtree(folder.with_name("packs"), ignore_errors=True)
    return found


def not_trained_on(files: Sequence[str | Path], records: int, peers: bool, folder: Path, tick: Tick) -> dict[str, Any]:
    """The bytes on disk of records that the model was not trained on."""
    found, every, refused = drawn(files, records, tick)
    if len(found) < LEAST:
        raise DataError(f"{len(found)} records that the model never saw are too few: {LEAST} is the least")
    entries = mixed(found)
    chosen = [ours(dict.fromkeys(NEEDS, ""))[0], *(store_peers.contestants(entries) if peers else ())]
    rows = []
    for place, one in enumerate(chosen):
        rows.append(measured(one, folder / f"unseen-{place}", entries, tick, timings=False))
        if place:
            shutil.rmtree(folder / f"unseen-{place}")
    return {
        "files": [Path(name).name for name in files],
        "every": every,
        "refused": refused,
        **sums(entries),
        "stores": rows,
        **aged(rows[0], folder / "unseen-0", entries, by_source(found), tick),
    }


__all__ = ["run"]
