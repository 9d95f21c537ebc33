"""The SQLite database of LangGraph's SqliteStore: its table `store`.

| column                 | becomes                                                                                  |
|------------------------|------------------------------------------------------------------------------------------|
| prefix                 | the namespace: segments joined by dots, which no segment can contain                     |
| key                    | the key                                                                                  |
| value                  | the value, a JSON object                                                                 |
| created_at, updated_at | UTC in text, kept to the second as they are there                                        |
| expires_at             | when it ends: UTC in text, with or without an offset; databases of old versions have none |
| ttl_minutes            | what a read renews                                                                       |

Vectors (`store_vectors`) belong to the embedder that made them and do not migrate, nor do a checkpointer's tables.
"""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from nbmf.errors import CorruptRecord, NbmfError, PolicyError, StoreError
from nbmf.policy.sources.base import (
    Incoming,
    Item,
    Source,
    Unreadable,
    checked,
    milliseconds,
    minutes,
    parse_text,
    printable,
)
from nbmf.store.base import Namespace

MAGIC: Final = b"SQLite format 3\x00"
TABLE: Final = "store"
_WANTED: Final = ("prefix", "key", "value")
_LATER: Final = ("created_at", "updated_at", "expires_at", "ttl_minutes")
_NOT_LEFT: Final = frozenset((TABLE, "store_migrations", "vector_migrations", "checkpoint_migrations"))
_SIDE_FILES: Final = ("-wal", "-journal")  # of a database whose last writer has not closed it


class LangGraphStore(Source):
    """The database `path`. Namespaces stand below `namespace`, () for none.

    A closed database is read in place, and nothing is created beside it. One with a log that still holds changes is
    read from a copy, log included. Raises PolicyError when it is no such database, StoreError when it cannot be read.
    """

    kind = "langgraph"

    def __init__(self, path: Path, *, namespace: Namespace = ()) -> None:
        self.address = str(path.absolute())
        self._path = path
        self._namespace = namespace
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        self._state = self._stamp()
        self._open: sqlite3.Connection | None = None
        try:
            self._open = self._connect()
            self._columns = columns(self._open)
            if not self._columns >= frozenset(_WANTED):
                raise PolicyError(f"{printable(str(path))} has no table {TABLE} of LangGraph")
        except sqlite3.Error as error:
            self.close()
            raise StoreError(f"{printable(str(path))} cannot be read: {error}") from None
        except BaseException:
            self.close()
            raise

    def _stamp(self) -> list[tuple[int, int]]:
        """Size and time of change of the database and its side files; (0, 0) for one that is not there."""
        stamps = []
        for suffix in ("", *_SIDE_FILES):
            try:
                found = Path(f"{self._path}{suffix}").stat()
                stamps.append((found.st_size, found.st_mtime_ns))
            except FileNotFoundError:
                stamps.append((0, 0))
        return stamps

    def _connect(self) -> sqlite3.Connection:
        path = self._path.absolute()
        how = "mode=ro&immutable=1"
        if any(size for size, _ in self._state[1:]):
            self._copy = tempfile.TemporaryDirectory(prefix="nbmf-migrate-")
            copy = Path(self._copy.name) / "store.sqlite"
            for suffix, (size, _) in zip(("", *_SIDE_FILES), self._state, strict=True):
                if size:
                    try:
                        shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
                    except OSError as error:
                        raise StoreError(f"{path.name}{suffix} cannot be copied: {error.strerror}") from None
            self._unchanged()
            path, how = copy, "mode=rw"
        connection = sqlite3.connect(f"{path.as_uri()}?{how}", uri=True, check_same_thread=False)
        connection.text_factory = bytes
        return connection

    def _unchanged(self) -> None:
        if self._stamp() != self._state:
            raise StoreError(f"{printable(self._path.name)} was written to while it was read: stop its writer first")

    def _run(self, sql: str) -> Iterator[tuple[Any, ...]]:
        if self._open is None:
            raise StoreError(f"{printable(self._path.name)} was closed")
        try:
            yield from self._open.execute(sql)
        except sqlite3.Error as error:
            raise StoreError(f"{printable(self._path.name)} cannot be read: {error}") from None

    def count(self) -> int:
        return int(next(self._run(f"SELECT count(*) FROM {TABLE}"))[0])

    def size(self) -> int:
        return sum(size for size, _ in self._state)

    def left_behind(self) -> dict[str, int]:
        tables = [row[0].decode() for row in self._run("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        left = {}
        for name in tables:
            if name not in _NOT_LEFT and not name.startswith("sqlite_"):
                quoted = name.replace('"', '""')
                left[name] = int(next(self._run(f'SELECT count(*) FROM "{quoted}"'))[0])
        return {name: rows for name, rows in left.items() if rows}

    def items(self) -> Iterator[Item]:
        taken = [*_WANTED, *(name if name in self._columns else "NULL" for name in _LATER)]
        for row in self._run(f"SELECT {', '.join(taken)} FROM {TABLE} ORDER BY prefix, key"):
            origin = f"{_shown(row[0])}/{_shown(row[1])}"
            try:
                yield checked(self._item(row, origin))
            except NbmfError as error:
                yield Unreadable(origin, str(error), _row_text(row))
        self._unchanged()

    def _item(self, row: tuple[Any, ...], origin: str) -> Incoming:
        prefix, key, value, created, updated, expires, ttl = row
        if type(value) is not bytes:
            raise CorruptRecord("the value is no JSON text")
        return Incoming(
            (*self._namespace, *_text(prefix, "prefix").split(".")),
            _text(key, "key"),
            parse_text(value),
            created=milliseconds(_time(created), "created_at"),
            updated=milliseconds(_time(updated), "updated_at"),
            expires=milliseconds(_time(expires), "expires_at"),
            ttl=minutes(ttl, "ttl_minutes"),
            origin=origin,
        )

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
        if self._copy is not None:
            self._copy.cleanup()
            self._copy = None


def columns(connection: sqlite3.Connection) -> frozenset[str]:
    """The columns of the table `store`, none when there is no such table."""
    return frozenset(str(row[1], "utf-8") for row in connection.execute(f"PRAGMA table_info({TABLE})"))


def _text(found: Any, column: str) -> str:
    if type(found) is not bytes:
        raise CorruptRecord(f"{column} is no text")
    try:
        return found.decode("utf-8")
    except UnicodeDecodeError:
        raise CorruptRecord(f"{column} is not UTF-8") from None


def _time(found: Any) -> Any:
    return _text(found, "a time") if type(found) is bytes else found


def _shown(found: Any) -> str:
    return found.decode("utf-8", "backslashreplace") if type(found) is bytes else str(found)


def _row_text(row: tuple[Any, ...]) -> bytes:
    """A row as a line of JSON, every column exact: bytes that are not UTF-8 as {"base64": ...}."""

    def exact(cell: Any) -> Any:
        if type(cell) is not bytes:
            return cell
        try:
            return cell.decode("utf-8")
        except UnicodeDecodeError:
            return {"base64": base64.b64encode(cell).decode("ascii")}

    return json.dumps(dict(zip((*_WANTED, *_LATER), map(exact, row), strict=True))).encode() + b"\n"
