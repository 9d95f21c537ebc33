"""LangGraph's operations on a `Memory`: what its stores do in one batch, and how its filters and paths read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Final

from nbmf.errors import PolicyError, UnknownModel
from nbmf.integrations import MissingExtra
from nbmf.integrations.langgraph_vectors import DIMS_MOST, VectorIndex, pack
from nbmf.memory import DeleteOp, Memory
from nbmf.memory import GetOp as MemoryGet
from nbmf.memory import Item as MemoryItem
from nbmf.memory import PutOp as MemoryPut
from nbmf.memory.encoding import value_of
from nbmf.memory.items import OPERATORS, item_of, matches, now
from nbmf.memory.memory import TRIES
from nbmf.store.base import Namespace, Record

try:
    from langgraph.store.base import (
        Embeddings,
        GetOp,
        IndexConfig,
        Item,
        ListNamespacesOp,
        MatchCondition,
        Op,
        PutOp,
        Result,
        SearchItem,
        SearchOp,
        ensure_embeddings,
        get_text_at_path,
        tokenize_path,
        validate_op_namespace,
    )
except ImportError:
    raise MissingExtra("langgraph", "langgraph") from None

EXPIRED: Final = 10_000  # records that a sweep removes in one transaction
STEP: Final = 64  # candidates of a search that are read at a time
WIDER: Final = 8  # times as many items are looked at when too few of them passed the filter
EVERY: Final = 1 << 60
WHOLE: Final = "$"  # the path of the whole value

Vectors = list[list[float]]


@dataclass(slots=True)
class Texts:
    """What a batch has to embed, each text once: `documents` of what it puts, `queries` of its searches."""

    documents: dict[str, int] = field(default_factory=dict)
    queries: dict[str, int] = field(default_factory=dict)


class Operations:
    """Runs batches of LangGraph's operations. Thread-safe. `cls` is the class of what is put."""

    def __init__(self, memory: Memory, index: IndexConfig | None, cls: str) -> None:
        self.memory = memory
        self.cls = cls
        self.index_config: dict[str, Any] | None = None
        self.embeddings: Embeddings | None = None
        self._vectors: VectorIndex | None = None
        if index is not None:
            dims = index.get("dims")
            if type(dims) is not int or not 0 < dims <= DIMS_MOST:
                raise PolicyError(f"an index needs dims, a number from 1 to {DIMS_MOST}, not {dims!r}"[:200])
            if index.get("embed") is None:
                raise PolicyError("an index needs embed, which makes vectors of texts")
            self.index_config = dict(index)
            self.embeddings = ensure_embeddings(index["embed"])
            self._vectors = VectorIndex(dims)
            # LangGraph's SQLite store reads "text_fields", its other stores and its documents "fields".
            fields = self.index_config.get("fields") or self.index_config.get("text_fields") or [WHOLE]
            if isinstance(fields, str) or not all(isinstance(path, str) for path in fields):
                raise PolicyError(f"the fields of an index are a list of paths, not {fields!r}"[:200])
            self._paths = _tokenized(fields)

    # -- what is embedded ----------------------------------------------------------------------------------------------

    def texts(self, ops: Sequence[Op]) -> Texts:
        """What has to be embedded before `run`. Raises InvalidNamespaceError, PolicyError for what is no operation."""
        wanted = Texts()
        for op in ops:
            if not isinstance(op, GetOp | PutOp | SearchOp | ListNamespacesOp):
                raise PolicyError(f"{type(op).__name__} is no operation of a LangGraph store")
            validate_op_namespace(op)
        if self._vectors is None:
            return wanted
        for op in _last_puts(ops):
            for text in self._texts_of(op):
                wanted.documents.setdefault(text, len(wanted.documents))
        for op in ops:
            if isinstance(op, SearchOp) and op.query:
                wanted.queries.setdefault(op.query, len(wanted.queries))
        return wanted

    def _texts_of(self, op: PutOp) -> list[str]:
        if op.value is None or op.index is False:
            return []
        paths = self._paths if op.index is None else _tokenized(op.index)
        return [text for path in paths for text in get_text_at_path(op.value, path)]

    def embed(self, texts: Texts) -> tuple[Vectors, Vectors]:
        """The vectors of the documents and of the queries."""
        if self.embeddings is None:
            return [], []
        documents = self.embeddings.embed_documents(list(texts.documents)) if texts.documents else []
        return documents, [self.embeddings.embed_query(query) for query in texts.queries]

    async def aembed(self, texts: Texts) -> tuple[Vectors, Vectors]:
        """`embed` by the embedder's own coroutines."""
        if self.embeddings is None:
            return [], []
        documents = await self.embeddings.aembed_documents(list(texts.documents)) if texts.documents else []
        return documents, [await self.embeddings.aembed_query(query) for query in texts.queries]

    # -- batches -------------------------------------------------------------------------------------------------------

    def run(self, ops: Sequence[Op], texts: Texts, vectors: tuple[Vectors, Vectors]) -> list[Result]:
        """The result of each operation. As in LangGraph's own stores, all that reads comes first and sees the store as
        it was before the batch; of puts of one key the last counts. They are one transaction, and deletes another.
        """
        documents, queries = vectors
        if len(documents) != len(texts.documents):
            raise PolicyError(f"embed gave {len(documents)} vectors for {len(texts.documents)} texts")
        puts = _last_puts(ops)
        # Checked and encoded first, so that a batch that cannot be stored fails before anything is done.
        records = self._records([op for op in puts if op.value is not None], texts, documents)
        results: list[Result] = [None] * len(ops)
        gets = [(i, op) for i, op in enumerate(ops) if isinstance(op, GetOp)]
        found = self.memory.batch([MemoryGet(tuple(op.namespace), str(op.key), bool(op.refresh_ttl)) for _, op in gets])
        for (i, _), item in zip(gets, found, strict=True):
            results[i] = None if item is None else _item(item)
        for i, op in enumerate(ops):
            if isinstance(op, SearchOp):
                results[i] = self._search(op, queries[texts.queries[op.query]] if op.query in texts.queries else None)
            elif isinstance(op, ListNamespacesOp):
                results[i] = self._namespaces(op)
        if records:
            self.memory.store(records)
        self.memory.batch([DeleteOp(tuple(op.namespace), str(op.key)) for op in puts if op.value is None])
        return results

    def _records(self, ops: Sequence[PutOp], texts: Texts, documents: Vectors) -> list[Record]:
        own = self._vectors is not None
        puts = [
            MemoryPut(
                tuple(op.namespace),
                str(op.key),
                dict(op.value or {}),
                cls=self.cls,
                ttl=op.ttl,
                index=False if own else op.index,
            )
            for op in ops
        ]
        for attempt in range(TRIES):
            try:
                records = self.memory.records_of(puts)
                break
            except UnknownModel:  # the tenant's pack was dropped between the choice of it and its use
                if attempt == TRIES - 1:
                    raise
        if self._vectors is None:
            return records
        out = []
        for op, record in zip(ops, records, strict=True):
            vectors = [documents[texts.documents[text]] for text in self._texts_of(op)]
            out.append(replace(record, code=pack(vectors, self._vectors.dims) if vectors else b""))
        return out

    # -- searches ------------------------------------------------------------------------------------------------------

    def _search(self, op: SearchOp, vector: list[float] | None) -> list[SearchItem]:
        _check_range(op)
        check_filter(op.filter)
        prefix = tuple(op.namespace_prefix)
        query = op.query if op.query and self._vectors is None and self.memory.recall.on else None
        found = self._passing(op, prefix, query) if vector is None else self._nearest(op, prefix, vector)
        mortal = [(item.namespace, item.key) for item in found if item.expires_at is not None]
        if op.refresh_ttl and mortal:
            self.memory.fetch(mortal, now(), [True] * len(mortal))
        return [_search_item(item) for item in found]

    def _passing(self, op: SearchOp, prefix: Namespace, query: str | None) -> list[MemoryItem]:
        """Those that pass the filter: what the store's own filters say alike is left to it."""
        theirs = {name: wanted for name, wanted in (op.filter or {}).items() if _is_plain(wanted)}
        ours = {name: wanted for name, wanted in (op.filter or {}).items() if name not in theirs}
        if not ours:
            return self.memory.search(prefix, query, filter=theirs, limit=op.limit, offset=op.offset)
        wanted = op.offset + op.limit
        most = max(STEP, wanted)
        while True:
            items = self.memory.search(prefix, query, filter=theirs, limit=most)
            passing = [item for item in items if passes(item.value, ours)]
            if len(passing) >= wanted or len(items) < most:
                return passing[op.offset : wanted]
            most *= WIDER

    def _nearest(self, op: SearchOp, prefix: Namespace, vector: list[float]) -> list[MemoryItem]:
        """Those that are indexed and pass the filter, nearest first."""
        assert self._vectors is not None
        wanted = op.offset + op.limit
        items: list[MemoryItem] = []
        ranked = self._vectors.search(self.memory, vector, prefix)
        least = STEP if op.filter else 1
        while len(items) < wanted and (step := list(islice(ranked, max(least, wanted - len(items))))):
            records = [one for one in self.memory.fetch([at for at, _ in step], now()) if one is not None]
            scores = dict(step)
            values = self.memory.pairs([record for record, _ in records])
            for (record, tier), pair in zip(records, values, strict=True):
                item = item_of(record, tier, value_of(pair))
                if record.code and passes(item.value, op.filter):
                    items.append(replace(item, score=scores[record.namespace, record.key]))
        return items[op.offset : wanted]

    # -- namespaces ----------------------------------------------------------------------------------------------------

    def _namespaces(self, op: ListNamespacesOp) -> list[Namespace]:
        conditions = list(op.match_conditions or ())
        for condition in conditions:
            if condition.match_type not in ("prefix", "suffix"):
                raise PolicyError(f"namespaces match by prefix or suffix, not by {condition.match_type!r}"[:200])
        prefix = next((tuple(one.path) for one in conditions if one.match_type == "prefix"), ())
        _check_range(op)
        if op.max_depth is not None and (type(op.max_depth) is not int or op.max_depth < 1):
            raise PolicyError(f"max_depth is a number from 1, not {op.max_depth!r}"[:200])
        found = self.memory.list_namespaces(prefix, limit=EVERY)
        chosen = {
            namespace if op.max_depth is None else namespace[: op.max_depth]
            for namespace in found
            if all(_fits(namespace, condition) for condition in conditions)
        }
        return sorted(chosen)[op.offset : op.offset + op.limit]

    # -- upkeep --------------------------------------------------------------------------------------------------------

    def sweep(self) -> int:
        """Removes what has expired from the disk; how many records that were."""
        self.memory.tiers.settle()  # what has expired may hide an older record of its key
        return sum(self.memory.tiers.expire(now(), EXPIRED))


