"""The cold tier: immutable archives and one manifest, in a directory or an S3-compatible store.

A batch of puts becomes one new archive for each group of namespaces. A group is a tenant, so archives never mix them.
Deletes and replacements are noted in the manifest until `compact` rewrites. Every change is: new objects first, then
the swap of the manifest, then the deletion of what it no longer lists. Each batch makes an object: put many records.

A crash leaves objects that no manifest lists. `compact` and `Forget` delete those, but never what a writer has just
written and is about to list: they count up `sweeps` by a swap between listing and deleting, and a writer whose swap was
lost lists an object later only if nobody has swept since it was written.
"""

from __future__ import annotations

import contextlib
import heapq
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, Final, NamedTuple

from nbmf.errors import CorruptRecord, NbmfError, PolicyError, StoreError, UnknownModel
from nbmf.store.address import Address, address
from nbmf.store.archive import RECORDS_MOST, WRITE_VERSION, Archive, GroupCoder, Seal
from nbmf.store.archive_writer import BLOCK_SIZE, PRIMER_SIZE, Built, Writer, raw_size
from nbmf.store.base import Delete, Expire, Fault, Forget, Get, Namespace, Op, Put, Record, Tier
from nbmf.store.manifest import FOLDER, NAME, Listed, Manifest, Told, unpack
from nbmf.store.objects import ObjectMissing, Objects
from nbmf.store.pending import Pending
from nbmf.store.shelf import CACHE_SIZE, Shelf, naming

MERGE_RECORDS: Final = 4096  # an archive of fewer is merged with others of its group
MERGE_MOST: Final = 4 * RECORDS_MOST  # records that one merge takes, about
AHEAD: Final = 1 << 20  # raw bytes that are decoded at once in rewriting, about
TRIES: Final = 64  # swaps that are tried against other writers
WAIT: Final = 0.01  # seconds at most after the first lost swap; it grows with each


def tenant(namespace: Namespace) -> str:
    """The group of a namespace: its first segment."""
    return namespace[0]


