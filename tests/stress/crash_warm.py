"""Kills a writer of the SQLite tier at random instants, many times over, and looks at what is left.

    python tests/stress/crash_warm.py --kills 1000 [--encrypted] [--seed 7]

The writer's operations follow from the seed alone, and it says through a pipe which it has had acknowledged. So after
each `kill -9` the store must hold what all acknowledged ones left, with or without the whole of the one under way, and
`check` must find nothing.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "store"))

from oracle import NOW, Oracle, rec

from nbmf.store.base import Delete, Expire, Forget, Get, Op, Put
from nbmf.store.sqlite import SQLiteTier

KEY = bytes(range(32))
LIVE_MOST = 0.12  # seconds a writer lives once it is ready
SPACES = (("a",), ("a", "b"), ("ab",), ("c", "d", "e"))


def turn(seed: int, number: int) -> list[Op] | None:
    """The batch of a turn; None is a `compact`."""
    at = random.Random(f"{seed}/{number}")
    now = NOW + number

    def put() -> Put:
        blob = at.choice([at.randbytes(at.randrange(300)), b"the same for many of them" * 2, at.randbytes(9000)])
        key = at.choice([f"k{at.randrange(300)}", f"{at.randrange(40):032x}"])
        record = rec(key, at.choice(SPACES), blob, created=now, updated=now, cls=at.choice("xyz"))
        ends = at.choice([None, None, now + at.randrange(60)])
        return Put(replace(record, expires=ends, ttl=at.choice([None, 40]), code=at.choice([b"", b"code"])))

    kind = at.random()
    if kind < 0.6:
        return [put()]
    if kind < 0.8:
        return [put() for _ in range(at.randrange(2, 30))]
    if kind < 0.9:
        return [Delete(at.choice(SPACES), f"k{at.randrange(300)}") for _ in range(9)]
    if kind < 0.94:
        return [Get(at.choice(SPACES), f"k{at.randrange(300)}", now, renew=True)]
    if kind < 0.96:
        return [Expire(now, 10_000)]
    if kind < 0.98:
        return [Forget(at.choice(SPACES)), put()]
    return None


def write(path: str, key: bytes | None, seed: int, number: int) -> None:
    """The writer: turn after turn, until it is killed."""
    with closing(SQLiteTier(path, key)) as tier:
        print("ready", flush=True)
        while True:
            ops = turn(seed, number)
            if ops is None:
                tier.compact()
            else:
                tier.batch(ops)
            print(number, flush=True)
            number += 1


def apply(oracle: Oracle, seed: int, number: int) -> None:
    for op in turn(seed, number) or ():
        oracle.apply(op)


def run(folder: Path, kills: int, seed: int, encrypted: bool = False) -> dict[str, int]:
    """Raises AssertionError when a store has lost, invented or damaged anything."""
    path, key = folder / "warm.db", KEY if encrypted else None
    at, oracle, number = random.Random(seed), Oracle(), 0
    told = {"kills": 0, "turns": 0, "under way": 0}
    for _ in range(kills):
        # Half of the time somebody else has the store open, whose log is then not emptied by the next to open it.
        beside = SQLiteTier(path, key) if at.random() < 0.5 else None
        arguments = [sys.executable, __file__, "--write", str(path), "--seed", str(seed), "--from", str(number)]
        writer = subprocess.Popen(arguments + ["--encrypted"] * encrypted, stdout=subprocess.PIPE, text=True, bufsize=1)
        with writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
            time.sleep(at.random() * LIVE_MOST)
            writer.send_signal(signal.SIGKILL)
            acknowledged = [int(line) for line in writer.stdout if line.endswith("\n")]
        assert writer.returncode == -signal.SIGKILL
        for one in acknowledged:
            assert one == number
            apply(oracle, seed, number)
            number += 1
        tier = beside or SQLiteTier(path, key)
        with closing(tier):
            held = {(record.namespace, record.key): record for record in tier.scan()}
            if held != oracle.held:
                apply(oracle, seed, number)
                number += 1
                told["under way"] += 1
                assert held == oracle.held, f"kill {told['kills']}, turn {number}: neither before nor after"
            assert list(tier.check()) == [], f"kill {told['kills']}, turn {number}"
            assert tier.sizes()["count"] == len(held)
        told["kills"] += 1
    told["turns"] = number
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--encrypted", action="store_true")
    parser.add_argument("--write", metavar="PATH", help=argparse.SUPPRESS)
    parser.add_argument("--from", dest="number", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write(given.write, KEY if given.encrypted else None, given.seed, given.number)
    with tempfile.TemporaryDirectory() as folder:
        print(run(Path(folder), given.kills, given.seed, given.encrypted))


if __name__ == "__main__":
    main()
