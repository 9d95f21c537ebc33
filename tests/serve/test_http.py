"""The HTTP server over the wire: the client answers as a Memory does, limits hold, and nothing acknowledged is lost."""

import contextlib
import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import urllib3
from live import Process, asked, raw, serving
from prometheus_client.parser import text_string_to_metric_families

from nbmf import Memory, samples
from nbmf.codec.values import to_raw
from nbmf.errors import DataError, NbmfError, PolicyError, StoreError, UnsupportedValue
from nbmf.memory.items import DeleteOp, GetOp, Item, ListNamespacesOp, PutOp
from nbmf.policy.policy import Policy
from nbmf.serve import http
from nbmf.serve.client import Client
from nbmf.serve.limits import Limits

HEAD = b"PUT /v1/records HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
ODD = ("ünï/code", "a b", "%2F", "..", "?&=#", "\\", "*", "😀", "\x7f\n")


@pytest.fixture
def url(memory: Memory) -> Iterator[str]:
    with serving(memory, limits=Limits(body_bytes=1 << 20, body_seconds=2.0)) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as opened:
        yield opened


def same(one: Any, other: Any) -> bool:
    return to_raw(one, allow_nan=True) == to_raw(other, allow_nan=True)


def told(item: Any) -> Any:
    """A result; an item without what depends on when it was made."""
    if not isinstance(item, Item):
        return item
    return (
        item.namespace,
        item.key,
        to_raw(item.value, allow_nan=True),
        item.cls,
        item.meta,
        item.tier,
        item.stored_bytes,
    )


# -- the verbs of a Memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "tea",
        "",
        "\ud800 lone",
        {"a": 1.0, "b": [None, True, -0.0, 10**300], "\udfff": {}},
        b"\0\xff",
        b"",
        np.array([1, -0.0, math.nan, math.inf], np.float32),
        None,
        0,
        [],
        "x" * 100_000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_come_back_exactly(client: Client, memory: Memory, value: Any) -> None:
    client.put(("users", "ann"), "k", value, cls="fact", meta={"n": 1})
    item = client.item(("users", "ann"), "k")
    assert item is not None and same(item.value, value) and type(item.value) is type(value)
    assert same(memory.get(("users", "ann"), "k"), value)
    assert (item.cls, item.meta, item.tier, item.fidelity) == ("fact", {"n": 1}, "warm", "lossless")
    assert told(item) == told(memory.item(("users", "ann"), "k"))
    assert same(client.get(("users", "ann"), "k"), value)
    assert client.delete(("users", "ann"), "k") is True
    assert client.delete(("users", "ann"), "k") is False
    assert client.get(("users", "ann"), "k", "gone") == "gone"


@pytest.mark.parametrize("odd", ODD)
def test_odd_names_are_themselves(client: Client, memory: Memory, odd: str) -> None:
    namespace = ("users", odd, odd + "x")
    client.put(namespace, odd, [odd])
    assert memory.get(namespace, odd) == [odd] and client.get(namespace, odd) == [odd]
    assert client.list_namespaces(("users", odd) if odd != "*" else ("users",)) == [namespace]
    assert [item.key for item in client.search(("users", odd))] == [odd]
    assert client.stats(prefix=("users", odd))["records"] == 1
    assert client.forget(("users", odd)) == 1


