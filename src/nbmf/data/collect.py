"""Collecting records for training, from wherever a user keeps them, into one file of lines (lines.py).

| source                                     | records                                      | source, group          |
|--------------------------------------------|----------------------------------------------|------------------------|
| an NBMF store, or an old one               | every live record; the class is the kind     | tenant, namespace      |
| LangGraph's SqliteStore                    | its items                                    | likewise               |
| a memory.jsonl of the MCP server           | entities and relations                       | the file               |
| JSON lines, plain, .gz, .xz                | values; `data` lines; records as migrated    | the line's, else file  |
| .json                                      | each item of an array; any other value whole | the file               |
| .txt, .md, .rst                            | paragraphs joined to pieces                  | the file, the file     |
| .log                                       | its lines                                    | the file, the file     |
| a folder                                   | all files below of these forms               | as above; of texts: it |
| -                                          | standard input: JSON lines, unless told      | stdin                  |
| sqlite:///FILE, postgresql://… and a query | a column's value, or an object of several    | database, its column   |

Memory is bounded by the largest record.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nbmf.codec.values import BYTES, VALUE_TYPES, VECTOR, to_raw
from nbmf.data import query, texts
from nbmf.data.lines import WRITTEN, Line, writing
from nbmf.data.texts import JSON, LINES, TEXT
from nbmf.errors import DataError, NbmfError, StoreError
from nbmf.memory.adapters import source_of
from nbmf.memory.opening import holds_store, is_encrypted, is_postgres, public_address
from nbmf.policy.sources import DEFAULT_NAMESPACE, Incoming, Source, Unreadable, detect, open_source
from nbmf.policy.sources.base import printable
from nbmf.policy.sources.jsonl import SUFFIXES
from nbmf.report import Tick
from nbmf.store_access import Access, namespace_text

TICK: Final = 500  # records
TEXT_NAMES: Final = (".txt", ".md", ".markdown", ".rst", ".text")
LOG_NAMES: Final = (".log",)
NBMF: Final = "nbmf"
# The forms: files of texts, a store of ours, and what `open_source` knows.
KINDS: Final = (NBMF, "jsonl", "jsonl-values", JSON, TEXT, LINES, "langgraph", "mcp", "stub")
STDIN: Final = "-"


@dataclass(frozen=True, slots=True)
class Options:
    """What to read and what to call it; a `source` or `kind` given here is every record's."""

    form: str | None = None  # one of KINDS, for all sources
    query: str | None = None
    group: str | None = None  # the query's column that is the group
    source: str | None = None
    kind: str | None = None
    limit: int | None = None
    skip_bad: bool = False
    piece: int = texts.PIECE
    access: Access = field(default_factory=Access)


@dataclass
class Left:
    """What was not collected."""

    bad: int = 0
    values: int = 0  # bytes and vectors, which no JSON has
    files: int = 0  # of a folder, of no form that is known


def run(sources: Sequence[str], out: str | Path, options: Options, tick: Tick) -> dict[str, Any]:
    """Writes the records of the sources, in order, to `out` (.jsonl or .jsonl.xz), whole or not at all. Their figures.

    Raises DataError naming file and line of what is no record (unless `skip_bad`), and where there is none at all;
    StoreError, PolicyError, OSError.
    """
    path = Path(out)
    if not path.name.endswith(WRITTEN):
        raise DataError(f"{printable(str(path))}: the file to write ends in {' or '.join(WRITTEN)}")
    if options.query is not None and len(sources) != 1:
        raise DataError("a query is of one database: name it, and nothing else")
    started = time.monotonic()
    left = Left()
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    with writing(path) as file:
        for line in limited(lines(sources, options, left), options.limit):
            file.write(line.bytes())
            counts[line.source] += 1
            sizes[line.source] += len(to_raw(line.value, allow_nan=True)[1])
            if counts.total() % TICK == 0:
                tick("collecting", counts.total(), options.limit)
        if not counts:
            raise DataError(f"there are no records in {', '.join(map(shown, sources))}")
    return {
        "out": str(path),
        "records": counts.total(),
        "raw_bytes": sizes.total(),
        "file_bytes": path.stat().st_size,
        "left_out": {"bad lines": left.bad, "bytes and vectors": left.values, "files of other forms": left.files},
        "by_source": [
            {"source": name, "records": count, "raw_bytes": sizes[name]} for name, count in counts.most_common()
        ],
        "seconds": round(time.monotonic() - started, 2),
    }


def shown(source: str) -> str:
    """A source as messages and metadata name it: no password."""
    return public_address(source) if is_postgres(source) else "standard input" if source == STDIN else printable(source)


def limited(lines: Iterator[Line], limit: int | None) -> Iterator[Line]:
    """The first `limit` of them; what they are read from is closed."""
    try:
        for number, line in enumerate(lines):
            if limit is not None and number >= limit:
                return
            yield line
    finally:
        if (close := getattr(lines, "close", None)) is not None:
            close()


def lines(sources: Sequence[str], options: Options, left: Left) -> Iterator[Line]:
    """The records of every source."""
    for source in sources:
        with ExitStack() as stack:
            yield from _of_source(source, options, left, stack)


