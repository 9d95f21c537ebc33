"""Rows of floats to a stream and back, in NumPy: the definition that kernel_vector.c follows, function by function.

docs/spec/vector.md is the specification. Decoding is integer arithmetic; floats are made at the end, by one conversion
and one scaling, both exact or rounded as IEEE 754 says. The search for a small code uses doubles, one operation at a
time and in a fixed order, so that both kernels write the same stream.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nbmf.codec.vector_coder import (
    INDEX_MOST,
    NEXT,
    Reader,
    Writer,
    get_bits,
    get_index,
    get_points,
    get_symbol,
    put_bits,
    put_index,
    put_points,
    put_symbol,
)
from nbmf.codec.vector_tables import (
    CLASS_LEAST,
    CLASS_MOST,
    FLOAT_BELOW,
    FLOAT_SYMBOLS,
    tables,
)
from nbmf.errors import StreamError

# Modes.
FLOATS: Final = 0  # exact
DIRECTION: Final = 1  # cosine bound, norm kept
LATTICE: Final = 2  # absolute bound

RAW_ROW: Final = 255  # first byte of a row that is written as it is
STEP_MOST: Final = 254
STEP_BITS: Final = 5  # 32 steps an octave
WHITE: Final = 24  # bits of the fixed point of coefficients
POINT: Final = 22  # ... of the coordinates that come of them
EXPONENT_MOST: Final = 100  # of a norm or a step, either way
TRIES: Final = 12  # of the search without a transform
CLOSE: Final = 0.995  # of the allowed error used up: good enough
NOISE: Final = 0.2465  # mean squared error of the trellis, in squared steps
COST_FOLD: Final = 1024  # coefficients after which path costs are brought down
LAPLACE: Final = 0.57  # of (mean |k|)**2 / mean k**2, under which the second family is taken: 0.64 and 0.5 are theirs
UNIT: Final = 2.0**-19  # how far the square of a norm of 1 may be from it
NORM_KEPT: Final = 0.001  # relative, checked on the result
MULTIPLES: Final = 64  # of a row that was decoded once, its smallest float is at most so many steps
WHOLE: Final = 0.125  # how far a number of steps may be from a whole one there
BACK_OFF: Final = 0.002  # of the step, at the first miss of the search; of the n-th, n times as much

# (state, parity) of the two ways into each state.
INTO: Final = (
    ((0, 0), (4, 1)),
    ((0, 1), (4, 0)),
    ((1, 0), (5, 1)),
    ((1, 1), (5, 0)),
    ((2, 1), (6, 0)),
    ((2, 0), (6, 1)),
    ((3, 1), (7, 0)),
    ((3, 0), (7, 1)),
)

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]


class Transform(NamedTuple):
    """A pack's map between unit vectors of `dim` floats and `m` coefficients; see vector_transform.py.

    `mean` int64[dim] (2**-22), `rows` int64[m, dim], `scale` int64[m] (2**-22), `level` int64[m], falling; for the
    encoder `dual` int64[m, dim] (2**-15), `offset` int64[m] (2**-24). `sides` is the length of what is known beside a
    vector, 0 for none: `side_rows` int64[m, sides], `side_scale`, `side_offset` int64[m].
    """

    dim: int
    m: int
    sides: int
    mean: Ints
    rows: Ints
    scale: Ints
    level: Ints
    side_rows: Ints
    side_scale: Ints
    side_offset: Ints
    dual: Ints
    offset: Ints

    def coded(self, step: int) -> int:
        """How many coefficients, from the first, have an index at a step."""
        return int(np.count_nonzero(self.level + (step >> 2) - 8 >= CLASS_LEAST))

    def predicted(self, side: npt.NDArray[np.int16] | None) -> Ints:
        """int64[m], 2**-24: the coefficients that are expected."""
        if not self.sides or side is None:
            return np.zeros(self.m, np.int64)
        return (self.side_rows @ side.astype(np.int64) * self.side_scale >> 20) + self.side_offset


# -- steps, norms, results ---------------------------------------------------------------------------------------------


def step_size(dim: int, step: int) -> int:
    """Of coefficients (2**-24): 2**(-step/32) / sqrt(dim), in integers."""
    octaves, part = divmod(step, 1 << STEP_BITS)
    return (math.isqrt((1 << 2 * WHITE + 16) // dim) * _PARTS[part] >> 24) >> octaves


def _parts() -> list[int]:
    """2**(-i/32) times 2**16, rounded down."""
    out = []
    for i in range(1 << STEP_BITS):
        value = 1 << 16 * (1 << STEP_BITS) - i
        for _ in range(STEP_BITS):
            value = math.isqrt(value)
        out.append(value)
    return out


_PARTS: Final = _parts()
UNIT_NORM: Final = (1 << 16, -16)


def norm_of(x: Doubles) -> float:
    """The norm of a row of doubles, summed in order; NaN or infinite where a value is."""
    with np.errstate(over="ignore", invalid="ignore"):
        return math.sqrt(total) if (total := float(np.cumsum(x * x)[-1])) >= 0 else math.nan


def norm_parts(norm: float) -> tuple[int, int] | None:
    """(M, E): the norm is M * 2**E with M in 2**16...2**17-1. None when it is 0, not finite, or out of reach."""
    if not 0 < norm < math.inf:
        return None
    mantissa, exponent = math.frexp(norm)
    whole = round(mantissa * (1 << 17))
    if whole == 1 << 17:
        whole, exponent = 1 << 16, exponent + 1
    return (whole, exponent - 17) if -EXPONENT_MOST <= exponent <= EXPONENT_MOST else None


def finished(z: Ints, norm: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Coordinates (|z| < 2**23) scaled to a norm: one 32-bit integer and one power of two for each."""
    total = sum(int(v) * int(v) for v in z)
    if not total:
        return np.zeros(len(z), np.float32)
    a = (64 - total.bit_length()) // 2
    root = math.isqrt(total << 2 * a)
    gain = (norm[0] << 46) // root
    shift = 33 - a  # 2...33: every |z| is at most sqrt(total) < 2**(32 - a), so 31 bits are left
    whole = (z * gain + (1 << shift - 1)) >> shift
    return np.ldexp(whole.astype(np.float32), shift - 46 + norm[1] + a).astype(np.float32)


