"""How figures grow with records, and where more of them stop paying."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

EXPONENTS: Final = tuple(step / 50 for step in range(2, 101))  # 0.04 to 2
PAYS: Final = 0.01  # a doubling that lowers the figure by less than this share does not pay
MOST: Final = 1 << 40  # records beyond which nothing is foretold
LEAST: Final = 3  # points of a fit


def falling(xs: Sequence[float], ys: Sequence[float]) -> dict[str, Any] | None:
    """y = floor + scale · x^−exponent, least squares, with a floor of at least 0; None for too few points.

    `pays_until`: the x from which on a doubling lowers y by less than 1 %, None where that is not in sight.
    """
    if len(xs) < LEAST:
        return None
    best: tuple[float, float, float, float] | None = None
    y = np.asarray(ys, dtype=np.float64)
    for exponent in EXPONENTS:
        basis = np.asarray(xs, dtype=np.float64) ** -exponent
        floor, scale = _line(basis, y)
        if floor < 0:
            floor, scale = 0.0, float(basis @ y / (basis @ basis))
        error = float(((floor + scale * basis - y) ** 2).sum())
        if best is None or error < best[0]:
            best = error, floor, scale, exponent
    assert best is not None
    error, floor, scale, exponent = best
    found: dict[str, Any] = {"form": "floor + scale * x ** -exponent", "floor": floor, "scale": scale}
    found |= {"exponent": exponent, "r2": _r2(error, y)}
    return {**found, "pays_until": _pays_until(found)}


def _pays_until(fit: dict[str, Any]) -> int | None:
    if fit["scale"] <= 0:
        return 1
    x = 1
    while x < MOST:
        now, doubled = at(fit, x), at(fit, 2 * x)
        if now - doubled < PAYS * now:
            return x
        x = max(x + 1, int(x * 1.1))
    return None


def rising(xs: Sequence[float], ys: Sequence[float]) -> dict[str, Any] | None:
    """y = start + slope · x: times and bytes."""
    if len(xs) < LEAST:
        return None
    y = np.asarray(ys, dtype=np.float64)
    start, slope = _line(np.asarray(xs, dtype=np.float64), y)
    error = float(((start + slope * np.asarray(xs) - y) ** 2).sum())
    return {"form": "start + slope * x", "start": start, "slope": slope, "r2": _r2(error, y)}


def slow(xs: Sequence[float], ys: Sequence[float]) -> dict[str, Any] | None:
    """y = start + slope · log10(x): latencies of what is looked up in a tree."""
    found = rising([math.log10(x) for x in xs], ys)
    return found and {**found, "form": "start + slope * log10(x)"}


def at(fit: dict[str, Any], x: float) -> float:
    """What a fit says at `x`."""
    if "exponent" in fit:
        return float(fit["floor"] + fit["scale"] * x ** -fit["exponent"])
    return float(fit["start"] + fit["slope"] * (math.log10(x) if "log10" in fit["form"] else x))


def _line(x: Any, y: Any) -> tuple[float, float]:
    """Intercept and slope by least squares."""
    spread = x - x.mean()
    square = float(spread @ spread)
    slope = float(spread @ (y - y.mean()) / square) if square else 0.0
    return float(y.mean() - slope * x.mean()), slope


def _r2(error: float, y: Any) -> float | None:
    total = float(((y - y.mean()) ** 2).sum())
    return 1 - error / total if total else None
