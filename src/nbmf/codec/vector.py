"""Arrays of floats: payloads of the array methods, exact or within a bound. docs/spec/vector.md is the specification.

    form(1) [shape] stream                   within a bound
    form(1) [shape] coder(1) ...             exact

| form bits | meaning                                                                       |
|-----------|-------------------------------------------------------------------------------|
| 0-1       | mode: 0 exact, 1 direction (a cosine bound), 2 lattice (an absolute bound)     |
| 2         | float16                                                                       |
| 3         | two-dimensional                                                               |
| 4         | no shape: one vector of as many floats as the pack's first transform          |
| 5         | predicted from what is known beside it                                        |
| 6         | all norms are 1                                                               |
| 7         | 0                                                                             |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from nbmf.codec import format, kernel
from nbmf.codec import vector_reference as reference
from nbmf.codec.arrays import ARRAY, Array, Layout, layout_of, layout_of_raw, little, number, read_number
from nbmf.codec.bounds import DEFAULT, Bound
from nbmf.codec.vector_reference import DIRECTION, FLOATS, LATTICE, Bounds, Shape, Transform
from nbmf.codec.vector_tables import tables
from nbmf.codec.vector_transform import Prepared
from nbmf.errors import CorruptRecord, FormatError, OutputLimit, PolicyError, StreamError, UnsupportedValue

DIM_MOST: Final = 1 << 16  # floats of a row that is coded within a bound; longer ones are exact
EXACT_LEAST: Final = 64  # floats from which on the exact coder is tried
MARGIN: Final = 1e-6  # by which a cosine is kept over its bound, so that sums in single precision agree
SAMPLE: Final = 32  # floats
SMALL: Final = 4  # raw bytes a coded byte, under which the exact form is tried too

_RAW, _ZSTD, _FLOATS = 0, 1, 2  # exact coders
_HALF, _MANY, _SHORT, _BESIDE, _UNIT = 4, 8, 16, 32, 64

Beside = npt.NDArray[np.int16]


def _bounds(bound: Bound) -> Bounds:
    """As the coder takes it."""
    cosine = -1.0 if bound.cosine is None else float(bound.cosine)
    return Bounds(cosine, min(MARGIN, (1 - cosine) / 16), 0.0 if bound.max_error is None else float(bound.max_error))


class Coded(NamedTuple):
    """A payload, whether it needs the pack, and the raw bytes that it decodes to."""

    payload: bytes
    packed: bool
    raw: bytes


# -- kernels -----------------------------------------------------------------------------------------------------------


class _Kernel(Protocol):
    def encode(
        self, rows: Array, mode: int, bounds: Bounds, t: Prepared | None, beside: Beside | None
    ) -> tuple[bytes, bytes, int, bool]: ...
    def decode(self, stream: bytes, shape: Shape, t: Prepared | None, beside: Beside | None) -> bytes: ...
    def points(self, stream: bytes, shape: Shape, t: Prepared) -> tuple[Array, bytes]: ...
    def encode_floats(self, bits: Array, half: bool, zeros: int, family: int, scale: int) -> bytes: ...
    def decode_floats(self, stream: bytes, n: int, half: bool, zeros: int, family: int, scale: int) -> Array: ...


class _Reference:
    """The NumPy kernel."""

    def encode(
        self, rows: Array, mode: int, bounds: Bounds, t: Prepared | None, beside: Beside | None
    ) -> tuple[bytes, bytes, int, bool]:
        return reference.encode(rows, mode, bounds, t.value if t else None, beside)

    def decode(self, stream: bytes, shape: Shape, t: Prepared | None, beside: Beside | None) -> bytes:
        return reference.decode(stream, shape, t.value if t else None, beside)

    def points(self, stream: bytes, shape: Shape, t: Prepared) -> tuple[Array, bytes]:
        return reference.points_of(stream, shape, t.value)

    encode_floats = staticmethod(reference.encode_floats)
    decode_floats = staticmethod(reference.decode_floats)


class _C:
    """The C kernel: the same bytes."""

    def __init__(self) -> None:
        from nbmf.codec import _kernel

        self._kernel = _kernel
        self._tables = tables().packed

    def encode(
        self, rows: Array, mode: int, bounds: Bounds, t: Prepared | None, beside: Beside | None
    ) -> tuple[bytes, bytes, int, bool]:
        whole, dual = (t.whole, t.dual) if t else (None, None)
        n, d = rows.shape
        return self._kernel.vector_encode(
            self._tables, whole, dual, beside, rows, mode, rows.dtype == np.float16, n, d, *bounds
        )

    def decode(self, stream: bytes, shape: Shape, t: Prepared | None, beside: Beside | None) -> bytes:
        whole = t.whole if t else None
        return self._kernel.vector_decode(
            self._tables, whole, beside, stream, shape.mode, shape.half, shape.unit, shape.n, shape.d
        )

    def points(self, stream: bytes, shape: Shape, t: Prepared) -> tuple[Array, bytes]:
        made, first = self._kernel.vector_points(
            self._tables, t.whole, None, stream, shape.half, shape.unit, shape.n, shape.d
        )
        return np.frombuffer(made, np.int32).reshape(shape.n, t.value.m).astype(np.int64), first

    def encode_floats(self, bits: Array, half: bool, zeros: int, family: int, scale: int) -> bytes:
        return self._kernel.floats_encode(self._tables, bits, half, zeros, family, scale)

    def decode_floats(self, stream: bytes, n: int, half: bool, zeros: int, family: int, scale: int) -> Array:
        return np.frombuffer(self._kernel.floats_decode(self._tables, stream, n, half, zeros, family, scale), np.uint32)


_chosen: list[_Kernel] = []


def _kernel() -> _Kernel:
    if not _chosen:
        _chosen.append(_C() if kernel.backend == "c" else _Reference())
    return _chosen[0]


# -- encoding ----------------------------------------------------------------------------------------------------------


def find(transforms: Sequence[Prepared], d: int, beside: Beside | None) -> Prepared | None:
    """The transform for vectors of `d` floats, with something known beside them or without."""
    sides = 0 if beside is None else beside.shape[-1]
    return next((one for one in transforms if one.value.dim == d and one.value.sides == sides), None)


def _sides(beside: Any, layout: Layout) -> Beside:
    """int16[n, s]. Raises UnsupportedValue."""
    array = np.asarray(beside)
    if array.dtype != np.int16 or array.ndim != 1 + layout.many or (layout.many and len(array) != layout.n):
        raise UnsupportedValue("what is beside vectors is an int16 array, with a row for each of them")
    return np.ascontiguousarray(array.reshape(layout.n, -1))


def encode_bounded(array: Array, bound: Bound, transforms: Sequence[Prepared] = (), beside: Any = None) -> Coded | None:
    """The payload of an array within a bound, measured on what it decodes to; None where it is to be kept exactly.

    Of a two-dimensional array every row keeps the bound; a row that cannot (it holds a NaN, or is all zeros) is written
    as it is. `beside` int16[s] or [n, s] is what writer and reader both know: it is used where the pack learned to.
    """
    layout = layout_of(array)
    if bound.exact or not layout.n or not 0 < layout.d <= DIM_MOST:
        return None
    rows = np.ascontiguousarray(array).reshape(layout.n, layout.d)
    mode = DIRECTION if bound.max_error is None else LATTICE
    sides = _sides(beside, layout) if beside is not None and mode == DIRECTION else None
    prepared = None
    if mode == DIRECTION and transforms:
        prepared = find(transforms, layout.d, sides)
        if prepared is None and sides is not None:
            prepared = find(transforms, layout.d, None)
    if prepared is None or not prepared.value.sides:
        sides = None
    short = prepared is not None and not layout.many and layout.d == transforms[0].value.dim
    form = mode | _HALF * layout.half | _MANY * layout.many | _SHORT * short
    stream, made, as_they_are, unit = _kernel().encode(rows, mode, _bounds(bound), prepared, sides)
    form |= _BESIDE * (sides is not None) | _UNIT * unit
    if as_they_are == layout.n:
        return None
    head = bytes([form]) if short else bytes([form]) + _shape_bytes(layout)
    return Coded(head + stream, prepared is not None, layout.head + little(made, layout.half))


def _shape_bytes(layout: Layout) -> bytes:
    return number(layout.n) + number(layout.d) if layout.many else number(layout.d)


def repeats(array: Array) -> bool:
    """Whether its first floats are so few different ones that the exact form may be the smaller."""
    first = array.ravel()[:SAMPLE].tolist()
    return len(set(first)) < len(first) / 2


def encode_exact(value_type: int, raw: bytes) -> bytes | None:
    """The exact payload of an array's raw bytes; of a vector None, where a plain blob is no larger."""
    layout, at = layout_of_raw(value_type, raw)
    floats = raw[at:]
    form = bytes([FLOATS | _HALF * layout.half | _MANY * layout.many]) + _shape_bytes(layout)
    best = form + bytes([_RAW]) + floats if value_type == ARRAY else None
    if layout.n * layout.d >= EXACT_LEAST:
        coded = form + bytes([_FLOATS]) + _floats(floats, layout)
        if best is None or len(coded) < len(best):
            best = coded
    if value_type == ARRAY and floats:
        frame = form + bytes([_ZSTD]) + format.zstd_compress(floats)
        if best is None or len(frame) < len(best):
            best = frame
    return best


