"""A knowledge graph in a store, as the MCP reference memory server keeps one in a file.

Records are those that policy/sources/mcp_graph.py makes of that file: entities below ("entities",) by name, relations
below ("relations",), each a line of the file. Changes to one graph happen one after the other, over all threads and
processes, so that none of two clients undoes what the other did.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from nbmf.codec.values import json_text
from nbmf.errors import DataError, PolicyError, StoreError
from nbmf.memory import Memory
from nbmf.memory.adapters import MemoryDestination
from nbmf.memory.encoding import value_of
from nbmf.memory.items import DeleteOp, MemoryOp, PutOp, meta_of, moment, now
from nbmf.policy.sources import Incoming, open_source
from nbmf.policy.sources.mcp_graph import ENTITIES, LINE, RELATIONS, is_graph
from nbmf.store.base import PAGE, Namespace, check_address
from nbmf.store.files import FileLock

IMPORTS: Final = "imports"  # the namespace of what was taken in: a record a file
LOCK: Final = "graph.lock"  # in the store's folder, empty
TURN: Final = int.from_bytes(hashlib.blake2b(b"nbmf knowledge graph", digest_size=7).digest(), "big")  # of PostgreSQL
PLACE: Final = "place"  # the entry of `meta` with a record's place among those of one call
NAME_SHOWN: Final = 100  # characters of a name in a message
BATCH: Final = 512  # lines of a file that are put in one transaction

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Node:
    """A record of the graph."""

    key: str
    line: Line
    created: datetime
    meta: dict[str, Any] | None

    @property
    def order(self) -> tuple[datetime, int, int, str]:
        """Where it stands: as it was created, those of one file or call as they stood there."""
        meta = self.meta or {}
        return self.created, meta.get(LINE, 0), meta.get(PLACE, 0), self.key


@dataclass
class Loaded:
    """A whole graph, in order."""

    entities: list[Node]
    relations: list[Node]

    def first(self, name: str) -> Node | None:
        """The entity of a name; of several, which only a file can have, the first."""
        return next((node for node in self.entities if node.line["name"] == name), None)


class Turns:
    """Whoever changes a graph of one store takes turns with all others, in every process."""

    def __init__(self, memory: Memory) -> None:
        folder = memory.parts.folder
        self._address = memory.parts.address
        self._file = None if folder is None else FileLock(folder / LOCK)
        self._threads = threading.Lock()
        self._server: Any = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raises StoreError (timeout, medium)."""
        if self._file is not None:
            with self._file.held():
                yield
            return
        with self._threads, self._advisory():
            yield

    @contextlib.contextmanager
    def _advisory(self) -> Iterator[None]:
        """A lock of the server's, which goes with its connection if this process dies."""
        import psycopg

        try:
            if self._server is None or self._server.closed:
                self._server = psycopg.connect(self._address, autocommit=True)
            self._server.execute("SELECT pg_advisory_lock(%s)", (TURN,))
        except psycopg.Error as error:
            raise StoreError(f"the turn of the graph was not given: {' '.join(str(error).split())}") from error
        try:
            yield
        finally:
            try:
                self._server.execute("SELECT pg_advisory_unlock(%s)", (TURN,))
            except psycopg.Error:
                self._server.close()

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


