"""Plots as SVG text: axes, points, lines, bars and labels that keep out of each other's way. No dependency, no script.

Colours are classes; `STYLE` gives them to a page, and `standalone` to an image by itself, light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Final

WIDTH: Final = 440
HEIGHT: Final = 300
MARGINS: Final = (16, 14, 44, 46)  # top, right, bottom, left
CHARACTER: Final = 6.6  # width of one at the labels' size
LINE: Final = 13.0
TICKS: Final = 5

LIGHT: Final = {
    "ink": "#1b2430",
    "dim": "#5c6878",
    "line": "#d6dce4",
    "page": "#f6f7f9",
    "card": "#ffffff",
    "us": "#0b7a55",
    "s1": "#b3541e",
    "s2": "#2f62b5",
    "s3": "#7a4fa3",
    "bad": "#b3261e",
    "fill": "#0b7a5526",
}
DARK: Final = {
    "ink": "#e6eaf0",
    "dim": "#9aa7b8",
    "line": "#333d4b",
    "page": "#12161c",
    "card": "#1a2029",
    "us": "#41d69f",
    "s1": "#f0975c",
    "s2": "#86b0f5",
    "s3": "#c39be8",
    "bad": "#ff8a80",
    "fill": "#41d69f2e",
}
STYLE: Final = """
.plot text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:var(--dim)}
.plot .name{fill:var(--ink)}
.plot .grid{stroke:var(--line);stroke-width:1}
.plot .axis{stroke:var(--dim);stroke-width:1}
.plot .us{--c:var(--us)}.plot .s0{--c:var(--dim)}.plot .s1{--c:var(--s1)}.plot .s2{--c:var(--s2)}
.plot .s3{--c:var(--s3)}.plot .bad{--c:var(--bad)}
.plot path,.plot line.c{fill:none;stroke:var(--c);stroke-width:1.8}
.plot .dash{stroke-dasharray:4 3}
.plot circle,.plot rect{fill:var(--c)}
.plot .hollow{fill:var(--card);stroke:var(--c);stroke-width:1.8}
.plot .area{fill:var(--fill);stroke:none}
.plot text.us{fill:var(--us);font-weight:600}.plot text.s1{fill:var(--s1)}.plot text.s2{fill:var(--s2)}
.plot text.s3{fill:var(--s3)}.plot text.bad{fill:var(--bad)}
"""


def variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


@dataclass(frozen=True)
class Scale:
    """Figures to places, on a line or on a logarithmic one."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = (math.log10(max(one, 1e-9)) for one in (low, high, at))
        share = (at - low) / (high - low) if high != low else 0.5
        return self.start + min(max(share, -0.02), 1.02) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round figures, about TICKS of them."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            step = max(1, math.ceil((last - first + 1) / 7))
            return [10.0**power for power in range(first, last + 1, step)]
        raw = (self.high - self.low) / TICKS
        if raw <= 0:
            return [self.low]
        unit = 10 ** math.floor(math.log10(raw))
        step = next(unit * one for one in (1, 2, 2.5, 5, 10) if unit * one >= raw - 1e-12)
        first = math.ceil(self.low / step - 1e-9)
        return [count * step for count in range(first, math.floor(self.high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's label: 1,000,000 is 1M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:.6g}"


def log_range(values: Sequence[float]) -> tuple[float, float]:
    """Powers of ten around positive figures."""
    found = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    return 10.0**low, 10.0 ** max(high, low + 1)


@dataclass
class Plot:
    """A plot being drawn. `x` and `y` are set before anything is put into it."""

    title: str
    x: Scale
    y: Scale
    width: int = WIDTH
    height: int = HEIGHT
    parts: list[str] = field(default_factory=list)
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)  # left, top, right, bottom

    def add(self, part: str) -> None:
        self.parts.append(part)

    def text(self, x: float, y: float, text: str, cls: str = "", anchor: str = "start") -> None:
        wide = CHARACTER * len(text)
        left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
        self.taken.append((left, y - LINE + 3, left + wide, y + 3))
        where = "" if anchor == "start" else f' text-anchor="{anchor}"'
        of = f' class="{cls}"' if cls else ""
        self.add(f'<text x="{x:.1f}" y="{y:.1f}"{where}{of}>{escape(text)}</text>')

    def axes(self, x_name: str, y_name: str, x_ticks: bool = True, y_ticks: bool = True) -> None:
        """Lines, ticks and the names of both axes."""
        left, right, top, bottom = self.x.start, self.x.end, self.y.end, self.y.start
        if y_ticks:
            for tick in self.y.ticks():
                at = self.y(tick)
                self.add(f'<line class="grid" x1="{left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
                self.text(left - 5, at + 4, number(tick), anchor="end")
        if x_ticks:
            for tick in self.x.ticks():
                at = self.x(tick)
                self.add(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>')
                self.text(at, bottom + 15, number(tick), anchor="middle")
        self.add(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        self.text((left + right) / 2, bottom + 33, x_name, anchor="middle")
        if y_name:
            self.text(4, top - 5, y_name)

    def path(self, points: Sequence[tuple[float, float]], cls: str) -> None:
        """A line through points, in figures."""
        places = " L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        self.add(f'<path class="{cls}" d="M{places}"/>')

    def avoid(self, points: Sequence[tuple[float, float]]) -> None:
        """Keeps labels off a line that runs across and down."""
        places = [(self.x(x), self.y(y)) for x, y in points]
        for (a, b), (c, d) in pairwise(places):
            self.taken.append((min(a, c) - 1.5, min(b, d) - 1.5, max(a, c) + 1.5, max(b, d) + 1.5))

    def dot(self, x: float, y: float, cls: str, radius: float = 4.5) -> None:
        across, down = self.x(x), self.y(y)
        self.taken.append((across - radius, down - radius, across + radius, down + radius))
        self.add(f'<circle class="{cls}" cx="{across:.1f}" cy="{down:.1f}" r="{radius}"/>')

    def label(self, x: float, y: float, text: str, cls: str = "name") -> None:
        """A label beside a point, where it overlaps least and stays inside."""
        across, down, wide = self.x(x), self.y(y), CHARACTER * len(text)
        places = [
            (across + 8, down + 4, "start"),
            (across - 8, down + 4, "end"),
            (across, down - 9, "middle"),
            (across, down + 17, "middle"),
            (across + 7, down - 8, "start"),
            (across + 7, down + 15, "start"),
            (across - 7, down - 8, "end"),
            (across - 7, down + 15, "end"),
        ]
        # Further off where points crowd, each line of distance at a price.
        for lines in (1, 2, 3, 4):
            for side, anchor in ((10, "start"), (-10, "end")):
                places += [(across + side, down + 4 + way * lines * LINE, anchor) for way in (-1, 1)]

        def cost(place: tuple[float, float, str]) -> float:
            at, bottom, anchor = place
            left = at - {"start": 0.0, "middle": wide / 2, "end": wide}[anchor]
            box = (left, bottom - LINE + 3, left + wide, bottom + 3)
            outside = max(0.0, self.x.start - box[0]) + max(0.0, box[2] - self.width + 2)
            outside += max(0.0, self.y.end - 12 - box[1]) + max(0.0, box[3] - self.y.start)
            far = max(0.0, abs(bottom - down) - 1.5 * LINE)
            return far + 20 * outside + sum(_shared(box, other) for other in self.taken)

        self.text(*(best := min(places, key=cost))[:2], text, cls, best[2])

    def legend(self, names: Sequence[tuple[str, str]], right: bool = True) -> None:
        """Names in the colours of their classes, in a corner at the top."""
        top = self.y.end + 10
        for row, (name, cls) in enumerate(names):
            at = self.x.end - 2 if right else self.x.start + 8
            self.text(at, top + row * (LINE + 2), name, cls, "end" if right else "start")

    def svg(self) -> str:
        """The plot as an element of a page."""
        return (
            f'<svg class="plot" role="img" aria-label="{escape(self.title)}" viewBox="0 0 {self.width} {self.height}" '
            f'xmlns="http://www.w3.org/2000/svg"><title>{escape(self.title)}</title>{"".join(self.parts)}</svg>'
        )


def _shared(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Area that two boxes share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def plot(
    title: str,
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    log_x: bool = False,
    log_y: bool = False,
    height: int = HEIGHT,
    left: int = MARGINS[3],
) -> Plot:
    """An empty plot whose axes reach over these ranges."""
    top, right, bottom, _ = MARGINS
    return Plot(
        title,
        Scale(*x, left, WIDTH - right, log_x),
        Scale(*y, height - bottom, top, log_y),
        height=height,
    )


def standalone(svg: str) -> str:
    """The same plot as a file by itself: it follows the reader's light or dark."""
    style = (
        f"<style>svg{{{variables(LIGHT)}}}@media (prefers-color-scheme:dark){{svg{{{variables(DARK)}}}}}"
        f".back{{fill:var(--card)!important}}{STYLE}</style>"
    )
    head, rest = svg.split(">", 1)
    return f'{head}>{style}<rect class="back" width="100%" height="100%" rx="6"/>{rest}\n'
