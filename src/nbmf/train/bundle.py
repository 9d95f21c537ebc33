"""What training the networks needs, in one file: to be taken to a machine with a GPU, and the checkpoint brought back.

    python -m nbmf.train.bundle OUT.nbm.work/dense.npz --device cuda --seconds 570

trains until it is done or the seconds are over, and can be run again until it says that it is done. The checkpoint lies
beside the bundle, where `nbmf train` looks for it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nbmf.codec import kernel
from nbmf.codec.counting import Records
from nbmf.train import dense
from nbmf.train.net import Net

Progress = Callable[[int, int, float, float], None]  # step, steps, bits per byte without the networks, and with them


@dataclass(frozen=True)
class Seen:
    """Records, the pack through which they are seen (empty: none), and their share of all bytes."""

    pack: bytes
    records: Records
    share: float


@dataclass(frozen=True)
class Bundle:
    """The stand-in's model file, what the networks see, and the dials."""

    model: bytes
    seen: Sequence[Seen]
    width: int
    steps: int
    seed: int


def save(path: Path, bundle: Bundle) -> None:
    """Writes the bundle, whole or not at all."""
    arrays: dict[str, Any] = {
        "model": np.frombuffer(bundle.model, np.uint8),
        "dials": np.array([bundle.width, bundle.steps, bundle.seed]),
        "shares": np.array([part.share for part in bundle.seen]),
    }
    for i, part in enumerate(bundle.seen):
        arrays[f"pack{i}"] = np.frombuffer(part.pack, np.uint8)
        arrays |= {f"data{i}": part.records.data, f"offset{i}": part.records.offset, f"type{i}": part.records.type}
    partial = path.with_suffix(".tmp.npz")
    np.savez_compressed(partial, **arrays)
    partial.replace(path)


def load(path: Path) -> Bundle:
    """The bundle in a file. Raises OSError, ValueError and KeyError for what is none."""
    with np.load(path) as file:
        seen = [
            Seen(
                file[f"pack{i}"].tobytes(),
                Records(file[f"data{i}"], file[f"offset{i}"], file[f"type{i}"]),
                float(share),
            )
            for i, share in enumerate(file["shares"])
        ]
        width, steps, seed = (int(x) for x in file["dials"])
        return Bundle(file["model"].tobytes(), seen, width, steps, seed)


def train(
    bundle: Bundle, checkpoint: Path, device: str, report: Progress = lambda *_: None, seconds: float = 0
) -> Net | None:
    """The trained networks; None when `seconds` were over before (0: no limit). Goes on from `checkpoint`."""
    torch.manual_seed(bundle.seed)
    model = memoryview(bundle.model)
    shelves = [
        dense.Shelf(kernel.load(model, memoryview(part.pack) if part.pack else None), part.records, part.share)
        for part in bundle.seen
    ]
    net = Net(bundle.width, bundle.width).to(device)
    begun = time.monotonic()
    done = dense.train(
        net,
        shelves,
        bundle.steps,
        seed=bundle.seed,
        checkpoint=checkpoint,
        report=lambda step, without, with_it: report(step, bundle.steps, without, with_it),
        over=lambda: bool(seconds) and time.monotonic() - begun > seconds,
    )
    return net if done else None


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
