"""Learning lists by counting: which contexts are worth keeping, and the line table that holds them.

A *pair* is (context, next byte). Pairs are counted once per record, so that what one record repeats (the in-record
contexts learn that) does not crowd out what many records share. A pair is kept for the bits it saves over what the
model without it already spends on the same positions, as entropy pruning of n-gram models does (Stolcke 1998).
"""

from __future__ import annotations

import importlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from nbmf.errors import NbmfError

STATIC_CONTEXTS: Final = 12
LOCAL_CONTEXTS: Final = 8
PACK_CONTEXTS: Final = 8
PACK_BASE: Final = 100  # the kernel's number of the first pack context
LIST_LENGTH: Final = 8  # most entries of one context
LINE_BYTES: Final = 64
LINE_ENTRIES: Final = 21
COST_UNIT: Final = 256  # costs are in 1/256 bit
KEY_COST_UNIT: Final = 64  # ... and in a key in 1/64
# Weight of a list entry by its 4-bit code: probability * 255. The kernel's WEIGHTS.
WEIGHTS: Final = np.array([1, 2, 3, 4, 5, 7, 10, 14, 22, 40, 56, 80, 112, 160, 210, 240])
DISCOUNT: Final = 0.6  # taken off every count, so that what was seen twice is not believed certain
SHARE: Final = 0.8  # of a list in the mixture that stands for the later model while pruning

T = TypeVar("T")
U8 = NDArray[np.uint8]


def passes() -> Any:
    """The C kernel's training passes. Raises NbmfError where it was not built: learning needs it, coding does not."""
    try:
        return importlib.import_module("nbmf.codec._kernel")
    except ImportError:
        raise NbmfError(
            "learning needs the C kernel, which is not built here; install again with a C compiler"
        ) from None


