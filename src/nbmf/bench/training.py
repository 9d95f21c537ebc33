"""`nbmf bench training`: what more training records, and more records for a pack, are worth, and what they cost.

Each model is trained by `nbmf train` in a process of its own, so that time and memory are that command's.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from nbmf import samples
from nbmf.bench import coding, curves, peers
from nbmf.bench.conditions import about_model, conditions
from nbmf.bench.encoders import encoder
from nbmf.bench.figures import bootstrap, interval
from nbmf.bench.records import SEED, Record, load, record
from nbmf.codec.adapt import adapt
from nbmf.codec.codec import Codec
from nbmf.errors import DataError, NbmfError
from nbmf.report import Tick

SHARES: Final = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the training records
COUNTS: Final = (50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)  # records that a pack is learned from
HELD: Final = 0.1  # of the records are held out, where no others are given
LEAST: Final = 100  # records that a training run needs
GENERATED: Final = 3000  # records of the project's own making, where none are given
PACK_BYTES: Final = 512 << 10
MEMORY: Final = """
import resource, sys
from nbmf.cli import main
try:
    main()
finally:
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, file=sys.stderr)
"""


def split(
    data: Sequence[str | Path], test: Sequence[str | Path], limit: int | None, tick: Tick
) -> tuple[list[Record], list[Record], int]:
    """Records to learn from, shuffled by a fixed seed, and others to measure on; and how many there were."""
    if data:
        found, every = load(data, limit, tick, refused=False)  # of many, some may be no JSON
    else:
        found = [
            record(one.value, one.kind, f"generated {one.kind}") for one in samples.generate(limit or GENERATED, SEED)
        ]
        every = len(found)
    random.Random(SEED).shuffle(found)
    if test:
        return found, load(test, limit, tick, refused=False)[0], every
    held = max(1, round(len(found) * HELD))
    return found[held:], found[:held], every


def run(
    data: Sequence[str | Path],
    *,
    test: Sequence[str | Path] = (),
    size: str = "toy",
    limit: int | None = None,
    tick: Tick,
) -> dict[str, Any]:
    """Models of SHARES of the records, packs of COUNTS of them, both measured on records that neither has seen.

    `size`: the dial of `nbmf train`. Raises DataError (too few records), NbmfError (training failed).
    """
    learned, tested, every = split(data, test, limit, tick)
    if len(learned) < LEAST:
        raise DataError(f"{len(learned)} records are too few to measure training: {LEAST} is the least")
    with tempfile.TemporaryDirectory(prefix="nbmf-bench-") as folder:
        models = list(trained(learned, tested, size, Path(folder), tick))
        packs = list(packed(learned, tested, Path(folder), tick))
    found = {
        **conditions("bench training", data, limit, every),
        "model": about_model(Codec(), "base", "fast"),
        "size": size,
        "tested": {"records": len(tested), "raw_bytes": sum(len(one.raw) for one in tested), "held_out": not test},
        "models": models,
        "packs": packs,
    }
    if not data:
        found["data"]["files"] = ["generated samples"]
    return {**found, "fits": fits(models, packs)}


def fits(models: Sequence[dict[str, Any]], packs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The curves through the rows; a fit is None where there are too few of them."""
    counts = [row["records"] for row in models]
    return {
        "bits_per_byte": curves.falling(counts, [row["bits_per_byte"] for row in models]),
        "seconds": curves.rising(counts, [row["seconds"] for row in models]),
        "pack_bits_per_byte": curves.falling(
            [row["records"] for row in packs], [row["bits_per_byte"] for row in packs]
        ),
    }


# -- models ------------------------------------------------------------------------------------------------------------


def trained(
    learned: Sequence[Record], tested: Sequence[Record], size: str, folder: Path, tick: Tick
) -> Iterator[dict[str, Any]]:
    """A row for each share of the records that is enough of them."""
    for place, share in enumerate(SHARES):
        count = round(len(learned) * share)
        tick("training", place, len(SHARES))
        if count < LEAST:
            continue
        data, out = folder / "train.jsonl", folder / f"{place}.nbm"
        with data.open("w", encoding="utf-8") as file:
            for one in learned[:count]:
                line = {"data": one.value, "metadata": {"source": one.source, "kind": one.kind}}
                file.write(json.dumps(line) + "\n")
        card, seconds, memory = train(data, out, size)
        yield {
            "share": share,
            "records": count,
            "raw_bytes": sum(len(one.raw) for one in learned[:count]),
            "model_bytes": out.stat().st_size,
            "model_id": card["id"],
            "seconds": seconds,
            "memory_peak_bytes": memory,
            **held_out(tested, str(out), None),
            **dictionary(learned[:count], tested),
        }
        out.unlink()
    tick("training", len(SHARES), len(SHARES))


def train(data: Path, out: Path, size: str) -> tuple[dict[str, Any], float, int]:
    """The card of a model trained on a file, the seconds that took, and the memory at most. Raises NbmfError."""
    command = [sys.executable, "-c", MEMORY, "train", "--data", str(data), "--out", str(out), "--size", size, "--fresh"]
    start = time.perf_counter()
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    told = done.stderr.strip().splitlines()
    if done.returncode:
        raise NbmfError(f"training failed: {' '.join(told[:-1]) or done.returncode}")
    return json.loads(done.stdout), seconds, int(told[-1])


def held_out(tested: Sequence[Record], model: str, pack: str | None) -> dict[str, Any]:
    """What a model, or a model with a pack, makes of records that it never saw."""
    blobs, exact, _ = coding.code_many(encoder("fast", model, pack), tested, lambda *_: None)
    raw, stored = coding.sizes([one.raw for one in tested]), coding.sizes(blobs)
    return {
        "ratio": float(raw.sum() / stored.sum()),
        "interval_95": interval(bootstrap(raw, stored)),
        "bits_per_byte": float(8 * stored.sum() / raw.sum()),
        "exact": exact,
        "tested": len(tested),
    }


def dictionary(learned: Sequence[Record], tested: Sequence[Record]) -> dict[str, Any]:
    """What zstd makes of them with a dictionary of the same records."""
    raws = [one.raw for one in tested]
    kb, sizes = peers.with_dictionary([one.raw for one in learned], raws)
    return {"zstd_dictionary": sum(map(len, raws)) / sum(sizes), "dictionary_kb": kb}


# -- packs -------------------------------------------------------------------------------------------------------------


def packed(learned: Sequence[Record], tested: Sequence[Record], folder: Path, tick: Tick) -> Iterator[dict[str, Any]]:
    """A row for each of COUNTS that there are records for, and first for none."""
    counts = [count for count in COUNTS if count <= len(learned)]
    base = held_out(tested, "base", None)
    for place, count in enumerate(counts):
        tick("learning packs", place, len(counts))
        path = folder / f"{count}.nbp"
        start = time.perf_counter()
        adapt([one.value for one in learned[:count]], path, size=PACK_BYTES)
        seconds = time.perf_counter() - start
        yield {
            "records": count,
            "raw_bytes": sum(len(one.raw) for one in learned[:count]),
            "pack_bytes": path.stat().st_size,
            "seconds": seconds,
            "without": base["ratio"],
            **held_out(tested, "base", str(path)),
            **dictionary(learned[:count], tested),
        }
    tick("learning packs", len(counts), len(counts))
