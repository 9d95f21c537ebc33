"""docs/production.md and docs/benchmarks.md: commands run and do what they say, and figures are the results'."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nbmf import samples
from nbmf.codec import kernel
from nbmf.memory import Memory
from nbmf.memory.items import PutOp
from nbmf.policy.policy import Policy

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "production.md"
COLD = '[class.old]\ncold_after = "0s"\n'

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not run from the repository")


def blocks(section: str) -> list[str]:
    """The commands of a section of the page, block by block."""
    text = PAGE.read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def run(block: str, folder: Path) -> None:
    shim = folder / "bin" / "nbmf"
    if not shim.exists():
        shim.parent.mkdir()
        shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m nbmf.cli "$@"\n', encoding="utf-8")
        shim.chmod(0o755)
    known = {**os.environ, "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-ec", block], cwd=folder, env=known, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block}{done.stdout}{done.stderr}"


def contents(folder: Path) -> dict[object, object]:
    """Every record of a store: value, class, metadata, whether it has a time to live."""
    with Memory.open(folder, embedder=None, create=False) as memory:
        live = [(one.namespace, one.key, one.ttl) for one, _ in memory.live((), None, None)]
        found = {}
        for namespace, key, ttl in live:
            item = memory.item(namespace, key, refresh=False)
            assert item is not None
            found[namespace, key] = (repr(item.value), item.cls, item.meta, ttl)
        return found


@pytest.mark.skipif(kernel.backend != "c", reason="learning a pack needs the C kernel")
@pytest.mark.parametrize("key", ["", "6b" * 32], ids=["plain", "encrypted"])
def test_backup_and_restore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Warm and archived records, a pack, times to live: lost with the folder, and back from both kinds of backup."""
    if key and importlib.util.find_spec("apsw") is None:
        pytest.skip("needs nbmf[encrypt]")
    monkeypatch.delenv("NBMF_KEY", raising=False)
    if key:
        monkeypatch.setenv("NBMF_KEY", key)
    with Memory.open(tmp_path / "agent.nbmf", policy=Policy.parse(COLD), embedder=None) as memory:
        values = [one.value for one in samples.generate(240, seed=9)]
        memory.put_many(
            [PutOp(("ann", "notes"), str(n), value, "old" if n % 3 == 0 else "new") for n, value in enumerate(values)]
        )
        memory.put(("bob",), "soon", {"a": 1}, ttl=60, meta={"from": "bob"})
        memory.adapt("ann")
        memory.compact()
        stats = memory.stats()
        assert stats["cold"]["count"] == 80 and stats["packs"] > 0
    before = contents(tmp_path / "agent.nbmf")
    assert len(before) == 241
    copy, online, restore = blocks("Backup and restore")
    run(copy, tmp_path)
    run(online, tmp_path)
    assert contents(tmp_path / "backup.nbmf") == contents(tmp_path / "backup-online.nbmf") == before
    with Memory.open(tmp_path / "agent.nbmf", embedder=None) as memory:
        memory.forget(("ann",))
    run(restore, tmp_path)
    assert contents(tmp_path / "agent.nbmf") == before
    run(restore.replace("backup.nbmf", "backup-online.nbmf"), tmp_path)
    assert contents(tmp_path / "agent.nbmf") == before


def test_the_doctor_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NBMF_KEY", raising=False)
    with Memory.open(tmp_path / "agent.nbmf", embedder=None) as memory:
        memory.put(("ann",), "1", "likes tea")
    (block,) = blocks("Before you start")
    run(block, tmp_path)


# -- benchmarks --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (ROOT / "bench" / "results").is_dir(), reason="not run from the repository")
def test_the_benchmark_page_is_in_step() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "benchmark_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
