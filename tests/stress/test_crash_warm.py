"""A few kills of what tests/stress/crash_warm.py does a thousand times."""

from pathlib import Path

import crash_warm
import pytest


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_a_killed_writer_loses_nothing_acknowledged(tmp_path: Path, encrypted: bool) -> None:
    if encrypted:
        pytest.importorskip("apsw")
    told = crash_warm.run(tmp_path, kills=4 if encrypted else 10, seed=11, encrypted=encrypted)
    assert told["turns"] > told["kills"]
