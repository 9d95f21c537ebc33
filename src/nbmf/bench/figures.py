"""The figures of records and their sizes: ratios with their intervals, percentiles, by kind, size and source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from nbmf.bench.records import SEED, Record
from nbmf.quickstart import percentile

if TYPE_CHECKING:
    from nbmf.bench.peers import Peer

BUCKETS: Final = ((1, 32), (33, 128), (129, 512), (513, 2048), (2049, None))  # raw bytes
RESAMPLES: Final = 1000
RESAMPLED: Final = 1 << 22  # records drawn at once by the bootstrap, which bounds its memory
PERCENTILES: Final = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
LOW: Final = 1.5  # a record under this ratio hardly gained
GOOD: Final = 2.0
EDGES: Final = (*(round(0.5 + 0.25 * step, 2) for step in range(39)), math.inf)  # of the distribution of ratios
# Sources that are not in English, or not in English alone; a name that ends in / stands for all of an owner's.
MULTILINGUAL: Final = (
    "thu-coai/KdConv",
    "nu-dialogue/real-persona-chat",
    "UniversalDependencies/",
    "gunthercox/chatterbot-corpus",
)

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


@dataclass(frozen=True)
class Measured:
    """Records, their bare blobs and all sizes. Times are of the first records, as far as they were taken."""

    records: Sequence[Record]
    raw: Floats
    bare: Floats
    self_describing: Floats
    encode_ms: list[list[float]]
    decode_ms: list[list[float]]
    blobs: Sequence[bytes] = ()
    peers: list[Peer] = field(default_factory=list)


def speed(raw_bytes: float, milliseconds: float) -> float:
    """MB/s."""
    return raw_bytes / 1e3 / milliseconds if milliseconds else 0.0


def fastest(raw_bytes: float, times: Sequence[Sequence[float]]) -> float:
    """MB/s over the fastest of each record's calls: what the machine's other work took away is left out."""
    return speed(raw_bytes, sum(map(min, times)))


def percentiles(spent: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99, in ms."""
    return {name: percentile(spent, share) for name, share in PERCENTILES.items()}


def reached(values: Sequence[float], share: float) -> float:
    """What `share` of the values reach or pass: of ratios, `reached(ratios, 0.95)` is the p95 ratio."""
    return -percentile([-value for value in values], share)


# -- ratios ------------------------------------------------------------------------------------------------------------


def bootstrap(raw: Floats, stored: Floats) -> Floats:
    """Ratios of RESAMPLES samples drawn from the records with replacement."""
    draw = np.random.default_rng(SEED)
    ratios: list[Floats] = []
    step = max(1, RESAMPLED // len(raw))
    for start in range(0, RESAMPLES, step):
        places = draw.integers(0, len(raw), (min(step, RESAMPLES - start), len(raw)))
        ratios.append(raw[places].sum(axis=1) / stored[places].sum(axis=1))
    return np.concatenate(ratios)


def intervals_of_records(each: Floats) -> dict[str, list[float]]:
    """95 % intervals of the mean, the median and the p95 of the records' own ratios."""
    draw = np.random.default_rng(SEED)
    found: dict[str, list[Floats]] = {"mean_of_records": [], "median": [], "p95_ratio": []}
    step = max(1, RESAMPLED // len(each))
    for start in range(0, RESAMPLES, step):
        drawn = each[draw.integers(0, len(each), (min(step, RESAMPLES - start), len(each)))]
        found["mean_of_records"].append(drawn.mean(axis=1))
        low, middle = np.quantile(drawn, (0.05, 0.5), axis=1)
        found["median"].append(middle)
        found["p95_ratio"].append(low)
    return {name: interval(np.concatenate(parts)) for name, parts in found.items()}


def interval(resampled: Floats) -> list[float]:
    """The middle 95 %."""
    return [float(end) for end in np.quantile(resampled, (0.025, 0.975))]


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if all(value > 0 for value in values) else 0.0


def peer_ratio(measured: Measured, peer: Peer, places: Ints) -> float | None:
    """The peer's ratio over those of the records that it was measured on."""
    tested = places[~np.isnan(peer.sizes[places])]
    return float(measured.raw[tested].sum() / peer.sizes[tested].sum()) if len(tested) else None


def of_records(each: Floats) -> dict[str, Any]:
    """What the records' own ratios come to; None everywhere for no records."""
    ratios = each.tolist()
    return {
        "mean_of_records": float(each.mean()) if ratios else None,
        "median": float(np.median(each)) if ratios else None,
        "p95_ratio": reached(ratios, 0.95) if ratios else None,
        "min_ratio": min(ratios) if ratios else None,
        "share_at_2x": float((each >= GOOD).mean()) if ratios else None,
        "share_under_1_5x": float((each < LOW).mean()) if ratios else None,
    }


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
        **of_records(each),
        "bits_per_byte": float(8 * bare.sum() / raw.sum()) if raw.sum() else None,
    }
    if measured.encode_ms:
        for what, times in (("encode", measured.encode_ms), ("decode", measured.decode_ms)):
            row[f"{what}_ms"] = percentiles([one for place in places for one in times[place]])
            row[f"{what}_mb_s"] = fastest(float(raw.sum()), [times[place] for place in places])
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


def distribution(measured: Measured) -> dict[str, Any]:
    """How many records have which ratio, ours and each peer's, between EDGES."""
    has = measured.raw > 0
    sizes = {"nbmf": measured.bare, **{peer.name: peer.sizes for peer in measured.peers}}
    counts = {}
    for name, stored in sizes.items():
        chosen = has & ~np.isnan(stored)
        found, _ = np.histogram(np.clip(measured.raw[chosen] / stored[chosen], EDGES[0], None), EDGES)
        counts[name] = [int(count) for count in found]
    return {"edges": list(EDGES[:-1]), "counts": counts}


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
                **of_records((raw / sizes)[raw > 0]),
                "exact": peer.exact,
                "encode_mb_s": peer.encode_mb_s,
                "decode_mb_s": peer.decode_mb_s,
                "bytes": peer.bytes,
            }
        )
    return rows
