"""Moves between the tiers, and what others do, or a kill leaves, in the middle of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbmf import samples
from nbmf.codec import adapt, stub
from nbmf.errors import CorruptRecord, DataError, NbmfError, PolicyError, UnknownModel
from nbmf.memory import Memory, PutOp, aging, learning
from nbmf.memory import memory as front
from nbmf.memory.aging import _Aging
from nbmf.memory.encoding import stored_blob
from nbmf.memory.items import now
from nbmf.policy.policy import Policy
from nbmf.store.base import Put, Record

KEY = bytes(range(32))
HOT = '[default]\ncold_after = "0s"\npromote_heat = 1\n'
COLD = '[default]\ncold_after = "0s"\npromote_heat = "never"\n'
AT = ("t", "s")


@pytest.fixture(params=["plain", "encrypted"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The arguments that open one store."""
    return {"address": tmp_path / "s", "key": KEY if request.param == "encrypted" else None, "embedder": None}


def opened(store: dict[str, Any], policy: str = "", **options: Any) -> Memory:
    return Memory.open(**{**store, "policy": Policy.parse(policy), **options})


def tier_of(memory: Memory, key: str, namespace: tuple[str, ...] = AT) -> str:
    """ "warm", "cold" or "none", without a read that would warm it."""
    found = memory.fetch([(namespace, key)], now())[0]
    return "none" if found is None else found[1]


def due(memory: Memory) -> list[str]:
    return [move.action for move, _ in _Aging(memory, now()).due()]


# -- what others do in the middle --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Meddling:
    """What another handle does, and the value and metadata at AT, "k" afterwards, and the value of "other"."""

    act: Callable[[Memory], object]
    value: Any = None
    meta: Any = None
    other: Any = "other"


MEDDLING = {
    "puts": Meddling(lambda other: other.put(AT, "k", "new"), "new"),
    "puts the same": Meddling(lambda other: other.put(AT, "k", "old", meta={"by": "other"}), "old", {"by": "other"}),
    "deletes": Meddling(lambda other: other.delete(AT, "k")),
    "forgets": Meddling(lambda other: other.forget(AT)),
    "forgets the tenant": Meddling(lambda other: other.forget(("t",)), other=None),
    "renews": Meddling(lambda other: other.get(AT, "k"), "old", {"by": "me"}),
}


@pytest.fixture(params=list(MEDDLING))
def meddling(request: pytest.FixtureRequest) -> Meddling:
    return MEDDLING[request.param]


def begin(memory: Memory) -> None:
    memory.put(AT, "k", "old", meta={"by": "me"}, ttl=60)
    memory.put(("t", "x"), "other", "other")


def check_after(memory: Memory, meddling: Meddling) -> None:
    """Nothing was lost, and nothing came back, now and after everything has moved once more."""
    for _ in range(2):
        item = memory.item(AT, "k")
        assert ((None, None) if item is None else (item.value, item.meta)) == (meddling.value, meddling.meta)
        assert memory.get(("t", "x"), "other") == meddling.other
        assert list(memory.check()) == []
        memory.compact()


def test_demoting_while_another(store: dict[str, Any], meddling: Meddling, monkeypatch: Any) -> None:
    with opened(store, COLD) as memory, opened(store) as other:
        begin(memory)
        cold = memory.cold(make=True)
        assert cold is not None
        prepare = cold.prepare
        monkeypatch.setattr(cold, "prepare", lambda records: (prepare(records), meddling.act(other)))
        memory.compact()
        monkeypatch.undo()
        check_after(memory, meddling)


def test_promoting_while_another(store: dict[str, Any], meddling: Meddling, monkeypatch: Any) -> None:
    with opened(store, HOT) as memory, opened(store) as other:
        begin(memory)
        memory.compact()
        assert tier_of(memory, "k") == "cold"
        memory.get(AT, "k"), memory.get(AT, "k")
        promote = memory.tiers.promote
        monkeypatch.setattr(memory.tiers, "promote", lambda moves: (meddling.act(other), promote(moves))[1])
        memory.compact()
        monkeypatch.undo()
        check_after(memory, meddling)


