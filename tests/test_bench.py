"""What `nbmf bench` and `nbmf eval` report, on a few short records. Times are never judged."""

import json
import lzma
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbmf import report, samples
from nbmf.bench import claims, coding, encoders, figures, packs, peers, tiers
from nbmf.bench import codec as bench
from nbmf.bench import records as reading
from nbmf.bench import screen as screens
from nbmf.codec import kernel
from nbmf.codec.codec import Codec
from nbmf.codec.values import JSON, TEXT
from nbmf.errors import DataError, NbmfError, PolicyError
from nbmf.memory import Memory

OPTIONS: dict[str, Any] = {"model": "base", "domain": None, "limit": None}
LINES = [
    {"data": "yes", "metadata": {"source": "a/chat", "kind": "turn"}, "domain": "general"},
    {"data": "no, thanks", "metadata": {"source": "a/chat", "kind": "turn"}},
    {"data": {"ok": True}, "metadata": {"source": "thu-coai/KdConv", "kind": "tool_result"}},
    {"data": 1.0, "id": 7},
    "Bonjour, ça va ?",
]

needs_c = pytest.mark.skipif(kernel.backend != "c", reason="too slow on the reference")


def quiet(what: str, done: float, total: float | None = None) -> None:
    assert what and done >= 0 and (total is None or done <= total)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The claims' own samples and the stores that are timed, small: a put waits for the disk."""
    monkeypatch.setattr(claims, "OF_KIND", 5)
    monkeypatch.setattr(tiers, "MOST", 3)


def has_peers() -> bool:
    try:
        peers.require()
    except NbmfError:
        return False
    return True


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES) + "\n", encoding="utf-8")
    return path


def screen(result: dict[str, Any]) -> str:
    out = StringIO()
    screens.render(result, report.console(out))
    return out.getvalue()


def test_reads_both_kinds_of_line(records: Path) -> None:
    found, every = reading.load([records], None, quiet)
    assert every == 5
    assert [(one.value, one.kind, one.source, one.value_type) for one in found] == [
        ("yes", "turn", "a/chat", TEXT),
        ("no, thanks", "turn", "a/chat", TEXT),
        ({"ok": True}, "tool_result", "thu-coai/KdConv", JSON),
        ({"data": 1.0, "id": 7}, "json", "records.jsonl", JSON),
        ("Bonjour, ça va ?", "text", "records.jsonl", TEXT),
    ]


