"""The outermost layer of the HTTP application: which host is asked, how long it took, what is logged."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nbmf.serve import tracing
from nbmf.serve.logs import event
from nbmf.serve.metrics import Metrics

QUIET: Final = ("/health", "/ready", "/metrics", "/v1/overview", "/v1/latency")  # logged at level debug
_METHODS: Final = frozenset({"GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "PATCH"})


class Trace:
    """What is noted of one request. `route` is the path as it was declared, never as it was asked for."""

    __slots__ = ("bearer", "deadline", "parent", "reading", "received", "route", "sent", "status")

    def __init__(self, parent: Any) -> None:
        self.parent = parent  # the span that the caller's headers name
        self.route = "other"
        self.bearer: str | None = None
        self.deadline: asyncio.Timeout | None = None
        self.reading = False  # its body
        self.status = 0
        self.received = 0
        self.sent = 0

    def until(self, seconds: float) -> None:
        """Gives it up so many seconds from now."""
        assert self.deadline is not None
        self.deadline.reschedule(asyncio.get_running_loop().time() + seconds)


Endpoint = Callable[[Request], Awaitable[Response]]


class Edge:
    """The ASGI application. `routes`, by path and method, are answered at once; everything else is `app`'s.

    `hosts`: other names in the Host header are refused, so that no web page reaches an open server by a name of its
    own; None for any.
    """

    def __init__(
        self,
        app: ASGIApp,
        routes: Mapping[tuple[str, str], Endpoint],
        *,
        metrics: Metrics,
        hosts: Iterable[str] | None,
        policy: str,
    ) -> None:
        self._app = app
        self._routes = routes
        self._metrics = metrics
        self._hosts = None if hosts is None else frozenset(hosts)
        self._headers = [
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-store"),
            (b"content-security-policy", policy.encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        parent = None
        if b"traceparent" in headers:
            parent = tracing.parent_of(
                {
                    name: headers[name.encode()].decode("latin-1")
                    for name in ("traceparent", "tracestate")
                    if name.encode() in headers
                }
            )
        trace = scope["nbmf.trace"] = Trace(parent)

        async def received() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                trace.received += len(message.get("body", b""))
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                message["headers"] = [*message["headers"], *self._headers]
            elif message["type"] == "http.response.body":
                trace.sent += len(message.get("body", b""))
            await send(message)

        start = time.perf_counter()
        try:
            if self._hosts is not None and _host(headers.get(b"host", b"")) not in self._hosts:
                await _misdirected(sent)
            elif (endpoint := self._routes.get((scope["path"], scope["method"]))) is not None:
                response = await endpoint(Request(scope, received, sent))
                await response(scope, received, sent)
            else:
                await self._app(scope, received, sent)
        finally:
            seconds = time.perf_counter() - start
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.request(trace.route, method, trace.status, seconds, trace.received, trace.sent)
            event(
                "request",
                logging.DEBUG if trace.route in QUIET else logging.INFO,
                route=trace.route,
                method=method,
                status=trace.status,
                seconds=round(seconds, 6),
                received=trace.received,
                sent=trace.sent,
                bearer=trace.bearer,
            )


def _host(header: bytes) -> str:
    """The name in a Host header, without its port."""
    text = header.decode("latin-1").lower()
    if text.startswith("["):
        return text.partition("]")[0][1:]
    return text.partition(":")[0]


async def _misdirected(send: Send) -> None:
    body = b'{"error":{"type":"PolicyError","message":"this server does not go by that name"}}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 421, "headers": headers})
    await send({"type": "http.response.body", "body": body})


__all__ = ["Edge", "Trace"]
