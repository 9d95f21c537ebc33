"""Reading archives: indexes and decoded blocks are kept in memory, up to a size; what is not is read by range."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from nbmf.errors import CorruptRecord, FormatError
from nbmf.store.archive import Archive, GroupCoder, Part, Seal
from nbmf.store.manifest import Listed
from nbmf.store.objects import Objects

CACHE_SIZE: Final = 64 << 20  # bytes kept in memory, about
READ_MOST: Final = 4 << 20  # bytes of neighbouring blocks that are read at once, about

_THREADS: Final = min(os.cpu_count() or 1, 16)
T = TypeVar("T")


class Cache:
    """What was last used, up to a cost in bytes. Thread-safe; two threads may make the same thing at the same time."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[tuple[str, str, int], tuple[Any, int]] = OrderedDict()
        self._cost = 0
        self._lock = threading.Lock()

    def find(self, key: tuple[str, str, int]) -> Any:
        with self._lock:
            if (found := self._held.get(key)) is None:
                return None
            self._held.move_to_end(key)
            return found[0]

    def keep(self, key: tuple[str, str, int], value: T, cost: int) -> T:
        with self._lock:
            self._cost += cost - self._held.pop(key, (None, 0))[1]
            self._held[key] = value, cost
            while self._cost > self._most and len(self._held) > 1:
                self._cost -= self._held.popitem(last=False)[1][1]
        return value

    def drop(self, ids: set[str]) -> None:
        """Drops what is kept under keys that start with one of these."""
        with self._lock:
            for key in [key for key in self._held if key[0] in ids]:
                self._cost -= self._held.pop(key)[1]


@contextlib.contextmanager
def naming(listed: Listed) -> Iterator[None]:
    """Errors of what is in an archive name it."""
    try:
        yield
    except (CorruptRecord, FormatError) as error:
        raise type(error)(f"archive {listed.id}: {error}") from None


class Shelf:
    """The archives among some objects. Thread-safe."""

    def __init__(
        self,
        objects: Objects,
        coder_by_id: Callable[[str], GroupCoder],
        seal_of: Callable[[str], Seal | None],
        cache_size: int,
    ) -> None:
        self.objects = objects
        self.coder_by_id = coder_by_id
        self.seal_of = seal_of
        self._cache = Cache(cache_size)

    def open(self, listed: Listed) -> Archive:
        """Its index. Raises ObjectMissing, CorruptRecord, FormatError; PolicyError when there is no key for it."""
        key = listed.id, "index", 0
        if (found := self._cache.find(key)) is not None:
            kept: Archive = found
            return kept
        archive = self.parse(listed, self.objects.get(listed.name, listed.size - listed.index, listed.index))
        return self._cache.keep(key, archive, archive.cost)

    def drop(self, ids: set[str]) -> None:
        """Keeps nothing more of these archives."""
        if ids:
            self._cache.drop(ids)

    def parse(self, listed: Listed, tail: bytes) -> Archive:
        """The index in the last bytes of an archive."""
        with naming(listed):
            archive = Archive(tail, listed.size, self.seal_of(listed.group), partial(self._keep, listed.id))
            if archive.id.hex() != listed.id or archive.count != listed.count:
                raise CorruptRecord("the object is another archive than the manifest lists")
        return archive

    def _keep(self, id: str, kind: type[Part], section: int, make: Callable[[], Part]) -> Part:
        if (found := self._cache.find((id, kind.__name__, section))) is not None:
            kept: Part = found
            return kept
        part = make()
        return self._cache.keep((id, kind.__name__, section), part, part.cost)

    def blobs(
        self, listed: Listed, archive: Archive, numbers: Iterable[int], whole: bytes | None = None
    ) -> dict[int, bytes]:
        """The blobs of records of one archive. Each block is read and decoded once, neighbours in one read.

        `whole` is the archive's object, where that is at hand: then nothing is read.
        """
        blocks = {number: archive.block_of(number) for number in numbers}
        decoded = {block: self._cache.find((listed.id, "block", block)) for block in set(blocks.values())}
        missing = sorted(block for block, found in decoded.items() if found is None)
        runs: list[list[int]] = []
        for block in missing:
            here = archive.blocks[block]
            if runs and runs[-1][-1] == block - 1 and here.start - archive.blocks[runs[-1][0]].start < READ_MOST:
                runs[-1].append(block)
            else:
                runs.append([block])
        for run in runs:
            decoded.update(zip(run, self._decode(listed, archive, run, whole), strict=True))
        return {number: decoded[block][number - archive.blocks[block].first] for number, block in blocks.items()}

    def _decode(self, listed: Listed, archive: Archive, run: Sequence[int], whole: bytes | None) -> list[list[bytes]]:
        """The blobs of the records of each of some blocks that stand one after the other, in one read."""
        coder = self.coder_by_id(archive.coder)
        start, last = archive.blocks[run[0]].start, archive.blocks[run[-1]]
        end = last.start + last.length
        data = self.objects.get(listed.name, start, end - start) if whole is None else whole[start:end]
        stored = [data[at.start - start : at.start - start + at.length] for at in (archive.blocks[i] for i in run)]
        with naming(listed):
            coded = list(map(archive.open_block, run, stored))
        first: list[bytes] = []
        if run[0] > 0 and any(map(coder.follows, coded)):
            key = listed.id, "block", 0
            first = self._cache.find(key) or self._decode(listed, archive, [0], whole)[0]

        def one(block: int, coded: bytes) -> list[bytes]:
            count = archive.blocks[block].records
            try:
                if block == 0 and coder.follows(coded):
                    raise CorruptRecord("it is the first, and follows another")
                blobs = coder.decode(coded, count, lambda: first)
            except (CorruptRecord, FormatError) as error:
                raise CorruptRecord(f"block {block}: {error}") from None
            if len(blobs) != count:
                raise CorruptRecord(f"block {block}: {len(blobs)} records, not {count}")
            return self._cache.keep((listed.id, "block", block), blobs, sum(map(len, blobs)) + 60 * count)

        with naming(listed):
            if run[0] == 0:
                first = one(0, coded[0])
                run, coded, done = run[1:], coded[1:], [first]
            else:
                done = []
            if len(run) < 2:
                return [*done, *map(one, run, coded)]
            with ThreadPoolExecutor(_THREADS) as pool:
                return [*done, *pool.map(one, run, coded)]


__all__ = ["CACHE_SIZE", "Cache", "Shelf", "naming"]
