"""The training recipe at toy size, on records that the project makes itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nbmf import samples
from nbmf.codec import counting, kernel
from nbmf.codec.codec import Codec
from nbmf.codec.model import load_model
from nbmf.errors import DataError

pytestmark = pytest.mark.skipif(kernel.backend != "c", reason="learning needs the C kernel")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for sample in samples.generate(3000, seed=7):
            if isinstance(sample.value, bytes):
                continue
            line = {"data": sample.value, "metadata": {"source": sample.kind, "kind": sample.kind}}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return path


def run(corpus: Path, out: Path, **options: object) -> dict[str, object]:
    from nbmf.train import train

    return train.run([corpus], out, size="toy", **options)  # type: ignore[arg-type]


def test_toy_model_codes_and_beats_nothing_learned(corpus: Path, tmp_path: Path) -> None:
    card = run(corpus, tmp_path / "toy.nbm")
    codec = Codec(str(tmp_path / "toy.nbm"))
    fresh = [s.value for s in samples.generate(300, seed=8)]
    blobs = codec.encode_many(fresh, bare=True)
    assert codec.decode_many(blobs, bare=True) == fresh
    raw = sum(len(s) if isinstance(s, bytes) else len(json.dumps(s, ensure_ascii=False)) for s in fresh)
    assert raw / sum(map(len, blobs)) > 3  # templates: zstd with a dictionary is near 3
    assert load_model(str(tmp_path / "toy.nbm")).card["data_sha256"] == card["data_sha256"]


def test_training_is_deterministic_and_resumes(corpus: Path, tmp_path: Path) -> None:
    first = run(corpus, tmp_path / "a.nbm")
    again = run(corpus, tmp_path / "b.nbm")
    assert (first["id"] == again["id"]) == (first["name"] == again["name"])  # the card holds the name
    a, b = (load_model(str(tmp_path / f"{n}.nbm")).buffer for n in "ab")
    from nbmf.codec.model import section, section_table

    for name in section_table(a):
        if name != "card":
            assert bytes(section(a, name)) == bytes(section(b, name)), name
    (tmp_path / "a.nbm.work" / "fit.pickle").unlink()
    (tmp_path / "a.nbm").unlink()
    resumed = run(corpus, tmp_path / "a.nbm", resume=True)
    assert resumed["id"] == first["id"]


def test_bad_data_is_named(tmp_path: Path) -> None:
    from nbmf.train import train

    (tmp_path / "x.jsonl").write_text('{"a": 1}\nnot json\n')
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: not JSON"):
        train.run([tmp_path / "x.jsonl"], tmp_path / "m.nbm", size="toy")
    with pytest.raises(DataError, match=r"ends in \.nbm"):
        train.run([tmp_path / "x.jsonl"], tmp_path / "m", size="toy")
    with pytest.raises(DataError, match="size 'huge'"):
        train.run([tmp_path / "x.jsonl"], tmp_path / "m.nbm", size="huge")


def test_line_table_keeps_the_best_of_a_full_line() -> None:
    count = 40
    lists = counting.Lists(
        hash44=(np.arange(count, dtype=np.uint64) << np.uint64(0)),
        symbol=np.arange(count, dtype=np.uint8),
        code=np.full(count, 9, np.uint8),
        probability=np.full(count, 0.5, np.float32),
        gain=np.arange(count, dtype=np.float32),
    )
    table, dropped = counting.line_table([lists], 1)
    assert dropped == count - counting.LINE_ENTRIES
    kept = table[0, 2 * counting.LINE_ENTRIES : 3 * counting.LINE_ENTRIES]
    assert sorted(kept) == list(range(count - counting.LINE_ENTRIES, count))


def test_recipe_runs_at_toy_size(corpus: Path, tmp_path: Path) -> None:
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    script = Path(__file__).parents[2] / "runs" / "cpu.sh"
    held = corpus.parent / "test.jsonl"
    held.write_text("".join(corpus.read_text(encoding="utf-8").splitlines(keepends=True)[:50]), encoding="utf-8")
    done = subprocess.run(
        ["bash", str(script), str(corpus.parent), "toy", str(tmp_path / "out")],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "toy.nbm").is_file()


def test_the_dense_profile_is_trained_and_pays(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="the networks train in PyTorch, which is an extra")
    from nbmf.train import train

    monkeypatch.setitem(train.SIZES, "toy", train.Size(2_048, 512, 8.0, 32, 150, 2))
    card = run(corpus, tmp_path / "net.nbm", dense=True)
    path = str(tmp_path / "net.nbm")
    assert load_model(path).profiles == ("fast", "dense")
    fast, dense = Codec(path), Codec(path, profile="dense")
    fresh = [s.value for s in samples.generate(200, seed=8)]
    blobs = dense.encode_many(fresh, bare=True)
    assert fast.decode_many(blobs, bare=True) == fresh  # a blob says which profile it is of
    assert sum(map(len, blobs)) < 0.99 * sum(map(len, fast.encode_many(fresh, bare=True)))
    assert card["dense_steps"] == 150


def test_integers_and_floats_of_the_networks_agree(corpus: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the networks train in PyTorch, which is an extra")
    from nbmf.codec.counting import Records
    from nbmf.codec.model import MODEL_MAGIC, build_file, section, section_table
    from nbmf.codec.values import to_raw
    from nbmf.train import dense, quantize
    from nbmf.train.feed import Shelf
    from nbmf.train.net import Net

    run(corpus, tmp_path / "toy.nbm")
    base = load_model(str(tmp_path / "toy.nbm")).buffer
    records = Records.of([to_raw(s.value) for s in samples.generate(120, seed=9)])
    coder = kernel.load(memoryview(base))
    torch.manual_seed(3)
    net = Net(64, 32)
    dense.train(net, [Shelf(coder, records)], 40, batch=dense.Batch(16, 64), seed=3)
    with torch.no_grad():  # far from what training began with, so that every part has its share
        for parameter in net.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    net.hold()
    before, after = dense.measure(net, Shelf(coder, records), np.zeros(len(records), np.int64))
    sections = {name: bytes(section(base, name)) for name in section_table(base)}
    sections |= {name: x.astype(x.dtype.newbyteorder("<")).tobytes() for name, x in quantize.sections(net).items()}
    whole: object = kernel.load(build_file(MODEL_MAGIC, sections))
    cost = np.empty(records.positions, np.uint16)
    whole.train("dense_costs", *records.buffers(0, len(records)), cost)  # type: ignore[attr-defined]
    assert abs(cost.sum(dtype=np.int64) / 256 / after.sum() - 1) < 0.01
    assert abs(after.sum() / before.sum() - 1) > 0.02  # what is compared is not next to nothing


def test_without_pytorch_the_error_names_the_extra(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DataError, match=r"nbmf\[train\]"):
        run(corpus, tmp_path / "x.nbm", dense=True)
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_trained_in_pieces(corpus: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the networks train in PyTorch, which is an extra")
    from nbmf.train import train

    device = "cuda" if torch.cuda.is_available() else "cpu"
    work, out = tmp_path / "m.nbm.work", tmp_path / "m.nbm"
    run(corpus, out)
    made = train.run([corpus], out, size="toy", dense=True, device=device, resume=True)
    bundle = work / "dense.xz"
    assert made["id"] == load_model(str(out)).id.hex() and bundle.is_file()
    for name in ("dense.pt", "dense.pickle"):
        (work / name).unlink()
    command = [sys.executable, "-m", "nbmf.train.bundle", str(bundle), "--device", device]
    first = subprocess.run([*command, "--seconds", "0.01"], capture_output=True, text=True, timeout=120, check=True)
    assert "not done" in first.stdout or "done" in first.stdout
    last = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert last.stdout.endswith("\ndone\n") or last.stdout == "done\n"
    again = train.run([corpus], out, size="toy", dense=True, device=device, resume=True)
    assert again["dense_steps"] == train.SIZES["toy"].steps and load_model(str(out)).profiles == ("fast", "dense")


def test_processes_feed_what_threads_would(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the networks train in PyTorch, which is an extra")
    from nbmf.codec.counting import Records
    from nbmf.codec.values import to_raw
    from nbmf.train.feed import Farm, Feed, Shelf

    run(corpus, tmp_path / "toy.nbm")
    coder = kernel.load(memoryview(load_model(str(tmp_path / "toy.nbm")).buffer))
    shelves = [Shelf(coder, Records.of([to_raw(s.value) for s in samples.generate(60, seed=5)]))]
    alone = [Feed(shelves, 3, 8, seed).stretches() for seed in (11, 12)]
    farm = Farm(shelves, 6, 8, 11, workers=2)
    try:
        for _, made in zip(range(7), farm, strict=False):
            parts = [next(feed) for feed in alone]
            for name in ("inputs", "rows", "bit", "node", "first"):
                expected = np.concatenate([getattr(part, name) for part in parts], 1)
                assert np.array_equal(getattr(made, name), expected), name
    finally:
        farm.close()
    with pytest.raises(ValueError, match="not shared out evenly"):
        Farm(shelves, 7, 8, 11, workers=2)
