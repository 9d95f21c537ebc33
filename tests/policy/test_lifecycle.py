"""Aging plans as tables, and their properties: resumable, at rest after one round, one move a record."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbmf.policy.lifecycle import (
    ACTIONS,
    DEMOTE,
    EXPIRE,
    PROMOTE,
    REENCODE,
    REPACK,
    Archived,
    Facts,
    Move,
    heat,
    plan,
    touch,
)
from nbmf.policy.policy import Policy
from nbmf.policy.router import COLD, WARM, Route, route

DAY = 86_400_000
NOW = 1_750_000_000_000
CODECS = {"": "base2", "acme": "pack2"}

POLICY = Policy.parse(
    """
[default]
neural_max = "1KiB"
[class.log]
encoder = "zstd"
expire_after = "2d"
[class.legal]
cold_after = "never"
promote_heat = "never"
[class.frozen]
cold_after = "0s"
[class.fixed]
reencode = false
[class.lost]
domain = "no such pack"
[class.brief]
promote_heat = 10
heat_half_life = "1h"
[tenant.acme]
domain = "acme"
cold_after = "90d"
"""
)
AGED40 = "unchanged for 40d, cold_after is reached"
OLD2 = "unchanged for 2d, expire_after is reached"
HOT = "its heat is {}, promote_heat is reached"
STALE = "its codec is not the current one"
FRESH = Facts(("ann",), "key", "", WARM, NOW, NOW, 100, codec="base2")


def facts(**changes: Any) -> Facts:
    """FRESH with changes; `age` is how long ago it was updated."""
    if "age" in changes:
        changes["updated"] = changes["created"] = NOW - changes.pop("age")
    return dataclasses.replace(FRESH, **changes)


@pytest.mark.parametrize(
    ("one", "action", "why"),
    [
        (facts(), None, ""),
        # demotion: by age
        (facts(age=30 * DAY - 1), None, ""),
        (facts(age=30 * DAY), DEMOTE, "unchanged for 30d, cold_after is reached"),
        (facts(age=45 * DAY + 7), DEMOTE, "unchanged for 45d, cold_after is reached"),
        (facts(age=30 * DAY, tier=COLD), None, ""),
        (facts(age=30 * DAY, namespace=("acme", "x")), REENCODE, STALE),
        (facts(age=90 * DAY, namespace=("acme", "x")), DEMOTE, "unchanged for 90d, cold_after is reached"),
        (facts(age=9999 * DAY, cls="legal"), None, ""),
        (facts(cls="frozen"), DEMOTE, "unchanged for 0ms, cold_after is reached"),
        (facts(cls="frozen", age=-DAY), None, ""),  # a clock that went back
        # read of late: stays, though old
        (facts(age=40 * DAY, reads=1.0, last_read=NOW), None, ""),
        (facts(age=40 * DAY, reads=0.99, last_read=NOW), DEMOTE, AGED40),
        (facts(age=40 * DAY, reads=2.0, last_read=NOW - DAY), None, ""),
        (facts(age=40 * DAY, reads=2.0, last_read=NOW - DAY - DAY // 8), DEMOTE, AGED40),
        (facts(age=40 * DAY, reads=5.0, last_read=None), DEMOTE, AGED40),
        # promotion: by heat
        (facts(tier=COLD, age=40 * DAY, reads=2.0, last_read=NOW), PROMOTE, HOT.format(2.0)),
        (facts(tier=COLD, age=40 * DAY, reads=1.99, last_read=NOW), None, ""),
        (facts(tier=COLD, age=40 * DAY, reads=8.0, last_read=NOW - 2 * DAY), PROMOTE, HOT.format(2.0)),
        (facts(tier=COLD, age=40 * DAY, reads=8.0, last_read=NOW - 3 * DAY), None, ""),
        (facts(tier=COLD, age=0), None, ""),  # a policy that now wants it warm longer brings nothing back
        (facts(tier=COLD, cls="legal", reads=1e9, last_read=NOW), None, ""),
        (facts(tier=COLD, cls="brief", reads=10.0, last_read=NOW), PROMOTE, HOT.format(10.0)),
        (facts(tier=COLD, cls="brief", reads=19.0, last_read=NOW - DAY // 24), None, ""),
        (facts(reads=1e9, last_read=NOW), None, ""),
        # expiry: before all else
        (facts(expires=NOW + 1), None, ""),
        (facts(expires=NOW), EXPIRE, "its time to live is over"),
        (facts(expires=NOW - 1, age=99 * DAY), EXPIRE, "its time to live is over"),
        (facts(expires=NOW, tier=COLD, reads=9.0, last_read=NOW, codec="base1"), EXPIRE, "its time to live is over"),
        (facts(cls="log", age=2 * DAY - 1), None, ""),
        (facts(cls="log", age=2 * DAY), EXPIRE, OLD2),
        (facts(cls="log", age=2 * DAY, reads=9.0, last_read=NOW, tier=COLD), EXPIRE, OLD2),
        # re-encoding: towards the current model or pack
        (facts(codec="base1"), REENCODE, STALE),
        (facts(codec="base1", tier=COLD), REENCODE, STALE),
        (facts(codec="base1", fidelity="semantic"), REENCODE, STALE),
        (facts(codec=""), REENCODE, STALE),
        (facts(codec="base1", size=1025), REENCODE, STALE),
        (facts(codec="base2", size=1025), None, ""),
        (facts(codec="base1", cls="log"), None, ""),  # zstd is what it asks for: neural blobs stay
        (facts(codec="", cls="log"), None, ""),
        (facts(codec="base1", cls="fixed"), None, ""),
        (facts(codec="base1", cls="lost"), None, ""),
        (facts(codec="pack1", namespace=("acme",)), REENCODE, STALE),
        (facts(codec="base2", namespace=("acme",)), REENCODE, STALE),
        (facts(codec="pack2", namespace=("acme",)), None, ""),
        (facts(codec="base1", age=31 * DAY), DEMOTE, "unchanged for 31d, cold_after is reached"),
    ],
)  # fmt: skip
def test_table(one: Facts, action: str | None, why: str) -> None:
    moves = list(plan(POLICY, [one], NOW, CODECS))
    if action is None:
        assert moves == []
        return
    target = {PROMOTE: WARM, DEMOTE: COLD, REENCODE: one.tier}.get(action)
    way = target and route(POLICY, one.namespace, one.cls, one.key, one.size, NOW, one.updated, target)
    assert moves == [Move(action, why, one.namespace, one.key, way or None)]


def test_without_codecs_nothing_is_reencoded() -> None:
    assert list(plan(POLICY, [facts(codec="base1"), facts(codec="")], NOW)) == []


def test_reencoding_follows_the_rollout() -> None:
    """Old blobs become neural as the percent grows; a rollback turns nothing back."""
    records = [facts(key=f"k{i}", codec="") for i in range(200)]
    before: set[str] = set()
    for percent in (0, 10, 50, 100):
        policy = Policy.of({"rollout": {"percent": percent}})
        keys = {move.key for move in plan(policy, records, NOW, CODECS)}
        assert before <= keys
        assert abs(len(keys) - 2 * percent) < 25
        before = keys
    back = Policy.of({"rollout": {"percent": 0}})
    assert list(plan(back, [facts(codec="base1"), facts(codec="base2")], NOW, CODECS)) == []


@pytest.mark.parametrize(
    ("records", "dead", "leaving", "repacked"),
    [
        (100, 0, 0, False),
        (100, 29, 0, False),
        (100, 30, 0, True),
        (100, 29, 1, True),
        (100, 0, 30, True),
        (3, 1, 0, True),
        (4, 1, 0, False),
        (4, 4, 0, True),
        (0, 0, 0, False),
    ],
)
def test_repacking(records: int, dead: int, leaving: int, repacked: bool) -> None:
    policy = Policy.default()
    inside = [
        facts(key=f"k{i}", tier=COLD, archive="a", expires=NOW if i < leaving else None) for i in range(records - dead)
    ]
    moves = list(plan(policy, inside, NOW, CODECS, [Archived("a", records, dead), Archived("b", 10, 0)]))
    assert [move.action for move in moves] == [EXPIRE] * leaving + [REPACK] * repacked
    if repacked:
        why = f"{dead + leaving} of {records} records in it are dead"
        assert moves[-1] == Move(REPACK, why, archive="a")


def test_the_share_of_the_dead_is_the_policys() -> None:
    archives = [Archived("a", 1000, 1), Archived("b", 1000, 0), Archived("c", 1000, 1000)]
    for percent, names in ((0, ["a", "c"]), (0.1, ["a", "c"]), (0.2, ["c"]), (100, ["c"])):
        policy = Policy.of({"archive": {"dead_percent": percent}})
        assert [move.archive for move in plan(policy, [], NOW, archives=archives)] == names


def test_a_plan_is_lazy() -> None:
    """A store of any size: nothing is read before it is asked for."""

    def endless() -> Iterator[Facts]:
        while True:
            yield facts(expires=NOW)

    assert next(plan(POLICY, endless(), NOW)).action == EXPIRE


# -- heat --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reads", "last_read", "now", "expected"),
    [
        (0.0, None, 100, 0.0),
        (3.0, None, 100, 0.0),
        (0.0, 100, 100, 0.0),
        (-1.0, 100, 100, 0.0),
        (3.0, 100, 100, 3.0),
        (3.0, 100, 110, 1.5),
        (3.0, 100, 120, 0.75),
        (3.0, 100, 50, 3.0),
        (3.0, 0, 10**18, 0.0),
    ],
)
def test_heat(reads: float, last_read: int | None, now: int, expected: float) -> None:
    assert heat(reads, last_read, now, half_life=10) == expected


def test_touch() -> None:
    assert touch(0.0, None, 100, 10) == (1.0, 100)
    assert touch(1.0, 100, 110, 10) == (1.5, 110)
    assert touch(1.5, 110, 110, 10) == (2.5, 110)
    assert touch(2.0, 110, 50, 10) == (3.0, 110)  # a clock that went back


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=20), st.integers(1, 5000), st.integers(0, 20_000))
def test_touching_sums_up_decayed_reads(times: list[int], half_life: int, later: int) -> None:
    times.sort()
    reads, last = 0.0, None
    for at in times:
        reads, last = touch(reads, last, at, half_life)
    now = times[-1] + later
    assert heat(reads, last, now, half_life) == pytest.approx(sum(0.5 ** ((now - at) / half_life) for at in times))


# -- properties --------------------------------------------------------------------------------------------------------

ages = st.integers(-DAY, 100 * DAY) | st.sampled_from([0, 2 * DAY, 30 * DAY, 90 * DAY])
classes = st.sampled_from(["", "log", "legal", "frozen", "fixed", "lost", "brief"])
records = st.builds(
    lambda namespace, cls, tier, age, size, read, reads, expires, codec, archive: facts(
        namespace=namespace,
        cls=cls,
        tier=tier,
        age=age,
        size=size,
        last_read=read and NOW - read,
        reads=reads,
        expires=expires and NOW + expires,
        codec=codec,
        archive=archive if tier == COLD else "",
    ),
    st.sampled_from([("ann",), ("ann", "x"), ("acme",), ("acme", "y")]),
    classes,
    st.sampled_from([WARM, COLD]),
    ages,
    st.sampled_from([0, 100, 1024, 1025]),
    st.none() | ages,
    st.floats(0, 50),
    st.none() | st.integers(-DAY, DAY),
    st.sampled_from(["", "base1", "base2", "pack1", "pack2", "other"]),
    st.sampled_from(["a", "b", "c"]),
)
stores = st.lists(records, max_size=25).map(
    lambda found: [dataclasses.replace(one, key=f"k{i}") for i, one in enumerate(found)]
)
graves = st.fixed_dictionaries({name: st.integers(0, 4) for name in "abc"})
policies = st.sampled_from(
    [
        POLICY,
        Policy.default(),
        Policy.of({"rollout": {"percent": 40}, "default": {"cold_after": "1d"}, "archive": {"dead_percent": 60}}),
        Policy.of({"rollout": {"percent": 0}, "default": {"cold_after": "0s", "promote_heat": 0.01}}),
        Policy.of({"archive": {"dead_percent": 0}, "class": {"log": {"cold_after": "0s", "promote_heat": "never"}}}),
    ]
)


class Store:
    """Facts, and archives with their dead: what moves do, by the table of `Move`."""

    def __init__(self, found: Iterable[Facts], graves: Mapping[str, int]) -> None:
        self.facts = {(one.namespace, one.key): one for one in found}
        self.dead = dict(graves)

    def archives(self) -> list[Archived]:
        live = [one.archive for one in self.facts.values()]
        return [Archived(name, live.count(name) + dead, dead) for name, dead in sorted(self.dead.items())]

    def plan(self, policy: Policy) -> list[Move]:
        return list(plan(policy, self.facts.values(), NOW, CODECS, self.archives()))

    def carry_out(self, moves: Iterable[Move]) -> None:
        for move in moves:
            if move.action == REPACK:
                self.dead[move.archive + "'"] = 0
                del self.dead[move.archive]
                for place, one in self.facts.items():
                    if one.archive == move.archive:
                        self.facts[place] = dataclasses.replace(one, archive=move.archive + "'")
                continue
            one = self.facts.pop((move.namespace, move.key))
            if one.tier == COLD:
                self.dead[one.archive] += 1
            if move.action == EXPIRE:
                continue
            assert move.route is not None
            codec = self.codec(move.route, one.codec)
            archive = "new" if move.route.tier == COLD else ""
            if archive:
                self.dead.setdefault(archive, 0)
            self.facts[one.namespace, one.key] = dataclasses.replace(
                one, tier=move.route.tier, codec=codec, archive=archive
            )

    @staticmethod
    def codec(way: Route, before: str) -> str:
        """The record's codec id after it was coded by `way`; a pack that is not to be had leaves it as it was."""
        return "" if way.domain is None else CODECS.get(way.domain, before)


