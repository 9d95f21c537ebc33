"""What tenants share besides keys: a number that tells of every change, and positions over all their journals."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from nbmf.errors import StoreError
from nbmf.store.base import Namespace
from nbmf.store.connection import Connection, connect
from nbmf.store.files import FileLock, store_error

KEPT: Final = 64  # positions that `changes` can start from, at least
GONE: Final = -1  # as a tenant's position: it was forgotten
STALLED: Final = 60.0  # seconds; no commit takes longer, so the writer is dead
_RACY: Final = 50_000_000  # ns: a file that changed so lately may change again without another time
_NUMBERS: Final = struct.Struct("=QQ")

Address = tuple[Namespace, str]
Place = TypeVar("Place")


class Version:
    """Counts changes over all processes, in a file of two numbers: writes begun, writes ended.

    While a write goes on, every reading differs from every other: nobody can keep what was read meanwhile. A reading is
    a look into shared memory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        self._fresh = itertools.count(1)
        self._stalled: tuple[tuple[int, int], float] | None = None
        with self._lock.held():
            try:
                with open(path, "a+b") as file:
                    if os.fstat(file.fileno()).st_size < _NUMBERS.size:
                        file.write(bytes(_NUMBERS.size))
                        file.flush()
                    self._map = mmap.mmap(file.fileno(), _NUMBERS.size)
            except OSError as error:
                raise store_error(path, error) from error

    def read(self) -> int:
        begun, ended = self._numbers()
        if begun == ended:
            return begun
        now = time.monotonic()
        if self._stalled is None or self._stalled[0] != (begun, ended):
            self._stalled = ((begun, ended), now)
        elif now - self._stalled[1] > STALLED:
            with self._lock.held():
                if self._numbers() == (begun, ended):
                    self._write(begun + 1, begun + 1)
        return -next(self._fresh)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around a change, its commit included."""
        with self._lock.held():
            begun, ended = self._numbers()
            self._write(begun + 1, ended)
        try:
            yield
        finally:
            with self._lock.held():
                begun, ended = self._numbers()
                # Equal: this write was taken for dead. What it changed still has to be told.
                self._write(max(begun, ended + 1), ended + 1)

    def close(self) -> None:
        self._map.close()

    def _numbers(self) -> tuple[int, int]:
        try:
            begun, ended = _NUMBERS.unpack_from(self._map)
        except ValueError:
            raise StoreError(f"{self._path} is closed") from None
        return begun, ended

    def _write(self, begun: int, ended: int) -> None:
        with contextlib.suppress(ValueError):
            _NUMBERS.pack_into(self._map, 0, begun, ended)


class Positions:
    """Positions over all tenants' journals, each standing for one of every tenant's own; in a small database.

    A tenant's row says where its journal stood at a position and stands until its next row. The file is made with the
    first position that is not 0.
    """

    def __init__(self, path: Path, key: bytes | None) -> None:
        self._path = path
        self._key = key
        self._mutex = threading.Lock()
        self._connection: Connection | None = None
        self._known: dict[bytes, tuple[Any, int]] = {}  # file id -> its files' times and sizes, its position then

    def changes(
        self,
        since: int,
        files: Sequence[tuple[bytes, Path, Place]],
        ask: Callable[[Place, int], tuple[int, list[Address] | None] | None],
    ) -> tuple[int, list[Address] | None]:
        """Changes' result over the tenants' `files`: file id, database, and what `ask` takes besides a position.

        `ask` gives a tenant's own result, None when it was forgotten meanwhile. A tenant whose files have not changed
        is not asked. When a tenant was forgotten since, the changes are lost (None).
        """
        with self._mutex:
            if not self._path.exists() and all((ask(place, 0) or (0,))[0] == 0 for _, _, place in files):
                return 0, None if since else []
            with self._writing() as connection:
                return self._changes(connection, since, files, ask)

    def _changes(
        self,
        connection: Connection,
        since: int,
        files: Sequence[tuple[bytes, Path, Place]],
        ask: Callable[[Place, int], tuple[int, list[Address] | None] | None],
    ) -> tuple[int, list[Address] | None]:
        newest = _newest(connection)
        at_latest, at_since = _positions(connection, newest), _positions(connection, since)
        lost = not max(0, newest - KEPT) <= since <= newest
        lost |= (
            connection.execute("SELECT 1 FROM position WHERE at = -1 AND token > ?", (since,)).fetchone() is not None
        )
        changed: dict[Address, None] = {}
        moved: dict[bytes, int] = {}
        for file_id, path, place in files:
            before = max(0, at_since.get(file_id, 0))
            signature = _signature(path)
            if signature is not None and self._known.get(file_id) == (signature, before):
                continue
            if (answer := ask(place, before)) is None:
                continue
            position, some = answer
            if signature is not None:
                self._known[file_id] = (signature, position)
            if position != at_latest.get(file_id, 0):
                moved[file_id] = position
            lost |= some is None
            changed.update(dict.fromkeys(some or ()))
        there = {file_id for file_id, _, _ in files}
        vanished = [file_id for file_id, at in at_latest.items() if at != GONE and file_id not in there]
        for file_id in vanished:
            self._known.pop(file_id, None)
            moved[file_id] = GONE
        if moved:
            newest = _advance(connection, newest, moved)
        return newest, None if lost or vanished else list(changed)

    def lost(self, file_id: bytes) -> None:
        """A tenant's journal goes with it: whoever follows the changes must start anew."""
        with self._mutex, self._writing() as connection:
            self._known.pop(file_id, None)
            _advance(connection, _newest(connection), {file_id: GONE})

    def close(self) -> None:
        with self._mutex:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        connection = self._connection
        if connection is None:
            connection = connect(self._path, self._key)
            try:
                connection.execute("PRAGMA journal_mode = WAL").fetchall()
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS position"
                    " (file BLOB, token INTEGER, at INTEGER, PRIMARY KEY (file, token)) WITHOUT ROWID"
                )
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _newest(connection: Connection) -> int:
    row = connection.execute("SELECT max(token) FROM position").fetchone()
    return (row[0] if row else 0) or 0


def _positions(connection: Connection, token: int) -> dict[bytes, int]:
    """Where every tenant's journal stood at `token`."""
    rows = connection.execute("SELECT file, max(token), at FROM position WHERE token <= ? GROUP BY file", (token,))
    return {file: at for file, _, at in rows}


def _advance(connection: Connection, newest: int, moved: dict[bytes, int]) -> int:
    token = newest + 1
    connection.executemany("INSERT INTO position VALUES (?, ?, ?)", [(file, token, at) for file, at in moved.items()])
    floor = token - KEPT
    connection.execute(
        "DELETE FROM position WHERE token < (SELECT max(q.token) FROM position q"
        " WHERE q.file = position.file AND q.token <= ?1) OR (at = -1 AND token < ?1)",
        (floor,),
    )
    return token


def _signature(path: Path) -> Any:
    """What differs when the tenant's files do; None if they changed so lately that it might not."""
    times = []
    for suffix in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(f"{path}{suffix}")
            times.append((suffix, status.st_ino, status.st_mtime_ns, status.st_size))
    newest = max((mtime for _, _, mtime, _ in times), default=None)
    return None if newest is None or newest > time.time_ns() - _RACY else times


__all__ = ["Positions", "Version"]
