"""A group coder for tests: blobs one after the other, in one zstd frame.

A block that follows others has their blobs as the frame's dictionary, and a check of them: it is read with no others.
"""

import zlib
from collections.abc import Callable, Sequence

import zstandard

from nbmf.errors import CorruptRecord
from nbmf.store.archive import Archive
from nbmf.store.columns import Reader, put_number

BLOCK_MOST = 64 << 20  # bytes of a block's blobs
ALONE = b"\1"
FOLLOWS = b"\2"
CHECK_SIZE = 4  # bytes


class ZstdCoder:
    id = "2d" * 32

    def encode(self, records: Sequence[tuple[str, bytes]], after: Sequence[tuple[str, bytes]] = ()) -> bytes:
        known = joined([blob for _, blob in after])
        compress = zstandard.ZstdCompressor(dict_data=dictionary(known), write_checksum=True).compress
        head = FOLLOWS + zlib.crc32(known).to_bytes(CHECK_SIZE, "little") if after else ALONE
        block = head + compress(joined([blob for _, blob in records]))
        assert self.decode(block, len(records), lambda: [blob for _, blob in after]) == [blob for _, blob in records]
        return block

    def decode(self, block: bytes, count: int, after: Callable[[], Sequence[bytes]] = list) -> list[bytes]:
        known, at = b"", 1
        if self.follows(block):
            known, at = joined(after()), 1 + CHECK_SIZE
            if block[1:at] != zlib.crc32(known).to_bytes(CHECK_SIZE, "little"):
                raise CorruptRecord("a block follows other records than these")
        elif block[:1] != ALONE:
            raise CorruptRecord("a block is of no known form")
        try:
            size = zstandard.frame_content_size(block[at:])
            if not 0 <= size <= BLOCK_MOST:
                raise CorruptRecord("a block's size is wrong")
            raw = zstandard.ZstdDecompressor(dict_data=dictionary(known)).decompress(block[at:])
        except zstandard.ZstdError as error:
            raise CorruptRecord(f"a block is invalid: {error}") from None
        reader = Reader(raw, BLOCK_MOST)
        return [reader.take(reader.number()) for _ in range(count)]

    def follows(self, block: bytes) -> bool:
        return block[:1] == FOLLOWS


def joined(blobs: Sequence[bytes]) -> bytes:
    out = bytearray()
    for blob in blobs:
        put_number(out, len(blob))
        out += blob
    return bytes(out)


def dictionary(known: bytes) -> zstandard.ZstdCompressionDict | None:
    return zstandard.ZstdCompressionDict(known, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if known else None


def coded(archive: Archive, data: bytes) -> list[bytes]:
    """What the coder wrote as each block of an archive."""
    return [
        archive.open_block(i, data[block.start : block.start + block.length]) for i, block in enumerate(archive.blocks)
    ]


def decoded(archive: Archive, data: bytes) -> list[bytes]:
    """The blob of each record of an archive."""
    out: list[bytes] = []
    for block, one in zip(archive.blocks, coded(archive, data), strict=True):
        first = out[: archive.blocks[0].records]
        out += ZstdCoder().decode(one, block.records, lambda known=first: known)  # type: ignore[misc]
    return out
