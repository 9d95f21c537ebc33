"""Training records: JSONL, plain or .xz, one record a line.

A line is `{"data": value, "metadata": {"source": name, "kind": name}}`, where only `data` is needed, or any other JSON
value, which is then the record itself. Records of one source stay together when a part is held back by source.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbmf.codec.adapt import json_lines
from nbmf.codec.counting import Records
from nbmf.codec.format import SEGMENT_SIZE
from nbmf.codec.values import to_raw
from nbmf.errors import DataError

Tick = Callable[..., None]


@dataclass(frozen=True)
class Corpus:
    """Records, and the number of each one's source in `sources`."""

    records: Records
    source: NDArray[np.int32]
    sources: list[str]

    def select(self, indices: NDArray[np.int64]) -> Corpus:
        return Corpus(self.records.select(indices), self.source[indices], self.sources)


def files_of(paths: Sequence[str | Path]) -> list[Path]:
    """The .jsonl and .jsonl.xz files among paths and, in order of name, in folders. Raises DataError on none."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = (
            sorted(p for p in path.iterdir() if p.name.endswith((".jsonl", ".jsonl.xz"))) if path.is_dir() else [path]
        )
        found += inside
    if not found:
        raise DataError("no .jsonl or .jsonl.xz file in " + ", ".join(map(str, paths)))
    return found


def lines_of(path: Path) -> Iterator[Any]:
    """The JSON value of each line. Raises DataError naming the line at fault."""
    with lzma.open(path, "rb") if path.name.endswith(".xz") else path.open("rb") as file:
        yield from json_lines(file, str(path))


def load(paths: Sequence[str | Path], tick: Tick = lambda *_: None) -> Corpus:
    """All records of the files. Empty ones are left out; of a long one the first segment is taken."""
    pairs: list[tuple[int, bytes]] = []
    source: list[int] = []
    numbers: dict[str, int] = {}
    files = files_of(paths)
    for at, path in enumerate(files):
        tick("reading", at, len(files))
        for line in lines_of(path):
            value, name = line, path.name
            if isinstance(line, dict) and "data" in line:
                value = line["data"]
                about = line.get("metadata")
                if isinstance(about, dict):
                    name = str(about.get("source", name))
            value_type, raw = to_raw(value, allow_nan=True)
            if raw:
                pairs.append((value_type, raw[:SEGMENT_SIZE]))
                source.append(numbers.setdefault(name, len(numbers)))
    tick("reading", len(files), len(files))
    if not pairs:
        raise DataError("the files hold no records")
    return Corpus(Records.of(pairs), np.array(source, np.int32), list(numbers))
