"""`nbmf bench semantic`: vectors within a bound, beside theory and other coders, and the search over their codes.

Vectors are embeddings of the records' texts, and random ones. Of each set a part is learned from and the rest measured.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from nbmf import samples
from nbmf.bench import vector_peers
from nbmf.bench.conditions import about_model, conditions
from nbmf.bench.figures import reached
from nbmf.bench.minilm import INSTALL, MiniLM
from nbmf.bench.minilm import is_installed as has_minilm
from nbmf.bench.records import SEED, is_equal, load, record
from nbmf.codec import codec as coding
from nbmf.codec.adapt import adapt
from nbmf.codec.codec import Codec
from nbmf.codec.vector import Bound
from nbmf.codec.vector_search import Codes, search
from nbmf.codec.vector_transform import VECTORS_LEAST, beside_of
from nbmf.errors import DataError
from nbmf.report import Tick
from nbmf.store.embed import WordLlama, text_of

RECORDS: Final = 3000
MEASURED: Final = 500  # vectors of a set that are measured, at most; a third of it
LEAST: Final = 3 * VECTORS_LEAST // 2  # texts that can be measured: two thirds are learned from
COSINES: Final = (0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)
DEFAULT: Final = 0.995
RANDOM_DIM: Final = 384
ROUNDS: Final = 3  # times a vector is coded; the fastest counts
EMBEDDED: Final = 64  # texts between two ticks
QUERIES: Final = 200
TOP: Final = 10
SCALAR_LOSS: Final = 0.5 * math.log2(2 * math.pi * math.e / 12)  # bits of an entropy-coded scalar over the bound

MINILM, STATIC, RANDOM = "all-MiniLM-L6-v2", "wordllama", "random"
PLAIN, LEARNED, PREDICTED, LOSSLESS = "nbmf", "nbmf, learned", "nbmf, predicted from the text", "nbmf, lossless"

Floats = npt.NDArray[np.float32]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Vectors:
    """A set of vectors float32[n, dim], and int16[n, s] known beside them, where anything is."""

    name: str
    embedder: str | None
    rows: Floats
    beside: npt.NDArray[np.int16] | None = None


def run(data: Sequence[str | Path], *, limit: int | None = None, peers: bool = True, tick: Tick) -> dict[str, Any]:
    """Bytes, nearness and times of vectors, and the search over their codes.

    Raises NbmfError (nbmf[search] or nbmf[bench] is missing), DataError (too few texts).
    """
    if peers:
        for name in ("faiss", "pcodec"):
            vector_peers.package(name)
    if data:
        found, every = load(data, limit or RECORDS, tick)
    else:
        found = [record(one.value, one.kind, "generated") for one in samples.generate(limit or RECORDS, SEED)]
        every = len(found)
    texts = list(dict.fromkeys(text for one in found if (text := text_of(one.value).strip())))
    if len(texts) < LEAST:
        raise DataError(f"{len(texts)} different texts are too few to measure vectors: {LEAST} is the least")
    random.Random(SEED).shuffle(texts)
    left_out = {} if has_minilm() else {MINILM: INSTALL}
    sets, searches = [], []
    with tempfile.TemporaryDirectory(prefix="nbmf-bench-") as folder:
        for vectors in _sets(texts, tick):
            tick(f"measuring {vectors.name}", 0, 1)
            about, searched = _measured(vectors, Path(folder), peers)
            sets.append(about)
            searches += searched
    kept = found[:MEASURED]
    exact = sum(is_equal(one, coding.decode(coding.encode(one.value, fidelity="semantic"))) for one in kept)
    result = {
        **conditions("bench semantic", data, limit, every),
        "model": about_model(Codec(), "base", "fast"),
        "texts": len(texts),
        "cpu_share": float(np.mean([row["cpu_share"] for one in sets for row in one["rows"] if "cpu_share" in row])),
        "default_cosine": DEFAULT,
        "theory": [
            {
                "cosine": cosine,
                "gaussian_bits": gaussian_bits(cosine),
                "scalar_bits": gaussian_bits(cosine) + SCALAR_LOSS,
            }
            for cosine in COSINES
        ],
        "sets": sets,
        "searches": searches,
        "other_values": {"records": len(kept), "exact": exact},
        "verdicts": verdicts(sets, searches),
        "left_out": left_out,
    }
    if not data:
        result["data"]["files"] = ["generated samples"]
    return result


def gaussian_bits(cosine: float) -> float:
    """The fewest bits a float in which a Gaussian vector of very many floats can keep a cosine."""
    return 0.5 * math.log2(1 / (1 - cosine * cosine))


# -- vectors -----------------------------------------------------------------------------------------------------------


def _sets(texts: Sequence[str], tick: Tick) -> Iterator[Vectors]:
    static = WordLlama()
    if has_minilm():
        model = MiniLM()
        parts = []
        for at in range(0, len(texts), EMBEDDED):
            parts.append(model.embed(texts[at : at + EMBEDDED]))
            tick("embedding texts", min(at + EMBEDDED, len(texts)), len(texts))
        yield Vectors(MINILM, model.id, np.concatenate(parts), beside_of(static.sums(texts)))
    yield Vectors(STATIC, static.id, static.embed(texts))
    draw = np.random.default_rng(SEED)
    yield Vectors(RANDOM, None, draw.standard_normal((len(texts), RANDOM_DIM)).astype(np.float32))


def _measured(vectors: Vectors, folder: Path, peers: bool) -> tuple[dict[str, Any], Rows]:
    rows, beside = vectors.rows, vectors.beside
    count = min(len(rows) // 3, MEASURED)
    learned, tested = rows[count:], rows[:count]
    codecs: dict[str, tuple[Codec, Any]] = {PLAIN: (Codec(), None)}
    if vectors.embedder is not None:
        codecs[LEARNED] = (_learned(learned, None, folder / f"{vectors.name}.nbp"), None)
        if beside is not None:
            pack = folder / f"{vectors.name}-beside.nbp"
            codecs[PREDICTED] = (_learned(learned, beside[count:], pack), beside[:count])
    found: Rows = []
    for name, (codec, known) in codecs.items():
        for cosine in COSINES:
            found.append(_coded(name, codec, tested, known, Bound(cosine)))
    found.append(_coded(LOSSLESS, Codec(), tested, None, None))
    if peers:
        for peer in vector_peers.every(learned, tested):
            found.append(
                {
                    "coder": peer.name,
                    "setting": peer.setting,
                    "cosine_bound": None,
                    **_sizes(tested, peer.size),
                    **_nearness(tested, peer.back),
                    "encode_us": peer.encode_us,
                    "decode_us": peer.decode_us,
                }
            )
    about = {
        "vectors": vectors.name,
        "embedder": vectors.embedder,
        "dim": rows.shape[1],
        "learned_from": len(learned),
        "measured": count,
        "rows": found,
    }
    searched = [] if vectors.embedder is None else [_searched(vectors.name, codecs[LEARNED][0], learned, tested)]
    return about, searched


def _learned(rows: Floats, beside: npt.NDArray[np.int16] | None, path: Path) -> Codec:
    """A codec with the transform of these; the model's alone where they give none."""
    try:
        adapt(list(rows), path, beside=None if beside is None else list(beside))
    except DataError:
        return Codec()
    return Codec(domain=str(path))


