"""Model and pack files: layout, identity, and where they are found. docs/spec/model.md is the specification.

    header(64): magic[4] write_version(1) read_version(1) sections(2) length(8) content id(32) zero(16)
    section table: per section name[16] offset(8) length(8)
    sections, each at a multiple of 64 bytes

All integers are little-endian. The content id is the SHA-256 of the file with the id's 32 bytes zeroed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nbmf.errors import FormatError, UnknownModel

MODEL_MAGIC: Final = b"NBMM"
PACK_MAGIC: Final = b"NBMP"
MODEL_SUFFIX: Final = ".nbm"
PACK_SUFFIX: Final = ".nbp"
WRITE_VERSION: Final = 1
READ_VERSION: Final = 1
HEADER_SIZE: Final = 64
ENTRY_SIZE: Final = 32
ALIGNMENT: Final = 64
ID_AT: Final = 16  # offset of the content id
ID_SIZE: Final = 32
DENSE_SECTION: Final = "dense_rows"  # a model has the dense profile when it has this section
PACKAGED: Final = Path(__file__).resolve().parent.parent / "models"


@dataclass(frozen=True)
class Model:
    """A verified model file. `buffer` is a read-only memory map, shared by all who open the file."""

    path: Path
    id: bytes = field(repr=False)  # 32 bytes
    buffer: mmap.mmap = field(repr=False)

    @property
    def card(self) -> dict[str, Any]:
        """What the file says of its making: data, sizes, figures."""
        return _card(self.buffer)

    @functools.cached_property
    def profiles(self) -> tuple[str, ...]:
        """The profiles it has the weights of: fast, and dense where the networks are in it."""
        return ("fast", "dense") if DENSE_SECTION in section_table(self.buffer) else ("fast",)


@dataclass(frozen=True)
class Pack:
    """A verified domain pack: it works with the model `model_id` alone."""

    path: Path
    id: bytes = field(repr=False)
    model_id: bytes = field(repr=False)
    buffer: bytes | mmap.mmap = field(repr=False)

    @property
    def card(self) -> dict[str, Any]:
        return _card(self.buffer)


# -- file layout -------------------------------------------------------------------------------------------------------


def section_table(buffer: bytes | mmap.mmap | memoryview) -> dict[str, tuple[int, int]]:
    """Name -> (offset, length). Raises FormatError when the header or the table is wrong."""
    view = memoryview(buffer)
    if len(view) < HEADER_SIZE or bytes(view[:4]) not in (MODEL_MAGIC, PACK_MAGIC):
        raise FormatError("not a model or pack file")
    if view[5] > READ_VERSION:
        raise FormatError(f"the file needs a reader of version {view[5]}; this one is {READ_VERSION}")
    count = int.from_bytes(view[6:8], "little")
    if int.from_bytes(view[8:16], "little") != len(view) or HEADER_SIZE + count * ENTRY_SIZE > len(view):
        raise FormatError("the file is cut short or has bytes after its end")
    table: dict[str, tuple[int, int]] = {}
    for at in range(HEADER_SIZE, HEADER_SIZE + count * ENTRY_SIZE, ENTRY_SIZE):
        try:
            name = bytes(view[at : at + 16]).rstrip(b"\0").decode("ascii")
        except UnicodeDecodeError:
            raise FormatError("a section's name is not ASCII") from None
        offset = int.from_bytes(view[at + 16 : at + 24], "little")
        length = int.from_bytes(view[at + 24 : at + 32], "little")
        if offset > len(view) or length > len(view) - offset:
            raise FormatError(f"section {name} lies outside the file")
        table[name] = (offset, length)
    return table


def has_section(buffer: bytes | mmap.mmap | memoryview, name: str) -> bool:
    return name in section_table(buffer)


def section(buffer: bytes | mmap.mmap | memoryview, name: str) -> memoryview:
    """The bytes of one section. Raises FormatError when there is none of that name."""
    table = section_table(buffer)
    if name not in table:
        raise FormatError(f"section {name} is missing")
    offset, length = table[name]
    return memoryview(buffer)[offset : offset + length]


def _card(buffer: bytes | mmap.mmap) -> dict[str, Any]:
    try:
        card = json.loads(bytes(section(buffer, "card")))
    except ValueError:
        raise FormatError("section card is not JSON") from None
    return card if isinstance(card, dict) else {}


def content_id(buffer: bytes | bytearray | mmap.mmap | memoryview) -> bytes:
    """SHA-256 of the file with the id's own bytes zeroed."""
    view = memoryview(buffer)
    digest = hashlib.sha256(view[:ID_AT])
    digest.update(bytes(ID_SIZE))
    digest.update(view[ID_AT + ID_SIZE :])
    return digest.digest()


