"""Measures the codec: ratio, exactness, latency and throughput, beside its peers on the same records."""

import datetime
import importlib
import json
import lzma
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from nbmf import bench_peers, samples
from nbmf.codec import kernel
from nbmf.codec.codec import Codec
from nbmf.codec.values import JSON, VALUE_TYPES, from_raw, to_raw
from nbmf.errors import DataError, NbmfError
from nbmf.quickstart import percentile, timed
from nbmf.report import Tick

SEED: Final = 20260101  # of the sample, the order of the shipped samples and the bootstrap
BUCKETS: Final = ((1, 32), (33, 128), (129, 512), (513, 2048), (2049, None))  # raw bytes
ROUNDS: Final = {"c": 3, "numpy": 1}  # times each record is coded for the latencies, by kernel
RESAMPLES: Final = 1000
RESAMPLED: Final = 1 << 22  # records drawn at once by the bootstrap, which bounds its memory
PERCENTILES: Final = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
BATCH: Final = 512  # records of one encode_many
PACK_RECORDS: Final = 100  # records that a source needs for the packs part
PACK_BYTES: Final = 512 << 10
SUFFIXES: Final = (".jsonl", ".jsonl.xz")
SHIPPED: Final = "shipped samples"
# Sources that are not in English, or not in English alone; a name that ends in / stands for all of an owner's.
MULTILINGUAL: Final = (
    "thu-coai/KdConv",
    "nu-dialogue/real-persona-chat",
    "UniversalDependencies/",
    "gunthercox/chatterbot-corpus",
)
LOAD: Final = """
import json, sys, time
from nbmf import samples
from nbmf.codec.codec import Codec
def resident():
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return None
values = [sample.value for sample in samples.load()]
before, start = resident(), time.perf_counter()
codec = Codec(model=sys.argv[1], domain=sys.argv[2] or None)
spent = time.perf_counter() - start
from nbmf.codec import kernel
for value in values if kernel.backend == "c" else values[:1]:
    codec.encode(value)
after = resident()
print(json.dumps([spent * 1000, after - before if after is not None else None]))
"""

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Record:
    """A record to measure, and where it is from."""

    value: Any
    kind: str
    source: str
    value_type: int
    raw: bytes


@dataclass(frozen=True)
class Measured:
    """Records and their sizes; the lists of times are empty where none were taken."""

    records: Sequence[Record]
    raw: Floats
    bare: Floats
    self_describing: Floats
    encode_ms: list[list[float]]
    decode_ms: list[list[float]]
    peers: list[bench_peers.Peer]


# -- records -----------------------------------------------------------------------------------------------------------


def record(value: Any, kind: str | None, source: str) -> Record:
    value_type, raw = to_raw(value)
    return Record(value, kind or VALUE_TYPES[value_type], source, value_type, raw)


