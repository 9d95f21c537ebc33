"""The index that scans the codes of vectors."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf.store import vectors
from nbmf.store.base import Delete, Forget, Namespace, Put, Record, within
from nbmf.store.codes import SHRINK, SMALL
from nbmf.store.keywords import KEYWORD_SHARE, SIGNATURE_MOST, Query, hash_of, signature
from nbmf.store.sqlite import SQLiteTier
from nbmf.store.vectors import CodeIndex, Near, ranked

DIM = 256
ME = "test-embedder"
T = ("t",)


def unit_rows(count: int, dim: int = DIM, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def filled(rows: Any, namespaces: list[Namespace] | None = None, texts: list[str] | None = None) -> CodeIndex:
    index = CodeIndex(ME, rows.shape[1])
    index.put_many(
        (namespaces[i] if namespaces else T, str(i), index.code.encode(row, signature(texts[i]) if texts else b""))
        for i, row in enumerate(rows)
    )
    return index


def keys(found: list[Near]) -> list[str]:
    return [one.key for one in found]


def nearest(index: CodeIndex, query: Any, most: int = vectors.CANDIDATES, prefix: Namespace = ()) -> list[str]:
    return keys(ranked(index.search(query, prefix, most), most))


# -- search ------------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_codes() -> None:
    """Against every code decoded and compared one by one; some vectors are kept whole, and one is 0."""
    rows = unit_rows(300)
    rows[7] = 0
    index = CodeIndex(ME, DIM)
    index.put_many((T, str(i), index.code.encode(row, whole=i % 3 == 0)) for i, row in enumerate(rows))
    query = unit_rows(1, seed=9)[0]
    rows[::3] = [index.code.decode(index.code.encode(row, whole=True))[0] for row in rows[::3]]
    levels = index.code.levels(index.code.encode_many(rows)[:, 1:])
    want = levels @ query / np.maximum(np.linalg.norm(levels, axis=1), 1) / SHRINK
    found = ranked(index.search(query, most=300), 300)
    assert len(found) == 300 and keys(found) == [str(i) for i in np.argsort(-want, kind="stable")]
    assert np.allclose([one.cosine for one in found], np.sort(want)[::-1], atol=1e-5)
    assert all(one.score == max(one.cosine, 0) for one in found)


def test_bits_are_counted_as_the_levels_multiply() -> None:
    """What counting bits gives is the cosine of the query's larger signs and each row's levels, to the last bits."""
    rows, query = unit_rows(500, 300), unit_rows(1, 300, seed=9)[0]
    index = filled(rows)
    view = vectors._View.of(index.code, index._columns, 500, np.array([False, True, True]))
    rough = view.rough(*index.code.masks(query))
    levels = index.code.levels(index.code.encode_many(rows)[:, 1:])
    signs = np.sign(query) * (np.abs(query) > SMALL * np.sqrt((query**2).mean()))
    want = levels @ signs / np.linalg.norm(levels, axis=1) / np.linalg.norm(signs) / SHRINK
    assert np.allclose(rough, want, atol=1e-5)


@pytest.mark.parametrize("dim", [256, 384])
def test_recall_of_neighbours(dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters of a few near vectors, as texts have them, in several chunks: the true ten nearest are candidates."""
    monkeypatch.setattr(vectors, "CHUNK", 1000)
    rng = np.random.default_rng(3)
    rows = np.repeat(unit_rows(700, dim), 10, axis=0) + rng.standard_normal((7000, dim)).astype(np.float32) * 0.03
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = filled(rows)
    hits = 0
    for query in rows[::350] + rng.standard_normal((20, dim)).astype(np.float32) * 0.03:
        query /= np.linalg.norm(query)
        want = np.argsort(-(rows @ query))[:10]
        hits += len({str(i) for i in want} & set(nearest(index, query)))
    assert hits >= 0.95 * 200


def test_prefixes_hold_whole_segments() -> None:
    spaces: list[Namespace] = [("a",), ("a", "b"), ("a", "b", "c"), ("ab",), ("b", "a"), ("a", "%"), ("a", "_")]
    namespaces = [spaces[i % len(spaces)] for i in range(700)]
    index = filled(unit_rows(700), namespaces)
    for prefix in [(), *spaces, ("nowhere",), ("a", "b", "c", "d"), ("",)]:
        found = index.search(unit_rows(1)[0], prefix, most=1000)
        assert sorted(map(int, keys(found))) == [i for i in range(700) if within(namespaces[i], prefix)]
        assert all(within(namespace, prefix) for namespace, *_ in found)


def test_many_namespaces_deep_and_wide() -> None:
    namespaces: list[Namespace] = [tuple(map(str, range(i % 32 + 1))) for i in range(64)]
    namespaces += [("wide", str(i)) for i in range(500)]
    index = filled(unit_rows(len(namespaces)), namespaces)
    for prefix in (("0", "1", "2"), ("wide",), ("wide", "77")):
        found = index.search(unit_rows(1)[0], prefix, most=1000)
        assert len(found) == sum(within(namespace, prefix) for namespace in namespaces)


