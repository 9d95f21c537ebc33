"""The upkeep of a store: aging, checking and counting."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nbmf.codec.format import is_array, is_packed
from nbmf.errors import NbmfError, StoreError
from nbmf.memory.encoding import stored_blob
from nbmf.memory.items import now
from nbmf.memory.learning import ADAPT_LEAST, BATCH, BATCH_BYTES, batches, coded, decoded, drop_unused_packs, keep_up
from nbmf.memory.tiers import Address, Found, pages
from nbmf.policy.lifecycle import DEMOTE, EXPIRE, PROMOTE, REENCODE, Facts, Move, plan
from nbmf.policy.policy import Policy
from nbmf.policy.router import COLD, WARM, route, tenant_of
from nbmf.store.base import PAGE, Fault, Record

if TYPE_CHECKING:
    from nbmf.memory.memory import Memory

LEARN: Final = "learn"
EXPIRED: Final = 10_000  # records that are removed in one transaction
DEMOTED: Final = 16_384  # records that are demoted at once, at most: each time makes an archive a tenant
DEMOTED_BYTES: Final = 16 << 20  # of their blobs, about

Tick = Callable[..., None]


# -- aging -------------------------------------------------------------------------------------------------------------


@dataclass
class _Queue:
    """Records that one action is due for."""

    most: int = BATCH
    most_bytes: int = BATCH_BYTES
    waiting: list[Address] = field(default_factory=list)
    size: int = 0

    def add(self, at: Address, size: int) -> bool:
        """Whether it is full now."""
        self.waiting.append(at)
        self.size += size
        return len(self.waiting) >= self.most or self.size >= self.most_bytes

    def taken(self) -> list[Address]:
        waiting, self.waiting, self.size = self.waiting, [], 0
        return waiting


class _Aging:
    """One run of aging, at one moment."""

    def __init__(self, memory: Memory, time: int) -> None:
        self.memory = memory
        self.time = time
        domains = {domain: self._current(domain) for domain in _domains(memory.policy)}
        self.codecs = {domain: id for domain, id in domains.items() if id}
        self._base = memory.codecs.of_domain("").id

    def due(self) -> Iterator[tuple[Move, Facts]]:
        """What the policy wants, record by record; in a store that has nowhere for cold records, they stay warm."""
        own: dict[str, str] = {}  # tenants' own packs
        for record, tier in self.memory.tiers.live((), None, blobs=False):
            tenant = tenant_of(record.namespace)
            if tenant not in own:
                own[tenant] = self._own(tenant)
            facts = self._facts(record, tier, own[tenant])
            for move in plan(self.memory.policy, (facts,), self.time, self.codecs):
                if move.action != DEMOTE or self._may_freeze(record):
                    yield move, facts

    def _may_freeze(self, record: Record) -> bool:
        """Archives know the model alone: what needs a pack, and is small by it, stays warm."""
        return self.memory.parts.cold_address is not None and not is_packed(record.blob)

    def carry_out(self, action: str, addresses: Sequence[Address]) -> int:
        """Does it for those for which it is still due; how many those were."""
        found = [one for one in self.memory.fetch(addresses, 0) if one is not None]
        if action == EXPIRE:
            return self.memory.tiers.remove([one for one in found if self._is_due(action, one)])
        records = [one[0] for one in found if self._is_due(action, one)]
        if action == DEMOTE:
            return self._demote(records)
        count = 0
        for batch in batches(records):
            moves = self._coded(batch)
            if action == PROMOTE:
                count += self.memory.tiers.promote(moves)
            else:
                count += self.memory.tiers.recode([one for one in moves if one[0] != one[1]])
        return count

    def _demote(self, records: list[Record]) -> int:
        """What cannot be decoded stays where it is. Classes stand together: they are alike."""
        records.sort(key=lambda record: (record.namespace, record.cls, record.key))
        moves = [
            (record, replace(record, blob=record.blob if is_array(record.blob) else stored_blob(pair), codec=""))
            for batch in batches([record for record in records if self._may_freeze(record)])
            for record, pair in decoded(self.memory, batch)
        ]
        return self._frozen(moves)

    def _frozen(self, moves: Sequence[tuple[Record, Record]]) -> int:
        """Demotes them; those that the cold tier refuses stay where they are, and only those."""
        if not moves:
            return 0
        try:
            return self.memory.tiers.demote(moves)
        except StoreError:
            raise
        except NbmfError:
            if len(moves) == 1:
                return 0
        half = len(moves) // 2
        return self._frozen(moves[:half]) + self._frozen(moves[half:])

    def _coded(self, records: Sequence[Record]) -> list[tuple[Record, Record]]:
        """Records as they are, and as the policy codes them for the warm tier."""
        memory = self.memory
        found = decoded(memory, records)
        routes = []
        for record, (_, raw) in found:
            at = record.namespace, record.cls, record.key
            chosen = route(memory.policy, *at, len(raw), self.time, record.updated, tier=WARM)
            routes.append(memory.with_own_pack(chosen, record.namespace))
        return coded(memory, found, routes)

    def _is_due(self, action: str, found: Found) -> bool:
        record, tier = found
        facts = self._facts(record, tier, self._own(tenant_of(record.namespace)))
        return any(move.action == action for move in plan(self.memory.policy, (facts,), self.time, self.codecs))

    def _facts(self, record: Record, tier: str, own: str) -> Facts:
        """What is known of a record. The codec of a cold one is its archive's business, and an array's blob
        is never coded anew: both count as current.

        A tenant's own pack stands in for the model alone: records of the model alone count as old once there is one.
        """
        domain = self.memory.policy.rules(tenant_of(record.namespace), record.cls).domain
        codec = record.codec
        if tier == COLD or is_array(record.blob):
            codec = self.codecs.get(domain, "")
        elif own and not domain:
            codec = self._base if codec == own else "old"
        reads, last = self.memory.heat_of(record.namespace, record.key)
        return Facts(
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

    def _own(self, tenant: str) -> str:
        packs = self.memory.codecs.packs
        return packs.current(tenant) if packs else ""

    def _current(self, domain: str) -> str:
        try:
            return self.memory.codecs.of_domain(domain).id
        except NbmfError:  # a pack that is not there: records of it are left as they are
            return ""


def compact(memory: Memory, tick: Tick) -> dict[str, int]:
    """See Memory.compact."""
    done: Counter[str] = Counter()
    time = now()
    tick("settling", 0, None)
    memory.tiers.settle()  # before anything expires: what has expired still hides an older record
    for gone in memory.tiers.expire(time, EXPIRED):
        done[EXPIRE] += gone
        tick("expiring", done[EXPIRE], None)
    _age(memory, time, done, tick)
    if learned := keep_up(memory, tick):
        done[LEARN] = learned
        _age(memory, time, done, tick)  # what stays warm is coded with the new packs
    tick("packing", 0, None)
    drop_unused_packs(memory)
    memory.warm.compact()
    if (cold := memory.cold()) is not None:
        cold.compact()
    return {action: count for action, count in done.items() if count}


def _age(memory: Memory, time: int, done: Counter[str], tick: Tick) -> None:
    """Carries out what is due, and adds to `done` how many each was."""
    aging = _Aging(memory, time)
    queues = {action: _Queue() for action in (EXPIRE, PROMOTE, REENCODE)}
    queues[DEMOTE] = _Queue(DEMOTED, DEMOTED_BYTES)
    for move, facts in aging.due():
        queue = queues[move.action]
        if queue.add((facts.namespace, facts.key), facts.size):
            done[move.action] += aging.carry_out(move.action, queue.taken())
            tick("aging", sum(done.values()), None)
    for action, queue in queues.items():
        if queue.waiting:
            done[action] += aging.carry_out(action, queue.taken())


def _domains(policy: Policy) -> set[str]:
    named = {str(value) for section in policy.sections for name, value in section.settings if name == "domain"}
    return {"", *named}


# -- checking and counting ---------------------------------------------------------------------------------------------


def check(memory: Memory, tick: Tick) -> Iterator[Fault]:
    """See Memory.check."""
    if memory.codecs.packs is not None:
        yield from memory.codecs.packs.check()
    yield from memory.warm.check()
    if (cold := memory.cold()) is not None:
        yield from cold.check()
    done = 0
    for name, tier in ((WARM, memory.warm), (COLD, cold)):
        try:
            for page in pages(tier, (), None) if tier is not None else ():
                yield from _undecodable(memory, page)
                done += len(page)
                tick("decoding", done, None)
        except NbmfError as error:
            yield Fault(f"{name} records", f"they cannot all be read: {error}")


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
        "packs": sum(map(_size, packs.files())) if packs else 0,
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
    while batch := list(itertools.islice(live, PAGE)):
        pairs = memory.codecs.decode_many([(record.codec, record.blob) for record, _ in batch])
        for (record, tier), (_, raw) in zip(batch, pairs, strict=True):
            sums = classes.setdefault(record.cls, [0, 0, 0, 0, 0])
            sums[4] += record.fidelity == "semantic"
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
            name: {
                "records": sums[0],
                "semantic": sums[4],
                "raw_bytes": sums[1],
                "ratio": sums[2] / sums[3] if sums[3] else None,
            }
            for name, sums in sorted(classes.items())
        },
    }


def disk_bytes(folder: Path) -> int:
    """Bytes of every file in a folder and below."""
    return sum(_size(path) for path in folder.rglob("*") if path.is_file())


def _size(path: Path) -> int:
    with suppress(OSError):  # it may be gone meanwhile
        return path.stat().st_size
    return 0


__all__ = ["ADAPT_LEAST", "check", "compact", "disk_bytes", "stats"]
