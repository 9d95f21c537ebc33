"""NBMFStore: LangGraph's verbs, filters, namespaces and times to live over a Memory."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from langgraph.store.base import (
    GetOp,
    InvalidNamespaceError,
    Item,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchItem,
    SearchOp,
)
from letters import DIMS, Letters

from nbmf.errors import NbmfError, PolicyError, StoreError, UnsupportedValue
from nbmf.integrations.langgraph import AsyncNBMFStore, NBMFStore
from nbmf.memory import Memory, items

ANN = ("users", "ann")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    with Memory.open(tmp_path / "agent.nbmf", embedder=None) as opened:
        yield opened


@pytest.fixture
def store(memory: Memory) -> NBMFStore:
    return NBMFStore(memory)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The time in milliseconds that the store is told."""
    told = [1_700_000_000_000]
    for module in ("nbmf.memory.memory", "nbmf.memory.recall", "nbmf.integrations.langgraph_ops"):
        monkeypatch.setattr(f"{module}.now", lambda: told[0])
    monkeypatch.setattr(items, "now", lambda: told[0])
    return told


# -- verbs -------------------------------------------------------------------------------------------------------------


def test_values_come_back_exactly(store: NBMFStore) -> None:
    value = {"z": 1, "a": [1.0, True, None, "é\u2028"], "nested": {"b": {}, "a": -0.0}}
    store.put(ANN, "pref-1", value)
    item = store.get(ANN, "pref-1")
    assert type(item) is Item and (item.namespace, item.key) == (ANN, "pref-1")
    assert list(item.value) == ["z", "a", "nested"] and repr(item.value) == repr(value)
    assert item.created_at.tzinfo is UTC and item.created_at == item.updated_at
    assert store.get(ANN, "pref-2") is store.get(("users", "an"), "pref-1") is None


def test_a_put_replaces_and_keeps_the_time_of_birth(store: NBMFStore, clock: list[int]) -> None:
    store.put(ANN, "k", {"n": 1})
    clock[0] += 1000
    store.put(ANN, "k", {"n": 2})
    item = store.get(ANN, "k")
    assert item is not None and item.value == {"n": 2} and (item.updated_at - item.created_at).seconds == 1
    store.delete(ANN, "k")
    store.delete(ANN, "k")
    assert store.get(ANN, "k") is None


def test_a_batch_reads_before_it_writes_and_the_last_put_counts(store: NBMFStore) -> None:
    store.put(ANN, "k", {"n": 0})
    results = store.batch(
        [
            PutOp(ANN, "k", {"n": 1}),
            GetOp(ANN, "k"),
            PutOp(ANN, "k", {"n": 2}),
            PutOp(ANN, "new", {"n": 3}),
            SearchOp(("users",)),
            PutOp(ANN, "gone", {"n": 4}),
            PutOp(ANN, "gone", None),
            ListNamespacesOp(),
        ]
    )
    assert [type(one) for one in results] == [
        type(None),
        Item,
        type(None),
        type(None),
        list,
        type(None),
        type(None),
        list,
    ]
    assert results[1].value == {"n": 0} and [item.value["n"] for item in results[4]] == [0] and results[7] == [ANN]
    assert {item.key: item.value["n"] for item in store.search(ANN)} == {"k": 2, "new": 3}
    assert store.batch([]) == []


@pytest.mark.parametrize("bad", [{"t": (1, 2)}, {"s": {1}}, {1: "int key"}, {"n": float("nan")}, {"d": object()}])
def test_what_cannot_be_kept_is_refused_and_nothing_is_done(store: NBMFStore, bad: Any) -> None:
    store.put(ANN, "old", {"n": 0})
    with pytest.raises(UnsupportedValue):
        store.batch([PutOp(ANN, "fine", {"n": 1}), PutOp(ANN, "bad", bad), PutOp(ANN, "old", None)])
    assert [item.key for item in store.search(())] == ["old"]


def test_bad_requests(store: NBMFStore) -> None:
    for call in (
        lambda: store.batch([PutOp(("a.b",), "k", {})]),
        lambda: store.batch([GetOp(("a", ""), "k")]),
        lambda: store.put(("langgraph",), "k", {}),
        lambda: store.put((), "k", {}),
        lambda: store.search(("a.b",)),
    ):
        with pytest.raises(InvalidNamespaceError):
            call()
    for call in (
        lambda: store.batch(["get"]),  # type: ignore[list-item]
        lambda: store.search(ANN, limit=-1),
        lambda: store.search(ANN, offset=True),
        lambda: store.search(ANN, filter=["n"]),  # type: ignore[arg-type]
        lambda: store.search(ANN, filter={"n": {"$near": 1}}),
        lambda: store.search(ANN, filter={"n": {"$gt": 1, "x": 1}}),
        lambda: store.search(ANN, filter={"n": {"m": {"$near": 1}}}),
        lambda: store.list_namespaces(max_depth=0),
        lambda: store.list_namespaces(limit=-1),
        lambda: store.batch([ListNamespacesOp((MatchCondition("infix", ("a",)),))]),  # type: ignore[arg-type]
        lambda: store.put(ANN, "", {}),
        lambda: store.put(ANN, "k", {}, ttl=0),
        lambda: store.put(ANN, "k", {}, ttl=-1.5),
    ):
        with pytest.raises(PolicyError) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert store.search(()) == []


