"""Models and packs under names: put where they are looked for (model.py), proved, listed, and taken away.

Beside a registered file lie its golden blobs, `NAME.nbm.golden.json`: what it made of a few values when it came, and
must make of them, and of the blobs the values, on every machine and under every later version.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nbmf.codec.codec import Codec
from nbmf.codec.model import (
    MODEL_SUFFIX,
    PACK_SUFFIX,
    PACKAGED,
    Model,
    Pack,
    content_id,
    directories,
    load_model,
    load_pack,
    model_by_id,
)
from nbmf.codec.values import to_raw
from nbmf.errors import DataError, NbmfError, UnknownModel

GOLDEN: Final = "golden.json"  # in the package; elsewhere the end of its name
SUFFIXES: Final = (MODEL_SUFFIX, PACK_SUFFIX)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Registered:
    """A file where models are looked for. `found` is what its name leads to: it, unless an earlier folder has one."""

    path: Path
    name: str
    is_pack: bool
    is_found: bool


def open_file(path: Path) -> Model | Pack:
    """The model or pack at a path, by its suffix, once its content is seen to have the id that it names.

    Raises DataError (another suffix), FormatError (no such file, damaged), OSError.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: a model's name ends in {MODEL_SUFFIX}, a pack's in {PACK_SUFFIX}")
    return load_pack(path) if path.suffix == PACK_SUFFIX else load_model(path)


def every() -> Iterator[Registered]:
    """All models and packs that can be found by name, folder by folder in the order of looking."""
    seen: set[str] = set()
    for folder in dict.fromkeys(directories()):
        if not folder.is_dir():
            continue
        for path in sorted(one for one in folder.iterdir() if one.suffix in SUFFIXES and not one.name.startswith(".")):
            yield Registered(path, path.stem, path.suffix == PACK_SUFFIX, path.name not in seen)
            seen.add(path.name)


def find(name: str) -> Registered:
    """What is registered under a name, with or without a suffix. Raises UnknownModel; DataError: a model and a pack."""
    found = [one for one in every() if one.is_found and name in (one.name, one.path.name)]
    if len(found) > 1:
        raise DataError(f"{name} is a model and a pack: say {name}{MODEL_SUFFIX} or {name}{PACK_SUFFIX}")
    if not found:
        raise UnknownModel(name, f"no model or pack is registered as {name}")
    return found[0]


def destination() -> Path:
    """Where files are registered: the first folder of NBMF_MODELS, else the user's data directory."""
    return directories()[1]


# -- what is known of a file -------------------------------------------------------------------------------------------


def about(path: Path) -> dict[str, Any]:
    """What there is to say of a file in a row. Raises as `open_file`."""
    opened = open_file(path)
    return {
        "name": path.stem,
        "is": "pack" if isinstance(opened, Pack) else "model",
        "id": opened.id.hex()[:16],
        "for": f"model {opened.model_id.hex()[:8]}" if isinstance(opened, Pack) else ", ".join(opened.profiles),
        "bytes": path.stat().st_size,
        "folder": str(path.parent),
    }


def listed() -> list[dict[str, Any]]:
    """A row for every file that can be found; of a damaged one, why it can't be used."""
    rows = []
    for one in every():
        row: dict[str, Any] = {"name": one.name, "is": "pack" if one.is_pack else "model", "id": "", "for": ""}
        row |= {"bytes": 0, "folder": str(one.path.parent), "note": ""}
        try:
            row |= about(one.path)
        except (NbmfError, OSError) as error:
            row["note"] = f"unusable: {error}"
        if not one.is_found:
            row["note"] = "hidden: an earlier folder has one of that name"
        rows.append(row)
    return rows


def card(name: str) -> dict[str, Any]:
    """What a registered file, or one at a path, says of its making."""
    path = place(name)
    return {**about(path), "id": open_file(path).id.hex(), "card": open_file(path).card}


def place(name: str) -> Path:
    """The path of a name; a text that ends in a suffix and is the path of a file is one."""
    path = Path(name)
    return path if path.suffix in SUFFIXES and path.is_file() else find(name).path


# -- registering -------------------------------------------------------------------------------------------------------


