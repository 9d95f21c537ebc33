"""One store in several processes: nothing is lost, and everybody sees what the others do."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from nbmf.memory import Memory, PutOp
from nbmf.policy.policy import Policy

KEY = bytes(range(32))
POLICY = '[default]\ncold_after = "0s"\npromote_heat = 1\n'
NS = ("t", "s")


def options_of(address: Path, key: bytes) -> dict[str, Any]:
    return {"address": address, "key": key, "policy": Policy.parse(POLICY)}


def serve(address: Path, key: bytes, pipe: Connection) -> None:
    """Calls the methods that it is told to, and answers with what they return."""
    with Memory.open(**options_of(address, key)) as memory:
        while True:
            name, args, options = pipe.recv()
            if name == "stop":
                return
            result = getattr(memory, name)(*args, **options)
            pipe.send(result if not isinstance(result, list) else [item.key for item in result])


class Other:
    """A store that another process has open."""

    def __init__(self, address: Path, key: bytes) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(address, key, theirs))
        self.process.start()

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.pipe.send((name, args, options))
            assert self.pipe.poll(60)
            return self.pipe.recv()

        return call

    def close(self) -> None:
        self.pipe.send(("stop", (), {}))
        self.process.join(30)
        assert self.process.exitcode == 0
        self.process.close()
        self.pipe.close()


@pytest.mark.parametrize("key", [b"", KEY], ids=["plain", "encrypted"])
def test_two_processes_see_each_other(tmp_path: Path, key: bytes) -> None:
    pytest.importorskip("wordllama")
    with Memory.open(**options_of(tmp_path / "s", key)) as memory:
        memory.put(NS, "first", "hot drinks: tea")
        other = Other(tmp_path / "s", key)
        try:
            assert other.get(NS, "first") == memory.get(NS, "first") == "hot drinks: tea"
            assert other.search((), "tea") == ["first"]
            other.put(NS, "first", "cold drinks: water")
            other.put(NS, "second", {"text": "a violin"})
            assert memory.get(NS, "first") == "cold drinks: water"
            assert [item.key for item in memory.search((), "music")] == ["second", "first"]
            memory.put_many(PutOp(("t", "many"), f"k{i}", f"note {i}") for i in range(60))
            assert other.compact() == {"demote": 61}, "all but the one that it has read"
            assert memory.get(NS, "second") == {"text": "a violin"}
            assert len(other.search((), "note", limit=99)) == 62 == len(memory.search((), "note", limit=99))
            other.adapt("t")
            memory.put(("t", "many"), "new", "note with the other's pack")
            assert other.get(("t", "many"), "new") == "note with the other's pack"
            assert memory.delete(NS, "second") and other.get(NS, "second") is None
            assert other.forget(NS) == 1
            assert memory.get(NS, "first") is None and memory.search((), "drinks")[0].key != "first"
            assert memory.forget(("t",)) == 61 and other.search((), "note", limit=99) == []
            assert list(memory.check()) == []
        finally:
            other.close()


def write(address: Path, key: bytes, name: str, count: int) -> None:
    with Memory.open(**options_of(address, key), embedder=None) as memory:
        for i in range(count):
            memory.put((name, "s"), f"k{i}", {"by": name, "i": i})
            memory.put(("shared",), f"k{i % 7}", [name, i])
            if i % 3:
                memory.get(("shared",), f"k{i % 5}")
            if i % 17 == 9:
                memory.compact()
            if i % 10 == 4:
                assert memory.delete((name, "s"), f"k{i - 1}")
        assert len(memory.search((name,), limit=999)) == count - sum(i % 10 == 4 for i in range(count))


@pytest.mark.parametrize("key", [b"", KEY], ids=["plain", "encrypted"])
def test_writers_at_once(tmp_path: Path, key: bytes) -> None:
    count, names = 40, ("a", "b", "c")
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=write, args=(tmp_path / "s", key, name, count)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
        process.close()
    with Memory.open(tmp_path / "s", key=key, embedder=None) as memory:
        for name in names:
            for i in range(count):
                wanted = None if i % 10 == 3 else {"by": name, "i": i}
                assert memory.get((name, "s"), f"k{i}") == wanted
        assert len(memory.search(("shared",), limit=99)) == 7
        assert list(memory.check()) == []
