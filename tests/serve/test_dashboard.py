"""The dashboard in a real browser: what it shows, to whom, and to whom without a mouse, in the dark or on a phone."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import asked, serving, tokens_of

from nbmf import Memory, samples
from nbmf.codec import kernel
from nbmf.codec.values import to_raw
from nbmf.memory.items import PutOp

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 30_000  # ms for a page on a busy machine
RECORDS = 40
MARKUP = '<img src=x onerror="window.hacked=1"><b>bold</b>'
SECRET = "swordfish"  # in what Ann's token does not reach

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(kernel.backend != "c", reason="too slow on the reference"),
]

# The lowest contrast of any text with what lies under it, and that text. Placeholders are hints, and left out.
CONTRAST = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const over = (colours) => {
    canvas.fillStyle = '#fff';
    canvas.fillRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
  let worst = [99, ''];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const holder = walk.currentNode.parentElement;
    const seen = walk.currentNode.textContent.trim() && holder.checkVisibility();
    if (!seen || holder.closest('.skip, noscript, script')) continue;
    const grounds = [];
    for (let at = holder; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
    const [a, b] = [over(grounds), over([...grounds, getComputedStyle(holder).color])].map(light).sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst[0]) worst = [ratio, walk.currentNode.textContent.trim().slice(0, 40)];
  }
  return worst;
}"""
# What has no name that is read out, and ids that are there twice.
NAMELESS = """() => {
  const bad = [...document.querySelectorAll('button, a, input, [role=group], section')].filter((one) =>
    !(one.ariaLabel || one.getAttribute('aria-labelledby') || one.labels?.length || one.textContent.trim())
  ).map((one) => one.outerHTML.slice(0, 80));
  const ids = [...document.querySelectorAll('[id]')].map((one) => one.id);
  return [...bad, ...ids.filter((id, at) => ids.indexOf(id) !== at)];
}"""
DRAWN = """(id) => {
  const canvas = document.querySelector(`#${id} canvas`);
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return new Set(new Uint32Array(data.buffer)).size;
}"""