def joined(expected: Ints, points: Ints, size: int) -> Ints:
    """Coefficients: what is expected of each, and of the first ones what their points add."""
    values = expected.copy()
    values[: len(points)] += np.clip(points, -INDEX_MOST, INDEX_MOST) * size
    held: Ints = np.clip(values, 1 - (1 << 27), (1 << 27) - 1)
    return held


def coordinates(t: Transform, values: Ints) -> Ints:
    """Coefficients (2**-24) to coordinates (2**-22), held under 2**23."""
    factor = np.clip((values * t.scale + (1 << 23)) >> 24, -32767, 32767)
    z = t.mean + factor @ t.rows
    z = (z + (1 << 31) & 0xFFFFFFFF) - (1 << 31)  # sums wrap at 32 bits
    held: Ints = np.clip(z, 1 - (1 << 23), (1 << 23) - 1)
    return held


# -- trellis -----------------------------------------------------------------------------------------------------------


def trellis(u: Ints, weight: Ints) -> Ints:
    """Points j (0, 4, 8... of the first set, and so on) nearest to u / 64 along the best path from state 0.

    `weight` is of each squared distance. Ties go to the first way into a state.
    """
    n = len(u)
    points = np.empty((n, 4), np.int64)
    price = np.empty((n, 4), np.int64)
    for j in range(4):
        rest = (u - 64 * j + 128 & 255) - 128
        points[:, j] = (u - rest) >> 6
        price[:, j] = rest * rest * weight
    cost = [0] + [1 << 29] * 7
    chosen = np.empty((n, 8), np.int8)
    for i in range(n):
        paid = price[i].tolist()
        new = [0] * 8
        for state in range(8):
            (a, pa), (b, pb) = INTO[state]
            first, second = cost[a] + paid[(a & 1) + 2 * pa], cost[b] + paid[(b & 1) + 2 * pb]
            chosen[i, state] = second < first
            new[state] = min(first, second)
        cost = new
        if i % COST_FOLD == COST_FOLD - 1:
            least = min(cost)
            cost = [min(c - least, 1 << 29) for c in cost]
    state = cost.index(min(cost))
    out = np.empty(n, np.int64)
    for i in range(n - 1, -1, -1):
        before, parity = INTO[state][int(chosen[i, state])]
        out[i] = points[i, (before & 1) + 2 * parity]
        state = before
    return out


