"""Records through an encoder: sizes, exactness, similarity of what is lossy, and the time of every call."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from nbmf.bench.encoders import Encoder
from nbmf.bench.figures import Floats, Measured, bootstrap, fastest, interval, of_records, percentiles, reached, speed
from nbmf.bench.records import Record, is_equal
from nbmf.codec import kernel
from nbmf.codec.values import to_raw
from nbmf.quickstart import timed
from nbmf.report import Tick

ROUNDS: Final = {"c": 3, "numpy": 1}  # times each record is coded for the latencies, by kernel
BATCH: Final = 512  # records of one encode_many


def code_many(
    encoder: Encoder, records: Sequence[Record], tick: Tick, named: bool = False
) -> tuple[list[bytes], int, dict[str, float]]:
    """The blobs, how many came back exactly, and what coding many at once did in MB/s, on all cores.

    `named`: self-describing blobs.
    """
    encode, decode = encoder.encode_many, encoder.decode_many
    if named and encoder.named is not None and encoder.named_back is not None:
        encode, decode = encoder.named, encoder.named_back
    blobs: list[bytes] = []
    exact, encoding, decoding = 0, 0.0, 0.0
    for start in range(0, len(records), BATCH):
        batch = records[start : start + BATCH]
        values = [one.value for one in batch]
        made, spent = timed(lambda values=values: encode(values))  # type: ignore[misc]
        encoding += spent
        back, spent = timed(lambda made=made: decode(made))  # type: ignore[misc]
        decoding += spent
        exact += sum(map(is_equal, batch, back))
        blobs += made
        tick("coding, self-describing" if named else "coding, bare", len(blobs), len(records))
    raw = sum(len(one.raw) for one in records)
    return blobs, exact, {"encode_many_mb_s": speed(raw, encoding), "decode_many_mb_s": speed(raw, decoding)}


def time_each(
    encoder: Encoder, records: Sequence[Record], blobs: Sequence[bytes], rounds: int, tick: Tick
) -> tuple[list[list[float]], list[list[float]], int]:
    """ms of every call of `encode` and of `decode`, a record at a time, on one core; and how many were exact."""
    encode_ms: list[list[float]] = [[] for _ in records]
    decode_ms: list[list[float]] = [[] for _ in records]
    exact = [True] * len(records)
    for turn in range(rounds):
        for place, (one, blob) in enumerate(zip(records, blobs, strict=True)):
            made, spent = timed(lambda one=one: encoder.encode(one.value))  # type: ignore[misc]
            encode_ms[place].append(spent)
            back, spent = timed(lambda blob=blob: encoder.decode(blob))  # type: ignore[misc]
            decode_ms[place].append(spent)
            exact[place] = exact[place] and made == blob and is_equal(one, back)
            if place % 64 == 0:
                tick("timing each record", turn * len(records) + place, rounds * len(records))
    return encode_ms, decode_ms, sum(exact)


def measure(
    encoder: Encoder, records: Sequence[Record], timings: bool, tick: Tick, few: int | None = None
) -> tuple[Measured, dict[str, Any]]:
    """Sizes and, with `timings`, times of every record, and the figures that belong to all of them.

    `few`: only so many records are timed, once each, and there are no self-describing blobs.
    """
    blobs, bare_exact, many = code_many(encoder, records, tick)
    named, named_exact = blobs, bare_exact
    if encoder.named is not None and few is None:
        named, named_exact, _ = code_many(encoder, records, tick, named=True)
    overall: dict[str, Any] = {"exact": {"records": len(records), "bare": bare_exact, "self_describing": named_exact}}
    encode_ms: list[list[float]] = []
    decode_ms: list[list[float]] = []
    if timings:
        wall, cpu = time.perf_counter(), time.process_time()
        encode_ms, decode_ms, overall["exact"]["one_by_one"] = time_each(
            encoder, records[:few], blobs[:few], ROUNDS[kernel.backend] if few is None else 1, tick
        )
        # Well under 1, other programs took the core away, and the times are theirs too.
        overall["cpu_share"] = (time.process_time() - cpu) / (time.perf_counter() - wall)
        overall["many"] = many
    overall["exact_rate"] = bare_exact / len(records)
    overall["similarity"] = similarities(encoder, records, blobs) if bare_exact < len(records) else None
    measured = Measured(
        records,
        raw=np.array([len(one.raw) for one in records], dtype=np.float64),
        bare=sizes(blobs),
        self_describing=sizes(named),
        encode_ms=encode_ms,
        decode_ms=decode_ms,
        blobs=blobs,
    )
    return measured, overall


def sizes(blobs: Sequence[bytes]) -> Floats:
    return np.array([len(blob) for blob in blobs], dtype=np.float64)


# -- what is lossy -----------------------------------------------------------------------------------------------------


def similarities(encoder: Encoder, records: Sequence[Record], blobs: Sequence[bytes]) -> dict[str, float]:
    """Mean, p95 (95 % reach it) and least of how alike values and what came back are; 1 is exact."""
    each = [
        1.0 if is_equal(one, back := encoder.decode(blob)) else similarity(one, back)
        for one, blob in zip(records, blobs, strict=True)
    ]
    return {"mean": sum(each) / len(each), "p95": reached(each, 0.95), "min": min(each)}


def similarity(one: Record, back: Any) -> float:
    """1 − edit distance / the longer length, over characters, from 0 to 1; of bytes, over bytes.

    In the favour of what is lossy, the best of three readings of the value counts: its raw text, that with each white
    space made one space, and JSON with sorted keys. The old encoder promised no more than one of the latter two.
    """
    before = one.raw
    after = to_raw(back, allow_nan=True)[1]
    if bytes in (type(one.value), type(back)):
        return _alike(before, after)
    text, other = (raw.decode("utf-8", "replace") for raw in (before, after))
    readings = [text, " ".join(text.split())]
    if type(one.value) is not str and type(back) is str:
        readings = [json.dumps(one.value, ensure_ascii=False, sort_keys=True)]
    return max(_alike(reading, other) for reading in readings)


def _alike(a: Sequence[Any], b: Sequence[Any]) -> float:
    longer = max(len(a), len(b))
    return 1 - edit_distance(a, b) / longer if longer else 1.0


def edit_distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Insertions, deletions and replacements between two sequences: Myers' bit vectors, one integer for all of `a`."""
    if not a:
        return len(b)
    where: dict[Any, int] = {}
    for place, symbol in enumerate(a):
        where[symbol] = where.get(symbol, 0) | 1 << place
    every = (1 << len(a)) - 1
    last = 1 << (len(a) - 1)
    plus, minus, distance = every, 0, len(a)
    for symbol in b:
        equal = where.get(symbol, 0)
        diagonal = ((((equal & plus) + plus) ^ plus) | equal | minus) & every
        up = minus | (every & ~(diagonal | plus))
        down = plus & diagonal
        distance += 1 if up & last else -1 if down & last else 0
        up = (up << 1 | 1) & every
        plus = (down << 1 & every) | (every & ~(diagonal | up))
        minus = up & diagonal
    return distance


def row(encoder: Encoder, measured: Measured, overall: dict[str, Any]) -> dict[str, Any]:
    """An encoder's line among others: every figure of all its records together."""
    raw, bare = measured.raw, measured.bare
    spent = [[one for each in times for one in each] for times in (measured.encode_ms, measured.decode_ms)]
    total, timed_bytes = float(raw.sum()), float(raw[: len(measured.encode_ms)].sum())
    return {
        "encoder": encoder.name,
        "setting": encoder.setting,
        "lossless": encoder.lossless,
        "records": len(raw),
        "ratio": total / float(bare.sum()),
        "interval_95": interval(bootstrap(raw, bare)),
        **of_records((raw / bare)[raw > 0]),
        "bits_per_byte": float(8 * bare.sum() / total) if total else None,
        "exact_rate": overall["exact_rate"],
        "similarity": overall["similarity"],
        "encode_ms": percentiles(spent[0]),
        "decode_ms": percentiles(spent[1]),
        "encode_mb_s": fastest(timed_bytes, measured.encode_ms),
        "decode_mb_s": fastest(timed_bytes, measured.decode_ms),
        **overall["many"],
    }