def paths(names: Sequence[str | Path]) -> Iterator[Path]:
    """The files named, and those in the folders named."""
    for path in map(Path, names):
        if not path.is_dir():
            yield path
            continue
        found = sorted(one for one in path.rglob("*") if one.name.endswith(SUFFIXES) and one.is_file())
        if not found:
            raise DataError(f"{path}: no .jsonl or .jsonl.xz file in this folder")
        yield from found


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and text of every line that is not empty. Raises DataError."""
    with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                if stripped := line.strip():
                    yield number, stripped
        except (lzma.LZMAError, EOFError) as error:
            raise DataError(f"{path}: {error}") from error


def parsed(path: Path, number: int, line: bytes) -> Record:
    """A line is an object with `data` and `metadata`, or a JSON value by itself. Raises DataError naming the line."""
    try:
        value = from_raw(JSON, line)
        about = value.get("metadata") if type(value) is dict and "data" in value else None
        if type(about) is dict:
            return record(value["data"], about.get("kind"), str(about.get("source") or path.name))
        return record(value, None, path.name)
    except NbmfError as error:
        raise DataError(f"{path}: line {number}: {error}") from error


def load(data: Sequence[str | Path], limit: int | None, tick: Tick) -> tuple[list[Record], int]:
    """The records of `data`, or `limit` of them drawn by a fixed seed and kept in order; and how many there were."""
    found: list[Record] = []
    if data:
        for path in paths(data):
            for number, line in lines(path):
                found.append(parsed(path, number, line))
                if len(found) % 1000 == 0:
                    tick("reading records", len(found))
    else:
        found = [record(sample.value, sample.kind, SHIPPED) for sample in samples.load()]
        random.Random(SEED).shuffle(found)  # they come kind by kind, and a half of them should hold every kind
    if not found:
        raise DataError("there are no records to measure")
    every = len(found)
    if limit is not None and limit < every:
        found = [found[place] for place in sorted(random.Random(SEED).sample(range(every), limit))]
    return found, every


# -- measuring ---------------------------------------------------------------------------------------------------------


def is_equal(one: Record, back: Any) -> bool:
    """Raw bytes and type tell 1 from 1.0 from true, one key order from another, and text from JSON."""
    return to_raw(back) == (one.value_type, one.raw)


def code_many(
    codec: Codec, records: Sequence[Record], bare: bool, tick: Tick
) -> tuple[list[bytes], int, dict[str, float]]:
    """The blobs, how many came back exactly, and what `encode_many` and `decode_many` did in MB/s, on all cores."""
    blobs: list[bytes] = []
    exact, encoding, decoding = 0, 0.0, 0.0
    for start in range(0, len(records), BATCH):
        batch = records[start : start + BATCH]
        values = [one.value for one in batch]
        made, spent = timed(lambda values=values: codec.encode_many(values, bare=bare))  # type: ignore[misc]
        encoding += spent
        back, spent = timed(lambda made=made: codec.decode_many(made, bare=bare))  # type: ignore[misc]
        decoding += spent
        exact += sum(map(is_equal, batch, back))
        blobs += made
        tick("coding, bare" if bare else "coding, self-describing", len(blobs), len(records))
    raw = sum(len(one.raw) for one in records)
    return blobs, exact, {"encode_many_mb_s": speed(raw, encoding), "decode_many_mb_s": speed(raw, decoding)}


def speed(raw_bytes: float, milliseconds: float) -> float:
    """MB/s."""
    return raw_bytes / 1e3 / milliseconds if milliseconds else 0.0


def time_each(
    codec: Codec, records: Sequence[Record], blobs: Sequence[bytes], tick: Tick
) -> tuple[list[list[float]], list[list[float]], int]:
    """ms of every call of `encode` and of `decode`, bare, a record at a time, on one core; and how many were exact."""
    encode_ms: list[list[float]] = [[] for _ in records]
    decode_ms: list[list[float]] = [[] for _ in records]
    exact = [True] * len(records)
    rounds = ROUNDS[kernel.backend]
    for turn in range(rounds):
        for place, (one, blob) in enumerate(zip(records, blobs, strict=True)):
            made, spent = timed(lambda one=one: codec.encode(one.value, bare=True))  # type: ignore[misc]
            encode_ms[place].append(spent)
            back, spent = timed(lambda blob=blob: codec.decode(blob, bare=True))  # type: ignore[misc]
            decode_ms[place].append(spent)
            exact[place] = exact[place] and made == blob and is_equal(one, back)
            if place % 64 == 0:
                tick("timing each record", turn * len(records) + place, rounds * len(records))
    return encode_ms, decode_ms, sum(exact)


def bootstrap(raw: Floats, stored: Floats) -> Floats:
    """Ratios of RESAMPLES samples drawn from the records with replacement."""
    draw = np.random.default_rng(SEED)
    ratios: list[Floats] = []
    step = max(1, RESAMPLED // len(raw))
    for start in range(0, RESAMPLES, step):
        places = draw.integers(0, len(raw), (min(step, RESAMPLES - start), len(raw)))
        ratios.append(raw[places].sum(axis=1) / stored[places].sum(axis=1))
    return np.concatenate(ratios)


def interval(resampled: Floats) -> list[float]:
    """The middle 95 %."""
    return [float(end) for end in np.quantile(resampled, (0.025, 0.975))]


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if all(value > 0 for value in values) else 0.0


def peer_ratio(measured: Measured, peer: bench_peers.Peer, places: Ints) -> float | None:
    """The peer's ratio over those of the records that it was measured on."""
    tested = places[~np.isnan(peer.sizes[places])]
    return float(measured.raw[tested].sum() / peer.sizes[tested].sum()) if len(tested) else None


