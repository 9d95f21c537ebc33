"""The old encoder's two functions over the new codec: for code that stores `{"meta", "code", "sig"}` dicts.

    {"meta": {"fidelity": "lossless", "type": <type name>, "length_bytes": n, "encoder_version": 2},
     "code": <base85 of the self-describing blob, n bytes>, "sig": <hex>}

base85 (RFC 1924's alphabet, which JSON never escapes) takes 5 characters for 4 bytes and is never longer than hex.
`sig` is the old one, SHA-256 of the JSON with sorted keys; for bytes and vectors, of the raw bytes.
A dict without `encoder_version` is an old one (stub.py). Old readers fail on a new dict: its code is not hexadecimal.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Final

from nbmf.codec import codec, stub, values
from nbmf.errors import CorruptRecord, FormatError

ENCODER_VERSION: Final = 2


def encode(payload: Any, fidelity: str = "lossless") -> dict[str, Any]:
    """A drop-in dict. The old default, "semantic", kept a preview only. Errors as `Codec.encode`."""
    blob = codec.encode(payload, fidelity)
    meta = {
        "fidelity": fidelity,
        "type": type(payload).__name__,
        "length_bytes": len(blob),
        "encoder_version": ENCODER_VERSION,
    }
    kept = payload if fidelity == "lossless" else codec.decode(blob)
    return {"meta": meta, "code": base64.b85encode(blob).decode("ascii"), "sig": _signature(kept)}


def decode(blob: Mapping[str, Any], max_out: int = stub.DEFAULT_MAX_OUT) -> Any:
    """The value of a drop-in dict or an old one (of a semantic one, the preview; `stub.read` tells if it was cut).

    Raises FormatError, CorruptRecord, UnknownModel, OutputLimit.
    """
    meta, code, sig = stub.parts(blob)
    if "encoder_version" not in meta:
        return stub.decode(blob, max_out)
    version = meta["encoder_version"]
    if type(version) is not int or version != ENCODER_VERSION:
        raise FormatError(f"meta.encoder_version is {version!r}; this reader knows {ENCODER_VERSION}")
    try:
        data = base64.b85decode(code)
    except ValueError:
        raise CorruptRecord("code is not base85") from None
    if meta.get("length_bytes") != len(data):
        raise CorruptRecord(f"meta.length_bytes is {meta.get('length_bytes')!r}, but the code has {len(data)}")
    value = codec.decode(data, max_out)
    if _signature(value) != sig:
        raise CorruptRecord("sig does not match the value")
    return value


def _signature(value: Any) -> str:
    value_type, raw = values.to_raw(value, allow_nan=True)
    return stub.signature(value) if value_type in (values.TEXT, values.JSON) else hashlib.sha256(raw).hexdigest()
