"""SQLite connections, plain or encrypted, behind one face: what runs below a tier, and one set of errors.

Plain ones are the standard library's. Encrypted ones are SQLite3 Multiple Ciphers through apsw (`nbmf[encrypt]`):
ChaCha20-Poly1305 over every page of the database, its journal and its write-ahead log, so that keys, indexes and values
are hidden and a changed page is refused.
"""

from __future__ import annotations

import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from nbmf.errors import CorruptRecord, NbmfError, StoreError

KEY_SIZE: Final = 32  # bytes
CIPHER: Final = "chacha20"  # 32 bytes of each page: a nonce of 16, a tag of 16

Row = tuple[Any, ...]
Result = TypeVar("Result")

# SQLite's primary result codes, https://sqlite.org/rescode.html
_ERROR, _BUSY, _LOCKED, _READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 1, 5, 6, 8, 10, 11, 13, 14, 26
_WHAT: Final = {
    _BUSY: "is busy: another connection holds its lock",
    _LOCKED: "is locked by another statement",
    _READONLY: "cannot be written",
    _IOERR: "failed to read or write",
    _CORRUPT: "is malformed",
    _FULL: "cannot grow: the disk is full",
    _CANTOPEN: "cannot be opened",
}


class _RawCursor(Protocol):
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...


class Cursor:
    """The rows of one statement, as tuples; read them before the next statement of the connection."""

    __slots__ = ("_guard", "_raw")

    def __init__(self, raw: _RawCursor, guard: Callable[[Callable[[], Any]], Any]) -> None:
        self._raw = raw
        self._guard = guard

    def fetchone(self) -> Row | None:
        row: Row | None = self._guard(self._raw.fetchone)
        return row

    def fetchall(self) -> list[Row]:
        rows: list[Row] = self._guard(self._raw.fetchall)
        return rows

    def __iter__(self) -> Iterator[Row]:
        while (row := self.fetchone()) is not None:
            yield row


