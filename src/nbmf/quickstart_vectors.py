"""The quickstart's vectors: made from the words of samples, kept within a bound, and measured on what comes back.

They stand in for an embedder's: every word has a direction drawn at random, and a text is the sum of its words, so
that texts about the same things lie together.
"""

from __future__ import annotations

import re
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.text import Text

from nbmf import samples
from nbmf.codec import kernel
from nbmf.codec.adapt import adapt
from nbmf.codec.bounds import DEFAULT
from nbmf.codec.codec import Codec
from nbmf.errors import DataError
from nbmf.report import Tick

DIM: Final = 384
WORDS: Final = 1 << 12  # directions that words are hashed to
COMMON: Final = 2.0  # characters that make a word half as telling as a long one
SEED: Final = 2025
LEARNED: Final = 1200  # generated texts that a pack is learned from
FEW: Final = 3  # vectors that the NumPy reference is given
INDENT: Final = 8

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Result:
    """Ratios are raw bytes / stored bytes of bare blobs, one vector each; times are us, p50."""

    vectors: int
    dim: int
    bound: float
    ratio: float
    cosine_min: float
    cosine_mean: float
    learned_from: int
    learned_ratio: float | None  # with a pack; None where none was learned
    learned_cosine_min: float | None
    lossless_ratio: float
    lossless_exact: int
    encode_us: float
    decode_us: float


def vectors_of(values: Sequence[Any]) -> Floats:
    """float32[len(values), DIM] of norm 1, the same on every machine."""
    directions = np.random.RandomState(SEED).standard_normal((WORDS, DIM))
    out = np.zeros((len(values), DIM))
    for row, value in zip(out, values, strict=True):
        for word in re.findall(r"\w+", value if isinstance(value, str) else repr(value)):
            weight = len(word) / (len(word) + COMMON)
            row += weight * directions[zlib.crc32(word.lower().encode("utf-8", "replace")) % WORDS]
    out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)
    found: Floats = out[out.any(axis=1)].astype(np.float32)
    return found


def run(limit: int | None, tick: Tick | None) -> Result:
    """Vectors of the shipped samples, at most `limit` of each kind, without a pack and with one.

    The NumPy reference, which takes long, is given FEW generated ones and no pack.
    """
    kept: dict[str, int] = {}
    values = []
    for sample in samples.load():
        number = kept[sample.kind] = kept.get(sample.kind, 0) + 1
        if sample.kind != "short" and (limit is None or number <= limit):
            values.append(sample.value)
    quick = kernel.backend == "c"
    rows = vectors_of(values) if quick else vectors_of([one.value for one in samples.generate(LEARNED, SEED)[:FEW]])
    codec = Codec()
    sizes, cosines, encode, decode = _coded(codec, rows)
    learned_sizes: list[int] = []
    learned_cosines: list[float] = []
    if quick:
        if tick:
            tick("learning a transform", 0, 1)
        others = vectors_of([sample.value for sample in samples.generate(LEARNED, SEED)])
        with tempfile.TemporaryDirectory(prefix="nbmf-quickstart-") as folder:
            pack = Path(folder) / "vectors.nbp"
            try:
                adapt(list(others), pack)
                learned_sizes, learned_cosines = _coded(Codec(domain=str(pack)), rows)[:2]
            except DataError:  # they have nothing in common that would pay
                pass
    exact = [codec.encode(row, bare=True) for row in rows]
    raw = rows.nbytes
    return Result(
        vectors=len(rows),
        dim=DIM,
        bound=DEFAULT.cosine or 0.0,
        ratio=raw / sum(sizes),
        cosine_min=min(cosines),
        cosine_mean=sum(cosines) / len(cosines),
        learned_from=LEARNED if learned_sizes else 0,
        learned_ratio=raw / sum(learned_sizes) if learned_sizes else None,
        learned_cosine_min=min(learned_cosines) if learned_cosines else None,
        lossless_ratio=raw / sum(map(len, exact)),
        lossless_exact=sum(
            codec.decode(blob, bare=True).tobytes() == row.tobytes() for blob, row in zip(exact, rows, strict=True)
        ),
        encode_us=median(encode),
        decode_us=median(decode),
    )


def _coded(codec: Codec, rows: Floats) -> tuple[list[int], list[float], list[float], list[float]]:
    """Of each vector the blob's bytes, the cosine of what comes back, and us to encode and decode."""
    codec.decode(codec.encode(rows[0], bare=True, fidelity="semantic"), bare=True)  # which loads what they need
    sizes, cosines, encode, decode = [], [], [], []
    for row in rows:
        start = time.perf_counter_ns()
        blob = codec.encode(row, bare=True, fidelity="semantic")
        middle = time.perf_counter_ns()
        back = codec.decode(blob, bare=True)
        end = time.perf_counter_ns()
        a, b = row.astype(np.float64), back.astype(np.float64)
        sizes.append(len(blob))
        cosines.append(float(a @ b / np.sqrt((a @ a) * (b @ b))))
        encode.append((middle - start) / 1000)
        decode.append((end - middle) / 1000)
    return sizes, cosines, encode, decode


def render(result: Result, out: Console) -> None:
    """What is written, and what it gave."""
    out.print("[bold]Vectors.[/bold] Such as an embedder makes; these are made from the samples' words.\n")
    out.print(Text('  blob = codec.encode(vector, fidelity="semantic")', style="bold"))
    lines = [
        (
            f"{result.ratio:.2f}×",
            f"smaller than {result.dim} floats; of {result.vectors} vectors the farthest has a cosine of "
            f"{result.cosine_min:.5f}, the bound being {result.bound}",
        )
    ]
    if result.learned_ratio is not None:
        lines.append(
            (
                f"{result.learned_ratio:.2f}×",
                f"with a pack learned from {result.learned_from:,} others; farthest {result.learned_cosine_min:.5f}",
            )
        )
    lines.append((f"{result.lossless_ratio:.2f}×", f"lossless, {result.lossless_exact} of {result.vectors} exact"))
    lines.append(
        (
            f"{result.encode_us:.0f}/{result.decode_us:.0f} µs",
            "to encode and to decode one; each is measured as it is written",
        )
    )
    for figure, said in lines:
        out.print(Text.assemble(" " * INDENT, (figure.ljust(INDENT + 2), "bold green"), said))
