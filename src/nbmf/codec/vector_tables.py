"""The static integer tables of vectors, made by integer arithmetic alone. docs/spec/vector.md, Tables.

An index k is coded by the class c of its spread, 2**(c/8) in units of k: a row of cumulated frequencies out of 32,768.
"""

from __future__ import annotations

import functools
from math import isqrt
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

FAMILIES: Final = ("gaussian", "laplace")
CLASS_LEAST: Final = -12  # spreads under 2**(-12/8) are not coded: every index is 0
CLASS_MOST: Final = 24  # of a wider one the low bits are coded as they are
CLASSES: Final = CLASS_MOST - CLASS_LEAST + 1
HALF: Final = 48  # indices -48...47 have a symbol, all others are written out after the escape
SYMBOLS: Final = 2 * HALF + 1
TOTAL_BITS: Final = 15
START_BITS: Final = 8  # of the 15, by which a decoder finds its first guess of a symbol

FLOAT_BELOW: Final = 24  # eighths of an octave over the spread that have a symbol
FLOAT_SYMBOLS: Final = 122  # magnitudes from 3 octaves over the spread to 12 under it, and the escape

SHRINK: Final = 3  # in 1/80 of a squared spread: how far the search leans towards small indices

_ONE: Final = 1 << 30
_STEPS: Final = 64  # grid points of a tail for each unit
_REACH: Final = 8  # units that a tail is tabled for; beyond it is 0
_FINE: Final = 96  # bits of the fixed point that tails are computed in


class Tables(NamedTuple):
    """`cum` uint16[family, q, class, SYMBOLS + 1], `start` uint8[family, q, class, 256], of indices; `float_cum`
    uint16[family, 8, FLOAT_SYMBOLS + 1], of magnitudes. `shrink` float64[CLASSES] and `weight` int64[CLASSES] lead the
    search; `edge` float64[128]: a spread whose square is under edge[i] is of class i - 12, or of a smaller one.
    """

    cum: npt.NDArray[np.uint16]
    start: npt.NDArray[np.uint8]
    float_cum: npt.NDArray[np.uint16]
    shrink: npt.NDArray[np.float64]
    weight: Ints
    edge: npt.NDArray[np.float64]
    packed: bytes  # all of it as the C kernel reads it


def power(eighths: int, bits: int) -> int:
    """2**(eighths / 8) times 2**bits, rounded down."""
    return isqrt(isqrt(isqrt(1 << (8 * bits + eighths))))


def _gaussian_tail() -> list[int]:
    """(1 - Phi(i/64)) * 2**30: 1/2 - phi(x) * sum of x**(2n+1) / (1*3*...*(2n+1)), with phi(x) by repeated halving."""
    unit = 1 << _FINE
    tail = []
    # pi by Machin's formula
    pi = 4 * (4 * _arctan_inverse(5, unit) - _arctan_inverse(239, unit))
    root = isqrt(2 * pi << _FINE)  # sqrt(2 pi)
    for i in range(_REACH * _STEPS + 1):
        x = (i << _FINE) // _STEPS
        square = x * x >> _FINE
        term = total = x
        n = 1
        while term:
            n += 2
            term = (term * square >> _FINE) // n
            total += term
        density = (_exp_minus(square >> 1, unit) << _FINE) // root
        inside = total * density >> _FINE
        tail.append(((unit >> 1) - inside + (1 << _FINE - 31)) >> _FINE - 30)
    return tail


