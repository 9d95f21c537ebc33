"""A Memory as the end of a migration, and as its beginning."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from nbmf.memory.encoding import value_of
from nbmf.memory.items import PutOp, now
from nbmf.memory.memory import Memory
from nbmf.policy.sources import Incoming, StoreSource
from nbmf.store.base import Delete, Namespace, Put, Record


class MemoryDestination:
    """Where migrated records go: encoded as the store's policy says, with the times, class and metadata they had."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def put_many(self, items: Sequence[Incoming]) -> None:
        """All or none, durable when it returns."""
        records = self.memory.records_of(
            [PutOp(item.namespace, item.key, item.value, item.cls, meta=item.meta) for item in items]
        )
        time = now()
        puts = []
        for item, record in zip(items, records, strict=True):
            updated = item.updated if item.updated is not None else item.created if item.created is not None else time
            kept = replace(
                record,
                created=item.created if item.created is not None else updated,
                updated=updated,
                expires=item.expires,
                ttl=item.ttl,
                fidelity=item.fidelity,
            )
            puts.append(Put(kept))
        self.memory.warm.batch(puts)

    def read(self, namespace: Namespace, key: str) -> Incoming | None:
        return self.read_many([(namespace, key)])[0]

    def read_many(self, addresses: Sequence[tuple[Namespace, str]]) -> list[Incoming | None]:
        found = self.memory.fetch(addresses, now())
        values = iter(self.memory.pairs([one[0] for one in found if one is not None]))
        return [None if one is None else incoming(one[0], value_of(next(values))) for one in found]

    def delete_many(self, addresses: Sequence[tuple[Namespace, str]]) -> None:
        """All or none, durable when it returns."""
        self.memory.warm.batch([Delete(namespace, key) for namespace, key in addresses])


def source_of(memory: Memory) -> StoreSource:
    """Every live record of a store, to migrate from."""

    def items() -> Iterator[Incoming]:
        for record, _ in memory.live((), now()):
            yield incoming(record, value_of(memory.codecs.decode(record.codec, record.blob)))

    return StoreSource(memory.parts.address, items, count=lambda: int(memory.stats()["records"]))


def incoming(record: Record, value: Any) -> Incoming:
    """A record as a migration carries it."""
    return Incoming(
        namespace=record.namespace,
        key=record.key,
        value=value,
        cls=record.cls,
        created=record.created,
        updated=record.updated,
        expires=record.expires,
        ttl=record.ttl,
        meta=json.loads(record.meta.decode("utf-8", "surrogatepass")) if record.meta else None,
        fidelity=record.fidelity,
        origin=f"{'/'.join(record.namespace)} {record.key}",
    )
