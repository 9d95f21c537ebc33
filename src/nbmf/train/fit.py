"""What follows counting: calibrating the cells and fitting the mixer, with the exported integers in the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nbmf.codec import kernel
from nbmf.codec.adapt import learn
from nbmf.codec.counting import LOCAL_CONTEXTS, PACK_CONTEXTS, STATIC_CONTEXTS, Records, in_threads
from nbmf.codec.model import ID_AT, ID_SIZE, MODEL_MAGIC, build_file, section
from nbmf.train.data import Corpus

Sections = dict[str, NDArray[Any]]
Tick = Callable[..., None]

STRETCH_ONE: Final = 170  # logit units in a nat
LOGIT_MOST: Final = 2040
LISTS: Final = STATIC_CONTEXTS + LOCAL_CONTEXTS + PACK_CONTEXTS
CELLS: Final = 2048  # of one context: bit position, mass on one, mass on zero
MATCH_CELLS: Final = 256
LANES: Final = 48
ROWS: Final = 288 + 256 + 256 + 1024 + 768
SETS: Final = 5
WEIGHT_ONE: Final = 16384
RATE: Final = 90  # of every set, in the record
FINAL_RATE: Final = 2
# (rate of the sets, of the final stage) of each pass over the held-back records
PASSES: Final = ((0.01, 0.002), (0.003, 0.0005), (0.001, 0.0002), (0.0005, 0.0001))
ROUNDS: Final = 6  # times a pass is cut so that the threads' weights are averaged
FEW: Final = (60, 250, 1000, 100_000)  # records that the packs are learned from while fitting for packs
EVALUATED: Final = 150_000  # bytes of one source that the packs' mixer is fitted on
STRANGE: Final = 0.3  # of them from other sources, so that a pack does no harm to what it does not know


def logits(counts: NDArray[np.uint32], prior: float = 0.4) -> NDArray[np.int16]:
    """Log odds of the counts [..., (zeros, ones)], in 1/STRETCH_ONE nat."""
    zeros, ones = counts[..., 0].astype(np.float64), counts[..., 1].astype(np.float64)
    odds = np.round(STRETCH_ONE * np.log((ones + prior) / (zeros + prior)))
    return np.clip(odds, -LOGIT_MOST, LOGIT_MOST).astype(np.int16)


def squash_table() -> NDArray[np.uint16]:
    """P(1) * 65536 at logit i - 2048, in 1..65535. Made once and stored: no coder computes an exponential."""
    x = np.arange(-2048, 2048) / STRETCH_ONE
    return np.clip(np.round(65536 / (1 + np.exp(-x))), 1, 65535).astype(np.uint16)


def blank() -> Sections:
    """Sections of a model that has learned nothing, all but the tables of counting."""
    weights = np.zeros((ROWS, LANES), np.int16)
    weights[:, :41] = WEIGHT_ONE // 5
    final = np.zeros((256, 8), np.int16)
    final[:, :SETS] = WEIGHT_ONE // SETS
    rates = np.zeros(8, np.int32)
    rates[:SETS], rates[7] = RATE, FINAL_RATE
    return {
        "rates": rates,
        "squash": squash_table(),
        "final": final,
        "weights": weights,
        "lists": np.zeros((STATIC_CONTEXTS, CELLS), np.int16),
        "local": np.zeros((LOCAL_CONTEXTS, CELLS), np.int16),
        "match": np.zeros(MATCH_CELLS, np.int16),
        "primer_match": np.zeros(MATCH_CELLS, np.int16),
        "state": np.zeros(65536, np.int16),
        "pack_rates": rates.copy(),
        "pack_final": final.copy(),
        "pack_weights": weights.copy(),
        "pack_lists": np.zeros((PACK_CONTEXTS, CELLS), np.int16),
        "pack_match": np.zeros(MATCH_CELLS, np.int16),
        "order1": np.zeros((256, 256), np.int16),
        "order2_row": np.zeros(65536, np.uint16),
        "order2": np.zeros((1, 256), np.int8),
        "primer": np.zeros(0, np.uint8),
        "lines": np.zeros((1, 64), np.uint8),
    }


def model_file(sections: Sections, card: bytes = b"{}") -> bytes:
    """The model file of the sections, little-endian."""
    raw = {name: array.astype(array.dtype.newbyteorder("<")).tobytes() for name, array in sections.items()}
    return build_file(MODEL_MAGIC, {"card": card, **raw})


def _coder(sections: Sections, pack: bytes | None = None) -> Any:
    file = bytearray(model_file(sections))
    if pack:
        file[ID_AT : ID_AT + ID_SIZE] = section(
            pack, "model_id"
        )  # the pack's model, before this stage changed its sections
    return kernel.load(memoryview(file), memoryview(pack) if pack else None)


def _count(coder: Any, records: Records) -> tuple[NDArray[np.uint32], ...]:
    def work(first: int, last: int) -> tuple[NDArray[np.uint32], ...]:
        lists = np.zeros((LISTS, CELLS, 2), np.uint32)
        match = np.zeros((3, MATCH_CELLS, 2), np.uint32)
        state = np.zeros((65536, 2), np.uint32)
        coder.train("cells", *records.buffers(first, last), lists, match, state)
        return lists, match, state

    parts = records.parallel(work)
    return tuple(sum(part[i] for part in parts) for i in range(3))  # type: ignore[misc]


def calibrate(sections: Sections, held: Records) -> None:
    """Sets what each cell predicts to what came of it in records that counting has not seen."""
    lists, match, state = _count(_coder(sections), held)
    sections["lists"] = logits(lists[:STATIC_CONTEXTS])
    sections["local"] = logits(lists[STATIC_CONTEXTS : STATIC_CONTEXTS + LOCAL_CONTEXTS])
    sections["match"], sections["primer_match"] = logits(match[0]), logits(match[1])
    sections["state"] = logits(state)


def _descend(
    jobs: Sequence[tuple[Any, Records, int, int]],
    w: NDArray[np.float32],
    f: NDArray[np.float32],
    rates: tuple[float, float],
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """One step: every job from the same weights at once, then their mean (local SGD). A job: coder, records, range."""

    def run(
        coder: Any, records: Records, first: int, last: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
        mine, final = w.copy(), f.copy()
        bits = coder.train("fit", *records.buffers(first, last), mine, final, None, *rates)
        return mine, final, bits

    done = in_threads([lambda job=job: run(*job) for job in jobs])  # type: ignore[misc]
    return (
        np.mean([d[0] for d in done], axis=0, dtype=np.float32),
        np.mean([d[1] for d in done], axis=0, dtype=np.float32),
        sum(d[2] for d in done),
    )


def _floats(x: NDArray[Any]) -> NDArray[np.float32]:
    return x.astype(np.float32) / np.float32(WEIGHT_ONE)


def _integers(x: NDArray[np.float32]) -> NDArray[np.int16]:
    return np.clip(np.round(x * WEIGHT_ONE), -32767, 32767).astype(np.int16)


def fit(sections: Sections, held: Records, tick: Tick) -> list[float]:
    """Fits the mixer to the held-back records. Returns the bits per byte of each pass."""
    coder = _coder(sections)
    w: NDArray[np.float32] = _floats(sections["weights"])
    f = _floats(sections["final"])
    cuts = held.cuts(2 * ROUNDS)
    course = []
    tick("fitting the mixer", 0, len(PASSES))
    for number, rates in enumerate(PASSES, 1):
        bits = 0.0
        for k in range(0, 2 * ROUNDS, 2):
            w, f, spent = _descend([(coder, held, cuts[k + i], cuts[k + i + 1]) for i in (0, 1)], w, f, rates)
            bits += spent
        course.append(round(bits / max(1, held.raw_bytes), 4))
        tick("fitting the mixer", number, len(PASSES), {"bits_per_byte": course[-1], "bytes": held.raw_bytes})
    sections["weights"], sections["final"] = _integers(w), _integers(f)
    return course


def pack_trials(
    corpus: Corpus, groups: Sequence[NDArray[np.int64]], file: bytes, rng: np.random.Generator, most: int
) -> Iterator[tuple[bytes, Records]]:
    """Packs learned from few and from many records of one half of each group, and records to judge them on.

    Those are `most` bytes of the other half, and of other groups as many as STRANGE says. `file` is the packs' model.
    """
    records = corpus.records
    for number, group in enumerate(groups):
        order = rng.permutation(group)
        half = len(order) // 2
        for few in sorted({min(half, int(rng.choice(FEW))), half}):
            pack, _ = learn([(int(records.type[i]), records.raw(int(i))) for i in order[:few]], file)
            test = order[half:]
            size = np.cumsum(np.diff(records.offset)[test])
            test = test[: max(1, int(np.searchsorted(size, most)))]
            others = np.concatenate([g for i, g in enumerate(groups) if i != number] or [test])
            strange = rng.choice(others, max(1, int(len(test) * STRANGE)))
            yield pack, records.select(rng.permutation(np.concatenate([test, strange])))


def fit_packs(
    sections: Sections, corpus: Corpus, groups: Sequence[NDArray[np.int64]], seed: int, tick: Tick
) -> list[float]:
    """Fits what domain packs share: their cells, and the mixer that has their lanes.

    `groups` are record numbers of sources that the model's counting has not seen: a pack is learned from one half of
    each and judged on the other, as a user's will be. Returns the bits per byte of each pass.
    """
    rng = np.random.default_rng(seed)
    file = model_file(sections)
    trials: list[tuple[bytes, Records]] = []
    for number, trial in enumerate(pack_trials(corpus, groups, file, rng, EVALUATED)):
        tick("learning packs to fit for", min(number // 2, len(groups)), len(groups))
        trials.append(trial)
    tick("learning packs to fit for", len(groups), len(groups))
    counts = [_count(_coder(sections, pack), test) for pack, test in trials]
    sections["pack_lists"] = logits(sum(c[0] for c in counts)[STATIC_CONTEXTS + LOCAL_CONTEXTS :])  # type: ignore[index]
    sections["pack_match"] = logits(sum(c[1] for c in counts)[2])  # type: ignore[index]
    w: NDArray[np.float32] = _floats(sections["weights"])
    w[:, LISTS + 4 : 41] = 0.15
    f = _floats(sections["final"])
    coders = [_coder(sections, pack) for pack, _ in trials]
    total = sum(test.raw_bytes for _, test in trials)
    course = []
    tick("fitting for packs", 0, len(PASSES))
    for number, rates in enumerate(PASSES, 1):
        bits = 0.0
        order = rng.permutation(len(trials))
        for k in range(0, len(order), 2):
            jobs = [(coders[i], trials[i][1], 0, len(trials[i][1])) for i in order[k : k + 2]]
            w, f, spent = _descend(jobs, w, f, rates)
            bits += spent
        course.append(round(bits / max(1, total), 4))
        tick("fitting for packs", number, len(PASSES), {"bits_per_byte": course[-1], "bytes": total})
    sections["pack_weights"], sections["pack_final"] = _integers(w), _integers(f)
    return course