def until(page: Any, expression: str, arg: Any = None) -> None:
    """Waits for an expression to hold. Asked from outside: in the page, its policy forbids what Playwright would do."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(expression, arg):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(50)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="a package of the tests")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Memory]:
    with Memory.open(tmp_path_factory.mktemp("dashboard") / "s", key=b"", embedder=None) as memory:
        memory.put_many(
            [
                PutOp(("users", "ann"), f"k{number}", sample.value, sample.kind)
                for number, sample in enumerate(samples.generate(RECORDS, seed=4))
            ]
        )
        memory.put(("users", "anna"), SECRET, f"the password is {SECRET}", cls=SECRET)
        memory.put(("users", "ann", MARKUP), MARKUP, {"text": MARKUP, "tea": "green"}, cls=MARKUP)
        yield memory


@pytest.fixture(scope="module")
def url(store: Memory) -> Iterator[str]:
    """A server that is open, and has done something already."""
    with serving(store) as address:
        for number in range(5):
            asked(address, "GET", f"/v1/records?namespace=users&namespace=ann&key=k{number}")
        asked(address, "PUT", "/v1/records", {"namespace": ["users", "bob"], "key": "k", "value": "likes green tea"})
        yield address


class Page:
    """A page, and what it said and asked for."""

    def __init__(self, page: Any, url: str) -> None:
        self.page = page
        self.url = url
        self.said: list[str] = []
        self.asked: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def open(self) -> Any:
        """Goes there, until the figures are."""
        self.page.goto(f"{self.url}/")
        self.page.wait_for_selector("html[data-ready]")
        self.page.wait_for_selector("#results li")
        return self.page


@contextlib.contextmanager
def paged(browser: Any, url: str, **options: Any) -> Iterator[Page]:
    """A page in a context of its own."""
    context = browser.new_context(viewport={"width": 1180, "height": 900}, **options)
    try:
        yield Page(context.new_page(), url)
    finally:
        context.close()


def figure(page: Any, selector: str) -> tuple[str, str]:
    """The exact value of a figure, and its text."""
    found = page.locator(f"{selector} data, data{selector}").first
    return found.get_attribute("value"), found.inner_text()


def rows(page: Any, label: str) -> dict[str, list[tuple[str, str]]]:
    """The figures of a table, by the head of each row."""
    read = (
        "(all) => all.map((row) => [row.cells[0].innerText.trim(),"
        " [...row.querySelectorAll('data')].map((one) => [one.value, one.innerText])])"
    )
    found = page.eval_on_selector_all(f"table[aria-label='{label}'] tbody tr", read)
    return {head: [tuple(one) for one in figures] for head, figures in found}


def size_text(size: int) -> str:
    """Bytes as the page writes them, under a million."""
    if size < 1000:
        return f"{size} B"
    return f"{size / 1000:.{2 if size < 9995 else 1 if size < 99950 else 0}f} kB"


def test_it_is_quiet_and_asks_its_own_server_alone(browser: Any, url: str) -> None:
    with paged(browser, url) as seen:
        page = seen.open()
        page.wait_for_selector("#latency-chart canvas")
        assert seen.said == []
        assert all(one.startswith(f"{url}/") for one in seen.asked) and f"{url}/v1/overview" in seen.asked
        assert page.evaluate(NAMELESS) == []
        assert page.evaluate("window.hacked") is None and page.locator("main img").count() == 0
        assert page.context.cookies() == [] and page.evaluate("sessionStorage.length") == 0


def test_its_numbers_are_those_of_the_server(browser: Any, url: str) -> None:
    with paged(browser, url) as seen:
        page = seen.open()
        page.get_by_role("button", name="Live", exact=True).click()
        overview = asked(url, "GET", "/v1/overview")[1]["store"]
        stats = asked(url, "GET", "/v1/stats?measure=true")[1]
        latency = asked(url, "GET", "/v1/latency")[1]["operations"]
        raw, stored = overview["written"]["raw_bytes"], overview["written"]["stored_bytes"]
        assert figure(page, ".tile:nth-child(1) b") == (str(raw - stored), size_text(raw - stored))
        records = overview["warm"]["records"]
        assert figure(page, ".tile:nth-child(2) b") == (str(records), str(records)) and records == stats["records"]
        assert figure(page, ".tile:nth-child(3) b")[0] == str(overview["disk_bytes"])
        whole = figure(page, "#measured")
        assert float(whole[0]) == stats["ratio_payload"] and whole[1] == f"{stats['ratio_payload']:.2f}×"
        classes = rows(page, "Ratio by class")
        assert classes.keys() == {name.strip() or "no class" for name in stats["classes"]}
        for name, sums in stats["classes"].items():
            texts = [str(sums["records"]), size_text(sums["raw_bytes"]), f"{sums['ratio']:.2f}×"]
            assert [text for _, text in classes[name or "no class"]] == texts
            assert float(classes[name or "no class"][2][0]) == sums["ratio"]
        tiers = page.eval_on_selector_all(".tier", "(all) => all.map((one) => one.querySelector('data').value)")
        assert tiers[1:] == [str(overview[tier]["records"]) for tier in ("warm", "cold")]
        bars = page.locator(".tier:nth-child(2) .parts span").all_inner_texts()
        assert {f"{part} {size_text(size)}" for part, size in overview["warm"]["parts"].items() if size} == set(bars)
        encoders = overview["rollout"]["encoders"]
        shown = rows(page, "By encoder")["neural"]
        assert shown[0][0] == str(encoders["nbmf_writes_total"]["neural"]) and figure(page, "#divergence")[0] == "0"
        operations = rows(page, "Latency by operation")
        for name in ("get", "put"):
            assert operations[name][0][0] == str(latency[name]["count"])
            assert [float(value) for value, _ in operations[name][2:]] == [
                latency[name][share] for share in ("p50", "p95", "p99")
            ]
        assert page.evaluate(DRAWN, "latency-chart") > 3


def test_search_and_inspector(browser: Any, url: str, store: Memory) -> None:
    with paged(browser, url) as seen:
        page = seen.open()
        page.fill("#prefix", "users/bob")
        page.press("#prefix", "Enter")
        until(page, "document.querySelectorAll('#results li').length === 1")
        assert "likes green tea" in page.inner_text("#results")
        page.click("#results button")
        page.wait_for_selector("#heat span")
        found = asked(url, "GET", "/v1/inspect?namespace=users&namespace=bob&key=k")[1]
        spans = page.eval_on_selector_all(
            "#heat span", "(all) => all.map((one) => [one.textContent, getComputedStyle(one).backgroundColor])"
        )
        assert [text for text, _ in spans] == [text for text, _ in found["pieces"]]
        level = [next(i for i, one in enumerate(found["levels"]) if one["under"] is None or bits < one["under"])
                 for _, bits in found["pieces"]]  # fmt: skip
        colours = {
            at: {colour for own, (_, colour) in zip(level, spans, strict=True) if own == at} for at in set(level)
        }
        assert len(colours) > 1 and all(len(one) == 1 for one in colours.values())  # a colour for each level
        assert len(set.union(*colours.values())) == len(colours) and "rgba(0, 0, 0, 0)" not in str(colours)
        facts = page.eval_on_selector_all(
            "#facts > div", "(all) => Object.fromEntries(all.map((one) => [...one.children].map((c) => c.innerText)))"
        )
        assert facts["Raw"] == "15 B" and facts["Stored"] == f"{found['stored_bytes']} B"
        assert facts["Ratio"] == f"{15 / found['stored_bytes']:.2f}×" and facts["Type"] == "text"
        assert facts["Costs by"] == f"model {found['model'][:8]}"
        for namespace, key, said in (
            ("users/bob", "nothing", "there is no such record"),
            ("users//bob", "k", "a segment of the namespace is empty"),
        ):
            page.fill("#namespace", namespace)
            page.fill("#key", key)
            page.press("#key", "Enter")
            until(page, "(said) => document.querySelector('#missing').textContent === said", arg=said)
            assert page.is_hidden("#record")
        assert [one for one in seen.said if "404" not in one] == []


def test_what_a_record_holds_is_text(browser: Any, url: str) -> None:
    with paged(browser, url) as seen:
        page = seen.open()
        page.fill("#prefix", "users/ann/" + MARKUP.replace("/", "\\/"))
        page.press("#prefix", "Enter")
        until(page, "document.querySelectorAll('#results li').length === 1")
        page.click("#results button")
        page.wait_for_selector("#heat span")
        raw = to_raw({"text": MARKUP, "tea": "green"})[1].decode()
        assert page.inner_text("#heat") == raw and MARKUP in page.inner_text("#results")
        assert MARKUP in page.inner_text("#facts") and MARKUP in page.inner_text("#class-rows")
        assert page.locator("main img, main b b, #heat b, #results b").count() == 0
        assert page.evaluate("window.hacked") is None and seen.said == []


def test_a_token_and_what_it_reaches(browser: Any, store: Memory, tmp_path: Path) -> None:
    tokens, made = tokens_of(
        tmp_path, ann={"namespaces": ["users/ann"], "access": "read"}, keeper={"namespaces": ["/"]}
    )
    with serving(store, tokens) as secured, paged(browser, secured) as seen:
        page = seen.page
        page.goto(f"{secured}/")
        page.wait_for_selector("#gate:not([hidden])")
        assert page.is_hidden("#page") and page.evaluate("document.activeElement.id") == "token"
        for wrong in ("nbmf_wrong", "not a token"):
            page.fill("#token", wrong)
            page.press("#token", "Enter")
            until(page, "document.querySelector('#refusal').textContent !== ''")
            assert page.is_hidden("#page") and page.evaluate("sessionStorage.length") == 0
        page.fill("#token", made["ann"])
        page.press("#token", "Enter")
        page.wait_for_selector("#results li")
        page.wait_for_selector("table[aria-label='Ratio by class']")
        assert figure(page, ".tile:nth-child(2) b")[0] == str(RECORDS + 1)
        for hidden in ("#tiers", "#latency", "#saved", "#rollout", "nav a[href='#rollout']"):
            assert page.is_hidden(hidden), hidden
        assert page.input_value("#prefix") == "users/ann"
        page.fill("#prefix", "/")
        page.press("#prefix", "Enter")
        until(page, "document.querySelector('#found').textContent.includes('does not reach')")
        page.fill("#namespace", "users/anna")
        page.fill("#key", SECRET)
        page.press("#key", "Enter")
        until(page, "document.querySelector('#missing').textContent.includes('does not reach')")
        page.fill("#key", "")
        assert SECRET not in page.inner_text("body")
        assert made["ann"] not in page.content() and page.evaluate("localStorage.length") == 0
        assert page.context.cookies() == [] and not any(made["ann"] in one for one in seen.asked)
        page.reload()
        page.wait_for_selector("#results li")  # in this tab it is kept
        page.get_by_role("button", name="Forget token").click()
        page.wait_for_selector("#gate:not([hidden])")
        assert page.evaluate("sessionStorage.length") == 0 and page.locator("#results li, #heat span").count() == 0
        page.fill("#token", made["keeper"])
        page.press("#token", "Enter")
        page.wait_for_selector("#tiers .tier")
        until(page, "(secret) => document.querySelector('#class-rows').innerText.includes(secret)", arg=SECRET)
        assert page.is_visible("#rollout")
        page.get_by_role("button", name="Forget token").click()
        page.wait_for_selector("#gate:not([hidden])")
        assert SECRET not in page.content() and page.locator("#page data").count() == 0  # for whoever comes next
        assert [one for one in seen.said if not ("401" in one or "403" in one)] == []


def test_with_the_keyboard_alone(browser: Any, url: str) -> None:
    with paged(browser, url) as seen:
        page = seen.open()
        keys = page.keyboard
        reached: list[str] = []
        for _ in range(60):
            keys.press("Tab")
            focused = page.evaluate(
                "((one) => [one.id || one.name || one.className || one.tagName, getComputedStyle(one).outlineStyle])"
                "(document.activeElement)"
            )
            if focused[0] == "BODY":
                break
            reached.append(focused[0])
            assert focused[1] != "none", focused  # where it is, is seen
        order = ["skip", "live", "theme", "measure", "latency-chart", "operation", "saved-chart", "query", "prefix",
                 "namespace", "key"]  # fmt: skip
        assert [one for one in reached if one in order] == order
        page.focus("#latency-chart")
        keys.press("Home")
        assert "p95" in page.inner_text("#latency-readout")
        page.focus("[name=operation]:checked")
        keys.press("ArrowDown")
        assert page.inner_text("#latency-title") != "Latency of get"
        page.focus("#live")
        keys.press("Space")
        assert page.get_attribute("#live", "aria-pressed") == "false"
        keys.press("/")
        assert page.evaluate("document.activeElement.id") == "query"
        keys.type("/")
        assert page.input_value("#query") == "/"
        keys.press("Backspace")
        keys.press("Enter")
        until(page, "document.querySelector('#found').textContent.includes('latest')")
        for _ in range(3):
            keys.press("Tab")
        assert page.evaluate("document.activeElement.matches('#results button')")
        keys.press("Enter")
        page.wait_for_selector("#heat span")
        page.focus("#heat")
        keys.press("ArrowRight")
        keys.press("ArrowRight")
        assert "bits a byte" in page.inner_text("#heat-readout") and page.locator("#heat .at").count() == 1


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1180, "light")], ids=["phone", "desk"])
def test_looks(browser: Any, url: str, scheme: str, width: int) -> None:
    with paged(browser, url, color_scheme=scheme) as seen:
        seen.page.set_viewport_size({"width": width, "height": 844})
        page = seen.open()
        page.click("#results button")
        page.wait_for_selector("#heat span")
        assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing to scroll sideways
        other = "dark" if scheme == "light" else "light"
        ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]"
        for name in (scheme, other):
            assert page.evaluate(ground) > 200 if name == "light" else page.evaluate(ground) < 60
            ratio, text = page.evaluate(CONTRAST)
            assert ratio >= 4.5, (name, text)
            while page.get_attribute("html", "data-theme") != other:
                page.click("#theme")
        page.reload()
        page.wait_for_selector("#latency-chart canvas")
        assert page.get_attribute("html", "data-theme") == other  # it is remembered
        assert page.evaluate(DRAWN, "latency-chart") > 3 and seen.said == []
