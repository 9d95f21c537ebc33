"""The upkeep of a store: aging, re-encoding, learning packs, checking and counting."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nbmf.codec.adapt import learn
from nbmf.errors import DataError, NbmfError, PolicyError, StoreError
from nbmf.memory.encoding import value_of
from nbmf.memory.items import now
from nbmf.memory.tiers import pages
from nbmf.policy.lifecycle import DEMOTE, EXPIRE, PROMOTE, REENCODE, Facts, Move, plan
from nbmf.policy.policy import Policy
from nbmf.policy.router import Route, tenant_of
from nbmf.store.base import Fault, Namespace, Record, within

if TYPE_CHECKING:
    from nbmf.memory.memory import Memory

BATCH: Final = 1024  # records that are moved or re-encoded at once
COLD_BATCH: Final = 16_384  # records that are demoted at once: each batch makes an archive a tenant
LEARN_MOST: Final = 100_000  # records that a pack is learned from
ADAPT_LEAST: Final = 50  # records that a pack is learned from at least

Tick = Callable[..., None]


# -- re-encoding -------------------------------------------------------------------------------------------------------


def recode(memory: Memory, prefix: Namespace, codecs: Collection[str], skip: Namespace) -> None:
    """Codes the warm records of a prefix that use one of these codecs with the model alone.

    Those within `skip` stay: they are about to go. No new record may use one of the codecs.
    """
    base = memory.codecs.of_domain("")
    again = True
    while again:  # one that was renewed or replaced meanwhile is looked at once more
        again = False
        for page in pages(memory.warm, prefix, None):
            batch = [one for one in page if one.codec in codecs and not within(one.namespace, skip)]
            if not batch:
                continue
            pairs = memory.codecs.decode_many([(record.codec, record.blob) for record in batch])
            blobs = base.from_pairs(pairs, bare=True)
            if base.raw_many(blobs, bare=True) != pairs:
                raise StoreError("records coded anew did not decode to their values; nothing was changed")
            moves = [(old, replace(old, blob=blob, codec=base.id)) for old, blob in zip(batch, blobs, strict=True)]
            again |= memory.tiers.recode(moves) < len(moves)


def adapt(memory: Memory, tenant: str, size: int, tick: Tick) -> dict[str, Any]:
    """See Memory.adapt. Raises DataError (too few records), StoreError."""
    packs = memory.codecs.packs
    if packs is None:
        raise PolicyError("this store has no folder for packs")
    forgotten = packs.forgotten()
    live = itertools.islice(memory.live((tenant,), now()), LEARN_MOST)
    pairs = []
    while batch := list(itertools.islice(live, BATCH)):
        pairs += memory.codecs.decode_many([(record.codec, record.blob) for record, _ in batch])
        tick("reading", len(pairs), None)
    if len(pairs) < ADAPT_LEAST:
        raise DataError(f"{len(pairs)} records are too few to learn from: {ADAPT_LEAST} is the least")
    data, card = learn(pairs, memory.codecs.of_domain("").model.buffer, size=size, tick=tick)
    with memory.tiers.gate.alone():
        if packs.forgotten() != forgotten:
            raise StoreError("something was forgotten while the pack was learned: learn it again")
        pack = packs.learned(tenant, data)
    return {**card, "id": pack.id.hex(), "bytes": len(data)}


# -- aging -------------------------------------------------------------------------------------------------------------


def compact(memory: Memory, tick: Tick) -> dict[str, int]:
    """See Memory.compact."""
    done: Counter[str] = Counter()
    time = now()
    memory.tiers.settle()
    for gone in memory.tiers.expire(time, BATCH):
        done[EXPIRE] += gone
        tick("expiring", done[EXPIRE], None)
    codecs = {domain: _current(memory, domain) for domain in _domains(memory.policy)}
    moves = plan(memory.policy, _facts(memory), time, {k: v for k, v in codecs.items() if v})
    waiting: dict[str, list[Move]] = {action: [] for action in (EXPIRE, PROMOTE, DEMOTE, REENCODE)}
    for move in moves:
        queue = waiting.get(move.action)
        if queue is None:
            continue
        queue.append(move)
        if len(queue) >= (COLD_BATCH if move.action == DEMOTE else BATCH):
            done[move.action] += _ACTIONS[move.action](memory, queue)
            queue.clear()
            tick("aging", sum(done.values()), None)
    for action, queue in waiting.items():
        if queue:
            done[action] += _ACTIONS[action](memory, queue)
    tick("packing", 0, None)
    _drop_unused_packs(memory)
    memory.warm.compact()
    if (cold := memory.cold()) is not None:
        cold.compact()
    return dict(done)


def _domains(policy: Policy) -> set[str]:
    named = {str(value) for section in policy.sections for name, value in section.settings if name == "domain"}
    return {"", *named}


def _current(memory: Memory, domain: str) -> str:
    try:
        return memory.codecs.of_domain(domain).id
    except NbmfError:  # a pack that is not there: records of it are left as they are
        return ""


def _facts(memory: Memory) -> Iterator[Facts]:
    """What is known of every record. The codec of a cold one is its archive's business, so it counts as current.

    A tenant's own pack stands in for the model alone: records of the model alone count as old once there is a pack.
    """
    base = memory.codecs.of_domain("").id
    packs = memory.codecs.packs
    own: dict[str, str] = {}
    for record, tier in memory.live((), None):
        tenant = tenant_of(record.namespace)
        if tenant not in own:
            own[tenant] = packs.current(tenant) if packs else ""
        codec = record.codec
        if tier == "cold":
            codec = _current(memory, memory.policy.rules(tenant, record.cls).domain)
        elif own[tenant] and not memory.policy.rules(tenant, record.cls).domain:
            codec = base if codec == own[tenant] else "old"
        reads, last = memory.heat_of(record.namespace, record.key)
        yield Facts(
            namespace=record.namespace,
            key=record.key,
            cls=record.cls,
            tier=tier,
            created=record.created,
            updated=record.updated,
            size=len(record.blob),
            last_read=last,
            reads=reads,
            expires=record.expires,
            fidelity=record.fidelity,
            codec=codec,
        )


def _fetch(memory: Memory, moves: Sequence[Move], tier: str) -> list[tuple[Move, Record]]:
    """The moves whose record is still in the tier, with it."""
    found = memory.fetch([(move.namespace, move.key) for move in moves], 0)
    return [(move, one[0]) for move, one in zip(moves, found, strict=True) if one is not None and one[1] == tier]


def _expire(memory: Memory, moves: Sequence[Move]) -> int:
    found = memory.fetch([(move.namespace, move.key) for move in moves], 0)
    return memory.tiers.remove([one for one in found if one is not None])


def _demote(memory: Memory, moves: Sequence[Move]) -> int:
    records = [record for _, record in _fetch(memory, moves, "warm")]
    records.sort(key=lambda record: (record.namespace, record.cls, record.key))
    return memory.tiers.demote([(record, record) for record in records])


def _promote(memory: Memory, moves: Sequence[Move]) -> int:
    found = _fetch(memory, moves, "cold")
    return memory.tiers.promote(list(zip((old for _, old in found), _encoded(memory, found), strict=True)))


def _reencode(memory: Memory, moves: Sequence[Move]) -> int:
    found = _fetch(memory, moves, "warm")
    return memory.tiers.recode(list(zip((old for _, old in found), _encoded(memory, found), strict=True)))


def _encoded(memory: Memory, found: Sequence[tuple[Move, Record]]) -> list[Record]:
    """The records coded as their moves say, verified."""
    pairs = memory.codecs.decode_many([(record.codec, record.blob) for _, record in found])
    routes: list[Route] = []
    for move, _ in found:
        assert move.route is not None
        routes.append(memory.with_own_pack(move.route, move.namespace))
    blobs = memory.codecs.encode_many(routes, [value_of(pair) for pair in pairs], pairs)
    return [replace(record, blob=one.blob, codec=one.codec) for (_, record), one in zip(found, blobs, strict=True)]


_ACTIONS: Final[dict[str, Callable[[Any, Sequence[Move]], int]]] = {
    EXPIRE: _expire,
    DEMOTE: _demote,
    PROMOTE: _promote,
    REENCODE: _reencode,
}


def _drop_unused_packs(memory: Memory) -> None:
    """Deletes a tenant's packs, all but the current one, once none of its records uses them."""
    packs = memory.codecs.packs
    if packs is None:
        return
    with memory.tiers.gate.alone():
        tenants = {namespace[0] for namespace in memory.tiers.namespaces((), 0)}
        gone = packs.drop_others(tenants)
        for tenant in tenants:
            current = packs.current(tenant)
            older = [id for id in packs.of(tenant) if id != current]
            if older and not any(record.codec in older for record in memory.warm.scan((tenant,))):
                packs.drop(tenant, keep=current)
                gone += older
    memory.codecs.dropped(gone)


