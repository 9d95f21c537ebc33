"""The whole recipe: read, count, prune, quantize; fit what mixes on a stand-in that has not seen whole sources; write.

What is counted is counted of all records. What is fitted (cells, mixer, the mixer for packs, the dense profile's
networks) would believe a model that has seen every source more than it deserves on records of a new one. So it is
fitted on a *stand-in*, counted from some of the sources: on the others, and on records held back from it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nbmf.codec import kernel
from nbmf.codec.counting import (
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
from nbmf.train.course import Course
from nbmf.train.data import Corpus
from nbmf.train.fit import (
    LOGIT_MOST,
    STRETCH_ONE,
    Sections,
    Tick,
    blank,
    calibrate,
    fit,
    fit_packs,
    logits,
    model_file,
    pack_trials,
)

PATIENCE: Final = 5  # reports without a new best, after which the networks' training ends
NETWORKS: Final = "training the networks"
HELD_EVERY: Final = 33  # one record in so many of the stand-in's sources is held back from it
STAND_IN: Final = 3, 5  # of so many sources in a row, in order of size, the stand-in sees as many
SOURCES_LEAST: Final = 5  # with fewer sources the records are dealt out instead
FIT_BYTES: Final = 200_000  # most of one source that the mixer is fitted on
NET_BYTES: Final = 3_000_000  # ... and the networks
NET_HELD_BYTES: Final = 500_000  # ... of records held back
NET_PACK_BYTES: Final = 500_000  # ... of records with one pack
NET_PACKS: Final = 12  # sources that packs are learned from for each stand-in
NET_SHARES: Final = (0.65, 0.2, 0.15)  # of what the networks see: new sources, the stand-in's own, records with packs
ROW_LEAST: Final = 20  # occurrences that give a pair of bytes a row of its own
PACK_SOURCE_RECORDS: Final = 120  # fewest of a source that packs are fitted on
PACK_SOURCES: Final = 24  # most of them
PACK_RECORDS: Final = 4000  # most of one
# The sections that are fitted, and come from the stand-in.
FITTED: Final = (
    "lists", "local", "match", "primer_match", "state", "weights", "final",
    "pack_lists", "pack_match", "pack_weights", "pack_final",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """The one dial. `lines` are 64 bytes each and are nearly all of the file."""

    lines: int
    rows: int  # of order 2
    threshold: float  # bits that a pair must save
    width: int  # of the networks
    steps: int  # of their training on a CPU, of 6,144 bytes each
    stand_ins: int  # that they are trained on: 1, or 2 so that nearly every source is new to one of them


SIZES: Final = {
    "toy": Size(2_048, 512, 8.0, 32, 30, 1),
    "small": Size(65_536, 4_096, 10.0, 64, 1_500, 1),
    "base": Size(425_984, 8_192, 10.0, 128, 6_000, 2),
}


def run(
    data: Sequence[str | Path],
    out: str | Path,
    *,
    size: str = "base",
    seed: int = 1,
    dense: bool = False,
    device: str = "cpu",
    resume: bool = False,
    val: Sequence[str | Path] = (),
    patience: int = PATIENCE,
    tick: Tick = lambda *_: None,
) -> dict[str, Any]:
    """Trains a model from JSONL files or folders and writes it to `out` (a path in .nbm). Returns its card.

    `dense` adds the networks of the dense profile, trained in PyTorch on `device` (auto: a GPU if there is one). `val`,
    files of records never trained on, tell when these get no better: training ends after `patience` reports without a
    new best. Finished stages are kept in the folder `out`.work, from which `resume` goes on when data, size and seed
    are the same; its log.csv has the course. `tick(what, done, total, note)`. Raises DataError, OSError.
    """
    path = Path(out)
    if path.suffix != MODEL_SUFFIX:
        raise DataError(f"{path}: a model's name ends in {MODEL_SUFFIX}")
    if size not in SIZES:
        raise DataError(f"size {size!r} is not one of {', '.join(SIZES)}")
    if dense:
        device = device_of(device)
    elif val:
        raise DataError("records to follow training by are for the networks: they need the dense profile")
    dial = SIZES[size]
    started = time.monotonic()
    corpus = reading.load(data, tick)
    stages = Stages(path.with_suffix(path.suffix + ".work"), resume, (size, seed, _digest(corpus.records)))
    tick = Course(stages.folder / "log.csv", tick)
    parts = divide(corpus, seed)
    sections, kept = stages.run("lists", lambda: counted(corpus.records, dial, stages, "", tick))
    fitted = stages.run("fit", lambda: fitted_on_stand_in(corpus, parts, dial, seed, stages, tick))
    sections.update({name: fitted["sections"][name] for name in FITTED})
    figures: dict[str, Any] = {}
    if dense:
        held = reading.load(val, tick).records if val else None

        def made_networks() -> dict[str, Any]:
            return networks(corpus, parts, fitted, dial, seed, device, stages, tick, held, patience)

        made = stages.run("dense", made_networks)
        sections.update(made["sections"])
        figures = made["figures"]
    card = {
        "name": path.stem,
        "size": size,
        "seed": seed,
        "records": len(corpus.records),
        "raw_bytes": corpus.records.raw_bytes,
        "sources": len(corpus.sources),
        "sources_of_stand_in": parts.sources,
        "data_sha256": _digest(corpus.records),
        "pairs_kept": kept["pairs"],
        "pairs_without_room": kept["dropped"],
        "bits_per_byte_while_fitting": fitted["course"],
        "bits_per_byte_while_fitting_packs": fitted["packs_course"],
        **figures,
        "nbmf": version("nbmf"),
    }
    file = write(path, sections, card)
    return {
        **card,
        "out": str(path),
        "bytes": len(file),
        "id": file[16:48].hex(),
        "seconds": round(time.monotonic() - started, 1),
    }


def write(path: Path, sections: Sections, card: dict[str, Any]) -> bytes:
    """Writes the model file, whole or not at all, after a coder has opened it. Returns its bytes."""
    file = model_file(sections, json.dumps(card, indent=1, ensure_ascii=False).encode())
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(file)
        kernel.load(memoryview(file))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return file


def device_of(name: str) -> str:
    """Where networks train: `auto` is cuda where PyTorch sees a GPU, else cpu. Raises DataError: there is none such."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        raise DataError("training the dense profile needs PyTorch: pip install 'nbmf[train]'") from None
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise DataError(f"{name!r} is no device: auto, cpu or cuda") from None
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise DataError(f"PyTorch sees no device {name} here")
    return name


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


