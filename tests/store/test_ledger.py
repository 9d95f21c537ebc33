"""The ledger: what it keeps, a stranger's verification, every kind of tampering, crashes, several writers."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conformance import Conformance, Medium
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import NOW, rec

from nbmf.errors import CorruptRecord, PolicyError, StoreError
from nbmf.store import ledger as module
from nbmf.store.base import Delete, Expire, Forget, Get, Op, Put, Record, Scan, Tier
from nbmf.store.keys import Keyring
from nbmf.store.ledger import (
    BATCH,
    DELETE,
    DOUBT,
    EXPIRE,
    FORGET,
    FORGET_ALL,
    PUT,
    VOID,
    Audited,
    Entry,
    Head,
    Ledger,
    content_hash,
    key_hash,
    namespace_hash,
)
from nbmf.store.sqlite import SQLiteTier
from nbmf.store.tenants import Tenants

MASTER = bytes(range(32))
HEADER = 72  # bytes
KILLS = pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")


class Store(Medium):
    """An encrypted store of tenants with a ledger before it."""

    plain = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "ledger"

    def open(self) -> Audited:
        keys = Keyring(self.root / "keys", MASTER)
        return Audited(Tenants(self.root / "tenants", keys, SQLiteTier), Ledger(self.path, keys))

    def ledger(self) -> Ledger:
        return Ledger(self.path, Keyring(self.root / "keys", MASTER))

    def files(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def tier(store: Store) -> Iterator[Audited]:
    with closing(store.open()) as tier:
        yield tier


@pytest.mark.slow
class TestAudited(Conformance):
    @pytest.fixture
    def medium(self, tmp_path: Path) -> Medium:
        return Store(tmp_path)


def kinds(entries: list[Entry]) -> list[int]:
    return [entry.kind for entry in entries]


# -- a stranger's reading, written from docs/spec/ledger.md alone ------------------------------------------------------


def stranger(raw: bytes) -> list[tuple[int, bytes]]:
    """(sequence number, hash) of every entry, the header's as 0; AssertionError where the chain breaks."""

    def number(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (raw[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if raw[at - 1] < 128:
                return value, at

    assert raw[:8] == b"NBML\x01\0\0\0"
    chain = hashlib.blake2b(raw[:24], digest_size=32).digest()
    out, at = [(0, chain)], 72
    while at < len(raw):
        size, at = number(at)
        body, check = raw[at : at + size], raw[at + size : at + size + 16]
        chain = hashlib.blake2b(chain + body, digest_size=32).digest()
        assert check == chain[:16]
        assert number(at + 1)[0] == len(out)
        out.append((len(out), chain))
        at += size + 16
    return out


def test_a_stranger_can_verify(store: Store, tier: Audited) -> None:
    for i in range(40):
        tier.batch([Put(rec(f"{i}-{j}")) for j in range(i % 7 + 1)])
    tier.put(rec(), expected=b"not there")
    chain = stranger(store.path.read_bytes())
    head = tier.ledger.head()
    assert chain[-1] == (head.sequence, head.hash) == (42, head.hash)
    assert tier.ledger.verify(head) is None
    for sequence, hashed in chain:
        assert tier.ledger.verify(Head(sequence, hashed)) is None


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_an_entry_for_every_batch_that_writes(tier: Audited) -> None:
    assert tier.ledger.head().sequence == 0 and list(tier.ledger.entries()) == []
    tier.batch([Put(rec("a")), Get(("users", "ann"), "a", NOW), Put(rec("b")), Delete(("users", "ann"), "a")])
    tier.batch([Get(("users", "ann"), "b", NOW), Scan((), NOW)])
    tier.get(("users", "ann"), "b", NOW, renew=True)
    tier.batch([Expire(NOW), Forget(("users", "bob")), Delete(("never", "seen"), "k")])
    tier.batch([Forget(())])
    first, second, third = tier.ledger.entries()
    assert [entry.sequence for entry in (first, second, third)] == [1, 2, 3]
    assert kinds([first, second, third]) == [BATCH] * 3
    assert first.time <= second.time <= third.time and abs(first.time - NOW) < 10**13
    assert [one.kind for one in first.operations] == [PUT, PUT, DELETE]
    assert [one.kind for one in second.operations] == [EXPIRE, FORGET, DELETE]
    assert [one.kind for one in third.operations] == [FORGET_ALL]
    a, b, gone = first.operations
    assert a.namespace == b.namespace == gone.namespace and a.key == gone.key != b.key
    assert [len(part) for part in (a.namespace, a.key, a.content)] == [8, 12, 16] and gone.content == b""
    assert second.operations[2].key == bytes(12)  # of a tenant that has no key


def test_the_hashes_are_those_of_the_specification(tier: Audited) -> None:
    record = rec("kéy", ("ann", "b"), b"blob", cls="fact", meta=b"{}")
    tier.put(record)
    key = tier.ledger._keys.data_key("ann")
    assert key is not None
    secret = hashlib.blake2b(b"ledger", digest_size=32, key=key._key, person=b"nbmf data key").digest()

    def keyed(size: int, person: bytes, *parts: bytes) -> bytes:
        data = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
        return hashlib.blake2b(data, digest_size=size, key=secret, person=person).digest()

    (entry,) = tier.ledger.entries()
    (put,) = entry.operations
    assert put.namespace == keyed(8, b"nbmf ledger ns", b"ann", b"b")
    assert put.key == keyed(12, b"nbmf ledger key", b"ann", b"b", "kéy".encode())
    codec, fidelity = record.codec.encode(), b"lossless"
    assert put.content == keyed(16, b"nbmf ledger blob", codec, b"fact", fidelity, b"{}", b"blob")


def test_no_content_is_in_the_ledger_and_equal_contents_look_alike_to_nobody(store: Store, tier: Audited) -> None:
    for tenant in ("needle-a", "needle-b"):
        tier.put(rec("needle-key", (tenant, "needle-space"), b"needle value", cls="needle", meta=b"needle"))
    raw = store.path.read_bytes()
    assert b"needle" not in raw
    one, two = (entry.operations[0] for entry in tier.ledger.entries())
    assert one.content != two.content and one.key != two.key and one.namespace != two.namespace


def test_a_shredded_tenants_hashes_are_noise(tier: Audited) -> None:
    record = rec("k", ("ann",))
    tier.put(record)
    secret = tier.ledger.secret("ann")
    tier.batch([Forget(("ann",))])
    entry, forgotten = tier.ledger.entries()
    assert entry.operations[0].key == key_hash(secret, ("ann",), "k")
    assert forgotten.operations[0].namespace == namespace_hash(secret, ("ann",))
    assert tier.ledger.secret("ann") == b""
    tier.put(record)
    assert tier.ledger.secret("ann") not in (b"", secret)
    again = list(tier.ledger.entries())[-1].operations[0]
    assert again.key != entry.operations[0].key and again.content != entry.operations[0].content
    assert tier.ledger.verify() is None and list(tier.check()) == []


def test_bytes_an_entry(tier: Audited) -> None:
    """The figures of the specification."""
    size = tier.ledger.size()
    assert size == HEADER
    for count, wanted in ((1, 63), (10, 325), (100, 2935)):
        tier.batch([Put(rec(f"{i}")) for i in range(count)])
        assert tier.ledger.size() - size == wanted
        size = tier.ledger.size()
    assert tier.sizes()["ledger"] == size


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            module.Operation,
            st.just(PUT),
            st.booleans(),
            st.sampled_from([b"a" * 8, b"b" * 8]),
            st.binary(min_size=12, max_size=12),
            st.binary(min_size=16, max_size=16),
        )
        | st.builds(module.Operation, st.just(DELETE), st.booleans(), st.just(b"b" * 8), st.just(b"k" * 12))
        | st.builds(module.Operation, st.just(FORGET), st.just(False), st.binary(min_size=8, max_size=8))
        | st.builds(module.Operation, st.sampled_from([FORGET_ALL, EXPIRE])),
        max_size=200,
    ),
    st.integers(1, 1 << 60),
)
def test_entries_round_trip(operations: list[Any], sequence: int) -> None:
    body = bytes([BATCH]) + module._varint(sequence) + (NOW).to_bytes(6, "little") + module._pack(operations)
    assert module._unpack(body) == Entry(sequence, NOW, BATCH, tuple(operations))
    for size in range(8, len(body), 11):
        with pytest.raises(module._Bad):
            module._unpack(body[:size])