def test_coding_anew_while_another(store: dict[str, Any], meddling: Meddling, monkeypatch: Any) -> None:
    with opened(store, "[rollout]\npercent = 0\n") as memory:
        begin(memory)
    with opened(store) as memory, opened(store, "[rollout]\npercent = 0\n") as other:
        recode = memory.tiers.recode
        monkeypatch.setattr(memory.tiers, "recode", lambda moves: (meddling.act(other), recode(moves))[1])
        memory.compact()
        monkeypatch.undo()
        check_after(memory, meddling)


def test_a_renewal_is_not_lost_to_a_move(store: dict[str, Any], monkeypatch: Any) -> None:
    """Not even one that comes between the last look and the move itself."""
    with opened(store, COLD) as memory, opened(store) as other:
        memory.put(AT, "k", "v", ttl=60)
        early = memory.item(AT, "k", refresh=False)
        cold = memory.cold(make=True)
        assert cold is not None and early is not None
        batch = cold.batch

        def late(ops: Any) -> Any:
            if any(isinstance(op, Put) for op in ops) and not renewed:
                renewed.append(other.item(AT, "k"))
            return batch(ops)

        renewed: list[Any] = []
        monkeypatch.setattr(cold, "batch", late)
        memory.compact()
        monkeypatch.undo()
        item = memory.item(AT, "k", refresh=False)
        assert item is not None and item.tier == "cold"
        assert item.expires_at == renewed[0].expires_at


def test_an_update_saves_from_expiring(store: dict[str, Any], monkeypatch: Any) -> None:
    with opened(store, '[default]\nexpire_after = "1ms"\n') as memory, opened(store) as other:
        memory.put(AT, "k", "old")
        memory.put(AT, "gone", "old")
        start = now()
        while now() <= start + 2:
            pass
        remove = memory.tiers.remove
        monkeypatch.setattr(memory.tiers, "remove", lambda found: (other.put(AT, "k", "new"), remove(found))[1])
        assert memory.compact() == {"expire": 1}
        assert (memory.get(AT, "k"), memory.get(AT, "gone")) == ("new", None)


# -- what a kill leaves in the middle ----------------------------------------------------------------------------------


def left_behind(memory: Memory, key: str, value: Any) -> None:
    """Puts a copy into the cold tier, one that never expires, as if an earlier version had stayed there."""
    record = memory.fetch([(AT, key)], now())[0]
    assert record is not None
    pair = memory.codecs.of_domain("").to_pair(value)
    cold = memory.cold(make=True)
    assert cold is not None
    cold.put(replace(record[0], blob=stored_blob(pair), codec="", ttl=None, expires=None))


def test_a_copy_left_in_the_cold_tier_never_shows(store: dict[str, Any]) -> None:
    with opened(store) as memory:
        for key in ("same", "put", "expired", "deleted", "forgotten"):
            memory.put(AT, key, f"old {key}", cls="old", ttl=0.0005 if key == "expired" else None)
            left_behind(memory, key, f"older {key}")
        memory.put(AT, "put", "new", cls="new")
        memory.delete(AT, "deleted")
        start = now()
        while now() < start + 40:
            pass
        for _ in range(2):
            assert sorted(record.key for record, _ in memory.live((), now())) == ["forgotten", "put", "same"]
            assert memory.get(AT, "same") == "old same"
            assert memory.get(AT, "put") == "new"
            assert memory.get(AT, "deleted") is memory.get(AT, "expired") is None
            found = [(item.key, item.value) for item in memory.search(AT, cls="old")]
            assert sorted(found) == [("forgotten", "old forgotten"), ("same", "old same")]
            memory.compact()
        assert memory.stats()["records"] == 3
        left_behind(memory, "same", "older")
        assert memory.tiers.settle() == 1 and memory.tiers.settle() == 0
        left_behind(memory, "forgotten", "older")
        memory.forget(AT)
        assert memory.search(()) == [] and memory.stats()["records"] == 0


def test_a_record_that_is_promoted_between_two_looks_is_found(store: dict[str, Any], monkeypatch: Any) -> None:
    with opened(store, COLD) as memory, opened(store) as other:
        memory.put(AT, "k", "v")
        memory.compact()
        cold = memory.cold()
        assert cold is not None
        batch = cold.batch
        monkeypatch.setattr(cold, "batch", lambda ops: (other.put(AT, "k", "v2"), batch(ops))[1])
        assert memory.get(AT, "k") == "v2"


# -- records that are not as they should be ----------------------------------------------------------------------------


