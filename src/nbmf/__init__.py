"""NBMF: the memory store for AI agents whose records are encoded by a trained neural model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbmf.codec.codec import Codec, decode, encode
from nbmf.errors import (
    CorruptRecord,
    DataError,
    FormatError,
    NbmfError,
    OutputLimit,
    PolicyError,
    StoreError,
    UnknownModel,
    UnsupportedValue,
)

if TYPE_CHECKING:
    from nbmf.codec.bounds import Bound
    from nbmf.codec.numbers import Tolerance
    from nbmf.memory import Memory

__version__ = "0.1.0"

__all__ = [
    "Bound",
    "Codec",
    "CorruptRecord",
    "DataError",
    "FormatError",
    "Memory",
    "NbmfError",
    "OutputLimit",
    "PolicyError",
    "StoreError",
    "Tolerance",
    "UnknownModel",
    "UnsupportedValue",
    "adapt",
    "decode",
    "encode",
]


def adapt(
    values: Iterable[Any],
    out: str | Path,
    *,
    model: str = "base",
    size: int = 512 << 10,
    beside: Sequence[Any] | None = None,
) -> dict[str, Any]:
    """Learns a domain pack of at most `size` bytes from a user's own values and writes it to `out` (a path in .nbp).

    Arrays among them give transforms of vectors, on top of `size`; `beside` has what is known beside each value, or
    None. Returns its card. The same values in the same order give the same file. Raises DataError, UnsupportedValue,
    OSError.
    """
    from nbmf.codec.adapt import adapt as learn

    return learn(values, out, model=model, size=size, beside=beside)


def __getattr__(name: str) -> Any:
    if name == "Memory":  # imported when asked for: the codec alone needs none of it
        from nbmf.memory import Memory

        return Memory
    if name == "Bound":
        from nbmf.codec.bounds import Bound

        return Bound
    if name == "Tolerance":
        from nbmf.codec.numbers import Tolerance

        return Tolerance
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