# -- conditions and refusals -------------------------------------------------------------------------------------------


def test_conditions_that_were_not_met_are_told(tier: Audited) -> None:
    tier.batch([Put(rec("a")), Put(rec("b"), expected=b"x"), Delete(("users", "ann"), "a", expected=b"no")])
    tier.put(rec("a", blob=b"2"), expected=b"blob")
    tier.delete(("users", "ann"), "nothing")
    entries = list(tier.ledger.entries())
    assert kinds(entries) == [BATCH, VOID, BATCH, BATCH]
    assert [one.conditional for one in entries[0].operations] == [False, True, True]
    assert entries[1].of == 1 and entries[1].places == (1, 2)
    assert list(tier.check()) == []


def test_what_the_tier_refuses_did_not_happen(store: Store) -> None:
    class Refusing(SQLiteTier):
        error: Exception = PolicyError("a quota")

        def batch(self, ops: Any) -> list[Any]:
            if any(isinstance(op, Put) and op.record.key == "refused" for op in ops):
                raise self.error
            return super().batch(ops)

    with closing(Refusing(store.root / "a.db")) as inner:
        tier = Audited(inner, store.ledger())
        tier.put(rec("a"))
        with pytest.raises(PolicyError, match="a quota"):
            tier.put(rec("refused"))
        Refusing.error = StoreError("connection lost")
        with pytest.raises(StoreError, match="connection lost"):
            tier.put(rec("refused"))
        Refusing.error = KeyboardInterrupt()  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            tier.put(rec("refused"))
        tier.put(rec("b"))
        with pytest.raises(PolicyError):  # and this is not worth an entry
            tier.batch([Put(rec("c")), Put(rec(""))])
        entries = list(tier.ledger.entries())
        assert [(entry.kind, entry.of) for entry in entries] == [
            (BATCH, 0), (BATCH, 0), (VOID, 2), (BATCH, 0), (DOUBT, 4), (BATCH, 0), (DOUBT, 6), (BATCH, 0),
        ]  # fmt: skip
        assert entries[2].places == ()
        assert list(tier.check()) == []