@dataclass(frozen=True)
class Parts:
    """Record numbers: what the stand-in counts, what is held back of its sources, and records of sources new to it."""

    seen: NDArray[np.int64]
    held: NDArray[np.int64]
    new: NDArray[np.int64]
    sources: int  # of the stand-in; 0 where records were dealt out, not sources


def divide(corpus: Corpus, seed: int) -> Parts:
    """About three fifths of the sources, of every size, are the stand-in's."""
    rng = np.random.default_rng(seed)
    sizes = np.bincount(corpus.source, np.diff(corpus.records.offset), len(corpus.sources))
    order = np.argsort(-sizes, kind="stable")
    few, many = STAND_IN
    if len(order) >= SOURCES_LEAST:
        own = np.concatenate([rng.permutation(order[i : i + many])[:few] for i in range(0, len(order), many)])
        inside = np.isin(corpus.source, own)
    else:
        own = order[:0]
        inside = rng.permutation(len(corpus.records)) % many < few
    numbers = np.flatnonzero(inside)
    back = np.arange(len(numbers)) % HELD_EVERY == seed % HELD_EVERY
    return Parts(numbers[~back], numbers[back], np.flatnonzero(~inside), len(own))


def capped(corpus: Corpus, numbers: NDArray[np.int64], most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Of each source, records at random of `most` bytes in all."""
    sizes = np.diff(corpus.records.offset)
    kept = []
    for source in np.unique(corpus.source[numbers]):
        of_source = rng.permutation(numbers[corpus.source[numbers] == source])
        kept.append(of_source[: max(1, int(np.searchsorted(np.cumsum(sizes[of_source]), most)))])
    return np.concatenate(kept) if kept else numbers[:0]


def counted(records: Records, dial: Size, stages: Stages, name: str, tick: Tick) -> tuple[Sections, dict[str, Any]]:
    """Orders, lists and the line table of the records. Stages are named `name`context-0 and so on."""
    sections = blank()
    count_orders(sections, records, dial.rows)
    cost = order_cost(sections, records)
    parts: list[Lists] = []
    for context in range(STATIC_CONTEXTS):
        tick("counting", context, STATIC_CONTEXTS)

        def select(context: int = context) -> Lists:
            return select_lists(records, context, cost, dial.threshold)

        lists = stages.run(f"{name}context-{context}", select)
        apply_lists(records, context, lists, cost)
        parts.append(lists)
    tick("counting", STATIC_CONTEXTS, STATIC_CONTEXTS)
    sections["lines"], dropped = line_table(parts, dial.lines)
    return sections, {"pairs": sum(len(part.hash44) for part in parts) - dropped, "dropped": dropped}


def fitted_on_stand_in(
    corpus: Corpus, parts: Parts, dial: Size, seed: int, stages: Stages, tick: Tick
) -> dict[str, Any]:
    """The stand-in's sections, cells and mixers fitted, and the bits per byte of each pass."""
    rng = np.random.default_rng(seed)
    few, many = STAND_IN
    smaller = replace(dial, lines=max(256, dial.lines * few // many))
    records = corpus.records
    sections, _ = stages.run(
        "stand-in", lambda: counted(records.select(parts.seen), smaller, stages, "stand-in-", tick)
    )
    numbers = np.concatenate([capped(corpus, parts.new, FIT_BYTES, rng), parts.held])
    held = records.select(rng.permutation(numbers))
    calibrate(sections, held)
    course = fit(sections, held, tick)
    groups = pack_groups(corpus, parts, rng)
    for name in ("weights", "final"):
        sections[f"pack_{name}"] = sections[name]
    packs_course = fit_packs(sections, corpus, groups, seed, tick) if groups else []
    return {"sections": sections, "course": course, "packs_course": packs_course}


def pack_groups(corpus: Corpus, parts: Parts, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Records of sources new to the stand-in, source by source, for packs to be learned from."""
    whose = corpus.source[parts.new]
    large = [s for s in np.unique(whose) if (whose == s).sum() >= PACK_SOURCE_RECORDS]
    chosen = sorted(rng.permutation(large)[:PACK_SOURCES].tolist())
    return [rng.permutation(parts.new[whose == source])[:PACK_RECORDS] for source in chosen]


def networks(
    corpus: Corpus,
    parts: Parts,
    fitted: dict[str, Any],
    dial: Size,
    seed: int,
    device: str,
    stages: Stages,
    tick: Tick,
    held: Records | None = None,
    patience: int = PATIENCE,
) -> dict[str, Any]:
    """The dense profile's sections and figures: its networks trained on what the stand-in's mixture leaves."""
    from nbmf.train import bundle
    from nbmf.train.held import Watch
    from nbmf.train.quantize import sections as quantized

    path = stages.folder / "dense.xz"
    if not path.is_file():
        bundle.save(path, bundled(corpus, parts, fitted["sections"], dial, seed, stages, tick))
    found = bundle.load(path)
    watch = Watch(kernel.load(memoryview(found.models[0])), held, patience, stages.folder / "best.pt") if held else None
    course: list[tuple[float, float]] = []

    def report(step: int, steps: int, without: float, with_it: float) -> None:
        course.append((round(without, 4), round(with_it, 4)))
        figures = {"bits_per_byte": with_it, "bits_per_byte_without": without}
        if watch:
            figures |= {"held_back": watch.last, "held_back_without": watch.without}
        tick(NETWORKS, step, steps, figures)

    net = bundle.train(
        found,
        path.with_suffix(".pt"),
        device,
        report,
        beat=lambda step, steps: tick(NETWORKS, step, steps, {"bytes": step * bundle.step_bytes(device)}),
        watch=watch,
    )
    assert net  # no limit of time was set
    figures = {
        "dense_width": dial.width,
        "dense_steps": dial.steps,
        "bits_per_byte_before_and_after_dense": course[-1:],
    }
    if watch:
        figures |= {
            "dense_best_step": watch.best_step,
            "bits_per_byte_held_back_before_and_after_dense": [(round(watch.without, 4), round(watch.best, 4))],
        }
    return {"sections": quantized(net), "figures": figures}


def crossed(corpus: Corpus, parts: Parts, seed: int) -> Parts:
    """Of a second stand-in: what is new to the first, and a third of the first's own sources, the smaller of three."""
    new = np.unique(corpus.source[parts.new])
    own = np.setdiff1d(corpus.source[parts.seen], new)
    sizes = np.bincount(corpus.source, np.diff(corpus.records.offset), len(corpus.sources))
    seen = np.concatenate([own[np.argsort(-sizes[own], kind="stable")][2::3], new])
    inside = np.isin(corpus.source, seen)
    numbers = np.flatnonzero(inside)
    back = np.arange(len(numbers)) % HELD_EVERY == seed % HELD_EVERY
    return Parts(numbers[~back], numbers[back], np.flatnonzero(~inside), len(seen))


def bundled(corpus: Corpus, parts: Parts, sections: Sections, dial: Size, seed: int, stages: Stages, tick: Tick) -> Any:
    """The Bundle that the networks are trained on: records new to each stand-in, its own, and some with packs.

    A second stand-in, where the dial asks for one, has counts of its own and all else of the first.
    """
    from nbmf.train.bundle import Bundle, Seen

    rng = np.random.default_rng(seed)
    records, (new, own, packed) = corpus.records, NET_SHARES
    stand_ins = [(parts, model_file(sections))]
    if dial.stand_ins > 1 and parts.sources:
        second = crossed(corpus, parts, seed)
        few, many = STAND_IN
        smaller = replace(dial, lines=max(256, dial.lines * few // many))
        counts, _ = stages.run("second", lambda: counted(records.select(second.seen), smaller, stages, "second-", tick))
        stand_ins.append((second, model_file({**counts, **{name: sections[name] for name in FITTED}})))
    seen = []
    for at, (part, file) in enumerate(stand_ins):
        seen.append(Seen(at, b"", records.select(capped(corpus, part.new, NET_BYTES, rng)), new))
        if len(part.held):
            seen.append(Seen(at, b"", records.select(capped(corpus, part.held, NET_HELD_BYTES, rng)), own))
        groups = pack_groups(corpus, part, rng)[:NET_PACKS]
        for number, (pack, test) in enumerate(pack_trials(corpus, groups, file, rng, NET_PACK_BYTES)):
            tick("learning packs to train with", min(number // 2, len(groups)), len(groups))
            seen.append(Seen(at, pack, test, packed / (2 * len(groups))))
    return Bundle([file for _, file in stand_ins], seen, dial.width, dial.steps, seed)


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
