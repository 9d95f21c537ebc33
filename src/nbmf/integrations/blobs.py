"""Bytes of others as self-describing blobs."""

from __future__ import annotations

from typing import Final

from nbmf.codec import format
from nbmf.codec.codec import Codec
from nbmf.errors import FormatError

NEURAL_MAX: Final = 64 << 10  # bytes that the model codes unless told otherwise: about 60 ms of one core


def blob_of(codec: Codec, data: bytes, neural_max: int = NEURAL_MAX) -> bytes:
    """The blob of some bytes, by zstd alone where there are more than `neural_max`. Raises OutputLimit."""
    value_type, raw = codec.to_pair(data)
    if len(raw) <= neural_max:
        return codec.from_pair(value_type, raw)
    method, payload = format.STORED, raw
    if len(frame := format.zstd_compress(raw)) < len(raw):
        method, payload = format.ZSTD, frame
    return format.build(method, value_type, format.crc(value_type, raw), payload, bare=False)


def bytes_of(codec: Codec, blob: bytes) -> bytes:
    """The bytes in a blob. Raises FormatError (of no blob, and of one that holds another kind of value), CorruptRecord,
    UnknownModel, OutputLimit.
    """
    value = codec.decode(blob)
    if type(value) is not bytes:
        raise FormatError(f"the blob holds {type(value).__name__}, not bytes")
    return value


__all__ = ["NEURAL_MAX", "blob_of", "bytes_of"]
