"""Keywords, their signatures, and how a match scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbmf.store.keywords import (
    NO_HASH,
    SLOTS,
    Query,
    fuse,
    fuse_many,
    hash_of,
    keywords,
    plain_rarity,
    signature,
    unpack,
    unpack_many,
    weight,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Order KJ-5623, for Zoë!", ["order", "kj", "5623", "for", "zoë"]),
        ("snake_case and e.g. v1.2", ["snake_case", "and", "e", "g", "v1", "2"]),
        ("東京駅 で会う", ["東京", "京駅", "で会", "会う"]),
        ("駅 A4用紙", ["駅", "a4", "用紙"]),
        ("é" + "x" * 64 + " 東京 " + "y" * 65 + " z", ["東京", "z"]),
        ("é" + "x" * 64 + " " + "y" * 65 + " z", ["z"]),
        ("STRASSE straße", ["strasse", "strasse"]),
        ("x" * 65 + " y", ["y"]),
        ("… — !", []),
        ("", []),
    ],
)
def test_keywords(text: str, found: list[str]) -> None:
    assert keywords(text) == found


def test_hashes_are_for_ever() -> None:
    """They are stored: another value makes every signature on disk useless."""
    assert [hash_of(word) for word in ("tea", "kj5623", "zoë", "東京", "")] == HASHES
    assert all(0 <= hash_of(str(i)) < NO_HASH for i in range(100_000))


HASHES = [26169, 19137, 46259, 54549, 0]


def test_a_signature_holds_the_rarest() -> None:
    text = (
        "the order of the day is to find the number KJ5623 and several others in the district of Wolverhampton, "
        "before Wednesday evening, together with the documents"
    )
    held = unpack(signature(text))
    assert held == sorted(held) and len(held) == SLOTS
    assert {hash_of("kj5623"), hash_of("wolverhampton")} <= set(held)
    assert hash_of("the") not in held and hash_of("of") not in held


def test_few_keywords_take_few_bytes() -> None:
    assert signature("") == signature("to be or not to be") == b""
    assert len(signature("Wolverhampton, Wolverhampton!")) == 2


def test_the_rarity_that_is_given_decides() -> None:
    words = [f"word{i:02}" for i in range(20)]
    held = unpack(signature(" ".join(words), lambda word: 30 + int(word[4:])))
    assert held == sorted(map(hash_of, words[-SLOTS:]))


@given(st.lists(st.text(), max_size=5))
def test_signatures_come_back(texts: list[str]) -> None:
    signatures = [signature(text) for text in texts]
    rows = unpack_many(signatures)
    assert rows.shape == (len(texts), SLOTS)
    for row, one in zip(rows.tolist(), signatures, strict=True):
        assert [value for value in row if value != NO_HASH] == unpack(one)


def test_weights() -> None:
    assert weight("the") == weight("a") == 0
    assert 0 < weight("lunch") < weight("kj5623") <= 1
    assert plain_rarity("東京") > plain_rarity("of")


def test_the_terms_of_a_query() -> None:
    query = Query.of("Where is the parcel KJ5623 for Wolverhampton?")
    assert hash_of("kj5623") in dict(query.terms) and hash_of("the") not in dict(query.terms)
    assert list(dict(query.terms).values()) == sorted(dict(query.terms).values(), reverse=True)
    assert len(Query.of(" ".join(f"number{i}" for i in range(50))).terms) == 8
    assert Query.of("is it").terms == Query.of("").terms == ()


def test_matches() -> None:
    query = Query.of("parcel KJ5623 Wolverhampton")
    assert query.match("") == Query.of("").match("anything") == 0
    assert query.match("Parcel kj5623 lies in WOLVERHAMPTON.") == 1
    one, two = query.match("parcel kj5624 lies in Walsall"), query.match("parcel kj5623 lies in Walsall")
    assert 0 < one < two < 1
    long = "filler " * 400
    assert 0 < query.match(long + "kj5623") < query.match("kj5623")
    assert query.match(long + "kj5623") < query.match(long + "kj5623 kj5623 kj5623")


unit_floats = st.floats(0, 1)


@given(st.floats(-1.001, 1.001), unit_floats, unit_floats)
def test_fusion(cosine: float, low: float, high: float) -> None:
    low, high = sorted((low, high))
    semantic = min(max(cosine, 0), 1)
    assert fuse(cosine, 0) == semantic
    assert semantic <= fuse(cosine, low) <= fuse(cosine, high) <= 1


@given(st.lists(st.tuples(st.floats(-1, 1.125, width=32), st.floats(0, 1, width=32)), max_size=9))
def test_fusion_of_many(pairs: list[tuple[float, float]]) -> None:
    cosines, shares = (np.array([pair[i] for pair in pairs], np.float32) for i in (0, 1))
    assert np.allclose(fuse_many(cosines, shares), [fuse(*pair) for pair in pairs], atol=1e-6)


@given(st.text(), st.text(alphabet="ab東é1 _", max_size=12))
def test_a_match_is_that_of_the_whole_words(text: str, words: str) -> None:
    """What is looked for first, as letters anywhere, leaves nothing out that whole words would find."""
    query = Query.of(words, lambda _: 80.0)
    held = [word for word in query.weights if word in keywords(text + " " + words[:5])]
    assert (query.match(text + " " + words[:5]) > 0) == bool(held)


def test_a_record_with_the_literal_beats_one_that_only_looks_like_it() -> None:
    assert fuse(0.2, 1.0) > fuse(0.8, 0.0)