# -- checking and counting ---------------------------------------------------------------------------------------------


def check(memory: Memory, tick: Tick) -> Iterator[Fault]:
    """See Memory.check."""
    if memory.codecs.packs is not None:
        yield from memory.codecs.packs.check()
    yield from memory.warm.check()
    if (cold := memory.cold()) is not None:
        yield from cold.check()
    done = 0
    try:
        live = memory.live((), None)
        while batch := list(itertools.islice(live, BATCH)):
            yield from _undecodable(memory, [record for record, _ in batch])
            done += len(batch)
            tick("decoding", done, None)
    except NbmfError as error:
        yield Fault("records", f"they cannot all be read: {error}")


def _undecodable(memory: Memory, records: Sequence[Record]) -> Iterator[Fault]:
    try:
        memory.codecs.decode_many([(record.codec, record.blob) for record in records])
        return
    except NbmfError:
        pass  # which of them is found one by one
    for record in records:
        try:
            memory.codecs.decode(record.codec, record.blob)
        except NbmfError as error:
            yield Fault(f"{'/'.join(record.namespace)} {record.key}", str(error))


def stats(memory: Memory, measure: bool) -> dict[str, Any]:
    """See Memory.stats."""
    warm = memory.warm.sizes()
    cold = memory.cold()
    frozen = cold.sizes() if cold is not None else {}
    packs = memory.codecs.packs
    disk = disk_bytes(memory.parts.folder) if memory.parts.folder else None
    if disk is not None and memory.parts.cold_is_elsewhere:
        disk += sum(size for part, size in frozen.items() if part != "count")
    out: dict[str, Any] = {
        "records": warm.get("count", 0) + frozen.get("count", 0),
        "warm": warm,
        "cold": frozen,
        "packs": sum(path.stat().st_size for path in packs.files()) if packs else 0,
        "disk_bytes": disk,
        "hot": {
            "entries": len(memory.hot),
            "bytes": memory.hot.bytes,
            "hits": memory.hot.hits,
            "misses": memory.hot.misses,
        },
        "index_bytes": memory.recall.bytes,
        "encoders": memory.codecs.metrics.snapshot(),
    }
    if measure:
        out |= _measured(memory, out["disk_bytes"])
    return out