def test_a_client_answers_as_the_memory_does(tmp_path: Path) -> None:
    """The same operations, one by one and in batches, on a store behind a server and on one in this process."""
    values = [sample.value for sample in samples.generate(40, seed=5)]
    ops: list[Any] = [
        PutOp(
            ("t", f"u{i % 3}"), f"k{i}", value, cls="even" if i % 2 == 0 else "", meta={"i": i} if i % 5 == 0 else None
        )
        for i, value in enumerate(values)
    ]
    ops += [
        GetOp(("t", "u0"), "k0"),
        GetOp(("t", "u0"), "k1"),
        DeleteOp(("t", "u0"), "k0"),
        DeleteOp(("t", "u0"), "k0"),
    ]
    ops += [ListNamespacesOp(("t",)), ListNamespacesOp(("*", "u1")), ListNamespacesOp(max_depth=1)]
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(Memory.open(tmp_path / "here", key=b"", embedder=None))
        there = stack.enter_context(Memory.open(tmp_path / "there", key=b"", embedder=None))
        client = stack.enter_context(Client(stack.enter_context(serving(there))))
        for mine, other in zip(here.batch(ops), client.batch(ops), strict=True):
            assert told(mine) == told(other)
        for prefix in ((), ("t",), ("t", "u1"), ("t", "u"), ("x",)):
            for options in ({}, {"cls": "even"}, {"limit": 3, "offset": 2}, {"filter": {"role": {"$ne": "user"}}}):
                found = client.search(prefix, **options)  # type: ignore[arg-type]
                wanted = here.search(prefix, **options)  # type: ignore[arg-type]
                key = lambda item: (item.namespace, item.key)  # noqa: E731
                if "limit" not in options:  # of one millisecond any may come first
                    assert sorted(map(told, sorted(found, key=key))) == sorted(map(told, sorted(wanted, key=key)))
                assert len(found) == len(wanted)
        assert client.list_namespaces(limit=2, offset=1) == here.list_namespaces(limit=2, offset=1)
        assert client.stats(prefix=("t",))["records"] == here.stats()["records"] == there.stats()["records"]
        assert client.stats(True)["raw_bytes"] == here.stats(True)["raw_bytes"]
        assert client.forget(("t", "u1")) == here.forget(("t", "u1"))
        assert client.list_namespaces() == here.list_namespaces()


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.put(("a",), "k", (1,)),
        lambda store: store.put(("a",), "k", {"x": math.nan}),
        lambda store: store.put(("a",), "k", {1: 2}),
        lambda store: store.put((), "k", 1),
        lambda store: store.put(("a", ""), "k", 1),
        lambda store: store.put(("a",), "", 1),
        lambda store: store.put(("a",), "k\0", 1),
        lambda store: store.put(("a",), "k" * 1025, 1),
        lambda store: store.put(("a",), "k", 1, cls="\0"),
        lambda store: store.put(("a",), "k", 1, meta={"x": (1,)}),
        lambda store: store.put(("a",), "k", 1, vector=[1.0]),
        lambda store: store.search(("a",), "tea"),
        lambda store: store.search(("a",), filter={"x": {"$nope": 1}}),
        lambda store: store.search(("a",), limit=-1),
        lambda store: store.get(("a",), "\ud800"),
        lambda store: store.list_namespaces(max_depth=0),
        lambda store: store.forget(("a", "")),
        lambda store: store.batch([PutOp(("b",), "k", 1), PutOp(("b",), "k", {"x": math.nan})]),
    ],
)
def test_what_a_memory_refuses_the_server_refuses(client: Client, memory: Memory, call: Any) -> None:
    for store in (memory, client):
        with pytest.raises(NbmfError) as caught:
            call(store)
        assert isinstance(caught.value, (PolicyError, UnsupportedValue, DataError))
        assert "\n" not in str(caught.value)
    assert memory.stats()["records"] == 0


def test_times_to_live_are_renewed_by_reads_unless_told(client: Client) -> None:
    client.put(("a",), "k", 1, ttl=5)
    first = client.item(("a",), "k", refresh=False)
    time.sleep(0.05)
    second = client.item(("a",), "k", refresh=False)
    third = client.item(("a",), "k")
    fourth = client.item(("a",), "k", refresh=False)
    assert first is not None and second is not None and third is not None and fourth is not None
    assert first.expires_at == second.expires_at
    assert fourth.expires_at is not None and first.expires_at is not None and fourth.expires_at > first.expires_at


def test_search_by_meaning(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "s", key=b"") as memory, serving(memory) as url, Client(url) as client:
        client.put(("u",), "drink", {"text": "she likes green tea"})
        client.put(("u",), "car", {"text": "the car needs new tyres"})
        best = client.search(("u",), "what does she drink?", limit=1)[0]
        assert best.key == "drink" and best.score is not None
        assert best == memory.search(("u",), "what does she drink?", limit=1)[0]


