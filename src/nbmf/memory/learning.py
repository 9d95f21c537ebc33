"""Packs learned from a tenant's own records, and forgetting, which takes them along.

A record coded with a pack is read with that pack alone. So a pack is dropped in this order: no new record is coded with
it; those that stay are coded anew; then it goes. A kill in between leaves every record readable, and the pack to the
next `forget` or `compact`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from nbmf.codec import kernel
from nbmf.codec.adapt import DEFAULT_SIZE, LEAST_SIZE, learn
from nbmf.codec.format import is_array, is_packed
from nbmf.codec.values import VECTOR
from nbmf.errors import DataError, NbmfError, PolicyError, StoreError
from nbmf.memory.encoding import Pair
from nbmf.memory.items import now
from nbmf.memory.tiers import UNREADABLE, pages
from nbmf.policy.router import NEURAL, ZSTD, Route, route, tenant_of
from nbmf.store.base import Namespace, Record, check_address, within

if TYPE_CHECKING:
    from nbmf.memory.memory import Memory

BATCH: Final = 1024  # records that are moved or coded at once, at most,
BATCH_BYTES: Final = 8 << 20  # and bytes of their blobs, about
LEARN_MOST: Final = 100_000  # records that a pack is learned from
LEARN_BYTES: Final = 256 << 20  # raw bytes that are read for it
PAYS: Final = 32  # raw bytes of a tenant for each byte of its pack, unless the caller says how large it may be
ADAPT_LEAST: Final = 50  # records that a pack is learned from at least
LEARN_FIRST: Final = 1000  # records of a tenant before aging learns its pack: fewer hardly pay for the smallest
LEARN_AGAIN: Final = 4  # times as many as it was learned from, before aging learns it anew
COUNTED: Final = "counted"  # in the card of a pack that aging learned: how many records it was to be for
TRIES: Final = 20  # passes over records that others change meanwhile

Tick = Callable[..., None]


def batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records a few at a time."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.blob)
        if len(batch) >= BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def adapt(memory: Memory, tenant: str, size: int | None, tick: Tick, counted: int | None = None) -> dict[str, Any]:
    """See Memory.adapt; `counted` goes into the card. Raises DataError (too few records), PolicyError, StoreError."""
    check_address((tenant,))
    packs = memory.codecs.packs
    if packs is None:
        raise PolicyError("a PostgreSQL store keeps no packs: learn one with nbmf.adapt, and name it in the policy")
    before = packs.learning()
    pairs = []
    read = texts = 0
    live = itertools.islice((record for record, _ in memory.live((tenant,), now())), LEARN_MOST)
    for batch in batches(live):
        fresh = memory.codecs.decode_many([(record.codec, record.blob) for record in batch])
        of_use = [pair for pair in fresh if pair[0] < VECTOR]  # lists and primer are of texts
        pairs += of_use
        texts += sum(len(raw) for _, raw in of_use)
        read += sum(len(raw) for _, raw in fresh)
        tick("reading", len(pairs), None)
        if read >= LEARN_BYTES:
            break
    if len(pairs) < ADAPT_LEAST:
        raise DataError(f"{len(pairs)} records are too few to learn from: {ADAPT_LEAST} is the least")
    if size is None:
        size = min(max(texts // PAYS, LEAST_SIZE), DEFAULT_SIZE)
    about = {} if counted is None else {COUNTED: counted}
    data, card = learn(pairs, memory.codecs.of_domain("").model.buffer, size=size, tick=tick, about=about)
    with memory.tiers.gate.alone():
        if packs.forgotten() != before:
            raise PolicyError("something was forgotten while the pack was learned, which may hold it: adapt again")
        pack = packs.learned(tenant, data)
    return {**card, "id": pack.id.hex(), "bytes": len(data)}


def keep_up(memory: Memory, tick: Tick) -> int:
    """Learns the packs that the policy's `learn` asks for: of tenants with enough records that have none, or one that
    was learned from a fraction of what there is now. How many. Raises StoreError.

    What counts is what a pack of the tenant's own would code: not what lies in archives, is of another encoder or of a
    pack that the policy names. Without the C kernel nothing can be learned.
    """
    packs, policy = memory.codecs.packs, memory.policy
    wanted = any(name == "learn" and on for one in policy.sections for name, on in one.settings)
    if packs is None or not wanted or kernel.backend != "c":
        return 0
    counts: Counter[str] = Counter()
    for page in pages(memory.warm, (), now(), blobs=False):
        for record in page:
            rules = policy.rules(tenant_of(record.namespace), record.cls)
            counts[tenant_of(record.namespace)] += bool(rules.learn and record.codec and not rules.domain)
    done = 0
    for tenant, count in counts.items():
        if count < LEARN_FIRST or not _outgrown(memory, tenant, count):
            continue
        try:
            adapt(memory, tenant, None, tick, count)
        except StoreError:
            raise
        except NbmfError:  # something was forgotten meanwhile, or a record cannot be decoded, which `check` tells
            continue
        done += 1
    return done


def _outgrown(memory: Memory, tenant: str, count: int) -> bool:
    """Whether `count` records are worth more than the pack that the tenant has, if any."""
    packs = memory.codecs.packs
    current = packs.current(tenant) if packs is not None else ""
    if packs is None or not current:
        return True
    try:
        pack = packs.find(current)
    except StoreError:
        raise
    except NbmfError:  # it is damaged, which `check` tells: to learn another would hide that
        return False
    if pack is None or pack.card["raw_bytes"] >= PAYS * DEFAULT_SIZE:  # gone meanwhile, or as large as packs get
        return pack is None
    before: int = pack.card.get(COUNTED, pack.card["records"])
    return count >= LEARN_AGAIN * before


def forget(memory: Memory, prefix: Namespace) -> int:
    """See Memory.forget; how many records there were."""
    packs, gate = memory.codecs.packs, memory.tiers.gate
    tenant = tenant_of(prefix)
    learned: list[str] = []
    while True:
        if packs is not None and prefix and (learned := packs.of(tenant)):
            with gate.alone():
                packs.retire(tenant)
            _recode(memory, tenant, learned, skip=prefix)
        with gate.alone():
            if packs is not None:
                if prefix and (packs.current(tenant) or not set(packs.of(tenant)) <= set(learned)):
                    continue  # another one was learned meanwhile
                packs.forgetting()
            count = memory.tiers.forget(prefix)
            if packs is not None and not prefix:
                learned = packs.drop_others(())
            elif prefix and packs is not None:
                packs.drop(tenant)  # also what a kill has left of a pack that was being written
            _shred_hashes(memory, prefix)
        memory.codecs.dropped(learned)
        return count


def _shred_hashes(memory: Memory, prefix: Namespace) -> None:
    """Without encryption, the ledger has keys of its own, that make a tenant's hashes tell nothing when they go."""
    keys = memory.parts.ledger_keys
    if keys is None or len(prefix) > 1:
        return
    for entry in keys.entries() if not prefix else filter(None, [keys.find(prefix[0])]):
        if (gone := keys.shred(entry)) is not None:
            keys.drop(gone)


