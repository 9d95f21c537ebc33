"""The whole recipe: read, hold back, count, prune, quantize, calibrate, fit, fit for packs, write."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nbmf.codec import kernel
from nbmf.codec.counting import (
    COST_UNIT,
    STATIC_CONTEXTS,
    Lists,
    Records,
    apply_lists,
    line_table,
    passes,
    select_lists,
)
from nbmf.codec.model import MODEL_SUFFIX
from nbmf.errors import DataError
from nbmf.train import data as reading
from nbmf.train.data import Corpus
from nbmf.train.fit import LOGIT_MOST, STRETCH_ONE, Sections, Tick, blank, calibrate, fit, fit_packs, logits, model_file

HELD_EVERY: Final = 33  # one record in so many is held back from counting, to calibrate and fit with
ROW_LEAST: Final = 20  # occurrences that give a pair of bytes a row of its own
PACK_SOURCE_RECORDS: Final = 120  # fewest of a source that packs are fitted on
PACK_SOURCES: Final = 24  # most of them


@dataclass(frozen=True)
class Size:
    """The one dial. `lines` are 64 bytes each and are nearly all of the file."""

    lines: int
    rows: int  # of order 2
    threshold: float  # bits that a pair must save
    pack_bytes: int  # of the records that the smaller model, which packs are fitted with, is counted from


SIZES: Final = {
    "toy": Size(2_048, 512, 8.0, 1 << 19),
    "small": Size(65_536, 4_096, 10.0, 8 << 20),
    "base": Size(425_984, 8_192, 10.0, 24 << 20),
}


def run(
    data: Sequence[str | Path],
    out: str | Path,
    *,
    size: str = "base",
    seed: int = 1,
    resume: bool = False,
    tick: Tick = lambda *_: None,
) -> dict[str, Any]:
    """Trains a model from JSONL files or folders and writes it to `out` (a path in .nbm). Returns its card.

    Finished stages are kept in the folder `out`.work, from which `resume` goes on when data, size and seed are the
    same. Raises DataError, OSError.
    """
    path = Path(out)
    if path.suffix != MODEL_SUFFIX:
        raise DataError(f"{path}: a model's name ends in {MODEL_SUFFIX}")
    if size not in SIZES:
        raise DataError(f"size {size!r} is not one of {', '.join(SIZES)}")
    dial = SIZES[size]
    started = time.monotonic()
    corpus = reading.load(data, tick)
    stages = Stages(path.with_suffix(path.suffix + ".work"), resume, (size, seed, _digest(corpus.records)))
    everything = np.arange(len(corpus.records))
    held = everything % HELD_EVERY == seed % HELD_EVERY if len(everything) > HELD_EVERY else everything >= 0
    counted = everything[~held] if not held.all() else everything
    back = corpus.records.select(everything[held])
    sections, kept = stages.run("model", lambda: _model(corpus.records.select(counted), back, dial, stages, tick))
    packs = stages.run("packs", lambda: _packs(corpus, sections, dial, seed, tick))
    sections.update(packs["sections"])
    card = {
        "name": path.stem,
        "size": size,
        "seed": seed,
        "records": len(corpus.records),
        "raw_bytes": corpus.records.raw_bytes,
        "records_held_back": int(held.sum()),
        "sources": len(corpus.sources),
        "data_sha256": _digest(corpus.records),
        "pairs_kept": kept["pairs"],
        "pairs_without_room": kept["dropped"],
        "bits_per_byte_while_fitting": kept["course"],
        "bits_per_byte_while_fitting_packs": packs["course"],
        "nbmf": version("nbmf"),
    }
    file = model_file(sections, json.dumps(card, indent=1, ensure_ascii=False).encode())
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(file)
        kernel.load(memoryview(file))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return {
        **card,
        "out": str(path),
        "bytes": len(file),
        "id": file[16:48].hex(),
        "seconds": round(time.monotonic() - started, 1),
    }


class Stages:
    """Results of finished stages on disk, so that a killed run goes on where it was."""

    def __init__(self, folder: Path, resume: bool, identity: tuple[Any, ...]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / "identity.json"
        wanted = json.dumps(identity)
        if not (resume and marker.is_file() and marker.read_text() == wanted):
            for old in folder.iterdir():
                old.unlink()
            marker.write_text(wanted)

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        path = self.folder / f"{name}.pickle"  # this user's own files, never another's
        if path.is_file():
            return pickle.loads(path.read_bytes())
        result = work()
        partial = path.with_suffix(".tmp")
        partial.write_bytes(pickle.dumps(result, protocol=5))
        partial.replace(path)
        return result


def _digest(records: Records) -> str:
    return hashlib.sha256(records.offset.tobytes() + records.data.tobytes()).hexdigest()


def _model(
    counted: Records, held: Records, dial: Size, stages: Stages | None, tick: Tick
) -> tuple[Sections, dict[str, Any]]:
    sections = blank()
    count_orders(sections, counted, dial.rows)
    cost = order_cost(sections, counted)
    parts: list[Lists] = []
    for context in range(STATIC_CONTEXTS):
        tick("counting", context, STATIC_CONTEXTS)

        def select(context: int = context) -> Lists:
            return select_lists(counted, context, cost, dial.threshold)

        lists = stages.run(f"context-{context}", select) if stages else select()
        apply_lists(counted, context, lists, cost)
        parts.append(lists)
    tick("counting", STATIC_CONTEXTS, STATIC_CONTEXTS)
    sections["lines"], dropped = line_table(parts, dial.lines)
    calibrate(sections, held)
    course = fit(sections, held, tick)
    pairs = sum(len(part.hash44) for part in parts) - dropped
    return sections, {
        "pairs": pairs,
        "dropped": dropped,
        "course": course,
        "bpb": cost.sum(dtype=np.int64) / COST_UNIT / counted.raw_bytes,
    }


def count_orders(sections: Sections, records: Records, rows: int) -> None:
    """Order 1 for every byte, order 2 for the pairs of bytes that occur most, smoothed toward order 1."""

    def work(first: int, last: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
        one, two = np.zeros((256, 256, 2), np.uint32), np.zeros((65536, 256, 2), np.uint32)
        passes().train_orders(*records.buffers(first, last), one, two)
        return one, two

    parts = records.parallel(work)
    one, two = parts[0]
    for a, b in parts[1:]:
        one += a
        two += b
    sections["order1"] = logits(one)
    seen = two[:, 1, :].sum(axis=1, dtype=np.int64)
    top = np.argsort(-seen, kind="stable")[: rows - 1]
    top = top[seen[top] >= ROW_LEAST]
    sections["order2_row"] = np.zeros(65536, np.uint16)
    sections["order2_row"][top] = np.arange(1, len(top) + 1)
    prior = 1 / (1 + np.exp(-sections["order1"][top & 255] / STRETCH_ONE))
    counts = two[top].astype(np.float64)
    odds = np.log((counts[..., 1] + prior + 0.02) / (counts[..., 0] + 1 - prior + 0.02))
    table = np.zeros((len(top) + 1, 256), np.int8)
    table[1:] = np.clip(np.round(odds * STRETCH_ONE / 16), -(LOGIT_MOST // 16), LOGIT_MOST // 16)
    sections["order2"] = table


def order_cost(sections: Sections, records: Records) -> NDArray[np.uint16]:
    """What every position costs under orders 1 and 2 alone."""
    coder: Any = kernel.load(memoryview(model_file(sections)))
    cost = np.empty(records.positions, np.uint16)

    def work(first: int, last: int) -> None:
        coder.train("cost", *records.buffers(first, last), cost[records.position(first) : records.position(last)])

    records.parallel(work)
    return cost


def _packs(corpus: Corpus, sections: Sections, dial: Size, seed: int, tick: Tick) -> dict[str, Any]:
    """The sections for packs, fitted with a smaller model that has not seen the sources the packs are learned from."""
    rng = np.random.default_rng(seed)
    order = np.argsort(corpus.source, kind="stable")
    bounds = np.searchsorted(corpus.source[order], np.arange(len(corpus.sources) + 1))
    large = [s for s in range(len(corpus.sources)) if bounds[s + 1] - bounds[s] >= PACK_SOURCE_RECORDS]
    chosen = sorted(rng.permutation(large)[: min(PACK_SOURCES, len(large) // 3)].tolist())
    if not chosen:
        return {"sections": {"pack_weights": sections["weights"], "pack_final": sections["final"]}, "course": []}
    groups = [rng.permutation(order[bounds[s] : bounds[s + 1]])[:4000] for s in chosen]
    rest = rng.permutation(np.flatnonzero(~np.isin(corpus.source, chosen)))
    size = np.cumsum(np.diff(corpus.records.offset)[rest])
    rest = np.sort(rest[: max(HELD_EVERY * 2, int(np.searchsorted(size, dial.pack_bytes)))])
    held = np.arange(len(rest)) % HELD_EVERY == 0
    records = corpus.records
    smaller = Size(max(256, dial.lines // 6), dial.rows, dial.threshold, 0)
    stand_in, _ = _model(records.select(rest[~held]), records.select(rest[held]), smaller, None, tick)
    course = fit_packs(stand_in, corpus, groups, seed, tick)
    return {
        "sections": {name: stand_in[name] for name in ("pack_lists", "pack_match", "pack_weights", "pack_final")},
        "course": course,
    }
