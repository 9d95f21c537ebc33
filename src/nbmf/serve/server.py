"""Running an ASGI application with uvicorn: its socket, its signals, its end."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import uvicorn

from nbmf.errors import PolicyError, StoreError
from nbmf.serve.auth import Tokens
from nbmf.serve.limits import Limits
from nbmf.serve.logs import event

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
BACKLOG: Final = 2048  # connections that wait to be accepted


def access(host: str, tokens: Path | None) -> tuple[Tokens | None, tuple[str, ...] | None]:
    """The tokens to ask for and the host names to answer to: of a file, else of the environment, else none.

    Without tokens a server is for this machine alone. Raises PolicyError, StoreError.
    """
    found = Tokens.of_file(tokens) if tokens is not None else Tokens.of_environment()
    if found is not None:
        if not len(found):
            raise PolicyError(f"{tokens or 'the environment'} holds no token: nobody could use the server")
        return found, None
    if host not in LOOPBACK:
        raise PolicyError(f"without tokens the server would be open to all who reach {host}: give --tokens FILE")
    return None, LOOPBACK


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound and not listening yet; port 0 takes a free one. Raises StoreError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        try:
            if sys.platform != "win32":
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except BaseException:
            found.close()
            raise
    except OSError as error:
        raise StoreError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return found


def config_of(app: Any, limits: Limits, certificate: Path | None = None, key: Path | None = None) -> uvicorn.Config:
    """How uvicorn is to run an application."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=limits.idle_seconds,
        timeout_graceful_shutdown=limits.drain_seconds,
        backlog=BACKLOG,
        ssl_certfile=certificate,
        ssl_keyfile=key,
        ws="none",
    )


def run(
    app: Any,
    listening: socket.socket,
    limits: Limits,
    *,
    host: str,
    what: str,
    certificate: Path | None = None,
    key: Path | None = None,
    started: Callable[[str], None] = lambda _: None,
) -> None:
    """Serves until SIGTERM or SIGINT; requests under way are answered first. `started` is told the address.

    Raises PolicyError (certificate).
    """
    config = config_of(app, limits, certificate, key)
    try:
        config.load()
    except (ssl.SSLError, OSError) as error:
        raise PolicyError(f"the certificate or its key cannot be used: {error}") from error
    port = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    url = f"{'https' if certificate else 'http'}://{shown}:{port}"
    server = _Server(config, lambda: _tell(url, what, started))
    # uvicorn raises the signal that ended it again once it is done: this is what then happens.
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        with contextlib.suppress(KeyboardInterrupt, _Left):
            server.run([listening])
    finally:
        signal.signal(signal.SIGTERM, before)
    event("stopped", what=what)


class _Left(BaseException):
    """SIGTERM, once the server has ended."""


def _leave(signum: int, frame: FrameType | None) -> None:
    raise _Left


def _tell(url: str, what: str, started: Callable[[str], None]) -> None:
    event("listening", url=url, what=what)
    started(url)


class _Server(uvicorn.Server):
    """Tells when it has begun."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._begun = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            self._begun()


__all__ = ["access", "config_of", "listen", "run"]