class Graph:
    """The graph below a namespace. Thread-safe; several processes may have the same one open."""

    def __init__(self, memory: Memory, root: Namespace, turns: Turns) -> None:
        self._memory = memory
        self._turns = turns
        self._root = root
        self._entities = (*root, ENTITIES)
        self._relations = (*root, RELATIONS)

    # -- reading -------------------------------------------------------------------------------------------------------

    def read_graph(self) -> dict[str, list[Line]]:
        """Every entity and every relation."""
        loaded = self._load()
        return _graph(loaded.entities, loaded.relations)

    def search_nodes(self, query: str) -> dict[str, list[Line]]:
        """The entities whose name, type or observations hold the query, in any case; and all their relations."""
        wanted = query.lower()
        loaded = self._load()

        def holds(line: Line) -> bool:
            texts = (line["name"], line["entityType"], *line["observations"])
            return any(isinstance(text, str) and wanted in text.lower() for text in texts)

        return _chosen(loaded, [node for node in loaded.entities if holds(node.line)])

    def open_nodes(self, names: Iterable[str]) -> dict[str, list[Line]]:
        """The entities of these names, and all their relations."""
        wanted = set(names)
        loaded = self._load()
        return _chosen(loaded, [node for node in loaded.entities if node.line["name"] in wanted])

    # -- changing ------------------------------------------------------------------------------------------------------

    def create_entities(self, entities: Sequence[Line]) -> list[Line]:
        """Adds those whose names are new; returns them."""
        with self._turns.held():
            loaded = self._load()
            known = {node.line["name"] for node in loaded.entities}
            keys = {node.key for node in loaded.entities}
            fresh: list[Line] = []
            ops: list[MemoryOp] = []
            for entity in entities:
                if entity["name"] in known:
                    continue
                known.add(entity["name"])
                fresh.append(entity)
                ops.append(
                    self._put(self._entities, _free(entity["name"], keys), {"type": "entity", **entity}, len(ops))
                )
            self._memory.batch(ops)
        return fresh

    def create_relations(self, relations: Sequence[Line]) -> list[Line]:
        """Adds those that are new; returns them. Raises PolicyError if an end is no entity: then none was added."""
        with self._turns.held():
            loaded = self._load()
            names = {node.line["name"] for node in loaded.entities}
            for relation in relations:
                for end in ("from", "to"):
                    if relation[end] not in names:
                        raise _missing(relation[end])
            known = {_triple(node.line) for node in loaded.relations}
            keys = {node.key for node in loaded.relations}
            fresh: list[Line] = []
            ops: list[MemoryOp] = []
            for relation in relations:
                triple = _triple(relation)
                if triple in known:
                    continue
                known.add(triple)
                fresh.append(relation)
                key = _free(json_text([relation["from"], relation["relationType"], relation["to"]]), keys)
                ops.append(self._put(self._relations, key, {"type": "relation", **relation}, len(ops)))
            self._memory.batch(ops)
        return fresh

    def add_observations(self, observations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Adds to entities what they have not yet; returns what was added. Raises PolicyError: then nothing was."""
        with self._turns.held():
            loaded = self._load()
            changed: dict[str, Node] = {}
            results: list[dict[str, Any]] = []
            for one in observations:
                name = one["entityName"]
                node = loaded.first(name)
                if node is None:
                    raise _missing(name)
                node = changed.get(node.key, node)
                added = [text for text in one["contents"] if text not in node.line["observations"]]
                results.append({"entityName": name, "addedObservations": added})
                if added:
                    changed[node.key] = _with(node, [*node.line["observations"], *added])
            self._replace(changed.values())
        return results

    def delete_entities(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """Deletes entities and the relations that begin or end at them; which there were, and which not."""
        gone = set(names)
        with self._turns.held():
            loaded = self._load()
            present = {node.line["name"] for node in loaded.entities}
            ops: list[MemoryOp] = [
                DeleteOp(self._relations, node.key)
                for node in loaded.relations
                if node.line["from"] in gone or node.line["to"] in gone
            ]
            ops += [DeleteOp(self._entities, node.key) for node in loaded.entities if node.line["name"] in gone]
            self._memory.batch(ops)
        return [name for name in names if name in present], [name for name in names if name not in present]

    def delete_observations(self, deletions: Sequence[dict[str, Any]]) -> tuple[int, list[str]]:
        """Deletes observations; how many, and the entities that there are not."""
        count = 0
        missing: list[str] = []
        with self._turns.held():
            loaded = self._load()
            changed: dict[str, Node] = {}
            for one in deletions:
                node = loaded.first(one["entityName"])
                if node is None:
                    missing.append(one["entityName"])
                    continue
                node = changed.get(node.key, node)
                kept = [text for text in node.line["observations"] if text not in one["observations"]]
                if gone := len(node.line["observations"]) - len(kept):
                    count += gone
                    changed[node.key] = _with(node, kept)
            self._replace(changed.values())
        return count, missing

    def delete_relations(self, relations: Sequence[Line]) -> int:
        """Deletes relations; how many there were."""
        gone = {_triple(relation) for relation in relations}
        with self._turns.held():
            loaded = self._load()
            ops = [DeleteOp(self._relations, node.key) for node in loaded.relations if _triple(node.line) in gone]
            self._memory.batch(ops)
        return len(ops)

    # -- taking in a file ----------------------------------------------------------------------------------------------

    def take_in(self, path: Path) -> int | None:
        """Adds every line of a memory.jsonl whose address is free; how many. None if this file was taken in before.

        So what is deleted later does not come back. Raises DataError for a line that is none: then nothing was added.
        """
        name = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
        marker = (*self._root, IMPORTS), f"sha256:{name}"
        with self._turns.held():
            if self._memory.item(*marker) is not None:
                return None
            if not path.is_file():
                raise StoreError(f"{path} is no file")
            with open_source(path, "mcp", namespace=self._root or None) as source:
                lines: list[Incoming] = []
                for item in source.items():
                    if not isinstance(item, Incoming):
                        raise DataError(f"{path}: {item.origin}: {item.reason}; nothing was taken in")
                    lines.append(item)
            destination = MemoryDestination(self._memory)
            count = 0
            for at in range(0, len(lines), BATCH):
                batch = lines[at : at + BATCH]
                there = destination.read_many([(one.namespace, one.key) for one in batch])
                fresh = [one for one, old in zip(batch, there, strict=True) if old is None]
                destination.put_many(fresh)
                count += len(fresh)
            self._memory.put(
                *marker, {"file": path.name, "lines": len(lines), "added": count}, cls="import", index=False
            )
        return count

    # -- records -------------------------------------------------------------------------------------------------------

    def _load(self) -> Loaded:
        return Loaded(self._nodes(self._entities, "entity"), self._nodes(self._relations, "relation"))

    def _nodes(self, namespace: Namespace, kind: str) -> list[Node]:
        """What is of the graph in a namespace; other records there are left alone."""
        found: dict[str, Node] = {}  # one that moves between the tiers meanwhile comes twice
        live = (record for record, _ in self._memory.live(namespace, now()) if record.namespace == namespace)
        while batch := list(itertools.islice(live, PAGE)):
            for record, pair in zip(batch, self._memory.pairs(batch), strict=True):
                line = value_of(pair)
                if is_graph(line) and line["type"] == kind:
                    found[record.key] = Node(record.key, line, moment(record.created), meta_of(record.meta))
        return sorted(found.values(), key=lambda node: node.order)

    def _put(self, namespace: Namespace, key: str, line: Line, place: int) -> PutOp:
        return PutOp(namespace, key, line, line["type"], meta={PLACE: place} if place else None)

    def _replace(self, nodes: Iterable[Node]) -> None:
        self._memory.batch([PutOp(self._entities, node.key, node.line, "entity", meta=node.meta) for node in nodes])


def _graph(entities: Iterable[Node], relations: Iterable[Node]) -> dict[str, list[Line]]:
    names = ("name", "entityType", "observations"), ("from", "to", "relationType")
    return {
        "entities": [{name: node.line[name] for name in names[0]} for node in entities],
        "relations": [{name: node.line[name] for name in names[1]} for node in relations],
    }


def _chosen(loaded: Loaded, entities: Sequence[Node]) -> dict[str, list[Line]]:
    names = {node.line["name"] for node in entities}
    return _graph(
        entities, [node for node in loaded.relations if node.line["from"] in names or node.line["to"] in names]
    )


def _triple(relation: Line) -> tuple[str, str, str]:
    return relation["from"], relation["relationType"], relation["to"]


def _with(node: Node, observations: list[Any]) -> Node:
    return Node(node.key, {**node.line, "observations": observations}, node.created, node.meta)


def _missing(name: str) -> PolicyError:
    shown = name if len(name) <= NAME_SHOWN else name[:NAME_SHOWN] + "…"
    return PolicyError(f"Entity with name {shown} not found")


def _free(key: str, taken: set[str]) -> str:
    """The key of a new record, as policy/sources/mcp_graph.py would choose it; it is taken from then on."""
    free = _fitting(key)
    for number in itertools.count(2):
        if free not in taken:
            break
        free = _fitting(f"{_fitting(key)}#{number}")
    taken.add(free)
    return free


def _fitting(key: str) -> str:
    try:
        check_address((ENTITIES,), key)
    except PolicyError:
        return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return key


__all__ = ["Graph", "Turns"]
