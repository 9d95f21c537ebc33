"""Tenants over SQLite tiers: the shared suite, what the raw files show, damage, forgetting, many tenants, processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conformance import Conformance, Medium, addresses, found_in, pages
from oracle import NOW, rec

from nbmf.errors import CorruptRecord, NbmfError, PolicyError, StoreError
from nbmf.store import positions
from nbmf.store.base import Changes, Codes, Delete, Expire, Fault, Forget, Get, Namespaces, Put, Record, Scan, Tier
from nbmf.store.keys import Keyring
from nbmf.store.sqlite import SQLiteTier
from nbmf.store.tenants import Tenants

MASTER = bytes(range(32))
KILLS = pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")


class Store(Medium):
    """A store of tenants in a directory."""

    def __init__(self, root: Path, master: bytes | None = MASTER) -> None:
        self.root = root
        self.master = master
        self.plain = master is None

    def keys(self) -> Keyring:
        return Keyring(self.root / "keys", self.master)

    def open(self, open_most: int = 64) -> Tenants:
        return Tenants(self.root / "tenants", self.keys(), SQLiteTier, open_most)

    def files(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if path.is_file())

    def databases(self) -> list[Path]:
        return [path for path in self.files() if path.suffix == ".db" and path.name != "positions.db"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def tier(store: Store) -> Iterator[Tenants]:
    with closing(store.open()) as tier:
        yield tier


class TestEncrypted(Conformance):
    @pytest.fixture
    def medium(self, tmp_path: Path) -> Medium:
        return Store(tmp_path)


@pytest.mark.slow
class TestPlain(Conformance):
    @pytest.fixture
    def medium(self, tmp_path: Path) -> Medium:
        return Store(tmp_path, None)


def filled(tier: Tier, tenants: int = 3, each: int = 30) -> list[Record]:
    """Records whose every text is to be found in no file of an encrypted store."""
    put = [
        rec(
            f"needle-key-{i}",
            (f"needle-tenant-{t}", f"needle-space-{i % 3}"),
            b"needle value %d of %d, not compressed at all" % (i, t),
            cls=f"needle-class-{i % 2}",
            meta=b'{"needle":%d}' % i,
            code=b"needle code %d" % i,
        )
        for t in range(tenants)
        for i in range(each)
    ]
    tier.batch([Put(record) for record in put])
    return put


# -- what the files show -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("master", [MASTER, None], ids=["encrypted", "plain"])
def test_a_search_of_the_raw_files(tmp_path: Path, master: bytes | None) -> None:
    """While the store is open, write-ahead logs and all, and after; in a plain store the search finds everything."""
    store = Store(tmp_path, master)
    needles = [b"needle value", b"needle-key", b"needle-tenant", b"needle-space", b"needle-class", b'{"needle"']
    needles += [b"needle code", b"needle", b"SQLite format 3", b"CREATE TABLE"]
    with closing(store.open()) as tier:
        filled(tier)
        assert tier.batch([Changes(0)])[0][0] > 0
        tier.batch([Delete(("needle-tenant-0", "needle-space-0"), "needle-key-0"), Forget(("needle-tenant-1",))])
        assert {".db-wal", ".db-shm"} <= {path.suffix for path in store.files()}
        live = {needle for _, needle in found_in(store.files(), *needles)}
    after = {needle for _, needle in found_in(store.files(), *needles)}
    assert live == after == (set() if master else set(needles))
    assert not [path for path in store.files() if "needle" in path.name]
    if master:
        keys = store.keys()
        secrets = [master, keys._root, *(keys.key(entry)._key for entry in keys.entries())]
        secrets += [keys.key(entry).derived("database") for entry in keys.entries()]
        assert found_in(store.files(), *secrets) == []


def test_any_flipped_byte_of_a_database_is_an_error(store: Store, tmp_path: Path) -> None:
    with closing(store.open()) as tier:
        put = filled(tier, tenants=1, each=60)
        tier.compact()
    (database,) = store.databases()
    raw = database.read_bytes()
    for place in [*range(104), *range(104, len(raw), 509), len(raw) - 1]:
        database.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
        with closing(store.open()) as tier:
            faults = list(tier.check())
            assert faults, place
            assert all(isinstance(fault, Fault) and database.name in fault.where for fault in faults)
            try:
                for record in put:
                    assert tier.get(record.namespace, record.key, NOW) == record, place
            except (CorruptRecord, StoreError):
                pass
        for suffix in ("-wal", "-shm"):
            Path(f"{database}{suffix}").unlink(missing_ok=True)
    database.write_bytes(raw)
    with closing(store.open()) as tier:
        assert list(tier.scan()) == sorted(put, key=lambda record: (record.namespace, record.key))
        assert list(tier.check()) == []


@pytest.mark.parametrize("master", [MASTER, None], ids=["encrypted", "plain"])
def test_databases_that_changed_places_are_noticed(tmp_path: Path, master: bytes | None) -> None:
    store = Store(tmp_path, master)
    with closing(store.open()) as tier:
        filled(tier, tenants=2)
    one, two = store.databases()
    one.rename(tmp_path / "aside")
    two.rename(one)
    (tmp_path / "aside").rename(two)
    with closing(store.open()) as tier:
        assert {fault.where for fault in tier.check()} == {one.name, two.name}
        if master:
            with pytest.raises(StoreError, match="is not a database of this key"):
                list(tier.scan())


def test_a_missing_database_is_an_error_and_never_made_anew(store: Store) -> None:
    with closing(store.open()) as tier:
        filled(tier, tenants=2)
    lost, other = store.databases()
    content = lost.read_bytes()
    lost.unlink()
    with closing(store.open()) as tier:
        assert [(fault.where, "is missing or empty" in fault.what) for fault in tier.check()] == [(lost.name, True)]
        failed = 0
        for name in ("needle-tenant-0", "needle-tenant-1"):
            try:
                tier.put(rec("new", (name,)))
            except StoreError as error:
                failed += 1
                assert str(error) == f"{lost} is missing or empty"
        assert failed == 1 and not lost.exists() and other.exists()
        lost.write_bytes(b"")
        assert [fault.where for fault in tier.check()] == [lost.name] and lost.read_bytes() == b""
        lost.write_bytes(content)
        assert len(list(tier.scan())) == 61
        assert list(tier.check()) == []


def test_a_database_without_key_is_reported_and_kept(store: Store) -> None:
    """An older key file put back must not make the store delete what it does not know."""
    with closing(store.open()) as tier:
        tier.put(rec("k", ("first",)))
        old = (store.root / "keys").read_bytes()
        tier.put(rec("k", ("second",)))
    newer = (store.root / "keys").read_bytes()
    (store.root / "keys").write_bytes(old)
    with closing(store.open()) as tier:
        (fault,) = tier.check()
        assert fault.what == "belongs to no tenant: its key is not in the key file"
        tier.compact()
        assert (store.root / "tenants" / fault.where).exists()
    (store.root / "keys").write_bytes(newer)
    with closing(store.open()) as tier:
        assert list(tier.check()) == [] and len(list(tier.scan())) == 2


def test_a_wrong_master_key(store: Store, tmp_path: Path) -> None:
    with closing(store.open()) as tier:
        filled(tier)
    for master in (bytes(32), None):
        with pytest.raises(StoreError, match="master key"):
            Store(tmp_path, master).open()


def test_rotation_leaves_the_data_as_it_is(store: Store, tmp_path: Path) -> None:
    with closing(store.open()) as tier:
        filled(tier)
        whole = list(tier.scan())
        before = [path.read_bytes() for path in store.databases()]
        tier.keys.rotate(bytes(32))
        assert list(tier.scan()) == whole
        tier.put(rec("new", ("new",)))
    with closing(Store(tmp_path, bytes(32)).open()) as tier:
        assert [record for record in tier.scan() if record.key != "new"] == whole
    assert set(before) <= {path.read_bytes() for path in store.databases()} or len(store.databases()) == 4
    with pytest.raises(StoreError, match="the master key is wrong"):
        store.open()


# -- forgetting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("master", [MASTER, None], ids=["encrypted", "plain"])
def test_a_forgotten_tenant_leaves_no_file_and_no_key(tmp_path: Path, master: bytes | None) -> None:
    store = Store(tmp_path, master)
    with closing(store.open()) as tier:
        put = filled(tier)
        entry = tier.keys.find("needle-tenant-1")
        assert entry is not None and tier.path(entry).exists()
        assert tier.batch([Forget(("needle-tenant-1",))]) == [30]
        assert not [path for path in store.files() if entry.file_id.hex() in path.name]
        raws = [path.read_bytes() for path in store.files() if path.name != "positions.db-wal"]
        assert not [raw for raw in raws if entry.wrapped in raw or b"needle-tenant-1" in raw]
        assert set(tier.scan()) == {record for record in put if record.namespace[0] != "needle-tenant-1"}
        assert tier.batch([Forget(("needle-tenant-1",))]) == [0]
        tier.put(rec("k", ("needle-tenant-1",)))
        again = tier.keys.find("needle-tenant-1")
        assert again is not None and again.file_id != entry.file_id
        assert list(tier.scan(("needle-tenant-1",))) == [rec("k", ("needle-tenant-1",))]
        assert tier.batch([Forget(())]) == [61]
        assert store.databases() == [] and tier.keys.entries() == tier.keys.shredded() == []
        assert list(tier.check()) == []


def test_a_tenant_is_forgotten_though_its_database_is_damaged(store: Store) -> None:
    with closing(store.open()) as tier:
        filled(tier, tenants=1)
    (database,) = store.databases()
    for content in (b"", os.urandom(50_000), None):
        database.unlink(missing_ok=True)
        if content is not None:
            database.write_bytes(content)
        kept = (store.root / "keys").read_bytes()
        with closing(store.open()) as tier:
            assert tier.batch([Forget(("needle-tenant-0",))]) == [0]
            assert store.databases() == [] and list(tier.check()) == [] and list(tier.scan()) == []
        (store.root / "keys").write_bytes(kept)


def test_whoever_has_a_forgotten_tenant_open_learns_of_it(store: Store, tier: Tenants) -> None:
    filled(tier, tenants=1)
    with closing(store.open()) as other:
        assert len(list(other.scan(("needle-tenant-0",)))) == 30
        assert tier.batch([Forget(("needle-tenant-0",))]) == [30]
        assert other.get(("needle-tenant-0", "needle-space-1"), "needle-key-1", NOW) is None
        assert list(other.scan()) == []
        other.put(rec("new", ("needle-tenant-0",)))
        assert list(tier.scan()) == [rec("new", ("needle-tenant-0",))]
        assert tier.batch([Forget(())]) == [1]
        other.put(rec("newer", ("needle-tenant-0",)), expected=None)
        assert not other.put(rec("newer", ("nobody",)), expected=b"blob")
        assert list(tier.scan()) == [rec("newer", ("needle-tenant-0",))]
        assert len(store.databases()) == 1 and list(tier.check()) == []


WRITER = """
import sys, time
from itertools import count
from pathlib import Path
from nbmf.store.base import Put, Record
from nbmf.store.keys import Keyring
from nbmf.store.sqlite import SQLiteTier
from nbmf.store.tenants import Tenants
root, me = Path(sys.argv[1]), sys.argv[2]
tier = Tenants(root / "tenants", Keyring(root / "keys", bytes(range(32))), SQLiteTier, 2)
for i in count():
    tier.put(Record((f"t{i % int(sys.argv[3])}", me), f"{i}", b"blob"))
    print(i, time.monotonic_ns(), flush=True)
