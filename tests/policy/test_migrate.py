"""The executor over real sources and real destinations: exact results, crashes, conflicts, rollback."""

import base64
import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from destinations import NOW, TableDestination, TierDestination
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf import samples
from nbmf.codec import kernel, stub
from nbmf.codec.codec import Codec
from nbmf.errors import CorruptRecord, FormatError, NbmfError, PolicyError, StoreError
from nbmf.policy.migrate import ON_CONFLICT, STUB_KEY, fingerprint, folder_for, migrate, migrate_to, rollback
from nbmf.policy.migration.journal import Journal
from nbmf.policy.migration.report import Report, Rollback
from nbmf.policy.sources import KINDS, Incoming, Item, StoreSource, Unreadable

NEW_KEY = bytes(range(32))
CRASH = Path(__file__).resolve().parent.parent / "stress" / "crash_migrate.py"


@pytest.fixture
def table(tmp_path: Path) -> Iterator[TableDestination]:
    destination = TableDestination(tmp_path / "table.db")
    yield destination
    destination.close()


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "migration" / "journal"


def listed(*items: Item, address: str = "a list") -> StoreSource:
    return StoreSource(address, lambda: iter(items), count=lambda: len(items))


def numbered(count: int, **fields: Any) -> list[Incoming]:
    return [Incoming(("n",), f"k{at}", {"n": at}, origin=f"item {at}", **fields) for at in range(count)]


def held(destination: Any) -> dict[str, Any]:
    return {item.key: item.value for item in destination.everything().values()}


class Killed(BaseException):
    """Stands for the end of the process at a chosen instant."""


class Dying:
    """A destination that ends the process before or after its n-th batch, as `kill -9` might."""

    def __init__(self, inner: TableDestination, at: int, after: bool) -> None:
        self.inner, self.left, self.after = inner, at, after
        self.read, self.delete_many = inner.read, inner.delete_many

    def put_many(self, items: Sequence[Incoming]) -> None:
        self.left -= 1
        if self.left == 0 and not self.after:
            raise Killed
        self.inner.put_many(items)
        if self.left == 0:
            raise Killed


# -- whole migrations --------------------------------------------------------------------------------------------------


def test_every_kind_of_value_through_codec_and_tier(tmp_path: Path, journal: Path) -> None:
    """The real thing: neural blobs in the warm tier, read back by the verification and again here."""
    values = [
        "a text", "lone \ud800", {"b": 1, "a": [1.0, True, None, -0.0]}, 10**50, float("nan"), b"\x00\xff",
        np.array([1.5, -0.0], np.float32), "", [], {},
    ]  # fmt: skip
    items = [
        Incoming(
            ("users", f"u{at}"),
            f"k{at}",
            value,
            cls="fact" if at % 2 else "",
            created=NOW - 1000 - at,
            updated=NOW - at,
            expires=NOW * 2 + at if at % 3 == 0 else None,
            ttl=60_000 if at % 3 == 0 else None,
            meta={"at": at, "nested": {"z": 1, "a": [None]}} if at % 2 else None,
            fidelity="semantic" if at == 0 else "lossless",
            note="truncated preview" if at == 0 else "",
            origin=f"item {at}",
        )
        for at, value in enumerate(values)
    ]
    destination = TierDestination(tmp_path / "warm.db", Codec())
    try:
        report = migrate(
            listed(*items),
            destination,
            journal=journal,
            batch=4,
            measure=lambda: sum(v for k, v in destination.tier.sizes().items() if k != "count"),
        )
        assert report.ok and report.put == report.verified == len(items)
        assert list(destination.tier.check()) == []
        found = destination.everything()
        for item in items:
            back = found[item.namespace, item.key]
            assert fingerprint(back) == fingerprint(item)
            assert replace(back, value=None) == replace(item, value=None, note="", origin="")
        assert report.classes == {"": 5, "fact": 5} and report.fidelities == {"semantic": 1, "lossless": 9}
        assert report.notes == {"truncated preview": 1} and (report.bytes_after or 0) > 0
    finally:
        destination.close()