def leaned(y: Doubles, size: float, c: Ints) -> tuple[Ints, Ints]:
    """What the trellis is run on: y in 1/64 steps, drawn towards 0 as narrow spreads ask; and the weights."""
    t = tables()
    at = np.minimum(c, CLASS_MOST) - CLASS_LEAST
    u = np.rint(y * (64 / size) * t.shrink[at])
    return np.clip(u, -64 * INDEX_MOST, 64 * INDEX_MOST).astype(np.int64), t.weight[at]


# -- rows --------------------------------------------------------------------------------------------------------------


class Bounds(NamedTuple):
    """What a row must keep. `cosine` is -1 for no bound; `most` (a lattice's greatest error) 0 where it is not used."""

    cosine: float
    margin: float
    most: float


class Shape(NamedTuple):
    """Of a stream: mode, rows, floats a row, half precision, all norms 1."""

    mode: int
    n: int
    d: int
    half: bool
    unit: bool


Floats = npt.NDArray[Any]  # float32 or float16


def cosine(x: Doubles, norm: float, z: Doubles) -> float:
    """-1 for a row of zeros."""
    square = float(np.cumsum(z * z)[-1])
    return float(np.cumsum(x * z)[-1]) / (norm * math.sqrt(square)) if square > 0 else -1.0


def is_kept(x: Doubles, norm: float, made: Floats, bounds: Bounds) -> bool:
    """Whether a finished row is as near as it must be."""
    back = made.astype(np.float64)
    if not np.isfinite(back).all():
        return False
    if bounds.most and float(np.abs(x - back).max()) > bounds.most:
        return False
    if bounds.cosine < 0:
        return True
    if cosine(x, norm, back) < bounds.cosine + bounds.margin / 2:
        return False
    return bool(bounds.most) or abs(norm_of(back) - norm) <= NORM_KEPT * norm


def _store(values: npt.NDArray[np.float32], half: bool) -> Floats:
    with np.errstate(over="ignore"):
        return values.astype(np.float16) if half else values


class Row(NamedTuple):
    """A coded row: its first bytes, the classes and points of its indices, and what it decodes to."""

    head: tuple[int, ...]
    family: int
    classes: Ints
    points: Ints
    made: Floats


def walked(y: Doubles, size: float) -> Ints | None:
    """Values as points; None unless they lie on a path."""
    whole = np.rint(y / size)
    if not (np.abs(whole) <= INDEX_MOST).all():
        return None
    points: Ints = whole.astype(np.int64)
    state = 0
    for j in points.tolist():
        if (j ^ state) & 1:
            return None
        state = NEXT[state][(j - (state & 1)) >> 1 & 1]
    return points


def is_whole(y: Doubles, size: float) -> bool:
    steps = y / size
    return bool((np.abs(steps - np.rint(steps)) <= WHOLE).all())


def recognized(y: Doubles, row: Floats, parts: tuple[int, int], half: bool) -> Ints | None:
    """The points of a row that was decoded once: they give it back bit by bit."""
    sizes = np.abs(y)
    least = float(sizes[sizes > 0].min(initial=math.inf))
    for k in range(1, MULTIPLES + 1):
        size = least / k
        points = walked(y, size) if is_whole(y, size) else None
        if points is not None and _store(finished(points, parts), half).tobytes() == row.tobytes():
            return points
    return None