def figures(measured: Measured, places: Ints, resampled: Floats | None = None) -> dict[str, Any]:
    """Every figure of the records at `places`. Ratios are raw bytes / stored bytes, framing included."""
    raw, bare = measured.raw[places], measured.bare[places]
    each = (raw / bare)[raw > 0]
    row: dict[str, Any] = {
        "records": len(places),
        "raw_bytes": int(raw.sum()),
        "stored_bytes": int(bare.sum()),
        "ratio": float(raw.sum() / bare.sum()),
        "interval_95": interval(bootstrap(raw, bare) if resampled is None else resampled),
        "self_describing": float(raw.sum() / measured.self_describing[places].sum()),
        "mean_of_records": float(each.mean()) if len(each) else None,
        "median": float(np.median(each)) if len(each) else None,
        "p95_ratio": -percentile([-ratio for ratio in each.tolist()], 0.95) if len(each) else None,
        "share_at_2x": float((each >= 2).mean()) if len(each) else None,
        "bits_per_byte": float(8 * bare.sum() / raw.sum()) if raw.sum() else None,
    }
    if measured.encode_ms:
        for what, times in (("encode", measured.encode_ms), ("decode", measured.decode_ms)):
            spent = [one for place in places for one in times[place]]
            row[f"{what}_ms"] = {name: percentile(spent, share) for name, share in PERCENTILES.items()}
            row[f"{what}_mb_s"] = speed(float(raw.sum()) * len(spent) / len(places), sum(spent))
    if measured.peers:
        row["peers"] = {peer.name: peer_ratio(measured, peer, places) for peer in measured.peers}
    return row


def grouped(measured: Measured, names: Sequence[str], label: str) -> list[dict[str, Any]]:
    """The figures of each group, by name."""
    rows = []
    for name in sorted(set(names)):
        places = np.array([at for at, of in enumerate(names) if of == name], dtype=np.intp)
        rows.append({label: name, **figures(measured, places)})
    return rows


def by_size(measured: Measured) -> list[dict[str, Any]]:
    rows = []
    for low, high in BUCKETS:
        places = np.flatnonzero((measured.raw >= low) & (measured.raw <= (high or math.inf)))
        if len(places):
            rows.append({"bytes": f"{low}–{high}" if high else f"over {low - 1}", **figures(measured, places)})
    return rows


def language(source: str) -> str:
    multilingual = any(source == name or (name[-1] == "/" and source.startswith(name)) for name in MULTILINGUAL)
    return "multilingual" if multilingual else "english"


