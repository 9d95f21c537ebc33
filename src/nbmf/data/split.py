"""Which records belong together, and which of them are for training, for following it, and for judging it.

Groups are dealt out in an order made of the seed and their names: to val as long as a group fits into its share, then
to test, all else to train. So no group is in two parts, and neither val nor test is larger than its share.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nbmf.errors import DataError

SPLITS: Final = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)
AUTO: Final = "auto"
SOURCE: Final = "source"
RECORD: Final = "record"
# What metadata call a conversation or a document: in `auto` the first of these that a record has is its group.
FIELDS: Final = ("group", "conversation", "conversation_id", "thread_id", "session_id", "document")
_MIX: Final = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Groups:
    """Arrays by record: the number of its group (-1: none), and whether it has none of its own, and so its source's.

    `order` has a number for each group that is the same wherever the group is of the same name and source.
    """

    number: NDArray[np.int32]
    loose: NDArray[np.bool_]
    order: NDArray[np.uint64]
    by: str


class Grouping:
    """Groups, found record by record. `by`: auto, source, record, or a field of the metadata."""

    def __init__(self, by: str) -> None:
        self._by = by
        self._numbers: dict[tuple[str, str], int] = {}
        self._of: list[int] = []
        self._loose: list[bool] = []

    def skip(self) -> None:
        """The next line is no record."""
        self._of.append(-1)
        self._loose.append(False)

    def add(self, about: dict[str, Any], source: str, id: str) -> None:
        """The next record. Raises DataError naming it where it has not the field."""
        name = None
        if self._by not in (SOURCE, RECORD):
            fields = FIELDS if self._by == AUTO else (self._by,)
            name = next((str(about[field]) for field in fields if type(about.get(field)) in (str, int)), None)
            if name is None and self._by != AUTO:
                raise DataError(f"{id}: its metadata have no {self._by!r} to be grouped by")
        key = (source, "" if name is None else f"={name}")
        self._of.append(self._numbers.setdefault(key, len(self._numbers)))
        self._loose.append(self._by == RECORD or (name is None and self._by == AUTO))

    def done(self) -> Groups:
        order = [
            int.from_bytes(hashlib.blake2b("\0".join(key).encode("utf-8", "replace"), digest_size=8).digest(), "little")
            for key in self._numbers
        ]
        return Groups(np.array(self._of, np.int32), np.array(self._loose, bool), np.array(order, np.uint64), self._by)


def deal(
    groups: Groups, digest: NDArray[np.uint64], kept: NDArray[np.bool_], shares: tuple[float, float], seed: int
) -> tuple[NDArray[np.int8], NDArray[np.int64], str]:
    """For each record its split (a number of SPLITS), and what it was dealt out with (-1: not kept); and by what.

    `digest` is of each record's value; `shares` are those of val and test. In auto, records without a group of their
    own go with their source; one by one where that would leave val or test less than half of its share.
    """
    unit = np.where(kept, groups.number, -1).astype(np.int64)
    key = groups.order.copy()
    ways = [groups.by] if groups.by != AUTO else [SOURCE if groups.loose[kept].all() else "conversation, else source"]
    if groups.loose[kept].any():
        ways.append(RECORD if groups.loose[kept].all() else "conversation, else record")
    if groups.by == RECORD:
        ways = [RECORD]
    place = np.zeros(len(kept), np.int8)
    for way in ways:
        if way.endswith(RECORD):
            alone = np.flatnonzero(kept & groups.loose)
            unit[alone] = len(groups.order) + np.arange(len(alone))
            key = np.concatenate([groups.order, digest[alone]])
        place, enough = _dealt(unit, key, kept, shares, seed)
        if enough or way == ways[-1]:
            return place, unit, way
    raise AssertionError("there is a last way")


def _dealt(
    unit: NDArray[np.int64],
    key: NDArray[np.uint64],
    kept: NDArray[np.bool_],
    shares: tuple[float, float],
    seed: int,
) -> tuple[NDArray[np.int8], bool]:
    sizes = np.bincount(unit[kept], minlength=len(key))
    turn = np.uint64(int(_MIX) * seed & 0xFFFF_FFFF_FFFF_FFFF)
    mixed = (key ^ turn) * _MIX
    room = [max(1, int(share * kept.sum())) if share else 0 for share in shares]
    wanted = list(room)
    of_unit = np.zeros(len(key), np.int8)
    for at in np.argsort(mixed ^ (mixed >> np.uint64(29)), kind="stable").tolist():
        size = int(sizes[at])
        for split, left in ((VAL, room[0]), (TEST, room[1])):
            if 0 < size <= left:
                of_unit[at] = split
                room[split - 1] -= size
                break
        if not any(room):
            break
    enough = all(2 * left <= want or not want for left, want in zip(room, wanted, strict=True))
    return np.where(kept, of_unit[unit], TRAIN).astype(np.int8), enough