def _laplace_tail() -> list[int]:
    """exp(-sqrt(2) i/64) / 2 * 2**30."""
    unit = 1 << _FINE
    ratio = _exp_minus(isqrt(2 << 2 * _FINE) // _STEPS, unit)
    value, tail = unit >> 1, []
    for _ in range(_REACH * _STEPS + 1):
        tail.append((value + (1 << _FINE - 31)) >> _FINE - 30)
        value = value * ratio >> _FINE
    return tail


def _arctan_inverse(n: int, unit: int) -> int:
    term = unit // n
    total, k = term, 1
    while term:
        term //= -n * n
        k += 2
        total += term // k
    return total


def _exp_minus(x: int, unit: int) -> int:
    """exp(-x), x >= 0, both in units of `unit`."""
    bits = unit.bit_length() - 1
    halvings = max(0, x.bit_length() - bits + 8)
    small = x >> halvings
    term = total = unit
    n = 0
    while term:
        n += 1
        term = (term * small >> bits) // n
        total += term if n % 2 == 0 else -term
    for _ in range(halvings):
        total = total * total >> bits
    return total


def _tail(grid: Ints, x: Ints) -> Ints:
    """The mass above x (1/4096 of a grid step), of 2**30: linear between the grid's points."""
    place = np.abs(x)
    at = np.minimum(place >> 12, len(grid) - 2)
    rest = np.minimum(place - (at << 12), 4096)
    above = grid[at] - ((grid[at] - grid[at + 1]) * rest >> 12)
    found: Ints = np.where(x < 0, _ONE - above, above)
    return found


def _frequencies(mass: Ints) -> Ints:
    """Masses of 2**30 (rows) as frequencies of 2**15 with the escape last, which gets at least 4."""
    counts = (mass + (1 << 14)) >> 15
    escape = np.maximum(4, (1 << TOTAL_BITS) - counts.sum(axis=-1))
    counts = np.concatenate([counts, escape[..., None]], axis=-1)
    over = counts.sum(axis=-1) - (1 << TOTAL_BITS)
    biggest = counts.argmax(axis=-1)
    np.put_along_axis(
        counts,
        biggest[..., None],
        np.take_along_axis(counts, biggest[..., None], axis=-1) - over[..., None],
        axis=-1,
    )
    return counts


def _cumulated(counts: Ints) -> npt.NDArray[np.uint16]:
    zero = np.zeros((*counts.shape[:-1], 1), np.int64)
    return np.concatenate([zero, counts.cumsum(axis=-1)], axis=-1).astype(np.uint16)


@functools.cache
def tables() -> Tables:
    """The tables, made once a process."""
    tails = [np.array(make(), np.int64) for make in (_gaussian_tail, _laplace_tail)]
    classes = range(CLASS_LEAST, CLASS_MOST + 1)
    # Grid steps of 1/4096 for half an index: 64 * 4096 / 2 over the spread.
    narrow = np.array([power(-c + 64, 17 - 8) for c in classes], np.int64)
    halves = np.arange(2 * HALF + 1, dtype=np.int64)[None, :] * 2 - 2 * HALF
    cum = np.stack(
        [
            np.stack(
                [
                    _cumulated(_frequencies(-np.diff(_tail(grid, (halves - 1 + q) * narrow[:, None]), axis=-1)))
                    for q in (0, 1)
                ]
            )
            for grid in tails
        ]
    )
    first = np.arange(1 << START_BITS) << TOTAL_BITS - START_BITS
    rows = cum.reshape(-1, SYMBOLS + 1)
    start = np.stack([np.searchsorted(row[1:], first, side="right") for row in rows]).astype(np.uint8)
    float_cum = np.stack([np.stack([_float_row(grid, phase) for phase in range(8)]) for grid in tails])
    spread = np.array([power(2 * c + 96, 20 - 12) for c in classes], np.float64) / (1 << 20)  # squared, 2**(c/4)
    lean = SHRINK / 80 / spread
    edge = np.array([power(2 * i + 1 + 48, 20 - 6) for i in range(128)], np.float64) / (1 << 26) * (1 << 3)
    made = (
        cum,
        start.reshape(*cum.shape[:-1], 1 << START_BITS),
        float_cum,
        1 / (1 + lean),
        np.rint(16 * (1 + lean)).astype(np.int64),
        edge,
    )
    return Tables(*made, packed=_packed(*made))


def _float_row(grid: Ints, phase: int) -> npt.NDArray[np.uint16]:
    """Symbols 0... of magnitudes downwards: the spread itself lies at eighth `phase` of its octave, symbol 24."""
    # Borders of the eighths of octaves +3...-12, in 1/4096 grid steps, when the spread is 1.
    borders = []
    for at in range(FLOAT_BELOW, FLOAT_BELOW - FLOAT_SYMBOLS, -1):
        octave, eighth = divmod(phase + at, 8)
        value = ((8 + eighth) * _STEPS * 4096 << 20) // (8 + phase)
        borders.append(value >> (20 - octave) if octave <= 20 else value << (octave - 20))
    upper = np.array([_double(borders, phase), *borders[:-1]], np.int64)
    mass = 2 * (_tail(grid, np.array(borders, np.int64)) - _tail(grid, upper))
    return _cumulated(_frequencies(mass[:-1]))


def _double(borders: list[int], phase: int) -> int:
    """The border above the first symbol's."""
    octave, eighth = divmod(phase + FLOAT_BELOW + 1, 8)
    return ((8 + eighth) * _STEPS * 4096 << octave) // (8 + phase)


def _packed(*parts: npt.NDArray[Any]) -> bytes:
    """The arrays end to end in the machine's own byte order, each at a multiple of 64 bytes."""
    out = b""
    for part in parts:
        native = np.ascontiguousarray(part, dtype=part.dtype.newbyteorder("="))
        out += native.tobytes()
        out += bytes(-len(out) % 64)
    return out
