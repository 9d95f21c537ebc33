"""Latencies of a store's tiers: reads from memory (L1), writes and reads of the database (L2), reads of archives (L3).

The old store is measured beside it: a JSON file a record, written and read as it did, without waiting for the disk.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from nbmf.bench.encoders import STORED, STUB, STUB_SEMANTIC, ZSTD
from nbmf.bench.figures import percentiles
from nbmf.bench.records import SEED, Record
from nbmf.codec import format, stub
from nbmf.memory import Memory
from nbmf.memory.opening import WARM_FILE
from nbmf.policy.policy import Policy
from nbmf.quickstart import timed
from nbmf.report import Tick

MOST: Final = 300  # records that are put and got singly
COLD: Final = 60  # reads of archives, each of which decodes a block
OF_NAMESPACE: Final = 50
OLD_FIDELITY: Final = {STUB: "lossless", STUB_SEMANTIC: "semantic"}


def chosen(records: Sequence[Record]) -> list[Record]:
    """At most MOST of the records, by a fixed seed."""
    return list(records) if len(records) <= MOST else random.Random(SEED).sample(list(records), MOST)


def policy_of(encoder: str) -> str:
    """The policy under which a store writes with an encoder, as TOML."""
    if encoder in format.PROFILES:
        return f'[default]\nencoder = "neural"\nprofile = "{encoder}"\n'
    name = encoder if encoder in (ZSTD, STORED) else STUB
    return f'[default]\nencoder = "{name}"\n'


def latencies(encoder: str, records: Sequence[Record], tick: Tick) -> dict[str, Any]:
    """ms, by tier, of single calls on a store that holds these records; each is durable and was verified."""
    found = chosen(records)
    where = [((f"tenant-{place // OF_NAMESPACE}",), str(place)) for place in range(len(found))]
    order = list(range(len(found)))
    random.Random(SEED).shuffle(order)
    with tempfile.TemporaryDirectory(prefix="nbmf-bench-") as name:
        folder = Path(name) / "store"
        policy = Policy.parse(policy_of(encoder))
        with Memory.open(folder, policy=policy, embedder=None, key=b"") as memory:
            memory.put(("warm",), "up", "warm")
            writes = []
            for place, one in enumerate(found):
                namespace, key = where[place]
                writes.append(timed(lambda at=namespace, key=key, one=one: memory.put(at, key, one.value))[1])  # type: ignore[misc]
                tick("timing the tiers", place, 2 * len(found))
            written = memory.warm.sizes()["count"]
        with Memory.open(folder, policy=policy, embedder=None, key=b"") as memory:
            memory.get(("warm",), "up")
            wall, cpu = time.perf_counter(), time.process_time()
            warm, hot = (_reads(memory, order, where) for _ in range(2))
            share = (time.process_time() - cpu) / (time.perf_counter() - wall)
        aged = Policy.parse(policy_of(encoder) + 'cold_after = "0s"\n')
        with Memory.open(folder, policy=aged, embedder=None, key=b"") as memory:
            memory.compact()
        with Memory.open(folder, policy=policy, embedder=None, key=b"") as memory:
            memory.get(("warm",), "up")
            cold = _reads(memory, order[:COLD], where)
        tick("timing the tiers", 2 * len(found), 2 * len(found))
        assert written == len(found) + 1 and (folder / WARM_FILE).exists()
    return {
        "records": len(found),
        "cpu_share": share,  # of the reads of L1 and L2: well under 1, other programs took the core away
        "l1_read_ms": spread(hot),
        "l2_write_ms": spread(writes),
        "l2_read_ms": spread(warm),
        "l3_read_ms": spread(cold),
    }


def _reads(memory: Memory, order: Sequence[int], where: Sequence[tuple[tuple[str, ...], str]]) -> list[float]:
    return [timed(lambda at=where[place]: memory.get(*at))[1] for place in order]  # type: ignore[misc]


def spread(spent: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and the mean."""
    return {**percentiles(spent), "mean": sum(spent) / len(spent)}


def old_latencies(encoder: str, records: Sequence[Record]) -> dict[str, Any]:
    """The old store's: a file a record, `records/<key>__<class>.json`."""
    found = chosen(records)
    fidelity = OLD_FIDELITY[encoder]
    with tempfile.TemporaryDirectory(prefix="nbmf-bench-") as name:
        folder = Path(name) / "records"
        folder.mkdir()
        kept, writes = [], []
        for place, one in enumerate(found):
            path = folder / f"{place}__general.json"

            def put(path: Path = path, one: Record = one) -> None:
                text = json.dumps({"payload": stub.encode(one.value, fidelity), "meta": {}, "cls": "general"})
                path.write_text(text, encoding="utf-8")

            writes.append(timed(put)[1])
            kept.append(path)

        def get(path: Path) -> Any:
            return stub.decode(json.loads(path.read_text(encoding="utf-8"))["payload"])

        reads = [timed(lambda path=path: get(path))[1] for path in kept]  # type: ignore[misc]
    return {"records": len(found), "l2_write_ms": spread(writes), "l2_read_ms": spread(reads)}