def test_keys_that_are_no_texts_become_texts(store: NBMFStore) -> None:
    store.put(ANN, 7, {"n": 1})  # type: ignore[arg-type]
    assert store.get(ANN, "7") is not None
    assert store.batch([GetOp(ANN, 7)])[0] is not None  # type: ignore[arg-type]


def test_records_of_the_memory_itself_are_seen(store: NBMFStore, memory: Memory) -> None:
    memory.put(ANN, "text", "likes tea")
    item = store.get(ANN, "text")
    assert item is not None and item.value == "likes tea"
    assert store.search(ANN, filter={"text": "likes tea"}) == []
    store.put(ANN, "json", {"n": 1})
    assert memory.get(ANN, "json") == {"n": 1}


def test_the_class_of_what_is_put(memory: Memory) -> None:
    NBMFStore(memory, cls="fact").put(ANN, "k", {"n": 1})
    item = memory.item(ANN, "k")
    assert item is not None and item.cls == "fact"


# -- searches ----------------------------------------------------------------------------------------------------------


def test_filters(store: NBMFStore) -> None:
    values: dict[str, Any] = {
        "a": {"n": 1, "tags": ["x", "y"], "who": {"name": "Ann", "age": 7}, "null": None, "on": True},
        "b": {"n": 2.5, "tags": ["x"], "who": {"name": "Bob"}, "null": 0, "on": False, "who.name": "dotted"},
        "c": {"n": "3", "tags": [], "who": "Ann"},
    }
    for key, value in values.items():
        store.put(ANN, key, value)
    for filter, keys in (
        ({}, "abc"),
        ({"n": 1}, "a"),
        ({"n": {"$gt": 1}}, "b"),
        ({"n": {"$gte": 1, "$lt": 2.5}}, "a"),
        ({"n": {"$lte": "9"}}, "c"),
        ({"n": {"$ne": 1}}, "bc"),
        ({"on": True}, "a"),
        ({"on": {"$eq": False}}, "b"),
        ({"null": None}, "ac"),
        ({"null": {"$eq": None}}, "ac"),
        ({"null": {"$ne": None}}, "b"),
        ({"gone": None}, "abc"),
        ({"gone": {"$ne": 1}}, "abc"),
        ({"gone": {"$gt": 0}}, ""),
        ({"tags": ["x", "y"]}, "a"),
        ({"tags": ("x",)}, "b"),
        ({"tags": []}, "c"),
        ({"tags": {"$eq": ["x"]}}, "b"),
        ({"who": {"name": "Ann"}}, "a"),
        ({"who": {"name": "Ann", "age": {"$gt": 6}}}, "a"),
        ({"who": {"$eq": "Ann"}}, "c"),
        ({"who.name": "Ann"}, "a"),
        ({"who.name": "dotted"}, "b"),
        ({"who.age": {"$gt": 6}, "n": 1}, "a"),
        ({"null": None, "n": {"$gt": "2"}}, "c"),
        ({"it's') OR ('1'='1": 1}, ""),
    ):
        found = sorted(item.key for item in store.search(ANN, filter=filter))
        assert found == sorted(keys), filter


@pytest.mark.parametrize("filter", [{"n": {"$gte": 10}}, {"n": {"$gte": 10}, "gone": None}])
def test_pages_of_a_filtered_search(store: NBMFStore, filter: dict[str, Any]) -> None:
    """Once by the memory's own filter, once by the store's, which looks at ever more items."""
    store.batch([PutOp(("users", f"u{i % 7}"), f"k{i}", {"n": i}) for i in range(150)])
    everything = store.search(("users",), filter=filter, limit=500)
    assert len(everything) == 140
    pages = [item for at in range(0, 150, 33) for item in store.search(("users",), filter=filter, limit=33, offset=at)]
    assert pages == everything
    assert store.search(("users",), filter=filter, limit=0) == store.search(("users",), filter=filter, offset=140) == []


