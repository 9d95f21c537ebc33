"""How a record is written: a pure function of the policy and of what is known of the record before it is encoded.

Reading never comes here. What decodes a blob is told by the blob and by the codec id that its container keeps, so a
record stays readable whatever the policy says now, was then, or was never told:

| the bytes                                  | read by                                                      |
|--------------------------------------------|--------------------------------------------------------------|
| begin with "{" (the old encoder's JSON)     | `codec.stub`, or `codec.dropin` where `encoder_version` says so |
| anything else                              | `codec.format`: version, method and profile in its first byte |
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from nbmf.codec.bounds import Bound
from nbmf.codec.numbers import Tolerance
from nbmf.policy.policy import Policy, Rollout
from nbmf.store.base import Namespace

WARM: Final = "warm"
COLD: Final = "cold"
NEURAL: Final = "neural"
ZSTD: Final = "zstd"
STORED: Final = "stored"
BASELINE: Final = "stub"  # what the neural encoder is rolled out over

_HASH_SIZE: Final = 8  # bytes
_HASH_RANGE: Final = 1 << 8 * _HASH_SIZE


@dataclass(frozen=True, slots=True)
class Route:
    """How a record is written.

    `encoder`: "neural" (the race of neural, zstd and stored), "zstd" (the race without the model), "stored" or "stub".
    `domain`: the pack, "" for the model alone. The record keeps that codec's id, also where no model had to do with its
    blob, so that a later plan can tell that it is up to date. None: coded without any, and the record keeps "".
    `fidelity` is "semantic" where a new value may be changed within `bound` and `tolerance`: never where the encoder is
    "stored" or "stub", which keep everything. `profile` is "fast" or "dense", `tier` "warm" or "cold".
    `shadow`: encode with the baseline too and compare (rollout.Shadow). `verify`: decode the blob and compare before
    the write is acknowledged; False only where `shadow` does so. `protected`: a divergence refuses the write.
    `index`: () the whole value, names only those fields, None nothing. `hot`: the decoded value may be cached.
    `why`: what decided on the encoder, as a phrase.
    """

    encoder: str
    domain: str | None
    fidelity: str
    bound: Bound
    tolerance: tuple[tuple[str, Tolerance], ...]
    profile: str
    tier: str
    shadow: bool
    verify: bool
    protected: bool
    index: tuple[str, ...] | None
    hot: bool
    why: str


def route(
    policy: Policy,
    namespace: Namespace,
    cls: str,
    key: str,
    size: int,
    now: int,
    updated: int | None = None,
    tier: str | None = None,
) -> Route:
    """The way to write a record of `size` raw bytes at `now` (milliseconds since the Unix epoch). Never raises.

    `updated` is when the value was last changed, for one that comes from elsewhere (None: now); by its age the tier is
    chosen, unless `tier` is given. The tenant is the first segment of the namespace.
    """
    rules = policy.rules(tenant_of(namespace), cls)
    if tier is None:
        age = 0 if updated is None else max(now - updated, 0)
        tier = COLD if rules.cold_after is not None and age >= rules.cold_after else WARM
    encoder, why = rules.encoder, f"the policy's encoder is {rules.encoder}"
    shadow = False
    domain: str | None = None
    if encoder == NEURAL:
        if size > rules.neural_max:
            encoder, domain, why = ZSTD, rules.domain, f"{size} bytes are over neural_max"
        else:
            shadow = policy.rollout.shadow
            encoder, why = _canary(policy.rollout, namespace, key)
            domain = rules.domain if encoder == NEURAL else None
    return Route(
        encoder=encoder,
        domain=domain,
        fidelity=rules.fidelity if encoder in (NEURAL, ZSTD) else "lossless",
        bound=rules.bound,
        tolerance=rules.tolerance,
        profile=rules.profile_in(tier),
        tier=tier,
        shadow=shadow,
        verify=not shadow,
        protected=rules.protected,
        index=rules.index,
        hot=rules.hot,
        why=why,
    )


def prefer(rollout: Rollout, namespace: Namespace, key: str) -> str:
    """The encoder, "neural" or "stub", that the rollout gives a record whose policy asks for the neural one."""
    return _canary(rollout, namespace, key)[0]


def share(salt: str, namespace: Namespace, key: str) -> float:
    """Where a record stands in the rollout, in percent: from 0 to 100, evenly spread, the same for ever.

    The first 8 bytes of BLAKE2b (made for that length) over the salt, the namespace's segments and the key, each as the
    length of its UTF-8 in 4 bytes and the UTF-8; the hash, and that length, little-endian. A record is in the rollout
    when it stands under `percent`, so a higher percent only adds records.
    """
    return _hash(salt, namespace, key) * 100 / _HASH_RANGE


def tenant_of(namespace: Namespace) -> str:
    """The tenant that a namespace belongs to: its first segment."""
    return namespace[0] if namespace else ""


def _canary(rollout: Rollout, namespace: Namespace, key: str) -> tuple[str, str]:
    """The encoder and why."""
    tenant = tenant_of(namespace)
    percent = rollout.percent
    if percent >= 100:
        return NEURAL, "the rollout is complete"
    if tenant in rollout.tenants:
        return NEURAL, "the rollout lists its tenant"
    # 2**64 times a float is exact, and Python compares integers with floats exactly.
    if percent > 0 and _hash(rollout.salt, namespace, key) * 100 < percent * _HASH_RANGE:
        return NEURAL, f"the key is within the rollout's {percent:g} percent"
    return BASELINE, f"the key is outside the rollout's {percent:g} percent"


def _hash(salt: str, namespace: Namespace, key: str) -> int:
    digest = hashlib.blake2b(digest_size=_HASH_SIZE)
    for text in (salt, *namespace, key):
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(4, "little") + data)
    return int.from_bytes(digest.digest(), "little")


__all__ = ["BASELINE", "COLD", "NEURAL", "STORED", "WARM", "ZSTD", "Route", "prefer", "route", "share", "tenant_of"]
