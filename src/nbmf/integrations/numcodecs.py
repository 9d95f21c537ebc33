"""A numcodecs codec, found by its id "nbmf" wherever NBMF is installed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from nbmf.codec.codec import Codec
from nbmf.errors import PolicyError
from nbmf.integrations import MissingExtra
from nbmf.integrations.blobs import NEURAL_MAX, blob_of, bytes_of

try:
    from numcodecs.abc import Codec as Numcodec  # type: ignore[import-untyped]
    from numcodecs.compat import ensure_contiguous_ndarray, ndarray_copy  # type: ignore[import-untyped]
except ImportError:
    raise MissingExtra("numcodecs", "numcodecs") from None


@lru_cache(maxsize=16)
def _codec(domain: str | None) -> Codec:
    return Codec(domain=domain)


class NBMF(Numcodec):  # type: ignore[misc]
    """Chunks as self-describing blobs. For texts and other records in bytes: numbers are better off with other codecs.

    `domain` is a domain pack's name or path (.nbp). Chunks of more than `neural_max` bytes are left to zstd. A chunk
    has at most 64 MiB. Raises NbmfError, and TypeError or ValueError for what is no contiguous buffer.
    """

    codec_id = "nbmf"

    def __init__(self, domain: str | None = None, neural_max: int = NEURAL_MAX) -> None:
        if type(neural_max) is not int or neural_max < 0:
            raise PolicyError(f"neural_max is a number of bytes, not {neural_max!r}"[:200])
        self.domain = domain
        self.neural_max = neural_max

    def encode(self, buf: Any) -> bytes:
        """The blob of a contiguous buffer's bytes."""
        data = ensure_contiguous_ndarray(buf).tobytes()
        return blob_of(_codec(self.domain), data, self.neural_max)

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The bytes in a blob, in `out` if that is given, which must be of the right size."""
        blob = ensure_contiguous_ndarray(buf).tobytes()
        if out is not None:
            out = ensure_contiguous_ndarray(out)
        return ndarray_copy(bytes_of(_codec(self.domain), blob), out)


__all__ = ["NBMF"]
