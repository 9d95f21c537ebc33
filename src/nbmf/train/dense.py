"""Training the dense profile's networks on records that the model's counting has not seen."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from nbmf.codec.counting import Records
from nbmf.train.net import CONTEXTS, INPUTS, Net, bits, scaled

STREAMS: Final = 96  # records side by side
STRETCH_BYTES: Final = 64  # bytes of each in a step; the state goes on to the next step
RUN_BYTES: Final = 2048  # records are taken in runs of about so many bytes
WARM: Final = 200  # most steps in which the rate grows


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
    rows: NDArray[np.uint16]
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


def _padded(columns: Columns, begin: int, length: int) -> Columns:
    """A stretch, with zeros where the columns end before it does."""
    part = _cut(columns, begin, begin + length)
    inputs, rows, bit, first = (np.concatenate([c, np.zeros((length - len(c), *c.shape[1:]), c.dtype)]) for c in part)
    return inputs, rows, bit, first


def _stretch(columns: Sequence[Columns]) -> Stretch:
    inputs, rows = np.stack([c[0] for c in columns], 1), np.stack([c[1] for c in columns], 1)
    bit, first = np.stack([c[2] for c in columns], 1), np.stack([c[3] for c in columns], 1)
    node = np.ones_like(bit)
    for k in range(1, 8):
        node[..., k] = node[..., k - 1] * 2 + bit[..., k - 1]
    return Stretch(inputs, rows, bit, node, first)


class Feed:
    """Endless stretches of records drawn at random from shelves, made ahead in a thread of its own unless `start` is off."""

    def __init__(self, shelves: Sequence[Shelf], streams: int, length: int, seed: int, start: bool = True) -> None:
        self.shelves, self.streams, self.length = shelves, streams, length
        self._rng = np.random.default_rng(seed)
        share = np.array([shelf.share for shelf in shelves])
        self._share = share / share.sum()
        self._left: list[NDArray[np.int64]] = [np.empty(0, np.int64) for _ in shelves]
        self._ready: queue.Queue[Stretch] = queue.Queue(4)
        if start:
            threading.Thread(target=self._work, daemon=True).start()

    def __iter__(self) -> Iterator[Stretch]:
        while True:
            yield self._ready.get()

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

    def _work(self) -> None:
        for stretch in self.stretches():
            self._ready.put(stretch)

    def stretches(self) -> Iterator[Stretch]:
        """The same, made as they are asked for."""
        held: list[Columns] = [self._run() for _ in range(self.streams)]
        while True:
            cut = []
            for i in range(self.streams):
                while len(held[i][3]) < self.length:
                    held[i] = _joined(held[i], self._run())
                cut.append(_cut(held[i], 0, self.length))
                held[i] = _cut(held[i], self.length, None)
            yield _stretch(cut)


@torch.no_grad()
def measure(
    net: Net, shelf: Shelf, group: NDArray[np.int64], streams: int = 64
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bits that the records cost without and with the network, by `group` of each record (numbers from 0)."""
    training = net.training
    net.eval()
    records, sizes = shelf.records, np.diff(shelf.records.offset) + 1
    lanes: list[list[int]] = [[] for _ in range(streams)]
    fill = np.zeros(streams)
    for record in np.argsort(-sizes, kind="stable"):
        lane = int(fill.argmin())
        lanes[lane].append(int(record))
        fill[lane] += sizes[record]
    lanes = [lane for lane in lanes if lane]
    seen = [observe(shelf.coder, records.select(np.array(lane))) for lane in lanes]
    whose = [np.repeat(group[lane] + 1, sizes[lane]) for lane in lanes]
    spent = np.zeros((2, int(group.max()) + 2))
    device = str(net.rows.weight.device)
    state = net.begin(len(lanes))
    for at in range(0, int(max(map(len, whose))), STRETCH_BYTES):
        inputs, node, rows, first, bit = _stretch([_padded(s, at, STRETCH_BYTES) for s in seen]).tensors(device)
        out, state = net(inputs, node, rows, first, state)
        who = np.stack(
            [np.pad(w[at : at + STRETCH_BYTES], (0, max(0, at + STRETCH_BYTES - max(at, len(w))))) for w in whose], 1
        )
        for i, given in enumerate((torch.zeros_like(out), out)):
            cost = bits(given, inputs, bit).sum(-1).double().cpu().numpy().ravel()
            spent[i] += np.bincount(who.ravel(), cost, spent.shape[1])
    net.train(training)
    before, after = spent[:, 1:] / np.log(2)
    return before, after


def train(
    net: Net,
    shelves: Sequence[Shelf],
    steps: int,
    *,
    rate: float = 3e-3,
    streams: int = STREAMS,
    seed: int = 1,
    checkpoint: Path | None = None,
    every: int = 200,
    report: Callable[[int, float, float], None] = lambda *_: None,
    over: Callable[[], bool] = lambda: False,
) -> bool:
    """Trains in place for `steps` stretches; goes on from `checkpoint`, and saves there every `every` steps.

    `report(step, bits per byte without, with)` is of the stretches since the last report. Once `over()` says so at one
    of those steps it stops, with a checkpoint; returns whether all are done. On a GPU products are of bfloat16.
    """
    device = str(net.rows.weight.device)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, betas=(0.9, 0.99))
    begin = 0
    if checkpoint and checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        begin = saved["step"]
    state = net.begin(streams)
    spent = torch.zeros(2, dtype=torch.float64)
    feed = iter(Feed(shelves, streams, STRETCH_BYTES, seed + begin))
    kind = torch.device(device).type
    warm = min(WARM, max(1, steps // 10))
    for step in range(begin, steps):
        for group in optimizer.param_groups:
            left = (steps - step) / max(1, steps - warm)
            group["lr"] = rate * min((step + 1) / warm, max(0.02, min(1.0, left)))
        inputs, node, rows, first, bit = next(feed).tensors(device)
        with torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu"):
            out, state = net(inputs, node, rows, first, state)
        out, state = out.float(), state.float()
        cost = bits(out, inputs, bit)
        optimizer.zero_grad(set_to_none=True)
        cost.mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        net.hold()
        with torch.no_grad():
            without = bits(torch.zeros_like(out), inputs, bit).sum().double().cpu()
            spent += torch.stack([without, cost.detach().sum().double().cpu()])
        if (step + 1) % every == 0 or step + 1 == steps:
            passed = (step - begin) % every + 1
            a, b = (spent / (np.log(2) * passed * streams * STRETCH_BYTES)).tolist()
            report(step + 1, a, b)
            spent.zero_()
            if checkpoint:
                partial = checkpoint.with_suffix(".tmp")
                torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, partial)
                partial.replace(checkpoint)
            if over():
                return step + 1 == steps
    return True
