"""Vectors for tests, made here: what embeddings look like (few directions carry most), and noise."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@cache
def embeddings(count: int, dim: int, seed: int = 1) -> Array:
    """float32[count, dim] of norm 1, with a mean and a falling spectrum."""
    draw = np.random.default_rng(seed)
    shape = np.random.default_rng(99)
    axes = np.linalg.qr(shape.standard_normal((dim, dim)))[0]
    spread = 1 / np.sqrt(1 + np.arange(dim) / (dim / 48))
    rows = draw.standard_normal((count, dim)) * spread @ axes + shape.standard_normal(dim) * 0.3 / np.sqrt(dim)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    made = rows.astype(np.float32)
    made.setflags(write=False)
    return made


def gaussian(count: int, dim: int, seed: int = 2) -> Array:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def cosines(one: Array, other: Array) -> NDArray[np.float64]:
    """Row by row, in double precision."""
    a, b = (np.atleast_2d(part).astype(np.float64) for part in (one, other))
    a, b = (part / np.abs(part).max(axis=1, keepdims=True) for part in (a, b))
    return np.asarray((a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1)))


def norms(one: Array) -> NDArray[np.float64]:
    wide = np.atleast_2d(one).astype(np.float64)
    return np.asarray(np.sqrt((wide * wide).sum(axis=1)))
