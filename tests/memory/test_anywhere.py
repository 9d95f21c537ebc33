"""What every method means, wherever the store lies: in a folder, encrypted, or on a server."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbmf import samples
from nbmf.errors import NbmfError, OutputLimit, PolicyError, UnsupportedValue
from nbmf.memory import DeleteOp, GetOp, ListNamespacesOp, Memory, PutOp, SearchOp, items
from nbmf.policy.policy import Policy

COLD = '[default]\ncold_after = "0s"\npromote_heat = "never"\n'
NS = ("users", "ann")


class Clock:
    """Stands in for `time`, in the one place where the time is taken."""

    def __init__(self) -> None:
        self.now = 1_750_000_000_000

    def time_ns(self) -> int:
        return self.now * 1_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(items, "time", clock)
    return clock


def opened(store: dict[str, Any], policy: str = "", **options: Any) -> Memory:
    return Memory.open(**{**store, "policy": Policy.parse(policy), **options})


# -- values ------------------------------------------------------------------------------------------------------------

VALUES: list[Any] = [
    "",
    "x" * (1 << 20),
    "\ud83d cut",
    {"z": 1, "a": 1.0, "m": True, "": None},
    {"deep": [[[[[[{}]]]]]]},
    [1, 1.0, True, -0.0, 0.1, 10**60],
    True,
    1,
    1.0,
    None,
    b"",
    bytes(range(256)),
]


def test_values_keep_their_type_and_order(anywhere: dict[str, Any]) -> None:
    vector = np.array([0.5, -0.0, np.nan, np.inf], np.float32)
    with opened(anywhere, COLD) as memory:
        memory.put_many(PutOp(NS, f"k{i}", value) for i, value in enumerate(VALUES))
        memory.put(NS, "vector", vector)
        for _ in ("cached", "cold"):
            for i, value in enumerate(VALUES):
                found = memory.get(NS, f"k{i}", "nothing")
                assert type(found) is type(value) and repr(found) == repr(value)
            found = memory.get(NS, "vector")
            assert found.dtype == np.float32 and found.tobytes() == vector.tobytes()
            found[0] = 9
            assert memory.get(NS, "vector").tobytes() == vector.tobytes()
            changed = memory.get(NS, "k3")
            changed["z"] = "changed"
            memory.search(NS, filter={"z": 1})[0].value["a"] = "changed"
            assert memory.get(NS, "k3") == VALUES[3]
            memory.compact()
        assert list(memory.check()) == []


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ((1, 2), UnsupportedValue),
        ({"a": float("inf")}, UnsupportedValue),
        ({1: "a"}, UnsupportedValue),
        (np.zeros(3), UnsupportedValue),
        (b"x" * ((64 << 20) + 1), OutputLimit),
    ],
)
def test_a_refused_value_refuses_the_batch(tmp_path: Path, value: Any, error: type[NbmfError]) -> None:
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        memory.put(NS, "before", 1)
        with pytest.raises(error):
            memory.put_many([PutOp(NS, "good", 1), PutOp(NS, "bad", value)])
        assert [item.key for item in memory.search(())] == ["before"]
        with pytest.raises(error):  # what stands before it in a batch, and is no neighbour, is done
            memory.batch([PutOp(NS, "done", 1), GetOp(NS, "done"), PutOp(NS, "bad", value)])
        assert memory.get(NS, "done") == 1 and memory.get(NS, "bad") is None


@pytest.mark.parametrize(
    "options",
    [
        {"cls": 3},
        {"cls": "a\0"},
        {"cls": "\ud83d"},
        {"cls": "x" * 2000},
        {"ttl": True},
        {"ttl": 0},
        {"ttl": float("nan")},
        {"ttl": "1"},
        {"meta": [1]},
        {"meta": {"a": float("nan")}},
        {"meta": {1: 2}},
        {"meta": {"a": "x" * (2 << 20)}},
    ],
    ids=str,
)
def test_refused_options_leave_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        with pytest.raises((PolicyError, UnsupportedValue)) as error:
            memory.put(NS, "k", 1, **options)
        assert "\n" not in str(error.value)
        assert memory.list_namespaces() == [] and memory.get(NS, "k") is None


# -- times and what else a record has ----------------------------------------------------------------------------------


def test_times_and_metadata(anywhere: dict[str, Any], clock: Clock) -> None:
    meta = {"z": [1.0, True], "a": {"\ud83d": 10**5000}, "": None}
    with opened(anywhere, COLD) as memory:
        memory.put(NS, "k", 1, cls="fact", meta=meta)
        start = clock.now
        for tier in ("warm", "cold"):
            item = memory.item(NS, "k")
            assert item is not None and item.tier == tier
            assert item.meta == meta and list(item.meta) == list(meta) and type(item.meta["z"][0]) is float
            assert item.created_at == item.updated_at == items.moment(start)
            assert (item.cls, item.expires_at, item.fidelity, item.score) == ("fact", None, "lossless", None)
            assert (item.stored_bytes is None) == (tier == "cold")
            clock.now += 1000
            memory.compact()
        for turn in range(3):  # over a cold one, then over a warm one
            clock.now += 1000
            memory.put(NS, "k", turn)
            item = memory.item(NS, "k")
            assert item is not None and (item.created_at, item.updated_at) == tuple(
                map(items.moment, (start, clock.now))
            )
            assert (item.value, item.cls, item.meta) == (turn, "", None)
            if turn == 1:
                memory.compact()
        memory.delete(NS, "k")
        memory.put(NS, "k", "new")
        item = memory.item(NS, "k")
        assert item is not None and item.created_at == items.moment(clock.now)


@pytest.mark.parametrize("tier", ["warm", "cold"])
def test_a_time_to_live(anywhere: dict[str, Any], clock: Clock, tier: str) -> None:
    with opened(anywhere, COLD) as memory:
        memory.put(NS, "k", 1, ttl=1.5)
        memory.put(NS, "stays", 2)
        if tier == "cold":
            memory.compact()
        for refresh in (True, False):
            clock.now += 89_999
            assert memory.get(NS, "k", refresh=refresh) == 1
        item = memory.item(NS, "k", refresh=False)
        assert item is None or item.expires_at == items.moment(clock.now + 1)
        clock.now += 1
        assert memory.get(NS, "k", "gone") == "gone"
        assert memory.item(NS, "k") is None and memory.delete(NS, "k") is False
        assert [item.key for item in memory.search(())] == ["stays"]
        memory.put(NS, "k", 3)
        again = memory.item(NS, "k")
        assert again is not None and again.created_at == items.moment(clock.now) and again.expires_at is None
        memory.put(("short",), "k", 1, ttl=1)
        clock.now += 60_000
        assert memory.list_namespaces() == [NS]
        expected = {"expire": 1, "demote": 2 if tier == "warm" else 1}
        assert memory.compact() == expected
        assert memory.stats()["records"] == 2


# -- questions ---------------------------------------------------------------------------------------------------------


def test_filters(anywhere: dict[str, Any]) -> None:
    records: dict[str, Any] = {
        "a": {"n": 1, "s": "b", "in": {"x": [1, {"y": 2}]}, "dotted.name": 1},
        "b": {"n": 2.5, "s": "a", "in": {"x": None}},
        "c": {"n": "1", "s": None},
        "d": {"n": True, "in": {}},
        "e": "only a text",
        "f": [1],
        "g": b"n",
    }
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "abcdefg"),
        ({"n": 1}, "ad"),
        ({"n": {"$eq": 2.5}}, "b"),
        ({"n": {"$ne": 1}}, "bcefg"),
        ({"n": {"$gt": 1}}, "b"),
        ({"n": {"$gte": 1, "$lte": 2}}, "ad"),
        ({"n": {"$lt": "2"}}, "c"),
        ({"s": {"$gte": "a", "$lt": "b"}}, "b"),
        ({"s": None}, "c"),
        ({"s": {"$ne": None}}, "abdefg"),
        ({"missing": None}, ""),
        ({"missing": {"$ne": 3}}, "abcdefg"),
        ({"in.x": None}, "b"),
        ({"in.x": [1, {"y": 2}]}, "a"),
        ({"in": {"x": None}}, "b"),
        ({"in": {}}, "d"),
        ({"in.x.y": 2}, ""),
        ({"dotted.name": 1}, "a"),
        ({"n": 1, "s": "b"}, "a"),
    ]
    with opened(anywhere, COLD) as memory:
        memory.put_many(PutOp(NS, key, value) for key, value in records.items())
        for _ in ("warm", "cold"):
            for filter, wanted in cases:
                assert "".join(sorted(item.key for item in memory.search((), filter=filter, limit=99))) == wanted, (
                    filter
                )
            memory.compact()
        for bad in ({"n": {"$in": [1]}}, {"n": {"$gt": 1, "x": 1}}, {"n": {"$gt": 1, "$": 1}}):
            with pytest.raises(PolicyError, match="none of"):
                memory.search((), filter=bad)


def test_the_order_without_a_query(anywhere: dict[str, Any], clock: Clock) -> None:
    with opened(anywhere, COLD) as memory:
        wanted = []
        for i in range(150):
            clock.now += i % 3  # some at one time
            namespace = ("t", f"n{i % 4}")
            memory.put(namespace, f"k{i}", {"n": i, "odd": i % 2}, cls=f"c{i % 5}")
            wanted.append((-clock.now, namespace, f"k{i}"))
            if i == 70:
                memory.compact()
        wanted.sort()

        def keys(**options: Any) -> list[str]:
            return [item.key for item in memory.search(("t",), **options)]

        order = [key for _, _, key in wanted]
        assert keys(limit=150) == order and keys() == order[:10]
        assert keys(limit=40, offset=100) == order[100:140] and keys(offset=150) == []
        odd = [key for key in order if int(key[1:]) % 2]
        assert keys(filter={"odd": 1}, limit=200) == odd and keys(filter={"odd": 1}, limit=9, offset=30) == odd[30:39]
        assert keys(cls="c3", limit=99) == [key for key in order if int(key[1:]) % 5 == 3]


def test_more_windows_than_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbmf.memory.memory.WINDOW", 3)
    monkeypatch.setattr("nbmf.memory.memory.WINDOW_MOST", 7)
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        memory.put_many(PutOp(NS, f"k{i:02}", {"n": i}) for i in range(40))
        for n in (1, 20, 38, 39):
            found = memory.search((), filter={"n": {"$gte": n}}, limit=99)
            assert sorted(item.value["n"] for item in found) == list(range(n, 40))
        assert len(memory.search((), filter={"n": 39}, limit=1)) == 1


def test_namespaces(anywhere: dict[str, Any]) -> None:
    spaces = [("a",), ("a", "b"), ("a", "b", "c"), ("a", "x", "c"), ("ab",), ("a_",), ("a%",), ("é", "c")]
    with opened(anywhere, COLD) as memory:
        for i, namespace in enumerate(spaces):
            memory.put(namespace, "k", 1)
            if i == 4:
                memory.compact()
        listed = memory.list_namespaces
        assert listed() == sorted(spaces)
        assert listed(("a",)) == [("a",), ("a", "b"), ("a", "b", "c"), ("a", "x", "c")]
        assert listed(("a", "*")) == [("a", "b"), ("a", "b", "c"), ("a", "x", "c")]
        assert listed(("*", "*", "c")) == [("a", "b", "c"), ("a", "x", "c")]
        assert listed(suffix=("c",)) == [("a", "b", "c"), ("a", "x", "c"), ("é", "c")]
        assert listed(suffix=("*", "c")) == listed(suffix=("c",))
        assert listed(("a",), ("b", "c")) == [("a", "b", "c")]
        assert listed(max_depth=1) == [("a",), ("a%",), ("a_",), ("ab",), ("é",)]
        assert listed(("a",), max_depth=2) == [("a",), ("a", "b"), ("a", "x")]
        assert listed(limit=2, offset=3) == sorted(spaces)[3:5] and listed(limit=0) == []
        assert listed(("none",)) == listed(("a_", "*")) == listed(suffix=("a", "b", "c", "d")) == []
        for bad in ({"max_depth": 0}, {"limit": -1}, {"offset": 1.0}, {"prefix": "a"}, {"suffix": ["a"]}):
            with pytest.raises(PolicyError):
                listed(**bad)
        memory.delete(("a", "b"), "k")
        assert ("a", "b") not in listed()


def test_batches(anywhere: dict[str, Any]) -> None:
    with opened(anywhere) as memory:
        ops = [
            PutOp(NS, "a", 1),
            PutOp(NS, "a", 2, cls="x"),
            PutOp(NS, "b", 3),
            GetOp(NS, "a"),
            GetOp(NS, "none"),
            GetOp(NS, "a"),
            DeleteOp(NS, "a"),
            DeleteOp(NS, "a"),
            GetOp(NS, "a"),
            SearchOp(NS, limit=5),
            PutOp(("users",), "c", 4),
            ListNamespacesOp(("users",)),
        ]
        first = memory.batch(ops)
        assert [one and one.value for one in first[3:6]] == [2, None, 2] and first[3].cls == "x"
        assert first[:3] == [None] * 3 and first[6:9] == [True, False, None]
        assert [item.key for item in first[9]] == ["b"] and first[11] == [("users",), NS]
        again = asyncio.run(memory.abatch(ops))
        assert [one and one.value for one in again[3:6]] == [2, None, 2]
        assert memory.batch([]) == []
        with pytest.raises(PolicyError, match="no operation"):
            memory.batch(["put"])  # type: ignore[list-item]


# -- upkeep ------------------------------------------------------------------------------------------------------------


def test_a_round_of_everything(anywhere: dict[str, Any]) -> None:
    values = [sample.value for sample in samples.generate(120, seed=4)]
    with opened(anywhere, '[default]\ncold_after = "0s"\npromote_heat = 1\n') as memory, opened(anywhere) as other:
        memory.put_many(PutOp(("a" if i % 2 else "b", "s"), f"k{i}", value) for i, value in enumerate(values))
        assert memory.compact() == {"demote": 120} and memory.compact() == {}
        assert other.get(("a", "s"), "k1") == values[1]
        for _ in range(2):
            memory.get(("a", "s"), "k3")
        other.put(("a", "s"), "k5", "new")
        assert memory.compact() == {"promote": 1, "demote": 1}
        assert memory.get(("a", "s"), "k5") == "new" and memory.get(("a", "s"), "k3") == values[3]
        assert other.delete(("a", "s"), "k7") and memory.get(("a", "s"), "k7") is None
        stats = memory.stats(measure=True)
        assert stats["records"] == 119 and stats["cold"]["count"] == 118
        assert sum(of["records"] for of in stats["classes"].values()) == 119
        assert memory.forget(("a",)) == 59
        assert other.get(("a", "s"), "k3") is None
        assert [other.get(("b", "s"), f"k{i}") for i in range(0, 120, 2)] == values[::2]
        assert list(memory.check()) == list(other.check()) == []


def test_a_server_keeps_no_packs_ledger_or_key(postgres: str, tmp_path: Path) -> None:
    for options in ({"key": bytes(32)}, {"passphrase": "x"}, {"ledger": True}):
        with pytest.raises(PolicyError):
            Memory.open(postgres, embedder=None, **options)  # type: ignore[arg-type]
    with Memory.open(postgres, embedder=None, policy=Policy.parse(COLD)) as memory:
        memory.put(NS, "k", 1)
        with pytest.raises(PolicyError, match="policy"):
            memory.adapt("users")
        assert memory.compact() == {}  # and no cold records, unless it is told where
        item = memory.item(NS, "k")
        assert item is not None and (item.value, item.tier) == (1, "warm")
        assert memory.forget(()) >= 1


def test_threads(anywhere: dict[str, Any]) -> None:
    """Everybody writes, reads, deletes and lists at once, while records move."""
    faults: list[BaseException] = []
    with opened(anywhere, '[default]\ncold_after = "0s"\npromote_heat = 1\n') as memory:

        def work(name: str) -> None:
            try:
                for turn in range(3):
                    for i in range(8):
                        memory.put((name, "s"), f"k{i}", [name, turn, i], ttl=60 if i % 2 else None)
                        assert memory.get((name, "s"), f"k{i}") == [name, turn, i]
                    assert len(memory.search((name,), limit=99)) == 8
                    assert memory.delete((name, "s"), "k0") and memory.get((name, "s"), "k0") is None
            except BaseException as error:
                faults.append(error)

        def age() -> None:
            try:
                for _ in range(4):
                    memory.compact()
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c")]
        threads.append(threading.Thread(target=age))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert faults == []
        for name in ("a", "b", "c"):
            assert [memory.get((name, "s"), f"k{i}") for i in range(1, 8)] == [[name, 2, i] for i in range(1, 8)]
        assert list(memory.check()) == []


def test_hot_is_only_what_the_policy_wants(anywhere: dict[str, Any]) -> None:
    with opened(anywhere, "[class.cool]\nhot = false\n") as memory:
        memory.put(NS, "cool", "a value that is long enough", cls="cool")
        for _ in range(2):
            memory.get(NS, "cool")
            memory.search(NS)
        assert len(memory.hot) == 0
        memory.put(NS, "warm", "a value that is long enough")
        assert len(memory.hot) == 1
    with opened(anywhere, '[cache]\nbytes = "0B"\n') as memory:
        assert memory.get(NS, "warm") == "a value that is long enough" and len(memory.hot) == 0