class ArchiveTier(Tier):
    """Records in archives. Thread-safe, and for several processes at once. Blobs that it gives back need no model.

    `coder` writes blocks; with `coder_of`, the group's own does. `coder_by_id` finds who reads the blocks of an id
    (raising UnknownModel), `coder` alone if it is not given. `seal_of` gives a group's key, or None; that of the group
    "" seals the manifest. `group` tells the group of a namespace. `block_size` is in raw bytes, as is `primer_size`: of
    an archive's first block, which the others are coded after (0: they are not). `size` tells about how many a (codec
    id, bare blob) holds. Raises StoreError, FormatError, CorruptRecord.
    """

    def __init__(
        self,
        objects: Objects,
        coder: GroupCoder,
        *,
        coder_of: Callable[[str], GroupCoder] | None = None,
        coder_by_id: Callable[[str], GroupCoder] | None = None,
        seal_of: Callable[[str], Seal | None] = lambda group: None,
        group: Callable[[Namespace], str] = tenant,
        block_size: int = BLOCK_SIZE,
        primer_size: int = PRIMER_SIZE,
        size: Callable[[str, bytes], int] = raw_size,
        cache_size: int = CACHE_SIZE,
    ) -> None:
        self._objects = objects
        self._coder = coder
        self._coder_of = coder_of or (lambda group: coder)
        self._seal_of = seal_of
        self._group = group
        self._block_size, self._primer_size, self._size = block_size, primer_size, size
        self._shelf = Shelf(objects, coder_by_id or self._own_coder, seal_of, cache_size)
        self._known = "", Manifest()  # the manifest's tag, and what it says
        self._lock = threading.Lock()  # of _known
        self._writing = threading.RLock()  # this process's writers wait for each other, rather than lose swaps
        self._closed = False
        self._prepared: dict[str, tuple[list[Record], list[Built]]] = {}  # by group
        self._begin()

    def batch(self, ops: Sequence[Op]) -> list[Any]:
        self._check_open()
        writes = any(isinstance(op, Put | Delete | Forget | Expire) or (isinstance(op, Get) and op.renew) for op in ops)
        with self._writing if writes else contextlib.nullcontext(), _Written(self._objects) as written:
            for tries in range(TRIES):
                tag, manifest = self._refresh()
                pending = Pending(self._shelf, manifest)
                try:
                    results = [pending.apply(op) for op in ops]
                    if not pending.changed or self._commit(tag, pending, written):
                        break
                except ObjectMissing as error:
                    # What another has just compacted away is in no newer manifest.
                    if self._refresh()[0] == tag:
                        raise CorruptRecord(f"the manifest lists what is not there: {error}") from None
                time.sleep(random.uniform(0, WAIT * (tries + 1)))
            else:
                raise StoreError(f"{TRIES} swaps of the manifest were lost to other writers")
            if pending.forgets:
                self._sweep()
            return results

    def prepare(self, records: Sequence[Record]) -> None:
        """Codes records ahead: the next batch that puts just these, in this order, only writes them."""
        self._check_open()
        by_group: dict[str, list[Record]] = {}
        for record in records:
            by_group.setdefault(self._group(record.namespace), []).append(record)
        self._prepared = {group: (mine, self._build(group, mine)) for group, mine in by_group.items()}

    def held(self, group: str) -> tuple[int, int]:
        """How many records a group has, expired ones too, and the bytes of its archives. Nothing of them is read."""
        self._check_open()
        mine = [listed for listed in self._refresh()[1].archives if listed.group == group]
        return sum(listed.count - len(listed.dead) for listed in mine), sum(listed.size for listed in mine)

    def version(self) -> int:
        self._check_open()
        return self._refresh()[1].version

    def check(self) -> Iterator[Fault]:
        self._check_open()
        try:
            manifest = self._refresh()[1]
        except NbmfError as error:
            yield Fault(NAME, str(error))
            return
        whole: list[Listed] = []
        for listed in manifest.archives:
            try:
                faults = list(self._check_archive(listed))
            except ObjectMissing:
                if listed.id not in {one.id for one in self._refresh()[1].archives}:
                    continue  # compacted away meanwhile
                faults = ["the object is missing"]
            except NbmfError as error:
                faults = [str(error)]
            yield from (Fault(listed.name, fault) for fault in faults)
            if not faults:
                whole.append(listed)
        yield from self._check_once(whole)

    def compact(self) -> None:
        """Also merges small archives of a group. Raises PolicyError where a later version has written the manifest."""
        self._check_open()
        _, manifest = self._refresh()
        by_group = sorted(manifest.archives, key=lambda listed: listed.group)
        for group, listed in groupby(by_group, key=lambda listed: listed.group):
            for victims in _to_rewrite(list(listed)):
                self._rewrite(group, victims)
        self._sweep()

    def sizes(self) -> dict[str, int]:
        """ "blocks" and "indexes" of archives, "manifest", and "orphans": what no manifest lists."""
        self._check_open()
        manifest = self._refresh()[1]
        index_of = {listed.name: listed.index for listed in manifest.archives}
        sizes = {"blocks": 0, "indexes": 0, "manifest": 0, "orphans": 0}
        for name, size in self._objects.list():
            if name in index_of:
                sizes["indexes"] += index_of[name]
                sizes["blocks"] += size - index_of[name]
            else:
                sizes["manifest" if name == NAME else "orphans"] += size
        return {**sizes, "count": sum(listed.count - len(listed.dead) for listed in manifest.archives)}

    def close(self) -> None:
        """Closes the objects too."""
        self._closed = True
        self._objects.close()

    # -- the manifest --------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the cold tier is closed")

    def _own_coder(self, id: str) -> GroupCoder:
        if id != self._coder.id:
            raise UnknownModel(id)
        return self._coder

    def _begin(self) -> None:
        """Makes the manifest of a new tier. Archives without one are not a new tier's."""
        if self._objects.load(NAME)[0]:
            self._refresh()
            return
        if any(True for _ in self._objects.list(FOLDER)):
            raise StoreError("there are archives, and no manifest: it was lost, or this is no cold tier")
        self._objects.swap(NAME, Manifest(version=1).pack(self._seal_of("")), "")
        self._refresh()

    def _refresh(self) -> tuple[str, Manifest]:
        """The manifest as it is now, and its tag."""
        known = self._known
        tag, data = self._objects.load(NAME, known[0])
        if not tag:
            raise StoreError("the manifest is gone")
        if data is None:
            return known
        return self._learn(tag, unpack(data, self._seal_of("")))

    def _learn(self, tag: str, manifest: Manifest) -> tuple[str, Manifest]:
        with self._lock:
            if manifest.version >= self._known[1].version:
                gone = {one.id for one in self._known[1].archives} - {one.id for one in manifest.archives}
                self._known = tag, manifest
                self._shelf.drop(gone)
        return tag, manifest

    def _swap(self, tag: str, manifest: Manifest) -> bool:
        """Whether this manifest has taken the place of the one with that tag. Raises StoreError when nobody knows."""
        new = self._objects.swap(NAME, manifest.pack(self._seal_of("")), tag)
        if new:
            self._learn(new, manifest)
        return bool(new)

    # -- committing ----------------------------------------------------------------------------------------------------

    def _commit(self, tag: str, pending: Pending, written: _Written) -> bool:
        """Whether it is done; if not, another writer was faster."""
        manifest = pending.manifest
        _check_writable(manifest)
        archives = pending.listed()
        affected = [listed for listed in archives if listed.id in pending.rewrite]
        new: list[Listed] = []
        by_group: dict[str, list[Record]] = {}
        for record in pending.puts.values():
            by_group.setdefault(self._group(record.namespace), []).append(record)
        fresh: list[tuple[Listed, int]] = []
        for group, records in by_group.items():
            fresh += written.put(group, records, manifest.sweeps, partial(self._build, group, records))
        for listed in affected:
            built = self._rebuild(listed.group, [listed])
            new += [one for one, _ in written.put_once(listed.group, built)]
        told = [*pending.parts(), *(Told(listed.id, codes, None) for listed, codes in fresh)]
        kept = [listed for listed in archives if listed.id not in pending.rewrite]
        after = manifest.next([*kept, *new, *(listed for listed, _ in fresh)], told, lost=bool(affected))
        if not written.listed_by(after, partial(self._swap, tag, after)):
            return False
        for listed in affected:
            self._objects.delete(listed.name)
        return True

    def _build(self, group: str, records: list[Record]) -> list[Built]:
        """The archives of new records."""
        known = self._prepared.pop(group, None)
        if known is not None and known[0] == records:
            return known[1]
        writers: list[Writer] = []
        for _, record in sorted((address(record.namespace, record.key), record) for record in records):
            self._room(writers, group).add(record)
        return [writer.finish() for writer in writers]

    def _room(self, writers: list[Writer], group: str) -> Writer:
        if not writers or writers[-1].full:
            writers.append(self._writer(group))
        return writers[-1]

    def _writer(self, group: str) -> Writer:
        return Writer(self._coder_of(group), self._seal_of(group), self._block_size, self._size, self._primer_size)

    # -- rewriting -----------------------------------------------------------------------------------------------------

    def _rewrite(self, group: str, victims: Sequence[Listed]) -> None:
        """Puts what lives of some archives into new ones. What others change of them meanwhile is not lost."""
        for tries in range(TRIES):
            by_id = {listed.id: listed for listed in self._refresh()[1].archives}
            victims = [by_id[listed.id] for listed in victims if listed.id in by_id]
            if not victims:
                return
            # Others may write while this codes, but when that has failed twice this process's wait.
            with self._writing if tries > 1 else contextlib.nullcontext(), _Written(self._objects) as written:
                try:
                    sweeps = self._refresh()[1].sweeps
                    new = [one for one, _ in written.put_once(group, self._rebuild(group, victims))]
                    if self._replace(victims, new, sweeps, written):
                        break
                except ObjectMissing:
                    if tries == TRIES - 1:
                        raise
        else:
            raise StoreError(f"{TRIES} rewritings of archives were overtaken by other writers")
        for listed in victims:
            self._objects.delete(listed.name)

    def _replace(self, victims: Sequence[Listed], new: Sequence[Listed], sweeps: int, written: _Written) -> bool:
        """Swaps archives for others, unless somebody has changed them or swept."""
        for _ in range(TRIES):
            tag, manifest = self._refresh()
            _check_writable(manifest)
            kept = [listed for listed in manifest.archives if listed not in victims]
            if len(kept) + len(victims) > len(manifest.archives) or manifest.sweeps != sweeps:
                return False
            after = manifest.next([*kept, *new])
            if written.listed_by(after, partial(self._swap, tag, after)):
                return True
        return False

    def _rebuild(self, group: str, sources: Sequence[Listed]) -> list[Built]:
        """New archives of the live records of some. Blocks are copied where a writer takes them, else coded anew."""
        olds = [_Old(self._shelf, listed) for listed in sources if len(listed.dead) < listed.count]
        order = heapq.merge(*(_live(i, old.listed, old.archive) for i, old in enumerate(olds)))
        # What lives of a block, or of a part of it where records of another archive stand between.
        parts = [
            _Part(olds[source], block, [number for *_, number in part])
            for (source, block), part in groupby(order, lambda of: (of[1], olds[of[1]].archive.block_of(of[2])))
        ]
        writers: list[Writer] = []
        ready: dict[tuple[str, int], bytes] = {}
        decoded = 0  # parts whose blobs are, or were, in `ready`
        for i, part in enumerate(parts):
            writer = self._room(writers, group)
            if len(writer) >= MERGE_RECORDS <= part.old.live and part.block == 0:
                fresh = self._writer(group)
                if part.fits(fresh):  # as will what follows that block, and only there
                    writers.append(writer := fresh)
            if part.fits(writer):
                blobs = self._blobs([part]) if len(writer) == 0 else None
                writer.copy(part.records(blobs), part.old.coded(part.block), part.raw)
                continue
            if i >= decoded:
                ahead = _ahead(parts, i, writer)
                ready, decoded = self._blobs(ahead), i + len(ahead)
            for record in part.records(ready):
                writer.add(record)
        return [writer.finish() for writer in writers]

    def _blobs(self, parts: Sequence[_Part]) -> dict[tuple[str, int], bytes]:
        """The blobs of records by archive and number."""
        wanted: dict[str, tuple[_Old, list[int]]] = {}
        for part in parts:
            wanted.setdefault(part.old.listed.id, (part.old, []))[1].extend(part.numbers)
        return {
            (id, number): blob
            for id, (old, numbers) in wanted.items()
            for number, blob in self._shelf.blobs(old.listed, old.archive, numbers, old.data).items()
        }

    def _sweep(self) -> None:
        """Deletes what no manifest lists."""
        found = [name for name, _ in self._objects.list(FOLDER)]
        for _ in range(TRIES):
            tag, manifest = self._refresh()
            orphans = set(found) - {listed.name for listed in manifest.archives}
            if not orphans:
                break
            _check_writable(manifest)
            if self._swap(tag, manifest.next(manifest.archives, sweep=True)):
                for name in orphans:
                    self._objects.delete(name)
                break
        self._objects.tidy()

    # -- checking ------------------------------------------------------------------------------------------------------

    def _check_archive(self, listed: Listed) -> Iterator[str]:
        data = self._objects.get(listed.name)
        if len(data) != listed.size:
            yield f"the object has {len(data)} bytes, not {listed.size}"
            return
        archive = self._shelf.parse(listed, data[-listed.index :])
        faults = list(archive.verify(data))
        if not faults and (archive.namespaces[0], archive.namespaces[-1]) != (listed.first, listed.last):
            faults.append("its namespaces are not those that the manifest says")
        yield from faults
        coder = self._shelf.coder_by_id(archive.coder)
        first = archive.blocks[0]
        if not faults and coder.follows(archive.open_block(0, data[first.start : first.start + first.length])):
            yield "block 0: it is the first, and follows another"

    def _check_once(self, listed: Sequence[Listed]) -> Iterator[Fault]:
        """No address may be live in two archives."""
        sources = (_live(i, one, self._shelf.open(one)) for i, one in enumerate(listed))
        last = Address(b"", b"")
        for at, source, number in heapq.merge(*sources):
            if at == last:
                yield Fault(listed[source].name, f"record {number} is in another archive too")
            last = at


