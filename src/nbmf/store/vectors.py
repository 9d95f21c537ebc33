"""Compact codes of vectors, and the index that scans them in memory.

A code is one byte that names its format and embedder, the vector with one of three levels a dimension (five dimensions
a byte), and the signature of the text's keywords (keywords.py). In memory the levels lie as two planes of bits, so that
a query is compared with a record by counting bits; the best few are then scored with the query's full precision.
"""

from __future__ import annotations

import functools
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nbmf.errors import FormatError, PolicyError
from nbmf.store import keywords
from nbmf.store.base import Changes, Codes, Get, Namespace, Tier

CODE_VERSION: Final = 1
PER_BYTE: Final = 5  # levels of a byte: 3**5 = 243 <= 256
DIM_LEAST: Final = 8
DIM_MOST: Final = 8192
THRESHOLD: Final = 0.5  # in root mean squares of a vector: smaller entries become 0

CHUNK: Final = 32768  # rows that are scanned at a time, so that what is between lies in the cache
SURVIVORS: Final = 600  # rows that counting bits leaves for scoring
ROWS_LEAST: Final = 1024  # rows that an empty index has room for
GATHER: Final = 4  # a prefix with fewer than one in so many rows is gathered before it is scanned
HOLES: Final = 4  # compacted when more than one row in so many is dead
PENDING: Final = 4096  # rows that wait in a dict before they are merged into the sorted table

CANDIDATES: Final = 56  # records that a search returns, for exact scoring
EXTRA: Final = 16  # of them, those that are there for their keywords, at most
SAMPLE_STEP: Final = 16
SAMPLED: Final = 16  # so many times more scores than wanted, and a sample is drawn first
FOLLOWED: Final = 1024  # changed records that are read at a time
LEAST: Final = np.float32(-2.0)  # below any score

DEAD: Final = 0  # the namespace number of rows that were removed

Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]
Found = tuple[Namespace, str, float]

