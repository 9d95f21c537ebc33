"""The vectors of LangGraph's items: how a record carries them, and the index that searches them in memory.

A record keeps all its vectors, one for each text that its fields gave, in place of semantic recall's compact code:

| bytes | what                                                                    |
|-------|-------------------------------------------------------------------------|
| 1     | 0, which begins no code of semantic recall                              |
| 1     | bytes a component: 1 from WIDE dimensions on, else 2                    |
| 2     | dimensions, little-endian                                               |
| ...   | for each vector the scale, a little-endian float32, and its components  |

A component times the scale is the entry of a vector of norm 1 (or 0), so the product with a query of norm 1 is their
cosine, to within 0.002. Being part of the record, vectors are written, moved, expired and forgotten with it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nbmf.errors import PolicyError
from nbmf.memory import Memory
from nbmf.memory.tiers import Address
from nbmf.store.base import Changes, Codes, Get, Namespace, Tier, within
from nbmf.store.embed import unit

HEAD: Final = 4
WIDE: Final = 256  # dimensions from which on a component is one byte
DIMS_MOST: Final = 65_535
VECTORS_MOST: Final = 4096  # of one record
ROWS_LEAST: Final = 256
FOLLOWED: Final = 1024  # changed records that are read at a time
CHUNK: Final = 8192  # rows that are widened to float32 at a time
GONE: Final = -1  # the owner of a row that was removed

Floats = npt.NDArray[np.float32]


def pack(vectors: Any, dims: int) -> bytes:
    """The code of a record's vectors, float[n, dims] with n >= 1. Raises PolicyError: another shape, or not finite."""
    count = len(vectors)
    if count > VECTORS_MOST:
        raise PolicyError(f"an item has at most {VECTORS_MOST} texts that are indexed, not {count}")
    rows = unit(vectors, count, dims)
    kind = _kind(dims)
    scales = (np.abs(rows).max(axis=1) / np.float32(np.iinfo(kind).max)).astype("<f4")
    whole = np.rint(rows / np.where(scales > 0, scales, 1)[:, None]).astype(kind)
    head = bytes((0, np.dtype(kind).itemsize)) + dims.to_bytes(2, "little")
    return head + b"".join(scale.tobytes() + row.tobytes() for scale, row in zip(scales, whole, strict=True))


def fits(code: bytes, dims: int) -> bool:
    """Whether a code holds vectors of so many dimensions."""
    size = np.dtype(_kind(dims)).itemsize
    head = bytes((0, size)) + dims.to_bytes(2, "little")
    return len(code) > HEAD and code[:HEAD] == head and (len(code) - HEAD) % (4 + size * dims) == 0


def _kind(dims: int) -> Any:
    return np.dtype("<i1") if dims >= WIDE else np.dtype("<i2")


