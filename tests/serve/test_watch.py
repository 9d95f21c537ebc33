"""Metrics, spans and logs: what they say, what they never say, and what they cost."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from live import Process, serving
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from nbmf import Memory
from nbmf.errors import DataError, PolicyError
from nbmf.memory.items import PutOp, SearchOp
from nbmf.serve import logs
from nbmf.serve.client import Client
from nbmf.serve.metrics import Metrics
from nbmf.serve.watch import Watch, Watched

SECRET = "swordfish"


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Of the one provider of this process: OpenTelemetry takes no second one."""
    made = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    trace.set_tracer_provider(provider)
    return made


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    exporter.clear()
    return exporter


def use(memory: Any) -> None:
    """Every operation once, with a secret in all that a user may write."""
    memory.put((SECRET,), SECRET, {"text": SECRET}, cls=SECRET, meta={SECRET: SECRET})
    memory.get((SECRET,), SECRET)
    memory.search((SECRET,), filter={SECRET: SECRET})
    memory.batch([PutOp((SECRET,), "k", SECRET), SearchOp((SECRET,))])
    memory.delete((SECRET,), "k")
    with pytest.raises((PolicyError, DataError)):
        memory.put((SECRET,), "\0" + SECRET, 1)
    memory.forget((SECRET,))


def test_spans_have_the_names_of_the_conventions(memory: Memory, spans: InMemorySpanExporter) -> None:
    watched = Watched(memory)
    use(watched)
    watched.put_many([PutOp(("a",), str(i), i) for i in range(3)])
    found = spans.get_finished_spans()
    assert [(span.name, span.attributes["gen_ai.memory.record.count"]) for span in found if span.attributes] == [
        ("upsert_memory store", 1),
        ("search_memory store", 1),
        ("search_memory store", 0),
        ("nbmf batch store", 2),
        ("delete_memory store", 1),
        ("upsert_memory store", 1),
        ("delete_memory store", 1),
        ("upsert_memory store", 3),
    ]
    for span in found:
        assert span.attributes is not None
        assert span.attributes["gen_ai.provider.name"] == "nbmf"
        assert span.attributes["gen_ai.memory.store.id"] == "store"
        assert span.attributes.get("gen_ai.operation.name", span.name.split()[0]) in span.name
    failed = [span for span in found if span.status.status_code is StatusCode.ERROR]
    assert [span.attributes["error.type"] for span in failed if span.attributes] == ["PolicyError"]


def test_spans_hold_nothing_that_users_wrote(memory: Memory, spans: InMemorySpanExporter) -> None:
    use(Watched(memory))
    with serving(memory) as url, Client(url) as client:
        use(client)
    found = spans.get_finished_spans()
    assert len(found) >= 12
    assert SECRET not in "".join(span.to_json() for span in found)


def test_spans_hold_it_when_asked(memory: Memory, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "true")
    watched = Watched(memory)
    watched.put(("users", "ann"), "k", 1)
    with pytest.raises(PolicyError):
        watched.search(("users",), "what does she drink?")  # this store has no embedder
    put, search = spans.get_finished_spans()
    assert put.attributes is not None and search.attributes is not None
    assert put.attributes["gen_ai.memory.record.id"] == "users/ann k"
    assert search.attributes["gen_ai.memory.query.text"] == "what does she drink?"


def test_a_span_belongs_to_the_trace_of_its_request(memory: Memory, spans: InMemorySpanExporter) -> None:
    with serving(memory) as url, Client(url) as client:
        client._headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        client.put(("a",), "k", 1)
    (span,) = spans.get_finished_spans()
    assert span.context is not None and span.parent is not None
    assert span.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C and span.parent.span_id == 0xB7AD6B7169203331


