"""The old stub encoder's blobs, read for ever and written for comparison.

    {"meta": {"fidelity": ..., "type": <type name>, "length_bytes" | "preview_length": n}, "code": <hex>, "sig": <hex>}

| fidelity | code                                                           | sig: SHA-256 of JSON with sorted keys of |
|----------|----------------------------------------------------------------|------------------------------------------|
| lossless | zlib (level 9) of JSON; length_bytes is its length             | the payload                              |
| semantic | UTF-8 of the canonical text's first 2,048 characters: a text,  | the whole canonical text                 |
|          | each white space made one space, or JSON with sorted keys;     |                                          |
|          | preview_length counts characters                               |                                          |

JSON here is `json.dumps(ensure_ascii=False)`, with a space after each comma and colon.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from nbmf.codec import values
from nbmf.errors import CorruptRecord, FormatError, NbmfError, OutputLimit, UnsupportedValue

ZLIB_LEVEL: Final = 9
PREVIEW_CHARS: Final = 2048
DEFAULT_MAX_OUT: Final = 64 << 20  # bytes

# Keys that may have been written from a number, a bool or None, and sorted as such before they became text.
_CONVERTED_KEY: Final = re.compile(r"-?[0-9].*|true|false|null|NaN|-?Infinity")


class Stub(NamedTuple):
    """A stub blob read. `truncated`: `value` is a preview, the start of a longer text that was never kept."""

    value: Any
    fidelity: str
    truncated: bool


def signature(value: object) -> str:
    """SHA-256, in hex, of the JSON of `value` with sorted keys. Raises UnsupportedValue for what is not plain JSON."""
    text = values.write_json(value, allow_nan=True, sort_keys=True, comma=", ", colon=": ")
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def encode(payload: Any, fidelity: str = "semantic") -> dict[str, Any]:
    """What the old encoder wrote, byte for byte. Raises UnsupportedValue for what it could not write."""
    meta: dict[str, Any] = {"fidelity": fidelity, "type": type(payload).__name__}
    try:
        if fidelity == "lossless":
            code = zlib.compress(json.dumps(payload, ensure_ascii=False).encode("utf-8"), ZLIB_LEVEL)
            meta["length_bytes"] = len(code)
            signed = payload
        else:
            if isinstance(payload, str):
                canonical = " ".join(payload.split())
            else:
                canonical = json.dumps(payload, ensure_ascii=False, sort_keys=True)
            preview = canonical[:PREVIEW_CHARS]
            meta["preview_length"] = len(preview)
            code = preview.encode("utf-8")
            signed = canonical
        text = json.dumps(signed, ensure_ascii=False, sort_keys=True).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise UnsupportedValue(f"$: the old format cannot hold it: {str(error).splitlines()[0]}") from None
    return {"meta": meta, "code": code.hex(), "sig": hashlib.sha256(text).hexdigest()}


def decode(blob: Mapping[str, Any], max_out: int = DEFAULT_MAX_OUT) -> Any:
    """The value of an old blob: exact if lossless, the preview text if semantic. Errors as `read`."""
    return read(blob, max_out).value


def read(blob: Mapping[str, Any], max_out: int = DEFAULT_MAX_OUT) -> Stub:
    """An old blob's value and what it is worth.

    Raises FormatError when `blob` is no such dict, CorruptRecord when its code or signature is wrong, OutputLimit when
    its JSON is larger than `max_out` bytes. A truncated preview's signature, which covers the text that is gone, cannot
    be checked.
    """
    meta, code, sig = parts(blob)
    if "encoder_version" in meta:
        raise FormatError(f"not an old blob: its encoder_version is {meta['encoder_version']!r}")
    fidelity = meta.get("fidelity")
    try:
        data = bytes.fromhex(code)
    except ValueError:
        raise CorruptRecord("code is not hexadecimal") from None
    if fidelity == "lossless":
        _expect(meta, "length_bytes", len(data))
        value = values.from_raw(values.JSON, _inflate(data, max_out))
        if signature(value) != sig and not _has_converted_key(value):
            raise CorruptRecord("sig does not match the value")
        return Stub(value, "lossless", False)
    if fidelity != "semantic":
        raise FormatError(f"meta.fidelity is {fidelity!r}")
    try:
        preview = data.decode("utf-8")
    except UnicodeDecodeError:
        raise CorruptRecord("code is not the UTF-8 of a preview") from None
    _expect(meta, "preview_length", len(preview))
    complete = signature(preview) == sig
    if not complete and len(preview) != PREVIEW_CHARS:
        raise CorruptRecord("sig does not match the preview")
    return Stub(preview, "semantic", not complete)


def parts(blob: Mapping[str, Any]) -> tuple[Mapping[str, Any], str, str]:
    """meta, code and sig of an old or a drop-in dict. Raises FormatError when it is neither."""
    if not isinstance(blob, Mapping):
        raise FormatError(f"an encoded dict was expected, not {type(blob).__name__}")
    meta, code, sig = blob.get("meta"), blob.get("code"), blob.get("sig")
    if not isinstance(meta, Mapping) or not isinstance(code, str) or not isinstance(sig, str):
        raise FormatError("not an encoded dict: meta, code and sig are wanted")
    return meta, code, sig


def parse_text(text: str | bytes) -> dict[str, Any]:
    """The dict of an old or drop-in blob kept as JSON text. Raises FormatError when it is none."""
    try:
        blob = values.parse_json(text if isinstance(text, str) else text.decode("utf-8"))
    except (NbmfError, UnicodeDecodeError):
        raise FormatError("neither a blob nor the JSON text of an encoded dict") from None
    parts(blob)
    return blob  # type: ignore[no-any-return]


def _inflate(data: bytes, max_out: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(data, max_out + 1)
    except zlib.error as error:
        raise CorruptRecord(f"code is not zlib data: {error}") from None
    if len(raw) > max_out:
        raise OutputLimit(f"the value is larger than {max_out} bytes")
    if not inflater.eof or inflater.unused_data:
        raise CorruptRecord("code is not exactly one zlib stream")
    return raw


def _expect(meta: Mapping[str, Any], field: str, found: int) -> None:
    if meta.get(field) != found:
        raise CorruptRecord(f"meta.{field} is {meta.get(field)!r}, but the code has {found}")


def _has_converted_key(root: Any) -> bool:
    """Whether the signature may have been taken over keys that JSON turned into text, and so cannot be checked.

    The old encoder sorted `{2: ..., 10: ...}` as numbers; read back, "10" sorts before "2". zlib's own check vouches.
    """
    pending = [root]
    for node in pending:
        if type(node) is dict:
            if any(map(_CONVERTED_KEY.fullmatch, node)):
                return True
            pending.extend(node.values())
        elif type(node) is list:
            pending.extend(node)
    return False
