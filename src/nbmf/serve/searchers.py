"""Searches in processes of their own, so that a busy server's other requests need not wait for their arithmetic.

Each has the store open for itself. What is found is what is stored: nothing is kept from one search to the next but
what a Memory keeps, and a `forget` reaches that too.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Final

from nbmf.memory import Memory
from nbmf.memory.items import SearchOp
from nbmf.policy.router import tenant_of
from nbmf.serve import wire
from nbmf.store.base import Namespace

FORGET_SECONDS: Final = 30.0  # for a process to drop what it remembers

Found = tuple[int, bytes]  # how many items, and the answer

_memory: Memory | None = None  # of a process for searches


class Searchers:
    """Processes that search. `opened` opens the store there, and is pickled for it. Thread-safe."""

    def __init__(self, count: int, opened: Callable[[], Memory]) -> None:
        self._opened = opened
        self._lock = threading.Lock()
        self._pools = [self._start() for _ in range(count)]
        self._waiting = [0] * count

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, context, initializer=_begin, initargs=(self._opened,))

    def search(self, op: SearchOp) -> Future[Found]:
        """The future answer of a search, by the process with the least to do."""
        with self._lock:
            number = min(range(len(self._pools)), key=self._waiting.__getitem__)
            future = self._submit(number, op)
            self._waiting[number] += 1

        def done(_: Future[Found]) -> None:
            with self._lock:
                self._waiting[number] -= 1

        future.add_done_callback(done)
        return future

    def _submit(self, number: int, op: SearchOp) -> Future[Found]:
        try:
            return self._pools[number].submit(_search, op)
        except BrokenProcessPool:  # it was killed
            self._pools[number] = self._start()
            return self._pools[number].submit(_search, op)

    def forget(self, prefix: Namespace) -> None:
        """Drops what the processes remember of a prefix."""
        with self._lock:
            pools = list(enumerate(self._pools))
        for number, pool in pools:
            try:
                pool.submit(_forget, prefix).result(FORGET_SECONDS)
            except (BrokenProcessPool, TimeoutError):
                with self._lock:
                    if self._pools[number] is pool:
                        self._pools[number] = self._start()
                _kill(pool)

    def close(self) -> None:
        """Ends the processes once what they have begun is done."""
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)


def _kill(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)


# -- in the processes --------------------------------------------------------------------------------------------------


def _begin(opened: Callable[[], Memory]) -> None:
    global _memory
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's reaches everybody; the server ends this process
    threading.Thread(target=_with_parent, daemon=True).start()
    _memory = opened()


def _with_parent() -> None:
    """Ends this process with the one that started it, however that ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _search(op: SearchOp) -> Found:
    assert _memory is not None
    items = _memory.batch([op])[0]
    return len(items), wire.items_text(items)


def _forget(prefix: Namespace) -> None:
    """As Memory.forget of what is in memory: the store itself has forgotten."""
    assert _memory is not None
    if prefix:
        _memory.hot.forget(tenant_of(prefix))
    else:
        _memory.hot.clear()
    _memory.recall.forget(prefix)


__all__ = ["Searchers"]