# -- tampering ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(store: Store) -> list[bytes]:
    """The header and the raw entries of a ledger of nine batches, each of its own size."""
    starts = [HEADER]
    with closing(store.open()) as tier:
        for i in range(9):
            tier.batch([Put(rec(f"{i}-{j}", ("t", f"{i}"))) for j in range(i + 1)])
            starts.append(tier.ledger.size())
    raw = store.path.read_bytes()
    return [raw[:HEADER], *(raw[a:b] for a, b in pairwise(starts))]


def test_any_flipped_byte_names_its_entry(store: Store, written: list[bytes]) -> None:
    ledger = store.ledger()
    head = ledger.head()
    raw = b"".join(written)
    at = 0
    for n, part in enumerate(written):
        for place in range(at, at + len(part)):
            store.path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
            fault = ledger.verify(head)
            assert fault is not None, place
            assert not n or fault.where == f"entry {n}", (place, fault)
            with pytest.raises((CorruptRecord, StoreError)):
                if (found := store.ledger().verify(head)) is not None:
                    raise CorruptRecord(str(found))
        at += len(part)
    store.path.write_bytes(raw)
    assert ledger.verify(head) is None


def test_entries_taken_out_moved_or_cut_off(store: Store, written: list[bytes]) -> None:
    ledger = store.ledger()
    head = ledger.head()
    header, *entries = written

    def fault(*parts: bytes, anchor: Head | None = None) -> tuple[str, str]:
        store.path.write_bytes(b"".join(parts))
        found = ledger.verify(anchor)
        assert found is not None
        return found.where, found.what

    assert fault(header, *entries[:3], *entries[4:]) == ("entry 4", "is missing or out of place: there is 5")
    assert fault(header, *entries[1:]) == ("entry 1", "is missing or out of place: there is 2")
    swapped = (entries[0], entries[2], entries[1], *entries[3:])
    assert fault(header, *swapped) == ("entry 2", "is missing or out of place: there is 3")
    assert fault(header, *entries[:5], entries[4], *entries[5:])[0] == "entry 6"
    # Cut: the header still knows how many there were. So does an anchor, when the header was changed as well.
    assert fault(header, *entries[:6]) == ("entry 7", "is missing: the ledger was cut, and had 9")
    assert fault(header) == ("entry 1", "is missing: the ledger was cut, and had 9")
    assert fault(header, *entries[:6], entries[6][:-1])[0] == "entry 7"
    store.path.write_bytes(b"".join([header, *entries[:6]]))
    chain = stranger(store.path.read_bytes())
    end = store.path.stat().st_size
    forged = header[:24] + end.to_bytes(8, "little") + (6).to_bytes(8, "little") + chain[-1][1]
    store.path.write_bytes(b"".join([forged, *entries[:6]]))
    assert ledger.verify() is None
    assert fault(forged, *entries[:6], anchor=head) == ("entry 7", "is missing: the ledger was cut, and had 9")