# -- filters -----------------------------------------------------------------------------------------------------------


def check_filter(filter: Mapping[str, Any] | None) -> None:
    """Raises PolicyError for what is no filter, and for an operator that there is none of."""
    if filter is not None and not isinstance(filter, Mapping):
        raise PolicyError(f"a filter maps fields to what they are to be, and is no {type(filter).__name__}")
    for name, wanted in (filter or {}).items():
        if not isinstance(name, str):
            raise PolicyError(f"filter: a field is a text, not {name!r}"[:200])
        if _has_operators(wanted):
            for operator in wanted:
                if operator not in OPERATORS:
                    raise PolicyError(f"filter on {name!r}: {operator!r} is none of {', '.join(OPERATORS)}"[:200])
        elif isinstance(wanted, Mapping):
            check_filter(wanted)


def passes(value: Any, filter: Mapping[str, Any] | None) -> bool:
    """Whether a value passes a filter as LangGraph's stores read it.

    A field that is not there is as one that is null. A dict without operators is a filter of its own on the dict that
    is there, a list is compared part by part. A name with dots is a path where there is no field of that whole name.
    Numbers are in order with numbers and texts with texts; others are in none.
    """
    return all(_passes(_field(value, name), wanted) for name, wanted in (filter or {}).items())


def _passes(found: Any, wanted: Any) -> bool:
    if _has_operators(wanted):
        return all(_holds(found, operator, operand) for operator, operand in wanted.items())
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(_passes(found.get(name), part) for name, part in wanted.items())
    if isinstance(wanted, list | tuple):
        return (
            isinstance(found, list)
            and len(found) == len(wanted)
            and all(_passes(one, part) for one, part in zip(found, wanted, strict=True))
        )
    return bool(found == wanted)


