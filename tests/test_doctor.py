"""`nbmf doctor` finds faults that are planted in a real installation or a real store, each by its name, with a fix."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nbmf import doctor, samples
from nbmf.bench import encoders
from nbmf.cli import app
from nbmf.codec import kernel
from nbmf.codec.codec import Codec
from nbmf.codec.model import PACKAGED, load_model
from nbmf.memory import Memory
from nbmf.memory.items import PutOp
from nbmf.store_access import Access

ACCESS = Access()
needs_c = pytest.mark.skipif(kernel.backend != "c", reason="learning a pack needs the C kernel")


def quiet(what: str, done: float, total: float | None = None) -> None:
    assert what and done >= 0


def examined(store: Path | None = None, **options: object) -> list[doctor.Finding]:
    return doctor.examine(None if store is None else str(store), ACCESS, tick=quiet, **options)  # type: ignore[arg-type]


def faults(found: list[doctor.Finding]) -> dict[str, doctor.Finding]:
    """What should be seen to, by check; each has a fix."""
    bad = {one.check: one for one in found if one.state in (doctor.WARN, doctor.FAIL)}
    assert all(one.fix for one in bad.values())
    assert all("\n" not in one.what for one in found)
    return bad


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("NBMF_KEY", raising=False)
    folder = tmp_path / "agent.nbmf"
    with Memory.open(folder, embedder=None) as memory:
        memory.put_many([PutOp(("ann",), str(n), one.value) for n, one in enumerate(samples.generate(40, seed=2))])
    return folder


def test_a_sound_store(store: Path) -> None:
    found = examined(store, deep=True)
    assert faults(found) == {} and doctor.is_sound(found)
    checks = {one.check for one in found}
    wanted = {"kernel", "models", "golden blobs", "policy", "permissions", "disk space", "log", "store", "rollout"}
    assert wanted | {"codecs", "divergence", "records"} <= checks
    before = {path: path.read_bytes() for path in store.rglob("*.db")}
    examined(store)
    assert before == {path: path.read_bytes() for path in store.rglob("*.db")}


def test_an_installation_alone() -> None:
    assert {one.check for one in examined()} == {"kernel", "models", "golden blobs", "extras"}


# -- planted -----------------------------------------------------------------------------------------------------------


def test_the_slow_kernel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own: a process chooses its kernel once."""
    import subprocess
    import sys

    code = "from nbmf import doctor; [print(one.check, one.state, one.fix) for one in doctor._kernel()]"
    environment = {**os.environ, "NBMF_KERNEL": "numpy"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "kernel warn unset NBMF_KERNEL"


def test_a_damaged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray((PACKAGED / "base.nbm").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "other.nbm").write_bytes(data)
    monkeypatch.setenv("NBMF_MODELS", str(tmp_path))
    bad = faults(examined())
    assert "other.nbm" in bad["models"].what and bad["models"].state == doctor.FAIL


def test_a_blob_that_is_not_what_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = json.loads((PACKAGED / doctor.GOLDEN).read_text(encoding="utf-8"))
    lines[2]["value"] = "another text"
    (tmp_path / doctor.GOLDEN).write_text(json.dumps(lines), encoding="utf-8")
    monkeypatch.setattr(doctor, "PACKAGED", tmp_path)
    assert faults(examined())["golden blobs"].state == doctor.FAIL


def policy(text: str) -> Callable[[Path], None]:
    def plant(store: Path) -> None:
        (store / "policy.toml").write_text(text, encoding="utf-8")

    return plant


def full_disk(store: Path) -> None:
    """A file larger than the disk, with nothing in it: the store cannot be written anew beside it."""
    with (store / "ledger.old").open("wb") as file:
        file.truncate(shutil.disk_usage(store).total)


def read_only(store: Path) -> None:
    (store / "warm.db").chmod(0o444)


def open_to_all(store: Path) -> None:
    store.chmod(0o777)


def other_journal(store: Path) -> None:
    raw = sqlite3.connect(store / "warm.db")
    assert raw.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    raw.close()


def damaged(store: Path) -> None:
    data = bytearray((store / "warm.db").read_bytes())
    data[8192:16384] = bytes(8192)
    (store / "warm.db").write_bytes(data)


def lost_keys(store: Path) -> None:
    (store / "warm.db").unlink()
    (store / "tenants").mkdir()


@pytest.mark.parametrize(
    ("plant", "check", "state", "told"),
    [
        (full_disk, "disk space", doctor.WARN, "free, where compacting"),
        (read_only, "permissions", doctor.FAIL, "warm.db cannot be read and written"),
        (open_to_all, "permissions", doctor.WARN, "can be changed by anybody"),
        (other_journal, "log", doctor.WARN, "delete mode"),
        (damaged, "log", doctor.FAIL, "warm.db"),
        (lost_keys, "store", doctor.FAIL, "keys is missing"),
        (policy("[default]\ncold_afer = '1d'\n"), "policy", doctor.FAIL, "did you mean cold_after"),
        (policy("[rollout]\npercent = 40\ntenants = ['ann']\n"), "rollout", doctor.WARN, "40 % of keys and 1 tenants"),
        (policy("[rollout]\nshadow = true\n"), "rollout", doctor.WARN, "shadow"),
        (policy("[default]\nencoder = 'stub'\n"), "rollout", doctor.WARN, "encoder is stub"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", None),
)
def test_planted(store: Path, plant: Callable[[Path], None], check: str, state: str, told: str) -> None:
    plant(store)
    found = faults(examined(store))
    assert found[check].state == state and told in found[check].what
    store.chmod(0o755)


def test_a_log_that_nobody_empties(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that holds on to what it began with, while others write."""
    monkeypatch.setattr(doctor, "LOG_MOST", 200_000)
    reader = sqlite3.connect(store / "warm.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM record").fetchone()
    with Memory.open(store, embedder=None) as memory:
        for n in range(40):
            memory.put(("bob",), str(n), os.urandom(20_000))
        assert "never ends" in faults(examined(store))["log"].what
    reader.execute("COMMIT")
    reader.close()
    with Memory.open(store, embedder=None) as memory:
        memory.compact()
    assert "log" not in faults(examined(store))


@needs_c
def test_a_pack_that_is_gone(store: Path) -> None:
    with Memory.open(store, embedder=None) as memory:
        memory.put_many([PutOp(("ann",), f"x{n}", one.value) for n, one in enumerate(samples.generate(200, seed=3))])
        memory.adapt("ann")
        memory.compact()
    assert faults(examined(store)) == {}
    shutil.rmtree(store / "packs")
    found = faults(examined(store))
    assert found["codecs"].state == doctor.FAIL and "records need" in found["codecs"].what


def test_records_of_a_model_that_is_elsewhere(store: Path) -> None:
    raw = sqlite3.connect(store / "warm.db")
    old = load_model().id.hex()
    changed = 0
    for (table,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        for row in raw.execute(f"PRAGMA table_info({table})").fetchall():
            for stored in (old, bytes.fromhex(old)):
                new = "ab" * 32 if isinstance(stored, str) else bytes.fromhex("ab" * 32)
                changed += raw.execute(f"UPDATE {table} SET {row[1]} = ? WHERE {row[1]} = ?", (new, stored)).rowcount
    raw.commit()
    raw.close()
    assert changed
    assert "abababab" in faults(examined(store))["codecs"].what


def test_divergence(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that loses the last byte, as a broken kernel might."""
    right = Codec.from_pair

    def broken(codec: Codec, value_type: int, raw: bytes, bare: bool = False) -> bytes:
        return right(codec, value_type, raw[:-1], bare)

    monkeypatch.setattr(Codec, "from_pair", broken)
    found = faults(examined(store))
    assert "of 40 records" in found["divergence"].what and found["divergence"].state == doctor.FAIL
    assert "golden blobs" in found


def test_divergences_that_a_server_counted() -> None:
    counts = {"neural": 3.0, "stub": 0.0}
    text = "".join(f'nbmf_divergences_total{{encoder="{name}"}} {count}\n' for name, count in counts.items())
    assert "3 of the neural encoder" in faults(examined(metrics=text))["divergence"].what
    fine = examined(metrics='nbmf_divergences_total{encoder="neural"} 0.0\n')
    assert faults(fine) == {} and any(one.check == "divergence" and one.state == doctor.OK for one in fine)
    assert faults(examined(metrics="")) == {}


def test_an_encrypted_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("apsw", reason="needs nbmf[encrypt]")
    folder = tmp_path / "sealed.nbmf"
    with Memory.open(folder, embedder=None, key=b"k" * 32) as memory:
        memory.put(("ann",), "1", "likes tea")
    monkeypatch.delenv("NBMF_KEY", raising=False)
    assert "is encrypted" in faults(examined(folder))["store"].what
    monkeypatch.setenv("NBMF_KEY", (b"x" * 32).hex())
    assert faults(examined(folder))["store"].state == doctor.FAIL
    monkeypatch.setenv("NBMF_KEY", (b"k" * 32).hex())
    assert faults(examined(folder)) == {}
    (folder / "keys").chmod(0o644)
    assert "can be read by others" in faults(examined(folder))["permissions"].what


def test_no_store(tmp_path: Path) -> None:
    assert "holds no store" in faults(examined(tmp_path))["store"].what


# -- the command -------------------------------------------------------------------------------------------------------


def test_command(store: Path) -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["doctor", str(store)])
    assert shown.exit_code == 0 and "✓ store" in shown.output and "→" not in shown.output
    found = json.loads(runner.invoke(app, ["doctor", str(store), "--json"]).output)
    assert found["sound"] is True and {one["state"] for one in found["findings"]} <= {"ok", "note"}
    read_only(store)
    shown = runner.invoke(app, ["doctor", str(store)])
    assert shown.exit_code == 1 and "✗ permissions" in shown.output and "→ chmod" in shown.output


def test_golden_blobs_are_of_the_base_model() -> None:
    found = list(doctor.golden())
    assert sum(model == Codec().id[:8] for model, _, _, _ in found) >= 10
    assert {profile for _, profile, _, _ in found} == set(encoders.profiles("base"))