def test_old_store_into_the_tier(tmp_path: Path, journal: Path) -> None:
    """The whole way over: a folder of the old store's files, in the open and sealed, into a sealed tier."""
    from test_sources import KEY, old_put, state

    root = tmp_path / "old"
    root.mkdir()
    chosen = samples.load()[:6]
    for at, sample in enumerate(chosen):
        old_put(root, f"key/{at}", sample.kind, stub.encode(sample.value, "lossless"), sealed=KEY if at % 2 else None)
    old_put(root, "cut", "doc", stub.encode("word " * 1000, "semantic"))
    torn = old_put(root, "torn", "doc", "?")
    torn.write_text('{"payload": {"meta')
    before = state(root)
    destination = TierDestination(tmp_path / "warm.db", Codec(), key=NEW_KEY)
    try:
        report = migrate_to(root, destination, folder=journal.parent, key=KEY, seal=NEW_KEY)
        assert isinstance(report, Report) and report.ok, report
        assert report.put == report.verified == 7 and report.notes == {"truncated preview": 1}
        assert [entry["origin"] for entry in report.unreadable] == ["torn__doc.json"]
        found = held(destination)
        assert [found[f"key_{at}"] for at in range(6)] == [sample.value for sample in chosen]
        assert found["cut"] == ("word " * 1000)[: stub.PREVIEW_CHARS]
        assert b"key_" not in journal.read_bytes(), "the journal of a sealed store names no keys"
        assert state(root) == before
    finally:
        destination.close()


def test_langgraph_into_the_tier(tmp_path: Path, journal: Path) -> None:
    langgraph = pytest.importorskip("langgraph.store.sqlite")
    path = tmp_path / "store.db"
    with langgraph.SqliteStore.from_conn_string(str(path)) as store:
        store.setup()
        for at, sample in enumerate(samples.load()[:5]):
            store.put(("users", f"u{at % 3}"), f"k{at}", {"value": sample.value}, ttl=1e6 if at % 2 else None)
        theirs = {(item.namespace, item.key): item for item in store.search((), limit=100)}
    destination = TierDestination(tmp_path / "warm.db", Codec())
    try:
        report = migrate_to(str(path), destination, folder=journal.parent)
        assert isinstance(report, Report) and report.ok and report.verified == 5
        found = destination.everything()
        assert found.keys() == theirs.keys()
        for address, item in found.items():
            assert item.value == theirs[address].value
            assert item.created == int(theirs[address].created_at.replace(tzinfo=UTC).timestamp() * 1000)
            assert (item.expires is None) == (item.ttl is None) == (int(item.key[1:]) % 2 == 0)
    finally:
        destination.close()


def test_the_report(tmp_path: Path, table: TableDestination, journal: Path) -> None:
    bad = Unreadable("line 3", "not JSON", b"\x00raw\xff")
    report = migrate(listed(*numbered(5, cls="fact"), bad, bad), table, journal=journal, batch=2)
    assert report.ok and (report.items, report.put, report.verified) == (7, 5, 5)
    kept = json.loads((journal.parent / "report.json").read_text())
    assert kept == report.to_dict() and kept["ok"] is True
    assert Report.from_dict(kept) == report
    text = (journal.parent / "report.txt").read_text()
    assert text == report.text()
    for said in (
        "every record read back and verified",
        "put                                      5",
        "line 3: not JSON",
    ):
        assert said in text
    for entry in report.unreadable:
        assert (journal.parent / entry["file"]).read_bytes() == bad.raw and entry["bytes"] == len(bad.raw)
    assert (journal.stat().st_mode & 0o777) == 0o600


def test_an_empty_source(table: TableDestination, journal: Path) -> None:
    report = migrate(listed(), table, journal=journal)
    assert report.ok and report.items == 0
    assert migrate(listed(), table, journal=journal).finished_before


def test_progress_is_told(table: TableDestination, journal: Path) -> None:
    ticks: list[tuple[Any, ...]] = []
    migrate(listed(*numbered(5)), table, journal=journal, batch=2, tick=lambda *args: ticks.append(args))
    for what in ("looking", "copying", "verifying"):
        assert [tick[1:] for tick in ticks if tick[0] == what] == [(2, 5), (4, 5), (5, 5)]