class VectorIndex:
    """The vectors of a store's records in memory, `dims` or twice as many bytes each. Thread-safe."""

    def __init__(self, dims: int) -> None:
        self.dims = dims
        self._kind = _kind(dims)
        self._row = np.dtype([("scale", "<f4"), ("parts", self._kind, (dims,))])
        self._lock = threading.Lock()
        self._positions: dict[str, int] = {}
        self._clear()

    def _clear(self) -> None:
        self._rows = np.zeros(ROWS_LEAST, self._row)
        self._owners = np.full(ROWS_LEAST, GONE, np.int32)
        self._count = 0  # rows in use, removed ones among them
        self._addresses: list[Address] = []  # by owner
        self._spaces = np.zeros(ROWS_LEAST, np.int32)  # by owner: the number of its namespace
        self._numbers: dict[Namespace, int] = {}
        self._places: dict[Address, tuple[int, int, int]] = {}  # owner, first row, number of rows

    def __len__(self) -> int:
        return len(self._places)

    # -- search --------------------------------------------------------------------------------------------------------

    def search(self, memory: Memory, query: Sequence[float], prefix: Namespace) -> Iterator[tuple[Address, float]]:
        """Every indexed record in and below a prefix and its best vector's cosine with the query, nearest first."""
        vector = unit([query], 1, self.dims)[0]
        with self._lock:
            self._follow(memory)
            addresses = self._addresses
            inside = np.zeros(len(self._numbers) + 1, np.bool_)
            for namespace, number in self._numbers.items():
                inside[number] = within(namespace, prefix)
            owners = self._owners[: self._count]
            chosen = np.flatnonzero((owners != GONE) & inside[self._spaces[owners]])
            best = np.full(len(addresses), -2, np.float32)
            for at in range(0, len(chosen), CHUNK):
                rows = self._rows[chosen[at : at + CHUNK]]
                scores = (rows["parts"].astype(np.float32) @ vector) * rows["scale"]
                np.maximum.at(best, owners[chosen[at : at + CHUNK]], scores)
        order = np.argsort(-best, kind="stable")
        order = order[: int(np.count_nonzero(best > -2))]
        return ((addresses[owner], float(best[owner])) for owner in order.tolist())

    # -- following a store ---------------------------------------------------------------------------------------------

    def _follow(self, memory: Memory) -> None:
        """Brings the index up to what the store holds now: by its journals where they reach back far enough."""
        tiers = {"warm": memory.warm, "cold": memory.cold()}
        changed: dict[Address, None] = {}
        now_at: dict[str, int] = {}
        whole = self._positions.keys() != {name for name, tier in tiers.items() if tier is not None}
        whole |= len(self._addresses) > 2 * len(self._places) + ROWS_LEAST  # addresses of what was removed
        for name, tier in tiers.items():
            if tier is not None:
                now_at[name], since = tier.batch([Changes(self._positions.get(name, 0))])[0]
                whole |= since is None
                changed.update(dict.fromkeys(since or ()))
        if whole:
            self._clear()
            for tier in (tiers["cold"], tiers["warm"]):  # a warm record hides a cold one
                if tier is not None:
                    self._put(_codes(tier))
        else:
            addresses = list(changed)
            for at in range(0, len(addresses), FOLLOWED):
                self._put(_codes_at(tiers["warm"], tiers["cold"], addresses[at : at + FOLLOWED]))
        self._positions = now_at

    def _put(self, items: Iterable[tuple[Namespace, str, bytes]]) -> None:
        for namespace, key, code in items:
            place = self._places.pop((namespace, key), None)
            if place is not None:
                self._owners[place[1] : place[1] + place[2]] = GONE
                self._rows[place[1] : place[1] + place[2]] = 0
            if fits(code, self.dims):
                rows = np.frombuffer(code, self._row, offset=HEAD)
                self._append((namespace, key), rows, place[0] if place else None)

    def _append(self, address: Address, rows: npt.NDArray[np.void], owner: int | None) -> None:
        if owner is None:
            owner = len(self._addresses)
            self._addresses.append(address)
            if owner >= len(self._spaces):
                self._spaces = np.concatenate([self._spaces, np.zeros(len(self._spaces), np.int32)])
            self._spaces[owner] = self._numbers.setdefault(address[0], len(self._numbers))
        end = self._count + len(rows)
        if end > len(self._rows):
            self._make_room(len(rows))
            end = self._count + len(rows)
        self._rows[self._count : end] = rows
        self._owners[self._count : end] = owner
        self._places[address] = owner, self._count, len(rows)
        self._count = end

    def _make_room(self, wanted: int) -> None:
        """Drops the rows that were removed; the capacity then is at least twice what is used."""
        kept = np.flatnonzero(self._owners[: self._count] != GONE)
        rows = np.zeros(max(2 * (len(kept) + wanted), ROWS_LEAST), self._row)
        owners = np.full(len(rows), GONE, np.int32)
        rows[: len(kept)], owners[: len(kept)] = self._rows[kept], self._owners[kept]
        self._rows, self._owners, self._count = rows, owners, len(kept)
        numbers, starts = np.unique(owners[: len(kept)], return_index=True)
        firsts = dict(zip(numbers.tolist(), starts.tolist(), strict=True))
        self._places = {
            address: (owner, firsts[owner], number)
            for address, (owner, _, number) in self._places.items()
            if owner in firsts
        }


def _codes(tier: Tier) -> Iterator[tuple[Namespace, str, bytes]]:
    after: Address | None = None
    while page := tier.batch([Codes(after)])[0]:
        yield from page
        after = page[-1][:2]


def _codes_at(
    warm: Tier | None, cold: Tier | None, addresses: Sequence[Address]
) -> Iterator[tuple[Namespace, str, bytes]]:
    """The code at each address, b"" where there is no record. At time 0 nothing has expired."""
    left = list(addresses)
    for tier in (warm, cold):
        if tier is None or not left:
            continue
        found = tier.batch([Get(namespace, key, 0, blob=False) for namespace, key in left])
        yield from (
            (namespace, key, record.code)
            for (namespace, key), record in zip(left, found, strict=True)
            if record is not None
        )
        left = [at for at, record in zip(left, found, strict=True) if record is None]
    yield from ((namespace, key, b"") for namespace, key in left)


__all__ = ["DIMS_MOST", "VectorIndex", "fits", "pack"]
