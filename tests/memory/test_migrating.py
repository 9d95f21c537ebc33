"""`Memory` as the end of a migration and as its beginning: every record verified, whatever and wherever it is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "stress"))

from crash_migrate import KEY as STUB_KEY
from crash_migrate import write_old_store

from nbmf import samples
from nbmf.codec import values
from nbmf.errors import PolicyError
from nbmf.memory import Memory, PutOp, items
from nbmf.memory.adapters import MemoryDestination, source_of
from nbmf.policy.migrate import migrate_to
from nbmf.policy.migration.report import Report, Rollback
from nbmf.policy.policy import Policy
from nbmf.policy.sources import Incoming, open_source

KEY = bytes(range(32))
COLD = Policy.parse('[default]\ncold_after = "0s"\npromote_heat = "never"\n')
NS = ("t", "s")


class Clock:
    def __init__(self) -> None:
        self.now = 1_750_000_000_000

    def time_ns(self) -> int:
        return self.now * 1_000_000


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a store with records of every kind in both tiers."""
    clock = Clock()
    monkeypatch.setattr(items, "time", clock)
    odd: list[Any] = ["", None, 1.0, True, b"\0\xff", "\ud83d", {"z": 1, "a": [10**5000]}]
    odd.append(np.array([np.nan], np.float32))
    with Memory.open(tmp_path / "from", key=b"", embedder=None, policy=COLD) as memory:
        for i, value in enumerate([sample.value for sample in samples.generate(60, seed=9)] + odd):
            clock.now += 977
            meta = {"z": i, "a": [1.0, None]} if i % 3 else None
            memory.put(NS if i % 2 else ("u",), f"k{i}", value, cls=f"c{i % 3}", meta=meta)
            clock.now += 5
            if i % 4 == 0:
                memory.put(NS if i % 2 else ("u",), f"k{i}", value, cls="changed", ttl=1e6, meta=meta)
            if i == 40:
                memory.compact()
        MemoryDestination(memory).put_many(
            [
                Incoming(NS, "nan", {"a": float("nan"), "b": [float("-inf")]}, meta={"n": float("nan"), "a": 1}),
                Incoming(NS, "preview", "a cut text", fidelity="semantic", created=5, updated=9),
                Incoming(NS, "short", 1, created=5, updated=9, ttl=60_000, expires=clock.now + 60_000),
            ]
        )
    monkeypatch.undo()
    return tmp_path / "from"


def everything(memory: Memory) -> dict[Any, Any]:
    """All that records are, by address."""
    out = {}
    for record, _ in memory.live((), None):
        pair = memory.codecs.decode(record.codec, record.blob)
        about = (record.cls, record.fidelity, record.created, record.updated, record.ttl, record.expires, record.meta)
        out[record.namespace, record.key] = (pair, about)
    return out


def pairs(found: dict[Any, Any]) -> dict[Any, Any]:
    return {at: pair for at, (pair, _) in found.items()}


def run(source: Any, memory: Memory, folder: Path, **options: Any) -> Report:
    report = migrate_to(source, MemoryDestination(memory), folder=folder, **options)
    assert isinstance(report, Report)
    return report


def test_from_plain_to_encrypted(filled: Path, tmp_path: Path) -> None:
    with (
        Memory.open(filled, key=b"", embedder=None) as old,
        Memory.open(tmp_path / "to", key=KEY, embedder=None, policy=COLD) as new,
    ):
        wanted = everything(old)
        del wanted[NS, "short"]  # which has expired since
        report = run(source_of(old), new, tmp_path / "m", batch=7)
        assert report.ok and report.failures == [] and report.unreadable == []
        assert (report.put, report.verified, report.expired) == (len(wanted), len(wanted), 1)
        assert everything(new) == wanted
        new.compact()
        assert pairs(everything(new)) == pairs(wanted)
        assert new.item(NS, "nan").meta.keys() == {"n", "a"}  # type: ignore[union-attr]
        assert list(new.item(NS, "nan").meta) == ["n", "a"]  # type: ignore[union-attr, arg-type]
        assert list(new.check()) == []
        assert run(source_of(old), new, tmp_path / "m").finished_before
        again = run(source_of(old), new, tmp_path / "again")
        assert again.ok and (again.same, again.put) == (len(wanted), 0)
        # And back.
        with Memory.open(tmp_path / "back", key=b"", embedder=None) as back:
            assert run(source_of(new), back, tmp_path / "b").ok
            assert pairs(everything(back)) == pairs(wanted)