def _floats(data: bytes, layout: Layout) -> bytes:
    """Zeros and family (1), magnitude of the spread (2), stream: the smallest of four."""
    half = layout.half
    bits = np.frombuffer(data, "<u2" if half else "<u4").astype(np.uint32)
    width, low = (16, 7) if half else (32, 20)
    some = int(np.bitwise_or.reduce(bits))
    zeros = min((some & -some).bit_length() - 1, low) if some else low
    size = (bits & np.uint32((1 << width - 1) - 1)) >> np.uint32(low)
    finite = size[size < (31 << 3 if half else 255 << 3)]
    scales = {0}
    if len(finite):
        # The spread by the middle magnitude, which outliers do not move; half of a Gaussian lies under 0.67 of it.
        middle = int(np.partition(finite, len(finite) // 2)[len(finite) // 2])
        scales = {min(middle + more, (1 << 11) - 1) for more in (4, 8)}
    found = [
        bytes([zeros | family << 5])
        + scale.to_bytes(2, "little")
        + _kernel().encode_floats(bits, half, zeros, family, scale)
        for family in (0, 1)
        for scale in sorted(scales)
    ]
    return min(found, key=len)


# -- decoding ----------------------------------------------------------------------------------------------------------


def decode(
    payload: bytes,
    value_type: int,
    transforms: Sequence[Prepared] | None,
    max_out: int,
    beside: Any = None,
) -> bytes:
    """The raw bytes of a payload of the array methods; `transforms` are the pack's, None for the method without.

    Raises FormatError, CorruptRecord, OutputLimit, and PolicyError where `beside` is needed and not given.
    """
    if not payload:
        raise CorruptRecord("an array without a form")
    form = payload[0]
    mode, half, many = form & 3, bool(form & _HALF), bool(form & _MANY)
    if form & 0x80 or mode == 3:
        raise FormatError(f"form byte {form:#04x}: an array of a later version")
    known = transforms if transforms is not None else ()
    if transforms is not None and (mode != DIRECTION or not known):
        raise FormatError(
            f"form byte {form:#04x}: only a direction has to do with a pack, and one that learned vectors"
        )
    if (form & (_SHORT | _BESIDE) and transforms is None) or (form & _UNIT and mode != DIRECTION):
        raise FormatError(f"form byte {form:#04x}: bits that do not belong together")
    at = 1
    if form & _SHORT:
        if many:
            raise FormatError(f"form byte {form:#04x}: bits that do not belong together")
        n, d = 1, known[0].value.dim
    else:
        n, at = read_number(payload, at) if many else (1, at)
        d, at = read_number(payload, at)
    layout = Layout(half, many, n, d)
    if layout.value_type != value_type:
        raise FormatError(f"form byte {form:#04x} in a blob of another value type")
    if layout.size > max_out:
        raise OutputLimit(f"the value is larger than {max_out} bytes")
    if mode == FLOATS:
        return layout.head + _exact(payload[at:], layout, max_out)
    if not n or not 0 < d <= DIM_MOST:
        raise CorruptRecord(f"an array of {n} x {d} floats within a bound")
    sides = None
    if form & _BESIDE:
        if beside is None:
            raise PolicyError("the vector was predicted from what stands beside it, which is needed to read it")
        sides = _sides(beside, layout)
    prepared = None
    if transforms is not None:
        prepared = find(known, d, sides)
        if prepared is None:
            raise CorruptRecord(f"the pack has no transform for vectors of {d} floats")
    # Every row takes a byte at least, unless it is one of few left in the coder.
    if n > 8 * (len(payload) - at) + 64:
        raise CorruptRecord("an array of more rows than its stream can hold")
    try:
        made = _kernel().decode(payload[at:], Shape(mode, n, d, half, bool(form & _UNIT)), prepared, sides)
    except StreamError as error:
        raise CorruptRecord(str(error)) from None
    return layout.head + little(made, half)


def points_of(payload: bytes, transforms: Sequence[Prepared]) -> tuple[Array, int, Transform] | None:
    """The indices (int64), the step and the transform of one vector's payload of the method with the pack.

    None where its floats alone tell: it was predicted, or is written as it is. Raises FormatError, CorruptRecord.
    """
    if not payload or payload[0] & 3 != DIRECTION or payload[0] & (_MANY | 0x80):
        raise FormatError("not a vector coded with a pack")
    form = payload[0]
    if form & _BESIDE:
        return None
    d, at = (transforms[0].value.dim, 1) if form & _SHORT and transforms else read_number(payload, 1)
    prepared = find(transforms, d, None)
    if prepared is None:
        raise CorruptRecord(f"the pack has no transform for vectors of {d} floats")
    shape = Shape(DIRECTION, 1, d, bool(form & _HALF), bool(form & _UNIT))
    try:
        points, first = _kernel().points(payload[at:], shape, prepared)
    except StreamError as error:
        raise CorruptRecord(str(error)) from None
    return None if first[0] == reference.RAW_ROW else (points[0], first[0], prepared.value)


def _exact(data: bytes, layout: Layout, max_out: int) -> bytes:
    """The floats of an exact payload, little-endian."""
    if not data or data[0] > _FLOATS:
        raise FormatError("an exact array of a later version")
    coder, rest = data[0], data[1:]
    if coder == _RAW:
        floats = rest
    elif coder == _ZSTD:
        floats = format.zstd_decompress(rest, max_out)
    else:
        if len(rest) < 3:
            raise CorruptRecord("an exact array is cut short")
        zeros, family, scale = rest[0] & 31, rest[0] >> 5, int.from_bytes(rest[1:3], "little")
        if family > 1 or scale >> 11 or zeros > (7 if layout.half else 20):
            raise CorruptRecord("an exact array's parameters are out of range")
        count = layout.n * layout.d
        if count > 4 * len(rest) + 64:
            raise CorruptRecord("an array of more floats than its stream can hold")
        try:
            bits = _kernel().decode_floats(rest[3:], count, layout.half, zeros, family, scale)
        except StreamError as error:
            raise CorruptRecord(str(error)) from None
        floats = bits.astype("<u2" if layout.half else "<u4").tobytes()
    if len(floats) != layout.size:
        raise CorruptRecord(f"an array of {layout.n} x {layout.d} floats in {len(floats)} bytes")
    return bytes(floats)


__all__ = ["DEFAULT", "Bound", "Coded", "decode", "encode_bounded", "encode_exact", "points_of"]
