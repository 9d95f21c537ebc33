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
    (tmp_path / "a.nbm.work" / "packs.pickle").unlink()
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
