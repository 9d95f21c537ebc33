"""HTTP over a Memory: `app` makes the application that `nbmf serve` runs. docs/serve.md is its reference.

Addresses are lists of segments, in JSON bodies or as repeated query parameters, and never part of a path: no slash, dot
or percent sign in a name means anything. What a token may reach is decided on these lists alone (auth.py).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import mimetypes
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from fastapi import FastAPI, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Match
from starlette.staticfiles import StaticFiles

from nbmf import __version__
from nbmf.errors import DataError, NbmfError, OutputLimit, PolicyError, StoreError, UnsupportedValue
from nbmf.memory import Memory
from nbmf.memory.items import DeleteOp, GetOp, ListNamespacesOp, MemoryOp, PutOp, SearchOp
from nbmf.serve import openapi, schema, wire
from nbmf.serve.auth import OPEN, Denied, Grant, Tokens
from nbmf.serve.bearer import granted
from nbmf.serve.edge import Edge, Endpoint, Trace
from nbmf.serve.figures import figures_of
from nbmf.serve.inspection import inspected
from nbmf.serve.lanes import Lanes
from nbmf.serve.limits import Limits
from nbmf.serve.logs import event
from nbmf.serve.metrics import CONTENT_TYPE, Metrics
from nbmf.serve.overview import Overview
from nbmf.serve.searchers import Found, Searchers
from nbmf.serve.watch import Watch, address_text

JSON_TYPE: Final = "application/json"
POOL: Final = 4  # threads for what takes long: searches, batches, figures
LARGE: Final = 32 << 10  # bytes of a body from which a put goes alone, so that no small one waits for it
FIELDS_MOST: Final = 64  # of a query
DASHBOARD: Final = Path(__file__).parent / "dashboard"
POLICY: Final = "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
NO_CONTENT: Final = 204
CLOSE: Final = {"Connection": "close"}  # for who may still be sending a body

Handler = Callable[[Request, Grant, Trace], Awaitable[Response]]
T = TypeVar("T")


class Refused(Exception):
    """A request that is answered with an HTTP status of its own."""

    def __init__(self, status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.headers = status, kind, headers


class Service:
    """The endpoints over one Memory."""

    def __init__(self, memory: Memory, tokens: Tokens | None, limits: Limits, searchers: Searchers | None) -> None:
        self.memory = memory
        self.tokens = tokens
        self.limits = limits
        self.searchers = searchers
        self.metrics = Metrics(memory)
        self.watch = Watch(memory, self.metrics)
        self.overviews = Overview(memory, self.metrics)
        self.stopping = False
        self._lanes: Lanes | None = None
        self._pool: ThreadPoolExecutor | None = None

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """While the server runs. What was accepted is done before it ends."""
        self._lanes = Lanes(self.memory)
        self._pool = ThreadPoolExecutor(POOL, "nbmf-pool")
        self.stopping = False
        try:
            yield
        finally:
            self.stopping = True
            lanes, pool = self._lanes, self._pool
            await asyncio.to_thread(lanes.close)
            await asyncio.to_thread(pool.shutdown)

    # -- around every request --------------------------------------------------------------------------------------

    def endpoint(self, path: str, handler: Handler, public: bool = False) -> Endpoint:
        """The handler behind its checks, with an answer for every error."""

        async def answer(request: Request) -> Response:
            trace: Trace = request.scope["nbmf.trace"]
            trace.route = path
            try:
                grant = OPEN if public else self._grant(request, trace)
                async with asyncio.timeout(self.limits.seconds) as trace.deadline:
                    return await handler(request, grant, trace)
            except Refused as refusal:
                return error_response(refusal.status, refusal.kind, str(refusal), refusal.headers)
            except TimeoutError:
                if trace.reading:
                    return error_response(408, "TimeoutError", "the body did not arrive in time", CLOSE)
                return error_response(504, "TimeoutError", "no answer in time; what was asked for may still be done")
            except Exception as error:
                return failed(error)

        return answer

    def _grant(self, request: Request, trace: Trace) -> Grant:
        grant = granted(self.tokens, request.scope["headers"])
        if grant is None:
            raise Refused(401, "PolicyError", "a valid bearer token is needed", {"WWW-Authenticate": "Bearer"})
        if self.tokens is not None:
            trace.bearer = grant.name
        return grant

    async def body(self, request: Request, trace: Trace, model: Any) -> Any:
        """The request's body as a model. Raises Refused, DataError."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON_TYPE:
            raise Refused(415, "DataError", f"a body is {JSON_TYPE}")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "DataError", "a body has no content encoding")
        data = await self._read(request, trace)
        return schema.checked(model, wire.loads(data)), len(data)

    async def _read(self, request: Request, trace: Trace) -> bytes:
        most = self.limits.body_bytes
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > most:
            raise too_large(most)
        trace.until(self.limits.body_seconds)
        trace.reading = True
        parts: list[bytes] = []
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise too_large(most)
            parts.append(part)
        trace.reading = False
        trace.until(self.limits.seconds)
        return b"".join(parts)

    async def in_pool(self, call: Callable[[], T]) -> T:
        """What a call in a thread returns. When its request is given up, it goes on."""
        assert self._pool is not None
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def in_lane(self, op: PutOp | GetOp | DeleteOp) -> Any:
        """What an operation returns, run together with those of other requests."""
        assert self._lanes is not None
        return await self._lanes.submit(op)

    # -- records -----------------------------------------------------------------------------------------------------

    async def put(self, request: Request, grant: Grant, trace: Trace) -> Response:
        body, size = await self.body(request, trace, schema.Put)
        op: PutOp = body.op()
        grant.check(op.namespace, write=True)
        with self.watch.operation("put", trace.parent) as operation:
            operation.records = 1
            operation.content(record=address_text(op.namespace, op.key))
            with own_quota(grant, [op]):
                if size > LARGE:
                    await self.in_pool(functools.partial(self.memory.batch, [op]))
                else:
                    await self.in_lane(op)
        return Response(status_code=NO_CONTENT)

    async def get(self, request: Request, grant: Grant, trace: Trace) -> Response:
        fields = query(request, {"namespace", "key", "refresh"}, many={"namespace"})
        op: GetOp = schema.checked(schema.Get, fields).op()
        grant.check(op.namespace)
        if not grant.write and op.refresh:
            op = GetOp(op.namespace, op.key, False)  # to renew is to write
        with self.watch.operation("get", trace.parent) as operation:
            operation.content(record=address_text(op.namespace, op.key))
            item = await self.in_lane(op)
            operation.records = int(item is not None)
        if item is None:
            return error_response(404, "NotFound", "there is no such record")
        return Response(wire.item_text(item), media_type=JSON_TYPE)

    async def delete(self, request: Request, grant: Grant, trace: Trace) -> Response:
        fields = query(request, {"namespace", "key"}, many={"namespace"})
        op: DeleteOp = schema.checked(schema.Delete, fields).op()
        grant.check(op.namespace, write=True)
        with self.watch.operation("delete", trace.parent) as operation:
            operation.content(record=address_text(op.namespace, op.key))
            deleted = await self.in_lane(op)
            operation.records = int(deleted)
        return json_response({"deleted": deleted})

    async def search(self, request: Request, grant: Grant, trace: Trace) -> Response:
        body, _ = await self.body(request, trace, schema.Search)
        op: SearchOp = body.op()
        grant.check(op.prefix)
        with self.watch.operation("search", trace.parent) as operation:
            operation.content(query=op.query)

            def found() -> Found:
                items = self.memory.batch([op])[0]
                return len(items), wire.items_text(items)

            if self.searchers is None:
                count, answer = await self.in_pool(found)
            else:
                try:
                    count, answer = await asyncio.wrap_future(self.searchers.search(op))
                except BrokenExecutor:
                    event("a process for searches was killed", logging.WARNING)
                    count, answer = await self.in_pool(found)
            operation.records = count
        return Response(answer, media_type=JSON_TYPE)

    async def namespaces(self, request: Request, grant: Grant, trace: Trace) -> Response:
        body, _ = await self.body(request, trace, schema.ListNamespaces)
        op: ListNamespacesOp = body.op()
        grant.check(op.prefix)
        with self.watch.operation("list_namespaces", trace.parent) as operation:
            found = await self.in_pool(lambda: self.memory.batch([op])[0])
            operation.records = len(found)
        return json_response({"namespaces": [list(one) for one in found]})

    async def batch(self, request: Request, grant: Grant, trace: Trace) -> Response:
        body, _ = await self.body(request, trace, schema.Batch)
        ops = [allowed(op, grant) for op in body.all_ops()]
        with self.watch.operation("batch", trace.parent) as operation, own_quota(grant, ops):
            operation.records = len(ops)

            def done() -> bytes:
                texts = [result_text(op, result) for op, result in zip(ops, self.memory.batch(ops), strict=True)]
                return b'{"results":[' + b",".join(texts) + b"]}"

            answer = await self.in_pool(done)
        return Response(answer, media_type=JSON_TYPE)

    async def forget(self, request: Request, grant: Grant, trace: Trace) -> Response:
        body, _ = await self.body(request, trace, schema.Forget)
        prefix = tuple(body.prefix)
        grant.check(prefix, write=True)
        with self.watch.operation("forget", trace.parent) as operation:

            def gone() -> int:
                count = self.memory.forget(prefix)
                if self.searchers is not None:
                    self.searchers.forget(prefix)
                return count

            operation.records = count = await self.in_pool(gone)
        return json_response({"forgotten": count})

    async def stats(self, request: Request, grant: Grant, trace: Trace) -> Response:
        fields = query(request, {"prefix", "measure"}, many={"prefix"})
        measure = fields.get("measure", False)
        if not isinstance(measure, bool):
            raise DataError("measure is true or false")
        if "prefix" in fields:
            prefixes: Iterable[tuple[str, ...]] = [
                tuple(schema.checked(schema.Forget, {"prefix": fields["prefix"]}).prefix)
            ]
        else:
            prefixes = grant.prefixes
        for prefix in prefixes:
            grant.check(prefix)
        whole = () in prefixes
        with self.watch.operation("stats", trace.parent):
            answer = await self.in_pool(
                lambda: self.memory.stats(measure) if whole else figures_of(self.memory, prefixes, measure)
            )
        return json_response(answer)

    async def inspect(self, request: Request, grant: Grant, trace: Trace) -> Response:
        fields = query(request, {"namespace", "key"}, many={"namespace"})
        op: GetOp = schema.checked(schema.Get, fields).op()
        grant.check(op.namespace)
        with self.watch.operation("inspect", trace.parent) as operation:
            operation.content(record=address_text(op.namespace, op.key))
            found = await self.in_pool(lambda: inspected(self.memory, op.namespace, op.key, grant))
            operation.records = int(found is not None)
        if found is None:
            return error_response(404, "NotFound", "there is no such record")
        return json_response(found)

    # -- the server --------------------------------------------------------------------------------------------------

    async def overview(self, request: Request, grant: Grant, trace: Trace) -> Response:
        return json_response(await self.in_pool(lambda: self.overviews.of(grant)))

    async def latency(self, request: Request, grant: Grant, trace: Trace) -> Response:
        grant.check_metrics()
        return json_response(await self.in_pool(self.metrics.history.figures))

    async def page(self, request: Request) -> Response:
        """The dashboard, which asks for a token itself where one is needed."""
        request.scope["nbmf.trace"].route = "/"
        return FileResponse(DASHBOARD / "index.html")

    async def health(self, request: Request, grant: Grant, trace: Trace) -> Response:
        return json_response({"status": "alive"})

    async def ready(self, request: Request, grant: Grant, trace: Trace) -> Response:
        if not self.stopping:
            try:
                await self.in_pool(self.memory.warm.version)
                return json_response({"status": "ready"})
            except (NbmfError, TimeoutError) as error:
                event("not ready", logging.WARNING, reason=type(error).__name__)
        return json_response({"status": "not ready"}, 503)

    async def metrics_text(self, request: Request, grant: Grant, trace: Trace) -> Response:
        grant.check_metrics()
        return Response(await self.in_pool(self.metrics.text), headers={"Content-Type": CONTENT_TYPE})


