"""Searches by the user's own vectors: how they are kept, found, moved, and forgotten."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.embeddings import Embeddings
from langgraph.store.base import PutOp
from letters import DIMS, Letters, cosine, vector

from nbmf.errors import PolicyError
from nbmf.integrations import langgraph_vectors
from nbmf.integrations.langgraph import AsyncNBMFStore, NBMFStore
from nbmf.integrations.langgraph_vectors import VectorIndex, fits, pack
from nbmf.memory import Memory
from nbmf.policy.policy import Policy

ANN = ("users", "ann")
COLD = Policy.parse('[default]\ncold_after = "0s"\npromote_heat = "never"\n')


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory.open(tmp_path / "agent.nbmf", embedder=None, policy=COLD) as opened:
        yield opened


def indexed(memory: Memory, *fields: str, embed: Any = None) -> NBMFStore:
    return NBMFStore(memory, index={"dims": DIMS, "embed": embed or Letters(), "fields": list(fields) or None})


def keys(store: NBMFStore, query: str, **options: Any) -> list[str]:
    return [item.key for item in store.search(("users",), query=query, **options)]


# -- how they are kept -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 3, 64, 255, 256, 1536])
@pytest.mark.parametrize("count", [1, 3])
def test_cosines_are_within_two_thousandths(dims: int, count: int) -> None:
    source = np.random.default_rng(dims + count)
    vectors = source.normal(size=(count, dims))
    code = pack(vectors.tolist(), dims)
    assert fits(code, dims) and not fits(code, dims + 1) and not fits(code[:-1], dims) and not fits(b"", dims)
    index = VectorIndex(dims)
    index._put([(("t",), "k", code)])
    for query in [*vectors, *source.normal(size=(20, dims))]:
        norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        rows = index._rows[:count]
        found = rows["parts"].astype(np.float32) @ (query / np.linalg.norm(query)) * rows["scale"]
        assert np.abs(found - vectors @ query / norms).max() < 2e-3


def test_sizes() -> None:
    assert len(pack([[1.0] * 255], 255)) == 4 + 4 + 2 * 255
    assert len(pack([[1.0] * 1536] * 2, 1536)) == 4 + 2 * (4 + 1536)
    zero = pack([[0.0] * 8], 8)
    assert fits(zero, 8) and not any(zero[4:])


@pytest.mark.parametrize("bad", [[[1.0]], [[1.0, math.nan]], [[1.0, math.inf]], [[1.0, 2.0], [1.0]], [["a", "b"]]])
def test_vectors_that_are_none(bad: Any) -> None:
    with pytest.raises(PolicyError):
        pack(bad, 2)


def test_no_code_of_semantic_recall_is_taken_for_vectors(tmp_path: Path) -> None:
    """Nor the other way round: one store, its own embedder first, the user's then."""
    folder = tmp_path / "s"
    with Memory.open(folder) as memory:
        memory.put(ANN, "own", {"text": "green tea"})
        assert memory.search(ANN, "green tea")[0].key == "own"
        store = indexed(memory, "text")
        assert keys(store, "green tea") == []
        store.put(ANN, "users", {"text": "green tea"})
        assert keys(store, "green tea") == ["users"]
        assert [item.key for item in memory.search(ANN, "green tea")] == ["own"]
        assert not list(memory.check())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c", "d", "e"]),
            st.lists(st.sampled_from(["xy", "yz", "zz", "abc", "q"]), max_size=3),
        ),
        max_size=60,
    )
)
def test_the_index_against_all_pairs(changes: list[tuple[str, list[str]]]) -> None:
    """Whatever is put, replaced and removed: each record once, by its best vector, those without one not at all."""
    index = VectorIndex(DIMS)
    index._clear()
    kept: dict[str, list[str]] = {}
    for at in range(0, len(changes), 7):
        part = changes[at : at + 7]
        index._put(
            [(("t", key), key, pack([vector(text) for text in texts], DIMS) if texts else b"") for key, texts in part]
        )
        kept.update(part)
    index._follow = lambda memory: None  # type: ignore[method-assign]
    for query in ("xyz", "a", "qqq"):
        for prefix in ((), ("t",), ("t", "a"), ("u",)):
            found = dict(index.search(None, vector(query), prefix))  # type: ignore[arg-type]
            inside = {key: texts for key, texts in kept.items() if texts and ("t", key)[: len(prefix)] == prefix}
            assert found.keys() == {(("t", key), key) for key in inside}
            for (_, key), score in found.items():
                assert score == pytest.approx(max(cosine(query, text) for text in inside[key]), abs=2e-3)
    assert len(index) == sum(map(bool, kept.values()))


# -- how they are found ------------------------------------------------------------------------------------------------


