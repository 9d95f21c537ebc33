"""`Memory` against a dict: whatever is done, in any order, through two handles, across tiers, packs and reopening."""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "codec"))

from strategies import same, short_values

from nbmf import samples
from nbmf.memory import Memory, PutOp, items
from nbmf.memory.aging import _Aging
from nbmf.policy.policy import Policy
from nbmf.store.base import Namespace, within

KEY = bytes(range(32))
MINUTE = 60_000  # ms
SPACES: list[Namespace] = [("a",), ("a", "b"), ("a", "b", "c"), ("ab",), ("a_", "%"), ("b", "x")]
PREFIXES: list[Namespace] = [(), ("a",), ("a", "b"), ("ab",), ("b",), ("none",)]
POLICIES = [
    "",
    '[default]\ncold_after = "0s"\npromote_heat = 1\n',
    '[default]\ncold_after = "0s"\npromote_heat = "never"\nencoder = "zstd"\n',
    '[default]\ncold_after = "2m"\npromote_heat = 1\nheat_half_life = "1m"\n\n[rollout]\npercent = 50\n',
    "[rollout]\npercent = 0\n\n[class.x]\nhot = false\n",
]

spaces = st.sampled_from(SPACES)
keys = st.sampled_from(["k", "K", "é", "0123456789abcdef01234567", "6f1b1f0e-4f3c-4a52-9a43-1d6f3a2b9c11", "long" * 40])
classes = st.sampled_from(["", "x", "y"])
ttls = st.none() | st.sampled_from([0.5, 1, 3])
metas = st.none() | st.just({"z": 1, "a": [None]})


@dataclass(frozen=True)
class Held:
    value: Any
    cls: str
    created: int
    updated: int
    ttl: int | None
    expires: int | None
    meta: Any


class Clock:
    def __init__(self) -> None:
        self.now = 1_750_000_000_000

    def time_ns(self) -> int:
        return self.now * 1_000_000


