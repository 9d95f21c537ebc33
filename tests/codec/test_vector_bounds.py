"""Attempts to break a bound: whatever the floats, no vector comes back under it. And both kernels write the same."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import by_kernel
from vector_data import cosines, embeddings, gaussian, norms

from nbmf import Bound, Codec
from nbmf.codec import kernel, vector_reference
from nbmf.codec.arrays import layout_of
from nbmf.codec.vector import encode_bounded, encode_exact
from nbmf.codec.vector_reference import DIRECTION, LATTICE, Bounds, Shape
from nbmf.codec.vector_tables import tables
from nbmf.codec.vector_transform import Prepared, learn

bits = st.integers(0, 2**32 - 1)
floats = st.floats(width=32, allow_nan=True, allow_infinity=True)
sizes = st.integers(1, by_kernel(200, 12))
bounds = st.sampled_from([0.5, 0.9, 0.99, 0.995, 0.999, 0.9999, 0.99999, 0.9999999])


@st.composite
def arrays(draw: Any) -> Any:
    """Rows of any bits, of few values, of wild exponents, or sparse."""
    d = draw(sizes)
    n = draw(st.integers(1, 3))
    way = draw(st.integers(0, 4))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    if way == 0:
        values = np.array(draw(st.lists(floats, min_size=n * d, max_size=n * d)), np.float32)
    elif way == 1:
        values = random.integers(0, 2**32, n * d, dtype=np.uint32).view(np.float32)
    elif way == 2:
        with np.errstate(over="ignore"):
            wild = np.exp2(random.integers(-150, 127, n * d))
            values = (random.standard_normal(n * d) * wild).astype(np.float32)
    elif way == 3:
        values = (random.standard_normal(n * d) * (random.random(n * d) < 0.1)).astype(np.float32)
    else:
        values = (random.standard_normal(n * d) ** 7 * 10.0 ** draw(st.integers(-30, 20))).astype(np.float32)
    with np.errstate(over="ignore"):
        rows = values.reshape(n, d).astype(draw(st.sampled_from([np.float32, np.float32, np.float16])))
    return rows[0] if n == 1 and draw(st.booleans()) else rows


def check(codec: Codec, array: Any, bound: Bound) -> None:
    back = codec.decode(codec.encode(array, fidelity="semantic", bound=bound, verify=True))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    for row, other in zip(np.atleast_2d(array), np.atleast_2d(back), strict=True):
        if row.tobytes() == other.tobytes():
            continue
        assert np.isfinite(row).all() and np.isfinite(other).all()
        if bound.cosine is not None:
            assert cosines(row, other)[0] >= bound.cosine
        if bound.max_error is not None:
            assert np.abs(row.astype(np.float64) - other).max() <= bound.max_error
        else:
            assert abs(norms(other)[0] / norms(row)[0] - 1) <= 0.001


@given(arrays(), bounds)
@example(np.zeros(5, np.float32), 0.995)
@example(np.full(100, 3e38, np.float32), 0.995)
@example(np.full(100, 1e-45, np.float32), 0.995)
@example(np.full(40, 65504, np.float16), 0.999)
@example(np.array([1e30] + [1.0] * 50, np.float32), 0.9999)
@example(np.array([[np.nan, 1], [2, 3]], np.float32), 0.99)
@example(np.array([1.0], np.float32), 0.9999999)
@settings(max_examples=by_kernel(400, 25))
def test_no_vector_comes_back_under_its_cosine(codec: Codec, array: Any, cosine: float) -> None:
    check(codec, array, Bound(cosine))


@given(arrays(), st.sampled_from([1e-30, 1e-6, 0.01, 1.0, 1e10, 3e38]), st.one_of(st.none(), bounds))
@example(np.array([1e30, 1.0], np.float32), 0.01, None)
@settings(max_examples=by_kernel(300, 20))
def test_no_float_comes_back_over_its_error(codec: Codec, array: Any, most: float, cosine: float | None) -> None:
    check(codec, array, Bound(cosine, most))


@given(arrays())
@settings(max_examples=by_kernel(200, 15))
def test_every_array_is_exact_without_a_bound(codec: Codec, array: Any) -> None:
    back = codec.decode(codec.encode(array, verify=True))
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())


@given(st.integers(0, 2**32 - 1), sizes, bounds, bounds, st.booleans())
@settings(max_examples=by_kernel(200, 15))
def test_what_was_decoded_is_coded_as_it_was(
    codec: Codec, seed: int, d: int, cosine: float, other: float, unit: bool
) -> None:
    row = gaussian(2, d, seed)[0] if seed % 2 else gaussian(1, d, seed)[0] * np.float32(1000)
    row = (row / norms(row)[0]).astype(np.float32) if unit else row
    back = codec.decode(codec.encode(row, bare=True, fidelity="semantic", bound=Bound(cosine)), bare=True)
    blob = codec.encode(back, bare=True, fidelity="semantic", bound=Bound(other), verify=True)
    again = codec.decode(blob, bare=True)
    # In a handful of floats the smallest may be many steps, and the step not be found.
    assert again.tobytes() == back.tobytes() or (d < 24 and cosines(back, again)[0] >= other)
    assert len(blob) <= len(codec.encode(row, bare=True, fidelity="semantic", bound=Bound(cosine))) or d < 24


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    found = learn(embeddings(600, 40))
    assert found is not None
    return Prepared(found)


@given(st.integers(0, 2**32 - 1), bounds, st.floats(0, 2), st.sampled_from([np.float32, np.float16]))
@settings(max_examples=by_kernel(150, 10))
def test_a_transform_keeps_the_bound_of_vectors_unlike_those_it_learned(
    prepared: Prepared, seed: int, cosine: float, strange: float, kind: Any
) -> None:
    random = np.random.default_rng(seed)
    rows = embeddings(2, 40, seed % 1000) + strange * random.standard_normal((2, 40)) * random.random()
    rows = (rows * 10.0 ** random.integers(-3, 4)).astype(kind)
    coded = encode_bounded(rows, Bound(cosine), [prepared])
    if coded is not None:
        back = np.frombuffer(coded.raw[len(layout_of(rows).head) :], kind).reshape(rows.shape)
        for row, other in zip(rows, back, strict=True):
            assert row.tobytes() == other.tobytes() or cosines(row, other)[0] >= cosine


# -- both kernels ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(kernel.backend != "c", reason="compares the C kernel with the reference")
@given(arrays(), bounds, st.booleans())
@settings(max_examples=60)
def test_kernels_write_the_same(array: Any, cosine: float, lattice: bool) -> None:
    from nbmf.codec import _kernel

    rows = np.ascontiguousarray(np.atleast_2d(array))
    n, d = rows.shape
    half = rows.dtype == np.float16
    mode, about = (LATTICE, Bounds(-1.0, 0.0, 0.01)) if lattice else (DIRECTION, Bounds(cosine, 1e-7, 0.0))
    packed = tables().packed
    with np.errstate(all="ignore"):
        wanted = vector_reference.encode(rows, mode, about, None, None)
    assert _kernel.vector_encode(packed, None, None, None, rows, mode, half, n, d, *about) == wanted
    stream, made, _, unit = wanted
    again = np.frombuffer(made, rows.dtype).reshape(n, d)
    with np.errstate(all="ignore"):
        second = vector_reference.encode(again, mode, about, None, None)
    assert _kernel.vector_encode(packed, None, None, None, again, mode, half, n, d, *about) == second
    assert _kernel.vector_decode(packed, None, None, stream, mode, half, unit, n, d) == made
    assert vector_reference.decode(stream, Shape(mode, n, d, half, unit), None, None) == made


@pytest.mark.skipif(kernel.backend != "c", reason="compares the C kernel with the reference")
@pytest.mark.parametrize("level", ["plain", "avx2"])
@pytest.mark.parametrize("cosine", [0.9, 0.995, 0.9999])
def test_kernels_write_the_same_with_a_transform(prepared: Prepared, cosine: float, level: str) -> None:
    from nbmf.codec import _kernel

    before = _kernel.simd()
    try:
        _kernel.simd(level)
    except ValueError:
        pytest.skip(f"no {level} here")
    try:
        packed = tables().packed
        for rows, unit in (
            (embeddings(4, 40, 7), True),
            ((embeddings(4, 40, 8) * 9).astype(np.float16), False),
            (gaussian(3, 40), False),
        ):
            n, d = rows.shape
            half = rows.dtype == np.float16
            about = Bounds(cosine, 1e-6, 0.0)
            wanted = vector_reference.encode(rows, DIRECTION, about, prepared.value, None)
            found = _kernel.vector_encode(
                packed, prepared.whole, prepared.dual, None, rows, DIRECTION, half, n, d, *about
            )
            assert found == wanted
            stream, made, _, known = wanted
            assert known == unit
            back = _kernel.vector_decode(packed, prepared.whole, None, stream, DIRECTION, half, unit, n, d)
            assert back == made
            shape = Shape(DIRECTION, n, d, half, unit)
            assert vector_reference.decode(stream, shape, prepared.value, None) == made
            points, first = vector_reference.points_of(stream, shape, prepared.value)
            raw = _kernel.vector_points(packed, prepared.whole, None, stream, half, unit, n, d)
            assert (np.frombuffer(raw[0], np.int32).reshape(points.shape) == points).all() and raw[1] == first
    finally:
        _kernel.simd(before)


@pytest.mark.skipif(kernel.backend != "c", reason="compares the C kernel with the reference")
@given(st.lists(bits, min_size=1, max_size=80), st.integers(0, 20), st.integers(0, 1), st.integers(0, 2047))
@settings(max_examples=80)
def test_kernels_write_exact_floats_alike(values: list[int], zeros: int, family: int, scale: int) -> None:
    from nbmf.codec import _kernel

    packed = tables().packed
    for half in (False, True):
        dropped = min(zeros, 7) if half else zeros
        mask = (0xFFFF if half else 0xFFFFFFFF) >> dropped << dropped
        numbers = np.array(values, np.uint32) & np.uint32(mask)
        wanted = vector_reference.encode_floats(numbers, half, dropped, family, scale)
        assert _kernel.floats_encode(packed, numbers, half, dropped, family, scale) == wanted
        back = _kernel.floats_decode(packed, wanted, len(numbers), half, dropped, family, scale)
        assert back == numbers.tobytes()
        again = vector_reference.decode_floats(wanted, len(numbers), half, dropped, family, scale)
        assert again.tobytes() == numbers.tobytes()


@pytest.mark.skipif(kernel.backend != "c", reason="compares the C kernel with the reference")
@given(st.binary(max_size=60), st.integers(1, 30), st.sampled_from([DIRECTION, LATTICE]), st.booleans(), st.booleans())
@settings(max_examples=200)
def test_kernels_read_any_stream_alike(
    prepared: Prepared, stream: bytes, d: int, mode: int, half: bool, learned: bool
) -> None:
    from nbmf.codec import _kernel
    from nbmf.errors import StreamError

    t = prepared if learned and mode == DIRECTION else None
    d = 40 if t else d
    shape = Shape(mode, 2, d, half, False)
    results: list[Any] = []
    for read in (
        lambda: vector_reference.decode(stream, shape, t.value if t else None, None),
        lambda: _kernel.vector_decode(
            tables().packed, t.whole if t else None, None, stream, mode, half, False, shape.n, d
        ),
    ):
        try:
            with np.errstate(all="ignore"):
                results.append(read())
        except StreamError:
            results.append(None)
    assert results[0] == results[1]


def test_tables_are_what_they_were() -> None:
    """The tables are part of the format: streams of before must decode for ever."""
    import hashlib

    found = tables()
    parts = (found.cum.astype("<u2"), found.float_cum.astype("<u2"))
    digest = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
    assert digest == "fd4c566e2132a13905b4f75418cf28cfd24a03612e5d6e612bd85addf6450507"
    assert (found.cum[..., -1] == 1 << 15).all() and (found.float_cum[..., -1] == 1 << 15).all()


def test_exact_forms_of_simple_floats() -> None:
    """What came of half precision, or of few bits, is told by its zeros."""
    halves = gaussian(1, 400)[0].astype(np.float16).astype(np.float32)
    payload = encode_exact(3, halves.tobytes())
    assert payload is not None and len(payload) < 0.5 * halves.nbytes