class _Written:
    """The objects that a batch has written. Those that no manifest came to list are deleted in the end."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._names: set[str] = set()
        self._groups: dict[str, tuple[list[Record], int, list[tuple[Listed, int]]]] = {}

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *error: object) -> None:
        for name in self._names:
            with contextlib.suppress(StoreError):
                self._objects.delete(name)

    def put(
        self, group: str, records: list[Record], sweeps: int, build: Callable[[], list[Built]]
    ) -> list[tuple[Listed, int]]:
        """A group's archives, and how many codes each holds; those of an earlier try if they are still good."""
        known = self._groups.get(group)
        if known is None or known[:2] != (records, sweeps):
            known = self._groups[group] = records, sweeps, self.put_once(group, build())
        return known[2]

    def put_once(self, group: str, built: Sequence[Built]) -> list[tuple[Listed, int]]:
        out = []
        for one in built:
            listed = Listed(one.id, group, len(one.data), one.index, one.count, one.first, one.last, one.soonest)
            self._names.add(listed.name)
            self._objects.put(listed.name, one.data)
            out.append((listed, one.codes))
        return out

    def listed_by(self, manifest: Manifest, swap: Callable[[], bool]) -> bool:
        """Whether the swap to a manifest that lists some of them happened. If it raises, nobody knows: they stay."""
        risked = {one.name for one in manifest.archives} & self._names
        self._names -= risked
        if not (done := swap()):
            self._names |= risked
        return done