@given(stores, graves, policies)
def test_one_move_a_record(found: list[Facts], dead: dict[str, int], policy: Policy) -> None:
    moves = Store(found, dead).plan(policy)
    places = [(move.namespace, move.key) for move in moves if move.action != REPACK]
    assert len(set(places)) == len(places)
    assert {move.action for move in moves} <= set(ACTIONS)
    tiers = {(one.namespace, one.key): one.tier for one in found}
    for move in moves:
        assert move.why and "\n" not in move.why
        assert (move.route is None) == (move.action in (EXPIRE, REPACK))
        assert (move.archive == "") == (move.action != REPACK)
        if move.action in (PROMOTE, DEMOTE):
            assert tiers[move.namespace, move.key] == (COLD if move.action == PROMOTE else WARM)


@given(stores, graves, policies)
def test_a_plan_carried_out_leaves_nothing_to_do(found: list[Facts], dead: dict[str, int], policy: Policy) -> None:
    store = Store(found, dead)
    store.carry_out(store.plan(policy))
    assert store.plan(policy) == []


@given(stores, graves, policies, st.data())
def test_a_plan_that_was_stopped_is_resumed(
    found: list[Facts], dead: dict[str, int], policy: Policy, data: st.DataObject
) -> None:
    """Whatever part of it was carried out, the new plan is the rest; repacks come after all records."""
    store = Store(found, dead)
    whole = store.plan(policy)
    moves = [move for move in whole if move.action != REPACK]
    done = data.draw(st.lists(st.booleans(), min_size=len(moves), max_size=len(moves)))
    store.carry_out(move for move, is_done in zip(moves, done, strict=True) if is_done)
    rest = [move for move, is_done in zip(moves, done, strict=True) if not is_done]
    resumed = store.plan(policy)
    assert ordered(move for move in resumed if move.action != REPACK) == ordered(rest)
    assert [move for move in resumed if move.action == REPACK] == [move for move in whole if move.action == REPACK]
    store.carry_out(resumed)
    assert store.plan(policy) == []


@given(stores, graves, policies)
def test_the_same_again(found: list[Facts], dead: dict[str, int], policy: Policy) -> None:
    """The plan of a record does not depend on the others, nor on their order."""
    moves = Store(found, dead).plan(policy)
    assert Store(found, dead).plan(policy) == moves
    backwards = list(plan(policy, found[::-1], NOW, CODECS, Store(found, dead).archives()))
    assert ordered(backwards) == ordered(moves)
    alone = [move for one in found for move in plan(policy, [one], NOW, CODECS)]
    assert alone == [move for move in moves if move.action != REPACK]


def ordered(moves: Iterable[Move]) -> Sequence[Move]:
    return sorted(moves, key=lambda move: (move.action, move.namespace, move.key, move.archive))
