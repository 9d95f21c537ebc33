"""Aging: which records and archives to move, and why. Pure: nothing is read or written here.

A plan is a function of what is known of each record alone (and, for an archive, of its own records), so it may be
stopped anywhere: a new plan after a part was carried out is the rest of the old one, at the same `now`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from nbmf.policy.policy import DURATION_UNITS, Policy, Rules
from nbmf.policy.router import COLD, NEURAL, WARM, Route, route, tenant_of
from nbmf.store.base import Namespace

EXPIRE: Final = "expire"
PROMOTE: Final = "promote"
DEMOTE: Final = "demote"
REENCODE: Final = "reencode"
REPACK: Final = "repack"
ACTIONS: Final = (EXPIRE, PROMOTE, DEMOTE, REENCODE, REPACK)

# A warm record stays warm while its heat is at least this share of what promotes a cold one: one that was promoted
# does not go back before a half-life without reads.
STAY_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a record. Times are milliseconds since the Unix epoch.

    `tier` is "warm" or "cold". `reads` is the decayed count of reads as of `last_read` (see `touch`), 0 and None when
    nothing is known: heat lives in memory alone. `size` is raw bytes, or the blob's where those are not known.
    `codec` is the record's codec id, "" for none, and `archive` the name of the archive that a cold record is in.
    """

    namespace: Namespace
    key: str
    cls: str
    tier: str
    created: int
    updated: int
    size: int
    last_read: int | None = None
    reads: float = 0.0
    expires: int | None = None
    fidelity: str = "lossless"
    codec: str = ""
    archive: str = ""


@dataclass(frozen=True, slots=True)
class Archived:
    """What is known of an archive: how many records are in it, and how many of those are deleted or superseded."""

    name: str
    records: int
    dead: int


@dataclass(frozen=True, slots=True)
class Move:
    """One thing to do.

    | action   | means                                                        | afterwards                     |
    |----------|--------------------------------------------------------------|--------------------------------|
    | expire   | delete the record                                            | it is gone                     |
    | promote  | code it as `route` says into the warm tier, delete the other | tier and codec are the route's |
    | demote   | code it as `route` says into the cold tier, delete the other | tier and codec are the route's |
    | reencode | code it as `route` says, in its tier                         | its codec is the route's       |
    | repack   | write the live records of `archive` to a new one             | nothing in that one is dead    |

    A record keeps its fidelity: a truncated preview stays "semantic", whatever the route would give a new value.
    """

    action: str
    why: str
    namespace: Namespace = ()
    key: str = ""
    route: Route | None = None  # of promote, demote and reencode
    archive: str = ""  # of repack


def plan(
    policy: Policy,
    facts: Iterable[Facts],
    now: int,
    codecs: Mapping[str, str] | None = None,
    archives: Iterable[Archived] = (),
) -> Iterator[Move]:
    """The moves that the policy wants at `now`, at most one for each record, in the order of `facts`; then repacks.

    `codecs` gives the current codec id by domain ("" is the model alone); records are re-encoded only for domains in
    it. A repack counts the records that this plan itself takes out of the archive, so it is to be carried out after
    their moves, and `facts` must hold all live records of the archives named. Nothing is held but a count an archive.
    """
    codecs = codecs or {}
    leaving: dict[str, int] = {}  # archive -> how many of its live records this plan takes out
    for one in facts:
        move = _move(policy, one, now, codecs)
        if move is not None:
            if one.tier == COLD and one.archive:
                leaving[one.archive] = leaving.get(one.archive, 0) + 1
            yield move
    for archive in archives:
        dead = archive.dead + leaving.get(archive.name, 0)
        if dead > 0 and dead * 100 >= policy.archive.dead_percent * archive.records:
            yield Move(REPACK, f"{dead} of {archive.records} records in it are dead", archive=archive.name)


def heat(reads: float, last_read: int | None, now: int, half_life: int) -> float:
    """How warm a record is: its reads, each worth half as much after every `half_life` milliseconds.

    `reads` is the sum as of `last_read`. A clock that went back makes nothing hotter.
    """
    if last_read is None or reads <= 0:
        return 0.0
    return float(reads * 0.5 ** (max(now - last_read, 0) / half_life))


def touch(reads: float, last_read: int | None, now: int, half_life: int) -> tuple[float, int]:
    """`reads` and `last_read` after one more read at `now`."""
    return heat(reads, last_read, now, half_life) + 1.0, now if last_read is None else max(now, last_read)


def _move(policy: Policy, one: Facts, now: int, codecs: Mapping[str, str]) -> Move | None:
    rules = policy.rules(tenant_of(one.namespace), one.cls)
    age = now - one.updated
    if one.expires is not None and one.expires <= now:
        return Move(EXPIRE, "its time to live is over", one.namespace, one.key)
    if rules.expire_after is not None and age >= rules.expire_after:
        return Move(EXPIRE, f"unchanged for {_span(age)}, expire_after is reached", one.namespace, one.key)
    heated = heat(one.reads, one.last_read, now, rules.heat_half_life)
    if one.tier == COLD and rules.promote_heat is not None and heated >= rules.promote_heat:
        return _coded(policy, one, now, PROMOTE, WARM, f"its heat is {heated:.1f}, promote_heat is reached")
    if one.tier == WARM and rules.cold_after is not None and age >= rules.cold_after and not _stays(rules, heated):
        return _coded(policy, one, now, DEMOTE, COLD, f"unchanged for {_span(age)}, cold_after is reached")
    if rules.reencode and rules.encoder == NEURAL and codecs.get(rules.domain, one.codec) != one.codec:
        move = _coded(policy, one, now, REENCODE, one.tier, "its codec is not the current one")
        if move.route is not None and move.route.domain is not None:  # else the rollout does not reach it yet
            return move
    return None


def _stays(rules: Rules, heated: float) -> bool:
    return rules.promote_heat is not None and heated >= rules.promote_heat * STAY_SHARE


def _coded(policy: Policy, one: Facts, now: int, action: str, tier: str, why: str) -> Move:
    way = route(policy, one.namespace, one.cls, one.key, one.size, now, one.updated, tier)
    return Move(action, why, one.namespace, one.key, way)


def _span(milliseconds: int) -> str:
    """A duration in its largest whole unit, rounded down."""
    name, unit = next(
        ((name, unit) for name, unit in DURATION_UNITS.items() if name != "w" and milliseconds >= unit), ("ms", 1)
    )
    return f"{milliseconds // unit}{name}"


__all__ = [
    "ACTIONS",
    "DEMOTE",
    "EXPIRE",
    "PROMOTE",
    "REENCODE",
    "REPACK",
    "Archived",
    "Facts",
    "Move",
    "heat",
    "plan",
    "touch",
]