"""


def writer(store: Store, me: int, tenants: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(store.root), f"w{me}", f"{tenants}"], stdout=subprocess.PIPE, text=True
    )


def first_lines(process: subprocess.Popen[str], count: int) -> str:
    assert process.stdout is not None
    return "".join(process.stdout.readline() for _ in range(count))


def acknowledged(process: subprocess.Popen[str], before: str) -> list[tuple[int, int]]:
    """Kills it; what it had acknowledged, and when."""
    process.kill()
    process.wait()
    assert process.stdout is not None
    lines = (before + process.stdout.read()).splitlines()
    process.stdout.close()
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines if len(line.split()) == 2]


@KILLS
@pytest.mark.skipif(sys.platform != "linux", reason="compares the clocks of processes")
def test_forgetting_under_writers_that_are_killed(store: Store, tier: Tenants) -> None:
    """Gone is what was acknowledged before the last forgetting began; there is what was acknowledged after its end."""
    processes = [writer(store, me, 2) for me in range(2)]
    before = [first_lines(process, 5) for process in processes]
    for _ in range(8):
        time.sleep(0.05)
        began = time.monotonic_ns()
        tier.batch([Forget(("t0",))])
        ended = time.monotonic_ns()
    for i, process in enumerate(processes):
        while not before[i].endswith("\n") or int(before[i].split()[-1]) < ended + 100_000_000:
            before[i] += first_lines(process, 1)
    acked = [acknowledged(process, lines) for process, lines in zip(processes, before, strict=True)]
    there = {(record.namespace, record.key) for record in tier.scan()}
    for me, lines in enumerate(acked):
        assert len(lines) > 20 and lines[-1][1] > ended
        for i, at in lines:
            address = ((f"t{i % 2}", f"w{me}"), f"{i}")
            if i % 2 or at - 1 > ended:
                # A put may have been committed before the forgetting and acknowledged after; the next one surely not.
                started = next((when for n, when in lines if n == i - 1), 0)
                assert (i % 2 == 0 and started < ended) or address in there
            elif at < began:
                assert address not in there
    assert list(tier.check()) == []


FORGETTER = """
import sys
from pathlib import Path
from nbmf.store.base import Forget
from nbmf.store.keys import Keyring
from nbmf.store.sqlite import SQLiteTier
from nbmf.store.tenants import Tenants
root = Path(sys.argv[1])
tier = Tenants(root / "tenants", Keyring(root / "keys", bytes(range(32))), SQLiteTier)
print("ready", flush=True)
tier.batch([Forget(("needle-tenant-0",))])
print("done", flush=True)
"""


@KILLS
def test_a_kill_while_forgetting_leaves_all_or_nothing(store: Store) -> None:
    for turn in range(7):
        with closing(store.open()) as tier:
            filled(tier, tenants=2)
        process = subprocess.Popen(
            [sys.executable, "-c", FORGETTER, str(store.root)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        if turn < 6:
            time.sleep(0.006 * turn)
            process.kill()
        done = "done" in process.communicate()[0]
        with closing(store.open()) as tier:
            left = len(list(tier.scan(("needle-tenant-0",))))
            assert left in ((0,) if done else (0, 30)) and (done or turn < 6)
            assert len(list(tier.scan(("needle-tenant-1",)))) == 30
            assert list(tier.check()) == [] and tier.keys.shredded() == []
            assert len(store.databases()) == (2 if left else 1)


def test_a_forgetting_that_was_cut_short_is_finished_when_opened(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(store.open()) as tier:
        filled(tier, tenants=2)

        def fails(self: Path, missing_ok: bool = False) -> None:
            raise PermissionError(13, "in use", str(self))

        with monkeypatch.context() as patch:  # as Windows does while another process has it open
            patch.setattr(Path, "unlink", fails)
            assert tier.batch([Forget(("needle-tenant-0",))]) == [30]
        assert len(store.databases()) == 2 and len(tier.keys.shredded()) == 1
        assert list(tier.scan(("needle-tenant-0",))) == [] and list(tier.check()) == []
    with closing(store.open()) as tier:
        assert len(store.databases()) == 1 and tier.keys.shredded() == []
        assert list(tier.check()) == []


# -- batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_over_several_tenants(tier: Tenants) -> None:
    a, b = rec("k", ("a",)), rec("k", ("b", "x"))
    out = tier.batch(
        [
            Put(a),
            Get(("b", "x"), "k", NOW),
            Put(b),
            Namespaces((), NOW),
            Delete(("a",), "k"),
            Scan((), None),
            Put(a),
            Forget(("a",)),
            Get(("a",), "k", NOW),
            Put(rec("k", ("a",), b"2")),
            Expire(NOW),
            Get(("a",), "k", NOW),
            Get(("c",), "k", NOW),
            Delete(("c",), "k"),
            Scan(("c",), NOW),
            Namespaces(("c",), NOW),
            Forget(("c", "d")),
            Forget(("c",)),
            Put(rec("k", ("c",)), expected=b""),
        ]
    )
    named = [("a",), ("b", "x")]
    assert out == [
        False, None, False, named, True, [b], False, 1, None, False, 0, rec("k", ("a",), b"2"),
        None, False, [], [], 0, 0, False,
    ]  # fmt: skip
    assert tier.keys.find("c") is None  # reading and deleting make no tenant


@pytest.mark.parametrize(
    "bad", [Put(rec("", ("b",))), Get((), "k", 0), Delete(("a", ""), "k"), Scan(("\0",), 0), Forget(("x" * 1025,))]
)
def test_nothing_happens_before_a_bad_operation_is_refused(tier: Tenants, bad: Any) -> None:
    with pytest.raises(PolicyError):
        tier.batch([Put(rec("k", ("a",))), Forget(("a",)), bad])
    assert tier.keys.entries() == [] and list(tier.scan()) == []


def test_the_order_of_tenants_is_total_and_pages_follow_it(store: Store, tier: Tenants) -> None:
    names = [f"tenant {i}" for i in range(9)]
    tier.batch([Put(rec(f"k{i}", (name, f"{i % 2}"), code=b"c")) for name in names for i in range(5)])
    whole = addresses(list(tier.scan()))
    assert len(whole) == 45
    order = sorted(names, key=tier.keys.name_id)
    assert [namespace[0] for namespace, _ in whole] == [name for name in order for _ in range(5)]
    for limit in (1, 4, 5, 7, 44, 45, 46):
        assert addresses(pages(tier, (), limit)) == whole
    codes: list[Any] = []
    while page := tier.batch([Codes(codes[-1][:2] if codes else None, 7)])[0]:
        codes += page
    assert [code[:2] for code in codes] == whole
    # A page goes on behind a tenant that is gone.
    after = whole[12]
    tier.batch([Forget((after[0][0],))])
    rest = [address for address in whole[13:] if address[0][0] != after[0][0]]
    assert addresses(tier.batch([Scan((), None, after, 100)])[0]) == rest
    stranger = tier.keys.name_id("unheard of")
    behind = [at for at in whole if at[0][0] != after[0][0] and tier.keys.name_id(at[0][0]) > stranger]
    assert addresses(tier.batch([Scan((), None, (("unheard of",), "k"), 100)])[0]) == behind


def test_many_tenants_with_few_files_open(store: Store) -> None:
    with closing(store.open(open_most=3)) as tier:
        for i in range(30):
            tier.put(rec("k", (f"t{i}",), b"%d" % i, expires=NOW + i, code=b"c"))
            assert len(tier._held) <= 3
        for i in range(29, -1, -1):
            assert tier.get((f"t{i}",), "k", NOW - 1) == rec("k", (f"t{i}",), b"%d" % i, expires=NOW + i, code=b"c")
        position, changed = tier.batch([Changes(0)])[0]
        assert len(changed) == 30
        assert tier.batch([Expire(NOW + 9, 4), Expire(NOW + 9)]) == [4, 6]
        assert len(tier.batch([Changes(position)])[0][1]) == 10
        sizes = tier.sizes()
        assert sizes["count"] == 20 and sizes["tenants"] > 0
        tier.compact()
        assert len(tier._held) <= 3 and list(tier.check()) == []
        # With all of them in use, more than the bound are open, and none is closed under its user.
        scans = [tier._using(entry) for entry in tier.keys.entries()[:6]]
        tiers = [scan.__enter__() for scan in scans]
        assert [len(one.batch([Scan((), None)])[0]) for one in tiers] == [len(list(one.scan())) for one in tiers]
        for scan in scans:
            scan.__exit__(None, None, None)
        tier.get(("t29",), "k", NOW)
        assert len(tier._held) <= 6
        entries = tier.keys.entries()
        tier._opened(next(e for e in entries if e.file_id not in tier._held)).users -= 1
        assert len(tier._held) <= 3


def test_threads_over_few_open_files(store: Store) -> None:
    failures: list[BaseException] = []
    with closing(store.open(open_most=2)) as tier:

        def work(me: int) -> None:
            try:
                for i in range(25):
                    tier.put(rec(f"{me}-{i}", (f"t{i % 5}",)))
                    assert tier.get((f"t{i % 5}",), f"{me}-{i}", NOW) is not None
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == [] and len(list(tier.scan())) == 100
        assert all(not held.users for held in tier._held.values())


@KILLS
def test_processes_make_the_same_tenants_at_once(store: Store) -> None:
    processes = [writer(store, me, 6) for me in range(3)]
    before = [first_lines(process, 15) for process in processes]
    acked = [acknowledged(process, lines) for process, lines in zip(processes, before, strict=True)]
    with closing(store.open()) as tier:
        there = {(record.namespace, record.key) for record in tier.scan()}
        wanted = {((f"t{i % 6}", f"w{me}"), f"{i}") for me, lines in enumerate(acked) for i, _ in lines}
        assert wanted <= there and len(there) <= len(wanted) + 3  # of each, one that it could not acknowledge
        assert all(len(lines) >= 15 for lines in acked)
        assert list(tier.check()) == []
    assert len(store.databases()) == 6


# -- versions and positions --------------------------------------------------------------------------------------------


def test_the_version_tells_of_tenants_that_are_not_open(store: Store, tier: Tenants) -> None:
    with closing(store.open(open_most=1)) as other:
        seen = tier.version()
        for name in ("a", "b", "c", "a"):
            other.put(rec("k", (name,)))
            assert tier.version() == other.version() != seen
            seen = tier.version()
        assert other.get(("a",), "k", NOW) is not None
        list(other.scan())
        assert tier.version() == seen


def test_no_version_holds_while_a_write_goes_on(store: Store, tier: Tenants, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not after its writer was killed, until it is surely dead."""
    tier.put(rec())
    seen = {tier.version()}
    dead = store.open()
    writing = dead._version.writing()
    writing.__enter__()
    for _ in range(5):
        assert tier.version() not in seen
        seen.add(tier.version())
    other = tier._version
    with other.writing():
        pass
    assert tier.version() != tier.version()
    monkeypatch.setattr(positions, "STALLED", 0.02)
    time.sleep(0.03)
    tier.version()
    fresh = tier.version()
    assert fresh == tier.version() and fresh not in seen
    writing.__exit__(None, None, None)  # it was only slow, after all
    assert tier.version() == tier.version() != fresh
    dead.close()