def over_sources(measured: Measured) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The figures of each source, and their geometric means over English and multilingual sources apart."""
    rows, resampled = [], {}
    where: dict[str, list[int]] = {}
    for at, one in enumerate(measured.records):
        where.setdefault(one.source, []).append(at)
    for source in sorted(where):
        places = np.array(where[source], dtype=np.intp)
        if measured.raw[places].sum() == 0:
            continue
        resampled[source] = bootstrap(measured.raw[places], measured.bare[places])
        rows.append({"source": source, "language": language(source), **figures(measured, places, resampled[source])})
    means: dict[str, Any] = {}
    for wanted in ("english", "multilingual"):
        chosen = [row for row in rows if row["language"] == wanted]
        if not chosen:
            continue
        logs = np.log(np.maximum(np.stack([resampled[row["source"]] for row in chosen]), 1e-9))
        means[wanted] = {
            "sources": len(chosen),
            "ratio": geometric_mean([row["ratio"] for row in chosen]),
            "interval_95": interval(np.exp(logs.mean(axis=0))),
            "self_describing": geometric_mean([row["self_describing"] for row in chosen]),
            "lowest": min(row["ratio"] for row in chosen),
        }
        if measured.peers:
            ratios = {peer.name: [row["peers"][peer.name] for row in chosen] for peer in measured.peers}
            means[wanted]["peers"] = {
                name: geometric_mean(found) for name, found in ratios.items() if None not in found
            }
    return rows, means


def peer_rows(measured: Measured) -> list[dict[str, Any]]:
    """Each peer over the records that it was measured on, with what the codec made of the same ones."""
    rows = []
    for peer in measured.peers:
        places = np.flatnonzero(~np.isnan(peer.sizes))
        raw, sizes = measured.raw[places], peer.sizes[places]
        ours = float(raw.sum() / measured.bare[places].sum())
        ratio = float(raw.sum() / sizes.sum())
        rows.append(
            {
                "peer": peer.name,
                "setting": peer.setting,
                "records": len(places),
                "ratio": ratio,
                "interval_95": interval(bootstrap(raw, sizes)),
                "nbmf": ours,
                "nbmf_over_peer": ours / ratio,
            }
        )
    return rows


# -- packs -------------------------------------------------------------------------------------------------------------


def packs(records: Sequence[Record], codec: Codec, model: str, profile: str, tick: Tick) -> dict[str, Any]:
    """For each source: a pack of its first half, on its other half, beside zstd with a dictionary of the same half."""
    from nbmf.codec.adapt import adapt

    where: dict[str, list[Record]] = {}
    for one in records:
        if one.raw:
            where.setdefault(one.source, []).append(one)
    chosen = [source for source in sorted(where) if len(where[source]) >= PACK_RECORDS]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, source in enumerate(chosen):
            tick("learning packs", number, len(chosen))
            found = where[source]
            learned, tested = found[: len(found) // 2], found[len(found) // 2 :]
            path = Path(folder) / f"{number}.nbp"
            start = time.perf_counter()
            adapt([one.value for one in learned], path, model=model, size=PACK_BYTES)
            spent = time.perf_counter() - start
            packed = Codec(model=model, profile=profile, domain=str(path))
            blobs, exact, _ = code_many(packed, tested, True, lambda *_: None)
            plain = codec.encode_many([one.value for one in tested], bare=True)
            kb, peer = bench_peers.with_dictionary([one.raw for one in learned], [one.raw for one in tested])
            raw = sum(len(one.raw) for one in tested)
            ratio, zstd = raw / sum(map(len, blobs)), raw / sum(peer)
            rows.append(
                {
                    "source": source,
                    "language": language(source),
                    "learned_records": len(learned),
                    "learned_bytes": sum(len(one.raw) for one in learned),
                    "records": len(tested),
                    "raw_bytes": raw,
                    "exact": exact,
                    "pack_bytes": path.stat().st_size,
                    "learn_seconds": spent,
                    "base": raw / sum(map(len, plain)),
                    "pack": ratio,
                    "zstd_dictionary": zstd,
                    "dictionary_kb": kb,
                    "quotient": ratio / zstd,
                }
            )
    tick("learning packs", len(chosen), len(chosen))
    means = {}
    for wanted in ("english", "multilingual"):
        of = [row for row in rows if row["language"] == wanted]
        if of:
            means[wanted] = {
                "sources": len(of),
                **{name: geometric_mean([row[name] for row in of]) for name in ("base", "pack", "zstd_dictionary")},
                "quotient_mean": sum(row["quotient"] for row in of) / len(of),
                "quotient_min": min(row["quotient"] for row in of),
            }
    return {"by_source": rows, "geometric_means": means}


# -- conditions --------------------------------------------------------------------------------------------------------


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit that is checked out where the package lies, read from the folder .git itself."""
    for folder in Path(__file__).resolve().parents:
        head = folder / ".git" / "HEAD"
        if not head.is_file() or not (folder / "pyproject.toml").is_file():
            continue
        name = head.read_text(encoding="utf-8").strip()
        if not name.startswith("ref: "):
            return name
        ref = name[5:]
        if (folder / ".git" / ref).is_file():
            return (folder / ".git" / ref).read_text(encoding="utf-8").strip()
        packed = folder / ".git" / "packed-refs"
        lines = packed.read_text(encoding="utf-8").splitlines() if packed.is_file() else []
        return next((line.split()[0] for line in lines if line.endswith(f" {ref}")), None)
    return None


def simd() -> str | None:
    """The SIMD level that the C kernel uses."""
    return str(importlib.import_module("nbmf.codec._kernel").simd()) if kernel.backend == "c" else None


def machine() -> dict[str, Any]:
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "zstandard": zstandard.__version__,
        "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
        "kernel": kernel.backend,
        "simd": simd(),
    }


def about_model(codec: Codec, model: str, profile: str) -> dict[str, Any]:
    found = {
        "name": model,
        "profile": profile,
        "id": codec.model.id.hex(),
        "bytes": len(codec.model.buffer),
    }
    return {**found, "pack_id": codec.id, "pack_bytes": len(codec.pack.buffer)} if codec.pack else found