def test_search_tells_newest_first_without_scores(store: NBMFStore, clock: list[int]) -> None:
    for key in "abc":
        clock[0] += 1
        store.put(ANN, key, {"k": key})
    found = store.search(ANN, query="anything")
    assert [item.key for item in found] == ["c", "b", "a"]
    assert all(type(item) is SearchItem and item.score is None for item in found)


def test_prefixes_are_whole_segments(store: NBMFStore) -> None:
    for namespace in (("foo",), ("foo", "bar"), ("foobar",), ("f%", "_"), ("F%", "*")):
        store.put(namespace, "k", {})
    assert {item.namespace for item in store.search(("foo",))} == {("foo",), ("foo", "bar")}
    assert {item.namespace for item in store.search(("f%",))} == {("f%", "_")}
    assert len(store.search(())) == 5


def test_namespaces(store: NBMFStore) -> None:
    spaces = [("a", "b", "c"), ("a", "b", "d", "e"), ("a", "c", "c"), ("b", "b"), ("ab",)]
    for namespace in spaces:
        store.put(namespace, "k", {})
    for arguments, expected in (
        ({}, sorted(spaces)),
        ({"prefix": ("a",)}, [("a", "b", "c"), ("a", "b", "d", "e"), ("a", "c", "c")]),
        ({"suffix": ("c",)}, [("a", "b", "c"), ("a", "c", "c")]),
        ({"prefix": ("a", "*", "c")}, [("a", "b", "c"), ("a", "c", "c")]),
        ({"prefix": ("*", "b"), "suffix": ("c",)}, [("a", "b", "c")]),
        ({"prefix": ("a",), "max_depth": 2}, [("a", "b"), ("a", "c")]),
        ({"max_depth": 1}, [("a",), ("ab",), ("b",)]),
        ({"max_depth": 1, "limit": 1, "offset": 1}, [("ab",)]),
        ({"suffix": ("*", "*", "*", "*")}, [("a", "b", "d", "e")]),
        ({"limit": 0}, []),
    ):
        assert store.list_namespaces(**arguments) == expected, arguments  # type: ignore[arg-type]
    two = ListNamespacesOp((MatchCondition("prefix", ("a",)), MatchCondition("prefix", ("*", "c"))))
    assert store.batch([two]) == [[("a", "c", "c")]]
    store.delete(("ab",), "k")
    assert ("ab",) not in store.list_namespaces()


# -- time to live ------------------------------------------------------------------------------------------------------


def test_reads_renew_what_has_a_ttl(memory: Memory, clock: list[int]) -> None:
    store = NBMFStore(memory, ttl={"default_ttl": 1})
    assert store.supports_ttl
    for key in ("got", "found", "left", "seen"):
        store.put(ANN, key, {"key": key})
    store.put(ANN, "kept", {"key": "kept"}, ttl=None)
    store.put(ANN, "long", {"key": "long"}, ttl=10)
    clock[0] += 50_000
    store.get(ANN, "got")
    store.search(ANN, filter={"key": "found"})
    store.get(ANN, "left", refresh_ttl=False)
    store.search(ANN, filter={"key": "seen"}, refresh_ttl=False)
    assert store.sweep_ttl() == 0
    clock[0] += 20_000
    assert {item.key for item in store.search(ANN, refresh_ttl=False)} == {"got", "found", "kept", "long"}
    assert store.sweep_ttl() == 2 and store.sweep_ttl() == 0
    clock[0] += 11 * 60_000
    assert [item.key for item in store.search(ANN)] == ["kept"] and store.sweep_ttl() == 3


def test_refresh_on_read_off(memory: Memory, clock: list[int]) -> None:
    store = NBMFStore(memory, ttl={"default_ttl": 1, "refresh_on_read": False})
    store.put(ANN, "k", {})
    clock[0] += 50_000
    assert store.get(ANN, "k") is not None and len(store.search(ANN)) == 1
    clock[0] += 20_000
    assert store.get(ANN, "k") is None and store.search(()) == [] and store.list_namespaces() == []


def _until(done: Any, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.02)
    return False


def test_the_sweeper(memory: Memory) -> None:
    store = NBMFStore(memory, ttl={"default_ttl": 0.001, "sweep_interval_minutes": 0.001})  # type: ignore[typeddict-item]
    store.put(ANN, "k", {})
    future = store.start_ttl_sweeper()
    again = store.start_ttl_sweeper()
    assert _until(lambda: memory.warm.sizes()["count"] == 0)
    assert store.stop_ttl_sweeper(timeout=20) and future.done() and store.stop_ttl_sweeper()
    cancelled = store.start_ttl_sweeper(60)
    assert cancelled.cancel() and _until(lambda: store.stop_ttl_sweeper(timeout=0))
    assert not again.cancelled()