def _holds(found: Any, operator: str, operand: Any) -> bool:
    if operator == "$eq":
        return bool(found == operand)
    if operator == "$ne":
        return bool(found != operand)
    return matches({"": found}, {"": {operator: operand}})


def _has_operators(wanted: Any) -> bool:
    return isinstance(wanted, Mapping) and any(str(name).startswith("$") for name in wanted)


def _is_plain(wanted: Any) -> bool:
    """Whether the filters of `Memory` read this as `passes` does."""
    operands = wanted.values() if _has_operators(wanted) else (wanted,)
    return all(isinstance(operand, str | int | float) for operand in operands)


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Mapping) and name in value:
        return value[name]
    for step in name.split("."):
        if not isinstance(value, Mapping) or step not in value:
            return None
        value = value[step]
    return value


# -- parts -------------------------------------------------------------------------------------------------------------


def _last_puts(ops: Iterable[Op]) -> list[PutOp]:
    """The puts and deletes of a batch, of each key the last."""
    return list({(tuple(op.namespace), str(op.key)): op for op in ops if isinstance(op, PutOp)}.values())


def _tokenized(paths: Sequence[str]) -> list[str | list[str]]:
    return [path if path == WHOLE else tokenize_path(path) for path in paths]


def _fits(namespace: Namespace, condition: MatchCondition) -> bool:
    path = tuple(condition.path)
    if len(namespace) < len(path):
        return False
    start = 0 if condition.match_type == "prefix" else len(namespace) - len(path)
    part = namespace[start : start + len(path)]
    return all(wanted in ("*", segment) for segment, wanted in zip(part, path, strict=True))


def _check_range(op: SearchOp | ListNamespacesOp) -> None:
    if any(type(number) is not int or number < 0 for number in (op.limit, op.offset)):
        raise PolicyError(f"limit and offset are whole numbers from 0, not {op.limit!r} and {op.offset!r}"[:200])


def _item(item: MemoryItem) -> Item:
    return Item(
        namespace=item.namespace,
        key=item.key,
        value=item.value,
        created_at=item.created_at,
        updated_at=item.updated_at,
    )


def _search_item(item: MemoryItem) -> SearchItem:
    return SearchItem(
        namespace=item.namespace,
        key=item.key,
        value=item.value,
        created_at=item.created_at,
        updated_at=item.updated_at,
        score=item.score,
    )


__all__ = ["Operations", "Texts", "check_filter", "passes"]
