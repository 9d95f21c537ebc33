"""Every value, item and operation comes back from JSON exactly."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf.codec.values import to_raw
from nbmf.errors import DataError
from nbmf.memory.items import Item, moment
from nbmf.serve import wire

TEXTS = st.text(st.characters(), max_size=20)  # lone surrogates too
LEAVES = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | TEXTS
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4))
VECTORS = st.lists(st.floats(width=32), max_size=5).map(lambda numbers: np.array(numbers, np.float32))


def same(one: Any, other: Any) -> bool:
    """Equal in every type and bit."""
    return to_raw(one, allow_nan=True) == to_raw(other, allow_nan=True)


def item(value: Any, meta: dict[str, Any] | None = None) -> Item:
    time = moment(1_700_000_000_123)
    return Item(("a", "b"), "k", value, "c", "lossless", time, time, None, meta, "warm", "ab", 7, 0.25)


@settings(max_examples=300)
@given(VALUES | st.binary(max_size=30) | VECTORS)
def test_values(value: Any) -> None:
    text = wire.dumps(wire.value_fields(value))
    json.loads(text.decode())  # JSON in UTF-8 that any parser reads
    assert same(wire.value_of(wire.loads(text)), value)


@settings(max_examples=100)
@given(VALUES, st.none() | st.dictionaries(TEXTS, VALUES, min_size=1, max_size=3))
def test_items(value: Any, meta: dict[str, Any] | None) -> None:
    back = wire.item_of(wire.loads(wire.dumps(wire.item_fields(item(value, meta)))))
    assert same(back.value, value) and same(back.meta, meta)
    assert (back.namespace, back.key, back.created_at, back.score) == (("a", "b"), "k", moment(1_700_000_000_123), 0.25)


@pytest.mark.parametrize(
    "value",
    [1, 1.0, True, -0.0, 10**5000, 1e-320, "", {"b": 1, "a": 2}, [[]], "1", "\ud800", b"", b"\0"],
    ids=lambda value: type(value).__name__,
)
def test_types_are_kept(value: Any) -> None:
    back = wire.value_of(wire.loads(wire.dumps(wire.value_fields(value))))
    assert type(back) is type(value) and same(back, value)
    if isinstance(value, float):
        assert math.copysign(1, back) == math.copysign(1, value)


def test_plain_values_stand_as_they_are() -> None:
    assert wire.value_fields({"a": 1}) == {"type": "json", "value": {"a": 1}}
    assert wire.value_fields("tea") == {"type": "text", "value": "tea"}
    assert wire.value_fields(b"\xff") == {"type": "bytes", "base64": "/w=="}
    assert wire.value_fields("\ud800") == {"type": "text", "base64": "7aCA"}


def test_vectors_may_be_numbers() -> None:
    assert same(wire.value_of({"type": "vector", "value": [1, 2.5]}), np.array([1, 2.5], np.float32))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"value": 1, "base64": "AA=="},
        {"base64": "AA=="},
        {"base64": "A", "type": "bytes"},
        {"base64": "Ä", "type": "bytes"},
        {"base64": 1, "type": "bytes"},
        {"base64": "AA==", "type": "vector"},
        {"base64": "ewo=", "type": "json"},
        {"base64": "/w==", "type": "text"},
        {"value": "x", "type": "json"},
        {"value": 1, "type": "text"},
        {"value": "AA==", "type": "bytes"},
        {"value": ["a"], "type": "vector"},
        {"value": [True], "type": "vector"},
        {"value": [10**400], "type": "vector"},
        {"value": 1, "type": "number"},
    ],
)
def test_what_is_no_value_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        wire.value_of(fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"{} x", b"nul", b"[1,]"])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        wire.loads(data)


def test_deep_json_is_read() -> None:
    depth = 100_000
    assert to_raw(wire.loads(b"[" * depth + b"]" * depth))[1] == b"[" * depth + b"]" * depth


@pytest.mark.parametrize("answer", [None, [], {}, {"namespace": 1}, {**wire.item_fields(item(1)), "created": "noon"}])
def test_what_is_no_item_is_refused(answer: Any) -> None:
    with pytest.raises(DataError):
        wire.item_of(answer)
