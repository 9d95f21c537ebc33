"""The range coder of arrays, their indices and points, in NumPy: the lowest layer of vector_reference.py."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nbmf.codec.vector_tables import CLASS_LEAST, CLASS_MOST, HALF, SYMBOLS, TOTAL_BITS, tables
from nbmf.errors import StreamError

INDEX_MOST: Final = 1 << 20
SPENT_MOST: Final = 4  # zero bytes that a stream may need past its end
NEXT: Final = ((0, 1), (2, 3), (5, 4), (7, 6), (1, 0), (3, 2), (4, 5), (6, 7))  # state, parity of k -> state

Ints = npt.NDArray[np.int64]


# -- range coder -------------------------------------------------------------------------------------------------------


class Writer:
    def __init__(self) -> None:
        self.low, self.range, self.out = 0, 0xFFFFFFFF, bytearray()
        self.cache, self.pending, self.first = 0, 1, True

    def _shift(self) -> None:
        if self.low < 0xFF000000 or self.low >= 1 << 32:
            carry = self.low >> 32
            for i in range(self.pending):
                byte = (self.cache if i == 0 else 0xFF) + carry & 0xFF
                if not self.first:
                    self.out.append(byte)
                self.first = False
            self.pending, self.cache = 0, self.low >> 24 & 0xFF
        self.pending += 1
        self.low = (self.low & 0xFFFFFF) << 8

    def put(self, start: int, count: int, bits: int) -> None:
        """What takes `count` of 2**bits, from `start`."""
        part = self.range >> bits
        self.low += part * start
        self.range = part * count
        while self.range < 1 << 24:
            self.range <<= 8
            self._shift()

    def raw(self, value: int, bits: int) -> None:
        self.put(value, 1, bits)

    def finish(self) -> bytes:
        """The fewest bytes that, followed by zeros, lie in [low, low + range); zeros at the end are implied too."""
        n = 0
        while n < 4:
            mask = (1 << 32 - 8 * n) - 1
            value = (self.low + mask) & ~mask
            if value < self.low + self.range:
                self.low = value
                break
            n += 1
        for _ in range(n + 1):
            self._shift()
        return bytes(self.out)


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.range = data, 4, 0xFFFFFFFF
        self.code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        self.spent = max(0, 4 - len(data))

    def place(self, bits: int) -> int:
        """Where in 2**bits the code lies."""
        self.part = self.range >> bits
        value = self.code // self.part
        if value >> bits:
            raise StreamError("the stream does not decode")
        return value

    def take(self, start: int, count: int) -> None:
        self.code -= self.part * start
        self.range = self.part * count
        while self.range < 1 << 24:
            byte = 0
            if self.at < len(self.data):
                byte = self.data[self.at]
            else:
                self.spent += 1
                if self.spent > SPENT_MOST:
                    raise StreamError("the stream does not decode")
            self.at += 1
            self.code = (self.code << 8 | byte) & 0xFFFFFFFF
            self.range = self.range << 8 & 0xFFFFFFFF

    def raw(self, bits: int) -> int:
        value = self.place(bits)
        self.take(value, 1)
        return value

    def end(self) -> None:
        if self.at < len(self.data):
            raise StreamError("the stream does not decode")


def put_symbol(w: Writer, cum: Any, symbol: int) -> None:
    w.put(int(cum[symbol]), int(cum[symbol + 1]) - int(cum[symbol]), TOTAL_BITS)


def get_symbol(r: Reader, cum: Any) -> int:
    place = r.place(TOTAL_BITS)
    symbol = int(np.searchsorted(cum[1:], place, side="right"))
    r.take(int(cum[symbol]), int(cum[symbol + 1]) - int(cum[symbol]))
    return symbol


# -- indices -----------------------------------------------------------------------------------------------------------


def split(c: int) -> tuple[int, int]:
    """Class and number of low bits that are coded as they are."""
    low = max(0, (c - CLASS_MOST + 7) >> 3)
    return max(c - 8 * low, CLASS_LEAST), low


def put_index(w: Writer, family: int, q: int, c: int, k: int) -> None:
    c, low = split(c)
    cum = tables().cum[family, 1 if low else q, c - CLASS_LEAST]
    high = k >> low
    if -HALF <= high < HALF and cum[high + HALF + 1] > cum[high + HALF]:
        put_symbol(w, cum, high + HALF)
    else:
        put_symbol(w, cum, SYMBOLS - 1)
        number = (2 * high if high >= 0 else -2 * high - 1) + 1
        n = number.bit_length() - 1
        w.raw(n, 5)
        put_bits(w, number - (1 << n), n)
    put_bits(w, k & ((1 << low) - 1), low)


def get_index(r: Reader, family: int, q: int, c: int) -> int:
    c, low = split(c)
    symbol = get_symbol(r, tables().cum[family, 1 if low else q, c - CLASS_LEAST])
    high = symbol - HALF
    if symbol == SYMBOLS - 1:
        n = r.raw(5)
        if n > 24:
            raise StreamError("the stream does not decode")
        number = (1 << n) + get_bits(r, n) - 1
        high = number >> 1 if number % 2 == 0 else -(number >> 1) - 1
    return (high << low) + get_bits(r, low)


def put_bits(w: Writer, value: int, bits: int) -> None:
    """The low half of 16 last."""
    if bits > 16:
        w.raw(value >> 16, bits - 16)
        bits = 16
    if bits:
        w.raw(value & ((1 << bits) - 1), bits)


def get_bits(r: Reader, bits: int) -> int:
    high = r.raw(bits - 16) if bits > 16 else 0
    return high << 16 | r.raw(min(bits, 16)) if bits else 0


def put_points(w: Writer, family: int, classes: Ints, points: Ints) -> None:
    state = 0
    for c, j in zip(classes.tolist(), points.tolist(), strict=True):
        k = (j - (state & 1)) >> 1
        put_index(w, family, state & 1, c, k)
        state = NEXT[state][k & 1]


def get_points(r: Reader, family: int, classes: Ints) -> Ints:
    out = np.empty(len(classes), np.int64)
    state = 0
    for i, c in enumerate(classes.tolist()):
        k = get_index(r, family, state & 1, c)
        out[i] = 2 * k + (state & 1)
        state = NEXT[state][k & 1]
    return np.clip(out, -INDEX_MOST, INDEX_MOST)
