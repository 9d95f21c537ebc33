"""A token for one namespace reaches no other: by no prefix, no encoding, no search, no batch, no figure."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import urllib3
from live import asked, raw, serving, tokens_of

import nbmf
from nbmf import Memory
from nbmf.codec import kernel
from nbmf.errors import NbmfError, PolicyError
from nbmf.inspect import costs_by
from nbmf.memory.items import DeleteOp, GetOp, ListNamespacesOp, PutOp, SearchOp
from nbmf.policy.policy import Policy
from nbmf.serve.client import Client

SECRET = "swordfish"  # in every value that Ann's token does not reach
# Namespaces near Ann's own, each with a record under the key "k".
FOREIGN: tuple[tuple[str, ...], ...] = (
    ("users",),
    ("users", "anna"),
    ("users", "an"),
    ("users", "Ann"),
    ("users", "ann "),
    ("users", "ann/"),
    ("users", "ann/notes"),
    ("users", "bob"),
    ("users", "*"),
    ("users", "%"),
    ("users", "_nn"),
    ("users", "\uff41nn"),
    ("users", "a\u0301nn"),
    ("users/ann",),
    ("users", "..", "ann"),
    ("ann",),
    ("usersann",),
    ("secrets",),
)
OWN = ("users", "ann")


@pytest.fixture
def world(memory: Memory, tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A server's address, and tokens: of Ann, of one who may read what is Ann's, of the keeper, of a metrics reader."""
    for namespace in FOREIGN:
        memory.put(namespace, "k", {"text": SECRET, "of": list(namespace)}, cls=SECRET)
    memory.put(OWN, "k", {"text": "own"})
    memory.put((*OWN, "notes"), "k", {"text": "own notes"})
    tokens, made = tokens_of(
        tmp_path,
        ann={"namespaces": ["users/ann"]},
        reader={"namespaces": ["users/ann"], "access": "read"},
        keeper={"namespaces": ["/"]},
        auditor={"namespaces": ["/"], "access": "read"},
        scraper={"namespaces": ["nothing"], "access": "read", "metrics": True},
    )
    with serving(memory, tokens) as url:
        yield url, made


def untouched(memory: Memory) -> None:
    """Whatever was tried, the others' records are as they were."""
    for namespace in FOREIGN:
        assert memory.get(namespace, "k") == {"text": SECRET, "of": list(namespace)}
    assert memory.stats()["records"] == len(FOREIGN) + 2


@pytest.mark.parametrize("namespace", FOREIGN, ids=lambda namespace: ascii("|".join(namespace)))
def test_by_namespaces_that_look_alike(
    world: tuple[str, dict[str, str]], memory: Memory, namespace: tuple[str, ...]
) -> None:
    url, made = world
    with Client(url, made["ann"]) as ann:
        for call in (
            lambda: ann.get(namespace, "k"),
            lambda: ann.put(namespace, "k", "overwritten"),
            lambda: ann.put(namespace, "new", 1),
            lambda: ann.delete(namespace, "k"),
            lambda: ann.search(namespace),
            lambda: ann.search(namespace, filter={"text": SECRET}),
            lambda: ann.list_namespaces(namespace),
            lambda: ann.forget(namespace),
            lambda: ann.stats(prefix=namespace),
        ):
            with pytest.raises(PolicyError, match="does not reach"):
                call()
    address = urlencode([*(("namespace", segment) for segment in namespace), ("key", "k")])
    assert asked(url, "GET", f"/v1/inspect?{address}", token=made["ann"])[0] == 403
    untouched(memory)


