"""Codes of vectors: their bytes, what they tell, and which are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nbmf.errors import FormatError, PolicyError
from nbmf.store import codes
from nbmf.store.codes import SHRINK, SPREAD, VectorCode
from nbmf.store.keywords import SIGNATURE_MOST, signature
from nbmf.store.vectors import CodeIndex

DIM = 256
ME = "test-embedder"
T = ("t",)


def unit_rows(count: int, dim: int = DIM, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(("dim", "size"), [(256, 65), (384, 97), (1536, 385), (8, 3), (100, 27)])
def test_sizes(dim: int, size: int) -> None:
    code, row = VectorCode(ME, dim), unit_rows(1, dim)[0]
    assert code.size == size == len(code.encode(row)) and code.whole_size == 1 + dim == len(
        code.encode(row, whole=True)
    )
    assert len(code.encode(row, bytes(12))) == size + 12


def test_a_code_is_at_most_85_bytes() -> None:
    text = " ".join(f"identifier{i}" for i in range(100))
    assert len(VectorCode(ME, 256).encode(unit_rows(1)[0], signature(text))) == 85


def test_codes_are_for_ever() -> None:
    """They are stored: what this vector's code is must never change."""
    vector = np.array([np.sin(i * i) for i in range(16)], np.float32)
    code = VectorCode("wordllama", 16)
    assert code.encode(vector, b"\x01\x02").hex() == GOLDEN
    assert code.encode(vector, b"\x01\x02", whole=True).hex() == GOLDEN_WHOLE


GOLDEN = "3af4b6c6c90102"
GOLDEN_WHOLE = "3b006ba034dbef828775b0c07fc2b3778a0102"

VECTORS = st.integers(8, 300).flatmap(lambda dim: arrays(np.float32, dim, elements=st.floats(-1, 1, width=32)))


@settings(max_examples=100, deadline=None)
@given(VECTORS)
def test_levels_come_back(vector: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    code = VectorCode(ME, len(vector))
    data = code.encode(vector, b"signature!")
    back, signed = code.decode(data)
    assert signed == b"signature!" == code.signature(data) and code.fits(data) and not code.is_whole(data)
    if not vector.any():
        assert not back.any()
        return
    assert ((back < 0) == (vector < 0)).all() and abs(np.linalg.norm(back) - 1) < 1e-5
    # The largest entries have the larger of two levels.
    size = np.abs(back)
    assert size.max() == size[np.argmax(np.abs(vector))] and set(np.round(size / size.min(), 3)) <= {1, 3}
    assert (
        float(back @ vector) / np.linalg.norm(vector.astype(np.float64)) > 0.15
    )  # a vector with one entry alone has the worst
    assert code.encode_many(vector[None, :]).tobytes() + b"signature!" == data


@settings(max_examples=100, deadline=None)
@given(VECTORS)
def test_whole_vectors_come_back(vector: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    code = VectorCode(ME, len(vector))
    data = code.encode(vector, b"ab", whole=True)
    back, signed = code.decode(data)
    norm = np.linalg.norm(vector.astype(np.float64))
    assert signed == b"ab" and code.fits(data) and code.is_whole(data)
    if norm < 1e-20:
        return
    largest = np.abs(vector / norm).max()
    # Half a step an entry; and what comes back is of norm 1, whatever the steps add up to.
    step = largest / 127 / 2
    astray = step * np.sqrt(len(vector))
    assert np.abs(back - vector / norm).max() <= (step + largest * astray) / (1 - astray) + 1e-6


@pytest.mark.parametrize("dim", [64, 256, 1024])
def test_how_near_a_code_is(dim: int) -> None:
    """The constants that say so hold for vectors as they come."""
    code, rows, queries = VectorCode(ME, dim), unit_rows(400, dim), unit_rows(400, dim, seed=1)
    levels = np.stack([code.decode(code.encode(row))[0] for row in rows])
    own = np.einsum("ij,ij->i", levels, rows)
    assert abs(own.mean() - SHRINK) < 0.005 and own.min() > SHRINK - 0.08
    off = np.einsum("ij,ij->i", levels, queries) / SHRINK - np.einsum("ij,ij->i", rows, queries)
    assert abs(off.mean()) < 0.005 and abs(off.std() * np.sqrt(dim) - SPREAD) < 0.1
    whole = np.stack([code.decode(code.encode(row, whole=True))[0] for row in rows])
    assert np.einsum("ij,ij->i", whole, rows).min() > 0.999


def test_codes_of_others_are_refused() -> None:
    code, other = VectorCode(ME, DIM), VectorCode("another", DIM)
    good, foreign = code.encode(unit_rows(1)[0], b"ab"), other.encode(unit_rows(1)[0], b"ab")
    whole = code.encode(unit_rows(1)[0], b"ab", whole=True)
    assert code.fits(good) and code.fits(whole)
    for bad in (foreign, b"", good[:40], good + bytes(20), good + b"c", whole[:-3], whole + bytes(20)):
        assert not code.fits(bad)
        with pytest.raises(FormatError):
            code.decode(bad)
    index = CodeIndex(ME, DIM)
    index.put_many([(T, "good", good), (T, "foreign", foreign), (T, "empty", b""), (T, "whole", whole)])
    assert len(index) == 2 and index.skipped == 2
    index.put(T, "good", foreign)
    assert len(index) == 1 and index.skipped == 3


@pytest.mark.parametrize("dim", [8, 16])
def test_whole_and_short_codes_of_few_dimensions_are_told_apart(dim: int) -> None:
    code, row = VectorCode(ME, dim), unit_rows(1, dim)[0]
    for whole in (False, True):
        for size in range(0, SIGNATURE_MOST + 1, 2):
            data = code.encode(row, bytes(size), whole=whole)
            assert code.is_whole(data) is whole and code.signature(data) == bytes(size)


@pytest.mark.parametrize("vector", [np.zeros(255), np.zeros((1, 256)), [float("nan")] * 256, [float("inf")] * 256])
def test_vectors_of_the_wrong_form(vector: Any) -> None:
    with pytest.raises(PolicyError):
        VectorCode(ME, DIM).encode(vector)
    with pytest.raises(PolicyError):
        CodeIndex(ME, DIM).search(vector)


def test_dimensions_have_limits() -> None:
    for dim in (7, 8193):
        with pytest.raises(PolicyError, match=str(dim)):
            VectorCode(ME, dim)


def test_bits_are_counted_alike_without_numpy_2() -> None:
    words = np.random.default_rng(1).integers(0, 2**63, (3, 1000), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    want = np.array([[int(word).bit_count() for word in row] for row in words])
    for count in (codes._counts_by_table, codes.counts):
        assert (count(words) == want).all()
        out = np.empty(1000, np.uint8)
        assert count(words[1], out=out) is out and (out == want[1]).all()
