"""`Memory`: put, get, search, delete and forget records, wherever they lie."""

from __future__ import annotations

import asyncio
import heapq
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from nbmf.errors import PolicyError, UnknownModel
from nbmf.memory import aging, learning
from nbmf.memory.encoding import Encoded, Pair, value_of
from nbmf.memory.items import (
    LIMIT,
    DeleteOp,
    GetOp,
    Item,
    ListNamespacesOp,
    MemoryOp,
    PutOp,
    SearchOp,
    check_class,
    check_filter,
    item_of,
    matches,
    meta_bytes,
    now,
)
from nbmf.memory.opening import Parts, open_parts
from nbmf.memory.quotas import Quotas
from nbmf.memory.recall import Recall
from nbmf.memory.tiers import Address, Found, Tiers
from nbmf.policy.lifecycle import touch
from nbmf.policy.policy import Policy
from nbmf.policy.router import Route, route, tenant_of
from nbmf.store.archives import ArchiveTier
from nbmf.store.base import (
    Fault,
    Namespace,
    Record,
    check_address,
    within,
)
from nbmf.store.cache import HotCache

MINUTE: Final = 60_000  # milliseconds
TTL_MOST: Final = 1e9  # minutes
HEAT_MOST: Final = 100_000  # records whose reads are remembered
STEP: Final = 64  # records that a search without a query decodes at a time
# Of a search without a query but with a filter: the newest records that are told apart in one pass over all of them,
# at first, so many times more at each later pass, and at most. Only their addresses are in memory.
WINDOW: Final = 4096
WIDER: Final = 4
WINDOW_MOST: Final = 262_144
TRIES: Final = 5  # of encoding, while packs come and go

Tick = Callable[..., None]