def register(file: Path, name: str | None = None, *, replace: bool = False) -> dict[str, Any]:
    """Copies a model or pack to where it is found under `name` (its own), with its golden blobs, after `verify`.

    Returns its row and its path. The same content under the same name again changes nothing. Raises DataError (a bad
    name, one that is taken by other content and not to be replaced, one that ships), FormatError, UnknownModel (of a
    pack), OSError.
    """
    opened = open_file(file)
    name = name or file.stem
    if not _NAME.fullmatch(name) or name.endswith(SUFFIXES):
        raise DataError(f"{name!r} is no name for a model: letters, digits, . _ and -, 64 at most, without a suffix")
    folder = destination()
    target = folder / f"{name}{file.suffix}"
    if (PACKAGED / target.name).exists():
        raise DataError(f"{name} ships with nbmf: take another name")
    if target.exists() and not replace:
        other = _id_of(target)
        if other is None or other != opened.id:
            raise DataError(f"{name} is {other.hex()[:8] if other else 'another file'} already: --replace, or --name")
    checked = verify(file)
    blobs = golden(file)
    folder.mkdir(parents=True, exist_ok=True)
    _put(_golden_of(target), json.dumps(blobs, ensure_ascii=False, indent=1).encode())
    if not (target.exists() and target.samefile(file)):
        _put(target, file)
    return {**about(target), "path": str(target), **{key: checked[key] for key in ("profiles", "values")}}


def _id_of(path: Path) -> bytes | None:
    try:
        return open_file(path).id
    except (NbmfError, OSError):
        return None


def _put(target: Path, content: bytes | Path) -> None:
    """Writes a file whole or not at all."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        if isinstance(content, Path):
            shutil.copyfile(content, partial)
        else:
            partial.write_bytes(content)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def remove(name: str) -> dict[str, Any]:
    """Takes away what is registered under a name, and its golden blobs. Raises UnknownModel, DataError: it ships."""
    found = find(name)
    if found.path.parent == PACKAGED:
        raise DataError(f"{name} ships with nbmf and stays")
    row = about(found.path) if _id_of(found.path) else {"name": found.name, "folder": str(found.path.parent)}
    found.path.unlink()
    _golden_of(found.path).unlink(missing_ok=True)
    return row


# -- proving -----------------------------------------------------------------------------------------------------------


def verify(file: Path) -> dict[str, Any]:
    """Proves a model or pack: its id is its content's hash, it opens, every value comes back, golden blobs are right.

    Raises FormatError (damaged), DataError (what does not come back, or a golden blob that changed), UnknownModel (of a
    pack), OSError.
    """
    opened = open_file(file)
    if content_id(opened.buffer) != opened.id:  # what is open may have been hashed before it was damaged
        raise DataError(f"{file}: its content does not have the id {opened.id.hex()[:8]} that it names")
    values = _values()
    codecs = _codecs(file, opened)
    for profile, codec in codecs:
        for value, back in zip(values, codec.decode_many(codec.encode_many(values)), strict=True):
            if to_raw(back) != to_raw(value):
                raise DataError(f"{file}: in profile {profile} {_brief(value)} does not come back")
    known = _known(file, opened)
    by_profile = dict(codecs)
    for line in known:
        blob, codec = bytes.fromhex(line["blob"]), by_profile[line["profile"]]
        if to_raw(codec.decode(blob)) != to_raw(line["value"]) or codec.encode(line["value"]) != blob:
            raise DataError(
                f"{file}: the golden blob of {_brief(line['value'])} in {line['profile']} is not what it was"
            )
    return {
        "name": file.stem,
        "is": "pack" if isinstance(opened, Pack) else "model",
        "id": opened.id.hex(),
        "bytes": file.stat().st_size,
        "profiles": [profile for profile, _ in codecs],
        "values": len(values),
        "golden_blobs": len(known),
    }


def golden(file: Path) -> list[dict[str, Any]]:
    """The golden blobs of a file, in every profile."""
    opened = open_file(file)
    return [
        {"model": opened.id.hex()[:8], "profile": profile, "blob": codec.encode(value).hex(), "value": value}
        for profile, codec in _codecs(file, opened)
        for value in _values()
    ]


def _codecs(file: Path, opened: Model | Pack) -> Sequence[tuple[str, Codec]]:
    model = model_by_id(opened.model_id) if isinstance(opened, Pack) else opened
    domain = opened if isinstance(opened, Pack) else None
    return [(profile, Codec(str(model.path), profile, domain)) for profile in model.profiles]


def _values() -> list[Any]:
    """Values of every form, in the order of the package's golden blobs."""
    found: dict[str, Any] = {}
    for line in json.loads((PACKAGED / GOLDEN).read_text(encoding="utf-8")):
        found.setdefault(json.dumps(line["value"]), line["value"])
    return list(found.values())


def _golden_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.{GOLDEN}")


def _known(file: Path, opened: Model | Pack) -> list[dict[str, Any]]:
    """The golden blobs that lie beside a file, or in the package, and are its own. Raises DataError: no such list."""
    beside = PACKAGED / GOLDEN if file.resolve().parent == PACKAGED else _golden_of(file)
    if not beside.is_file():
        return []
    try:
        lines = json.loads(beside.read_text(encoding="utf-8"))
        return [line for line in lines if line["model"] == opened.id.hex()[:8]]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{beside}: no list of golden blobs") from None


def _brief(value: Any) -> str:
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