def app(
    memory: Memory,
    *,
    tokens: Tokens | None = None,
    limits: Limits | None = None,
    hosts: Iterable[str] | None = None,
    searchers: Searchers | None = None,
) -> Edge:
    """The application. `tokens` None: everybody may do everything. `hosts`: the only names it answers to, if given.

    `searchers`: who searches, else threads of this process. They and the Memory stay their owner's to close, after the
    application's lifespan has ended.
    """
    service = Service(memory, tokens, limits or Limits(), searchers)
    made = FastAPI(
        title="NBMF",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=service.running,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # its spans quote queries, and so keys
    )
    routes: dict[tuple[str, str], Endpoint] = {}
    for path, method, name, handler in (
        ("/v1/records", "PUT", "put", service.put),
        ("/v1/records", "GET", "get", service.get),
        ("/v1/records", "DELETE", "delete", service.delete),
        ("/v1/search", "POST", "search", service.search),
        ("/v1/namespaces", "POST", "list_namespaces", service.namespaces),
        ("/v1/batch", "POST", "batch", service.batch),
        ("/v1/forget", "POST", "forget", service.forget),
        ("/v1/stats", "GET", "stats", service.stats),
        ("/v1/inspect", "GET", "inspect", service.inspect),
        ("/v1/overview", "GET", "overview", service.overview),
        ("/v1/latency", "GET", "latency", service.latency),
        ("/metrics", "GET", "metrics", service.metrics_text),
        ("/health", "GET", "health", service.health),
        ("/ready", "GET", "ready", service.ready),
    ):
        routes[path, method] = service.endpoint(path, handler, public=name in openapi.PUBLIC)
        made.add_api_route(
            path,
            routes[path, method],
            methods=[method],
            operation_id=name,
            openapi_extra=openapi.operation(name, secured=tokens is not None),
            response_class=Response,
        )
    openapi.describe(made, secured=tokens is not None)
    if DASHBOARD.is_dir():
        mimetypes.add_type("text/javascript", ".js")  # whatever the registry of Windows says
        made.add_route("/", service.page, include_in_schema=False)
        made.mount("/dashboard", StaticFiles(directory=DASHBOARD), name="dashboard")
    made.add_exception_handler(404, _no_route)
    made.add_exception_handler(405, _no_method)
    return Edge(made, routes, metrics=service.metrics, hosts=hosts, policy=POLICY)