def _recode(memory: Memory, tenant: str, codecs: Collection[str], skip: Namespace) -> None:
    """Codes a tenant's warm records that use one of these codecs with the model alone.

    Those within `skip` are about to go, and those that cannot be decoded are lost either way. Raises StoreError.
    """
    for _ in range(TRIES):
        left = 0
        affected = (
            record
            for record in memory.warm.scan((tenant,))
            if record.codec in codecs and not within(record.namespace, skip)
        )
        for batch in batches(affected):
            found = decoded(memory, batch)
            moves = coded(memory, found, [_model_alone(memory, record, pair) for record, pair in found])
            left += len(found) - memory.tiers.recode(moves)
        if not left:
            return
    raise StoreError(f"{left} records changed again and again while they were to be coded without their pack")


def without_packs(memory: Memory, records: Sequence[Record]) -> list[Record]:
    """Records that are yet to be stored, coded with the model alone. Raises NbmfError for one that does not decode."""
    pairs = memory.codecs.decode_many([(record.codec, record.blob) for record in records])
    routes = [_model_alone(memory, record, pair) for record, pair in zip(records, pairs, strict=True)]
    return _recoded(memory, records, routes, pairs)


def _model_alone(memory: Memory, record: Record, pair: Pair) -> Route:
    """How a record is coded with no pack: every store has the model."""
    size = len(pair[1])
    chosen = route(memory.policy, record.namespace, record.cls, record.key, size, now(), record.updated, tier="warm")
    small = size <= memory.policy.rules(tenant_of(record.namespace), record.cls).neural_max
    return replace(chosen, encoder=NEURAL if small else ZSTD, domain="", shadow=False)