def test_a_record_of_the_cold_tier(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text('[default]\ncold_after = "1ms"\n')
    with Memory.open(tmp_path / "s", key=b"", embedder=None, policy=tmp_path / "policy.toml") as memory:
        memory.put(("a",), "k", {"x": 1})
        time.sleep(0.01)
        memory.compact()
        with serving(memory) as url, Client(url) as client:
            item = client.item(("a",), "k")
            assert item is not None and (item.tier, item.value, item.stored_bytes) == ("cold", {"x": 1}, None)


def test_many_clients_at_once_lose_nothing(url: str, memory: Memory) -> None:
    """Puts of many threads share transactions; a bad one among them costs the others nothing."""
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            with Client(url) as client:
                for i in range(40):
                    client.put(("w", str(worker)), f"k{i}", {"worker": worker, "i": i})
                    if i % 10 == 0:
                        with pytest.raises(NbmfError):
                            client.put(("w", str(worker)), "bad", 1, vector=[1.0])
                    if i % 7 == 0:
                        assert client.delete(("w", str(worker)), f"k{i}") is True
                    else:
                        assert client.get(("w", str(worker)), f"k{i}") == {"worker": worker, "i": i}
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert memory.stats()["records"] == 8 * (40 - 6)
    assert list(memory.check()) == []


# -- requests that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/v1/records", b"{", 422),
        ("PUT", "/v1/records", b"\xff", 422),
        ("PUT", "/v1/records", b"[]", 422),
        ("PUT", "/v1/records", b"", 422),
        ("PUT", "/v1/records", b"[" * 200_000, 422),
        ("PUT", "/v1/records", {"namespace": ["a"], "key": "k"}, 422),
        ("PUT", "/v1/records", {"namespace": ["a"], "key": "k", "value": 1, "more": 1}, 422),
        ("PUT", "/v1/records", {"namespace": "a", "key": "k", "value": 1}, 422),
        ("PUT", "/v1/records", {"namespace": ["a"], "key": 1, "value": 1}, 422),
        ("PUT", "/v1/records", {"namespace": ["a"], "key": "k", "value": 1, "ttl": 0}, 422),
        ("PUT", "/v1/records", {"namespace": ["a"], "key": "k", "value": 1, "ttl": "1"}, 422),
        ("PUT", "/v1/records", {"namespace": ["a"], "key": "k", "value": 1, "cls": "c"}, 422),
        ("PUT", "/v1/records", {"namespace": ["a"] * 33, "key": "k", "value": 1}, 422),
        ("GET", "/v1/records", None, 422),
        ("GET", "/v1/records?namespace=a", None, 422),
        ("GET", "/v1/records?namespace=a&key=k&key=l", None, 422),
        ("GET", "/v1/records?namespace=a&key=k&more=1", None, 422),
        ("GET", "/v1/records?namespace=a&key=k&refresh=yes", None, 422),
        ("GET", "/v1/records?namespace=a&key=%FF", None, 422),
        ("GET", "/v1/records?namespace=&key=k", None, 422),
        ("GET", "/v1/records?namespace=a;key=k", None, 422),
        ("GET", "/v1/records?" + "namespace=a&" * 100 + "key=k", None, 422),
        ("GET", "/v1/records?namespace=a&key=k", None, 404),
        ("GET", "/v1/records/a/k", None, 404),
        ("GET", "/v1/../metrics/x", None, 404),
        ("POST", "/v1/records", {"namespace": ["a"]}, 405),
        ("POST", "/v1/search", {"limit": 100_000}, 422),
        ("POST", "/v1/search", {"limit": True}, 422),
        ("POST", "/v1/batch", {"ops": [{"op": "drop"}]}, 422),
        ("POST", "/v1/batch", {"ops": [{"op": "get", "namespace": ["a"], "key": "k"}] * 1001}, 422),
        ("GET", "/v1/stats?measure=1", None, 422),
        ("GET", "/docs", None, 404),
    ],
)
def test_bad_requests(url: str, memory: Memory, method: str, path: str, body: Any, status: int) -> None:
    got, content = asked(url, method, path, body)
    assert got == status
    assert set(content["error"]) == {"type", "message"} and "\n" not in content["error"]["message"]
    assert memory.stats()["records"] == 0


def test_bodies_are_json_and_nothing_else(url: str) -> None:
    body = b'{"namespace":["a"],"key":"k","value":1}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"):
        assert asked(url, "PUT", "/v1/records", body, headers={"Content-Type": kind})[0] == 415
    assert asked(url, "PUT", "/v1/records", body, headers={"Content-Encoding": "gzip"})[0] == 415
    assert asked(url, "PUT", "/v1/records", body, headers={"Content-Type": "Application/JSON; charset=utf-8"})[0] == 204


