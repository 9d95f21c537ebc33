"""The policy file: every setting, how sections merge, what is refused and how, the round trip, and its page."""

import pickle
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbmf.errors import NbmfError, PolicyError
from nbmf.policy import policy as module
from nbmf.policy.policy import OF_TENANTS, SETTINGS, TABLES, Archive, Cache, Policy, Rollout, Rules

DAY = 86_400_000
PAGE = Path(__file__).resolve().parents[2] / "docs" / "policy.md"
on_the_page = pytest.mark.skipif(not PAGE.exists(), reason="not run from the repository")


def refusal(settings: Any) -> str:
    """The message that a text or a mapping is refused with."""
    with pytest.raises(PolicyError) as caught:
        Policy.parse(settings) if isinstance(settings, str) else Policy.of(settings)
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert len(message) < 500
    return message


# -- values ------------------------------------------------------------------------------------------------------------


def test_the_default() -> None:
    assert Policy.default() == Policy.parse("") == Policy.of({}) == Policy.parse("[default]\n[class.x]\n[tenant.y]")
    assert Policy.default().rules("ann", "chat") == Rules()
    assert Rules() == Rules(
        fidelity="lossless", domain="", encoder="neural", profile="auto", cold_after=30 * DAY, expire_after=None
    )
    assert Policy.default().rollout == Rollout(percent=100, tenants=frozenset(), shadow=False)


