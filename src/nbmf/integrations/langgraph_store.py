"""LangGraph's long-term memory in an NBMF store: `NBMFStore`, and `AsyncNBMFStore` for code that awaits everything."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from tempfile import TemporaryDirectory
from typing import Any, Final, Self

from nbmf.errors import NbmfError
from nbmf.integrations import MissingExtra
from nbmf.integrations.langgraph_ops import Operations
from nbmf.memory import Memory

try:
    from langgraph.store.base import BaseStore, IndexConfig, Op, Result, TTLConfig
    from langgraph.store.base.batch import AsyncBatchedBaseStore
except ImportError:
    raise MissingExtra("langgraph", "langgraph") from None

IN_MEMORY: Final = ":memory:"  # the address of a store that lasts as long as it is open
SWEEP_MINUTES: Final = 5.0  # between two sweeps, unless told otherwise

log = logging.getLogger(__name__)


@contextmanager
def _opened(address: str, index: IndexConfig | None, opening: dict[str, Any]) -> Iterator[Memory]:
    """The store at an address; with an index of the user's own, without an embedder of ours."""
    if index is not None:
        opening = {"embedder": None, **opening}
    if address == IN_MEMORY:
        with TemporaryDirectory(prefix="nbmf-") as folder, Memory.open(folder, **opening) as memory:
            yield memory
    else:
        with Memory.open(address, **opening) as memory:
            yield memory


def _interval(ttl: TTLConfig, minutes: float | None) -> float:
    """Seconds between two sweeps."""
    return 60.0 * float(minutes or ttl.get("sweep_interval_minutes") or SWEEP_MINUTES)


class NBMFStore(BaseStore):
    """A LangGraph store over a `Memory`. Thread-safe; its coroutines run in threads.

    Values are JSON objects, kept exactly; what could not come back equal is refused. With `index`, texts are embedded
    by the function that it names, and a query finds by those vectors alone; without, a query finds by the memory's own
    embedder if it has one, else it counts for nothing. `ttl` is LangGraph's; what has expired is gone for every reader
    at once, whatever `omit_expired` says. `cls` is the class of what is put, for the memory's policy.

    Closing the memory is the caller's business; `from_conn_string` does it. Raises NbmfError and LangGraph's own
    InvalidNamespaceError.
    """

    supports_ttl = True

    def __init__(
        self, memory: Memory, *, index: IndexConfig | None = None, ttl: TTLConfig | None = None, cls: str = ""
    ) -> None:
        self.memory = memory
        self.ttl_config = ttl
        self._operations = Operations(memory, index, cls)
        self.index_config = self._operations.index_config
        self.embeddings = self._operations.embeddings
        self._sweeper: threading.Thread | None = None
        self._stop = threading.Event()

    @classmethod
    @contextmanager
    def from_conn_string(
        cls, conn_string: str, *, index: IndexConfig | None = None, ttl: TTLConfig | None = None, **opening: Any
    ) -> Iterator[Self]:
        """The store in a folder, made if need be, at a postgresql:// address, or, as ":memory:", in a folder of its own
        that goes when it is closed. `opening` is what `Memory.open` takes besides.
        """
        with _opened(conn_string, index, opening) as memory:
            store = cls(memory, index=index, ttl=ttl)
            try:
                yield store
            finally:
                store.stop_ttl_sweeper()

    def setup(self) -> None:
        """Nothing is left to do: opening the memory made it."""

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """The result of each operation; all that reads sees the store as it was before the batch.

        Puts are one transaction (with encryption, one a tenant), and deletes another.
        """
        ops = list(ops)
        texts = self._operations.texts(ops)
        return self._operations.run(ops, texts, self._operations.embed(texts))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """`batch` in a thread; texts are embedded by the embedder's coroutines."""
        ops = list(ops)
        texts = self._operations.texts(ops)
        vectors = await self._operations.aembed(texts)
        return await asyncio.to_thread(self._operations.run, ops, texts, vectors)

    # -- time to live --------------------------------------------------------------------------------------------------

    def sweep_ttl(self) -> int:
        """Removes what has expired from the disk; how many items that were."""
        return self._operations.sweep()

    def start_ttl_sweeper(self, sweep_interval_minutes: float | None = None) -> Future[None]:
        """Sweeps every so many minutes, else as `ttl` says, else every 5, in a thread of its own.

        The future ends with the sweeper; cancelling it stops it. Without `ttl` there is nothing to sweep.
        """
        future: Future[None] = Future()
        if not self.ttl_config:
            future.set_result(None)
            return future
        future.add_done_callback(lambda done: self._stop.set() if done.cancelled() else None)
        if self._sweeper is None or not self._sweeper.is_alive():
            self._stop.clear()
            seconds = _interval(self.ttl_config, sweep_interval_minutes)
            self._sweeper = threading.Thread(target=self._sweep, args=(seconds, future), name="nbmf-ttl", daemon=True)
            self._sweeper.start()
        return future

    def _sweep(self, seconds: float, future: Future[None]) -> None:
        while not self._stop.wait(seconds):
            try:
                self.sweep_ttl()
            except NbmfError:  # the next sweep may do better: a full disk, a lost connection
                log.exception("a sweep of expired items failed")
        if not future.done():
            future.set_result(None)

    def stop_ttl_sweeper(self, timeout: float | None = None) -> bool:
        """Stops the sweeper, waiting `timeout` seconds for it, None for as long as it takes; whether it has ended."""
        if self._sweeper is not None:
            self._stop.set()
            self._sweeper.join(timeout)
            if self._sweeper.is_alive():
                return False
            self._sweeper = None
        return True


