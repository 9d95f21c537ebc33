"""What the dashboard asks the server for, and the files that it is made of. How it looks is tested in a browser."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import urllib3
from live import asked, serving

from nbmf import Memory, inspect, samples
from nbmf.policy.policy import Policy
from nbmf.serve import http
from nbmf.serve.history import LEAST, SLOT_SECONDS, SLOTS, STEP, History

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for path in http.DASHBOARD.rglob("*") if path.is_file())
OURS = [path for path in FILES if path.parent == http.DASHBOARD]
TYPES = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Clock:
    """A clock that is set by hand."""

    now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


# -- the last hour -----------------------------------------------------------------------------------------------------


def test_percentiles_are_upper_bounds() -> None:
    history = History(lambda: (0, 0), Clock())
    for milliseconds in range(1, 101):
        history.observe("get", milliseconds / 1000, failed=milliseconds == 7)
    found = history.figures()["operations"]["get"]
    assert found["count"] == 100 and found["failed"] == 1
    for share in (50, 95, 99):
        assert share / 1000 <= found[f"p{share}"] * 1.001 <= share / 1000 * STEP * 1.01
    ((_, count, *shares),) = found["series"]
    assert count == 100 and shares == [found["p50"], found["p95"], found["p99"]]


@pytest.mark.parametrize("seconds", [0.0, LEAST / 10, LEAST, LEAST * 1.01, 1e4])
def test_any_duration_has_a_bucket(seconds: float) -> None:
    history = History(lambda: (0, 0), Clock())
    history.observe("get", seconds, failed=False)
    found = history.figures()["operations"]["get"]
    assert seconds <= found["p50"] * 1.001 and found["p50"] <= max(seconds, LEAST) * STEP * 1.01


def test_slots_come_and_go() -> None:
    clock = Clock()
    written = [0, 0]
    history = History(lambda: (written[0], written[1]), clock)
    for slot in range(3):
        history.observe("put", 0.001, failed=False)
        written[0] += 10
        written[1] += 2
        clock.now += SLOT_SECONDS * (slot + 1)
    found = history.figures()
    start = int(Clock.now)
    assert [row[0] - start for row in found["operations"]["put"]["series"]] == [0, 10, 30]
    assert found["written"] == [[start, 0, 0], [start + 10, 10, 2], [start + 30, 20, 4], [start + 60, 30, 6]]
    clock.now = Clock.now - 1000  # somebody sets the clock back
    history.observe("put", 0.001, failed=False)
    assert [row[1] for row in history.figures()["operations"]["put"]["series"]] == [1, 1, 2]
    clock.now = Clock.now + SLOT_SECONDS * SLOTS
    assert [row[0] - start for row in history.figures()["operations"]["put"]["series"]] == [10, 30]
    clock.now += 2 * SLOT_SECONDS * SLOTS
    assert history.figures()["operations"] == {}


# -- answers -----------------------------------------------------------------------------------------------------------


def test_overview_and_latency(memory: Memory) -> None:
    with serving(memory) as url:
        for number in range(5):
            asked(url, "PUT", "/v1/records", {"namespace": ["a"], "key": str(number), "value": "likes green tea"})
        asked(url, "GET", "/v1/records?namespace=a&key=1")
        status, found = asked(url, "GET", "/v1/overview")
        assert status == 200 and found["token"] == {
            "name": "anyone",
            "namespaces": [[]],
            "access": "write",
            "metrics": True,
        }
        store = found["store"]
        assert store["warm"]["records"] == 5 and store["cold"] == {"records": 0, "bytes": 0, "parts": {}}
        assert store["warm"]["bytes"] == sum(store["warm"]["parts"].values())
        assert store["written"]["raw_bytes"] == 5 * len("likes green tea") > store["written"]["stored_bytes"]
        assert store["rollout"]["percent"] == 100 and store["rollout"]["encoders"]["nbmf_writes_total"] == {"neural": 5}
        (model,) = found["models"]
        assert model["id"] == memory.codecs.of_domain("").model.id.hex() and found["packs"] == []
        status, latency = asked(url, "GET", "/v1/latency")
        assert status == 200
        counts = {name: one["count"] for name, one in latency["operations"].items()}
        assert counts == {"put": 5, "get": 1}
        assert latency["written"][-1][1:] == [store["written"]["raw_bytes"], store["written"]["stored_bytes"]]


def test_the_parts_of_a_namespace_are_measured_with_their_ratio(memory: Memory) -> None:
    values = [sample.value for sample in samples.generate(30, seed=2)]
    for number, value in enumerate(values):
        memory.put(("a",), str(number), value, cls=f"c{number % 2}")
    with serving(memory) as url:
        whole = asked(url, "GET", "/v1/stats?measure=true")[1]
        part = asked(url, "GET", "/v1/stats?measure=true&prefix=a")[1]
        assert part["ratio_payload"] == whole["ratio_payload"] and part["raw_bytes"] == whole["raw_bytes"]
        for name, sums in whole["classes"].items():
            assert part["classes"][name]["ratio"] == sums["ratio"]
        assert "ratio_payload" not in asked(url, "GET", "/v1/stats?prefix=a")[1]


def pieces_of(found: dict[str, Any]) -> str:
    return "".join(text for text, _ in found["pieces"])


def test_records_taken_apart(memory: Memory) -> None:
    text = "Ann likes green tea.\nEvery morning; so does Zoë \x07."
    for key, value in (("text", text), ("json", {"a": [1, 2]}), ("bytes", b"\x00\xff"), ("long", "tea " * 2000)):
        memory.put(("a",), key, value, cls="note", ttl=60)
    before = memory.item(("a",), "text", refresh=False)
    with serving(memory) as url:
        status, found = asked(url, "GET", "/v1/inspect?namespace=a&key=text")
        assert status == 200 and before is not None
        assert pieces_of(found) == text.replace("\n", "⏎\n").replace("\x07", "·")
        assert (found["type"], found["class"], found["tier"], found["pack"]) == ("text", "note", "warm", None)
        assert found["stored_bytes"] == before.stored_bytes and found["raw_bytes"] == len(text.encode())
        assert found["expires"] == before.expires_at.isoformat() if before.expires_at else False
        assert sum(level["bytes"] for level in found["levels"]) == found["shown_bytes"] == found["raw_bytes"]
        assert [level["under"] for level in found["levels"]] == [0.25, 1.0, 2.0, 4.0, 6.0, None]
        # What the model spends on the bytes is what the payload takes, but for its end.
        assert found["shown_bits"] / 8 < found["stored_bytes"] - found["framing_bytes"] + 1
        assert pieces_of(asked(url, "GET", "/v1/inspect?namespace=a&key=json")[1]) == '{"a":[1,2]}'
        assert pieces_of(asked(url, "GET", "/v1/inspect?namespace=a&key=bytes")[1]) == "00 ff "
        long = asked(url, "GET", "/v1/inspect?namespace=a&key=long")[1]
        assert long["shown_bytes"] == inspect.SHOWN == len(long["pieces"]) and long["raw_bytes"] == 8000
        assert asked(url, "GET", "/v1/inspect?namespace=a&key=none")[0] == 404
        assert asked(url, "GET", "/v1/inspect?namespace=a")[0] == 422
    after = memory.item(("a",), "text", refresh=False)
    assert after is not None and after.expires_at == before.expires_at  # to look renews nothing


def test_records_of_other_encoders_and_tiers(tmp_path: Path) -> None:
    policy = Policy.parse('[class.old]\nencoder = "stub"\n[class.aged]\ncold_after = "1ms"\n')
    with Memory.open(tmp_path / "s", key=b"", embedder=None, policy=policy) as memory:
        memory.put(("a",), "old", "likes green tea", cls="old")
        memory.put(("a",), "aged", "likes green tea", cls="aged")
        while memory.compact().get("demote", 0) < 1:  # until it is a millisecond old
            pass
        with serving(memory) as url:
            old = asked(url, "GET", "/v1/inspect?namespace=a&key=old")[1]
            assert (old["method"], old["tier"], old["framing_bytes"]) == ("stub", "warm", None)
            aged = asked(url, "GET", "/v1/inspect?namespace=a&key=aged")[1]
            assert (aged["method"], aged["tier"], aged["stored_bytes"]) == ("coded with others", "cold", None)
            assert pieces_of(old) == pieces_of(aged) == "likes green tea"


# -- the files ---------------------------------------------------------------------------------------------------------


def test_the_page_and_its_files_are_served(memory: Memory) -> None:
    with serving(memory) as url:
        page = urllib3.request("GET", f"{url}/")
        assert page.status == 200 and page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert urllib3.request("HEAD", f"{url}/").status == 200
        for path in FILES:
            answer = urllib3.request("GET", f"{url}/dashboard/{path.relative_to(http.DASHBOARD).as_posix()}")
            assert answer.status == 200 and answer.data == path.read_bytes(), path
            assert answer.headers["content-type"].startswith(TYPES.get(path.suffix, "text/plain")), path
        for path in (
            "/dashboard",
            "/dashboard/",
            "/dashboard/..%2fauth.py",
            "/dashboard/%2e%2e/auth.py",
            "/index.html",
        ):
            assert urllib3.request("GET", url + path, redirect=False).status >= 300, path
        assert asked(url, "POST", "/")[0] == 405
        assert asked(url, "GET", "/v1/search")[0] == 405  # the page hides no route


def test_the_page_asks_nobody_else() -> None:
    for path in OURS:
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[^\s\"'<)]+", text)) <= {"http://www.w3.org/2000/svg"}, path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), path
    text = (http.DASHBOARD / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\son\w+\s*=|\sstyle\s*=|<style|javascript:|<script(?![^>]*\ssrc=)", text)
    for target in re.findall(r'(?:src|href)="(?!#)([^"]+)"', text):
        assert (http.DASHBOARD.parent / target).is_file(), target


def test_the_files_are_in_the_package() -> None:
    """By the patterns that setuptools is given."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("not run from the repository")
    data = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = data["tool"]["setuptools"]["package-data"]["nbmf.serve"]
    packaged = {path for pattern in patterns for path in http.DASHBOARD.parent.glob(pattern) if path.is_file()}
    assert packaged == set(FILES)
    licence = http.DASHBOARD / "vendor" / "uPlot.LICENSE.txt"
    assert "MIT" in licence.read_text(encoding="utf-8")
    assert licence in {path for pattern in data["project"]["license-files"] for path in ROOT.glob(pattern)}
