"""The parts of `nbmf bench`, each alone or all of them one after the other."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nbmf.bench import codec, recall, semantic, store, training
from nbmf.bench.conditions import conditions
from nbmf.report import Tick

CODEC: Final = "codec"
STORE: Final = "store"
TRAINING: Final = "training"
RECALL: Final = "recall"
SEMANTIC: Final = "semantic"
ALL: Final = "all"
PARTS: Final = (CODEC, STORE, TRAINING, RECALL, SEMANTIC, ALL)
# Of `all`, where nothing else is asked for: records of each part, and of the largest store that is grown.
FEW: Final = {CODEC: 2000, STORE: 5000, TRAINING: 3000, RECALL: 2000, SEMANTIC: 600}
SCALE: Final = 10_000


@dataclass(frozen=True)
class Options:
    """What the command line takes; each part uses its own."""

    data: Sequence[str] = ()
    samples: int | None = None
    encoder: str = "fast"
    model: str = "base"
    domain: str | None = None
    peers: bool = True
    packs: bool = False
    train_dict: Path | None = None
    scale: int | None = None
    unseen: Sequence[str] = field(default_factory=list)
    size: str = "toy"


def run(part: str, options: Options, tick: Tick) -> dict[str, Any]:
    """The result of one of PARTS. Raises as the part does."""
    if part == ALL:
        return _all(options, tick)
    return _one(part, options, options.samples, options.scale, tick)


def _one(part: str, options: Options, samples: int | None, scale: int | None, tick: Tick) -> dict[str, Any]:
    start = time.perf_counter()
    if part == CODEC:
        found = codec.run(
            options.data,
            name=options.encoder,
            model=options.model,
            domain=options.domain,
            limit=samples,
            tick=tick,
            with_peers=options.peers,
            with_packs=options.packs,
            train_dict=options.train_dict,
        )
    elif part == STORE:
        found = store.run(
            options.data,
            records=samples or store.RECORDS,
            scale=scale,
            unseen=options.unseen,
            peers=options.peers,
            tick=tick,
        )
    elif part == TRAINING:
        found = training.run(options.data, test=options.unseen, size=options.size, limit=samples, tick=tick)
    elif part == SEMANTIC:
        found = semantic.run(options.data, limit=samples, peers=options.peers, tick=tick)
    else:
        found = recall.run(options.data, limit=samples, peers=options.peers, tick=tick)
    return {**found, "seconds": time.perf_counter() - start}


def _all(options: Options, tick: Tick) -> dict[str, Any]:
    """Every part; what needs the embedder is left out, and named, where that is not installed."""
    start = time.perf_counter()
    parts: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for part in PARTS[:-1]:
        if part in (RECALL, SEMANTIC) and not _has_embedder():
            left_out[part] = "nbmf[search] is not installed"
            continue
        samples = options.samples or FEW[part]
        parts[part] = _one(part, options, samples, SCALE if options.scale is None else options.scale, tick)
    every = parts[CODEC]["data"]["records"]
    return {
        **conditions("bench all", options.data, options.samples, every),
        "model": parts[CODEC]["model"],
        "parts": parts,
        "left_out": left_out,
        "seconds": time.perf_counter() - start,
    }


def _has_embedder() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("wordllama", "tokenizers"))
