"""Checkpoints made small: a serializer for any of LangGraph's checkpointers."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Final

from nbmf.codec.codec import DEFAULT_MAX_OUT, Codec
from nbmf.errors import FormatError
from nbmf.integrations import MissingExtra
from nbmf.integrations.blobs import NEURAL_MAX, blob_of, bytes_of

try:
    from langgraph.checkpoint.serde.base import SerializerProtocol
    from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
except ImportError:
    raise MissingExtra("langgraph", "langgraph") from None

MARK: Final = "nbmf:"  # before the type of what a blob holds; LangGraph's encryption parts types at a plus sign
PLAIN: Final = frozenset({"null", "bytes", "bytearray", "json", "msgpack", "pickle"})  # of LangGraph's own serializer


class NBMFSerializer(JsonPlusSerializer):
    """What another serializer makes, as NBMF blobs; that of LangGraph unless told otherwise. Thread-safe.

    `codec` encodes, else one that stops at `max_out` decoded bytes; its model, or its domain pack, must be there when a
    checkpoint is read. More than `neural_max` bytes are left to zstd, and what does not get smaller stays as it is.
    Checkpoints that were written without NBMF are read too. A type of neither is a FormatError, a blob whose check is
    wrong a CorruptRecord, one that would be too large an OutputLimit.
    """

    # A JsonPlusSerializer, because LangGraph restricts the types that come out of a checkpoint for that class alone.

    def __init__(
        self,
        serde: SerializerProtocol | None = None,
        *,
        codec: Codec | None = None,
        max_out: int = DEFAULT_MAX_OUT,
        neural_max: int = NEURAL_MAX,
    ) -> None:
        super().__init__()
        self.serde = serde if serde is not None else JsonPlusSerializer()
        self._own = type(self.serde) is JsonPlusSerializer
        self._codec = codec if codec is not None else Codec(max_out=max_out)
        self._neural_max = neural_max

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """The type and the bytes of an object. Raises OutputLimit for one that would be refused when it is read."""
        kind, data = self.serde.dumps_typed(obj)
        blob = blob_of(self._codec, data, self._neural_max) if data else b""
        return (f"{MARK}{kind}", blob) if len(blob) < len(data) else (kind, data)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """The object. Raises FormatError, CorruptRecord, UnknownModel, OutputLimit."""
        kind, content = data
        inner = kind.removeprefix(MARK) if isinstance(kind, str) else ""
        if not inner or (self._own and inner not in PLAIN):
            raise FormatError(f"{kind!r} is no type of a checkpoint that this serializer knows"[:200])
        if inner == kind:
            return self.serde.loads_typed((kind, content))
        return self.serde.loads_typed((inner, bytes_of(self._codec, bytes(content))))

    def with_msgpack_allowlist(self, extra_allowlist: Iterable[tuple[str, ...] | type]) -> NBMFSerializer:
        """This serializer, where the inner one is restricted to the types of a list besides its own."""
        if not isinstance(self.serde, JsonPlusSerializer):
            return self
        inner = self.serde.with_msgpack_allowlist(extra_allowlist)
        if inner is self.serde:
            return self
        clone = copy.copy(self)
        clone.serde = inner
        return clone


__all__ = ["NBMFSerializer"]
