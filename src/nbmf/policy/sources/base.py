"""What a migration reads: a source gives items, in an order that stays the same while the store behind it does."""

from __future__ import annotations

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from nbmf.codec import values
from nbmf.errors import CorruptRecord, PolicyError
from nbmf.store.base import Namespace, check_address

DEFAULT_NAMESPACE: Final[Namespace] = ("records",)  # of items whose source has no namespaces

MINUTE: Final = 60_000  # milliseconds
LAST_MILLISECOND: Final = 253_402_300_799_999  # of the year 9999
_BOM: Final = b"\xef\xbb\xbf"
_SECONDS_BELOW: Final = 10**11  # a smaller number is seconds: as milliseconds it would be before March 1973


@dataclass(frozen=True, slots=True)
class Incoming:
    """A record on its way in. `value` is exact; times are milliseconds since the Unix epoch, None when not known.

    `ttl` (milliseconds) is what a read renews, `expires` when the record ends. All of it is to be stored but `note` and
    `origin`, which are for the report: a remark such as "truncated preview", and where in the source the item stands.
    """

    namespace: Namespace
    key: str
    value: Any
    cls: str = ""
    created: int | None = None
    updated: int | None = None
    expires: int | None = None
    ttl: int | None = None
    meta: dict[str, Any] | None = None
    fidelity: str = "lossless"
    note: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An item that cannot become a record, why, and its bytes as they stand in the source."""

    origin: str
    reason: str
    raw: bytes


Item = Incoming | Unreadable


class Source(ABC):
    """A store to migrate from. It is never written to. Reading it again gives the same items in the same order.

    `kind` names its format, `address` tells where it is.
    """

    kind: str
    address: str

    @abstractmethod
    def items(self) -> Iterator[Item]:
        """Every item of the source, from the first. Raises StoreError when the medium fails or changes meanwhile."""

    def count(self) -> int | None:
        """How many items there are, None when only reading all of it would tell."""
        return None

    def size(self) -> int | None:
        """Bytes on the medium, None when that is not known."""
        return None

    def left_behind(self) -> dict[str, int]:
        """What the source holds besides items, and how much of each: it does not migrate."""
        return {}

    def close(self) -> None:  # noqa: B027
        """Releases what reading took; closing twice is fine."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def checked(item: Incoming) -> Incoming:
    """The item itself. Raises PolicyError when no tier can keep its address."""
    check_address(item.namespace, item.key)
    return item


def parse_text(data: bytes) -> Any:
    """The value of one JSON text in UTF-8, white space around it allowed.

    Raises CorruptRecord: not UTF-8, not JSON, or an object that has a key twice, of which a dict would lose one.
    """
    try:
        text = data.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptRecord(f"not UTF-8: {error.reason} at byte {error.start}") from None
    text = text.strip(" \t\r\n")
    if not text:
        raise CorruptRecord("empty")
    value = values.parse_json(text)
    with suppress(RecursionError):  # too deep for the check; such JSON is made by programs, from dicts
        _KEYS_ONCE.decode(text)
    return value


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for at, key in enumerate(keys) if key in keys[:at])
        raise CorruptRecord(f"an object has the key {json.dumps(double)} twice"[:200])


# Reads for the sake of `_once` alone; numbers are not converted, since their length has no limit.
_KEYS_ONCE: Final = json.JSONDecoder(
    object_pairs_hook=_once, parse_int=lambda _: 0, parse_float=lambda _: 0.0, parse_constant=lambda _: None
)


def milliseconds(time: Any, field: str) -> int | None:
    """A time as milliseconds since the Unix epoch; None stays None.

    A number from 10**11 on is milliseconds, a smaller one seconds; a text is ISO 8601, in UTC unless it says otherwise.
    Raises CorruptRecord naming `field`.
    """
    if time is None:
        return None
    if type(time) is str:
        try:
            moment = datetime.fromisoformat(time)
        except ValueError:
            raise CorruptRecord(f"{field} is no time: {time!r}"[:200]) from None
        try:
            found = _since_epoch(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
        except OverflowError:
            found = -1
    elif type(time) is int or (type(time) is float and math.isfinite(time)):
        found = round(time * 1000) if time < _SECONDS_BELOW else round(time)
    else:
        raise CorruptRecord(f"{field} is no time: {time!r}"[:200])
    if not 0 <= found <= LAST_MILLISECOND:
        raise CorruptRecord(f"{field} is not between the years 1970 and 9999: {time!r}"[:200])
    return found


def _since_epoch(moment: datetime) -> int:
    since = moment - datetime.fromtimestamp(0, UTC)
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


def minutes(time: Any, field: str) -> int | None:
    """A span in minutes as milliseconds; None stays None. Raises CorruptRecord naming `field`."""
    if time is None:
        return None
    if type(time) not in (int, float) or not 0 < time <= LAST_MILLISECOND / MINUTE:
        raise CorruptRecord(f"{field} is no number of minutes: {time!r}"[:200])
    return max(1, round(float(time) * MINUTE))


def parse_namespace(namespace: Any) -> Namespace:
    """A namespace given as a list of texts, or as one text with slashes. Raises PolicyError."""
    if type(namespace) is str:
        namespace = namespace.split("/")
    if type(namespace) is not list:
        raise PolicyError(f"a namespace is a list of texts or a text with slashes, not {namespace!r}"[:200])
    found = tuple(namespace)
    check_address(found)
    return found


def printable(name: str) -> str:
    """A file's name as text that any report can hold: bytes that are not UTF-8 as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
