"""Lines of training records, read and written: docs/training.md is the specification.

    {"data": value, "metadata": {"source": name, "kind": name, "group": name, ...}, "id": name}

Only `data` is needed; any other JSON value is itself the record. `source` is where records come from, `kind` what they
are, `group` what belongs together, such as a conversation or a document.
"""

from __future__ import annotations

import io
import json
import lzma
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, cast

from nbmf.codec.values import VALUE_TYPES, json_text, parse_json, to_raw
from nbmf.errors import DataError, NbmfError
from nbmf.policy.sources import Unreadable
from nbmf.policy.sources.base import printable
from nbmf.policy.sources.jsonl import SUFFIXES, lines_of

WRITTEN: Final = (".jsonl", ".jsonl.xz")
PRESET: Final = 1  # of xz: many times as fast as its default, and a tenth larger
BUFFER: Final = 1 << 18  # bytes that are packed at once
_BOM: Final = b"\xef\xbb\xbf"
_FIELDS: Final = frozenset(("id", "data", "metadata", "domain", "type"))


@dataclass(frozen=True, slots=True)
class Line:
    """A record of a training file. `about` is its metadata, `id` its name, or file and line where it has none."""

    value: Any
    about: dict[str, Any] = field(default_factory=dict)
    id: str = ""

    @property
    def source(self) -> str:
        return str(self.about["source"])

    @property
    def kind(self) -> str:
        return str(self.about["kind"])

    def bytes(self) -> bytes:
        """The line with its line feed: UTF-8, a lone surrogate escaped. Raises UnsupportedValue."""
        text = json_text({"data": self.value, "metadata": self.about, "id": self.id}, allow_nan=True)
        return text.encode("utf-8", "backslashreplace") + b"\n"


@dataclass(frozen=True, slots=True)
class Fault:
    """A line that is no record: where it stands, and why."""

    id: str
    reason: str


def parsed(line: bytes, file: str, number: int) -> Line | Fault:
    """The record of a line; source and kind are filled in where it has none: the file, the type of the value."""
    where = f"{file}, line {number}"
    try:
        value = parse_json(line.removeprefix(_BOM).decode("utf-8").strip(" \t\r\n"))
    except UnicodeDecodeError as error:
        return Fault(where, f"not UTF-8: {error.reason} at byte {error.start}")
    except NbmfError as error:
        return Fault(where, f"not JSON: {error}")
    about: dict[str, Any] = {}
    name: Any = None
    if type(value) is dict and "data" in value and value.keys() <= _FIELDS:
        given = value.get("metadata")
        if given is not None and type(given) is not dict:
            return Fault(where, "metadata is not an object")
        about, name = dict(given or {}), value.get("id")
        if type(value.get("domain")) is str:
            about.setdefault("domain", value["domain"])
        value = value["data"]
    for key, default in (("source", file), ("kind", None)):
        if type(about.get(key)) is not str or not about[key]:
            about[key] = VALUE_TYPES[to_raw(value, allow_nan=True)[0]] if default is None else default
    return Line(value, about, str(name) if type(name) in (str, int) else where)


def read(path: Path) -> Iterator[Line | Fault]:
    """Every line of a file, plain or packed with gzip or xz, that is not blank. Raises StoreError: it can't be read."""
    file = printable(path.name)
    for number, line in lines_of(path):
        yield Fault(line.origin, line.reason) if isinstance(line, Unreadable) else parsed(line, file, number)


def files_of(paths: Sequence[str | Path]) -> list[Path]:
    """The files named, and in folders, in order of name, those of JSON lines. Raises DataError."""
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"{printable(str(path))} does not exist")
        inside = sorted(p for p in path.iterdir() if p.name.endswith(SUFFIXES)) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{printable(str(path))} holds no file that ends in {', '.join(SUFFIXES)}")
        found += inside
    return found


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there, whole, once the block ends, packed when its name ends in .xz; not at all if it raises."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("wb") as file:
            if path.name.endswith(".xz"):
                with io.BufferedWriter(cast(io.RawIOBase, lzma.LZMAFile(file, "wb", preset=PRESET)), BUFFER) as packed:
                    yield packed
            else:
                yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def entry(**fields: Any) -> bytes:
    """A line of a list beside the data, such as the records left out."""
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
