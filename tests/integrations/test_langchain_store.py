"""LangChain's ByteStore over a Memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.stores import BaseStore, InMemoryByteStore

from nbmf.errors import FormatError, PolicyError, UnsupportedValue
from nbmf.integrations.langchain import NBMFByteStore
from nbmf.memory import Memory, items

SPACE = ("cache", "docs")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory.open(tmp_path / "s") as opened:
        yield opened


@pytest.fixture
def store(memory: Memory) -> NBMFByteStore:
    return NBMFByteStore(memory, SPACE)


def test_verbs(store: NBMFByteStore, memory: Memory) -> None:
    assert isinstance(store, BaseStore) and store.mget([]) == [] and list(store.yield_keys()) == []
    store.mset([("a1", b"one"), ("a2", b""), ("b", bytes(range(256)))])
    assert store.mget(["b", "none", "a1", "a2", "a1"]) == [bytes(range(256)), None, b"one", b"", b"one"]
    assert sorted(store.yield_keys(prefix="a")) == ["a1", "a2"] and sorted(store.yield_keys()) == ["a1", "a2", "b"]
    store.mset([("a1", b"two"), ("a1", b"three")])
    store.mdelete(["a2", "none"])
    assert store.mget(["a1", "a2"]) == [b"three", None]
    memory.put((*SPACE, "below"), "k", b"")
    memory.put(("cache",), "k", b"")
    assert sorted(store.yield_keys()) == ["a1", "b"]
    memory.compact()
    assert sorted(store.yield_keys()) == ["a1", "b"] and memory.search(SPACE, "three") == []


def test_refused(store: NBMFByteStore, memory: Memory) -> None:
    with pytest.raises(UnsupportedValue):
        store.mset([("a", b"x"), ("b", "text")])  # type: ignore[list-item]
    for bad in ("", "a\0b", "k" * 2000):
        with pytest.raises(PolicyError):
            store.mset([("a", b"x"), (bad, b"y")])
    assert list(store.yield_keys()) == []
    memory.put(SPACE, "a", {"no": "bytes"})
    with pytest.raises(FormatError):
        store.mget(["a"])
    with pytest.raises(PolicyError):
        NBMFByteStore(memory, ())


def test_class_and_ttl(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_700_000_000_000]
    for module in ("nbmf.memory.memory", "nbmf.integrations.langchain"):
        monkeypatch.setattr(f"{module}.now", lambda: clock[0])
    monkeypatch.setattr(items, "now", lambda: clock[0])
    store = NBMFByteStore(memory, SPACE, ttl=1, cls="embedding")
    store.mset([("a", b"x"), ("b", b"y")])
    item = memory.item(SPACE, "b", refresh=False)
    assert item is not None and item.cls == "embedding"
    clock[0] += 50_000
    assert store.mget(["a"]) == [b"x"]
    clock[0] += 20_000
    assert store.mget(["a", "b"]) == [b"x", None] and list(store.yield_keys()) == ["a"]


def test_coroutines(store: NBMFByteStore) -> None:
    async def talk() -> None:
        await store.amset([("a", b"1"), ("b", b"2")])
        assert await store.amget(["b", "c"]) == [b"2", None]
        assert sorted([key async for key in store.ayield_keys(prefix="a")]) == ["a"]
        await store.amdelete(["a"])
        assert await store.amget(["a"]) == [None]

    asyncio.run(talk())


KEYS = st.text("ab/é", min_size=1, max_size=3)
STEPS = st.one_of(
    st.tuples(st.just("mset"), st.lists(st.tuples(KEYS, st.binary(max_size=20)), max_size=4)),
    st.tuples(st.just("mdelete"), st.lists(KEYS, max_size=3)),
    st.tuples(st.just("mget"), st.lists(KEYS, max_size=4)),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEPS, max_size=12), KEYS)
def test_beside_langchains_own(memory: Memory, steps: list[Any], prefix: str) -> None:
    ours, theirs = NBMFByteStore(memory, SPACE), InMemoryByteStore()
    ours.mdelete(list(ours.yield_keys()))
    for name, argument in steps:
        assert getattr(ours, name)(argument) == getattr(theirs, name)(argument)
    for wanted in (None, "", prefix):
        assert sorted(ours.yield_keys(prefix=wanted)) == sorted(theirs.yield_keys(prefix=wanted))
