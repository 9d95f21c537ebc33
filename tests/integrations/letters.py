"""An embedder that the tests can reckon with: a text's vector counts its letters."""

from __future__ import annotations

import math
from collections.abc import Sequence

DIMS = 26


class Letters:
    """Texts to float[26]; `seen` is every text that it was given, in order."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, texts: Sequence[str]) -> list[list[float]]:
        self.seen += texts
        return [vector(text) for text in texts]


def vector(text: str) -> list[float]:
    """How often each letter is in a text, uneven so that few texts are equally near."""
    lower = text.lower()
    return [lower.count(chr(97 + i)) * (1.0 + i / 40) for i in range(DIMS)]


def cosine(a: str, b: str) -> float:
    x, y = vector(a), vector(b)
    norms = math.sqrt(sum(i * i for i in x) * sum(i * i for i in y))
    return sum(i * j for i, j in zip(x, y, strict=True)) / norms if norms else 0.0