async def _no_route(request: Request, error: Exception) -> Response:
    return error_response(404, "NotFound", "there is no such path")


async def _no_method(request: Request, error: Exception) -> Response:
    """All methods of the path are named, not those of the first route alone."""
    found = set()
    for route in request.app.routes:
        methods = getattr(route, "methods", None)
        if methods and route.matches(request.scope)[0] is not Match.NONE:
            found |= methods
    headers = {"Allow": ", ".join(sorted(found))} if found else {}
    return error_response(405, "NotFound", "this path has no such method", headers)


# -- requests and answers ----------------------------------------------------------------------------------------------


def query(request: Request, names: set[str], many: set[str]) -> dict[str, Any]:
    """The fields of a query: lists of texts for those in `many`, truth values for true and false. Raises DataError."""
    raw = request.scope["query_string"]
    try:
        pairs = parse_qsl(raw.decode("ascii"), True, True, errors="strict", max_num_fields=FIELDS_MOST) if raw else []
    except ValueError:
        raise DataError("the query is no list of name=value in UTF-8") from None
    out: dict[str, Any] = {name: [] for name in many}
    for name, value in pairs:
        if name not in names:
            raise DataError(f"{name!r} is none of {', '.join(sorted(names))}"[:200])
        if name in many:
            out[name].append(value)
        elif name in out:
            raise DataError(f"{name} is given twice")
        else:
            out[name] = {"true": True, "false": False}.get(value, value) if name in ("refresh", "measure") else value
    return {name: value for name, value in out.items() if value != []}