class Connection(ABC):
    """An autocommit connection: BEGIN and COMMIT are statements. Several threads may use it, one at a time.

    Blobs come back as bytes, texts as str. What fails raises StoreError (disk full, busy, closed, no database, wrong
    key) or CorruptRecord (a malformed image, a page that fails its authentication).
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    def execute(self, sql: str, values: Sequence[Any] = ()) -> Cursor:
        """Runs one statement."""

    @abstractmethod
    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Runs one statement that returns nothing for every row; in no transaction of its own."""

    @property
    @abstractmethod
    def changes(self) -> int:
        """Rows that the last INSERT, UPDATE or DELETE changed."""

    @property
    @abstractmethod
    def in_transaction(self) -> bool:
        """Whether a BEGIN has not ended yet. A failed statement may have ended it."""

    @abstractmethod
    def close(self) -> None:
        """Closes; a transaction that is open is rolled back. Closing twice is fine."""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Plain(Connection):
    def __init__(self, path: str, timeout: float, readonly: bool) -> None:
        super().__init__(path)
        self._raw: sqlite3.Connection | None = None
        name = f"{Path(path).absolute().as_uri()}?mode=ro" if readonly else path
        self._raw = self._guard(
            lambda: sqlite3.connect(
                name, timeout, isolation_level=None, check_same_thread=False, uri=readonly, cached_statements=256
            )
        )

    def _guard(self, call: Callable[[], Result]) -> Result:
        try:
            return call()
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code is None and "decode to UTF-8" in str(error):
                raise CorruptRecord(f"{self.path} is malformed: a text is not UTF-8") from error
            raise _translated(self.path, code or _ERROR, error, "is not a database, or it is encrypted") from error

    def _open(self) -> sqlite3.Connection:
        if self._raw is None:
            raise StoreError(f"{self.path} is closed")
        return self._raw

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Cursor:
        raw = self._open()
        return Cursor(self._guard(lambda: raw.execute(sql, values)), self._guard)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        raw = self._open()
        self._guard(lambda: raw.executemany(sql, rows))

    @property
    def changes(self) -> int:
        row = self.execute("SELECT changes()").fetchone()
        return int(row[0]) if row else 0

    @property
    def in_transaction(self) -> bool:
        return self._open().in_transaction

    def close(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            self._guard(raw.close)


class _Sealed(Connection):
    def __init__(self, path: str, key: bytes, timeout: float, readonly: bool) -> None:
        super().__init__(path)
        try:
            import apsw
        except ImportError:
            raise NbmfError("an encrypted store needs nbmf[encrypt]") from None
        if not hasattr(apsw, "mc_version"):
            raise NbmfError("an encrypted store needs nbmf[encrypt]: the apsw installed has no ciphers")
        self._error = apsw.Error
        self._raw: Any = None
        flags = apsw.SQLITE_OPEN_READONLY if readonly else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        self._raw = self._guard(lambda: apsw.Connection(path, flags, statementcachesize=256))
        try:
            self.execute(f"PRAGMA cipher = '{CIPHER}'")
            if self.execute(f"PRAGMA key = 'raw:{key.hex()}'").fetchone() != ("ok",):
                raise StoreError(f"{path} refused its key")
            # Nothing of a page may reach a temporary file.
            self.execute("PRAGMA temp_store = MEMORY")
            self._raw.setbusytimeout(int(timeout * 1000))
        except BaseException:
            self.close()
            raise

    def _guard(self, call: Callable[[], Result]) -> Result:
        try:
            return call()
        except UnicodeDecodeError as error:
            raise CorruptRecord(f"{self.path} is malformed: a text is not UTF-8") from error
        except self._error as error:
            code = getattr(error, "extendedresult", 0) or getattr(error, "result", 0) or _ERROR
            raise _translated(self.path, code, error, "is not a database of this key") from error

    def _open(self) -> Any:
        if self._raw is None:
            raise StoreError(f"{self.path} is closed")
        return self._raw

    def execute(self, sql: str, values: Sequence[Any] = ()) -> Cursor:
        raw = self._open()
        return Cursor(self._guard(lambda: raw.execute(sql, values)), self._guard)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        raw = self._open()
        self._guard(lambda: raw.executemany(sql, rows))

    @property
    def changes(self) -> int:
        return int(self._open().changes())

    @property
    def in_transaction(self) -> bool:
        return bool(self._open().in_transaction)

    def close(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            self._guard(lambda: raw.close(True))


def connect(
    path: str | os.PathLike[str], key: bytes | None = None, *, timeout: float = 30.0, readonly: bool = False
) -> Connection:
    """A connection to the database file at `path`, which is made if it is not there and `readonly` is not set.

    `key` has 32 bytes; with one, every page is encrypted. `timeout` is how many seconds to wait for a lock. Raises
    StoreError (cannot be opened, no database, wrong key), CorruptRecord, NbmfError (the extra is not installed).
    """
    name = os.fspath(path)
    connection: Connection
    if key is None:
        connection = _Plain(name, timeout, readonly)
    elif len(key) == KEY_SIZE:
        connection = _Sealed(name, key, timeout, readonly)
    else:
        raise StoreError(f"the key of {name} has {len(key)} bytes, not {KEY_SIZE}")
    try:
        # SQLite opens lazily: only a read tells a foreign file or a wrong key.
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _translated(path: str, code: int, error: Exception, foreign: str) -> NbmfError:
    """The error for SQLite's extended result `code`."""
    primary = code & 0xFF
    if primary == _NOTADB:
        return StoreError(f"{path} {foreign}")
    what = _WHAT.get(primary)
    detail = " ".join(str(error).split())[:200]
    message = f"{path} {what} ({detail})" if what else f"{path}: {detail}"
    return CorruptRecord(message) if primary == _CORRUPT else StoreError(message)


__all__ = ["Connection", "Cursor", "connect"]
