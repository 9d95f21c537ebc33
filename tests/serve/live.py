"""Servers for the tests: the real ones, in a thread or as processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import urllib3
import uvicorn

from nbmf.memory import Memory
from nbmf.serve import auth, http, server
from nbmf.serve.auth import Tokens
from nbmf.serve.limits import Limits

PATIENCE = 180.0  # seconds for a process to start on a busy machine


@contextlib.contextmanager
def serving(memory: Memory, tokens: Tokens | None = None, limits: Limits | None = None) -> Iterator[str]:
    """The address of a server of a Memory, in a thread of this process."""
    app = http.app(memory, tokens=tokens, limits=limits, hosts=None if tokens else server.LOOPBACK)
    with asgi(app) as url:
        yield url


@contextlib.contextmanager
def asgi(app: Any) -> Iterator[str]:
    """The address of an ASGI application, in a thread of this process."""
    with server.listen("127.0.0.1", 0) as listening:
        running = uvicorn.Server(server.config_of(app, Limits(drain_seconds=5)))
        thread = threading.Thread(target=running.run, args=([listening],))
        thread.start()
        try:
            end = time.monotonic() + PATIENCE
            while not running.started and thread.is_alive() and time.monotonic() < end:
                time.sleep(0.01)
            assert running.started
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join(PATIENCE)
            assert not thread.is_alive()


class Process:
    """`nbmf serve` or `nbmf mcp --http` as a process of its own."""

    def __init__(self, log: Path, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.log = log
        command = [sys.executable, "-m", "nbmf.cli", *arguments, "--port", "0"]
        with log.open("wb") as file:
            self.process = subprocess.Popen(command, stderr=file, env={**os.environ, **(environment or {})})
        self.url = self._started()

    def _started(self) -> str:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            for line in self.lines():
                if line["event"] == "listening":
                    return str(line["url"])
            time.sleep(0.05)
        self.process.kill()
        raise AssertionError(f"the server did not start: {self.log.read_text()}")

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged."""
        text = self.log.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(PATIENCE)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)


def tokens_of(folder: Path, **grants: dict[str, Any]) -> tuple[Tokens, dict[str, str]]:
    """A tokens file of named grants (`namespaces`, `access`, `metrics`), read; and each name's token."""
    path = folder / "tokens.toml"
    made = {name: auth.new_token() for name in grants}
    for name, grant in grants.items():
        entry = auth.entry_text(
            made[name], name, grant["namespaces"], grant.get("access", "write"), grant.get("metrics", False)
        )
        auth.add_entry(path, entry)
    return Tokens.of_file(path), made


def asked(
    url: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    token: str | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:
    """Status and content of an answer, as a plain HTTP client sees them; `body` is JSON, unless it is bytes."""
    given = dict(headers or {})
    if token is not None:
        given["Authorization"] = f"Bearer {token}"
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    if data is not None:
        given.setdefault("Content-Type", "application/json")
    answer = urllib3.request(method, url + path, body=data, headers=given, retries=False, timeout=30.0)
    content: Any = answer.data
    if answer.headers.get("content-type", "").startswith("application/json") and answer.data:
        content = json.loads(answer.data)
    return answer.status, content


def raw(url: str, data: bytes, wait: float = 10.0) -> bytes:
    """What a server answers to these bytes until it closes the connection or `wait` seconds are over."""
    host, _, port = url.removeprefix("http://").partition(":")
    out = b""
    with socket.create_connection((host, int(port)), timeout=wait) as connection:
        connection.sendall(data)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while part := connection.recv(65536):
                out += part
    return out
