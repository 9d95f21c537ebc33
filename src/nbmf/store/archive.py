"""The archive: one immutable file of records, coded together in blocks, with an index at its end.

    header(8)  block ...  index  trailer(68)

docs/spec/archive.md is the specification. What is in a block is the business of a `GroupCoder`. An archive is written
once (archive_writer.py), and read by range: the trailer and the index, and then, for a record, its block and the first.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from nbmf.errors import CorruptRecord, FormatError, NbmfError, PolicyError
from nbmf.store.address import Address, text, unflat
from nbmf.store.base import Record
from nbmf.store.columns import Reader

MAGIC: Final = b"NBMA"
READ_VERSION: Final = 1  # a reader of an older one cannot read
WRITE_VERSION: Final = 1  # a writer of an older one must not rewrite
SEALED: Final = 1  # the one flag there is

RECORDS_MOST: Final = 65_536  # of an archive
PART_MOST: Final = 128 << 20  # bytes that a reader takes for the head of an index, or for a section

CHECK_SIZE: Final = 16  # bytes of BLAKE2b: of the index
BLOCK_CHECK_SIZE: Final = 8  # of a block, whose check stands in the checked index: 1 in 2**64 damages passes
FIDELITIES: Final = ("lossless", "semantic")

HEADER: Final = struct.Struct("<4sBBH")  # magic, read version, write version, flags
TRAILER: Final = struct.Struct("<8s16sIQQ16s")  # header, id, records, index's offset and length, its check
TRAILER_SIZE: Final = TRAILER.size + BLOCK_CHECK_SIZE


class GroupCoder(Protocol):
    """Codes records together. Thread-safe. What it writes it must have verified by decoding."""

    id: str  # content id (hex) of the model or pack that reads its blocks; "" for none

    def encode(self, records: Sequence[tuple[str, bytes]], after: Sequence[tuple[str, bytes]] = (), /) -> bytes:
        """One block of the (codec id, bare blob) of each record, in order.

        It may follow the records of `after`: then they are needed to read it. Whether they come as they were first
        coded, or as `decode` gives them, with the codec id "", makes no difference.
        """

    def decode(self, block: bytes, count: int, after: Callable[[], Sequence[bytes]] = list, /) -> list[bytes]:
        """The records' blobs again, as bare blobs that need no model. Raises NbmfError.

        `after` gives those of the records that the block follows, and is asked only if it follows some.
        """

    def follows(self, block: bytes, /) -> bool:
        """Whether a block follows other records."""


class Seal(Protocol):
    """A tenant's key. What was sealed with a context opens only with that context."""

    def seal(self, data: bytes, context: bytes) -> bytes: ...

    def unseal(self, data: bytes, context: bytes) -> bytes:
        """Raises NbmfError unless `data` was sealed with this key and context."""


def check(data: bytes, size: int = CHECK_SIZE) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()


def block_check(id: bytes, number: int, stored: bytes) -> bytes:
    """Of a block in its place: a block that stands where another should is found."""
    return check(id + number.to_bytes(4, "little") + stored, BLOCK_CHECK_SIZE)


def block_context(id: bytes, number: int) -> bytes:
    return b"nbmf archive %s block %d" % (id.hex().encode(), number)


def index_context(id: bytes) -> bytes:
    return b"nbmf archive %s index" % id.hex().encode()


class Keys:
    """The keys of a section."""

    def __init__(self, data: bytes, count: int) -> None:
        reader = Reader(data, PART_MOST)
        self.keys = reader.keys(count)
        self.end = reader.at  # where the fields begin
        self.cost = 60 * count + sum(map(len, self.keys))