def broken(key: str, codec: str = "", blob: bytes = b"\x01\x02broken") -> Record:
    return Record(AT, key, blob, codec=codec, created=1, updated=1)


def test_what_cannot_be_decoded_stops_nothing(store: dict[str, Any]) -> None:
    with opened(store, HOT) as memory:
        for i in range(20):
            memory.put(AT, f"k{i}", {"n": i})
        memory.warm.batch([Put(broken("bad")), Put(broken("strange", codec="ab" * 32)), Put(broken("ill", codec="?"))])
        assert memory.compact() == {"demote": 20}
        for key, error in (("bad", NbmfError), ("strange", UnknownModel), ("ill", CorruptRecord)):
            with pytest.raises(error):
                memory.get(AT, key)
        assert {fault.where.rsplit(" ")[-1] for fault in memory.check()} == {"bad", "strange", "ill"}
        assert memory.delete(AT, "bad")
        memory.put(AT, "strange", "mended")
        assert memory.get(AT, "strange") == "mended"
        assert memory.forget(AT) == 22
        assert list(memory.check()) == []


def test_a_broken_archive_stops_neither_put_nor_delete_nor_forget(tmp_path: Path) -> None:
    store = {"address": tmp_path / "s", "key": None, "embedder": None}
    with opened(store, COLD) as memory:
        for i in range(40):
            memory.put(AT, f"k{i}", {"n": i, "text": "some text of the record"})
        memory.compact()
    (archive,) = (tmp_path / "s" / "archives").rglob("*.nba")
    data = bytearray(archive.read_bytes())
    data[20] ^= 0xFF
    archive.write_bytes(data)
    with opened(store, COLD) as memory:
        with pytest.raises(CorruptRecord):
            memory.get(AT, "k0")
        assert list(memory.check()) != []
        memory.put(AT, "k0", "new")
        assert memory.get(AT, "k0") == "new"
        assert memory.delete(AT, "k1") and memory.get(AT, "k1") is None
        memory.put(("other",), "k", 1)
        assert memory.forget(("t",)) == 39
        assert list(memory.check()) == []
        assert memory.get(("other",), "k") == 1


def test_blobs_of_the_old_encoder_move_too(store: dict[str, Any]) -> None:
    long = {"text": "words " * 600}
    with opened(store, "[rollout]\npercent = 0\n") as memory:
        memory.put(AT, "k", {"a": 1})
        preview = stub.encode(long, fidelity="semantic")
        blob = json.dumps(preview).encode()
        memory.warm.put(Record(AT, "preview", blob, created=1, updated=1, fidelity="semantic"))
        cut = memory.get(AT, "preview")
        assert isinstance(cut, str) and len(cut) == 2048
    with opened(store, HOT) as memory:
        assert memory.compact() == {"demote": 2}
        for _ in range(3):
            item = memory.item(AT, "preview")
            assert item is not None and (item.value, item.fidelity, item.tier) == (cut, "semantic", "cold")
        assert memory.get(AT, "k") == {"a": 1}
        assert memory.get(AT, "k") == {"a": 1}
        assert memory.compact() == {"promote": 2}
        item = memory.item(AT, "preview")
        assert item is not None and (item.value, item.fidelity, item.tier) == (cut, "semantic", "warm")
        assert due(memory) == []


# -- what aging decides ------------------------------------------------------------------------------------------------


def test_records_come_back_when_they_are_read(store: dict[str, Any]) -> None:
    with opened(store, HOT) as memory:
        memory.put_many(PutOp(AT, f"k{i}", {"n": i}) for i in range(10))
        assert memory.compact() == {"demote": 10}
        assert {tier_of(memory, f"k{i}") for i in range(10)} == {"cold"}
        for i in (2, 5):
            memory.get(AT, f"k{i}"), memory.get(AT, f"k{i}")
        assert memory.compact() == {"promote": 2}
        assert [i for i in range(10) if tier_of(memory, f"k{i}") == "warm"] == [2, 5]
        assert due(memory) == [] and memory.compact() == {}
    with opened(store, HOT) as memory:  # heat is not kept
        assert memory.compact() == {"demote": 2}


