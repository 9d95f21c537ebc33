"""What lies below some prefixes: the figures that a token may see which does not reach the whole store."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from nbmf.memory import Memory
from nbmf.memory.items import now
from nbmf.store.base import PAGE, Namespace, within


def figures_of(memory: Memory, prefixes: Iterable[Namespace], measure: bool) -> dict[str, Any]:
    """Live records and bytes of their warm blobs, by class and together. `measure` decodes them for their raw bytes."""
    apart = _apart(prefixes)
    classes: dict[str, dict[str, Any]] = {}
    live = itertools.chain.from_iterable(memory.live(prefix, now()) for prefix in apart)
    while batch := list(itertools.islice(live, PAGE)):
        raws = (
            [len(raw) for _, raw in memory.codecs.decode_many([(record.codec, record.blob) for record, _ in batch])]
            if measure
            else [0] * len(batch)
        )
        for (record, tier), raw in zip(batch, raws, strict=True):
            sums = classes.setdefault(record.cls, {"records": 0, "blob_bytes": 0, "raw_bytes": 0})
            sums["records"] += 1
            sums["raw_bytes"] += raw
            if tier == "warm":
                sums["blob_bytes"] += len(record.blob)
    if not measure:
        for sums in classes.values():
            del sums["raw_bytes"]
    names = ("records", "blob_bytes", *(["raw_bytes"] if measure else []))
    return {
        "prefixes": [list(prefix) for prefix in apart],
        **{name: sum(sums[name] for sums in classes.values()) for name in names},
        "classes": dict(sorted(classes.items())),
    }


def _apart(prefixes: Iterable[Namespace]) -> list[Namespace]:
    """The prefixes without those that lie below others, so that nothing is counted twice."""
    found = sorted(set(prefixes))
    return [one for one in found if not any(one != other and within(one, other) for other in found)]


__all__ = ["figures_of"]
