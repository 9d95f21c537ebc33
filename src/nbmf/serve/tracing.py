"""OpenTelemetry spans of memory operations, by the names of the GenAI conventions. Without OpenTelemetry, none.

What users wrote (queries, keys, values) is in no span unless content capture is on: with
OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true in the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from nbmf import __version__
from nbmf.errors import PolicyError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

CAPTURE: Final = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
EXPORT: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROVIDER: Final = "nbmf"

# The operation's name in the conventions; others have a span of our own name.
NAMES: Final = {
    "put": "upsert_memory",
    "get": "search_memory",
    "search": "search_memory",
    "delete": "delete_memory",
    "forget": "delete_memory",
}


def tracer() -> Tracer | None:
    """The tracer of whatever provider the process has; None without opentelemetry-api."""
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    return trace.get_tracer("nbmf", __version__)


def captures() -> bool:
    """Whether the environment asks for content in spans."""
    return os.environ.get(CAPTURE, "").lower() in ("1", "true", "span_only", "span_and_event")


def configure() -> Any:
    """Exports spans by OTLP over HTTP where the environment names an endpoint; what to shut down at the end, or None.

    A provider that was configured before, such as by `opentelemetry-instrument`, stays. Raises PolicyError.
    """
    if not any(os.environ.get(name) for name in EXPORT) or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise PolicyError("exporting spans needs nbmf[otel]") from None
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    provider = TracerProvider(resource=Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "nbmf")}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider


def parent_of(headers: Mapping[str, str]) -> Context | None:
    """The context that a request's headers carry (`traceparent`), None for none."""
    if "traceparent" not in headers:
        return None
    try:
        from opentelemetry.propagate import extract
    except ImportError:
        return None
    return extract(headers)


def start(tracer: Tracer, operation: str, store: str, parent: Context | None) -> Span:
    """The span of an operation."""
    from opentelemetry.trace import SpanKind

    name = NAMES.get(operation)
    attributes: dict[str, Any] = {"gen_ai.provider.name": PROVIDER, "gen_ai.memory.store.id": store}
    if name is not None:
        attributes["gen_ai.operation.name"] = name
    return tracer.start_span(
        f"{name or f'nbmf {operation}'} {store}", parent, kind=SpanKind.INTERNAL, attributes=attributes
    )


def finish(span: Span, records: int | None, error: BaseException | None) -> None:
    """Ends a span. Of an error it says the kind: its message may hold what a user wrote."""
    from opentelemetry.trace import StatusCode

    if records is not None:
        span.set_attribute("gen_ai.memory.record.count", records)
    if error is not None:
        span.set_attribute("error.type", type(error).__qualname__)
        span.set_status(StatusCode.ERROR)
    span.end()


__all__ = ["CAPTURE", "captures", "configure", "finish", "parent_of", "start", "tracer"]
