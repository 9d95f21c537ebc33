"""The index that scans the codes of vectors (codes.py) in memory.

Codes lie as planes of bits, so that a query is compared with a record by counting bits; the best few are then scored
with the query's full precision.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from nbmf.store import keywords
from nbmf.store.base import Changes, Codes, Get, Namespace, Tier
from nbmf.store.codes import SHRINK, Floats, VectorCode, Words, counts

CHUNK: Final = 32768  # rows that are scanned at a time, so that what is between lies in the cache
SURVIVORS: Final = 400  # rows that counting bits leaves for scoring
ROWS_LEAST: Final = 1024  # rows that an empty index has room for
GATHER: Final = 4  # a prefix with fewer than one in so many rows is gathered before it is scanned
HOLES: Final = 4  # compacted when more than one row in so many is dead
PENDING: Final = 4096  # rows that wait in a dict before they are merged into the sorted table

CANDIDATES: Final = 36  # records that a search returns by each measure, for exact scoring
SAMPLE_STEP: Final = 16
SAMPLED: Final = 16  # so many times more scores than wanted, and a sample is drawn first
FOLLOWED: Final = 1024  # changed records that are read at a time
LEAST: Final = np.float32(-2.0)  # below any score

DEAD: Final = 0  # the namespace number of rows that were removed

Rows = npt.NDArray[np.int64]


class Near(NamedTuple):
    """A record that a search of the index found. `cosine` and `score` are approximate: of the vector alone, about
    -1..1, and together with the keywords of its signature, 0..1."""

    namespace: Namespace
    key: str
    cosine: float
    score: float


class _Columns:
    """Rows of the index by column; all arrays have the same capacity. Rows below `count` are never written again, save
    that `space` becomes DEAD, so a reader that took the arrays and `count` sees whole rows without a lock."""

    def __init__(self, words: int, capacity: int, key_bytes: int) -> None:
        self.count = 0
        self.dead = 0
        self.key_end = 0
        self.low = np.zeros((words, capacity), np.uint64)
        self.large = np.zeros((words, capacity), np.uint64)
        self.scale = np.zeros(capacity, np.float32)  # 1 / (SHRINK x norm of the levels), 0 for a vector 0
        self.hashes = np.full((keywords.SLOTS, capacity), keywords.NO_HASH, np.uint16)
        self.space = np.zeros(capacity, np.int32)
        self.starts = np.zeros(capacity + 1, np.int64)
        self.keys = np.zeros(key_bytes, np.uint8)

    def grown(self, rows: int, key_bytes: int) -> _Columns:
        """These columns, or a copy with room for so many more rows and bytes of keys."""
        capacity, room = len(self.space), len(self.keys)
        if self.count + rows <= capacity and self.key_end + key_bytes <= room:
            return self
        if self.count + rows > capacity:
            capacity = max(self.count + rows, capacity + capacity // 2)
        if self.key_end + key_bytes > room:
            room = max(self.key_end + key_bytes, room + room // 2)
        return self.copied(slice(0, self.count), capacity, room)

    def copied(self, rows: slice | Rows, capacity: int, room: int) -> _Columns:
        """A copy of some rows, in ascending order."""
        new = _Columns(len(self.low), capacity, room)
        new.count = count = len(self.space[rows])
        for ours, theirs in ((self.low, new.low), (self.large, new.large), (self.hashes, new.hashes)):
            theirs[:, :count] = ours[:, rows]
        new.scale[:count] = self.scale[rows]
        new.space[:count] = self.space[rows]
        new.dead = count - int(np.count_nonzero(new.space[:count]))
        sizes = np.diff(self.starts[: self.count + 1])
        new.starts[1 : count + 1] = np.cumsum(sizes[rows])
        new.key_end = int(new.starts[count])
        kept = np.zeros(self.count, np.bool_)
        kept[rows] = True
        new.keys[: new.key_end] = self.keys[: self.key_end][np.repeat(kept, sizes)]
        return new

    def key(self, row: int) -> bytes:
        return self.keys[self.starts[row] : self.starts[row + 1]].tobytes()

    @property
    def nbytes(self) -> int:
        parts = (self.low, self.large, self.scale, self.hashes, self.space, self.starts, self.keys)
        return sum(part.nbytes for part in parts)


class _Places:
    """Rows by (namespace number, key): sorted hashes of most, and a dict of those that came since."""

    def __init__(self) -> None:
        self._hashes = np.zeros(0, np.int64)
        self._rows = np.zeros(0, np.int64)
        self._recent: dict[int, list[int]] = {}
        self._waiting = 0

    def add(self, hashes: Sequence[int], first: int) -> None:
        """Rows from `first` on have these hashes."""
        for row, value in enumerate(hashes, first):
            self._recent.setdefault(value, []).append(row)
        self._waiting += len(hashes)
        if self._waiting > PENDING + len(self._rows) // 8:
            pairs = [(value, row) for value, rows in self._recent.items() for row in rows]
            hashed = np.concatenate([self._hashes, np.fromiter((p[0] for p in pairs), np.int64, len(pairs))])
            rows = np.concatenate([self._rows, np.fromiter((p[1] for p in pairs), np.int64, len(pairs))])
            order = np.argsort(hashed, kind="stable")
            self._hashes, self._rows = hashed[order], rows[order]
            self._recent, self._waiting = {}, 0

    def candidates(self, value: int) -> list[int]:
        """Rows that may be the one, newest first, dead ones and those of equal hash among them."""
        left, right = np.searchsorted(self._hashes, (value, value + 1))
        return [*reversed(self._recent.get(value, ())), *self._rows[left:right][::-1].tolist()]

    @property
    def nbytes(self) -> int:
        return self._hashes.nbytes + self._rows.nbytes + 150 * self._waiting


def _hash(space: int, key: bytes) -> int:
    """62 bits, the same within one process only."""
    return hash((space, key)) & (1 << 62) - 1


class CodeIndex:
    """Codes of one embedder in memory, searched by vector and keywords. Thread-safe; a search blocks no other thread.

    About 120 bytes and the key's own a record for 256 dimensions. What it returns may have been changed or removed
    since: the records themselves tell.
    """

    def __init__(self, embedder: str, dim: int) -> None:
        self.code = VectorCode(embedder, dim)
        self.skipped = 0  # codes that were of another embedder or version
        self._lock = threading.Lock()
        self._following = threading.Lock()
        self._position: int | None = None
        self._columns = _Columns(self.code.words, ROWS_LEAST, 16 * ROWS_LEAST)
        self._places = _Places()
        self._numbers: dict[Namespace, int] = {}
        self._names: list[Namespace] = [()]  # by number; DEAD has none
        # By number: a parent's is below its children's, that of () is DEAD.
        self._parents = np.zeros(64, np.int32)

    def __len__(self) -> int:
        return self._columns.count - self._columns.dead

    @property
    def nbytes(self) -> int:
        """Memory of the columns and the table of places; names of namespaces not counted."""
        return self._columns.nbytes + self._places.nbytes

    # -- changes -------------------------------------------------------------------------------------------------------

    def put(self, namespace: Namespace, key: str, code: bytes) -> None:
        """Adds or replaces a record's code. One that does not fit is counted in `skipped`, and the old one goes."""
        self.put_many(((namespace, key, code),))

    def put_many(self, items: Iterable[tuple[Namespace, str, bytes]]) -> None:
        """As `put`, of many; of two with one address the later counts."""
        self._put(items, replacing=True)

    def _put(self, items: Iterable[tuple[Namespace, str, bytes]], replacing: bool) -> None:
        """With `replacing` False, the caller knows that none of the addresses is there."""
        latest = {(namespace, key): code for namespace, key, code in items}
        good = {address: code for address, code in latest.items() if self.code.fits(code)}
        low, large = self.code.planes(list(good.values()))
        sizes = counts(large).sum(axis=0, dtype=np.int64)
        hashes = keywords.unpack_many([self.code.signature(code) for code in good.values()])
        with self._lock:
            self.skipped += len(latest) - len(good)
            if replacing and len(self):
                for namespace, key in latest:
                    self._kill(namespace, key)
            self._append(list(good), low, large, sizes, hashes)
            self._tidy(HOLES)

    def _append(
        self, addresses: list[tuple[Namespace, str]], low: Words, large: Words, sizes: Any, hashes: keywords.Hashes
    ) -> None:
        names = [key.encode() for _, key in addresses]
        joined = b"".join(names)
        columns = self._columns.grown(len(addresses), len(joined))
        first, count = columns.count, columns.count + len(addresses)
        spaces = [self._number(namespace) for namespace, _ in addresses]
        columns.low[:, first:count], columns.large[:, first:count] = low, large
        # Every level is 1 or 3 in size, so its square is 1 or 9.
        columns.scale[first:count] = np.where(sizes > 0, 1 / (SHRINK * np.sqrt(self.code.dim + 8 * sizes)), 0)
        columns.hashes[:, first:count] = hashes.T
        columns.space[first:count] = spaces
        ends = columns.key_end + np.cumsum(np.fromiter(map(len, names), np.int64, len(names)))
        columns.starts[first + 1 : count + 1] = ends
        columns.keys[columns.key_end : columns.key_end + len(joined)] = np.frombuffer(joined, np.uint8)
        columns.key_end += len(joined)
        columns.count = count  # last: a reader takes only whole rows
        self._columns = columns
        self._places.add([_hash(space, name) for space, name in zip(spaces, names, strict=True)], first)

    def remove(self, namespace: Namespace, key: str) -> bool:
        """Whether there was one."""
        with self._lock:
            found = self._kill(namespace, key)
            self._tidy(HOLES)
            return found

    def forget(self, prefix: Namespace) -> int:
        """How many records in and below `prefix` were removed; nothing of them stays in the index's memory."""
        with self._lock:
            columns = self._columns
            inside = self._within(prefix)[columns.space[: columns.count]]
            columns.space[: columns.count][inside] = DEAD
            gone = int(inside.sum())
            columns.dead += gone
            self._tidy(None)
            return gone

    def _kill(self, namespace: Namespace, key: str) -> bool:
        row = self._find(namespace, key)
        if row is None:
            return False
        self._columns.space[row] = DEAD
        self._columns.dead += 1
        return True

    def _find(self, namespace: Namespace, key: str) -> int | None:
        space = self._numbers.get(namespace)
        if space is None:
            return None
        name, columns = key.encode(), self._columns
        for row in self._places.candidates(_hash(space, name)):
            if columns.space[row] == space and columns.key(row) == name:
                return row
        return None

    def _tidy(self, holes: int | None) -> None:
        """Drops dead rows: all when `holes` is None, else when they are more than one in so many and not a few."""
        columns = self._columns
        if not columns.dead or (holes and (columns.dead < ROWS_LEAST or columns.dead * holes < columns.count)):
            return
        rows = np.flatnonzero(columns.space[: columns.count])
        old_names = self._names
        spaces = columns.space[rows]
        sizes = int((columns.starts[rows + 1] - columns.starts[rows]).sum())
        new = columns.copied(rows, max(len(rows), ROWS_LEAST), max(sizes, ROWS_LEAST))
        self._numbers, self._names, self._parents = {}, [()], np.zeros(64, np.int32)
        renumbered = {space: self._number(old_names[space]) for space in np.unique(spaces).tolist()}
        table = np.zeros(len(old_names), np.int32)
        table[list(renumbered)] = list(renumbered.values())
        new.space[: new.count] = table[spaces]
        self._columns, self._places = new, _Places()
        placed = zip(new.space[: new.count].tolist(), range(new.count), strict=True)
        self._places.add([_hash(space, new.key(row)) for space, row in placed], 0)

    def _number(self, namespace: Namespace) -> int:
        """The namespace's number, above DEAD; its parents get theirs first."""
        number = self._numbers.get(namespace)
        if number is None:
            parent = self._number(namespace[:-1]) if namespace else DEAD
            number = len(self._names)
            if number == len(self._parents):
                self._parents = np.concatenate([self._parents, np.zeros_like(self._parents)])
            self._parents[number] = parent
            self._names.append(namespace)
            self._numbers[namespace] = number
        return number

    def _within(self, prefix: Namespace) -> npt.NDArray[np.bool_]:
        """bool by namespace number: those in and below `prefix`."""
        inside = np.zeros(len(self._names), np.bool_)
        if prefix not in self._numbers:
            return inside
        parents = self._parents[: len(inside)]
        inside[self._numbers[prefix]] = True
        if not prefix:
            inside[1:] = True
            return inside
        while True:  # once for each level below the prefix
            wider = inside | inside[parents]
            if (wider == inside).all():
                return inside
            inside = wider

    # -- search --------------------------------------------------------------------------------------------------------

    def search(
        self,
        vector: npt.ArrayLike,
        prefix: Namespace = (),
        most: int = CANDIDATES,
        terms: Sequence[tuple[int, float]] = (),
        total: float = 1.0,
    ) -> list[Near]:
        """The records in and below `prefix` that may be the best: `most` by the vector, and `most` of those that hold
        keywords by both together. `terms` are (hash, weight) of keywords as Query.terms, `total` the weight of all the
        query's keywords. A vector of zeros finds by keywords alone.
        """
        query = self.code.checked(vector)
        with self._lock:  # the rows below `count` of these arrays stay as they are, whatever others do meanwhile
            columns, count, names = self._columns, self._columns.count, self._names
            inside = self._within(prefix)
        view = _View.of(self.code, columns, count, inside)
        rough = view.rough(*self.code.masks(query))
        survivors = max(SURVIVORS, 4 * most)
        gains = view.gains(terms, total) if terms else None
        chosen: dict[int, tuple[float, float]] = {}
        if query.any() and most > 0:
            rows = view.top(rough, survivors)
            chosen.update(view.best(rows, query, gains, most, together=False))
        if gains is not None and most > 0:
            rows = np.flatnonzero(gains)
            if len(rows) > survivors:
                rows = rows[_largest(keywords.fuse_many(rough[rows], gains[rows]), survivors)]
            chosen.update(view.best(rows, query, gains, most, together=True))
        return [Near(names[view.space(row)], view.key(row), *scores) for row, scores in chosen.items()]

    # -- following a tier ----------------------------------------------------------------------------------------------

    def follow(self, tier: Tier) -> int:
        """Brings the index up to what the tier holds now; how many records were read for it.

        The first call, and one that the tier's journal no longer reaches back for, read every code. Raises as the tier.
        """
        with self._following:
            since = self._position
            now_at, changed = tier.batch([Changes(since or 0)])[0]
            if since is None or changed is None:
                return self._rebuild(tier, now_at)
            addresses = list(dict.fromkeys(changed))
            for at in range(0, len(addresses), FOLLOWED):
                part = addresses[at : at + FOLLOWED]
                # At time 0 nothing has expired: those that have are the caller's to leave out.
                records = tier.batch([Get(namespace, key, 0, blob=False) for namespace, key in part])
                gone = [address for address, record in zip(part, records, strict=True) if not record or not record.code]
                for namespace, key in gone:
                    self.remove(namespace, key)
                self.put_many(
                    (record.namespace, record.key, record.code) for record in records if record and record.code
                )
            self._position = now_at
            return len(addresses)

    def _rebuild(self, tier: Tier, position: int) -> int:
        """Reads every code into an index of its own, then takes it over. The journal after `position` has the rest."""
        fresh = CodeIndex("", self.code.dim)
        fresh.code = self.code
        after: tuple[Namespace, str] | None = None
        while page := tier.batch([Codes(after)])[0]:
            fresh._put(page, replacing=False)
            after = page[-1][:2]
        columns = fresh._columns
        fresh._columns = columns.copied(
            slice(0, columns.count), columns.count + ROWS_LEAST, columns.key_end + ROWS_LEAST
        )
        with self._lock:
            self._columns, self._places, self.skipped = fresh._columns, fresh._places, fresh.skipped
            self._numbers, self._names, self._parents = fresh._numbers, fresh._names, fresh._parents
        self._position = position
        return len(fresh) + fresh.skipped