@pytest.mark.parametrize(
    "op",
    [
        GetOp(("secrets",), "k"),
        PutOp(("secrets",), "k", 1),
        DeleteOp(("secrets",), "k"),
        SearchOp(()),
        SearchOp(("users",)),
        ListNamespacesOp(),
        ListNamespacesOp(("users", "*")),
        ListNamespacesOp(("*", "ann")),
        ListNamespacesOp(suffix=("ann",)),
        ListNamespacesOp(("users",), max_depth=2),
    ],
    ids=lambda op: type(op).__name__,
)
def test_by_batches(world: tuple[str, dict[str, str]], memory: Memory, op: Any) -> None:
    """One operation that reaches too far, and none of the batch is done."""
    url, made = world
    with Client(url, made["ann"]) as ann:
        with pytest.raises(PolicyError, match="does not reach"):
            ann.batch([PutOp(OWN, "before", 1), op, PutOp(OWN, "after", 1)])
        with pytest.raises(PolicyError):
            ann.batch([op])
    assert memory.get(OWN, "before") is None and memory.get(OWN, "after") is None
    untouched(memory)


def test_by_encodings(world: tuple[str, dict[str, str]], memory: Memory) -> None:
    """However a path or a query is written, nothing foreign comes back."""
    url, made = world
    host = url.removeprefix("http://")
    targets = [
        "/v1/records?namespace=users&namespace=bob&key=k",
        "/v1/records?namespace=users&namespace=ann&namespace=..&namespace=bob&key=k",
        "/v1/records?namespace=users%2Fbob&key=k",
        "/v1/records?namespace=users&namespace=ann%2F..%2Fbob&key=k",
        "/v1/records?namespace=users&namespace=%62ob&key=k",
        "/v1/records?namespace=users&namespace=%2562ob&key=k",
        "/v1/records?namespace=users&namespace=ann%00bob&key=k",
        "/v1/records?namespace=users&namespace=ann&key=k&namespace=..",
        "/v1/records?namespace=users;namespace=bob;key=k",
        "/v1/records?namespace[]=users&namespace[]=bob&key=k",
        "/v1/records?namespace=users&namespace=ann&prefix=secrets&key=k",
        "/v1/records?namespace=users&namespace=%C0%AE%C0%AE&key=k",
        "/v1/records?namespace=users&namespace=%EF%BD%81nn&key=k",
        "/v1/records/secrets/k",
        "/v1/inspect?namespace=users&namespace=bob&key=k",
        "/v1/inspect?namespace=users&namespace=ann&namespace=..&namespace=bob&key=k",
        "/v1/inspect?namespace=users&namespace=ann%2F..%2Fbob&key=k",
        "/v1/inspect?namespace=users%2Fann&key=k",
        "/v1/inspect?namespace=users&namespace=%2562ob&key=k",
        "/v1/inspect?namespace=*&namespace=bob&key=k",
        "/v1/latency",
        "/v1/latency?prefix=users",
        "/dashboard/../v1/records?namespace=secrets&key=k",
        "/dashboard/..%2fauth.py",
        "/dashboard/%2e%2e/auth.py",
        "//v1/latency",
        "/v1/stats?prefix=users",
        "/v1/stats?prefix=users&prefix=ann&prefix=..",
        "/v1//stats?prefix=secrets",
        "/v1/stats/../../metrics",
        "//metrics",
        "/metrics/",
        "/%6Detrics",
        "/METRICS",
        "/v1/../metrics",
    ]
    for target in targets:
        for method in ("GET", "DELETE", "HEAD", "POST"):
            answer = raw(
                url,
                f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {made['ann']}\r\n"
                "Connection: close\r\n\r\n".encode(),
            )
            status = int(answer.split(b" ", 2)[1])
            assert SECRET.encode() not in answer and b"nbmf_" not in answer, target
            assert status >= 300 or b'"records":' in answer or b'{"deleted":false}' in answer, (target, answer)
    untouched(memory)