_LEVELS: Final = (np.arange(256)[:, None] // 3 ** np.arange(PER_BYTE) % 3 - 1).astype(np.int8)
_POWERS: Final = (3 ** np.arange(PER_BYTE)).astype(np.uint8)


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


_counts: Callable[..., npt.NDArray[np.uint8]] = getattr(np, "bitwise_count", _counts_by_table)


class VectorCode:
    """The code of one embedder's vectors. `size` is its bytes without a signature: 52 for 256 dimensions."""

    def __init__(self, embedder: str, dim: int) -> None:
        if not DIM_LEAST <= dim <= DIM_MOST:
            raise PolicyError(f"vectors have {DIM_LEAST} to {DIM_MOST} dimensions, not {dim}")
        self.dim = dim
        self.tag = 1 + zlib.crc32(f"{CODE_VERSION} {dim} {embedder}".encode()) % 255
        self.kept = dim // PER_BYTE * PER_BYTE  # dimensions that are coded: at most the last four are left out
        self.size = 1 + self.kept // PER_BYTE
        self.words = (self.kept + 63) // 64

    def encode(self, vector: npt.ArrayLike, signature: bytes = b"") -> bytes:
        """The code of a vector of norm 1 (or 0), followed by the signature of its text's keywords."""
        levels = self.levels(vector)
        digits = (levels + 1).astype(np.uint8).reshape(-1, PER_BYTE)
        packed: Counts = (digits * _POWERS).sum(axis=1, dtype=np.uint8)
        return bytes((self.tag,)) + packed.tobytes() + signature

    def levels(self, vector: npt.ArrayLike) -> npt.NDArray[np.int8]:
        """int8[kept], -1, 0 or 1: the sign of entries above THRESHOLD times the root mean square."""
        values = np.asarray(vector, np.float32)
        if values.shape != (self.dim,):
            raise PolicyError(f"a vector of shape {values.shape} where ({self.dim},) was due")
        if not np.isfinite(values).all():
            raise PolicyError("a vector holds a number that is not finite")
        wide = values[: self.kept].astype(np.float64)
        least = THRESHOLD * np.sqrt(np.dot(wide, wide) / self.kept)
        levels: npt.NDArray[np.int8] = np.sign(wide).astype(np.int8) * (np.abs(wide) > least)
        return levels

    def fits(self, code: bytes) -> bool:
        """Whether `code` is one of this embedder, in this version."""
        extra = len(code) - self.size
        whole = 0 <= extra <= keywords.SIGNATURE_MOST and extra % keywords.HASH_BYTES == 0
        return whole and code[0] == self.tag

    def decode(self, code: bytes) -> tuple[npt.NDArray[np.float32], bytes]:
        """The vector that a code stands for, float32[dim] of norm 1 (or 0), and the signature. Raises FormatError."""
        if not self.fits(code):
            raise FormatError(f"a code of {len(code)} bytes is not one of this embedder")
        levels = np.zeros(self.dim, np.float32)
        levels[: self.kept] = _LEVELS[np.frombuffer(code, np.uint8, self.size - 1, 1)].reshape(-1)
        return levels / np.float32(max(np.sqrt(np.dot(levels, levels)), 1.0)), code[self.size :]

    def planes(self, levels: npt.NDArray[np.int8]) -> tuple[Words, Words]:
        """Two uint64[words, n] of int8[n, kept]: bits of the entries that are not 0, and of those below 0."""
        pad = ((0, 0), (0, 64 * self.words - self.kept))
        pair = [np.packbits(np.pad(bits, pad), axis=1, bitorder="little") for bits in (levels != 0, levels < 0)]
        some, low = (np.ascontiguousarray(bits.view("<u8").T.astype(np.uint64)) for bits in pair)
        return some, low


class _Columns:
    """Rows of the index by column; all arrays have the same capacity. Rows below `count` are never written again, save
    that `space` becomes DEAD, so a reader that took the arrays and `count` sees whole rows without a lock."""

    def __init__(self, words: int, capacity: int, key_bytes: int) -> None:
        self.count = 0
        self.dead = 0
        self.key_end = 0
        self.some = np.zeros((words, capacity), np.uint64)
        self.low = np.zeros((words, capacity), np.uint64)
        self.scale = np.zeros(capacity, np.float32)  # 1 / norm of the levels, 0 for none
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
        new = _Columns(len(self.some), capacity, room)
        new.count = count = len(self.space[rows])
        for ours, theirs in ((self.some, new.some), (self.low, new.low), (self.hashes, new.hashes)):
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
        parts = (self.some, self.low, self.scale, self.hashes, self.space, self.starts, self.keys)
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
        size = self.code.size
        raw = np.frombuffer(b"".join(code[1:size] for code in good.values()), np.uint8).reshape(len(good), size - 1)
        levels = _LEVELS[raw].reshape(len(good), self.code.kept)
        some, low = self.code.planes(levels)
        norms = np.sqrt(_counts(some).sum(axis=0, dtype=np.int64))
        hashes = keywords.unpack_many([code[size:] for code in good.values()])
        with self._lock:
            self.skipped += len(latest) - len(good)
            if replacing and len(self):
                for namespace, key in latest:
                    self._kill(namespace, key)
            self._append(list(good), some, low, norms, hashes)
            self._tidy(HOLES)

    def _append(
        self, addresses: list[tuple[Namespace, str]], some: Words, low: Words, norms: Any, hashes: keywords.Hashes
    ) -> None:
        names = [key.encode() for _, key in addresses]
        joined = b"".join(names)
        columns = self._columns.grown(len(addresses), len(joined))
        first, count = columns.count, columns.count + len(addresses)
        spaces = [self._number(namespace) for namespace, _ in addresses]
        columns.some[:, first:count], columns.low[:, first:count] = some, low
        columns.scale[first:count] = np.where(norms > 0, 1 / np.maximum(norms, 1), 0)
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
        candidates: int = CANDIDATES,
        terms: Sequence[tuple[int, float]] = (),
        extra: int = EXTRA,
    ) -> list[Found]:
        """The records in and below `prefix` that most likely lie nearest: (namespace, key, approximate cosine).

        At most `candidates`: the nearest, nearest first, then up to `extra` others that hold the keywords of `terms`
        (Query.terms), those that hold the most first. A vector of zeros finds by keywords alone.
        """
        levels = self.code.levels(vector)
        with self._lock:  # the rows below `count` of these arrays stay as they are, whatever others do meanwhile
            columns, count, names = self._columns, self._columns.count, self._names
            inside = self._within(prefix)
        view = _View.of(self.code.kept, columns, count, inside)
        query = np.asarray(vector, np.float32)[: self.code.kept]
        some, low = (plane[:, 0] for plane in self.code.planes(levels[None, :]))
        rough = view.rough(some, low)
        extra = min(extra, candidates) if terms else 0
        nearest: list[tuple[int, float]] = []
        if levels.any() and candidates > 0:
            rows = view.top(rough, max(SURVIVORS, 4 * candidates))
            scores = view.fine(rows, query)
            order = np.lexsort((rows, -scores))[:candidates]
            nearest = list(zip(rows[order].tolist(), scores[order].tolist(), strict=True))
        sure = {row for row, _ in nearest[: candidates - extra]}
        holding: list[tuple[int, float]] = []
        if extra:
            gains = view.gains(terms)
            rows = np.flatnonzero(gains)
            if len(rows) > candidates + extra:
                rows = rows[_largest(gains[rows] + rough[rows], candidates + extra)]
            scores = view.fine(rows, query)
            order = np.lexsort((rows, -(gains[rows] + scores)))
            ranked = zip(rows[order].tolist(), scores[order].tolist(), strict=True)
            holding = [pair for pair in ranked if pair[0] not in sure][:extra]
        held = {row for row, _ in holding}
        chosen = [pair for pair in nearest if pair[0] not in held][: candidates - len(holding)] + holding
        return [(names[view.space(row)], view.key(row), score) for row, score in chosen]

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


