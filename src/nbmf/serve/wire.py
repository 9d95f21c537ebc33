"""Values, items and operations as JSON, exactly.

A text or a JSON value stands in `value` as it is. Bytes and vectors, and what JSON cannot hold (a lone surrogate, NaN),
stand in `base64` as their raw bytes, and `type` tells how to read them: "text" UTF-8, a lone surrogate in its three
bytes; "json" compact JSON; "bytes" themselves; "vector" 4 little-endian bytes a float. Metadata that JSON cannot hold
is in `meta_base64`. Integers may have any length, and 1.0 is no 1.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

import numpy as np

from nbmf.codec.values import BYTES, JSON, TEXT, VALUE_TYPES, VECTOR, from_raw, json_text, parse_json, to_raw
from nbmf.errors import CorruptRecord, DataError, NbmfError, UnsupportedValue
from nbmf.memory.items import Item

_TYPES: Final = {name: number for number, name in enumerate(VALUE_TYPES)}
_PLAIN: Final = (TEXT, JSON)


def dumps(value: Any) -> bytes:
    """JSON text in UTF-8. Raises UnsupportedValue, UnicodeEncodeError (a lone surrogate)."""
    return json_text(value).encode()


def loads(data: bytes) -> Any:
    """The value of a JSON text. Raises DataError."""
    try:
        return parse_json(data.decode().strip(" \t\n\r"))
    except UnicodeDecodeError as error:
        raise DataError(f"the body is not UTF-8: byte {error.start}") from None
    except CorruptRecord as error:
        raise DataError(f"the body is not JSON: {error}") from None


# -- values ------------------------------------------------------------------------------------------------------------


def value_fields(value: Any) -> dict[str, Any]:
    """`type`, and `value` or `base64`. Raises UnsupportedValue for what no store holds."""
    kind, raw, text = _written(value)
    if text is not None:
        return {"type": VALUE_TYPES[kind], "value": value}
    return {"type": VALUE_TYPES[kind], "base64": base64.b64encode(raw).decode("ascii")}


def _written(value: Any) -> tuple[int, bytes, bytes | None]:
    """Type number and raw bytes of a value, and its JSON in UTF-8 where that holds it as it is."""
    try:
        kind, raw = to_raw(value)
    except UnsupportedValue:  # NaN or an infinity, or what no store holds
        return *to_raw(value, allow_nan=True), None
    if kind not in _PLAIN:
        return kind, raw, None
    try:
        raw.decode()
    except UnicodeDecodeError:  # a lone surrogate
        return kind, raw, None
    return kind, raw, dumps(value) if kind == TEXT else raw


def value_of(fields: Mapping[str, Any]) -> Any:
    """The value of such fields. Raises DataError."""
    kind = fields.get("type")
    if kind is not None and kind not in _TYPES:
        raise DataError(f"type is one of {', '.join(VALUE_TYPES)}")
    if ("value" in fields) == ("base64" in fields):
        raise DataError("a value stands in `value` or in `base64`")
    if "base64" in fields:
        if kind is None:
            raise DataError("base64 needs a type")
        try:
            raw = base64.b64decode(fields["base64"].encode("ascii"), validate=True)
            return from_raw(_TYPES[kind], raw)
        except (binascii.Error, UnicodeEncodeError, AttributeError):
            raise DataError("base64 is not base64") from None
        except CorruptRecord as error:
            raise DataError(f"base64 is no {kind}: {error}") from None
    value = fields["value"]
    if kind is None:
        return value
    number = _TYPES[kind]
    if number == VECTOR and isinstance(value, list):
        return vector_of(value)
    if number in (BYTES, VECTOR) or (number == TEXT) != isinstance(value, str):
        raise DataError(f"this value is no {kind}" + ("; bytes stand in base64" if number == BYTES else ""))
    return value


def vector_of(numbers: list[Any]) -> Any:
    """Numbers as a float32 vector. Raises DataError."""
    if not all(type(number) in (int, float) for number in numbers):
        raise DataError("a vector is a list of numbers")
    try:
        with np.errstate(over="ignore"):
            return np.array(numbers, np.float32)
    except OverflowError:
        raise DataError("a number of the vector is too large") from None


# -- items -------------------------------------------------------------------------------------------------------------


def item_fields(item: Item) -> dict[str, Any]:
    """An item as a JSON object, which `dumps` takes."""
    return {**value_fields(item.value), **_about(item)}


def item_text(item: Item) -> bytes:
    """`dumps` of such an object, a JSON value's text as it is kept."""
    kind, raw, text = _written(item.value)
    about = _about(item)
    about["type"] = VALUE_TYPES[kind]
    if text is not None:
        return b'{"value":' + text + b"," + dumps(about)[1:]
    about["base64"] = base64.b64encode(raw).decode("ascii")
    return dumps(about)


def items_text(items: Iterable[Item]) -> bytes:
    """{"items": [...]} as JSON text."""
    return b'{"items":[' + b",".join(map(item_text, items)) + b"]}"


def _about(item: Item) -> dict[str, Any]:
    """Everything of an item but its value."""
    out: dict[str, Any] = {
        "namespace": list(item.namespace),
        "key": item.key,
        "class": item.cls,
        "fidelity": item.fidelity,
        "created": item.created_at.isoformat(),
        "updated": item.updated_at.isoformat(),
        "expires": None if item.expires_at is None else item.expires_at.isoformat(),
        "meta": item.meta,
        "tier": item.tier,
        "codec": item.codec,
        "stored_bytes": item.stored_bytes,
        "score": None if item.score is None else float(item.score),
    }
    if item.meta is not None:
        _, raw, text = _written(item.meta)
        if text is None:
            out["meta"] = None
            out["meta_base64"] = base64.b64encode(raw).decode("ascii")
    return out


def item_of(fields: Any) -> Item:
    """The item of such an object. Raises DataError for what is none."""
    try:
        meta = fields["meta"]
        if "meta_base64" in fields:
            meta = from_raw(JSON, base64.b64decode(fields["meta_base64"], validate=True))
        expires = fields["expires"]
        return Item(
            namespace=tuple(fields["namespace"]),
            key=fields["key"],
            value=value_of(fields),
            cls=fields["class"],
            fidelity=fields["fidelity"],
            created_at=datetime.fromisoformat(fields["created"]),
            updated_at=datetime.fromisoformat(fields["updated"]),
            expires_at=None if expires is None else datetime.fromisoformat(expires),
            meta=meta,
            tier=fields["tier"],
            codec=fields["codec"],
            stored_bytes=fields["stored_bytes"],
            score=fields["score"],
        )
    except DataError:
        raise
    except (NbmfError, TypeError, KeyError, ValueError) as error:
        raise DataError(f"the server's answer holds no item: {error}"[:200]) from error


__all__ = [
    "dumps",
    "item_fields",
    "item_of",
    "item_text",
    "items_text",
    "loads",
    "value_fields",
    "value_of",
    "vector_of",
]
