"""What journal, migration and rollback share: the destination, the rows of the journal, and fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from nbmf.codec import values
from nbmf.errors import NbmfError, StoreError
from nbmf.policy.migration.journal import Journal, Row, opened_value, sealed_value
from nbmf.policy.sources import Incoming
from nbmf.store.base import Namespace

BATCH: Final = 256  # items

# Rows of the journal: [kind, fingerprint, ...]
PUT: Final = "put"  # namespace, key
REPLACE: Final = "replace"  # namespace, key, the record that was there
OVER: Final = "over"  # namespace, key: in the place of an earlier item of the same source
SAME: Final = "same"  # already there
KEPT: Final = "kept"  # a different one is there, and stays
TWIN: Final = "twin"  # like an earlier item of the same source
EXPIRED: Final = "expired"
BAD: Final = "unreadable"  # origin, reason, file
WRITTEN: Final = frozenset((PUT, REPLACE, OVER))

Address = tuple[Namespace, str]
Tick = Callable[..., None]  # what is being done, how much of it is done, of how much (None: not known)


class Destination(Protocol):
    """Where records go. It may also have `read_many(addresses) -> list[Incoming | None]`, which is then used."""

    def put_many(self, items: Sequence[Incoming]) -> None:
        """Puts all or none; durable when it returns. Times, meta and fidelity are kept; a time of None is now."""

    def read(self, namespace: Namespace, key: str) -> Incoming | None:
        """The live record as it is stored, None when there is none. Renews nothing."""

    def delete_many(self, addresses: Sequence[Address]) -> None:
        """Deletes all or none; durable when it returns. Addresses without a record are passed over."""


def fingerprint(item: Incoming) -> str:
    """32 hex digits of SHA-256 over address, value with its types, class, fidelity and meta; not over times.

    Raises UnsupportedValue for a value that no codec keeps.
    """
    return fingerprint_and_size(item)[0]


def fingerprint_and_size(item: Incoming) -> tuple[str, int]:
    value_type, raw = values.to_raw(item.value, allow_nan=True)
    about = [list(item.namespace), item.key, item.cls, item.fidelity, item.meta or None]
    digest = hashlib.sha256(b"%d %d " % (value_type, len(raw)))
    digest.update(raw)
    digest.update(values.to_raw(about, allow_nan=True)[1])
    return digest.hexdigest()[:32], len(raw) + len(item.key.encode())


def place_of(namespace: Namespace, key: str) -> bytes:
    return hashlib.sha256(json.dumps([namespace, key]).encode()).digest()[:16]


def address_of(row: Row) -> Address:
    return tuple(row[2]), row[3]


def last_writers(log: Journal) -> dict[bytes, int]:
    """For each address that an item took from another record or item: the index of the last one that did."""
    last: dict[bytes, int] = {}
    index = 0
    for rows in log.batches():
        for row in rows:
            if row[0] in (OVER, REPLACE):
                last[place_of(*address_of(row))] = index
            index += 1
    return last


def read_all(destination: Destination, addresses: Sequence[Address]) -> list[Incoming | None]:
    many = getattr(destination, "read_many", None)
    if many is None:
        return [destination.read(*address) for address in addresses]
    found: list[Incoming | None] = many(addresses)
    return found


def read_each(destination: Destination, addresses: Sequence[Address]) -> list[Incoming | NbmfError | None]:
    """As `read_all`, with the error of each record that cannot be read in its place. Raises StoreError."""
    try:
        return list(read_all(destination, addresses))
    except StoreError:
        raise
    except NbmfError:
        pass  # of one of them
    found: list[Incoming | NbmfError | None] = []
    for address in addresses:
        try:
            found.append(destination.read(*address))
        except StoreError:
            raise
        except NbmfError as error:
            found.append(error)
    return found


def pack(item: Incoming) -> dict[str, Any]:
    """A record of the destination as the journal keeps it."""
    return {
        "namespace": list(item.namespace),
        "key": item.key,
        "value": sealed_value(item.value),
        "cls": item.cls,
        "created": item.created,
        "updated": item.updated,
        "expires": item.expires,
        "ttl": item.ttl,
        "meta": None if item.meta is None else sealed_value(item.meta),
        "fidelity": item.fidelity,
    }


def unpack(kept: dict[str, Any]) -> Incoming:
    fields = dict(kept, namespace=tuple(kept["namespace"]), value=opened_value(kept["value"]))
    if kept["meta"] is not None:
        fields["meta"] = opened_value(kept["meta"])
    return Incoming(**fields)


def replaced_fingerprint(row: Row) -> str:
    """The fingerprint of the record that a row replaces."""
    return fingerprint(unpack(row[4]))
