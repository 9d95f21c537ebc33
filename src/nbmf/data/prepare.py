"""Preparing records for training: validate, clean, leave out what is there twice, flag what is personal, split.

A record is never changed, but where personal data are masked. It is left out for the first of these reasons:

| reason         | it is left out when                                                                          |
|----------------|----------------------------------------------------------------------------------------------|
| invalid        | its line is not JSON in UTF-8, or its file is cut short                                      |
| surrogates     | a text or key holds a lone surrogate, which no UTF-8 can have                                |
| empty          | it has nothing but white space, or no text and no number: "", null, {}, [], [""]             |
| too long       | its raw bytes are more than `most_bytes`                                                     |
| binary         | of a text's characters more than 1 in 20 are controls or U+FFFD                              |
| exact copy     | an earlier record has the same type and the same raw bytes (by a digest of 64 bits)          |
| near copy      | it is like an earlier record that stays (near.py) to `near` or more                          |
| personal data  | it holds strings of such forms (pii.py), and `pii` is "drop"                                 |

Files are read twice: once to judge every record, for which about 300 bytes a record are kept, and once to write.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nbmf.codec.values import to_raw
from nbmf.data import near, pii, split
from nbmf.data.lines import Fault, Line, entry, files_of, read, writing
from nbmf.errors import DataError
from nbmf.report import Tick

REASONS: Final = (
    "invalid", "surrogates", "empty", "too long", "binary", "exact copy", "near copy", "personal data",
)  # fmt: skip
KEPT: Final = len(REASONS)  # the number that stands for no reason
INVALID, SURROGATES, EMPTY, TOO_LONG, BINARY, EXACT, NEAR, PERSONAL = range(KEPT)
SPLITS: Final = split.SPLITS
PII: Final = ("flag", "mask", "drop")
LEFT_OUT: Final = "left_out.jsonl"
PII_LIST: Final = "pii.jsonl"
MOST_BYTES: Final = 1 << 16
LIKENESS: Final = 0.8
AT_ONCE: Final = 512  # records whose signatures are made at once
TICK: Final = 1000  # records
SAMPLES: Final = 12  # records of the report
SIZES: Final = (0, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 1 << 62)  # bytes, where its columns of sizes begin


@dataclass(frozen=True, slots=True)
class Options:
    """How to prepare. `near` 0: near copies stay. Shares are of the records kept."""

    group: str = split.AUTO
    val: float = 0.05
    test: float = 0.05
    near: float = LIKENESS
    pii: str = "flag"
    most_bytes: int = MOST_BYTES
    seed: int = 1

    def check(self) -> None:
        if min(self.val, self.test) < 0 or self.val + self.test > 0.5:
            raise DataError("val and test take shares from 0 on, and half of the records at most together")
        if not 0 <= self.near <= 1:
            raise DataError(f"the likeness of near copies is between 0 and 1, not {self.near:g}")
        if self.pii not in PII:
            raise DataError(f"personal data are one of {', '.join(PII)}, not {self.pii}")


@dataclass
class Names:
    """Texts by number, in the order in which they came."""

    numbers: dict[str, int] = field(default_factory=dict)

    def number(self, name: str) -> int:
        return self.numbers.setdefault(name, len(self.numbers))

    @property
    def all(self) -> list[str]:
        return list(self.numbers)


@dataclass
class Judged:
    """What is known of every line, by its number: arrays of equal length."""

    reason: NDArray[np.uint8]  # a number of REASONS, or KEPT
    size: NDArray[np.int64]  # raw bytes
    digest: NDArray[np.uint64]
    source: NDArray[np.int32]
    kind: NDArray[np.int32]
    twin: NDArray[np.int64]  # for copies: the record that stays
    personal: dict[int, dict[str, int]]  # of records that are no copies: number -> form -> strings
    sources: list[str]
    kinds: list[str]
    groups: split.Groups


def run(inputs: Sequence[str | Path], out: str | Path, options: Options, tick: Tick) -> dict[str, Any]:
    """Prepares the files into the folder `out`: {train,val,test}.jsonl.xz and lists of what was left out and flagged.

    Returns the figures of the report. The same files and options give the same records in the same places. Raises
    DataError (nothing to read, nothing kept, a changed file), StoreError (a file can't be read), OSError.
    """
    options.check()
    started = time.monotonic()
    files = files_of(inputs)
    folder = Path(out)
    targets = [folder / f"{name}.jsonl.xz" for name in SPLITS]
    if clash := {path.resolve() for path in files} & {path.resolve() for path in targets}:
        raise DataError(f"{min(clash)} would be both read and written: choose another folder")
    judged = judge(files, options, tick)
    kept = judged.reason == KEPT
    if not kept.any():
        raise DataError("no record is left: " + _counted(judged.reason))
    dealt = split.deal(judged.groups, judged.digest, kept, (options.val, options.test), options.seed)
    folder.mkdir(parents=True, exist_ok=True)
    samples = write(files, folder, judged, dealt[0], options, tick)
    return {
        **figures(judged, *dealt),
        "samples": samples,
        "files": [path.name for path in files],
        "options": {name: getattr(options, name) for name in Options.__slots__},
        "out": str(out),
        "seconds": round(time.monotonic() - started, 2),
    }


def _counted(reason: NDArray[np.uint8]) -> str:
    counts = np.bincount(reason, minlength=KEPT)
    return ", ".join(f"{name}: {count:,}" for name, count in zip(REASONS, counts, strict=False) if count) or "no lines"


def every(files: Sequence[Path], tick: Tick, what: str, total: int | None) -> Iterator[tuple[int, Line | Fault]]:
    """All lines of the files by number, and progress."""
    number = -1
    for path in files:
        for line in read(path):
            number += 1
            if number % TICK == 0:
                tick(what, number, total)
            yield number, line
    tick(what, number + 1, number + 1)


# -- judging -----------------------------------------------------------------------------------------------------------


def judge(files: Sequence[Path], options: Options, tick: Tick) -> Judged:
    """Reads every line and decides on it."""
    sources, kinds = Names(), Names()
    grouping = split.Grouping(options.group)
    reason, size, digest, source, kind = [], [], [], [], []
    personal: dict[int, dict[str, int]] = {}
    minima: list[NDArray[np.uint32]] = []
    waiting: list[bytes] = []
    for number, line in every(files, tick, "reading", None):
        if isinstance(line, Fault):
            found, raw, hashed = INVALID, b"", 0
            names = ("", "")
            grouping.skip()
        else:
            value_type, raw = to_raw(line.value, allow_nan=True)
            found, text = _reason(line.value, raw, options)
            hashed = _digest(value_type, raw)
            names = (line.source, line.kind)
            grouping.add(line.about, line.source, line.id)
            if found == KEPT:
                if counts := pii.found_in(line.value):
                    personal[number] = counts
                waiting.append(near.normal(text))
                if len(waiting) == AT_ONCE:
                    minima.append(near.signatures(waiting))
                    waiting = []
        reason.append(found)
        size.append(len(raw))
        digest.append(hashed)
        source.append(sources.number(names[0]))
        kind.append(kinds.number(names[1]))
    minima.append(near.signatures(waiting))
    judged = Judged(
        np.array(reason, np.uint8),
        np.array(size, np.int64),
        np.array(digest, np.uint64),
        np.array(source, np.int32),
        np.array(kind, np.int32),
        np.full(len(reason), -1, np.int64),
        personal,
        sources.all,
        kinds.all,
        grouping.done(),
    )
    _copies(judged, np.concatenate(minima), options, tick)
    for number in [number for number in personal if judged.reason[number] != KEPT]:
        del personal[number]
    if options.pii == "drop":
        judged.reason[list(personal)] = PERSONAL
    return judged


def _digest(value_type: int, raw: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8, key=bytes([value_type])).digest(), "little")


def _reason(value: Any, raw: bytes, options: Options) -> tuple[int, str]:
    """Why a record is left out by itself, KEPT if it is not; and its text."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return SURROGATES, ""
    if is_empty(value):
        return EMPTY, text
    if len(raw) > options.most_bytes:
        return TOO_LONG, text
    odd = 0 if text.isprintable() else sum(c < " " and c not in "\t\n\r" for c in text)
    if 20 * (odd + text.count("\ufffd")) > len(text):
        return BINARY, text
    return KEPT, text


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: no number, no truth, and no text but white space, keys not counted."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        kind = type(one)
        if kind is list:
            waiting += one
        elif kind is dict:
            waiting += one.values()
        elif one is not None and (kind is not str or one.strip()):
            return False
    return True


def _copies(judged: Judged, minima: NDArray[np.uint32], options: Options, tick: Tick) -> None:
    """Marks exact and near copies. `minima`: of the records that are good by themselves, in order."""
    tick("looking for copies", 0, None)
    good = np.flatnonzero(judged.reason == KEPT)
    _, first, which = np.unique(judged.digest[good], return_index=True, return_inverse=True)
    original = first[which.reshape(-1)]
    copies = original != np.arange(len(good))
    judged.reason[good[copies]] = EXACT
    judged.twin[good[copies]] = good[original[copies]]
    if options.near > 0:
        rest = good[~copies]
        twin = near.alike(minima[~copies], options.near)
        judged.reason[rest[twin >= 0]] = NEAR
        judged.twin[rest[twin >= 0]] = rest[twin[twin >= 0]]


# -- writing -----------------------------------------------------------------------------------------------------------


def write(
    files: Sequence[Path], folder: Path, judged: Judged, place: NDArray[np.int8], options: Options, tick: Tick
) -> list[dict[str, Any]]:
    """Writes the records where `place` says, and the lists. Returns samples for the report, masked."""
    total = len(judged.reason)
    kept = np.flatnonzero(judged.reason == KEPT)
    chosen = set(kept[np.argsort(judged.digest[kept], kind="stable")][:SAMPLES].tolist())
    twins = judged.twin[judged.twin >= 0]
    named = dict.fromkeys(twins.tolist(), "")
    samples = []
    changed = DataError("a file was written to while it was read: run it again")
    with ExitStack() as stack:
        out = [stack.enter_context(writing(folder / f"{name}.jsonl.xz")) for name in SPLITS]
        left, flagged = (stack.enter_context(writing(folder / name)) for name in (LEFT_OUT, PII_LIST))
        number = -1
        for number, line in every(files, tick, "writing", total):
            if number >= total:
                raise changed
            reason = int(judged.reason[number])
            if number in named:
                named[number] = line.id
            if number in judged.personal:
                flagged.write(entry(id=line.id, **judged.personal[number]))
            if reason != KEPT:
                twin = int(judged.twin[number])
                about = {"why": line.reason} if isinstance(line, Fault) else {}
                like = {"of": named[twin]} if twin >= 0 else {}
                left.write(entry(id=line.id, reason=REASONS[reason], **about, **like))
                continue
            if isinstance(line, Fault):
                raise changed
            value_type, raw = to_raw(line.value, allow_nan=True)
            if _digest(value_type, raw) != int(judged.digest[number]):
                raise changed
            if number in judged.personal and options.pii == "mask":
                line = Line(pii.mask_value(line.value), line.about, line.id)
            out[place[number]].write(line.bytes())
            if number in chosen:
                samples.append(_sample(line, SPLITS[place[number]], len(raw)))
        if number + 1 != total:
            raise changed
    return samples


def _sample(line: Line, where: str, size: int) -> dict[str, Any]:
    value = line.value if type(line.value) is str else json.dumps(line.value, ensure_ascii=False)
    text = pii.mask(value[:400])
    return {
        "id": line.id,
        "source": line.source,
        "kind": line.kind,
        "in": where,
        "raw_bytes": size,
        "text": text + ("…" if len(value) > 400 else ""),
    }


# -- figures -----------------------------------------------------------------------------------------------------------


def figures(judged: Judged, place: NDArray[np.int8], unit: NDArray[np.int64], grouped: str) -> dict[str, Any]:
    """Counts and sizes, in all, by split, source, kind and size."""
    kept = judged.reason == KEPT
    sizes = judged.size[kept]
    counts = np.bincount(judged.reason, minlength=KEPT + 1)
    found: Counter[str] = Counter()
    holders: Counter[str] = Counter()
    for number in judged.personal:
        found.update(judged.personal[number])
        holders.update(judged.personal[number].keys())
    per_size = np.histogram(sizes, SIZES)[0]
    return {
        "lines": len(judged.reason),
        "kept": int(kept.sum()),
        "raw_bytes": int(sizes.sum()),
        "bytes_of_a_record": {
            f"p{share}": int(np.percentile(sizes, share, method="lower")) for share in (5, 50, 95, 99)
        },
        "left_out": {name: int(count) for name, count in zip(REASONS, counts, strict=False)},
        "splits": [_split(judged, kept & (place == at), unit, name) for at, name in enumerate(SPLITS)],
        "grouped_by": grouped,
        "groups": len(np.unique(unit[kept])),
        "by_source": _by(judged.source, judged.sources, judged.size, kept, place, "source"),
        "by_kind": _by(judged.kind, judged.kinds, judged.size, kept, place, "kind"),
        "by_size": [
            {"bytes": f"{low}–{high - 1}" if high < 1 << 62 else f"{low} and more", "records": int(count)}
            for low, high, count in zip(SIZES, SIZES[1:], per_size, strict=False)
        ],
        "personal": [
            {"form": kind, "records": holders[kind], "strings": found[kind]} for kind in pii.KINDS if holders[kind]
        ],
        "personal_records": len(judged.personal),
    }


def _split(judged: Judged, inside: NDArray[np.bool_], unit: NDArray[np.int64], name: str) -> dict[str, Any]:
    return {
        "split": name,
        "records": int(inside.sum()),
        "raw_bytes": int(judged.size[inside].sum()),
        "groups": len(np.unique(unit[inside])),
        "sources": len(np.unique(judged.source[inside])),
    }


def _by(
    which: NDArray[np.int32],
    names: list[str],
    size: NDArray[np.int64],
    kept: NDArray[np.bool_],
    place: NDArray[np.int8],
    label: str,
) -> list[dict[str, Any]]:
    """A row for each name that has records, the largest first."""
    rows = []
    records = np.bincount(which[kept], minlength=len(names))
    sizes = np.bincount(which[kept], size[kept], len(names))
    parts = [np.bincount(which[kept & (place == at)], minlength=len(names)) for at in range(len(SPLITS))]
    for at in np.argsort(-sizes, kind="stable"):
        if records[at]:
            row = {label: names[at], "records": int(records[at]), "raw_bytes": int(sizes[at])}
            rows.append(row | {name: int(part[at]) for name, part in zip(SPLITS, parts, strict=True)})
    return rows
