"""What tenants with a quota hold."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final

from nbmf.errors import PolicyError
from nbmf.memory.tiers import Address, Found, Tiers, address, pages
from nbmf.policy.policy import Policy
from nbmf.policy.router import tenant_of
from nbmf.store.base import Get, Record

FRESH: Final = 10.0  # seconds for which a count holds, at least;
SHARE: Final = 0.02  # longer, so that counting takes at most this share of the time
NOTHING: Final = (0, 0)
Sum = tuple[int, int]  # records, and bytes of their blobs


class Quotas:
    """Counts a tenant at its first put, then keeps up with this process. Thread-safe.

    Expired records count until they are removed. What other processes do counts within FRESH seconds. Before a put is
    refused, the tenant is counted anew: what was replaced counts as it should then.
    """

    def __init__(self, policy: Policy, tiers: Tiers) -> None:
        self._policy = policy
        self._tiers = tiers
        self._held: dict[str, Sum] = {}
        self._until: dict[str, float] = {}  # when what is held is to be counted anew, by the monotonic clock
        self._pending: dict[str, Sum] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def room_for(self, records: Sequence[Record]) -> Iterator[None]:
        """Around a put. Raises PolicyError where these records take a tenant over its quota; then nothing was put."""
        taken: dict[str, Sum] = {}
        try:
            for tenant, mine in _by_tenant(records):
                if _limited(self._policy, tenant):
                    self._take(tenant, mine)
                    taken[tenant] = _sum(mine)
            yield
        except BaseException:
            self._settle(taken, done=False)
            raise
        self._settle(taken, done=True)

    def removed(self, found: Sequence[Found]) -> None:
        """Counts deleted records out. What a cold one took in its archive is still taken."""
        with self._lock:
            for record, tier in found:
                tenant = tenant_of(record.namespace)
                if tenant in self._held:
                    gone = 1, len(record.blob) if tier == "warm" else 0
                    self._held[tenant] = _plus(self._held[tenant], gone, -1)

    def clear(self) -> None:
        """Everybody is counted anew."""
        with self._lock:
            self._held.clear()

    def _take(self, tenant: str, mine: dict[Address, Record]) -> None:
        with self._lock:
            for anew in (False, True):
                if anew or tenant not in self._held or time.monotonic() > self._until[tenant]:
                    begun = time.monotonic()
                    self._held[tenant] = self._count(tenant, mine if anew else {})
                    done = time.monotonic()
                    self._until[tenant] = done + max(FRESH, (done - begun) / SHARE)
                pending = self._pending.get(tenant, NOTHING)
                total = _plus(_plus(self._held[tenant], pending), _sum(mine))
                try:
                    self._policy.check_quota(tenant, *total)
                    break
                except PolicyError:
                    if anew:
                        del self._held[tenant]
                        raise
            self._pending[tenant] = _plus(pending, _sum(mine))

    def _settle(self, taken: dict[str, Sum], done: bool) -> None:
        with self._lock:
            for tenant, size in taken.items():
                self._pending[tenant] = _plus(self._pending[tenant], size, -1)
                if not done:
                    self._held.pop(tenant, None)
                elif tenant in self._held:
                    self._held[tenant] = _plus(self._held[tenant], size)

    def _count(self, tenant: str, replacing: dict[Address, Record]) -> Sum:
        """What a tenant holds, but for what is about to be replaced."""
        count = size = 0
        for page in pages(self._tiers.warm, (tenant,), None):
            for record in page:
                if address(record) not in replacing:
                    count += 1
                    size += len(record.blob)
        if (cold := self._tiers.cold()) is not None:
            frozen, archived = cold.held(tenant)
            there = cold.batch([Get(*at, 0, blob=False) for at in replacing]) if frozen else []
            count += frozen - sum(one is not None for one in there)
            size += archived
        return count, size


def _limited(policy: Policy, tenant: str) -> bool:
    rules = policy.rules(tenant, "")
    return rules.quota_records is not None or rules.quota_bytes is not None


def _by_tenant(records: Sequence[Record]) -> Iterator[tuple[str, dict[Address, Record]]]:
    """The last of each address."""
    ordered = sorted(records, key=lambda record: tenant_of(record.namespace))
    for tenant, mine in itertools.groupby(ordered, lambda record: tenant_of(record.namespace)):
        yield tenant, {address(record): record for record in mine}


def _sum(records: dict[Address, Record]) -> Sum:
    return len(records), sum(len(record.blob) for record in records.values())


def _plus(one: Sum, other: Sum, sign: int = 1) -> Sum:
    return one[0] + sign * other[0], one[1] + sign * other[1]


__all__ = ["Quotas"]