class _Old:
    """An archive that is rewritten, whole in memory. Raises PolicyError if it may only be read."""

    def __init__(self, shelf: Shelf, listed: Listed) -> None:
        self.listed, self.archive = listed, shelf.open(listed)
        if self.archive.write_version != WRITE_VERSION:
            raise PolicyError(f"archive {listed.id} was written by a later version: it can only be read")
        self.data = shelf.objects.get(listed.name)

    @property
    def live(self) -> int:
        return self.listed.count - len(self.listed.dead)

    def coded(self, block: int) -> bytes:
        """What the coder wrote as a block."""
        at = self.archive.blocks[block]
        with naming(self.listed):
            return self.archive.open_block(block, self.data[at.start : at.start + at.length])


class _Part(NamedTuple):
    """Live records of a block between which no other's stand: all of it, or some."""

    old: _Old
    block: int
    numbers: list[int]

    @property
    def raw(self) -> int:
        """Raw bytes, about."""
        block = self.old.archive.blocks[self.block]
        return block.raw * len(self.numbers) // block.records

    def fits(self, writer: Writer) -> bool:
        """Whether it is a whole block that may be copied as the writer's next."""
        old = self.old
        return len(self.numbers) == old.archive.blocks[self.block].records and writer.takes(
            old.archive, self.block, old.coded(self.block), lambda: old.coded(0)
        )

    def records(self, blobs: Mapping[tuple[str, int], bytes] | None) -> Iterator[Record]:
        """The records, with these blobs or with none."""
        listed = self.old.listed
        for number in self.numbers:
            record = self.old.archive.record(number, b"" if blobs is None else blobs[listed.id, number])
            yield replace(record, expires=listed.renewed.get(number, record.expires))


