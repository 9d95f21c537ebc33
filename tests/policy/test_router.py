"""Routing as tables, and the rollout: stable, spread evenly, and monotone."""

import dataclasses
import hashlib
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbmf.codec.bounds import Bound
from nbmf.policy.policy import Policy, Rollout
from nbmf.policy.router import BASELINE, COLD, NEURAL, WARM, ZSTD, Route, prefer, route, share, tenant_of

DAY = 86_400_000
NOW = 1_750_000_000_000

TABLE = Policy.parse(
    """
[default]
neural_max = "1KiB"
[class.legal]
protected = true
index = false
cold_after = "7d"
[class.log]
encoder = "zstd"
hot = false
[class.raw]
encoder = "stored"
[class.old]
encoder = "stub"
domain = "unused"
[class.never]
cold_after = "never"
[class.frozen]
cold_after = "0s"
[tenant.acme]
domain = "acme"
index = ["text"]
"""
)
OVER = "1025 bytes are over neural_max"
RAW = "the policy's encoder is stored"
PLAIN = Route(
    encoder="neural",
    domain="",
    fidelity="lossless",
    bound=Bound(),
    tolerance=(),
    profile="fast",
    tier="warm",
    shadow=False,
    verify=True,
    protected=False,
    index=(),
    hot=True,
    why="the rollout is complete",
)


@pytest.mark.parametrize(
    ("namespace", "cls", "size", "changes"),
    [
        (("ann",), "", 0, {}),
        (("ann",), "chat", 1024, {}),
        (("ann", "acme"), "chat", 1024, {}),
        ((), "chat", 1024, {}),
        (("ann",), "chat", 1025, {"encoder": "zstd", "why": OVER}),
        (("acme",), "chat", 1025, {"encoder": "zstd", "domain": "acme", "index": ("text",), "why": OVER}),
        (("acme", "x"), "", 9, {"domain": "acme", "index": ("text",)}),
        (("acmex",), "", 9, {}),
        (("ann",), "legal", 9, {"protected": True, "index": None}),
        (("acme",), "legal", 9, {"protected": True, "index": ("text",), "domain": "acme"}),
        (("ann",), "log", 9, {"encoder": "zstd", "domain": None, "hot": False, "why": "the policy's encoder is zstd"}),
        (("acme",), "raw", 9, {"encoder": "stored", "domain": None, "index": ("text",), "why": RAW}),
        (("ann",), "raw", 9999, {"encoder": "stored", "domain": None, "why": RAW}),
        (("ann",), "old", 9, {"encoder": "stub", "domain": None, "why": "the policy's encoder is stub"}),
        (("ann",), "frozen", 9, {"tier": "cold"}),
    ],
)  # fmt: skip
def test_table(namespace: tuple[str, ...], cls: str, size: int, changes: dict[str, Any]) -> None:
    assert route(TABLE, namespace, cls, "key", size, NOW) == dataclasses.replace(PLAIN, **changes)


@pytest.mark.parametrize(
    ("cls", "age", "tier"),
    [
        ("", 30 * DAY - 1, WARM),
        ("", 30 * DAY, COLD),
        ("legal", 7 * DAY - 1, WARM),
        ("legal", 7 * DAY, COLD),
        ("never", 10_000 * DAY, WARM),
        ("frozen", 0, COLD),
        ("frozen", -DAY, COLD),  # a clock that went back
        ("legal", -DAY, WARM),
    ],
)
def test_the_tier_by_age(cls: str, age: int, tier: str) -> None:
    assert route(TABLE, ("ann",), cls, "key", 9, NOW, NOW - age).tier == tier
    for told in (WARM, COLD):
        assert route(TABLE, ("ann",), cls, "key", 9, NOW, NOW - age, told).tier == told


def test_the_profile_by_tier() -> None:
    policy = Policy.parse('[class.a]\nprofile = "fast"\n[class.b]\nprofile = "dense"')
    found = {
        cls: [route(policy, ("t",), cls, "k", 1, NOW, tier=tier).profile for tier in (WARM, COLD)]
        for cls in ("", *"ab")
    }
    assert found == {"": ["fast", "fast"], "a": ["fast", "fast"], "b": ["dense", "fast"]}