def test_a_dry_run_writes_nothing(tmp_path: Path, table: TableDestination, journal: Path) -> None:
    items = numbered(4)
    table.put_many([items[0], replace(items[1], value="other")])
    past = Incoming(("n",), "old", 1, expires=5, origin="old")
    bad = Unreadable("line 9", "torn", b"x")
    report = migrate(listed(*items, items[2], past, bad), table, journal=journal, dry_run=True, batch=3)
    assert not report.ok and report.dry_run and not journal.parent.exists()
    assert (report.put, report.same, report.twins, report.expired, report.items) == (2, 1, 1, 1, 7)
    assert [entry["origin"] for entry in report.conflicts] == ["item 1"]
    assert report.unreadable == [{"origin": "line 9", "reason": "torn", "file": None, "bytes": 1}]
    assert len(held(table)) == 2 and "nothing was written" in report.text()
    report = migrate(listed(*items), table, journal=journal, dry_run=True, on_conflict="keep")
    assert report.ok and report.kept == report.conflict_count == 1


# -- conflicts ---------------------------------------------------------------------------------------------------------


def test_a_conflict_fails_before_anything_is_written(table: TableDestination, journal: Path) -> None:
    items = numbered(6)
    table.put_many([replace(items[4], value="other")])
    with pytest.raises(PolicyError, match="1 conflicts, the first item 4: the destination has a different record"):
        migrate(listed(*items), table, journal=journal, batch=2)
    assert held(table) == {"k4": "other"} and not journal.exists()


@pytest.mark.parametrize("field", [{"cls": "x"}, {"meta": {"m": 1}}, {"fidelity": "semantic"}, {"value": {"n": 0.0}}])
def test_what_is_a_different_record(table: TableDestination, journal: Path, field: dict[str, Any]) -> None:
    item = Incoming(("n",), "k", {"n": 0}, origin="item")
    table.put_many([replace(item, **field)])
    with pytest.raises(PolicyError, match="conflict"):
        migrate(listed(item), table, journal=journal)


def test_keep_and_replace(tmp_path: Path, table: TableDestination, journal: Path) -> None:
    items = numbered(4)
    other = replace(items[1], value="other", cls="mine", created=5)
    table.put_many([items[0], other])
    report = migrate(listed(*items), table, journal=journal, on_conflict="keep")
    assert report.ok and (report.put, report.same, report.kept, report.verified) == (2, 1, 1, 3)
    assert held(table)["k1"] == "other" and report.conflicts[0]["key"] == "k1"
    second = journal.with_name("second")
    report = migrate(listed(*items), table, journal=second, on_conflict="replace")
    assert report.ok and (report.put, report.same, report.replaced, report.verified) == (0, 3, 1, 4)
    assert held(table)["k1"] == {"n": 1}
    undone = rollback(table, journal=second)
    assert (undone.restored, undone.deleted) == (1, 0)
    assert table.read(("n",), "k1") == replace(other, origin="")
    rollback(table, journal=journal)
    assert held(table) == {"k0": {"n": 0}, "k1": "other"}


def test_one_address_twice_in_the_source(tmp_path: Path, journal: Path) -> None:
    one, two, three = (Incoming(("n",), "k", value, origin=f"line {value}") for value in (1, 2, 3))
    other = Incoming(("n",), "k", "before", origin="")
    twin = replace(one, origin="line 1 again")
    for batch in (1, 2, 10):
        table = TableDestination(tmp_path / f"{batch}.db")
        folder = tmp_path / str(batch)
        try:
            with pytest.raises(PolicyError, match=r"line 2: line 1 has the same address, and differs"):
                migrate(listed(one, two), table, journal=folder / "fail", batch=batch)
            report = migrate(listed(one, twin), table, journal=folder / "twins", batch=batch)
            assert report.ok and (report.put, report.twins) == (1, 1)
            assert rollback(table, journal=folder / "twins").deleted == 1

            report = migrate(listed(one, two), table, journal=folder / "keep", batch=batch, on_conflict="keep")
            assert report.ok and (report.put, report.kept) == (1, 1) and held(table) == {"k": 1}
            rollback(table, journal=folder / "keep")

            source = listed(one, two, twin, three)
            report = migrate(source, table, journal=folder / "replace", batch=batch, on_conflict="replace")
            assert report.ok and (report.put, report.overridden, report.verified) == (4, 3, 1)
            assert held(table) == {"k": 3}
            assert rollback(table, journal=folder / "replace").deleted == 1 and not held(table)

            table.put_many([other])
            report = migrate(source, table, journal=folder / "over", batch=batch, on_conflict="replace")
            assert report.ok and (report.replaced, report.put, report.verified) == (1, 3, 1)
            assert rollback(table, journal=folder / "over").restored == 1 and held(table) == {"k": "before"}

            table.put_many([one])
            report = migrate(listed(one, two), table, journal=folder / "same", batch=batch, on_conflict="replace")
            assert report.ok and (report.same, report.replaced, report.verified) == (1, 1, 1)
            assert held(table) == {"k": 2}
        finally:
            table.close()


