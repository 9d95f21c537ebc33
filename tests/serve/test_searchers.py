"""Searches in processes of their own find what is stored, forget with the store, and come back when killed."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Process, asgi, serving, tokens_of

from nbmf import Memory
from nbmf.errors import PolicyError
from nbmf.memory.items import SearchOp
from nbmf.serve import http
from nbmf.serve.client import Client
from nbmf.serve.searchers import Searchers
from nbmf.store_access import Access


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Memory]:
    with Memory.open(tmp_path / "s", key=b"") as memory:
        yield memory


@pytest.fixture
def searchers(store: Memory, tmp_path: Path) -> Iterator[Searchers]:
    made = Searchers(2, functools.partial(Access().open, str(tmp_path / "s"), keyless=True))
    yield made
    made.close()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_they_find_what_is_stored_at_once(store: Memory, searchers: Searchers) -> None:
    for i in range(5):
        store.put(("u",), f"k{i}", {"text": f"she likes green tea number {i}"})
        count, answer = searchers.search(SearchOp(("u",), f"tea number {i}", limit=10)).result(120)
        assert count == i + 1 and f'"k{i}"'.encode() in answer
    with pytest.raises(PolicyError, match="nope"):  # an error is the same one
        searchers.search(SearchOp(("u",), filter={"x": {"$nope": 1}})).result(120)
    together = [searchers.search(SearchOp(("u",), "tea")) for _ in range(20)]
    assert all(one.result(120)[0] == 5 for one in together)


def test_they_forget_with_the_store(store: Memory, searchers: Searchers) -> None:
    store.put(("u",), "k", "she likes green tea")
    assert searchers.search(SearchOp(("u",), "tea")).result(120)[0] == 1
    store.forget(("u",))
    searchers.forget(("u",))
    assert searchers.search(SearchOp(("u",), "tea")).result(120)[0] == 0
    searchers.forget(())


@pytest.mark.skipif(sys.platform != "linux", reason="looks for child processes in /proc")
def test_a_killed_one_comes_back_and_all_end_with_the_server(tmp_path: Path) -> None:
    options = ("serve", str(tmp_path / "s"), "--search-processes", "1")
    with Process(tmp_path / "log", *options) as server:
        with Client(server.url) as client:
            client.put(("u",), "k", "she likes green tea")
            assert client.search(("u",), "tea")[0].key == "k"
            for searcher in children(server.process.pid):
                os.kill(searcher, signal.SIGKILL)
            for _ in range(3):  # nobody notices
                assert client.search(("u",), "tea")[0].key == "k"
            assert client.forget(("u",)) == 1 and client.search(("u",), "tea") == []
        left = children(server.process.pid)
        os.kill(server.process.pid, signal.SIGKILL)  # the hard way: nobody tells them
        server.process.wait()
        end = time.monotonic() + 60
        while any(_alive(pid) for pid in left) and time.monotonic() < end:
            time.sleep(0.1)
        assert not any(_alive(pid) for pid in left)


def _alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_a_token_reaches_no_further_through_them(store: Memory, searchers: Searchers, tmp_path: Path) -> None:
    tokens, made = tokens_of(tmp_path, ann={"namespaces": ["users/ann"]})
    store.put(("users", "anna"), "k", "swordfish")
    store.put(("users", "ann"), "k", "tea")
    with asgi(http.app(store, tokens=tokens, searchers=searchers)) as url, Client(url, made["ann"]) as ann:
        assert [item.value for item in ann.search(("users", "ann"), "swordfish")] == ["tea"]
        for prefix in ((), ("users",), ("users", "anna")):
            with pytest.raises(PolicyError):
                ann.search(prefix, "swordfish")
    with serving(store) as url, Client(url) as client:
        assert len(client.search(("users",), "swordfish")) == 2
