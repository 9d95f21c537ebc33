"""Nearest vectors by cosine, told on their codes: nothing is rotated back, a query is rotated once.

A code's coefficients lie in memory as one byte each. They are compared with the query's own, in single precision; the
best are then compared again as exactly as their codes allow, or by what the caller has of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nbmf.codec import format
from nbmf.codec.codec import Codec
from nbmf.codec.values import VECTOR
from nbmf.codec.vector import points_of
from nbmf.codec.vector_reference import Transform, joined, step_size
from nbmf.errors import UnsupportedValue

CHUNK: Final = 4096  # rows that are compared at once
RERANKED: Final = 4  # candidates for each that is asked for
LEAST: Final = 40  # candidates

Floats = npt.NDArray[np.float32]


class Codes:
    """Vectors of one length, held as their codes. Immutable; thread-safe.

    Blobs of vectors (float32 or float16, one-dimensional) of `codec`, bare or self-describing; those coded by the
    codec's pack are compared among its coefficients, all others among their floats.
    Raises UnsupportedValue (a blob of another value or length), and what `Codec.decode` raises.
    """

    def __init__(self, blobs: Sequence[bytes], codec: Codec, bare: bool = True) -> None:
        self.blobs, self.codec, self.bare = list(blobs), codec, bare
        parsed = [format.parse(blob, bare=bare) for blob in self.blobs]
        self.dim = 0
        self._t: Transform | None = None
        learned: list[int] = []
        others: list[int] = []
        for at, blob in enumerate(parsed):
            if blob.value_type < VECTOR:
                raise UnsupportedValue(f"blob {at} is no vector")
            (learned if blob.method == format.PACKED else others).append(at)
        coefficients: dict[int, Floats] = {}
        for at in learned:
            found = points_of(parsed[at].payload, codec.vectors)
            if found is None:  # predicted from what stands beside it, or written as it is
                others.append(at)
                continue
            points, first, transform = found
            self._t = self._t or transform
            values = joined(np.zeros(transform.m, np.int64), points, step_size(transform.dim, first))
            coefficients[at] = (values / np.float32(1 << 24)).astype(np.float32)
            self._is_of(at, transform.dim)
        for at in others:
            array = np.asarray(codec.decode(self.blobs[at], bare=bare), np.float32)
            if array.ndim != 1:
                raise UnsupportedValue(f"blob {at} is no vector, but {array.ndim}-dimensional")
            self._is_of(at, len(array))
            coefficients[at] = array
        self._maps = self._t is not None
        self._other = np.array(sorted(others), np.intp)
        self._mine = np.array(sorted(set(range(len(parsed))) - set(others)), np.intp)
        self._floats = np.stack([coefficients[at] for at in self._other]) if len(self._other) else None
        self._table = self._scale = self._norms = None
        if self._t is not None and len(self._mine):
            table = np.stack([coefficients[at] for at in self._mine])
            self._mean, self._rows = _real(self._t)
            along = self._rows @ self._mean
            square = (
                float(self._mean @ self._mean)
                + 2 * table @ along
                + (table @ (self._rows @ self._rows.T) * table).sum(1)
            )
            self._norms = np.sqrt(np.maximum(square, 1e-30)).astype(np.float32)
            self._scale = (np.abs(table).max(axis=0) / 127 + 1e-12).astype(np.float32)
            self._table = np.rint(table / self._scale).astype(np.int8)

    def _is_of(self, at: int, dim: int) -> None:
        if self.dim not in (0, dim):
            raise UnsupportedValue(f"blob {at} has {dim} floats and those before it {self.dim}")
        self.dim = dim

    def __len__(self) -> int:
        return len(self.blobs)

    @property
    def nbytes(self) -> int:
        """Memory of what queries are compared with."""
        parts = (self._table, self._floats, self._norms, self._scale)
        return sum(part.nbytes for part in parts if part is not None)

    def scores(self, query: Any) -> Floats:
        """float32[n]: the cosine of every code with a query of `dim` floats, off by about 1 % of a step."""
        q = np.asarray(query, np.float32)
        if q.shape != (self.dim,):
            raise UnsupportedValue(f"a query of shape {q.shape} for vectors of {self.dim} floats")
        q = q / max(float(np.linalg.norm(q.astype(np.float64))), 1e-30)
        out = np.zeros(len(self), np.float32)
        if self._table is not None and self._scale is not None and self._norms is not None:
            turned = (self._rows @ q * self._scale).astype(np.float32)
            constant = np.float32(self._mean @ q)
            found = np.empty(len(self._mine), np.float32)
            for at in range(0, len(found), CHUNK):
                found[at : at + CHUNK] = self._table[at : at + CHUNK].astype(np.float32) @ turned
            out[self._mine] = (found + constant) / self._norms
        if self._floats is not None:
            out[self._other] = self._floats @ q / np.maximum(np.linalg.norm(self._floats, axis=1), 1e-30)
        return out

    def decoded(self, places: npt.NDArray[np.intp]) -> Floats:
        """float32[k, dim]: the vectors themselves."""
        return np.stack([np.asarray(self.codec.decode(self.blobs[at], bare=self.bare), np.float32) for at in places])


def search(
    codes: Codes,
    query: Any,
    k: int,
    *,
    candidates: int | None = None,
    exact: Callable[[npt.NDArray[np.intp]], Any] | None = None,
) -> tuple[npt.NDArray[np.intp], Floats]:
    """The `k` nearest by cosine, best first: their places and cosines.

    `candidates` (four times k, and 40 at least) are taken by their codes and compared again: by `exact`, which gives
    float32[n, dim] for places where the caller has the vectors or can make them again, or as they decode.
    """
    score = codes.scores(query)
    k = min(max(k, 0), len(score))
    if not k:
        return np.zeros(0, np.intp), np.zeros(0, np.float32)
    most = min(len(score), max(candidates or max(RERANKED * k, LEAST), k))
    places = np.argpartition(-score, most - 1)[:most]
    vectors = np.asarray(exact(places) if exact else codes.decoded(places), np.float64)
    q = np.asarray(query, np.float64)
    norms = np.sqrt((vectors * vectors).sum(axis=1)) * np.sqrt(q @ q)
    cosines = (vectors @ q) / np.maximum(norms, 1e-300)
    order = np.lexsort((places, -cosines))[:k]
    return places[order], cosines[order].astype(np.float32)


def _real(t: Transform) -> tuple[Floats, Floats]:
    """Mean and rows of a transform as floats."""
    unit = np.float32(1 << 22)
    return (t.mean / unit).astype(np.float32), (t.rows * (t.scale[:, None] / unit)).astype(np.float32)


__all__ = ["Codes", "search"]
