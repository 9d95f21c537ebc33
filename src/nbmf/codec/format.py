"""The blob: one header byte, a check, and a payload. docs/spec/record.md is the specification.

    bare              header(1)  check(2)         payload
    self-describing   header(1)  check(4) [id(4)] payload        id only when the method is neural

| header bits | meaning                                                                                  |
|-------------|------------------------------------------------------------------------------------------|
| 0-1         | method: 0 stored, 1 zstd, 2 neural, 3 neural without the container's pack (bare only)    |
| 2-3         | value type: 0 text, 1 JSON, 2 bytes, 3 vector                                            |
| 4           | profile: 0 fast, 1 dense; 0 unless neural                                                |
| 5           | self-describing                                                                          |
| 6           | segmented; 0 unless neural                                                               |
| 7           | 0; 1 is a future version                                                                 |

Where the value type is 3 and the method 0 or 1, bit 4 marks an array's payload (vector.py): method 0 without, 1 with
the pack's transform, whose id a self-describing one has; bit 6 then says that it is no one-dimensional float32 array.

No blob starts with "{" (0x7B: its method is 3), so JSON text and blobs are told apart by one byte.
"""

from __future__ import annotations

import threading
import zlib
from typing import Final, NamedTuple

import zstandard

from nbmf.errors import CorruptRecord, FormatError, OutputLimit

STORED: Final = 0
ZSTD: Final = 1
NEURAL: Final = 2
PLAIN: Final = 3  # neural by the model alone, in a bare blob of a codec that has a pack
ARRAY: Final = 4  # floats by the array coder, in the header the value type 3, method 0 and bit 4
PACKED: Final = 5  # ... with the pack's transform, method 1
# The name of each method, by its number.
METHODS: Final = ("stored", "zstd", "neural", "neural without the pack", "array", "array with the pack")

FAST: Final = 0
DENSE: Final = 1
PROFILES: Final = ("fast", "dense")

SEGMENT_SIZE: Final = 1 << 18  # raw bytes of every neural segment but the last, which has 1 to SEGMENT_SIZE
BARE_FRAMING: Final = 3  # bytes
SELF_FRAMING: Final = 5  # bytes, without the id
ID_SIZE: Final = 4  # bytes
VECTOR_LEAST: Final = 256  # bytes of a vector from which on the array coder is tried: under it framing takes the gain

# Measured on 6,711 agent records: level 3 takes 6 us for 200 bytes and level 19 takes 19 us, for 3 % smaller frames,
# which lose to the neural method all the same.
ZSTD_LEVEL: Final = 3
ZSTD_MAX_WINDOW: Final = 0x68  # greatest window descriptor byte: 8 MiB, so a decoder's memory is bounded
ZSTD_FLOOR_RUN: Final = 6  # bytes of the smallest frame of one repeated byte that is smaller than its raw bytes
ZSTD_FLOOR: Final = 10  # ... of any other raw bytes; see zstd_floor

_SELF_DESCRIBING: Final = 1 << 5
_SEGMENTED: Final = 1 << 6
_OTHER_ARRAY: Final = 1 << 6  # of the array methods: the value is no vector
_ARRAYS: Final = 1 << 4 | 3 << 2  # the array methods, with method 0 or 1
_VECTOR_TYPE: Final = 3
_ARRAY_TYPE: Final = 4
_FUTURE: Final = 1 << 7
_TYPE_CRC: Final = tuple(zlib.crc32(bytes([value_type])) for value_type in range(5))
_ZSTD_BLOCK: Final = 1 << 17  # bytes; greatest content of a zstd block, whatever the window
_CHUNK: Final = 1 << 16  # bytes


class Blob(NamedTuple):
    """A blob taken apart. `check` has 16 bits when bare, 32 when not; `id` is empty where the blob has none."""

    method: int
    value_type: int
    profile: int
    segmented: bool
    self_describing: bool
    check: int
    id: bytes
    payload: bytes


def crc(value_type: int, raw: bytes) -> int:
    """CRC-32 of the type number as one byte, then `raw`."""
    return zlib.crc32(raw, _TYPE_CRC[value_type])


def fold(crc32: int) -> int:
    """The 16-bit check of a bare blob: the halves of the CRC-32, xored."""
    return (crc32 ^ crc32 >> 16) & 0xFFFF