def test_reads_folders_and_xz(records: Path) -> None:
    packed = records.parent / "inner" / "more.jsonl.xz"
    packed.parent.mkdir()
    packed.write_bytes(lzma.compress(records.read_bytes()))
    assert reading.load([records.parent], None, quiet)[1] == 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'"ok"\n{"open"\n', "line 2"),
        ("a.jsonl", b"\n", "no records"),
        ("a.jsonl.xz", b"not xz", "a.jsonl.xz"),
        ("a.jsonl.xz", lzma.compress(b'"ok"\n' * 100)[:-20], "a.jsonl.xz"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        reading.load([tmp_path / name], None, quiet)


def test_folder_without_records(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.jsonl"):
        reading.load([tmp_path], None, quiet)


def test_the_same_sample_every_time() -> None:
    first, every = reading.load([], 20, quiet)
    again, _ = reading.load([], 20, quiet)
    assert every == len(samples.load()) and len(first) == 20
    assert [one.raw for one in first] == [one.raw for one in again]
    assert len({one.kind for one in first}) > 1
    whole = [one.raw for one in reading.load([], None, quiet)[0]]
    places = [whole.index(one.raw) for one in first]
    assert places == sorted(places)


def test_bootstrap_holds_the_ratio() -> None:
    raw = np.arange(1.0, 301.0)
    low, high = figures.interval(figures.bootstrap(raw, raw / 2 + 5))
    assert low < raw.sum() / (raw / 2 + 5).sum() < high
    assert figures.interval(figures.bootstrap(raw, raw / 4)) == [4.0, 4.0]


def test_geometric_mean() -> None:
    assert figures.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_languages() -> None:
    assert figures.language("UniversalDependencies/UD_German-GSD") == "multilingual"
    assert figures.language("thu-coai/KdConv") == "multilingual"
    assert figures.language("thu-coai/KdConv2") == figures.language("octokit/webhooks") == "english"


def test_a_wrong_value_is_not_exact() -> None:
    one = reading.record({"a": 1, "b": 2}, None, "s")
    assert reading.is_equal(one, {"a": 1, "b": 2})
    for other in ({"b": 2, "a": 1}, {"a": 1.0, "b": 2}, {"a": True, "b": 2}, '{"a":1,"b":2}'):
        assert not reading.is_equal(one, other)


def test_run(records: Path) -> None:
    result = bench.run([records], **OPTIONS, tick=quiet, with_peers=False)
    result = json.loads(report.dump(result))
    total = result["total"]
    assert result["exact"] == dict.fromkeys(("records", "bare", "self_describing", "one_by_one"), 5)
    assert total["records"] == 5 and total["ratio"] == total["raw_bytes"] / total["stored_bytes"]
    assert total["bits_per_byte"] == pytest.approx(8 / total["ratio"])
    assert total["self_describing"] < total["ratio"]
    codec = Codec()
    stored = [len(codec.encode(one.value, bare=True)) for one in reading.load([records], None, quiet)[0]]
    assert total["stored_bytes"] == sum(stored)
    for part in ("by_size", "by_kind", "by_source"):
        for name in ("records", "raw_bytes", "stored_bytes"):
            assert sum(row[name] for row in result[part]) == total[name]
    assert [row["kind"] for row in result["by_kind"]] == ["json", "text", "tool_result", "turn"]
    assert {name: row["sources"] for name, row in result["geometric_means"].items()} == {
        "english": 2,
        "multilingual": 1,
    }
    for row in [total, *result["by_size"]]:
        for what in ("encode", "decode"):
            spent = row[f"{what}_ms"]
            assert 0 < spent["p50"] <= spent["p95"] <= spent["p99"] and row[f"{what}_mb_s"] > 0
    assert result["cpu_share"] > 0
    assert result["machine"]["kernel"] == kernel.backend
    assert result["model"]["id"] == codec.id and result["model"]["load_ms"] > 0
    assert "peers" not in result and "packs" not in result
    shown = screen(result)
    assert "every record came back exactly" in shown and "By source" in shown


def test_evaluate(records: Path) -> None:
    result = json.loads(report.dump(bench.evaluate([records], **{**OPTIONS, "limit": 2}, profile="fast", tick=quiet)))
    assert result["exact"] == {"records": 2, "bare": 2, "self_describing": 2}
    assert result["data"] == {"files": ["records.jsonl"], "records": 5, "limit": 2}
    assert "encode_ms" not in result["total"]
    assert "every record came back exactly" in screen(result)


def test_a_missing_peer_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(peers.importlib, "import_module", missing)
    peers.module.cache_clear()
    with pytest.raises(NbmfError, match=r"nbmf\[bench\].*--no-peers"):
        bench.run([], **OPTIONS, tick=quiet)


def test_dictionary_is_measured_on_the_other_half() -> None:
    raws = [f"order {number} for customer {number * 7919 % 1000} was shipped".encode() for number in range(200)]
    peer = peers.own_dictionary(raws, quiet)
    assert peer is not None and peer.exact == 100 and peer.bytes > 0
    assert np.isnan(peer.sizes[:100]).all() and (peer.sizes[100:] < 40).all()
    given = peers.base_dictionary(raws, raws[:100], quiet)
    assert given is not None and given.exact == 200 and (given.sizes[100:] < 40).all()
    assert peers.own_dictionary([b"alone"], quiet) is None


@pytest.mark.skipif(not has_peers(), reason="needs nbmf[bench]")
def test_peers(records: Path) -> None:
    result = json.loads(report.dump(bench.run([records], **OPTIONS, tick=quiet, train_dict=records)))
    rows = {row["peer"]: row for row in result["peers"]}
    assert list(rows) == [
        "zlib-9",
        "zstd-19",
        "zstd-19+dict",
        "zstd-19+base dict",
        "brotli-11",
        "ppmd",
        "lzma",
        "unishox2",
        "smaz",
    ]
    assert rows["zlib-9"]["records"] == 5 and rows["smaz"]["records"] == 3 and rows["zstd-19+dict"]["records"] == 3
    for row in rows.values():
        assert row["nbmf_over_peer"] == pytest.approx(row["nbmf"] / row["ratio"])
        assert row["exact"] == row["records"] and row["decode_mb_s"] > 0 and row["encode_mb_s"] > 0
    assert result["total"]["peers"]["zlib-9"] == rows["zlib-9"]["ratio"] and result["left_out"] == {}
    assert "brotli-11" in screen(result)


@pytest.mark.skipif(not has_peers(), reason="needs nbmf[bench]")
def test_no_peer_is_left_out_silently(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"data": {"a": 1}, "metadata": {}}\n', encoding="utf-8")
    result = bench.run([path], **OPTIONS, tick=quiet)
    missing = {"zstd-19+dict", "zstd-19+base dict", "unishox2", "smaz"}
    assert result["left_out"].keys() == missing and missing.isdisjoint(row["peer"] for row in result["peers"])
    for name in missing:
        assert name in screen(result)
    assert bench.run([path], **OPTIONS, tick=quiet, with_peers=False)["left_out"] == {"peers": "--no-peers"}


@pytest.mark.skipif(not has_peers(), reason="needs nbmf[bench]")
def test_every_peer_gives_back_what_it_took() -> None:
    raws = [one.raw for one in reading.load([], None, quiet)[0] if one.raw]
    for name, texts_only, ways in peers.contestants():
        for way in ways.values():
            for raw in raws[:60]:
                if not texts_only:
                    assert way.decompress(way.compress(raw), len(raw)) == raw, name


@pytest.mark.skipif(not has_peers(), reason="needs nbmf[bench]")
def test_short_text_peers_refuse_and_go_on() -> None:
    for name in ("smaz", "unishox2"):
        way = peers.short_text_way(name)
        assert len(way.compress(b"the end")) < 7 and way.decompress(way.compress(b"the end"), 7) == b"the end"
        lone = b"\xed\xa0\x80"  # a lone surrogate
        assert way.compress(lone) == lone and way.decompress(lone, 3) == lone
    assert peers.short_text_way("smaz").compress(b"a\0b") == b"a\0b"


# -- encoders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", encoders.NAMES)
def test_encoders(name: str) -> None:
    if name == "dense" and "dense" not in encoders.profiles("base"):
        with pytest.raises(PolicyError, match="no dense profile"):
            encoders.encoder(name)
        return
    one = encoders.encoder(name)
    values = ["likes green tea", {"b": 1, "a": [1.0, True, None]}, [], 7]
    blobs = one.encode_many(values)
    assert blobs == [one.encode(value) for value in values]
    back = one.decode_many(blobs)
    assert back == [one.decode(blob) for blob in blobs]
    exact = [
        reading.is_equal(reading.record(value, None, ""), other) for value, other in zip(values, back, strict=True)
    ]
    assert all(exact) == one.lossless and exact[0]
    assert one.can("text") and one.can(b"bytes") == ("stub" not in name)


def test_an_encoder_that_is_none() -> None:
    with pytest.raises(PolicyError, match="none of fast, dense"):
        encoders.encoder("gzip")


def test_the_old_encoder_measured_as_any_other(records: Path) -> None:
    result = bench.run([records], **OPTIONS, name="stub-semantic", tick=quiet, with_peers=False)
    assert result["encoder"] == "stub-semantic" and result["exact"]["bare"] == 3
    assert 0 < result["similarity"]["min"] <= result["similarity"]["mean"] <= 1
    assert [row["encoder"] for row in result["encoders"]] == [
        "stub-semantic",
        *encoders.profiles("base"),
        "zstd",
        "stub",
    ]
    assert not next(one for one in result["claims"]["sets"] if one["encoder"] == "stub-semantic")["all_hold"]


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("ab" * 50, "ba" * 50, 2),
    ],
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert coding.edit_distance(a, b) == distance


@given(st.text("abc", max_size=90), st.text("abc", max_size=90))
def test_edit_distance_is_the_tables(a: str, b: str) -> None:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    assert coding.edit_distance(a, b) == row[-1]


def test_similarity_is_in_favour_of_what_is_lossy() -> None:
    for value, back in (("a  b\n", "a b"), ({"b": 1, "a": 2}, '{"a": 2, "b": 1}')):
        assert coding.similarity(reading.record(value, None, ""), back) == 1
    assert coding.similarity(reading.record("x" * 4096, None, ""), "x" * 2048) == 0.5
    assert coding.similarity(reading.record(b"\0\1\2\3", None, ""), b"\0\1\2\4") == 0.75


# -- claims ------------------------------------------------------------------------------------------------------------


def test_the_old_encoders_own_kinds() -> None:
    kinds = claims.of_its_kinds()
    assert list(kinds) == ["text", "JSON", "mixed"] and all(len(found) == claims.OF_KIND for found in kinds.values())
    assert {type(one.value) for one in kinds["text"]} == {str} and {type(one.value) for one in kinds["mixed"]} == {dict}
    sizes = [len(one.raw) for found in kinds.values() for one in found]
    assert min(sizes) >= 64 and max(sizes) > 2048  # the old encoder cut what was longer
    assert [one.raw for one in claims.of_its_kinds()["mixed"]] == [one.raw for one in kinds["mixed"]]


def test_verdicts() -> None:
    good = {
        "mean_of_records": 3.0,
        "p95_ratio": 2.5,
        "share_under_1_5x": 0.0,
        "accuracy_mean": 1.0,
        "accuracy_p95": 1.0,
        "accuracy_min": 1.0,
        "l2_write_p95_ms": 12.0,
        "l2_read_p95_ms": 1.0,
        "l1_read_p95_ms": 0.1,
        "l2_mean_ms": 4.0,
    }
    old = {"ratio_of_code": 1.4, "accuracy_mean": 1.0}
    rows = claims.verdicts(good, old, {"accuracy_mean": 0.8})
    assert len(rows) == len(claims.CLAIMS) and all(row["holds"] for row in rows)
    assert rows[0]["margin"] == pytest.approx(0.5)
    assert next(row for row in rows if row["figure"] == "l2_write_p95_ms")["margin"] == pytest.approx(0.9)
    for figure, bad in {**dict.fromkeys(good, 0.0), "share_under_1_5x": 0.2}.items():
        worse = 1e6 if figure.endswith("_ms") else bad
        failed = [row for row in claims.verdicts({**good, figure: worse}, old, old) if not row["holds"]]
        assert failed and all(row["figure"] == figure and row["margin"] < 0 for row in failed)
    weak = claims.verdicts({**good, "mean_of_records": 2.1}, {**old, "ratio_of_code": 2.2}, old)
    assert [row["claim"] for row in weak if not row["holds"]] == [
        "no regression: mean ratio, against the old encoder's code"
    ]


# -- records -----------------------------------------------------------------------------------------------------------


def test_the_records_of_a_store(tmp_path: Path) -> None:
    with Memory.open(tmp_path / "store", embedder=None, key=b"") as memory:
        memory.put(("ann", "prefs"), "1", {"text": "likes tea"}, cls="fact")
        memory.put(("bob",), "2", "plain")
    found, every = reading.load([tmp_path / "store"], None, quiet)
    assert every == 2 and sorted((one.value, one.kind, one.source) for one in found if type(one.value) is str) == [
        ("plain", "text", "bob")
    ]
    assert [(one.value, one.kind, one.source) for one in found if one.kind == "fact"] == [
        ({"text": "likes tea"}, "fact", "ann")
    ]


def test_domains(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    lines = [{"data": f"{n} of them", "domain": ("legal", "general")[n % 2], "metadata": {}} for n in range(6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    result = bench.run([path], **OPTIONS, tick=quiet, with_peers=False)
    assert [(row["domain"], row["records"]) for row in result["by_domain"]] == [("general", 3), ("legal", 3)]


@needs_c
def test_packs(tmp_path: Path) -> None:
    path = tmp_path / "orders.jsonl"
    values = [sample.value for sample in samples.generate(240, seed=5)]
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    result = bench.run([path], **OPTIONS, tick=quiet, with_peers=False, with_packs=True)
    result = json.loads(report.dump(result))
    (row,) = result["packs"]["by_source"]
    assert row["learned_records"] == row["records"] == row["exact"] == 120
    assert row["pack_bytes"] <= packs.PACK_BYTES
    assert row["quotient"] == row["pack"] / row["zstd_dictionary"] and row["base"] > 1
    assert result["packs"]["geometric_means"]["english"]["quotient_min"] == row["quotient"]
    assert "over zstd" in screen(result)
    few = bench.run([path], **{**OPTIONS, "limit": 50}, tick=quiet, with_peers=False, with_packs=True)
    assert few["packs"]["by_source"] == [] and "enough records" in screen(few)


def test_values_that_no_store_takes(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"a": 1}\n{"a": NaN}\n"b"\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        reading.load([path], None, quiet)
    found, count = reading.load([path], None, quiet, refused=False)
    assert ([one.value for one in found], count) == ([{"a": 1}, "b"], 2)
    path.write_text('"b"\n{"a": oops}\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        reading.load([path], None, quiet, refused=False)
