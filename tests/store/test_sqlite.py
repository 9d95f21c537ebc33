"""What is the SQLite tier's own: its file, its seals, its size, several processes, and the faults of a medium."""

from __future__ import annotations

import multiprocessing
import os
import random
import sqlite3
import subprocess
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conformance import addresses, found_in
from oracle import ANN, HOUR, NOW, rec

from nbmf.errors import CorruptRecord, NbmfError, StoreError
from nbmf.store import schema
from nbmf.store.base import Changes, Delete, Expire, Forget, Get, Namespace, Put, Record, Scan
from nbmf.store.rows import bucket_of, pack_key, pack_namespace, unpack_key, unpack_namespace
from nbmf.store.session import Session
from nbmf.store.sqlite import BUCKET_ROWS, SQLiteTier

SPAWN = multiprocessing.get_context("spawn")
OVERHEAD_MOST = 27  # bytes of a compacted file for each record, beside its key and blob


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "warm.db"


@pytest.fixture
def tier(path: Path) -> Iterator[SQLiteTier]:
    with closing(SQLiteTier(path)) as tier:
        yield tier


def change(path: Path, *statements: str) -> None:
    """Changes the file behind the tier's back."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def read(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


# -- the file ----------------------------------------------------------------------------------------------------------


def test_a_foreign_file_is_refused(path: Path) -> None:
    change(path, "CREATE TABLE theirs (a)")
    with pytest.raises(StoreError, match="another program"):
        SQLiteTier(path)
    assert read(path, "SELECT name FROM sqlite_master") == [("theirs",)]
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(StoreError, match="not a database"):
        SQLiteTier(path)
    with pytest.raises(StoreError, match="cannot be opened"):
        SQLiteTier(path.parent / "no" / "folder.db")


def test_a_file_of_a_later_version_is_read_or_refused(path: Path) -> None:
    with closing(SQLiteTier(path)) as tier:
        tier.put(rec(expires=NOW + 5, ttl=9))
    change(path, f"PRAGMA user_version = {schema.READ << 16 | schema.WRITE + 1}")
    with closing(SQLiteTier(path)) as tier:
        assert tier.get(ANN, "k", NOW, renew=True) == rec(expires=NOW + 5, ttl=9)
        assert list(tier.check()) == [] and tier.sizes()["count"] == 1
        for act in (lambda: tier.put(rec()), lambda: tier.batch([Forget(ANN)]), tier.compact):
            with pytest.raises(StoreError, match="read-only: a later version"):
                act()
        assert tier.get(ANN, "k", NOW) == rec(expires=NOW + 5, ttl=9)
    change(path, f"PRAGMA user_version = {schema.READ + 1 << 16 | schema.WRITE}")
    with pytest.raises(StoreError, match="made by a later version"):
        SQLiteTier(path)


def test_the_file_says_what_it_is(path: Path, tier: SQLiteTier) -> None:
    assert read(path, "PRAGMA application_id") == [(0x4E424D46,)]
    assert read(path, "PRAGMA user_version") == [(schema.READ << 16 | schema.WRITE,)]
    assert read(path, "PRAGMA journal_mode") == [("wal",)]
    assert read(path, "PRAGMA page_size") == [(schema.PAGE_SIZE,)]


def test_pages_of_a_scan_need_no_sorting(path: Path, tier: SQLiteTier) -> None:
    tier.put(rec())
    asked: list[str] = []
    with tier._connection() as connection:
        session = Session(connection, tier._epoch)
        run = session._run

        def explained(sql: str, values: Any = ()) -> Any:
            asked.extend(str(row) for row in run(f"EXPLAIN QUERY PLAN {sql}", values).fetchall())
            return run(sql, values)

        session._run = explained
        for op in (Scan((), NOW, (ANN, "a"), 5), Scan(("users",), None, cls="fact"), Get(ANN, "k", NOW)):
            session.apply(op)
        list(session.everything())
    plans = " ".join(asked)
    assert "TEMP B-TREE" not in plans
    assert "SCAN r" not in plans
    assert "SEARCH r USING PRIMARY KEY (namespace=? AND key>?)" in plans


def test_addresses_are_written_short_and_exactly() -> None:
    id = "0123abcd-4567-89ab-cdef-0123456789ab"
    assert len(pack_key(id)) == 16
    assert [len(pack_key("0a" * half)) for half in (12, 16, 20, 32)] == [13, 17, 21, 33]
    for key in (id, id.upper(), "0a" * 12, "0A" * 12, "0a" * 15, "k", "é" * 12, "0a" * 32, "0" * 36):
        assert unpack_key(pack_key(key)) == key
    for namespace in (("a",), ("a", "b"), ("é", "\x01", " ")):
        assert unpack_namespace(pack_namespace(namespace)) == namespace
    for bad in (b"a", b"", b"\xff\0", None):
        with pytest.raises(CorruptRecord):
            unpack_namespace(bad)  # type: ignore[arg-type]
    for bad in (b"", b"a" * 15, b"\1" + b"a" * 16, 7):
        with pytest.raises(CorruptRecord):
            unpack_key(bad)  # type: ignore[arg-type]


def test_a_record_costs_few_bytes_beside_its_key_and_blob(path: Path) -> None:
    at, count = random.Random(5), 20_000
    payload = 0
    with closing(SQLiteTier(path)) as tier:
        for start in range(0, count, 1000):
            ops = []
            for i in range(start, start + 1000):
                key = str(uuid.UUID(int=at.getrandbits(128))) if i % 2 else f"pref-{i}"
                blob = at.randbytes(at.randrange(20, 170))
                payload += len(pack_key(key)) + len(blob)
                ops.append(Put(rec(key, ("users", f"user-{i % 100}"), blob, cls=("fact", "chat")[i % 3 == 0])))
            tier.batch(ops)
        tier.compact()
        sizes = tier.sizes()
    assert sizes["count"] == count
    assert os.listdir(path.parent) == [path.name]
    assert sum(size for name, size in sizes.items() if name not in ("count", "log")) == path.stat().st_size
    assert path.stat().st_size - payload <= OVERHEAD_MOST * count


# -- deletion ----------------------------------------------------------------------------------------------------------


def test_forget_wipes_what_was_deleted_before_it(path: Path, tier: SQLiteTier) -> None:
    """Also when another tier has the file open, and when the records themselves are gone already."""
    with closing(SQLiteTier(path)) as other:
        for i in range(60):
            tier.put(rec(f"secret-{i}", ("t", "hidden"), b"treasure" * (1 + i % 20), code=b"c"))
        tier.batch([Put(rec(f"k{i}", ("t", f"n{i % 9}"), b"keep" * (i % 40))) for i in range(600)])
        list(other.scan())
        for record in list(tier.scan(("t", "hidden"))):
            tier.delete(record.namespace, record.key)
        assert other.batch([Forget(("t", "hidden"))]) == [0]
        assert found_in(sorted(path.parent.iterdir()), b"secret", b"hidden", b"treasure") == []
        assert other.sizes()["count"] == 600
        assert list(tier.check()) == []


def test_forget_waits_for_no_reader_forever(path: Path) -> None:
    with closing(SQLiteTier(path, timeout=0.2)) as tier, closing(sqlite3.connect(path)) as reader:
        tier.batch([Put(rec("secret")), Put(rec("k", ("other",)))])
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM record").fetchall()
        with pytest.raises(StoreError, match=r"is busy.*what was forgotten is deleted, but its bytes stay until"):
            tier.batch([Forget(ANN)])
        assert addresses(list(tier.scan())) == [(("other",), "k")]
        reader.rollback()
        tier.compact()
        assert found_in(sorted(path.parent.iterdir()), b"secret") == []


def test_names_that_no_record_has_are_gone(path: Path, tier: SQLiteTier) -> None:
    tier.batch([Put(rec(f"k{i}", ("a", f"{i}"), cls=f"class-{i}", expires=NOW)) for i in range(6)])
    tier.delete(("a", "0"), "k0")
    assert ("a", "0") not in [unpack_namespace(path) for (path,) in read(path, "SELECT path FROM namespace")]
    tier.batch([Forget(("a", "1"))])
    assert {cls for (cls,) in read(path, "SELECT cls FROM kind")} == {f"class-{i}" for i in range(2, 6)}
    tier.batch([Expire(NOW, 3)])
    tier.compact()
    assert read(path, "SELECT count(*) FROM namespace") == [(1,)]
    assert read(path, "SELECT count(*) FROM kind") == [(1,)]


# -- seals -------------------------------------------------------------------------------------------------------------


def test_a_changed_record_is_named_by_check(path: Path, tier: SQLiteTier) -> None:
    tier.batch([Put(rec(f"k{i}")) for i in range(20)])
    assert list(tier.check()) == []
    change(path, "UPDATE record SET blob = x'626c6f62ff' WHERE key = 'k7'")
    (fault,) = tier.check()
    bucket = bucket_of(pack_namespace(ANN), b"k7", schema.BUCKETS)
    assert f"bucket {bucket} of" in fault.where
    assert "users/ann:k7" in fault.what


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("DELETE FROM record WHERE key = 'k3'", "1 records were sealed, and are not what is there: none"),
        ("UPDATE record SET created = created + 1 WHERE key = 'k3'", "users/ann:k3"),
        ("UPDATE record SET kind = 99 WHERE key = 'k3'", "has lost a part"),
        ("UPDATE record SET extra = x'ff' WHERE key = 'k3'", "extra fields are malformed"),
        ("UPDATE record SET blob = 77 WHERE key = 'k3'", "has lost a part"),
        ("UPDATE kind SET cls = 'other'", "users/ann:k"),
        ("UPDATE kind SET fidelity = 'semantic'", "users/ann:k"),
        ("UPDATE namespace SET path = CAST('uzers' || x'00' AS BLOB)", "uzers:k"),
        ("DELETE FROM namespace", "9 records have no namespace"),
        ("INSERT INTO namespace SELECT CAST('b' || x'00' AS BLOB), id FROM namespace", "have the number of another"),
        ("INSERT INTO namespace VALUES (CAST('b' || x'00' AS BLOB), 9)", "1 namespaces hold nothing"),
        ("INSERT INTO shared VALUES (1, 2, x'00')", "another number of uses"),
        ("DELETE FROM store", "has lost its row of `store`"),
        ("UPDATE seal SET rows = rows + 1 WHERE bucket = (SELECT min(bucket) FROM seal)", "records were sealed"),
    ],
)
def test_check_sees_every_part(path: Path, tier: SQLiteTier, statement: str, what: str) -> None:
    tier.batch([Put(rec(f"k{i}", code=b"c")) for i in range(9)])
    assert list(tier.check()) == []
    change(path, statement)
    assert any(what in fault.what for fault in tier.check())


def test_buckets_grow_with_the_store(path: Path, tier: SQLiteTier) -> None:
    count = 2 * BUCKET_ROWS * schema.BUCKETS + 1
    tier.batch([Put(rec(f"k{i}", ("a", f"{i % 7}"), b"")) for i in range(count)])
    tier.compact()
    ((buckets,),) = read(path, "SELECT buckets FROM store")
    assert BUCKET_ROWS <= count / buckets * 2 <= 2 * BUCKET_ROWS
    assert list(tier.check()) == []
    tier.batch([Delete(("a", "0"), "k0"), Put(rec("k1", ("a", "1"), b"new"))])
    assert list(tier.check()) == [] and tier.sizes()["count"] == count - 1


def test_what_is_damaged_is_never_sealed_anew(path: Path, tier: SQLiteTier) -> None:
    count = 2 * BUCKET_ROWS * schema.BUCKETS + 1
    tier.batch([Put(rec(f"k{i}", blob=b"")) for i in range(count)])
    change(path, "UPDATE record SET blob = x'00' WHERE key = 'k7'")
    with pytest.raises(CorruptRecord, match="does not match its checksums"):
        tier.compact()
    assert [fault.what for fault in tier.check()] != []


# -- equal blobs -------------------------------------------------------------------------------------------------------


def test_equal_blobs_of_a_tenant_are_kept_once_where_that_saves_bytes(path: Path, tier: SQLiteTier) -> None:
    long, short, lone = b"L" * 200, b"s" * 3, b"lone" * 50
    put = [rec(f"long-{i}", ("a", f"{i % 3}"), long) for i in range(40)]
    put += [rec(f"short-{i}", ("a", "0"), short) for i in range(40)]
    put += [rec("lone", ("a", "0"), lone), rec("lone", ("b", "0"), lone), rec("twice", ("c",), long)]
    put += [rec(f"long-{i}", ("b", "0"), long) for i in range(2)]
    tier.batch([Put(record) for record in put])
    before = sorted(addresses(list(tier.scan())))
    tier.compact()
    assert sorted(read(path, "SELECT uses, blob FROM shared")) == [(2, long), (40, long)]
    assert sorted(addresses(list(tier.scan()))) == before
    for record in put:
        assert tier.get(record.namespace, record.key, NOW) == record
    assert list(tier.check()) == []

    # Who deletes or overwrites takes nothing from the others, and the last use takes the blob along.
    tier.delete(("a", "0"), "long-0")
    assert tier.put(rec("long-1", ("a", "1"), b"other"), expected=long)
    assert tier.batch([Forget(("a", "2"))]) == [13]
    assert sorted(read(path, "SELECT uses FROM shared")) == [(2,), (25,)]
    assert tier.get(("a", "0"), "long-3", NOW) == put[3]
    tier.put(rec("late", ("a", "9"), long))
    tier.compact()
    assert sorted(read(path, "SELECT uses FROM shared")) == [(2,), (26,)]
    tier.delete(("b", "0"), "long-1")
    tier.compact()
    assert sorted(read(path, "SELECT uses FROM shared")) == [(26,)]
    assert tier.get(("b", "0"), "long-0", NOW) is not None
    tier.batch([Forget(("a",))])
    assert read(path, "SELECT count(*) FROM shared") == [(0,)]
    assert sorted(addresses(list(tier.scan()))) == [(("b", "0"), "lone"), (("b", "0"), "long-0"), (("c",), "twice")]
    assert list(tier.check()) == []


def test_sharing_never_makes_a_file_larger(path: Path) -> None:
    at = random.Random(1)
    blobs = [at.randbytes(size) for size in range(4, 60, 2)]
    sizes = []
    for repeated in (False, True):
        file = path.with_name(f"{repeated}.db")
        with closing(SQLiteTier(file)) as tier:
            lone = [at.randbytes(len(blobs[i % len(blobs)])) for i in range(4000)]
            held = [blobs[i % len(blobs)] for i in range(4000)] if repeated else lone
            tier.batch([Put(rec(f"{i}", ("a",), blob)) for i, blob in enumerate(held)])
            tier.compact()
        sizes.append(file.stat().st_size)
    assert sizes[1] < sizes[0] * 0.7


# -- threads and processes ---------------------------------------------------------------------------------------------


def _write_many(path: str, me: int, count: int) -> None:
    with closing(SQLiteTier(path)) as tier:
        for i in range(count):
            tier.put(rec(f"{me}-{i}", ("own", f"{me}")))
            while True:
                old = tier.get(ANN, "counter", NOW)
                blob = b"%d" % (int(old.blob) + 1) if old else b"1"
                if old is None:
                    break
                if tier.put(rec("counter", blob=blob), expected=old.blob):
                    break


def test_two_processes_lose_nothing(path: Path, tier: SQLiteTier) -> None:
    tier.put(rec("counter", blob=b"0"))
    writers = [SPAWN.Process(target=_write_many, args=(str(path), me, 40)) for me in range(2)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(tier.version())
        assert list(tier.scan(now=NOW))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(seen) > 1
    assert len(list(tier.scan(("own",)))) == 80
    counter = tier.get(ANN, "counter", NOW)
    assert counter is not None and counter.blob == b"80"
    assert list(tier.check()) == []


def _open_at_once(path: str, me: int) -> None:
    with closing(SQLiteTier(path)) as tier:
        tier.put(rec(f"{me}"))


def test_several_processes_may_make_one_file(path: Path) -> None:
    makers = [SPAWN.Process(target=_open_at_once, args=(str(path), me)) for me in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0] * 4
    with closing(SQLiteTier(path)) as tier:
        assert len(list(tier.scan())) == 4 and list(tier.check()) == []


def test_threads_may_make_one_file(path: Path) -> None:
    tiers: list[SQLiteTier] = []
    threads = [threading.Thread(target=lambda: tiers.append(SQLiteTier(path))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tiers) == 6
    for tier in tiers:
        tier.put(rec())
        tier.close()


def test_a_writer_that_gets_no_turn_says_so(path: Path) -> None:
    with closing(SQLiteTier(path, timeout=0.1)) as tier, closing(sqlite3.connect(path, isolation_level=None)) as other:
        tier.put(rec())
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="busy"):
            tier.put(rec(blob=b"new"))
        assert tier.get(ANN, "k", NOW) == rec()  # readers do not wait
        other.execute("ROLLBACK")
        assert tier.put(rec(blob=b"new"))


def test_a_child_process_must_open_its_own(tier: SQLiteTier) -> None:
    tier.put(rec())
    child = os.fork()
    if child == 0:
        try:
            tier.get(ANN, "k", NOW)
        except StoreError as error:
            os._exit(0 if "another process" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tier.get(ANN, "k", NOW) == rec()


def test_a_check_that_is_not_read_to_its_end_holds_nothing(path: Path, tier: SQLiteTier) -> None:
    tier.batch([Put(rec(f"k{i}")) for i in range(5)])
    change(path, "UPDATE record SET kind = 99")
    checking = tier.check()
    next(checking)
    del checking
    tier.batch([Forget(("nothing",))])
    change(path, "UPDATE record SET kind = 0")
    tier.compact()


def test_a_page_of_great_blobs_ends_early(tier: SQLiteTier) -> None:
    tier.batch([Put(rec(f"k{i}", blob=bytes(12 << 20))) for i in range(5)])
    assert len(tier.batch([Scan((), NOW)])[0]) == 3
    assert len(list(tier.scan())) == 5


def test_the_log_does_not_grow_without_end(path: Path, tier: SQLiteTier) -> None:
    for turn in range(40):
        tier.batch([Put(rec(f"k{i}", blob=random.Random(turn * 100 + i).randbytes(8000))) for i in range(100)])
    assert path.with_name(path.name + "-wal").stat().st_size < 20 << 20


# -- faults of the medium ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"cannot mount a small file system: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_loses_nothing_acknowledged(small_disk: Path) -> None:
    held: dict[str, Record] = {}
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(400_000))
    with closing(SQLiteTier(small_disk / "warm.db")) as tier:
        at = random.Random(2)
        failures = 0
        for i in range(4000):
            record = rec(f"k{i}", ("a", f"{i % 5}"), at.randbytes(at.randrange(2000)), code=b"c")
            try:
                tier.put(record)
                held[record.key] = record
            except StoreError as error:
                assert "full" in str(error) and "\n" not in str(error)
                failures += 1
                if failures == 3:
                    break
        assert failures == 3 and len(held) > 20
        position = tier.batch([Changes(0)])[0][0]
        assert {record.key: record for record in tier.scan()} == held
        assert list(tier.check()) == []
        with pytest.raises(StoreError, match="full"):
            tier.batch([Put(rec("more", blob=bytes(1 << 20)))])
        assert tier.batch([Changes(position)]) == [(position, [])]
        ballast.unlink()
        late = rec("late", blob=b"late")
        tier.put(late)
        held["late"] = late
    with closing(SQLiteTier(small_disk / "warm.db")) as tier:
        assert {record.key: record for record in tier.scan()} == held
        assert list(tier.check()) == []


def test_what_needs_no_room_goes_on_when_the_disk_is_full(small_disk: Path) -> None:
    """The write-ahead log is emptied rather than the write refused."""
    at = random.Random(6)
    with closing(SQLiteTier(small_disk / "warm.db")) as tier:
        tier.batch([Put(rec(f"k{i:03}", blob=at.randbytes(500))) for i in range(200)])
        tier.compact()
        tier.batch([Delete(ANN, f"k{i:03}") for i in range(100, 150)])  # which frees pages of the file
        change(small_disk / "warm.db", "PRAGMA wal_checkpoint(TRUNCATE)")
        free = os.statvfs(small_disk).f_bavail * 4096
        (small_disk / "ballast").write_bytes(bytes(free - 120_000))
        new = [rec(f"k{i:03}", blob=at.randbytes(500)) for i in range(100)]
        for record in new:
            assert tier.put(record)
        assert [tier.get(ANN, record.key, NOW) for record in new] == new
        for record in new:
            assert tier.delete(ANN, record.key)
        assert list(tier.check()) == []


@pytest.mark.parametrize("log", [False, True], ids=["file", "log"])
def test_flipped_bytes_are_reported_or_harmless(path: Path, log: bool) -> None:
    """Every flip is found by opening, by reading or by `check`, or it hit no record.

    A damaged log ends before the damage, as after a crash: what is left is what the store once held, whole.
    """
    at = random.Random(4)
    with closing(SQLiteTier(path)) as tier:
        once = [{}, *(dict(held(tier)) for _ in fill(tier, at))]
        if not log:
            tier.compact()
        files = {file.name: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith("-shm")}
    target = "warm.db-wal" if log else "warm.db"
    size, found = len(files[target]), 0
    offsets = [*range(0, 110, 3 if log else 1), *(at.randrange(size) for _ in range(60 if log else 120))]
    for turn, offset in enumerate(offsets):
        folder = path.parent / f"flip{turn}"
        folder.mkdir()
        for name, raw in files.items():
            if name == target:
                raw = raw[:offset] + bytes([raw[offset] ^ 1 << at.randrange(8)]) + raw[offset + 1 :]
            (folder / name).write_bytes(raw)
        try:
            with closing(SQLiteTier(folder / "warm.db")) as tier:
                if list(tier.check()):
                    found += 1
                    continue
                now = dict(held(tier))
                got = {address: tier.get(*address, NOW) for address in now}
        except NbmfError:
            found += 1
            continue
        assert now == got, offset
        assert now in once if log else now == once[-1], offset
        found += now != once[-1]
    assert found > 20


def held(tier: SQLiteTier) -> list[tuple[tuple[Namespace, str], Record]]:
    return [((record.namespace, record.key), record) for record in tier.scan()]


def fill(tier: SQLiteTier, at: random.Random) -> Iterator[None]:
    """Several batches, with every kind of field, overwriting and repetition."""
    for turn in range(3):
        put = []
        for i in range(turn, 160, 2):
            code = b"c" * (i % 3)
            put.append(Put(rec(f"k{i}", ("a", f"{i % 5}"), at.randbytes(at.randrange(90)), code=code, ttl=i)))
        tier.batch(put)
        yield
    tier.batch([Put(rec(f"same{i}", ("a",), b"the same blob" * 9)) for i in range(9)])
    yield


def test_a_shortened_file_is_reported(path: Path) -> None:
    with closing(SQLiteTier(path)) as tier:
        tier.batch([Put(rec(f"k{i}", blob=random.Random(i).randbytes(200))) for i in range(500)])
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(NbmfError), closing(SQLiteTier(path)) as tier:
        assert list(tier.check()) == []
        list(tier.scan())
        raise AssertionError("half of the file is gone, and nothing was said")


def test_an_error_in_the_middle_leaves_the_tier_usable(path: Path, tier: SQLiteTier) -> None:
    tier.put(rec())
    with pytest.raises(TypeError):
        tier.batch([Put(rec("new")), Put(replace(rec(), blob=None, meta=7))])  # type: ignore[arg-type]
    assert list(tier.scan()) == [rec()]
    assert tier.put(rec(expires=NOW + HOUR)) is True
