"""What HTTP bodies are made of. Each model checks a body and stands in the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.json_schema import models_json_schema

from nbmf.errors import DataError
from nbmf.memory.items import LIMIT, DeleteOp, GetOp, ListNamespacesOp, MemoryOp, PutOp, SearchOp
from nbmf.serve import wire
from nbmf.store.base import KEY_MOST, SEGMENTS_MOST

ITEMS_MOST: Final = 1000  # of a search
NAMESPACES_MOST: Final = 10_000  # of a list of namespaces
OFFSET_MOST: Final = 1_000_000
OPS_MOST: Final = 1000  # of a batch
TTL_MOST: Final = 1e9  # minutes

Text = Annotated[str, StringConstraints(min_length=1, max_length=KEY_MOST, pattern="^[^\\x00]+$")]
Namespace = Annotated[list[Text], Field(min_length=1, max_length=SEGMENTS_MOST)]
Prefix = Annotated[list[Text], Field(max_length=SEGMENTS_MOST)]
Class = Annotated[str, StringConstraints(max_length=KEY_MOST, pattern="^[^\\x00]*$")]
Vector = Annotated[list[float], Field(min_length=1, max_length=65536)]
Kind = Literal["text", "json", "bytes", "vector"]
Base64 = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9+/]*={0,2}$")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=False)


class Put(_Body):
    """A record. Its value stands in `value`, or as raw bytes in `base64` with its `type`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["value"]}, {"required": ["base64", "type"]}]})

    namespace: Namespace
    key: Text
    value: Any = None
    type: Kind | None = None
    base64: Base64 = ""
    cls: Annotated[Class, Field(alias="class")] = ""
    ttl: Annotated[float, Field(gt=0, lt=TTL_MOST, description="Minutes; every read renews it.")] | None = None
    meta: dict[str, Any] | None = None
    index: bool | list[str] | None = None
    vector: Vector | None = None

    def op(self) -> PutOp:
        """Raises DataError."""
        given = self.model_fields_set
        fields: dict[str, Any] = {name: getattr(self, name) for name in ("value", "base64") if name in given}
        value = wire.value_of(fields | {"type": self.type})
        return PutOp(tuple(self.namespace), self.key, value, self.cls, self.ttl, self.meta, self.index, self.vector)


class Get(_Body):
    """Asks for a record. `refresh` renews its time to live, if it has one."""

    namespace: Namespace
    key: Text
    refresh: bool = True

    def op(self) -> GetOp:
        return GetOp(tuple(self.namespace), self.key, self.refresh)


class Delete(_Body):
    """Names a record to delete."""

    namespace: Namespace
    key: Text

    def op(self) -> DeleteOp:
        return DeleteOp(tuple(self.namespace), self.key)


class Search(_Body):
    """Asks for records in and below a prefix: the best for a query, or those updated last."""

    prefix: Prefix = []
    query: Annotated[str, StringConstraints(max_length=65536)] | None = None
    filter: dict[str, Any] | None = None
    limit: Annotated[int, Field(ge=0, le=ITEMS_MOST)] = LIMIT
    offset: Annotated[int, Field(ge=0, le=OFFSET_MOST)] = 0
    vector: Vector | None = None
    cls: Annotated[Class | None, Field(alias="class")] = None

    def op(self) -> SearchOp:
        return SearchOp(tuple(self.prefix), self.query, self.filter, self.limit, self.offset, self.vector, self.cls)


class ListNamespaces(_Body):
    """Asks for the namespaces that hold records. "*" in prefix or suffix stands for any one segment."""

    prefix: Prefix = []
    suffix: Prefix = []
    max_depth: Annotated[int, Field(ge=1, le=SEGMENTS_MOST)] | None = None
    limit: Annotated[int, Field(ge=0, le=NAMESPACES_MOST)] = 100
    offset: Annotated[int, Field(ge=0, le=OFFSET_MOST)] = 0

    def op(self) -> ListNamespacesOp:
        return ListNamespacesOp(tuple(self.prefix), tuple(self.suffix), self.max_depth, self.limit, self.offset)


class Forget(_Body):
    """Names the prefix of what is to be forgotten, with every trace of it; [] is the whole store."""

    prefix: Prefix


class BatchPut(Put):
    op_name: Annotated[Literal["put"], Field(alias="op")]


class BatchGet(Get):
    op_name: Annotated[Literal["get"], Field(alias="op")]


class BatchDelete(Delete):
    op_name: Annotated[Literal["delete"], Field(alias="op")]


class BatchSearch(Search):
    op_name: Annotated[Literal["search"], Field(alias="op")]


class BatchListNamespaces(ListNamespaces):
    op_name: Annotated[Literal["list_namespaces"], Field(alias="op")]


BatchOp = Annotated[
    BatchPut | BatchGet | BatchDelete | BatchSearch | BatchListNamespaces, Field(discriminator="op_name")
]


class Batch(_Body):
    """Operations, each of which sees what those before it did."""

    ops: Annotated[list[BatchOp], Field(max_length=OPS_MOST)]

    def all_ops(self) -> list[MemoryOp]:
        """Raises DataError."""
        return [one.op() for one in self.ops]


# -- answers, for the OpenAPI document alone ---------------------------------------------------------------------------