def test_settings_are_those_of_rules() -> None:
    assert list(SETTINGS) == [field.name for field in fields(Rules)]
    for name, made in (("rollout", Rollout), ("cache", Cache), ("archive", Archive)):
        assert list(TABLES[name]) == [field.name for field in fields(made)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('fidelity = "lossless"', "lossless"),
        ('domain = "legal"', "legal"),
        ('domain = "packs/a b.nbp"', "packs/a b.nbp"),
        ('domain = ""', ""),
        *((f'encoder = "{name}"', name) for name in ("neural", "zstd", "stored", "stub")),
        ('profile = "auto"', "auto"),
        ('profile = "fast"', "fast"),
        ('neural_max = "0B"', 0),
        ('neural_max = "512B"', 512),
        ('neural_max = "3KiB"', 3072),
        ("protected = true", True),
        ("index = true", ()),
        ("index = false", None),
        ('index = ["text", "notes.title", "text"]', ("text", "notes.title")),
        ("hot = false", False),
        ('cold_after = "250ms"', 250),
        ('cold_after = "90s"', 90_000),
        ('cold_after = "15m"', 900_000),
        ('cold_after = "12h"', DAY // 2),
        ('cold_after = "0d"', 0),
        ('cold_after = "2w"', 14 * DAY),
        ('cold_after = "36500d"', 36_500 * DAY),
        ('cold_after = "never"', None),
        ('expire_after = "1ms"', 1),
        ("promote_heat = 5", 5),
        ("promote_heat = 0.5", 0.5),
        ('promote_heat = "never"', None),
        ('heat_half_life = "1s"', 1000),
        ("reencode = false", False),
        ("learn = true", True),
        ("quota_records = 0", 0),
        ('quota_records = "unlimited"', None),
        ('quota_bytes = "2TiB"', 2 << 40),
        ('quota_bytes = "unlimited"', None),
    ],
)
def test_values_that_are_allowed(line: str, expected: object) -> None:
    policy = Policy.parse(f"[default]\n{line}")
    found = getattr(policy.rules("", ""), line.split(" ")[0])
    assert found == expected
    assert type(found) is type(expected)
    assert Policy.parse(policy.to_toml()) == policy


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ('fidelity = "exact"', '"lossless" or "semantic"'),
        ("fidelity = true", '"lossless" or "semantic"'),
        ("bound = 1", "a table of cosine, max_error or both"),
        ("tolerance = 1", "a table of paths"),
        ('profile = "denser"', '"auto", "fast" or "dense"'),
        ('encoder = "Neural"', '"neural", "zstd", "stored" or "stub"'),
        ('domain = "a/b"', 'the name of a domain pack, a path that ends in .nbp, or "" for none'),
        ('domain = " a"', "the name of a domain pack"),
        ('domain = "a\\u0000"', "the name of a domain pack"),
        ("domain = 1", "the name of a domain pack"),
        ("neural_max = 64", 'a size such as "64MiB" or "512KiB", from 0B to 1048576TiB'),
        *((f'neural_max = "{size}"', "a size") for size in ("64MB", "64 MiB", "1.5MiB", "-1B", "٣B", "9999999TiB", "")),
        ("protected = 1", "true or false"),
        ('hot = "yes"', "true or false"),
        *((f"index = {index}", "true, false, or a list") for index in ("[]", '[""]', '["a..b"]', "[1]", '"text"')),
        ("cold_after = 30", 'a duration such as "30d", "12h" or "90s", from 0ms to 36500d, or "never"'),
        *((f'cold_after = "{age}"', "a duration") for age in ("3 moons", "36501d", "1d12h", "1.5d", "d", "Never")),
        ("cold_after = 1979-05-27", "a duration"),
        ('expire_after = "0s"', "a duration"),
        ('heat_half_life = "999ms"', "a duration"),
        ('heat_half_life = "never"', "a duration"),
        ("promote_heat = 0", 'a number from 0.01 to 1000000, or "never"'),
        ("promote_heat = nan", "a number"),
        ("promote_heat = inf", "a number"),
        ("promote_heat = true", "a number"),
        ("quota_records = 1.0", "a whole number"),
        ("quota_records = -1", "a whole number"),
        ("quota_bytes = 5", "a size"),
    ],
)
def test_values_that_are_refused(line: str, allowed: str) -> None:
    name = line.split(" ")[0]
    places = [("default",), ("tenant", "a")] + (
        [] if name in OF_TENANTS else [("class", "b"), ("tenant", "a", "class", "b")]
    )
    for place in places:
        message = refusal(f"[{'.'.join(place)}]\n{line}")
        assert message.startswith(f"policy: {'.'.join(place)}.{name} is {allowed}")
        assert ", not " in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[rollout]\npercent = 100.5", "rollout.percent is a number from 0 to 100, not 100.5"),
        ("[rollout]\npercent = -1", "rollout.percent is a number from 0 to 100, not -1"),
        ("[rollout]\npercent = true", "rollout.percent is a number from 0 to 100, not true"),
        ("[rollout]\npercent = nan", "rollout.percent is a number from 0 to 100, not NaN"),
        ('[rollout]\ntenants = "a"', 'rollout.tenants is a list of tenants such as ["acme", "ann"], not "a"'),
        (
            '[rollout]\ntenants = ["a", ""]',
            'rollout.tenants is a list of tenants such as ["acme", "ann"], not ["a", ""]',
        ),
        ("[rollout]\nshadow = 1", "rollout.shadow is true or false, not 1"),
        ("[rollout]\nsalt = 1", "rollout.salt is a text, not 1"),
        ("[cache]\nbytes = 1", 'cache.bytes is a size such as "64MiB" or "512KiB", from 0B to 1048576TiB, not 1'),
        ('[archive]\nblock_bytes = "1023B"', "archive.block_bytes is a size"),
        ('[archive]\nblock_bytes = "65MiB"', "archive.block_bytes is a size"),
        ("[archive]\ndead_percent = 101", "archive.dead_percent is a number from 0 to 100, not 101"),
        ("[tenant]\nacme = 1", "tenant.acme is a table, not 1"),
        ("class = 1", "class is a table, not 1"),
        ("rollout = []", "rollout is a table, not []"),
        ("[tenant.a]\nclass = 1", "tenant.a.class is a table, not 1"),
        ("[tenant.a.class]\nb = 1", "tenant.a.class.b is a table, not 1"),
        ('[class.""]', "class has a name that no record can have: "),
        ('[tenant."a\\u0000"]', "tenant has a name that no record can have: "),
    ],
)
def test_tables_that_are_refused(text: str, message: str) -> None:
    assert refusal(text).startswith(f"policy: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[clas.x]", "clas is not a section; did you mean class?"),
        ("[zzz]", "zzz is not a section; there are default, class, tenant, rollout, cache, archive"),
        ("[default]\ncold_afer = 1", "default.cold_afer is not a setting; did you mean cold_after?"),
        ("[class.legal]\nprotectd = 1", "class.legal.protectd is not a setting; did you mean protected?"),
        ("[tenant.a]\nclas = 1", "tenant.a.clas is not a setting; did you mean class?"),
        ("[class.a.class.b]\nhot = true", "class.a.class is not a setting; there are fidelity, "),
        (
            '[tenant."a b".class."ü"]\ndomian = ""',
            'tenant."a b".class."ü".domian is not a setting; did you mean domain?',
        ),
        ("[rollout]\npercentage = 1", "rollout.percentage is not a setting; did you mean percent?"),
        ("[cache]\nsize = 1", "cache.size is not a setting; there are bytes"),
        ('[default]\n"two\\nlines" = 1', 'default."two\\nlines" is not a setting; there are '),
    ],
)
def test_unknown_keys(text: str, message: str) -> None:
    assert refusal(text).startswith(f"policy: {message}")


