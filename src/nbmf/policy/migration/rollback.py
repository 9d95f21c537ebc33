"""Undoing a migration by its journal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nbmf.errors import PolicyError
from nbmf.policy.migration.journal import Journal
from nbmf.policy.migration.report import LISTED, Rollback
from nbmf.policy.migration.rows import (
    BATCH,
    REPLACE,
    WRITTEN,
    Address,
    Destination,
    Tick,
    address_of,
    fingerprint,
    last_writers,
    place_of,
    read_each,
    unpack,
)
from nbmf.policy.sources import Incoming


def rollback(
    destination: Destination,
    *,
    journal: Path,
    seal: bytes | None = None,
    batch: int = BATCH,
    tick: Tick = lambda *_: None,
) -> Rollback:
    """Deletes what the journal's migration put, and puts back what it replaced, where it is unchanged since.

    The source is not needed. The journal is then put aside; a rollback that was interrupted is simply run again.
    """
    if not journal.exists():
        raise PolicyError(f"there is no journal {journal}, so nothing to roll back")
    started = time.monotonic()
    result = Rollback()
    with Journal(journal, seal) as log:
        last = last_writers(log)
        earlier: dict[bytes, _Written] = {}  # where several items took one address: what the ones before the last did
        index = done = 0
        for rows in log.batches():
            wanted: list[_Written] = []
            for row in rows:
                if row[0] in WRITTEN:
                    address = address_of(row)
                    place = place_of(*address)
                    before = earlier.get(place) or _Written(address, frozenset(), None)
                    was = row[4] if row[0] == REPLACE else before.was
                    written = _Written(address, before.prints | {row[1]}, was)
                    if last.get(place, index) == index:
                        wanted.append(written)
                    else:
                        earlier[place] = written
                index += 1
            for at in range(0, len(wanted), batch):
                _undo(destination, wanted[at : at + batch], result)
            done += len(rows)
            tick("rolling back", done, log.copied)
        log.retire(".rolled-back")
    result.seconds = time.monotonic() - started
    return result


class _Written(NamedTuple):
    """What a migration wrote at an address: fingerprints, the last of which a crash may have kept from being put, and
    the record that was there before, None for none."""

    address: Address
    prints: frozenset[str]
    was: Any


def _undo(destination: Destination, wanted: Sequence[_Written], result: Rollback) -> None:
    found = read_each(destination, [written.address for written in wanted])
    gone: list[Address] = []
    back: list[Incoming] = []
    for (address, prints, was), there in zip(wanted, found, strict=True):
        older = unpack(was) if was else None
        now = fingerprint(there) if isinstance(there, Incoming) else ""
        if there is None:
            result.missing += 1
        elif now in prints:
            if older:
                back.append(older)
            else:
                gone.append(address)
        elif older and now == fingerprint(older):
            result.restored += 1  # by a rollback that was interrupted, or never replaced
        else:
            result.changed_count += 1
            if len(result.changed) < LISTED:
                result.changed.append({"namespace": list(address[0]), "key": address[1]})
    if back:
        destination.put_many(back)
    if gone:
        destination.delete_many(gone)
    result.restored += len(back)
    result.deleted += len(gone)