def test_spans_reach_a_collector(tmp_path: Path) -> None:
    """`nbmf serve` as a process of its own, a collector that speaks OTLP over HTTP."""
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                import gzip

                body = gzip.decompress(body)
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    try:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}"}
        with Process(tmp_path / "log", "serve", str(tmp_path / "s"), environment=environment) as server:
            with Client(server.url) as client:
                client.put(("a",), "k", SECRET)
            assert server.stop() == 0
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()
    resources = [resource for request in received for resource in request.resource_spans]
    names = [span.name for resource in resources for scope in resource.scope_spans for span in scope.spans]
    assert names == ["upsert_memory s"]
    assert any(
        one.key == "service.name" and one.value.string_value == "nbmf" for one in resources[0].resource.attributes
    )
    assert SECRET.encode() not in b"".join(request.SerializeToString() for request in received)


def test_metrics_of_an_embedded_store(memory: Memory) -> None:
    metrics = Metrics(memory)
    use(Watched(memory, Watch(memory, metrics)))
    text = metrics.text().decode()
    assert 'nbmf_operations_total{operation="put",outcome="ok"} 1.0' in text
    assert 'nbmf_operations_total{operation="put",outcome="PolicyError"} 1.0' in text
    assert 'nbmf_operation_records_total{operation="batch"} 2.0' in text
    assert 'nbmf_operation_seconds_count{operation="forget"} 1.0' in text
    assert SECRET not in text


# -- logs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was before, afterwards."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    others = {name: logging.getLogger(name) for name in ("uvicorn", "uvicorn.error", "mcp", "uvicorn.access")}
    before = {name: (one.level, one.propagate, one.disabled) for name, one in others.items()}
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)
    for name, one in others.items():
        one.level, one.propagate, one.disabled = before[name]


def test_logs_are_json_or_text(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    for format in logs.FORMATS:
        out = io.StringIO()
        monkeypatch.setattr(sys, "stderr", out)
        logs.configure(format, "info")
        logs.event("something", answer=42, of="ü\n")
        logs.event("hidden", logging.DEBUG)
        try:
            raise ValueError("a fault")
        except ValueError as error:
            logs.event("fault", logging.ERROR, error=error)
        root.handlers[0].flush()
        lines = out.getvalue().splitlines()
        if format == "json":
            first, second = map(json.loads, lines)
            assert (first["event"], first["level"], first["answer"], first["of"]) == ("something", "info", 42, "ü\n")
            assert first["time"].endswith("Z") and "ValueError: a fault" in second["traceback"]
        else:
            assert "info    something answer=42" in lines[0] and lines[-1] == "ValueError: a fault"
        assert "hidden" not in out.getvalue()


def test_a_reader_that_stopped_reading_holds_nobody_up(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            written.wait(20)
            return super().write(text)

    out = Stuck()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(logs, "WAITING", 100)
    logs.configure("json", "info")
    start = time.monotonic()
    for i in range(1000):
        logs.event("line", number=i)
    time.sleep(0.2)
    for i in range(1000):
        logs.event("line", number=i)
    assert time.monotonic() - start < 10
    written.set()
    root.handlers[0].flush()
    time.sleep(0.2)
    root.handlers[0].flush()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    lost = sum(line["lines"] for line in lines if line["event"] == "lines were lost")
    assert lost > 1000 and lost + sum(line["event"] == "line" for line in lines) == 2000


def test_logs_of_a_server_hold_nothing_that_users_wrote(tmp_path: Path) -> None:
    with Process(tmp_path / "log", "serve", str(tmp_path / "s"), "--log-level", "debug") as server:
        with Client(server.url) as client:
            use(client)
        assert server.stop() == 0
        lines = server.lines()
        text = server.log.read_text()
    requests = [line for line in lines if line["event"] == "request"]
    assert {(line["method"], line["route"], line["status"]) for line in requests} >= {
        ("PUT", "/v1/records", 204),
        ("GET", "/v1/records", 200),
        ("POST", "/v1/forget", 200),
    }
    assert all(line["seconds"] > 0 and line["level"] == "info" for line in requests)
    assert SECRET not in text and lines[-1]["event"] == "stopped"
