"""What `nbmf bench` and `nbmf eval` report, on a few short records. Times are never judged."""

import json
import lzma
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbmf import bench, bench_peers, bench_table, report, samples
from nbmf.codec import kernel
from nbmf.codec.codec import Codec
from nbmf.codec.values import JSON, TEXT
from nbmf.errors import DataError, NbmfError

OPTIONS: dict[str, Any] = {"model": "base", "profile": "fast", "domain": None, "limit": None}
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


def has_peers() -> bool:
    try:
        bench_peers.require()
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
    bench_table.render(result, report.console(out))
    return out.getvalue()


def test_reads_both_kinds_of_line(records: Path) -> None:
    found, every = bench.load([records], None, quiet)
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
    assert bench.load([records.parent], None, quiet)[1] == 10


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
        bench.load([tmp_path / name], None, quiet)


def test_folder_without_records(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no \.jsonl"):
        bench.load([tmp_path], None, quiet)


def test_the_same_sample_every_time() -> None:
    first, every = bench.load([], 20, quiet)
    again, _ = bench.load([], 20, quiet)
    assert every == len(samples.load()) and len(first) == 20
    assert [one.raw for one in first] == [one.raw for one in again]
    assert len({one.kind for one in first}) > 1
    whole = [one.raw for one in bench.load([], None, quiet)[0]]
    places = [whole.index(one.raw) for one in first]
    assert places == sorted(places)


def test_bootstrap_holds_the_ratio() -> None:
    raw = np.arange(1.0, 301.0)
    low, high = bench.interval(bench.bootstrap(raw, raw / 2 + 5))
    assert low < raw.sum() / (raw / 2 + 5).sum() < high
    assert bench.interval(bench.bootstrap(raw, raw / 4)) == [4.0, 4.0]


def test_geometric_mean() -> None:
    assert bench.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_languages() -> None:
    assert bench.language("UniversalDependencies/UD_German-GSD") == "multilingual"
    assert bench.language("thu-coai/KdConv") == "multilingual"
    assert bench.language("thu-coai/KdConv2") == bench.language("octokit/webhooks") == "english"


def test_a_wrong_value_is_not_exact() -> None:
    one = bench.record({"a": 1, "b": 2}, None, "s")
    assert bench.is_equal(one, {"a": 1, "b": 2})
    for other in ({"b": 2, "a": 1}, {"a": 1.0, "b": 2}, {"a": True, "b": 2}, '{"a":1,"b":2}'):
        assert not bench.is_equal(one, other)


def test_run(records: Path) -> None:
    result = bench.run([records], **OPTIONS, tick=quiet, peers=False)
    result = json.loads(report.dump(result))
    total = result["total"]
    assert result["exact"] == dict.fromkeys(("records", "bare", "self_describing", "one_by_one"), 5)
    assert total["records"] == 5 and total["ratio"] == total["raw_bytes"] / total["stored_bytes"]
    assert total["bits_per_byte"] == pytest.approx(8 / total["ratio"])
    assert total["self_describing"] < total["ratio"]
    codec = Codec()
    stored = [len(codec.encode(one.value, bare=True)) for one in bench.load([records], None, quiet)[0]]
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
    result = json.loads(report.dump(bench.evaluate([records], **{**OPTIONS, "limit": 2}, tick=quiet)))
    assert result["exact"] == {"records": 2, "bare": 2, "self_describing": 2}
    assert result["data"] == {"files": ["records.jsonl"], "records": 5, "limit": 2}
    assert "encode_ms" not in result["total"]
    assert "every record came back exactly" in screen(result)


def test_a_missing_peer_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(bench_peers.importlib, "import_module", missing)
    bench_peers.module.cache_clear()
    with pytest.raises(NbmfError, match=r"nbmf\[bench\].*--no-peers"):
        bench.run([], **OPTIONS, tick=quiet)


def test_dictionary_is_measured_on_the_other_half() -> None:
    raws = [f"order {number} for customer {number * 7919 % 1000} was shipped".encode() for number in range(200)]
    peer = bench_peers.zstd_with_dictionary(raws, None, quiet)
    assert peer is not None
    assert np.isnan(peer.sizes[:100]).all() and (peer.sizes[100:] < 40).all()
    given = bench_peers.zstd_with_dictionary(raws, raws[:100], quiet)
    assert given is not None and np.array_equal(given.sizes[100:], peer.sizes[100:])
    assert bench_peers.zstd_with_dictionary([b"alone"], None, quiet) is None


@pytest.mark.skipif(not has_peers(), reason="needs nbmf[bench]")
def test_peers(records: Path) -> None:
    result = json.loads(report.dump(bench.run([records], **OPTIONS, tick=quiet)))
    rows = {row["peer"]: row for row in result["peers"]}
    assert list(rows) == ["zlib-9", "zstd-19", "zstd-19+dict", "brotli-11", "ppmd", "lzma", "unishox2", "smaz"]
    assert rows["zlib-9"]["records"] == 5 and rows["smaz"]["records"] == 3 and rows["zstd-19+dict"]["records"] == 3
    for row in rows.values():
        assert row["nbmf_over_peer"] == pytest.approx(row["nbmf"] / row["ratio"])
    assert result["total"]["peers"]["zlib-9"] == rows["zlib-9"]["ratio"]
    assert "brotli-11" in screen(result)


@pytest.mark.skipif(not has_peers(), reason="needs nbmf[bench]")
def test_short_text_peers_refuse_and_go_on() -> None:
    for name in ("smaz", "unishox2"):
        assert bench_peers.short_text_size(name, b"the end") < 7
        assert bench_peers.short_text_size(name, b"\xed\xa0\x80") == 3  # a lone surrogate
    assert bench_peers.short_text_size("smaz", b"a\0b") == 3


@needs_c
def test_packs(tmp_path: Path) -> None:
    path = tmp_path / "orders.jsonl"
    values = [sample.value for sample in samples.generate(240, seed=5)]
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    result = bench.run([path], **OPTIONS, tick=quiet, peers=False, with_packs=True)
    result = json.loads(report.dump(result))
    (row,) = result["packs"]["by_source"]
    assert row["learned_records"] == row["records"] == row["exact"] == 120
    assert row["pack_bytes"] <= bench.PACK_BYTES
    assert row["quotient"] == row["pack"] / row["zstd_dictionary"] and row["base"] > 1
    assert result["packs"]["geometric_means"]["english"]["quotient_min"] == row["quotient"]
    assert "over zstd" in screen(result)
    few = bench.run([path], **{**OPTIONS, "limit": 50}, tick=quiet, peers=False, with_packs=True)
    assert few["packs"]["by_source"] == [] and "enough records" in screen(few)
