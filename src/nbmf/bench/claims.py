"""The claims: what was promised of the encoder that replaces the old one, and whether it holds, item by item.

The old encoder is measured anew on the same records and on samples of its own three kinds: text, JSON, mixed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nbmf import samples
from nbmf.bench import coding, tiers
from nbmf.bench.encoders import STUB, STUB_SEMANTIC, Encoder, code_size
from nbmf.bench.figures import of_records
from nbmf.bench.records import SEED, Record, record
from nbmf.report import Tick

LEAST_BYTES: Final = 64  # raw bytes from which ratios are claimed
HERE: Final = "the records"
KINDS: Final = ("text", "JSON", "mixed")  # the old encoder's own samples
OF_KIND: Final = 60
LENGTHS: Final = (80, 200, 500, 1200, 3000)  # raw bytes that the samples of its kinds are about, in turn
OLD: Final = {"ratio": 1.14, "accuracy": 0.9173, "l2_ms": 18.46}  # what was measured of the old encoder once

Figures = dict[str, Any]
Coded = tuple[Sequence[bytes], int]


@dataclass(frozen=True)
class Claim:
    """A figure that must be at least, or at most, `limit`. A limit that is a name is the old encoder's figure."""

    name: str
    figure: str
    limit: float | str
    at_least: bool
    unit: str  # "x", "share", "ms"


CLAIMS: Final = (
    Claim("mean ratio of records: 2 to 5 or more", "mean_of_records", 2.0, True, "x"),
    Claim("p95 ratio: 95 % of records reach 2", "p95_ratio", 2.0, True, "x"),
    Claim("share of records under 1.5: the 5 % that p95 leaves", "share_under_1_5x", 0.05, False, "share"),
    Claim("accuracy, mean", "accuracy_mean", 0.995, True, "share"),
    Claim("accuracy, p95: 95 % of records reach it", "accuracy_p95", 0.99, True, "share"),
    Claim("accuracy of the worst record", "accuracy_min", 0.98, True, "share"),
    Claim("L2 write, p95", "l2_write_p95_ms", 120.0, False, "ms"),
    Claim("L2 read, p95", "l2_read_p95_ms", 120.0, False, "ms"),
    Claim("L1 read, p95", "l1_read_p95_ms", 25.0, False, "ms"),
    Claim("no regression: mean ratio, against the old encoder's code", "mean_of_records", "stub_ratio", True, "x"),
    Claim("no regression: mean accuracy, against the old encoder's", "accuracy_mean", "stub_accuracy", True, "share"),
    Claim("no regression: mean L2 access, against the 18.46 ms once measured", "l2_mean_ms", "old_l2_ms", False, "ms"),
)


# -- the old encoder's own kinds ---------------------------------------------------------------------------------------


