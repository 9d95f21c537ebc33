"""Operations of many requests, run together: what arrives while one transaction is written makes up the next one.

A put waits for the disk, which takes as long for a hundred of them as for one. Each request still gets an answer of its
own, and one that is refused costs the others nothing.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from nbmf.errors import NbmfError, StoreError
from nbmf.memory import Memory
from nbmf.memory.items import DeleteOp, GetOp, MemoryOp, PutOp

TOGETHER: Final = 128  # operations that run together at most
READERS: Final = 2  # threads

Waiting = tuple[MemoryOp, "asyncio.Future[Any]"]
Outcome = Any  # a result, or the exception to raise


class Lane:
    """Threads that run what is submitted, as much together as is waiting. `run` gives an outcome for each."""

    def __init__(self, name: str, run: Callable[[Sequence[MemoryOp]], list[Outcome]], threads: int = 1) -> None:
        self._run = run
        self._queue: queue.SimpleQueue[Waiting | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"nbmf-{name}-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, op: MemoryOp) -> asyncio.Future[Any]:
        """The future result of an operation."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.put((op, future))
        return future

    @property
    def waiting(self) -> int:
        """Operations that no thread has begun."""
        return self._queue.qsize()

    def close(self) -> None:
        """Returns when everything that was submitted has run."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (first := self._queue.get()) is not None:
            together = [first]
            last = False
            while len(together) < TOGETHER:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    last = True
                    break
                together.append(more)
            try:
                outcomes = self._run([op for op, _ in together])
            except BaseException as error:
                outcomes = [error] * len(together)
            futures = [future for _, future in together]
            # All are of one loop, that of the server.
            futures[0].get_loop().call_soon_threadsafe(_settle, futures, outcomes)
            if last:
                return


def _settle(futures: Sequence[asyncio.Future[Any]], outcomes: Sequence[Outcome]) -> None:
    for future, outcome in zip(futures, outcomes, strict=True):
        if future.done():  # its request has given up
            continue
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)


class Lanes:
    """A lane for what writes and one for what reads."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._writes = Lane("write", self._write)
        self._reads = Lane("read", self._read, READERS)

    def submit(self, op: PutOp | GetOp | DeleteOp) -> asyncio.Future[Any]:
        return (self._reads if isinstance(op, GetOp) else self._writes).submit(op)

    @property
    def waiting(self) -> dict[str, int]:
        return {"write": self._writes.waiting, "read": self._reads.waiting}

    def close(self) -> None:
        self._writes.close()
        self._reads.close()

    def _read(self, ops: Sequence[MemoryOp]) -> list[Outcome]:
        try:
            return self._memory.batch(ops)
        except NbmfError as error:
            return [error] if len(ops) == 1 else [self._one(op) for op in ops]

    def _write(self, ops: Sequence[MemoryOp]) -> list[Outcome]:
        out: list[Outcome] = []
        at = 0
        while at < len(ops):
            end = at + 1
            while end < len(ops) and type(ops[end]) is type(ops[at]):
                end += 1
            out += self._alike(ops[at:end])
            at = end
        return out

    def _alike(self, ops: Sequence[MemoryOp]) -> list[Outcome]:
        """Puts alone or deletes alone. Puts that are refused together are put one by one: a put may be repeated."""
        try:
            return self._memory.batch(ops)
        except StoreError as error:
            return [error] * len(ops)
        except NbmfError as error:
            if len(ops) == 1 or not isinstance(ops[0], PutOp):
                return [error] * len(ops)
            return [self._one(op) for op in ops]

    def _one(self, op: MemoryOp) -> Outcome:
        try:
            return self._memory.batch([op])[0]
        except NbmfError as error:
            return error


__all__ = ["Lanes"]
