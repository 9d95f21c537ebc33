"""The key file: sources of master keys, wrapping, shredding, rotation, seals, damage, several processes."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf.errors import CorruptRecord, NbmfError, StoreError
from nbmf.store import keys as keys_module
from nbmf.store.keys import LIVE, MADE, SEAL_OVERHEAD, SHREDDED, DataKey, Entry, Keyring, master_key

MASTER = bytes(range(100, 132))
OTHER = bytes(32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A passphrase that is quick to check."""
    monkeypatch.setattr(keys_module, "SCRYPT", (10, 8, 1))


def made(keys: Keyring, tenant: str) -> DataKey:
    key = keys.data_key(tenant, make=True)
    assert key is not None
    return key


# -- master keys -------------------------------------------------------------------------------------------------------


def test_a_master_key_comes_in_many_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    awkward = bytes([251, 239, 255] * 10 + [251, 254])  # its base64 has + and /
    for key in (MASTER, awkward):
        texts = [key.hex(), key.hex().upper(), base64.b64encode(key).decode(), base64.urlsafe_b64encode(key).decode()]
        texts += [texts[2].rstrip("="), f"  {texts[0]}\n"]
        for text in texts:
            assert master_key(text) == key
            assert master_key(text.encode()) == key
            (tmp_path / "file").write_text(text, encoding="ascii")
            assert master_key(tmp_path / "file") == key
            monkeypatch.setenv("NBMF_KEY", text)
            assert master_key() == key
        (tmp_path / "file").write_bytes(key)
        assert master_key(tmp_path / "file") == key
        assert master_key(key) == key


def test_what_is_no_master_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NBMF_KEY", raising=False)
    assert master_key() is None
    secret = "a1" * 31
    for text in ("", secret, secret + "zz", "a1" * 33, "é" * 32, base64.b64encode(bytes(31)).decode()):
        with pytest.raises(StoreError, match="is not 32 bytes in hex or base64") as caught:
            master_key(text)
        assert not text or text not in str(caught.value)
    monkeypatch.setenv("NBMF_KEY", secret)
    with pytest.raises(StoreError, match=r"^NBMF_KEY is not 32 bytes"):
        master_key()
    with pytest.raises(StoreError, match="nowhere: No such file"):
        master_key(tmp_path / "nowhere")


def test_only_the_right_key_opens(path: Path) -> None:
    key = made(Keyring(path, MASTER), "ann").derived("database")
    assert made(Keyring(path, MASTER), "ann").derived("database") == key
    with pytest.raises(StoreError, match=r"keys: the master key is wrong$"):
        Keyring(path, OTHER)
    with pytest.raises(StoreError, match=r"keys needs the store's master key$"):
        Keyring(path)
    with pytest.raises(StoreError, match=r"keys needs the store's master key$"):
        Keyring(path, passphrase="x")
    with pytest.raises(StoreError, match="not both"):
        Keyring(path, MASTER, "x")
    with pytest.raises(StoreError, match="has 32 bytes, not 31"):
        Keyring(path.with_name("new"), MASTER[:31])
    assert not path.with_name("new").exists()


def test_only_the_right_passphrase_opens(path: Path, cheap: None) -> None:
    key = made(Keyring(path, passphrase="grün"), "ann").derived("database")
    assert made(Keyring(path, passphrase="grün"), "ann").derived("database") == key
    for wrong in ("gruen", "grün "):
        with pytest.raises(StoreError, match=r"keys: the passphrase is wrong$"):
            Keyring(path, passphrase=wrong)
    for master in (None, MASTER):
        with pytest.raises(StoreError, match="needs the store's passphrase"):
            Keyring(path, master)
    for file in (path, path.with_name("new")):
        with pytest.raises(StoreError, match="needs the store's passphrase"):
            Keyring(file, passphrase="")


def test_the_cost_of_a_passphrase_is_kept_and_bounded(path: Path, cheap: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made(Keyring(path, passphrase="p"), "ann")
    monkeypatch.setattr(keys_module, "SCRYPT", (11, 8, 1))
    Keyring(path, passphrase="p")
    raw = bytearray(path.read_bytes())
    assert raw[6:9] == bytes([10, 8, 1])
    for place, value in ((6, 31), (7, 0), (8, 255)):
        changed = bytearray(raw)
        changed[place] = value
        path.write_bytes(changed)
        with pytest.raises(StoreError, match="scrypt parameters that are out of bounds"):
            Keyring(path, passphrase="p")


def test_the_shipped_cost_of_a_passphrase(path: Path) -> None:
    made(Keyring(path, passphrase="p"), "ann")
    assert path.read_bytes()[5:9] == bytes([2, 16, 8, 1])


def test_without_protection(path: Path) -> None:
    keys = Keyring(path)
    assert not keys.protected and Keyring(path.with_name("other"), MASTER).protected
    key = made(keys, "ann").derived("x")
    assert made(Keyring(path), "ann").derived("x") == key
    for options in ({"master": MASTER}, {"passphrase": "x"}):
        with pytest.raises(StoreError, match="is not encrypted: it takes no key"):
            Keyring(path, **options)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="only a protected store"):
        keys.rotate(MASTER)


