"""`Memory`: what is put comes back, for everyone who may see it, and for nobody else."""

import multiprocessing
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbmf import samples
from nbmf.errors import NbmfError, PolicyError, StoreError, UnsupportedValue
from nbmf.memory import DeleteOp, GetOp, ListNamespacesOp, Memory, PutOp, SearchOp, items
from nbmf.policy.policy import Policy

COLD = Policy.parse('[default]\ncold_after = "0s"\npromote_heat = "never"\n')
VALUES: list[Any] = [
    "likes tea",
    "",
    "cut \ud83d here",
    {"b": 1, "a": [1.0, True, None, -0.0, 2**70]},
    [],
    {},
    0,
    1.0,
    True,
    None,
    b"\0\xff",
    b"",
    "long " * 3000,
]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return repr(one) == repr(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


@pytest.fixture(params=["plain", "encrypted"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The arguments that open one store."""
    key = bytes(range(32)) if request.param == "encrypted" else None
    return {"address": tmp_path / "agent.nbmf", "key": key, "embedder": None}


def reopened(store: dict[str, Any], **options: Any) -> Memory:
    return Memory.open(**{**store, **options})


# -- values and addresses ----------------------------------------------------------------------------------------------


def test_values_come_back(store: dict[str, Any]) -> None:
    vector = np.array([1.5, -0.0, np.inf], np.float32)
    with reopened(store) as memory:
        for i, value in enumerate(VALUES):
            memory.put(("t", "s"), f"k{i}", value)
        memory.put(("t", "s"), "v", vector)
    for policy in (None, COLD):
        with reopened(store, policy=policy) as memory:
            memory.compact()
            for i, value in enumerate(VALUES):
                assert same(memory.get(("t", "s"), f"k{i}"), value), (i, policy)
            assert memory.get(("t", "s"), "v").tobytes() == vector.tobytes()
            assert {item.tier for item in memory.search((), limit=99)} == {"cold" if policy else "warm"}
            assert list(memory.check()) == []


def test_refused_values_leave_nothing(store: dict[str, Any]) -> None:
    with reopened(store) as memory:
        for value in ({1, 2}, {"a": float("nan")}, {1: 2}, object()):
            with pytest.raises(UnsupportedValue):
                memory.put_many([PutOp(("t",), "good", 1), PutOp(("t",), "bad", value)])
        assert memory.list_namespaces() == []


@pytest.mark.parametrize(
    ("namespace", "key"),
    [((), "k"), (("a", ""), "k"), ("ab", "k"), (("a",), ""), (("a",), 3), (("a\0",), "k"), (("a",), None)],
)
def test_addresses_that_are_none(tmp_path: Path, namespace: Any, key: Any) -> None:
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        for call in (memory.get, memory.delete, lambda namespace, key: memory.put(namespace, key, 1)):
            with pytest.raises(PolicyError):
                call(namespace, key)


def test_no_address_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="an empty path"):
        Memory.open("")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("policy", ["", "[rollout]\npercent = 0\n"])
@pytest.mark.parametrize("embedder", ["auto", None])
def test_integers_that_python_does_not_write(tmp_path: Path, policy: str, embedder: str | None) -> None:
    value = {"n": [10**5000, -(10**5000)], "text": "green tea"}
    with Memory.open(tmp_path / "s", policy=Policy.parse(policy), embedder=embedder) as memory:
        memory.put(("t",), "k", value)
        memory.put(("t",), "alone", 10**5000)
        assert memory.get(("t",), "k") == value
        assert memory.get(("t",), "alone") == 10**5000
        if embedder:
            assert memory.search(("t",), query="green tea")[0].key == "k"


def test_values_are_private_copies(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        value = {"tags": ["a"]}
        memory.put(("t",), "k", value)
        value["tags"].append("b")
        memory.get(("t",), "k")["tags"].append("c")
        assert memory.get(("t",), "k") == {"tags": ["a"]}


def test_times_class_and_metadata(store: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1_700_000_000_000]
    for module in ("memory", "aging", "recall"):
        monkeypatch.setattr(f"nbmf.memory.{module}.now", lambda: clock[0])
    monkeypatch.setattr(items, "now", lambda: clock[0])
    with reopened(store, policy=COLD) as memory:
        memory.put(("t",), "k", 1, cls="fact", meta={"z": 1, "a": None})
        born = memory.item(("t",), "k").created_at  # type: ignore[union-attr]
        clock[0] += 5000
        memory.compact()
        memory.put(("t",), "k", 2, cls="note")
        item = memory.item(("t",), "k")
        assert item is not None and item.created_at == born and (item.updated_at - born).seconds == 5
        assert (item.value, item.cls, item.meta, item.tier) == (2, "note", None, "warm")
        memory.put(("t",), "ttl", 1, ttl=1)
        clock[0] += 40_000
        assert memory.get(("t",), "ttl") == 1
        clock[0] += 40_000
        assert memory.get(("t",), "ttl", refresh=False) == 1
        clock[0] += 40_000
        assert memory.get(("t",), "ttl", "gone") == "gone"
        assert memory.compact()["expire"] == 1
        for ttl in (0, -1, "1", float("inf")):
            with pytest.raises(PolicyError):
                memory.put(("t",), "ttl", 1, ttl=ttl)  # type: ignore[arg-type]


# -- searches ----------------------------------------------------------------------------------------------------------


def test_filters_and_order(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        for i in range(20):
            memory.put(("t", f"u{i % 2}"), f"k{i:02}", {"n": i, "who": {"name": f"p{i % 3}"}}, cls=f"c{i % 2}")
        found = memory.search(("t",), filter={"n": {"$gte": 5, "$lt": 9}}, limit=99)
        assert sorted(item.value["n"] for item in found) == [5, 6, 7, 8]
        assert len(memory.search(("t",), filter={"who.name": "p1"}, limit=99)) == 7
        assert len(memory.search(("t",), filter={"who": {"name": "p1"}}, limit=99)) == 7
        assert len(memory.search(("t",), filter={"none": {"$ne": 1}}, limit=99)) == 20
        assert memory.search(("t",), filter={"none": 1}) == memory.search(("t",), filter={"n": {"$gt": "a"}}) == []
        newest = [item.key for item in memory.search(("t",), limit=20)]
        assert len(set(newest)) == 20
        assert [item.key for item in memory.search(("t",), limit=5, offset=3)] == newest[3:8]
        assert {item.cls for item in memory.search(("t",), cls="c1", limit=99)} == {"c1"}
        for bad in ({"n": {"$near": 1}}, {"n": {"$gt": 1, "x": 2}}):
            with pytest.raises(PolicyError):
                memory.search(("t",), filter=bad)
        with pytest.raises(PolicyError):
            memory.search(("t",), limit=-1)


def test_prefixes_are_whole_segments(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        for namespace in (("foo",), ("foobar",), ("foo", "a"), ("f_o",), ("f%",), ("*",)):
            memory.put(namespace, "k", list(namespace))
        assert {item.namespace for item in memory.search(("foo",))} == {("foo",), ("foo", "a")}
        assert {item.namespace for item in memory.search(("f_o",))} == {("f_o",)}
        assert memory.list_namespaces(("foo",)) == [("foo",), ("foo", "a")]
        assert memory.list_namespaces(("*", "a")) == [("foo", "a")]
        assert memory.list_namespaces(suffix=("a",)) == [("foo", "a")]
        assert memory.list_namespaces(max_depth=1, limit=2, offset=1) == [("f%",), ("f_o",)]
        assert memory.forget(("foo",)) == 2
        assert memory.get(("foobar",), "k") == ["foobar"]


def test_recall(tmp_path: Path) -> None:
    pytest.importorskip("wordllama")
    with Memory.open(tmp_path / "s", policy=COLD) as memory:
        memory.put(("u", "ann"), "tea", {"text": "prefers green tea over coffee"})
        memory.put(("u", "ann"), "violin", {"text": "plays the violin on Sundays"})
        memory.put(("u", "bob"), "order", "the parcel A-88231 was lost")
        memory.put(("ux", "bob"), "coffee", "hot drinks: coffee")
        memory.put(("u", "bob"), "hidden", "coffee and tea", index=False)
        for _ in ("warm", "cold"):
            assert memory.search(("u",), "hot drinks")[0].key == "tea"
            assert memory.search(("u",), "A-88231")[0].key == "order"
            assert "coffee" not in {item.key for item in memory.search(("u",), "coffee", limit=99)}
            assert "hidden" not in {item.key for item in memory.search((), "coffee", limit=99)}
            assert [item.key for item in memory.search((), "music", filter={"text": {"$ne": "x"}}, limit=1)] == [
                "violin"
            ]
            memory.compact()
        memory.delete(("u", "ann"), "tea")
        memory.forget(("u", "bob"))
        assert {item.key for item in memory.search((), "hot drinks", limit=99)} == {"violin", "coffee"}


def test_without_an_embedder(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        with pytest.raises(PolicyError, match="embedder"):
            memory.search((), "x")
        with pytest.raises(PolicyError, match="embedder"):
            memory.put(("t",), "k", 1, vector=[1.0] * 8)


def test_batches_run_in_order(store: dict[str, Any]) -> None:
    with reopened(store) as memory:
        got = memory.batch(
            [
                PutOp(("t",), "a", 1),
                PutOp(("t",), "a", 2),
                GetOp(("t",), "a"),
                DeleteOp(("t",), "a"),
                DeleteOp(("t",), "a"),
                GetOp(("t",), "a"),
                PutOp(("t", "x"), "b", 3),
                SearchOp(("t",)),
                ListNamespacesOp(),
            ]
        )
        assert got[2].value == 2
        assert got[3:6] == [True, False, None]
        assert [item.key for item in got[7]] == ["b"] and got[8] == [("t", "x")]


# -- opening -----------------------------------------------------------------------------------------------------------


def test_keys(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "sealed", passphrase="one", embedder=None) as memory:
        memory.put(("t",), "k", 1)
    with Memory.open(tmp_path / "plain", embedder=None) as memory:
        memory.put(("t",), "k", 1)
    for address, options in (
        ("sealed", {}),
        ("sealed", {"passphrase": "two"}),
        ("sealed", {"key": bytes(32)}),
        ("plain", {"passphrase": "one"}),
        ("none", {"create": False}),
    ):
        with pytest.raises(StoreError):
            Memory.open(tmp_path / address, embedder=None, **options)  # type: ignore[arg-type]
    with Memory.open(tmp_path / "sealed", passphrase="one", embedder=None) as memory:
        assert memory.get(("t",), "k") == 1


def test_nothing_in_the_clear_of_an_encrypted_store(tmp_path: Path) -> None:
    policy = Policy.parse('[default]\ncold_after = "0s"\nencoder = "stored"\n')
    marks = [b"plainvalue", b"plainkey", b"plainspace", b"plainclass", b"plainmeta"]
    with Memory.open(tmp_path / "s", key=bytes(range(32)), policy=policy, embedder=None, ledger=True) as memory:
        for i in range(80):
            memory.put(("plainspace",), f"plainkey-{i}", f"plainvalue {i}", cls="plainclass", meta={"plainmeta": i})
        memory.adapt("plainspace")
        memory.put(("plainspace",), "warm", "plainvalue")
        found = grep(tmp_path, marks)
        memory.compact()
        found |= grep(tmp_path, marks)
    assert found | grep(tmp_path, marks) == set()


def grep(folder: Path, marks: list[bytes]) -> set[tuple[str, bytes]]:
    """Which marks are in which files, names included."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        (path.name, mark) for path in files for mark in marks if mark in path.read_bytes() or mark.decode() in path.name
    }


@pytest.mark.parametrize("cold", [False, True])
def test_forgotten_is_nowhere(store: dict[str, Any], cold: bool) -> None:
    text = '[default]\nencoder = "stored"\n' + ('cold_after = "0s"\n' if cold else "")
    marks = [b"secretvalue", b"secretkey", b"secretspace"]
    with reopened(store, policy=Policy.parse(text), ledger=True) as memory:
        for i in range(60):
            memory.put(("t", "secretspace"), f"secretkey-{i}", f"secretvalue {i}")
            memory.put(("t", "other"), f"k{i}", {"n": i})
        memory.adapt("t")
        memory.compact()
        memory.put(("t", "secretspace"), "secretkey-0", "secretvalue anew")
        assert memory.forget(("t", "secretspace")) >= 60
        assert memory.search(("t", "secretspace")) == []
        assert all(memory.get(("t", "other"), f"k{i}") == {"n": i} for i in range(60))
        assert list(memory.check()) == []
    assert grep(store["address"], marks) == set()


def test_packs_of_tenants(store: dict[str, Any]) -> None:
    records = [sample.value for sample in samples.generate(240, seed=3)]
    with reopened(store) as memory:
        memory.put_many(PutOp(("a" if i % 2 else "b", "s"), f"k{i}", value) for i, value in enumerate(records))
        before = memory.stats(measure=True)["blob_bytes"]
        memory.adapt("a")
        memory.put(("a", "s"), "new", records[1])
        pack = memory.item(("a", "s"), "new")
        assert pack is not None and pack.codec == memory.codecs.packs.current("a")  # type: ignore[union-attr]
        assert memory.compact()["reencode"] == 120
        assert memory.compact() == {}
        assert memory.stats(measure=True)["blob_bytes"] < before
    with reopened(store) as memory:
        assert all(same(memory.get(("a" if i % 2 else "b", "s"), f"k{i}"), v) for i, v in enumerate(records))
        assert memory.forget(("a", "none")) == 0
        assert same(memory.get(("a", "s"), "k1"), records[1])
        assert list(memory.codecs.packs.files()) == []  # type: ignore[union-attr]
        assert list(memory.check()) == []


def test_a_pack_pays_for_itself(tmp_path: Path) -> None:
    records = [sample.value for sample in samples.generate(3000, seed=4)]
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        memory.put_many(PutOp(("t", "s"), f"k{i}", value) for i, value in enumerate(records))
        memory.compact()
        before = memory.stats()["disk_bytes"]
        card = memory.adapt("t")
        memory.compact()
        stats = memory.stats()
        assert 0 < stats["packs"] < card["bytes"]
        assert stats["disk_bytes"] < before
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        assert all(same(memory.get(("t", "s"), f"k{i}"), value) for i, value in enumerate(records))


def test_packs_that_are_not_compressed(tmp_path: Path) -> None:
    """Stores kept them as they are, before."""
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        memory.put_many(PutOp(("t",), f"k{i}", f"green tea, {i} cups") for i in range(60))
        memory.adapt("t")
        memory.compact()
        packs = memory.codecs.packs
        assert packs is not None
        (path,) = packs.files()
        pack = packs.find(path.stem)
        assert pack is not None
    path.write_bytes(bytes(pack.buffer))
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        assert all(memory.get(("t",), f"k{i}") == f"green tea, {i} cups" for i in range(60))
        assert list(memory.check()) == []


def test_quotas(tmp_path: Path) -> None:
    policy = Policy.parse("[tenant.t]\nquota_records = 3\n")
    with Memory.open(tmp_path / "s", policy=policy, embedder=None) as memory:
        memory.put_many(PutOp(("t",), f"k{i}", i) for i in range(3))
        for _ in range(3):
            memory.put(("t",), "k0", "again")
            with pytest.raises(PolicyError, match="3 records"):
                memory.put(("t",), "more", 1)
        memory.delete(("t",), "k0")
        memory.put(("t",), "more", 1)
        memory.put_many(PutOp(("free",), f"k{i}", i) for i in range(9))


# -- rollout -----------------------------------------------------------------------------------------------------------


def test_rollout_over_the_stub(tmp_path: Path) -> None:
    texts = {f"k{i}": {"text": f"note {i} of the old encoder"} for i in range(60)}
    neural: set[str] = set()
    for percent in (0, 10, 50, 100):
        policy = Policy.parse(f"[rollout]\npercent = {percent}\n")
        with Memory.open(tmp_path / "s", policy=policy, embedder=None) as memory:
            if not percent:
                memory.put_many(PutOp(("t",), key, value) for key, value in texts.items())
            memory.compact()
            now_neural = {item.key for item in memory.search((), limit=99) if item.codec}
            assert neural <= now_neural and abs(len(now_neural) - 0.6 * percent) < 15
            neural = now_neural
            assert all(memory.get(("t",), key) == value for key, value in texts.items())
            assert memory.compact() == {}
    assert len(neural) == 60


def test_a_divergence_in_a_protected_class_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy.parse("[rollout]\nshadow = true\n\n[class.legal]\nprotected = true\n")
    with Memory.open(tmp_path / "s", policy=policy, embedder=None) as memory:
        memory.put(("t",), "before", {"a": 1}, cls="legal")
        codec = memory.codecs.of_domain("")
        monkeypatch.setattr(type(codec), "decode", lambda *_args, **_options: {"a": 2})
        with pytest.raises(PolicyError, match="protected"):
            memory.put(("t",), "legal", {"a": 1}, cls="legal")
        memory.put(("t",), "note", {"a": 1})
        monkeypatch.undo()
        assert memory.get(("t",), "legal") is None
        assert memory.get(("t",), "note") == memory.get(("t",), "before") == {"a": 1}
        assert memory.stats()["encoders"]["nbmf_divergences_total"] == {"neural": 2}


# -- together ----------------------------------------------------------------------------------------------------------


def write(address: Path, name: str, count: int) -> None:
    with Memory.open(address, embedder=None, policy=COLD) as memory:
        for i in range(count):
            memory.put((name,), f"k{i}", {"by": name, "i": i})
            memory.put(("shared",), "last", name)
            if i % 20 == 10:
                memory.compact()


def test_two_processes(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=write, args=(tmp_path / "s", name, 40)) for name in ("a", "b")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        for name in ("a", "b"):
            assert [memory.get((name,), f"k{i}") for i in range(40)] == [{"by": name, "i": i} for i in range(40)]
        assert memory.get(("shared",), "last") in ("a", "b")
        assert list(memory.check()) == []


def test_another_process_is_seen(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "s", embedder=None) as one, Memory.open(tmp_path / "s", embedder=None) as other:
        one.put(("t",), "k", 1)
        assert one.get(("t",), "k") == other.get(("t",), "k") == 1
        other.put(("t",), "k", 2)
        assert one.get(("t",), "k") == 2
        other.forget(("t",))
        assert one.get(("t",), "k") is None


def test_writers_while_records_move(tmp_path: Path) -> None:
    """A newer value is never lost to a move, in either direction."""
    policy = Policy.parse('[default]\ncold_after = "0s"\npromote_heat = 1\n')
    with Memory.open(tmp_path / "s", policy=policy, embedder=None) as memory:
        for i in range(30):
            memory.put(("t",), f"k{i}", 0)
        stop = threading.Event()
        faults: list[BaseException] = []

        def age() -> None:
            try:
                while not stop.is_set():
                    memory.compact()
            except BaseException as error:
                faults.append(error)

        thread = threading.Thread(target=age)
        thread.start()
        try:
            for n in range(1, 8):
                for i in range(30):
                    memory.put(("t",), f"k{i}", n)
                    assert memory.get(("t",), f"k{i}") == n
        finally:
            stop.set()
            thread.join()
        assert faults == []
        assert [memory.get(("t",), f"k{i}") for i in range(30)] == [7] * 30
        assert list(memory.check()) == []


def test_damage_is_never_a_wrong_value(store: dict[str, Any]) -> None:
    with reopened(store, policy=COLD) as memory:
        for i in range(40):
            memory.put(("t",), f"k{i}", {"text": f"record number {i}"})
        memory.compact()
        for i in range(40, 80):
            memory.put(("t",), f"k{i}", {"text": f"record number {i}"})
    folder = store["address"]
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 12)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
            try:
                with reopened(store) as memory:
                    for i in (0, 39, 40, 79):
                        assert memory.get(("t",), f"k{i}", refresh=False) in (None, {"text": f"record number {i}"})
            except NbmfError:
                pass
            path.write_bytes(whole)
