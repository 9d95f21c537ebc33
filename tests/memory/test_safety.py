"""What must not be left, what must not be shown, and what must not be lost: forgetting, damage, a full disk."""

from __future__ import annotations

import random
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbmf import samples
from nbmf.errors import NbmfError, PolicyError, StoreError
from nbmf.memory import Memory, PutOp
from nbmf.policy.policy import Policy
from nbmf.store.base import Delete, Put

KEY = bytes(range(32))
COLD = '[default]\ncold_after = "0s"\npromote_heat = "never"\n'
STORED = '[default]\nencoder = "stored"\n'
UUID = "6f1b1f0e-4f3c-4a52-9a43-1d6f3a2b9c11"
# Empty, or rebuilt, or only a number that tells of changes: their damage is no fault.
HARMLESS = ("positions.db", "positions.db-wal", "positions.db-shm", "version", "forgotten")


@pytest.fixture(params=["plain", "encrypted"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The arguments that open one store."""
    return {"address": tmp_path / "s", "key": KEY if request.param == "encrypted" else None, "embedder": None}


def opened(store: dict[str, Any], policy: str = "", **options: Any) -> Memory:
    return Memory.open(**{**store, "policy": Policy.parse(policy), **options})


def grep(folder: Path, marks: list[bytes]) -> set[tuple[str, bytes]]:
    """Which marks are in which files, names included."""
    found = set()
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            found |= {(path.name, mark) for mark in marks if mark in data or mark in str(path).encode()}
    return found


# -- forgetting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [("t", "secretspace"), ("t",), ()], ids=["namespace", "tenant", "everything"])
def test_no_version_of_what_is_forgotten_stays(store: dict[str, Any], prefix: tuple[str, ...]) -> None:
    """Values replaced, deleted and expired, warm and cold, and what a pack has learned from them."""
    marks = [b"secretvalue", b"secretkey", b"secretspace", b"secretclass", b"secretmeta", uuid.UUID(UUID).bytes]
    at = ("t", "secretspace")
    with opened(store, STORED, ledger=True) as other:
        with opened(store, STORED + 'cold_after = "0s"\n') as memory:
            for version in ("secretvalue one", "secretvalue two"):
                for i in range(60):
                    memory.put(at, f"secretkey-{i}", f"{version} {i}", cls="secretclass", meta={"secretmeta": i})
                memory.put(at, UUID, version)
                memory.compact()
            memory.put(("t", "stays"), "k", {"n": 1})
            memory.put(("u",), "k", {"n": 2})
            other.adapt("t")
            memory.put(at, "secretkey-0", "secretvalue three", ttl=0.0001)
            memory.delete(at, "secretkey-1")
            memory.put(at, "secretkey-2", "secretvalue four")
            assert memory.forget(prefix) >= 59
        assert other.get(at, "secretkey-3") is None
        assert other.get(("t", "stays"), "k") == ({"n": 1} if len(prefix) == 2 else None)
        assert other.get(("u",), "k") == ({"n": 2} if prefix else None)
        assert list(other.check()) == []
        assert list(other.codecs.packs.files()) == []  # type: ignore[union-attr]
        assert grep(store["address"], marks) == set()
    assert grep(store["address"], marks) == set()


def test_the_blobs_of_what_is_forgotten_are_nowhere(store: dict[str, Any]) -> None:
    with opened(store) as memory:
        values = [sample.value for sample in samples.generate(80, seed=2)]
        memory.put_many(PutOp(("t", "a"), f"k{i}", value) for i, value in enumerate(values))
        memory.put_many(PutOp(("t", "b"), f"k{i}", [i, value]) for i, value in enumerate(values))
        blobs = [record.blob for record, _ in memory.live(("t", "a"), None) if len(record.blob) > 12]
        assert len(blobs) > 60
        memory.adapt("t", 16 << 10)
        pack = next(memory.codecs.packs.files()).read_bytes()[5000:5100]  # type: ignore[union-attr]
        memory.forget(("t", "a"))
        assert [memory.get(("t", "b"), f"k{i}") for i in range(80)] == [[i, value] for i, value in enumerate(values)]
    assert grep(store["address"], [*blobs, pack]) == set()


def test_the_ledgers_own_keys_go_with_a_tenant(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "s", key=b"", embedder=None, ledger=True) as memory:
        memory.put(("t",), "k", 1)
        memory.put(("u",), "k", 1)
        keys = memory.parts.ledger_keys
        assert keys is not None and len(keys.entries()) == 2
        memory.forget(("t", "below"))
        assert len(keys.entries()) == 2
        memory.forget(("t",))
        assert keys.find("t") is None and keys.find("u") is not None
        memory.put(("t",), "k", 2)
        assert list(memory.check()) == []
        memory.forget(())
        assert keys.entries() == []
        assert list(memory.check()) == []


def test_a_ledger_whose_last_batch_never_ended(store: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry is there, and what it tells is not: a process was stopped in between."""
    with opened(store, ledger=True) as memory:
        memory.put(("t",), "k", 1)
        tier = memory.warm.tier  # type: ignore[attr-defined]
        batch = tier.batch

        def stopped(ops: Any) -> Any:
            if any(isinstance(op, Put | Delete) for op in ops):
                raise KeyboardInterrupt
            return batch(ops)

        for call in (lambda: memory.delete(("t",), "k"), lambda: memory.put(("t",), "k", 2)):
            monkeypatch.setattr(tier, "batch", stopped)
            with pytest.raises(KeyboardInterrupt):
                call()
            monkeypatch.undo()
            with opened(store) as other:
                assert list(other.check()) == [] and other.get(("t",), "k") == 1
        memory.put(("t",), "k", 3)
        assert list(memory.check()) == []


def test_forgetting_nothing(store: dict[str, Any]) -> None:
    with opened(store) as memory:
        assert memory.forget(("nobody",)) == memory.forget(()) == 0
        memory.put(("t", "a"), "k", 1)
        assert memory.forget(("t", "b")) == memory.forget(("T",)) == 0
        for bad in ("t", ("",), ["t"], ("t\0",)):
            with pytest.raises(PolicyError):
                memory.forget(bad)  # type: ignore[arg-type]
        assert memory.get(("t", "a"), "k") == 1


# -- isolation ---------------------------------------------------------------------------------------------------------


def test_tenants_do_not_meet(store: dict[str, Any]) -> None:
    """Equal values, keys and times in two tenants: whatever happens to one, the other does not notice."""
    with opened(store, COLD) as memory:
        for tenant in ("a", "a ", "A", "á", "b"):
            memory.put_many(PutOp((tenant, "s"), f"k{i}", {"same": i}) for i in range(60))
        for tier in ("warm", "cold"):
            assert {item.namespace[0] for item in memory.search(("a",), limit=999)} == {"a"}
            assert memory.list_namespaces(("a",)) == [("a", "s")]
            for tenant in ("a", "b"):
                memory.get((tenant, "s"), "k0")
            hits = memory.hot.hits
            memory.get(("a", "s"), "k0")
            memory.get(("b", "s"), "k0")
            assert memory.hot.hits == hits + 2, "each from its own entry"
            memory.hot.forget("a")
            memory.get(("b", "s"), "k0")
            assert memory.hot.hits == hits + 3
            if tier == "warm":
                memory.compact()
        memory.adapt("a")
        packs = memory.codecs.packs
        assert packs is not None and packs.current("a") and not packs.current("A") and not packs.current("b")
        memory.put(("b", "s"), "new", {"same": 1})
        assert memory.fetch([(("b", "s"), "new")], 0)[0][0].codec == memory.codecs.of_domain("").id  # type: ignore[index]
        assert memory.forget(("a",)) == 60
        for tenant in ("a ", "A", "á", "b"):
            assert [memory.get((tenant, "s"), f"k{i}") for i in range(60)] == [{"same": i} for i in range(60)]
        assert list(memory.check()) == []


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_file_that_is_gone(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "s", key=KEY, embedder=None) as memory:
        memory.put(("t",), "k", 1)
    kept = (tmp_path / "s" / "keys").rename(tmp_path / "kept")
    for key in (KEY, b"", bytes(32)):
        with pytest.raises(StoreError, match="missing"):
            Memory.open(tmp_path / "s", key=key, embedder=None)
    kept.rename(tmp_path / "s" / "keys")
    with Memory.open(tmp_path / "s", key=KEY.hex(), embedder=None) as memory:
        assert memory.get(("t",), "k") == 1


def test_which_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBMF_KEY", KEY.hex())
    with Memory.open(tmp_path / "s", embedder=None) as memory:
        memory.put(("t",), "k", 1)
    with Memory.open(tmp_path / "plain", key=b"", embedder=None) as memory:
        memory.put(("t",), "k", 2)
    for address, options in (
        ("plain", {}),
        ("s", {"key": b""}),
        ("s", {"key": b"short"}),
        ("s", {"passphrase": "x"}),
        ("s", {"key": KEY, "passphrase": "x"}),
    ):
        with pytest.raises(StoreError) as error:
            Memory.open(tmp_path / address, embedder=None, **options)  # type: ignore[arg-type]
        assert "\n" not in str(error.value) and KEY.hex() not in str(error.value)
    (tmp_path / "file").write_text("x")
    for address in (tmp_path / "file", "redis://x", tmp_path / "file" / "below"):
        with pytest.raises(StoreError):
            Memory.open(address, key=b"", embedder=None)


# -- damage ------------------------------------------------------------------------------------------------------------


def build(store: dict[str, Any]) -> dict[str, Any]:
    """A store with a file of every kind; its values by key."""
    values: dict[str, Any] = {f"k{i}": {"n": i, "text": f"record number {i} of many"} for i in range(60)}
    with opened(store, COLD, ledger=True) as memory:
        memory.put_many(PutOp(("t",), key, value, meta={"n": 1}) for key, value in list(values.items())[:30])
        memory.compact()
        memory.put_many(PutOp(("t",), key, value, meta={"n": 1}) for key, value in list(values.items())[30:55])
        memory.adapt("t", 8 << 10)
        memory.put_many(PutOp(("t",), key, value) for key, value in list(values.items())[55:])
    return values


@pytest.mark.parametrize("flips", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_damage_is_told_and_never_a_wrong_value(store: dict[str, Any], flips: int) -> None:
    values = build(store)
    rng = random.Random(flips)
    told: dict[str, list[bool]] = {}
    for path in sorted(path for path in store["address"].rglob("*") if path.is_file() and path.stat().st_size):
        whole = path.read_bytes()
        for _ in range(flips):
            at = rng.randrange(len(whole))
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
            told.setdefault(path.suffix or path.name, []).append(damaged(store, values, f"{path.name} at {at}"))
            path.write_bytes(whole)
    with opened(store) as memory:
        assert list(memory.check()) == []
    kinds = {kind: sum(found) / len(found) for kind, found in told.items() if kind not in HARMLESS}
    # Some bytes of a database mean nothing; the checks of the others cover every byte.
    assert all(share == 1 for kind, share in kinds.items() if kind not in (".db", "ledger", "current")), kinds
    assert kinds.keys() >= {".db", ".nba", ".nbp", "manifest", "ledger", "current"}


def damaged(store: dict[str, Any], values: dict[str, Any], where: str) -> bool:
    """Whether the damage is told. Raises AssertionError when a value is wrong, or missing and nothing tells it."""
    missing = False
    try:
        with opened(store) as memory:
            for key, value in values.items():
                try:
                    item = memory.item(("t",), key, refresh=False)
                except NbmfError:
                    missing = True
                    continue
                assert item is None or item.value == value, f"{where}: {key} is {item and item.value!r}"
                missing |= item is None
            faults = list(memory.check())
    except NbmfError as error:
        assert "\n" not in str(error)
        return True
    assert faults or not missing, f"{where}: something is missing, and `check` finds nothing"
    return bool(faults)


def test_files_that_are_gone(store: dict[str, Any]) -> None:
    values = build(store)
    for path in sorted(path for path in store["address"].rglob("*") if path.is_file() and path.stat().st_size):
        if path.name in HARMLESS or path.suffix in (".lock", ".toml") or path.name.endswith(("-wal", "-shm")):
            continue
        if path.name in ("warm.db", "ledger", "ledger.keys"):
            continue  # without it the folder is as good as new
        whole = path.read_bytes()
        path.unlink()
        damaged(store, values, f"without {path.name}")
        path.write_bytes(whole)
    with opened(store) as memory:
        assert all(memory.get(("t",), key) == value for key, value in values.items())


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    mount = subprocess.run(command, capture_output=True, text=True, check=False)
    if mount.returncode:
        pytest.skip(f"cannot mount a small file system: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_a_full_disk_loses_nothing(small_disk: Path, key: bytes | None) -> None:
    rng = random.Random(1)
    store = {"address": small_disk / "s", "key": key, "embedder": None}
    held: dict[str, Any] = {}

    def fill(memory: Memory, most: int, size: int) -> int:
        failures = 0
        for i in range(most):
            name, value = f"k{len(held)}-{i}", rng.randbytes(rng.randrange(size))
            try:
                memory.put(("t", "s"), name, value)
                held[name] = value
            except StoreError as error:
                assert "\n" not in str(error)
                failures += 1
                if failures == 5:
                    break
        return failures

    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_300_000))
    with opened(store, COLD + 'encoder = "zstd"\n', ledger=True) as memory:
        assert fill(memory, 40, 1000) == 0
        memory.compact()
        assert fill(memory, 40, 1000) == 0
        memory.put(("gone",), "k", "to be forgotten")
        assert fill(memory, 400, 20_000) == 5
        intact(memory, held)
        for call in (memory.compact, lambda: memory.adapt("t", 64 << 10), lambda: memory.forget(("gone",))):
            try:
                call()
            except StoreError as error:
                assert "\n" not in str(error)
            intact(memory, held)
    with opened(store, STORED) as memory:
        intact(memory, held)
        ballast.unlink()
        memory.forget(("gone",))
        intact(memory, held)
        memory.compact()
        assert fill(memory, 20, 2000) == 0
        intact(memory, held)


def intact(memory: Memory, held: dict[str, Any]) -> None:
    assert all(memory.get(("t", "s"), name) == value for name, value in held.items())
    assert {item.key for item in memory.search(("t",), limit=9999)} == held.keys()
    assert list(memory.check()) == []