def rolled(**rollout: Any) -> Policy:
    settings = {"rollout": rollout, "class": {"legal": {"protected": True}, "log": {"encoder": "zstd"}}}
    return Policy.of({**settings, "default": {"neural_max": "1KiB", "domain": "d"}})


@pytest.mark.parametrize(
    ("rollout", "tenant", "cls", "size", "encoder", "domain", "shadow"),
    [
        ({"percent": 0}, "ann", "", 9, BASELINE, None, False),
        ({"percent": 0, "tenants": ["ann"]}, "ann", "", 9, NEURAL, "d", False),
        ({"percent": 0, "tenants": ["ann"]}, "bob", "", 9, BASELINE, None, False),
        ({"percent": 100}, "ann", "", 9, NEURAL, "d", False),
        ({"percent": 0, "shadow": True}, "ann", "", 9, BASELINE, None, True),
        ({"percent": 100, "shadow": True}, "ann", "legal", 9, NEURAL, "d", True),
        ({"percent": 0, "shadow": True}, "ann", "log", 9, ZSTD, None, False),
        ({"percent": 100, "shadow": True}, "ann", "", 1025, ZSTD, "d", False),
        ({"percent": 0}, "ann", "", 1025, ZSTD, "d", False),
    ],
)
def test_rollout_table(
    rollout: dict[str, Any], tenant: str, cls: str, size: int, encoder: str, domain: str | None, shadow: bool
) -> None:
    found = route(rolled(**rollout), (tenant, "x"), cls, "key", size, NOW)
    assert (found.encoder, found.domain, found.shadow, found.verify) == (encoder, domain, shadow, not shadow)
    assert found.protected == (cls == "legal")


def test_why() -> None:
    inside = min(range(100), key=lambda i: share("", ("ann",), f"k{i}"))
    outside = max(range(100), key=lambda i: share("", ("ann",), f"k{i}"))
    for policy, key, why in (
        (rolled(percent=50), f"k{inside}", "the key is within the rollout's 50 percent"),
        (rolled(percent=12.5), f"k{outside}", "the key is outside the rollout's 12.5 percent"),
        (rolled(percent=0, tenants=["ann"]), "k", "the rollout lists its tenant"),
    ):
        assert route(policy, ("ann",), "", key, 1, NOW).why == why


# -- the rollout's hash ------------------------------------------------------------------------------------------------


def by_the_page(salt: str, namespace: tuple[str, ...], key: str) -> float:
    """The place of a record in percent, from the words of docs/policy.md."""
    parts = [salt.encode(), *(segment.encode() for segment in namespace), key.encode()]
    joined = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return int.from_bytes(hashlib.blake2b(joined, digest_size=8).digest(), "little") / 2**64 * 100


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
namespaces = st.lists(texts, max_size=3).map(tuple)
percents = st.integers(0, 100) | st.floats(0, 100)


@given(texts, namespaces, texts)
def test_the_place_of_a_record(salt: str, namespace: tuple[str, ...], key: str) -> None:
    assert math.isclose(share(salt, namespace, key), by_the_page(salt, namespace, key), rel_tol=1e-12)


# Never to be changed: another place would move records between encoders in stores that are being rolled out.
@pytest.mark.parametrize(
    ("salt", "namespace", "key", "place"),
    [
        ("", ("a",), "b", 71.648074768),
        ("2025", ("users", "ann"), "pref-1", 52.620353764),
        ("", ("ü",), "日本", 50.738567721),
    ],
)
def test_places_are_for_ever(salt: str, namespace: tuple[str, ...], key: str, place: float) -> None:
    assert round(share(salt, namespace, key), 9) == place


def test_the_place_does_not_depend_on_the_process() -> None:
    code = "from nbmf.policy.router import share; print(repr(share('s', ('a', 'b'), 'c')))"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {repr(share("s", ("a", "b"), "c")) + "\n"}


def test_a_lone_surrogate_has_a_place_too() -> None:
    places = {share("\ud800", ("a",), "b"), share("", ("\ud800",), "b"), share("", ("a",), "\ud800")}
    assert len(places) == 3
    assert route(rolled(percent=50), ("\ud800",), "", "\udfff", 1, NOW).encoder in (NEURAL, BASELINE)


