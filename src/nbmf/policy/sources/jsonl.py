"""JSON lines, plain or packed with gzip or xz: a file, or the .jsonl files of a folder in order of name.

Each line that is not blank is one of these:

    {"namespace": ["a", "b"] or "a/b", "key": ..., "value": ..., "class": ..., "created": ..., "updated": ...,
     "expires": ..., "ttl": <minutes>, "meta": {...}, "fidelity": ...}     a record: value, and a key or a namespace
    {"id": ..., "data": ..., "metadata": {"source": ..., "kind": ...}}     a data file's line: the kind is the class
    any other JSON value                                                   which is then the value itself

A key that is missing is made of the file's name and the line's number, `notes:12`.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from nbmf.errors import CorruptRecord, FormatError, NbmfError, PolicyError, StoreError
from nbmf.policy.sources.base import (
    DEFAULT_NAMESPACE,
    Incoming,
    Item,
    Source,
    Unreadable,
    checked,
    milliseconds,
    minutes,
    parse_namespace,
    parse_text,
    printable,
)
from nbmf.store.base import Namespace

SUFFIXES: Final = (".jsonl", ".jsonl.xz", ".jsonl.gz")
FIDELITIES: Final = ("lossless", "semantic")
_RECORD: Final = frozenset(
    ("namespace", "key", "value", "class", "created", "updated", "expires", "ttl", "meta", "fidelity")
)
_DATA: Final = frozenset(("id", "data", "metadata", "domain", "type"))
_GZIP: Final = b"\x1f\x8b"
_XZ: Final = b"\xfd7zXZ\x00"


class JsonLines(Source):
    """The lines of `path`. With `bare`, every line is a value, whatever fields it has."""

    kind = "jsonl"

    def __init__(self, path: Path, *, bare: bool = False, namespace: Namespace = DEFAULT_NAMESPACE) -> None:
        self.address = str(path.absolute())
        self._folder = path if path.is_dir() else path.parent
        self._files = files_in(path) if path.is_dir() else [path]
        if not self._files:
            raise PolicyError(f"{printable(str(path))} has no file that ends in {', '.join(SUFFIXES)}")
        self._bare = bare
        self._namespace = namespace

    def size(self) -> int:
        return sum(file.stat().st_size for file in self._files)

    def items(self) -> Iterator[Item]:
        for file in self._files:
            name = printable(str(file.relative_to(self._folder)))
            for number, line in lines_of(file):
                if isinstance(line, Unreadable):
                    yield line
                    continue
                origin = f"{name}:{number}"
                try:
                    yield checked(self._item(parse_text(line), origin, f"{_stem(name)}:{number}"))
                except NbmfError as error:
                    yield Unreadable(origin, str(error), line)

    def _item(self, line: Any, origin: str, key: str) -> Incoming:
        if type(line) is dict and not self._bare:
            if "value" in line and ("key" in line or "namespace" in line):
                return self._record(line, origin, key)
            if "data" in line and line.keys() <= _DATA:
                return self._data(line, origin, key)
        return Incoming(self._namespace, key, line, origin=origin)

    def _record(self, line: dict[str, Any], origin: str, key: str) -> Incoming:
        if unknown := line.keys() - _RECORD:
            raise FormatError(f"unknown field {min(unknown)!r}"[:200])
        fidelity = line.get("fidelity", "lossless")
        if fidelity not in FIDELITIES:
            raise FormatError(f"fidelity is {fidelity!r}"[:200])
        return Incoming(
            parse_namespace(line["namespace"]) if line.get("namespace") is not None else self._namespace,
            _name(line.get("key"), "key", key),
            line["value"],
            cls=_name(line.get("class"), "class", ""),
            created=milliseconds(line.get("created"), "created"),
            updated=milliseconds(line.get("updated"), "updated"),
            expires=milliseconds(line.get("expires"), "expires"),
            ttl=minutes(line.get("ttl"), "ttl"),
            meta=_meta(line.get("meta"), "meta"),
            fidelity=fidelity,
            origin=origin,
        )

    def _data(self, line: dict[str, Any], origin: str, key: str) -> Incoming:
        meta = _meta(line.get("metadata"), "metadata") or {}
        kind = meta.get("kind")
        if type(line.get("domain")) is str:
            meta.setdefault("domain", line["domain"])
        return Incoming(
            self._namespace,
            _name(line.get("id"), "id", key),
            line["data"],
            cls=kind if type(kind) is str else "",
            meta=meta or None,
            origin=origin,
        )


def files_in(folder: Path) -> list[Path]:
    """The files of JSON lines in a folder, in order of name."""
    return sorted(file for file in folder.iterdir() if file.name.endswith(SUFFIXES) and file.is_file())


def lines_of(file: Path) -> Iterator[tuple[int, bytes | Unreadable]]:
    """The lines that are not blank, by number from 1.

    A packed file that is damaged or cut gives what can be read of it, then itself, whole, as Unreadable.
    """
    number = 0
    try:
        with _opened(file) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, line
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        origin = f"{printable(file.name)}, after line {number}"
        yield number + 1, Unreadable(origin, f"the packed file is damaged: {error}", _whole(file))
    except OSError as error:
        raise StoreError(f"{printable(str(file))} cannot be read: {error.strerror or error}") from None


def _opened(file: Path) -> IO[bytes] | gzip.GzipFile:
    with file.open("rb") as plain:
        start = plain.read(len(_XZ))
    if start == _XZ:
        return lzma.open(file, "rb")
    return gzip.open(file, "rb") if start.startswith(_GZIP) else file.open("rb")


def _whole(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StoreError(f"{printable(str(file))} cannot be read: {error.strerror}") from None


def _stem(name: str) -> str:
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def _name(name: Any, field: str, default: str) -> str:
    """A text, or a whole number as text."""
    if name is None:
        return default
    if type(name) not in (str, int):
        raise CorruptRecord(f"{field} is not a text: {name!r}"[:200])
    return str(name)


def _meta(meta: Any, field: str) -> dict[str, Any] | None:
    if meta is not None and type(meta) is not dict:
        raise CorruptRecord(f"{field} is not an object: {meta!r}"[:200])
    return dict(meta) if meta else None
