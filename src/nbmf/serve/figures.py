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
    whole = dict.fromkeys(("records", "blob_bytes", "raw_bytes", "warm_raw_bytes"), 0)
    classes: dict[str, dict[str, int]] = {}
    live = itertools.chain.from_iterable(memory.live(prefix, now()) for prefix in apart)
    while batch := list(itertools.islice(live, PAGE)):
        raws = (
            [len(raw) for _, raw in memory.codecs.decode_many([(record.codec, record.blob) for record, _ in batch])]
            if measure
            else [0] * len(batch)
        )
        for (record, tier), raw in zip(batch, raws, strict=True):
            for sums in (whole, classes.setdefault(record.cls, dict.fromkeys(whole, 0))):
                sums["records"] += 1
                sums["raw_bytes"] += raw
                if tier == "warm":
                    sums["blob_bytes"] += len(record.blob)
                    sums["warm_raw_bytes"] += raw
    return {
        "prefixes": [list(prefix) for prefix in apart],
        **_told(whole, measure, "ratio_payload"),
        "classes": {name: _told(sums, measure, "ratio") for name, sums in sorted(classes.items())},
    }


def _told(sums: dict[str, int], measure: bool, ratio: str) -> dict[str, Any]:
    """The sums that are told, with the ratio of the warm blobs under the name that Memory.stats gives it."""
    out: dict[str, Any] = {name: sums[name] for name in ("records", "blob_bytes")}
    if measure:
        blobs = sums["blob_bytes"]
        out |= {"raw_bytes": sums["raw_bytes"], ratio: sums["warm_raw_bytes"] / blobs if blobs else None}
    return out


def _apart(prefixes: Iterable[Namespace]) -> list[Namespace]:
    """The prefixes without those that lie below others, so that nothing is counted twice."""
    found = sorted(set(prefixes))
    return [one for one in found if not any(one != other and within(one, other) for other in found)]


__all__ = ["figures_of"]