def test_the_users_function_makes_every_vector(memory: Memory) -> None:
    letters = Letters()
    store = indexed(memory, "text", embed=letters)
    store.batch([PutOp(ANN, "a", {"text": "aab"}), PutOp(ANN, "b", {"text": "bbc"}), PutOp(ANN, "c", {"text": "aab"})])
    assert letters.seen == ["aab", "bbc"]  # each text once
    found = store.search(ANN, query="ab")
    assert letters.seen == ["aab", "bbc", "ab"]
    assert [item.key for item in found] == ["a", "c", "b"]
    assert [item.score for item in found] == pytest.approx([cosine("ab", t) for t in ("aab", "aab", "bbc")], abs=2e-3)
    assert store.index_config is not None and store.index_config["dims"] == DIMS and store.embeddings is not None


def test_fields_and_their_best_vector(memory: Memory) -> None:
    store = indexed(memory, "title", "parts[*].text", "gone")
    store.put(ANN, "a", {"title": "zzz", "parts": [{"text": "aaa"}, {"text": "bbb"}], "other": "qqq"})
    store.put(ANN, "b", {"title": "bbbb a"})
    store.put(ANN, "none", {"other": "aaa"})
    assert keys(store, "bbb") == ["a", "b"] and keys(store, "zzz")[0] == "a"
    assert store.search(ANN, query="aaa")[0].score == pytest.approx(1, abs=2e-3)
    assert all(item.score is not None and item.score < 0.5 for item in store.search(ANN, query="qqq"))


def test_the_whole_value_by_default_and_fields_by_the_put(memory: Memory) -> None:
    store = indexed(memory)
    store.put(ANN, "whole", {"x": "qqqqqqqq"})
    store.put(ANN, "named", {"x": "qqqqqqqq", "y": "zzzz"}, index=["y"])
    store.put(ANN, "out", {"x": "zzzz"}, index=False)
    store.put(ANN, "nothing", {"x": "zzzz"}, index=[])
    assert keys(store, "q") == ["whole", "named"] and keys(store, "z") == ["named", "whole"]
    assert {item.key for item in store.search(ANN)} == {"whole", "named", "out", "nothing"}
    assert {item.key for item in store.search(ANN, query="")} == {"whole", "named", "out", "nothing"}


def test_the_fields_of_the_sqlite_store_are_read(memory: Memory) -> None:
    store = NBMFStore(memory, index={"dims": DIMS, "embed": Letters(), "text_fields": ["y"]})  # type: ignore[typeddict-unknown-key]
    store.put(ANN, "k", {"x": "qqqq", "y": "zzzz"})
    assert store.search(ANN, query="z")[0].score == pytest.approx(1, abs=2e-3)


def test_filters_prefixes_and_pages(memory: Memory) -> None:
    store = indexed(memory, "text")
    store.batch(
        [
            PutOp(("users", f"u{i % 3}"), f"k{i:03}", {"text": "a" * (i + 1) + "b", "n": i, "x": None})
            for i in range(200)
        ]
    )
    best = [f"k{i:03}" for i in reversed(range(200))]
    assert keys(store, "a", limit=200) == best
    assert keys(store, "a", limit=7, offset=190) == best[190:197] and keys(store, "a", offset=200) == []
    assert keys(store, "a", filter={"n": {"$lt": 50}, "x": None}, limit=3, offset=1) == ["k048", "k047", "k046"]
    assert {item.namespace for item in store.search(("users", "u1"), query="a", limit=200)} == {("users", "u1")}
    assert store.search(("users", "u"), query="a") == store.search(ANN, query="a", limit=0) == []


def test_what_changes_is_found_as_it_is_now(memory: Memory, tmp_path: Path) -> None:
    store = indexed(memory, "text")
    store.put(ANN, "a", {"text": "aaa"})
    store.put(ANN, "b", {"text": "bbb"})
    assert keys(store, "a") == ["a", "b"]
    store.put(ANN, "a", {"text": "zzz"})
    store.put(ANN, "c", {"text": "aab"})
    store.delete(ANN, "b")
    assert keys(store, "a") == ["c", "a"]
    store.put(ANN, "a", {"text": "zzz"}, index=False)
    assert keys(store, "a") == ["c"]
    with Memory.open(tmp_path / "agent.nbmf", embedder=None) as other:  # as another process would
        indexed(other, "text").put(ANN, "d", {"text": "aaa"})
        assert keys(indexed(other, "text"), "a") == ["d", "c"]
    assert keys(store, "a") == ["d", "c"]
    memory.forget(("users",))
    assert keys(store, "a") == []
    assert store._operations._vectors is not None and not store._operations._vectors._rows["parts"].any()


