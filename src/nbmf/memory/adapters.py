"""A Memory as the end of a migration, and as its beginning."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from nbmf.errors import NbmfError, StoreError
from nbmf.memory.encoding import value_of
from nbmf.memory.items import DeleteOp, PutOp, meta_of, now
from nbmf.memory.memory import Memory
from nbmf.memory.opening import public_address
from nbmf.policy.sources import Incoming, Item, StoreSource, Unreadable
from nbmf.store.base import Namespace, Record

BATCH: Final = 256  # records of a source that are decoded at once


class MemoryDestination:
    """Where migrated records go: encoded as the store's policy says, with the times, class and metadata they had."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def put_many(self, items: Sequence[Incoming]) -> None:
        """All or none, durable when it returns. An item with a ttl alone lives that long from now on."""
        records = self.memory.records_of(
            [PutOp(item.namespace, item.key, item.value, item.cls, meta=item.meta) for item in items],
            allow_nan=True,
            exact=True,
        )
        time = now()
        kept = []
        for item, record in zip(items, records, strict=True):
            updated = item.updated if item.updated is not None else item.created if item.created is not None else time
            kept.append(
                replace(
                    record,
                    created=item.created if item.created is not None else updated,
                    updated=updated,
                    expires=time + item.ttl if item.expires is None and item.ttl is not None else item.expires,
                    ttl=item.ttl,
                    fidelity=item.fidelity,
                )
            )
        self.memory.store(kept)

    def read(self, namespace: Namespace, key: str) -> Incoming | None:
        return self.read_many([(namespace, key)])[0]

    def read_many(self, addresses: Sequence[tuple[Namespace, str]]) -> list[Incoming | None]:
        found = self.memory.fetch(addresses, now())
        values = iter(self.memory.pairs([one[0] for one in found if one is not None]))
        return [None if one is None else incoming(one[0], value_of(next(values))) for one in found]

    def delete_many(self, addresses: Sequence[tuple[Namespace, str]]) -> None:
        """Wherever they lie by now, warm or cold."""
        self.memory.batch([DeleteOp(namespace, key) for namespace, key in addresses])


def source_of(memory: Memory) -> StoreSource:
    """Every record of a store, to migrate from, those included that have expired. One that cannot be decoded is an
    Unreadable with the bytes of its blob."""

    def items() -> Iterator[Item]:
        records = (record for record, _ in memory.live((), None))
        while batch := list(itertools.islice(records, BATCH)):
            yield from _decoded(memory, batch)

    folder = memory.parts.folder
    return StoreSource(
        public_address(memory.parts.address),
        items,
        count=lambda: int(memory.stats()["records"]),
        size=None if folder is None else lambda: int(memory.stats()["disk_bytes"]),
    )


def _decoded(memory: Memory, records: Sequence[Record]) -> Iterator[Item]:
    try:
        pairs = memory.codecs.decode_many([(record.codec, record.blob) for record in records])
    except StoreError:
        raise
    except NbmfError:
        pairs = None  # one of them at least, found one by one
    if pairs is not None:
        for record, pair in zip(records, pairs, strict=True):
            yield incoming(record, value_of(pair))
        return
    for record in records:
        try:
            yield incoming(record, value_of(memory.codecs.decode(record.codec, record.blob)))
        except StoreError:
            raise
        except NbmfError as error:
            yield Unreadable(_origin(record), str(error), record.blob)


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
        meta=meta_of(record.meta),
        fidelity=record.fidelity,
        origin=_origin(record),
    )


def _origin(record: Record) -> str:
    return f"{'/'.join(record.namespace)} {record.key}"