def test_by_tricks_with_the_header(world: tuple[str, dict[str, str]], memory: Memory) -> None:
    url, made = world
    path = "/v1/records?namespace=secrets&key=k"
    ann, keeper = made["ann"], made["keeper"]
    for header in (
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {keeper}",
        keeper,
        f"Bearer {keeper}x",
        f"Bearer {keeper[:-1]}",
        f"Bearer {keeper.upper()}",
        f"Bearer {keeper} {ann}",
        f"Bearer {keeper},{ann}",
        "Bearer \xff\xfe",
    ):
        status, content = asked(url, "GET", path, headers={} if header is None else {"Authorization": header})
        assert status == 401 and SECRET not in json.dumps(content), header
    assert asked(url, "GET", path, headers={"Authorization": f"bearer  {keeper}"})[0] == 200
    host = url.removeprefix("http://")
    both = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    two = both + f"Authorization: Bearer {ann}\r\nAuthorization: Bearer {keeper}\r\n\r\n"
    assert raw(url, two.encode()).startswith(b"HTTP/1.1 401")
    assert asked(url, "GET", f"{path}&access_token={keeper}")[0] == 401  # no token in a query
    answer = urllib3.request("GET", url + path)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_by_tricks_with_the_body(world: tuple[str, dict[str, str]], memory: Memory) -> None:
    url, made = world
    for body in (
        b'{"namespace":["users","ann"],"namespace":["secrets"],"key":"k","value":1}',
        b'{"namespace":["secrets"],"key":"k","value":1,"namespace":["secrets"]}',
        b'{"namespace":["users","ann"],"Namespace":["secrets"],"key":"k","value":1}',
        b'{"namespace":["\\u0073ecrets"],"key":"k","value":1}',
        b'{"namespace":["users","bob\\u0000"],"key":"k","value":1}',
        b'{"namespace":["users",["ann"]],"key":"k","value":1}',
        b'{"namespace":{"0":"users","1":"ann"},"key":"k","value":1}',
        b'{"namespace":["users","ann","\\ud800"],"key":"k","value":1}',
        b'{"namespace":"users/ann","key":"k","value":1}',
    ):
        assert asked(url, "PUT", "/v1/records", body, token=made["ann"])[0] in (403, 422), body
    for search in ({}, {"prefix": []}, {"prefix": ["users"]}, {"prefix": ["*"]}, {"prefix": ["users", "*"]}):
        assert asked(url, "POST", "/v1/search", search, token=made["ann"])[0] == 403
    untouched(memory)


def test_by_searches_of_its_own(tmp_path: Path) -> None:
    """Searches within reach never give a foreign record, by meaning, by words, by filter, nor by paging through all."""
    tokens, made = tokens_of(tmp_path, ann={"namespaces": ["users/ann"]})
    with Memory.open(tmp_path / "s", key=b"") as memory:
        for i in range(30):
            memory.put(("users", "anna"), f"k{i}", {"text": f"the password is {SECRET} {i}"})
        memory.put(OWN, "k", {"text": "the weather is fine"})
        with serving(memory, tokens) as url, Client(url, made["ann"]) as ann:
            for options in (
                {"query": f"password {SECRET}"},
                {"query": SECRET, "limit": 1000},
                {"filter": {"text": {"$ne": "x"}}},
                {"limit": 1000},
                {"limit": 1000, "cls": ""},
            ):
                found = ann.search(OWN, **options)  # type: ignore[arg-type]
                assert {item.namespace for item in found} <= {OWN} and found
            assert ann.search(OWN, offset=1) == []
            assert ann.list_namespaces(OWN) == [OWN]
            assert ann.list_namespaces(OWN, max_depth=1) == [("users",)]


def test_by_figures(world: tuple[str, dict[str, str]]) -> None:
    """Its figures are of its own records, whatever the others hold."""
    url, made = world
    with (
        Client(url, made["ann"]) as ann,
        Client(url, made["keeper"]) as keeper,
        Client(url, made["auditor"]) as auditor,
    ):
        own = ann.stats(True)
        assert own["records"] == 2 and own["prefixes"] == [["users", "ann"]] and SECRET not in json.dumps(own)
        assert own["raw_bytes"] == len('{"text":"own"}') + len('{"text":"own notes"}')
        assert set(own) == {"prefixes", "records", "blob_bytes", "raw_bytes", "ratio_payload", "classes"}
        keeper.put(("secrets",), "more", "x" * 10_000)
        assert ann.stats(True) == own
        assert keeper.stats()["records"] == len(FOREIGN) + 3 == auditor.stats()["records"]
        assert "disk_bytes" in keeper.stats()