def plain_direction(row: Floats, x: Doubles, norm: float, parts: tuple[int, int], bounds: Bounds) -> Row | None:
    """A row under a cosine bound, without a transform: the largest step that a short search finds.

    One that was decoded once is coded as it was then: it is not made any worse.
    """
    d, half = len(x), row.dtype == np.float16
    y = x * (math.sqrt(d) / norm)
    goal = bounds.cosine + bounds.margin
    allowed = 1 - goal * goal
    if not allowed > 0:  # what the cosine and its margin leave is nothing
        return None
    again = recognized(y, row, parts, half)
    size = math.sqrt(allowed / NOISE)
    wide = np.full(d, CLASS_MOST, np.int64)
    best, best_size = again, 0.0
    for turn in range(TRIES if again is None else 0):
        points = trellis(*leaned(y, size, wide))
        near = cosine(x, norm, points.astype(np.float64))
        wrong = 1 - near * near if near > 0 else 1.0
        if near >= goal:
            if size > best_size:
                best, best_size = points, size
            if wrong >= CLOSE * allowed:
                break
        elif turn >= TRIES // 2 and best is not None:
            break
        factor = math.sqrt(allowed / max(wrong, allowed / 16))
        size *= min(factor, 1.5) * (1.0 - BACK_OFF * (turn + 1) if near < goal else 1.0)
        if best is not None and size <= best_size:
            break
    if best is None:
        return None
    made = _store(finished(best, parts), half)
    if again is None and not is_kept(x, norm, made, bounds):
        return None
    family, c = spread(np.abs(best) / 2.0)
    return Row((c - CLASS_LEAST | family << 7,), family, np.full(d, c, np.int64), best, made)


def spread(k: Doubles) -> tuple[int, int]:
    """Family and class that suit sizes of indices; the class at most 114."""
    mean = float(np.cumsum(k)[-1]) / len(k)
    square = float(np.cumsum(k * k)[-1]) / len(k)
    family = 1 if mean * mean < LAPLACE * square else 0
    value = 2 * mean * mean if family else square
    at = int(np.searchsorted(tables().edge, value, side="right"))
    return family, min(at, len(tables().edge) - 2) + CLASS_LEAST


def learned_direction(
    t: Transform,
    side: npt.NDArray[np.int16] | None,
    x: Doubles,
    norm: float,
    parts: tuple[int, int],
    bounds: Bounds,
    half: bool,
) -> Row | None:
    """A row under a cosine bound, by a transform: the coarsest of the steps near the one that is expected to do."""
    u = np.rint(x * (32767 / norm)).astype(np.int64)
    dots = ((t.dual @ u) + (1 << 31) & 0xFFFFFFFF) - (1 << 31)
    expected = t.predicted(side)
    y = ((dots >> 6) - t.offset - expected).astype(np.float64)
    whole = dots / 64.0
    one = float(1 << 2 * WHITE)
    goal = bounds.cosine + bounds.margin
    allowed = (1 - goal * goal) * one
    left = np.concatenate([np.cumsum((y * y)[::-1])[::-1], [0.0]])

    low, high = 0, STEP_MOST
    while low < high:  # the coarsest step whose expected error is allowed
        middle = (low + high) >> 1
        size, n = step_size(t.dim, middle), t.coded(middle)
        if n * NOISE * size * size + left[n] <= allowed:
            high = middle
        else:
            low = middle + 1

    def attempt(step: int) -> Ints | None:
        """The points of a step that is expected to keep the cosine, told among the coefficients."""
        size, n = step_size(t.dim, step), t.coded(step)
        points = trellis(*leaned(y[:n], size, t.level[:n] + (step >> 2) - 8))
        error = y.copy()
        error[:n] -= points * float(size)
        along = float(np.cumsum(error * whole)[-1])
        square = float(np.cumsum(error * error)[-1])
        length = one - 2 * along + square
        kept = length > 0 and one - along >= goal * (math.sqrt(length) * float(1 << WHITE))
        return points if kept else None

    step, points = low, attempt(low)
    while points is not None and step > 0 and (coarser := attempt(step - 1)) is not None:
        step, points = step - 1, coarser
    while True:
        if points is not None:
            z = coordinates(t, joined(expected, points, step_size(t.dim, step)))
            made = _store(finished(z, parts), half)
            if is_kept(x, norm, made, bounds):
                return Row((step,), 0, t.level[: len(points)] + (step >> 2) - 8, points, made)
        if step == STEP_MOST:
            return None
        step += 1
        points = attempt(step)