def _ahead(parts: Sequence[_Part], start: int, writer: Writer) -> Sequence[_Part]:
    """The part at `start` and those after it, up to one that may be copied, or to AHEAD raw bytes."""
    end, raw = start + 1, parts[start].raw
    while end < len(parts) and raw < AHEAD and parts[end].block > 0 and not parts[end].fits(writer):
        raw += parts[end].raw
        end += 1
    return parts[start:end]


def _check_writable(manifest: Manifest) -> None:
    if not manifest.writable:
        raise PolicyError("the manifest was written by a later version: the cold tier can only be read")


def _to_rewrite(archives: Sequence[Listed]) -> Iterator[list[Listed]]:
    """Of a group's archives, those that have something dead, and small ones; as many at once as memory bears."""
    small = [one for one in archives if one.count - len(one.dead) < MERGE_RECORDS]
    victims = [one for one in archives if one.dead or one.renewed or (one in small and len(small) > 1)]
    part: list[Listed] = []
    for one in victims:
        part.append(one)
        if sum(one.count for one in part) >= MERGE_MOST:
            yield part
            part = []
    if part:
        yield part


def _live(source: int, listed: Listed, archive: Archive) -> Iterator[tuple[Address, int, int]]:
    """Address, source and number of each live record."""
    for namespace, key, number in archive.addresses(0, archive.count):
        if number not in listed.dead:
            yield Address(namespace, key), source, number


__all__ = ["ArchiveTier", "tenant"]
