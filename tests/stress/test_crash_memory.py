"""A few kills of what tests/stress/crash_memory.py does a thousand times."""

import crash_memory
import pytest


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_a_killed_store_loses_nothing_acknowledged(encrypted: bool) -> None:
    told = crash_memory.run(kills=4 if encrypted else 8, seed=5, encrypted=encrypted)
    assert told["calls"] > told["kills"]
