"""The examples run as they stand, in a folder of their own, and do what they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from nbmf.codec import kernel

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

pytestmark = [
    pytest.mark.skipif(not EXAMPLES.is_dir(), reason="not run from the repository"),
    pytest.mark.skipif(kernel.backend != "c", reason="too slow on the reference"),
]


def run(name: str, folder: Path) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", str(EXAMPLES / name), str(folder)],
        cwd=folder,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_names_them_all() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+\.py)\)", page)) == {path.name for path in EXAMPLES.glob("*.py")}


def test_a_langgraph_agent(tmp_path: Path) -> None:
    pytest.importorskip("langgraph.graph", reason="comes with langmem")
    first = run("langgraph_agent.py", tmp_path)
    monday, tuesday = first.split("-- tuesday")
    assert "agent: You like green tea." in monday
    assert "agent: Your dog is called Rex." in tuesday and "agent: You like green tea." in tuesday
    by_langgraph, by_nbmf = map(int, re.findall(r"(\d+)(?: bytes)? by", tuesday))
    assert by_nbmf < by_langgraph
    again = run("langgraph_agent.py", tmp_path)  # the conversations go on
    assert "a state of 12 messages" in again


def test_an_mcp_client(tmp_path: Path) -> None:
    pytest.importorskip("mcp", reason="needs nbmf[mcp]")
    said = run("mcp_client.py", tmp_path)
    assert "14 tools" in said and "got back: {'text': 'likes green tea'}" in said
    assert "graph: 2 entities, 1 relations" in said and "forgotten: {'forgotten': 1}" in said


def test_a_pack_of_a_chat_export(tmp_path: Path) -> None:
    said = run("chat_pack.py", tmp_path)
    ratio = {name: float(found) for name, found in re.findall(r"(raw|alone|pack): .* ratio ([\d.]+)", said)}
    assert ratio["raw"] == 1 < ratio["alone"] < ratio["pack"]
    assert {path.name for path in tmp_path.iterdir()} == {"chat_export.jsonl", "chat.nbp", "saved.svg"}
    plot = ElementTree.fromstring((tmp_path / "saved.svg").read_text(encoding="utf-8"))
    assert len(plot.findall(".//{http://www.w3.org/2000/svg}path")) == 3
