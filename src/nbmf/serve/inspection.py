"""A stored record taken apart: what it takes, and what each of its bytes costs under the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nbmf import inspect
from nbmf.codec import format
from nbmf.codec.codec import Codec
from nbmf.codec.model import Pack
from nbmf.codec.values import JSON, TEXT, VALUE_TYPES, VECTOR
from nbmf.memory import Memory
from nbmf.memory.encoding import STUB_FIRST
from nbmf.memory.items import moment, now
from nbmf.policy.router import tenant_of
from nbmf.serve.auth import Grant
from nbmf.store.base import Namespace, check_address


def inspected(memory: Memory, namespace: Namespace, key: str, grant: Grant) -> dict[str, Any] | None:
    """Facts and heat of a record, None if there is none. It counts for no read and renews no time to live.

    Costs are those with the record's pack only for whom the pack is open: a tenant's was learned from all its records,
    and would tell, byte by byte, which texts stand in others of them.
    """
    check_address(namespace, key)
    found = memory.tiers.fetch_one((namespace, key), now())
    if found is None:
        return None
    record, tier = found
    value_type, raw = memory.codecs.decode(record.codec, record.blob)
    codec = memory.codecs.of_id(record.codec)
    pack = codec.pack if codec.pack is not None and _open(memory, codec.pack, namespace, grant) else None
    coder = (codec if pack is codec.pack else Codec(str(codec.model.path))).coder
    blob = _blob(record.blob) if tier == "warm" else None
    head = raw[: inspect.SHOWN]
    profile = blob.profile if blob is not None else format.FAST
    costs = inspect.costs_by(coder, head, min(value_type, VECTOR), profile)[: len(head)]
    is_text = value_type in (TEXT, JSON)
    return {
        "namespace": list(namespace),
        "key": key,
        "type": VALUE_TYPES[value_type],
        "class": record.cls,
        "fidelity": record.fidelity,
        "updated": moment(record.updated).isoformat(),
        "expires": None if record.expires is None else moment(record.expires).isoformat(),
        "tier": tier,
        "method": _method(record.blob, blob, tier),
        "profile": format.PROFILES[blob.profile] if blob is not None and blob.method >= format.NEURAL else None,
        "raw_bytes": len(raw),
        "stored_bytes": len(record.blob) if tier == "warm" else None,
        "framing_bytes": len(record.blob) - len(blob.payload) if blob is not None else None,
        "model": codec.model.id.hex(),
        "pack": pack.id.hex() if pack is not None else None,
        "shown_bytes": len(head),
        "shown_bits": round(sum(costs), 2),
        "levels": _levels(costs),
        "pieces": [[text, round(cost, 2)] for text, cost in _lines(head, costs, is_text)],
    }


def _open(memory: Memory, pack: Pack, namespace: Namespace, grant: Grant) -> bool:
    if grant.everything:
        return True
    tenant = tenant_of(namespace)
    packs = memory.codecs.packs
    return grant.reaches((tenant,)) and packs is not None and pack.id.hex() in packs.of(tenant)


def _blob(data: bytes) -> format.Blob | None:
    """None of the old encoder's."""
    return None if data[:1] == STUB_FIRST else format.parse(data, bare=True)


def _method(data: bytes, blob: format.Blob | None, tier: str) -> str:
    """How a record is stored, in a word or two."""
    if tier != "warm":
        return "coded with others"
    return "stub" if blob is None else format.METHODS[blob.method]


def _levels(costs: Sequence[float]) -> list[dict[str, Any]]:
    """How many bytes cost less than each bound, and not less than the one before; the last has none."""
    out: list[dict[str, Any]] = []
    low = 0.0
    for bound, *_ in inspect.HEAT:
        last = bound == float("inf")
        out.append({"under": None if last else bound, "bytes": sum(low <= cost < bound for cost in costs)})
        low = bound
    return out


def _lines(raw: bytes, bits: Sequence[float], is_text: bool) -> list[tuple[str, float]]:
    """Pieces, the last of each line with its line's end."""
    return [(text + "\n" * ends, cost) for text, cost, ends in inspect.pieces_of(raw, bits, is_text)]


__all__ = ["inspected"]