def test_no_sweeper_without_a_ttl(store: NBMFStore) -> None:
    assert store.start_ttl_sweeper().result(timeout=0) is None and store.stop_ttl_sweeper()


# -- opening -----------------------------------------------------------------------------------------------------------


def test_from_conn_string(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    key = bytes(range(32))
    with NBMFStore.from_conn_string(str(folder), key=key, ttl={"default_ttl": 5}) as store:
        store.setup()
        store.put(ANN, "k", {"text": "likes green tea"})
        assert store.ttl_config == {"default_ttl": 5}
    with NBMFStore.from_conn_string(str(folder), key=key) as store:
        assert store.get(ANN, "k") is not None
    with pytest.raises(StoreError), NBMFStore.from_conn_string(str(folder)):
        pass
    with pytest.raises(StoreError), NBMFStore.from_conn_string("redis://host"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError), NBMFStore.from_conn_string(str(tmp_path / "file")):
        pass


def test_a_store_that_lasts_as_long_as_it_is_open() -> None:
    with NBMFStore.from_conn_string(":memory:") as store:
        store.put(ANN, "k", {})
        folder = store.memory.parts.folder
        assert folder is not None and folder.is_dir()
    assert not folder.exists()


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("langgraph.store.base", "langgraph.checkpoint.serde.base", "sqlalchemy", "numcodecs.abc"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "langchain_core.stores", None)
    for name in ("langgraph_ops", "langgraph_store", "langgraph_serializer", "sqlalchemy", "numcodecs", "langchain"):
        for loaded in [one for one in sys.modules if one.startswith("nbmf.integrations.")]:
            monkeypatch.delitem(sys.modules, loaded)
        extra = name.partition("_")[0]
        with pytest.raises(ImportError, match=rf"nbmf\[{extra}\]") as caught:
            __import__(f"nbmf.integrations.{name}")
        assert isinstance(caught.value, NbmfError)


# -- coroutines --------------------------------------------------------------------------------------------------------


def test_coroutines_of_the_store(store: NBMFStore) -> None:
    async def talk() -> None:
        await store.aput(ANN, "k", {"n": 1})
        item = await store.aget(ANN, "k")
        assert item is not None and item.value == {"n": 1}
        assert [item.key for item in await store.asearch(ANN, filter={"n": {"$lt": 2}})] == ["k"]
        assert await store.alist_namespaces() == [ANN]
        await store.adelete(ANN, "k")
        assert await store.aget(ANN, "k") is None
        assert store.search(ANN) == []  # and those that are none, on the loop's own thread

    asyncio.run(talk())


def test_async_store(tmp_path: Path) -> None:
    async def talk() -> None:
        letters = Letters()
        ttl: Any = {"default_ttl": 0.001, "sweep_interval_minutes": 0.001}
        async with AsyncNBMFStore.from_conn_string(
            str(tmp_path / "s"), index={"dims": DIMS, "embed": letters, "fields": ["text"]}, ttl=ttl
        ) as store:
            await store.setup()
            await asyncio.gather(*(store.aput(ANN, f"k{i}", {"text": "abc"[i]}, ttl=None) for i in range(3)))
            found = await store.asearch(ANN, query="bb")
            assert found[0].key == "k1" and found[0].score == pytest.approx(1, abs=2e-3)
            assert letters.seen == ["a", "b", "c", "bb"]
            with pytest.raises(asyncio.InvalidStateError):
                store.get(ANN, "k1")
            item = await asyncio.to_thread(store.get, ANN, "k1")
            assert item is not None and item.value == {"text": "b"}
            await store.aput(ANN, "soon", {"text": "gone"})
            task = await store.start_ttl_sweeper()
            assert await store.start_ttl_sweeper() is task
            for _ in range(1000):
                if store.memory.warm.sizes()["count"] == 3:
                    break
                await asyncio.sleep(0.02)
            assert store.memory.warm.sizes()["count"] == 3
            assert await store.stop_ttl_sweeper() and task.done() and await store.stop_ttl_sweeper()
            assert await store.sweep_ttl() == 0
        with pytest.raises(StoreError):
            await store.aget(ANN, "k1")

    asyncio.run(talk())


def test_an_error_in_the_body_is_the_callers(tmp_path: Path) -> None:
    async def talk() -> None:
        async with AsyncNBMFStore.from_conn_string(str(tmp_path / "s")) as store:
            await store.aput(ANN, "k", {})
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        asyncio.run(talk())
    with Memory.open(tmp_path / "s", create=False, embedder=None) as memory:
        assert memory.get(ANN, "k") == {}