def test_few_or_no_records_and_candidates() -> None:
    index = CodeIndex(ME, DIM)
    query = unit_rows(1)[0]
    assert index.search(query) == [] and len(index) == 0
    index.put(T, "a", index.code.encode(query))
    assert keys(index.search(query)) == ["a"]
    assert index.search(query, most=0) == []
    assert index.search(query, ("u",)) == []


def test_keywords_bring_what_the_vector_does_not() -> None:
    rows = unit_rows(5000)
    texts = [f"record number{i:05}" for i in range(5000)]
    index = filled(rows, texts=texts)
    query = -rows[4321]  # the farthest from the record that holds the word
    assert "4321" not in keys(index.search(query))
    words = Query.of("number04321")
    found = index.search(query, terms=words.terms, total=words.total)
    assert len(found) == len(set(keys(found))) and keys(ranked(found, 10))[0] == "4321"
    assert "4321" in keys(index.search(np.zeros(DIM), terms=words.terms))
    assert index.search(np.zeros(DIM)) == []
    assert "4321" not in keys(index.search(query, ("u",), terms=words.terms))


def test_the_record_that_holds_more_of_the_keywords_comes_first() -> None:
    rows = unit_rows(400)
    texts = ["parcel12345" if i % 2 else "nothing" for i in range(400)]
    texts[200] = "parcel12345 wolverhampton"
    index = filled(rows, texts=texts)
    terms = ((hash_of("parcel12345"), 1.0), (hash_of("wolverhampton"), 1.0))
    found = ranked(index.search(np.zeros(DIM), terms=terms, total=2.0), 36)
    assert keys(found)[0] == "200" and {round(one.score, 6) for one in found[1:]} == {KEYWORD_SHARE / 2}


def test_the_nearest_and_those_with_keywords_take_turns() -> None:
    plain = [Near(T, f"near{i}", 0.9 - i / 100, 0.9 - i / 100) for i in range(4)]
    worded = [Near(T, f"word{i}", 0.1 - i / 100, 0.95 - i / 100) for i in range(4)]
    assert keys(ranked(plain + worded, 6)) == ["word0", "near0", "word1", "near1", "word2", "near2"]
    assert keys(ranked(worded[:1] + plain, 9)) == ["word0", "near0", "near1", "near2", "near3"]
    assert keys(ranked(reversed(plain), 2)) == ["near0", "near1"]
    assert ranked([], 5) == []


# -- changes -----------------------------------------------------------------------------------------------------------


def test_put_replaces_and_remove_removes() -> None:
    rows = unit_rows(3)
    index = filled(rows[:2])
    index.put(T, "0", index.code.encode(rows[2]))
    assert len(index) == 2
    [first, *_] = ranked(index.search(rows[2]), 2)
    assert first.key == "0" and first.cosine > 0.95
    assert index.remove(T, "0") and not index.remove(T, "0")
    assert not index.remove(("u",), "1") and not index.remove(T, "2")
    assert keys(index.search(rows[2])) == ["1"]


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_long_life_against_a_dict(rng: random.Random) -> None:
    """Puts, replacements, removals and forgets, with small tables so that every border is crossed."""
    rows = unit_rows(40)
    spaces: list[Namespace] = [("a",), ("a", "b"), ("ab",), ("c", "d", "e")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "ROWS_LEAST", 8)
        patch.setattr(vectors, "PENDING", 8)
        index, model = CodeIndex(ME, DIM), {}
        for _ in range(150):
            namespace, key = rng.choice(spaces), f"k{rng.randrange(30)}é"
            step = rng.random()
            if step < 0.6:
                row = rng.randrange(40)
                index.put(namespace, key, index.code.encode(rows[row]))
                model[namespace, key] = row
            elif step < 0.95:
                assert index.remove(namespace, key) == (model.pop((namespace, key), None) is not None)
            else:
                gone = [address for address in model if within(address[0], namespace)]
                assert index.forget(namespace) == len(gone)
                for address in gone:
                    del model[address]
            assert len(index) == len(model)
        for prefix in [(), *spaces]:
            for row in (0, 17):
                found = index.search(rows[row], prefix, most=1000)
                want = {address for address in model if within(address[0], prefix)}
                assert {one[:2] for one in found} == want and len(found) == len(want)
                near = {one[:2] for one in found if one.cosine > 0.7}
                assert near == {address for address in want if model[address] == row}


def test_nothing_of_what_was_forgotten_stays_in_memory() -> None:
    index = filled(unit_rows(50), [("gone",) if i % 2 else ("kept",) for i in range(50)])
    index.put(("gone", "deep"), "secret-key", index.code.encode(unit_rows(1)[0]))
    assert index.forget(("gone",)) == 26
    assert len(index) == 25 and b"secret-key" not in index._columns.keys.tobytes()
    assert not any("gone" in name for name in [*index._names, *index._numbers])
    assert np.count_nonzero(index._columns.scale) == 25
    assert index.forget(("gone",)) == 0 and index.forget(()) == 25 and len(index) == 0


