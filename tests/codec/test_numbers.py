"""Numbers in JSON within a tolerance: near enough by exact fractions, types and structure kept, smaller or the same."""

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import by_kernel, json_values, same

import nbmf
from nbmf import Codec, Tolerance
from nbmf.codec.numbers import read, rounded, steps
from nbmf.errors import PolicyError, UnsupportedValue

numbers = st.one_of(st.integers(-(10**25), 10**25), st.floats(allow_nan=False, allow_infinity=False))
sizes = st.floats(1e-12, 0.9)


def near(one: Any, other: Any, tolerance: Tolerance) -> bool:
    return abs(Fraction(one) - Fraction(other)) <= tolerance.allows(one)


@given(numbers, sizes, st.one_of(st.none(), st.floats(1e-300, 1e300)))
@example(0.1, 0.05, None)
@example(5e-324, 0.5, None)
@example(1.7976931348623157e308, 0.5, None)
@example(-0.0, 0.1, 1.0)
@example(10**24 + 1, 1e-12, None)
@example(9.5, 0.06, None)
@example(1.2344, 1e-12, 0.0043)
@settings(max_examples=by_kernel(500, 100))
def test_a_number_is_never_off_by_more(number: Any, relative: float, absolute: float | None) -> None:
    for tolerance in (Tolerance(relative=relative), Tolerance(relative=relative, absolute=absolute)):
        found = rounded(number, tolerance)
        assert type(found) is type(number)
        assert near(number, found, tolerance)
        assert len(repr(found)) <= len(repr(number))
        assert rounded([{"a": number}], tolerance) == [{"a": found}]
        assert same(rounded(found, tolerance), found), "what was rounded is not moved"


@given(json_values)
@settings(max_examples=by_kernel(200, 50))
def test_what_is_not_named_is_exact(value: Any) -> None:
    assert same(rounded(value, {"no such name at all": Tolerance(relative=0.5)}), value)


def test_examples() -> None:
    value = {"price": 12.345678, "at": 1718123456789, "ok": True, "n": None, "s": "1.2345", "z": 0.0, "m": -273.15}
    assert rounded(value, Tolerance(relative=1e-3)) == {**value, "price": 12.35, "at": 1718000000000, "m": -273.0}
    assert rounded(value, {"price": Tolerance(absolute=0.01)}) == {**value, "price": 12.35}
    assert rounded(value, {"at": Tolerance(absolute=500)}) == {**value, "at": 1718123457000}
    assert rounded({"a": math.inf, "b": math.nan, "c": 10**40}, Tolerance(absolute=3))["a"] == math.inf
    assert value["price"] == 12.345678, "the value given is left alone"


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("", {()}),
        ("$", {()}),
        ("a", {("a",)}),
        ("$.a", {("a",)}),
        ("a.b", {("a", "b")}),
        ("l[0]", {("l", 0)}),
        ("l[*].x", {("l", 0, "x"), ("l", 1, "x")}),
        ("*", {("a",), ("x",)}),
        ("*.b", {("a", "b")}),
        ("**.x", {("x",), ("l", 0, "x"), ("l", 1, "x")}),
        ("**", {("a", "b"), ("l", 0, "x"), ("l", 1, "x"), ("x",), ("t", 0)}),
        ("l.**", {("l", 0, "x"), ("l", 1, "x")}),
        ("t[*]", {("t", 0)}),
    ],
)
def test_paths(path: str, wanted: set[tuple[Any, ...]]) -> None:
    value: Any = {"a": {"b": 1.2345}, "l": [{"x": 2.3456}, {"x": 3.4567}], "x": 4.5678, "t": [5.6789]}
    found = rounded(value, {path: Tolerance(absolute=0.4)})
    for place in {("a", "b"), ("l", 0, "x"), ("l", 1, "x"), ("x",), ("t", 0)}:
        one, other = value, found
        for step in place:
            one, other = one[step], other[step]
        assert (one != other) == (place in wanted), place


def test_the_first_path_that_fits_counts() -> None:
    value = {"a": 1.23456, "b": 1.23456}
    rules = {"a": Tolerance(absolute=0.001), "**": Tolerance(absolute=0.1)}
    assert rounded(value, rules) == {"a": 1.234, "b": 1.2} or rounded(value, rules) == {"a": 1.235, "b": 1.2}