def decoded(memory: Memory, records: Sequence[Record]) -> list[tuple[Record, Pair]]:
    """Records with their values; those that cannot be decoded are left out. Raises StoreError."""
    try:
        pairs = memory.codecs.decode_many([(record.codec, record.blob) for record in records])
        return list(zip(records, pairs, strict=True))
    except UNREADABLE:
        if len(records) == 1:
            return []
    return [one for record in records for one in decoded(memory, [record])]


def coded(memory: Memory, found: Sequence[tuple[Record, Pair]], routes: Sequence[Route]) -> list[tuple[Record, Record]]:
    """Records as they are, and coded as their routes say, verified; those that the policy refuses are left out."""
    try:
        blobs = _recoded(memory, [record for record, _ in found], routes, [pair for _, pair in found])
    except NbmfError:
        if len(found) == 1:
            return []
        singly = (coded(memory, [one], [way]) for one, way in zip(found, routes, strict=True))
        return list(itertools.chain.from_iterable(singly))
    return list(zip([record for record, _ in found], blobs, strict=True))


def _recoded(memory: Memory, records: Sequence[Record], routes: Sequence[Route], pairs: Sequence[Pair]) -> list[Record]:
    """Records coded as their routes say, of the very same values. An array's blob that needs no pack stays: what it
    keeps within a bound would be far larger exactly, and would lose again within one.
    """
    out = [replace(one, codec="") if is_array(one.blob) and not is_packed(one.blob) else None for one in records]
    places = [place for place, one in enumerate(out) if one is None]
    made = memory.codecs.encode_many([routes[place] for place in places], [pairs[place] for place in places])
    for place, new in zip(places, made, strict=True):
        out[place] = replace(records[place], blob=new.blob, codec=new.codec)
    return [one for one in out if one is not None]


def drop_unused_packs(memory: Memory) -> None:
    """Deletes packs that no record uses: all of a tenant but the current one, and all of tenants without records."""
    packs = memory.codecs.packs
    if packs is None or not any(packs.files()):
        return
    tenants = {tenant_of(namespace) for namespace in memory.tiers.namespaces((), 0)}
    for tenant in tenants:
        older = set(packs.of(tenant)) - {packs.current(tenant)}
        if not older or any(record.codec in older for record in memory.warm.scan((tenant,))):
            continue
        with memory.tiers.gate.alone():  # nobody codes with them: they are not current
            if older.isdisjoint({packs.current(tenant)}):
                packs.drop(tenant, keep=packs.current(tenant))
        memory.codecs.dropped(older)
    with memory.tiers.gate.alone():
        memory.codecs.dropped(packs.drop_others({tenant_of(at) for at in memory.tiers.namespaces((), 0)}))


__all__ = ["adapt", "batches", "coded", "decoded", "drop_unused_packs", "forget", "keep_up", "without_packs"]
