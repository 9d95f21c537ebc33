"""The audit ledger: an append-only chain of hashes that tells whether a store's history was changed afterwards.

docs/spec/ledger.md is the format. One entry for every batch that writes: sequence number, time, and for each operation
keyed hashes of namespace, key and content. The keys are the tenants' own, so a shredded tenant's hashes mean nothing.
`Audited` puts a ledger before any tier: the entry is on the medium before the batch is committed, so nothing is ever in
the store that the ledger does not know.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import secrets
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final

from nbmf.errors import CorruptRecord, NbmfError, PolicyError, StoreError
from nbmf.store.base import Delete, Expire, Fault, Forget, Namespace, Op, Put, Record, Tier, check_address
from nbmf.store.files import FileLock, store_error, sync_directory
from nbmf.store.keys import Keyring

BATCH, VOID, DOUBT = range(3)  # kinds of entries
PUT, DELETE, FORGET, FORGET_ALL, EXPIRE = range(1, 6)  # kinds of operations
CONDITIONAL: Final = 0x10  # flags of an operation: it had to find a certain blob
SAME_NAMESPACE: Final = 0x20  # its namespace is that of the operation before, and not written again

_MAGIC: Final = b"NBML\x01\0\0\0"
_ID: Final = 16
_NAMED: Final = len(_MAGIC) + _ID  # bytes of the header that the chain starts from
_SETTLED: Final = struct.Struct("<QQ32s")  # end of the last settled entry, its sequence number, its hash
_HEADER: Final = _NAMED + _SETTLED.size
_NS, _KEY, _CONTENT, _CHECK = 8, 12, 16, 16  # bytes of the hashes
_TIME: Final = 6
_VARINT: Final = 10  # bytes at most


@dataclass(frozen=True, slots=True)
class Head:
    """The last entry and the hash of the chain up to it: what to keep elsewhere, to tell a ledger cut or made anew."""

    sequence: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash.hex()}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Raises PolicyError: no head."""
        sequence, _, digits = text.strip().partition(":")
        with contextlib.suppress(ValueError):
            if sequence.isascii() and sequence.isdigit() and len(hashed := bytes.fromhex(digits)) == 32:
                return cls(int(sequence), hashed)
        raise PolicyError(f"a ledger's head is sequence:hash, not {text!r}"[:200])


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of an entry; hashes that its kind has not are b""."""

    kind: int
    conditional: bool = False
    namespace: bytes = b""  # 8 bytes
    key: bytes = b""  # 12 bytes, of namespace and key
    content: bytes = b""  # 16 bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """`time` is milliseconds since the Unix epoch. `of` is the entry that a VOID or DOUBT is about.

    A VOID's `places` are the operations of that entry that did not happen, none named: all. After a DOUBT it is not
    known whether the entry's batch happened: the process ended, or the store failed, in between.
    """

    sequence: int
    time: int
    kind: int
    operations: tuple[Operation, ...] = ()
    of: int = 0
    places: tuple[int, ...] = ()


class _Bad(Exception):
    """Why an entry is none. `last`: nothing follows it, so that a write which was not finished looks the same."""

    def __init__(self, what: str, last: bool = False) -> None:
        super().__init__(what)
        self.last = last


class Ledger:
    """The ledger file. Thread-safe, and for several processes; one appends at a time."""

    def __init__(self, path: str | os.PathLike[str], keys: Keyring) -> None:
        """Opens it, or makes an empty one. Raises StoreError."""
        self.path = Path(path)
        self._keys = keys
        self.lock = FileLock(self.path.with_name(self.path.name + ".lock"))
        with self.lock.held(), self._file() as file:
            if not any(_read(file, _HEADER, 0)):
                self._make(file)
            named = _read(file, _NAMED, 0)
            if len(named) < _NAMED or not named.startswith(_MAGIC):
                raise StoreError(f"{self.path} is not a ledger of this version")
            self._end, self._sequence, self._hash, self._last = _HEADER, 0, _chain(b"", named), VOID
            end, sequence, hashed = _settled(file)
            # The settled entry saves reading what is before it, if it is where the header says.
            if sequence and _HEADER < end <= _size(file) and _read(file, _CHECK, end - _CHECK) == hashed[:_CHECK]:
                self._end, self._sequence, self._hash = end, sequence, hashed

    # -- writing -------------------------------------------------------------------------------------------------------

    def append(self, operations: Sequence[Operation]) -> int:
        """Adds a batch's entry, durably; its sequence number. Hold `lock` until it is settled.

        If the entry before was never settled, a DOUBT comes first. Raises StoreError, CorruptRecord.
        """
        with self._file() as file:
            self._catch_up(file)
            if self._last == BATCH and self._sequence > _settled(file)[1]:
                self._write(file, DOUBT, _varint(self._sequence))
            self._write(file, BATCH, _pack(operations))
            os.fsync(file.fileno())
            return self._sequence

    def settle(self, doubt: bool = False, void: Sequence[int] | None = None) -> None:
        """Notes that the last entry's batch is over, under the same hold of `lock`.

        `void` are the operations that did not happen, [] for all; with `doubt` it is not known what happened.
        """
        with self._file() as file:
            if doubt:
                self._write(file, DOUBT, _varint(self._sequence))
            elif void is not None:
                self._write(file, VOID, b"".join(map(_varint, (self._sequence, len(void), *void))))
            if doubt or void is not None:
                os.fsync(file.fileno())
            _put(file, _SETTLED.pack(self._end, self._sequence, self._hash), _NAMED)

    def hashed(self, ops: Sequence[Op]) -> list[Operation]:
        """What the ledger keeps of the operations that write; a put makes its tenant's key if there is none."""
        out = []
        for op in ops:
            match op:
                case Put(record, expected):
                    secret = self.secret(record.namespace[0], make=True)
                    key = key_hash(secret, record.namespace, record.key)
                    namespace = namespace_hash(secret, record.namespace)
                    out.append(Operation(PUT, expected is not None, namespace, key, content_hash(secret, record)))
                case Delete():
                    secret = self.secret(op.namespace[0])
                    key = key_hash(secret, op.namespace, op.key)
                    namespace = namespace_hash(secret, op.namespace)
                    out.append(Operation(DELETE, op.expected is not None, namespace, key))
                case Forget(()):
                    out.append(Operation(FORGET_ALL))
                case Forget(prefix):
                    out.append(Operation(FORGET, namespace=namespace_hash(self.secret(prefix[0]), prefix)))
                case Expire():
                    out.append(Operation(EXPIRE))
        return out

    def secret(self, tenant: str, make: bool = False) -> bytes:
        """What the tenant's hashes are keyed with; b"" for a tenant without key: it has no records."""
        key = self._keys.data_key(tenant, make=make)
        return b"" if key is None else key.derived("ledger")

    def _write(self, file: FileIO, kind: int, rest: bytes) -> None:
        sequence = self._sequence + 1
        moment = max(0, time.time_ns() // 1_000_000).to_bytes(_TIME, "little")
        body = bytes([kind]) + _varint(sequence) + moment + rest
        hashed = _chain(self._hash, body)
        raw = _varint(len(body)) + body + hashed[:_CHECK]
        try:
            if _put(file, raw, self._end) < len(raw):
                raise StoreError(f"{self.path} cannot grow: the disk is full")
        except BaseException:
            file.truncate(self._end)
            raise
        self._end, self._sequence, self._hash, self._last = self._end + len(raw), sequence, hashed, kind

    def _make(self, file: FileIO) -> None:
        named = _MAGIC + secrets.token_bytes(_ID)
        _put(file, named + _SETTLED.pack(_HEADER, 0, _chain(b"", named)), 0)
        os.fsync(file.fileno())
        sync_directory(self.path.parent)

    @contextlib.contextmanager
    def _file(self) -> Iterator[FileIO]:
        try:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
            with FileIO(self.path, "r+", opener=lambda path, _: os.open(path, flags, 0o600)) as file:
                yield file
        except OSError as error:
            raise store_error(self.path, error) from error

    # -- reading -------------------------------------------------------------------------------------------------------

    def head(self) -> Head:
        """The last entry's; sequence 0 of an empty ledger."""
        with self.lock.held(), self._file() as file:
            self._catch_up(file)
            return Head(self._sequence, self._hash)

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """All entries with a sequence number over `after`, verified on the way. Raises CorruptRecord at a bad one."""
        with self._image() as image:
            for found in self._walk(image, _HEADER, 0, _chain(b"", bytes(image[:_NAMED]))):
                if isinstance(found, Fault):
                    raise CorruptRecord(f"{self.path}: {found.where} {found.what}")
                if found[0].sequence > after:
                    yield found[0]

    def verify(self, anchor: Head | None = None) -> Fault | None:
        """The first entry at fault: edited, removed, out of place, or cut off. None: the chain is whole.

        Whoever can write the file can make a whole chain anew; only an `anchor`, a head that was kept elsewhere, tells.
        """
        with self._image() as image:
            if bytes(image[: len(_MAGIC)]) != _MAGIC or len(image) < _HEADER:
                return Fault("the header", "is not that of a ledger of this version")
            sequence, hashed = 0, _chain(b"", bytes(image[:_NAMED]))
            settled_end, settled, settled_hash = _SETTLED.unpack_from(image, _NAMED)
            heads = {anchor.sequence: anchor.hash} if anchor else {}
            if heads.get(0, hashed) != hashed:
                return Fault("the header", "is that of another ledger")
            if settled == 0 and (settled_end, settled_hash) != (_HEADER, hashed):
                return Fault("the header", "does not fit an empty ledger")
            for found in self._walk(image, _HEADER, 0, hashed):
                if isinstance(found, Fault):
                    return found
                entry, end, hashed = found
                sequence = entry.sequence
                if heads.get(sequence, hashed) != hashed:
                    return Fault(f"entry {sequence}", "is not that of the head, nor is the history before it")
                if sequence == settled and (end, hashed) != (settled_end, settled_hash):
                    return Fault(f"entry {sequence}", "is not the one that the header calls settled")
            most = max(settled, anchor.sequence if anchor else 0)
            if sequence < most:
                return Fault(f"entry {sequence + 1}", f"is missing: the ledger was cut, and had {most}")
        return None

    def settled(self) -> int:
        """The sequence number of the last entry whose batch is known to be over."""
        with self._file() as file:
            return _settled(file)[1]

    def size(self) -> int:
        """Bytes of the file."""
        return os.stat(self.path).st_size

    @contextlib.contextmanager
    def _image(self) -> Iterator[mmap.mmap]:
        """The file as it is between two batches."""
        with self.lock.held(), self._file() as file:
            with contextlib.suppress(CorruptRecord):
                self._catch_up(file)
            image = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with image:
            yield image

    def _walk(
        self, image: mmap.mmap | bytes, at: int, sequence: int, hashed: bytes
    ) -> Iterator[tuple[Entry, int, bytes] | Fault]:
        """Every entry from `at` on, where it ends, and its hash; a fault comes last. `sequence` is the one before."""
        while at < len(image):
            sequence += 1
            try:
                entry, at, hashed = _entry(image, at, sequence, hashed)
            except _Bad as bad:
                yield Fault(f"entry {sequence}", str(bad))
                return
            yield entry, at, hashed

    def _catch_up(self, file: FileIO) -> None:
        """Reads what others have appended; `lock` is held. Raises CorruptRecord.

        What a crash left unfinished at the end is cut off: its batch was never begun.
        """
        settled = _settled(file)[1]
        image = _read(file, max(0, _size(file) - self._end), self._end)
        at = 0
        while at < len(image):
            try:
                entry, end, hashed = _entry(image, at, self._sequence + 1, self._hash)
            except _Bad as bad:
                if not (bad.last or not any(image[at:])) or self._sequence < settled:
                    raise CorruptRecord(f"{self.path}: entry {self._sequence + 1} {bad}") from None
                file.truncate(self._end)
                os.fsync(file.fileno())
                break
            self._end, self._sequence, self._hash, self._last = self._end + end - at, entry.sequence, hashed, entry.kind
            at = end
        if self._sequence < settled or _size(file) < self._end:
            raise CorruptRecord(f"{self.path} was cut: it had {max(settled, self._sequence)} entries")


class Audited(Tier):
    """A tier with a ledger before it. Batches that write go one at a time, over all processes.

    A crash between entry and commit leaves an entry that is not settled: the next batch, whoever writes it, follows it
    with a DOUBT. What was acknowledged is in the ledger, and in the store.
    """

    def __init__(self, tier: Tier, ledger: Ledger) -> None:
        self.tier = tier
        self.ledger = ledger

    def batch(self, ops: Sequence[Op]) -> list[Any]:
        places = [i for i, op in enumerate(ops) if isinstance(op, Put | Delete | Forget | Expire)]
        if not places:
            return self.tier.batch(ops)
        for op in ops:
            _check(op)
        with self.ledger.lock.held():
            operations = self.ledger.hashed(ops)
            self.ledger.append(operations)
            try:
                results = self.tier.batch(ops)
            except PolicyError:
                self.ledger.settle(void=[])
                raise
            except NbmfError:
                self.ledger.settle(doubt=True)
                raise
            void = [n for n, i in enumerate(places) if operations[n].conditional and not results[i]]
            self.ledger.settle(void=void or None)
        return results

    def version(self) -> int:
        return self.tier.version()

    def check(self) -> Iterator[Fault]:
        """The tier's faults, the ledger's first, and records that are not what the ledger last said of them."""
        yield from self.tier.check()
        if (fault := self.ledger.verify()) is not None:
            yield Fault(f"ledger, {fault.where}", fault.what)
            return
        told = _Told()
        told.read(self.ledger)
        suspects = [(record.namespace, record.key) for record in self.tier.scan() if self._unlike(told, record)]
        if suspects:
            with self.ledger.lock.held():
                told.read(self.ledger)
                for namespace, key in suspects:
                    record = self.tier.get(namespace, key, 0)
                    if record is not None and (what := self._unlike(told, record)):
                        yield Fault(f"{namespace!r} {key!r}", what)

    def _unlike(self, told: _Told, record: Record) -> str:
        secret = self.ledger.secret(record.namespace[0])
        key = key_hash(secret, record.namespace, record.key)
        if key not in told.content:
            return ""
        content = told.content[key]
        if content == content_hash(secret, record):
            return ""
        return "is there, and the ledger says it was deleted" if content is None else "is not what the ledger says"

    def compact(self) -> None:
        self.tier.compact()

    def sizes(self) -> dict[str, int]:
        return {**self.tier.sizes(), "ledger": self.ledger.size()}

    def close(self) -> None:
        self.tier.close()


class _Told:
    """What a ledger says of records, by key hash: the content hash, None once deleted; not there when in doubt."""

    def __init__(self) -> None:
        self.content: dict[bytes, bytes | None] = {}
        self._read = 0
        self._waiting: Entry | None = None

    def read(self, ledger: Ledger) -> None:
        """Reads on from where it stopped. An entry counts once the next tells that it is not about it.

        The last one is in doubt as long as it is not settled: its batch goes on, or its process ended in between.
        """
        settled = ledger.settled()
        for entry in ledger.entries(self._read):
            if entry.kind == BATCH:
                self._apply()
                self._waiting = entry
            elif self._waiting is not None and entry.of == self._waiting.sequence:
                self._apply(entry)
            self._read = entry.sequence
        last = self._waiting
        self._apply(Entry(0, 0, DOUBT) if last is not None and last.sequence > settled else None)

    def _apply(self, about: Entry | None = None) -> None:
        entry, self._waiting = self._waiting, None
        for place, operation in enumerate(entry.operations if entry else ()):
            if about is not None and about.kind == DOUBT:
                self.content.pop(operation.key, None)
            elif operation.key and (about is None or (about.places and place not in about.places)):
                self.content[operation.key] = operation.content or None


# -- hashes ------------------------------------------------------------------------------------------------------------


def namespace_hash(secret: bytes, namespace: Namespace) -> bytes:
    """8 bytes under the tenant's secret."""
    return _keyed(secret, b"nbmf ledger ns", _NS, *(segment.encode() for segment in namespace))


def key_hash(secret: bytes, namespace: Namespace, key: str) -> bytes:
    """12 bytes, of namespace and key."""
    return _keyed(secret, b"nbmf ledger key", _KEY, *(segment.encode() for segment in namespace), key.encode())


def content_hash(secret: bytes, record: Record) -> bytes:
    """16 bytes, of codec, class, fidelity, metadata and blob."""
    texts = (record.codec.encode(), record.cls.encode(), record.fidelity.encode())
    return _keyed(secret, b"nbmf ledger blob", _CONTENT, *texts, record.meta, record.blob)


def _keyed(secret: bytes, what: bytes, size: int, *parts: bytes) -> bytes:
    """BLAKE2b over the parts, each after its length (4 bytes, little-endian); zeros without a secret."""
    if not secret:
        return bytes(size)
    out = hashlib.blake2b(digest_size=size, key=secret, person=what)
    for part in parts:
        out.update(len(part).to_bytes(4, "little"))
        out.update(part)
    return out.digest()


def _chain(before: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(before + body, digest_size=32).digest()


# -- entries -----------------------------------------------------------------------------------------------------------


def _pack(operations: Sequence[Operation]) -> bytes:
    out = [_varint(len(operations))]
    before = b""
    for one in operations:
        same = bool(one.namespace) and one.namespace == before
        flags = (CONDITIONAL if one.conditional else 0) | (SAME_NAMESPACE if same else 0)
        out += [bytes([one.kind | flags]), b"" if same else one.namespace, one.key, one.content]
        before = one.namespace
    return b"".join(out)


def _entry(image: mmap.mmap | bytes, at: int, sequence: int, before: bytes) -> tuple[Entry, int, bytes]:
    """The entry at `at`, where it ends, and its hash. Raises _Bad."""
    try:
        size, at = _read_varint(image, at, len(image))
    except _Bad:
        raise _Bad("is cut off", last=len(image) - at < _VARINT) from None
    end = at + size + _CHECK
    if end > len(image):
        raise _Bad("is cut off", last=True)
    body = bytes(image[at : at + size])
    hashed = _chain(before, body)
    found, _ = _read_varint(body, 1, size)
    if found != sequence:
        raise _Bad(f"is missing or out of place: there is {found}", last=end == len(image))
    if image[end - _CHECK : end] != hashed[:_CHECK]:
        raise _Bad("was edited", last=end == len(image))
    return _unpack(body), end, hashed


def _unpack(body: bytes) -> Entry:
    kind, size = body[0], len(body)
    sequence, at = _read_varint(body, 1, size)
    moment, at = int.from_bytes(body[at : at + _TIME], "little"), at + _TIME
    operations: list[Operation] = []
    of, places = 0, []
    if kind == BATCH:
        count, at = _read_varint(body, at, size)
        namespace = b""
        for _ in range(min(count, size)):
            operation, at = _read_operation(body, at, namespace)
            namespace = operation.namespace
            operations.append(operation)
        if len(operations) != count:
            raise _Bad("has not the operations that it counts")
    elif kind in (VOID, DOUBT):
        of, at = _read_varint(body, at, size)
        count, at = _read_varint(body, at, size) if kind == VOID else (0, at)
        for _ in range(min(count, size)):
            place, at = _read_varint(body, at, size)
            places.append(place)
    else:
        raise _Bad(f"is of an unknown kind {kind}")
    if at != size:
        raise _Bad("is longer or shorter than it says")
    return Entry(sequence, moment, kind, tuple(operations), of, tuple(places))


def _read_operation(body: bytes, at: int, namespace: bytes) -> tuple[Operation, int]:
    if at >= len(body):
        raise _Bad("has not the operations that it counts")
    kind, flags = body[at] & 0x0F, body[at] & 0xF0
    if not PUT <= kind <= EXPIRE or flags & ~(CONDITIONAL | SAME_NAMESPACE):
        raise _Bad(f"has an operation of an unknown kind {body[at]}")
    at += 1
    named = kind in (PUT, DELETE, FORGET)
    if (flags & SAME_NAMESPACE and not (named and namespace)) or (flags & CONDITIONAL and kind not in (PUT, DELETE)):
        raise _Bad(f"has an operation with a flag that it cannot have: {kind | flags}")
    parts = []
    for size in (
        _NS if named and not flags & SAME_NAMESPACE else 0,
        _KEY if kind in (PUT, DELETE) else 0,
        _CONTENT if kind == PUT else 0,
    ):
        parts.append(body[at : at + size])
        at += size
    space = namespace if flags & SAME_NAMESPACE else parts[0]
    return Operation(kind, bool(flags & CONDITIONAL), space, parts[1], parts[2]), at


def _read(file: FileIO, size: int, at: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _put(file: FileIO, raw: bytes, at: int) -> int:
    file.seek(at)
    return file.write(raw)


def _size(file: FileIO) -> int:
    return os.fstat(file.fileno()).st_size


def _settled(file: FileIO) -> tuple[int, int, bytes]:
    """Of the last settled entry: where it ends, its sequence number, its hash."""
    raw = _read(file, _SETTLED.size, _NAMED)
    if len(raw) < _SETTLED.size:
        raise CorruptRecord(f"{file.name!s} was cut within its header")
    end, sequence, hashed = _SETTLED.unpack(raw)
    return end, sequence, hashed


def _varint(value: int) -> bytes:
    """LEB128: 7 bits a byte, the low ones first, the high bit set in all but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(raw: mmap.mmap | bytes, at: int, end: int) -> tuple[int, int]:
    """The number, in its shortest form, and where it ends. Raises _Bad."""
    value = 0
    for shift in range(0, 7 * _VARINT, 7):
        if at >= end:
            raise _Bad("has a number that is cut off")
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift and not byte:
                break
            return value, at
    raise _Bad("has a number that is not in its shortest form")


def _check(op: Op) -> None:
    match op:
        case Put(record):
            check_address(record.namespace, record.key)
        case Delete(namespace, key):
            check_address(namespace, key)
        case Forget(prefix) if prefix:
            check_address(prefix)


__all__ = [
    "Audited",
    "Entry",
    "Head",
    "Ledger",
    "Operation",
    "content_hash",
    "key_hash",
    "namespace_hash",
]
