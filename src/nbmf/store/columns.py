"""Columns of an archive's index: numbers, texts and keys of many records side by side, so that each costs little.

docs/spec/archive.md is the specification. The writer appends to a bytearray; `Reader` takes apart what may be hostile:
every length is checked before memory is taken, and what a reader may take in all is given to it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from nbmf.errors import CorruptRecord

LEVEL: Final = 19  # of zstd: an index is written once and small
VALUE_MOST: Final = 1 << 61  # numbers of a column are below, in magnitude, so that differences of differences fit
ID_SIZE: Final = 16  # bytes of a key that is a UUID

_WINDOW_MOST: Final = 1 << 23  # bytes
_TEXT: Final = 0  # forms of a key: itself,
_UUID: Final = 1  # a UUID in the usual form (lower case, four dashes),
_HEX: Final = 2  # or 32 lower-case hex digits
_DASHES: Final = (8, 13, 18, 23)
_HEAD: Final = 4  # bytes of a UUID coded as one number: sorted ones differ little
_DESCRIPTOR: Final = b"\0"  # of a frame without content size, which the library would believe and take memory for
_FORM: Final = zstandard.FORMAT_ZSTD1_MAGICLESS

Numbers = NDArray[np.int64]


class _Zstd(threading.local):
    """zstd's contexts are costly to make and belong to one thread."""

    def __init__(self) -> None:
        self.compress = zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters.from_level(
                LEVEL, format=_FORM, write_content_size=False, write_checksum=False, write_dict_id=False
            )
        ).compress
        self.decompress = zstandard.ZstdDecompressor(format=_FORM, max_window_size=_WINDOW_MOST).decompress


_zstd = _Zstd()


# -- writing -----------------------------------------------------------------------------------------------------------


def put_number(out: bytearray, n: int) -> None:
    """0 <= n < 2**64, as LEB128."""
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)


def put_packed(out: bytearray, raw: bytes) -> None:
    """Bytes, as they are or as a zstd frame, whichever is smaller."""
    frame = _zstd.compress(raw) if len(raw) > 8 else raw
    small = len(frame) + 2 < len(raw)
    put_number(out, len(raw) << 1 | small)
    if small:
        put_number(out, len(frame))
    out += frame if small else raw


def put_numbers(out: bytearray, values: Sequence[int] | Numbers) -> None:
    """Numbers below VALUE_MOST in magnitude: over their least or over the one before, whichever is smaller."""
    array = np.asarray(values, np.int64)
    if array.size == 0:
        return
    least = int(array.min())
    best = bytearray([0])
    _put_signed(best, least)
    _put_planes(best, array - least)
    if array.size > 2 and best[0] >> 1:
        steps = np.diff(array)
        step = int(steps.min())
        other = bytearray([1])
        _put_signed(other, int(array[0]))
        _put_signed(other, step)
        _put_planes(other, steps - step)
        best = min(best, other, key=len)
    out += best


def _put_signed(out: bytearray, n: int) -> None:
    put_number(out, n << 1 if n >= 0 else (-n << 1) - 1)


def _put_planes(out: bytearray, rest: Numbers) -> None:
    """Non-negative numbers over their greatest common divisor, lowest bytes first. The width goes into out[0]."""
    divisor = int(np.gcd.reduce(rest)) if rest.size else 0
    if divisor == 0:
        return
    rest = rest // divisor
    width = (int(rest.max()).bit_length() + 7) // 8
    out[0] |= width << 1
    put_number(out, divisor)
    planes = rest.astype("<u8").view(np.uint8).reshape(-1, 8)
    for i in range(width):
        put_packed(out, planes[:, i].tobytes())


def put_texts(out: bytearray, texts: Sequence[bytes]) -> None:
    """Their lengths, then all of them in one."""
    put_numbers(out, [len(text) for text in texts])
    put_packed(out, b"".join(texts))


def put_sorted(out: bytearray, texts: Sequence[bytes]) -> None:
    """For each, how many bytes it shares with the one before; then what is left of them. Made for sorted ones."""
    shared = []
    before = b""
    for text in texts:
        most = min(len(text), len(before))
        n = next((i for i in range(most) if text[i] != before[i]), most)
        shared.append(n)
        before = text
    put_numbers(out, shared)
    put_texts(out, [text[n:] for text, n in zip(texts, shared, strict=True)])


def put_keys(out: bytearray, keys: Sequence[bytes]) -> None:
    """Keys as UTF-8; UUIDs take 16 bytes and less."""
    forms = [_form(key) for key in keys]
    put_numbers(out, forms)
    put_sorted(out, [key for key, form in zip(keys, forms, strict=True) if form == _TEXT])
    ids = b"".join(
        bytes.fromhex(key.replace(b"-", b"").decode()) for key, form in zip(keys, forms, strict=True) if form != _TEXT
    )
    if ids:
        rows = np.frombuffer(ids, np.uint8).reshape(-1, ID_SIZE)
        put_numbers(out, np.ascontiguousarray(rows[:, :_HEAD]).view(">u4").ravel().astype(np.int64))
        for i in range(_HEAD, ID_SIZE):
            put_packed(out, rows[:, i].tobytes())


def _form(key: bytes) -> int:
    if len(key) == 36 and all(key[i] == 0x2D for i in _DASHES):
        digits, form = key.replace(b"-", b""), _UUID
    else:
        digits, form = key, _HEX
    return form if len(digits) == 32 and not digits.translate(None, b"0123456789abcdef") else _TEXT


# -- reading -----------------------------------------------------------------------------------------------------------


