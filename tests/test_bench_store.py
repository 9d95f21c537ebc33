"""What `nbmf bench store` reports, on a few hundred records. Times are never judged."""

import importlib.util
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from nbmf import report, samples
from nbmf.bench import growth, store_peers, store_table
from nbmf.bench import records as reading
from nbmf.bench import store as bench_store
from nbmf.bench.store_peers import MISSING, Entry
from nbmf.codec import kernel
from nbmf.errors import DataError, NbmfError
from nbmf.memory import Memory

needs_c = pytest.mark.skipif(kernel.backend != "c", reason="too slow on the reference")
needs_peers = pytest.mark.skipif(importlib.util.find_spec("langgraph") is None, reason="needs nbmf[bench]")

ODD = [
    None,
    "",
    "plain",
    "a lone \ud800 surrogate",
    1 << 80,
    -0.0,
    [1, 1.0, True],
    {"value": 1},
    {"value": "x", "json": True},
    {"b": 1, "a": {"c": []}},
    "x" * 9000,
    {"text": "likes tea " * 200},
]


def quiet(what: str, done: float, total: float | None = None) -> None:
    assert what and done >= 0 and (total is None or done <= total)


def written(path: Path, values: list[Any], source: str = "acme/chat") -> Path:
    lines = [{"data": value, "metadata": {"source": source, "kind": "turn"}} for value in values]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return written(tmp_path / "records.jsonl", [sample.value for sample in samples.generate(400, seed=3)])


def screen(result: dict[str, Any]) -> str:
    out = StringIO()
    report.console(out).print(store_table.table(result))
    return out.getvalue()


# -- records -----------------------------------------------------------------------------------------------------------


def test_records_are_drawn_in_order_and_the_refused_counted(tmp_path: Path) -> None:
    values = [f"record {number}" for number in range(3000)]
    path = written(tmp_path / "a.jsonl", values)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"data": {"t": NaN}, "metadata": {}}\n')
    some, every, refused = bench_store.drawn([path], 100, quiet)
    assert every == 3001 and refused == 0
    numbers = [int(one.value.split()[1]) for one in some]
    assert len(numbers) == 100 and numbers == sorted(numbers) and numbers[-1] > 2000
    assert [one.value for one in bench_store.drawn([path], 100, quiet)[0]] == [one.value for one in some]
    found, every, refused = bench_store.drawn([path], 10_000, quiet)
    assert ([one.value for one in found], every, refused) == (values, 3001, 1)


