"""What the dense profile's networks are trained on: stretches of records as the model's mixture sees them."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from nbmf.codec.counting import Records
from nbmf.train.net import CONTEXTS, INPUTS, scaled

RUN_BYTES: Final = 2048  # records are taken in runs of about so many bytes
SLOTS: Final = 3  # stretches that processes make ahead


@dataclass(frozen=True)
class Shelf:
    """Records and the coder (of a model, with a pack or not) through which they are seen; `share` of all bytes."""

    coder: Any
    records: Records
    share: float = 1.0


@dataclass(frozen=True)
class Stretch:
    """T bytes of B streams: inputs [T, B, 8, 72], rows [T, B, 15], bit and node [T, B, 8], first [T, B]."""

    inputs: NDArray[np.int16]
    rows: NDArray[Any]
    bit: NDArray[np.uint8]
    node: NDArray[np.uint8]
    first: NDArray[np.uint8]

    def tensors(self, device: str = "cpu") -> tuple[torch.Tensor, ...]:
        """inputs, node, rows, first, bit as `Net.forward` and `bits` take them."""
        return (
            scaled(torch.from_numpy(self.inputs).to(device)),
            torch.from_numpy(self.node).to(device).long(),
            torch.from_numpy(self.rows.astype(np.int32)).to(device).long(),
            torch.from_numpy(self.first).to(device).float(),
            torch.from_numpy(self.bit).to(device).float(),
        )


Columns = tuple[NDArray[np.int16], NDArray[np.uint16], NDArray[np.uint8], NDArray[np.uint8]]


def observe(coder: Any, records: Records) -> Columns:
    """What the networks see at each of P positions: inputs [P, 8, 72], rows [P, 15], bits [P, 8], first [P]."""
    n = records.positions
    inputs, rows = np.empty((n, 8, INPUTS), np.int16), np.empty((n, CONTEXTS), np.uint16)
    bit, first = np.empty((n, 8), np.uint8), np.zeros(n, np.uint8)
    coder.train("inputs", *records.buffers(0, len(records)), inputs, rows, bit)
    first[records.offset[:-1] - records.offset[0] + np.arange(len(records))] = 1
    return inputs, rows, bit, first


def _cut(columns: Columns, begin: int, end: int | None) -> Columns:
    inputs, rows, bit, first = columns
    return inputs[begin:end], rows[begin:end], bit[begin:end], first[begin:end]


def _joined(a: Columns, b: Columns) -> Columns:
    join = np.concatenate
    return join([a[0], b[0]]), join([a[1], b[1]]), join([a[2], b[2]]), join([a[3], b[3]])


def padded(columns: Columns, begin: int, length: int) -> Columns:
    """A stretch, with zeros where the columns end before it does."""
    part = _cut(columns, begin, begin + length)
    inputs, rows, bit, first = (np.concatenate([c, np.zeros((length - len(c), *c.shape[1:]), c.dtype)]) for c in part)
    return inputs, rows, bit, first


def stretch_of(columns: Sequence[Columns]) -> Stretch:
    inputs, rows = np.stack([c[0] for c in columns], 1), np.stack([c[1] for c in columns], 1)
    bit, first = np.stack([c[2] for c in columns], 1), np.stack([c[3] for c in columns], 1)
    node = np.ones_like(bit)
    for k in range(1, 8):
        node[..., k] = node[..., k - 1] * 2 + bit[..., k - 1]
    return Stretch(inputs, rows, bit, node, first)


class Feed:
    """Endless stretches of records drawn at random from shelves. Iterating makes them ahead in a thread."""

    def __init__(self, shelves: Sequence[Shelf], streams: int, length: int, seed: int) -> None:
        self.shelves, self.streams, self.length = shelves, streams, length
        self._rng = np.random.default_rng(seed)
        share = np.array([shelf.share for shelf in shelves])
        self._share = share / share.sum()
        self._left: list[NDArray[np.int64]] = [np.empty(0, np.int64) for _ in shelves]

    def __iter__(self) -> Iterator[Stretch]:
        ready: queue.Queue[Stretch] = queue.Queue(4)

        def work() -> None:
            for stretch in self.stretches():
                ready.put(stretch)

        threading.Thread(target=work, daemon=True).start()
        while True:
            yield ready.get()

    def _run(self) -> Columns:
        at = int(self._rng.choice(len(self.shelves), p=self._share))
        records = self.shelves[at].records
        if len(self._left[at]) < 1:
            self._left[at] = self._rng.permutation(len(records))
        left = self._left[at]
        size = np.cumsum(np.diff(records.offset)[left[:512]] + 1)
        many = min(len(left), int(np.searchsorted(size, RUN_BYTES)) + 1)
        self._left[at] = left[many:]
        return observe(self.shelves[at].coder, records.select(left[:many]))

    def stretches(self) -> Iterator[Stretch]:
        """Stretches made as they are asked for."""
        held: list[Columns] = [self._run() for _ in range(self.streams)]
        while True:
            cut = []
            for i in range(self.streams):
                while len(held[i][3]) < self.length:
                    held[i] = _joined(held[i], self._run())
                cut.append(_cut(held[i], 0, self.length))
                held[i] = _cut(held[i], self.length, None)
            yield stretch_of(cut)


class Farm:
    """A Feed from several processes, each with its share of the streams, for a GPU that would wait for one.

    The arrays of a stretch are shared memory, and hold until the next is asked for. Processes are forked, since a coder
    lives in its process. They end with `close`, or with this one.
    """

    def __init__(self, shelves: Sequence[Shelf], streams: int, length: int, seed: int, workers: int) -> None:
        if streams % workers:
            raise ValueError(f"{streams} streams are not shared out evenly among {workers} processes")
        fork = multiprocessing.get_context("fork")
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "inputs": ((length, streams, 8, INPUTS), torch.int16),
            "rows": ((length, streams, CONTEXTS), torch.int32),
            "bit": ((length, streams, 8), torch.uint8),
            "node": ((length, streams, 8), torch.uint8),
            "first": ((length, streams), torch.uint8),
        }
        self._slots = [
            {name: torch.empty(shape, dtype=dtype).share_memory_().numpy() for name, (shape, dtype) in shapes.items()}
            for _ in range(SLOTS)
        ]
        self._free = [[fork.Semaphore(1) for _ in range(SLOTS)] for _ in range(workers)]
        self._ready = [[fork.Semaphore(0) for _ in range(SLOTS)] for _ in range(workers)]
        self._processes = [
            fork.Process(target=self._work, args=(w, shelves, streams // workers, length, seed + w), daemon=True)
            for w in range(workers)
        ]
        for process in self._processes:
            process.start()

    def _work(self, worker: int, shelves: Sequence[Shelf], streams: int, length: int, seed: int) -> None:
        mine = slice(worker * streams, (worker + 1) * streams)
        for at, stretch in enumerate(Feed(shelves, streams, length, seed).stretches()):
            self._free[worker][at % SLOTS].acquire()
            for name, array in self._slots[at % SLOTS].items():
                array[:, mine] = getattr(stretch, name)
            self._ready[worker][at % SLOTS].release()

    def __iter__(self) -> Iterator[Stretch]:
        at = 0
        while True:
            for ready in self._ready:
                ready[at % SLOTS].acquire()
            yield Stretch(**self._slots[at % SLOTS])
            for free in self._free:
                free[at % SLOTS].release()
            at += 1

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
            process.join()
