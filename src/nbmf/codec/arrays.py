"""Arrays of floats and their raw bytes.

A one-dimensional float32 array is a vector: 4 little-endian bytes a float. Every other one is an array, whose raw bytes
begin with its shape: float16 (1: 0 or 1), dimensions (1: 1 or 2), the dimensions as LEB128, then the floats.
"""

from __future__ import annotations

import sys
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nbmf.errors import CorruptRecord, UnsupportedValue

VECTOR: Final = 3  # value types
ARRAY: Final = 4

Array = npt.NDArray[Any]


# -- raw bytes ---------------------------------------------------------------------------------------------------------


class Layout(NamedTuple):
    """An array's type and shape. `n` is 1 for a one-dimensional one."""

    half: bool
    many: bool
    n: int
    d: int

    @property
    def value_type(self) -> int:
        return ARRAY if self.half or self.many else VECTOR

    @property
    def size(self) -> int:
        """Bytes of its floats."""
        return self.n * self.d * (2 if self.half else 4)

    @property
    def head(self) -> bytes:
        """What stands before the floats in the raw bytes."""
        if self.value_type == VECTOR:
            return b""
        dims = number(self.n) + number(self.d) if self.many else number(self.d)
        return bytes([self.half, 1 + self.many]) + dims


def layout_of(array: Array) -> Layout:
    """Raises UnsupportedValue unless it is a float32 or float16 array of one dimension or two."""
    if type(array) is not np.ndarray:
        kind = type(array)
        raise UnsupportedValue(f"$: {kind.__module__}.{kind.__qualname__} would come back as numpy.ndarray")
    if array.dtype not in (np.float32, np.float16) or not 1 <= array.ndim <= 2:
        raise UnsupportedValue(
            f"$: arrays of float32 or float16 with one dimension or two are stored, not {array.ndim}-d {array.dtype}"
        )
    many = array.ndim == 2
    return Layout(array.dtype == np.float16, many, array.shape[0] if many else 1, array.shape[-1])


def raw_of(array: Array) -> tuple[int, bytes]:
    """Value type and raw bytes of an array, every bit of it kept. Raises UnsupportedValue."""
    layout = layout_of(array)
    return layout.value_type, layout.head + little(array.tobytes(), layout.half)


def array_of(value_type: int, raw: bytes) -> Array:
    """The array of raw bytes. Raises CorruptRecord."""
    layout, at = layout_of_raw(value_type, raw)
    floats = little(raw[at:] if at else raw, layout.half)
    array = np.frombuffer(floats, np.float16 if layout.half else np.float32).copy()
    return array.reshape(layout.n, layout.d) if layout.many else array


def little(floats: bytes, half: bool) -> bytes:
    """Floats in the machine's byte order as little-endian ones, or back, moved as integers: no NaN is quieted."""
    return (
        floats
        if sys.byteorder == "little"
        else bytes(np.frombuffer(floats, np.uint16 if half else np.uint32).byteswap())
    )


def layout_of_raw(value_type: int, raw: bytes) -> tuple[Layout, int]:
    """The layout that raw bytes state, and where their floats begin. Raises CorruptRecord."""
    if value_type == VECTOR:
        if len(raw) % 4:
            raise CorruptRecord(f"a vector of {len(raw)} bytes is no whole number of floats")
        return Layout(False, False, 1, len(raw) // 4), 0
    if len(raw) < 3 or raw[0] > 1 or raw[1] not in (1, 2):
        raise CorruptRecord("an array's raw bytes have no shape")
    many = raw[1] == 2
    n, at = read_number(raw, 2) if many else (1, 2)
    d, at = read_number(raw, at)
    layout = Layout(bool(raw[0]), many, n, d)
    if len(raw) - at != layout.size:
        raise CorruptRecord(f"an array of {n} x {d} floats in {len(raw) - at} bytes")
    return layout, at


def number(n: int) -> bytes:
    """LEB128."""
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def read_number(data: bytes, at: int) -> tuple[int, int]:
    """A LEB128 of at most five bytes, and the position after it. Raises CorruptRecord."""
    n = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        n |= (byte & 0x7F) << shift
        if byte < 0x80:
            return n, at
    raise CorruptRecord("an array's shape is cut short or too long")