@pytest.mark.parametrize("place", ["class.a", "tenant.t.class.a"])
@pytest.mark.parametrize("name", OF_TENANTS)
def test_quotas_are_not_of_classes(place: str, name: str) -> None:
    wanted = f"policy: {place}.{name} counts a whole tenant: set it in [default] or [tenant.NAME]"
    assert refusal(f'[{place}]\n{name} = "unlimited"') == wanted


def test_texts_that_are_no_toml() -> None:
    for text in (
        "[default",
        "a = ",
        "[default]\n[default]",
        "x = " + "[" * 100_000,
        "x = " + "1" * 5000,
        "a = 1\na = 2",
    ):
        assert refusal(text).startswith("policy: not TOML: ")


def test_mappings_that_are_no_policy() -> None:
    endless: dict[str, Any] = {}
    endless["default"] = endless
    for settings in (
        [],
        None,
        {1: 2},
        {"default": {2: 3}},
        endless,
        {"class": {3: {}}},
        {"default": {"hot": 10**5000}},
    ):
        refusal(settings)
    for name, value in (
        ("domain", "\ud800"),
        ("index", ["\ud800"]),
        ("hot", {"a": object()}),
        ("domain", "x" * 10_000 + "/"),
    ):
        assert refusal({"default": {name: value}}).startswith(f"policy: default.{name} is ")
    refusal({"rollout": {"salt": "\udfff"}})


# -- merging -----------------------------------------------------------------------------------------------------------

MERGED = """
[default]
domain = "d"
neural_max = "1B"
[class.k]
domain = "k"
neural_max = "2B"
profile = "fast"
[tenant.t]
domain = "t"
hot = false
[tenant.t.class.k]
domain = "tk"
index = ["text"]
"""


@pytest.mark.parametrize(
    ("tenant", "cls", "expected"),
    [
        ("u", "", {"domain": "d", "neural_max": 1}),
        ("u", "other", {"domain": "d", "neural_max": 1}),
        ("", "", {"domain": "d", "neural_max": 1}),
        ("u", "k", {"domain": "k", "neural_max": 2, "profile": "fast"}),
        ("t", "", {"domain": "t", "neural_max": 1, "hot": False}),
        ("t", "other", {"domain": "t", "neural_max": 1, "hot": False}),
        ("t", "k", {"domain": "tk", "neural_max": 2, "profile": "fast", "hot": False, "index": ("text",)}),
        ("k", "t", {"domain": "d", "neural_max": 1}),
        ("T", "K", {"domain": "d", "neural_max": 1}),
    ],
)
def test_the_most_specific_section_wins(tenant: str, cls: str, expected: dict[str, Any]) -> None:
    assert Policy.parse(MERGED).rules(tenant, cls) == Rules(**expected)


def test_a_tenant_wins_over_a_class() -> None:
    policy = Policy.parse('[class.k]\ncold_after = "1d"\n[tenant.t]\ncold_after = "never"')
    assert [policy.rules(tenant, "k").cold_after for tenant in ("t", "u")] == [None, DAY]


def test_a_class_of_one_tenant_is_not_of_another() -> None:
    policy = Policy.parse("[tenant.t.class.k]\nhot = false\n[tenant.u]\nprotected = true")
    assert policy.rules("u", "k") == Rules(protected=True)
    assert policy.rules("v", "k") == Rules()


def test_a_tenant_may_be_called_class() -> None:
    policy = Policy.parse("[tenant.class]\nhot = false\n[tenant.class.class.class]\nprotected = true")
    assert policy.rules("class", "") == Rules(hot=False)
    assert policy.rules("class", "class") == Rules(hot=False, protected=True)
    assert Policy.parse(policy.to_toml()) == policy


def test_asking_for_many_tenants_keeps_nothing() -> None:
    policy = Policy.parse(MERGED)
    for i in range(1000):
        policy.rules(f"tenant {i}", f"class {i}")
    assert len(policy._merged) == 1


def test_what_is_available_is_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIDELITIES_AVAILABLE", ("lossless",))
    assert '("semantic" is not available in this version)' in refusal('[default]\nfidelity = "semantic"')


