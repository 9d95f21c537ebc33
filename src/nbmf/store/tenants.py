"""A tier of tiers: every tenant (the first segment of a namespace) in a file and under a key of its own.

A tenant's file is `<file id>.db`; its name is nowhere in the clear. Forgetting a whole tenant shreds its key and
deletes its file. A batch is one transaction for each tenant that it touches: a batch within one tenant happens whole or
not at all, one over several can stop between two of them. An operation over all tenants (a prefix of (), Expire, Codes,
Changes) and the forgetting of a whole tenant stand between transactions: what is before them in the batch is committed
first.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from nbmf.errors import NbmfError, StoreError
from nbmf.store.base import (
    Changes,
    Codes,
    Delete,
    Expire,
    Fault,
    Forget,
    Get,
    Namespace,
    Namespaces,
    Op,
    Put,
    Scan,
    Tier,
    check_address,
)
from nbmf.store.files import store_error, sync_directory
from nbmf.store.keys import LIVE, Entry, Keyring
from nbmf.store.positions import Positions, Version

OPEN_MOST: Final = 64  # tenants' files that are kept open
SUFFIXES: Final = ("-wal", "-shm", "-journal", "")  # of a tenant's files; the database itself goes last
_TRIES: Final = 100  # how often an operation meets a tenant that is being forgotten

Make = Callable[[Path, bytes | None], Tier]


class _Gone(Exception):
    """The tenant was forgotten, by any process."""


@dataclass(slots=True, eq=False)
class _Held:
    """An open tenant. It is closed by the last user once it is `doomed`."""

    tier: Tier
    users: int = 0
    doomed: bool = False


class Tenants(Tier):
    """One inner tier per tenant, in `directory`. Thread-safe; several processes may have it open.

    `make(path, key)` opens an inner tier; the key is None when `keys` has no protection. At most `open_most` inner
    tiers stay open, besides those in use. Scan's order is that of the tenants' ids in the key file, then the tier's.
    """

    def __init__(
        self, directory: str | os.PathLike[str], keys: Keyring, make: Make, open_most: int = OPEN_MOST
    ) -> None:
        self.directory = Path(directory)
        self.keys = keys
        self._make = make
        self._open_most = max(1, open_most)
        self._mutex = threading.Lock()
        self._held: OrderedDict[bytes, _Held] = OrderedDict()  # by file id, the one used last at the end
        self._closed = False
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise store_error(self.directory, error) from error
        key = keys.store_key.derived("positions") if keys.protected else None
        self._positions = Positions(self.directory / "positions.db", key)
        self._version = Version(self.directory / "version")
        self._sweep()

    def path(self, entry: Entry) -> Path:
        """The tenant's database file."""
        return self.directory / f"{entry.file_id.hex()}.db"

    # -- operations ----------------------------------------------------------------------------------------------------

    def batch(self, ops: Sequence[Op]) -> list[Any]:
        self._check_open()
        for op in ops:
            _check(op)
        results: list[Any] = [None] * len(ops)
        waiting: dict[str, list[int]] = {}

        def run() -> None:
            for tenant, places in waiting.items():
                for place, result in zip(places, self._within(tenant, [ops[i] for i in places]), strict=True):
                    results[place] = result
            waiting.clear()

        with self._version.writing() if any(map(_writes, ops)) else contextlib.nullcontext():
            for i, op in enumerate(ops):
                tenant = _tenant(op)
                if tenant is not None:
                    waiting.setdefault(tenant, []).append(i)
                else:
                    run()
                    results[i] = self._across(op)
            run()
        return results

    def _within(self, tenant: str, ops: list[Op]) -> list[Any]:
        """Runs them in the tenant's tier, which a first put makes. Done only if nobody forgot the tenant meanwhile."""
        makes = any(isinstance(op, Put) and op.expected is None for op in ops)
        for _ in range(_TRIES):
            entry = self.keys.make(tenant) if makes else self.keys.find(tenant)
            if entry is None:
                return [_nothing(op) for op in ops]
            with contextlib.suppress(_Gone):
                return self._on(entry, ops)
        raise StoreError(f"{self.directory}: a tenant is being forgotten again and again")

    def _on(self, entry: Entry, ops: list[Op]) -> list[Any]:
        """The results of one transaction. Raises _Gone: it went to a file that is deleted, and has no effect."""
        try:
            with self._using(entry) as tier:
                results = tier.batch(ops)
        except NbmfError:
            if self.keys.holds(entry):
                raise
            results = None
        # Whoever forgets the tenant shreds its key first: a key that is still there now was there at the commit.
        if results is None or not self.keys.holds(entry):
            self._let_go(entry)
            raise _Gone
        return results

    def _across(self, op: Op) -> Any:
        match op:
            case Forget(()):
                return sum(self._forget(entry) for entry in self.keys.entries())
            case Forget((tenant,)):
                entry = self.keys.find(tenant)
                return 0 if entry is None else self._forget(entry)
            case Scan() | Codes():
                return self._paged(op)
            case Namespaces():
                return sorted(name for entry in self.keys.entries() for name in self._part(entry, op, []))
            case Expire(now, limit):
                gone = 0
                for entry in self.keys.entries():
                    if gone >= limit:
                        break
                    gone += self._part(entry, Expire(now, limit - gone), 0)
                return gone
            case Changes(since):
                files = [(entry.file_id, self.path(entry), entry) for entry in self.keys.entries()]
                return self._positions.changes(since, files, lambda entry, at: self._part(entry, Changes(at), None))
        raise AssertionError(op)

    def _part(self, entry: Entry, op: Op, otherwise: Any) -> Any:
        """One tenant's share of an operation over all; `otherwise` if it was forgotten meanwhile."""
        try:
            return self._on(entry, [op])[0]
        except _Gone:
            return otherwise

    def _paged(self, op: Scan | Codes) -> list[Any]:
        start = b"" if op.after is None else self.keys.name_id(op.after[0][0])
        page: list[Any] = []
        for entry in self.keys.entries():
            if len(page) >= op.limit:
                break
            if entry.name_id >= start:
                after = op.after if entry.name_id == start else None
                page += self._part(entry, replace(op, after=after, limit=op.limit - len(page)), [])
        return page

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def _forget(self, entry: Entry) -> int:
        """Shreds the key, then deletes the files: a kill between the two leaves files that nobody can read."""
        count = self._purged(entry)
        with self.keys.changing():
            gone = self.keys.shred(entry)
            if gone is None:
                return 0
            self._let_go(entry)
            if self._delete(gone):
                self.keys.drop(gone)
        return count

    def _purged(self, entry: Entry) -> int:
        """How many records go. Without encryption they are wiped in place first; damage must not keep any."""
        changed = True
        count = 0
        try:
            with self._using(entry) as tier:
                changed = tier.batch([Changes(0)])[0][0] > 0
                count = tier.sizes()["count"] if self.keys.protected else tier.batch([Forget(())])[0]
        except (NbmfError, _Gone):
            self._check_open()
        if changed:
            self._positions.lost(entry.file_id)
        return count

    def _delete(self, gone: Entry) -> bool:
        """Deletes a shredded tenant's files; False if the system does not let go of them yet."""
        path = self.path(gone)
        try:
            for suffix in SUFFIXES:
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            sync_directory(self.directory)
        except OSError:
            return False
        return True

    def _sweep(self) -> None:
        if self.keys.shredded():
            with self.keys.changing():
                for gone in self.keys.shredded():
                    if self._delete(gone):
                        self.keys.drop(gone)

    # -- open tiers ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _using(self, entry: Entry) -> Iterator[Tier]:
        """The tenant's tier, which stays open meanwhile. Raises _Gone, StoreError."""
        held = self._take(entry.file_id) or self._opened(entry)
        try:
            yield held.tier
        finally:
            with self._mutex:
                held.users -= 1
                last = held.doomed and not held.users
            if last:
                self._bury(entry, held.tier)

    def _take(self, file_id: bytes) -> _Held | None:
        with self._mutex:
            held = self._held.get(file_id)
            if held is not None:
                held.users += 1
                self._held.move_to_end(file_id)
            return held

    def _opened(self, entry: Entry) -> _Held:
        """Opens it under the store's lock: nobody makes it twice, and nobody deletes it meanwhile."""
        idle: list[_Held] = []
        with self.keys.changing():
            if (held := self._take(entry.file_id)) is not None:
                return held
            if (found := self.keys.current(entry)) is None:
                raise _Gone
            path = self.path(found)
            if found.state == LIVE and not (path.exists() and path.stat().st_size):
                raise StoreError(f"{path} is missing or empty")
            key = self.keys.key(found).derived("database") if self.keys.protected else None
            held = _Held(self._make(path, key), users=1)
            if found.state != LIVE:
                try:
                    sync_directory(self.directory)
                    self.keys.settle(found)
                except BaseException:
                    held.tier.close()
                    raise
            with self._mutex:
                self._held[found.file_id] = held
                for file_id in [id for id, one in self._held.items() if not one.users]:
                    if len(self._held) <= self._open_most:
                        break
                    idle.append(self._held.pop(file_id))
                closed = self._closed
        for one in idle:
            one.tier.close()
        if closed:
            self.close()
            raise StoreError(f"{self.directory} is closed")
        return held

    def _let_go(self, entry: Entry) -> None:
        """Closes a shredded tenant's tier, or has its last user close it."""
        with self._mutex:
            held = self._held.pop(entry.file_id, None)
            if held is None:
                return
            held.doomed = True
            idle = not held.users
        if idle:
            self._bury(entry, held.tier)

    def _bury(self, entry: Entry, tier: Tier) -> None:
        """Nothing that fails here matters any more. A tier that did not know may have made its files again."""
        with contextlib.suppress(NbmfError):
            tier.close()
        self._delete(entry)

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.directory} is closed")

    # -- the rest ------------------------------------------------------------------------------------------------------

    def version(self) -> int:
        self._check_open()
        return self._version.read()

    def check(self) -> Iterator[Fault]:
        """Those of every tenant; files that belong to no tenant; tenants whose file is missing or another's."""
        self._check_open()
        entries = self.keys.entries()
        known = {self.path(entry).name for entry in [*entries, *self.keys.shredded()]} | {"positions.db"}
        for entry in entries:
            where = self.path(entry).name
            try:
                with self._using(entry) as tier:
                    for fault in tier.check():
                        yield Fault(f"{where}: {fault.where}", fault.what)
                    for namespace in tier.batch([Namespaces((), 0)])[0]:
                        if self.keys.name_id(namespace[0]) != entry.name_id:
                            yield Fault(where, "holds records of another tenant")
                            break
            except _Gone:
                continue
            except NbmfError as error:
                if self.keys.holds(entry):
                    yield Fault(where, str(error))
        for path in sorted(self.directory.glob("*.db")):
            if path.name not in known and path.exists():
                yield Fault(path.name, "belongs to no tenant: its key is not in the key file")

    def compact(self) -> None:
        self._check_open()
        self._sweep()
        for entry in self.keys.entries():
            with contextlib.suppress(_Gone), self._using(entry) as tier:
                tier.compact()

    def sizes(self) -> dict[str, int]:
        self._check_open()
        total = {"count": 0}
        for entry in self.keys.entries():
            with contextlib.suppress(_Gone), self._using(entry) as tier:
                for what, size in tier.sizes().items():
                    total[what] = total.get(what, 0) + size
        own = [self.keys.path, *self.directory.glob("positions.db*"), self.directory / "version"]
        total["tenants"] = sum(path.stat().st_size for path in own if path.exists())
        return total

    def close(self) -> None:
        with self._mutex:
            self._closed = True
            open_now = list(self._held.values())
            self._held.clear()
        for held in open_now:
            held.tier.close()
        self._positions.close()
        self._version.close()


def _check(op: Op) -> None:
    match op:
        case Put(record):
            check_address(record.namespace, record.key)
        case Get() | Delete():
            check_address(op.namespace, op.key)
        case Scan(prefix) | Namespaces(prefix) | Forget(prefix) if prefix:
            check_address(prefix)


def _tenant(op: Op) -> str | None:
    """Whose it is; None if it goes over all tenants, or forgets a whole one."""
    space: Namespace = ()
    match op:
        case Put(record):
            space = record.namespace
        case Get() | Delete():
            space = op.namespace
        case Scan() | Namespaces():
            space = op.prefix
        case Forget(prefix) if len(prefix) > 1:
            space = prefix
    return space[0] if space else None


def _writes(op: Op) -> bool:
    return isinstance(op, Put | Delete | Forget | Expire) or (isinstance(op, Get) and op.renew)


def _nothing(op: Op) -> Any:
    """The result where there is no such tenant."""
    match op:
        case Get():
            return None
        case Put() | Delete():
            return False
        case Scan() | Namespaces():
            return []
        case _:
            return 0


__all__ = ["Make", "Tenants"]
