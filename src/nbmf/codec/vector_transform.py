"""Learned transforms of vectors: a pack's section `vectors`, how it is learned, and how the coders read it.

    version(1) count(1), then each transform: dim(4) m(4) sides(4)
    mean int32[dim]  scale int32[m]  level int16[m]  rows int8[m, dim]
    with sides: side_scale int32[m]  side_offset int32[m]  side_rows int8[m, sides]

A unit vector is mean + rows.T * (scale * coefficients); coefficient j spreads over 2**(level[j]/8) / sqrt(dim), the
widest first. With sides, what is known beside a vector predicts the coefficients, and the levels are of what is left.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nbmf.codec.vector_reference import Transform
from nbmf.errors import DataError, FormatError

SECTION: Final = "vectors"
VERSION: Final = 1
DIM_LEAST: Final = 8
DIM_MOST: Final = 2048  # of a learned transform, which grows with the square
SIDES_MOST: Final = 4096
LEVEL_LEAST: Final = -48  # coefficients that spread less are left out: no bound that a step can keep needs them
LEVEL_MOST: Final = 100
MEAN_POINT: Final = 1 << 22
SIDE_LENGTH: Final = 1 << 13  # norm that integers beside a vector are scaled to
VECTORS_LEAST: Final = 64
GAIN_LEAST: Final = 0.02  # bits a coefficient, on vectors not learned from, under which no transform is worth its bytes
RIDGES: Final = (0.001, 0.01, 0.1)  # of the mean square of a side's entry, times the vectors: the best of them is taken
ERROR: Final = 0.00998  # of a unit vector's square, at a cosine of 0.995

Doubles = npt.NDArray[np.float64]


# -- the section -------------------------------------------------------------------------------------------------------


def pack_section(transforms: Sequence[Transform]) -> bytes:
    """The section's bytes."""
    out = [bytes([VERSION, len(transforms)])]
    for t in transforms:
        out.append(struct.pack("<3I", t.dim, t.m, t.sides))
        parts: list[tuple[Any, str]] = [(t.mean, "<i4"), (t.scale, "<i4"), (t.level, "<i2"), (t.rows, "i1")]
        if t.sides:
            parts += [(t.side_scale, "<i4"), (t.side_offset, "<i4"), (t.side_rows, "i1")]
        out += [np.ascontiguousarray(values, kind).tobytes() for values, kind in parts]
    return b"".join(out)


def read_section(data: bytes | memoryview) -> list[Transform]:
    """The transforms of a section. Raises FormatError."""
    if len(data) < 2 or data[0] != VERSION:
        raise FormatError("section vectors is of a later version")
    at, found = 2, []
    for _ in range(data[1]):
        if len(data) - at < 12:
            raise FormatError("section vectors is cut short")
        dim, m, sides = struct.unpack_from("<3I", data, at)
        if not (DIM_LEAST <= dim <= DIM_MOST and 0 < m <= dim and sides <= SIDES_MOST):
            raise FormatError("section vectors has a transform of a wrong size")
        at += 12
        shapes: list[tuple[str, tuple[int, ...]]] = [("<i4", (dim,)), ("<i4", (m,)), ("<i2", (m,)), ("i1", (m, dim))]
        if sides:
            shapes += [("<i4", (m,)), ("<i4", (m,)), ("i1", (m, sides))]
        parts = []
        for kind, shape in shapes:
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            if len(data) - at < size:
                raise FormatError("section vectors is cut short")
            parts.append(np.frombuffer(data[at : at + size], kind).reshape(shape).astype(np.int64))
            at += size
        none = np.zeros(m, np.int64)
        mean, scale, level, rows = parts[:4]
        side_scale, side_offset, side_rows = parts[4:] if sides else (none, none, np.zeros((m, 0), np.int64))
        if (
            (np.abs(mean) > MEAN_POINT).any()
            or ((scale < 1) | (scale > MEAN_POINT)).any()
            or (np.abs(level) > LEVEL_MOST).any()
            or (np.diff(level) > 0).any()
            or (np.abs(side_offset) > 1 << 27).any()
        ):
            raise FormatError("section vectors has a transform that is out of range")
        found.append(_complete(mean, rows, scale, level, side_rows, side_scale, side_offset))
    if at != len(data):
        raise FormatError("section vectors has bytes after its end")
    return found