def build(
    method: int,
    value_type: int,
    crc32: int,
    payload: bytes,
    *,
    bare: bool,
    profile: int = FAST,
    segmented: bool = False,
    id: bytes = b"",
) -> bytes:
    """The blob of a payload. `id` (4 bytes) is written only into a self-describing blob, neural or of method PACKED."""
    if method >= ARRAY:
        header = method - ARRAY | _ARRAYS | _OTHER_ARRAY * (value_type == _ARRAY_TYPE)
    else:
        header = method | value_type << 2 | profile << 4 | segmented << 6
    if bare:
        return b"%c%b%b" % (header, fold(crc32).to_bytes(2, "little"), payload)
    return b"%c%b%b%b" % (
        header | _SELF_DESCRIBING,
        crc32.to_bytes(4, "little"),
        id if method in (NEURAL, PACKED) else b"",
        payload,
    )


def parse(blob: bytes, *, bare: bool) -> Blob:
    """Takes a blob apart. Raises FormatError when it is none, is of a future version, or is not `bare` as said."""
    if type(blob) is not bytes:
        if not isinstance(blob, (bytes, bytearray, memoryview)):
            raise FormatError(f"a blob is bytes, not {type(blob).__name__}")
        blob = bytes(blob)
    if not blob:
        raise FormatError("an empty blob")
    header = blob[0]
    method = header & 3
    if header & _FUTURE:
        raise FormatError(f"header byte {header:#04x}: a blob of a later version")
    if method == PLAIN and header & _SELF_DESCRIBING:
        raise FormatError(f"header byte {header:#04x}: reserved method 3")
    value_type = header >> 2 & 3
    profile = header >> 4 & 1
    segmented = bool(header & _SEGMENTED)
    if method < NEURAL and header & _ARRAYS == _ARRAYS:
        method += ARRAY
        value_type = _ARRAY_TYPE if header & _OTHER_ARRAY else _VECTOR_TYPE
        profile, segmented = 0, False
    elif method < NEURAL and (profile or segmented):
        raise FormatError(f"header byte {header:#04x}: profile and segments belong to the neural method only")
    if bool(header & _SELF_DESCRIBING) == bare:
        raise FormatError("the blob is self-describing, not bare" if bare else "the blob is bare, not self-describing")
    start = BARE_FRAMING if bare else SELF_FRAMING + (ID_SIZE if method in (NEURAL, PACKED) else 0)
    if len(blob) < start:
        raise FormatError(f"a blob of {len(blob)} bytes, when its header alone takes {start}")
    check_end = BARE_FRAMING if bare else SELF_FRAMING
    check = int.from_bytes(blob[1:check_end], "little")
    return Blob(method, value_type, profile, segmented, not bare, check, blob[check_end:start], blob[start:])


def is_array(blob: bytes) -> bool:
    """Whether a bare blob is of the array methods: of floats that may be kept within a bound, so that it is moved as it
    is. Without a pack it is read by any codec.
    """
    return blob[:1] != b"" and blob[0] & ~_OTHER_ARRAY & ~1 == _ARRAYS


def is_packed(blob: bytes) -> bool:
    """Whether a bare blob is an array's that only the pack it was coded with can read."""
    return is_array(blob) and bool(blob[0] & 1)


def verify(blob: Blob, raw: bytes) -> None:
    """Raises CorruptRecord unless `raw` has the blob's check."""
    found = crc(blob.value_type, raw)
    if blob.check != (found if blob.self_describing else fold(found)):
        raise CorruptRecord("the check is wrong: the blob is damaged, or was made with another model or pack")


# -- segments ----------------------------------------------------------------------------------------------------------


def split_raw(raw: bytes) -> list[bytes]:
    """`raw` in segments. More than one makes the blob segmented."""
    return [raw[start : start + SEGMENT_SIZE] for start in range(0, len(raw), SEGMENT_SIZE)]


def join_segments(payloads: list[bytes]) -> bytes:
    """For each segment its payload's length as LEB128, then the payload."""
    out: list[bytes] = []
    for payload in payloads:
        length = len(payload)
        while length > 0x7F:
            out.append(bytes([length & 0x7F | 0x80]))
            length >>= 7
        out.append(bytes([length]))
        out.append(payload)
    return b"".join(out)


