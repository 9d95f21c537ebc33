"""What goes into a Memory and what comes out: items, and the operations of `Memory.batch`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from nbmf.codec.values import json_text, parse_json
from nbmf.errors import CorruptRecord, PolicyError
from nbmf.store.base import KEY_MOST, Namespace, Record

META_MOST: Final = 1 << 20  # bytes of a record's metadata
LIMIT: Final = 10  # items of a search unless told otherwise
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Item:
    """A record with its decoded value.

    Times are aware and in UTC. `score` is 0..1 in answers to a query, else None. `tier` is "warm" or "cold". `codec` is
    the content id (hex) that reads the blob, "" when it needs none; `stored_bytes` is the blob's size in the warm tier,
    None in the cold one, where records are coded together.
    """

    namespace: Namespace
    key: str
    value: Any
    cls: str
    fidelity: str
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    meta: dict[str, Any] | None
    tier: str
    codec: str
    stored_bytes: int | None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class GetOp:
    """-> Item | None. `refresh`: a record that has a ttl then lives that long from now on."""

    namespace: Namespace
    key: str
    refresh: bool = True


@dataclass(frozen=True, slots=True)
class PutOp:
    """-> None. `ttl` is in minutes. `vector` is the value's own, for the embedder that the store was opened with."""

    namespace: Namespace
    key: str
    value: Any
    cls: str = ""
    ttl: float | None = None
    meta: Mapping[str, Any] | None = None
    index: bool | Sequence[str] | None = None
    vector: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class DeleteOp:
    """-> bool: whether there was one."""

    namespace: Namespace
    key: str


@dataclass(frozen=True, slots=True)
class SearchOp:
    """-> list[Item], those in and below `prefix`; see `Memory.search`."""

    prefix: Namespace
    query: str | None = None
    filter: Mapping[str, Any] | None = None
    limit: int = LIMIT
    offset: int = 0
    vector: Sequence[float] | None = None
    cls: str | None = None


@dataclass(frozen=True, slots=True)
class ListNamespacesOp:
    """-> list[Namespace]; see `Memory.list_namespaces`."""

    prefix: Namespace = ()
    suffix: Namespace = ()
    max_depth: int | None = None
    limit: int = 100
    offset: int = 0


MemoryOp = GetOp | PutOp | DeleteOp | SearchOp | ListNamespacesOp


def now() -> int:
    """Milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def moment(milliseconds: int) -> datetime:
    """The time so many milliseconds after the Unix epoch."""
    return _EPOCH + timedelta(milliseconds=milliseconds)


def item_of(record: Record, tier: str, value: Any, score: float | None = None) -> Item:
    """The item of a record and its decoded value."""
    created = moment(record.created)
    return Item(
        namespace=record.namespace,
        key=record.key,
        value=value,
        cls=record.cls,
        fidelity=record.fidelity,
        created_at=created,
        updated_at=created if record.updated == record.created else moment(record.updated),
        expires_at=None if record.expires is None else moment(record.expires),
        meta=meta_of(record.meta),
        tier=tier,
        codec=record.codec,
        stored_bytes=len(record.blob) if tier == "warm" else None,
        score=score,
    )


def meta_bytes(meta: Mapping[str, Any] | None, *, allow_nan: bool = False) -> bytes:
    """Metadata as compact JSON; b"" for none. Raises UnsupportedValue, PolicyError (not an object, too large)."""
    if meta is None:
        return b""
    if not isinstance(meta, Mapping):
        raise PolicyError(f"metadata is a JSON object, not {type(meta).__name__}")
    if not meta:
        return b""
    data = json_text(dict(meta), allow_nan=allow_nan).encode("utf-8", "surrogatepass")
    if len(data) > META_MOST:
        raise PolicyError(f"metadata has at most {META_MOST} bytes, not {len(data)}")
    return data


def meta_of(data: bytes) -> dict[str, Any] | None:
    """The metadata in a record's bytes, None for none. Raises CorruptRecord."""
    if not data:
        return None
    try:
        meta = parse_json(data.decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError:
        raise CorruptRecord("a record's metadata is not UTF-8") from None
    if type(meta) is not dict:
        raise CorruptRecord("a record's metadata is no JSON object")
    return meta


def check_class(cls: Any) -> None:
    """Raises PolicyError for what cannot be a class: a text as of a key, or none."""
    if not isinstance(cls, str):
        raise PolicyError(f"a class is a text, not {cls!r}"[:200])
    if "\0" in cls or any("\ud800" <= char <= "\udfff" for char in cls):
        raise PolicyError(f"a class cannot hold U+0000 or a lone surrogate: {cls!r}"[:200])
    if len(cls.encode()) > KEY_MOST:
        raise PolicyError(f"a class has at most {KEY_MOST} bytes, not {len(cls.encode())}")


# -- filters -----------------------------------------------------------------------------------------------------------

_ORDERED: Final = {
    "$gt": lambda a, b: a > b,
    "$gte": lambda a, b: a >= b,
    "$lt": lambda a, b: a < b,
    "$lte": lambda a, b: a <= b,
}
OPERATORS: Final = ("$eq", "$ne", *_ORDERED)
_MISSING: Final = object()


def check_filter(filter: Mapping[str, Any] | None) -> None:
    """Raises PolicyError for what is no filter, and for an operator that there is none of."""
    if filter is not None and not isinstance(filter, Mapping):
        raise PolicyError(f"a filter maps fields to what they are to be, and is no {type(filter).__name__}")
    for field, wanted in (filter or {}).items():
        if not isinstance(field, str):
            raise PolicyError(f"filter: a field is a text, not {field!r}"[:200])
        if _is_operators(wanted):
            for operator in wanted:
                if operator not in OPERATORS:
                    raise PolicyError(f"filter on {field!r}: {operator!r} is none of {', '.join(OPERATORS)}")


def matches(value: Any, filter: Mapping[str, Any] | None) -> bool:
    """Whether a value passes a filter: {field: wanted} or {field: {operator: operand}}, all of them.

    `field` may be a path with dots where the value has no field of that whole name. Numbers are compared with numbers
    and texts with texts; any other pair is in no order, so that $gt and the like do not hold. A list that is wanted, or
    a dict without operators, is compared whole. A value that is no JSON object passes the empty filter alone.
    """
    return all(_passes(_field(value, field), wanted) for field, wanted in (filter or {}).items())


def _passes(found: Any, wanted: Any) -> bool:
    if not _is_operators(wanted):
        return found is not _MISSING and bool(found == wanted)
    for operator, operand in wanted.items():
        if operator == "$eq":
            good = found is not _MISSING and bool(found == operand)
        elif operator == "$ne":
            good = found is _MISSING or bool(found != operand)
        else:
            good = _comparable(found, operand) and bool(_ORDERED[operator](found, operand))
        if not good:
            return False
    return True


def _is_operators(wanted: Any) -> bool:
    return isinstance(wanted, Mapping) and any(str(name).startswith("$") for name in wanted)


def _comparable(a: Any, b: Any) -> bool:
    number = (int, float)
    return (isinstance(a, number) and isinstance(b, number)) or (isinstance(a, str) and isinstance(b, str))


def _field(value: Any, field: str) -> Any:
    if isinstance(value, Mapping) and field in value:
        return value[field]
    for step in field.split("."):
        if not isinstance(value, Mapping) or step not in value:
            return _MISSING
        value = value[step]
    return value
