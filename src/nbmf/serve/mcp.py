"""A store for agents by the Model Context Protocol: five memory tools, and the nine of the reference memory server.

Every namespace a tool takes or gives is relative to a root: the server's own, or where tokens are asked for the first
namespace that the caller's token reaches.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.server.mcpserver.utilities.func_metadata import FuncMetadata
from mcp_types import CallToolResult, TextContent, ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field

from nbmf import __version__
from nbmf.errors import NbmfError, PolicyError, StoreError
from nbmf.memory import Memory
from nbmf.memory.items import LIMIT, Item
from nbmf.serve import wire
from nbmf.serve.auth import OPEN, Grant
from nbmf.serve.bearer import GRANT
from nbmf.serve.figures import figures_of
from nbmf.serve.graph import Graph, Turns
from nbmf.serve.logs import event
from nbmf.serve.watch import Watch, Watched
from nbmf.store.base import Namespace

NAME: Final = "nbmf"
ITEMS_MOST: Final = 100  # of a search: an agent reads them all
QUERY_MOST: Final = 2048  # characters of search_nodes' query
INSTRUCTIONS: Final = (
    "A long-term memory. Keep what will matter later with memory_put, under a namespace such as "
    '["users", "ann"] and a key of your choice; find it again with memory_search, by meaning or by a filter. '
    "The graph tools keep entities, what is known of each, and how they relate."
)

_NAMESPACE: Final = 'Segments from the outermost in, such as ["users", "ann"].'
_PREFIX: Final = "Only what is in and below this namespace; [] is everything."

Keep = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
Add = ToolAnnotations(read_only_hint=False, destructive_hint=False, idempotent_hint=False, open_world_hint=False)
Remove = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)
Read = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)


Offered = tuple[Callable[..., Any], str, ToolAnnotations]


class Entity(BaseModel):
    """An entity of the graph."""

    name: Annotated[str, Field(description="What it is called; no two entities share a name.")]
    entityType: Annotated[str, Field(description="What kind of thing it is.")]
    observations: Annotated[list[str], Field(description="What is known of it, a fact each.")]


class Relation(BaseModel):
    """A relation of the graph, read from one entity to another."""

    model_config = ConfigDict(populate_by_name=False)

    source: Annotated[str, Field(alias="from", description="The entity at which it begins.")]
    to: Annotated[str, Field(description="The entity at which it ends.")]
    relationType: Annotated[str, Field(description="How they relate, in the active voice.")]


class Addition(BaseModel):
    """What is new about an entity."""

    entityName: Annotated[str, Field(description="The entity.")]
    contents: Annotated[list[str], Field(description="The observations to add.")]


class Deletion(BaseModel):
    """What is no longer so about an entity."""

    entityName: Annotated[str, Field(description="The entity.")]
    observations: Annotated[list[str], Field(description="The observations to delete.")]


class Added(BaseModel):
    """What was new about an entity."""

    entityName: str
    addedObservations: list[str]


class Entities(BaseModel):
    entities: list[Entity]


class Relations(BaseModel):
    relations: list[Relation]


class Additions(BaseModel):
    results: list[Added]


class Done(BaseModel):
    success: bool
    message: str


class KnowledgeGraph(BaseModel):
    entities: list[Entity]
    relations: list[Relation]


class _Verbatim(FuncMetadata):
    """Values as they came: the SDK would take a text that looks like JSON for JSON, and it would come back as that."""

    def pre_parse_json(self, data: dict[str, Any]) -> dict[str, Any]:
        parsed = super().pre_parse_json(data)
        return {**parsed, "value": data["value"]} if "value" in data else parsed


class Tools:
    """The tools over one store. `root` is where everything is kept, for callers without a token."""

    def __init__(self, memory: Memory, root: Namespace, read_only: bool, watch: Watch) -> None:
        self._watched = Watched(memory, watch)
        self._memory = memory
        self._root = root
        self._read_only = read_only
        self.turns = Turns(memory)

    def all(self) -> list[Tool]:
        """Every tool that this server offers."""
        reading: list[Offered] = [
            (self.memory_get, "Get a memory", Read),
            (self.memory_search, "Search the memory", Read),
            (self.memory_stats, "Memory statistics", Read),
            (self.read_graph, "Read the graph", Read),
            (self.search_nodes, "Search the graph", Read),
            (self.open_nodes, "Open entities", Read),
        ]
        writing: list[Offered] = [
            (self.memory_put, "Remember", Keep),
            (self.memory_forget, "Forget", Remove),
            (self.create_entities, "Create entities", Add),
            (self.create_relations, "Create relations", Add),
            (self.add_observations, "Add observations", Add),
            (self.delete_entities, "Delete entities", Remove),
            (self.delete_observations, "Delete observations", Remove),
            (self.delete_relations, "Delete relations", Remove),
        ]
        return [_tool(*one) for one in (reading if self._read_only else writing + reading)]

    # -- memory --------------------------------------------------------------------------------------------------------

    def memory_put(
        self,
        namespace: Annotated[list[str], Field(description=_NAMESPACE)],
        key: Annotated[str, Field(description="The record's name in its namespace; the same one replaces it.")],
        value: Annotated[Any, Field(description="A text, or any JSON value. It comes back exactly.")],
        ctx: Context,
        cls: Annotated[str, Field(description="A class of your choice, such as fact or chat.")] = "",
        ttl_minutes: Annotated[float | None, Field(description="Forget it so long after it was last read.")] = None,
        meta: Annotated[dict[str, Any] | None, Field(description="Notes about the record.")] = None,
    ) -> dict[str, Any]:
        """Keep a record in the long-term memory, in place of any that has its namespace and key."""
        full = self._at(ctx, namespace, write=True)
        self._watched.put(full, key, value, cls=cls, ttl=ttl_minutes, meta=meta)
        return {"stored": True, "namespace": namespace, "key": key}

    def memory_get(
        self,
        namespace: Annotated[list[str], Field(description=_NAMESPACE)],
        key: Annotated[str, Field(description="The record's name in its namespace.")],
        ctx: Context,
    ) -> dict[str, Any]:
        """Get one record by its namespace and key."""
        grant, root = self._caller(ctx)
        item = self._watched.item(self._at(ctx, namespace), key, refresh=grant.write)
        return {"found": item is not None, "item": None if item is None else _item(item, root)}

    def memory_search(
        self,
        ctx: Context,
        namespace: Annotated[list[str], Field(description=_PREFIX)] = [],  # noqa: B006
        query: Annotated[str | None, Field(description="What to look for, in words. Without it: the latest.")] = None,
        filter: Annotated[
            dict[str, Any] | None,
            Field(description='Fields that a JSON value must have: {"field": value} or {"field": {"$gt": 3}}.'),
        ] = None,
        limit: Annotated[int, Field(ge=1, le=ITEMS_MOST, description="At most so many records.")] = LIMIT,
        offset: Annotated[int, Field(ge=0, le=10_000, description="Leave out the first so many.")] = 0,
        cls: Annotated[str | None, Field(description="Only records of this class.")] = None,
    ) -> dict[str, Any]:
        """Find records: the best for a query, by meaning and rare words, or the latest."""
        _, root = self._caller(ctx)
        items = self._watched.search(
            self._at(ctx, namespace), query, filter=filter, limit=limit, offset=offset, cls=cls
        )
        return {"items": [_item(item, root) for item in items]}

    def memory_forget(
        self,
        namespace: Annotated[list[str], Field(min_length=1, description=_NAMESPACE)],
        ctx: Context,
        key: Annotated[str | None, Field(description="Only this record; else the namespace and all below it.")] = None,
    ) -> dict[str, Any]:
        """Delete one record, or remove every trace of a namespace and all that is below it."""
        full = self._at(ctx, namespace, write=True)
        count = self._watched.forget(full) if key is None else int(self._watched.delete(full, key))
        return {"forgotten": count}

    def memory_stats(self, ctx: Context) -> dict[str, Any]:
        """How many records there are, and how many bytes they take."""
        _, root = self._caller(ctx)
        self._at(ctx, [])
        if root:
            figures = figures_of(self._memory, [root], measure=False)
            return {name: figures[name] for name in ("records", "blob_bytes", "classes")}
        stats = self._memory.stats()
        return {name: stats[name] for name in ("records", "warm", "cold", "packs", "disk_bytes")}

    # -- the graph -----------------------------------------------------------------------------------------------------

    def create_entities(self, entities: list[Entity], ctx: Context) -> Annotated[CallToolResult, Entities]:
        """Add entities to the knowledge graph. One whose name is taken is left as it is."""
        fresh = self._graph(ctx, write=True).create_entities(_dumped(entities))
        return _answer(fresh, entities=fresh)

    def create_relations(self, relations: list[Relation], ctx: Context) -> Annotated[CallToolResult, Relations]:
        """Add relations between entities that are in the knowledge graph, in the active voice."""
        fresh = self._graph(ctx, write=True).create_relations(_dumped(relations))
        return _answer(fresh, relations=fresh)

    def add_observations(self, observations: list[Addition], ctx: Context) -> Annotated[CallToolResult, Additions]:
        """Add what is new about entities that are in the knowledge graph."""
        results = self._graph(ctx, write=True).add_observations(_dumped(observations))
        return _answer(results, results=results)

    def delete_entities(
        self, entityNames: Annotated[list[str], Field(description="Their names.")], ctx: Context
    ) -> Annotated[CallToolResult, Done]:
        """Delete entities from the knowledge graph, and every relation that begins or ends at one."""
        deleted, missing = self._graph(ctx, write=True).delete_entities(entityNames)
        message = "Entities deleted successfully"
        if missing:
            message = f"Deleted {len(deleted)} of {len(entityNames)} entities. Not found: {', '.join(missing)}"
        return _done(message)

    def delete_observations(self, deletions: list[Deletion], ctx: Context) -> Annotated[CallToolResult, Done]:
        """Delete what is no longer so about entities of the knowledge graph."""
        count, missing = self._graph(ctx, write=True).delete_observations(_dumped(deletions))
        wanted = sum(len(one.observations) for one in deletions)
        message = "Observations deleted successfully"
        if count != wanted:
            message = f"Deleted {count} of {wanted} observations."
            message += f" Entities not found: {', '.join(missing)}" if missing else ""
        return _done(message)

    def delete_relations(self, relations: list[Relation], ctx: Context) -> Annotated[CallToolResult, Done]:
        """Delete relations from the knowledge graph."""
        count = self._graph(ctx, write=True).delete_relations(_dumped(relations))
        message = "Relations deleted successfully"
        if count != len(relations):
            message = f"Deleted {count} of {len(relations)} relations. The rest matched nothing."
        return _done(message)

    def read_graph(self, ctx: Context) -> Annotated[CallToolResult, KnowledgeGraph]:
        """Read the whole knowledge graph."""
        return _graph_answer(self._graph(ctx).read_graph())

    def search_nodes(
        self,
        query: Annotated[str, Field(max_length=QUERY_MOST, description="A part of a text, in any case.")],
        ctx: Context,
    ) -> Annotated[CallToolResult, KnowledgeGraph]:
        """Find entities of the knowledge graph by their names, types and observations, with their relations."""
        return _graph_answer(self._graph(ctx).search_nodes(query))

    def open_nodes(
        self, names: Annotated[list[str], Field(description="Their names.")], ctx: Context
    ) -> Annotated[CallToolResult, KnowledgeGraph]:
        """Get entities of the knowledge graph by name, with their relations."""
        return _graph_answer(self._graph(ctx).open_nodes(names))

    # -- callers -------------------------------------------------------------------------------------------------------

    def _caller(self, ctx: Context) -> tuple[Grant, Namespace]:
        """What the caller may do, and the root of its namespaces."""
        request = ctx.request_context.request
        grant: Grant = OPEN if request is None else request.scope.get(GRANT, OPEN)
        return grant, self._root if grant.reaches(self._root) else grant.prefixes[0]

    def _at(self, ctx: Context, namespace: Sequence[str], write: bool = False) -> Namespace:
        """A caller's namespace as the store's. Raises Denied."""
        grant, root = self._caller(ctx)
        full = (*root, *namespace)
        grant.check(full, write=write)
        return full

    def _graph(self, ctx: Context, write: bool = False) -> Graph:
        return Graph(self._memory, self._at(ctx, [], write), self.turns)


def server(tools: Tools) -> MCPServer:
    """The MCP server of these tools."""
    return MCPServer(NAME, title="NBMF memory", instructions=INSTRUCTIONS, version=__version__, tools=tools.all())


def _tool(function: Callable[..., Any], title: str, hints: ToolAnnotations) -> Tool:
    made = Tool.from_function(_reporting(function), title=title, annotations=hints)
    seen = made.fn_metadata
    made.fn_metadata = _Verbatim(
        arg_model=seen.arg_model,
        output_schema=seen.output_schema,
        output_model=seen.output_model,
        wrap_output=seen.wrap_output,
    )
    return made


def _reporting(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with errors that a model can read. Of a failed store the log tells more."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except StoreError as error:
            event("the store failed", logging.ERROR, reason=str(error))
            raise ToolError("the store failed; the server's log says why") from error
        except PolicyError as error:
            raise ToolError(str(error)) from error
        except NbmfError as error:
            raise ToolError(f"{type(error).__name__}: {error}") from error

    return run


def _item(item: Item, root: Namespace) -> dict[str, Any]:
    """An item for a model: its namespace relative to the root, and only what helps."""
    fields = wire.item_fields(item)
    names = ("key", "type", "value", "base64", "class", "created", "updated", "expires", "meta", "score")
    return {
        "namespace": fields["namespace"][len(root) :],
        **{
            name: fields[name]
            for name in names
            if (name in fields and fields[name] is not None) or (name == "value" and "value" in fields)
        },
    }


def _dumped(models: Sequence[BaseModel]) -> list[dict[str, Any]]:
    return [model.model_dump(by_alias=True) for model in models]


def _answer(shown: Any, **fields: Any) -> CallToolResult:
    text = json.dumps(shown, ensure_ascii=False, indent=2)
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=fields)


def _graph_answer(graph: dict[str, Any]) -> CallToolResult:
    return _answer(graph, **graph)


def _done(message: str) -> CallToolResult:
    return CallToolResult(
        content=[TextContent(type="text", text=message)], structured_content={"success": True, "message": message}
    )


__all__ = ["Tools", "server"]
