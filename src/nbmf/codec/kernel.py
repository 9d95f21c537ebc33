"""Choice of the neural kernel: `_kernel` (C) or `reference` (NumPy), which give the same bytes and the same errors.

`NBMF_KERNEL=c|numpy` forces one; unset, C is used where it was built. The choice is made on the first use of `load` or
`backend` and holds for the process. Importing this module loads neither, so both may import it.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import Protocol, cast

from nbmf.errors import NbmfError, StreamError, StreamLimit

__all__ = ["Buffer", "Coder", "StreamError", "StreamLimit", "backend", "load"]

BACKENDS = {"c": "nbmf.codec._kernel", "numpy": "nbmf.codec.reference"}

Buffer = bytes | bytearray | memoryview  # what a model or pack is read through; an mmap goes in as a memoryview

backend: str  # "c" or "numpy"; computed by __getattr__ below


class Coder(Protocol):
    """A model, with or without a pack, ready to code. Thread-safe; holds no state between calls.

    `raw` is at most one segment (format.SEGMENT_SIZE bytes). `profile` is 0 (fast) or 1 (dense).
    Decoders raise StreamError on an invalid payload and StreamLimit when the output would pass `max_out` bytes.
    """

    def encode(self, raw: bytes, value_type: int, profile: int = 0) -> bytes:
        """The neural payload of `raw`. It ends by itself and carries no length."""

    def decode(self, payload: bytes, value_type: int, profile: int = 0, max_out: int = 1 << 18) -> bytes:
        """The raw bytes of `payload`; bytes after its end, beyond the decoder's reading ahead, are a StreamError."""

    def costs(self, raw: bytes, value_type: int, profile: int = 0) -> bytes:
        """Little-endian uint16 x (len(raw) + 1): the cost of each byte, then of the end symbol, in 1/256 bit."""

    def encode_many(self, raws: list[bytes], value_types: bytes, profile: int, threads: int) -> list[bytes]:
        """`encode` of each; `value_types[i]` is the type of `raws[i]`."""

    def decode_many(
        self, payloads: list[bytes], value_types: bytes, profile: int, threads: int, max_out: int = 1 << 18
    ) -> list[bytes]:
        """`decode` of each; `max_out` holds for each alone."""

    def encode_sequence(self, raws: list[bytes], value_types: bytes, profile: int, primed: int = 0) -> bytes:
        """One payload of records, at most a segment together, coded in turn: each knows those before it.

        The first `primed` are learned from and not coded: a decoder needs them too.
        """

    def decode_sequence(
        self,
        payload: bytes,
        value_types: bytes,
        profile: int,
        max_out: int = 1 << 18,
        primed: list[bytes] = [],  # noqa: B006
    ) -> list[bytes]:
        """The records that were coded, after the primed ones; types and `max_out` are of all together."""


class _Backend(Protocol):
    def load(self, model: Buffer, pack: Buffer | None) -> Coder: ...


@functools.cache
def _select() -> tuple[str, _Backend]:
    wanted = os.environ.get("NBMF_KERNEL", "")
    if wanted and wanted not in BACKENDS:
        raise NbmfError(f"NBMF_KERNEL is {wanted!r}; it may be c or numpy")
    name = wanted or "c"
    try:
        module = importlib.import_module(BACKENDS[name])
    except ImportError as error:
        if wanted:
            raise NbmfError(f"NBMF_KERNEL={wanted}, but that kernel cannot be loaded: {error}") from error
        name = "numpy"
        module = importlib.import_module(BACKENDS[name])
    return name, cast(_Backend, module)


def load(model: Buffer, pack: Buffer | None = None) -> Coder:
    """The coder of a verified model file's bytes and, if given, of a pack made for that model.

    The buffers stay referenced, not copied, for the coder's life. Raises FormatError when a section is unusable.
    """
    return _select()[1].load(model, pack)


def __getattr__(name: str) -> str:
    if name == "backend":
        return _select()[0]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
