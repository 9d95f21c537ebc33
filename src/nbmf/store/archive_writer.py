"""Writing an archive: records into blocks, all coded after the first one, and an index of them at the end.

docs/spec/archive.md is the specification; archive.py reads what is written here.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from nbmf.errors import PolicyError
from nbmf.store.address import Address, address
from nbmf.store.archive import (
    BLOCK_CHECK_SIZE,
    FIDELITIES,
    HEADER,
    MAGIC,
    READ_VERSION,
    RECORDS_MOST,
    SEALED,
    TRAILER,
    WRITE_VERSION,
    Archive,
    GroupCoder,
    Seal,
    block_check,
    block_context,
    check,
    index_context,
)
from nbmf.store.base import Record
from nbmf.store.columns import VALUE_MOST, put_keys, put_number, put_numbers, put_packed, put_sorted, put_texts

PRIMER_SIZE: Final = 12 << 10  # raw bytes the first block has at most: a reader of another decodes it, learns from
BLOCK_SIZE: Final = 20 << 10  # it again, and decodes its own, raw bytes about: 44 KiB in all, some 40 ms
BLOCK_RECORDS: Final = 512  # records a block has at most
PACKED: Final = 4  # raw bytes for a byte of a neural blob, about
SECTION_RECORDS: Final = 1024  # records of a section of the index at most ...
SECTION_SIZE: Final = 4 << 20  # ... and bytes of their keys, metadata and codes, about
BLOBS_MOST: Final = 64 << 20  # bytes of blobs that a writer puts into one archive, about
INDEX_MOST: Final = 32 << 20  # bytes of namespaces, keys, metadata and codes, likewise
FIELD_MOST: Final = 16 << 20  # bytes of a record's metadata, and of its code

_THREADS: Final = min(os.cpu_count() or 1, 16)


def raw_size(codec: str, blob: bytes) -> int:
    """About how many raw bytes a bare blob holds."""
    return len(blob) * (PACKED if codec else 1)


@dataclass(frozen=True, slots=True)
class Built:
    """An archive in memory, and what a list of archives tells of it. `index` is the length of index and trailer."""

    id: str
    data: bytes
    index: int
    count: int
    first: bytes  # flat, as is the last
    last: bytes
    soonest: int | None
    codes: int


@dataclass(slots=True)
class _Block:
    blobs: list[tuple[str, bytes]]  # of records yet to be coded, and of the first block's records,
    coded: bytes  # or a block of another archive
    count: int
    raw: int


class Writer:
    """Takes records in the order of their addresses, each once; `finish` codes them and gives the archive's bytes.

    A block has at most `block_size` raw bytes, or one record, and the first at most `primer_size`. The others are coded
    as following that one, unless its only record is larger; with `primer_size` 0 none follows another.
    """

    def __init__(
        self,
        coder: GroupCoder,
        seal: Seal | None = None,
        block_size: int = BLOCK_SIZE,
        size: Callable[[str, bytes], int] = raw_size,
        primer_size: int = PRIMER_SIZE,
    ) -> None:
        self._coder, self._seal = coder, seal
        self._block_size, self._size, self._primer_size = block_size, size, primer_size
        self._records: list[Record] = []
        self._addresses: list[Address] = []
        self._blocks: list[_Block] = []
        self._blobs = self._index = 0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def full(self) -> bool:
        """Whether what comes next belongs into another archive."""
        most = (RECORDS_MOST - BLOCK_RECORDS, BLOBS_MOST, INDEX_MOST)
        return any(a >= b for a, b in zip((len(self._records), self._blobs, self._index), most, strict=True))

    def add(self, record: Record) -> None:
        """Raises PolicyError for a record that no index can hold."""
        self._note(record)
        raw = self._size(record.codec, record.blob)
        block = self._blocks[-1] if self._blocks else None
        most = self._most(len(self._blocks) - 1)
        if block is None or block.coded or block.raw + raw > most or block.count >= BLOCK_RECORDS:
            block = _Block([], b"", 0, 0)
            self._blocks.append(block)
        block.blobs.append((record.codec, record.blob))
        block.count += 1
        block.raw += raw
        self._blobs += len(record.blob)

    def takes(self, archive: Archive, number: int, coded: bytes, first: Callable[[], bytes]) -> bool:
        """Whether a whole block of another archive may be copied as the next one, and would not be smaller coded anew.

        `first` gives what the coder wrote as that archive's first block: a block that follows it can only follow it.
        """
        block, primer = archive.blocks[number], archive.blocks[0]
        small = 2 * block.raw < self._most(len(self._blocks)) and 2 * block.records < BLOCK_RECORDS
        if archive.coder != self._coder.id or small:
            return False
        if self._coder.follows(coded):
            return bool(self._blocks) and self._blocks[0].coded == first()
        if block.records == 1 or not self._primer_size:
            return True
        if not self._blocks:
            return block.raw <= self._primer_size
        # Where there was a primer and is one, the coder had the choice and left the block alone.
        return not self._primes or (number > 0 and primer.raw <= self._primer_size)

    def copy(self, records: Iterable[Record], coded: bytes, raw: int) -> None:
        """Takes a block that `takes` allows. The records' blobs are looked at only if it comes first."""
        count = len(self._records)
        for record in records:
            self._note(record)
        blobs = [] if self._blocks else [(record.codec, record.blob) for record in self._records]
        self._blocks.append(_Block(blobs, coded, len(self._records) - count, raw))
        self._blobs += len(coded)

    def finish(self) -> Built:
        """Raises what the coder raises; then there is no archive."""
        id = secrets.token_bytes(16)
        primer = self._blocks[0].blobs if self._primes else []
        after = [[], *([primer] * (len(self._blocks) - 1))]
        with ThreadPoolExecutor(_THREADS) as pool:
            coded = list(pool.map(self._code, self._blocks, after))
        stored = [self._sealed(block, block_context(id, number)) for number, block in enumerate(coded)]
        checks = [block_check(id, number, block) for number, block in enumerate(stored)]
        index = self._sealed(self._build_index([len(block) for block in stored], checks), index_context(id))
        header = HEADER.pack(MAGIC, READ_VERSION, WRITE_VERSION, SEALED if self._seal else 0)
        start = len(header) + sum(map(len, stored))
        trailer = TRAILER.pack(header, id, len(self._records), start, len(index), check(index))
        trailer += check(trailer, BLOCK_CHECK_SIZE)
        return Built(
            id=id.hex(),
            data=b"".join([header, *stored, index, trailer]),
            index=len(index) + len(trailer),
            count=len(self._records),
            first=self._addresses[0].namespace,
            last=self._addresses[-1].namespace,
            soonest=min((record.expires for record in self._records if record.expires is not None), default=None),
            codes=sum(1 for record in self._records if record.code),
        )

    def _most(self, number: int) -> int:
        """Raw bytes of a block, at most."""
        return self._primer_size if self._primer_size and number <= 0 else self._block_size

    @property
    def _primes(self) -> bool:
        """Whether the others are to follow the first block."""
        return self._primer_size > 0 and self._blocks[0].raw <= self._primer_size

    def _code(self, block: _Block, after: Sequence[tuple[str, bytes]]) -> bytes:
        return block.coded or self._coder.encode(block.blobs, after)

    def _note(self, record: Record) -> None:
        at = address(record.namespace, record.key)
        if self._addresses and at <= self._addresses[-1]:
            raise ValueError("records of an archive come in the order of their addresses")
        numbers = (record.created, record.updated, record.expires or 0, record.ttl or 0)
        if any(abs(n) >= VALUE_MOST >> 3 for n in numbers):
            raise PolicyError(f"a time of record {record.key!r} is out of range"[:200])
        if max(len(record.meta), len(record.code)) > FIELD_MOST:
            raise PolicyError(f"metadata and code of a record have at most {FIELD_MOST} bytes each")
        if record.fidelity not in FIDELITIES:
            raise PolicyError(f"fidelity {record.fidelity!r} is neither lossless nor semantic")
        self._records.append(record)
        self._addresses.append(at)
        self._index += len(at.namespace) + _index_size(record, at)

    def _sealed(self, data: bytes, context: bytes) -> bytes:
        return self._seal.seal(data, context) if self._seal else data

    def _build_index(self, lengths: list[int], checks: list[bytes]) -> bytes:
        classes: dict[tuple[str, str], int] = {}
        kinds = [classes.setdefault((r.cls, r.fidelity), len(classes)) for r in self._records]
        spaces: dict[bytes, int] = {}
        for at in self._addresses:
            spaces[at.namespace] = spaces.get(at.namespace, 0) + 1
        starts = self._sections()
        ranges = list(zip(starts, [*starts[1:], len(self._records)], strict=True))
        sections = [_section(self._records[a:b], self._addresses[a:b], kinds[a:b]) for a, b in ranges]
        head = bytearray()
        put_texts(head, [self._coder.id.encode()])
        put_number(head, len(classes))
        put_texts(head, [bytes([FIDELITIES.index(fidelity)]) + cls.encode() for cls, fidelity in classes])
        put_number(head, len(spaces))
        put_sorted(head, list(spaces))
        put_numbers(head, list(spaces.values()))
        put_number(head, len(self._blocks))
        put_numbers(head, lengths)
        put_numbers(head, [block.count for block in self._blocks])
        put_numbers(head, [block.raw for block in self._blocks])
        put_packed(head, b"".join(checks))
        put_number(head, len(sections))
        put_numbers(head, [b - a for a, b in ranges])
        put_numbers(head, [len(section) for section in sections])
        put_keys(head, [self._addresses[a].key for a in starts])
        out = bytearray()
        put_number(out, len(head))
        return bytes(out + head) + b"".join(sections)

    def _sections(self) -> list[int]:
        """The first record of each section."""
        starts: list[int] = []
        size = 0
        for i, (record, at) in enumerate(zip(self._records, self._addresses, strict=True)):
            if not starts or i - starts[-1] >= SECTION_RECORDS or size >= SECTION_SIZE:
                starts.append(i)
                size = 0
            size += _index_size(record, at)
        return starts


def _index_size(record: Record, at: Address) -> int:
    return len(at.key) + len(record.meta) + len(record.code)


def _section(records: Sequence[Record], addresses: Sequence[Address], kinds: Sequence[int]) -> bytes:
    out = bytearray()
    put_keys(out, [at.key for at in addresses])
    put_numbers(out, kinds)
    put_numbers(out, [r.created for r in records])
    put_numbers(out, [r.updated - r.created for r in records])
    put_numbers(out, [0 if r.ttl is None else _signed(r.ttl) + 1 for r in records])
    put_numbers(out, [0 if r.expires is None else _signed(r.expires - r.updated - (r.ttl or 0)) + 1 for r in records])
    put_texts(out, [r.meta for r in records])
    put_texts(out, [r.code for r in records])
    return bytes(out)


def _signed(n: int) -> int:
    """0, -1, 1, -2 ... as 0, 1, 2, 3 ..."""
    return n << 1 if n >= 0 else (-n << 1) - 1


__all__ = ["BLOCK_SIZE", "PRIMER_SIZE", "Built", "Writer", "raw_size"]
