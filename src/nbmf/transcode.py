"""What `encode` and `decode` do between a file and a codec."""

import sys
from pathlib import Path
from typing import Any

from nbmf.codec.codec import Codec
from nbmf.codec.values import JSON, from_raw, to_raw
from nbmf.errors import DataError, NbmfError


def codec(model: str, profile: str, domain: str | None) -> Codec:
    return Codec(model=model, profile=profile, domain=domain)


def read(source: str) -> bytes:
    """All of a file, or of standard input for '-'."""
    return sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()


def parse(data: bytes, kind: str) -> Any:
    """The value that `data` holds, read as text, json, bytes or auto.

    auto reads JSON only when its compact form is `data` itself, so that decode gives back the very bytes.
    """
    if kind == "bytes":
        return data
    if kind == "text":
        return data.decode("utf-8")
    if kind == "json":
        try:
            return from_raw(JSON, data.strip())
        except NbmfError as error:
            raise DataError(f"the input is not one JSON value: {error}") from error
    if data[:1] in (b"{", b"["):
        try:
            value = from_raw(JSON, data)
            if to_raw(value)[1] == data:
                return value
        except NbmfError:
            pass  # not JSON: text or bytes
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data


def raw_bytes(value: Any) -> bytes:
    """The raw bytes of a value."""
    return to_raw(value, allow_nan=True)[1]


def figures(value: Any, blob: bytes, codec: Codec, bare: bool) -> dict[str, Any]:
    """What a record took."""
    raw = len(raw_bytes(value))
    return {
        "raw_bytes": raw,
        "stored_bytes": len(blob),
        "ratio": raw / len(blob),
        "bare": bare,
        "codec_id": codec.id,
    }
