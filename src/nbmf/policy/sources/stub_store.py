"""The old warm store: a folder `records/` with a file `<key>__<class>.json` for each record.

    {"payload": <encoded dict, or a plain value>, "meta": {...}, "cls": <class>}
    {"__encrypted__": {"alg": "AESGCM", "nonce": <base64>, "ciphertext": <base64>}}     the same, sealed

The base64 is the URL-safe one, the key SHA-256 of the configured key's bytes, the associated data empty.

The name is split at the class that the file itself holds, so both halves may contain "__"; when the two disagree, at
the last "__". Slashes in keys became underscores when the file was written and cannot be told from underscores any
more: the key is the one in the name. Times are the file's time of change.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from nbmf.codec import dropin, stub
from nbmf.errors import CorruptRecord, FormatError, NbmfError, PolicyError, StoreError
from nbmf.policy.sources.base import (
    DEFAULT_NAMESPACE,
    Incoming,
    Item,
    Source,
    Unreadable,
    checked,
    parse_text,
    printable,
)
from nbmf.store.base import Namespace

FOLDER: Final = "records"
SUFFIX: Final = ".json"
BETWEEN: Final = "__"  # key and class
SEALED: Final = "__encrypted__"
PREVIEW: Final = "nbmf.preview"  # the entry of `meta` that marks a semantic record: {"truncated": bool, "type": str}
_ENCODED: Final = frozenset({"meta", "code", "sig"})


class StubStore(Source):
    """The old store in `path`, the folder `records` or the one that has it. `key` opens sealed records.

    Raises PolicyError when records are sealed and `key` is missing or opens none of them.
    """

    kind = "stub"

    def __init__(self, path: Path, *, key: bytes | None = None, namespace: Namespace = DEFAULT_NAMESPACE) -> None:
        inner = path / FOLDER
        self._folder = inner if inner.is_dir() else path
        self.address = str(path.absolute())
        self._namespace = namespace
        self._key = hashlib.sha256(key).digest() if key is not None else None
        self._names = sorted(self._find(), key=os.fsencode)
        self._try_key()

    def _find(self) -> Iterator[str]:
        """Names of all files, relative to the folder."""
        for folder, _, names in os.walk(self._folder, onerror=_stop):
            inside = os.path.relpath(folder, self._folder)
            yield from (name if inside == "." else os.path.join(inside, name) for name in names)

    def count(self) -> int:
        return len(self._names)

    def size(self) -> int:
        return sum((self._folder / name).stat().st_size for name in self._names)

    def items(self) -> Iterator[Item]:
        for name in self._names:
            raw = self._read(name)
            try:
                yield self._item(name, raw)
            except NbmfError as error:
                yield Unreadable(printable(name), str(error), raw)

    def _read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise StoreError(f"{printable(name)} cannot be read: {error.strerror}") from None

    def _item(self, name: str, raw: bytes) -> Incoming:
        if os.sep in name or not name.endswith(SUFFIX):
            raise FormatError(f"not a record's file: its name is not <key>{BETWEEN}<class>{SUFFIX}")
        record = self._unseal(parse_text(raw))
        if type(record) is not dict or "payload" not in record:
            raise FormatError("not a record: a JSON object with payload is wanted")
        cls, meta = record.get("cls"), record.get("meta")
        key, cls, agreed = split_name(name.removesuffix(SUFFIX), cls)
        notes = [] if agreed else ["the class differs from the file name's"]
        about = dict(meta) if type(meta) is dict else {} if meta is None else {"meta": meta}
        payload = record["payload"]
        fidelity = "lossless"
        if type(payload) is not dict or not payload.keys() >= _ENCODED:
            value = payload
        elif type(payload["meta"]) is dict and "encoder_version" in payload["meta"]:
            value = dropin.decode(payload)
        else:
            value, fidelity, truncated = stub.read(payload)
            if fidelity == "semantic":
                about[PREVIEW] = {"truncated": truncated, "type": str(payload["meta"].get("type", ""))}
                notes.insert(0, "truncated preview" if truncated else "semantic text")
        time = (self._folder / name).stat().st_mtime_ns // 1_000_000
        return checked(
            Incoming(
                self._namespace,
                key,
                value,
                cls=cls,
                created=max(0, time),
                updated=max(0, time),
                meta=about or None,
                fidelity=fidelity,
                note="; ".join(notes),
                origin=printable(name),
            )
        )

    def _unseal(self, record: Any) -> Any:
        if type(record) is not dict or SEALED not in record:
            return record
        envelope = record[SEALED]
        if self._key is None:
            raise PolicyError("sealed, and no key was given")
        if type(envelope) is not dict or envelope.get("alg") != "AESGCM":
            raise FormatError("sealed in a way that is not AESGCM")
        nonce, ciphertext = (_base64(envelope.get(field), field) for field in ("nonce", "ciphertext"))
        return parse_text(_open(self._key, nonce, ciphertext))

    def _try_key(self) -> None:
        """Reads up to the first sealed record that opens."""
        sealed = 0
        for name in self._names:
            raw = self._read(name)
            try:
                record = parse_text(raw) if SEALED.encode() in raw else None
            except NbmfError:
                continue
            if type(record) is dict and SEALED in record:
                if self._key is None:
                    raise PolicyError(f"{printable(name)} is sealed: the old store's key is wanted")
                sealed += 1
                try:
                    self._unseal(record)
                    return
                except (CorruptRecord, FormatError):
                    continue
        if sealed:
            raise PolicyError(f"the key opens none of the {sealed} sealed records")


def split_name(stem: str, cls: Any) -> tuple[str, str, bool]:
    """Key, class, and whether the class in the file, `cls`, is the one in the file's name."""
    own = cls if type(cls) is str else ""
    tail = BETWEEN + own.replace("/", "_")
    if type(cls) is str and stem.endswith(tail) and len(stem) > len(tail):
        return stem[: -len(tail)], cls, True
    key, mark, last = stem.rpartition(BETWEEN)
    if not (mark and key):
        key, last = stem, ""
    return key, own or last, not own


def is_stub_store(path: Path) -> bool:
    """Whether a folder holds records of the old store: one of its first files at least has that form."""
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    for file in sorted(folder.glob("*" + SUFFIX))[:100]:
        try:
            record = parse_text(file.read_bytes())
        except (OSError, NbmfError):
            continue
        if type(record) is dict and (SEALED in record or {"payload", "cls"} <= record.keys()):
            return True
    return False


def _stop(error: OSError) -> None:
    raise StoreError(f"{error.filename} cannot be read: {error.strerror}")


def _base64(text: Any, field: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise CorruptRecord(f"{field} is not URL-safe base64") from None


def _open(key: bytes, nonce: bytes, ciphertext: bytes) -> bytes:
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise PolicyError("a sealed record needs nbmf[encrypt]") from None
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, None)
    except (InvalidTag, ValueError):
        raise CorruptRecord("the key does not open it, or it was changed") from None