def test_semantic_and_protected_do_not_agree() -> None:
    policy = Policy.parse('[default]\nfidelity = "semantic"')
    assert policy.rules("", "").fidelity == "semantic"
    for text, place in (
        ('[default]\nfidelity = "semantic"\nprotected = true', "default"),
        ('[default]\nfidelity = "semantic"\n[tenant.t.class.k]\nprotected = true', "tenant.t.class.k"),
        ('[class.k]\nprotected = true\n[tenant.t]\nfidelity = "semantic"', "tenant.t.class.k"),
    ):
        assert refusal(text) == f'policy: {place}.protected is true, and then fidelity is "lossless"'


def test_profiles_of_this_version() -> None:
    policy = Policy.parse('[class.k]\nprofile = "dense"')
    assert [Rules().profile_in(tier) for tier in ("warm", "cold")] == ["fast", "fast"]
    assert [policy.rules("", "k").profile_in(tier) for tier in ("warm", "cold")] == ["dense", "fast"]


def test_quotas() -> None:
    policy = Policy.parse(
        '[default]\nquota_records = 10\n[tenant.big]\nquota_records = "unlimited"\nquota_bytes = "1KiB"'
    )
    policy.check_quota("ann", 10, 1 << 50)
    policy.check_quota("big", 1 << 50, 1024)
    with pytest.raises(PolicyError, match='tenant "ann" may hold 10 records, not 11'):
        policy.check_quota("ann", 11, 0)
    with pytest.raises(PolicyError, match='tenant "big" may hold 1024 bytes, not 1025'):
        policy.check_quota("big", 0, 1025)


# -- files and round trips ---------------------------------------------------------------------------------------------


def test_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.toml"
    path.write_text('[default]\ndomain = "a.nbp"\n[tenant.t]\ndomain = "/b.nbp"\n[tenant.u]\ndomain = "c"', "utf-8")
    policy = Policy.load(path)
    assert [policy.rules(name, "").domain for name in "vtu"] == [str(tmp_path / "a.nbp"), "/b.nbp", "c"]
    monkeypatch.chdir(tmp_path)
    assert Policy.load("policy.toml") == policy
    again = tmp_path / "elsewhere" / "again.toml"
    again.parent.mkdir()
    again.write_text(policy.to_toml(), "utf-8")
    assert Policy.load(again) == policy


def test_files_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"[class.caf\xe9]")
    (tmp_path / "wrong.toml").write_text("[default]\nhot = 3", "utf-8")
    for name, message in (
        ("none.toml", "the policy cannot be read: No such file or directory"),
        (".", "the policy cannot be read: Is a directory"),
        ("latin.toml", "not UTF-8 at byte 10"),
        ("wrong.toml", "default.hot is true or false, not 3"),
    ):
        with pytest.raises(PolicyError) as caught:
            Policy.load(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name}: {message}"


durations = st.integers(1000, 36_500 * DAY).map(lambda ms: f"{ms}ms") | st.sampled_from(["1d", "2w", "90s"])
sizes = st.integers(0, 1 << 50).map(lambda size: f"{size}B") | st.sampled_from(["1KiB", "2TiB"])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
switches = st.booleans()
percents = st.integers(0, 100) | st.floats(0, 100)
settings = st.fixed_dictionaries(
    {},
    optional={
        "fidelity": st.just("lossless"),
        "domain": names.filter(lambda name: name == name.strip() and not {"/", "\\"} & set(name)),
        "encoder": st.sampled_from(["neural", "zstd", "stored", "stub"]),
        "profile": st.sampled_from(["auto", "fast", "dense"]),
        "neural_max": sizes,
        "protected": switches,
        "index": switches | st.lists(st.sampled_from(["a", "b.c", "é", '"']), min_size=1),
        "hot": switches,
        "cold_after": durations | st.just("never"),
        "expire_after": durations | st.just("never"),
        "promote_heat": st.floats(0.01, 1e6) | st.integers(1, 100) | st.just("never"),
        "heat_half_life": durations,
        "reencode": switches,
    },
)
of_tenants = {
    "learn": switches,
    "quota_records": st.integers(0, 1 << 50) | st.just("unlimited"),
    "quota_bytes": sizes | st.just("unlimited"),
}
of_all = st.builds(lambda one, other: {**one, **other}, settings, st.fixed_dictionaries({}, optional=of_tenants))
classes = st.dictionaries(names, settings, max_size=3)
tenants = st.dictionaries(
    names, st.builds(lambda own, of: {**own, **({"class": of} if of else {})}, of_all, classes), max_size=3
)
policies = st.fixed_dictionaries(
    {},
    optional={
        "default": of_all,
        "class": classes,
        "tenant": tenants,
        "rollout": st.fixed_dictionaries(
            {},
            optional={
                "percent": percents,
                "tenants": st.lists(names, max_size=3),
                "shadow": switches,
                "compare_percent": percents,
                "salt": texts,
            },
        ),
        "cache": st.fixed_dictionaries({}, optional={"bytes": sizes}),
        "archive": st.fixed_dictionaries(
            {},
            optional={
                "block_bytes": st.sampled_from(["1KiB", "5000B"]),
                "primer_bytes": st.sampled_from(["0B", "9KiB"]),
                "dead_percent": percents,
            },
        ),
    },
)


