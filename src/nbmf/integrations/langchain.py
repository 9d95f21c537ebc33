"""LangChain's `ByteStore` in an NBMF store: for document stores, caches of embeddings, and the like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nbmf.errors import FormatError, UnsupportedValue
from nbmf.integrations import MissingExtra
from nbmf.memory import DeleteOp, GetOp, Memory, PutOp
from nbmf.memory.items import now
from nbmf.store.base import Namespace, check_address

try:
    from langchain_core.stores import BaseStore
except ImportError:
    raise MissingExtra("langchain", "langchain") from None


class NBMFByteStore(BaseStore[str, bytes]):
    """Bytes by key, in one namespace of a `Memory`. Thread-safe; its coroutines run in threads.

    `ttl` is in minutes, and every read renews it. `cls` is the class of the records, for the memory's policy. They are
    not indexed for search. Closing the memory is the caller's business. Raises NbmfError.
    """

    def __init__(self, memory: Memory, namespace: Namespace, *, ttl: float | None = None, cls: str = "") -> None:
        check_address(namespace)
        self.memory = memory
        self.namespace = namespace
        self.ttl = ttl
        self.cls = cls

    def mget(self, keys: Sequence[str]) -> list[bytes | None]:
        """The bytes of each key, None where there are none."""
        out: list[bytes | None] = []
        for key, item in zip(keys, self.memory.batch([GetOp(self.namespace, key) for key in keys]), strict=True):
            if item is not None and type(item.value) is not bytes:
                raise FormatError(f"{key!r} holds {type(item.value).__name__}, not bytes"[:200])
            out.append(None if item is None else item.value)
        return out

    def mset(self, key_value_pairs: Sequence[tuple[str, bytes]]) -> None:
        """Stores all of them or none."""
        for key, value in key_value_pairs:
            if not isinstance(value, bytes):
                raise UnsupportedValue(f"$: {key!r} would hold {type(value).__name__}, not bytes"[:200])
        self.memory.put_many(
            PutOp(self.namespace, key, value, self.cls, ttl=self.ttl, index=False) for key, value in key_value_pairs
        )

    def mdelete(self, keys: Sequence[str]) -> None:
        """Deletes those that are there."""
        self.memory.batch([DeleteOp(self.namespace, key) for key in keys])

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """The keys that start with a text, in no order that means anything. No value is decoded.

        What changes meanwhile may or may not be seen.
        """
        for record, _ in self.memory.tiers.live(self.namespace, now(), blobs=False):
            if record.namespace == self.namespace and record.key.startswith(prefix or ""):
                yield record.key


__all__ = ["NBMFByteStore"]
