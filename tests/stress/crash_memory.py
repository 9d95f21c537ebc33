"""Kills processes that use a store at random instants: nothing acknowledged may be lost, nothing forgotten may be left.

    python tests/stress/crash_memory.py [--kills N] [--seed S] [--kind KIND] [--encrypted]

KIND is what the process that is killed mostly does: `write`, `age` (demote, promote, code anew), `learn` (packs, and
forgetting) or `migrate`. Without --kind each of them has its share, in the open and encrypted.

The process says through a pipe what it tries and what has returned. After each kill the store is opened anew. Every
acknowledged value is there, once, and is the right one; a call that was under way has happened or not, record by
record; `check` finds nothing; of a namespace that was forgotten, no file has anything, and a forgetting that was under
way is completed by another. Now and then another process writes meanwhile, which the kill must not stop.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbmf.memory import Memory, PutOp
from nbmf.memory.adapters import MemoryDestination, source_of
from nbmf.policy.migrate import migrate_to
from nbmf.policy.migration.report import Report
from nbmf.policy.policy import Policy

KINDS = ("write", "age", "learn", "migrate")
# What a call is drawn from: put, put many, delete, get, compact, forget, adapt.
WEIGHTS = {
    "write": (60, 15, 15, 5, 3, 2, 0),
    "age": (25, 10, 5, 30, 30, 0, 0),
    "learn": (30, 25, 3, 0, 7, 15, 20),
}
CALLS = ("put", "put_many", "delete", "get", "compact", "forget", "adapt")
# One round's policy after the other: what it codes is coded anew, or not, in the next.
POLICIES = (
    '[default]\ncold_after = "0s"\npromote_heat = 1\n',
    '[default]\ncold_after = "0s"\npromote_heat = 1\nencoder = "stored"\n',
    '[default]\ncold_after = "never"\n\n[rollout]\npercent = 0\n',
    '[default]\ncold_after = "never"\n',
)
SPACES = ("s0", "s1", "s2")
KEYS = 60
SOURCE = 150  # records that are migrated
LIVE = 0.4  # seconds a process lives on average, once it is ready
KEY = bytes(range(32))

Held = dict[tuple[str, str], int]  # space and key to the number in the value
Call = tuple[str, str, list[str], int]  # what, space, keys, number


def opened(folder: Path, encrypted: bool, number: int) -> Memory:
    policy = Policy.parse(POLICIES[number % len(POLICIES)])
    return Memory.open(folder, key=KEY if encrypted else b"", policy=policy, embedder=None, ledger=True)


def value_of(space: str, key: str, number: int) -> dict[str, Any]:
    return {"text": f"marker-{space} value {number} of {key}", "n": number}


def key_of(space: str, number: int) -> str:
    return f"marker-{space}-{number}"


def say(*words: Any) -> None:
    print(json.dumps(words), flush=True)


# -- what is killed ----------------------------------------------------------------------------------------------------


def work(folder: Path, kind: str, number: int, encrypted: bool) -> None:
    """Call after call, each told before it is made and after it has returned."""
    chance = random.Random(number)
    with opened(folder, encrypted, number) as memory:
        say("ready")
        count = number * 1_000_000
        while True:
            count += 1
            (what,) = chance.choices(CALLS, WEIGHTS[kind])
            space = chance.choice(SPACES)
            keys = [key_of(space, chance.randrange(KEYS)) for _ in range(20 if what == "put_many" else 1)]
            if what == "get":
                for key in keys:
                    memory.get(("t", space), key)
                continue
            if what == "adapt" and sum(1 for _ in memory.live(("t",), None)) < 50:
                continue
            say("try", what, space, keys, count)
            if what in ("put", "put_many"):
                memory.put_many(PutOp(("t", space), key, value_of(space, key, count)) for key in keys)
            elif what == "delete":
                memory.delete(("t", space), keys[0])
            elif what == "compact":
                memory.compact()
            elif what == "forget":
                memory.forget(("t", space))
            else:
                memory.adapt("t", 8 << 10)
            say("done")


def stand_by(folder: Path, encrypted: bool) -> None:
    """Writes records of another tenant, until it is told to stop."""
    with opened(folder, encrypted, 0) as memory:
        say("ready")
        number = 0
        while True:
            number += 1
            memory.put(("bystander",), f"k{number % 10}", number)
            say("done", number)


def migrate(folder: Path, encrypted: bool) -> None:
    """Migrates a store that lies beside, and says when it is done."""
    with opened(folder, encrypted, 0) as memory, Memory.open(folder.parent / "source", key=b"", embedder=None) as old:
        say("ready")
        report = migrate_to(source_of(old), MemoryDestination(memory), folder=folder.parent / "migration", batch=8)
        assert isinstance(report, Report) and report.ok, report.to_dict()
        say("migrated", report.put, report.verified)


# -- who kills ---------------------------------------------------------------------------------------------------------


class Child:
    """A process of this script, and what it says."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, __file__, "--child", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        if first != b'["ready"]\n':
            raise AssertionError(f"it did not begin: {self.ended()[1]}")

    def ended(self) -> tuple[list[list[Any]], str]:
        """All that it said and was not read yet, whole lines only, and its errors; once it has ended."""
        assert self.process.stdout is not None and self.process.stderr is not None
        with self.process.stdout as out, self.process.stderr as errors:
            said, error = out.read(), errors.read().decode()
        self.process.wait()
        return [json.loads(line) for line in said.split(b"\n")[:-1]], error

    def killed(self, chance: random.Random) -> list[list[Any]]:
        """What it had said by the time it was killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(chance.expovariate(1 / LIVE))
        self.process.kill()
        said, error = self.ended()
        assert self.process.returncode in (-9, 0), error
        return said


class Round:
    """One store that is used, and killed, again and again."""

    def __init__(self, folder: Path, kind: str, seed: int, encrypted: bool) -> None:
        self.root, self.folder = folder, folder / "s"
        self.kind, self.encrypted = kind, encrypted
        self.chance = random.Random(f"{kind} {seed} {encrypted}")
        self.number = seed * 1000
        self.held: Held = {}
        self.clean: set[str] = set()  # spaces of which nothing may be in any file
        self.told: Counter[str] = Counter()
        if kind == "migrate":
            with Memory.open(folder / "source", key=b"", embedder=None) as memory:
                memory.put_many(PutOp(("m", f"n{i % 3}"), f"k{i}", {"n": i, "x": "y" * i}) for i in range(SOURCE))

    def kill(self) -> None:
        self.number += 1
        flags = ["--encrypted"] if self.encrypted else []
        arguments = [self.kind, str(self.folder), str(self.number), *flags]
        if self.kind == "migrate":
            self._kill_migration(arguments)
        else:
            bystander = Child("bystander", str(self.folder), "0", *flags) if self.chance.random() < 0.15 else None
            trying = self._follow(Child(*arguments).killed(self.chance))
            if bystander is not None:
                self._stands(bystander)
            self._verify(trying)
        self.told["kills"] += 1

    def _follow(self, said: Sequence[list[Any]]) -> Call | None:
        """Notes what was acknowledged; the call that was under way."""
        trying: Call | None = None
        for what, *rest in said:
            if what == "try":
                trying = (rest[0], rest[1], rest[2], rest[3])
                if trying[0] in ("put", "put_many"):
                    self.clean.discard(trying[1])
            else:
                assert trying is not None
                self.told[f"{trying[0]} returned"] += 1
                apply(self.held, trying)
                if trying[0] == "forget":
                    self.clean.add(trying[1])
                trying = None
        if trying is not None:
            self.told[f"killed in {trying[0]}"] += 1
        return trying

    def _stands(self, bystander: Child) -> None:
        """It goes on although another was killed, and loses nothing when it is killed itself."""
        assert bystander.process.stdout is not None
        before = json.loads(bystander.process.stdout.readline())[1]
        time.sleep(0.1)
        said = bystander.killed(self.chance)
        last = said[-1][1] if said else before
        with opened(self.folder, self.encrypted, 3) as memory:
            assert memory.get(("bystander",), f"k{last % 10}") in (last, last + 10), last
            memory.forget(("bystander",))
        self.told["bystanders"] += 1

    def _verify(self, trying: Call | None) -> None:
        with opened(self.folder, self.encrypted, self.number) as memory:
            faults = list(memory.check())
            assert faults == [], faults
            records = [(item.namespace[1], item.key, item.value) for item in memory.search(("t",), limit=9999)]
            found = {(space, key): value for space, key, value in records}
            assert len(found) == len(records), "a record is there twice"
            after = dict(self.held)
            if trying is not None:
                apply(after, trying)
            for at in found.keys() | self.held.keys() | after.keys():
                choices = [None if n is None else value_of(*at, n) for n in (self.held.get(at), after.get(at))]
                assert found.get(at) in choices, (at, found.get(at), choices, trying)
            self.held = {at: value["n"] for at, value in found.items()}
            if trying is not None and trying[0] == "forget":
                memory.forget(("t", trying[1]))
                self.held = {at: n for at, n in self.held.items() if at[0] != trying[1]}
                self.clean.add(trying[1])
            if self.chance.random() < 0.2:
                memory.compact()
                assert memory.stats()["records"] == len(self.held)
                assert len(memory.search(("t",), limit=9999)) == len(self.held)
        for space in self.clean:
            assert_nowhere(self.folder, f"marker-{space}".encode())

    def _kill_migration(self, arguments: list[str]) -> None:
        said = Child(*arguments).killed(self.chance)
        with opened(self.folder, self.encrypted, self.number) as memory:
            assert list(memory.check()) == []
            for item in memory.search(("m",), limit=9999):
                number = int(item.key[1:])
                assert item.namespace == ("m", f"n{number % 3}") and item.value == {"n": number, "x": "y" * number}
            if not said:
                return
            assert said == [["migrated", SOURCE, SOURCE]]
            self.told["migrations"] += 1
            assert len(memory.search(("m",), limit=9999)) == memory.stats()["records"] == SOURCE
            memory.forget(("m",))
        shutil.rmtree(self.root / "migration")


def apply(held: Held, call: Call) -> None:
    what, space, keys, number = call
    if what in ("put", "put_many"):
        held.update(((space, key), number) for key in keys)
    elif what == "delete":
        held.pop((space, keys[0]), None)
    elif what == "forget":
        for at in [at for at in held if at[0] == space]:
            del held[at]


def assert_nowhere(folder: Path, mark: bytes) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert mark not in path.read_bytes(), f"{mark!r} is in {path}"


def run(kills: int, seed: int, kind: str, encrypted: bool) -> dict[str, int]:
    """How much of what happened. Raises AssertionError where a promise was broken."""
    with tempfile.TemporaryDirectory(prefix="nbmf-crash-") as folder:
        store = Round(Path(folder), kind, seed, encrypted)
        for _ in range(kills):
            store.kill()
        return dict(sorted(store.told.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--encrypted", action="store_true")
    parser.add_argument("--child", nargs=3, metavar=("KIND", "FOLDER", "NUMBER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, folder, number = options.child
        if kind == "migrate":
            migrate(Path(folder), options.encrypted)
        elif kind == "bystander":
            stand_by(Path(folder), options.encrypted)
        else:
            work(Path(folder), kind, int(number), options.encrypted)
        return
    kinds = [options.kind] if options.kind else KINDS
    ways = [True] if options.encrypted else [False, True] if not options.kind else [False]
    total: Counter[str] = Counter()
    for kind in kinds:
        for encrypted in ways:
            share = max(1, options.kills // (len(kinds) * len(ways)))
            told = run(share, options.seed, kind, encrypted)
            print(kind, "encrypted" if encrypted else "plain", json.dumps(told), flush=True)
            total.update(told)
    print(f"{total['kills']} kills, nothing lost:", json.dumps(dict(sorted(total.items()))))


if __name__ == "__main__":
    main()
