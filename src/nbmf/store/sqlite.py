"""The warm tier of an embedded store: one SQLite file, for several threads and several processes."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from nbmf.errors import CorruptRecord, NbmfError, StoreError
from nbmf.store import schema
from nbmf.store.base import Delete, Expire, Fault, Forget, Get, Op, Put, Tier
from nbmf.store.connection import Connection, connect
from nbmf.store.reuse import share_equal_blobs
from nbmf.store.rows import Seals, address, bucket_of, few, pack_namespace
from nbmf.store.session import Session

TIMEOUT: Final = 30.0  # seconds to wait for another process's transaction
IDLE_MOST: Final = 8  # connections kept open for the next reader
CACHE: Final = 8192  # KiB of pages that a connection keeps
LOG_MOST: Final = 16 << 20  # bytes to which the write-ahead log is cut back once it is copied into the file
BUCKET_ROWS: Final = 64  # records a bucket has at least, and twice that at most, after `compact`
_PARTS: Final = {  # what `sizes` calls the tables and their indexes
    "record": "records",
    "record_expires": "expiry",
    "namespace": "namespaces",
    "seal": "seals",
    "shared": "shared",
    "change": "journal",
}


class SQLiteTier(Tier):
    """Records in the SQLite file `path`, made if it is not there; encrypted by page under `key` (32 bytes).

    A batch that returned is on the disk. Raises StoreError for a foreign file, a wrong key, a file of a later version;
    one that a later version only forbids to write is read, and `batch` refuses to change it.
    """

    def __init__(self, path: str | os.PathLike[str], key: bytes | None = None, *, timeout: float = TIMEOUT) -> None:
        self.path = Path(path)
        self._key = key
        self._timeout = timeout
        self._pid = os.getpid()
        self._closed = False
        self._idle: list[Connection] = []
        self._lock = threading.Lock()  # of the two above
        self._writing = threading.Lock()  # threads of one process take turns instead of polling for the file's lock
        self._watching = threading.Lock()
        self._watch: Connection | None = None
        first = self._until_free(self._connect)
        try:
            self._writable = self._until_free(lambda: schema.prepare(first))
            row = first.execute("SELECT epoch FROM store").fetchone()
            if row is None:
                raise CorruptRecord(f"{self.path} has lost its row of `store`")
            self._epoch = int(row[0])
        except BaseException:
            first.close()
            raise
        self._idle.append(first)

    # -- connections ---------------------------------------------------------------------------------------------------

    def _connect(self) -> Connection:
        try:
            connection = connect(self.path, self._key, timeout=self._timeout)
        except UnicodeDecodeError as error:
            raise CorruptRecord(f"{self.path} is malformed: a text is not UTF-8") from error
        try:
            for pragma in (
                "synchronous = FULL",
                "secure_delete = ON",
                "cell_size_check = ON",
                f"cache_size = -{CACHE}",
                f"journal_size_limit = {LOG_MOST}",
            ):
                connection.execute(f"PRAGMA {pragma}").fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    def _until_free(self, call: Callable[[], Any]) -> Any:
        """SQLite gives some locks up at once instead of waiting: while files are made, and while logs are emptied."""
        end = time.monotonic() + self._timeout
        while True:
            try:
                return call()
            except StoreError as error:
                if " is busy" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(0.01)

    def _ensure_open(self) -> None:
        if os.getpid() != self._pid:
            raise StoreError(f"{self.path} was opened by another process: open it in this one")
        if self._closed:
            raise StoreError(f"{self.path} is closed")

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Connection]:
        """One for this thread alone. After an error it is closed, and what it had begun rolled back."""
        self._ensure_open()
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
        try:
            yield connection
        except BaseException as error:
            with contextlib.suppress(NbmfError):
                connection.close()
            if isinstance(error, UnicodeDecodeError):  # a text in SQLite's own tables, and in its messages
                raise CorruptRecord(f"{self.path} is malformed: a text is not UTF-8") from error
            raise
        with self._lock:
            if not self._closed and len(self._idle) < IDLE_MOST:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        with self._watching:
            watch, self._watch = self._watch, None
        if os.getpid() == self._pid:
            for connection in [*idle, *([watch] if watch else [])]:
                connection.close()

    # -- batches -------------------------------------------------------------------------------------------------------

    def batch(self, ops: Sequence[Op]) -> list[Any]:
        if any(isinstance(op, (Put, Delete, Forget, Expire)) for op in ops):
            return self._write(ops)
        with self._connection() as connection:
            if len(ops) == 1 and isinstance(ops[0], Get):  # one statement is a transaction of its own
                session = Session(connection, self._epoch)
                out = [session.apply(ops[0])]
            else:
                connection.execute("BEGIN")
                session = Session(connection, self._epoch)
                out = [session.apply(op) for op in ops]
                connection.execute("COMMIT")
        return self._write(ops) if session.to_renew and self._writable else out

    def _write(self, ops: Sequence[Op]) -> list[Any]:
        try:
            return self._write_once(ops)
        except StoreError as error:
            if " is full" not in str(error):
                raise
        # The log grows even where the file does not: emptied, it may be room enough.
        with self._writer() as connection:
            self._until_free(lambda: self._empty_log(connection))
        return self._write_once(ops)

    def _write_once(self, ops: Sequence[Op]) -> list[Any]:
        forgets = any(isinstance(op, Forget) for op in ops)
        with self._writer() as connection:
            connection.execute("BEGIN IMMEDIATE")
            session = Session(connection, self._epoch, writes=True)
            out = [session.apply(op) for op in ops]
            session.finish()
            connection.execute("COMMIT")
            if forgets and session.traces:
                self._wipe(connection, "what was forgotten is deleted, but its bytes stay until `compact` succeeds")
        return out

    @contextlib.contextmanager
    def _writer(self) -> Iterator[Connection]:
        if not self._writable:
            raise StoreError(f"{self.path} is read-only: a later version of nbmf has written to it")
        with self._writing, self._connection() as connection:
            yield connection

    def version(self) -> int:
        with self._watching:
            if self._watch is None:
                self._ensure_open()
                self._watch = self._connect()
            # It counts the commits of other connections, and this one makes none.
            row = self._watch.execute("PRAGMA data_version").fetchone()
        return int(row[0]) if row else 0

    # -- the whole -----------------------------------------------------------------------------------------------------

    def compact(self) -> None:
        with self._writer() as connection:
            connection.execute("BEGIN IMMEDIATE")
            session = Session(connection, self._epoch, writes=True)
            session.drop_names()
            self._reseal(session)
            session.finish()
            share_equal_blobs(connection)
            connection.execute("COMMIT")
            self._wipe(connection, "what was deleted may still be in the file")

    def _wipe(self, connection: Connection, otherwise: str) -> None:
        """Writes the file anew without what was deleted: `secure_delete` misses bytes of pages that were rearranged."""
        try:
            self._until_free(lambda: connection.execute("VACUUM").fetchall())
            # Not before the file is clean; that a crash here keeps the mark costs one more VACUUM.
            connection.execute("UPDATE store SET traces = 0").fetchall()
            self._until_free(lambda: self._empty_log(connection))
        except StoreError as error:
            raise StoreError(f"{error}; {otherwise}") from error

    def _empty_log(self, connection: Connection) -> None:
        row = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if row is None or row[0]:
            raise StoreError(f"{self.path} is busy: another connection reads from its log")

    def _reseal(self, session: Session) -> None:
        """More buckets for a store that outgrew them. Raises CorruptRecord rather than seal what is damaged."""
        count = session.count()
        buckets = session.buckets
        if count <= 2 * BUCKET_ROWS * buckets:
            return
        while count > BUCKET_ROWS * buckets:
            buckets *= 2
        seals = Seals(buckets)
        for record in session.everything():
            if isinstance(record, Fault):
                raise CorruptRecord(f"{self.path}: {record.where}: {record.what}")
            seals.add(record)
        if any(self._unlike(session, seals.folded(session.buckets))):
            raise CorruptRecord(f"{self.path} does not match its checksums: see `check`")
        session.write_seals(seals)

    @staticmethod
    def _unlike(session: Session, seals: Seals) -> Iterator[int]:
        """The buckets whose seal in the file is another."""
        kept = session.seals()
        for bucket in range(seals.count):
            if kept.get(bucket, (0, 0)) != (seals.rows.get(bucket, 0), seals.sums.get(bucket, 0)):
                yield bucket

    def check(self) -> Iterator[Fault]:
        try:
            with self._connection() as connection:
                connection.execute("BEGIN")
                try:
                    yield from self._faults(connection)
                finally:
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
        except CorruptRecord as error:
            yield Fault(str(self.path), str(error))

    def _faults(self, connection: Connection) -> Iterator[Fault]:
        for row in connection.execute("PRAGMA integrity_check(20)").fetchall():
            if row[0] != "ok":
                yield Fault(str(self.path), " ".join(str(row[0]).split()))
        session = Session(connection, self._epoch)
        seals, count = Seals(session.buckets), 0
        for record in session.everything():
            count += 1
            if isinstance(record, Fault):
                yield record
            else:
                seals.add(record)
        if lost := session.count() - count:
            yield Fault(str(self.path), f"{lost} records have no namespace")
        for what in session.loose_ends():
            yield Fault(str(self.path), what)
        wrong: dict[int, list[str]] = {bucket: [] for bucket in self._unlike(session, seals)}
        if not wrong:
            return
        for record in session.everything():
            if not isinstance(record, Fault):
                bucket = bucket_of(pack_namespace(record.namespace), record.key.encode(), seals.count)
                if bucket in wrong:
                    wrong[bucket].append(address(record.namespace, record.key))
        kept = session.seals()
        for bucket, names in wrong.items():
            rows = kept.get(bucket, (0, 0))[0]
            yield Fault(
                f"{self.path}, bucket {bucket} of {seals.count}",
                f"{rows} records were sealed, and are not what is there: {few(names) or 'none'}",
            )

    def sizes(self) -> dict[str, int]:
        """Bytes: records, codes, shared, expiry, namespaces, seals, journal, log (the write-ahead log), other."""
        out = dict.fromkeys(["records", "codes", *_PARTS.values(), "log", "other"], 0)
        with self._connection() as connection:
            connection.execute("BEGIN")
            session = Session(connection, self._epoch)
            try:
                tables = connection.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name").fetchall()
            except StoreError:  # this SQLite was built without it
                tables = [("record", session.page_bytes())]
            for name, size in tables:
                out[_PARTS.get(name, "other")] += size
            out["codes"] = session.code_bytes()
            out["records"] -= out["codes"]
            out["count"] = session.count()
            used = session.page_bytes()
            connection.execute("COMMIT")
        out["other"] += used - sum(size for _, size in tables)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(OSError):
                out["log"] += os.path.getsize(f"{self.path}{suffix}")
        return out
