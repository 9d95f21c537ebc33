"""Tokens: what files may say, what a token grants, and that nothing but hashes is kept."""

import hmac
import os
import stat
import time
from pathlib import Path

import pytest
from live import tokens_of

from nbmf.errors import PolicyError, StoreError
from nbmf.serve import auth
from nbmf.serve.auth import Denied, Grant, Tokens

HASH = "0" * 64


def test_a_token_grants_what_its_entry_says(tmp_path: Path) -> None:
    tokens, made = tokens_of(
        tmp_path,
        ann={"namespaces": ["users/ann", "shared"]},
        reader={"namespaces": ["/"], "access": "read", "metrics": True},
    )
    ann = tokens.grant(made["ann"])
    assert ann == Grant("ann", (("users", "ann"), ("shared",)))
    reader = tokens.grant(made["reader"])
    assert reader == Grant("reader", ((),), write=False, metrics=True)
    assert tokens.grant(made["ann"] + "x") is None and tokens.grant("") is None and tokens.grant("\udcff") is None


@pytest.mark.parametrize(
    ("namespace", "reached"),
    [
        (("users", "ann"), True),
        (("users", "ann", "notes"), True),
        (("users",), False),
        ((), False),
        (("users", "anna"), False),
        (("users", "an"), False),
        (("users/ann",), False),
        (("users", "ann/"), False),
        (("users", "Ann"), False),
        (("users", "\uff41nn"), False),
        (("users", "..", "users", "ann"), False),
        (("users", "*"), False),
        (("users", "%"), False),
    ],
)
def test_prefixes_are_whole_segments(namespace: tuple[str, ...], reached: bool) -> None:
    grant = Grant("ann", (("users", "ann"),))
    assert grant.reaches(namespace) is reached
    if not reached:
        with pytest.raises(Denied):
            grant.check(namespace)


def test_read_only_and_metrics() -> None:
    with pytest.raises(Denied, match="only read"):
        Grant("r", ((),), write=False).check(("a",), write=True)
    for grant in (Grant("r", ((),), write=False), Grant("w", (("a",),))):
        with pytest.raises(Denied):
            grant.check_metrics()
    Grant("w", ((),)).check_metrics()
    Grant("m", (("a",),), write=False, metrics=True).check_metrics()


def test_the_file_holds_no_token_and_is_private(tmp_path: Path) -> None:
    _, made = tokens_of(tmp_path, ann={"namespaces": ["a"]}, bob={"namespaces": ["b"]})
    text = (tmp_path / "tokens.toml").read_text()
    assert all(token not in text and token.removeprefix("nbmf_") not in text for token in made.values())
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "tokens.toml").stat().st_mode) == 0o600
    assert len(set(made.values())) == 2 and all(len(token) > 40 for token in made.values())


def test_every_hash_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first entry's token and an unknown one are compared with as many hashes."""
    tokens, made = tokens_of(tmp_path, **{f"t{i}": {"namespaces": ["a"]} for i in range(5)})
    count = 0
    real = hmac.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        nonlocal count
        count += 1
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    for token in (made["t0"], made["t4"], "unknown"):
        count = 0
        tokens.grant(token)
        assert count == 5


def test_a_changed_file_counts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "LOOK", 0.0)
    tokens, made = tokens_of(tmp_path, ann={"namespaces": ["a"]}, bob={"namespaces": ["b"]})
    path = tmp_path / "tokens.toml"
    assert tokens.grant(made["ann"]) is not None
    path.write_text(auth.entry_text(made["bob"], "bob", ["b"], "read", False))
    time.sleep(0.01)
    assert tokens.grant(made["ann"]) is None  # revoked
    bob = tokens.grant(made["bob"])
    assert bob is not None and not bob.write
    path.write_text("[[token]]\nname = 1\n")
    time.sleep(0.01)
    assert tokens.grant(made["bob"]) is not None and tokens.fault is not None  # a broken file changes nothing
    path.unlink()
    time.sleep(0.01)
    assert tokens.grant(made["bob"]) is not None and tokens.fault is not None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("token = 1", "tables"),
        ("[[token]]\nnope = 1", "nope"),
        (f'[[token]]\nsha256 = "{HASH}"\nnamespaces = ["a"]', "name"),
        (f'[[token]]\nname = "a\\u001b"\nsha256 = "{HASH}"\nnamespaces = ["a"]', "name"),
        ('[[token]]\nname = "a"\nsha256 = "secret"\nnamespaces = ["a"]', "sha256"),
        (f'[[token]]\nname = "a"\nsha256 = "{HASH.upper()}A"\nnamespaces = ["a"]', "sha256"),
        (f'[[token]]\nname = "a"\nsha256 = "{HASH}"\nnamespaces = []', "namespaces"),
        (f'[[token]]\nname = "a"\nsha256 = "{HASH}"\nnamespaces = "a"', "namespaces"),
        (f'[[token]]\nname = "a"\nsha256 = "{HASH}"\nnamespaces = ["a//b"]', "non-empty"),
        (f'[[token]]\nname = "a"\nsha256 = "{HASH}"\nnamespaces = ["a/*"]', "[*]"),
        (f'[[token]]\nname = "a"\nsha256 = "{HASH}"\nnamespaces = ["a"]\naccess = "admin"', "access"),
        (f'[[token]]\nname = "a"\nsha256 = "{HASH}"\nnamespaces = ["a"]\nmetrics = 1', "metrics"),
        (f'[[token]]\nname = "a"\nsha256 = "{HASH}"\nnamespaces = ["a"]\n' * 2, "one name"),
        ("[[token", "tokens.toml"),
    ],
)
def test_faults_of_a_file_are_named(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=word) as caught:
        Tokens.of_file(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere"):
        Tokens.of_file(tmp_path / "nowhere.toml")
    (tmp_path / "latin").write_bytes(b"\xff")
    with pytest.raises(PolicyError, match="UTF-8"):
        Tokens.of_file(tmp_path / "latin")


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NBMF_TOKEN", raising=False)
    monkeypatch.delenv("NBMF_TOKENS", raising=False)
    assert Tokens.of_environment() is None
    token = auth.new_token()
    monkeypatch.setenv("NBMF_TOKENS", auth.entry_text(token, "ann", ["users/ann"], "write", False))
    monkeypatch.setenv("NBMF_TOKEN", "k" * 32)
    tokens = Tokens.of_environment()
    assert tokens is not None and len(tokens) == 2
    assert tokens.grant(token) == Grant("ann", (("users", "ann"),))
    everything = tokens.grant("k" * 32)
    assert everything is not None and everything.everything
    monkeypatch.setenv("NBMF_TOKEN", "short")
    with pytest.raises(PolicyError, match="guessed"):
        Tokens.of_environment()


def test_names_need_no_care(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    token = auth.new_token()
    auth.add_entry(path, auth.entry_text(token, 'Ann "the" \\ ü', ["a\\/b/c"], "read", True))
    assert Tokens.of_file(path).grant(token) == Grant('Ann "the" \\ ü', (("a/b", "c"),), False, True)
    with pytest.raises(PolicyError, match="one name"):
        auth.add_entry(path, auth.entry_text(token, 'Ann "the" \\ ü', ["a"], "read", True))
    assert len(Tokens.of_file(path)) == 1
