"""What training the networks needs, in one file: to be taken to a machine with a GPU, and the checkpoint brought back.

    python -m nbmf.train.bundle OUT.nbm.work/dense.xz --device cuda --seconds 570

trains until it is done or the seconds are over, and can be run again until it says that it is done. The checkpoint lies
beside the bundle, where `nbmf train` looks for it.
"""

from __future__ import annotations

import argparse
import io
import lzma
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from nbmf.codec import kernel
from nbmf.codec.counting import Records
from nbmf.train import dense
from nbmf.train.feed import Shelf
from nbmf.train.held import Watch
from nbmf.train.net import Net

GPU_STEPS: Final = 3  # ... for one on a CPU, each of five times the bytes
Progress = Callable[[int, int, float, float], None]  # step, steps, bits per byte without the networks, and with them


@dataclass(frozen=True)
class Seen:
    """Records, the stand-in (its number) and the pack (empty: none) through which they are seen, and their share."""

    model: int
    pack: bytes
    records: Records
    share: float


@dataclass(frozen=True)
class Bundle:
    """The stand-ins' model files, what the networks see, and the dials."""

    models: Sequence[bytes]
    seen: Sequence[Seen]
    width: int
    steps: int
    seed: int


def save(path: Path, bundle: Bundle) -> None:
    """Writes the bundle, whole or not at all."""
    arrays: dict[str, Any] = {
        **{f"model{i}": np.frombuffer(model, np.uint8) for i, model in enumerate(bundle.models)},
        "dials": np.array([bundle.width, bundle.steps, bundle.seed]),
        "shares": np.array([part.share for part in bundle.seen]),
        "whose": np.array([part.model for part in bundle.seen]),
    }
    for i, part in enumerate(bundle.seen):
        arrays[f"pack{i}"] = np.frombuffer(part.pack, np.uint8)
        arrays |= {f"data{i}": part.records.data, f"offset{i}": part.records.offset, f"type{i}": part.records.type}
    partial = path.with_suffix(".tmp")
    with lzma.open(partial, "wb", preset=6) as file:
        np.savez(file, **arrays)
    partial.replace(path)


def load(path: Path) -> Bundle:
    """The bundle in a file. Raises OSError, ValueError and KeyError for what is none."""
    with lzma.open(path) as packed, np.load(io.BytesIO(packed.read())) as file:
        seen = [
            Seen(
                int(whose),
                file[f"pack{i}"].tobytes(),
                Records(file[f"data{i}"], file[f"offset{i}"], file[f"type{i}"]),
                float(share),
            )
            for i, (whose, share) in enumerate(zip(file["whose"], file["shares"], strict=True))
        ]
        width, steps, seed = (int(x) for x in file["dials"])
        models = [file[f"model{i}"].tobytes() for i in range(int(file["whose"].max()) + 1)]
        return Bundle(models, seen, width, steps, seed)


def train(
    bundle: Bundle,
    checkpoint: Path,
    device: str,
    report: Progress = lambda *_: None,
    seconds: float = 0,
    beat: Callable[[int, int], None] = lambda *_: None,
    watch: Watch | None = None,
) -> Net | None:
    """The trained networks; None when `seconds` were over before (0: no limit). Goes on from `checkpoint`.

    `beat(step, steps)` is called at every step. A `watch` looks at the networks at every report and ends training once
    nothing gets better; they are then as they were at their best.
    """
    torch.manual_seed(bundle.seed)
    shelves = [
        Shelf(
            kernel.load(memoryview(bundle.models[part.model]), memoryview(part.pack) if part.pack else None),
            part.records,
            part.share,
        )
        for part in bundle.seen
    ]
    net = Net(bundle.width, bundle.width).to(device)
    steps = bundle.steps if device == "cpu" else bundle.steps * GPU_STEPS
    begun = time.monotonic()

    def reported(step: int, without: float, with_it: float) -> None:
        if watch:
            watch.look(net, step)
        report(step, steps, without, with_it)

    done = dense.train(
        net,
        shelves,
        steps,
        seed=bundle.seed,
        checkpoint=checkpoint,
        report=reported,
        beat=lambda step: beat(step, steps),
        over=lambda: (watch is not None and watch.over) or (bool(seconds) and time.monotonic() - begun > seconds),
    )
    if watch and (done or watch.over):
        watch.restore(net)
        return net
    return net if done else None


def step_bytes(device: str) -> int:
    """Bytes of records that a step takes."""
    batch = dense.ON_CPU if device == "cpu" else dense.ON_GPU
    return batch.streams * batch.length


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the networks of a bundle.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=0, help="stop after so many, with a checkpoint; 0: never")
    options = parser.parse_args()

    def report(step: int, steps: int, without: float, with_it: float) -> None:
        saved = 100 * (1 - with_it / without)
        print(f"step {step} of {steps}: {with_it:.4f} bits per byte, {saved:.1f} % under the mixture", flush=True)

    net = train(load(options.bundle), options.bundle.with_suffix(".pt"), options.device, report, options.seconds)
    print("done" if net else "not done: run it again")


if __name__ == "__main__":
    main()
