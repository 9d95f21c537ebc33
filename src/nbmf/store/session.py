"""What one transaction of the SQLite tier does: each operation as statements, and the seals that it changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from typing import Any, Final

from nbmf.errors import CorruptRecord
from nbmf.store.base import (
    JOURNAL,
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
    Record,
    Scan,
    check_address,
)
from nbmf.store.connection import Connection
from nbmf.store.rows import (
    SUM_BITS,
    SUM_MASK,
    Seals,
    address,
    pack_extra,
    pack_key,
    pack_namespace,
    path_range,
    unpack_extra,
    unpack_key,
    unpack_namespace,
)

PRUNE: Final = JOURNAL // 4  # changes that the journal takes over its measure before it is cut back
NAMESPACES: Final = 256  # listed at a time
PAGE_BYTES: Final = 32 << 20  # of blobs, after which a page of a scan ends early

# Kinds and shared blobs are joined from the left: a record that has lost one is an error, not an absence.
_FIELDS: Final = "r.created, r.expires, r.extra, r.code, r.blob, k.codec, k.cls, k.fidelity, s.blob"
_JOINS: Final = "LEFT JOIN kind k ON k.id = r.kind LEFT JOIN shared s ON s.id = r.blob"
_EVERYTHING: Final = (
    f"SELECT n.path, r.key, {_FIELDS} FROM namespace n CROSS JOIN record r ON r.namespace = n.id {_JOINS}"
)
_BY_KEY: Final = f"SELECT {_FIELDS} FROM record r {_JOINS} WHERE r.namespace = ? AND r.key = ?"
_GET: Final = _BY_KEY.replace("r.namespace = ?", "r.namespace = (SELECT id FROM namespace WHERE path = ?)")
_OF_NAMESPACE: Final = f"SELECT r.key, {_FIELDS} FROM record r {_JOINS} WHERE r.namespace = ?"

Packed = bytes | str  # a key as rows.pack_key makes it


@dataclass(slots=True)
class _Whole:
    """The row of `store`, but for the epoch, which never changes."""

    buckets: int
    namespaces: int
    journal: int
    traces: int


@dataclass(slots=True)
class _Found:
    """A record as it was found; `shared` is the number of its blob in `shared`."""

    record: Record
    shared: int | None


class Session:
    """One transaction over `connection`, which the tier begins and commits; `finish` comes before the commit."""

    def __init__(self, connection: Connection, epoch: int, writes: bool = False) -> None:
        self._run = connection.execute
        self._name = connection.path
        self._epoch = epoch
        self._writes = writes
        self.to_renew = False  # a read should have renewed a record, and this session does not write
        # What this transaction has seen of two tables, which nobody else can change before it ends.
        self._namespaces: dict[bytes, int] = {}
        self._kinds: dict[tuple[str, str, str], int] = {}
        self._loaded: _Whole | None = None
        self._was: tuple[int, ...] = ()
        self._seals: Seals | None = None
        self._top: int | None = None  # the journal's last position

    def apply(self, op: Op) -> Any:
        """Its result. Raises PolicyError (an address that cannot be), StoreError, CorruptRecord."""
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
        """Writes what was summed up on the way."""
        for bucket, rows, total in self._seals.changes() if self._seals else ():
            row = self._run("SELECT rows, sum FROM seal WHERE bucket = ?", (bucket,)).fetchone()
            if row is not None:
                rows += row[0]
                total += int.from_bytes(row[1], "little")
            self._write_seal(bucket, rows, total & SUM_MASK)
        self._seals = None
        if self._top is not None and self._top - self._whole.journal > JOURNAL + PRUNE:
            self._whole.journal = self._top - JOURNAL
            self._run("DELETE FROM change WHERE position <= ?", (self._whole.journal,))
        if self._loaded is not None and (now := astuple(self._loaded)) != self._was:
            self._run("UPDATE store SET buckets = ?, namespaces = ?, journal = ?, traces = ?", now)

    @property
    def traces(self) -> bool:
        """Whether bytes of what was deleted may be left in the file."""
        return bool(self._whole.traces)

    # -- one record ----------------------------------------------------------------------------------------------------

    def _get(self, op: Get) -> Record | None:
        check_address(op.namespace, op.key)
        path, key = pack_namespace(op.namespace), pack_key(op.key)
        row = self._run(_GET, (path, key)).fetchone()
        if row is None:
            return None
        record = self._found(op.namespace, op.key, row).record
        if not record.at(op.now):
            return None
        if op.renew and record.ttl is not None and record.expires != (expires := op.now + record.ttl):
            if not self._writes:
                self.to_renew = True
                return record
            renewed = replace(record, expires=expires)
            number = self._namespace(path)
            ends = self._from_epoch(expires)
            self._run("UPDATE record SET expires = ? WHERE namespace = ? AND key = ?", (ends, number, key))
            self._seal(record, -1)
            self._seal(renewed)
            return renewed
        return record

    def _put(self, op: Put) -> bool:
        record = op.record
        check_address(record.namespace, record.key)
        path, key = pack_namespace(record.namespace), pack_key(record.key)
        number = self._namespace(path)
        old = None if number is None else self._at(number, record.namespace, record.key)
        live = old.record if old is not None and old.record.at(record.updated) else None
        if op.expected is not None and (live is None or live.blob != op.expected):
            return False
        if live is not None:
            record = replace(record, created=live.created)
        if number is None:
            number = self._make_namespace(path)
        self._run(
            "INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                key,
                self._kind((record.codec, record.cls, record.fidelity)),
                record.created - self._epoch,
                self._from_epoch(record.expires),
                pack_extra(record.updated - record.created, record.ttl, record.meta),
                record.code or None,
                record.blob,
            ),
        )
        if old is not None:
            self._let_go(old)
        self._seal(record)
        if record.code or (old is not None and old.record.code):
            self._note(path, key)
        return live is not None

    def _delete(self, op: Delete) -> bool:
        check_address(op.namespace, op.key)
        path = pack_namespace(op.namespace)
        number = self._namespace(path)
        old = None if number is None else self._at(number, op.namespace, op.key)
        if number is None or old is None or (op.expected is not None and old.record.blob != op.expected):
            return False
        self._remove(number, path, old)
        self._drop_if_empty(number, path)
        return True

    def _at(self, number: int, namespace: Namespace, key: str) -> _Found | None:
        row = self._run(_BY_KEY, (number, pack_key(key))).fetchone()
        return None if row is None else self._found(namespace, key, row)

    def _found(self, namespace: Namespace, key: str, row: tuple[Any, ...]) -> _Found:
        """The record of a row of _FIELDS. Raises CorruptRecord."""
        created, expires, extra, code, blob, codec, cls, fidelity, lent = row
        shared = blob if isinstance(blob, int) else None
        if shared is not None:
            blob = lent
        try:
            updated, ttl, meta = unpack_extra(extra)
            created += self._epoch
            if expires is not None:
                expires += self._epoch
            texts = isinstance(codec, str) and isinstance(cls, str) and isinstance(fidelity, str)
            if not (texts and isinstance(blob, bytes) and isinstance(created, int)):
                raise TypeError
            code = b"" if code is None else bytes(code)
            record = Record(
                namespace, key, blob, codec, cls, fidelity, created, created + updated, expires, ttl, meta, code
            )
        except TypeError:
            raise CorruptRecord(f"{address(namespace, key)} in {self._name} has lost a part") from None
        return _Found(record, shared)

    def _remove(self, number: int, path: bytes, old: _Found) -> None:
        key = pack_key(old.record.key)
        self._run("DELETE FROM record WHERE namespace = ? AND key = ?", (number, key))
        self._let_go(old)
        if old.record.code:
            self._note(path, key)

    def _let_go(self, old: _Found) -> None:
        """What follows when its row is deleted or overwritten."""
        self._seal(old.record, -1)
        self._whole.traces = 1
        if old.shared is not None:
            self._run("UPDATE shared SET uses = uses - 1 WHERE id = ?", (old.shared,))
            self._run("DELETE FROM shared WHERE id = ? AND uses < 1", (old.shared,))

    # -- many records --------------------------------------------------------------------------------------------------

    def _scan(self, op: Scan) -> list[Record]:
        wanted: str = ""
        values: list[int | str] = []
        if op.now is not None:
            wanted, values = " AND (r.expires IS NULL OR r.expires > ?)", [op.now - self._epoch]
        if op.cls is not None:
            wanted, values = f"{wanted} AND k.cls = ?", [*values, op.cls]
        out: list[Record] = []
        size = 0
        for path, number, after in self._places(op.prefix, op.after):
            namespace = unpack_namespace(path)
            where = f"{wanted} AND r.key > ?" if after is not None else wanted
            bounds = [*values, after] if after is not None else values
            sql = f"{_OF_NAMESPACE}{where} ORDER BY r.key LIMIT ?"
            for key, *row in self._run(sql, (number, *bounds, op.limit - len(out))):
                out.append(self._found(namespace, unpack_key(key), tuple(row)).record)
                size += len(out[-1].blob)
                if size > PAGE_BYTES:
                    return out
            if len(out) >= op.limit:
                break
        return out

    def _codes(self, op: Codes) -> list[tuple[Namespace, str, bytes]]:
        out: list[tuple[Namespace, str, bytes]] = []
        for path, number, after in self._places((), op.after):
            namespace = unpack_namespace(path)
            where = " AND key > ?" if after is not None else ""
            sql = f"SELECT key, code FROM record WHERE namespace = ? AND code IS NOT NULL{where} ORDER BY key LIMIT ?"
            bounds = (number, op.limit - len(out)) if after is None else (number, after, op.limit - len(out))
            out += [(namespace, unpack_key(key), code) for key, code in self._run(sql, bounds).fetchall()]
            if len(out) >= op.limit:
                break
        return out

    def _places(
        self, prefix: Namespace, after: tuple[Namespace, str] | None
    ) -> Iterator[tuple[bytes, int, Packed | None]]:
        """(path, number, key) of the namespaces from `after` on, in order: of the first, what follows `key`.

        One by one, because a join in this order would sort each namespace's records again for every page.
        """
        if prefix:
            check_address(prefix)
        least, end = path_range(prefix)
        if after is not None and (path := pack_namespace(after[0])) >= least:
            number = self._namespace(path) if path < end else None
            if number is not None:
                yield path, number, pack_key(after[1])
            least = path + b"\0"  # no path continues another with a zero byte
        sql = "SELECT path, id FROM namespace WHERE path >= ? AND path < ? ORDER BY path LIMIT ?"
        while rows := self._run(sql, (least, end, NAMESPACES)).fetchall():
            for path, number in rows:
                yield path, number, None
            least = rows[-1][0] + b"\0"

    def _list_namespaces(self, op: Namespaces) -> list[Namespace]:
        if op.prefix:
            check_address(op.prefix)
        rows = self._run(
            "SELECT path FROM namespace n WHERE path >= ? AND path < ? AND EXISTS (SELECT 1 FROM record r"
            " WHERE r.namespace = n.id AND (r.expires IS NULL OR r.expires > ?)) ORDER BY path",
            (*path_range(op.prefix), op.now - self._epoch),
        ).fetchall()
        return [unpack_namespace(path) for (path,) in rows]

    def _forget(self, op: Forget) -> int:
        if op.prefix:
            check_address(op.prefix)
        within = path_range(op.prefix)
        count = 0
        uses: Counter[int] = Counter()
        noted = bool(self._count("SELECT count(*) FROM change WHERE path >= ? AND path < ?", within))
        sql = "SELECT path, id FROM namespace WHERE path >= ? AND path < ?"
        for path, number in self._run(sql, within).fetchall():
            namespace = unpack_namespace(path)
            for key, *row in self._run(_OF_NAMESPACE, (number,)):
                found = self._found(namespace, unpack_key(key), tuple(row))
                self._seal(found.record, -1)
                noted = noted or bool(found.record.code)
                if found.shared is not None:
                    uses[found.shared] += 1
                count += 1
            self._run("DELETE FROM record WHERE namespace = ?", (number,))
            self._drop_if_empty(number, path)
        for shared, times in uses.items():
            self._run("UPDATE shared SET uses = uses - ? WHERE id = ?", (times, shared))
        self._run("DELETE FROM shared WHERE uses < 1")
        if count:
            self._whole.traces = 1
            self._drop_unused_kinds()
        if noted:
            self._reset_journal()
        return count

    def _expire(self, op: Expire) -> int:
        rows = self._run(
            "SELECT namespace, key FROM record WHERE expires IS NOT NULL AND expires <= ? ORDER BY expires LIMIT ?",
            (op.now - self._epoch, op.limit),
        ).fetchall()
        numbers = {number for number, _ in rows}
        paths = {}
        if rows:  # numbers have no index: rather one pass over the namespaces than their bytes a second time
            paths = {number: path for path, number in self._run("SELECT path, id FROM namespace") if number in numbers}
        for number, packed in rows:
            path = paths.get(number)
            if path is None:
                raise CorruptRecord(f"{self._name} has records of a namespace {number} that is not there")
            old = self._at(number, unpack_namespace(path), unpack_key(packed))
            if old is None:
                raise CorruptRecord(f"{self._name} lists a record as expiring that is not there")
            self._remove(number, path, old)
        for number, path in paths.items():
            self._drop_if_empty(number, path)
        return len(rows)

    # -- the journal ---------------------------------------------------------------------------------------------------

    def _changes(self, op: Changes) -> tuple[int, list[tuple[Namespace, str]] | None]:
        top = self._last_position()
        if not self._whole.journal <= op.since <= top:
            return top, None
        rows = self._run("SELECT path, key FROM change WHERE position > ? ORDER BY position", (op.since,)).fetchall()
        return top, [(unpack_namespace(path), unpack_key(key)) for path, key in dict.fromkeys(rows)]

    def _note(self, path: bytes, key: Packed) -> None:
        self._top = self._last_position() + 1
        self._run("INSERT INTO change VALUES (?, ?, ?)", (self._top, path, key))

    def _last_position(self) -> int:
        if self._top is None:
            self._top = max(self._count("SELECT max(position) FROM change"), self._whole.journal)
        return self._top

    def _reset_journal(self) -> None:
        """Empties it, when it may name what must leave no trace; readers begin anew."""
        self._top = self._whole.journal = self._last_position() + 1
        self._run("DELETE FROM change")

    # -- namespaces and kinds ------------------------------------------------------------------------------------------

    def _namespace(self, path: bytes) -> int | None:
        number = self._namespaces.get(path)
        if number is None:
            row = self._run("SELECT id FROM namespace WHERE path = ?", (path,)).fetchone()
            if row is not None:
                number = self._namespaces[path] = row[0]
        return number

    def _make_namespace(self, path: bytes) -> int:
        number = self._whole.namespaces
        self._whole.namespaces += 1
        self._run("INSERT INTO namespace VALUES (?, ?)", (path, number))
        self._namespaces[path] = number
        return number

    def _drop_if_empty(self, number: int, path: bytes) -> None:
        if self._run("SELECT 1 FROM record WHERE namespace = ? LIMIT 1", (number,)).fetchone() is None:
            self._run("DELETE FROM namespace WHERE path = ?", (path,))
            self._namespaces.pop(path, None)

    def _kind(self, kind: tuple[str, str, str]) -> int:
        number = self._kinds.get(kind)
        if number is None:
            row = self._run("SELECT id FROM kind WHERE codec = ? AND cls = ? AND fidelity = ?", kind).fetchone()
            number = row[0] if row is not None else self._count("SELECT coalesce(max(id) + 1, 0) FROM kind")
            if row is None:
                self._run("INSERT INTO kind VALUES (?, ?, ?, ?)", (number, *kind))
            self._kinds[kind] = number
        return number

    def drop_names(self) -> None:
        """Of what is deleted: kinds that no record has, and the journal."""
        self._drop_unused_kinds()
        if self._count("SELECT count(*) FROM change"):
            self._reset_journal()

    def _drop_unused_kinds(self) -> None:
        self._run("DELETE FROM kind WHERE id NOT IN (SELECT kind FROM record WHERE kind IS NOT NULL)")
        self._kinds.clear()

    # -- seals ---------------------------------------------------------------------------------------------------------

    @property
    def _whole(self) -> _Whole:
        if self._loaded is None:
            row = self._run("SELECT buckets, namespaces, journal, traces FROM store").fetchone()
            if row is None or not all(isinstance(number, int) for number in row):
                raise CorruptRecord(f"{self._name} has lost its row of `store`")
            self._was = row
            self._loaded = _Whole(*row)
        return self._loaded

    @property
    def buckets(self) -> int:
        return self._whole.buckets

    def _seal(self, record: Record, sign: int = 1) -> None:
        if self._seals is None:
            self._seals = Seals(self.buckets)
        self._seals.add(record, sign)

    def seals(self) -> dict[int, tuple[int, int]]:
        """(rows, sum) of each bucket that holds a record."""
        rows = self._run("SELECT bucket, rows, sum FROM seal").fetchall()
        return {bucket: (count, int.from_bytes(total, "little")) for bucket, count, total in rows}

    def write_seals(self, seals: Seals) -> None:
        """Those of every record there is, over a number of buckets that may be another than before."""
        self._run("DELETE FROM seal")
        self._whole.buckets = seals.count
        for bucket, rows, total in seals.changes():
            self._write_seal(bucket, rows, total)

    def _write_seal(self, bucket: int, rows: int, total: int) -> None:
        if rows:
            values = (bucket, rows, total.to_bytes(SUM_BITS // 8, "little"))
            self._run("INSERT OR REPLACE INTO seal VALUES (?, ?, ?)", values)
        else:
            self._run("DELETE FROM seal WHERE bucket = ?", (bucket,))

    # -- the whole -----------------------------------------------------------------------------------------------------

    def everything(self) -> Iterator[Record | Fault]:
        """Every record, or what is wrong with it. No other statement may run meanwhile."""
        for path, key, *row in self._run(_EVERYTHING):
            try:
                yield self._found(unpack_namespace(path), unpack_key(key), tuple(row)).record
            except CorruptRecord as error:
                yield Fault(self._name, str(error))

    def loose_ends(self) -> Iterator[str]:
        """What does not fit together, in one line each."""
        for sql, what in (
            (
                "SELECT count(*) FROM namespace WHERE id NOT IN (SELECT namespace FROM record)",
                "namespaces hold nothing",
            ),
            ("SELECT count(*) - count(DISTINCT id) FROM namespace", "namespaces have the number of another"),
            (
                "SELECT count(*) FROM shared s WHERE uses IS NOT"
                " (SELECT count(*) FROM record WHERE typeof(blob) = 'integer' AND blob = s.id)",
                "shared blobs have another number of uses than was counted",
            ),
        ):
            if number := self._count(sql):
                yield f"{number} {what}"

    def count(self) -> int:
        """How many records there are, by the seals."""
        return self._count("SELECT coalesce(sum(rows), 0) FROM seal")

    def code_bytes(self) -> int:
        return self._count("SELECT coalesce(sum(length(code)), 0) FROM record")

    def page_bytes(self) -> int:
        """Of all pages of the file."""
        return self._count("PRAGMA page_size") * self._count("PRAGMA page_count")

    def _count(self, sql: str, values: tuple[Any, ...] = ()) -> int:
        row = self._run(sql, values).fetchone()
        return 0 if row is None or row[0] is None else int(row[0])

    def _from_epoch(self, time: int | None) -> int | None:
        return None if time is None else time - self._epoch
