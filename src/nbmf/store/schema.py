"""The database file of the SQLite tier: its tables, its versions, and how one becomes the next.

`application_id` marks the file as a store of NBMF. `user_version` is READ << 16 | WRITE: whoever knows less than READ
must refuse the file, whoever knows less than WRITE must not write to it. WRITE counts the migrations that made it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from nbmf.errors import StoreError
from nbmf.store.connection import Connection

APPLICATION_ID: Final = 0x4E424D46  # "NBMF"
READ: Final = 1  # the newest form of tables that this code reads

# Bytes. Measured on 200,000 records whose blobs have 87 bytes in the mean: what is not key or blob takes 27 bytes a
# record at 4,096, 23 at 8,192 and 22 at 16,384, but a put writes every page that it touches whole.
PAGE_SIZE: Final = 8192
BUCKETS: Final = 64  # of a new store; `compact` makes more as it grows
# Times count from 24 days after a store is made, so those of its first 49 days, and of the day before, fit in 4 bytes.
EPOCH_AHEAD: Final = (1 << 31) - 86_400_000  # ms


def m001_tables(connection: Connection) -> None:
    """The first form.

    `store`      one row: what is true of the whole. `namespaces` and `changes` count those ever made; `journal` is the
                 position up to which the journal is forgotten; `traces` is 1 once deleted bytes may be left in a page.
    `namespace`  path (rows.pack_namespace) to number. One that holds no record has no row.
    `kind`       what many records share, under a small number: 0 and 1 take no byte in a record.
    `record`     key: rows.pack_key. created, expires: ms from the store's epoch. extra: rows.pack_extra. code: NULL for
                 none. blob: the bytes, or the number of a row of `shared`.
    `shared`     a blob that several records of a tenant have, and how many they are.
    `seal`       rows.Seals: how many records a bucket has, and their sum, 16 bytes, little-endian.
    `change`     the journal, for the semantic index.
    """
    for statement in (
        "CREATE TABLE store (epoch INTEGER, buckets INTEGER, namespaces INTEGER, journal INTEGER, traces INTEGER)",
        "CREATE TABLE namespace (path BLOB PRIMARY KEY, id INTEGER) WITHOUT ROWID",
        """CREATE TABLE kind (
            id INTEGER PRIMARY KEY, codec TEXT, cls TEXT, fidelity TEXT, UNIQUE (codec, cls, fidelity)
        )""",
        """CREATE TABLE record (
            namespace INTEGER, key, kind INTEGER, created INTEGER, expires INTEGER, extra BLOB, code BLOB, blob,
            PRIMARY KEY (namespace, key)
        ) WITHOUT ROWID""",
        "CREATE INDEX record_expires ON record (expires) WHERE expires IS NOT NULL",
        "CREATE TABLE shared (id INTEGER PRIMARY KEY, uses INTEGER, blob BLOB)",
        "CREATE TABLE seal (bucket INTEGER PRIMARY KEY, rows INTEGER, sum BLOB)",
        "CREATE TABLE change (position INTEGER PRIMARY KEY, path BLOB, key)",
    ):
        connection.execute(statement)
    epoch = time.time_ns() // 1_000_000 + EPOCH_AHEAD
    connection.execute("INSERT INTO store VALUES (?, ?, 0, 0, 0)", (epoch, BUCKETS))


MIGRATIONS: Final[tuple[Callable[[Connection], None], ...]] = (m001_tables,)
WRITE: Final = len(MIGRATIONS)


def prepare(connection: Connection) -> bool:
    """Makes the tables, or brings them up to date; whether this code may write to them.

    Raises StoreError for a file that is another program's, or too new to be read.
    """
    if _version(connection) is None:
        # Of two that make one file, the second finds it made.
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
    elif _version(connection) == (READ, WRITE):
        return True
    connection.execute("BEGIN IMMEDIATE")
    try:
        read, write = _version(connection) or (READ, 0)
        for migration in MIGRATIONS[write:] if read <= READ else ():
            migration(connection)
        if write < WRITE:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {READ << 16 | WRITE}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return write <= WRITE


def _version(connection: Connection) -> tuple[int, int] | None:
    """(READ, WRITE) of the file, None of an empty one: as it is at one moment, since another may be making it."""
    if connection.in_transaction:
        return _version_now(connection)
    connection.execute("BEGIN")
    try:
        return _version_now(connection)
    finally:
        connection.execute("ROLLBACK")


def _version_now(connection: Connection) -> tuple[int, int] | None:
    application, version = (_number(connection, f"PRAGMA {name}") for name in ("application_id", "user_version"))
    if application != APPLICATION_ID:
        if application or version or _number(connection, "SELECT count(*) FROM sqlite_master"):
            raise StoreError(f"{connection.path} is a database of another program")
        return None
    if version >> 16 > READ:
        raise StoreError(f"{connection.path} was made by a later version of nbmf, and needs it")
    return version >> 16, version & 0xFFFF


def _number(connection: Connection, sql: str) -> int:
    row = connection.execute(sql).fetchone()
    return int(row[0]) if row else 0
