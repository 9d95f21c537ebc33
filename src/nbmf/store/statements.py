"""What one transaction of the PostgreSQL tier does: its tables, each operation as statements, the seals it changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from nbmf.errors import CorruptRecord
from nbmf.store.base import (
    JOURNAL,
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
)
from nbmf.store.rows import SUM_BITS, Seals, address, pack_namespace, path_range, unpack_namespace

BUCKETS: Final = 64  # of a new store; `compact` makes more as it grows
PULSES: Final = 16  # counters of transactions, so that writers do not wait for one row
PRUNE: Final = JOURNAL // 4  # changes that the journal takes over its measure before it is cut back
PAGE_BYTES: Final = 32 << 20  # of blobs, after which a page of a scan ends early
READ: Final = 1  # the newest form of tables that this code reads

# A store's tables. `path` is rows.pack_namespace; times are ms since the Unix epoch; "C" is the order of UTF-8's bytes.
# `store` has one row: `top` is the journal's last position, `journal` the one up to which it is forgotten. Blobs are
# compressed already, so the server does not try (EXTERNAL).
_M001: Final = (
    "CREATE TABLE store (read int, write int, buckets int, top bigint, journal bigint)",
    f"INSERT INTO store VALUES (0, 0, {BUCKETS}, 0, 0)",
    """CREATE TABLE kind (
        id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, codec text, cls text, fidelity text,
        UNIQUE (codec, cls, fidelity)
    )""",
    """CREATE TABLE record (
        created bigint NOT NULL, updated bigint NOT NULL, expires bigint, ttl bigint, kind int NOT NULL,
        path bytea, key text COLLATE "C", meta bytea, code bytea, blob bytea NOT NULL, PRIMARY KEY (path, key)
    )""",
    "ALTER TABLE record ALTER blob SET STORAGE EXTERNAL, ALTER code SET STORAGE EXTERNAL",
    "CREATE INDEX record_expires ON record (expires) WHERE expires IS NOT NULL",
    "CREATE TABLE seal (bucket int PRIMARY KEY, rows bigint NOT NULL, sum numeric NOT NULL)",
    'CREATE TABLE change (position bigint PRIMARY KEY, path bytea NOT NULL, key text COLLATE "C" NOT NULL)',
    "CREATE TABLE pulse (slot int PRIMARY KEY, beats bigint NOT NULL)",
    f"INSERT INTO pulse SELECT slot, 0 FROM generate_series(0, {PULSES - 1}) slot",
)
MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (_M001,)
WRITE: Final = len(MIGRATIONS)

_PUT: Final = """INSERT INTO record (path, key, kind, created, updated, expires, ttl, meta, code, blob)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (path, key) DO UPDATE SET kind = excluded.kind,
    created = excluded.created, updated = excluded.updated, expires = excluded.expires, ttl = excluded.ttl,
    meta = excluded.meta, code = excluded.code, blob = excluded.blob"""


def unpack_row(row: tuple[Any, ...], where: str) -> Record:
    """The record of a row of `Statements.SELECT`. Raises CorruptRecord."""
    path, key, blob, created, updated, expires, ttl, meta, code, codec, cls, fidelity = row
    namespace = unpack_namespace(path)
    if codec is None:
        raise CorruptRecord(f"{address(namespace, key)} in {where} has lost its kind")
    return Record(namespace, key, blob, codec, cls, fidelity, created, updated, expires, ttl, meta or b"", code or b"")


class Statements:
    """One transaction over `connection`, which the tier begins and commits; `finish` comes before the commit."""

    # Joined from the left: a record that has lost its kind is an error, not an absence.
    SELECT: Final = (
        "SELECT r.path, r.key, r.blob, r.created, r.updated, r.expires, r.ttl, r.meta, r.code, k.codec, k.cls,"
        " k.fidelity FROM record r LEFT JOIN kind k ON k.id = r.kind"
    )

    def __init__(self, connection: Any, where: str, writes: bool = False) -> None:
        self._connection = connection
        self._where = where
        self._writes = writes
        self.to_renew = False  # a read should have renewed a record, and this transaction does not write
        self._kinds: dict[tuple[str, str, str], int] = {}
        # Records of this batch as this transaction left them, None for none: their slots are locked, so they stay so.
        self._known: dict[tuple[bytes, str], Record | None] = {}
        self._buckets: int | None = None
        self._seals: Seals | None = None
        self._changed: list[tuple[bytes, str]] = []  # for the journal

    def _run(self, sql: str, values: tuple[Any, ...] = ()) -> Any:
        # In a pipeline answers come late: a cursor of its own keeps each with its statement.
        return self._connection.cursor(binary=True).execute(sql, values)

    def _run_many(self, sql: str, rows: list[Any]) -> None:
        if rows:
            self._connection.cursor(binary=True).executemany(sql, rows)

    def apply(self, op: Op) -> Any:
        """Its result. Raises PolicyError (an address that cannot be), CorruptRecord, psycopg's errors."""
        match op:
            case Get():
                return self._get(op)
            case Put():
                return self._put(op)
            case Delete():
                return self._delete(op)
            case Scan():
                return self._scan(op)
            case Namespaces():
                return self._list_namespaces(op)
            case Forget():
                return self._forget(op)
            case Expire():
                return self._expire(op)
            case Codes():
                return self._codes(op)
            case Changes():
                return self._changes(op)

    def finish(self) -> None:
        """Writes what was summed up on the way. All transactions lock in this order: seals, journal, pulse."""
        self._run_many(
            "INSERT INTO seal VALUES (%s, %s, %s) ON CONFLICT (bucket) DO UPDATE SET rows = seal.rows"
            f" + excluded.rows, sum = mod(seal.sum + excluded.sum, {1 << SUM_BITS})",
            self._seals.changes() if self._seals else [],
        )
        self._seals = None
        self._write_journal()
        self._run("UPDATE pulse SET beats = beats + 1 WHERE slot = pg_backend_pid() %% %s", (PULSES,))

    def read_ahead(self, ops: Sequence[Op]) -> None:
        """The records that a long batch will change, by one statement instead of one each."""
        at = [op.record if isinstance(op, Put) else op for op in ops if isinstance(op, (Put, Delete))]
        known = {(pack_namespace(one.namespace), one.key): None for one in at}
        self._known = dict(known)
        rows = self._run(
            f"{self.SELECT} WHERE (r.path, r.key) IN (SELECT * FROM unnest(%s::bytea[], %s::text[])) FOR UPDATE OF r",
            ([path for path, _ in known], [key for _, key in known]),
        ).fetchall()
        for row in rows:
            self._known[row[0], row[1]] = unpack_row(row, self._where)

    # -- one record ----------------------------------------------------------------------------------------------------

    def _get(self, op: Get) -> Record | None:
        check_address(op.namespace, op.key)
        path = pack_namespace(op.namespace)
        record = self._at(path, op.key)
        if record is None or not record.at(op.now):
            return None
        if op.renew and record.ttl is not None and record.expires != op.now + record.ttl:
            if not self._writes:
                self.to_renew = True
                return record
            renewed = replace(record, expires=op.now + record.ttl)
            self._run("UPDATE record SET expires = %s WHERE path = %s AND key = %s", (renewed.expires, path, op.key))
            self._known[path, op.key] = renewed
            self._seal(record, -1)
            self._seal(renewed)
            return renewed
        return record

    def _put(self, op: Put) -> bool:
        record = op.record
        check_address(record.namespace, record.key)
        path = pack_namespace(record.namespace)
        old = self._at(path, record.key)
        live = old if old is not None and old.at(record.updated) else None
        if op.expected is not None and (live is None or live.blob != op.expected):
            return False
        if live is not None:
            record = replace(record, created=live.created)
        self._run(
            _PUT,
            (
                path,
                record.key,
                self._kind((record.codec, record.cls, record.fidelity)),
                record.created,
                record.updated,
                record.expires,
                record.ttl,
                record.meta or None,
                record.code or None,
                record.blob,
            ),
        )
        self._known[path, record.key] = record
        if old is not None:
            self._seal(old, -1)
        self._seal(record)
        if record.code or (old is not None and old.code):
            self._changed.append((path, record.key))
        return live is not None

    def _delete(self, op: Delete) -> bool:
        check_address(op.namespace, op.key)
        path = pack_namespace(op.namespace)
        old = self._at(path, op.key)
        if old is None or (op.expected is not None and old.blob != op.expected):
            return False
        self._remove(path, old)
        return True

    def _at(self, path: bytes, key: str) -> Record | None:
        if (path, key) in self._known:
            return self._known[path, key]
        lock = " FOR UPDATE OF r" if self._writes else ""
        row = self._run(f"{self.SELECT} WHERE r.path = %s AND r.key = %s{lock}", (path, key)).fetchone()
        return None if row is None else unpack_row(row, self._where)

    def _remove(self, path: bytes, old: Record) -> None:
        self._run("DELETE FROM record WHERE path = %s AND key = %s", (path, old.key))
        self._known.pop((path, old.key), None)
        self._seal(old, -1)
        if old.code:
            self._changed.append((path, old.key))

    # -- many records --------------------------------------------------------------------------------------------------

    def _scan(self, op: Scan) -> list[Record]:
        where, values = self._after(op.prefix, op.after)
        if op.now is not None:
            where, values = f"{where} AND (r.expires IS NULL OR r.expires > %s)", (*values, op.now)
        if op.cls is not None:
            where, values = f"{where} AND k.cls = %s", (*values, op.cls)
        # Lengths first, so that a page of great blobs is cut on the server.
        sized = (
            f"SELECT page.*, sum(octet_length(blob)) OVER (ORDER BY path, key) - octet_length(blob) AS before"
            f" FROM ({self.SELECT} WHERE {where} ORDER BY r.path, r.key LIMIT %s) page"
        )
        rows = self._run(
            f"SELECT * FROM ({sized}) sized WHERE before < {PAGE_BYTES} ORDER BY path, key", (*values, op.limit)
        ).fetchall()
        return [unpack_row(row[:-1], self._where) for row in rows]

    def _codes(self, op: Codes) -> list[tuple[Namespace, str, bytes]]:
        where, values = self._after((), op.after)
        rows = self._run(
            f"SELECT r.path, r.key, r.code FROM record r WHERE r.code IS NOT NULL AND {where}"
            " ORDER BY r.path, r.key LIMIT %s",
            (*values, op.limit),
        ).fetchall()
        return [(unpack_namespace(path), key, code) for path, key, code in rows]

    @staticmethod
    def _after(prefix: Namespace, after: tuple[Namespace, str] | None) -> tuple[str, tuple[Any, ...]]:
        """A condition, with its values, for what is within `prefix` and follows `after`."""
        if prefix:
            check_address(prefix)
        least, end = path_range(prefix)
        if after is None or (path := pack_namespace(after[0])) < least:
            return "r.path >= %s AND r.path < %s", (least, end)
        return "(r.path, r.key) > (%s, %s) AND r.path < %s", (path, after[1], end)

    def _list_namespaces(self, op: Namespaces) -> list[Namespace]:
        if op.prefix:
            check_address(op.prefix)
        rows = self._run(
            "SELECT DISTINCT path FROM record WHERE path >= %s AND path < %s AND (expires IS NULL OR expires > %s)"
            " ORDER BY path",
            (*path_range(op.prefix), op.now),
        ).fetchall()
        return [unpack_namespace(path) for (path,) in rows]

    def _forget(self, op: Forget) -> int:
        if op.prefix:
            check_address(op.prefix)
        self._write_journal()
        within = path_range(op.prefix)
        count = 0
        noted = bool(self._run("SELECT 1 FROM change WHERE path >= %s AND path < %s LIMIT 1", within).fetchone())
        for record in self._pages(op.prefix):
            self._seal(record, -1)
            noted = noted or bool(record.code)
            count += 1
        self._run("DELETE FROM record WHERE path >= %s AND path < %s", within)
        self._known.clear()
        if count:
            self._drop_unused_kinds()
        if noted:
            self._reset_journal()
        return count

    def _pages(self, prefix: Namespace) -> Iterator[Record]:
        after = None
        while page := self._scan(Scan(prefix, None, after)):
            yield from page
            after = (page[-1].namespace, page[-1].key)

    def _expire(self, op: Expire) -> int:
        # One that another transaction holds is being renewed, replaced or deleted there.
        rows = self._run(
            f"{self.SELECT} WHERE r.expires IS NOT NULL AND r.expires <= %s ORDER BY r.expires LIMIT %s"
            " FOR UPDATE OF r SKIP LOCKED",
            (op.now, op.limit),
        ).fetchall()
        for row in rows:
            old = unpack_row(row, self._where)
            self._remove(pack_namespace(old.namespace), old)
        return len(rows)

    # -- the journal ---------------------------------------------------------------------------------------------------

    def _changes(self, op: Changes) -> tuple[int, list[tuple[Namespace, str]] | None]:
        if self._writes:
            self._write_journal()
        # One statement, so that the positions and the rows are of one moment.
        rows = self._run(
            "SELECT s.top, s.journal, c.path, c.key FROM store s LEFT JOIN change c ON c.position > %s"
            " AND c.position > s.journal ORDER BY c.position",
            (op.since,),
        ).fetchall()
        if not rows:
            raise CorruptRecord(f"{self._where} has lost its row of `store`")
        top, journal = rows[0][:2]
        if not journal <= op.since <= top:
            return top, None
        changed = dict.fromkeys((path, key) for _, _, path, key in rows if path is not None)
        return top, [(unpack_namespace(path), key) for path, key in changed]

    def _write_journal(self) -> None:
        """Positions are given under a lock kept until the commit, so that none appears behind one already read."""
        changed, self._changed = list(dict.fromkeys(self._changed)), []
        if not changed:
            return
        count = len(changed)
        row = self._run("UPDATE store SET top = top + %s RETURNING top, journal", (count,)).fetchone()
        top, journal = row
        first = top - count + 1
        self._run_many(
            "INSERT INTO change VALUES (%s, %s, %s)", [(first + i, *change) for i, change in enumerate(changed)]
        )
        if top - journal > JOURNAL + PRUNE:
            self._run("UPDATE store SET journal = %s", (top - JOURNAL,))
            self._run("DELETE FROM change WHERE position <= %s", (top - JOURNAL,))

    def _reset_journal(self) -> None:
        self._run("UPDATE store SET top = top + 1, journal = top + 1")
        self._run("DELETE FROM change")

    # -- kinds, seals, the whole ---------------------------------------------------------------------------------------

    def _kind(self, kind: tuple[str, str, str]) -> int:
        number = self._kinds.get(kind)
        if number is None:
            where = "SELECT id FROM kind WHERE codec = %s AND cls = %s AND fidelity = %s"
            row = self._run(where, kind).fetchone()
            if row is None:
                self._run("INSERT INTO kind (codec, cls, fidelity) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", kind)
                row = self._run(where, kind).fetchone()
            number = self._kinds[kind] = int(row[0])
        return number

    def drop_names(self) -> None:
        """Of what is deleted: kinds that no record has, and the journal. The transaction holds the store alone."""
        self._drop_unused_kinds()
        if self._run("SELECT 1 FROM change LIMIT 1").fetchone():
            self._reset_journal()

    def _drop_unused_kinds(self) -> None:
        self._run("DELETE FROM kind k WHERE NOT EXISTS (SELECT 1 FROM record r WHERE r.kind = k.id)")
        self._kinds.clear()

    @property
    def buckets(self) -> int:
        if self._buckets is None:
            row = self._run("SELECT buckets FROM store").fetchone()
            if row is None:
                raise CorruptRecord(f"{self._where} has lost its row of `store`")
            self._buckets = int(row[0])
        return self._buckets

    def _seal(self, record: Record, sign: int = 1) -> None:
        if self._seals is None:
            self._seals = Seals(self.buckets)
        self._seals.add(record, sign)

    def seals(self) -> dict[int, tuple[int, int]]:
        """(rows, sum) of each bucket that holds, or has held, a record."""
        rows = self._run("SELECT bucket, rows, sum FROM seal").fetchall()
        return {bucket: (count, int(total)) for bucket, count, total in rows}

    def write_seals(self, seals: Seals) -> None:
        """Those of every record there is, over a number of buckets that may be another than before."""
        self._run("DELETE FROM seal")
        self._run("UPDATE store SET buckets = %s", (seals.count,))
        self._buckets = seals.count
        self._run_many("INSERT INTO seal VALUES (%s, %s, %s)", seals.changes())

    def count(self) -> int:
        """How many records there are, by the seals."""
        return int(self._run("SELECT coalesce(sum(rows), 0) FROM seal").fetchone()[0])
