"""Fidelity `semantic` in a store: within the bound of its class, never worse by being moved, exact in all else."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

import nbmf
from nbmf.codec import kernel
from nbmf.codec.values import to_raw
from nbmf.errors import PolicyError, UnsupportedValue
from nbmf.memory import Memory, PutOp
from nbmf.memory.adapters import MemoryDestination, source_of
from nbmf.policy.policy import Policy
from nbmf.policy.sources import Incoming

NS = ("t", "s")
RULES = """
[class.vector]
fidelity = "semantic"
[class.near]
fidelity = "semantic"
bound = { cosine = 0.999 }
[class.even]
fidelity = "semantic"
bound = { max_error = 0.01 }
[class.trip]
fidelity = "semantic"
tolerance = { "**.lat" = { absolute = 0.0001 }, "at" = { absolute = 1000 }, "price" = { relative = 0.01 } }
"""
LOOSE = '[class.loose]\nfidelity = "semantic"\ntolerance = { at = { absolute = 0.1 } }\n'
FROZEN = '[default]\ncold_after = "0s"\npromote_heat = "never"\n'
TRIP = {"lat": 51.035903, "at": 1764064799123, "price": 7.4499, "n": 3, "stop": "Gent-Sint-Pieters 51.035903"}


def drawn(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def cosine(one: Any, other: Any) -> float:
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    return float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))


def same(one: Any, other: Any) -> bool:
    return to_raw(one, allow_nan=True) == to_raw(other, allow_nan=True)


def test_each_class_keeps_its_bound(anywhere: dict[str, Any]) -> None:
    row, many = drawn(1, 384), drawn(2, 3, 64)
    with Memory.open(**anywhere, policy=Policy.parse(RULES)) as memory:
        for cls, value in (("vector", row), ("near", row), ("even", row), ("trip", TRIP), ("", row), ("", TRIP)):
            memory.put(NS, f"{cls}-{type(value).__name__}", value, cls=cls)
        memory.put(NS, "many", many, cls="vector")
        memory.put(NS, "half", row.astype(np.float16), cls="vector")
        for _ in ("from the hot tier", "decoded"):
            back = {item.key: item.value for item in memory.search((), limit=99)}
            assert 0.995 <= cosine(row, back["vector-ndarray"]) < 0.996
            assert 0.999 <= cosine(row, back["near-ndarray"]) < 0.9999
            assert 0 < np.abs(back["even-ndarray"] - row).max() <= 0.01
            assert all(cosine(a, b) >= 0.995 for a, b in zip(many, back["many"], strict=True))
            assert back["half"].dtype == np.float16 and cosine(row, back["half"]) >= 0.9949
            assert same(back["-ndarray"], row) and same(back["-dict"], TRIP)
            kept = back["trip-dict"]
            assert kept == {**TRIP, "lat": 51.036, "at": 1764064799000, "price": 7.4}
            memory.hot.clear()
        found = {item.key: item for item in memory.search((), limit=99)}
        assert {key for key, item in found.items() if item.fidelity == "lossless"} == {"-ndarray", "-dict"}
        assert found["vector-ndarray"].stored_bytes is not None and found["vector-ndarray"].stored_bytes < 180
        counts = memory.stats(measure=True)
        assert counts["classes"]["vector"] == {**counts["classes"]["vector"], "records": 3, "semantic": 3}
        assert counts["classes"][""]["semantic"] == 0
        assert counts["encoders"]["nbmf_semantic_writes_total"] == {"neural": 6}
        assert list(memory.check()) == []


ODD = [
    np.zeros(64, np.float32),
    np.full(64, np.nan, np.float32),
    np.array([1e-42, -3e-44] * 40, np.float32),
    np.array([3e38, -3e38] * 40, np.float32),
    np.array([np.inf, *drawn(3, 63)], np.float32),
    np.zeros(0, np.float32),
    np.zeros((0, 5), np.float16),
    np.ones(300, np.float32),
    drawn(4, 1),
    drawn(5, 7),
    "text",
    b"bytes",
    {"price": "7.4499", "at": True, "lat": None, "deep": [[]]},
    [],
]


def test_what_cannot_be_kept_within_a_bound_is_exact(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "s", key=b"", embedder=None, policy=Policy.parse(RULES)) as memory:
        for cls in ("vector", "near", "trip", "even"):
            for at, value in enumerate(ODD):
                memory.put(NS, f"{cls}{at}", value, cls=cls)
        memory.hot.clear()
        for cls in ("vector", "near", "trip"):
            for at, value in enumerate(ODD):
                item = memory.item(NS, f"{cls}{at}")
                assert item is not None
                if not same(item.value, value):
                    assert item.fidelity == "semantic" and cosine(value, item.value) >= 0.995
                else:
                    assert item.fidelity == "lossless"
        for at, value in enumerate(ODD[:10]):
            back = memory.get(NS, f"even{at}")
            assert back.shape == value.shape
            assert same(back, value) or np.abs(back - value).max() <= 0.01
        for bad in (drawn(6, 2, 2, 2), drawn(7, 5).astype(np.float64), np.arange(4)):
            with pytest.raises(UnsupportedValue):
                memory.put(NS, "bad", bad, cls="vector")
        assert memory.get(NS, "bad") is None and list(memory.check()) == []


@settings(deadline=None, max_examples=60)
@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float16]),
        arrays.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=40),
        elements=st.floats(width=16, allow_nan=True, allow_infinity=True)
        | st.sampled_from([0.0, -0.0, 6e-8, 65504.0, 1.0]),
    ),
    st.sampled_from(["vector", "near", "even"]),
)
def test_no_array_breaks_its_bound(tmp_path_factory: pytest.TempPathFactory, array: Any, cls: str) -> None:
    memory = opened(tmp_path_factory)
    memory.put(NS, "k", array, cls=cls)
    memory.hot.clear()
    back = memory.get(NS, "k")
    assert back.dtype == array.dtype and back.shape == array.shape
    bound = {"vector": 0.995, "near": 0.999}.get(cls)
    for one, other in zip(np.atleast_2d(array), np.atleast_2d(back), strict=True):
        if one.tobytes() == other.tobytes():
            continue
        assert np.isfinite(one).all() and np.isfinite(other).all()
        if bound is None:
            assert np.abs(one.astype(np.float64) - other.astype(np.float64)).max() <= 0.01
        else:
            assert cosine(one, other) >= bound
    # What a read gave, put again: not made any worse. (Halves are rounded once more, so that few are known again.)
    if array.dtype == np.float32 and array.ndim == 1:
        memory.put(NS, "again", back, cls=cls)
        memory.hot.clear()
        assert memory.get(NS, "again").tobytes() == back.tobytes()


_open: list[Memory] = []


def opened(tmp_path_factory: pytest.TempPathFactory) -> Memory:
    """One store for all examples."""
    if not _open:
        address = tmp_path_factory.mktemp("semantic") / "s"
        _open.append(Memory.open(address, key=b"", embedder=None, policy=Policy.parse(RULES)))
    return _open[0]


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Any:
    yield
    while _open:
        _open.pop().close()


def filled(memory: Memory) -> dict[str, Any]:
    """Puts records of every class, vectors among texts; what each gives back."""
    memory.put_many([PutOp(NS, f"v{at}", row, "vector") for at, row in enumerate(drawn(8, 8, 128))])
    memory.put_many([PutOp(NS, f"e{at}", row, "even") for at, row in enumerate(drawn(9, 4, 64))])
    memory.put_many([PutOp(NS, f"t{at}", {**TRIP, "lat": 50 + at / 7}, "trip") for at in range(8)])
    memory.put_many([PutOp(NS, f"x{at}", f"note {at}, in words", "note") for at in range(40)])
    memory.put(NS, "m", drawn(10, 4, 48), cls="vector")
    memory.put(NS, "l", drawn(11, 4, 48))
    return contents(memory)


def contents(memory: Memory) -> dict[str, Any]:
    memory.hot.clear()
    return {item.key: (to_raw(item.value), item.fidelity) for item in memory.search((), limit=999)}


@pytest.mark.skipif(kernel.backend != "c", reason="too slow on the reference")
@pytest.mark.parametrize("encoder", ["neural", "zstd"])
def test_moves_lose_nothing(anywhere: dict[str, Any], encoder: str) -> None:
    rules = RULES + f'[default]\nencoder = "{encoder}"\n'
    with Memory.open(**anywhere, policy=Policy.parse(rules)) as memory:
        there = filled(memory)
        sizes = sum(len(record.blob) for record, _ in memory.live((), None))
        assert sum(fidelity == "semantic" for _, fidelity in there.values()) == 8 + 4 + 8 + 1
        assert memory.compact().get("reencode", 0) == 0
    frozen = rules.replace("[default]\n", FROZEN)
    with Memory.open(**anywhere, policy=Policy.parse(frozen)) as memory:
        assert memory.compact()["demote"] == len(there)
        assert contents(memory) == there and {item.tier for item in memory.search((), limit=999)} == {"cold"}
        assert memory.compact() == {} and list(memory.check()) == []
        blocks = memory.stats()["cold"]["blocks"]
        assert blocks < 1.5 * sizes  # no vector was made exact
    warmed = frozen.replace('promote_heat = "never"', "promote_heat = 1").replace('"0s"', '"30d"')
    with Memory.open(**anywhere, policy=Policy.parse(warmed)) as memory:
        for key in there:
            for _ in range(3):
                memory.get(NS, key)
        assert memory.compact()["promote"] == len(there)
        assert contents(memory) == there and {item.tier for item in memory.search((), limit=999)} == {"warm"}
        assert sum(len(record.blob) for record, _ in memory.live((), None)) <= sizes + 16
        assert list(memory.check()) == []


@pytest.mark.skipif(kernel.backend != "c", reason="too slow on the reference")
def test_a_pack_of_the_tenant_and_its_end(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "s", key=b"", embedder=None, policy=Policy.parse(RULES)) as memory:
        there = filled(memory)
        memory.put_many([PutOp(("t", "other"), f"k{at}", f"word {at} of other notes") for at in range(30)])
        memory.adapt("t")
        memory.compact()
        memory.put(NS, "new", drawn(12, 128), cls="vector")
        there["new"] = contents(memory)["new"]
        ids = {record.key: record.codec for record, _ in memory.live(NS, None)}
        assert ids["v0"] == ids["new"] == ""
        memory.forget(("t", "other"))
        assert contents(memory) == there and list(memory.check()) == []
        sizes = {record.key: len(record.blob) for record, _ in memory.live(NS, None)}
        assert sizes["v0"] < 75 and sizes["new"] < 75


@pytest.mark.skipif(kernel.backend != "c", reason="too slow on the reference")
def test_vectors_by_a_pack_that_the_policy_names(tmp_path: Path) -> None:
    few = drawn(13, 4, 64)
    rows = (drawn(14, 900, 4) @ few + 0.1 * drawn(15, 900, 64)).astype(np.float32)
    nbmf.adapt(list(rows[:800]), tmp_path / "mine.nbp")
    pack = RULES + f'[tenant.t]\ndomain = "{tmp_path / "mine.nbp"}"\n'
    with Memory.open(tmp_path / "s", key=b"", embedder=None, policy=Policy.parse(pack)) as memory:
        memory.put_many([PutOp(NS, f"v{at}", row, "vector") for at, row in enumerate(rows[800:820])])
        memory.put_many([PutOp(("u",), f"v{at}", row, "vector") for at, row in enumerate(rows[800:820])])
        there = contents(memory)
        for at, row in enumerate(rows[800:820]):
            assert cosine(row, memory.get(NS, f"v{at}")) >= 0.995
        with_it, without = (
            sum(len(record.blob) for record, _ in memory.live(prefix, None)) for prefix in (("t",), ("u",))
        )
        assert with_it < 0.8 * without
    # Another pack, or none: what is there stays as it is, and what needs its pack stays warm.
    with Memory.open(tmp_path / "s", key=b"", embedder=None, policy=Policy.parse(RULES + FROZEN)) as memory:
        assert memory.compact() == {"demote": 20}
        assert contents(memory) == there and list(memory.check()) == []
        assert {item.namespace[0]: item.tier for item in memory.search((), limit=99)} == {"t": "warm", "u": "cold"}
        assert memory.compact() == {}


@pytest.mark.skipif(kernel.backend != "c", reason="too slow on the reference")
def test_migrations_change_nothing(tmp_path: Path) -> None:
    with (
        Memory.open(tmp_path / "a", key=b"", embedder=None, policy=Policy.parse(RULES)) as old,
        Memory.open(tmp_path / "b", key=b"", embedder=None, policy=Policy.parse(RULES)) as new,
    ):
        there = filled(old)
        to = MemoryDestination(new)
        to.put_many([one for one in source_of(old).items() if isinstance(one, Incoming)])
        assert contents(new) == there
        sizes = [{record.key: len(record.blob) for record, _ in memory.live(NS, None)} for memory in (old, new)]
        assert all(sizes[1][f"v{at}"] == sizes[0][f"v{at}"] for at in range(8))  # known again, bit by bit
        row = drawn(16, 128)
        to.put_many([Incoming(NS, "foreign", row, cls="vector"), Incoming(NS, "trip", TRIP, cls="trip")])
        assert same(new.get(NS, "foreign"), row) and same(new.get(NS, "trip"), TRIP)


def test_where_nothing_may_change(tmp_path: Path) -> None:
    """The encoders that keep everything, records outside the rollout, and the baseline in shadow mode."""
    row = drawn(17, 64)
    for at, more in enumerate(
        ('[default]\nencoder = "stored"\n', '[default]\nencoder = "stub"\n', "[rollout]\npercent = 0\n")
    ):
        policy = Policy.parse(RULES + more)
        with Memory.open(tmp_path / f"s{at}", key=b"", embedder=None, policy=policy) as memory:
            memory.put(NS, "v", row, cls="vector")
            memory.put(NS, "t", TRIP, cls="trip")
            assert same(memory.get(NS, "v"), row) and same(memory.get(NS, "t"), TRIP)
    policy = Policy.parse(RULES + "[rollout]\nshadow = true\ncompare_percent = 100\n")
    with Memory.open(tmp_path / "shadow", key=b"", embedder=None, policy=policy) as memory:
        memory.put(NS, "v", row, cls="vector")
        memory.put(NS, "t", TRIP, cls="trip")
        assert cosine(memory.get(NS, "v"), row) >= 0.995 and memory.get(NS, "t")["lat"] == 51.036
        assert memory.stats()["encoders"]["nbmf_divergences_total"] == {}


def test_a_vector_of_the_user_is_searched_as_before(tmp_path: Path) -> None:
    from nbmf.store.embed import UserEmbedder

    embedder = UserEmbedder(lambda texts: [[1.0] + [0.0] * 7 for _ in texts], 8, "eight")
    rows = np.eye(8, dtype=np.float32)[:4] + np.float32(0.1)
    found = []
    for name, rules in (("exact", ""), ("semantic", LOOSE)):
        with Memory.open(tmp_path / name, key=b"", embedder=embedder, policy=Policy.parse(rules)) as memory:
            for at, row in enumerate(rows):
                memory.put(NS, f"k{at}", {"at": at * 1.00001, "text": "t"}, cls="loose", vector=row.tolist())
            found.append([item.key for item in memory.search((), vector=rows[2].tolist(), limit=4)])
            assert memory.get(NS, "k1") == {"at": 1.00001 if name == "exact" else 1.0, "text": "t"}
    assert found[0] == found[1] and found[0][0] == "k2"


@pytest.mark.parametrize(
    "line",
    [
        "bound = { cosine = 1.5 }",
        "bound = { cosine = true }",
        "bound = {}",
        "bound = 0.995",
        "bound = { max_error = 0 }",
        "tolerance = { price = 0.1 }",
        "tolerance = { price = { relative = 2 } }",
        'tolerance = { "a..b" = { absolute = 1 } }',
        "tolerance = 5",
    ],
)
def test_bounds_that_are_none(line: str) -> None:
    with pytest.raises(PolicyError, match=r"^policy: class.k.(bound|tolerance) is a table of"):
        Policy.parse(f"[class.k]\n{line}")


def test_bounds_go_through_toml() -> None:
    policy = Policy.parse(RULES)
    assert Policy.parse(policy.to_toml()) == policy
    assert policy.rules("", "near").bound == nbmf.Bound(0.999)
    assert policy.rules("", "even").bound == nbmf.Bound(None, 0.01)
    assert dict(policy.rules("", "trip").tolerance)["price"] == nbmf.Tolerance(relative=0.01)
