"""The growth part of `nbmf bench store`: one store at 100, 1,000 … generated records, in processes of its own."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from nbmf import samples
from nbmf.bench.figures import PERCENTILES
from nbmf.bench.records import SEED
from nbmf.codec.values import to_raw
from nbmf.errors import NbmfError
from nbmf.memory import Memory, PutOp
from nbmf.memory.aging import disk_bytes
from nbmf.quickstart import percentile, timed
from nbmf.report import Tick

FIRST: Final = 100  # records of the smallest store; each is STEP times the one before
STEP: Final = 10
BATCH: Final = 1000  # records of one put_many
OF_NAMESPACE: Final = 50  # records, on average
USERS: Final = 100  # of a tenant, at most
READS: Final = 1000  # single gets that are timed, and half as many puts, at most
MISSING: Final = object()
RUN: Final = "import sys; from nbmf.bench import growth; growth.child(sys.argv[1:])"


def sizes(most: int) -> list[int]:
    """100, 1,000, 10,000 … as far as `most`; `most` alone where it is less."""
    found = [min(FIRST, most)]
    while found[-1] * STEP <= most:
        found.append(found[-1] * STEP)
    return found


def grow(folder: Path, most: int, tick: Tick) -> list[dict[str, Any]]:
    """A row for each size: what filling took, what lies on disk, and what a process that then opens the store sees."""
    rows = []
    start = 0
    for size in sizes(most):
        row: dict[str, Any] = {"records": size}
        for told in _run("fill", folder, start, size):
            if "done" in told:
                tick("growing", told["done"], most)
            else:
                row |= told
        row["disk_bytes"] = disk_bytes(folder)
        row["bytes_a_record"] = row["disk_bytes"] / size
        for told in _run("probe", folder, size):
            row |= told
        rows.append(row)
        start = size
    return rows


def _run(what: str, folder: Path, *numbers: int) -> Iterator[dict[str, Any]]:
    """The lines of JSON that a process of this module's own says. Raises NbmfError when it fails."""
    command = [sys.executable, "-c", RUN, what, str(folder), *map(str, numbers)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            yield json.loads(line)
        error = process.stderr.read().strip()
    if process.returncode:
        raise NbmfError(f"the growth part failed: {error.splitlines()[-1] if error else process.returncode}")


# -- in the process ----------------------------------------------------------------------------------------------------


def child(args: Sequence[str]) -> None:
    """What `_run` starts."""
    folder, numbers = Path(args[1]), [int(number) for number in args[2:]]
    told = fill(folder, *numbers) if args[0] == "fill" else probe(folder, *numbers)
    for row in told:
        print(json.dumps(row), flush=True)


def values() -> Iterator[Any]:
    """Generated values without end, no two of them equal, so that none can be kept once for many records."""
    seen: set[tuple[int, bytes]] = set()
    for sample in samples.stream(SEED):
        pair = to_raw(sample.value)
        if pair not in seen:
            seen.add(pair)
            yield sample.value


def address(number: int) -> tuple[tuple[str, ...], str]:
    """Where the record of a number lies. Half of the keys are UUIDs; a user holds OF_NAMESPACE records on average."""
    draw = random.Random(number)
    user = draw.randrange(number // OF_NAMESPACE + 1)
    namespace = (f"tenant-{user // USERS:03d}", f"user-{user % USERS:02d}")
    if number % 2:
        return namespace, str(uuid.UUID(int=draw.getrandbits(128), version=4))
    return namespace, f"pref-{number}"


def fill(folder: Path, start: int, end: int) -> Iterator[dict[str, Any]]:
    """Puts the records from number `start` to before `end`, and compacts."""
    raw = 0
    spent = 0.0
    found = islice(values(), start, None)
    with Memory.open(folder, embedder=None) as memory:
        for at in range(start, end, BATCH):
            batch = list(islice(found, min(BATCH, end - at)))
            raw += sum(len(to_raw(value)[1]) for value in batch)
            ops = [PutOp(*address(at + place), value) for place, value in enumerate(batch)]
            spent += timed(lambda ops=ops: memory.put_many(ops))[1]  # type: ignore[misc]
            yield {"done": at + len(batch)}
        _, compacting = timed(memory.compact)
    yield {
        "value_bytes_added": raw,
        "ingest_records_s": 1000 * (end - start) / spent,
        "compact_seconds": compacting / 1000,
        "filling_peak_bytes": _memory().get("VmHWM"),
    }


def probe(folder: Path, count: int) -> Iterator[dict[str, Any]]:
    """Opens the store as any process would. Raises NbmfError when a record is not there."""
    before = _memory().get("VmRSS")
    memory, opening = timed(lambda: Memory.open(folder, embedder=None))
    with memory:
        after = _memory().get("VmRSS")
        draw = random.Random(count)
        chosen = draw.sample(range(count), min(READS + 1, count))
        first, *gets = [_get(memory, number) for number in chosen]
        puts = []
        for place, sample in enumerate(islice(samples.stream(SEED + 1), max(1, len(gets) // 2))):
            key, value = str(place), sample.value
            puts.append(timed(lambda key=key, value=value: memory.put(("probe",), key, value))[1])  # type: ignore[misc]
    yield {
        "open_ms": opening,
        "first_get_ms": first,
        "get_ms": {name: percentile(gets, share) for name, share in PERCENTILES.items()},
        "put_ms": {name: percentile(puts, share) for name, share in PERCENTILES.items()},
        "memory_before_bytes": before,
        "memory_open_bytes": after,
        "memory_peak_bytes": _memory().get("VmHWM"),
    }


def _get(memory: Memory, number: int) -> float:
    namespace, key = address(number)
    value, spent = timed(lambda: memory.get(namespace, key, MISSING))
    if value is MISSING:
        raise NbmfError(f"record {number} of the growth part is lost")
    return spent


def _memory() -> dict[str, int]:
    """Resident bytes of this process now (VmRSS) and at most (VmHWM); {} where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
