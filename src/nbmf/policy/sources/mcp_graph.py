"""The MCP reference memory server's file of JSON lines: a knowledge graph of entities and relations.

    {"type": "entity", "name": ..., "entityType": ..., "observations": [...]}
    {"type": "relation", "from": ..., "to": ..., "relationType": ...}

| line     | namespace      | key                                                | class    | value          |
|----------|----------------|----------------------------------------------------|----------|----------------|
| entity   | ("entities",)  | its name                                           | entity   | the whole line |
| relation | ("relations",) | compact JSON of the list [from, relationType, to]  | relation | the whole line |

A key that no tier can keep (empty, or more than 1,024 bytes) becomes "sha256:" and the hex digest of it. A key that
stands for an earlier line already gets "#2", "#3", ... at its end. `meta` keeps the line's number, so that `lines` can
give back the file, line by line and byte for byte as the server writes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final

from nbmf.codec import values
from nbmf.errors import FormatError, NbmfError, PolicyError
from nbmf.policy.sources.base import Incoming, Item, Source, Unreadable, parse_text
from nbmf.policy.sources.jsonl import lines_of
from nbmf.store.base import Namespace, check_address

ENTITIES: Final = "entities"
RELATIONS: Final = "relations"
LINE: Final = "line"  # the entry of `meta` with the line's number, from 1
_TEXTS: Final = {"entity": ("name", "entityType"), "relation": ("from", "to", "relationType")}


class McpGraph(Source):
    """The graph in the file `path`. Its namespaces stand below `namespace`, () for none."""

    kind = "mcp"

    def __init__(self, path: Path, *, namespace: Namespace = ()) -> None:
        self.address = str(path.absolute())
        self._path = path
        self._namespace = namespace

    def size(self) -> int:
        return self._path.stat().st_size

    def items(self) -> Iterator[Item]:
        seen: set[tuple[str, str]] = set()
        for number, line in lines_of(self._path):
            if isinstance(line, Unreadable):
                yield line
                continue
            origin = f"line {number}"
            try:
                value = parse_text(line)
                if not is_graph(value):
                    raise FormatError("neither an entity nor a relation")
                kind = value["type"]
                key = _free(kind, _key(value), seen)
            except NbmfError as error:
                yield Unreadable(origin, str(error), line)
                continue
            namespace = (*self._namespace, ENTITIES if kind == "entity" else RELATIONS)
            yield Incoming(namespace, key, value, cls=kind, meta={LINE: number}, origin=origin)


def lines(records: Iterable[Incoming]) -> Iterator[str]:
    """The lines of the server's file, in their old order; records that came later follow, in the order given.

    Joined with line feeds they are the file.
    """
    last = float("inf")
    for record in sorted(records, key=lambda record: (record.meta or {}).get(LINE, last)):
        yield values.json_text(record.value)


def is_graph(line: Any) -> bool:
    """Whether a JSON value is a line of such a file."""
    if type(line) is not dict or line.get("type") not in ("entity", "relation"):
        return False
    return all(type(line.get(field)) is str for field in _TEXTS[line["type"]]) and (
        line["type"] == "relation" or type(line.get("observations")) is list
    )


def _key(value: dict[str, Any]) -> str:
    key: str = (
        value["name"]
        if value["type"] == "entity"
        else values.json_text([value["from"], value["relationType"], value["to"]])
    )
    return _fitting(key)


def _fitting(key: str) -> str:
    try:
        check_address((ENTITIES,), key)
    except PolicyError:
        return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return key


def _free(kind: str, key: str, seen: set[tuple[str, str]]) -> str:
    free = key
    numbers = count(2)
    while (kind, free) in seen:
        free = _fitting(f"{key}#{next(numbers)}")
    seen.add((kind, free))
    return free
