"""The course of a training run (train/course.py) as a picture."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from nbmf.bench.svg import plot, standalone

LINES: Final = (("bits_per_byte_without", "s0", "without the networks"), ("bits_per_byte", "us", "trained on"))
HELD: Final = (("held_back_without", "s1 dash", "held back, without"), ("held_back", "s1", "held back"))


def draw(log: Path, picture: Path) -> bool:
    """Draws the last stage of a log that has two rows or more, as SVG. Returns whether there is one. Raises OSError."""
    if not log.is_file():
        return False
    with log.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    stages = [stage for stage in dict.fromkeys(row["stage"] for row in rows) if _count(rows, stage) > 1]
    if not stages:
        return False
    picture.write_text(svg([row for row in rows if row["stage"] == stages[-1]]), encoding="utf-8")
    return True


def _count(rows: Sequence[Mapping[str, str]], stage: str) -> int:
    return sum(row["stage"] == stage for row in rows)


def svg(rows: Sequence[Mapping[str, str]]) -> str:
    """Bits per byte of one stage, row by row; a run that was begun anew is drawn from its last beginning."""
    begins = [at for at in range(1, len(rows)) if float(rows[at]["done"]) <= float(rows[at - 1]["done"])]
    rows = rows[begins[-1] if begins else 0 :]
    lines = [(name, cls, label) for name, cls, label in (*LINES, *HELD) if any(row[name] for row in rows)]
    points = {name: [(float(row["done"]), float(row[name])) for row in rows if row[name]] for name, _, _ in lines}
    every = [value for line in points.values() for _, value in line]
    room = 0.1 * (max(every) - min(every)) or 0.1
    last = max(float(row["done"]) for row in rows)
    drawn = plot(f"{rows[0]['stage'].capitalize()}: bits per byte", (0, last), (min(every) - room, max(every) + room))
    drawn.axes("steps" if lines[0][0] != "bits_per_byte" else "passes", "bits per byte")
    for name, cls, _ in lines:
        drawn.path(points[name], cls)
        drawn.dot(*points[name][-1], cls.split()[0], 3)
    drawn.legend([(label, cls.split()[0]) for _, cls, label in lines])
    return standalone(drawn.svg())
