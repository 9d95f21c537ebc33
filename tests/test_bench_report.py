"""A small run of everything: its JSON is as its schema says, and its page is right in a real browser."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nbmf import report
from nbmf.bench import claims, curves, page, plots, svg, tiers, whole
from nbmf.cli import app
from nbmf.codec import kernel

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "docs" / "spec" / "bench.schema.json"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.skipif(kernel.backend != "c", reason="too slow on the reference"),
    pytest.mark.skipif(importlib.util.find_spec("pyppmd") is None, reason="needs nbmf[bench]"),
]


def quiet(what: str, done: float, total: float | None = None) -> None:
    assert what and done >= 0 and (total is None or done <= total)


@pytest.fixture(scope="module")
def result() -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "OF_KIND", 5)
        patch.setattr(tiers, "MOST", 5)
        yield json.loads(report.dump(whole.run("all", whole.Options(samples=150, scale=1000), quiet)))


def schema() -> Any:
    jsonschema = pytest.importorskip("jsonschema", reason="a package of the tests")
    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


# -- JSON --------------------------------------------------------------------------------------------------------------


def test_the_json_is_as_its_schema_says(result: dict[str, Any]) -> None:
    schema().validate(result)
    for part in result["parts"].values():
        schema().validate(part)


def test_the_schema_refuses(result: dict[str, Any]) -> None:
    needed = {"codec": "claims", "store": "stores", "training": "packs", "recall": "searches", "semantic": "sets"}
    for part, name in needed.items():
        broken = {key: value for key, value in result["parts"][part].items() if key != name}
        assert not schema().is_valid(broken)
    codec = result["parts"]["codec"]
    assert not schema().is_valid({**codec, "total": {**codec["total"], "ratio": -1}})


def test_what_all_measured(result: dict[str, Any]) -> None:
    parts = result["parts"]
    assert list(parts) == ["codec", "store", "training", "recall", "semantic"] and result["left_out"] == {}
    assert [row["records"] for row in parts["training"]["models"]] == [135]
    assert [row["records"] for row in parts["training"]["packs"]] == [50, 100]
    for row in [*parts["training"]["models"], *parts["training"]["packs"]]:
        assert row["exact"] == row["tested"] == 15
    assert [row["records"] for row in parts["store"]["growth"]] == [100, 1000]
    assert parts["store"]["in_memory"]["memory_bytes"] > 0
    searches = {row["search"]: row for row in parts["recall"]["searches"]}
    assert len(searches) == 4 and searches["exact cosine, float32"]["of_exact_top"] == 1
    assert searches["nbmf"]["hit_at_10"] > 0.8 and searches["nbmf"]["bytes_a_record"] < 100
    assert {one["records_of"] for one in parts["codec"]["claims"]["sets"]} == {"the records", "text", "JSON", "mixed"}


def test_recall_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "_has_embedder", lambda: False)
    monkeypatch.setattr(whole, "_one", lambda part, *_: {"data": {"records": 1}, "model": {}})
    found = whole.run("all", whole.Options(), quiet)
    assert list(found["parts"]) == ["codec", "store", "training"]
    assert found["left_out"] == dict.fromkeys(("recall", "semantic"), "nbmf[search] is not installed")


# -- curves ------------------------------------------------------------------------------------------------------------


def test_a_falling_curve_is_found_again() -> None:
    xs = [100.0, 300.0, 1000.0, 3000.0, 10_000.0]
    fit = curves.falling(xs, [1.2 + 20 * x**-0.5 for x in xs])
    assert fit is not None and fit["r2"] > 0.9999
    assert (fit["floor"], fit["scale"], fit["exponent"]) == pytest.approx((1.2, 20, 0.5), rel=0.02)
    x = fit["pays_until"]
    assert curves.at(fit, 2 * x) > 0.99 * curves.at(fit, x)
    assert curves.at(fit, x) < 0.99 * curves.at(fit, x // 2)
    assert curves.falling(xs[:2], [1.0, 2.0]) is None
    flat = curves.falling(xs, [2.0] * 5)
    assert flat is not None and flat["pays_until"] == 1


def test_lines() -> None:
    xs = [10.0, 100.0, 1000.0]
    fit = curves.rising(xs, [3 + 0.5 * x for x in xs])
    assert fit is not None and curves.at(fit, 40) == pytest.approx(23)
    fit = curves.slow(xs, [1.0, 2.0, 3.0])
    assert fit is not None and curves.at(fit, 10_000) == pytest.approx(4)


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(result: dict[str, Any]) -> None:
    text = page.page(result)
    assert not re.search(r"<script|<link|<img|@import|url\(|\bsrc=", text)
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) == {"http://www.w3.org/2000/svg"}
    for name in plots.every(result["parts"]):
        assert f'<figure id="{name}">' in text


@pytest.mark.parametrize("part", ["codec", "store", "training", "recall", "semantic"])
def test_a_page_of_a_part(result: dict[str, Any], part: str) -> None:
    text = page.page(result["parts"][part])
    assert "Conditions" in text and text.count("<h1>") == 1


def test_what_a_record_holds_is_escaped(result: dict[str, Any]) -> None:
    codec = json.loads(json.dumps(result["parts"]["codec"]))
    codec["by_kind"][0]["kind"] = "<script>alert(1)</script>"
    codec["heat"][0]["runs"] = [["</div><script>", 3.0]]
    codec["data"]["files"] = ["<b>.jsonl"]
    text = page.page(codec)
    assert "<script" not in text and "<b>.jsonl" not in text and "&lt;script&gt;" in text


def test_the_front_and_who_is_beaten(result: dict[str, Any]) -> None:
    found = [("a", 1.0, 5.0, True), ("b", 10.0, 2.0, False), ("c", 5.0, 1.5, False), ("d", 0.5, 6.0, False)]
    assert [one[0] for one in plots.front(found)] == ["d", "a", "b"]
    codec = json.loads(json.dumps(result["parts"]["codec"]))
    assert plots.beaten(codec) == []
    codec["peers"][0] |= {"ratio": 100.0, "decode_mb_s": 1e6}
    assert plots.beaten(codec) == ["NBMF fast by zlib-9", "NBMF dense by zlib-9"]
    codec["peers"][0]["exact"] -= 1  # what loses records is no peer
    assert plots.beaten(codec) == []


def test_plots_as_files(result: dict[str, Any]) -> None:
    from xml.etree import ElementTree

    for name, plot in plots.every(result["parts"]).items():
        text = svg.standalone(plot.svg())
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg") and "prefers-color-scheme:dark" in text and len(text) < 30_000, name


def test_command(tmp_path: Path, result: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "run", lambda part, options, tick: result["parts"][part] if part != "all" else result)
    runner = CliRunner()
    for words in (["all"], ["recall"], ["semantic"], ["training"], ["store"], ["--store"], ["codec"], []):
        html = tmp_path / "report.html"
        done = runner.invoke(app, ["bench", *words, "--html", str(html), "--out", str(tmp_path / "out.json")])
        assert done.exit_code == 0 and done.output.strip(), words
        assert "<h1>" in html.read_text(encoding="utf-8")
        schema().validate(json.loads((tmp_path / "out.json").read_text(encoding="utf-8")))
    assert "--store is the PART store" in runner.invoke(app, ["bench", "all", "--store"]).output


# -- in a browser ------------------------------------------------------------------------------------------------------

# Text that is cut off or lies over other text, in a plot; [] if all is well.
UNREADABLE = """() => {
  const bad = [];
  for (const plot of document.querySelectorAll('svg.plot')) {
    const box = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll('text')].map(one => [one.textContent, one.getBoundingClientRect()]);
    for (const [text, at] of texts)
      if (at.left < box.left - 1 || at.right > box.right + 1 || at.top < box.top - 1 || at.bottom > box.bottom + 1)
        bad.push('cut off: ' + text);
    texts.forEach(([text, a], i) => texts.slice(i + 1).forEach(([other, b]) => {
      const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (wide > 3 && high > a.height * 0.45) bad.push(text + ' over ' + other);
    }));
  }
  return bad;
}"""
COLOURS = """async (data) => {
  const image = await createImageBitmap(await (await fetch('data:image/png;base64,' + data)).blob());
  const canvas = new OffscreenCanvas(image.width, image.height);
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const pixels = new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer);
  const counts = new Map();
  for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) || 0) + 1);
  const most = [...counts.entries()].sort((a, b) => b[1] - a[1])[0];
  return [counts.size, most[0] & 255, most[1] / pixels.length];
}"""


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1180], ids=["phone", "desk"])
def test_in_a_browser(result: dict[str, Any], tmp_path: Path, scheme: Any, width: int) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="a package of the tests")
    path = tmp_path / "report.html"
    path.write_text(page.page(result), encoding="utf-8")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        try:
            seen = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            said: list[str] = []
            asked: list[str] = []
            seen.on("console", lambda message: said.append(message.text))
            seen.on("pageerror", lambda error: said.append(str(error)))
            seen.on("request", lambda request: asked.append(request.url))
            seen.goto(path.as_uri())
            assert said == [] and asked == [path.as_uri()]
            assert seen.evaluate("document.documentElement.scrollWidth") == width  # nothing to scroll sideways
            drawn = seen.eval_on_selector_all("svg.plot", "all => all.map(one => one.getBoundingClientRect().height)")
            assert len(drawn) == len(plots.every(result["parts"])) and min(drawn) > 100
            assert seen.evaluate(UNREADABLE) == []
            smallest = seen.evaluate(
                "Math.min(...[...document.querySelectorAll('svg.plot')].map(one => "
                "one.getBoundingClientRect().width / one.viewBox.baseVal.width)) * 12"
            )
            assert smallest >= 9  # pixels of the plots' letters
            picture = seen.screenshot(full_page=True)
            import base64

            blank = browser.new_page()
            count, brightness, share = blank.evaluate(COLOURS, base64.b64encode(picture).decode())
            assert count > 100 and share < 0.98
            assert brightness > 200 if scheme == "light" else brightness < 60
        finally:
            browser.close()
