"""Equal blobs of one tenant, kept once: what `compact` of the SQLite tier does where it saves bytes net.

A tenant is a namespace's first segment. Nothing is shared across tenants, so that none can learn of another's values.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, Final

import numpy as np

from nbmf.errors import CorruptRecord
from nbmf.store.connection import Connection

ROW: Final = 12  # bytes of a row of `shared` beside its blob: cell, lengths, id, uses
REFERENCE: Final = 3  # bytes at most of its number in a record, for the first 8 million
CHUNK: Final = 2_000  # records rewritten from one read

# Numbers and keys of namespaces are never NULL, so a row value before all others begins with -1.
_NEXT: Final = (
    "SELECT namespace, key, blob FROM record WHERE (namespace, key) > (?, ?) AND typeof(blob) = 'blob'"
    " ORDER BY namespace, key LIMIT ?"
)


def share_equal_blobs(connection: Connection) -> None:
    """Within the transaction that is open. No record's content changes."""
    run = connection.execute
    _keep_apart_again(run)
    tenants = {number: path.split(b"\0", 1)[0] for path, number in run("SELECT path, id FROM namespace")}
    known: dict[int, int] = {}  # a shared blob's mark to its number
    marks = array("Q")
    for number, held, blob in run(
        "SELECT r.namespace, r.blob, coalesce(s.blob, r.blob) FROM record r LEFT JOIN shared s ON s.id = r.blob"
    ):
        marks.append(_mark(tenants, number, blob))
        if isinstance(held, int):
            known[marks[-1]] = held
    unique, counts = np.unique(np.frombuffer(marks, np.uint64), return_counts=True)
    times = dict(zip(unique[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True))
    del marks, unique, counts
    if times:
        for number, key, blob in _chunks(run):
            mark = _mark(tenants, number, blob)
            count = times.get(mark, 0)
            if (count - 1) * len(blob) > ROW + count * REFERENCE or mark in known:
                _refer(run, known, mark, (number, key, blob))
        _keep_apart_again(run)


def _refer(run: Callable[..., Any], known: dict[int, int], mark: int, row: tuple[int, Any, bytes]) -> None:
    number, key, blob = row
    id = known.get(mark)
    if id is None:
        id = known[mark] = run("INSERT INTO shared (uses, blob) VALUES (0, ?) RETURNING id", (blob,)).fetchall()[0][0]
    elif run("SELECT 1 FROM shared WHERE id = ? AND blob = ?", (id, blob)).fetchone() is None:
        return  # two blobs of one mark
    run("UPDATE record SET blob = ? WHERE namespace = ? AND key = ?", (id, number, key))
    run("UPDATE shared SET uses = uses + 1 WHERE id = ?", (id,))


def _keep_apart_again(run: Callable[..., Any]) -> None:
    """A blob that only one record has is back in its row."""
    run(
        "UPDATE record SET blob = (SELECT s.blob FROM shared s WHERE s.id = record.blob)"
        " WHERE typeof(blob) = 'integer' AND blob IN (SELECT id FROM shared WHERE uses = 1)"
    )
    run("DELETE FROM shared WHERE uses < 2")


def _chunks(run: Callable[..., Any]) -> Iterator[tuple[int, Any, bytes]]:
    """The records that have their blob in their row; each may be rewritten before the next is asked for."""
    last: tuple[int, Any] = (-1, "")
    while rows := run(_NEXT, (*last, CHUNK)).fetchall():
        yield from rows
        last = rows[-1][:2]


def _mark(tenants: dict[int, bytes], number: int, blob: Any) -> int:
    """64 bits of the tenant and the blob."""
    tenant = tenants.get(number)
    if tenant is None or not isinstance(blob, bytes):
        raise CorruptRecord(f"a record of namespace {number} has lost a part: see `check`")
    return int.from_bytes(blake2b(tenant + b"\0" + blob, digest_size=8).digest(), "little")