def of_its_kinds() -> dict[str, list[Record]]:
    """OF_KIND records of each of KINDS, by a fixed seed, of lengths about LENGTHS in turn."""
    draw = random.Random(SEED)
    generated = samples.stream(SEED)
    texts: list[str] = []
    values: list[Any] = []
    while min(len(texts), len(values)) < 40 * OF_KIND:
        value = next(generated).value
        (texts if isinstance(value, str) else values).append(value)
    found: dict[str, list[Record]] = {kind: [] for kind in KINDS}
    for place in range(OF_KIND):
        length = LENGTHS[place % len(LENGTHS)]
        found["text"].append(record(_text(draw, texts, length), "text", "text"))
        found["JSON"].append(record(_filled(draw, values, length), "JSON", "JSON"))
        mixed = {
            "id": f"{draw.getrandbits(32):08x}",
            "body": _text(draw, texts, length // 2),
            "items": _filled(draw, values, length // 2),
            "score": round(draw.random(), 3),
        }
        found["mixed"].append(record(mixed, "mixed", "mixed"))
    return found


def _text(draw: random.Random, texts: Sequence[str], length: int) -> str:
    parts: list[str] = []
    while sum(map(len, parts)) < length:
        parts.append(draw.choice(texts))
    return " ".join(parts)


def _filled(draw: random.Random, values: Sequence[Any], length: int) -> list[Any]:
    parts: list[Any] = []
    size = 0
    while size < length:
        parts.append(draw.choice(values))
        size += len(record(parts[-1], None, "").raw)
    return parts


# -- figures -----------------------------------------------------------------------------------------------------------


def figures(
    encoder: Encoder,
    records: Sequence[Record],
    latency: dict[str, Any],
    tick: Tick,
    coded: Coded | None = None,
) -> Figures:
    """What the claims look at. Ratios are of records of LEAST_BYTES and more; accuracy is of all of them.

    `coded`: the records' blobs, and how many were exact, where that is known already.
    """
    held = [one for one in records if encoder.can(one.value)]
    if coded is None or len(coded[0]) != len(held):
        coded = coding.code_many(encoder, held, tick)[:2]
    blobs, exact = coded
    alike = (
        coding.similarities(encoder, held, blobs) if exact < len(held) else dict.fromkeys(("mean", "p95", "min"), 1.0)
    )
    large = [place for place, one in enumerate(held) if len(one.raw) >= LEAST_BYTES]
    stored = coding.sizes([blobs[place] for place in large])
    raw = coding.sizes([held[place].raw for place in large])
    found: Figures = {
        "records": len(held),
        "records_of_64_bytes": len(large),
        "ratio": float(raw.sum() / stored.sum()) if large else None,
        **of_records(raw / stored),
        "exact_rate": exact / len(held) if held else None,
        **{f"accuracy_{name}": value for name, value in alike.items()},
    }
    if encoder.name == STUB:
        codes = [code_size(held[place].value) for place in large]
        found["ratio_of_code"] = float(raw.sum() / sum(codes)) if large else None
    for tier in ("l1_read", "l2_write", "l2_read"):
        if f"{tier}_ms" in latency:
            found[f"{tier}_p95_ms"] = latency[f"{tier}_ms"]["p95"]
    found["l2_mean_ms"] = (latency["l2_write_ms"]["mean"] + latency["l2_read_ms"]["mean"]) / 2
    return found


def verdicts(ours: Figures, stub: Figures, semantic: Figures) -> list[dict[str, Any]]:
    """A line for each claim: the figure, its limit, whether it holds, and by how much of the limit."""
    # In the old encoder's favour: its code without the hex and the JSON around it, or what it once reached.
    limits = {
        "stub_ratio": max(OLD["ratio"], stub["ratio_of_code"] or 0.0),
        "stub_accuracy": max(stub["accuracy_mean"], semantic["accuracy_mean"]),
        "old_l2_ms": OLD["l2_ms"],
    }
    rows = []
    for claim in CLAIMS:
        measured = ours[claim.figure]
        limit = limits[claim.limit] if isinstance(claim.limit, str) else claim.limit
        if measured is None:
            continue
        over = measured - limit if claim.at_least else limit - measured
        rows.append(
            {
                "claim": claim.name,
                "figure": claim.figure,
                "unit": claim.unit,
                "at_least": claim.at_least,
                "limit": limit,
                "measured": measured,
                "holds": over >= 0,
                "margin": over / limit if limit else None,
            }
        )
    return rows


def every(
    encoders: Sequence[Encoder],
    old: Callable[[str], Encoder],
    records: Sequence[Record],
    coded: Mapping[str, Coded],
    tick: Tick,
) -> dict[str, Any]:
    """The verdicts of each encoder, on the records and on the old encoder's own kinds, and the old figures anew.

    `coded`: the blobs of the records, and how many were exact, by encoder, where that is known already.
    """
    sets = {HERE: list(records), **of_its_kinds()}
    parts = []
    for name, found in sets.items():
        large = sum(len(one.raw) >= LEAST_BYTES for one in found)
        if not large:
            continue
        before = {
            stub: figures(old(stub), found, tiers.old_latencies(stub, _held(old(stub), found)), tick)
            for stub in (STUB, STUB_SEMANTIC)
            if _held(old(stub), found)
        }
        for encoder in encoders:
            latency = tiers.latencies(encoder.name, found, tick)
            now = figures(encoder, found, latency, tick, coded.get(encoder.name) if name == HERE else None)
            rows = verdicts(now, before[STUB], before[STUB_SEMANTIC]) if before else []
            parts.append(
                {
                    "records_of": name,
                    "encoder": encoder.name,
                    "figures": now,
                    "old": before,
                    "latency": latency,
                    "verdicts": rows,
                    "all_hold": all(row["holds"] for row in rows),
                }
            )
    return {"least_bytes": LEAST_BYTES, "old_figures": OLD, "sets": parts}


def _held(encoder: Encoder, records: Sequence[Record]) -> list[Record]:
    return [one for one in records if encoder.can(one.value)]
