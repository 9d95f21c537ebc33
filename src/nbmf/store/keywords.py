"""Keywords: which words of a text are worth finding it by, their signature in a record's code, and how a match scores.

No plaintext and no index of words is kept. A code ends with the 16-bit hashes of the text's few rarest keywords, which
are scanned together with the vectors: they bring a record whose embedding says nothing of an order number or a name
among the candidates. Candidates are decoded anyway, so what they score is their true text's match.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

HASH_BYTES: Final = 2
NO_HASH: Final = 0xFFFF  # fills a row of hashes up; no keyword has it
SLOTS: Final = 10  # keywords of a signature
SIGNATURE_MOST: Final = SLOTS * HASH_BYTES
TERMS: Final = 8  # keywords of a query that are looked for in signatures: its rarest
SIGNED_MOST: Final = 4096  # characters of a text that its signature is drawn from
KEYWORD_MOST: Final = 64  # characters of a keyword; longer runs are data, not words

# In the units of `rarity`: below COMMON a word is not worth a slot or a weight, above RARE it cannot get rarer.
COMMON: Final = 24.0
RARE: Final = 80.0
LETTER_BITS: Final = 6.0
NUMBER_BONUS: Final = 24.0

# BM25's saturation of a keyword that is met again, and its share for a text's length.
SATURATION: Final = 0.6
LENGTH_SHARE: Final = 0.3
LENGTH_MEAN: Final = 60  # keywords of a text that is neither short nor long

KEYWORD_SHARE: Final = 0.8  # of what the cosine leaves open, the part that a full match of all keywords gives

# Scripts that are written without spaces: pairs of neighbours stand for words.
_PAIRED: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
_RUN: Final = re.compile(rf"[{_PAIRED}]+|[^\W{_PAIRED}]+")
_WORD: Final = re.compile(r"\w+")
_ASCII_WORD: Final = re.compile(r"\w+", re.ASCII)
_IS_PAIRED: Final = re.compile(rf"[{_PAIRED}]")

Rarity = Callable[[str], float]
Hashes = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]


def keywords(text: str) -> list[str]:
    """The keywords of a text, in order, caseless: runs of letters, digits and underscores.

    Scripts written without spaces give every pair of neighbours.
    """
    caseless = text.casefold()
    ascii = caseless.isascii()
    if ascii or not _IS_PAIRED.search(caseless):
        plain: list[str] = (_ASCII_WORD if ascii else _WORD).findall(caseless)
        return plain if len(max(plain, key=len, default="")) <= KEYWORD_MOST else list(filter(_is_short, plain))
    found: list[str] = []
    for run in _RUN.findall(caseless):
        if _IS_PAIRED.match(run):
            found += [run[i : i + 2] for i in range(max(len(run) - 1, 1))]
        elif _is_short(run):
            found.append(run)
    return found


def _is_short(run: str) -> bool:
    return len(run) <= KEYWORD_MOST


def plain_rarity(keyword: str) -> float:
    """A keyword's rarity where no embedder tells: by its length, and whether it has digits."""
    rarity = LETTER_BITS * len(keyword)
    if _IS_PAIRED.match(keyword):
        rarity *= 3
    if len(keyword) >= 4 and any(map(str.isdigit, keyword)):
        rarity += NUMBER_BONUS
    return rarity


def weight(keyword: str, rarity: Rarity = plain_rarity) -> float:
    """What a keyword counts in a match, in 0..1; 0 for the common ones."""
    return min(max(rarity(keyword) - COMMON, 0.0) / (RARE - COMMON), 1.0)


def hash_of(keyword: str) -> int:
    """In 0..0xFFFE, the same for ever: it is stored."""
    return zlib.crc32(keyword.encode("utf-8", "surrogatepass")) % NO_HASH


def signature(text: str, rarity: Rarity = plain_rarity) -> bytes:
    """The hashes of the text's rarest keywords, at most SLOTS, ascending, as little-endian uint16."""
    distinct = dict.fromkeys(keywords(text[:SIGNED_MOST]))
    rated = sorted((-rarity(keyword), keyword) for keyword in distinct)
    chosen = {hash_of(keyword) for rate, keyword in rated[:SLOTS] if -rate > COMMON}
    return struct.pack(f"<{len(chosen)}H", *sorted(chosen))


def unpack(signature: bytes) -> list[int]:
    """The hashes of a signature."""
    return list(struct.unpack(f"<{len(signature) // HASH_BYTES}H", signature))


def unpack_many(signatures: Sequence[bytes]) -> Hashes:
    """uint16[len, SLOTS]: the hashes of each signature, rows filled up with NO_HASH."""
    fill = NO_HASH.to_bytes(HASH_BYTES, "little") * SLOTS
    joined = b"".join([(signature + fill)[:SIGNATURE_MOST] for signature in signatures])
    return np.frombuffer(joined, "<u2").reshape(len(signatures), SLOTS).astype(np.uint16)


@dataclass(frozen=True, slots=True)
class Query:
    """A query's keywords. `weights` are by keyword, 0..1; `terms` are (hash, weight) of those sought in signatures."""

    weights: dict[str, float]
    terms: tuple[tuple[int, float], ...]
    total: float

    @classmethod
    def of(cls, text: str, rarity: Rarity = plain_rarity) -> Query:
        weights = {keyword: weight(keyword, rarity) for keyword in dict.fromkeys(keywords(text[:SIGNED_MOST]))}
        weights = {keyword: share for keyword, share in weights.items() if share > 0}
        rarest = sorted(weights.items(), key=lambda item: (-item[1], item[0]))[:TERMS]
        terms = tuple((hash_of(keyword), share) for keyword, share in rarest)
        return cls(weights, terms, sum(weights.values()))

    def match(self, text: str) -> float:
        """How much of the query's keywords a text holds, in 0..1: each by its weight, saturating as in BM25.

        A keyword that is met f times in a text of n keywords gives f / (f + SATURATION x (1 - LENGTH_SHARE +
        LENGTH_SHARE x n / LENGTH_MEAN)), scaled so that once in a text of mean length gives 1; never more than 1.
        """
        caseless = text.casefold()
        if not any(keyword in caseless for keyword in self.weights):
            return 0.0
        found = keywords(text)
        length = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * len(found) / LENGTH_MEAN)
        gain = 0.0
        for keyword, share in self.weights.items():
            if keyword in caseless and (count := found.count(keyword)):
                gain += share * min(count * (1 + SATURATION) / (count + length), 1.0)
        return gain / self.total


def fuse(cosine: float, keyword: float) -> float:
    """The score of a result, in 0..1: s + KEYWORD_SHARE x keyword x (1 - s), where s is the cosine, at least 0.

    Purely semantic results score their cosine; keywords only ever add, and most where the embedding sees nothing.
    """
    semantic = min(max(cosine, 0.0), 1.0)
    return semantic + KEYWORD_SHARE * min(max(keyword, 0.0), 1.0) * (1.0 - semantic)


def fuse_many(cosines: Floats, keywords: Floats | np.float32) -> Floats:
    """`fuse` of each, float32[n]."""
    semantic = np.clip(cosines, np.float32(0), np.float32(1))
    fused: Floats = semantic + np.float32(KEYWORD_SHARE) * np.minimum(keywords, np.float32(1)) * (1 - semantic)
    return fused


__all__ = [
    "SLOTS",
    "Query",
    "fuse",
    "fuse_many",
    "hash_of",
    "keywords",
    "plain_rarity",
    "signature",
    "unpack",
    "unpack_many",
    "weight",
]