def loading(model: str, domain: str | None) -> dict[str, Any]:
    """ms to load the model in a process of its own, files cached, and the memory that it then takes."""
    best: list[Any] = []
    for _ in range(3):
        command = [sys.executable, "-c", LOAD, model, domain or ""]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            best.append(json.loads(done.stdout))
    if not best:
        return {}
    return {"load_ms": min(one[0] for one in best), "resident_bytes": best[-1][1]}


def conditions(what: str, data: Sequence[str | Path], limit: int | None, every: int) -> dict[str, Any]:
    return {
        "measured": what,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "machine": machine(),
        "data": {"files": [Path(name).name for name in data] or [SHIPPED], "records": every, "limit": limit},
    }


# -- the two commands --------------------------------------------------------------------------------------------------


def measure(codec: Codec, records: Sequence[Record], timings: bool, tick: Tick) -> tuple[Measured, dict[str, Any]]:
    """Sizes and, with `timings`, times of every record, and the figures that belong to all of them."""
    codec.decode(codec.encode("warm"))
    blobs, bare_exact, many = code_many(codec, records, True, tick)
    named, named_exact, _ = code_many(codec, records, False, tick)
    overall: dict[str, Any] = {"exact": {"records": len(records), "bare": bare_exact, "self_describing": named_exact}}
    encode_ms: list[list[float]] = []
    decode_ms: list[list[float]] = []
    if timings:
        wall, cpu = time.perf_counter(), time.process_time()
        encode_ms, decode_ms, overall["exact"]["one_by_one"] = time_each(codec, records, blobs, tick)
        # Well under 1, other programs took the core away, and the times are theirs too.
        overall["cpu_share"] = (time.process_time() - cpu) / (time.perf_counter() - wall)
        overall["many"] = many
    measured = Measured(
        records,
        raw=np.array([len(one.raw) for one in records], dtype=np.float64),
        bare=np.array([len(blob) for blob in blobs], dtype=np.float64),
        self_describing=np.array([len(blob) for blob in named], dtype=np.float64),
        encode_ms=encode_ms,
        decode_ms=decode_ms,
        peers=[],
    )
    return measured, overall


def parts(measured: Measured, overall: dict[str, Any]) -> dict[str, Any]:
    """The figures of all records, and by size, kind and source."""
    sources, means = over_sources(measured)
    return {
        "total": figures(measured, np.arange(len(measured.records), dtype=np.intp)),
        **overall,
        "by_size": by_size(measured),
        "by_kind": grouped(measured, [one.kind for one in measured.records], "kind"),
        "geometric_means": means,
        "by_source": sources,
    }


def evaluate(
    files: Sequence[str | Path], *, model: str, profile: str, domain: str | None, limit: int | None, tick: Tick
) -> dict[str, Any]:
    """Ratio and exactness of a model, or of a model with a pack, on files of records."""
    codec = Codec(model=model, profile=profile, domain=domain)
    records, every = load(files, limit, tick)
    measured, overall = measure(codec, records, False, tick)
    return {
        **conditions("eval", files, limit, every),
        "model": about_model(codec, model, profile),
        **parts(measured, overall),
    }


def run(
    data: Sequence[str | Path],
    *,
    model: str,
    profile: str,
    domain: str | None,
    limit: int | None,
    tick: Tick,
    peers: bool = True,
    with_packs: bool = False,
    train_dict: str | Path | None = None,
) -> dict[str, Any]:
    """Everything about the codec on these records; with `peers` beside them, and with packs learned from them."""
    if peers:
        bench_peers.require()
    codec = Codec(model=model, profile=profile, domain=domain)
    records, every = load(data, limit, tick)
    measured, overall = measure(codec, records, True, tick)
    if peers:
        raws = [one.raw for one in records]
        measured.peers.extend(bench_peers.without_dictionary(raws, [one.value_type for one in records], tick))
        learned = [one.raw for one in load([train_dict], None, tick)[0]] if train_dict else None
        dictionary = bench_peers.zstd_with_dictionary(raws, learned, tick)
        if dictionary:
            measured.peers.insert(2, dictionary)
    result = {
        **conditions("bench", data, limit, every),
        "model": {**about_model(codec, model, profile), **loading(model, domain)},
        **parts(measured, overall),
    }
    if peers:
        result["peers"] = peer_rows(measured)
    if with_packs:
        result["packs"] = packs(records, codec, model, profile, tick)
    return result