class Fields:
    """What else a section tells of its records."""

    def __init__(self, data: bytes, count: int, classes: Sequence[tuple[str, str]]) -> None:
        reader = Reader(data, PART_MOST)
        kinds: list[int] = reader.numbers(count).tolist()
        if not all(0 <= kind < len(classes) for kind in kinds):
            raise CorruptRecord("a record's class is unknown")
        self.classes = [classes[kind] for kind in kinds]
        self.created: list[int] = reader.numbers(count).tolist()
        after: list[int] = reader.numbers(count).tolist()
        self.updated = [a + b for a, b in zip(self.created, after, strict=True)]
        ttls: list[int] = reader.numbers(count).tolist()
        self.ttls = [_unsigned(n - 1) if n > 0 else None for n in ttls]
        ends: list[int] = reader.numbers(count).tolist()
        self.expires = [
            updated + (ttl or 0) + _unsigned(n - 1) if n > 0 else None
            for n, updated, ttl in zip(ends, self.updated, self.ttls, strict=True)
        ]
        self.metas = reader.texts(count)
        self.codes = reader.texts(count)
        self.cost = 250 * count + sum(map(len, self.metas)) + sum(map(len, self.codes))
        if reader.at != len(data):
            raise CorruptRecord("bytes after a section")


def _unsigned(n: int) -> int:
    """0, 1, 2, 3 ... as 0, -1, 1, -2 ..."""
    return -(n + 1 >> 1) if n & 1 else n >> 1


Part = TypeVar("Part", Keys, Fields)


class Keep(Protocol):
    """Gives what is kept of a section, or makes it."""

    def __call__(self, kind: type[Part], section: int, make: Callable[[], Part]) -> Part: ...


class Block(NamedTuple):
    start: int  # offset in the file
    length: int
    first: int  # number of its first record
    records: int
    raw: int  # raw bytes of them, about


