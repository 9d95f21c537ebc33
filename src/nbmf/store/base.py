"""What every tier speaks: records, operations on them, and `Tier`, whose one verb is `batch`.

A tier keeps opaque bytes and never sees a model: `memory` encodes and decodes. Get, put and the rest are sugar over
`batch`, so a tier that passes the conformance suite (tests/store/conformance.py) can stand wherever another does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nbmf.errors import PolicyError

Namespace = tuple[str, ...]

KEY_MOST: Final = 1024  # bytes of UTF-8: of a key, and of all segments of a namespace together
SEGMENTS_MOST: Final = 32  # of a namespace
JOURNAL: Final = 10_000  # changes that a tier remembers at least
PAGE: Final = 512  # records a scan returns at most, unless told otherwise


@dataclass(frozen=True, slots=True)
class Record:
    """A record as a tier keeps it. Times are milliseconds since the Unix epoch.

    `codec` is the content id (hex) of the model or pack that reads the bare `blob`; "" for a blob that needs none, such
    as the old encoder's. `fidelity` is "lossless" or "semantic". `ttl` is what a read renews, `expires` when it ends.
    `meta` is the user's metadata as compact JSON, b"" for none; `code` is semantic recall's compact vector, likewise.
    A put keeps `created` of the record that it replaces.
    """

    namespace: Namespace
    key: str
    blob: bytes
    codec: str = ""
    cls: str = ""
    fidelity: str = "lossless"
    created: int = 0
    updated: int = 0
    expires: int | None = None
    ttl: int | None = None
    meta: bytes = b""
    code: bytes = b""

    def at(self, now: int) -> bool:
        """Whether the record is still there at `now`."""
        return self.expires is None or self.expires > now


@dataclass(frozen=True, slots=True)
class Get:
    """-> Record | None. With `renew`, a record that has a ttl then expires at `now + ttl`.

    With `blob` False the blob may be b"": a tier in which it costs something does not read it.
    """

    namespace: Namespace
    key: str
    now: int
    renew: bool = False
    blob: bool = True


@dataclass(frozen=True, slots=True)
class Put:
    """-> bool: whether a record was replaced. An expired one counts as none, and gives no `created`.

    With `expected`, the put happens only if the record there has that blob, and the result is whether it happened:
    aging and re-encoding put back what they read, and must never overwrite a user's newer value.
    """

    record: Record
    expected: bytes | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """-> bool: whether there was one. With `expected`, only if its blob is still that one."""

    namespace: Namespace
    key: str
    expected: bytes | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """-> list[Record]: those in and below `prefix` (whole segments; () is everything), ordered by (namespace, key).

    `after` is the last (namespace, key) of the page before. Expired records are left out unless `now` is None.
    The order is the tier's own, fixed and total; it need not be that of Python's tuples. With `blobs` False the blobs
    may be b"": a tier in which they cost something does not read them.
    """

    prefix: Namespace
    now: int | None
    after: tuple[Namespace, str] | None = None
    limit: int = PAGE
    cls: str | None = None
    blobs: bool = True


@dataclass(frozen=True, slots=True)
class Namespaces:
    """-> list[Namespace]: those that hold a live record, in and below `prefix`, in Python's order of tuples."""

    prefix: Namespace
    now: int


@dataclass(frozen=True, slots=True)
class Forget:
    """-> int: how many records in and below `prefix` were deleted, expired ones too.

    Nothing of them stays in the tier's files.
    """

    prefix: Namespace


@dataclass(frozen=True, slots=True)
class Expire:
    """-> int: how many expired records were deleted, at most `limit`."""

    now: int
    limit: int = PAGE


@dataclass(frozen=True, slots=True)
class Codes:
    """-> list[(namespace, key, code)]: the vectors of records that have one, in Scan's order, expired ones too."""

    after: tuple[Namespace, str] | None = None
    limit: int = 8192


@dataclass(frozen=True, slots=True)
class Changes:
    """-> (now_at, list[(namespace, key)] | None): what was put or deleted after the journal's position `since`.

    None: the journal no longer reaches back so far (it keeps the last JOURNAL changes of records that have or had a
    code), and the codes must be read anew. Positions only grow; that of an empty journal is 0.
    """

    since: int


