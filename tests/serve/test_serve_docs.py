"""The examples of docs/serve.md and docs/mcp.md, run against real servers."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from live import Process

DOCS = Path(__file__).resolve().parents[2] / "docs"

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="not run from the repository")


def fenced(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_page_on_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Process(tmp_path / "log", "serve", str(tmp_path / "agent.nbmf")) as server:
        address = "http://127.0.0.1:8750"
        for block in fenced("serve.md", "python"):
            exec(compile(block.replace(address, server.url), "serve.md", "exec"), {})
        command = next(block for block in fenced("serve.md", "sh") if "curl" in block).replace(address, server.url)
        arguments = [part for part in shlex.split(command) if part != "\n"]
        body = json.loads(arguments[arguments.index("-d") + 1])
        from live import asked

        assert asked(server.url, "PUT", "/v1/records", body)[0] == 204
        assert (
            asked(server.url, "GET", "/v1/records?namespace=users&namespace=ann&key=pref-1")[1]["value"]
            == body["value"]
        )
    assert (tmp_path / "watched.nbmf").is_dir()


def test_the_page_on_mcp(tmp_path: Path) -> None:
    shim = tmp_path / "bin" / "nbmf"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m nbmf.cli "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    (block,) = fenced("mcp.md", "python")
    block = block.replace('command="nbmf"', f"command={str(shim)!r}")
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "likes green tea\n"), done.stderr


def test_configurations_are_json() -> None:
    for block in fenced("mcp.md", "json"):
        assert json.loads(block)["mcpServers"]["memory"]["args"][0] == "mcp"