def allowed(op: MemoryOp, grant: Grant) -> MemoryOp:
    """The operation, as far as the grant goes. Raises Denied."""
    if isinstance(op, (SearchOp, ListNamespacesOp)):
        grant.check(op.prefix)
        return op
    grant.check(op.namespace, write=isinstance(op, (PutOp, DeleteOp)))
    if isinstance(op, GetOp) and op.refresh and not grant.write:
        return GetOp(op.namespace, op.key, False)
    return op


def result_text(op: MemoryOp, result: Any) -> bytes:
    """What an operation of a batch answers, as JSON."""
    if isinstance(op, GetOp):
        return b'{"item":' + (b"null" if result is None else wire.item_text(result)) + b"}"
    if isinstance(op, DeleteOp):
        return wire.dumps({"deleted": result})
    if isinstance(op, SearchOp):
        return wire.items_text(result)
    if isinstance(op, ListNamespacesOp):
        return wire.dumps({"namespaces": [list(one) for one in result]})
    return b"{}"


class own_quota:
    """Around puts: a refusal that tells what the whole tenant holds is told only to who may see the whole tenant."""

    def __init__(self, grant: Grant, ops: Iterable[MemoryOp]) -> None:
        self._grant, self._ops = grant, ops

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, PolicyError) and not isinstance(error, Denied):
            tenants = {op.namespace[:1] for op in self._ops if isinstance(op, PutOp)}
            if not all(self._grant.reaches(tenant) for tenant in tenants) and str(error).startswith("tenant "):
                raise PolicyError("the tenant's quota is used up") from None


def too_large(most: int) -> Refused:
    return Refused(413, "DataError", f"a body has at most {most} bytes", CLOSE)


def json_response(value: Any, status: int = 200) -> Response:
    return Response(wire.dumps(value), status, media_type=JSON_TYPE)


def error_response(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> Response:
    text = message.encode("utf-8", "backslashreplace").decode()
    return Response(
        wire.dumps({"error": {"type": kind, "message": " ".join(text.split())}}), status, headers, media_type=JSON_TYPE
    )


def failed(error: Exception) -> Response:
    """The answer to an error. Of a medium that failed and of faults of ours the log tells more."""
    kind = type(error).__name__
    if isinstance(error, Denied):
        return error_response(403, "PolicyError", str(error))
    if isinstance(error, (DataError, UnsupportedValue, PolicyError, OutputLimit)):
        return error_response(422, kind, str(error))
    if isinstance(error, StoreError):
        event("the store failed", logging.ERROR, reason=str(error))
        return error_response(503, kind, "the store failed; the server's log says why", {"Retry-After": "1"})
    if isinstance(error, NbmfError):
        event("a record cannot be read", logging.ERROR, reason=str(error))
        return error_response(500, kind, "a record cannot be read; the server's log says why")
    event("fault", logging.ERROR, error=error)
    return error_response(500, "Error", "a fault of the server; its log says more")


__all__ = ["app"]
