"""The warm and the cold tier as one store.

A record of the warm tier, live or expired, hides the cold one of its address: a cold copy is left behind where a
process was killed between the two. What is put goes into the warm tier, and out of the cold one; `settle` takes out
what a kill has left there. Records move between the tiers alone (gate.py), and only if nobody has changed them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from nbmf.errors import CorruptRecord, FormatError, StoreError, UnknownModel
from nbmf.memory.opening import Parts
from nbmf.store.archives import ArchiveTier
from nbmf.store.base import Delete, Expire, Forget, Get, Namespace, Namespaces, Op, Put, Record, Scan, Tier

Address = tuple[Namespace, str]
Found = tuple[Record, str]  # a record and "warm" or "cold"
UNREADABLE: Final = (CorruptRecord, FormatError, UnknownModel)  # of one record, not of the medium


class Tiers:
    """Both tiers of a store, and its gate. Thread-safe. Every method raises StoreError when the medium fails.

    `usable` tells whether new records of a tenant may be coded with the codec of a content id.
    """

    def __init__(self, parts: Parts, usable: Callable[[str, str], bool]) -> None:
        self.warm: Tier = parts.warm
        self.gate = parts.gate
        self._parts = parts
        self._usable = usable
        self._cold: ArchiveTier | None = None
        self._lock = threading.Lock()  # of _cold

    def cold(self, make: bool = False) -> ArchiveTier | None:
        """The cold tier; None when nothing was ever put there and `make` is False."""
        if self._cold is None and (make or self._parts.has_cold()):
            with self._lock:
                if self._cold is None:
                    self._cold = self._parts.open_cold()
        return self._cold

    def close(self) -> None:
        self.warm.close()
        if self._cold is not None:
            self._cold.close()

    # -- reading -------------------------------------------------------------------------------------------------------

    def fetch(self, addresses: Sequence[Address], time: int, renew: Sequence[bool] | None = None) -> list[Found | None]:
        """The live record at each address, and its tier. With `renew`, its ttl begins anew."""
        again = renew or [False] * len(addresses)
        gets = [Get(namespace, key, time, anew) for (namespace, key), anew in zip(addresses, again, strict=True)]
        out: list[Found | None] = [None if one is None else (one, "warm") for one in self.warm.batch(gets)]
        missing = [i for i, one in enumerate(out) if one is None]
        cold = self.cold() if missing else None
        if cold is not None:
            frozen = cold.batch([gets[i] for i in missing])
            # Looked at once more: what was promoted or put in between is no longer cold, and what has expired hides.
            hiding = self._hiding([addresses[i] for i in missing])
            for i, record, over in zip(missing, frozen, hiding, strict=True):
                if over is not None:
                    found = self.warm.get(*addresses[i], time, again[i])
                    out[i] = None if found is None else (found, "warm")
                elif record is not None:
                    out[i] = (record, "cold")
        return out

    def fetch_one(self, address: Address, time: int, renew: bool = False) -> Found | None:
        """As `fetch`, of one."""
        found = self.warm.get(*address, time, renew)
        if found is not None:
            return found, "warm"
        return None if self.cold() is None else self.fetch([address], time, [renew])[0]

    def live(self, prefix: Namespace, time: int | None, cls: str | None = None, blobs: bool = True) -> Iterator[Found]:
        """Every record of a prefix and its tier; with time None, those that have expired too.

        Without `blobs`, cold ones have none, and are not decoded. What moves meanwhile may come twice.
        """
        for page in pages(self.warm, prefix, time, cls, blobs):
            yield from ((record, "warm") for record in page)
        if (cold := self.cold()) is not None:
            for page in pages(cold, prefix, time, cls, blobs):
                hiding = self._hiding([(record.namespace, record.key) for record in page])
                yield from ((record, "cold") for record, over in zip(page, hiding, strict=True) if over is None)

    def namespaces(self, prefix: Namespace, time: int) -> set[Namespace]:
        """Those that hold live records, in and below a prefix."""
        found: set[Namespace] = set(self.warm.batch([Namespaces(prefix, time)])[0])
        if (cold := self.cold()) is not None:
            found.update(cold.batch([Namespaces(prefix, time)])[0])
        return found

    def _hiding(self, addresses: Sequence[Address]) -> list[Record | None]:
        """The warm record at each address, live or expired: nothing has expired at time 0."""
        return self.warm.batch([Get(namespace, key, 0) for namespace, key in addresses])

    # -- writing, together with others ---------------------------------------------------------------------------------

    def put(self, records: Sequence[Record]) -> bool:
        """Puts them in one transaction. False, and nothing done: the pack that one is coded with is about to go."""
        with self.gate.shared():
            if not self._all_usable(records):
                return False
            cold = self.cold()
            older: list[Record | None] = [None] * len(records)
            if cold is not None:
                older = cold.batch([Get(*address(one), 0, blob=False) for one in records])
            self.warm.batch([Put(_born(new, old)) for new, old in zip(records, older, strict=True)])
            if cold is not None and any(one is not None for one in older):
                cold.batch([Delete(*address(new)) for new, old in zip(records, older, strict=True) if old is not None])
            return True

    def delete(self, addresses: Sequence[Address], time: int) -> list[Found | None]:
        """Deletes them; the live record that there was at each address, a cold one without its blob."""
        frozen: list[Record | None] = [None] * len(addresses)
        ops: list[Op] = []
        for at in addresses:
            ops += [Get(*at, 0, blob=False), Delete(*at)]
        with self.gate.shared():
            # The cold one first: the warm one hides it, so nothing old comes back in between.
            if (cold := self.cold()) is not None:
                frozen = [one if one is not None and one.at(time) else None for one in cold.batch(ops)[::2]]
            warm = self.warm.batch(ops)[::2]
        out: list[Found | None] = []
        for old, over in zip(frozen, warm, strict=True):
            if over is not None:
                out.append((over, "warm") if over.at(time) else None)
            else:
                out.append(None if old is None else (old, "cold"))
        return out

    # -- moving, alone -------------------------------------------------------------------------------------------------

    def forget(self, prefix: Namespace) -> int:
        """Removes what is in and below a prefix from both tiers; how many records, expired ones too.

        The caller goes alone. The cold tier comes first: with encryption, the warm one shreds the archives' key.
        """
        cold = self.cold()
        count = 0 if cold is None else int(cold.batch([Forget(prefix)])[0])
        warm: int = self.warm.batch([Forget(prefix)])[0]
        return count + warm

    def settle(self) -> int:
        """Takes hidden records out of the cold tier; how many there were."""
        count = 0
        if (cold := self.cold()) is None:
            return count
        for page in pages(cold, (), None, None, blobs=False):
            at = [address(record) for record in page]
            if not any(over is not None for over in self._hiding(at)):
                continue
            with self.gate.alone():
                hidden = [one for one, over in zip(at, self._hiding(at), strict=True) if over is not None]
                count += sum(cold.batch([Delete(*one) for one in hidden]))
        return count

    def expire(self, time: int, limit: int) -> Iterator[int]:
        """Removes what has expired, from settled tiers; yields how many at a time."""
        for tier in (self.warm, self.cold()):
            while tier is not None and (gone := tier.batch([Expire(time, limit)])[0]):
                yield gone

    def demote(self, moves: Sequence[tuple[Record, Record]]) -> int:
        """Moves warm records to the cold tier: each as it was read, and as the cold one is to have it; how many went.

        Into the cold tier first: a kill in between leaves them in both.
        """
        cold = self.cold(make=True)
        assert cold is not None
        try:
            cold.prepare([new for _, new in moves])
        except StoreError:
            if self._unchanged(moves):
                raise
            return 0  # they were forgotten meanwhile, and the key with them
        with self.gate.alone():
            moves = self._unchanged(moves)
            if not moves:
                return 0
            cold.batch([Put(new) for _, new in moves])
            ops: list[Op] = []
            for old, _ in moves:
                ops += [Get(*address(old), 0), Delete(*address(old), old.blob)]
            results = self.warm.batch(ops)
            _renew(cold, moves, results[::2])
            return sum(map(bool, results[1::2]))

    def promote(self, moves: Sequence[tuple[Record, Record]]) -> int:
        """Moves cold records to the warm tier: each as it was read, and as it is to be; how many went."""
        cold = self.cold()
        if cold is None or not moves:
            return 0
        with self.gate.alone():
            there = cold.batch([Get(*address(old), 0) for old, _ in moves])
            hiding = self._hiding([address(old) for old, _ in moves])
            moves = [
                move
                for move, old, over in zip(moves, there, hiding, strict=True)
                if old == move[0] and over is None and self._all_usable([move[1]])
            ]
            if not moves:
                return 0
            self.warm.batch([Put(new) for _, new in moves])
            ops: list[Op] = []
            for old, _ in moves:
                ops += [Get(*address(old), 0), Delete(*address(old))]
            _renew(self.warm, moves, cold.batch(ops)[::2])
        return len(moves)

    def recode(self, moves: Sequence[tuple[Record, Record]]) -> int:
        """Replaces warm records by others of the same value: each as it was read, and as it is to be; how many were."""
        with self.gate.alone():
            moves = [move for move in self._unchanged(moves) if self._all_usable([move[1]])]
            if not moves:
                return 0
            ops: list[Op] = []
            for old, new in moves:
                ops += [Get(*address(old), 0), Put(new, old.blob)]
            results = self.warm.batch(ops)
            _renew(self.warm, moves, results[::2])
            return sum(map(bool, results[1::2]))

    def remove(self, found: Sequence[Found]) -> int:
        """Deletes records, each from its tier, if nobody has replaced them; how many went."""
        cold = self.cold()
        with self.gate.alone():
            hiding = self._hiding([address(record) for record, _ in found])
            warm = [
                record
                for (record, tier), over in zip(found, hiding, strict=True)
                if tier == "warm" and over is not None and over.updated == record.updated
            ]
            frozen = [
                record for (record, tier), over in zip(found, hiding, strict=True) if tier == "cold" and over is None
            ]
            count = 0
            if cold is not None and (frozen or warm):
                gone = cold.batch([Delete(*address(record)) for record in [*frozen, *warm]])
                count += sum(gone[: len(frozen)])
            removed: list[bool] = self.warm.batch([Delete(*address(record)) for record in warm])
            return count + sum(removed)

    def _unchanged(self, moves: Sequence[tuple[Record, Record]]) -> list[tuple[Record, Record]]:
        """Those whose record the warm tier still has, in every particular."""
        there = self._hiding([address(old) for old, _ in moves])
        return [move for move, record in zip(moves, there, strict=True) if record == move[0]]

    def _all_usable(self, records: Sequence[Record]) -> bool:
        return all(self._usable(*one) for one in {(record.namespace[0], record.codec) for record in records})


def address(record: Record) -> Address:
    return record.namespace, record.key


def pages(
    tier: Tier, prefix: Namespace, time: int | None, cls: str | None = None, blobs: bool = True
) -> Iterator[list[Record]]:
    """A tier's records of a prefix, a page at a time."""
    after = None
    while page := tier.batch([Scan(prefix, time, after, cls=cls, blobs=blobs)])[0]:
        yield page
        after = address(page[-1])


def _renew(tier: Tier, moves: Sequence[tuple[Record, Record]], last: Sequence[Record | None]) -> None:
    """Passes on what reads have renewed while records moved: `last` is each as it left its old place."""
    late = [
        replace(new, expires=record.expires)
        for (_, new), record in zip(moves, last, strict=True)
        if record is not None and record.expires != new.expires
    ]
    if late:
        tier.batch([Put(record) for record in late])


def _born(new: Record, old: Record | None) -> Record:
    """A new record, created when the live one that it replaces was."""
    if old is None or not old.at(new.updated):
        return new
    return replace(new, created=min(new.created, old.created))


__all__ = ["UNREADABLE", "Address", "Found", "Tiers", "address", "pages"]
