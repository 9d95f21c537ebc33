"""docs/integrations.md: what it shows runs, and what it counts is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "integrations.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="not run from the repository")


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(6))
def test_each_block_runs_by_itself(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(blocks()) == 6
    exec(compile(blocks()[number], f"block {number}", "exec"), {})


def test_the_page_names_everything_public() -> None:
    page = PAGE.read_text(encoding="utf-8")
    public = ["AsyncNBMFStore", "NBMFByteStore", "NBMFJSON", "NBMFSerializer", "NBMFStore", "NBMFText"]
    assert [name for name in public if name not in page] == []
