"""The course of a training run: a row of figures for every report, in a CSV file, and a few words for the screen.

| column                | what                                                                     |
|-----------------------|--------------------------------------------------------------------------|
| seconds               | since this run (or its continuation) began                               |
| stage, done, total    | what is being done: passes or steps                                      |
| bits_per_byte         | of the records of this pass, or of the steps since the last row          |
| bits_per_byte_without | of the same, without the networks                                        |
| held_back             | bits per byte of records that are never trained on                       |
| held_back_without     | of the same, without the networks                                        |
| bytes_per_second      | of records, in this stage so far                                         |
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

COLUMNS: Final = (
    "seconds", "stage", "done", "total", "bits_per_byte", "bits_per_byte_without", "held_back", "held_back_without",
    "bytes_per_second",
)  # fmt: skip
LOSSES: Final = COLUMNS[4:8]


class Course:
    """Stands between a run and the screen's `tick(what, done, total, note)`: figures go into the file and the note.

    `figures` may have bits per byte by the columns' names, and `bytes`: of a pass, or with steps all so far. The file
    is added to, so that a run that goes on has one course.
    """

    def __init__(self, path: Path, tick: Callable[..., None]) -> None:
        self._path = path
        self._tick = tick
        self._begun = time.monotonic()
        self._stage = ""
        self._stage_begun = self._begun
        self._first = 0.0  # `done` when the stage began here
        self._bytes_each = 0.0

    def __call__(
        self, what: str, done: float, total: float | None = None, figures: Mapping[str, float] | None = None
    ) -> None:
        now = time.monotonic()
        if what != self._stage:
            self._stage, self._stage_begun, self._first, self._bytes_each = what, now, done, 0.0
        if figures is None:
            self._tick(what, done, total)
            return
        losses = {name: figures[name] for name in LOSSES if name in figures}
        if "bytes" in figures:
            self._bytes_each = figures["bytes"] / done if not losses else figures["bytes"]
        passed = now - self._stage_begun
        speed = self._bytes_each * (done - self._first) / passed if passed > 0 else 0.0
        if losses:
            self._write({"stage": what, "done": done, "total": total, "bytes_per_second": round(speed)}, losses, now)
        self._tick(what, done, total, note(losses, speed))

    def _write(self, row: dict[str, object], losses: Mapping[str, float], now: float) -> None:
        new = not self._path.exists()
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if new:
                writer.writeheader()
            rounded = {name: round(value, 5) for name, value in losses.items()}
            writer.writerow({"seconds": round(now - self._begun, 1), **row, **rounded})


def note(losses: Mapping[str, float], speed: float) -> str:
    """How it goes, in a few words; "" where there is nothing new to say."""
    if not losses:
        return ""
    words = [f"{losses['bits_per_byte']:.3f} bits/byte"]
    if "bits_per_byte_without" in losses:
        words.append(f"{1 - losses['bits_per_byte'] / losses['bits_per_byte_without']:.1%} saved")
    if "held_back" in losses:
        words.append(f"held back {losses['held_back']:.3f} of {losses['held_back_without']:.3f}")
    if speed:
        words.append(f"{speed / 1000:,.0f} KB/s")
    return ", ".join(words)
