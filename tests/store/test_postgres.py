"""What is the PostgreSQL tier's own: schemas, many writers, lost connections, and what the server's files keep."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from oracle import ANN, HOUR, NOW, rec

from nbmf.errors import CorruptRecord, StoreError
from nbmf.store.base import Changes, Delete, Expire, Forget, Get, Op, Put, Record, Scan
from nbmf.store.postgres import BUCKET_ROWS, PostgresTier
from nbmf.store.statements import BUCKETS, READ, WRITE, Statements

SPAWN = multiprocessing.get_context("spawn")
_numbers = itertools.count()


@pytest.fixture
def schema() -> str:
    return f"tests_{next(_numbers)}"


@pytest.fixture
def tier(postgres: str, schema: str) -> Iterator[PostgresTier]:
    with closing(PostgresTier(postgres, schema)) as tier:
        yield tier


def ask(url: str, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Runs a statement beside the tier."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql, values)
        return cursor.fetchall() if cursor.description else []


def cut(url: str, schema: str) -> int:
    """Ends the connections of a tier, as a server does that restarts."""
    rows = ask(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
        f"nbmf {schema}",
    )
    return len(rows)


# -- the store ---------------------------------------------------------------------------------------------------------


def test_stores_share_a_database_and_nothing_else(postgres: str, schema: str) -> None:
    with closing(PostgresTier(postgres, schema)) as one, closing(PostgresTier(postgres, schema + "_b")) as two:
        one.put(rec(blob=b"1", code=b"c"))
        assert two.get(ANN, "k", NOW) is None
        two.put(rec(blob=b"2"))
        assert one.get(ANN, "k", NOW) == rec(blob=b"1", code=b"c")
        assert two.batch([Changes(0), Forget(())]) == [(0, []), 1]
        assert list(one.scan()) == [rec(blob=b"1", code=b"c")]


def test_a_later_version_is_read_or_refused(postgres: str, schema: str) -> None:
    with closing(PostgresTier(postgres, schema)) as tier:
        tier.put(rec())
    ask(postgres, f"UPDATE {schema}.store SET write = {WRITE + 1}")
    with closing(PostgresTier(postgres, schema)) as tier:
        assert tier.get(ANN, "k", NOW) == rec()
        for act in (lambda: tier.put(rec()), tier.compact):
            with pytest.raises(StoreError, match="read-only: a later version"):
                act()
    ask(postgres, f"UPDATE {schema}.store SET read = {READ + 1}")
    with pytest.raises(StoreError, match="made by a later version"):
        PostgresTier(postgres, schema)


def test_what_cannot_be_opened_says_why(postgres: str, tmp_path: Path) -> None:
    for name in ("Capital", "a b", "a;drop", "", "x" * 60):
        with pytest.raises(StoreError, match="no name for a schema"):
            PostgresTier(postgres, name)
    with pytest.raises(StoreError, match="lost its connection") as caught:
        PostgresTier(f"postgresql://someone:secret@/nothing?host={tmp_path}", timeout=1)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    ask(postgres, "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(StoreError, match="not UTF8"):
        PostgresTier(postgres.replace("/postgres?", "/latin?"))


def test_a_scan_goes_by_the_index(postgres: str, schema: str, tier: PostgresTier) -> None:
    tier.batch([Put(rec(f"k{i:05}", ("a", f"{i % 10}"), b"x")) for i in range(6000)])
    ask(postgres, f"ANALYZE {schema}.record")
    where, values = Statements._after(("a",), (("a", "3"), "k00100"))
    with tier._connection() as connection:
        plan = connection.execute(
            f"EXPLAIN SELECT r.path, r.key FROM record r WHERE {where} ORDER BY r.path, r.key LIMIT 50", values
        ).fetchall()
    text = " ".join(row[0] for row in plan)
    assert "record_pkey" in text and "Sort" not in text, text
    assert len(tier.batch([Scan(("a",), NOW, (("a", "3"), "k00100"), 50)])[0]) == 50


def test_a_page_of_great_blobs_ends_early(tier: PostgresTier) -> None:
    tier.batch([Put(rec(f"k{i}", blob=bytes(12 << 20))) for i in range(4)])
    assert len(tier.batch([Scan((), NOW)])[0]) == 3
    assert len(list(tier.scan())) == 4


# -- seals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE record SET blob = 'other' WHERE key = 'k3'", "users/ann:k3"),
        ("UPDATE record SET ttl = 7 WHERE key = 'k3'", "users/ann:k3"),
        ("DELETE FROM record WHERE key = 'k3'", "1 records were sealed, and are not what is there: none"),
        ("UPDATE record SET kind = 99 WHERE key = 'k3'", "has lost its kind"),
        ("UPDATE kind SET cls = 'other'", "users/ann:k"),
        ("UPDATE record SET path = 'nothing' WHERE key = 'k3'", "path is malformed"),
        ("DELETE FROM store", "has lost its row of `store`"),
    ],
)
def test_check_sees_every_part(postgres: str, schema: str, tier: PostgresTier, statement: str, what: str) -> None:
    tier.batch([Put(rec(f"k{i}", code=b"c")) for i in range(9)])
    assert list(tier.check()) == []
    ask(postgres, statement.replace("FROM ", f"FROM {schema}.").replace("UPDATE ", f"UPDATE {schema}."))
    assert any(what in fault.what for fault in tier.check())


def test_buckets_grow_with_the_store_and_never_over_damage(postgres: str, schema: str, tier: PostgresTier) -> None:
    count = 2 * BUCKET_ROWS * BUCKETS + 1
    tier.batch([Put(rec(f"k{i}", ("a", f"{i % 7}"), b"")) for i in range(count)])
    ask(postgres, f"UPDATE {schema}.record SET blob = 'x' WHERE key = 'k7'")
    with pytest.raises(CorruptRecord, match="does not match its checksums"):
        tier.compact()
    ask(postgres, f"UPDATE {schema}.record SET blob = '' WHERE key = 'k7'")
    tier.compact()
    assert ask(postgres, f"SELECT buckets FROM {schema}.store")[0][0] > BUCKETS
    tier.batch([Delete(("a", "0"), "k0"), Put(rec("k1", ("a", "1"), b"new"))])
    assert list(tier.check()) == [] and tier.sizes()["count"] == count - 1


# -- many writers ------------------------------------------------------------------------------------------------------


def _work(url: str, schema: str, me: int) -> None:
    """Batches over few keys in any order, beside others that do the same: every lock is contended."""
    at = random.Random(me)
    with closing(PostgresTier(url, schema)) as tier:
        for turn in range(40):
            ops: list[Op] = []
            for _ in range(at.randrange(1, 8)):
                key, now = f"k{at.randrange(12)}", NOW + turn
                record = rec(key, blob=at.randbytes(5), code=at.choice([b"", b"c"]), expires=now + at.randrange(1, 9))
                ops.append(at.choice([Put(record), Put(record), Delete(ANN, key), Get(ANN, key, now, renew=True)]))
            tier.batch(ops)
            if turn % 10 == 0:
                tier.batch([Expire(NOW + turn, 5)])
            if turn == 20:
                tier.batch([Forget(("users",))]) if me else tier.compact()
            while True:
                old = tier.get(("n",), "counter", NOW)
                assert old is not None
                if tier.put(rec("counter", ("n",), b"%d" % (int(old.blob) + 1)), expected=old.blob):
                    break


def test_processes_that_write_the_same_keys_leave_a_sound_store(postgres: str, schema: str, tier: PostgresTier) -> None:
    tier.put(rec("counter", ("n",), b"0"))
    writers = [SPAWN.Process(target=_work, args=(postgres, schema, me)) for me in range(3)]
    for writer in writers:
        writer.start()
    followed: dict[tuple[Any, str], None] = {}
    position, lost = 0, False
    while any(writer.is_alive() for writer in writers):
        position, changed = tier.batch([Changes(position)])[0]
        lost = lost or changed is None
        followed.update(dict.fromkeys(changed or ()))
        assert list(tier.check()) == []  # in one snapshot, whatever is under way
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    counter = tier.get(("n",), "counter", NOW)
    assert counter is not None and counter.blob == b"120"
    assert list(tier.check()) == []
    assert tier.sizes()["count"] == len(list(tier.scan()))
    assert followed or lost


def test_a_journal_that_is_followed_misses_nothing(postgres: str, schema: str, tier: PostgresTier) -> None:
    """Positions appear in their order, though transactions end in any."""
    seen: set[str] = set()
    failures: list[BaseException] = []

    def work(me: int) -> None:
        try:
            for i in range(25):
                tier.batch([Put(rec(f"{me}-{i}-{j}", code=b"c")) for j in range(1 + (me + i) % 4)])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    position = 0
    while True:
        running = any(thread.is_alive() for thread in threads)
        position, changed = tier.batch([Changes(position)])[0]
        seen |= {key for _, key in changed}
        if not running:
            break
    for thread in threads:
        thread.join()
    assert failures == []
    assert seen == {record.key for record in tier.scan()}


def test_several_may_make_one_store(postgres: str, schema: str) -> None:
    tiers: list[PostgresTier] = []
    threads = [threading.Thread(target=lambda: tiers.append(PostgresTier(postgres, schema))) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tiers) == 5
    for i, tier in enumerate(tiers):
        assert tier.put(rec()) is (i > 0)
        tier.close()


# -- lost connections --------------------------------------------------------------------------------------------------


def test_a_read_survives_a_lost_connection(postgres: str, schema: str, tier: PostgresTier) -> None:
    tier.put(rec())
    version = tier.version()
    assert cut(postgres, schema) > 0
    assert tier.get(ANN, "k", NOW) == rec()
    cut(postgres, schema)
    assert list(tier.scan()) == [rec()]
    cut(postgres, schema)
    assert tier.version() == version
    cut(postgres, schema)
    assert tier.batch([Get(ANN, "k", NOW), Get(ANN, "l", NOW)]) == [rec(), None]


def test_a_write_survives_a_connection_that_was_lost_before_it(postgres: str, schema: str, tier: PostgresTier) -> None:
    tier.put(rec())
    assert cut(postgres, schema) > 0
    assert tier.put(rec(blob=b"new")) is True
    assert tier.get(ANN, "k", NOW) == rec(blob=b"new")


def test_a_write_whose_connection_is_lost_says_what_happened(
    postgres: str, schema: str, tier: PostgresTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier.put(rec())
    whole = Statements.finish
    for outcome in ("nothing of the batch was done", "whether the batch was done is not known"):

        def finish(self: Statements, before: bool = outcome.startswith("nothing")) -> None:
            if before:
                cut(postgres, schema)
            whole(self)
            if not before:
                cut(postgres, schema)

        monkeypatch.setattr(Statements, "finish", finish)
        with pytest.raises(StoreError, match=outcome) as caught:
            tier.put(rec(blob=b"new"))
        assert "\n" not in str(caught.value)
        monkeypatch.undo()
        assert tier.get(ANN, "k", NOW) == rec()
    assert list(tier.check()) == []


def test_a_child_process_must_open_its_own(tier: PostgresTier) -> None:
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


# -- deletion ----------------------------------------------------------------------------------------------------------


def table_bytes(url: str, schema: str) -> bytes:
    """The files of a store's tables and indexes, as they are on the disk."""
    ask(url, "CHECKPOINT")
    ((root,),) = ask(url, "SELECT current_setting('data_directory')")
    files = ask(
        url,
        "SELECT pg_relation_filepath(c.oid) FROM pg_class c WHERE relkind IN ('r', 'i', 't') AND (relnamespace ="
        " %s::regnamespace OR c.oid IN (SELECT reltoastrelid FROM pg_class WHERE relnamespace = %s::regnamespace))",
        schema,
        schema,
    )
    return b"".join(Path(root, name).read_bytes() for (name,) in files if Path(root, name).exists())