class Item(BaseModel):
    """A record. Its value stands in `value`, or as raw bytes in `base64`; times are ISO 8601 in UTC."""

    model_config = ConfigDict(extra="forbid")

    namespace: list[str]
    key: str
    type: Kind
    value: Any = None
    base64: str = ""
    cls: Annotated[str, Field(alias="class")]
    fidelity: Literal["lossless", "semantic"]
    created: str
    updated: str
    expires: str | None
    meta: dict[str, Any] | None
    meta_base64: str = ""
    tier: Literal["warm", "cold"]
    codec: str
    stored_bytes: int | None
    score: float | None


class Items(BaseModel):
    items: list[Item]


class Deleted(BaseModel):
    deleted: bool


class NamespacesFound(BaseModel):
    namespaces: list[list[str]]


class Forgotten(BaseModel):
    forgotten: int


class Results(BaseModel):
    """The result of each operation: {} of a put, and of the others what they answer alone; `item` may be null."""

    results: list[dict[str, Any]]


class Stats(BaseModel):
    """Counts and bytes: of the store, or of prefixes of it."""

    model_config = ConfigDict(extra="allow")

    records: int


class LevelFields(BaseModel):
    """Bytes that cost under so many bits, and not under those of the level before; null: what no other has."""

    under: float | None
    bytes: int


class Inspected(BaseModel):
    """A record taken apart. `pieces`: what to show of each character or byte, and the bits that a byte of it costs."""

    model_config = ConfigDict(extra="forbid")

    namespace: list[str]
    key: str
    type: Literal["text", "json", "bytes", "vector", "array"]
    cls: Annotated[str, Field(alias="class")]
    fidelity: Literal["lossless", "semantic"]
    updated: str
    expires: str | None
    tier: Literal["warm", "cold"]
    method: str
    profile: Literal["fast", "dense"] | None
    raw_bytes: int
    stored_bytes: int | None
    framing_bytes: int | None
    model: str
    pack: str | None
    shown_bytes: int
    shown_bits: float
    levels: list[LevelFields]
    pieces: list[tuple[str, float]]


class TokenFields(BaseModel):
    name: str
    namespaces: list[list[str]]
    access: Literal["read", "write"]
    metrics: bool


class TierFields(BaseModel):
    records: int
    bytes: int
    parts: dict[str, int]


class HotFields(BaseModel):
    records: int
    bytes: int
    most_bytes: int
    hits: int
    misses: int


class WrittenFields(BaseModel):
    raw_bytes: int
    stored_bytes: int


class RolloutFields(BaseModel):
    """`tenants` is null for whom the whole store is not open. `encoders`: figure -> encoder -> sum."""

    percent: float
    shadow: bool
    compare_percent: float
    tenants: list[str] | None
    encoders: dict[str, dict[str, float]]


class StoreFields(BaseModel):
    """The whole store; `written` since the server began, `seconds` ago."""

    seconds: float
    hot: HotFields
    warm: TierFields
    cold: TierFields
    index_bytes: int
    disk_bytes: int | None
    written: WrittenFields
    rollout: RolloutFields


class ModelFields(BaseModel):
    name: str
    id: str
    bytes: int
    profiles: list[str]
    card: dict[str, Any]


class PackFields(BaseModel):
    """`tenant` is null of a pack that belongs to none, and where all packs of the store are told."""

    id: str
    model: str
    tenant: str | None
    bytes: int
    card: dict[str, Any]


class Overview(BaseModel):
    """`store` is null for whom neither the whole store nor its metrics are open."""

    model_config = ConfigDict(extra="forbid")

    version: str
    kernel: str
    token: TokenFields
    store: StoreFields | None
    models: list[ModelFields]
    packs: list[PackFields]


class OperationFields(BaseModel):
    """Seconds. `series`: time, count, p50, p95 and p99 of each slot with any."""

    count: int
    failed: int
    p50: float
    p95: float
    p99: float
    series: list[tuple[int, int, float, float, float]]


class Latency(BaseModel):
    """`written`: time, and raw and stored bytes that were written since the server began."""

    slot_seconds: int
    operations: dict[str, OperationFields]
    written: list[tuple[int, int, int]]


class Status(BaseModel):
    status: str


class ErrorFields(BaseModel):
    type: str
    message: str


class Error(BaseModel):
    """What went wrong. `type` is the name of the error in Python's `nbmf`."""

    error: ErrorFields


MODELS: Final[tuple[type[BaseModel], ...]] = (
    *(Put, Search, ListNamespaces, Forget, Batch),
    *(Item, Items, Deleted, NamespacesFound, Forgotten, Results, Stats, Inspected, Overview, Latency, Status, Error),
)


def checked(model: type[_Body], body: Any) -> Any:
    """The body as the model. Raises DataError with where and what."""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(step) for step in first["loc"]) or "the body"
        raise DataError(f"{where}: {first['msg']}"[:300]) from None
    except RecursionError:
        raise DataError("the body is nested too deeply") from None


def components() -> dict[str, Any]:
    """The schemas of all models, by name."""
    modes: Any = [(model, "validation") for model in MODELS]
    _, definitions = models_json_schema(modes, ref_template="#/components/schemas/{model}")
    found: dict[str, Any] = definitions["$defs"]
    return found
