"""Compact codes of vectors: what a record's row keeps of its embedding.

A code is one byte that names its format and embedder, the vector with one of four levels a dimension, as a plane of
signs and a plane of sizes, and the signature of the text's keywords (keywords.py). A vector that no text tells, because
its owner brought it, is kept whole instead: one byte a dimension.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from nbmf.errors import FormatError, PolicyError
from nbmf.store import keywords

CODE_VERSION: Final = 2
DIM_LEAST: Final = 8
DIM_MOST: Final = 8192
# In root mean squares of a vector: entries above LARGE have the level 3 or -3, others 1 or -1. At least one entry of a
# vector that is not 0 is above it. Of a query, entries below SMALL are left out when bits are counted.
LARGE: Final = 0.98
SMALL: Final = 0.5
SHRINK: Final = 0.937  # the cosine of a vector and its levels, on average, and within 0.02 or so
SPREAD: Final = 0.35  # over the root of the dimension: how far a cosine by levels is from the true one, on average
WHOLE: Final = 127  # the largest entry of a vector that is kept whole
SLACK: Final = 4  # bits by which codes of one text may differ: machines round sums in their own ways

Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def _counts_by_table(words: Words, out: Counts | None = None) -> Counts:
    """Set bits of each word, for NumPy before 2.0."""
    parts = np.ascontiguousarray(words).view(np.uint16).reshape(*words.shape, 4)
    counts: Counts = _bits_of_16()[parts].sum(axis=-1, dtype=np.uint8, out=out)
    return counts


@functools.lru_cache(maxsize=1)
def _bits_of_16() -> Counts:
    values = np.arange(1 << 16, dtype=np.uint16)
    counts: Counts = np.unpackbits(values.view(np.uint8)).reshape(-1, 16).sum(axis=1, dtype=np.uint8)
    return counts


counts: Callable[..., npt.NDArray[np.uint8]] = getattr(np, "bitwise_count", _counts_by_table)


class VectorCode:
    """The code of one embedder's vectors. `size` is its bytes without a signature, 65 for 256 dimensions; `whole_size`
    that of a vector kept whole, 257."""

    def __init__(self, embedder: str, dim: int) -> None:
        if not DIM_LEAST <= dim <= DIM_MOST:
            raise PolicyError(f"vectors have {DIM_LEAST} to {DIM_MOST} dimensions, not {dim}")
        self.dim = dim
        self.tag = 1 + zlib.crc32(f"{CODE_VERSION} {dim} {embedder}".encode()) % 255
        self.whole_tag = self.tag % 255 + 1
        self.plane = (dim + 7) // 8  # bytes
        self.size = 1 + 2 * self.plane
        self.whole_size = 1 + dim
        self.words = (dim + 63) // 64

    def encode(self, vector: npt.ArrayLike, signature: bytes = b"", whole: bool = False) -> bytes:
        """The code of a vector of norm 1 (or 0), followed by the signature of its text's keywords."""
        values = self.checked(vector)
        if whole:
            steps = np.rint(values * (WHOLE / max(float(np.abs(values).max()), 1e-30))).astype(np.int8)
            return b"".join((bytes((self.whole_tag,)), steps.tobytes(), signature))
        return b"".join((self.encode_many(values[None, :]).tobytes(), signature))

    def encode_many(self, vectors: Floats) -> Counts:
        """uint8[n, size] of float32[n, dim], finite: the codes without signatures, none of them whole."""
        out = np.empty((len(vectors), self.size), np.uint8)
        out[:, 0] = self.tag
        out[:, 1 : 1 + self.plane] = np.packbits(vectors < 0, axis=1, bitorder="little")
        large = np.abs(vectors) > LARGE * _root_mean_squares(vectors)
        out[:, 1 + self.plane :] = np.packbits(large, axis=1, bitorder="little")
        return out

    def checked(self, vector: npt.ArrayLike) -> Floats:
        """float32[dim]. Raises PolicyError for another shape, or what is not finite."""
        values = np.asarray(vector, np.float32)
        if values.shape != (self.dim,):
            raise PolicyError(f"a vector of shape {values.shape} where ({self.dim},) was due")
        if not np.isfinite(values).all():
            raise PolicyError("a vector holds a number that is not finite")
        return values

    def fits(self, code: bytes) -> bool:
        """Whether `code` is one of this embedder, in this version."""
        if not code or code[0] not in (self.tag, self.whole_tag):
            return False
        extra = len(code) - self._end(code)
        return 0 <= extra <= keywords.SIGNATURE_MOST and extra % keywords.HASH_BYTES == 0

    def is_whole(self, code: bytes) -> bool:
        """Whether a code that fits keeps its vector whole."""
        return code[0] == self.whole_tag

    def _end(self, code: bytes) -> int:
        return self.whole_size if code[0] == self.whole_tag else self.size

    def signature(self, code: bytes) -> bytes:
        """The signature at the end of a code that fits."""
        return code[self._end(code) :]

    def decode(self, code: bytes) -> tuple[Floats, bytes]:
        """What a code says: the vector that it stands for, float32[dim] of norm 1 (or 0), and the signature.

        Of a vector not kept whole, the levels: the cosine with them, over SHRINK, is about that with the vector itself.
        Raises FormatError.
        """
        if not self.fits(code):
            raise FormatError(f"a code of {len(code)} bytes is not one of this embedder")
        if self.is_whole(code):
            values = np.frombuffer(code, np.int8, self.dim, 1).astype(np.float32)
        else:
            values = self.levels(np.frombuffer(code, np.uint8, self.size - 1, 1)[None, :])[0]
        return values / np.float32(max(np.sqrt(np.dot(values, values)), 1.0)), self.signature(code)

    def levels(self, planes: Counts) -> Floats:
        """float32[n, dim] of both planes' bytes, uint8[n, 2 x plane]: -3, -1, 1 or 3; 0 for a vector of zeros."""
        low, large = (
            np.unpackbits(part, axis=1, count=self.dim, bitorder="little").view(np.int8)
            for part in (planes[:, : self.plane], planes[:, self.plane :])
        )
        signs, sizes = 1 - 2 * low, 1 + 2 * large
        out = (signs * sizes).astype(np.float32)
        out[~planes[:, self.plane :].any(axis=1)] = 0
        return out

    def planes(self, codes: Sequence[bytes]) -> tuple[Words, Words]:
        """Two uint64[words, n] of codes that fit, signatures or not: the bits of signs, and those of sizes."""
        raw = np.zeros((len(codes), 2 * self.plane), np.uint8)
        for whole in (False, True):
            at = [i for i, code in enumerate(codes) if self.is_whole(code) is whole]
            if not at:
                continue
            end = self.whole_size if whole else self.size
            part = np.frombuffer(b"".join([codes[i][1:end] for i in at]), np.uint8).reshape(len(at), end - 1)
            raw[at] = self.encode_many(part.view(np.int8).astype(np.float32))[:, 1:] if whole else part
        low, large = (_words(part, self.words) for part in (raw[:, : self.plane], raw[:, self.plane :]))
        return low, large

    def masks(self, query: Floats) -> tuple[Words, Words]:
        """Two uint64[words] of a query: the bits of signs, and those of the entries that are not small."""
        some = np.abs(query) > SMALL * _root_mean_squares(query[None, :])[0]
        low, mask = (
            _words(np.packbits(bits[None, :], axis=1, bitorder="little"), self.words) for bits in (query < 0, some)
        )
        return low[:, 0], mask[:, 0]


def _root_mean_squares(vectors: Floats) -> npt.NDArray[np.float64]:
    """float64[n, 1]; 0 of a row of zeros."""
    wide = vectors.astype(np.float64)
    out: npt.NDArray[np.float64] = np.sqrt(np.einsum("ij,ij->i", wide, wide) / wide.shape[1])[:, None]
    return out


def _words(bits: Counts, words: int) -> Words:
    """uint64[words, n] of little-endian bits, uint8[n, up to 8 x words]."""
    padded = np.zeros((len(bits), 8 * words), np.uint8)
    padded[:, : bits.shape[1]] = bits
    return np.ascontiguousarray(padded.view("<u8").T.astype(np.uint64))


__all__ = ["CODE_VERSION", "SHRINK", "SLACK", "SPREAD", "VectorCode", "counts"]