def test_nothing_of_a_forgotten_record_stays_in_the_tables(postgres: str, schema: str, tier: PostgresTier) -> None:
    for i in range(150):
        space = ("t", "hidden" if i % 3 else "shown")
        tier.batch([Put(rec(f"key{i % 40}", space, f"<{space[1]}>".encode() * 20, cls=f"cls-{space[1]}", code=b"c"))])
    tier.delete(("t", "hidden"), "key1")
    assert b"hidden" in table_bytes(postgres, schema)
    assert tier.batch([Forget(("t", "hidden"))])[0] > 20
    raw = table_bytes(postgres, schema)
    assert b"hidden" not in raw and b"shown" in raw
    tier.delete(("t", "shown"), "key0")
    tier.compact()
    assert list(tier.check()) == []


def test_forget_waits_for_no_reader_forever(postgres: str, schema: str) -> None:
    import psycopg

    with closing(PostgresTier(postgres, schema, timeout=0.3)) as tier, psycopg.connect(postgres) as reader:
        tier.put(rec())
        reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reader.execute("SELECT count(*) FROM pg_class").fetchall()
        with pytest.raises(StoreError, match=r"is busy.*what was forgotten is deleted, but its bytes stay"):
            tier.batch([Forget(ANN)])
        assert list(tier.scan()) == []
        reader.rollback()
        tier.compact()


def test_a_batch_of_many_records(tier: PostgresTier) -> None:
    at = random.Random(1)
    put: list[Record] = [rec(f"k{i}", ("a", f"{i % 9}"), at.randbytes(50), expires=NOW + HOUR) for i in range(3000)]
    tier.batch([Put(record) for record in put])
    assert len(list(tier.scan(now=NOW))) == 3000
    assert tier.batch([Expire(NOW + HOUR, 2000)]) == [2000]
    assert tier.batch([Forget(())]) == [1000]