def test_vectors_move_with_their_records(memory: Memory, tmp_path: Path) -> None:
    store = indexed(memory, "text")
    for key in ("aaa", "aab", "abb"):
        store.put(ANN, key, {"text": key})
    before = store.search(ANN, query="aa")
    memory.compact()
    assert {item.tier for item in memory.search(ANN)} == {"cold"}
    assert store.search(ANN, query="aa") == before
    store.put(ANN, "aab", {"text": "zzz"})
    store.delete(ANN, "abb")
    assert keys(store, "aa") == ["aaa", "aab"]
    memory.close()
    with Memory.open(tmp_path / "agent.nbmf", embedder=None) as again:
        assert keys(indexed(again, "text"), "aa") == ["aaa", "aab"] and not list(again.check())


def test_vectors_under_encryption(tmp_path: Path) -> None:
    key = bytes(range(32))
    for _ in range(2):
        with Memory.open(tmp_path / "s", key=key, embedder=None) as memory:
            store = indexed(memory, "text")
            for tenant in ("ann", "bob"):
                store.put((tenant, "notes"), "k", {"text": "aab"})
            assert len(store.search((), query="a")) == 2 and len(store.search(("ann",), query="a")) == 1


def test_rows_of_removed_records_are_used_again(memory: Memory) -> None:
    store = indexed(memory, "text")
    for _ in range(5):
        store.batch([PutOp(ANN, f"k{i}", {"text": "ab"[i % 2]}) for i in range(300)])
        assert len(keys(store, "a", limit=500)) == 300
        store.batch([PutOp(ANN, f"k{i}", None) for i in range(290)])
        assert len(keys(store, "a", limit=500)) == 10
    index = store._operations._vectors
    assert index is not None and len(index._rows) <= 4 * 300 + 2 * langgraph_vectors.ROWS_LEAST


# -- the embedder ------------------------------------------------------------------------------------------------------


class Plain(Embeddings):
    """LangChain's own class, with another vector for a query than for a document."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [vector(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return vector(text + "zzzz")


def test_an_embedder_of_langchain(memory: Memory) -> None:
    store = indexed(memory, "text", embed=Plain())
    for text in ("aaa", "zza"):
        store.put(ANN, text, {"text": text})
    assert keys(store, "aa") == ["zza", "aaa"]


def test_an_embedder_that_only_awaits(memory: Memory) -> None:
    async def embed(texts: Sequence[str]) -> list[list[float]]:
        await asyncio.sleep(0)
        return [vector(text) for text in texts]

    async def talk() -> None:
        store = indexed(memory, "text", embed=embed)
        await store.aput(ANN, "a", {"text": "aaa"})
        assert [item.key for item in await store.asearch(ANN, query="a")] == ["a"]
        batched = AsyncNBMFStore(memory, index={"dims": DIMS, "embed": embed})
        assert [item.key for item in await batched.asearch(ANN, query="a")] == ["a"]
        with pytest.raises(ValueError, match="async"):
            store.put(ANN, "b", {"text": "bbb"})

    asyncio.run(talk())


def test_an_embedder_that_fails_loses_nothing(memory: Memory) -> None:
    indexed(memory, "text").put(ANN, "old", {"text": "a"})

    def fail(texts: Sequence[str]) -> list[list[float]]:
        raise ConnectionError("no network")

    for embed, error in (
        (fail, ConnectionError),
        (lambda texts: [[1.0]], PolicyError),
        (lambda texts: [], PolicyError),
    ):
        store = indexed(memory, "text", embed=embed)
        with pytest.raises(error):
            store.batch([PutOp(ANN, "old", None), PutOp(ANN, "new", {"text": "b"})])
    assert [item.key for item in memory.search(())] == ["old"]


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"dims": 0, "embed": Letters()},
        {"dims": "8", "embed": Letters()},
        {"dims": 8},
        {"dims": 8, "embed": Letters(), "fields": "text"},
        {"dims": 8, "embed": Letters(), "fields": [1]},
    ],
)
def test_indexes_that_are_none(memory: Memory, index: Any) -> None:
    with pytest.raises(PolicyError):
        NBMFStore(memory, index=index)


def test_without_an_index_the_memorys_own_embedder_finds(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "s") as memory:
        store = NBMFStore(memory)
        store.put(ANN, "drink", {"text": "she drinks green tea every morning", "n": None})
        store.put(ANN, "pet", {"text": "her dog is called Rex", "n": None})
        store.put(ANN, "out", {"text": "green tea"}, index=False)
        for filter in (None, {"n": None}):
            found = store.search(ANN, query="what beverage does she like", filter=filter)
            assert [item.key for item in found] == ["drink", "pet"] and all(item.score is not None for item in found)