class Reader:
    """Takes apart `data`, and takes at most `budget` bytes of memory for what is in it, times a small factor.

    Every method raises CorruptRecord for what no writer writes.
    """

    def __init__(self, data: bytes, budget: int) -> None:
        self.data = data
        self.at = 0
        self.budget = budget

    def spend(self, size: int) -> int:
        self.budget -= size
        if self.budget < 0:
            raise CorruptRecord("a length is larger than any may be")
        return size

    def number(self) -> int:
        n = shift = 0
        while True:
            if self.at >= len(self.data) or shift > 63:
                raise CorruptRecord("a number is cut short or too long")
            byte = self.data[self.at]
            self.at += 1
            n |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if n >= 1 << 64:
            raise CorruptRecord("a number is too large")
        return n

    def count(self, most: int) -> int:
        """A number of things, each of which takes memory: at most `most`."""
        n = self.number()
        if n > most:
            raise CorruptRecord(f"{n} of what can be {most} at most")
        return n

    def take(self, size: int) -> bytes:
        part = self.data[self.at : self.at + size]
        if len(part) != size:
            raise CorruptRecord("the index is cut short")
        self.at += size
        return part

    def signed(self) -> int:
        n = self.number()
        return -(n + 1 >> 1) if n & 1 else n >> 1

    def packed(self, size: int | None = None) -> bytes:
        """With `size`, exactly that many bytes."""
        head = self.number()
        raw_size = self.spend(head >> 1)
        if size is not None and raw_size != size:
            raise CorruptRecord("a column has the wrong length")
        if not head & 1:
            return self.take(raw_size)
        frame = self.take(self.number())
        if frame[:1] != _DESCRIPTOR:
            raise CorruptRecord("a zstd frame's header is not one a column may have")
        try:
            raw = _zstd.decompress(frame, max_output_size=max(raw_size, 1))
        except zstandard.ZstdError as error:
            raise CorruptRecord(f"a zstd frame is invalid: {error}") from None
        if len(raw) != raw_size:
            raise CorruptRecord("a zstd frame has the wrong length")
        return raw

    def numbers(self, n: int) -> Numbers:
        self.spend(8 * n)
        if n == 0:
            return np.zeros(0, np.int64)
        head = self.take(1)[0]
        width = head >> 1
        if width > 8:
            raise CorruptRecord("a column's width is wrong")
        first = self.signed()
        if not head & 1:
            return (self._planes(n, width) + _wrap(first)).view(np.int64)
        step = self.signed()
        out = np.empty(n, np.uint64)
        out[:1] = _wrap(first)
        out[1:] = self._planes(n - 1, width) + _wrap(step)
        return np.cumsum(out, dtype=np.uint64).view(np.int64)

    def _planes(self, n: int, width: int) -> NDArray[np.uint64]:
        if width == 0:
            return np.zeros(n, np.uint64)
        divisor = self.number()
        planes = np.zeros((n, 8), np.uint8)
        for i in range(width):
            planes[:, i] = np.frombuffer(self.packed(n), np.uint8)
        return planes.view("<u8").ravel().astype(np.uint64) * _wrap(divisor)

    def lengths(self, n: int) -> Numbers:
        """Numbers none of which is negative, nor their sum past the budget."""
        sizes = self.numbers(n)
        if n and (sizes.min() < 0 or sizes.max() > self.budget or math.fsum(sizes) > self.budget):
            raise CorruptRecord("a length is larger than any may be")
        return sizes

    def texts(self, n: int) -> list[bytes]:
        sizes = self.lengths(n)
        whole = self.packed(int(sizes.sum()))
        ends = np.cumsum(sizes).tolist()
        return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def sorted(self, n: int) -> list[bytes]:
        shared = self.lengths(n).tolist()
        out = []
        before = b""
        for same, rest in zip(shared, self.texts(n), strict=True):
            if same > len(before):
                raise CorruptRecord("a text shares more than there is")
            self.spend(same)
            before = before[:same] + rest
            out.append(before)
        return out

    def keys(self, n: int) -> list[bytes]:
        forms = self.numbers(n)
        if n and (forms.min() < _TEXT or forms.max() > _HEX):
            raise CorruptRecord("a key's form is unknown")
        texts = iter(self.sorted(int((forms == _TEXT).sum())))
        if not forms.any():
            return list(texts)
        rows = np.empty((int((forms != _TEXT).sum()), ID_SIZE), np.uint8)
        heads = self.numbers(len(rows))
        if heads.min() < 0 or heads.max() >= 1 << 8 * _HEAD:
            raise CorruptRecord("a key is wrong")
        rows[:, :_HEAD] = heads.astype(">u4").view(np.uint8).reshape(-1, _HEAD)
        for i in range(_HEAD, ID_SIZE):
            rows[:, i] = np.frombuffer(self.packed(len(rows)), np.uint8)
        digits = rows.tobytes().hex().encode()
        ids = iter([digits[i : i + 32] for i in range(0, len(digits), 32)])
        return [
            next(texts) if form == _TEXT else next(ids) if form == _HEX else _dashed(next(ids))
            for form in forms.tolist()
        ]


def _wrap(n: int) -> NDArray[np.uint64]:
    """A number modulo 2**64, as an array: those wrap around without a warning."""
    return np.array([n % (1 << 64)], np.uint64)


def _dashed(digits: bytes) -> bytes:
    return b"-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


__all__ = [
    "VALUE_MOST",
    "Numbers",
    "Reader",
    "put_keys",
    "put_number",
    "put_numbers",
    "put_packed",
    "put_sorted",
    "put_texts",
]
