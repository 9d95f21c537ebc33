"""The records that are measured: read from files of JSON lines, from a store, or those that ship."""

from __future__ import annotations

import lzma
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nbmf import samples
from nbmf.codec.values import JSON, VALUE_TYPES, from_raw, to_raw
from nbmf.errors import DataError, NbmfError, UnsupportedValue
from nbmf.memory import Memory
from nbmf.memory.encoding import value_of
from nbmf.memory.items import now
from nbmf.memory.opening import holds_store, is_postgres, public_address
from nbmf.report import Tick

SEED: Final = 20260101  # of the sample, the order of the shipped samples and the bootstrap
SUFFIXES: Final = (".jsonl", ".jsonl.xz")
SHIPPED: Final = "shipped samples"


@dataclass(frozen=True)
class Record:
    """A record to measure, and where it is from. `domain` is "" where nothing is known of it."""

    value: Any
    kind: str
    source: str
    value_type: int
    raw: bytes
    domain: str = ""


def record(value: Any, kind: str | None, source: str, domain: str = "") -> Record:
    """Raises UnsupportedValue."""
    value_type, raw = to_raw(value)
    return Record(value, kind or VALUE_TYPES[value_type], source, value_type, raw, domain)


def is_equal(one: Record, back: Any) -> bool:
    """Raw bytes and type tell 1 from 1.0 from true, one key order from another, and text from JSON."""
    return to_raw(back, allow_nan=True) == (one.value_type, one.raw)


# -- files -------------------------------------------------------------------------------------------------------------


def paths(names: Sequence[str | Path]) -> Iterator[Path]:
    """The files named, and those in the folders named. Raises DataError for a folder without any."""
    for path in map(Path, names):
        if not path.is_dir():
            yield path
            continue
        found = sorted(one for one in path.rglob("*") if one.name.endswith(SUFFIXES) and one.is_file())
        if not found:
            raise DataError(f"{path}: no .jsonl or .jsonl.xz file in this folder")
        yield from found


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and text of every line that is not empty. Raises DataError."""
    with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, 1):
                if stripped := line.strip():
                    yield number, stripped
        except (lzma.LZMAError, EOFError) as error:
            raise DataError(f"{path}: {error}") from error


def parsed(path: Path, number: int, line: bytes) -> Record:
    """A line is an object with `data` and `metadata`, or a JSON value by itself. Raises DataError naming the line."""
    try:
        value = from_raw(JSON, line)
        about = value.get("metadata") if type(value) is dict and "data" in value else None
        if type(about) is dict:
            domain = value.get("domain")
            source = str(about.get("source") or path.name)
            return record(value["data"], about.get("kind"), source, domain if type(domain) is str else "")
        return record(value, None, path.name)
    except NbmfError as error:
        raise DataError(f"{path}: line {number}: {error}") from error


# -- stores ------------------------------------------------------------------------------------------------------------


def is_store(name: str | Path) -> bool:
    """Whether a name is that of a store, and not of files of records."""
    return is_postgres(str(name)) or (Path(name).is_dir() and holds_store(Path(name)))


def of_store(name: str | Path, tick: Tick) -> Iterator[Record]:
    """The live records of a store: the class is the kind, the tenant the source. Raises as `Memory.open`."""
    with Memory.open(name, embedder=None, create=False) as memory:
        for number, (found, _) in enumerate(memory.live((), now()), 1):
            value = value_of(memory.codecs.decode(found.codec, found.blob))
            yield record(value, found.cls or None, found.namespace[0])
            if number % 1000 == 0:
                tick("reading the store", number)


# -- both --------------------------------------------------------------------------------------------------------------


def every(names: Sequence[str | Path], tick: Tick, *, refused: bool = True) -> Iterator[Record]:
    """All records of files, folders and stores, in order. Raises DataError.

    Without `refused`, values that no store takes (NaN is no JSON) are passed over.
    """
    count = 0
    for name in names:
        if is_store(name):
            yield from of_store(name, tick)
            continue
        for path in paths([name]):
            for number, line in lines(path):
                try:
                    yield parsed(path, number, line)
                except DataError as error:
                    if refused or not isinstance(error.__cause__, UnsupportedValue):
                        raise
                count += 1
                if count % 1000 == 0:
                    tick("reading records", count)


def load(
    data: Sequence[str | Path], limit: int | None, tick: Tick, *, refused: bool = True
) -> tuple[list[Record], int]:
    """The records of `data`, or `limit` of them drawn by a fixed seed and kept in order; and how many there were.

    Without data, those that ship; `refused` as of `every`. Raises DataError (none, an unreadable line), OSError.
    """
    if data:
        found = list(every(data, tick, refused=refused))
    else:
        found = [record(sample.value, sample.kind, SHIPPED) for sample in samples.load()]
        random.Random(SEED).shuffle(found)  # they come kind by kind, and a half of them should hold every kind
    if not found:
        raise DataError("there are no records to measure")
    count = len(found)
    if limit is not None and limit < count:
        found = [found[place] for place in sorted(random.Random(SEED).sample(range(count), limit))]
    return found, count


def names_of(data: Sequence[str | Path]) -> list[str]:
    """What a result says of where its records are from: no folders, no passwords."""
    return [public_address(str(name)) if is_postgres(str(name)) else Path(name).name for name in data] or [SHIPPED]