@given(
    st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=2, max_size=60),
    st.sampled_from([0.9, 0.995, 0.999, 0.999999]),
)
@settings(max_examples=by_kernel(200, 50))
def test_lists_keep_a_cosine(values: list[float], bound: float) -> None:
    found = rounded({"v": values}, {"v": Tolerance(cosine=bound)})["v"]
    if found != values:
        dot, a, b = (
            math.fsum(x * y for x, y in zip(one, other, strict=True))
            for one, other in ((values, found), (values, values), (found, found))
        )
        assert dot / math.sqrt(a) / math.sqrt(b) >= bound
        assert abs(math.sqrt(b / a) - 1) <= 0.001
        assert all(type(x) is float for x in found)
    assert rounded({"v": found}, {"v": Tolerance(cosine=bound)})["v"] == found, "what was rounded is not moved"


def test_a_cosine_is_of_lists_of_floats_alone() -> None:
    for value in ([1.23456], [1.23456, 2], ["a", 1.5], [1.5, math.nan], 1.23456, [0.0, 0.0], [[1.5]]):
        found = rounded(value, Tolerance(cosine=0.9))
        assert same(found, value) or value == [0.0, 0.0]


def test_through_the_codec(codec: Codec) -> None:
    value = {"id": 71, "stops": [{"name": "Aalst", "lat": 50.938271, "lon": 4.039812, "at": 1764064799123}] * 2}
    rules = {"**.lat": Tolerance(absolute=1e-4), "**.lon": Tolerance(absolute=1e-4), "**.at": Tolerance(absolute=1000)}
    exact = codec.encode(value, bare=True)
    for bare in (True, False):
        blob = codec.encode(value, bare=bare, fidelity="semantic", tolerance=rules, verify=True)
        back = codec.decode(blob, bare=bare)
        assert back["stops"][0] == {"name": "Aalst", "lat": 50.9383, "lon": 4.0398, "at": 1764064799000}
        assert list(back) == list(value) and back["id"] == 71
    assert len(codec.encode(value, bare=True, fidelity="semantic", tolerance=rules)) < len(exact)
    assert codec.encode(value, bare=True, fidelity="semantic") == exact
    assert codec.encode(value, bare=True, tolerance=rules) == exact, "lossless is lossless"
    many = codec.encode_many([value, "text", 1.25], bare=True, fidelity="semantic", tolerance=rules)
    assert many[1:] == [codec.encode("text", bare=True), codec.encode(1.25, bare=True)]
    assert nbmf.decode(nbmf.encode(1.23456, fidelity="semantic", tolerance=Tolerance(absolute=0.1))) == 1.2


def test_values_that_cannot_be_stored_still_cannot(codec: Codec) -> None:
    loop: list[Any] = []
    loop.append(loop)
    for bad in (loop, {"a": (1, 2)}, {1: 2.5}, [math.nan]):
        with pytest.raises(UnsupportedValue):
            codec.encode(bad, fidelity="semantic", tolerance=Tolerance(relative=0.1))
    deep: Any = 1.23456
    for _ in range(3000):
        deep = [deep]
    assert codec.decode(codec.encode(deep, fidelity="semantic", tolerance=Tolerance(absolute=0.1))) is not None


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"relative": 0},
        {"relative": 1},
        {"relative": -0.5},
        {"relative": math.nan},
        {"absolute": math.inf},
        {"absolute": True},
        {"absolute": "1"},
        {"cosine": 1.5},
        {"cosine": 0.9, "relative": 0.1},
    ],
    ids=str,
)
def test_tolerances_that_are_none(about: Any) -> None:
    with pytest.raises(PolicyError):
        Tolerance(**about)
    with pytest.raises(PolicyError, match="'price'"):
        read({"price": about})


@pytest.mark.parametrize("path", ["a[", "a[x]", "a..b", "[", "a.", "a[-1]", 7], ids=str)
def test_paths_that_are_none(path: Any) -> None:
    with pytest.raises(PolicyError, match="path"):
        steps(path)
    with pytest.raises(PolicyError):
        rounded({"a": 1.5}, {path: Tolerance(relative=0.1)})


def test_read() -> None:
    assert read({"a.b": {"relative": 0.001}, "c[*]": {"absolute": 5}}) == {
        "a.b": Tolerance(relative=0.001),
        "c[*]": Tolerance(absolute=5),
    }
    for bad in (None, [], {"a": 1}, {"a": {"relativ": 1}}):
        with pytest.raises(PolicyError):
            read(bad)
    with pytest.raises(PolicyError):
        rounded(1.5, {"a": {"relative": 0.1}})  # type: ignore[dict-item]