def test_a_chain_made_anew_is_seen_by_its_head_alone(store: Store, written: list[bytes], tmp_path: Path) -> None:
    ledger = store.ledger()
    head = ledger.head()
    chain, body = stranger(b"".join(written)), bytearray(b"".join(written[1:]))
    # Entry 5 says another time, and everything after it is hashed anew.
    hashed, out, at = chain[0][1], bytearray(), 0
    for n, part in enumerate(written[1:], 1):
        prefix = 1 if part[0] < 128 else 2
        content = bytearray(part[prefix:-16])
        if n == 5:
            content[3] ^= 1
        hashed = hashlib.blake2b(hashed + content, digest_size=32).digest()
        out += part[:prefix] + content + hashed[:16]
        at += len(part)
    assert len(out) == len(body) == at
    forged = written[0][:40] + hashed
    store.path.write_bytes(forged + out)
    assert store.ledger().verify() is None
    fault = store.ledger().verify(head)
    assert fault is not None and fault.where == "entry 9" and "is not that of the head" in fault.what
    assert store.ledger().verify(Head(*chain[4])) is None
    fault = store.ledger().verify(Head(*chain[5]))
    assert fault is not None and fault.where == "entry 5"
    # Another ledger in its place.
    other = Store(tmp_path / "other")
    other.root.mkdir()
    fault = other.ledger().verify(Head(*chain[0]))
    assert fault is not None and fault.where == "the header"


def test_a_writer_adds_nothing_to_a_damaged_ledger(store: Store, written: list[bytes]) -> None:
    raw = b"".join(written)
    for damaged in (raw[: -len(written[-1])], raw[:-1], raw[:200], raw + b"\x09junk" * 20):
        store.path.write_bytes(damaged)
        with closing(store.open()) as tier:
            with pytest.raises(CorruptRecord):
                tier.put(rec("new"))
            assert tier.get(("users", "ann"), "new", NOW) is None
            assert next(fault.where for fault in tier.check()).startswith("ledger, entry")
        assert store.path.read_bytes() == damaged
    for damaged in (raw[:20], b"x" * 500):
        store.path.write_bytes(damaged)
        with pytest.raises(StoreError, match="is not a ledger of this version"):
            store.open()


def test_a_store_put_back_to_an_earlier_state_is_noticed(store: Store) -> None:
    """Every page of the old database is authentic; only the ledger tells that it is old."""
    with closing(store.open()) as tier:
        tier.batch([Put(rec("changed", blob=b"1")), Put(rec("deleted")), Put(rec("same")), Put(rec("forgotten"))])
    shutil.copytree(store.root / "tenants", store.root / "old")
    with closing(store.open()) as tier:
        tier.batch([Put(rec("changed", blob=b"2")), Delete(("users", "ann"), "deleted"), Put(rec("added"))])
        assert list(tier.check()) == []
    shutil.rmtree(store.root / "tenants")
    (store.root / "old").rename(store.root / "tenants")
    with closing(store.open()) as tier:
        assert list(tier.tier.check()) == []
        faults = {(fault.where, fault.what) for fault in tier.check()}
    assert faults == {
        ("('users', 'ann') 'changed'", "is not what the ledger says"),
        ("('users', 'ann') 'deleted'", "is there, and the ledger says it was deleted"),
    }


@pytest.mark.parametrize(
    "operations",
    [
        bytes([0]) + bytes(36),
        bytes([6]),
        bytes([PUT | 0x40]) + bytes(36),
        bytes([PUT | 0x80]) + bytes(36),
        bytes([PUT | 0x20]) + bytes(28),
        bytes([EXPIRE | 0x20]),
        bytes([EXPIRE | 0x10]),
        bytes([EXPIRE, 0]),
        bytes([PUT]) + bytes(35),
    ],
)
def test_bits_without_a_meaning_are_refused(operations: bytes) -> None:
    start = bytes([BATCH, 1]) + bytes(6) + b"\x01"
    assert module._unpack(start + bytes([PUT]) + bytes(36)).operations[0].kind == PUT
    with pytest.raises(module._Bad):
        module._unpack(start + operations)
    with pytest.raises(module._Bad, match="unknown kind 3"):
        module._unpack(b"\x03" + start[1:] + bytes([PUT]) + bytes(36))


