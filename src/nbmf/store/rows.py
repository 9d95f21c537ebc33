"""How the warm tiers write addresses and small fields: short, exact, and in the order that prefixes need."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

from nbmf.errors import CorruptRecord
from nbmf.store.base import Namespace, Record

SUM_BITS: Final = 128  # of a digest, and of the sum of digests that seals a bucket
SUM_MASK: Final = (1 << SUM_BITS) - 1

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_HEX: Final = re.compile(r"[0-9a-f]+")
_HEX_DIGITS: Final = (24, 32, 40, 64)  # of keys that are written as bytes: ObjectIds, UUIDs without dashes, hashes
_HEX_SIZES: Final = tuple(digits // 2 + 1 for digits in _HEX_DIGITS)  # bytes, with the 0 before; none is UUID_SIZE
_UUID_SIZE: Final = 16  # bytes

_UPDATED: Final = 1  # bits of an extra's first byte: which fields follow
_TTL: Final = 2
_META: Final = 4

_EXPIRES: Final = 1  # bits of the digest's first byte: which times are there
_HAS_TTL: Final = 2
_DIGEST_HEAD: Final = struct.Struct("<B4q7I")


# -- addresses ---------------------------------------------------------------------------------------------------------


def pack_namespace(namespace: Namespace) -> bytes:
    """The path of a namespace: each segment's UTF-8 and a zero byte.

    Segments hold no U+0000, so the order of paths as bytes is that of namespaces as tuples, and the paths below a
    prefix are one range: see `path_range`.
    """
    return "".join([segment + "\0" for segment in namespace]).encode()


def unpack_namespace(path: bytes) -> Namespace:
    """Raises CorruptRecord when it is none."""
    try:
        *segments, rest = bytes(path).decode().split("\0")
    except (UnicodeDecodeError, TypeError, ValueError):
        raise CorruptRecord(f"a namespace's path is malformed: {path!r}"[:200]) from None
    if rest or not segments:
        raise CorruptRecord(f"a namespace's path is malformed: {path!r}"[:200])
    return tuple(segments)


def path_range(prefix: Namespace) -> tuple[bytes, bytes]:
    """(least, end): the paths in and below `prefix` are those from `least` on and before `end`."""
    if not prefix:
        return b"", b"\xff"  # no UTF-8 has that byte
    least = pack_namespace(prefix)
    return least, least[:-1] + b"\1"


def pack_key(key: str) -> bytes | str:
    """A key in fewest bytes: a lower-case UUID as 16, lower-case hex of usual lengths as a zero byte and its bytes."""
    size = len(key)
    if size == 36:
        if _UUID.fullmatch(key):
            return bytes.fromhex(key.replace("-", ""))
    elif size in _HEX_DIGITS and _HEX.fullmatch(key):
        return bytes.fromhex("00" + key)
    return key


def unpack_key(packed: bytes | str) -> str:
    """Raises CorruptRecord when it is none."""
    if isinstance(packed, str):
        return packed
    if isinstance(packed, bytes):
        if len(packed) == _UUID_SIZE:
            text = packed.hex()
            return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
        if len(packed) in _HEX_SIZES and packed[0] == 0:
            return packed[1:].hex()
    raise CorruptRecord(f"a key is malformed: {packed!r}"[:200])


def address(namespace: Namespace, key: str) -> str:
    """An address as messages show it."""
    return f"{'/'.join(namespace)}:{key}"


# -- fields that most records have not ---------------------------------------------------------------------------------


def pack_extra(updated: int, ttl: int | None, meta: bytes) -> bytes | None:
    """`updated` counts ms from created. None when all three are what they mostly are: 0, None and b""."""
    flags = (updated and _UPDATED) | (_TTL if ttl is not None else 0) | (_META if meta else 0)
    if not flags:
        return None
    out = bytearray([flags])
    if updated:
        _put_varint(out, updated << 1 if updated > 0 else -updated << 1 | 1)
    if ttl is not None:
        _put_varint(out, ttl << 1 if ttl >= 0 else -ttl << 1 | 1)
    return bytes(out) + meta


def unpack_extra(extra: bytes | None) -> tuple[int, int | None, bytes]:
    """(updated, ttl, meta). Raises CorruptRecord when it is none."""
    if extra is None:
        return 0, None, b""
    try:
        flags, at = extra[0], 1
        updated, ttl = 0, None
        if flags & _UPDATED:
            updated, at = _signed(extra, at)
        if flags & _TTL:
            ttl, at = _signed(extra, at)
        meta = extra[at:]
    except (IndexError, TypeError):
        raise CorruptRecord(f"a record's extra fields are malformed: {extra!r}"[:200]) from None
    if flags & ~(_UPDATED | _TTL | _META) or bool(meta) != bool(flags & _META):
        raise CorruptRecord(f"a record's extra fields are malformed: {extra!r}"[:200])
    return updated, ttl, meta


def _put_varint(out: bytearray, number: int) -> None:
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)


def _signed(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return -(number >> 1) if number & 1 else number >> 1, at


# -- seals -------------------------------------------------------------------------------------------------------------


class Seals:
    """What a transaction adds to the buckets of a store: how many records, and the sum of their digests.

    A record belongs to bucket `crc32(path, key) mod count`, `count` a power of two, so that a bucket of a smaller count
    is the union of some of a greater one. A bucket's seal is the sum of its records' digests mod 2**128: it does not
    depend on their order, and to take a record out is to subtract.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.rows: dict[int, int] = {}
        self.sums: dict[int, int] = {}

    def add(self, record: Record, sign: int = 1) -> None:
        """With `sign` -1, takes it out."""
        path, key = pack_namespace(record.namespace), record.key.encode()
        bucket = bucket_of(path, key, self.count)
        self.rows[bucket] = self.rows.get(bucket, 0) + sign
        self.sums[bucket] = self.sums.get(bucket, 0) + sign * digest(path, key, record) & SUM_MASK

    def changes(self) -> list[tuple[int, int, int]]:
        """(bucket, rows, sum) to add, by bucket; those that change nothing left out."""
        return [(b, self.rows[b], s) for b, s in sorted(self.sums.items()) if s or self.rows[b]]

    def folded(self, count: int) -> Seals:
        """The same, over fewer buckets."""
        out = Seals(count)
        for bucket, total in self.sums.items():
            at = bucket & count - 1
            out.rows[at] = out.rows.get(at, 0) + self.rows[bucket]
            out.sums[at] = out.sums.get(at, 0) + total & SUM_MASK
        return out


def bucket_of(path: bytes, key: bytes, count: int) -> int:
    return zlib.crc32(key, zlib.crc32(path)) & count - 1


def digest(path: bytes, key: bytes, record: Record) -> int:
    """128 bits of everything that a record says."""
    expires, ttl = record.expires, record.ttl
    codec, cls, fidelity = record.codec.encode(), record.cls.encode(), record.fidelity.encode()
    head = _DIGEST_HEAD.pack(
        (0 if expires is None else _EXPIRES) | (0 if ttl is None else _HAS_TTL),
        record.created,
        record.updated,
        expires or 0,
        ttl or 0,
        len(path),
        len(key),
        len(codec),
        len(cls),
        len(fidelity),
        len(record.meta),
        len(record.code),
    )
    whole = b"".join((head, path, key, codec, cls, fidelity, record.meta, record.code, record.blob))
    return int.from_bytes(blake2b(whole, digest_size=SUM_BITS // 8).digest(), "little")


def few(names: Iterable[str], most: int = 3) -> str:
    """The first few of many, in one line."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