def test_by_metrics(world: tuple[str, dict[str, str]]) -> None:
    url, made = world
    for name, status in (("ann", 403), ("reader", 403), ("auditor", 403), ("keeper", 200), ("scraper", 200)):
        got, content = asked(url, "GET", "/metrics", token=made[name])
        assert got == status, name
        assert (b"nbmf_records" in content) is (status == 200) if isinstance(content, bytes) else status == 403
    assert asked(url, "GET", "/metrics")[0] == 401
    with Client(url, made["scraper"]) as scraper, pytest.raises(PolicyError):
        scraper.get(OWN, "k")


def test_by_the_dashboard(world: tuple[str, dict[str, str]], memory: Memory) -> None:
    """What it shows of the whole store is for whom that is open; of latencies, for whom the metrics are."""
    url, made = world
    for name, whole, timed in (
        ("ann", False, False),
        ("reader", False, False),
        ("auditor", True, False),
        ("scraper", True, True),
        ("keeper", True, True),
    ):
        status, found = asked(url, "GET", "/v1/overview", token=made[name])
        assert status == 200 and (found["store"] is not None) is whole and found["token"]["metrics"] is timed, name
        assert SECRET not in json.dumps(found) and "anna" not in json.dumps(found)
        assert asked(url, "GET", "/v1/latency", token=made[name])[0] == (200 if timed else 403), name
    assert asked(url, "GET", "/v1/overview", token=made["ann"])[1]["token"]["namespaces"] == [["users", "ann"]]
    own = asked(url, "GET", "/v1/inspect?namespace=users&namespace=ann&key=k", token=made["reader"])[1]
    assert "".join(text for text, _ in own["pieces"]) == '{"text":"own"}'
    for path in ("/v1/overview", "/v1/latency", "/v1/inspect?namespace=users&namespace=ann&key=k"):
        assert asked(url, "GET", path)[0] == 401
    untouched(memory)


def test_tenants_of_a_rollout_are_told_to_whom_all_is_open(tmp_path: Path) -> None:
    tokens, made = tokens_of(
        tmp_path, keeper={"namespaces": ["/"]}, scraper={"namespaces": ["nothing"], "access": "read", "metrics": True}
    )
    policy = Policy.parse(f'[rollout]\npercent = 10\ntenants = ["{SECRET}"]\n')
    with Memory.open(tmp_path / "s", key=b"", embedder=None, policy=policy) as memory, serving(memory, tokens) as url:
        told = {name: asked(url, "GET", "/v1/overview", token=token)[1] for name, token in made.items()}
    assert told["keeper"]["store"]["rollout"]["tenants"] == [SECRET]
    assert told["scraper"]["store"]["rollout"]["tenants"] is None and SECRET not in json.dumps(told["scraper"])


@pytest.mark.skipif(kernel.backend != "c", reason="packs are learned by the C kernel")
def test_by_a_pack(memory: Memory, tmp_path: Path) -> None:
    """A tenant's pack knows texts of all its namespaces: what it makes of a guess is for whom those are open."""
    tokens, made = tokens_of(
        tmp_path,
        ann={"namespaces": ["users/ann"]},
        users={"namespaces": ["users"]},
        others={"namespaces": ["others"]},
        keeper={"namespaces": ["/"]},
    )
    for number in range(60):
        memory.put(("users", "bob"), f"k{number}", f"the code of door {number} is {SECRET} {number * 7919}")
    memory.adapt("users", 64 << 10)
    guess = f"the code of door 5 is {SECRET} {5 * 7919}"
    memory.put(OWN, "guess", guess)
    with serving(memory, tokens) as url:
        path = "/v1/inspect?namespace=users&namespace=ann&key=guess"
        seen = {name: asked(url, "GET", path, token=made[name])[1] for name in ("ann", "users", "keeper")}
        packs = {name: asked(url, "GET", "/v1/overview", token=made[name])[1]["packs"] for name in made}
    alone = nbmf.Codec()
    bits = costs_by(alone.coder, guess.encode(), 0, 0)[:-1]
    assert seen["ann"]["pack"] is None and seen["ann"]["shown_bits"] == pytest.approx(sum(bits), abs=0.01)
    for name in ("users", "keeper"):
        assert seen[name]["pack"] == packs[name][0]["id"] and seen[name]["shown_bits"] < sum(bits) / 2
    assert packs["ann"] == packs["others"] == [] and packs["users"][0]["tenant"] == "users"
    assert packs["keeper"][0]["tenant"] is None and SECRET not in json.dumps(packs)