# -- tenants -----------------------------------------------------------------------------------------------------------


def test_every_tenant_has_a_key_of_its_own(path: Path) -> None:
    keys = Keyring(path, MASTER)
    assert keys.data_key("ann") is None and keys.find("ann") is None and keys.entries() == []
    names = [f"tenant-{i}" for i in range(20)]
    secrets = {made(keys, name).derived("database") for name in names}
    assert len(secrets) == 20
    assert {made(keys, name).derived("database") for name in names} == secrets
    assert made(keys, names[0]).derived("database") != made(keys, names[0]).derived("ledger")
    entries = keys.entries()
    assert [entry.name_id for entry in entries] == sorted(keys.name_id(name) for name in names)
    assert len({entry.file_id for entry in entries}) == 20
    assert Keyring(path, MASTER).entries() == entries


def test_the_file_shows_neither_names_nor_keys(path: Path) -> None:
    keys = Keyring(path, MASTER)
    for name in ("needle-ann", "needle-bob"):
        made(keys, name)
    raw = path.read_bytes()
    assert len(raw) == 12 + 16 + 40 + 2 * 65 + 16
    shown = [b"needle", MASTER, keys._root, keys._wrapper._key, *(made(keys, n)._key for n in ("needle-ann",))]
    assert not [what for what in shown if what is not None and what in raw]
    # The ids of another store's tenants are others: whoever knows a name cannot look for it.
    assert Keyring(path.with_name("other"), MASTER).name_id("needle-ann") != keys.name_id("needle-ann")
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o077 == 0


def test_an_entry_lives_in_three_states(path: Path) -> None:
    keys, other = Keyring(path, MASTER), Keyring(path, MASTER)
    entry = keys.make("ann")
    assert entry.state == MADE and other.make("ann") == entry
    settled = keys.settle(entry)
    assert settled.state == LIVE and other.find("ann") == settled == keys.settle(settled)
    assert other.holds(entry) and other.holds(settled)
    gone = keys.shred("ann")
    assert gone is not None and gone.state == SHREDDED and gone.file_id == entry.file_id
    assert not other.holds(entry) and other.find("ann") is None and other.entries() == []
    assert other.shredded() == [gone]
    with pytest.raises(StoreError, match="was shredded"):
        other.key(gone)
    again = keys.make("ann")
    assert again.name_id == entry.name_id and again.file_id != entry.file_id
    assert keys.shred(entry) is None and keys.shred("nobody") is None and keys.find("ann") == again
    keys.drop(again)  # only a shredded one
    keys.drop(gone)
    assert other.shredded() == [] and other.find("ann") == again


def test_a_shredded_key_is_gone_from_the_disk(path: Path) -> None:
    """Also from the blocks of the file before, which a name still reaches here through a hard link."""
    keys = Keyring(path, MASTER)
    sealed = made(keys, "ann").seal(b"secret", b"")
    kept = made(keys, "bob").seal(b"kept", b"")
    entry = keys.find("ann")
    assert entry is not None and entry.wrapped in path.read_bytes()
    os.link(path, path.with_name("before"))
    keys.shred("ann")
    for file in path.parent.iterdir():
        assert entry.wrapped not in file.read_bytes()
    again = Keyring(path, MASTER)
    assert again.data_key("ann") is None
    with pytest.raises(CorruptRecord):
        made(again, "ann").unseal(sealed, b"")
    assert made(again, "bob").unseal(kept, b"") == b"kept"


def test_rotation(path: Path, cheap: None) -> None:
    keys, other = Keyring(path, MASTER), Keyring(path, MASTER)
    before = made(keys, "ann").derived("x"), keys.name_id("ann")
    wrapped = keys.entries()[0].wrapped
    gone = keys.make("gone")
    keys.shred("gone")
    keys.rotate(OTHER)
    assert (made(keys, "ann").derived("x"), keys.name_id("ann")) == before
    assert wrapped not in path.read_bytes()
    with pytest.raises(StoreError, match="the master key is wrong"):
        Keyring(path, MASTER)
    with pytest.raises(StoreError, match="the master key is wrong"):
        other.entries()
    keys.rotate(passphrase="now a passphrase")
    made(keys, "bob")
    again = Keyring(path, passphrase="now a passphrase")
    assert (made(again, "ann").derived("x"), again.name_id("ann")) == before
    assert len(again.entries()) == 2 and [one.file_id for one in again.shredded()] == [gone.file_id]
    for options in ({}, {"master": MASTER[:3]}):
        with pytest.raises(StoreError):
            again.rotate(**options)  # type: ignore[arg-type]
    assert (made(again, "ann").derived("x"), again.name_id("ann")) == before
    Keyring(path, passphrase="now a passphrase")


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("master", [MASTER, None], ids=["protected", "unprotected"])
def test_any_flipped_byte_of_the_file_is_refused(path: Path, master: bytes | None) -> None:
    keys = Keyring(path, master)
    for name in ("ann", "bob"):
        made(keys, name)
    raw = path.read_bytes()
    for place in range(len(raw)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << place % 8]) + raw[place + 1 :])
        with pytest.raises((StoreError, CorruptRecord)):
            Keyring(path, master)
    path.write_bytes(raw)
    assert len(Keyring(path, master).entries()) == 2