def test_positions_last_and_run_out(store: Store) -> None:
    """They mean the same to whoever opens the store; after many, the oldest are too old."""
    with closing(store.open()) as tier:
        assert tier.batch([Changes(0)]) == [(0, [])]
        assert not (store.root / "tenants" / "positions.db").exists()
        tier.put(rec("k", ("a",), code=b"c"))
        first = tier.batch([Changes(0)])[0][0]
    with closing(store.open()) as tier, closing(store.open()) as other:
        other.put(rec("k", ("b",), code=b"c"))
        second, changed = tier.batch([Changes(first)])[0]
        assert changed == [(("b",), "k")] and other.batch([Changes(first)]) == [(second, changed)]
        assert set(other.batch([Changes(0)])[0][1]) == {(("a",), "k"), (("b",), "k")}
        assert tier.batch([Changes(second + 1)])[0] == (second, None)
        at = second
        for i in range(positions.KEPT + 5):
            tier.put(rec(f"k{i}", (f"{i % 2}",), code=b"c"))
            now, changed = other.batch([Changes(at)])[0]
            assert now > at and changed == [((f"{i % 2}",), f"k{i}")]
            at = now
        assert tier.batch([Changes(second)])[0] == (at, None)
        assert len(tier.batch([Changes(at - 10)])[0][1]) == 10
        rows = tier._positions._connection
        assert rows is not None and rows.execute("SELECT count(*) FROM position").fetchall()[0][0] < 80