def test_what_the_destination_refuses_is_kept_and_listed(table: TableDestination, journal: Path) -> None:
    items = numbered(5)
    items[2] = replace(items[2], value="x" * (table.LARGEST + 1))
    report = migrate(listed(*items), table, journal=journal, batch=5)
    assert report.ok and report.put == 4 and held(table).keys() == {"k0", "k1", "k3", "k4"}
    (entry,) = report.unreadable
    assert entry["origin"] == "item 2" and "the destination refuses it" in entry["reason"]
    assert (journal.parent / entry["file"]).read_text() == items[2].value
    assert rollback(table, journal=journal).deleted == 4


def test_a_refusal_survives_a_crash(table: TableDestination, journal: Path) -> None:
    items = numbered(6)
    items[1] = replace(items[1], value="x" * (table.LARGEST + 1))
    items[4] = replace(items[4], value="y" * (table.LARGEST + 1))
    for at in range(1, 9):  # for each half: the whole batch, then its three items one by one
        run = journal.with_name(f"journal-{at}")
        with pytest.raises(Killed):
            migrate(listed(*items), Dying(table, at, after=False), journal=run, batch=3)
        report = migrate(listed(*items), table, journal=run, batch=3)
        assert report.ok and report.put == 4 and len(report.unreadable) == 2
        assert rollback(table, journal=run).deleted == 4 and not held(table)


# -- time --------------------------------------------------------------------------------------------------------------


def test_expired_items_stay_behind(table: TableDestination, journal: Path) -> None:
    now = int(time.time() * 1000)
    items = [
        Incoming(("n",), "past", 1, expires=now - 1, origin="a"),
        Incoming(("n",), "future", 2, expires=now + 10**9, ttl=5, origin="b"),
    ]
    report = migrate(listed(*items), table, journal=journal)
    assert report.ok and (report.put, report.expired, report.verified) == (1, 1, 1)
    found = table.read(("n",), "future")
    assert found and found.expires == now + 10**9 and found.ttl == 5 and held(table) == {"future": 2}


# -- crashes and resuming ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_each_batch(tmp_path: Path, after: bool) -> None:
    items = [*numbered(7), Unreadable("x", "torn", b"raw")]
    for at in range(1, 5):
        table = TableDestination(tmp_path / f"{at}.db")
        journal = tmp_path / f"{at}" / "journal"
        try:
            with pytest.raises(Killed):
                migrate(listed(*items), Dying(table, at, after), journal=journal, batch=2)
            report = migrate(listed(*items), table, journal=journal, batch=3)
            assert report.ok and report.resumed and (report.put, report.verified) == (7, 7)
            assert set(table.puts().values()) == {1}, "a record was put twice"
            assert held(table) == {f"k{n}": {"n": n} for n in range(7)}
            assert rollback(table, journal=journal).deleted == 7 and not held(table)
        finally:
            table.close()


def test_a_journal_cut_anywhere_in_its_last_line(tmp_path: Path, table: TableDestination, journal: Path) -> None:
    """A crash may leave any part of the last line; the destination, which comes after, has nothing of it then."""
    items = numbered(6)
    with pytest.raises(Killed):
        migrate(listed(*items), Dying(table, 3, after=False), journal=journal, batch=2)
    whole = journal.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    before = held(table)
    for end in [*range(start, len(whole), 5), len(whole) - 1, len(whole)]:
        journal.write_bytes(whole[:end])
        report = migrate(listed(*items), table, journal=journal, batch=2)
        assert report.ok and report.put == report.verified == 6
        assert set(table.puts().values()) == {1}
        table.delete_many([(("n",), key) for key in held(table).keys() - before.keys()])


