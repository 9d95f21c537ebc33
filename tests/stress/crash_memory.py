"""Kills a process that writes, ages, learns and forgets, at random instants: nothing acknowledged may be lost.

    python tests/stress/crash_memory.py [--kills N] [--seed S] [--encrypted]

The child prints a line for every call that returned. After each kill the store is opened anew: every acknowledged
value is there and right (a call that was under way may have happened in part), what was forgotten is gone, and `check`
is clean.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

from nbmf import Memory
from nbmf.policy.policy import Policy

POLICY = '[default]\ncold_after = "0s"\npromote_heat = 1\n'
KEYS = 120


def key_of(encrypted: bool) -> bytes | None:
    return bytes(range(32)) if encrypted else None


def child(folder: str, seed: int, encrypted: bool) -> None:
    rng = random.Random(seed)
    with Memory.open(folder, key=key_of(encrypted), policy=Policy.parse(POLICY), embedder=None) as memory:
        say("open")
        number = seed * 1_000_000
        while True:
            number += 1
            what, space, key = rng.random(), f"s{rng.randrange(3)}", f"k{rng.randrange(KEYS)}"
            if what < 0.7:
                say("try", "put", space, key, number)
                memory.put(("t", space), key, {"text": f"value {number} of {key}", "n": number})
                say("done")
            elif what < 0.85:
                say("try", "delete", space, key, number)
                memory.delete(("t", space), key)
                say("done")
            elif what < 0.93:
                memory.get(("t", space), key)
            elif what < 0.97:
                say("try", "compact", space, key, number)
                memory.compact()
                say("done")
            elif what < 0.985:
                say("try", "forget", space, key, number)
                memory.forget(("t", space))
                say("done")
            elif sum(1 for _ in memory.live(("t",), None)) >= 50:
                say("try", "adapt", space, key, number)
                memory.adapt("t", 16 << 10)
                say("done")


def say(*words: Any) -> None:
    print(json.dumps(words), flush=True)


Held = dict[tuple[str, str], int]


def run(kills: int, seed: int, encrypted: bool) -> dict[str, int]:
    """How much of what was killed. Raises AssertionError where a promise was broken."""
    rng = random.Random(seed)
    counts = {"kills": 0, "calls": 0, "put": 0, "delete": 0, "forget": 0, "compact": 0, "adapt": 0}
    held: Held = {}
    with tempfile.TemporaryDirectory() as folder:
        for round in range(kills):
            arguments = ["--child", folder, "--seed", str(seed * 1000 + round), *(["--encrypted"] if encrypted else [])]
            process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=subprocess.PIPE)
            assert process.stdout is not None
            assert json.loads(process.stdout.readline() or b'["died"]') == ["open"]
            time.sleep(rng.expovariate(1 / 0.4))
            process.kill()
            lines = process.stdout.read().split(b"\n")[:-1]
            process.stdout.close()
            process.wait()
            trying: list[Any] | None = None
            for line in map(json.loads, lines):
                if line[0] == "try":
                    trying = line[1:]
                else:
                    assert trying is not None
                    apply(held, *trying)
                    counts["calls"] += 1
                    trying = None
            if trying is not None:
                counts[trying[0]] += 1
            counts["kills"] += 1
            verify(folder, held, trying, encrypted)
    return counts


def apply(held: Held, what: str, space: str, key: str, number: int) -> None:
    if what == "put":
        held[space, key] = number
    elif what == "delete":
        held.pop((space, key), None)
    elif what == "forget":
        for at in [at for at in held if at[0] == space]:
            del held[at]


def verify(folder: str, held: Held, trying: list[Any] | None, encrypted: bool) -> None:
    with Memory.open(folder, key=key_of(encrypted), policy=Policy.parse(POLICY), embedder=None) as memory:
        faults = list(memory.check())
        assert faults == [], faults
        found = {(item.namespace[1], item.key): item.value for item in memory.search(("t",), limit=10 * KEYS)}
        after = dict(held)
        if trying is not None:
            apply(after, *trying)
        for at in found.keys() | held.keys() | after.keys():
            value = found.get(at)
            choices = [
                None if n is None else {"text": f"value {n} of {at[1]}", "n": n} for n in (held.get(at), after.get(at))
            ]
            assert value in choices, (at, value, choices, trying)
            if value is None:
                held.pop(at, None)
            else:
                held[at] = value["n"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--encrypted", action="store_true")
    parser.add_argument("--child", metavar="FOLDER")
    options = parser.parse_args()
    if options.child:
        child(options.child, options.seed, options.encrypted)
        return 0
    print(json.dumps(run(options.kills, options.seed, options.encrypted)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
