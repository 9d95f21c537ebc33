"""Schemathesis against a running server: requests good and bad, and every answer held to the OpenAPI document.

The rules that JSON Schema cannot state (bytes of UTF-8, the length of a namespace as a whole, a vector's own size) are
why a request that fits the document may still be refused with 422.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Process

from nbmf import Memory
from nbmf.serve import auth

CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "404", "422"]
"""
SHORT, LONG = 15, 240  # seconds


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Process, str]]:
    token = auth.new_token()
    auth.add_entry(tmp_path / "tokens.toml", auth.entry_text(token, "fuzz", ["/"], "write", True))
    arguments = ("serve", str(tmp_path / "store"), "--tokens", str(tmp_path / "tokens.toml"))
    with Process(tmp_path / "log", *arguments) as running:
        yield running, token


def fuzz(server: Process, token: str, folder: Path, seconds: int, seed: int) -> None:
    (folder / "schemathesis.toml").write_text(CONFIG)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(folder / "schemathesis.toml"), "--no-color"),
        *("run", f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {token}"),
        *("--max-time", str(seconds), "--seed", str(seed), "--phases", "examples,coverage,fuzzing,stateful"),
        *("--generation-database", "none", "--request-timeout", "30"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds + 200, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "generated" in done.stdout, done.stdout
    faults = [line for line in server.lines() if line["event"] in ("fault", "the store failed")]
    assert faults == []
    assert server.stop() == 0
    done_well = {(line["method"], line["route"]) for line in server.lines() if 200 <= line.get("status", 0) < 300}
    assert {
        ("PUT", "/v1/records"),
        ("DELETE", "/v1/records"),
        ("POST", "/v1/search"),
        ("POST", "/v1/batch"),
    } <= done_well
    with Memory.open(folder / "store", key=b"", create=False) as memory:
        assert list(memory.check()) == []


def test_for_some_seconds(server: tuple[Process, str], tmp_path: Path) -> None:
    fuzz(*server, tmp_path, SHORT, seed=1)


@pytest.mark.slow
def test_for_minutes(server: tuple[Process, str], tmp_path: Path) -> None:
    fuzz(*server, tmp_path, LONG, seed=2)
