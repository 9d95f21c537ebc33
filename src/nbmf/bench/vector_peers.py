"""What else makes vectors small: float16, the quantizers of FAISS, and lossless coders of floats."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import zstandard

from nbmf.errors import NbmfError

Floats = npt.NDArray[np.float32]

LEVEL: Final = 19  # of zstd and its planes
PQ_FLOATS: Final = (2, 4)  # floats that one byte of a product quantizer stands for
LEAST: Final = 256  # vectors from which on a product quantizer can be trained


class Peer(NamedTuple):
    """A coder's name, what it was set to, its bytes a vector, what comes back, and us a vector to code and decode."""

    name: str
    setting: str
    size: float
    back: Floats
    encode_us: float
    decode_us: float


def package(name: str) -> Any:
    """A peer's package. Raises NbmfError, naming the extra that brings it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NbmfError(
            f"the peer {name} isn't installed: pip install 'nbmf[bench]', or go without with --no-peers"
        ) from None


def every(learned: Floats, tested: Floats) -> Iterator[Peer]:
    """Each peer on `tested`, trained on `learned` where it trains. Codebooks and headers are not counted.

    Raises NbmfError where one is not installed.
    """
    faiss, pcodec = package("faiss"), package("pcodec")
    faiss.omp_set_num_threads(1)
    yield _half(tested)
    yield from _faiss(faiss, learned, tested)
    yield _alone(
        "zstd over byte planes",
        f"level {LEVEL}; the first bytes of all floats, then the second ...",
        tested,
        lambda row: zstandard.ZstdCompressor(level=LEVEL, write_content_size=False).compress(_planes(row)),
        lambda data: _joined(zstandard.ZstdDecompressor().decompress(data, max_output_size=tested.shape[1] * 4)),
    )
    standalone, config = pcodec.standalone, pcodec.ChunkConfig()
    yield _alone(
        "pcodec",
        "its defaults",
        tested,
        lambda row: standalone.simple_compress(row, config),
        lambda data: standalone.simple_decompress(data),
    )


def _half(tested: Floats) -> Peer:
    start = time.perf_counter()
    codes = tested.astype(np.float16)
    middle = time.perf_counter()
    back = codes.astype(np.float32)
    end = time.perf_counter()
    return Peer("float16", "to nearest", 2.0 * tested.shape[1], back, *_each(tested, middle - start, end - middle))


def _faiss(faiss: Any, learned: Floats, tested: Floats) -> Iterator[Peer]:
    dim = tested.shape[1]
    kinds = faiss.ScalarQuantizer
    for name, kind in (("FAISS SQ8", kinds.QT_8bit), ("FAISS SQ4", kinds.QT_4bit)):
        index = faiss.IndexScalarQuantizer(dim, kind)
        index.train(learned)
        yield _indexed(name, "a range for each float, learned", index, tested)
    for floats in PQ_FLOATS:
        if len(learned) < LEAST or dim % floats:
            continue
        index = faiss.IndexPQ(dim, dim // floats, 8)
        index.pq.cp.min_points_per_centroid = 1  # says nothing of there being few
        index.train(learned)
        yield _indexed(f"FAISS PQ, {floats} floats a byte", "256 centroids each, learned", index, tested)


def _indexed(name: str, setting: str, index: Any, tested: Floats) -> Peer:
    start = time.perf_counter()
    codes = index.sa_encode(tested)
    middle = time.perf_counter()
    back = index.sa_decode(codes)
    end = time.perf_counter()
    return Peer(name, setting, float(index.sa_code_size()), back, *_each(tested, middle - start, end - middle))


def _alone(
    name: str, setting: str, tested: Floats, encode: Callable[[Floats], bytes], decode: Callable[[bytes], Floats]
) -> Peer:
    start = time.perf_counter()
    codes = [encode(row) for row in tested]
    middle = time.perf_counter()
    back = np.stack([decode(code) for code in codes])
    end = time.perf_counter()
    size = sum(map(len, codes)) / len(codes)
    return Peer(name, setting, size, back, *_each(tested, middle - start, end - middle))


def _each(tested: Floats, encode: float, decode: float) -> tuple[float, float]:
    return encode * 1e6 / len(tested), decode * 1e6 / len(tested)


def _planes(row: Floats) -> bytes:
    return np.ascontiguousarray(row.view(np.uint8).reshape(-1, 4).T).tobytes()


def _joined(planes: bytes) -> Floats:
    return np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(4, -1).T).view(np.float32).ravel()