def lattice(x: Doubles, norm: float, bounds: Bounds, half: bool) -> Row | None:
    """A row under an absolute bound, and under one of the cosine too where that is given."""
    mantissa, exponent = math.frexp(2 * bounds.most)
    whole, exponent = int(mantissa * 512), exponent - 9
    for _ in range(TRIES):
        if not -EXPONENT_MOST <= exponent <= EXPONENT_MOST:
            return None
        k = np.rint(x / math.ldexp(float(whole), exponent))
        if not np.abs(k).max() < 1 << 20:
            return None
        points = k.astype(np.int64)
        made = _store(np.ldexp((points * whole).astype(np.float32), exponent).astype(np.float32), half)
        if is_kept(x, norm, made, bounds):
            family, c = spread(np.abs(k))
            head = (exponent + EXPONENT_MOST, whole - 256, c - CLASS_LEAST | family << 7)
            return Row(head, family, np.full(len(x), c, np.int64), points, made)
        exponent -= 1
    return None


def widened(row: Floats) -> Doubles:
    with np.errstate(invalid="ignore"):  # a NaN that signals, on processors that tell
        return row.astype(np.float64)


def encode(
    values: Floats, mode: int, bounds: Bounds, t: Transform | None, sides: npt.NDArray[np.int16] | None
) -> tuple[bytes, bytes, int, bool]:
    """(stream, what it decodes to as bytes in the machine's order, rows written as they are, whether all norms are 1
    and left out) of rows [n, d].

    `sides` int16[n, t.sides] where `t` predicts.
    """
    unit = mode == DIRECTION
    for row in values:
        square = norm_of(widened(row)) ** 2 if unit else 1.0
        unit = unit and abs(square - 1) <= UNIT
    w = Writer()
    half = values.dtype == np.float16
    out = values.copy()
    as_they_are = 0
    for i, row in enumerate(values):
        x = widened(row)
        norm = norm_of(x)
        parts = UNIT_NORM if unit else norm_parts(norm)
        coded: Row | None = None
        if mode == LATTICE and bool(np.isfinite(x).all()) and norm < math.inf:
            coded = lattice(x, norm, bounds, half)
        elif mode == DIRECTION and parts is not None and norm < math.inf:
            if t is not None:
                coded = learned_direction(t, sides[i] if sides is not None else None, x, norm, parts, bounds, half)
            else:
                coded = plain_direction(row, x, norm, parts, bounds)
        if coded is None:
            as_they_are += 1
            w.raw(RAW_ROW, 8)
            for bits in row.view(np.uint16 if half else np.uint32).tolist():
                put_bits(w, bits, 16 if half else 32)
            continue
        out[i] = coded.made
        for byte in coded.head:
            w.raw(byte, 8)
        if mode == DIRECTION and not unit:
            assert parts is not None
            w.raw(parts[1] + 17 + 128, 8)
            w.raw(parts[0] - (1 << 16), 16)
        if mode == LATTICE:
            for c, k in zip(coded.classes.tolist(), coded.points.tolist(), strict=True):
                put_index(w, coded.family, 0, c, k)
        else:
            put_points(w, coded.family, coded.classes, coded.points)
    return w.finish(), out.tobytes(), as_they_are, unit