def ranked(found: Iterable[Near], most: int) -> list[Near]:
    """The `most` that are worth scoring first: by cosine and keywords together, and by cosine alone, in turns.

    A signature holds few of a text's keywords, so a score without any says little of the text's own match.
    """
    every = list(found)
    together = sorted(every, key=lambda one: (-one.score, -one.cosine))
    alone = sorted(every, key=lambda one: -one.cosine)
    if all(one.score <= max(one.cosine, 0.0) for one in every):
        return alone[:most]
    turns = chain.from_iterable(zip_longest(together, alone))
    return list(dict.fromkeys(one for one in turns if one is not None))[:most]


class _View:
    """The rows of a search: all of the columns up to a count, or a gathered few. Rows are numbered within the view."""

    def __init__(
        self, code: VectorCode, columns: _Columns, count: int, rows: Rows | None, alive: npt.NDArray[np.bool_] | None
    ) -> None:
        self._code, self._columns, self._rows, self._alive = code, columns, rows, alive
        picked: slice | Rows = slice(0, count) if rows is None else rows
        self._low, self._large, self._hashes = (
            part[:, picked] for part in (columns.low, columns.large, columns.hashes)
        )
        self._scale, self._spaces = columns.scale[picked], columns.space[picked]

    @classmethod
    def of(cls, code: VectorCode, columns: _Columns, count: int, inside: npt.NDArray[np.bool_]) -> _View:
        if not inside.any():
            return cls(code, columns, 0, None, None)
        if not columns.dead and inside[DEAD + 1 :].all():
            return cls(code, columns, count, None, None)
        alive = inside.take(columns.space[:count])
        found = int(np.count_nonzero(alive))
        if found * GATHER < count:
            return cls(code, columns, count, np.flatnonzero(alive), None)
        return cls(code, columns, count, None, alive)

    def space(self, row: int) -> int:
        return int(self._spaces[row])

    def key(self, row: int) -> str:
        return self._columns.key(row if self._rows is None else int(self._rows[row])).decode()

    def rough(self, low: Words, some: Words) -> Floats:
        """float32[rows]: about the cosine, of the signs of the query's larger entries and each row's levels.

        Over those entries, equal signs give the level's size and others take it away: the sum is their number, and
        twice as many as have large levels, less twice those of another sign and four times those of both. LEAST for
        rows outside.
        """
        count = len(self._scale)
        out = np.empty(count, np.float32)
        met, other = np.empty((2, CHUNK), np.uint64)
        bits = np.empty(CHUNK, np.uint8)
        entries = int(counts(some).sum(dtype=np.int64))
        # Sums of set bits are at most the query's entries.
        kind = np.uint8 if entries < 256 else np.uint16
        for at in range(0, count, CHUNK):
            end = min(at + CHUNK, count)
            m, a, c = met[: end - at], other[: end - at], bits[: end - at]
            large, opposed, both = np.zeros((3, end - at), kind)
            for word in range(len(some)):
                np.bitwise_and(self._large[word, at:end], some[word], out=m)
                large += counts(m, out=c)
                np.bitwise_xor(self._low[word, at:end], low[word], out=a)
                a &= some[word]
                opposed += counts(a, out=c)
                a &= m
                both += counts(a, out=c)
            part = large.astype(np.float32)
            part -= opposed
            part -= both
            part -= both
            part += np.float32(entries / 2)
            np.multiply(part, self._scale[at:end], out=out[at:end])
        out *= np.float32(2 / max(np.sqrt(entries), 1.0))
        if self._alive is not None:
            out[~self._alive] = LEAST
        return out

    def top(self, rough: Floats, most: int) -> Rows:
        """The rows with the highest scores, unordered, none of those outside."""
        rows = _largest(rough, most)
        return rows[rough[rows] > LEAST]

    def best(
        self, rows: Rows, query: Floats, gains: Floats | None, most: int, together: bool
    ) -> list[tuple[int, tuple[float, float]]]:
        """(row, (cosine, score)) of the `most` best of some rows, by the score when `together`, else by the cosine."""
        cosines = self.fine(rows, query)
        scores = keywords.fuse_many(cosines, np.float32(0) if gains is None else gains[rows])
        order = np.lexsort((rows, -(scores if together else cosines)))[:most]
        pairs = zip(cosines[order].tolist(), scores[order].tolist(), strict=True)
        return list(zip(rows[order].tolist(), pairs, strict=True))

    def fine(self, rows: Rows, query: Floats) -> Floats:
        """float32[len(rows)]: about the cosine, of the query itself and each row's levels."""
        planes = [
            np.ascontiguousarray(plane[:, rows].T).astype("<u8", copy=False).view(np.uint8)[:, : self._code.plane]
            for plane in (self._low, self._large)
        ]
        scores: Floats = (self._code.levels(np.concatenate(planes, axis=1)) @ query) * self._scale[rows]
        return scores

    def gains(self, terms: Sequence[tuple[int, float]], total: float) -> Floats:
        """float32[rows]: the share of the keywords' weight that each row's signature holds, 0..1; 0 outside."""
        out = np.zeros(len(self._scale), np.float32)
        for value, share in terms:
            held = np.zeros(len(out), np.bool_)
            for column in self._hashes:
                held |= column == value
            out[held] += np.float32(share / total)
        if self._alive is not None:
            out[~self._alive] = 0
        return out


def _largest(scores: npt.NDArray[np.float32], most: int) -> Rows:
    """Where the `most` largest are, unordered. A sample tells the least of them roughly, so that few need be parted."""
    count = len(scores)
    if count <= most:
        return np.arange(count)
    if count > SAMPLED * most:
        sample = np.sort(scores[::SAMPLE_STEP])
        bound = sample[max(len(sample) - 2 * most // SAMPLE_STEP - 8, 0)]
        rows = np.flatnonzero(scores > bound)
        if len(rows) >= most:
            return rows[np.argpartition(scores[rows], -most)[-most:]] if len(rows) > most else rows
    return np.argpartition(scores, -most)[-most:]


__all__ = ["CANDIDATES", "CodeIndex", "Near", "ranked"]
