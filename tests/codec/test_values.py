"""Values to raw bytes and back."""

import collections
import enum
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import all_values, json_values, nested, same, texts, vectors

from nbmf.codec import values
from nbmf.codec.values import BYTES, JSON, MAX_INT_DIGITS, TEXT, VECTOR, from_raw, parse_json, to_raw, write_json
from nbmf.errors import CorruptRecord, NbmfError, UnsupportedValue


class Colour(enum.IntEnum):
    RED = 1


class Name(str):
    __slots__ = ()


def back(value: Any, **options: Any) -> Any:
    return from_raw(*to_raw(value, **options))


@contextmanager
def int_digits(limit: int) -> Iterator[None]:
    """The interpreter's limit on the digits of integers, for a while."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(limit)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


@given(all_values)
def test_round_trip(value: Any) -> None:
    assert same(back(value), value)


@given(texts)
def test_text_is_its_utf8(text: str) -> None:
    assert to_raw(text) == (TEXT, text.encode("utf-8", "surrogatepass"))
    assert back(text) == text


@given(json_values)
def test_json_is_what_json_reads(value: Any) -> None:
    value_type, raw = to_raw([value])
    assert value_type == JSON
    with int_digits(0):
        assert same(json.loads(raw.decode("utf-8", "surrogatepass")), [value])
        assert raw.decode("utf-8", "surrogatepass") == json.dumps([value], ensure_ascii=False, separators=(",", ":"))


@given(json_values)
def test_the_loop_writes_what_the_c_encoder_writes(value: Any) -> None:
    assert write_json([value]).encode("utf-8", "surrogatepass") == to_raw([value])[1]
    with int_digits(0):
        expected = json.dumps([value], ensure_ascii=False, sort_keys=True)
    assert write_json([value], sort_keys=True, comma=", ", colon=": ") == expected


@given(json_values)
def test_the_loop_reads_what_the_c_scanner_reads(value: Any) -> None:
    text = write_json([value])
    assert same(values._parse_deep(text), [value])
    assert same(values._parse_deep(text), parse_json(text))


@given(st.text(st.sampled_from('[]{}",:0123456789.eE+- \\u\ntrfalsn'), max_size=30))
def test_the_loop_and_the_c_scanner_refuse_the_same(text: str) -> None:
    def read(parse: Any) -> Any:
        try:
            return parse(text)
        except CorruptRecord:
            return CorruptRecord

    assert same(read(values._parse_deep), read(parse_json))


@given(st.binary(max_size=60), st.integers(0, 3))
def test_any_bytes_give_a_value_or_corrupt_record(raw: bytes, value_type: int) -> None:
    try:
        value = from_raw(value_type, raw)
    except CorruptRecord as error:
        assert "\n" not in str(error)
    else:
        assert same(back(value, allow_nan=True), value)


@given(vectors)
def test_vectors_keep_every_bit(vector: Any) -> None:
    value_type, raw = to_raw(vector)
    assert value_type == VECTOR
    assert raw == vector.astype("<f4").tobytes() or np.isnan(vector).any()
    assert same(from_raw(VECTOR, raw), vector)
    assert from_raw(VECTOR, raw).flags.writeable


def test_vector_raw_is_little_endian() -> None:
    assert to_raw(np.array([1.0], np.float32)) == (VECTOR, b"\x00\x00\x80\x3f")


def test_vector_that_is_not_contiguous() -> None:
    vector = np.arange(20, dtype=np.float32)[::-3]
    assert same(back(vector), vector.copy())


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3),
        np.zeros((2, 2, 2), np.float32),
        np.float32(1).reshape(()),
        np.zeros(3, np.int32),
        np.zeros(3, ">f4"),
        np.ma.masked_array(np.zeros(3, np.float32)),
        np.zeros(3, object),
    ],
    ids=["float64", "3-d", "0-d", "int32", "big-endian", "subclass", "object"],
)
def test_other_arrays_are_refused(array: Any) -> None:
    with pytest.raises(UnsupportedValue, match=r"^\$: "):
        to_raw(array)


@pytest.mark.parametrize("value", [b"", b"\x00\xff", bytearray(b"ab"), memoryview(b"abcdef")[::2]])
def test_bytes(value: Any) -> None:
    assert to_raw(value) == (BYTES, bytes(value))
    assert back(value) == bytes(value)


@pytest.mark.parametrize("value", ["", [], {}, b"", np.zeros(0, np.float32), [[]], {"": {}}, [""], [{}, []]])
def test_empty_values(value: Any) -> None:
    assert same(back(value), value)


def test_numbers_that_are_equal_stay_apart() -> None:
    value = [1, 1.0, True, 0, 0.0, -0.0, False, None, 1e0, "1"]
    assert to_raw(value)[1] == b'[1,1.0,true,0,0.0,-0.0,false,null,1.0,"1"]'
    assert same(back(value), value)
    for one in value:
        assert same(back(one), one)


def test_order_of_keys() -> None:
    value = {"b": 1, "a": {"z": 0, "": 1, "y": 2}, "\ud800": 3, "é": 4}
    assert same(back(value), value)


@pytest.mark.parametrize(
    "text", ["\ud800", "\udfff", "\ud83d\ude00", "a\udc80b", "\ude00\ud83d", "\x00", "\u2028", "\x7f"]
)
def test_lone_surrogates_and_odd_characters(text: str) -> None:
    for value in (text, [text], {text: text}, {"k": {text: [text]}}):
        assert same(back(value), value)


@pytest.mark.parametrize("digits", [640, 4300, 4301, 10_000, 30_000])
@pytest.mark.parametrize("limit", [0, 640, 4300])
def test_long_integers_whatever_the_interpreters_limit(digits: int, limit: int) -> None:
    number = (7**5 * 10**digits + 1) // 11
    with int_digits(limit):
        for value in (number, -number, [number, {"n": -number}], 10**digits, 10**digits - 1):
            assert same(back(value), value)
    with int_digits(0):
        assert to_raw(number)[1] == str(number).encode()


def test_longest_integer() -> None:
    longest = 10**MAX_INT_DIGITS - 1
    assert back(longest) == longest
    with pytest.raises(UnsupportedValue, match=r"^\$\.n\[1\]: an integer of more than 1000000 digits$"):
        to_raw({"n": [0, longest + 1]})
    for limit in (0, 640, 4300):  # a hostile one takes no longer where the interpreter has no limit
        with int_digits(limit):
            assert from_raw(JSON, b"9" * MAX_INT_DIGITS) == longest
            with pytest.raises(CorruptRecord, match="more than 1000000 digits"):
                from_raw(JSON, b"1" * (MAX_INT_DIGITS + 2))


@pytest.mark.parametrize("depth", [10, 990, 5000, 100_000])
def test_deep_nesting(depth: int) -> None:
    value = nested(depth, leaf=[1, -0.0, "\ud800", 10**5000, {}])
    assert same(back(value), value)


def test_deep_nesting_of_each_kind() -> None:
    value: Any = {}
    for _ in range(30_000):
        value = {"a": 1, "k": value, "z": []}
    assert same(back(value), value)
    value = []
    for _ in range(30_000):
        value = [0, value, "x"]
    assert same(back(value), value)


@pytest.mark.parametrize("opening", [b"[", b'{"k":', b'[{"k":', b'{"k":[0,'])
def test_deep_nesting_cut_short(opening: bytes) -> None:
    with pytest.raises(CorruptRecord):
        from_raw(JSON, opening * 100_000)


def test_values_that_contain_themselves() -> None:
    looped: list[Any] = [0]
    looped.append({"a": looped})
    with pytest.raises(UnsupportedValue, match=r"^\$\[1\]\.a: contains itself$"):
        to_raw(looped)
    shared = [1]
    assert back([shared, shared, {"k": shared}]) == [[1], [1], {"k": [1]}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "$: NaN is refused unless allow_nan is set"),
        ({"a": [0, float("inf")]}, "$.a[1]: Infinity is refused unless allow_nan is set"),
        ([-float("inf")], "$[0]: -Infinity is refused unless allow_nan is set"),
        ((1, 2), "$: tuple is not kept as such; make it a list"),
        ({"a": {"b c": (1,)}}, '$.a["b c"]: tuple is not kept as such; make it a list'),
        ([{1, 2}], "$[0]: set is not kept as such; make it a list"),
        ([frozenset()], "$[0]: frozenset is not kept as such; make it a list"),
        ({"a": {1: 2}}, "$.a: a key is of type int, and only str is kept"),
        ([{None: 2}], "$[0]: a key is of type NoneType, and only str is kept"),
        ({"x": b"a"}, "$.x: bytes cannot stand inside a JSON value"),
        ({"\ud800": 1j}, '$["\\ud800"]: type complex cannot be stored'),
        (Colour.RED, "is a subclass of int and would come back as int"),
        ([Colour.RED], "$[0]: "),
        ({Name("k"): 1}, "$: a key is of type "),
        (Name("text"), "is a subclass of str and would come back as str"),
        ([np.float64(1.5)], "$[0]: numpy.float64 is a subclass of float and would come back as float"),
        ({"n": np.int64(1)}, "$.n: type numpy.int64 cannot be stored"),
        ({"n": np.bool_(True)}, "$.n: type numpy.bool"),
        ([np.zeros(2, np.float32)], "$[0]: type numpy.ndarray cannot be stored"),
        (collections.OrderedDict(a=1), "$: collections.OrderedDict is a subclass of dict"),
        ([collections.defaultdict(int)], "$[0]: collections.defaultdict is a subclass of dict"),
        (object(), "$: type object cannot be stored"),
        ({"f": len}, "$.f: type builtin_function_or_method cannot be stored"),
    ],
)
def test_refused_with_the_path(value: Any, message: str) -> None:
    for allow_nan in (False, True) if "refused" not in message else (False,):
        with pytest.raises(UnsupportedValue) as caught:
            to_raw(value, allow_nan=allow_nan)
        assert message in str(caught.value)
        assert str(caught.value).startswith("$")
        assert "\n" not in str(caught.value)


def test_path_of_a_deep_fault_stays_short() -> None:
    with pytest.raises(UnsupportedValue) as caught:
        to_raw(nested(50_000, leaf=()))
    assert "more..." in str(caught.value)
    assert len(str(caught.value)) < 400


def test_nan_when_allowed() -> None:
    value = [float("nan"), float("inf"), -float("inf"), {"n": float("nan")}]
    assert to_raw(value, allow_nan=True) == (JSON, b'[NaN,Infinity,-Infinity,{"n":NaN}]')
    assert same(back(value, allow_nan=True), value)
    assert same(back(nested(20_000, float("nan")), allow_nan=True), nested(20_000, float("nan")))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" 1",
        b"1 ",
        b"[1,]",
        b"{1:2}",
        b'"',
        b'"\n"',
        b"nul",
        b"01",
        b"+1",
        b"1.",
        b"[",
        b"{}{}",
        b"\xff",
        b"\xed\xa0",
    ],
)
def test_invalid_json(raw: bytes) -> None:
    with pytest.raises(CorruptRecord):
        from_raw(JSON, raw)


def test_invalid_content_of_other_types() -> None:
    with pytest.raises(CorruptRecord, match="not UTF-8"):
        from_raw(TEXT, b"abc\xff")
    with pytest.raises(CorruptRecord, match="no whole number of floats"):
        from_raw(VECTOR, b"abc")


@given(st.lists(st.floats()))
def test_errors_are_of_one_family(numbers: list[float]) -> None:
    finite = all(number - number == 0 for number in numbers)
    try:
        assert same(back(numbers), numbers)
        assert finite
    except NbmfError as error:
        assert type(error) is UnsupportedValue
        assert not finite
