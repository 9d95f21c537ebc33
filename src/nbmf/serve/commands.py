"""What `nbmf serve` and `nbmf mcp` do between their arguments and the servers."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbmf.errors import PolicyError
from nbmf.memory import Memory
from nbmf.memory.opening import public_address
from nbmf.serve import logs, tracing
from nbmf.serve.auth import Tokens
from nbmf.serve.limits import Limits
from nbmf.store.base import Namespace
from nbmf.store_access import Access


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server listens, to whom, and within which limits."""

    host: str
    port: int
    tokens: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    body_bytes: int = 16 << 20
    seconds: float = 60.0
    searchers: int = 0

    @property
    def limits(self) -> Limits:
        return Limits(body_bytes=self.body_bytes, seconds=self.seconds)


@dataclass(frozen=True, slots=True)
class Offer:
    """What an MCP server offers. `graph`: a memory.jsonl to take in first."""

    root: Namespace
    graph: Path | None = None
    read_only: bool = False


def serve_http(address: str, access: Access, listening: Listening, log_format: str, log_level: str) -> None:
    """Serves a store over HTTP until a signal ends it."""
    _need("serve", "nbmf serve", "fastapi", "prometheus_client", "uvicorn")
    from nbmf.serve import http
    from nbmf.serve.searchers import Searchers

    with _ready(address, access, log_format, log_level) as stack:
        memory = stack.memory
        searchers = None
        if listening.searchers:
            searchers = Searchers(listening.searchers, functools.partial(access.open, address))
            stack.callback(searchers.close)
        _listen(
            listening,
            public_address(address),
            lambda tokens, hosts: http.app(
                memory, tokens=tokens, limits=listening.limits, hosts=hosts, searchers=searchers
            ),
        )


def serve_mcp(
    address: str, access: Access, offer: Offer, listening: Listening | None, log_format: str, log_level: str
) -> None:
    """Serves a store by MCP: over HTTP until a signal ends it, or over standard input and output until that ends."""
    _need("mcp", "nbmf mcp", "mcp")
    from nbmf.serve import mcp
    from nbmf.serve.bearer import Bearer
    from nbmf.serve.graph import Graph
    from nbmf.serve.watch import Watch

    with _ready(address, access, log_format, log_level) as stack:
        memory = stack.memory
        tools = mcp.Tools(memory, offer.root, offer.read_only, Watch(memory))
        stack.callback(tools.turns.close)
        if offer.graph is not None:
            added = Graph(memory, offer.root, tools.turns).take_in(offer.graph)
            if added is not None:
                logs.event("taken in", file=offer.graph.name, records=added)
        server = mcp.server(tools)
        if listening is None:
            logs.configure(log_format, log_level)  # once more: the SDK has set up its own
            server.run("stdio")
            return

        def app(tokens: Tokens | None, hosts: Any) -> Any:
            made = server.streamable_http_app(
                stateless_http=True,
                json_response=True,
                max_request_body_size=listening.body_bytes,
                host=listening.host if tokens is None else "",
            )
            return Bearer(made, tokens)

        _listen(listening, public_address(address), app)


class _Stack(ExitStack):
    """What is to be closed, and the Memory among it."""

    memory: Memory


def _ready(address: str, access: Access, log_format: str, log_level: str) -> _Stack:
    """An open store, with logs and spans set up."""
    logs.configure(log_format, log_level)
    with _Stack() as stack:
        spans = tracing.configure()
        if spans is not None:
            stack.callback(spans.shutdown)
        memory = stack.enter_context(access.open(address, create=True))
        ready = _Stack()
        ready.memory = memory
        ready.push(stack.pop_all().__exit__)
        return ready


def _listen(listening: Listening, what: str, make: Callable[[Tokens | None, Any], Any]) -> None:
    from nbmf.serve import server

    if (listening.certificate is None) != (listening.key is None):
        raise PolicyError("HTTPS takes both --tls-cert and --tls-key")
    tokens, hosts = server.access(listening.host, listening.tokens)
    app = make(tokens, hosts)
    with server.listen(listening.host, listening.port) as listener:
        server.run(
            app,
            listener,
            listening.limits,
            host=listening.host,
            what=what,
            certificate=listening.certificate,
            key=listening.key,
        )


def _need(extra: str, what: str, *packages: str) -> None:
    """Raises PolicyError that names the extra to install."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise PolicyError(f"{what} needs nbmf[{extra}]: pip install 'nbmf[{extra}]'")


__all__ = ["Listening", "Offer", "serve_http", "serve_mcp"]