def test_heads_as_text() -> None:
    head = Head(12, bytes(range(32)))
    assert str(head) == f"12:{bytes(range(32)).hex()}" and Head.parse(f" {head}\n") == head
    for text in ("", "12", "12:", f"{head}00", f"-{head}", f"x{head}", "²:" + "00" * 32):
        with pytest.raises(PolicyError, match="sequence:hash"):
            Head.parse(text)


# -- crashes -----------------------------------------------------------------------------------------------------------

OPEN = """
import os, signal, sys
from pathlib import Path
from nbmf.store.base import *
from nbmf.store.keys import Keyring
from nbmf.store.ledger import Audited, Ledger
from nbmf.store.sqlite import SQLiteTier
from nbmf.store.tenants import Tenants
root, me = Path(sys.argv[1]), sys.argv[2]
keys = Keyring(root / "keys", bytes(range(32)))
tier = Audited(Tenants(root / "tenants", keys, SQLiteTier), Ledger(root / "ledger", keys))
"""
WRITER = (
    OPEN
    + """
for i in range(1_000_000):
    tier.batch([Put(Record((f"t{i % 3}", me), f"{i}-{j}", b"blob %d" % i)) for j in range(i % 4 + 1)])
    print(i, flush=True)
"""
)
KILLED = (
    OPEN
    + """
inner, write = tier.tier.batch, tier.ledger._write
def before(ops): os.kill(os.getpid(), signal.SIGKILL)
def after(ops): inner(ops); os.kill(os.getpid(), signal.SIGKILL)
def torn(file, kind, rest):
    end = tier.ledger._end
    write(file, kind, rest)
    file.truncate(end + 20)
    os.kill(os.getpid(), signal.SIGKILL)
if me == "torn":
    tier.ledger._write = torn
else:
    tier.tier.batch = {"before": before, "after": after}[me]
tier.put(Record(("t",), me, b"blob"))
"""
)


@KILLS
@pytest.mark.parametrize("when", ["before", "after", "torn"])
def test_a_kill_between_entry_and_commit_is_told(store: Store, when: str) -> None:
    with closing(store.open()) as tier:
        tier.put(rec("k", ("t",)))
    died = subprocess.run([sys.executable, "-c", KILLED, str(store.root), when], check=False)
    assert died.returncode == -9
    with closing(store.open()) as tier:
        there = tier.get(("t",), when, NOW) is not None
        assert there == (when == "after")
        assert list(tier.check()) == []
        tier.put(rec("next", ("t",)))
        entries = list(tier.ledger.entries())
        assert kinds(entries) == ([BATCH, BATCH] if when == "torn" else [BATCH, BATCH, DOUBT, BATCH])
        assert when == "torn" or entries[2].of == 2
        if there:  # whoever has the keys can tell that it did happen
            record = tier.get(("t",), when, NOW)
            assert record is not None
            assert entries[1].operations[0].content == content_hash(tier.ledger.secret("t"), record)
        assert list(tier.check()) == [] and tier.ledger.verify() is None


@KILLS
@pytest.mark.slow
def test_kills_at_random_instants_lose_nothing_acknowledged(store: Store) -> None:
    """With two writers at once; every record that is there is in the ledger, and the chain is whole."""
    acked: set[tuple[tuple[str, ...], str]] = set()
    heads: list[Head] = []
    for turn in range(6):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(store.root), f"{turn}-{me}"], stdout=subprocess.PIPE, text=True
            )
            for me in range(2)
        ]
        lines: list[list[str]] = []
        for process in writers:
            assert process.stdout is not None
            lines.append([process.stdout.readline() for _ in range(3 + 4 * turn)])
        for me, process in enumerate(writers):
            process.kill()
            process.wait()
            assert process.stdout is not None
            lines[me] += process.stdout.read().splitlines(keepends=True)
            process.stdout.close()
            done = [int(line) for line in lines[me] if line.endswith("\n")]
            acked |= {((f"t{i % 3}", f"{turn}-{me}"), f"{i}-{j}") for i in done for j in range(i % 4 + 1)}
        with closing(store.open()) as tier:
            told = {
                operation.key: operation.content
                for entry in tier.ledger.entries()
                for operation in entry.operations
                if operation.kind == PUT
            }
            there = list(tier.scan())
            assert acked <= {(record.namespace, record.key) for record in there}
            for record in there:
                secret = tier.ledger.secret(record.namespace[0])
                assert told[key_hash(secret, record.namespace, record.key)] == content_hash(secret, record)
            assert list(tier.check()) == []
            heads.append(tier.ledger.head())
            assert all(tier.ledger.verify(head) is None for head in heads)


