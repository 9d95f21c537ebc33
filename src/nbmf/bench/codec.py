"""`nbmf bench codec` and `nbmf eval`: ratio, exactness, latency and speed, beside the peers on the same records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from nbmf.bench import claims, coding, encoders, heat, peers
from nbmf.bench.conditions import about_model, conditions, loading
from nbmf.bench.encoders import BASELINES, Encoder, encoder
from nbmf.bench.figures import (
    Measured,
    by_size,
    distribution,
    figures,
    grouped,
    intervals_of_records,
    over_sources,
    peer_rows,
)
from nbmf.bench.packs import packs
from nbmf.bench.records import Record, load
from nbmf.codec.codec import Codec
from nbmf.report import Tick

BESIDE: Final = 300  # records, at most, on which the other encoders are timed


def parts(measured: Measured, overall: dict[str, Any]) -> dict[str, Any]:
    """The figures of all records, and by size, kind, domain and source."""
    sources, means = over_sources(measured)
    each = (measured.raw / measured.bare)[measured.raw > 0]
    domains = [one.domain for one in measured.records]
    found = {
        "total": {
            **figures(measured, np.arange(len(measured.records), dtype=np.intp)),
            "intervals_95": intervals_of_records(each) if len(each) else {},
        },
        **overall,
        "by_size": by_size(measured),
        "by_kind": grouped(measured, [one.kind for one in measured.records], "kind"),
        "geometric_means": means,
        "by_source": sources,
        "distribution": distribution(measured),
    }
    if any(domains):
        found["by_domain"] = grouped(measured, [domain or "none" for domain in domains], "domain")
    return found


def evaluate(
    files: Sequence[str | Path], *, model: str, profile: str, domain: str | None, limit: int | None, tick: Tick
) -> dict[str, Any]:
    """Ratio and exactness of a model, or of a model with a pack, on files of records."""
    codec = Codec(model=model, profile=profile, domain=domain)
    records, every = load(files, limit, tick)
    measured, overall = coding.measure(encoder(profile, model, domain), records, False, tick)
    return {
        **conditions("eval", files, limit, every),
        "model": about_model(codec, model, profile),
        **parts(measured, overall),
    }


def run(
    data: Sequence[str | Path],
    *,
    name: str = "fast",
    model: str = "base",
    domain: str | None = None,
    limit: int | None = None,
    tick: Tick,
    with_peers: bool = True,
    with_packs: bool = False,
    train_dict: str | Path | None = None,
) -> dict[str, Any]:
    """Everything about the encoder `name` on these records; with its peers, and with packs learned from them.

    Raises NbmfError (a peer is missing), PolicyError (no such encoder), DataError (no records), UnknownModel.
    """
    if with_peers:
        peers.require()
    main = encoder(name, model, domain)
    records, every = load(data, limit, tick)
    learned = [one.raw for one in load([train_dict], None, tick)[0]] if train_dict else None
    held = [one for one in records if main.can(one.value)]
    measured, overall = coding.measure(main, held, True, tick)
    left_out: dict[str, str] = {}
    if len(held) < len(records):
        left_out["records"] = f"{len(records) - len(held)} that the encoder {name} cannot hold"
    if with_peers:
        types = [one.value_type for one in held]
        found, left_out_peers = peers.every_peer([one.raw for one in held], types, learned, tick)
        measured.peers.extend(found)
        left_out |= left_out_peers
    else:
        left_out["peers"] = "--no-peers"
    rows, coded = others(main, held, model, domain, tick)
    coded[name] = measured.blobs, overall["exact"]["bare"]
    result = {
        **conditions("bench codec", data, limit, every),
        "encoder": name,
        "model": {**about_model(main.codec or Codec(model=model), model, name), **loading(model, domain)},
        **parts(measured, overall),
        "encoders": [coding.row(main, measured, overall), *rows],
        "claims": claims.every(
            [main, *(one for one in profiles(model, domain) if one.name != name)], encoder, held, coded, tick
        ),
        "heat": heat.samples_shown(Codec(model=model)),
        "left_out": left_out,
    }
    if with_peers:
        result["peers"] = peer_rows(measured)
    if with_packs and main.codec is not None:
        result["packs"] = packs(held, main, model, tick)
    return result


def profiles(model: str, domain: str | None) -> list[Encoder]:
    """An encoder for each profile of the model."""
    return [encoder(name, model, domain) for name in encoders.profiles(model)]


def others(
    main: Encoder, records: Sequence[Record], model: str, domain: str | None, tick: Tick
) -> tuple[list[dict[str, Any]], dict[str, claims.Coded]]:
    """A row for each other profile of the model and each baseline, on the records that it holds; and the blobs of those
    that hold all.
    """
    rows = []
    coded: dict[str, claims.Coded] = {}
    for one in [*profiles(model, domain), *(encoder(name) for name in BASELINES)]:
        held = [record for record in records if one.can(record.value)]
        if one.name == main.name or not held:
            continue
        measured, overall = coding.measure(one, held, True, tick, few=BESIDE)
        rows.append(coding.row(one, measured, overall))
        if len(held) == len(records):
            coded[one.name] = measured.blobs, overall["exact"]["bare"]
    return rows, coded