def test_what_is_no_json_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('"ok"\n{"open"\n', encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        bench_store.drawn([path], 10, quiet)


def test_too_few_records(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few"):
        bench_store.run([written(tmp_path / "a.jsonl", ["one"])], peers=False, tick=quiet)


def test_addresses() -> None:
    found = [reading.record(f"{number}", "turn", "acme/chat") for number in range(12_000)]
    entries = bench_store.mixed(found)
    assert [one.record for one in entries] == found
    assert len({(one.namespace, one.key) for one in entries}) == len(entries)
    assert 220 <= len({one.namespace for one in entries}) <= 260
    assert {one.namespace[0] for one in entries} == {"tenant-00", "tenant-01"}
    uuids = [one for one in entries if len(one.key) == 36]
    assert 0.48 < len(uuids) / len(entries) < 0.52
    assert all(one.key.startswith("msg-00") for one in entries if one not in uuids[:100] and len(one.key) != 36)
    assert bench_store.mixed(found) == entries


def test_tenants_of_one_source() -> None:
    found = [reading.record(f"{number}", "turn", f"source/{number % 3}") for number in range(300)]
    found += [reading.record("alone", "turn", "source/small")]
    entries = bench_store.by_source(found)
    assert len(entries) == 300 and all(one.namespace[0] == one.record.source for one in entries)


# -- the stores --------------------------------------------------------------------------------------------------------


@needs_peers
@pytest.mark.parametrize("place", range(4), ids=["nbmf", "langgraph", "json", "zstd"])
def test_a_store_gives_back_what_was_put(tmp_path: Path, place: int) -> None:
    entries = bench_store.mixed([reading.record(value, None, "odd") for value in ODD])
    peers = store_peers.contestants(entries)
    one = [bench_store.contestant("nbmf", "", embedder=None), *peers][place]
    store = one.open(tmp_path)
    store.put_many(entries[:6])
    store.put_many(entries[6:])
    store.put_many(entries[:1])
    store.compact()
    store.close()
    store = one.open(tmp_path)
    assert bench_store.exact(store, entries, lambda done: None) == len(entries)
    other = [Entry(one.namespace, one.key, entries[0].record) for one in entries[1:]]
    assert bench_store.exact(store, other, lambda done: None) == 0
    assert store.get_many([(entries[0].namespace, "nobody"), (("no", "where"), "pref-1")]) == [MISSING, MISSING]
    store.close()


@needs_peers
def test_a_peer_takes_the_layout_that_suits_it(tmp_path: Path) -> None:
    entries = bench_store.mixed([reading.record(f"{number} " + "x" * 3000, "turn", "long") for number in range(300)])
    layouts = dict.fromkeys(store_peers.LAYOUTS, 0)
    for number, layout in enumerate(layouts):
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = store_peers.Rows(folder, layout)
        rows.put_many(entries)
        rows.compact()
        rows.close()
        layouts[layout] = sum(bench_store.files_of(folder).values())
    best = store_peers.smallest(entries, store_peers.Rows)
    assert layouts[best] == min(layouts.values()) < max(layouts.values())


def test_a_missing_peer_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(store_peers.importlib, "import_module", missing)
    with pytest.raises(NbmfError, match=r"langgraph-checkpoint-sqlite.*nbmf\[bench\].*--no-peers"):
        bench_store.run([], tick=quiet)


def test_growth_loses_nothing(tmp_path: Path) -> None:
    assert growth.sizes(200_000) == [100, 1000, 10_000, 100_000]
    assert growth.sizes(1_000_000)[-1] == 1_000_000
    assert growth.sizes(60) == [60]
    assert list(growth.fill(tmp_path / "store", 0, 60))[-1]["value_bytes_added"] > 0
    assert list(growth.fill(tmp_path / "store", 60, 120))[-1]["ingest_records_s"] > 0
    with Memory.open(tmp_path / "store", embedder=None) as memory:
        assert memory.stats()["records"] == 120
        gone = growth.address(77)
        assert memory.delete(*gone)
    with pytest.raises(NbmfError, match=r"record 77 .* is lost"):
        list(growth.probe(tmp_path / "store", 120))


def test_a_process_that_fails_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NbmfError, match=r"growth part failed.*is a file"):
        growth.grow(tmp_path / "file", 50, quiet)


# -- the whole ---------------------------------------------------------------------------------------------------------


@needs_c
@needs_peers
def test_run_store(records: Path, tmp_path: Path) -> None:
    unseen = written(tmp_path / "unseen.jsonl", [f"never seen {number}" for number in range(120)])
    result = bench_store.run([records], records=300, scale=100, unseen=[unseen], tick=quiet)
    result = json.loads(report.dump(result))
    assert result["data"] == {"files": ["records.jsonl"], "records": 400, "limit": 300}
    stores = {row["store"]: row for row in result["stores"]}
    assert {"nbmf", "LangGraph SqliteStore", "SQLite, JSON text", "SQLite, zstd rows"} <= stores.keys()
    for what, name in (("encryption", "nbmf, encrypted"), ("semantic index", "nbmf, semantic index")):
        assert (name in stores) != (what in result["left_out"])
    for row in stores.values():
        assert row["records"] == row["exact"] == 300
        assert row["disk_bytes"] == sum(row["files"].values())
        assert row["ratio"] == pytest.approx((row["value_bytes"] + row["key_bytes"]) / row["disk_bytes"])
        assert row["ratio_with_namespaces"] > row["ratio"]
        assert row["latency"]["records"] == 270 and row["latency"]["puts"] == 29
        for what in ("put_ms", "get_ms", "get_again_ms"):
            assert 0 < row["latency"][what]["p50"] <= row["latency"][what]["p95"] <= row["latency"][what]["p99"]
    assert sum(stores["nbmf"]["parts"].values()) == stores["nbmf"]["disk_bytes"]
    assert stores["nbmf"]["blob_bytes"] < stores["nbmf"]["value_bytes"] / 2
    if "nbmf, semantic index" in stores:
        assert stores["nbmf, semantic index"]["latency"]["searches"] == 27
        assert stores["nbmf, semantic index"]["parts"]["codes"] > 0
    cold = result["cold"]
    assert cold["exact"] == 300 and cold["archive_blocks_bytes"] < cold["warm_blob_bytes"]
    assert cold["disk_bytes"] == sum(cold["files"].values()) and cold["gets"] == 10
    packed = result["one_source_tenants"]
    assert packed["records"] == packed["packed"]["exact"] == 300 and packed["tenants"] == 1
    assert packed["packed"]["blob_bytes"] < packed["warm"]["blob_bytes"] and packed["packed"]["pack_bytes"] > 0
    assert [row["store"] for row in result["unseen"]["stores"]] == ["nbmf", *list(stores)[-3:]]
    assert result["unseen"]["cold"]["exact"] == result["unseen"]["one_source_tenants"]["packed"]["exact"] == 120
    assert all(row["exact"] == 120 and "latency" not in row for row in result["unseen"]["stores"])
    (grown,) = result["growth"]
    assert grown["records"] == 100 and grown["open_ms"] > 0 and grown["memory_peak_bytes"] > 0
    shown = screen(result)
    assert (
        "every record came back exactly" in shown
        and "its block not cached" in shown
        and "LangGraph" in shown
        and "unseen.jsonl" in shown
    )
    result["stores"][0]["exact"] -= 1
    assert "1 of the records read back were not what was put" in screen(result)


@needs_c
def test_run_store_without_peers(records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_store, "left_out", lambda: {"encryption": "nbmf[encrypt]", "semantic index": "nbmf[x]"})
    result = bench_store.run([records], records=40, scale=0, peers=False, tick=quiet)
    assert [row["store"] for row in result["stores"]] == ["nbmf"]
    assert "growth" not in result and "unseen" not in result and result["one_source_tenants"] is None
    assert "not measured: encryption, which needs nbmf[encrypt]" in screen(result)