def test_a_damaged_journal_is_refused(table: TableDestination, journal: Path) -> None:
    migrate(listed(*numbered(6)), table, journal=journal, batch=2)
    whole = journal.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for at in random.Random(5).sample(range(last), 60):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << random.Random(at).randrange(8)
        journal.write_bytes(damaged)
        with pytest.raises(FormatError):
            migrate(listed(*numbered(6)), table, journal=journal)
        assert journal.read_bytes() == damaged
    for foreign in (b"", b"# Title\n", b"one line without an end", whole[:10]):
        journal.write_bytes(foreign)
        with pytest.raises(FormatError, match="is not the journal of a migration"):
            migrate(listed(*numbered(6)), table, journal=journal)
        assert journal.read_bytes() == foreign, "a foreign file is left as it is"


def test_a_finished_migration_is_not_run_again(table: TableDestination, journal: Path) -> None:
    report = migrate(listed(*numbered(5)), table, journal=journal)
    table.delete_many([(("n",), "k1")])
    before = journal.read_bytes()

    def untouchable() -> Iterator[Item]:
        raise AssertionError("a finished migration reads no source")

    again = migrate(StoreSource("a list", untouchable), table, journal=journal)
    assert again == replace(report, finished_before=True) and again.ok and again.remark == ""
    assert "finished already; nothing was done" in again.text()
    assert journal.read_bytes() == before and "k1" not in held(table)
    table.delete_many([(("n",), f"k{at}") for at in range(5)])
    assert "none of the first 5 records" in migrate(listed(*numbered(5)), table, journal=journal).remark


def test_a_source_that_changes_between_runs(tmp_path: Path, table: TableDestination, journal: Path) -> None:
    items = numbered(6)
    with pytest.raises(Killed):
        migrate(listed(*items), Dying(table, 2, after=True), journal=journal, batch=2)
    changed = [*items[:1], replace(items[1], value="new"), *items[2:]]
    with pytest.raises(PolicyError, match="item 1 has changed since"):
        migrate(listed(*changed), table, journal=journal)
    with pytest.raises(PolicyError, match="fewer items"):
        migrate(listed(*items[:3]), table, journal=journal)
    with pytest.raises(PolicyError, match="is that of"):
        migrate(listed(*items, address="another list"), table, journal=journal)
    assert migrate(listed(*items), table, journal=journal).ok


def test_a_source_that_grows_while_it_is_copied(table: TableDestination, journal: Path) -> None:
    counts = iter([3, 3, 4])
    source = StoreSource("growing", lambda: iter(numbered(next(counts))))
    with pytest.raises(PolicyError, match="more items than when"):
        migrate(source, table, journal=journal)


def test_a_destination_that_was_emptied_is_noticed(tmp_path: Path, table: TableDestination, journal: Path) -> None:
    with pytest.raises(Killed):
        migrate(listed(*numbered(6)), Dying(table, 3, after=True), journal=journal, batch=2)
    other = TableDestination(tmp_path / "other.db")
    try:
        with pytest.raises(PolicyError, match="none of the records that"):
            migrate(listed(*numbered(6)), other, journal=journal)
    finally:
        other.close()


def test_someone_else_takes_the_address_of_a_doubtful_record(table: TableDestination, journal: Path) -> None:
    items = numbered(4)
    with pytest.raises(Killed):
        migrate(listed(*items), Dying(table, 2, after=False), journal=journal, batch=2)
    table.put_many([replace(items[2], value="someone else's")])
    for choice in ("fail", "keep"):
        with pytest.raises(PolicyError, match="item 2: a different record was put meanwhile"):
            migrate(listed(*items), table, journal=journal, on_conflict=choice)
    assert held(table)["k2"] == "someone else's"
    assert migrate(listed(*items), table, journal=journal, on_conflict="replace").ok


def test_two_migrations_with_one_journal(table: TableDestination, journal: Path) -> None:
    with Journal(journal), pytest.raises(PolicyError, match="another migration is at work"):
        migrate(listed(*numbered(2)), table, journal=journal)
    assert migrate(listed(*numbered(2)), table, journal=journal).ok


# -- verification ------------------------------------------------------------------------------------------------------