def test_a_forgotten_tenant_is_no_change_to_overlook(store: Store, tier: Tenants) -> None:
    """Also one that was made and forgotten between two readings: its codes may have been read meanwhile."""
    tier.put(rec("k", ("a",), code=b"c"))
    at = tier.batch([Changes(0)])[0][0]
    with closing(store.open()) as other:
        other.put(rec("k", ("b",), code=b"c"))
        assert len(tier.batch([Codes()])[0]) == 2
        other.batch([Forget(("b",))])
    now, changed = tier.batch([Changes(at)])[0]
    assert now > at and changed is None
    assert tier.batch([Changes(now)]) == [(now, [])]
    tier.put(rec("k", ("nothing to recall",)))
    tier.batch([Forget(("nothing to recall",))])
    assert tier.batch([Changes(now)]) == [(now, [])]


def test_tenants_that_did_not_change_are_not_opened_for_their_changes(store: Store) -> None:
    with closing(store.open(open_most=1)) as tier:
        for i in range(8):
            tier.put(rec("k", (f"t{i}",), code=b"c"))
        time.sleep(0.1)
        at = tier.batch([Changes(0)])[0][0]
        time.sleep(0.1)
        at = tier.batch([Changes(at)])[0][0]
        opened: list[Path] = []
        make = tier._make
        tier._make = lambda path, key: opened.append(path) or make(path, key)  # type: ignore[func-returns-value]
        assert tier.batch([Changes(at)]) == [(at, [])]
        assert opened == []
        tier.put(rec("l", ("t3",), code=b"c"))
        opened.clear()
        assert tier.batch([Changes(at)])[0][1] == [(("t3",), "l")]
        assert len(opened) <= 2


def test_a_closed_store_says_so_to_all(store: Store) -> None:
    tier = store.open()
    filled(tier, tenants=1)
    tier.close()
    tier.close()
    for call in (tier.version, tier.compact, tier.sizes, lambda: list(tier.check()), lambda: tier.batch([Scan((), 0)])):
        with pytest.raises(StoreError, match="closed"):
            call()


def test_a_directory_that_cannot_be_made(store: Store) -> None:
    (store.root / "tenants").write_bytes(b"a file")
    with pytest.raises(NbmfError, match="tenants"):
        store.open()
    shutil.rmtree(store.root)
    with pytest.raises(NbmfError, match="keys"):
        store.open()