class Memory:
    """A store of records by (namespace, key). Thread-safe; several processes may have the same one open.

    A namespace is a tuple of texts, its first segment the tenant. What a put returns from is durable, and was verified
    by decoding. Made by `Memory.open`; a context manager. Every method raises StoreError when the medium fails.
    """

    def __init__(self, parts: Parts, recall: Recall) -> None:
        self.policy = parts.policy
        self.codecs = parts.codecs
        self.hot = HotCache(parts.policy.cache.bytes)
        self.recall = recall
        self.parts = parts
        self.tiers = Tiers(parts, self.codecs.usable)
        self.warm = self.tiers.warm
        self._quotas = Quotas(parts.policy, self.tiers)
        self._heat: OrderedDict[Address, tuple[float, int]] = OrderedDict()  # the one read last at the end
        self._heat_lock = threading.Lock()

    @classmethod
    def open(
        cls,
        address: str | os.PathLike[str],
        *,
        policy: Policy | str | Path | None = None,
        key: bytes | str | None = None,
        passphrase: str | None = None,
        embedder: Any = "auto",
        cold: str | os.PathLike[str] | None = None,
        ledger: bool = False,
        create: bool = True,
    ) -> Memory:
        """Opens the store in a folder, made if need be, or at a postgresql:// address.

        `policy`: a Policy or the path of one; else the folder's policy.toml, else the defaults. `key` (32 bytes, or
        hex or base64; else NBMF_KEY; b"" for none) or `passphrase` encrypts it. `embedder`: "auto" is the static one
        where nbmf[search] is installed and none elsewhere; None; or an object as store.embed.Embedder. `cold`: where
        archives lie, a folder or s3://bucket/prefix. `ledger`: keep an audit ledger; one that is there is kept up.
        Raises StoreError, PolicyError, NbmfError (an extra is missing).
        """
        parts = open_parts(
            os.fspath(address),
            policy=policy,
            key=key,
            passphrase=passphrase,
            cold=None if cold is None else os.fspath(cold),
            ledger=ledger,
            create=create,
        )
        try:
            return cls(parts, Recall(embedder))
        except BaseException:
            parts.warm.close()
            raise

    def close(self) -> None:
        """Releases everything; closing twice is fine."""
        self.tiers.close()
        self.hot.clear()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cold(self, make: bool = False) -> ArchiveTier | None:
        """The cold tier; None when nothing was ever put there and `make` is False."""
        return self.tiers.cold(make)

    # -- records -------------------------------------------------------------------------------------------------------

    def put(
        self,
        namespace: Namespace,
        key: str,
        value: Any,
        *,
        cls: str = "",
        ttl: float | None = None,
        meta: Mapping[str, Any] | None = None,
        index: bool | Sequence[str] | None = None,
        vector: Sequence[float] | None = None,
    ) -> None:
        """Stores a value: text, a JSON value, bytes, or a float32 or float16 array of (d,) or (n, d). It replaces the
        one that was there. Where the policy gives its class fidelity `semantic`, vectors are kept within the class's
        bound and numbers within its tolerance (docs/fidelity.md); all else, and always by default, exactly.

        `ttl` is in minutes, and every read renews it. `index`: False leaves the record out of semantic search, names of
        fields index those alone, None does as the policy says. `vector` is the record's own, for the store's embedder.
        Raises PolicyError (address, quota, a protected class that diverged), UnsupportedValue, OutputLimit.
        """
        self.batch([PutOp(namespace, key, value, cls, ttl, meta, index, vector)])

    def get(self, namespace: Namespace, key: str, default: Any = None, *, refresh: bool = True) -> Any:
        """The value at an address, `default` where there is none. `refresh` renews its ttl, if it has one."""
        found = self._found(namespace, key, refresh)
        return default if found is None else self._value(found[0])

    def item(self, namespace: Namespace, key: str, *, refresh: bool = True) -> Item | None:
        """The record at an address, with its times, class, metadata and tier."""
        found = self._found(namespace, key, refresh)
        return None if found is None else item_of(*found, self._value(found[0]))

    def delete(self, namespace: Namespace, key: str) -> bool:
        """Whether there was a record, which is gone now."""
        return bool(self.batch([DeleteOp(namespace, key)])[0])

    def put_many(self, ops: Iterable[PutOp]) -> None:
        """Stores many, encoded on all cores, in one transaction, all or none; with encryption, in one a tenant."""
        self.batch(list(ops))

    def search(
        self,
        prefix: Namespace = (),
        query: str | None = None,
        *,
        filter: Mapping[str, Any] | None = None,
        limit: int = LIMIT,
        offset: int = 0,
        vector: Sequence[float] | None = None,
        cls: str | None = None,
    ) -> list[Item]:
        """The records in and below `prefix` that pass the filter (items.matches).

        With a query, or its vector, the best first, by meaning and keywords, each with a score; what is not indexed is
        not found. Without, those updated last first. Without a query every record under the prefix is read.
        """
        found: list[Item] = self.batch([SearchOp(prefix, query, filter, limit, offset, vector, cls)])[0]
        return found

    def list_namespaces(
        self,
        prefix: Namespace = (),
        suffix: Namespace = (),
        *,
        max_depth: int | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[Namespace]:
        """The namespaces that hold records, sorted. "*" in prefix or suffix stands for any one segment.

        `max_depth` cuts them to so many segments, each told once.
        """
        found: list[Namespace] = self.batch([ListNamespacesOp(prefix, suffix, max_depth, limit, offset)])[0]
        return found

    def forget(self, prefix: Namespace) -> int:
        """Removes every trace of what is in and below `prefix`; how many records that were.

        Caches, index, database, log, archives, and the packs that were learned from any of it: records that stay are
        coded anew without such a pack first. With encryption, the key of a tenant that is forgotten whole is shredded.
        """
        if prefix:
            check_address(prefix)
        count = learning.forget(self, prefix)
        if prefix:
            self.hot.forget(tenant_of(prefix))
        else:
            self.hot.clear()
        self.recall.forget(prefix)
        with self._heat_lock:
            for at in [at for at in self._heat if within(at[0], prefix)]:
                del self._heat[at]
        self._quotas.clear()
        return count

    # -- batches -------------------------------------------------------------------------------------------------------

    def batch(self, ops: Sequence[MemoryOp]) -> list[Any]:
        """The result of each operation, in order; each sees what those before it did.

        Neighbouring puts are encoded together and committed in one transaction (with encryption, in one a tenant), as
        are neighbouring gets and deletes. An error leaves done what was done before.
        """
        results: list[Any] = []
        at = 0
        while at < len(ops):
            end = at + 1
            kind = type(ops[at])
            while end < len(ops) and type(ops[end]) is kind:
                end += 1
            results += self._run(kind, ops[at:end])
            at = end
        return results

    def _run(self, kind: type[MemoryOp], ops: Sequence[Any]) -> list[Any]:
        if kind is PutOp:
            self._put(ops)
            return [None] * len(ops)
        if kind is GetOp:
            return self._get(ops)
        if kind is DeleteOp:
            return self._delete(ops)
        if kind is SearchOp:
            return [self._search(op) for op in ops]
        if kind is ListNamespacesOp:
            return [self._namespaces(op) for op in ops]
        raise PolicyError(f"{kind.__name__} is no operation of a Memory")

    async def abatch(self, ops: Sequence[MemoryOp]) -> list[Any]:
        """`batch` in a thread."""
        return await asyncio.to_thread(self.batch, ops)

    # -- puts ----------------------------------------------------------------------------------------------------------

    def records_of(self, ops: Sequence[PutOp], allow_nan: bool = False, exact: bool = False) -> list[Record]:
        """The records that puts come to: checked, routed, encoded and verified, not yet stored.

        With `exact`, every value as it is, whatever its class may change of new ones.
        """
        return self._encoded(ops, allow_nan, exact)[0]

    def _encoded(
        self, ops: Sequence[PutOp], allow_nan: bool = False, exact: bool = False
    ) -> tuple[list[Record], list[Pair]]:
        """The records of puts, and the values that a read of them gives back."""
        time = now()
        pairs: list[Pair] = []
        routes, encoded, fidelities, known = [], [], [], []
        for op in ops:
            check_address(op.namespace, op.key)
            check_class(op.cls)
            pair = self.codecs.of_domain("").to_pair(op.value, allow_nan=allow_nan)
            chosen = route(self.policy, op.namespace, op.cls, op.key, len(pair[1]), time, tier="warm")
            # By the policy's own pack alone: a tenant's goes when any of its records is forgotten.
            near, blob = self.codecs.within(chosen, pair, exact)
            pairs.append(near)
            routes.append(self.with_own_pack(chosen, op.namespace))
            encoded.append(blob)
            fidelities.append("lossless" if near == pair else "semantic")
            known.append(op if near == pair else replace(op, value=value_of(near)))
        places = [place for place, one in enumerate(encoded) if one is None]
        made = self.codecs.encode_many([routes[place] for place in places], [pairs[place] for place in places])
        for place, one in zip(places, made, strict=True):
            encoded[place] = one
        codes = self.recall.codes(known, [chosen.index for chosen in routes])
        records = [
            _record(op, one, code, fidelity, time, allow_nan)
            for op, one, code, fidelity in zip(ops, encoded, codes, fidelities, strict=True)
            if one is not None
        ]
        return records, pairs

    def with_own_pack(self, chosen: Route, namespace: Namespace) -> Route:
        """The route, by the pack learned from the tenant's own records where the policy names none."""
        if chosen.domain != "" or self.codecs.packs is None:
            return chosen
        own = self.codecs.packs.current(tenant_of(namespace))
        return replace(chosen, domain=own) if own else chosen

    def store(self, records: Sequence[Record]) -> None:
        """Stores records that `records_of` made, in one transaction, over what either tier has at their addresses."""
        with self._quotas.room_for(records):
            while not self.tiers.put(records):  # the pack of one is about to go
                records = learning.without_packs(self, records)

    def _put(self, ops: Sequence[PutOp]) -> None:
        for attempt in range(TRIES):
            try:
                records, pairs = self._encoded(ops)
                break
            except UnknownModel:  # a tenant's pack may be dropped between the choice of it and its use
                if attempt == TRIES - 1:
                    raise
        self.store(records)
        for record, pair in zip(records, pairs, strict=True):
            if self.policy.rules(tenant_of(record.namespace), record.cls).hot:
                self.hot.put((tenant_of(record.namespace), record.codec, record.blob), pair)

    # -- gets ----------------------------------------------------------------------------------------------------------

    def _get(self, ops: Sequence[GetOp]) -> list[Item | None]:
        time = now()
        for op in ops:
            check_address(op.namespace, op.key)
        found = self.fetch([(op.namespace, op.key) for op in ops], time, [op.refresh for op in ops])
        for op, one in zip(ops, found, strict=True):
            if one is not None:
                self._heated(op.namespace, op.key, one[0].cls, time)
        items = self._items([one for one in found if one is not None])
        if self.policy.rollout.shadow:
            for item in items:
                self.codecs.compare(item.value)
        answers = iter(items)
        return [None if one is None else next(answers) for one in found]

    def _found(self, namespace: Namespace, key: str, refresh: bool) -> Found | None:
        """One record and its tier, as `_get` of many."""
        check_address(namespace, key)
        time = now()
        found = self.tiers.fetch_one((namespace, key), time, refresh)
        if found is not None:
            self._heated(namespace, key, found[0].cls, time)
        return found

    def _value(self, record: Record) -> Any:
        at = record.namespace[0], record.codec, record.blob
        pair = self.hot.get(at)
        if pair is None:
            pair = self.codecs.decode(record.codec, record.blob)
            if self.policy.rules(at[0], record.cls).hot:
                self.hot.put(at, pair)
        value = value_of(pair)
        if self.policy.rollout.shadow:
            self.codecs.compare(value)
        return value

    def fetch(self, addresses: Sequence[Address], time: int, renew: Sequence[bool] | None = None) -> list[Found | None]:
        """The record at each address and its tier, warm before cold."""
        return self.tiers.fetch(addresses, time, renew)

    def pairs(self, records: Sequence[Record]) -> list[Pair]:
        """Type number and raw bytes of each record's value, from the hot tier where it has them."""
        keys = [(tenant_of(record.namespace), record.codec, record.blob) for record in records]
        out = [self.hot.get(key) for key in keys]
        missing = [i for i, pair in enumerate(out) if pair is None]
        fresh = self.codecs.decode_many([(records[i].codec, records[i].blob) for i in missing]) if missing else []
        for i, pair in zip(missing, fresh, strict=True):
            out[i] = pair
            if self.policy.rules(keys[i][0], records[i].cls).hot:
                self.hot.put(keys[i], pair)
        return [pair for pair in out if pair is not None]

    def _items(self, found: Sequence[tuple[Record, str]]) -> list[Item]:
        pairs = self.pairs([record for record, _ in found])
        return [item_of(record, tier, value_of(pair)) for (record, tier), pair in zip(found, pairs, strict=True)]

    def _heated(self, namespace: Namespace, key: str, cls: str, time: int) -> None:
        half_life = self.policy.rules(tenant_of(namespace), cls).heat_half_life
        with self._heat_lock:
            reads, last = self._heat.pop((namespace, key), (0.0, time))
            self._heat[namespace, key] = touch(reads, last, time, half_life)
            if len(self._heat) > HEAT_MOST:
                self._heat.popitem(last=False)

    def heat_of(self, namespace: Namespace, key: str) -> tuple[float, int | None]:
        """The decayed count of reads of a record since this process opened the store, and when the last one was."""
        with self._heat_lock:
            return self._heat.get((namespace, key), (0.0, None))

    # -- deletes -------------------------------------------------------------------------------------------------------

    def _delete(self, ops: Sequence[DeleteOp]) -> list[bool]:
        for op in ops:
            check_address(op.namespace, op.key)
        found = self.tiers.delete([(op.namespace, op.key) for op in ops], now())
        self._quotas.removed([one for one in found if one is not None])
        return [one is not None for one in found]

    # -- searches ------------------------------------------------------------------------------------------------------

    def _search(self, op: SearchOp) -> list[Item]:
        if op.prefix:
            check_address(op.prefix)
        _check_range(op.limit, op.offset)
        check_filter(op.filter)
        if op.query is not None and not isinstance(op.query, str):
            raise PolicyError(f"a query is a text, not {op.query!r}"[:200])
        wanted = op.offset + op.limit
        if not op.query and op.vector is None:
            return self._latest(op, wanted)[op.offset :]
        return self.recall.search(self, op, wanted)[op.offset :]

    def _latest(self, op: SearchOp, wanted: int) -> list[Item]:
        """Those updated last first; of equal times, by address."""
        time = now()
        out: list[Item] = []
        last: tuple[int, Namespace, str] | None = None
        most = WINDOW if op.filter else wanted
        while len(out) < wanted:
            rows = (
                (-record.updated, record.namespace, record.key)
                for record, _ in self.tiers.live(op.prefix, time, op.cls, blobs=False)
            )
            newest = heapq.nsmallest(most, (row for row in rows if last is None or row > last))
            order = list(dict.fromkeys(newest))  # one that moves between the tiers meanwhile comes twice
            for at in range(0, len(order), STEP):
                found = self.fetch([(namespace, key) for _, namespace, key in order[at : at + STEP]], time)
                live = [one for one in found if one is not None and op.cls in (None, one[0].cls)]
                out += [item for item in self._items(live) if matches(item.value, op.filter)]
                if len(out) >= wanted:
                    break
            if len(newest) < most:
                break
            last = order[-1]
            most = min(WIDER * most, WINDOW_MOST)
        return out[:wanted]

    def live(self, prefix: Namespace, time: int | None, cls: str | None = None) -> Iterator[Found]:
        """Every record of a prefix and its tier; with time None, those that have expired too."""
        return self.tiers.live(prefix, time, cls)

    def _namespaces(self, op: ListNamespacesOp) -> list[Namespace]:
        time = now()
        _check_range(op.limit, op.offset)
        if op.max_depth is not None and (type(op.max_depth) is not int or op.max_depth < 1):
            raise PolicyError(f"max_depth is a number from 1, not {op.max_depth!r}"[:200])
        for name, part in (("prefix", op.prefix), ("suffix", op.suffix)):
            if not isinstance(part, tuple) or not all(isinstance(segment, str) for segment in part):
                raise PolicyError(f"the {name} of namespaces is a tuple of texts, not {part!r}"[:200])
        fixed = op.prefix[: op.prefix.index("*")] if "*" in op.prefix else op.prefix
        found = self.tiers.namespaces(fixed, time)
        chosen = {
            namespace[: op.max_depth] if op.max_depth else namespace
            for namespace in found
            if _fits(namespace[: len(op.prefix)], op.prefix)
            and _fits(namespace[len(namespace) - len(op.suffix) :], op.suffix)
        }
        return sorted(chosen)[op.offset : op.offset + op.limit]

    # -- upkeep --------------------------------------------------------------------------------------------------------

    def adapt(self, tenant: str, size: int | None = None, tick: Tick = lambda *_: None) -> dict[str, Any]:
        """Learns a domain pack from a tenant's own records; its new records are coded with it, old ones at `compact`.

        The pack has at most `size` bytes; None: as many as pay for what the tenant holds, so learn it anew once there
        is several times as much. It belongs to the tenant and goes when any of its records is forgotten. Returns the
        pack's card.
        """
        return learning.adapt(self, tenant, size, tick)

    def compact(self, tick: Tick = lambda *_: None) -> dict[str, int]:
        """Ages what is due (demote, promote, expire, re-encode; learn packs), gives back space; how many of each.

        May be stopped anywhere and run again.
        """
        return aging.compact(self, tick)

    def check(self, tick: Tick = lambda *_: None) -> Iterator[Fault]:
        """Verifies every checksum and decodes every record; yields what is wrong. Nothing: the store is sound."""
        yield from aging.check(self, tick)

    def stats(self, measure: bool = False) -> dict[str, Any]:
        """Counts and bytes, line by line. `measure` decodes every record for the raw bytes and the ratios."""
        return aging.stats(self, measure)


def _record(op: PutOp, encoded: Encoded, code: bytes, fidelity: str, time: int, allow_nan: bool) -> Record:
    if op.ttl is not None and not (type(op.ttl) in (int, float) and 0 < op.ttl < TTL_MOST):
        raise PolicyError(f"a ttl is a number of minutes over 0, not {op.ttl!r}"[:200])
    ttl = None if op.ttl is None else max(1, round(op.ttl * MINUTE))
    return Record(
        namespace=op.namespace,
        key=op.key,
        blob=encoded.blob,
        codec=encoded.codec,
        cls=op.cls,
        fidelity=fidelity,
        created=time,
        updated=time,
        expires=None if ttl is None else time + ttl,
        ttl=ttl,
        meta=meta_bytes(op.meta, allow_nan=allow_nan),
        code=code,
    )


def _check_range(limit: Any, offset: Any) -> None:
    if any(type(number) is not int or number < 0 for number in (limit, offset)):
        raise PolicyError(f"limit and offset are whole numbers from 0, not {limit!r} and {offset!r}"[:200])


def _fits(part: Namespace, pattern: Namespace) -> bool:
    return len(part) == len(pattern) and all(b in ("*", a) for a, b in zip(part, pattern, strict=True))


__all__ = ["Memory"]
