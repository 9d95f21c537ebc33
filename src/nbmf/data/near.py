"""Records that are nearly the same, by MinHash: deterministic, 256 bytes a record, whatever its length.

Two records are alike by the share that their sets of 8-byte strings have in common (Jaccard), after letters are made
small and white space is made one space. It is estimated from MINIMA hashes, to about 0.05; records are compared when
one of BANDS parts of these is the same, which at a share of 0.8 happens to all but one pair in 5,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

GRAM: Final = 8  # bytes
MINIMA: Final = 64
BANDS: Final = 16
TEXT_MOST: Final = 64 << 10  # bytes of a record that are looked at
AT_ONCE: Final = 1 << 16  # pairs that are compared at once
WINDOWS: Final = 1 << 14  # strings that are hashed at once: 4 MiB of hashes

U32 = NDArray[np.uint32]
_MIX: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of splitmix64
_FACTORS: Final[U32] = np.random.default_rng(8).integers(0, 1 << 32, (MINIMA, 1), np.uint32) | np.uint32(1)
_TURNS: Final[U32] = np.random.default_rng(9).integers(0, 1 << 32, (MINIMA, 1), np.uint32)


def normal(text: str) -> bytes:
    """What of a text counts."""
    return " ".join(text.lower().split()).encode("utf-8", "surrogatepass")[:TEXT_MOST]


def signatures(texts: Sequence[bytes]) -> U32:
    """The minima of texts as `normal` gives them, (texts, MINIMA)."""
    found = np.empty((len(texts), MINIMA), np.uint32)
    first, count = 0, 0
    for last, text in enumerate(texts):
        count += len(text)
        if count > WINDOWS:
            found[first : last + 1] = _minima(texts[first : last + 1])
            first, count = last + 1, 0
    if first < len(texts):
        found[first:] = _minima(texts[first:])
    return found


def _minima(texts: Sequence[bytes]) -> U32:
    padded = [text.ljust(GRAM, b"\0") for text in texts]
    ends = np.cumsum([len(text) for text in padded])
    data = np.frombuffer(b"".join(padded), np.uint8)
    inside = np.ones(len(data), bool)  # where a string begins that does not reach into the next text
    for back in range(1, GRAM):
        inside[ends - back] = False
    kept = np.flatnonzero(inside)
    gram = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(data, GRAM)[kept]).view("<u8").ravel()
    for shift, factor in zip((30, 27), _MIX, strict=True):
        gram = (gram ^ (gram >> np.uint64(shift))) * factor
    hashes = (gram >> np.uint64(32)).astype(np.uint32)
    begins = np.concatenate(([0], np.cumsum([len(text) - GRAM + 1 for text in padded])[:-1]))
    minima: U32 = np.minimum.reduceat(_ordered(hashes), begins, axis=1).T
    return minima


def _ordered(hashes: U32) -> U32:
    """As many orders of hashes as there are minima, (MINIMA, hashes): each a product, a shift and a product."""
    turned = (hashes ^ _TURNS) * _FACTORS
    turned ^= turned >> np.uint32(15)
    turned *= _FACTORS[::-1]
    return turned


def alike(minima: U32, least: float) -> NDArray[np.int64]:
    """For each record the number of an earlier one, itself kept, that it is like to the share `least`; -1 for none.

    A record is left out only for one that stays: likeness is not handed on along a chain.
    """
    twin = np.full(len(minima), -1, np.int64)
    found = [_pairs(minima, band, least) for band in range(BANDS)]
    pairs = np.unique(np.concatenate(found), axis=0) if found else np.empty((0, 2), np.int64)
    for later, earlier in pairs.tolist():  # in order of the later one, and of the earlier
        if twin[later] < 0 and twin[earlier] < 0:
            twin[later] = earlier
    return twin


def _pairs(minima: U32, band: int, least: float) -> NDArray[np.int64]:
    """(later, earlier) of records that share a band and are alike: each with the first and with the last before it."""
    rows = MINIMA // BANDS
    part = np.ascontiguousarray(minima[:, band * rows : (band + 1) * rows]).view("<u8")
    key = part[:, 0] * _MIX[0] ^ part[:, 1]
    order = np.argsort(key, kind="stable")
    same = np.concatenate(([False], key[order[1:]] == key[order[:-1]])) if len(order) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    at = np.flatnonzero(same)
    pairs = np.unique(
        np.stack([np.tile(order[at], 2), np.concatenate([order[first[at]], order[at - 1]])], axis=1), axis=0
    )
    share = [
        np.mean(minima[pairs[i : i + AT_ONCE, 0]] == minima[pairs[i : i + AT_ONCE, 1]], axis=1)
        for i in range(0, len(pairs), AT_ONCE)
    ]
    return pairs[np.concatenate(share) >= least] if share else pairs
