"""Prometheus metrics of a store and of what serves it. No label ever holds a namespace, a key or a value."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from nbmf import __version__
from nbmf.codec import kernel
from nbmf.errors import NbmfError
from nbmf.memory import Memory
from nbmf.policy.rollout import FIGURES
from nbmf.serve.history import History

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
SIZES_AGE: Final = 30.0  # seconds for which the sizes of the store hold: to count them, every page is looked at
# Seconds: from a record of the hot tier to a search through a large archive.
BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """What one server counts, in a registry of its own. Thread-safe."""

    def __init__(self, memory: Memory) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "nbmf_operation_seconds", "Seconds of an operation.", ["operation"], buckets=BUCKETS, registry=self.registry
        )
        self._operations = Counter(
            "nbmf_operations", "Operations, by what came of them.", ["operation", "outcome"], registry=self.registry
        )
        self._records = Counter(
            "nbmf_operation_records", "Records that operations gave or took.", ["operation"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "nbmf_http_request_seconds", "Seconds of a request.", ["route"], buckets=BUCKETS, registry=self.registry
        )
        self._requests = Counter(
            "nbmf_http_requests", "Requests, by their answer.", ["route", "method", "status"], registry=self.registry
        )
        self._bytes = Counter("nbmf_http_bytes", "Bytes of bodies, in and out.", ["direction"], registry=self.registry)
        self._children: dict[tuple[Any, ...], Any] = {}
        self._memory = memory
        self._store = StoreCollector(memory)
        self.registry.register(self._store)
        self.history = History(self.written)

    def operation(self, name: str, outcome: str, seconds: float, records: int) -> None:
        """Counts an operation that ended; `outcome` is "ok" or the name of the error."""
        self._child(self._seconds, name).observe(seconds)
        self._child(self._operations, name, outcome).inc()
        if records:
            self._child(self._records, name).inc(records)
        self.history.observe(name, seconds, outcome != "ok")

    def request(self, route: str, method: str, status: int, seconds: float, received: int, sent: int) -> None:
        """Counts a request that was answered; `route` is the path as it was declared."""
        self._child(self._request_seconds, route).observe(seconds)
        self._child(self._requests, route, method, str(status)).inc()
        self._child(self._bytes, "in").inc(received)
        self._child(self._bytes, "out").inc(sent)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def written(self) -> tuple[int, int]:
        """Raw bytes of what was written since the process began, and bytes of its blobs."""
        sums = self._memory.codecs.metrics.snapshot()
        raw, stored = (int(sum(sums[f"nbmf_write_{name}_bytes"].values())) for name in ("raw", "stored"))
        return raw, stored

    def sizes(self) -> dict[str, dict[str, int]]:
        """Records and bytes of the tiers, counted now and then; {} while the store fails."""
        return self._store.measured()

    def _child(self, metric: Any, *labels: str) -> Any:
        """`metric.labels(...)`, which costs a lock and a check of every label each time."""
        key = (id(metric), *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child


class StoreCollector(Collector):
    """What a store says of itself when it is asked; nothing is counted while it works."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._sizes: dict[str, dict[str, int]] = {}
        self._next = 0.0

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        info = GaugeMetricFamily("nbmf_info", "The version and the kernel in use.", labels=["version", "kernel"])
        info.add_metric([__version__, kernel.backend], 1)
        yield info
        for name, sums in self._memory.codecs.metrics.snapshot().items():
            family = CounterMetricFamily(name.removesuffix("_total"), FIGURES[name], labels=["encoder"])
            for encoder, amount in sums.items():
                family.add_metric([encoder], amount)
            yield family
        hot = self._memory.hot
        yield GaugeMetricFamily("nbmf_hot_records", "Values in the hot tier.", value=len(hot))
        yield GaugeMetricFamily("nbmf_hot_bytes", "Bytes of memory of the hot tier.", value=hot.bytes)
        reads = CounterMetricFamily("nbmf_hot_reads", "Values looked for in the hot tier.", labels=["outcome"])
        reads.add_metric(["hit"], hot.hits)
        reads.add_metric(["miss"], hot.misses)
        yield reads
        yield GaugeMetricFamily(
            "nbmf_index_bytes", "Bytes of memory of the semantic index.", value=self._memory.recall.bytes
        )
        records = GaugeMetricFamily("nbmf_records", "Records, by tier; counted now and then.", labels=["tier"])
        sizes = GaugeMetricFamily(
            "nbmf_store_bytes", "Bytes of the tiers, by what for; counted now and then.", labels=["tier", "part"]
        )
        for tier, parts in self.measured().items():
            for part, size in parts.items():
                if part == "count":
                    records.add_metric([tier], size)
                else:
                    sizes.add_metric([tier, part], size)
        yield records
        yield sizes

    def measured(self) -> dict[str, dict[str, int]]:
        """The sizes of each tier, {} while the store fails."""
        with self._lock:
            if time.monotonic() >= self._next:
                try:
                    cold = self._memory.cold()
                    self._sizes = {"warm": self._memory.warm.sizes()} | ({"cold": cold.sizes()} if cold else {})
                except NbmfError:
                    self._sizes = {}  # the store fails: better no figure than an old one
                self._next = time.monotonic() + SIZES_AGE
            return self._sizes


__all__ = ["CONTENT_TYPE", "Metrics"]