class Lossy(TableDestination):
    """A destination with a fault, which verification must find."""

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(path)
        self.fault = fault
        self.on = True

    def put_many(self, items: Sequence[Incoming]) -> None:
        changes: dict[str, dict[str, Any]] = {
            "type": {"value": {"n": 1.0}},
            "value": {"value": {"n": 2}},
            "class": {"cls": "wrong"},
            "meta": {"meta": {"m": 1}},
            "created": {"created": 7},
            "updated": {"updated": 7},
            "expires": {"expires": 10**14},
            "ttl": {"ttl": None},
        }
        changed = [
            replace(item, **changes[self.fault]) if self.on and item.key == "k1" and self.fault in changes else item
            for item in items
        ]
        super().put_many([item for item in changed if not (self.on and self.fault == "lost" and item.key == "k1")])

    def read(self, namespace: Any, key: str) -> Incoming | None:
        found = super().read(namespace, key)
        if found and self.on and self.fault == "corrupt" and key == "k1":
            raise CorruptRecord("its check is wrong")
        return found


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("lost", "missing"),
        ("type", "the value differs"),
        ("value", "the value differs"),
        ("class", "class, fidelity or meta differs"),
        ("meta", "class, fidelity or meta differs"),
        ("created", "created is 7, not 1000"),
        ("updated", "updated is 7, not 2000"),
        ("expires", "expires is 100000000000000, not 90000000000000"),
        ("ttl", "ttl is None, not 60"),
        ("corrupt", "unreadable in the destination: its check is wrong"),
    ],
)
def test_verification_finds(tmp_path: Path, journal: Path, fault: str, reason: str) -> None:
    items = numbered(3, created=1000, updated=2000, expires=9 * 10**13, ttl=60)
    table = Lossy(tmp_path / "lossy.db", fault)
    try:
        report = migrate(listed(*items), table, journal=journal)
        assert not report.ok and report.verified == 2 and report.failure_count == 1
        assert report.failures == [{"origin": "item 1", "namespace": ["n"], "key": "k1", "reason": reason}]
        assert "1 records are missing or differ" in report.text()
        again = migrate(listed(*items), table, journal=journal)
        assert not again.ok and not again.finished_before, "a migration that did not verify is not finished"
        table.on = False
        table.put_many([items[1]])
        assert migrate(listed(*items), table, journal=journal).ok
    finally:
        table.close()


def test_verification_finds_lost_bytes_of_unreadable_items(table: TableDestination, journal: Path) -> None:
    items = [*numbered(3), Unreadable("line 9", "torn", b"raw")]
    with pytest.raises(Killed):
        migrate(listed(*items, *numbered(5)[3:]), Dying(table, 2, after=True), journal=journal, batch=4)
    (file,) = (journal.parent / "unreadable").iterdir()
    file.unlink()
    report = migrate(listed(*items, *numbered(5)[3:]), table, journal=journal)
    assert not report.ok and "its bytes are not in unreadable/" in report.failures[0]["reason"]


# -- rollback ----------------------------------------------------------------------------------------------------------


def test_rollback_deletes_exactly_what_was_put(table: TableDestination, journal: Path) -> None:
    items = numbered(6)
    older = [items[0], Incoming(("n",), "mine", "mine", origin="")]
    table.put_many(older)
    migrate(listed(*items), table, journal=journal, batch=2)
    table.put_many([replace(items[3], value="changed since"), replace(items[4], cls="changed too")])
    table.delete_many([(("n",), "k5")])
    result = rollback(table, journal=journal, batch=2)
    assert (result.deleted, result.missing, result.changed_count) == (2, 1, 2)
    assert held(table) == {"k0": {"n": 0}, "mine": "mine", "k3": "changed since", "k4": {"n": 4}}
    assert [entry["key"] for entry in result.changed] == ["k3", "k4"] and "left because" in result.text()
    assert not journal.exists() and journal.with_name("journal.rolled-back").exists()
    with pytest.raises(PolicyError, match="nothing to roll back"):
        rollback(table, journal=journal)
    report = migrate(listed(*items), table, journal=journal, on_conflict="keep")
    assert report.ok and (report.put, report.same, report.kept) == (3, 1, 2)
    rollback(table, journal=journal)
    assert journal.with_name("journal.rolled-back-2").exists()