def _coded(name: str, codec: Codec, tested: Floats, beside: Any, bound: Bound | None) -> dict[str, Any]:
    """Every vector alone, as a bare blob; exact where there is no bound."""
    fidelity = "lossless" if bound is None else "semantic"
    blobs, back, encode, decode = [], [], [], []
    start, used = time.perf_counter(), time.process_time()
    for at, row in enumerate(tested):
        known = None if beside is None else beside[at]
        blob, spent = _fastest(lambda: codec.encode(row, bare=True, fidelity=fidelity, bound=bound, beside=known))  # noqa: B023
        encode.append(spent)
        made, spent = _fastest(lambda: codec.decode(blob, bare=True, beside=known))  # noqa: B023
        decode.append(spent)
        blobs.append(blob)
        back.append(made)
    share = (time.process_time() - used) / (time.perf_counter() - start)
    return {
        "coder": name,
        "cpu_share": min(share, 1.0),
        "setting": "every float exact" if bound is None else f"cosine {bound.cosine} or more",
        "cosine_bound": None if bound is None else bound.cosine,
        **_sizes(tested, sum(map(len, blobs)) / len(blobs)),
        **_nearness(tested, np.stack(back)),
        "encode_us": float(np.median(encode)),
        "decode_us": float(np.median(decode)),
    }


def _fastest(call: Callable[[], Any]) -> tuple[Any, float]:
    """Its result and the us of the fastest of ROUNDS calls."""
    best = math.inf
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        result = call()
        best = min(best, (time.perf_counter_ns() - start) / 1000)
    return result, best