def test_what_a_power_cut_leaves_of_an_entry_is_cut_off(store: Store, written: list[bytes]) -> None:
    """Zeros where data did not arrive, or a part; and a header that was not written since."""
    raw = b"".join(written)
    chain = stranger(raw)
    before = len(raw) - len(written[-1])
    stale = raw[:24] + before.to_bytes(8, "little") + (8).to_bytes(8, "little") + chain[8][1]
    for last in (b"", bytes(300), written[-1][:30], written[-1][:1], written[-1][:-40] + bytes(40), written[-1]):
        store.path.write_bytes(stale + raw[HEADER:before] + last)
        with closing(store.open()) as tier:
            tier.put(rec("new"))
            assert tier.ledger.verify() is None and list(tier.check()) == []
            whole = last == written[-1]
            assert kinds(list(tier.ledger.entries())) == [BATCH] * 8 + [BATCH, DOUBT] * whole + [BATCH]


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as POSIX does")
def test_a_full_disk_stops_the_batch_and_hurts_nothing(store: Store, tier: Audited) -> None:
    import resource

    tier.put(rec("a"))
    size, limits = tier.ledger.size(), resource.getrlimit(resource.RLIMIT_FSIZE)
    many: list[Op] = [Put(rec(f"{i}")) for i in range(100)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, limits[1]))
    try:
        with pytest.raises(StoreError, match="ledger"):
            tier.batch(many)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tier.ledger.size() == size and tier.ledger.verify() is None
    assert tier.sizes()["count"] == 1
    tier.put(rec("b"))
    assert kinds(list(tier.ledger.entries())) == [BATCH, BATCH] and list(tier.check()) == []


# -- several writers ---------------------------------------------------------------------------------------------------


def test_threads_and_openers_share_a_ledger(store: Store, tier: Audited) -> None:
    failures: list[BaseException] = []
    with closing(store.open()) as other:

        def work(me: int) -> None:
            try:
                for i in range(12):
                    (tier, other)[me % 2].put(Record((f"t{me}",), f"{i}", b"x"))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
        for thread in threads:
            thread.start()
        faults = [fault for _ in range(3) for fault in tier.check()]  # while they write
        for thread in threads:
            thread.join()
        assert failures == [] and faults == []
        assert tier.ledger.head() == other.ledger.head() and tier.ledger.head().sequence == 48
        assert kinds(list(other.ledger.entries())) == [BATCH] * 48
        assert other.ledger.verify(tier.ledger.head()) is None


def test_opening_does_not_read_what_is_settled(store: Store, written: list[bytes], monkeypatch: Any) -> None:
    read: list[int] = []
    entry = module._entry
    monkeypatch.setattr(module, "_entry", lambda *args: read.append(args[2]) or entry(*args))
    ledger = store.ledger()
    assert ledger.head().sequence == 9 and read == []
    raw = b"".join(written)
    store.path.write_bytes(raw[:24] + b"\xff" * 48 + raw[HEADER:])
    with pytest.raises(CorruptRecord):
        store.ledger().head()
    store.path.write_bytes(raw[:24] + bytes(48) + raw[HEADER:])
    read.clear()
    assert store.ledger().head() == ledger.head() and read == list(range(1, 10))


def test_an_audited_tier_is_the_tier_in_all_else(tier: Audited) -> None:
    inner: Tier = tier.tier
    seen = tier.version()
    tier.put(rec())
    assert tier.version() == inner.version() != seen
    tier.compact()
    assert {**inner.sizes(), "ledger": tier.ledger.size()} == tier.sizes()
