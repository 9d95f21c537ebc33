"""Search over codes: near to what exact search over the floats finds, and no float is made before the last step."""

from typing import Any

import numpy as np
import pytest
from vector_data import embeddings, gaussian

import nbmf
from nbmf import Bound, Codec
from nbmf.codec import kernel
from nbmf.codec.vector_search import Codes, search
from nbmf.errors import UnsupportedValue

C = kernel.backend == "c"
DIM, COUNT, QUERIES = (48, 1500, 60) if C else (24, 60, 4)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    path = tmp_path_factory.mktemp("packs") / "search.nbp"
    nbmf.adapt([embeddings(1000, DIM)], path)
    return Codec(domain=str(path))


def recall(codec: Codec, rows: Any, queries: Any, k: int, exact: bool, bound: float = 0.995) -> float:
    blobs = codec.encode_many(list(rows), bare=True, fidelity="semantic", bound=Bound(bound))
    codes = Codes(blobs, codec)
    truth = np.argsort(-(rows @ queries.T), axis=0)[:k].T
    again = (lambda places: rows[places]) if exact else None
    hits = [len(set(search(codes, q, k, exact=again)[0]) & set(t)) for q, t in zip(queries, truth, strict=True)]
    return sum(hits) / (k * len(queries))


def test_recall(learned: Codec) -> None:
    rows, queries = embeddings(COUNT, DIM, 11), embeddings(QUERIES, DIM, 12)
    assert recall(learned, rows, queries, 10, exact=True) >= 0.98
    assert recall(learned, rows, queries, 10, exact=False) >= 0.85
    assert recall(learned, rows, queries, 10, exact=False, bound=0.9999) >= 0.95


def test_recall_without_a_pack(codec: Codec) -> None:
    rows, queries = gaussian(COUNT, DIM, 13), gaussian(QUERIES, DIM, 14)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert recall(codec, rows, queries, 10, exact=True) >= 0.98


def test_scores_are_cosines(learned: Codec) -> None:
    rows = embeddings(30 if C else 5, DIM, 15)
    mixed = [
        learned.encode(row, bare=True, fidelity="semantic" if at % 3 else "lossless") for at, row in enumerate(rows)
    ]
    mixed[1] = learned.encode((rows[1] * 8).astype(np.float16), bare=True, fidelity="semantic")
    codes = Codes(mixed, learned)
    query = gaussian(1, DIM)[0]
    decoded = np.stack([learned.decode(blob, bare=True).astype(np.float64) for blob in mixed])
    wanted = decoded @ query / np.linalg.norm(decoded, axis=1) / np.linalg.norm(query)
    assert np.abs(codes.scores(query) - wanted).max() < 0.01
    places, cosines = search(codes, query, 3)
    assert list(places) == list(np.argsort(-wanted)[:3])
    assert np.allclose(cosines, np.sort(wanted)[::-1][:3], atol=1e-6)
    assert codes.nbytes < sum(row.nbytes for row in rows) + 4096


def test_edges(codec: Codec, learned: Codec) -> None:
    row = embeddings(1, DIM)[0]
    codes = Codes([learned.encode(row, bare=True, fidelity="semantic")], learned)
    assert list(search(codes, row, 5)[0]) == [0]
    assert len(search(codes, row, 0)[0]) == 0
    assert len(search(Codes([], learned), np.zeros(0, np.float32), 5)[0]) == 0
    with pytest.raises(UnsupportedValue, match="query of shape"):
        search(codes, row[:-1], 1)
    with pytest.raises(UnsupportedValue, match="blob 1 has"):
        Codes([codec.encode(row, bare=True), codec.encode(row[:-1], bare=True)], codec)
    with pytest.raises(UnsupportedValue, match="no vector"):
        Codes([codec.encode("text", bare=True)], codec)
    with pytest.raises(UnsupportedValue, match="no vector"):
        Codes([codec.encode(row[None], bare=True)], codec)
