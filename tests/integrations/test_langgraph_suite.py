"""LangGraph's own tests of its SQLite store, fetched and run against NBMFStore (scripts/langgraph_suite.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "langgraph_suite.py"
IN_MEMORY = 89  # of those that LangGraph's InMemoryStore passes

pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="not run from the repository")


@pytest.mark.slow
def test_langgraphs_own_store_tests(tmp_path: Path) -> None:
    """It needs pip's index, for the source distribution."""
    target = tmp_path / "summary.json"
    done = subprocess.run([sys.executable, str(SCRIPT), "--json", str(target)], capture_output=True, text=True)
    assert target.exists(), done.stderr
    summary = json.loads(target.read_text(encoding="utf-8"))
    assert done.returncode == 0 and summary["failures"] == {}, summary["failures"]
    assert summary["tests"] == 153 and summary["skipped"] == 0
    assert summary["passed"] == 153 - summary["excluded"] > IN_MEMORY
    assert all(summary["exclusions"].values()) and summary["excluded"] == 5