Op = Get | Put | Delete | Scan | Namespaces | Forget | Expire | Codes | Changes


@dataclass(frozen=True, slots=True)
class Fault:
    """What `check` found: where, and what is wrong, in one line each."""

    where: str
    what: str


class Tier(ABC):
    """Records by (namespace, key). Thread-safe; several processes may have it open where its medium allows it."""

    @abstractmethod
    def batch(self, ops: Sequence[Op]) -> list[Any]:
        """The result of each operation, in order, in one transaction: all of them happened, durably, or none.

        Raises StoreError (the medium failed: disk full, connection lost), CorruptRecord (what is there cannot be read).
        """

    @abstractmethod
    def version(self) -> int:
        """A number that differs from the one before whenever anyone, in any process, has changed a record since."""

    @abstractmethod
    def check(self) -> Iterator[Fault]:
        """Reads everything and verifies every checksum the tier has. Nothing yielded: sound."""

    @abstractmethod
    def compact(self) -> None:
        """Gives back the space of what was deleted; afterwards nothing deleted stays in the files."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes on the medium by what they are for ("records", "log", …); and "count", the number of records."""

    @abstractmethod
    def close(self) -> None:
        """Releases everything; closing twice is fine."""

    # -- sugar ---------------------------------------------------------------------------------------------------------

    def get(self, namespace: Namespace, key: str, now: int, renew: bool = False) -> Record | None:
        found: Record | None = self.batch([Get(namespace, key, now, renew)])[0]
        return found

    def put(self, record: Record, expected: bytes | None = None) -> bool:
        return bool(self.batch([Put(record, expected)])[0])

    def delete(self, namespace: Namespace, key: str, expected: bytes | None = None) -> bool:
        return bool(self.batch([Delete(namespace, key, expected)])[0])

    def scan(self, prefix: Namespace = (), now: int | None = None, cls: str | None = None) -> Iterator[Record]:
        """Every record of `prefix`, page after page; what changes between two pages may or may not be seen."""
        after = None
        while page := self.batch([Scan(prefix, now, after, cls=cls)])[0]:
            yield from page
            after = (page[-1].namespace, page[-1].key)


_NO_KEY: Final[Any] = object()


def check_address(namespace: Namespace, key: str = _NO_KEY) -> None:
    """Raises PolicyError naming what no tier can keep; without a key, of the namespace alone.

    A namespace is a tuple of 1 to SEGMENTS_MOST non-empty texts, a key a non-empty text; neither holds U+0000 or a lone
    surrogate (PostgreSQL keeps neither), and both have limits of length.
    """
    if not isinstance(namespace, tuple) or not namespace:
        raise PolicyError(f"a namespace is a tuple of at least one text, not {namespace!r}"[:200])
    if len(namespace) > SEGMENTS_MOST:
        raise PolicyError(f"a namespace has at most {SEGMENTS_MOST} segments, not {len(namespace)}")
    total = sum(_text("a namespace's segment", segment) for segment in namespace)
    if total > KEY_MOST:
        raise PolicyError(f"a namespace has at most {KEY_MOST} bytes, not {total}")
    if key is not _NO_KEY and (size := _text("a key", key)) > KEY_MOST:
        raise PolicyError(f"a key has at most {KEY_MOST} bytes, not {size}")


def _text(what: str, text: Any) -> int:
    """Its bytes of UTF-8."""
    if not isinstance(text, str) or not text:
        raise PolicyError(f"{what} is a non-empty text, not {text!r}"[:200])
    if "\0" in text:
        raise PolicyError(f"{what} cannot hold U+0000: {text!r}"[:200])
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise PolicyError(f"{what} cannot hold a lone surrogate: {text!r}"[:200]) from None


def within(namespace: Namespace, prefix: Namespace) -> bool:
    """Whether `namespace` is `prefix` or below it: whole segments, so ("foobar",) is not within ("foo",)."""
    return namespace[: len(prefix)] == prefix


__all__ = [
    "Changes",
    "Codes",
    "Delete",
    "Expire",
    "Fault",
    "Forget",
    "Get",
    "Namespace",
    "Namespaces",
    "Op",
    "Put",
    "Record",
    "Scan",
    "Tier",
    "check_address",
    "within",
]
