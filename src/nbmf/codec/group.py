"""Groups: records of one owner coded one after the other, each knowing those before it. docs/spec/record.md, Sequences.

    1  profile(1)  runs of (value type(1), LEB128 count)  check(4)  stream      a sequence
    2  of each record: LEB128 length, bare blob                                 blobs
    3  as 1                                                                     a sequence that follows other records

Reading one takes the model (or pack) whose content id its archive keeps, how many records it holds, and for version 3
the records that it follows: those of another group, which stay known to writer and reader.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import Final

from nbmf.codec import format
from nbmf.codec.codec import Codec
from nbmf.codec.values import ARRAY
from nbmf.errors import CorruptRecord, FormatError, StreamError

SEQUENCE: Final = 1
BLOBS: Final = 2
PRIMED: Final = 3
RECORDS_MOST: Final = 1 << 16  # of one group


class NeuralGroups:
    """Codes records of stores in groups, with one codec. Thread-safe.

    `codec_of` gives the codec that reads bare blobs of a content id (hex); "" is a blob that needs none. What `encode`
    returns has been decoded and compared.
    """

    def __init__(self, codec: Codec, codec_of: Callable[[str], Codec]) -> None:
        self.codec = codec
        self.codec_of = codec_of
        self.id = codec.id

    def encode(self, records: Sequence[tuple[str, bytes]], after: Sequence[tuple[str, bytes]] = ()) -> bytes:
        """One group of the (content id, bare blob) of each record, coded as following those of `after`.

        Raises NbmfError for a blob that does not decode.
        """
        if not 0 < len(records) <= RECORDS_MOST:
            raise FormatError(f"a group holds 1 to {RECORDS_MOST} records, not {len(records)}")
        pairs, known = self._pairs(records), self._pairs(after)
        if any(value_type == ARRAY for value_type, _ in pairs) or any(format.is_array(blob) for _, blob in records):
            return self._kept(records, pairs)
        known = [pair for pair in known if pair[0] != ARRAY]
        if sum(len(raw) for _, raw in known + pairs) > format.SEGMENT_SIZE:
            known = []
        raws, types = [raw for _, raw in pairs], bytes(value_type for value_type, _ in pairs)
        if sum(map(len, raws)) <= format.SEGMENT_SIZE:
            stream = self.codec.coder.encode_sequence(
                [raw for _, raw in known] + raws,
                bytes(value_type for value_type, _ in known) + types,
                self.codec.profile,
                len(known),
            )
            head = bytes([PRIMED if known else SEQUENCE, self.codec.profile]) + _runs(types) + _crc(types, raws)
            if len(head) + len(stream) <= sum(map(len, raws)):
                group = head + stream
                if self._decode(group, len(raws), lambda: known) != pairs:
                    raise CorruptRecord("a group of records did not decode to them")
                return group
        blobs = [self.codec.from_pair(value_type, raw, bare=True) for value_type, raw in pairs]
        if [self.codec.raw(blob, bare=True) for blob in blobs] != pairs:
            raise CorruptRecord("a group of records did not decode to them")
        return bytes([BLOBS]) + b"".join(_number(len(blob)) + blob for blob in blobs)

    def _kept(self, records: Sequence[tuple[str, bytes]], pairs: list[tuple[int, bytes]]) -> bytes:
        """A group of blobs, for records among which there are arrays: what is coded within a bound stays as it is."""
        blobs = [
            blob
            if format.is_array(blob) and (not format.is_packed(blob) or id == self.codec.id)  # with this very pack
            else self.codec.from_pair(*pair, bare=True)
            for (id, blob), pair in zip(records, pairs, strict=True)
        ]
        if [self.codec.raw(blob, bare=True) for blob in blobs] != pairs:
            raise CorruptRecord("a group of records did not decode to them")
        return bytes([BLOBS]) + b"".join(_number(len(blob)) + blob for blob in blobs)

    def decode(self, group: bytes, count: int, after: Callable[[], Sequence[bytes]] = list) -> list[bytes]:
        """The records as bare blobs: of method `stored`, which any codec reads, save arrays, which stay as they are.

        Raises FormatError, CorruptRecord.

        `after` gives the blobs of the records that the group follows; it is asked only for a group that follows some.
        """
        if group[:1] == bytes([BLOBS]) and 0 < count <= RECORDS_MOST:
            blobs = _blobs(group, count)
            if any(map(format.is_array, blobs)):
                pairs = [self.codec.raw(blob, bare=True) for blob in blobs]
                return [
                    blob if format.is_array(blob) else _stored(*pair) for blob, pair in zip(blobs, pairs, strict=True)
                ]
        return [
            _stored(value_type, raw)
            for value_type, raw in self._decode(
                group, count, lambda: [self.codec.raw(blob, bare=True) for blob in after()]
            )
        ]

    @staticmethod
    def follows(group: bytes) -> bool:
        """Whether the group follows other records."""
        return group[:1] == bytes([PRIMED])

    def _pairs(self, records: Sequence[tuple[str, bytes]]) -> list[tuple[int, bytes]]:
        return [self.codec_of(id).raw(blob, bare=True) for id, blob in records]

    def _decode(
        self, group: bytes, count: int, after: Callable[[], list[tuple[int, bytes]]]
    ) -> list[tuple[int, bytes]]:
        if not group or group[0] not in (SEQUENCE, BLOBS, PRIMED):
            raise FormatError("no group of records, or one of a later version")
        if not 0 < count <= RECORDS_MOST:
            raise CorruptRecord(f"a group holds 1 to {RECORDS_MOST} records, not {count}")
        if group[0] == BLOBS:
            return [self.codec.raw(blob, bare=True) for blob in _blobs(group, count)]
        types, at = _types(group, count)
        if group[1] >= len(self.codec.model.profiles):
            raise FormatError(f"a group of profile {group[1]}, which this codec has not")
        known = after() if group[0] == PRIMED else []
        try:
            raws = self.codec.coder.decode_sequence(
                group[at + 4 :],
                bytes(value_type for value_type, _ in known) + types,
                group[1],
                format.SEGMENT_SIZE,
                [raw for _, raw in known],
            )
        except StreamError as error:
            raise CorruptRecord(f"group of records: {error}") from None
        if group[at : at + 4] != _crc(types, raws):
            raise CorruptRecord("a group's check is wrong: it is damaged, or was made with another model or pack")
        return list(zip(types, raws, strict=True))


def _stored(value_type: int, raw: bytes) -> bytes:
    return format.build(format.STORED, value_type, format.crc(value_type, raw), raw, bare=True)


def _number(n: int) -> bytes:
    """LEB128."""
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    """A LEB128 of at most five bytes, and the position after it."""
    n = 0
    for shift in range(0, 35, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        n |= (byte & 0x7F) << shift
        if byte < 0x80:
            return n, at
    raise CorruptRecord("a number in a group of records is cut short or too long")


def _runs(types: bytes) -> bytes:
    return b"".join(bytes([kind]) + _number(len(list(same))) for kind, same in itertools.groupby(types))


def _types(group: bytes, count: int) -> tuple[bytes, int]:
    """The value types of a sequence, and the position of its check."""
    out, at = b"", 2
    while len(out) < count:
        if at >= len(group) or group[at] > 3:
            raise CorruptRecord("a group's value types are wrong")
        n, after = _read_number(group, at + 1)
        if not 0 < n <= count - len(out):
            raise CorruptRecord("a group's value types are wrong")
        out += bytes([group[at]]) * n
        at = after
    if at + 4 > len(group):
        raise CorruptRecord("a group of records is cut short")
    return out, at


def _crc(types: bytes, raws: list[bytes]) -> bytes:
    check = zlib.crc32(types)
    for raw in raws:
        check = zlib.crc32(raw, zlib.crc32(_number(len(raw)), check))
    return check.to_bytes(4, "little")


def _blobs(group: bytes, count: int) -> list[bytes]:
    out, at = [], 1
    for _ in range(count):
        n, at = _read_number(group, at)
        if n > len(group) - at:
            raise CorruptRecord("a group of records is cut short")
        out.append(group[at : at + n])
        at += n
    if at != len(group):
        raise CorruptRecord("bytes after a group of records")
    return out