class _View:
    """The rows of a search: all of the columns up to a count, or a gathered few. Rows are numbered within the view."""

    def __init__(
        self, kept: int, columns: _Columns, count: int, rows: Rows | None, alive: npt.NDArray[np.bool_] | None
    ) -> None:
        self._kept, self._columns, self._rows, self._alive = kept, columns, rows, alive
        picked: slice | Rows = slice(0, count) if rows is None else rows
        self._some, self._low, self._hashes = (part[:, picked] for part in (columns.some, columns.low, columns.hashes))
        self._scale, self._spaces = columns.scale[picked], columns.space[picked]

    @classmethod
    def of(cls, kept: int, columns: _Columns, count: int, inside: npt.NDArray[np.bool_]) -> _View:
        if not inside.any():
            return cls(kept, columns, 0, None, None)
        if not columns.dead and inside[DEAD + 1 :].all():
            return cls(kept, columns, count, None, None)
        alive = inside.take(columns.space[:count])
        found = int(np.count_nonzero(alive))
        if found * GATHER < count:
            return cls(kept, columns, count, np.flatnonzero(alive), None)
        return cls(kept, columns, count, None, alive)

    def space(self, row: int) -> int:
        return int(self._spaces[row])

    def key(self, row: int) -> str:
        return self._columns.key(row if self._rows is None else int(self._rows[row])).decode()

    def rough(self, some: Words, low: Words) -> npt.NDArray[np.float32]:
        """float32[rows]: the cosine of the query's levels and each row's; LEAST for rows outside."""
        count = len(self._scale)
        out = np.empty(count, np.float32)
        both, against = np.empty((2, CHUNK), np.uint64)
        bits = np.empty(CHUNK, np.uint8)
        # Sums of set bits: at most `kept`, so below 256 for the common embedders.
        kind = np.uint8 if self._kept < 256 else np.uint16
        for at in range(0, count, CHUNK):
            end = min(at + CHUNK, count)
            b, a, c = both[: end - at], against[: end - at], bits[: end - at]
            met, opposed = np.zeros((2, end - at), kind)
            for word in range(len(some)):
                np.bitwise_and(self._some[word, at:end], some[word], out=b)
                met += _counts(b, out=c)
                np.bitwise_xor(self._low[word, at:end], low[word], out=a)
                a &= b
                opposed += _counts(a, out=c)
            part = met.astype(np.float32)
            part -= opposed
            part -= opposed
            np.multiply(part, self._scale[at:end], out=out[at:end])
        out /= np.float32(max(np.sqrt(int(_counts(some).sum(dtype=np.int64))), 1.0))
        if self._alive is not None:
            out[~self._alive] = LEAST
        return out

    def top(self, rough: npt.NDArray[np.float32], most: int) -> Rows:
        """The rows with the highest scores, unordered, none of those outside."""
        rows = _largest(rough, most)
        return rows[rough[rows] > LEAST]

    def fine(self, rows: Rows, query: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """float32[len(rows)]: the product of the query itself and each row's levels, over the row's norm."""
        parts = []
        for plane in (self._some, self._low):
            raw = np.ascontiguousarray(plane[:, rows].T).astype("<u8", copy=False).view(np.uint8)
            bits = np.unpackbits(raw, axis=1, bitorder="little", count=len(query))
            parts.append(bits.astype(np.float32) @ query)
        scores: npt.NDArray[np.float32] = (parts[0] - 2 * parts[1]) * self._scale[rows]
        return scores

    def gains(self, terms: Sequence[tuple[int, float]]) -> npt.NDArray[np.float32]:
        """float32[rows]: the sum of the weights of the terms in each row's signature; 0 outside."""
        out = np.zeros(len(self._scale), np.float32)
        for value, share in terms:
            held = np.zeros(len(out), np.bool_)
            for column in self._hashes:
                held |= column == value
            out[held] += np.float32(share)
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


__all__ = ["CANDIDATES", "CODE_VERSION", "EXTRA", "CodeIndex", "VectorCode"]
