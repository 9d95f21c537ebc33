"""Rows of a query as values: SQLite through the standard library, PostgreSQL through psycopg, neither ever written to.

One column is the value; several are an object by their names. Texts, numbers and truth are themselves; JSON columns
what they hold; a decimal, a date, a time and a UUID their text; bytes are passed on for the caller to leave out.
"""

from __future__ import annotations

import datetime
import decimal
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from nbmf.errors import DataError, NbmfError
from nbmf.memory.opening import is_postgres, public_address

SQLITE: Final = "sqlite:///"
AT_ONCE: Final = 1000  # rows that are fetched at once
_AS_TEXT: Final = (decimal.Decimal, uuid.UUID, datetime.timedelta)
_TIMES: Final = (datetime.date, datetime.time)  # a datetime is a date


def name_of(address: str) -> str:
    """What records of a database are said to come from."""
    if is_postgres(address):
        return urlsplit(address).path.strip("/") or "postgresql"
    return Path(unquote(address.removeprefix(SQLITE))).name


def rows(address: str, query: str, group: str | None = None) -> Iterator[tuple[Any, str | None]]:
    """The value of every row, and the text of its column `group`, which is then no part of the value.

    Raises DataError: no such database or column, a query that fails, a value with no form in JSON; NbmfError: the
    extra is not installed.
    """
    if is_postgres(address):
        found = _postgres(address, query)
    elif address.startswith(SQLITE):
        found = _sqlite(address, query)
    else:
        raise DataError(f"{address} is no database: a query goes with {SQLITE}FILE or postgresql://…")
    names = next(found)
    if group is not None and group not in names:
        raise DataError(f"the query has no column {group!r} to group by, only {', '.join(names)}")
    if len(set(names)) < len(names):
        raise DataError("the query has two columns of one name: rename one with AS")
    kept = [(at, name) for at, name in enumerate(names) if name != group]
    if not kept:
        raise DataError("the query has no column besides the group's")
    grouped = None if group is None else names.index(group)
    for number, row in enumerate(found, 1):
        try:
            values = {name: plain(row[at]) for at, name in kept}
        except TypeError as error:
            raise DataError(f"{name_of(address)}, row {number}: {error}") from None
        value = values[kept[0][1]] if len(kept) == 1 else values
        if len(kept) > 1 and any(type(one) is bytes for one in values.values()):
            value = b""
        yield value, None if grouped is None or row[grouped] is None else str(row[grouped])


def plain(value: Any) -> Any:
    """A column's value as one that a record can hold. Raises TypeError."""
    if value is None or type(value) in (str, int, float, bool, bytes):
        return value
    if isinstance(value, _AS_TEXT):
        return str(value)
    if isinstance(value, _TIMES):
        return value.isoformat()
    if type(value) is list:
        return [plain(one) for one in value]
    if type(value) is dict:
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, memoryview | bytearray):
        return bytes(value)
    raise TypeError(f"a column's {type(value).__name__} has no form in JSON: cast it to text in the query")


def _sqlite(address: str, query: str) -> Iterator[Any]:
    """The columns' names, then the rows."""
    path = Path(unquote(address.removeprefix(SQLITE)))
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            connection.execute("PRAGMA query_only = 1")
            cursor = connection.execute(query)
            yield _names(cursor.description)
            while batch := cursor.fetchmany(AT_ONCE):
                yield from batch
        finally:
            connection.close()
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise DataError(f"{path}: {error}") from None


def _postgres(address: str, query: str) -> Iterator[Any]:
    try:
        import psycopg
    except ImportError:
        raise NbmfError("a PostgreSQL database needs nbmf[postgres]") from None
    try:
        with psycopg.connect(address, connect_timeout=30) as connection:
            connection.read_only = True
            with connection.cursor(name="nbmf") as cursor:
                cursor.itersize = AT_ONCE
                cursor.execute(query.encode())
                yield _names(cursor.description)
                yield from cursor
    except psycopg.Error as error:
        raise DataError(f"{public_address(address)}: {error}") from None


def _names(description: Sequence[Any] | None) -> list[str]:
    if not description:
        raise DataError("the query gives no rows: it must be a SELECT")
    return [column[0] for column in description]