@given(policies)
def test_round_trip(settings: dict[str, Any]) -> None:
    policy = Policy.of(settings)
    text = policy.to_toml()
    again = Policy.parse(text)
    assert again == policy
    assert hash(again) == hash(policy)
    assert again.to_toml() == text
    assert pickle.loads(pickle.dumps(policy)) == policy


@given(policies, names, names)
def test_merging_is_setting_by_setting(settings: dict[str, Any], stranger: str, strange: str) -> None:
    """Against the definition: the last of the four sections that has the setting."""
    policy = Policy.of(settings)
    for tenant in (stranger, *settings.get("tenant", {})):
        own = settings.get("tenant", {}).get(tenant, {})
        for cls in (strange, "", *settings.get("class", {}), *own.get("class", {})):
            of_class, of_both = settings.get("class", {}).get(cls, {}), own.get("class", {}).get(cls, {})
            levels = (settings.get("default", {}), of_class, own, of_both)
            found = policy.rules(tenant, cls)
            for name, kind in SETTINGS.items():
                set_by = [level[name] for level in levels if name in level]
                expected = kind.read(set_by[-1]) if set_by else getattr(Rules(), name)
                assert getattr(found, name) == expected


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["1d", "never"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*SETTINGS, *TABLES, "default", "class", "tenant", "percent", "x", ""]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(junk)
def test_nothing_but_a_policy_error(settings: Any) -> None:
    try:
        policy = Policy.of(settings)
    except NbmfError as error:
        assert isinstance(error, PolicyError)
        assert len(str(error).splitlines()) == 1
    else:
        assert Policy.parse(policy.to_toml()) == policy


# -- the page ----------------------------------------------------------------------------------------------------------


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables under a heading, without those of their heads."""
    part = PAGE.read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0].startswith("`")]


@on_the_page
def test_examples_on_the_page_are_policies() -> None:
    examples = fenced("toml")
    assert len(examples) >= 2
    for text in examples:
        policy = Policy.parse(text)
        assert Policy.parse(policy.to_toml()) == policy != Policy.default()
    for program in fenced("python"):
        exec(compile(program, "policy.md", "exec"), {})


@on_the_page
def test_what_the_page_says_of_its_example() -> None:
    policy = Policy.parse(fenced("toml")[0])
    found = policy.rules("acme", "legal")
    assert (found.protected, found.cold_after, found.domain) == (True, 7 * DAY, "legal")
    assert found.quota_bytes == 20 << 30


@on_the_page
def test_every_setting_is_on_the_page_with_its_default() -> None:
    table = {row[0].strip("`"): row[1].strip("`") for row in rows("Settings") if len(row) == 4}
    assert list(table) == list(SETTINGS)
    for name, default in table.items():
        assert default == SETTINGS[name].write(getattr(Rules(), name)), name
    table = {row[0].strip("`"): row[1].strip("`") for row in rows("Tables of the whole store")}
    assert list(table) == [f"{name}.{key}" for name, kinds in TABLES.items() for key in kinds]
    for name, default in table.items():
        section, key = name.split(".")
        assert default == TABLES[section][key].write(getattr(getattr(Policy(), section), key)), name


@on_the_page
def test_messages_on_the_page_are_true() -> None:
    found = rows("Mistakes")
    assert len(found) >= 5
    for cell, message in found:
        text = "\n".join(re.findall(r"`([^`]+)`", cell))
        with pytest.raises(PolicyError) as caught:
            Policy.parse(text, source="policy.toml")
        assert f"`{caught.value}`" == message
