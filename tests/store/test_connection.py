"""Connections: both kinds alike, what the encrypted one hides and refuses, and the errors of either."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nbmf.errors import CorruptRecord, NbmfError, StoreError
from nbmf.store.connection import connect

KEY = bytes(range(32))
BOTH = pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
TABLE = "CREATE TABLE item (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID"


def filled(path: Path, key: bytes | None, rows: int = 60) -> list[tuple[str, bytes]]:
    """A closed database of `rows` items, about 200 bytes each."""
    items = [(f"item-{i:04}", random.Random(i).randbytes(190)) for i in range(rows)]
    with connect(path, key) as connection:
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute(TABLE)
        connection.executemany("INSERT INTO item VALUES (?, ?)", items)
    return items


def read(path: Path, key: bytes | None) -> list[tuple[str, bytes]]:
    with connect(path, key) as connection:
        return connection.execute("SELECT key, value FROM item").fetchall()


@BOTH
def test_rows_are_tuples_of_bytes_and_texts(tmp_path: Path, key: bytes | None) -> None:
    with connect(tmp_path / "a.db", key) as connection:
        connection.execute("CREATE TABLE t (a, b, c, d, e)")
        row = (b"\x00\xff", "é\U0001f600", 1 << 62, 0.5, None)
        connection.execute("INSERT INTO t VALUES (?, ?, ?, ?, ?)", row)
        connection.execute("INSERT INTO t VALUES (?1, ?1, ?1, ?1, ?1)", (b"",))
        cursor = connection.execute("SELECT * FROM t ORDER BY rowid")
        assert cursor.fetchone() == row
        assert list(cursor) == [(b"",) * 5]
        assert cursor.fetchone() is None
        assert connection.execute("SELECT * FROM t WHERE a = 0").fetchall() == []


@BOTH
def test_transactions_are_statements(tmp_path: Path, key: bytes | None) -> None:
    path = tmp_path / "a.db"
    with connect(path, key) as connection, connect(path, key) as other:
        connection.execute(TABLE)
        assert not connection.in_transaction
        connection.execute("BEGIN IMMEDIATE")
        assert connection.in_transaction
        connection.executemany("INSERT INTO item VALUES (?, ?)", [("a", b"1"), ("b", b"2")])
        connection.execute("UPDATE item SET value = ?", (b"3",))
        assert connection.changes == 2
        assert other.execute("SELECT count(*) FROM item").fetchone() == (0,)
        connection.execute("ROLLBACK")
        connection.execute("INSERT INTO item VALUES ('c', ?)", (b"",))
        assert other.execute("SELECT key FROM item").fetchall() == [("c",)]


@BOTH
def test_threads_take_turns(tmp_path: Path, key: bytes | None) -> None:
    lock = threading.Lock()
    with connect(tmp_path / "a.db", key) as connection:
        connection.execute(TABLE)

        def work(me: int) -> None:
            for i in range(20):
                with lock:
                    connection.execute("INSERT INTO item VALUES (?, ?)", (f"{me}-{i}", b""))

        threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert connection.execute("SELECT count(*) FROM item").fetchone() == (80,)


@BOTH
def test_closing_twice_is_fine_and_a_closed_one_says_so(tmp_path: Path, key: bytes | None) -> None:
    connection = connect(tmp_path / "a.db", key)
    connection.execute("BEGIN")
    connection.execute(TABLE)
    connection.close()
    connection.close()
    for call in (lambda: connection.execute("SELECT 1"), lambda: connection.changes, lambda: connection.in_transaction):
        with pytest.raises(StoreError, match=r"a\.db is closed"):
            call()
    with connect(tmp_path / "a.db", key) as again:  # what was open is rolled back
        assert again.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


# -- encryption --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "hidden"), [(None, False), (KEY, True)], ids=["plain", "encrypted"])
def test_nothing_can_be_read_from_the_raw_files(tmp_path: Path, key: bytes | None, hidden: bool) -> None:
    """The write-ahead log included, while it is in use; and the search does find what is not encrypted."""
    needles = (b"NEEDLE-KEY", b"needle value", b"needle_table", b"needle_index", b"SQLite format 3")
    with connect(tmp_path / "a.db", key) as connection:
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("CREATE TABLE needle_table (key TEXT PRIMARY KEY, value BLOB)")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        connection.execute("CREATE INDEX needle_index ON needle_table (value)")
        connection.executemany(
            "INSERT INTO needle_table VALUES (?, ?)", [(f"NEEDLE-KEY-{i}", b"needle value %d" % i) for i in range(300)]
        )
        files = sorted(tmp_path.iterdir())
        assert {path.suffix for path in files} == {".db", ".db-wal", ".db-shm"}
        raw = b"".join(path.read_bytes() for path in files)
    raw += (tmp_path / "a.db").read_bytes()
    assert [needle in raw for needle in needles] == [not hidden] * len(needles)


def test_a_wrong_key_opens_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    items = filled(path, KEY)
    before = path.read_bytes()
    for key in (bytes(32), KEY[:31] + b"\0"):
        with pytest.raises(StoreError, match=r"a\.db is not a database of this key$"):
            connect(path, key)
    with pytest.raises(StoreError, match=r"a\.db is not a database, or it is encrypted$"):
        connect(path)
    with pytest.raises(StoreError, match="has 31 bytes, not 32"):
        connect(path, KEY[:31])
    assert path.read_bytes() == before
    assert read(path, KEY) == items


def test_an_encrypted_connection_refuses_a_plain_database(tmp_path: Path) -> None:
    items = filled(tmp_path / "a.db", None)
    with pytest.raises(StoreError, match="is not a database of this key"):
        connect(tmp_path / "a.db", KEY)
    assert read(tmp_path / "a.db", None) == items


def test_no_message_shows_the_key(tmp_path: Path) -> None:
    filled(tmp_path / "a.db", bytes(32))
    with pytest.raises(StoreError) as caught:
        connect(tmp_path / "a.db", KEY)
    error: BaseException | None = caught.value
    while error is not None:
        assert KEY.hex() not in "".join([repr(error), *getattr(error, "__notes__", [])])
        error = error.__cause__ or error.__context__


def test_any_flipped_byte_is_refused(tmp_path: Path) -> None:
    """Of every page the first, the last and some between; all of the header; the file holds no free page."""
    path, damaged = tmp_path / "a.db", tmp_path / "damaged.db"
    filled(path, KEY)
    raw = path.read_bytes()
    places = {*range(110), *range(0, len(raw), 4096), *range(4095, len(raw), 4096), *range(110, len(raw), 61)}
    for place in sorted(places):
        damaged.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
        with pytest.raises((CorruptRecord, StoreError), match=r"damaged\.db is (malformed|not a database)"):
            read(damaged, KEY)
        for file in tmp_path.glob("damaged.db-*"):
            file.unlink()


def test_pages_of_another_place_or_database_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    filled(path, KEY)
    raw = path.read_bytes()
    assert len(raw) >= 4 * 4096
    pages = [raw[i : i + 4096] for i in range(0, len(raw), 4096)]
    path.write_bytes(b"".join([*pages[:2], pages[3], pages[2], *pages[4:]]))
    with pytest.raises(CorruptRecord):
        read(path, KEY)
    filled(tmp_path / "b.db", bytes(32))
    path.write_bytes(b"".join([*pages[:2], (tmp_path / "b.db").read_bytes()[2 * 4096 : 3 * 4096], *pages[3:]]))
    with pytest.raises(CorruptRecord):
        read(path, KEY)


def test_a_damaged_log_yields_only_what_was_there_once(tmp_path: Path) -> None:
    """A broken frame ends the log, as SQLite defines it: later commits are lost, and nothing wrong comes out."""
    path = tmp_path / "a.db"
    items = filled(path, KEY, 20)
    with connect(path, KEY) as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
        for i in range(5):
            connection.execute("UPDATE item SET value = ?", (b"later %d" % i * 20,))
        database, log = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    states = [items, *([(key, b"later %d" % i * 20) for key, _ in items] for i in range(5))]
    seen = set()
    for place in [None, *range(32), *range(32, len(log), 211)]:
        path.write_bytes(database)
        flipped = bytearray(log)
        if place is not None:
            flipped[place] ^= 1 << place % 8
        Path(f"{path}-wal").write_bytes(flipped)
        try:
            state = states.index(read(path, KEY))
        except (CorruptRecord, StoreError):
            state = -1
        assert place is not None or state == 5
        seen.add(state)
        for file in tmp_path.glob("a.db-*"):
            file.unlink()
    assert {0, 5} <= seen


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_committed_is_there_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from nbmf.store.connection import connect\n"
        "c = connect(sys.argv[1], bytes(range(32))); c.execute('PRAGMA journal_mode = WAL').fetchall()\n"
        f"c.execute({TABLE!r})\n"
        "c.execute(\"INSERT INTO item VALUES ('kept', x'01')\"); c.execute('BEGIN')\n"
        "c.execute(\"INSERT INTO item VALUES ('lost', x'02')\"); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.db")], check=False).returncode == -9
    assert read(tmp_path / "a.db", KEY) == [("kept", b"\x01")]


# -- errors ------------------------------------------------------------------------------------------------------------


@BOTH
def test_what_cannot_be_opened(tmp_path: Path, key: bytes | None) -> None:
    with pytest.raises(StoreError, match=r"none/a\.db cannot be opened"):
        connect(tmp_path / "none" / "a.db", key)
    with pytest.raises(StoreError, match=r"b\.db cannot be opened"):
        connect(tmp_path / "b.db", key, readonly=True)
    assert not (tmp_path / "b.db").exists()
    (tmp_path / "c.db").write_bytes(b"not a database, and long enough to be one. " * 200)
    with pytest.raises(StoreError, match="is not a database"):
        connect(tmp_path / "c.db", key)


@BOTH
def test_readonly(tmp_path: Path, key: bytes | None) -> None:
    path = tmp_path / "what? 100%#.db"
    items = filled(path, key)
    with connect(path, key, readonly=True) as connection:
        assert connection.execute("SELECT * FROM item").fetchall() == items
        with pytest.raises(StoreError, match="cannot be written"):
            connection.execute("DELETE FROM item")


@BOTH
def test_a_lock_that_another_holds(tmp_path: Path, key: bytes | None) -> None:
    path = tmp_path / "a.db"
    filled(path, key)
    with connect(path, key) as first, connect(path, key, timeout=0.05) as second:
        first.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"a\.db is busy"):
            second.execute("BEGIN IMMEDIATE")
        first.execute("ROLLBACK")
        second.execute("BEGIN IMMEDIATE")


@BOTH
def test_a_full_database(tmp_path: Path, key: bytes | None) -> None:
    with connect(tmp_path / "a.db", key) as connection:
        connection.execute(TABLE)
        connection.execute("PRAGMA max_page_count = 8").fetchall()
        with pytest.raises(StoreError, match=r"a\.db cannot grow: the disk is full"):
            connection.execute("INSERT INTO item VALUES ('big', ?)", (bytes(100_000),))
        assert connection.execute("SELECT count(*) FROM item").fetchone() == (0,)


@BOTH
def test_statements_that_fail(tmp_path: Path, key: bytes | None) -> None:
    with connect(tmp_path / "a.db", key) as connection:
        connection.execute(TABLE)
        connection.execute("INSERT INTO item VALUES ('a', x'00')")
        for sql in ("SELEKT", "SELECT * FROM nothing", "INSERT INTO item VALUES ('a', x'01')"):
            with pytest.raises(StoreError, match=r"a\.db: "):
                connection.execute(sql)
        with pytest.raises(StoreError):
            connection.executemany("INSERT INTO item VALUES (?, ?)", [("b", b""), ("a", b"")])


@BOTH
def test_a_text_that_is_none(tmp_path: Path, key: bytes | None) -> None:
    with connect(tmp_path / "a.db", key) as connection:
        for fetch in (lambda c: c.fetchone(), lambda c: c.fetchall(), list):
            with pytest.raises(CorruptRecord, match="UTF-8"):
                fetch(connection.execute("SELECT CAST(x'ff41' AS TEXT)"))


def test_a_malformed_plain_image(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    filled(path, None, 200)
    raw = bytearray(path.read_bytes())
    for page in range(4096, len(raw), 4096):
        raw[page : page + 64] = bytes(range(64, 128))
    path.write_bytes(raw)
    with pytest.raises(CorruptRecord, match=r"a\.db is malformed"):
        read(path, None)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apsw", None)
    with pytest.raises(NbmfError, match=r"needs nbmf\[encrypt\]"):
        connect(tmp_path / "a.db", KEY)
    assert not os.path.exists(tmp_path / "a.db")