def _measured(memory: Memory, disk: int | None) -> dict[str, Any]:
    classes: dict[str, list[int]] = {}
    keys = 0
    live = memory.live((), now())
    while batch := list(itertools.islice(live, BATCH)):
        pairs = memory.codecs.decode_many([(record.codec, record.blob) for record, _ in batch])
        for (record, tier), (_, raw) in zip(batch, pairs, strict=True):
            sums = classes.setdefault(record.cls, [0, 0, 0, 0])
            sums[0] += 1
            sums[1] += len(raw)
            if tier == "warm":
                sums[2] += len(raw)
                sums[3] += len(record.blob)
            keys += len(record.key.encode()) + sum(len(segment.encode()) for segment in record.namespace)
    total = sum(sums[1] for sums in classes.values())
    warm_raw, blobs = (sum(sums[i] for sums in classes.values()) for i in (2, 3))
    return {
        "raw_bytes": total,
        "key_bytes": keys,
        "blob_bytes": blobs,
        "ratio_payload": warm_raw / blobs if blobs else None,
        "ratio_disk": (total + keys) / disk if disk else None,
        "classes": {
            name: {"records": sums[0], "raw_bytes": sums[1], "ratio": sums[2] / sums[3] if sums[3] else None}
            for name, sums in sorted(classes.items())
        },
    }


def disk_bytes(folder: Path) -> int:
    """Bytes of every file in a folder and below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