@pytest.mark.parametrize("after", [False, True])
def test_rollback_of_a_migration_that_crashed(tmp_path: Path, after: bool) -> None:
    items = numbered(6)
    for at in (1, 2, 3):
        table = TableDestination(tmp_path / f"{at}.db")
        journal = tmp_path / f"{at}" / "journal"
        try:
            table.put_many([replace(items[5], value="other")])
            with pytest.raises(Killed):
                dying = Dying(table, at, after)
                migrate(listed(*items), dying, journal=journal, batch=2, on_conflict="replace")
            rollback(table, journal=journal)
            assert held(table) == {"k5": "other"}
        finally:
            table.close()


def test_a_rollback_that_was_interrupted(table: TableDestination, journal: Path) -> None:
    items = numbered(6)
    table.put_many([replace(items[1], value="other")])
    migrate(listed(*items), table, journal=journal, on_conflict="replace")

    class Stopping:
        def __init__(self) -> None:
            self.put_many, self.read = table.put_many, table.read

        def delete_many(self, addresses: Any) -> None:
            raise Killed

    with pytest.raises(Killed):
        rollback(Stopping(), journal=journal)
    assert held(table)["k1"] == "other" and journal.exists()
    result = rollback(table, journal=journal)
    assert (result.deleted, result.restored, result.changed_count) == (5, 1, 0)
    assert held(table) == {"k1": "other"}


# -- the sealed journal ------------------------------------------------------------------------------------------------


def test_a_sealed_journal(table: TableDestination, journal: Path) -> None:
    pytest.importorskip("cryptography")
    items = numbered(6)
    secret = Incoming(("n",), "k1", "an older secret", origin="")
    table.put_many([secret])
    options: dict[str, Any] = {"journal": journal, "batch": 2, "on_conflict": "replace"}
    with pytest.raises(Killed):
        migrate(listed(*items), Dying(table, 2, after=True), seal=b"key", **options)
    raw = journal.read_bytes()
    bodies = b"".join(base64.b64decode(line[9:]) for line in raw.splitlines())
    assert b"k1" not in bodies and b"secret" not in bodies and b"a list" not in bodies
    for wrong in (b"other", None):
        with pytest.raises(PolicyError, match=r"the key does not open|the store's key is wanted"):
            migrate(listed(*items), table, seal=wrong, **options)
    header, *lines = raw.splitlines(keepends=True)
    journal.write_bytes(header + b"".join(reversed(lines)))
    with pytest.raises(PolicyError, match="does not open"):
        migrate(listed(*items), table, seal=b"key", **options)
    journal.write_bytes(raw)
    assert migrate(listed(*items), table, seal=b"key", **options).ok
    assert rollback(table, journal=journal, seal=b"key").restored == 1
    assert held(table) == {"k1": "an older secret"}


# -- the entry of the command line -------------------------------------------------------------------------------------


