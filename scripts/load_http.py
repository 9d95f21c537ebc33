"""Loads `nbmf serve` with mixed requests at a steady rate, checks every answer, and tells the latencies.

    python scripts/load_http.py --rate 1000 --seconds 60

Requests are due at fixed times, whether or not earlier ones have been answered: a latency counts from when the request
was due, so a server that falls behind shows it. Server and load share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import httptools

from nbmf import samples
from nbmf.bench.conditions import about_model, conditions
from nbmf.codec.codec import Codec
from nbmf.codec.values import json_text
from nbmf.serve import auth

MIX: Final = {"get": 65, "put": 25, "search": 5, "delete": 3, "batch": 2}  # shares
BATCH: Final = (3, 2)  # puts and gets of a batch
USERS: Final = 50  # namespaces
PERCENTILES: Final = (50, 95, 99, 99.9)
QUERIES: Final = ("green tea", "invoice of last month", "error in the log", "meeting on Tuesday", "what was decided")


@dataclass
class Asked:
    """One request: its bytes, what its answer must be, and when it was due."""

    kind: str
    data: bytes
    statuses: tuple[int, ...]
    value: Any = None  # of a get
    due: float = 0.0


@dataclass
class Tally:
    """What came of the requests of each kind."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in MIX})
    errors: Counter[str] = field(default_factory=Counter)