def test_a_body_that_is_too_large(url: str, memory: Memory) -> None:
    big = json.dumps({"namespace": ["a"], "key": "k", "value": "x" * (1 << 20)}).encode()
    assert asked(url, "PUT", "/v1/records", big)[0] == 413
    # Without a declared length it is counted as it comes.
    chunks = b"".join(b"%x\r\n%b\r\n" % (65536, b"x" * 65536) for _ in range(20))
    head = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    assert raw(url, head + chunks, wait=3).startswith(b"HTTP/1.1 413")
    assert asked(url, "PUT", "/v1/records", {"namespace": ["a"], "key": "k", "value": "x" * 1_000_000})[0] == 204
    assert memory.stats()["records"] == 1


def test_a_body_that_does_not_come(url: str) -> None:
    head = (
        b"PUT /v1/records HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    start = time.monotonic()
    assert raw(url, head, wait=20).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - start < 15


def test_an_answer_that_does_not_come(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.put(("a",), "k", 1)
    quick = memory._search
    monkeypatch.setattr(memory, "_search", lambda op: (time.sleep(2), quick(op))[1])
    with serving(memory, limits=Limits(seconds=0.3)) as url:
        status, content = asked(url, "POST", "/v1/search", {"prefix": ["a"]})
        assert status == 504 and "may still be done" in content["error"]["message"]
        assert asked(url, "GET", "/v1/records?namespace=a&key=k")[0] == 200  # others go on


def test_a_server_without_tokens_goes_by_its_own_names_alone(url: str) -> None:
    """No web page reaches it through a name that its owner points here."""
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", ""):
        assert asked(url, "GET", "/health", headers={"Host": host})[0] in (400, 421)
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8750", "[::1]:8750"):
        assert asked(url, "GET", "/health", headers={"Host": host})[0] == 200
    answer = urllib3.request("OPTIONS", url + "/v1/records", headers={"Origin": "http://evil.example"})
    assert answer.status == 405 and "access-control-allow-origin" not in answer.headers


def test_a_failing_store_is_told_without_its_place(memory: Memory, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise StoreError("/secret/place/warm.db cannot grow: the disk is full")

    memory.put(("a",), "k", 1)
    monkeypatch.setattr(memory.warm, "batch", fail)
    for method, path, body in (
        ("GET", "/v1/records?namespace=a&key=k", None),
        ("PUT", "/v1/records", {"namespace": ["a"], "key": "l", "value": 1}),
        ("DELETE", "/v1/records?namespace=a&key=k", None),
        ("POST", "/v1/search", {}),
    ):
        status, content = asked(url, method, path, body)
        assert status == 503 and content["error"]["type"] == "StoreError" and "secret" not in json.dumps(content)
    with Client(url) as client, pytest.raises(StoreError):
        client.get(("a",), "k")


def test_a_fault_of_ours_is_told_without_its_words(memory: Memory, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr(memory, "_search", fail)
    status, content = asked(url, "POST", "/v1/search", {})
    assert status == 500 and "secret" not in json.dumps(content)


def test_a_client_says_what_it_cannot_reach(url: str) -> None:
    with Client("http://127.0.0.1:9", timeout=5) as client, pytest.raises(StoreError, match="cannot be reached"):
        client.get(("a",), "k")
    for address in ("ftp://x", "localhost:1", "http://user@x", "http://", "http://x/?a=1"):
        with pytest.raises(PolicyError):
            Client(address)
    with Client(url + "/nowhere") as client, pytest.raises(StoreError, match="404"):
        client.search()


# -- upkeep ------------------------------------------------------------------------------------------------------------


def test_health_and_readiness(memory: Memory, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(url, "GET", "/health") == (200, {"status": "alive"})
    assert asked(url, "GET", "/ready") == (200, {"status": "ready"})

    def fail() -> int:
        raise StoreError("gone")

    monkeypatch.setattr(memory.warm, "version", fail)
    assert asked(url, "GET", "/ready") == (503, {"status": "not ready"})
    assert asked(url, "GET", "/health")[0] == 200


def test_metrics(client: Client, url: str) -> None:
    client.put(("users", "ann"), "secret key", {"text": "secret value"}, cls="secret class")
    client.get(("users", "ann"), "secret key")
    with pytest.raises(DataError):
        client.search(("a",), limit=-1)
    status, content = asked(url, "GET", "/metrics")
    text = content.decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}

    def value(name: str, **labels: str) -> float:
        return next(
            sample.value
            for family in families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    assert status == 200
    assert value("nbmf_operations_total", operation="put", outcome="ok") == 1
    assert value("nbmf_operation_seconds_count", operation="get") == 1
    assert value("nbmf_http_requests_total", route="/v1/search", method="POST", status="422") == 1
    assert value("nbmf_http_bytes_total", direction="in") > 50
    assert value("nbmf_writes_total", encoder="neural") == 1
    assert value("nbmf_write_raw_bytes_total", encoder="neural") == len('{"text":"secret value"}')
    assert value("nbmf_records", tier="warm") == 1
    assert value("nbmf_store_bytes", tier="warm", part="records") > 0
    assert value("nbmf_hot_reads_total", outcome="hit") == 1
    assert value("nbmf_info") == 1
    assert all(name.startswith("nbmf_") for name in families)
    assert not any(word in text for word in ("secret", "users", "ann"))


def test_the_document_names_every_path(url: str) -> None:
    status, document = asked(url, "GET", "/openapi.json")
    assert status == 200 and document["openapi"].startswith("3.")
    assert set(document["paths"]) == {
        *("/v1/records", "/v1/search", "/v1/namespaces", "/v1/batch", "/v1/forget", "/v1/stats"),
        *("/v1/inspect", "/v1/overview", "/v1/latency", "/metrics", "/health", "/ready"),
    }
    assert document["components"]["schemas"]["Put"]["additionalProperties"] is False


def test_answers_are_not_for_caches_nor_frames(url: str) -> None:
    headers = urllib3.request("GET", url + "/health").headers
    assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "server" not in headers


def test_a_dashboard_is_served_where_there_is_one(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "DASHBOARD", tmp_path / "dashboard")
    with serving(memory) as none:
        assert asked(none, "GET", "/")[0] == asked(none, "GET", "/dashboard/main.js")[0] == 404
    (tmp_path / "dashboard").mkdir()
    (tmp_path / "dashboard" / "index.html").write_text("<title>NBMF</title>")
    (tmp_path / "outside.txt").write_text("secret")
    with serving(memory) as again:
        assert asked(again, "GET", "/") == (200, b"<title>NBMF</title>")
        assert asked(again, "GET", "/health")[0] == 200 and asked(again, "GET", "/v1/nowhere")[0] == 404
        for path in ("/../outside.txt", "/dashboard/../../outside.txt", "/dashboard/..%2foutside.txt"):
            host = again.removeprefix("http://")
            answer = raw(again, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert b"secret" not in answer


def test_a_signal_ends_it_and_loses_nothing(tmp_path: Path) -> None:
    """Puts go on while SIGTERM comes: what was acknowledged is there, exit code 0."""
    acknowledged: list[str] = []
    with Process(tmp_path / "log", "serve", str(tmp_path / "s")) as server:

        def work(worker: int) -> None:
            with Client(server.url) as client:
                for i in range(10_000):
                    try:
                        client.put(("w",), f"{worker} {i}", {"i": i})
                    except NbmfError:
                        return
                    acknowledged.append(f"{worker} {i}")

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        while len(acknowledged) < 40:
            time.sleep(0.01)
        assert server.stop() == 0
        for thread in threads:
            thread.join()
        assert server.lines()[-1]["event"] == "stopped"
    with Memory.open(tmp_path / "s", create=False) as memory:
        assert all(memory.get(("w",), key) is not None for key in acknowledged)
        assert list(memory.check()) == []


def test_a_put_over_quota(tmp_path: Path) -> None:
    policy = Policy.parse("[tenant.t]\nquota_records = 2\n")
    with (
        Memory.open(tmp_path / "s", key=b"", embedder=None, policy=policy) as memory,
        serving(memory) as url,
        Client(url) as client,
    ):
        client.put(("t",), "a", 1)
        client.put(("t",), "b", 1)
        with pytest.raises(PolicyError, match="may hold 2 records"):
            client.put(("t",), "c", 1)
        client.put(("t",), "a", 2)
        client.put(("u",), "c", 1)