def test_migrate_to(tmp_path: Path, table: TableDestination, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_sources import KEY, old_put

    root = tmp_path / "old store"
    root.mkdir()
    old_put(root, "a", "fact", stub.encode("sealed", "lossless"), sealed=KEY)
    folder = folder_for(root, tmp_path / "agent.nbmf")
    assert folder.parent == tmp_path / "agent.nbmf.migrations" and folder.name.startswith("old_store-")
    assert folder == folder_for(str(root), tmp_path / "agent.nbmf")
    assert folder != folder_for(tmp_path / "elsewhere" / "old store", tmp_path / "agent.nbmf")
    with pytest.raises(PolicyError, match="the old store's key is wanted"):
        migrate_to(root, table, folder=folder)
    monkeypatch.setenv("NBMF_STUB_KEY", KEY.decode())
    dry = migrate_to(root, table, folder=folder, dry_run=True)
    assert isinstance(dry, Report) and dry.ok and dry.put == 1 and not folder.exists()
    report = migrate_to(root, table, folder=folder, namespace="from/old")
    assert isinstance(report, Report) and report.ok
    assert table.read(("from", "old"), "a") is not None
    undone = migrate_to(root, table, folder=folder, undo=True)
    assert isinstance(undone, Rollback) and undone.ok and undone.to_dict()["deleted"] == 1
    assert isinstance(migrate_to(listed(*numbered(2)), table, folder=tmp_path / "f"), Report)


@pytest.mark.parametrize("options", [{"on_conflict": "guess"}, {"batch": 0}])
def test_bad_options(table: TableDestination, journal: Path, options: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        migrate(listed(), table, journal=journal, **options)


def test_a_folder_that_cannot_be_written(tmp_path: Path, table: TableDestination) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        migrate(listed(*numbered(1)), table, journal=tmp_path / "file" / "journal")
    with pytest.raises(NbmfError):
        rollback(table, journal=tmp_path / "file" / "journal")


# -- at random ---------------------------------------------------------------------------------------------------------

small = st.builds(
    Incoming,
    st.sampled_from([("a",), ("a", "b")]),
    st.sampled_from(["k1", "k2", "k3", "k4"]),
    st.sampled_from([1, 1.0, True, "1", None, b"1", [1]]),
    origin=st.just("item"),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(small | st.builds(Unreadable, st.just("bad"), st.just("torn"), st.binary(max_size=3)), max_size=12),
    st.lists(small, max_size=4, unique_by=lambda item: (item.namespace, item.key)),
    st.sampled_from(["keep", "replace"]),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=3),
    st.booleans(),
)
def test_any_crashes_any_conflicts(
    tmp_path_factory: pytest.TempPathFactory,
    items: list[Item],
    there: list[Incoming],
    on_conflict: str,
    batch: int,
    crashes: list[tuple[int, bool]],
    finish: bool,
) -> None:
    """However often it is killed: the outcome is that of the policy applied item by item; rollback undoes all of it."""
    folder = tmp_path_factory.mktemp("any")
    table = TableDestination(folder / "table.db")
    table.connection.execute("PRAGMA synchronous = OFF")
    journal = folder / "migration" / "journal"
    try:
        table.put_many(there)
        before = {address: fingerprint(item) for address, item in table.everything().items()}
        wanted = dict(before)
        for item in items:
            if isinstance(item, Incoming):
                address = (item.namespace, item.key)
                if on_conflict == "replace" or address not in wanted:
                    wanted[address] = fingerprint(item)
        for at, after in crashes:
            with contextlib.suppress(Killed):
                migrate(listed(*items), Dying(table, at, after), journal=journal, batch=batch, on_conflict=on_conflict)
        if not finish:
            if journal.exists():
                assert rollback(table, journal=journal, batch=batch).changed_count == 0
            assert {address: fingerprint(item) for address, item in table.everything().items()} == before
        report = migrate(listed(*items), table, journal=journal, batch=batch, on_conflict=on_conflict)
        assert report.ok
        assert {address: fingerprint(item) for address, item in table.everything().items()} == wanted
        parts = report.put + report.same + report.replaced + report.kept + report.twins + report.expired
        assert report.items == len(items) == parts + len(report.unreadable)
        for entry, item in zip(
            report.unreadable, (item for item in items if isinstance(item, Unreadable)), strict=True
        ):
            assert (journal.parent / entry["file"]).read_bytes() == item.raw
        result = rollback(table, journal=journal, batch=batch)
        assert result.changed_count == result.missing == 0
        assert {address: fingerprint(item) for address, item in table.everything().items()} == before
    finally:
        table.close()


# -- kill -9 -----------------------------------------------------------------------------------------------------------


def crash_loop(tmp_path: Path, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(CRASH), "--folder", str(tmp_path / "crash"), "--json", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_kill_at_random_instants(tmp_path: Path) -> None:
    result = crash_loop(tmp_path, "--kills", "6", "--records", "250", "--destination", "table")
    assert result["kills"] >= 6


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_many_kills_over_the_tier(tmp_path: Path) -> None:
    if kernel.backend != "c":
        pytest.skip("too many records for the NumPy kernel")
    result = crash_loop(tmp_path, "--kills", "40", "--records", "1500", "--destination", "tier")
    assert result["kills"] >= 40


def test_the_guide_names_every_kind_and_choice() -> None:
    guide = Path(__file__).resolve().parent.parent.parent / "docs" / "migrating.md"
    if not guide.exists():
        pytest.skip("not run from the repository")
    text = guide.read_text(encoding="utf-8")
    assert [name for name in (*KINDS, *ON_CONFLICT, STUB_KEY) if f"`{name}`" not in text] == []