def test_times_and_lives_are_kept(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        far = items.now() + 10_000_000
        memory_end = MemoryDestination(memory)
        memory_end.put_many(
            [
                Incoming(NS, "all", 1, created=10, updated=20, ttl=60_000, expires=far),
                Incoming(NS, "created", 1, created=10),
                Incoming(NS, "updated", 1, updated=20),
                Incoming(NS, "ttl", 1, ttl=60_000),
            ]
        )
        found = memory_end.read_many([(NS, key) for key in ("all", "created", "updated", "ttl")])
        times = {item.key: (item.created, item.updated, item.ttl, item.expires) for item in found if item}
        assert times["all"] == (10, 20, 60_000, far)
        assert times["created"] == (10, 10, None, None) and times["updated"] == (20, 20, None, None)
        assert times["ttl"][2] == 60_000 and items.now() < (times["ttl"][3] or 0) <= items.now() + 60_000
        assert memory_end.read(NS, "none") is None
        item = memory.item(NS, "all")  # a read renews as ever
        assert item is not None and item.expires_at is not None
        assert abs(item.expires_at.timestamp() * 1000 - items.now() - 60_000) < 5000


@pytest.mark.parametrize("undo", [False, True])
def test_over_records_that_are_cold_by_now(filled: Path, tmp_path: Path, undo: bool) -> None:
    with (
        Memory.open(filled, key=b"", embedder=None) as old,
        Memory.open(tmp_path / "to", key=KEY, embedder=None, policy=COLD) as new,
    ):
        new.put(NS, "k1", "was there before", cls="mine")
        new.put(("mine",), "k", "untouched")
        new.compact()
        before = everything(new)
        with pytest.raises(PolicyError, match="conflict"):
            run(source_of(old), new, tmp_path / "m")
        assert everything(new) == before
        report = run(source_of(old), new, tmp_path / "m", on_conflict="replace")
        assert report.ok and report.replaced == 1
        assert everything(new)[NS, "k1"][0] == everything(old)[NS, "k1"][0]
        new.compact()
        if undo:
            undone = migrate_to(source_of(old), MemoryDestination(new), folder=tmp_path / "m", undo=True)
            assert isinstance(undone, Rollback) and undone.ok
            assert pairs(everything(new)) == pairs(before)
        assert list(new.check()) == []


def test_from_the_old_store(tmp_path: Path) -> None:
    write_old_store(tmp_path / "old", 120, seed=1)
    with open_source(tmp_path / "old", key=STUB_KEY) as source:
        wanted = {(item.namespace, item.key): item for item in source.items() if isinstance(item, Incoming)}
    with Memory.open(tmp_path / "to", key=KEY, embedder=None, policy=COLD) as memory:
        report = run(tmp_path / "old", memory, tmp_path / "m", key=STUB_KEY)
        assert report.ok and report.put == report.verified == len(wanted) and len(report.unreadable) == 2
        for _ in ("warm", "cold"):
            for (namespace, key), incoming in wanted.items():
                item = memory.item(namespace, key)
                assert item is not None
                assert values.to_raw(item.value, allow_nan=True) == values.to_raw(incoming.value, allow_nan=True)
                assert (item.cls, item.fidelity, item.meta) == (incoming.cls, incoming.fidelity, incoming.meta)
            memory.compact()
        assert {item.fidelity for item in memory.search((), limit=999)} == {"lossless", "semantic"}


def test_a_quota_holds_for_migrations_too(filled: Path, tmp_path: Path) -> None:
    policy = Policy.parse("[tenant.t]\nquota_records = 5\n")
    with (
        Memory.open(filled, key=b"", embedder=None) as old,
        Memory.open(tmp_path / "to", embedder=None, policy=policy) as new,
    ):
        with pytest.raises(PolicyError, match="5 records"):
            run(source_of(old), new, tmp_path / "m")
        assert len(new.search(("t",), limit=99)) == 0


def test_a_record_that_cannot_be_read_is_kept_as_it_is(filled: Path, tmp_path: Path) -> None:
    from nbmf.store.base import Record

    with (
        Memory.open(filled, key=b"", embedder=None) as old,
        Memory.open(tmp_path / "to", embedder=None) as new,
    ):
        old.warm.put(Record(NS, "bad", b"\x01broken", created=1, updated=1))
        report = run(source_of(old), new, tmp_path / "m")
        assert len(report.unreadable) == 1 and "bad" in report.unreadable[0]["origin"]
        assert (tmp_path / "m" / report.unreadable[0]["file"]).read_bytes() == b"\x01broken"
        assert new.get(NS, "bad") is None and report.put == report.verified > 60


def test_many_are_put_at_once(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        memory.put_many(PutOp(NS, f"k{i}", i) for i in range(300))
        assert len(list(source_of(memory).items())) == source_of(memory).count() == 300
