"""The last hour of a server, in slots: how long operations took, and what was written. For its dashboard."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

SLOT_SECONDS: Final = 10
SLOTS: Final = 360
# Bucket i holds the durations of LEAST * STEP**i seconds at most, over those of bucket i - 1: a percentile is told as
# its bucket's upper bound, so it is at most a tenth too high.
LEAST: Final = 1e-5
STEP: Final = 1.1
PERCENTILES: Final = (50, 95, 99)

Buckets = Counter[int]


@dataclass(slots=True)
class _Slot:
    """`written` is the sums, raw and stored bytes, when it began."""

    number: int
    written: tuple[int, int]
    buckets: dict[str, Buckets] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)


class History:
    """What one server did of late. Thread-safe. `written` gives the raw and stored bytes written since it began."""

    def __init__(self, written: Callable[[], tuple[int, int]], clock: Callable[[], float] = time.time) -> None:
        self._written = written
        self._clock = clock
        self._lock = threading.Lock()
        self._slots: deque[_Slot] = deque(maxlen=SLOTS)

    def observe(self, operation: str, seconds: float, failed: bool) -> None:
        """Counts an operation that ended."""
        bucket = max(0, math.ceil(math.log(seconds / LEAST, STEP))) if seconds > LEAST else 0
        with self._lock:
            slot = self._slot()
            slot.buckets.setdefault(operation, Counter())[bucket] += 1
            if failed:
                slot.failed[operation] += 1

    def _slot(self) -> _Slot:
        """The slot of this moment. A clock that was set back stays in the last one."""
        number = int(self._clock()) // SLOT_SECONDS
        if not self._slots or number > self._slots[-1].number:
            self._slots.append(_Slot(number, self._written()))
        return self._slots[-1]

    def figures(self) -> dict[str, Any]:
        """Of each operation its count, failures, percentiles, and [time, count, p50, p95, p99] of each slot with any.

        Of writes: [time, raw bytes, stored bytes], summed since the server began. Times are seconds of the Unix epoch.
        """
        with self._lock:
            now = self._clock()
            least = int(now) // SLOT_SECONDS - SLOTS
            slots = [slot for slot in self._slots if slot.number > least]
            written = [[slot.number * SLOT_SECONDS, *slot.written] for slot in slots]
            names = sorted({name for slot in slots for name in slot.buckets})
            operations = {name: _operation(name, slots) for name in names}
        return {
            "slot_seconds": SLOT_SECONDS,
            "operations": operations,
            "written": [*written, [round(now), *self._written()]],
        }


def _operation(name: str, slots: Iterable[_Slot]) -> dict[str, Any]:
    whole: Buckets = Counter()
    failed = 0
    series = []
    for slot in slots:
        if (buckets := slot.buckets.get(name)) is not None:
            whole.update(buckets)
            failed += slot.failed[name]
            series.append([slot.number * SLOT_SECONDS, buckets.total(), *percentiles(buckets)])
    return {
        "count": whole.total(),
        "failed": failed,
        **{f"p{share}": value for share, value in zip(PERCENTILES, percentiles(whole), strict=True)},
        "series": series,
    }


def percentiles(buckets: Buckets) -> list[float]:
    """Seconds within which so many percent were done, of at least one."""
    total = buckets.total()
    out: list[float] = []
    seen = 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        while len(out) < len(PERCENTILES) and 100 * seen >= PERCENTILES[len(out)] * total:
            out.append(float(f"{LEAST * STEP**bucket:.3g}"))
    return out


__all__ = ["History"]
