"""The encoders that can be measured: the model's profiles, zstd and stored blobs, the old encoder's two fidelities."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from nbmf.codec import format, stub
from nbmf.codec.codec import Codec
from nbmf.codec.values import to_raw
from nbmf.errors import NbmfError, PolicyError, UnsupportedValue

ZSTD: Final = "zstd"
STORED: Final = "stored"
STUB: Final = "stub"
STUB_SEMANTIC: Final = "stub-semantic"
NAMES: Final = (*format.PROFILES, ZSTD, STORED, STUB, STUB_SEMANTIC)
BASELINES: Final = (ZSTD, STUB, STUB_SEMANTIC)  # measured beside whichever encoder is asked for

Many = Callable[[Sequence[Any]], list[Any]]


@dataclass(frozen=True)
class Encoder:
    """Values to blobs and back. `named` makes self-describing blobs, where that is something else.

    `can` tells whether it holds a value; `codec` is what it goes by, where that is one of NBMF's.
    """

    name: str
    setting: str
    lossless: bool
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    encode_many: Many
    decode_many: Many
    named: Many | None = None
    named_back: Many | None = None
    codec: Codec | None = None
    can: Callable[[Any], bool] = lambda value: True


def profiles(model: str) -> list[str]:
    """The profiles that a model has. Raises UnknownModel, FormatError."""
    found = []
    for name in format.PROFILES:
        try:
            Codec(model=model, profile=name)
        except PolicyError:
            continue
        found.append(name)
    return found


def encoder(name: str, model: str = "base", domain: str | None = None) -> Encoder:
    """The encoder of a name in NAMES. Raises PolicyError (another name, a profile that the model has not)."""
    if name in format.PROFILES:
        return _neural(name, model, domain)
    if name in (ZSTD, STORED):
        return _plain(name)
    if name in (STUB, STUB_SEMANTIC):
        return _stub(name)
    raise PolicyError(f"encoder {name!r} is none of {', '.join(NAMES)}")


def _neural(profile: str, model: str, domain: str | None) -> Encoder:
    codec = Codec(model=model, profile=profile, domain=domain)
    codec.decode(codec.encode("warm"))
    return Encoder(
        profile,
        f"model {codec.id[:8]}, profile {profile}" + (", with a pack" if domain else ""),
        True,
        lambda value: codec.encode(value, bare=True),
        lambda blob: codec.decode(blob, bare=True),
        lambda values: codec.encode_many(values, bare=True),
        lambda blobs: codec.decode_many(blobs, bare=True),
        codec.encode_many,
        codec.decode_many,
        codec,
    )


def _plain(name: str) -> Encoder:
    """Blobs that need no model, in NBMF's framing."""
    codec = Codec()  # reads any of them

    def encode(value: Any) -> bytes:
        value_type, raw = to_raw(value)
        method, payload = format.STORED, raw
        if name == ZSTD and len(frame := format.zstd_compress(raw)) < len(raw):
            method, payload = format.ZSTD, frame
        return format.build(method, value_type, format.crc(value_type, raw), payload, bare=True)

    return _one_by_one(
        name,
        "zstd, or stored where that is smaller, in NBMF's framing" if name == ZSTD else "NBMF's framing alone",
        True,
        encode,
        lambda blob: codec.decode(blob, bare=True),
    )


def _stub(name: str) -> Encoder:
    fidelity = "lossless" if name == STUB else "semantic"

    def encode(value: Any) -> bytes:
        return json.dumps(stub.encode(value, fidelity)).encode()

    return _one_by_one(
        name,
        "the old encoder: "
        + ("zlib 9 in hex" if name == STUB else f"the first {stub.PREVIEW_CHARS:,} characters, in hex"),
        name == STUB,
        encode,
        lambda blob: stub.decode(stub.parse_text(blob)),
        _held_by_stub,
    )


def _held_by_stub(value: Any) -> bool:
    """The old encoder holds JSON alone: no bytes, no vectors, not every text."""
    try:
        stub.encode(value, "lossless")
    except UnsupportedValue:
        return False
    return True


def _one_by_one(
    name: str,
    setting: str,
    lossless: bool,
    encode: Callable[[Any], bytes],
    decode: Callable[[bytes], Any],
    can: Callable[[Any], bool] = lambda value: True,
) -> Encoder:
    return Encoder(
        name,
        setting,
        lossless,
        encode,
        decode,
        lambda values: [encode(value) for value in values],
        lambda blobs: [decode(blob) for blob in blobs],
        can=can,
    )


def code_size(value: Any) -> int:
    """Bytes of the old encoder's code before it becomes hex in JSON: what it may have counted itself."""
    try:
        return len(stub.encode(value, "lossless")["code"]) // 2
    except NbmfError:
        return len(to_raw(value)[1])