def _of_source(source: str, options: Options, left: Left, stack: ExitStack) -> Iterator[Line]:
    if options.query is not None:
        yield from _of_query(source, options, left)
        return
    if source.startswith(query.SQLITE):
        raise DataError(f"{source} needs a --query; a LangGraph database is read without, by its path")
    path = Path(source)
    if is_postgres(source) or (options.form in (None, NBMF) and path.is_dir() and holds_store(path)):
        memory = stack.enter_context(
            options.access.open(source, keyless=not is_postgres(source) and not is_encrypted(path))
        )
        yield from _of_items(stack.enter_context(source_of(memory)), "", "", options, left)
        return
    if source == STDIN:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nbmf-"))) / "stdin"
        with path.open("wb") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
        yield from _of_file(path, options.form or "jsonl", "stdin", "stdin", options, left)
        return
    name = printable(path.resolve().name)
    if not path.exists():
        raise DataError(f"{printable(source)} does not exist")
    if not path.is_dir() or (options.form in (None, "stub") and (path / "records").is_dir() and detect(path) == "stub"):
        yield from _of_file(path, options.form or form_of(path), name, name, options, left)
        return
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        inside = file.relative_to(path)
        form = options.form or form_by_name(file)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if form is None:
            left.files += 1
        else:
            within = printable(str(inside))
            yield from _of_file(file, form, name if form in (TEXT, LINES) else within, within, options, left)


def form_by_name(path: Path) -> str | None:
    """The form of a file by the end of its name; None: not known."""
    name = path.name.lower()
    if name.endswith((*SUFFIXES, ".ndjson")):
        return "jsonl"
    suffix = path.suffix.lower()
    return JSON if suffix == ".json" else TEXT if suffix in TEXT_NAMES else LINES if suffix in LOG_NAMES else None


def form_of(path: Path) -> str:
    """The form of a file that is named: by its name, else by its content, else text."""
    named = form_by_name(path)
    if named not in (None, "jsonl"):
        return str(named)
    try:
        return detect(path)
    except StoreError:
        raise
    except NbmfError:
        return named or TEXT


# -- items of stores and files of lines --------------------------------------------------------------------------------


def _of_file(path: Path, form: str, name: str, file: str, options: Options, left: Left) -> Iterator[Line]:
    """The records of one file; `name` is their source, `file` what ids and messages call it."""
    if form not in KINDS:
        raise DataError(f"the form {form!r} is none of {', '.join(KINDS)}")
    if form == NBMF:
        raise DataError(f"{printable(str(path))} holds no store")
    if form in texts.READERS:
        try:
            for number, value in texts.READERS[form](path, file, options.piece):
                value_type = VALUE_TYPES[to_raw(value, allow_nan=True)[0]]
                about = {"source": name, "kind": "log" if form == LINES else value_type}
                if form != JSON:
                    about["group"] = file
                yield _named(Line(value, about, f"{file}:{number}"), options)
        except texts.Bad as error:  # what follows in the file is lost with it
            if not options.skip_bad:
                raise DataError(str(error)) from None
            left.bad += 1
        return
    with open_source(path, form) as source:
        yield from _of_items(source, name, file, options, left)


def _of_items(source: Source, name: str, file: str, options: Options, left: Left) -> Iterator[Line]:
    """The items of a source; of one with namespaces, the first segment is their source and the whole their group."""
    for item in source.items():
        origin, number = item.origin, item.origin.rpartition(":")[2]
        if source.kind == "jsonl" and number.isdigit():
            origin = f"{file}:{number}"
        if isinstance(item, Unreadable):
            if not options.skip_bad:
                place = f"{file}, line {number}" if source.kind == "jsonl" and number.isdigit() else origin
                raise DataError(f"{place}: {item.reason}")
            left.bad += 1
        elif (line := _line(item, name, source.kind, origin)) is None:
            left.values += 1
        else:
            yield _named(line, options)


def _line(item: Incoming, name: str, form: str, origin: str) -> Line | None:
    """An item as a line; None for bytes and vectors."""
    value_type = to_raw(item.value, allow_nan=True)[0]
    if value_type == BYTES or value_type >= VECTOR:
        return None
    about: dict[str, Any] = dict(item.meta or {}) if form == "jsonl" else {}
    if form in (NBMF, "langgraph", "stub") or (form == "jsonl" and item.namespace != DEFAULT_NAMESPACE):
        about.setdefault("group", namespace_text(item.namespace))
        name = item.namespace[0]
    if type(about.get("source")) is not str:
        about["source"] = name
    about["kind"] = item.cls or VALUE_TYPES[value_type]
    return Line(item.value, about, origin)


def _named(line: Line, options: Options) -> Line:
    given = {key: value for key, value in (("source", options.source), ("kind", options.kind)) if value is not None}
    return Line(line.value, {**line.about, **given}, line.id) if given else line


# -- a query -----------------------------------------------------------------------------------------------------------


def _of_query(address: str, options: Options, left: Left) -> Iterator[Line]:
    assert options.query is not None
    name = query.name_of(address)
    for number, (value, group) in enumerate(query.rows(address, options.query, options.group), 1):
        value_type = to_raw(value, allow_nan=True)[0]
        if value_type == BYTES:
            left.values += 1
            continue
        about = {"source": name, "kind": VALUE_TYPES[value_type]} | ({} if group is None else {"group": group})
        yield _named(Line(value, about, f"{name}, row {number}"), options)