class Archive:
    """An archive's index, held in memory; sections are parsed when they are asked for. Thread-safe."""

    def __init__(
        self,
        tail: bytes,
        size: int,
        seal: Seal | None = None,
        keep: Keep | None = None,
    ) -> None:
        """`tail` is the index and the trailer, or more, of a file of `size` bytes.

        `keep` keeps what was parsed of sections; without it the archive keeps all.

        Raises FormatError, CorruptRecord, or what the seal raises.
        """
        trailer = tail[-TRAILER_SIZE:]
        if len(trailer) < TRAILER_SIZE or size < TRAILER_SIZE + HEADER.size:
            raise FormatError(f"an archive of {size} bytes is cut short")
        header, self.id, self.count, start, length, index_check = TRAILER.unpack(trailer[: TRAILER.size])
        magic, read_version, self.write_version, flags = HEADER.unpack(header)
        if magic != MAGIC:
            raise FormatError("not an archive, or its end is missing")
        if read_version != READ_VERSION:
            raise FormatError(f"an archive of read version {read_version}, not {READ_VERSION}")
        if check(trailer[: TRAILER.size], BLOCK_CHECK_SIZE) != trailer[TRAILER.size :]:
            raise CorruptRecord("the trailer's check is wrong")
        if flags & ~SEALED:
            raise FormatError(f"flags {flags:#06x} have reserved bits set")
        if bool(flags & SEALED) != (seal is not None):
            raise PolicyError(
                "the archive is sealed, and no key was given" if not seal else "the archive is not sealed"
            )
        if start + length + TRAILER_SIZE != size or start < HEADER.size or self.count > RECORDS_MOST:
            raise CorruptRecord("the trailer's lengths are not those of the file")
        if len(tail) < length + TRAILER_SIZE:
            raise CorruptRecord(f"the index has {length} bytes, of which {len(tail) - TRAILER_SIZE} were given")
        stored = tail[len(tail) - TRAILER_SIZE - length : len(tail) - TRAILER_SIZE]
        if check(stored) != index_check:
            raise CorruptRecord("the index's check is wrong")
        self.header = header
        self._seal = seal
        self._kept: dict[tuple[type, int], Any] = {}
        self._keep = keep or self._keep_all
        self._index = seal.unseal(stored, index_context(self.id)) if seal else stored
        self._read_head(start)
        self.cost = len(self._index) + 200 * len(self.namespaces) + 200 * len(self.blocks)

    def _read_head(self, end: int) -> None:
        outer = Reader(self._index, PART_MOST)
        reader = Reader(outer.take(outer.number()), PART_MOST)
        self.coder = text(reader.texts(1)[0])
        self.classes = [_class(raw) for raw in reader.texts(reader.count(self.count))]
        self.namespaces = reader.sorted(reader.count(self.count))
        counts = reader.lengths(len(self.namespaces)).tolist()
        self._ends = list(accumulate(counts))  # the number of the record after each namespace's last
        blocks = reader.count(self.count)
        lengths, records, raws = (reader.numbers(blocks).tolist() for _ in range(3))
        self._checks = reader.packed(BLOCK_CHECK_SIZE * blocks)
        sections = reader.count(self.count)
        self._section_counts = reader.lengths(sections).tolist()
        section_sizes = reader.numbers(sections).tolist()
        self._section_keys = reader.keys(sections)
        if min([1, *counts, *lengths, *records, *self._section_counts, *section_sizes]) < 1 or min([0, *raws]) < 0:
            raise CorruptRecord("the index counts fewer than there can be")
        starts = list(accumulate(lengths, initial=HEADER.size))
        firsts = list(accumulate(records, initial=0))
        self._firsts = firsts[:-1]
        self.blocks = [Block(*fields) for fields in zip(starts[:-1], lengths, self._firsts, records, raws, strict=True)]
        self._section_firsts = list(accumulate(self._section_counts, initial=0))
        self._section_starts = list(accumulate(section_sizes, initial=outer.at))
        totals = {firsts[-1], self._section_firsts[-1], sum(counts), self.count}
        if len(totals) > 1 or starts[-1] != end or self._section_starts[-1] != len(self._index):
            raise CorruptRecord("the index's counts and lengths do not agree")
        if any(a >= b for a, b in zip(self.namespaces, self.namespaces[1:], strict=False)):
            raise CorruptRecord("the index's namespaces are not in order")
        if not all(namespace.endswith(b"\0") for namespace in self.namespaces):
            raise CorruptRecord("a namespace of the index is none")

    def _section(self, section: int) -> bytes:
        return self._index[self._section_starts[section] : self._section_starts[section + 1]]

    def _keys(self, section: int) -> list[bytes]:
        def make() -> Keys:
            found = Keys(self._section(section), self._section_counts[section])
            if found.keys[0] != self._section_keys[section]:
                raise CorruptRecord("a section starts with another key than the index says")
            return found

        return self._keep(Keys, section, make).keys

    def _fields(self, number: int) -> tuple[Fields, int]:
        """Those of a record's section, and its place there."""
        section, at = self._place(number)

        def make() -> Fields:
            data, count = self._section(section), self._section_counts[section]
            return Fields(data[self._keep(Keys, section, lambda: Keys(data, count)).end :], count, self.classes)

        return self._keep(Fields, section, make), at

    def _keep_all(self, kind: type[Part], section: int, make: Callable[[], Part]) -> Part:
        if (kind, section) not in self._kept:
            self._kept[kind, section] = make()
        found: Part = self._kept[kind, section]
        return found

    def _place(self, number: int) -> tuple[int, int]:
        """A record's section, and its place there."""
        section = bisect_right(self._section_firsts, number) - 1
        return section, number - self._section_firsts[section]

    # -- where records are: a record's number is its place in the order of addresses ---------------------------------

    def span(self, prefix: bytes) -> tuple[int, int]:
        """The numbers from, and up to, those of records in and below a flat namespace."""
        a = bisect_left(self.namespaces, prefix)
        b = bisect_left(self.namespaces, prefix + b"\xff") if prefix else len(self.namespaces)
        return self._start(a), self._start(b)

    def spaces(self, prefix: bytes) -> Iterator[tuple[bytes, int, int]]:
        """Each namespace in and below `prefix`, and the numbers of its records: from, and up to."""
        for i in range(bisect_left(self.namespaces, prefix), len(self.namespaces)):
            if not self.namespaces[i].startswith(prefix):
                break
            yield self.namespaces[i], self._start(i), self._ends[i]

    def _start(self, space: int) -> int:
        return self._ends[space - 1] if space else 0

    def place(self, at: Address) -> tuple[int, bool]:
        """The number of the record at an address, and whether there is one; if not, of the first after it."""
        space = bisect_left(self.namespaces, at.namespace)
        low = self._start(space)
        if space == len(self.namespaces) or self.namespaces[space] != at.namespace:
            return low, False
        high = self._ends[space]
        # Of the sections of this namespace, the last that starts at or before the key; all keys in them are in order.
        a = bisect_right(self._section_firsts, low, hi=len(self._section_keys)) - 1
        b = bisect_left(self._section_firsts, high, hi=len(self._section_keys))
        number = max(bisect_right(self._section_keys, at.key, a + 1, max(b, a + 1)) - 1, a)
        keys, first = self._keys(number), self._section_firsts[number]
        start, end = max(low - first, 0), min(high - first, len(keys))
        found = bisect_left(keys, at.key, start, end)
        return first + found, found < end and keys[found] == at.key

    def addresses(self, start: int, end: int) -> Iterator[tuple[bytes, bytes, int]]:
        """The addresses of records `start` up to `end`, with their numbers."""
        space = bisect_right(self._ends, start)
        while start < end:
            section, at = self._place(start)
            first, after = start - at, min(end, self._section_firsts[section + 1])
            keys = self._keys(section)
            for number in range(start, after):
                if number >= self._ends[space]:
                    space += 1
                yield self.namespaces[space], keys[number - first], number
            start = after

    def at(self, number: int) -> Address:
        section, at = self._place(number)
        return Address(self.namespaces[bisect_right(self._ends, number)], self._keys(section)[at])

    def cls(self, number: int) -> str:
        fields, at = self._fields(number)
        return fields.classes[at][0]

    def created(self, number: int) -> int:
        fields, at = self._fields(number)
        return fields.created[at]

    def expires(self, number: int) -> int | None:
        fields, at = self._fields(number)
        return fields.expires[at]

    def code(self, number: int) -> bytes:
        fields, at = self._fields(number)
        return fields.codes[at]

    def record(self, number: int, blob: bytes) -> Record:
        """A record with its blob, which needs no model."""
        namespace, key = self.at(number)
        fields, at = self._fields(number)
        cls, fidelity = fields.classes[at]
        return Record(
            namespace=unflat(namespace),
            key=text(key),
            blob=blob,
            codec="",
            cls=cls,
            fidelity=fidelity,
            created=fields.created[at],
            updated=fields.updated[at],
            expires=fields.expires[at],
            ttl=fields.ttls[at],
            meta=fields.metas[at],
            code=fields.codes[at],
        )

    # -- blocks --------------------------------------------------------------------------------------------------------

    def block_of(self, number: int) -> int:
        """The block in which a record is."""
        return bisect_right(self._firsts, number) - 1

    def open_block(self, number: int, stored: bytes) -> bytes:
        """What the coder wrote. Raises CorruptRecord if the stored bytes are not those of this block."""
        expected = self._checks[number * BLOCK_CHECK_SIZE : (number + 1) * BLOCK_CHECK_SIZE]
        if block_check(self.id, number, stored) != expected:
            raise CorruptRecord(f"block {number}: its check is wrong")
        if self._seal is None:
            return stored
        try:
            return self._seal.unseal(stored, block_context(self.id, number))
        except CorruptRecord as error:
            raise CorruptRecord(f"block {number}: {error}") from None

    def verify(self, data: bytes) -> Iterator[str]:
        """What is wrong with the whole file, of which this is the index. Every byte is under a check."""
        if data[: HEADER.size] != self.header:
            yield "the header is not that of the trailer"
        for number, block in enumerate(self.blocks):
            try:
                self.open_block(number, data[block.start : block.start + block.length])
            except NbmfError as error:
                yield str(error)
        last = Address(b"", b"")
        try:
            for namespace, key, number in self.addresses(0, self.count):
                if (at := Address(namespace, key)) <= last:
                    yield f"record {number} is not in the order of addresses"
                last = at
                if self._place(number)[1] == 0:
                    self._fields(number)
        except NbmfError as error:
            yield str(error)


def _class(raw: bytes) -> tuple[str, str]:
    if not raw or raw[0] >= len(FIDELITIES):
        raise CorruptRecord("a class has no fidelity")
    return text(raw[1:]), FIDELITIES[raw[0]]


__all__ = ["Archive", "GroupCoder", "Seal"]