def build_file(magic: bytes, sections: Mapping[str, bytes]) -> bytes:
    """The file of these sections, in their order, with its content id filled in."""
    at = HEADER_SIZE + ENTRY_SIZE * len(sections)
    table = b""
    body: list[bytes] = []
    for name, data in sections.items():
        pad = -at % ALIGNMENT
        at += pad
        table += name.encode("ascii").ljust(16, b"\0") + at.to_bytes(8, "little") + len(data).to_bytes(8, "little")
        body += [bytes(pad), data]
        at += len(data)
    head = magic + bytes([WRITE_VERSION, READ_VERSION]) + len(sections).to_bytes(2, "little") + at.to_bytes(8, "little")
    out = bytearray(b"".join([head, bytes(ID_SIZE), bytes(16), table, *body]))
    out[ID_AT : ID_AT + ID_SIZE] = content_id(out)
    return bytes(out)


# -- loading -----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _open(path: Path, identity: tuple[int, int, int, int], magic: bytes) -> tuple[bytes, mmap.mmap]:
    with path.open("rb") as file:
        if identity[3] < HEADER_SIZE:
            raise FormatError(f"{path}: not a model or pack file")
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if buffer[:4] != magic:
        raise FormatError(f"{path}: not a {'model' if magic == MODEL_MAGIC else 'pack'} file")
    section_table(buffer)
    named = buffer[ID_AT : ID_AT + ID_SIZE]
    if content_id(buffer) != named:
        raise FormatError(f"{path}: its content does not have the id {named[:4].hex()} that it names")
    return named, buffer


def _load(path: Path, magic: bytes) -> tuple[bytes, mmap.mmap]:
    # The content is hashed once per file and process; the identity tells when a path holds another file.
    stat = path.stat()
    return _open(path, (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size), magic)


def directories() -> list[Path]:
    """Where models and packs are looked for: the package, NBMF_MODELS, the user's data directory."""
    extra = [Path(part) for part in os.environ.get("NBMF_MODELS", "").split(os.pathsep) if part]
    # Not Path.home(), which raises for a user without a home.
    home = Path(os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share"))
    return [PACKAGED, *extra, home / "nbmf"]


def _find(name: str, suffix: str) -> Path:
    if name.endswith(suffix):
        return Path(name)
    if os.sep not in name:
        for directory in directories():
            if (path := directory / f"{name}{suffix}").is_file():
                return path
    raise UnknownModel(name)


def load_model(name: str | Path = "base") -> Model:
    """The model of this name, or at this path when it ends in .nbm. Raises UnknownModel, FormatError, OSError."""
    path = _find(os.fspath(name), MODEL_SUFFIX)
    return Model(path, *_load(path, MODEL_MAGIC))


def load_pack(name: str | Path) -> Pack:
    """The pack of this name, or at this path when it ends in .nbp. Raises UnknownModel, FormatError, OSError."""
    path = _find(os.fspath(name), PACK_SUFFIX)
    id, buffer = _load(path, PACK_MAGIC)
    return Pack(path, id, bytes(section(buffer, "model_id")), buffer)


def pack_of(path: Path, data: bytes) -> Pack:
    """The pack in a file's bytes; `path` only names it. Raises FormatError (no pack, damaged)."""
    if data[:4] != PACK_MAGIC or len(data) < HEADER_SIZE:
        raise FormatError(f"{path}: not a pack file")
    section_table(data)
    id = data[ID_AT : ID_AT + ID_SIZE]
    if content_id(data) != id:
        raise FormatError(f"{path}: its content does not have the id {id[:4].hex()} that it names")
    return Pack(path, id, bytes(section(data, "model_id")), data)


def _candidates(suffix: str) -> Iterator[tuple[bytes, Path]]:
    for directory in directories():
        if directory.is_dir():
            for path in sorted(directory.glob(f"*{suffix}")):
                try:
                    with path.open("rb") as file:
                        head = file.read(HEADER_SIZE)
                except OSError:
                    continue  # a folder, or another user's file: the one that is wanted may come later
                yield head[ID_AT : ID_AT + ID_SIZE], path


def model_by_id(id: bytes) -> Model:
    """The model whose content id begins with `id`. Raises UnknownModel."""
    for found, path in _candidates(MODEL_SUFFIX):
        if found.startswith(id):
            return load_model(path)
    raise UnknownModel(id[:4].hex())


def lookup(id: bytes) -> tuple[Model, Pack | None]:
    """The model, or the pack and its model, whose content id begins with `id`. Raises UnknownModel naming the id."""
    for found, path in _candidates(PACK_SUFFIX):
        if found.startswith(id):
            pack = load_pack(path)
            return model_by_id(pack.model_id), pack
    return model_by_id(id), None
