"""Domain packs: lists, a primer and transforms of vectors learned from a user's own records, for one model."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nbmf.codec import kernel
from nbmf.codec.counting import (
    COST_UNIT,
    LINE_BYTES,
    LINE_ENTRIES,
    PACK_BASE,
    PACK_CONTEXTS,
    Lists,
    Records,
    apply_lists,
    line_table,
    select_lists,
)
from nbmf.codec.format import SEGMENT_SIZE
from nbmf.codec.model import PACK_MAGIC, PACK_SUFFIX, build_file, load_model
from nbmf.codec.values import VECTOR, to_raw
from nbmf.errors import DataError, NbmfError

DEFAULT_SIZE: Final = 512 << 10  # bytes of the whole file
LEAST_SIZE: Final = 4 << 10
MOST_RECORDS: Final = 100_000  # of more, this many are taken at even distances
MOST_BYTES: Final = 64 << 20  # likewise
OVERHEAD: Final = 1024  # bytes of header, card and padding
THRESHOLD: Final = 6.0  # bits a pair must save to be kept: about a quarter of what storing it costs
FILL: Final = 0.8  # of the line table's entries that are expected to be used
PRIMER_SHARE: Final = 0.5  # of the file, at most, for the primer
SEGMENT: Final = 96  # bytes: the primer's unit of choice
GRAM: Final = 8  # bytes: what two records must share to count as repeating

Tick = Callable[..., None]


def adapt(
    values: Iterable[Any],
    out: str | Path,
    *,
    model: str = "base",
    size: int = DEFAULT_SIZE,
    beside: Sequence[Any] | None = None,
    tick: Tick = lambda *_: None,
) -> dict[str, Any]:
    """Learns a pack of at most `size` bytes from values and writes it to `out`, whole or not at all. Returns its card.

    Arrays of float32 or float16, (d,) or (n, d), give a transform of vectors for each d, which comes on top of `size`:
    about d * d bytes. `beside` has for every value None, or the int16 array of what is known beside it: then vectors
    are predicted from it too. The same values in the same order give the same file on a machine.

    Raises DataError (no values, a bad size or name), UnsupportedValue, UnknownModel, OSError.
    """
    path = Path(out)
    if path.suffix != PACK_SUFFIX:
        raise DataError(f"{path}: a pack's name ends in {PACK_SUFFIX}")
    if size < LEAST_SIZE:
        raise DataError(f"a pack of {size} bytes is too small; {LEAST_SIZE} is the least")
    if isinstance(values, (str, bytes)):
        raise DataError("what a pack is learned from is a list of values, not one text")
    values = list(values)
    pairs = [to_raw(value, allow_nan=True) for value in values]
    if beside is not None and len(beside) != len(values):
        raise DataError(f"{len(beside)} things beside {len(values)} values")
    found = load_model(model)
    arrays = [(value, beside[at] if beside else None) for at, value in enumerate(values) if pairs[at][0] >= VECTOR]
    texts = [pair for pair in pairs if pair[0] < VECTOR]
    extra, about = _vectors(arrays, tick)
    if texts or not arrays:
        data, card = learn(texts, found.buffer, size=size, tick=tick, sections=extra, about=about)
    elif extra:
        data, card = _vectors_alone(found.id, extra, about)
    else:
        raise DataError("the arrays are too few, or have nothing in common that a transform could use")
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return {**card, "out": str(path), "bytes": len(data), "id": data[16:48].hex()}


def adapt_file(
    source: str | Path, out: Path, *, size: int = DEFAULT_SIZE, model: str = "base", tick: Tick = lambda *_: None
) -> dict[str, Any]:
    """`adapt` from JSONL, one value a line, from a file or "-" for standard input; blank lines are passed over."""
    if str(source) == "-":
        return adapt(json_lines(sys.stdin.buffer, "standard input"), out, model=model, size=size, tick=tick)
    with open(source, "rb") as file:
        return adapt(json_lines(file, str(source)), out, model=model, size=size, tick=tick)


def json_lines(lines: Iterable[bytes], name: str) -> Iterator[Any]:
    """The JSON value of each line that is not blank. Raises DataError naming the line at fault."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:
                raise DataError(f"{name}, line {number}: not JSON") from None


