"""Real destinations for migrations: a tier with the codec, and a plain SQLite table that counts its puts."""

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbmf.codec import values
from nbmf.codec.codec import Codec
from nbmf.errors import UnsupportedValue
from nbmf.policy.migrate import Address
from nbmf.policy.sources import Incoming
from nbmf.store.base import Delete, Get, Namespace, Put, Record
from nbmf.store.sqlite import SQLiteTier

NOW = 1_750_000_000_000  # what a time of None becomes


class TierDestination:
    """Records as neural blobs in the warm tier; what a memory does, without its caches."""

    def __init__(self, path: Path, codec: Codec, key: bytes | None = None) -> None:
        self.tier = SQLiteTier(path, key)
        self.codec = codec

    def put_many(self, items: Sequence[Incoming]) -> None:
        blobs = self.codec.encode_many([item.value for item in items], bare=True, verify=True, allow_nan=True)
        replaced = self.tier.batch([Put(self._record(item, blob)) for item, blob in zip(items, blobs, strict=True)])
        assert not any(replaced), "a record was put twice"

    def _record(self, item: Incoming, blob: bytes) -> Record:
        meta = b"" if item.meta is None else values.to_raw(item.meta, allow_nan=True)[1]
        return Record(
            item.namespace,
            item.key,
            blob,
            codec=self.codec.id,
            cls=item.cls,
            fidelity=item.fidelity,
            created=NOW if item.created is None else item.created,
            updated=NOW if item.updated is None else item.updated,
            expires=item.expires,
            ttl=item.ttl,
            meta=meta,
        )

    def read(self, namespace: Namespace, key: str) -> Incoming | None:
        return self.read_many([(namespace, key)])[0]

    def read_many(self, addresses: Sequence[Address]) -> list[Incoming | None]:
        found = self.tier.batch([Get(namespace, key, NOW) for namespace, key in addresses])
        return [record and self._incoming(record) for record in found]

    def _incoming(self, record: Record) -> Incoming:
        return Incoming(
            record.namespace,
            record.key,
            self.codec.decode(record.blob, bare=True),
            cls=record.cls,
            created=record.created,
            updated=record.updated,
            expires=record.expires,
            ttl=record.ttl,
            meta=values.from_raw(values.JSON, record.meta) if record.meta else None,
            fidelity=record.fidelity,
        )

    def delete_many(self, addresses: Sequence[Address]) -> None:
        self.tier.batch([Delete(namespace, key) for namespace, key in addresses])

    def everything(self) -> dict[Address, Incoming]:
        return {(record.namespace, record.key): self._incoming(record) for record in self.tier.scan()}

    def close(self) -> None:
        self.tier.close()


class TableDestination:
    """A table of raw values; fast under every kernel. `puts` counts how often each address was put."""

    LARGEST = 1 << 20  # raw bytes of a value

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA synchronous = FULL")
        self.connection.execute(
            "CREATE TABLE IF NOT EXISTS records"
            " (place TEXT PRIMARY KEY, type INTEGER, raw BLOB, about TEXT, puts INTEGER NOT NULL)"
        )

    def put_many(self, items: Sequence[Incoming]) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            for item in items:
                value_type, raw = values.to_raw(item.value, allow_nan=True)
                if len(raw) > self.LARGEST:
                    raise UnsupportedValue(f"$: {len(raw)} bytes are too many")
                about = [item.cls, item.created, item.updated, item.expires, item.ttl, item.meta, item.fidelity]
                self.connection.execute(
                    "INSERT INTO records VALUES (?, ?, ?, ?, 1) ON CONFLICT DO UPDATE SET"
                    " type = excluded.type, raw = excluded.raw, about = excluded.about, puts = puts + 1",
                    (self._place(item.namespace, item.key), value_type, raw, json.dumps(about)),
                )
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    @staticmethod
    def _place(namespace: Namespace, key: str) -> str:
        return json.dumps([namespace, key])

    def read(self, namespace: Namespace, key: str) -> Incoming | None:
        place = self._place(namespace, key)
        row = self.connection.execute("SELECT * FROM records WHERE place = ?", (place,)).fetchone()
        return row and self._incoming(row)

    @staticmethod
    def _incoming(row: tuple[Any, ...]) -> Incoming:
        namespace, key = json.loads(row[0])
        cls, created, updated, expires, ttl, meta, fidelity = json.loads(row[3])
        value = values.from_raw(row[1], row[2])
        return Incoming(tuple(namespace), key, value, cls, created, updated, expires, ttl, meta, fidelity)

    def delete_many(self, addresses: Sequence[Address]) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany("DELETE FROM records WHERE place = ?", [(self._place(*a),) for a in addresses])
        self.connection.execute("COMMIT")

    def everything(self) -> dict[Address, Incoming]:
        found = [self._incoming(row) for row in self.connection.execute("SELECT * FROM records ORDER BY place")]
        return {(item.namespace, item.key): item for item in found}

    def puts(self) -> dict[str, int]:
        return dict(self.connection.execute("SELECT place, puts FROM records"))

    def close(self) -> None:
        self.connection.close()