def split_segments(payload: bytes, max_out: int) -> list[bytes]:
    """The payloads of the segments, two or more. Raises CorruptRecord, or OutputLimit when they must pass `max_out`."""
    most = (max_out + SEGMENT_SIZE - 1) // SEGMENT_SIZE
    out: list[bytes] = []
    position = 0
    while position < len(payload):
        if len(out) >= most:
            raise OutputLimit(f"the value is larger than {max_out} bytes")
        length = shift = 0
        while True:
            # Four bytes reach 2**28, over any length; the last byte of a longer number is not zero.
            if position == len(payload) or shift == 28:
                raise CorruptRecord("a segment's length is wrong")
            byte = payload[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if (byte == 0 and shift > 7) or length > len(payload) - position:
            raise CorruptRecord("a segment's length is wrong")
        out.append(payload[position : position + length])
        position += length
    if len(out) < 2:
        raise CorruptRecord("a segmented blob of fewer than two segments")
    return out


def join_raw(segments: list[bytes]) -> bytes:
    """The raw bytes of decoded segments. Raises CorruptRecord unless each has the size it must have."""
    if any(len(segment) != SEGMENT_SIZE for segment in segments[:-1]) or not segments[-1]:
        raise CorruptRecord("a segment's size is wrong")
    return b"".join(segments)


# -- zstd --------------------------------------------------------------------------------------------------------------


class _Zstd(threading.local):
    """zstd's contexts are costly to make and belong to one thread."""

    def __init__(self) -> None:
        form = zstandard.FORMAT_ZSTD1_MAGICLESS
        self.compress = zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters(
                compression_level=ZSTD_LEVEL,
                format=form,
                write_content_size=False,
                write_checksum=False,
                write_dict_id=False,
            )
        ).compress
        self.decompressor = zstandard.ZstdDecompressor(format=form, max_window_size=1 << 23)


_zstd = _Zstd()


def zstd_floor(raw: bytes) -> int:
    """A lower bound, in bytes, on every zstd frame of non-empty `raw` that is smaller than `raw`.

    A frame has a 2-byte header (descriptor, window) and blocks of a 3-byte header and content. A raw block is larger
    than `raw`. One run-length block (6 in all) gives one repeated byte. Anything else takes two blocks (2+4+4), or one
    compressed block: literals (a header byte and the two distinct bytes there must be, or 3+2+1 with a Huffman tree), a
    byte of sequence count and, unless it is 0, a byte of modes and one of bits or more: 2+3+3+1+1 or more.
    """
    return ZSTD_FLOOR_RUN if raw.count(raw[0]) == len(raw) else ZSTD_FLOOR


def zstd_compress(raw: bytes) -> bytes:
    """One magicless frame, without content size, checksum and dictionary, at ZSTD_LEVEL."""
    return _zstd.compress(raw)


def zstd_decompress(payload: bytes, max_out: int) -> bytes:
    """The content of exactly one frame as above. Raises CorruptRecord, or OutputLimit over `max_out` bytes.

    The content's size is not stated. Where its bound passes the cap, a pass that keeps nothing finds the size first.
    """
    size = _content_bound(payload)
    decompressor = _zstd.decompressor
    try:
        if size > max_out:
            size = 0
            with decompressor.stream_reader(payload, read_size=_CHUNK) as reader:
                while chunk := reader.read(_CHUNK):
                    size += len(chunk)
                    if size > max_out:
                        raise OutputLimit(f"the value is larger than {max_out} bytes")
        return decompressor.decompress(payload, max_output_size=max(size, 1))
    except zstandard.ZstdError as error:
        raise CorruptRecord(f"the zstd frame is invalid: {error}") from None


def _content_bound(payload: bytes) -> int:
    """An upper bound, in bytes, on the content of the frame, from its block headers.

    Raises CorruptRecord unless the blocks end exactly where `payload` does, which the library does not check.
    """
    if len(payload) < 2 or payload[0] != 0 or payload[1] > ZSTD_MAX_WINDOW:
        raise CorruptRecord("the zstd frame's header is not one a blob may have")
    base = 1 << 10 + (payload[1] >> 3)
    block_size = min(base + (base >> 3) * (payload[1] & 7), _ZSTD_BLOCK)
    bound = 0
    at = 2
    last = False
    while not last:
        header = int.from_bytes(payload[at : at + 3], "little")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3  # 0 raw, 1 run-length, 2 compressed
        at += 3 + (1 if kind == 1 else size)
        if at > len(payload) or kind == 3 or size > block_size:
            raise CorruptRecord("a block of the zstd frame is invalid or cut short")
        bound += block_size if kind == 2 else size
    if at != len(payload):
        raise CorruptRecord("bytes after the zstd frame")
    return bound