def test_memory_for_each_record() -> None:
    count = 20_000
    index = CodeIndex(ME, DIM)
    code = index.code.encode(unit_rows(1)[0], bytes(SIGNATURE_MOST))
    for at in range(0, count, 5000):
        index.put_many((T, f"key-{i:08}", code) for i in range(at, at + 5000))
    assert index.nbytes / count < 1.5 * (12 + 120) + 50


def test_searches_go_on_while_others_write() -> None:
    """Each search sees whole records: those that are never touched are always found, with their own score."""
    rows = unit_rows(2000)
    index = filled(rows)
    stop, faults = threading.Event(), []

    def write() -> None:
        rng, turn = random.Random(1), 0
        while not stop.is_set():
            turn += 1
            i = rng.randrange(1000, 2000)
            index.put(T, str(i), index.code.encode(rows[(i + turn) % 2000]))
            index.put(("new", str(turn % 50)), f"n{turn % 3000}", index.code.encode(-rows[turn % 2000]))
            if turn % 7 == 0:
                index.remove(T, str(rng.randrange(1000, 2000)))
            if turn % 500 == 0:
                index.forget(("new",))

    def read(seed: int) -> None:
        rng = random.Random(seed)
        while not stop.is_set():
            i = rng.randrange(1000)
            scores = {one.key: one.cosine for one in index.search(rows[i]) if one.namespace == T}
            if not 0.95 < scores.get(str(i), 0) < 1.05:
                faults.append((i, scores.get(str(i))))

    threads = [threading.Thread(target=write), *(threading.Thread(target=read, args=(seed,)) for seed in range(3))]
    for thread in threads:
        thread.start()
    time.sleep(2)
    stop.set()
    for thread in threads:
        thread.join()
    assert faults == []


# -- following a tier --------------------------------------------------------------------------------------------------


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[SQLiteTier]:
    with closing(SQLiteTier(tmp_path / "warm.db")) as tier:
        yield tier


def record(index: CodeIndex, key: str, row: Any, namespace: Namespace = T, expires: int | None = None) -> Record:
    return Record(namespace, key, b"blob", code=index.code.encode(row), created=1, updated=1, expires=expires)


def test_it_follows_a_tier(tier: SQLiteTier) -> None:
    rows = unit_rows(30)
    index = CodeIndex(ME, DIM)
    tier.batch([Put(record(index, str(i), rows[i])) for i in range(20)])
    tier.put(Record(T, "no code", b"blob", created=1, updated=1))
    assert index.follow(tier) == 20 and len(index) == 20
    assert index.follow(tier) == 0
    tier.batch([Put(record(index, str(i), rows[i])) for i in range(20, 30)])
    tier.put(record(index, "3", rows[29]))
    tier.delete(T, "4")
    tier.put(Record(T, "5", b"blob", created=1, updated=1))
    index.follow(tier)
    assert sorted(map(int, keys(index.search(rows[0], most=99)))) == [i for i in range(30) if i not in (4, 5)]
    assert set(nearest(index, rows[29], 2)) == {"3", "29"}
    tier.batch([Forget(T)])
    index.follow(tier)
    assert len(index) == 0


def test_it_reads_all_anew_when_the_journal_is_too_short(tier: SQLiteTier, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = unit_rows(10)
    index = CodeIndex(ME, DIM)
    tier.batch([Put(record(index, str(i), rows[i])) for i in range(10)])
    index.follow(tier)
    tier.delete(T, "0")
    batch = tier.batch

    def forgetful(ops: Any) -> Any:
        results = batch(ops)
        return [(results[0][0], None)] if isinstance(ops[0], vectors.Changes) else results

    monkeypatch.setattr(tier, "batch", forgetful)
    assert index.follow(tier) == 9
    assert sorted(keys(index.search(rows[0]))) == list("123456789")


def test_expired_records_stay_until_they_are_deleted(tier: SQLiteTier) -> None:
    index = CodeIndex(ME, DIM)
    index.follow(tier)
    tier.put(record(index, "old", unit_rows(1)[0], expires=2))
    index.follow(tier)
    assert keys(index.search(unit_rows(1)[0])) == ["old"]
    tier.batch([Delete(T, "old")])
    index.follow(tier)
    assert len(index) == 0


def test_what_was_put_directly_and_what_the_tier_holds_agree(tier: SQLiteTier) -> None:
    index, rows = CodeIndex(ME, DIM), unit_rows(6)
    index.follow(tier)
    for i in range(6):
        tier.put(record(index, str(i), rows[i]))
        index.put(T, str(i), index.code.encode(rows[i]))
    assert index.follow(tier) == 6 and len(index) == 6