def decode(stream: bytes, shape: Shape, t: Transform | None, sides: npt.NDArray[np.int16] | None) -> bytes:
    """The rows as bytes in the machine's order. Raises StreamError."""
    r = Reader(stream)
    out = np.empty((shape.n, shape.d), np.float16 if shape.half else np.float32)
    for i in range(shape.n):
        first = r.raw(8)
        if first == RAW_ROW:
            bits = [get_bits(r, 16 if shape.half else 32) for _ in range(shape.d)]
            out[i] = np.array(bits, np.uint16 if shape.half else np.uint32).view(out.dtype)
            continue
        if shape.mode == LATTICE:
            whole, spread_byte = r.raw(8) + 256, r.raw(8)
            exponent = first - EXPONENT_MOST
            c, family = (spread_byte & 127) + CLASS_LEAST, spread_byte >> 7
            k = np.array([get_index(r, family, 0, c) for _ in range(shape.d)], np.int64)
            k = np.clip(k, -INDEX_MOST, INDEX_MOST)
            out[i] = _store(np.ldexp((k * whole).astype(np.float32), exponent).astype(np.float32), shape.half)
            continue
        norm = UNIT_NORM
        if not shape.unit:
            exponent = r.raw(8) - 128 - 17
            norm = r.raw(16) + (1 << 16), exponent
        if t is None:
            c, family = (first & 127) + CLASS_LEAST, first >> 7
            z = get_points(r, family, np.full(shape.d, c, np.int64))
        else:
            size, n = step_size(shape.d, first), t.coded(first)
            expected = t.predicted(sides[i] if sides is not None else None)
            z = coordinates(t, joined(expected, get_points(r, 0, t.level[:n] + (first >> 2) - 8), size))
        with np.errstate(over="ignore", under="ignore"):
            out[i] = _store(finished(z, norm), shape.half)
    r.end()
    return out.tobytes()


def points_of(stream: bytes, shape: Shape, t: Transform | None) -> tuple[Ints, bytes]:
    """(points [n, m or d], first bytes) of the rows of a direction, no floats made; 0 where a row is as it was."""
    r = Reader(stream)
    out = np.zeros((shape.n, shape.d if t is None else t.m), np.int64)
    firsts = bytearray()
    for i in range(shape.n):
        first = r.raw(8)
        firsts.append(first)
        if first == RAW_ROW:
            for _ in range(shape.d):
                get_bits(r, 16 if shape.half else 32)
            continue
        if not shape.unit:
            get_bits(r, 24)
        if t is None:
            out[i] = get_points(r, first >> 7, np.full(shape.d, (first & 127) + CLASS_LEAST, np.int64))
        else:
            n = t.coded(first)
            out[i, :n] = get_points(r, 0, t.level[:n] + (first >> 2) - 8)
    r.end()
    return out, bytes(firsts)


# -- exact floats ------------------------------------------------------------------------------------------------------


def encode_floats(bits: npt.NDArray[np.uint32], half: bool, zeros: int, family: int, scale: int) -> bytes:
    """Bits of floats whose `zeros` lowest are 0, by a spread whose magnitude is `scale`. See `magnitude`."""
    w = Writer()
    cum = tables().float_cum[family, scale & 7]
    width = 16 if half else 32
    low = (7 if half else 20) - zeros
    for value in bits.tolist():
        size = (value & (1 << width - 1) - 1) >> (low + zeros)
        symbol = scale + FLOAT_BELOW - size
        if 0 <= symbol < FLOAT_SYMBOLS - 1 and cum[symbol + 1] > cum[symbol]:
            put_symbol(w, cum, symbol)
        else:
            put_symbol(w, cum, FLOAT_SYMBOLS - 1)
            w.raw(size, 8 if half else 11)
        w.raw(value >> width - 1, 1)
        put_bits(w, value >> zeros & ((1 << low) - 1), low)
    return w.finish()


def decode_floats(stream: bytes, n: int, half: bool, zeros: int, family: int, scale: int) -> npt.NDArray[np.uint32]:
    """Raises StreamError."""
    r = Reader(stream)
    cum = tables().float_cum[family, scale & 7]
    width = 16 if half else 32
    low = (7 if half else 20) - zeros
    out = np.empty(n, np.uint32)
    for i in range(n):
        symbol = get_symbol(r, cum)
        size = r.raw(8 if half else 11) if symbol == FLOAT_SYMBOLS - 1 else scale + FLOAT_BELOW - symbol
        if size < 0 or size >> (8 if half else 11):
            raise StreamError("the stream does not decode")
        sign = r.raw(1)
        out[i] = (sign << width - 1 | size << (low + zeros) | get_bits(r, low) << zeros) & 0xFFFFFFFF
    r.end()
    return out