class AsyncNBMFStore(AsyncBatchedBaseStore):
    """`NBMFStore` for an event loop: calls that are made at once become one batch, and one transaction.

    Made within a running loop. Its methods without an `a` are for other threads, as in LangGraph's own async stores.
    """

    supports_ttl = True

    def __init__(
        self, memory: Memory, *, index: IndexConfig | None = None, ttl: TTLConfig | None = None, cls: str = ""
    ) -> None:
        super().__init__()
        self.memory = memory
        self.ttl_config = ttl
        self._store = NBMFStore(memory, index=index, ttl=ttl, cls=cls)
        self.index_config = self._store.index_config
        self.embeddings = self._store.embeddings
        self._sweeper: asyncio.Task[None] | None = None

    @classmethod
    @asynccontextmanager
    async def from_conn_string(
        cls, conn_string: str, *, index: IndexConfig | None = None, ttl: TTLConfig | None = None, **opening: Any
    ) -> AsyncIterator[Self]:
        """As `NBMFStore.from_conn_string`."""
        manager = _opened(conn_string, index, opening)
        memory = await asyncio.to_thread(manager.__enter__)
        try:
            store = cls(memory, index=index, ttl=ttl)
            try:
                yield store
            finally:
                await store.stop_ttl_sweeper()
        finally:
            await asyncio.to_thread(manager.__exit__, None, None, None)

    async def setup(self) -> None:
        """Nothing is left to do: opening the memory made it."""

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """As `NBMFStore.abatch`."""
        return await self._store.abatch(ops)

    async def sweep_ttl(self) -> int:
        """Removes what has expired from the disk; how many items that were."""
        return await asyncio.to_thread(self._store.sweep_ttl)

    async def start_ttl_sweeper(self, sweep_interval_minutes: float | None = None) -> asyncio.Task[None]:
        """Sweeps every so many minutes, else as `ttl` says, else every 5; cancelling the task stops it."""
        if self._sweeper is None or self._sweeper.done():
            self._sweeper = asyncio.create_task(self._sweep(sweep_interval_minutes), name="nbmf-ttl")
        return self._sweeper

    async def _sweep(self, minutes: float | None) -> None:
        while self.ttl_config:
            await asyncio.sleep(_interval(self.ttl_config, minutes))
            try:
                await self.sweep_ttl()
            except NbmfError:
                log.exception("a sweep of expired items failed")

    async def stop_ttl_sweeper(self, timeout: float | None = None) -> bool:
        """Stops the sweeper, waiting `timeout` seconds for it, None for as long as it takes; whether it has ended."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper], timeout=timeout)
            if not self._sweeper.done():
                return False
            self._sweeper = None
        return True


__all__ = ["AsyncNBMFStore", "NBMFStore"]
