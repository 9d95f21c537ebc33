"""Training the dense profile's networks on records that the model's counting has not seen."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from nbmf.train.feed import Farm, Feed, Shelf, observe, padded, stretch_of
from nbmf.train.net import Net, bits

STRETCH_BYTES: Final = 64  # a step of `measure`
WARM: Final = 200  # most steps in which the rate grows
DECAY: Final = 0.01  # of matrices and embeddings, as in AdamW


class Batch(NamedTuple):
    """What a step takes: `length` bytes of so many streams of records side by side. The state goes on to the next."""

    streams: int
    length: int


ON_CPU: Final = Batch(96, 64)
ON_GPU: Final = Batch(256, 128)


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
        inputs, node, rows, first, bit = stretch_of([padded(s, at, STRETCH_BYTES) for s in seen]).tensors(device)
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
    batch: Batch | None = None,
    workers: int | None = None,
    seed: int = 1,
    checkpoint: Path | None = None,
    every: int = 200,
    report: Callable[[int, float, float], None] = lambda *_: None,
    beat: Callable[[int], None] = lambda _: None,
    over: Callable[[], bool] = lambda: False,
) -> bool:
    """Trains in place for `steps` stretches; goes on from `checkpoint`, and saves there every `every` steps.

    `batch` and `workers`, the processes that make the stretches (0: a thread), are by default what suits the device.
    `report(step, bits per byte without, with)` is of the stretches since the last report, `beat(step)` is called at
    every step. Once `over()` says so at one
    of those steps it stops, with a checkpoint; returns whether all are done.
    """
    device = str(net.rows.weight.device)
    gpu = torch.device(device).type != "cpu"
    batch = batch or (ON_GPU if gpu else ON_CPU)
    if workers is None:
        workers = max(w for w in (1, 2, 4, 8, 16, 32) if w <= (os.cpu_count() or 1)) if gpu else 0
    flat = [p for p in net.parameters() if p.ndim < 2]
    others = [p for p in net.parameters() if p.ndim > 1]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": DECAY}, {"params": flat, "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.99)
    )
    begin = 0
    if checkpoint and checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True, map_location=device)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        begin = saved["step"]
    state = net.begin(batch.streams)
    spent = torch.zeros(2, dtype=torch.float64)
    farm = Farm(shelves, *batch, seed + begin, workers) if workers else None
    feed = iter(farm or Feed(shelves, *batch, seed + begin))
    if gpu:
        torch.set_float32_matmul_precision("high")
    warm = min(WARM, max(1, steps // 10))
    try:
        for step in range(begin, steps):
            for group in optimizer.param_groups:
                left = (steps - step) / max(1, steps - warm)
                group["lr"] = rate * min((step + 1) / warm, max(0.02, min(1.0, left)))
            inputs, node, rows, first, bit = next(feed).tensors(device)
            out, state = net(inputs, node, rows, first, state)
            cost = bits(out, inputs, bit)
            optimizer.zero_grad(set_to_none=True)
            cost.mean().backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            net.hold()
            with torch.no_grad():
                without = bits(torch.zeros_like(out), inputs, bit).sum().double().cpu()
                spent += torch.stack([without, cost.detach().sum().double().cpu()])
            beat(step + 1)
            if (step + 1) % every == 0 or step + 1 == steps:
                passed = (step - begin) % every + 1
                a, b = (spent / (np.log(2) * passed * batch.streams * batch.length)).tolist()
                report(step + 1, a, b)
                spent.zero_()
                if checkpoint:
                    partial = checkpoint.with_suffix(".tmp")
                    torch.save(
                        {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}, partial
                    )
                    partial.replace(checkpoint)
                if over():
                    return step + 1 == steps
    finally:
        if farm:
            farm.close()
    return True
