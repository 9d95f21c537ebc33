"""What a batch on archives sees and has done so far: a manifest, and changes to it that are not yet committed."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from nbmf.errors import PolicyError
from nbmf.store.address import Address, address, flat, text, unflat
from nbmf.store.archive import Archive
from nbmf.store.base import (
    Changes,
    Codes,
    Delete,
    Expire,
    Forget,
    Get,
    Namespace,
    Namespaces,
    Op,
    Put,
    Record,
    Scan,
    check_address,
    within,
)
from nbmf.store.manifest import Listed, Manifest, Told
from nbmf.store.shelf import Shelf

_NEVER = float("inf")


class Stored(NamedTuple):
    """A live record of an archive."""

    at: Address
    listed: Listed
    archive: Archive
    number: int


class Fresh(NamedTuple):
    """A record that this batch has put."""

    at: Address
    record: Record


class Pending:
    """Applies operations. Nothing but itself changes; whoever made it commits what it holds, or forgets it."""

    def __init__(self, shelf: Shelf, manifest: Manifest) -> None:
        self.shelf, self.manifest = shelf, manifest
        self.puts: dict[tuple[Namespace, str], Record] = {}
        self.dead: defaultdict[str, set[int]] = defaultdict(set)  # by archive, beyond what the manifest says
        self.told: defaultdict[str, set[int]] = defaultdict(set)  # of the dead, those that have a code
        self.renewed: defaultdict[str, dict[int, int]] = defaultdict(dict)
        self.soonest: dict[str, float] = {}
        self.rewrite: set[str] = set()  # archives in which something is to be forgotten
        self.forgets = False

    @property
    def changed(self) -> bool:
        return bool(self.puts or self.rewrite or any(self.dead.values()) or any(self.renewed.values()))

    def apply(self, op: Op) -> Any:
        match op:
            case Get(namespace, key, now, renew, blob):
                return self._get(namespace, key, now, renew, blob)
            case Put(record, expected):
                return self._put(record, expected)
            case Delete(namespace, key, expected):
                found = self._find(namespace, key)
                if found is None or (expected is not None and self._load([found])[0].blob != expected):
                    return False
                self._drop(found)
                return True
            case Scan(prefix, now, after, limit, cls, blobs):
                return self._load(list(islice(self._records(prefix, after, now, cls), limit)), blobs)
            case Namespaces(prefix, now):
                return self._namespaces(prefix, now)
            case Forget(prefix):
                return self._forget(prefix)
            case Expire(now, limit):
                return self._expire(now, limit)
            case Codes(after, limit):
                return self._codes(after, limit)
            case Changes(since):
                return self._changes(since)
        raise PolicyError(f"{type(op).__name__} is no operation of a tier")

    # -- one record ----------------------------------------------------------------------------------------------------

    def _live(self, listed: Listed, number: int) -> bool:
        return number not in listed.dead and number not in self.dead[listed.id]

    def _expires(self, listed: Listed, archive: Archive, number: int) -> int | None:
        for renewed in (self.renewed[listed.id], listed.renewed):
            if number in renewed:
                return renewed[number]
        return archive.expires(number)

    def _ends(self, found: Stored | Fresh, now: int) -> bool:
        """Whether a record has expired at `now`."""
        if isinstance(found, Fresh):
            return not found.record.at(now)
        expires = self._expires(found.listed, found.archive, found.number)
        return expires is not None and expires <= now

    def _find(self, namespace: Namespace, key: str) -> Stored | Fresh | None:
        at = address(namespace, key)
        if (record := self.puts.get((namespace, key))) is not None:
            return Fresh(at, record)
        for listed in self.manifest.around(namespace):
            archive = self.shelf.open(listed)
            number, found = archive.place(at)
            if found and self._live(listed, number):
                return Stored(at, listed, archive, number)
        return None

    def _load(self, found: Sequence[Stored | Fresh], with_blobs: bool = True) -> list[Record]:
        """The records, blobs and all unless told otherwise."""
        wanted: dict[str, list[Stored]] = {}
        for one in found:
            if isinstance(one, Stored) and with_blobs:
                wanted.setdefault(one.listed.id, []).append(one)
        blobs = {
            id: self.shelf.blobs(of[0].listed, of[0].archive, [one.number for one in of]) for id, of in wanted.items()
        }
        out = []
        for one in found:
            if isinstance(one, Fresh):
                out.append(one.record)
                continue
            blob = blobs[one.listed.id][one.number] if with_blobs else b""
            record = one.archive.record(one.number, blob)
            expires = self._expires(one.listed, one.archive, one.number)
            out.append(record if record.expires == expires else replace(record, expires=expires))
        return out

    def _get(self, namespace: Namespace, key: str, now: int, renew: bool, blob: bool) -> Record | None:
        found = self._find(namespace, key)
        if found is None or self._ends(found, now):
            return None
        record = self._load([found], blob)[0]
        if not renew or record.ttl is None or record.expires == now + record.ttl:
            return record
        expires = now + record.ttl
        record = replace(record, expires=expires)
        if isinstance(found, Fresh):
            self.puts[namespace, key] = record
        else:
            self.renewed[found.listed.id][found.number] = expires
        return record

    def _put(self, record: Record, expected: bytes | None) -> bool:
        check_address(record.namespace, record.key)
        there = old = self._find(record.namespace, record.key)
        if old is not None and self._ends(old, record.updated):
            old = None
        if expected is not None and (old is None or self._load([old])[0].blob != expected):
            return False
        if old is not None:
            created = old.record.created if isinstance(old, Fresh) else old.archive.created(old.number)
            record = replace(record, created=created)
        if there is not None:
            self._drop(there)
        self.puts[record.namespace, record.key] = record
        return old is not None

    def _drop(self, found: Stored | Fresh) -> None:
        if isinstance(found, Fresh):
            del self.puts[found.record.namespace, found.record.key]
            return
        self.dead[found.listed.id].add(found.number)
        if found.archive.code(found.number):
            self.told[found.listed.id].add(found.number)

    # -- many ----------------------------------------------------------------------------------------------------------

    def _below(self, prefix: Namespace) -> list[Listed]:
        """The archives that may hold records in and below a namespace."""
        low = flat(prefix)
        return [listed for listed in self.manifest.archives if listed.spans(low, low + b"\xff")]

    def _records(
        self,
        prefix: Namespace,
        after: tuple[Namespace, str] | None = None,
        now: int | None = None,
        cls: str | None = None,
    ) -> Iterator[Stored | Fresh]:
        """Live records in the order of their addresses."""
        start = address(*after) if after else Address(b"", b"")

        def fresh() -> Iterator[Fresh]:
            found = [Fresh(address(*of), record) for of, record in self.puts.items() if within(of[0], prefix)]
            for one in sorted(found, key=lambda one: one.at):
                if one.at > start and (cls is None or one.record.cls == cls):
                    yield one

        def stored(listed: Listed) -> Iterator[Stored]:
            archive = self.shelf.open(listed)
            first, end = archive.span(flat(prefix))
            place, there = archive.place(start)
            for namespace, key, number in archive.addresses(max(first, place + there), end):
                if self._live(listed, number) and (cls is None or archive.cls(number) == cls):
                    yield Stored(Address(namespace, key), listed, archive, number)

        found: Iterator[Stored | Fresh] = heapq.merge(
            fresh(), *(stored(listed) for listed in self._below(prefix)), key=lambda one: one.at
        )
        return found if now is None else (one for one in found if not self._ends(one, now))

    def _namespaces(self, prefix: Namespace, now: int) -> list[Namespace]:
        found = {of[0] for of, record in self.puts.items() if within(of[0], prefix) and record.at(now)}
        for listed in self._below(prefix):
            archive = self.shelf.open(listed)
            plain = not listed.dead and not self.dead[listed.id] and self._until(listed) > now
            for space, start, end in archive.spaces(flat(prefix)):
                if plain or any(
                    self._live(listed, number)
                    and ((expires := self._expires(listed, archive, number)) is None or expires > now)
                    for number in range(start, end)
                ):
                    found.add(unflat(space))
        return sorted(found)

    def _until(self, listed: Listed) -> float:
        """No live record of the archive expires before."""
        soonest = _NEVER if listed.soonest is None else listed.soonest
        return min([self.soonest.get(listed.id, soonest), *self.renewed[listed.id].values()])

    def _forget(self, prefix: Namespace) -> int:
        self.forgets = True
        gone = [of for of in self.puts if within(of[0], prefix)]
        for of in gone:
            del self.puts[of]
        count = len(gone)
        low = flat(prefix)
        for listed in self._below(prefix):
            if listed.first.startswith(low) and listed.last.startswith(low):
                start, end = 0, listed.count  # not opened: its tenant's key may be gone already
            else:
                start, end = self.shelf.open(listed).span(low)
            if start < end:
                self.rewrite.add(listed.id)
                live = [number for number in range(start, end) if self._live(listed, number)]
                self.dead[listed.id].update(range(start, end))
                count += len(live)
        return count

    def _expire(self, now: int, limit: int) -> int:
        gone = [of for of, record in self.puts.items() if not record.at(now)][:limit]
        for of in gone:
            del self.puts[of]
        count = len(gone)
        for listed in self.manifest.archives:
            if self._until(listed) > now:
                continue
            archive = self.shelf.open(listed)
            soonest = _NEVER
            for number in range(listed.count):
                if not self._live(listed, number) or (expires := self._expires(listed, archive, number)) is None:
                    continue
                if expires > now:
                    soonest = min(soonest, expires)
                    continue
                if count == limit:
                    return count
                self._drop(Stored(Address(b"", b""), listed, archive, number))
                count += 1
            self.soonest[listed.id] = soonest
        return count

    def _codes(self, after: tuple[Namespace, str] | None, limit: int) -> list[tuple[Namespace, str, bytes]]:
        out: list[tuple[Namespace, str, bytes]] = []
        for one in self._records((), after):
            code = one.record.code if isinstance(one, Fresh) else one.archive.code(one.number)
            if code:
                out.append((unflat(one.at.namespace), text(one.at.key), code))
            if len(out) == limit:
                break
        return out

    def _changes(self, since: int) -> tuple[int, list[tuple[Namespace, str]] | None]:
        """As committed: what this batch itself changes will be told after the position that is returned."""
        parts = self.manifest.since(since)
        if parts is None:
            return self.manifest.end, None
        by_id = {listed.id: listed for listed in self.manifest.archives}
        found: dict[tuple[Namespace, str], None] = {}
        for part in parts:
            archive = self.shelf.open(by_id[part.archive])
            for number in range(archive.count) if part.numbers is None else part.numbers:
                if part.numbers is not None or archive.code(number):
                    namespace, key = archive.at(number)
                    found[unflat(namespace), text(key)] = None
        return self.manifest.end, list(found)

    # -- what is to be committed ---------------------------------------------------------------------------------------

    def listed(self) -> list[Listed]:
        """The manifest's archives, with what was done to them."""
        out = []
        for listed in self.manifest.archives:
            dead = listed.dead | self.dead[listed.id]
            renewed = {**listed.renewed, **self.renewed[listed.id]}
            until = self._until(listed)
            out.append(
                replace(
                    listed,
                    dead=dead,
                    renewed={number: expires for number, expires in renewed.items() if number not in dead},
                    soonest=None if until == _NEVER else int(until),
                )
            )
        return out

    def parts(self) -> list[Told]:
        """What the journal is told of the dead."""
        return [Told(id, len(numbers), tuple(sorted(numbers))) for id, numbers in self.told.items()]


__all__ = ["Pending"]
