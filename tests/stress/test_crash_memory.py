"""A few kills of what tests/stress/crash_memory.py does a thousand times."""

import crash_memory
import pytest

KILLS = {"write": 3, "age": 3, "learn": 3, "migrate": 2}


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
@pytest.mark.parametrize("kind", crash_memory.KINDS)
def test_a_killed_store_loses_nothing_acknowledged(kind: str, encrypted: bool) -> None:
    told = crash_memory.run(kills=1 if encrypted else KILLS[kind], seed=5, kind=kind, encrypted=encrypted)
    assert told["kills"] >= 1