def test_entries_cannot_be_swapped_nor_left_out(path: Path) -> None:
    keys = Keyring(path, MASTER)
    for name in ("ann", "bob"):
        made(keys, name)
    raw = path.read_bytes()
    head, first, second, check = raw[:68], raw[68:133], raw[133:198], raw[198:]
    mixed = (first[:25] + second[25:], second[:25] + first[25:])
    for entries in ((second, first), (first,), (second,), (), (first, second, second), mixed):
        path.write_bytes(b"".join([head, *entries, check]))
        with pytest.raises(CorruptRecord, match="was changed"):
            Keyring(path, MASTER)
    for cut in (b"", raw[:50], raw[:-1], raw + b"\0", b"#!/bin/sh\n" * 40):
        path.write_bytes(cut)
        with pytest.raises(StoreError, match="is not a key file of this version"):
            Keyring(path, MASTER)


def test_a_full_disk_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keyring(path, MASTER)
    key = made(keys, "ann").derived("x")
    raw = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for call in (lambda: keys.make("bob"), lambda: keys.shred("ann"), lambda: keys.rotate(OTHER)):
            with pytest.raises(StoreError, match="No space left on device"):
                call()
            assert path.read_bytes() == raw and not path.with_name("keys.new").exists()
    assert keys.find("bob") is None and made(keys, "ann").derived("x") == key
    assert made(Keyring(path, MASTER), "ann").derived("x") == key


# -- seals -------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=40))
def test_seals_round_trip(data: bytes, context: bytes) -> None:
    key = DataKey(MASTER)
    sealed = key.seal(data, context)
    assert len(sealed) == len(data) + SEAL_OVERHEAD
    assert key.unseal(sealed, context) == data
    assert key.seal(data, context) != sealed
    for other, where in ((DataKey(OTHER), context), (key, context + b"x")):
        with pytest.raises(CorruptRecord):
            other.unseal(sealed, where)


def test_a_damaged_seal_is_refused() -> None:
    key = DataKey(MASTER)
    sealed = key.seal(b"needle" * 3, b"archive 7, group 2")
    assert b"needle" not in sealed
    for place in range(len(sealed)):
        with pytest.raises(CorruptRecord):
            key.unseal(sealed[:place] + bytes([sealed[place] ^ 0x10]) + sealed[place + 1 :], b"archive 7, group 2")
    for size in range(len(sealed)):
        with pytest.raises(CorruptRecord):
            key.unseal(sealed[:size], b"archive 7, group 2")


def test_what_is_missing_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(NbmfError, match=r"needs nbmf\[encrypt\]"):
        Keyring(path, MASTER)
    with pytest.raises(NbmfError, match=r"needs nbmf\[encrypt\]"):
        DataKey(MASTER).seal(b"", b"")
    assert not path.exists()
    made(Keyring(path), "ann")  # without protection nothing is needed


# -- threads and processes ---------------------------------------------------------------------------------------------

WORK = """
import sys
from pathlib import Path
from nbmf.store.keys import Keyring
keys = Keyring(sys.argv[1], bytes(range(100, 132)))
for i in range(25):
    shared = keys.data_key(f"shared-{i}", make=True).derived("x").hex()
    keys.data_key(f"own-{sys.argv[2]}-{i}", make=True)
    passing = keys.make(f"passing-{sys.argv[2]}")
    gone = keys.shred(passing)
    keys.drop(gone)
    print(shared)
"""


def test_processes_share_a_key_file(path: Path) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", WORK, str(path), str(me)], stdout=subprocess.PIPE, text=True)
        for me in range(3)
    ]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert outputs[0] == outputs[1] == outputs[2] and len(set(outputs[0].split())) == 25
    keys = Keyring(path, MASTER)
    wanted = {f"shared-{i}" for i in range(25)} | {f"own-{me}-{i}" for me in range(3) for i in range(25)}
    assert {entry.name_id for entry in keys.entries()} == {keys.name_id(name) for name in wanted}
    assert [made(keys, f"shared-{i}").derived("x").hex() for i in range(25)] == outputs[0].split()


def test_threads_share_a_keyring(path: Path) -> None:
    keys = Keyring(path, MASTER)
    seen: list[list[Entry]] = []

    def work() -> None:
        seen.append([keys.settle(keys.make(f"t{i}")) for i in range(12)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4 and all(entries == seen[0] for entries in seen)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_a_kill_at_any_instant_leaves_a_whole_file(path: Path) -> None:
    key = made(Keyring(path, MASTER), "kept").derived("x")
    for turn in range(12):
        process = subprocess.Popen([sys.executable, "-c", WORK, str(path), f"{turn}"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(1 + turn % 5):
            process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.close()
        assert made(Keyring(path, MASTER), "kept").derived("x") == key
