"""Watching operations: how long each took, what came of it, in metrics and in spans."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any

from nbmf.errors import NbmfError
from nbmf.memory import Memory
from nbmf.memory.items import Item, MemoryOp, PutOp
from nbmf.memory.opening import public_address
from nbmf.serve import tracing
from nbmf.store.base import Namespace
from nbmf.store_access import namespace_text

if TYPE_CHECKING:
    from nbmf.serve.metrics import Metrics


class Watch:
    """What watches the operations on one store. `metrics` and the tracer may be None."""

    def __init__(self, memory: Memory, metrics: Metrics | None = None, *, content: bool | None = None) -> None:
        self.metrics = metrics
        self.tracer = tracing.tracer()
        self.store = PurePath(public_address(memory.parts.address)).name or "store"
        self.content = tracing.captures() if content is None else content

    def operation(self, name: str, parent: Any = None) -> Operation:
        """A context manager around an operation."""
        return Operation(self, name, parent)


class Operation:
    """An operation while it runs. Set `records` to how many records it gave or took."""

    __slots__ = ("_parent", "_span", "_start", "_watch", "name", "records")

    def __init__(self, watch: Watch, name: str, parent: Any) -> None:
        self._watch = watch
        self._parent = parent
        self._span: Any = None
        self.name = name
        self.records: int | None = None

    def __enter__(self) -> Operation:
        if self._watch.tracer is not None:
            self._span = tracing.start(self._watch.tracer, self.name, self._watch.store, self._parent)
        self._start = time.perf_counter()
        return self

    def content(self, **fields: Any) -> None:
        """What a user wrote, by the attribute's last name (`query`, `record`, `records`); for spans that capture it."""
        if self._span is None or not self._watch.content or not self._span.is_recording():
            return
        names = {"query": "query.text", "record": "record.id", "records": "records"}
        for field, value in fields.items():
            if value is not None:
                self._span.set_attribute(f"gen_ai.memory.{names[field]}", value)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.perf_counter() - self._start
        metrics = self._watch.metrics
        if metrics is not None:
            if error is None:
                outcome = "ok"
            else:
                outcome = type(error).__name__ if isinstance(error, NbmfError | TimeoutError) else "error"
            metrics.operation(self.name, outcome, seconds, self.records or 0)
        if self._span is not None:
            tracing.finish(self._span, self.records, error)


class Watched:
    """The verbs of a Memory, watched. For embedded use: `Watched(memory, Watch(memory, Metrics(memory)))`."""

    def __init__(self, memory: Memory, watch: Watch | None = None) -> None:
        self.memory = memory
        self.watch = watch if watch is not None else Watch(memory)

    def put(self, namespace: Namespace, key: str, value: Any, **options: Any) -> None:
        """See Memory.put."""
        with self.watch.operation("put") as operation:
            operation.records = 1
            operation.content(record=address_text(namespace, key))
            self.memory.put(namespace, key, value, **options)

    def get(self, namespace: Namespace, key: str, default: Any = None, *, refresh: bool = True) -> Any:
        """See Memory.get."""
        item = self.item(namespace, key, refresh=refresh)
        return default if item is None else item.value

    def item(self, namespace: Namespace, key: str, *, refresh: bool = True) -> Item | None:
        """See Memory.item."""
        with self.watch.operation("get") as operation:
            operation.content(record=address_text(namespace, key))
            item = self.memory.item(namespace, key, refresh=refresh)
            operation.records = int(item is not None)
            return item

    def delete(self, namespace: Namespace, key: str) -> bool:
        """See Memory.delete."""
        with self.watch.operation("delete") as operation:
            operation.content(record=address_text(namespace, key))
            deleted = self.memory.delete(namespace, key)
            operation.records = int(deleted)
            return deleted

    def put_many(self, ops: Sequence[PutOp]) -> None:
        """See Memory.put_many."""
        with self.watch.operation("put") as operation:
            operation.records = len(ops)
            self.memory.put_many(ops)

    def search(
        self,
        prefix: Namespace = (),
        query: str | None = None,
        *,
        filter: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[Item]:
        """See Memory.search."""
        with self.watch.operation("search") as operation:
            operation.content(query=query)
            items = self.memory.search(prefix, query, filter=filter, **options)
            operation.records = len(items)
            return items

    def forget(self, prefix: Namespace) -> int:
        """See Memory.forget."""
        with self.watch.operation("forget") as operation:
            operation.records = count = self.memory.forget(prefix)
            return count

    def batch(self, ops: Sequence[MemoryOp]) -> list[Any]:
        """See Memory.batch."""
        with self.watch.operation("batch") as operation:
            operation.records = len(ops)
            return self.memory.batch(ops)


def address_text(namespace: Namespace, key: str) -> str:
    """An address as one text."""
    return f"{namespace_text(namespace)} {key}"


__all__ = ["Operation", "Watch", "Watched", "address_text"]