class Store(RuleBasedStateMachine):
    key: bytes | None = None

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="nbmf-model-"))
        self.clock = Clock()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(items, "time", self.clock)
        self.held: dict[tuple[Namespace, str], Held] = {}
        self.open: list[Memory] = []

    @initialize(policy=st.sampled_from(POLICIES))
    def begin(self, policy: str) -> None:
        self.reopen(policy)

    def teardown(self) -> None:
        try:
            for memory in self.open[:1]:
                for namespace, key in self.held:
                    self.look(memory, namespace, key)
                assert list(memory.check()) == []
        finally:
            for memory in self.open:
                memory.close()
            self.patch.undo()
            shutil.rmtree(self.folder)

    # -- what is done --------------------------------------------------------------------------------------------------

    @rule(policy=st.sampled_from(POLICIES))
    def reopen(self, policy: str) -> None:
        for memory in self.open:
            memory.close()
        chosen = Policy.parse(policy)
        self.open = [Memory.open(self.folder / "s", key=self.key, policy=chosen, embedder=None) for _ in range(2)]

    @rule(by=st.integers(0, 1), space=spaces, key=keys, value=short_values, cls=classes, ttl=ttls, meta=metas)
    def put(self, by: int, space: Namespace, key: str, value: Any, cls: str, ttl: float | None, meta: Any) -> None:
        self.open[by].put(space, key, value, cls=cls, ttl=ttl, meta=meta)
        self.note(space, key, value, cls, ttl, meta)

    @rule(by=st.integers(0, 1), puts=st.lists(st.tuples(spaces, keys, short_values), max_size=6))
    def put_many(self, by: int, puts: list[tuple[Namespace, str, Any]]) -> None:
        self.open[by].put_many(PutOp(*one) for one in puts)
        for one in puts:
            self.note(*one, "", None, None)

    @rule(by=st.integers(0, 1), space=spaces, key=keys, refresh=st.booleans())
    def get(self, by: int, space: Namespace, key: str, refresh: bool) -> None:
        self.look(self.open[by], space, key, refresh)

    @rule(by=st.integers(0, 1), space=spaces, key=keys)
    def delete(self, by: int, space: Namespace, key: str) -> None:
        there = self.live(space, key) is not None
        assert self.open[by].delete(space, key) == there
        self.held.pop((space, key), None)

    @rule(by=st.integers(0, 1), prefix=st.sampled_from(PREFIXES))
    def forget(self, by: int, prefix: Namespace) -> None:
        inside = [at for at in self.held if within(at[0], prefix)]
        assert self.open[by].forget(prefix) >= sum(self.live(*at) is not None for at in inside)
        for at in inside:
            del self.held[at]

    @rule(minutes=st.sampled_from([0.2, 1, 5]))
    def wait(self, minutes: float) -> None:
        self.clock.now += int(minutes * MINUTE)

    @rule(by=st.integers(0, 1))
    def compact(self, by: int) -> None:
        memory = self.open[by]
        memory.compact()
        assert [move for move, _ in _Aging(memory, self.clock.now).due()] == []
        self.held = {at: one for at, one in self.held.items() if self.live(*at) is not None}
        assert memory.stats()["records"] == len(self.held)

    @precondition(lambda self: not any(at[1].startswith("sample") for at in self.held))
    @rule(by=st.integers(0, 1), seed=st.integers(0, 3))
    def adapt(self, by: int, seed: int) -> None:
        values = [sample.value for sample in samples.generate(50, seed=seed)]
        self.open[by].put_many(PutOp(("a", "b"), f"sample {i}", value) for i, value in enumerate(values))
        for i, value in enumerate(values):
            self.note(("a", "b"), f"sample {i}", value, "", None, None)
        self.open[1 - by].adapt("a", 8 << 10)

    # -- what is seen --------------------------------------------------------------------------------------------------

    @rule(by=st.integers(0, 1), prefix=st.sampled_from(PREFIXES), cls=st.none() | classes, offset=st.integers(0, 3))
    def search(self, by: int, prefix: Namespace, cls: str | None, offset: int) -> None:
        found = self.open[by].search(prefix, cls=cls, limit=500, offset=offset)
        wanted = [
            at
            for at, one in self.held.items()
            if within(at[0], prefix) and self.live(*at) is not None and cls in (None, one.cls)
        ]
        wanted.sort(key=lambda at: (-self.held[at].updated, *at))
        assert [(item.namespace, item.key) for item in found] == wanted[offset:]
        for item in found:
            assert same(item.value, self.held[item.namespace, item.key].value)

    @invariant()
    def namespaces(self) -> None:
        wanted = sorted({at[0] for at in self.held if self.live(*at) is not None})
        for memory in self.open:
            assert memory.list_namespaces() == wanted

    def look(self, memory: Memory, namespace: Namespace, key: str, refresh: bool = True) -> None:
        item, one = memory.item(namespace, key, refresh=refresh), self.live(namespace, key)
        assert (item is None) == (one is None)
        if item is None or one is None:
            return
        if refresh and one.ttl is not None:
            one = self.held[namespace, key] = replace(one, expires=self.clock.now + one.ttl)
        assert same(item.value, one.value)
        assert same(item.meta, one.meta) and item.cls == one.cls and item.fidelity == "lossless"
        assert (item.created_at, item.updated_at) == (items.moment(one.created), items.moment(one.updated))
        assert item.expires_at == (None if one.expires is None else items.moment(one.expires))

    def live(self, namespace: Namespace, key: str) -> Held | None:
        one = self.held.get((namespace, key))
        return None if one is None or (one.expires is not None and one.expires <= self.clock.now) else one

    def note(self, namespace: Namespace, key: str, value: Any, cls: str, ttl: float | None, meta: Any) -> None:
        old, now = self.live(namespace, key), self.clock.now
        lives = None if ttl is None else round(ttl * MINUTE)
        created = now if old is None else old.created
        expires = None if lives is None else now + lives
        self.held[namespace, key] = Held(value, cls, created, now, lives, expires, meta)


class Encrypted(Store):
    key = KEY


TestPlain = Store.TestCase
TestEncrypted = Encrypted.TestCase
_FEW = settings(max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
TestPlain.settings = _FEW
TestEncrypted.settings = settings(_FEW, max_examples=8)