def test_parts_are_told_apart() -> None:
    places = [
        share(*parts)
        for parts in (
            ("", ("ab",), "c"),
            ("", ("a", "b"), "c"),
            ("", ("a",), "bc"),
            ("a", ("b",), "c"),
            ("", ("a", "b", "c"), ""),
            ("abc", (), ""),
            ("", ("b", "a"), "c"),
        )
    ]
    assert len(set(places)) == len(places)


@given(texts, namespaces, texts, percents, percents, st.booleans())
def test_a_higher_percent_only_adds(
    salt: str, namespace: tuple[str, ...], key: str, one: float, other: float, listed: bool
) -> None:
    low, high = sorted((one, other))
    tenants = frozenset({tenant_of(namespace)} if listed else ())
    by_percent = [prefer(Rollout(percent, tenants, salt=salt), namespace, key) for percent in (0, low, high, 100)]
    assert by_percent == sorted(by_percent, key=[BASELINE, NEURAL].index)
    assert by_percent[-1] == NEURAL
    assert by_percent[0] == (NEURAL if listed else BASELINE)


def test_the_share_is_what_was_asked_for() -> None:
    """30,000 keys: three deviations of the binomial are under 0.9 percent."""
    keys = [(("users", f"u{i % 70}"), f"pref-{i}") for i in range(30_000)]
    before: set[Any] = set()
    for percent in (0, 1, 10, 50, 99, 100):
        inside = {record for record in keys if prefer(Rollout(percent, salt="x"), *record) == NEURAL}
        assert abs(len(inside) / len(keys) * 100 - percent) < 0.9 * (0 < percent < 100) + 1e-9
        assert before <= inside
        before = inside
    tenth = {record for record in keys if prefer(Rollout(10, salt="y"), *record) == NEURAL}
    both = {record for record in tenth if prefer(Rollout(10, salt="x"), *record) == NEURAL}
    assert 0.06 < len(both) / len(tenth) < 0.14  # another salt chooses independently


# -- total and pure ----------------------------------------------------------------------------------------------------


any_text = st.text(st.characters(categories=("L", "N", "P", "Z", "Cc", "Cs")))


@given(
    st.lists(any_text, max_size=3).map(tuple),
    any_text | st.sampled_from(["log", "raw", "old", "legal"]),
    any_text,
    st.integers(),
    st.integers(),
    st.none() | st.integers(),
    st.sampled_from([Policy.default(), TABLE, rolled(percent=50, shadow=True)]),
)
def test_any_record_has_a_route(
    namespace: tuple[str, ...], cls: str, key: str, size: int, now: int, updated: int | None, policy: Policy
) -> None:
    """Lone surrogates and absurd numbers too; and the same again for the same."""
    found = route(policy, namespace, cls, key, size, now, updated)
    assert found == route(policy, namespace, cls, key, size, now, updated)
    assert found.encoder in ("neural", "zstd", "stored", "stub")
    assert found.tier in (WARM, COLD)
    assert found.profile == "fast"
    asked = policy.rules(tenant_of(namespace), cls).encoder
    assert found.encoder == asked or asked == NEURAL
    assert (found.domain is None) == (asked != NEURAL or found.encoder == BASELINE)
    assert found.why


def test_fidelity_is_of_the_encoders_that_may_change_something() -> None:
    text = '[class.v]\nfidelity = "semantic"\nbound = { cosine = 0.999 }\ntolerance = { a = { absolute = 1 } }\n'
    for encoder in ("neural", "zstd", "stored", "stub"):
        way = route(Policy.parse(f'{text}encoder = "{encoder}"'), ("t",), "v", "k", 10, 0)
        assert way.fidelity == ("semantic" if encoder in ("neural", "zstd") else "lossless")
        assert way.bound == Bound(0.999) and [path for path, _ in way.tolerance] == ["a"]
    assert route(Policy.parse(text + "[rollout]\npercent = 0"), ("t",), "v", "k", 10, 0).fidelity == "lossless"
    assert route(Policy.parse(text), ("t",), "w", "k", 10, 0).fidelity == "lossless"
