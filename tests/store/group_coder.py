"""A group coder for tests: blobs one after the other, in one zstd frame."""

from collections.abc import Sequence

import zstandard

from nbmf.errors import CorruptRecord
from nbmf.store.columns import Reader, put_number

BLOCK_MOST = 64 << 20  # bytes of a block's blobs


class ZstdCoder:
    id = "2d" * 32

    def encode(self, records: Sequence[tuple[str, bytes]]) -> bytes:
        out = bytearray()
        for _, blob in records:
            put_number(out, len(blob))
            out += blob
        block = zstandard.ZstdCompressor(level=19).compress(bytes(out))
        assert self.decode(block, len(records)) == [blob for _, blob in records]
        return block

    def decode(self, block: bytes, count: int) -> list[bytes]:
        try:
            size = zstandard.frame_content_size(block)
            if not 0 <= size <= BLOCK_MOST:
                raise CorruptRecord("a block's size is wrong")
            reader = Reader(zstandard.ZstdDecompressor().decompress(block), BLOCK_MOST)
        except zstandard.ZstdError as error:
            raise CorruptRecord(f"a block is invalid: {error}") from None
        return [reader.take(reader.number()) for _ in range(count)]