def _vectors(arrays: list[tuple[Any, Any]], tick: Tick) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The section of the transforms that arrays give, if any would pay, and what the card says of them."""
    from nbmf.codec import vector_transform

    rows: dict[int, list[Any]] = {}
    known: dict[int, list[Any]] = {}
    for array, beside in arrays:
        dim = array.shape[-1]
        rows.setdefault(dim, []).append(array.reshape(-1, dim))
        if beside is not None:
            known.setdefault(dim, []).append(np.asarray(beside).reshape(len(rows[dim][-1]), -1))
    found = []
    for number, dim in enumerate(sorted(rows, key=lambda dim: -sum(map(len, rows[dim])))):
        tick("learning transforms", number, len(rows))
        vectors = np.concatenate(rows[dim])
        sides = [None, np.concatenate(known[dim])] if len(known.get(dim, ())) == len(rows[dim]) else [None]
        found += [one for side in sides if (one := vector_transform.learn(vectors, side)) is not None]
    if not found:
        return {}, {}
    about = [{"dim": one.dim, "coefficients": one.m, "beside": one.sides} for one in found]
    count = sum(len(part) for parts in rows.values() for part in parts)
    return {vector_transform.SECTION: vector_transform.pack_section(found)}, {"vectors": count, "transforms": about}


def _vectors_alone(model_id: bytes, extra: dict[str, bytes], about: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """A pack that learned from arrays alone: its lists and its primer are empty."""
    card = {"records": 0, **about}
    sections = {
        "card": json.dumps(card, separators=(",", ":")).encode(),
        "model_id": model_id,
        "primer": b"",
        "lines": bytes(LINE_BYTES),
        **extra,
    }
    return build_file(PACK_MAGIC, sections), card


def learn(
    pairs: list[tuple[int, bytes]],
    model: Any,
    *,
    size: int = DEFAULT_SIZE,
    tick: Tick = lambda *_: None,
    sections: dict[str, bytes] | None = None,
    about: dict[str, Any] | None = None,
) -> tuple[bytes, dict[str, Any]]:
    """The pack file of (value type, raw) pairs for the model file `model`, and its card. Raises DataError on none.

    `sections` go into the file besides, `about` into the card.
    """
    pairs = [(value_type, raw[:SEGMENT_SIZE]) for value_type, raw in pairs if raw]
    if not pairs:
        raise DataError("there are no records to learn from")
    kept = _thin(pairs)
    records = Records.of(kept)
    cost = _costs(records, model, tick)
    before = int(cost.sum(dtype=np.int64))
    room = size - OVERHEAD
    primer = _primer(records, cost, int(room * PRIMER_SHARE))
    parts: list[Lists] = []
    for i in range(PACK_CONTEXTS):
        tick("counting", i, PACK_CONTEXTS)
        lists = select_lists(records, PACK_BASE + i, cost, THRESHOLD)
        apply_lists(records, PACK_BASE + i, lists, cost)
        parts.append(lists)
    tick("counting", PACK_CONTEXTS, PACK_CONTEXTS)
    count = sum(len(part.hash44) for part in parts)
    lines = max(1, min((room - len(primer)) // LINE_BYTES, int(count / (LINE_ENTRIES * FILL)) + 1))
    table, dropped = line_table(parts, lines)
    card = {
        "records": len(pairs),
        "records_used": len(kept),
        "raw_bytes": records.raw_bytes,
        "pairs": count - dropped,
        "pairs_without_room": dropped,
        "primer_bytes": len(primer),
        "bits_per_byte_without": round(before / COST_UNIT / records.raw_bytes, 4),
        # of these very records, so lower than of others like them
        "bits_per_byte_with": round(int(cost.sum(dtype=np.int64)) / COST_UNIT / records.raw_bytes, 4),
        **(about or {}),
    }
    view = memoryview(model)
    whole = {
        "card": json.dumps(card, separators=(",", ":")).encode(),
        "model_id": bytes(view[16:48]),
        "primer": primer,
        "lines": table.tobytes(),
        **(sections or {}),
    }
    return build_file(PACK_MAGIC, whole), card


def _thin(pairs: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """At most MOST_RECORDS and MOST_BYTES of the records, at even distances."""
    total = sum(len(raw) for _, raw in pairs)
    share = min(1.0, MOST_RECORDS / len(pairs), MOST_BYTES / total)
    return [pair for i, pair in enumerate(pairs) if int((i + 1) * share) > int(i * share)] or pairs[:1]


def _costs(records: Records, model: Any, tick: Tick) -> NDArray[np.uint16]:
    """What every position costs under the model alone, in-record learning included."""
    coder: Any = kernel.load(memoryview(model))
    cost = np.empty(records.positions, np.uint16)
    if not hasattr(coder, "train"):
        raise NbmfError("learning needs the C kernel, which is not in use here")
    tick("measuring", 0, None)

    def work(first: int, last: int) -> None:
        coder.train("costs", *records.buffers(first, last), cost[records.position(first) : records.position(last)])

    records.parallel(work)
    return cost


def _primer(records: Records, cost: NDArray[np.uint16], most: int) -> bytes:
    """Text for matches: segments whose 8-byte strings recur in other records at positions that cost many bits.

    As zstd's COVER: the data is cut into as many epochs as segments fit, and each gives its best segment, what an
    earlier one covers counting nothing.
    """
    data = records.data
    if len(data) < 2 * GRAM or most < SEGMENT:
        return b""
    record = np.repeat(np.arange(len(records)), np.diff(records.offset))
    paid = np.minimum(cost[np.arange(len(data)) + record], 16 * COST_UNIT).astype(np.float64) / COST_UNIT
    windows = np.lib.stride_tricks.sliding_window_view(data, GRAM)
    gram = np.ascontiguousarray(windows).view("<u8").ravel()
    inside = record[GRAM - 1 :] == record[: len(gram)]
    unique, number = np.unique(gram, return_inverse=True)
    # Distinct records that hold each string, less one, times what its last byte cost them on average.
    pair = np.unique((number[inside].astype(np.int64) << 24) | (record[: len(gram)][inside] & 0xFFFFFF))
    holders = np.bincount(pair >> 24, minlength=len(unique)).astype(np.float64)
    spent = np.bincount(number[inside], weights=paid[GRAM - 1 :][inside], minlength=len(unique))
    times = np.maximum(np.bincount(number[inside], minlength=len(unique)), 1)
    worth = np.maximum(holders - 1, 0) * spent / times
    epochs = max(1, min(most // SEGMENT, len(gram) // SEGMENT))
    chosen: list[tuple[float, bytes]] = []
    bounds = np.linspace(0, len(gram), epochs + 1).astype(np.int64)
    for start, end in itertools.pairwise(bounds):
        score = np.where(inside[start:end], worth[number[start:end]], 0.0)
        width = min(SEGMENT - GRAM + 1, len(score))
        total = np.cumsum(np.concatenate(([0.0], score)))
        window = total[width:] - total[:-width]
        best = int(window.argmax())
        if window[best] <= 0:
            continue
        at = int(start) + best
        covered = number[at : at + width]
        chosen.append((float(window[best]), data[at : at + width + GRAM - 1].tobytes()))
        worth[covered] = 0.0
    chosen.sort(key=lambda item: item[0])  # the best last, where the index keeps the newest of equal strings
    return b"".join(text for _, text in chosen)[-most:]