def _sizes(tested: Floats, size: float) -> dict[str, float]:
    return {"bytes": size, "ratio": 4 * tested.shape[1] / size, "bits": 8 * size / tested.shape[1]}


def _nearness(tested: Floats, back: Floats) -> dict[str, Any]:
    a, b = tested.astype(np.float64), back.astype(np.float64)
    cosines = (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-300)
    same = [one.tobytes() == other.tobytes() for one, other in zip(tested, back, strict=True)]
    found = [1.0 if exact else float(cosine) for exact, cosine in zip(same, cosines, strict=True)]
    return {
        "cosine_mean": sum(found) / len(found),
        "cosine_p95": reached(found, 0.95),
        "cosine_min": min(found),
        "exact": sum(same),
    }


# -- search ------------------------------------------------------------------------------------------------------------


def _searched(name: str, codec: Codec, held: Floats, asked: Floats) -> dict[str, Any]:
    """The share of exact search's first TOP that a search over codes gives too, re-ranked by what they decode to."""
    blobs = codec.encode_many(list(held), bare=True, fidelity="semantic", bound=Bound(DEFAULT))
    codes = Codes(blobs, codec)
    shares: dict[str, list[float]] = {"codes": [], "decoded": [], "exact": []}
    spent = []
    for query in asked[:QUERIES]:
        truth = set(np.argsort(-(held @ query), kind="stable")[:TOP].tolist())
        start = time.perf_counter()
        places = search(codes, query, TOP)[0]
        spent.append(1000 * (time.perf_counter() - start))
        best = np.argsort(-codes.scores(query), kind="stable")[:TOP]
        again = search(codes, query, TOP, exact=lambda at: held[at])[0]
        for what, found in (("codes", best), ("decoded", places), ("exact", again)):
            shares[what].append(len(truth & set(found.tolist())) / TOP)
    return {
        "vectors": name,
        "held": len(held),
        "queries": len(spent),
        "bytes_a_vector": sum(map(len, blobs)) / len(blobs),
        "memory_bytes_a_vector": codes.nbytes / len(blobs),
        "search_ms": float(np.median(spent)),
        **{f"recall_{what}": sum(found) / len(found) for what, found in shares.items()},
    }


# -- verdicts ----------------------------------------------------------------------------------------------------------


def verdicts(sets: Rows, searches: Rows) -> Rows:
    """What was asked for of vectors, item by item, as far as it was measured."""
    at = {
        (one["vectors"], row["coder"]): row
        for one in sets
        for row in one["rows"]
        if row["coder"].startswith("nbmf") and row["cosine_bound"] == DEFAULT
    }
    mini, far, plain = at.get((MINILM, LEARNED)), at.get((MINILM, PREDICTED)), at[RANDOM, PLAIN]
    asked: list[tuple[str, str, float | None, float, bool, str]] = [
        (f"{MINILM}, cosine {DEFAULT}", "ratio", mini and mini["ratio"], 10.0, True, "x"),
        (f"{MINILM}, predicted from the text", "ratio", far and far["ratio"], 11.0, True, "x"),
        ("predicted over not predicted", "ratio", far and mini and far["ratio"] / mini["ratio"], 1.0, True, "x"),
        (f"random vectors, cosine {DEFAULT}", "ratio", plain["ratio"], 8.7, True, "x"),
    ]
    for what in ("mean", "p95", "min"):
        least = min(row[f"cosine_{what}"] for row in at.values())
        asked.append((f"accuracy of all within the bound, {what}", f"cosine_{what}", least, DEFAULT, True, "share"))
    for name, row in (("random vector", plain), (f"vector of {MINILM} (learned)", mini)):
        asked += [
            (f"{what} a {name}, 384 floats", f"{what}_us", row and row[f"{what}_us"], most, False, "us")
            for what, most in (("encode", 30.0), ("decode", 15.0))
        ]
    asked += [
        (
            f"recall@{TOP}, re-ranked: {one['vectors']}",
            "recall_exact",
            one["recall_exact"],
            0.98,
            True,
            "share",
        )
        for one in searches
    ]
    return [
        {
            "claim": claim,
            "figure": figure,
            "unit": unit,
            "at_least": at_least,
            "limit": limit,
            "measured": measured,
            "holds": measured >= limit if at_least else measured <= limit,
            "margin": (measured - limit if at_least else limit - measured) / limit,
        }
        for claim, figure, measured, limit, at_least, unit in asked
        if measured is not None
    ]
