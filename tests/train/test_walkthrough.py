"""The walk-through of docs/training.md, as it stands but at toy size: from a folder of JSONL to a model that codes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nbmf import samples
from nbmf.codec import kernel

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"

pytestmark = [
    pytest.mark.skipif(kernel.backend != "c", reason="learning needs the C kernel"),
    pytest.mark.skipif(not PAGE.is_file(), reason="not run from the repository"),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_walkthrough(tmp_path: Path) -> None:
    """Every `$` line in order and then the Python, in a folder with an export; networks on a GPU if there is one."""
    shim = tmp_path / "bin" / "nbmf"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m nbmf.cli "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    export = tmp_path / "export"
    export.mkdir()
    values = [one for one in samples.generate(900, seed=41) if not isinstance(one.value, bytes)]
    for part in range(6):
        lines = [
            {"data": one.value, "metadata": {"kind": one.kind, "conversation": str(number // 5)}}
            for number, one in enumerate(values[part::6])
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (export / f"agent-{part}.jsonl").write_text(text, encoding="utf-8")
    environment = {
        **os.environ,
        "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}",
        "XDG_DATA_HOME": str(tmp_path / "home"),
        "OMP_NUM_THREADS": "1",  # PyTorch's threads wait for each other in a loop where other tests run
    }
    environment.pop("NBMF_MODELS", None)
    lines = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    assert len(lines) >= 8
    for line in lines:
        if "--profile dense" in line and importlib.util.find_spec("torch") is None:
            continue
        at_toy_size = line.replace("--size small", "--size toy")
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", at_toy_size],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
        if "nbmf decode" in line:
            assert "water the plants" in done.stdout
    program = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert {"train.jsonl.xz", "val.jsonl.xz", "test.jsonl.xz", "report.html"} <= {
        path.name for path in (tmp_path / "prepared").iterdir()
    }
    assert (tmp_path / "mine.nbm.work" / "log.csv").is_file() and (tmp_path / "mine.nbm.work" / "loss.svg").is_file()
    assert (tmp_path / "home" / "nbmf" / "mine.nbm").is_file()