def test_by_errors(memory: Memory, tmp_path: Path) -> None:
    """A refusal for the tenant's quota tells nobody but who sees the tenant what it holds."""
    tokens, made = tokens_of(tmp_path, ann={"namespaces": ["users/ann"]}, users={"namespaces": ["users"]})
    policy = Policy.parse("[tenant.users]\nquota_records = 1\n")
    with Memory.open(tmp_path / "s", key=b"", embedder=None, policy=policy) as limited:
        limited.put(("users", "bob"), "k", 1)
        with serving(limited, tokens) as url:
            for put in (lambda c: c.put(OWN, "k", 1), lambda c: c.batch([PutOp(OWN, "k", 1)])):
                with Client(url, made["ann"]) as ann, pytest.raises(PolicyError) as caught:
                    put(ann)
                assert str(caught.value) == "the tenant's quota is used up"
                with Client(url, made["users"]) as users, pytest.raises(PolicyError, match="may hold 1 records, not 2"):
                    put(users)


def test_a_read_only_token_changes_nothing(world: tuple[str, dict[str, str]], memory: Memory) -> None:
    url, made = world
    memory.put(OWN, "t", 1, ttl=5)
    before = memory.item(OWN, "t", refresh=False)
    with Client(url, made["reader"]) as reader:
        assert reader.get(OWN, "k") == {"text": "own"}
        assert len(reader.search(OWN)) == 3 and reader.stats()["records"] == 3
        assert reader.batch([GetOp(OWN, "t"), SearchOp(OWN, limit=1)])[0].value == 1
        assert reader.get(OWN, "t") == 1
        for call in (
            lambda: reader.put(OWN, "k", 1),
            lambda: reader.delete(OWN, "k"),
            lambda: reader.forget(OWN),
            lambda: reader.batch([GetOp(OWN, "k"), DeleteOp(OWN, "k")]),
        ):
            with pytest.raises(PolicyError, match="only read"):
                call()
    after = memory.item(OWN, "t", refresh=False)
    assert before is not None and after is not None and before.expires_at == after.expires_at  # not even a ttl
    assert memory.get(OWN, "k") == {"text": "own"}


def test_what_is_public_tells_nothing(world: tuple[str, dict[str, str]]) -> None:
    url, _ = world
    for path in ("/health", "/ready", "/openapi.json", "/", "/nowhere", "/v1/records", "/v1/" + quote(SECRET)):
        _, content = asked(url, "GET", path)
        assert SECRET not in str(content) and "anna" not in str(content)
    for method, path in (
        ("GET", "/v1/overview"),
        ("GET", "/v1/stats"),
        ("POST", "/v1/search"),
        ("PUT", "/v1/records"),
        ("POST", "/v1/forget"),
    ):
        assert asked(url, method, path, {} if method != "GET" else None)[0] == 401


def test_a_forgotten_namespace_is_gone_for_every_token(world: tuple[str, dict[str, str]], memory: Memory) -> None:
    url, made = world
    with Client(url, made["ann"]) as ann, Client(url, made["keeper"]) as keeper:
        ann.put(OWN, "cached", {"text": "soon gone"})
        assert keeper.get(OWN, "cached") is not None
        assert ann.forget(OWN) == 3
        assert keeper.get(OWN, "cached") is None and ann.search(OWN) == []
        with pytest.raises(NbmfError):
            ann.forget(())
    assert memory.stats()["records"] == len(FOREIGN)