def test_heat_is_bounded_and_keeps_the_latest(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(front, "HEAT_MOST", 3)
    with opened({"address": tmp_path / "s", "embedder": None}) as memory:
        for i in range(5):
            memory.put(AT, f"k{i}", i)
        for i in (0, 1, 2, 0, 3, 4):
            memory.get(AT, f"k{i}")
        assert [memory.heat_of(AT, f"k{i}")[0] > 0 for i in range(5)] == [True, False, False, True, True]


def test_a_large_value_is_left_to_zstd_wherever_it_goes(tmp_path: Path, monkeypatch: Any) -> None:
    """The tiers know its compressed size alone."""
    text = HOT + 'neural_max = "2KiB"\n'
    with opened({"address": tmp_path / "s", "embedder": None}, text) as memory:
        memory.put(AT, "k", "again and again " * 1000)
        memory.compact()
        memory.get(AT, "k"), memory.get(AT, "k")
        neural = memory.codecs.of_domain("").coder
        monkeypatch.setattr(type(memory.codecs.of_domain("")), "from_pairs", None)
        assert memory.compact() == {"promote": 1}
        assert neural is not None and due(memory) == []
        assert memory.get(AT, "k") == "again and again " * 1000


@pytest.mark.parametrize("change", ["domain", "own", "encoder"])
def test_coding_anew_settles(store: dict[str, Any], tmp_path: Path, change: str) -> None:
    values = [sample.value for sample in samples.generate(60, seed=1)]
    adapt.adapt(values, tmp_path / "named.nbp", size=16 << 10)
    policies = {
        "domain": f'[default]\ndomain = "{tmp_path / "named.nbp"}"\n',
        "own": "",
        "encoder": '[default]\nencoder = "zstd"\n',
    }
    with opened(store) as memory:
        memory.put_many(PutOp(AT, f"k{i}", value) for i, value in enumerate(values))
        memory.put(AT, "large", "large " * 300_000)
        memory.put(AT, "bytes", bytes(range(256)) * 8)
    with opened(store, policies[change]) as memory:
        if change == "own":
            memory.adapt("t", 16 << 10)
        assert memory.compact() == ({} if change == "encoder" else {"reencode": 62})
        assert due(memory) == [] and memory.compact() == {}
        assert [memory.get(AT, f"k{i}") for i in range(60)] == values
    with opened(store) as memory:  # a policy without the pack still reads them
        assert [memory.get(AT, f"k{i}") for i in range(60)] == values
        if change == "domain":
            (tmp_path / "named.nbp").unlink()
            assert memory.compact() == {"reencode": 62}
        assert due(memory) == []


def test_a_named_pack_that_is_gone(store: dict[str, Any], tmp_path: Path) -> None:
    values = [sample.value for sample in samples.generate(60, seed=1)]
    path = tmp_path / "named.nbp"
    adapt.adapt(values, path, size=16 << 10)
    named = f'[default]\ndomain = "{path}"\n'
    with opened(store, named) as memory:
        memory.put_many(PutOp(AT, f"k{i}", value) for i, value in enumerate(values))
    path.unlink()
    with opened(store, named + 'cold_after = "0s"\npromote_heat = "never"\n') as memory:  # the store has a copy
        with pytest.raises(NbmfError, match=r"named\.nbp"):
            memory.put(AT, "new", 1)
        assert [memory.get(AT, f"k{i}") for i in range(60)] == values
        assert memory.compact() == {"demote": 60}
        assert [memory.get(AT, f"k{i}") for i in range(60)] == values


# -- packs that come and go --------------------------------------------------------------------------------------------


@pytest.fixture
def adapted(store: dict[str, Any]) -> Iterator[tuple[Memory, Memory]]:
    """Two handles on a store whose tenant "t" has a pack."""
    with opened(store) as memory, opened(store) as other:
        values = [sample.value for sample in samples.generate(60, seed=1)]
        memory.put_many(PutOp(AT, f"k{i}", value) for i, value in enumerate(values))
        memory.adapt("t", 16 << 10)
        memory.compact()
        yield memory, other


@pytest.mark.parametrize("change", ["forget", "adapt"])
def test_a_put_whose_pack_goes_meanwhile(adapted: tuple[Memory, Memory], change: str) -> None:
    memory, other = adapted
    records = memory.records_of([PutOp(AT, "late", {"text": "encoded with the pack"})])
    assert records[0].codec == memory.codecs.packs.current("t")  # type: ignore[union-attr]
    if change == "forget":
        other.forget(("t", "none"))
        assert list(other.codecs.packs.files()) == []  # type: ignore[union-attr]
    else:
        other.put(AT, "k0", "another text, for another pack")
        other.adapt("t", 12 << 10)
        other.compact()
    memory.store(records)
    for one in (memory, other):
        assert one.get(AT, "late") == {"text": "encoded with the pack"}
        assert list(one.check()) == []


def test_a_pack_that_goes_between_its_choice_and_its_use(adapted: tuple[Memory, Memory], monkeypatch: Any) -> None:
    memory, other = adapted
    pack = other.codecs.packs.current("t")  # type: ignore[union-attr]
    choose = other.with_own_pack

    def late(*args: Any) -> Any:
        chosen = choose(*args)
        if chosen.domain == pack:
            memory.forget(("t", "none"))
        return chosen

    monkeypatch.setattr(other, "with_own_pack", late)
    other.put(AT, "late", 1)
    assert memory.get(AT, "late") == 1
    assert list(memory.check()) == []


@pytest.mark.parametrize("first", [True, False])
def test_nothing_is_learned_across_a_forget(store: dict[str, Any], monkeypatch: Any, first: bool) -> None:
    memory, other = opened(store), opened(store)
    memory.put_many(PutOp(AT, f"k{i}", sample.value) for i, sample in enumerate(samples.generate(60, seed=1)))
    if not first:
        memory.adapt("t", 16 << 10)
    learn = learning.learn
    monkeypatch.setattr(learning, "learn", lambda *a, **k: (learn(*a, **k), other.forget(("t", "none")))[0])
    with memory, other:
        with pytest.raises(PolicyError, match="forgotten"):
            memory.adapt("t", 16 << 10)
        assert list(memory.codecs.packs.files()) == []  # type: ignore[union-attr]
        assert list(memory.check()) == []


def test_a_pack_that_is_learned_while_another_forgets(adapted: tuple[Memory, Memory], monkeypatch: Any) -> None:
    memory, other = adapted
    recode = learning._recode
    calls = []

    def meddle(*args: Any, **options: Any) -> None:
        recode(*args, **options)
        if not calls:
            other.adapt("t", 12 << 10)
            other.put(AT, "late", {"text": "encoded with the new pack"})
        calls.append(args)

    monkeypatch.setattr(learning, "_recode", meddle)
    assert memory.forget(("t", "none")) == 0
    assert len(calls) == 2
    assert memory.get(AT, "late") == {"text": "encoded with the new pack"}
    assert list(memory.codecs.packs.files()) == []  # type: ignore[union-attr]
    assert list(memory.check()) == []


def test_a_record_that_changes_while_its_pack_is_forgotten(adapted: tuple[Memory, Memory], monkeypatch: Any) -> None:
    memory, other = adapted
    other.put(AT, "renewed", {"text": "with the pack"}, ttl=60)
    recode = memory.tiers.recode
    calls = []

    def meddle(moves: Any) -> int:
        if not calls:
            other.get(AT, "renewed")
        calls.append(moves)
        return recode(moves)

    monkeypatch.setattr(memory.tiers, "recode", meddle)
    memory.forget(("t", "none"))
    assert memory.get(AT, "renewed") == {"text": "with the pack"}
    assert list(memory.check()) == []


def test_packs_of_tenants_without_records_go(adapted: tuple[Memory, Memory]) -> None:
    memory, _ = adapted
    packs = memory.codecs.packs
    assert packs is not None and packs.current("t")
    for item in memory.search(("t",), limit=99):
        memory.delete(item.namespace, item.key)
    memory.compact()
    assert list(packs.files()) == []
    memory.put(AT, "k", 1)
    assert memory.get(AT, "k") == 1


def test_a_few_records_are_too_few(store: dict[str, Any]) -> None:
    with opened(store) as memory:
        memory.put(AT, "k", 1)
        for tenant in ("t", "none"):
            with pytest.raises(DataError, match="too few"):
                memory.adapt(tenant)
        with pytest.raises(PolicyError):
            memory.adapt("")


# -- packs that are learned by themselves ------------------------------------------------------------------------------


LEARN = "[tenant.t]\nlearn = true\n"


def talk(first: int, count: int, tenant: str = "t") -> list[PutOp]:
    found = samples.generate(count, seed=first + 1)
    return [PutOp((tenant, "s"), f"k{first + i}", sample.value) for i, sample in enumerate(found)]


def test_aging_learns_packs(store: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "LEARN_FIRST", 100)
    with opened(store, LEARN) as memory:
        packs = memory.codecs.packs
        assert packs is not None
        memory.put_many(talk(0, 99))
        memory.put_many(talk(0, 150, "u"))
        assert memory.compact() == {}
        memory.put_many(talk(99, 1))
        assert memory.compact()["learn"] == 1
        first = packs.current("t")
        assert first and not packs.current("u")
        assert any(record.codec == first for record in memory.warm.scan(("t",)))
        assert memory.compact() == {}
        memory.put_many(talk(100, 299))
        assert "learn" not in memory.compact()
        memory.put_many(talk(399, 1))
        assert memory.compact()["learn"] == 1
        assert packs.current("t") != first and packs.of("t") == [packs.current("t")]
        assert memory.forget(("t", "s")) == 400
        assert packs.of("t") == []
        assert memory.compact() == {}
        assert list(memory.check()) == []


def test_aging_passes_over_what_cannot_be_learned_from(store: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "LEARN_FIRST", 60)
    with opened(store, "[default]\nlearn = true\n") as memory:
        memory.put_many(PutOp(("t",), f"k{i}", np.full(4, i, np.float32)) for i in range(80))
        assert memory.compact() == {}
        packs = memory.codecs.packs
        assert packs is not None and packs.current("t") == ""


@pytest.mark.parametrize(
    "policy",
    [
        'cold_after = "0s"\npromote_heat = "never"',
        'encoder = "zstd"',
        'encoder = "stored"',
        "\n[rollout]\npercent = 0",
    ],
)
def test_aging_learns_nothing_that_nobody_would_use(
    store: dict[str, Any], monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setattr(learning, "LEARN_FIRST", 60)
    with opened(store, f"[default]\nlearn = true\n{policy}\n") as memory:
        memory.put_many(talk(0, 80))
        assert "learn" not in memory.compact()
        packs = memory.codecs.packs
        assert packs is not None and packs.current("t") == ""


def test_aging_learns_no_pack_over_a_damaged_one(store: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "LEARN_FIRST", 60)
    with opened(store) as memory:
        memory.put_many(talk(0, 60))
        memory.adapt("t")
        packs = memory.codecs.packs
        assert packs is not None
        (path,) = packs.files()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with opened(store, LEARN) as memory:
        memory.put_many(talk(60, 200, "u"))
        memory.compact()
        assert [str(path)] == [fault.where for fault in memory.check()]


def test_a_pack_that_was_never_finished_is_forgotten(store: dict[str, Any]) -> None:
    with opened(store) as memory:
        memory.put_many(talk(0, 60))
        memory.adapt("t")
        packs = memory.codecs.packs
        assert packs is not None
        (path,) = packs.files()
        # What a kill leaves of the first pack of a tenant.
        path.with_name("current").unlink()
        path.rename(path.with_name(f"{path.name}.new"))
        memory.forget(AT)
        assert not path.parent.exists()


# -- what only reads makes nothing -------------------------------------------------------------------------------------


def test_reading_makes_no_tenant(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "s", key=KEY, embedder=None, policy=Policy.parse(COLD)) as memory:
        memory.put(AT, "k", 1)
        memory.compact()
        keys = memory.parts.keys
        assert keys is not None
        before = keys.entries()
        assert len(before) == 1
        nobody = ("nobody",)
        assert memory.get(nobody, "k") is None
        assert memory.delete(nobody, "k") is False
        assert memory.search(nobody) == [] and memory.list_namespaces(nobody) == []
        assert memory.forget(nobody) == 0
        for bad in ({1}, object()):
            with pytest.raises(NbmfError):
                memory.put(nobody, "k", bad)
        memory.compact(), list(memory.check()), memory.stats(measure=True)
        assert keys.entries() == before


def test_closing_twice(store: dict[str, Any]) -> None:
    with closing(opened(store, COLD)) as memory:
        memory.put(AT, "k", 1)
        memory.compact()
        memory.close()
        for call in (lambda: memory.get(AT, "k"), lambda: memory.put(AT, "k", 1), lambda: memory.forget(AT)):
            with pytest.raises(NbmfError, match="closed"):
                call()
    assert aging.disk_bytes(Path(store["address"])) > 0
