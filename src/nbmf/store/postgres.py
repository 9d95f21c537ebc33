"""The warm tier on a server: PostgreSQL, one schema a store, for any number of writers."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Final

from nbmf.errors import CorruptRecord, NbmfError, StoreError
from nbmf.store.base import Delete, Expire, Fault, Forget, Get, Op, Put, Tier, check_address
from nbmf.store.rows import Seals, address, bucket_of, few, pack_namespace
from nbmf.store.statements import MIGRATIONS, READ, WRITE, Statements, unpack_row

SCHEMA: Final = "nbmf"
TIMEOUT: Final = 30.0  # seconds to wait for a connection, and for readers that still see what was forgotten
IDLE_MOST: Final = 8  # connections kept open for the next batch
TRIES: Final = 5  # of a transaction that the server gave up for another's sake
# Writers of one key take turns by a lock on its slot, taken before its row is read: also a row that is not there yet.
# Every batch takes its slots in order, so none waits in a circle, and few, as the server's table of locks is small.
SLOTS: Final = 512
BUCKET_ROWS: Final = 64  # records a bucket has at least, and twice that at most, after `compact`
LONG: Final = 8  # operations from which on a batch reads ahead, and does not wait for each statement's answer
STREAM: Final = 2_000  # rows that `check` holds at a time

_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,47}")
_AGAIN: Final = ("40001", "40P01")  # serialization failure, deadlock: nothing happened
_CORRUPT: Final = ("XX001", "XX002")
_FULL: Final = "53100"


class PostgresTier(Tier):
    """Records in `schema` of the database at `url` (postgresql://…); made if it is not there.

    A batch that returned is committed. Raises StoreError (no connection, no right, a store of a later version),
    NbmfError (the extra is not installed). A read whose connection is lost is tried once more; a write is not, unless
    it had not begun, and the error says whether it may have happened.
    """

    def __init__(self, url: str, schema: str = SCHEMA, *, timeout: float = TIMEOUT) -> None:
        if not _NAME.fullmatch(schema):
            raise StoreError(f"{schema!r} is no name for a schema: lower-case letters, digits and _, 48 at most")
        self._url = url
        self._schema = schema
        self._timeout = timeout
        self._space = zlib.crc32(schema.encode()) - (1 << 31)  # of the locks of this store in its database
        self._psycopg = _psycopg()
        self._pid = os.getpid()
        self._closed = False
        self._idle: list[Any] = []
        self._lock = threading.Lock()  # of the two above
        with self._errors(), self._connection() as connection:
            self._writable = self._prepare(connection)

    def _prepare(self, connection: Any) -> bool:
        """Makes the tables, or brings them up to date; whether this code may write to them."""
        run = connection.execute
        if run("SELECT current_setting('server_encoding')").fetchone() != ("UTF8",):
            raise StoreError(f"{self._where} is a database whose encoding is not UTF8")
        with connection.transaction():
            run("SELECT pg_advisory_xact_lock(%s, -2)", (self._space,))
            read, write = READ, 0
            if run("SELECT to_regclass(%s)", (f"{self._schema}.store",)).fetchone() != (None,):
                read, write = run("SELECT read, write FROM store").fetchone()
            elif run("SELECT to_regnamespace(%s)", (self._schema,)).fetchone() == (None,):
                run(f"CREATE SCHEMA {self._schema}")
            if read > READ:
                raise StoreError(f"{self._where} was made by a later version of nbmf, and needs it")
            for migration in MIGRATIONS[write:]:
                for statement in migration:
                    run(statement)
            if write < WRITE:
                run("UPDATE store SET read = %s, write = %s", (READ, WRITE))
        return bool(write <= WRITE)

    # -- connections ---------------------------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        """Without the password."""
        return f"the store {self._schema!r} on PostgreSQL"

    def _connect(self) -> Any:
        connection = self._psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=max(1, int(self._timeout)),
            client_encoding="utf8",
            application_name=f"nbmf {self._schema}",
        )
        try:
            connection.execute(f"SET search_path TO {self._schema}")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _connection(self, fresh: bool = False) -> Iterator[Any]:
        """One for this thread alone; after an error it is closed, and what it had begun rolled back."""
        if os.getpid() != self._pid:
            raise StoreError(f"{self._where} was opened by another process: open it in this one")
        with self._lock:
            if self._closed:
                raise StoreError(f"{self._where} is closed")
            connection = self._idle.pop() if self._idle and not fresh else None
        if connection is None:
            connection = self._connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if not self._closed and len(self._idle) < IDLE_MOST:
                self._idle.append(connection)
                return
        connection.close()

    @contextlib.contextmanager
    def _errors(self, outcome: str = "") -> Iterator[None]:
        """The server's errors as this package's, each in one line."""
        try:
            yield
        except self._psycopg.Error as error:
            detail = " ".join(str(error).split())[:200]
            state = getattr(error, "sqlstate", None)
            if state in _CORRUPT:
                raise CorruptRecord(f"{self._where} is damaged ({detail})") from error
            what = "is full" if state == _FULL else "failed" if state else "lost its connection"
            raise StoreError(f"{self._where} {what} ({detail}){outcome}") from error

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle if os.getpid() == self._pid else ():
            connection.close()

    # -- batches -------------------------------------------------------------------------------------------------------

    def batch(self, ops: Sequence[Op]) -> list[Any]:
        if any(isinstance(op, (Put, Delete, Forget, Expire)) for op in ops):
            return self._write(ops)
        try:
            statements, out = self._read(ops)
        except self._psycopg.OperationalError as error:
            if error.sqlstate is not None and not error.sqlstate.startswith(("57P", "08")):
                with self._errors():
                    raise
            with self._errors():
                statements, out = self._read(ops, fresh=True)
        except self._psycopg.Error:
            with self._errors():
                raise
        return self._write(ops) if statements.to_renew and self._writable else out

    def _read(self, ops: Sequence[Op], fresh: bool = False) -> tuple[Statements, list[Any]]:
        with self._connection(fresh) as connection:
            statements = Statements(connection, self._where)
            if len(ops) == 1:  # a statement is a transaction of its own; no read needs two that must agree
                return statements, [statements.apply(ops[0])]
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            out = [statements.apply(op) for op in ops]
            connection.execute("COMMIT")
            return statements, out

    def _write(self, ops: Sequence[Op]) -> list[Any]:
        if not self._writable:
            raise StoreError(f"{self._where} is read-only: a later version of nbmf has written to it")
        slots = sorted({self._slot(op) for op in ops if isinstance(op, (Get, Put, Delete))})
        forgets = any(isinstance(op, Forget) for op in ops)
        for left in reversed(range(TRIES)):
            with self._errors("; nothing of the batch was done"), contextlib.ExitStack() as stack:
                connection = self._begin(stack)
                try:
                    self._take_turns(connection, slots, alone=forgets)
                    statements = Statements(connection, self._where, writes=True)
                    with connection.pipeline() if len(ops) >= LONG else contextlib.nullcontext():
                        if len(ops) >= LONG:
                            statements.read_ahead(ops)
                        out = [statements.apply(op) for op in ops]
                        statements.finish()
                except self._psycopg.Error as error:
                    if error.sqlstate in _AGAIN and left:
                        connection.execute("ROLLBACK")
                        continue
                    raise
                with self._errors("; whether the batch was done is not known"):
                    connection.execute("COMMIT")
                break
        if forgets:
            self._wipe("what was forgotten is deleted, but its bytes stay until `compact` succeeds")
        return out

    def _begin(self, stack: contextlib.ExitStack) -> Any:
        """A connection that has begun. One that was lost while idle is replaced: nothing was asked of it yet."""
        with contextlib.suppress(self._psycopg.OperationalError), contextlib.ExitStack() as idle:
            connection = idle.enter_context(self._connection())
            connection.execute("BEGIN")
            stack.push(idle.pop_all())
            return connection
        connection = stack.enter_context(self._connection(fresh=True))
        connection.execute("BEGIN")
        return connection

    def _slot(self, op: Get | Put | Delete) -> int:
        at = op.record if isinstance(op, Put) else op
        check_address(at.namespace, at.key)
        return bucket_of(pack_namespace(at.namespace), at.key.encode(), SLOTS)

    def _take_turns(self, connection: Any, slots: list[int], alone: bool) -> None:
        """Locks until the end of the transaction: the store, shared or `alone`, then each slot."""
        shared = "" if alone else "_shared"
        connection.execute(f"SELECT pg_advisory_xact_lock{shared}(%s, -1)", (self._space,))
        if slots and not alone:
            connection.execute(
                "SELECT pg_advisory_xact_lock(%s, slot) FROM unnest(%s::int[]) slot", (self._space, slots)
            )

    @contextlib.contextmanager
    def turn(self, alone: bool) -> Iterator[None]:
        """Holds a lock of this store over all processes, shared or `alone`. Batches take no notice of it."""
        shared = "" if alone else "_shared"
        with self._connection() as connection:
            with self._errors():
                connection.execute(f"SELECT pg_advisory_lock{shared}(%s, -3)", (self._space,))
            yield
            with self._errors():
                connection.execute(f"SELECT pg_advisory_unlock{shared}(%s, -3)", (self._space,))

    def version(self) -> int:
        with self._errors():
            try:
                return self._pulse()
            except self._psycopg.OperationalError:
                return self._pulse(fresh=True)

    def _pulse(self, fresh: bool = False) -> int:
        with self._connection(fresh) as connection:
            return int(connection.execute("SELECT coalesce(sum(beats), 0) FROM pulse").fetchone()[0])

    # -- the whole -----------------------------------------------------------------------------------------------------

    def compact(self) -> None:
        if not self._writable:
            raise StoreError(f"{self._where} is read-only: a later version of nbmf has written to it")
        with self._errors(), self._connection() as connection:
            connection.execute("BEGIN")
            self._take_turns(connection, [], alone=True)
            statements = Statements(connection, self._where, writes=True)
            statements.drop_names()
            self._reseal(connection, statements)
            statements.finish()
            connection.execute("COMMIT")
        self._wipe("what was deleted may still be in the server's files")

    def _wipe(self, otherwise: str) -> None:
        """Writes the tables anew without what was deleted. The server's own log and backups are its keeper's."""
        try:
            with self._errors(), self._connection() as connection:
                # A row that some transaction may still see would be written anew too.
                (now,) = connection.execute("SELECT pg_current_xact_id()::xid").fetchone()
                end = time.monotonic() + self._timeout
                while connection.execute(
                    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    " AND age(backend_xmin) > age(%s::text::xid)",
                    (str(now),),
                ).fetchone():
                    if time.monotonic() > end:
                        raise StoreError(f"{self._where} is busy: another transaction still sees what was deleted")
                    time.sleep(0.01)
                for table in ("record", "change", "kind", "seal"):
                    connection.execute(f"VACUUM (FULL) {table}")
        except StoreError as error:
            raise StoreError(f"{error}; {otherwise}") from error

    def _reseal(self, connection: Any, statements: Statements) -> None:
        """More buckets for a store that outgrew them. Raises CorruptRecord rather than seal what is damaged."""
        count, buckets = statements.count(), statements.buckets
        if count <= 2 * BUCKET_ROWS * buckets:
            return
        while count > BUCKET_ROWS * buckets:
            buckets *= 2
        seals = Seals(buckets)
        for row in self._stream(connection):
            seals.add(unpack_row(row, self._where))
        if any(self._unlike(statements, seals.folded(statements.buckets))):
            raise CorruptRecord(f"{self._where} does not match its checksums: see `check`")
        statements.write_seals(seals)

    @staticmethod
    def _unlike(statements: Statements, seals: Seals) -> Iterator[int]:
        """The buckets whose seal in the store is another."""
        kept = statements.seals()
        for bucket in range(seals.count):
            if kept.get(bucket, (0, 0)) != (seals.rows.get(bucket, 0), seals.sums.get(bucket, 0)):
                yield bucket

    def _stream(self, connection: Any) -> Iterator[tuple[Any, ...]]:
        """Every record's row, a few at a time; within a transaction."""
        with connection.cursor(name="everything", binary=True) as cursor:
            cursor.itersize = STREAM
            cursor.execute(f"{Statements.SELECT} ORDER BY r.path, r.key")
            yield from cursor

    def check(self) -> Iterator[Fault]:
        try:
            with self._errors(), self._connection() as connection:
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                yield from self._faults(connection)
                connection.execute("COMMIT")
        except CorruptRecord as error:
            yield Fault(self._where, str(error))

    def _faults(self, connection: Any) -> Iterator[Fault]:
        statements = Statements(connection, self._where)
        seals = Seals(statements.buckets)
        for row in self._stream(connection):
            try:
                seals.add(unpack_row(row, self._where))
            except CorruptRecord as error:
                yield Fault(self._where, str(error))
        wrong: dict[int, list[str]] = {bucket: [] for bucket in self._unlike(statements, seals)}
        for row in self._stream(connection) if wrong else ():
            with contextlib.suppress(CorruptRecord):
                record = unpack_row(row, self._where)
                bucket = bucket_of(pack_namespace(record.namespace), record.key.encode(), seals.count)
                if bucket in wrong:
                    wrong[bucket].append(address(record.namespace, record.key))
        kept = statements.seals()
        for bucket, names in wrong.items():
            yield Fault(
                f"{self._where}, bucket {bucket} of {seals.count}",
                f"{kept.get(bucket, (0, 0))[0]} records were sealed, and are not what is there: {few(names) or 'none'}",
            )

    def sizes(self) -> dict[str, int]:
        """Bytes: records, codes, keys (their index), expiry, seals, journal, other; the server's log is not counted."""
        with self._errors(), self._connection() as connection:
            row = connection.execute(
                "SELECT pg_table_size('record'), pg_relation_size('record_pkey'), pg_relation_size('record_expires'),"
                " pg_total_relation_size('seal'), pg_total_relation_size('change'), pg_total_relation_size('kind')"
                " + pg_total_relation_size('store') + pg_total_relation_size('pulse'),"
                " (SELECT coalesce(sum(octet_length(code)), 0) FROM record), (SELECT coalesce(sum(rows), 0) FROM seal)"
            ).fetchone()
        records, keys, expiry, seals, journal, other, codes, count = (int(number) for number in row)
        return {
            "records": max(0, records - codes),
            "codes": codes,
            "keys": keys,
            "expiry": expiry,
            "seals": seals,
            "journal": journal,
            "other": other,
            "count": count,
        }


def _psycopg() -> ModuleType:
    try:
        import psycopg
    except ImportError:
        raise NbmfError("a store on PostgreSQL needs nbmf[postgres]") from None
    return psycopg