def _complete(*parts: Any) -> Transform:
    """The transform of the section's parts: with the dual of its rows, which an encoder needs.

    The dual is one Newton step from the rows themselves, D = (2 - B B') B, in sums that doubles hold exactly.
    """
    mean, rows, scale, level, side_rows, side_scale, side_offset = parts
    m, dim = rows.shape
    whole = rows.astype(np.float64)
    gram = (whole @ whole.T).astype(np.int64) * scale[:, None] * scale[None, :]  # 2**-44; under 2**55
    step = (2 << 44) * np.eye(m, dtype=np.int64) - gram
    step = (step + (1 << 23)) >> 24  # 2**-20
    dual = step.astype(np.float64) @ (rows * scale[:, None]).astype(np.float64)  # 2**-42
    dual_rows = np.clip((dual.astype(np.int64) + (1 << 26)) >> 27, -32767, 32767)
    offset = np.clip((dual_rows @ mean) >> 13, -(1 << 27), 1 << 27)
    return Transform(
        dim, m, side_rows.shape[1], mean, rows, scale, level, side_rows, side_scale, side_offset, dual_rows, offset
    )


def beside_of(sums: npt.NDArray[np.int64]) -> npt.NDArray[np.int16]:
    """int16[n, s] of exact integer sums [n, s], each row at a norm of SIDE_LENGTH: the same on every machine.

    What stands beside a vector must be so: floats that differ in their last bits would decode to another vector.
    """
    out = np.zeros(sums.shape, np.int16)
    for row, values in zip(out, sums.tolist(), strict=True):
        norm = math.isqrt(sum(v * v for v in values))
        if norm:
            row[:] = [(v * SIDE_LENGTH + norm // 2) // norm for v in values]
    return out


class Prepared:
    """A transform as both kernels take it: `value` for NumPy, `whole` and `dual` (the encoder's) for C."""

    def __init__(self, value: Transform) -> None:
        self.value = value
        self._dp, self._mp, self._sp = (size + 31 & ~31 for size in (value.dim, value.m, value.sides))

    @functools.cached_property
    def whole(self) -> bytes:
        t, m = self.value, self._mp
        head = np.zeros(16, np.int32)
        head[:6] = t.dim, t.m, self._dp, m, t.sides, self._sp
        parts = [
            head,
            _padded(t.mean, np.int32, self._dp),
            *(_padded(values, np.int32, m) for values in (t.scale, t.level, t.side_scale, t.side_offset)),
            _padded(t.rows.T, np.int8, self._dp, m),
            _padded(t.side_rows, np.int8, m, self._sp),
        ]
        return b"".join(part.tobytes() for part in parts)

    @functools.cached_property
    def dual(self) -> bytes:
        t = self.value
        return _padded(t.offset, np.int32, self._mp).tobytes() + _padded(t.dual, np.int16, self._mp, self._dp).tobytes()


def _padded(values: Any, kind: Any, *shape: int) -> npt.NDArray[Any]:
    out = np.zeros(shape, kind)
    out[tuple(slice(0, n) for n in values.shape)] = values
    return out


# -- learning ----------------------------------------------------------------------------------------------------------


def learn(vectors: npt.NDArray[Any], sides: npt.NDArray[Any] | None = None) -> Transform | None:
    """The transform of vectors [n, dim], and of integers [n, s] known beside them. None where it would not pay.

    Zero vectors and those that are not finite are passed over. Raises DataError for shapes that do not agree.
    """
    if vectors.ndim != 2 or (sides is not None and (sides.ndim != 2 or len(sides) != len(vectors))):
        raise DataError("vectors and what is beside them are rows of two arrays, as many in both")
    dim = vectors.shape[1]
    wide = vectors.astype(np.float64)
    with np.errstate(all="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))
        good = np.isfinite(norms) & (norms > 0)
        unit = wide[good] / norms[good, None]
    if len(unit) < VECTORS_LEAST or not DIM_LEAST <= dim <= DIM_MOST:
        return None
    side = None if sides is None else np.asarray(sides[good], np.float64)
    half = np.arange(len(unit)) % 2 == 0
    checked = np.zeros(dim)
    for own in (half, ~half):
        mean, basis, weights, middle = _fit(unit[own], None if side is None else side[own])
        rest = _residual(unit[~own], None if side is None else side[~own], mean, weights, middle) @ basis.T
        checked += (rest * rest).mean(axis=0) / 2
    mean, basis, weights, middle = _fit(unit, side)
    if _bits(checked, dim) > _bits(np.full(dim, 1 / dim), dim) - GAIN_LEAST:
        return None
    level = np.rint(4 * np.log2(np.maximum(checked * dim, 2.0**-24))).astype(np.int64)
    known = np.zeros(dim)  # the variance of what sides tell, which is kept however little they leave
    if side is not None and weights is not None and middle is not None:
        known = np.square((side - middle) @ weights @ basis.T).mean(axis=0)
    order = np.argsort(-level, kind="stable")
    order = order[(level[order] >= LEVEL_LEAST) | (known[order] * dim >= 2.0 ** (LEVEL_LEAST / 4))]
    basis, level = basis[order], np.minimum(level[order], LEVEL_MOST)
    scale = np.ceil(np.abs(basis).max(axis=1) * (MEAN_POINT / 127)).astype(np.int64)
    rows = np.rint(basis * MEAN_POINT / scale[:, None]).astype(np.int64)
    m = len(order)
    side_rows, side_scale, side_offset = np.zeros((m, 0), np.int64), np.zeros(m, np.int64), np.zeros(m, np.int64)
    if weights is not None and middle is not None:
        reach = basis @ weights.T
        side_scale = np.ceil(np.maximum(np.abs(reach).max(axis=1), 1e-12) / 127 * 2.0**44).astype(np.int64)
        side_rows = np.rint(reach * 2.0**44 / side_scale[:, None]).astype(np.int64)
        side_offset = -((side_rows @ np.rint(middle).astype(np.int64)) * side_scale >> 20)
    whole = np.rint(mean * MEAN_POINT).astype(np.int64)
    return _complete(whole, rows, scale, level, side_rows, side_scale, side_offset)


def _bits(variance: Doubles, dim: int) -> float:
    """Bits a coefficient that Gaussians of these variances take at ERROR, by reverse water-filling."""
    low, high = 0.0, float(variance.max())
    for _ in range(60):
        level = (low + high) / 2
        low, high = (level, high) if np.minimum(level, variance).sum() < ERROR else (low, level)
    return float(np.maximum(0, 0.5 * np.log2(np.maximum(variance, 1e-30) / max(high, 1e-30))).sum()) / dim


def _fit(unit: Doubles, side: Doubles | None) -> tuple[Doubles, Doubles, Doubles | None, Doubles | None]:
    """Mean, orthonormal rows by falling variance of what is left, weights of sides [sides, dim], mean of the sides."""
    mean = unit.mean(axis=0)
    weights = middle = None
    if side is not None:
        middle = np.rint(side.mean(axis=0))
        weights = _ridge(side - middle, unit - mean)
    rest = _residual(unit, side, mean, weights, middle)
    n, dim = rest.shape
    covariance = rest.T @ rest / n
    # Few vectors make a covariance that claims too much: draw it to the mean variance.
    blend = dim / (dim + 20.0 * n)
    covariance = (1 - blend) * covariance + blend * np.trace(covariance) / dim * np.eye(dim)
    vectors = np.linalg.eigh(covariance)[1].T[::-1]
    sign = np.sign(vectors[np.arange(dim), np.abs(vectors).argmax(axis=1)])
    return mean, vectors * sign[:, None], weights, middle


def _residual(
    unit: Doubles, side: Doubles | None, mean: Doubles, weights: Doubles | None, middle: Doubles | None
) -> Doubles:
    rest = unit - mean
    return rest if side is None or weights is None or middle is None else rest - (side - middle) @ weights


def _ridge(side: Doubles, goal: Doubles) -> Doubles:
    """Linear map from sides to goals, under the ridge that does best on every fifth vector."""
    kept = np.arange(len(side)) % 5 != 0
    square = float((side * side).mean())

    def solve(s: Doubles, g: Doubles, ridge: float) -> Doubles:
        gram = s.T @ s + ridge * square * len(s) * np.eye(s.shape[1]) + 1e-9 * np.eye(s.shape[1])
        return np.asarray(np.linalg.solve(gram, s.T @ g), np.float64)

    def loss(ridge: float) -> float:
        return float(np.square(goal[~kept] - side[~kept] @ solve(side[kept], goal[kept], ridge)).sum())

    return solve(side, goal, min(RIDGES, key=loss))