class Connection(asyncio.Protocol):
    """A connection that asks one thing at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._asked: Asked | None = None
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)

    def ask(self, asked: Asked) -> None:
        self._asked = asked
        self._body.clear()
        self._transport.write(asked.data)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        asked, self._asked = self._asked, None
        assert asked is not None
        self._load.answered(self, asked, self._parser.get_status_code(), b"".join(self._body))

    def connection_lost(self, error: Exception | None) -> None:
        self._load.lost(self._asked)


class Load:
    """A steady stream of requests over some connections."""

    def __init__(self, host: str, port: int, token: str, seed: int, mix: dict[str, int]) -> None:
        self._host, self._port = host, port
        self._head = f"Host: {host}:{port}\r\nAuthorization: Bearer {token}\r\n"
        self._mix = mix
        self._random = random.Random(seed)
        self._idle: deque[Connection] = deque()
        self._queue: deque[Asked] = deque()
        self._open = 0
        self._pending = 0
        self._ending = False
        self.tally = Tally()
        self.values = [sample.value for sample in samples.generate(4000, seed=seed)]
        self._stored: dict[int, int] = {}  # number of a record -> number of its value, once its put was answered
        self._busy: set[int] = set()  # records of puts and deletes under way: nobody knows what a get would find
        self._made = 0

    async def connect(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(count):
            _, connection = await loop.create_connection(lambda: Connection(self), self._host, self._port)
            self._idle.append(connection)
        self._open = count

    # -- requests ------------------------------------------------------------------------------------------------------

    def _bytes(self, method: str, path: str, body: Any = None) -> bytes:
        if body is None:
            return f"{method} {path} HTTP/1.1\r\n{self._head}\r\n".encode()
        data = json_text(body).encode()
        kind = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        return f"{method} {path} HTTP/1.1\r\n{self._head}{kind}\r\n".encode() + data

    @staticmethod
    def _address(number: int) -> dict[str, Any]:
        return {"namespace": ["users", f"user {number % USERS}"], "key": f"record {number}"}

    def _query(self, number: int) -> str:
        at = self._address(number)
        return urlencode([*(("namespace", part) for part in at["namespace"]), ("key", at["key"])])

    def put(self) -> Asked:
        number = self._made
        self._made += 1
        value = self._random.randrange(len(self.values))
        self._busy.add(number)
        asked = Asked(
            "put", self._bytes("PUT", "/v1/records", {**self._address(number), "value": self.values[value]}), (204,)
        )
        asked.value = (number, value)
        return asked

    def _some(self) -> int | None:
        """A record that surely is there."""
        for _ in range(20):
            number = self._random.randrange(self._made)
            if number in self._stored and number not in self._busy:
                return number
        return None

    def make(self) -> Asked:
        kind = self._random.choices(list(self._mix), list(self._mix.values()))[0]
        number = self._some()
        if kind == "put" or number is None:
            return self.put()
        if kind == "get":
            return Asked(
                kind,
                self._bytes("GET", f"/v1/records?{self._query(number)}"),
                (200,),
                self.values[self._stored[number]],
            )
        if kind == "delete":
            self._busy.add(number)
            asked = Asked(kind, self._bytes("DELETE", f"/v1/records?{self._query(number)}"), (200,))
            asked.value = number
            return asked
        if kind == "search":
            body = {"prefix": ["users", f"user {number % USERS}"], "query": self._random.choice(QUERIES), "limit": 5}
            return Asked(kind, self._bytes("POST", "/v1/search", body), (200,))
        ops: list[dict[str, Any]] = []
        puts, gets = BATCH
        at = [{"namespace": ["batches"], "key": f"{self._made} {turn}"} for turn in range(puts)]
        ops += [{"op": "put", **one, "value": self._random.choice(self.values)} for one in at]
        ops += [{"op": "get", **one} for one in at[:gets]]
        self._made += 1
        return Asked(kind, self._bytes("POST", "/v1/batch", {"ops": ops}), (200,))

    # -- answers -------------------------------------------------------------------------------------------------------

    def answered(self, connection: Connection, asked: Asked, status: int, body: bytes) -> None:
        self.tally.latencies[asked.kind].append(time.perf_counter() - asked.due)
        self._pending -= 1
        if status not in asked.statuses:
            self.tally.errors[f"{asked.kind}: {status} {body[:200]!r}"] += 1
        elif (wrong := self._wrong(asked, body)) is not None:
            self.tally.errors[f"{asked.kind}: {wrong}"] += 1
        if asked.kind == "put":
            number, value = asked.value
            self._busy.discard(number)
            self._stored[number] = value
        elif asked.kind == "delete":
            self._stored.pop(asked.value, None)
        if self._queue:
            connection.ask(self._queue.popleft())
        else:
            self._idle.append(connection)

    @staticmethod
    def _wrong(asked: Asked, body: bytes) -> str | None:
        """What is wrong with the content of an answer."""
        if asked.kind == "get":
            return None if json.loads(body)["value"] == asked.value else "another value"
        if asked.kind == "delete":
            return None if json.loads(body)["deleted"] is True else "nothing was deleted"
        if asked.kind == "batch":
            results = json.loads(body)["results"]
            return None if all(one["item"] for one in results[BATCH[0] :]) else "a record of the batch is missing"
        return None

    def lost(self, asked: Asked | None) -> None:
        self._open -= 1
        if not self._ending:
            self.tally.errors["a connection was lost"] += 1
            if asked is not None:
                self._pending -= 1

    def send(self, asked: Asked, due: float) -> None:
        asked.due = due
        self._pending += 1
        if self._idle:
            self._idle.popleft().ask(asked)
        else:
            self._queue.append(asked)

    async def steady(self, rate: float, seconds: float) -> float:
        """Sends `rate` requests a second; how long it took until all were answered."""
        start = time.perf_counter()
        count = int(rate * seconds)
        sent = 0
        while sent < count:
            due = int((time.perf_counter() - start) * rate) + 1
            while sent < min(due, count):
                self.send(self.make(), start + sent / rate)
                sent += 1
            await asyncio.sleep(0.001)
        end = time.perf_counter() + 60
        while self._pending and self._open and time.perf_counter() < end:
            await asyncio.sleep(0.005)
        if self._pending:
            self.tally.errors["never answered"] += self._pending
        return time.perf_counter() - start

    async def fill(self, count: int) -> None:
        """Puts records that later requests ask for."""
        for _ in range(count):
            while self._pending >= 64:
                await asyncio.sleep(0.001)
            self.send(self.put(), time.perf_counter())
        while self._pending:
            await asyncio.sleep(0.005)
        self.tally = Tally() if not self.tally.errors else self.tally

    def end(self) -> None:
        self._ending = True


def percentiles(latencies: list[float]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(latencies)
    out = {f"p{share:g}": ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))] for share in PERCENTILES}
    return {name: round(1000 * value, 3) for name, value in {**out, "max": ordered[-1]}.items()}


def processor_seconds(pid: int) -> float:
    """User and system time of a process and its children, all their threads together; Linux alone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(processor_seconds(int(child)) for child in children)