@dataclass(frozen=True)
class Records:
    """Raw records end to end: record r is data[offset[r]:offset[r + 1]] of value type type[r].

    A *position* is a byte of a record or its end: record r's first is offset[r] + r.
    """

    data: U8
    offset: NDArray[np.int64]
    type: U8

    @classmethod
    def of(cls, pairs: Iterable[tuple[int, bytes]]) -> Records:
        """From (value type, raw) pairs."""
        items = list(pairs)
        offset = np.zeros(len(items) + 1, np.int64)
        np.cumsum([len(raw) for _, raw in items], out=offset[1:])
        data = np.frombuffer(b"".join(raw for _, raw in items), np.uint8)
        return cls(data, offset, np.array([value_type for value_type, _ in items], np.uint8))

    def __len__(self) -> int:
        return len(self.offset) - 1

    @property
    def raw_bytes(self) -> int:
        return int(self.offset[-1])

    def position(self, record: int) -> int:
        return int(self.offset[record]) + record

    @property
    def positions(self) -> int:
        return self.position(len(self))

    def raw(self, record: int) -> bytes:
        return self.data[self.offset[record] : self.offset[record + 1]].tobytes()

    def select(self, indices: NDArray[np.int64]) -> Records:
        return Records.of((int(self.type[i]), self.raw(int(i))) for i in indices)

    def buffers(self, first: int = 0, last: int | None = None) -> tuple[U8, NDArray[np.int64], U8, int, int]:
        """The arguments that every training pass begins with."""
        return self.data, self.offset, self.type, first, len(self) if last is None else last

    def cuts(self, parts: int) -> list[int]:
        """Record numbers that cut the bytes into `parts` nearly equal ranges."""
        inner = [int(np.searchsorted(self.offset, self.raw_bytes * k // parts)) for k in range(1, parts)]
        return [0, *inner, len(self)]

    def parallel(self, work: Callable[[int, int], T]) -> list[T]:
        """work(first, last) over one range of records per core, at once; results in order of the ranges."""
        cuts = self.cuts(min(os.cpu_count() or 1, 8) if self.raw_bytes > 1 << 16 else 1)
        return in_threads([lambda a=a, b=b: work(a, b) for a, b in itertools.pairwise(cuts)])  # type: ignore[misc]


def in_threads(jobs: list[Callable[[], T]]) -> list[T]:
    """Runs the jobs at once; raises the first one's error."""
    results: list[Any] = [None] * len(jobs)

    def run(i: int) -> None:
        try:
            results[i] = (True, jobs[i]())
        except BaseException as error:
            results[i] = (False, error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(1, len(jobs))]
    for thread in threads:
        thread.start()
    run(0)
    for thread in threads:
        thread.join()
    for done, value in results:
        if not done:
            raise value
    return [value for _, value in results]


@dataclass
class Lists:
    """Kept pairs of one context kind, ordered by context, best first: arrays of equal length."""

    hash44: NDArray[np.uint64]  # top 44 bits of the context's hash
    symbol: U8
    code: U8  # of its weight
    probability: NDArray[np.float32]
    gain: NDArray[np.float32]  # bits saved over the training records

    def starts(self) -> NDArray[np.int64]:
        """Index of the first pair of each context."""
        return _starts(self.hash44)


def _starts(ordered: NDArray[Any]) -> NDArray[np.int64]:
    if not len(ordered):
        return np.zeros(0, np.int64)
    return np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))


def _rank(starts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Number of each item within its group."""
    return np.arange(count) - np.repeat(starts, np.diff(np.append(starts, count)))


def select_lists(records: Records, context: int, cost: NDArray[np.uint16], threshold: float) -> Lists:
    """The pairs of one context that at least two records share and that save more than `threshold` bits in all.

    `cost[position]` is what the position costs without them.
    """
    kernel = passes()
    room = np.empty(records.positions, np.uint64)

    def emit(first: int, last: int) -> tuple[int, int]:
        at = records.position(first)
        end = records.position(last)
        return at, kernel.train_keys(*records.buffers(first, last), context, cost[at:end], room[at:end])

    used = 0
    for at, emitted in records.parallel(emit):
        room[used : used + emitted] = room[at : at + emitted]
        used += emitted
    key = room[:used]
    key.sort()
    spent = (key & np.uint64(4095)).astype(np.uint16)
    key >>= np.uint64(12)
    pairs = _starts(key)
    count: NDArray[np.int32] = np.diff(np.append(pairs, used)).astype(np.int32)
    bits = np.add.reduceat(spent, pairs, dtype=np.int64) / KEY_COST_UNIT if used else np.zeros(0)
    pair = key[pairs]
    del key, spent, pairs
    room = np.empty(0, np.uint64)  # gigabytes, no longer needed
    hashes = pair >> np.uint64(8)
    contexts = _starts(hashes)
    total = np.add.reduceat(count, contexts) if len(contexts) else np.zeros(0, np.int32)
    shared = np.flatnonzero(count >= 2)
    probability = (count[shared] - DISCOUNT) / total[np.searchsorted(contexts, shared, side="right") - 1]
    saved = bits[shared] + count[shared] * np.log2(probability)
    kept = saved > threshold
    shared = shared[kept]
    gain: NDArray[np.float32] = saved[kept].astype(np.float32)
    order = np.lexsort((-gain, hashes[shared]))
    hash44 = hashes[shared][order]
    best = _rank(_starts(hash44), len(hash44)) < LIST_LENGTH
    order = order[best]
    chosen = probability[kept][order].astype(np.float32)
    distance = np.abs(np.log(np.maximum(chosen, 1e-4)[:, None] * 255) - np.log(WEIGHTS)[None, :])
    return Lists(
        hash44=hash44[best],
        symbol=(pair[shared][order] & np.uint64(255)).astype(np.uint8),
        code=distance.argmin(axis=1).astype(np.uint8),
        probability=chosen,
        gain=gain[order],
    )


def apply_lists(records: Records, context: int, lists: Lists, cost: NDArray[np.uint16]) -> None:
    """Lowers `cost` to what the positions cost once the lists are mixed in."""
    starts = lists.starts()
    contexts = np.ascontiguousarray(lists.hash44[starts])
    bounds = np.append(starts, len(lists.hash44)).astype(np.uint32)
    kernel = passes()

    def lower(first: int, last: int) -> None:
        part = cost[records.position(first) : records.position(last)]
        tables = (contexts, bounds, np.ascontiguousarray(lists.symbol), lists.probability)
        kernel.train_apply(*records.buffers(first, last), context, len(contexts), *tables, SHARE, part)

    if len(contexts):
        records.parallel(lower)


def line_table(parts: list[Lists], lines: int) -> tuple[U8, int]:
    """The line table uint8[lines][64], and how many pairs found no room: a full line keeps those that save most.

    Entry i of a line: bytes 2i, 2i+1 its 12-bit tag and 4-bit code, byte 42+i its symbol; a context's are adjacent.
    """
    hashes = np.concatenate([part.hash44 for part in parts])
    symbol = np.concatenate([part.symbol for part in parts])
    code = np.concatenate([part.code for part in parts])
    gain = np.concatenate([part.gain for part in parts])
    line = (((hashes >> np.uint64(12)) * np.uint64(lines)) >> np.uint64(32)).astype(np.int64)
    tag = (hashes & np.uint64(4095)).astype(np.uint16)
    order = np.lexsort((symbol, tag, -gain, line))
    kept = order[_rank(_starts(line[order]), len(order)) < LINE_ENTRIES]
    order = kept[np.lexsort((symbol[kept], 255 - code[kept], tag[kept], line[kept]))]
    line, entry = line[order], (tag[order] << 4 | code[order]).astype(np.uint16)
    at = _rank(_starts(line), len(line))
    table = np.zeros((lines, LINE_BYTES), np.uint8)
    table[line, 2 * at] = entry & 255
    table[line, 2 * at + 1] = entry >> 8
    table[line, 2 * LINE_ENTRIES + at] = symbol[order]
    return table, len(hashes) - len(order)
