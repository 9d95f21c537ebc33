"""Every error NBMF raises on purpose. Messages are one line and name what was wrong."""

from __future__ import annotations


class NbmfError(Exception):
    """Base of all errors below."""


class FormatError(NbmfError):
    """The input is not an NBMF blob or file, sets reserved bits, or is of an unknown version."""


class CorruptRecord(NbmfError):
    """The input has the right form, but its check or its stream is wrong."""


class UnknownModel(NbmfError):
    """A blob needs a model or pack that was not found. `id` is the wanted one in hex, "" when the blob names none."""

    def __init__(self, id: str, message: str | None = None) -> None:
        super().__init__(message if message is not None else f"no model or pack {id} found")
        self.id = id

    def __reduce__(self) -> tuple[type[UnknownModel], tuple[str, str]]:
        return type(self), (self.id, str(self))


class PolicyError(NbmfError):
    """The request is understood, and refused."""


class UnsupportedValue(NbmfError):
    """The value cannot be stored exactly. The message starts with the JSON path of the part at fault."""


class OutputLimit(NbmfError):
    """A decoded value would be larger than the cap on output."""


class StoreError(NbmfError):
    """A store's medium failed or is not what it should be: disk full, no permission, connection lost, foreign file."""


class DataError(NbmfError):
    """Input to training or adaptation is unusable."""


class StreamError(ValueError):
    """A kernel was given a payload that is no valid stream. Internal: the codec turns it into `CorruptRecord`."""


class StreamLimit(StreamError):
    """A kernel's output would pass `max_out`. Internal: the codec turns it into `OutputLimit` or `CorruptRecord`."""