def start_server(folder: Path, searchers: int) -> tuple[subprocess.Popen[bytes], str, str]:
    """A server of an empty store, its address and a token for it."""
    token = auth.new_token()
    log = folder / "log"
    tokens = folder / "tokens.toml"
    tokens.write_text(auth.entry_text(token, "load", ["/"], "write", True), encoding="utf-8")
    command = [sys.executable, "-m", "nbmf.cli", "serve", str(folder / "store"), "--port", "0", "--tokens", str(tokens)]
    command += ["--search-processes", str(searchers)]
    with log.open("wb") as file:
        server = subprocess.Popen(command, stderr=file)
    for _ in range(600):
        for line in log.read_text(encoding="utf-8").splitlines():
            if '"listening"' in line:
                return server, json.loads(line)["url"], token
        if server.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"the server did not start: {log.read_text(encoding='utf-8')[-2000:]}")


async def measure(options: argparse.Namespace, url: str, token: str, pid: int) -> dict[str, Any]:
    parts = urlsplit(url)
    load = Load(str(parts.hostname), int(parts.port or 80), token, options.seed, options.mix)
    await load.connect(options.connections)
    await load.fill(options.records)
    await load.steady(options.rate, min(2.0, options.seconds))  # until caches and indexes are warm
    load.tally = Tally() if not load.tally.errors else load.tally
    before = processor_seconds(pid), time.process_time()
    took = await load.steady(options.rate, options.seconds)
    after = processor_seconds(pid), time.process_time()
    load.end()
    everything = [latency for latencies in load.tally.latencies.values() for latency in latencies]
    return {
        "requests": len(everything),
        "seconds": round(took, 3),
        "rate": round(len(everything) / took, 1),
        "errors": dict(load.tally.errors),
        "latency_ms": percentiles(everything),
        "by_kind": {
            kind: {"requests": len(found), **percentiles(found)}
            for kind, found in load.tally.latencies.items()
            if found
        },
        "server_cores": round((after[0] - before[0]) / took, 3),
        "load_cores": round((after[1] - before[1]) / took, 3),
        "asked": {
            "rate": options.rate,
            "connections": options.connections,
            "records": options.records,
            "search_processes": options.search_processes,
            "mix": options.mix,
        },
    }


def shares(text: str) -> dict[str, int]:
    """Of "get=80,put=20". Raises ValueError."""
    found = {kind: int(share) for kind, _, share in (part.partition("=") for part in text.split(","))}
    if unknown := found.keys() - MIX.keys():
        raise ValueError(unknown)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=1000, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--records", type=int, default=5000, help="records in the store before")
    parser.add_argument("--mix", type=shares, default=MIX, help="shares of the kinds, such as get=80,put=20")
    parser.add_argument("--search-processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nbmf-load-") as name:
        server, url, token = start_server(Path(name), options.search_processes)
        try:
            result = asyncio.run(measure(options, url, token, server.pid))
        finally:
            server.terminate()
            code = server.wait(60)
    about = conditions("load http", ["generated samples"], None, options.records)
    result = {**about, "model": about_model(Codec(), "base", "fast"), **result, "server_exit": code}
    text = json.dumps(result, indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 1 if result["errors"] or code else 0


if __name__ == "__main__":
    raise SystemExit(main())
