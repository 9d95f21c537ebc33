"""The compressors that `nbmf bench` measures beside the codec, each tuned on the very records, one record at a time."""

import functools
import importlib
import lzma
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import zstandard
from numpy.typing import NDArray

from nbmf.bench.figures import fastest
from nbmf.codec.values import TEXT
from nbmf.errors import NbmfError
from nbmf.quickstart import PEER_LEVEL, timed, zstd_compressor, zstd_size
from nbmf.report import Tick

DICTIONARY_KB: Final = (110, 512)  # the best of them is kept
DICTIONARY_DATA: Final = 100  # a dictionary is trained on at most this many times its size, as zstd advises
PPMD_ORDERS: Final = (3, 4, 5, 6, 8)
PPMD_MEMORY: Final = 1 << 20  # bytes; larger records get more
LZMA_LITERAL_BITS: Final = (0, 3)  # lc
BROTLI_SMALL: Final = 1 << 15  # bytes up to which the smallest window, whose header is shortest, loses nothing
ROUNDS: Final = 3  # times each record is coded; one that takes long is compressed once
SLOW: Final = 4000.0  # ms
TUNING: Final = 400  # records on which a peer's setting is chosen
OWN: Final = "zstd-19+dict"  # of a half of the records themselves
BASE: Final = "zstd-19+base dict"  # of the training data
MODULES: Final = {"brotli": "brotli", "pyppmd": "pyppmd", "smaz": "smaz-py3", "unishox2": "unishox2-py3"}

Sizes = NDArray[np.float64]  # a record's stored bytes; NaN where the peer was not measured


@dataclass(frozen=True)
class Peer:
    """A compressor's size of every record, under the setting that is best for them together, and what it took.

    Speeds are raw MB a second, a record at a time on one core; `exact` counts the records that came back.
    """

    name: str
    setting: str
    sizes: Sizes
    exact: int
    encode_mb_s: float
    decode_mb_s: float
    bytes: int = 0  # of its dictionary


@dataclass(frozen=True)
class Way:
    """A compressor under one setting. `decompress` is told the raw size, which some need and a store would keep."""

    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes, int], bytes]


@functools.cache
def module(name: str) -> Any:
    """A peer's Python package. Raises NbmfError, naming the extra that brings it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NbmfError(
            f"the peer {MODULES[name]} isn't installed: pip install 'nbmf[bench]', or go without with --no-peers"
        ) from None


def require() -> None:
    """Raises NbmfError when a peer is missing, before any work is done."""
    for name in MODULES:
        module(name)


# -- without a dictionary ----------------------------------------------------------------------------------------------


def zlib_way() -> Way:
    return Way(lambda raw: zlib.compress(raw, 9), lambda packed, size: zlib.decompress(packed))


def zstd_way() -> Way:
    """Magicless frames without size and checksum; the raw size is a hint that sets the window."""
    decompressor = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    return Way(
        lambda raw: zstd_compressor(len(raw)).compress(raw),
        lambda packed, size: decompressor.decompress(packed, max_output_size=size),
    )


def brotli_way() -> Way:
    brotli = module("brotli")
    return Way(
        lambda raw: bytes(brotli.compress(raw, quality=11, lgwin=16 if len(raw) <= BROTLI_SMALL else 22)),
        lambda packed, size: bytes(brotli.decompress(packed)),
    )


def ppmd_way(order: int) -> Way:
    """A PPMd variant H stream, which says nothing of its length."""
    ppmd = module("pyppmd")

    def compress(raw: bytes) -> bytes:
        coder = ppmd.Ppmd7Encoder(order, max(PPMD_MEMORY, 16 * len(raw)))
        return bytes(coder.encode(raw) + coder.flush())

    def decompress(packed: bytes, size: int) -> bytes:
        return bytes(ppmd.Ppmd7Decoder(order, max(PPMD_MEMORY, 16 * size)).decode(packed, size))

    return Way(compress, decompress)


def lzma_way(literal_bits: int) -> Way:
    """A raw LZMA1 stream, with its end marker."""

    def chain(size: int) -> list[dict[str, Any]]:
        return [
            {
                "id": lzma.FILTER_LZMA1,
                "preset": 9 | lzma.PRESET_EXTREME,
                "dict_size": max(1 << 12, size),
                "lc": literal_bits,
                "lp": 0,
                "pb": 0,
            }
        ]

    return Way(
        lambda raw: lzma.compress(raw, format=lzma.FORMAT_RAW, filters=chain(len(raw))),
        lambda packed, size: lzma.decompress(packed, format=lzma.FORMAT_RAW, filters=chain(size)),
    )


def short_text_way(name: str) -> Way:
    """smaz or unishox2, for texts. One that it refuses is stored as it is, at no cost for saying so."""
    package = module(name)
    refused: set[bytes] = set()

    def compress(raw: bytes) -> bytes:
        try:
            packed = package.compress(raw.decode("utf-8"))
        except ValueError:  # smaz: an embedded NUL; both: a lone surrogate
            refused.add(raw)
            return raw
        return bytes(packed[0] if isinstance(packed, tuple) else packed)

    def decompress(packed: bytes, size: int) -> bytes:
        if packed in refused:
            return packed
        # unishox2 writes past a length that is too small, so it is given more room than any text can take.
        text = package.decompress(packed, 4 * size + 256) if name == "unishox2" else package.decompress(packed)
        return str(text).encode("utf-8", "surrogatepass")

    return Way(compress, decompress)


def contestants() -> list[tuple[str, bool, Mapping[str, Way]]]:
    """Name, whether it is for texts alone, and its settings."""
    return [
        ("zlib-9", False, {"level 9": zlib_way()}),
        ("zstd-19", False, {f"level {PEER_LEVEL}, magicless": zstd_way()}),
        ("brotli-11", False, {"quality 11": brotli_way()}),
        ("ppmd", False, {f"PPMd7, order {n}": ppmd_way(n) for n in PPMD_ORDERS}),
        ("lzma", False, {f"raw LZMA1, 9e, lc={n} pb=0": lzma_way(n) for n in LZMA_LITERAL_BITS}),
        ("unishox2", True, {"default": short_text_way("unishox2")}),
        ("smaz", True, {"default": short_text_way("smaz")}),
    ]


def measured(
    name: str, setting: str, way: Way, raws: Sequence[bytes], places: Sequence[int], tick: Tick, cost: int = 0
) -> Peer:
    """A peer's sizes of the records at `places`, its speeds, and how many of them came back exactly."""
    sizes = np.full(len(raws), np.nan)
    packed: list[bytes] = []
    encode_ms: list[list[float]] = []
    decode_ms: list[list[float]] = []
    exact = 0
    for done, at in enumerate(places, 1):
        raw = raws[at]
        blob, took = timed(lambda raw=raw: way.compress(raw))  # type: ignore[misc]
        encode_ms.append([took])
        packed.append(blob)
        sizes[at] = len(blob)
        if done % 64 == 0 or done == len(places):
            tick(f"measuring {name}", done, len(places))
    again = ROUNDS if sum(map(sum, encode_ms)) < SLOW else 1
    for turn in range(ROUNDS):
        for number, (at, blob) in enumerate(zip(places, packed, strict=True)):
            raw = raws[at]
            back, took = timed(lambda raw=raw, blob=blob: way.decompress(blob, len(raw)))  # type: ignore[misc]
            if turn == 0:
                decode_ms.append([])
                exact += back == raw
            decode_ms[number].append(took)
            if 0 < turn < again:
                encode_ms[number].append(timed(lambda raw=raw: way.compress(raw))[1])  # type: ignore[misc]
    raw_bytes = sum(len(raws[at]) for at in places)
    return Peer(name, setting, sizes, exact, fastest(raw_bytes, encode_ms), fastest(raw_bytes, decode_ms), cost)


def without_dictionary(raws: Sequence[bytes], types: Sequence[int], tick: Tick) -> list[Peer]:
    """Every peer that needs no dictionary. Empty records are left out: the short-text peers have no form for them."""
    peers = []
    for name, texts_only, ways in contestants():
        places = [at for at, raw in enumerate(raws) if raw and (not texts_only or types[at] == TEXT)]
        if not places:
            continue
        trial = [raws[at] for at in places[:: max(1, len(places) // TUNING)]]
        totals = {
            setting: sum(len(way.compress(raw)) for raw in trial) for setting, way in ways.items() if len(ways) > 1
        }
        setting = min(ways, key=lambda one: totals.get(one, 0))
        peers.append(measured(name, setting, ways[setting], raws, places, tick))
    return peers


# -- with a dictionary -------------------------------------------------------------------------------------------------


def dictionary(learned: Sequence[bytes], size: int) -> zstandard.ZstdCompressionDict:
    """A dictionary of at most `size` bytes; the last of the records themselves where they are too few to train on."""
    kept: list[bytes | bytearray | memoryview[int]] = []
    room = size * DICTIONARY_DATA
    for raw in learned:
        room -= len(raw)
        if room < 0:
            break
        kept.append(raw)
    try:
        return zstandard.train_dictionary(size, kept)
    except zstandard.ZstdError:
        return zstandard.ZstdCompressionDict(b"".join(learned)[-size:], dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def compressor_with(learned: zstandard.ZstdCompressionDict) -> zstandard.ZstdCompressor:
    """It makes magicless frames without size, checksum or dictionary id."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        PEER_LEVEL,
        source_size=1024,
        dict_size=len(learned),
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )
    learned.precompute_compress(compression_params=parameters)
    return zstandard.ZstdCompressor(compression_params=parameters, dict_data=learned)


def dictionary_way(learned: zstandard.ZstdCompressionDict) -> Way:
    compressor = compressor_with(learned)
    decompressor = zstandard.ZstdDecompressor(learned, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    return Way(
        lambda raw: compressor.compress(raw), lambda packed, size: decompressor.decompress(packed, max_output_size=size)
    )


def best_dictionary(learned: Sequence[bytes], tested: Sequence[bytes]) -> tuple[int, Way, int] | None:
    """KB, way and bytes of the dictionary learned from `learned` that suits `tested` best; None without any."""
    best: tuple[int, int, Way, int] | None = None
    for kb in DICTIONARY_KB:
        found = dictionary(learned, kb << 10)
        if not len(found):
            continue
        way = dictionary_way(found)
        total = sum(len(way.compress(raw)) for raw in tested)
        if best is None or total < best[0]:
            best = total, kb, way, len(found)
    return best[1:] if best else None


def with_dictionary(learned: Sequence[bytes], tested: Sequence[bytes]) -> tuple[int, list[int]]:
    """The KB of the best dictionary learned from `learned`, and each tested record's size with it."""
    found = best_dictionary(learned, tested)
    if found is None:
        return 0, [zstd_size(raw) for raw in tested]
    kb, way, _ = found
    return kb, [len(way.compress(raw)) for raw in tested]


def own_dictionary(raws: Sequence[bytes], tick: Tick) -> Peer | None:
    """zstd with a dictionary of the first half of the records, measured on the other half."""
    half = len(raws) // 2
    return _dictionary_peer(OWN, "the first half", raws, raws[:half], range(half, len(raws)), tick)


def base_dictionary(raws: Sequence[bytes], learned: Sequence[bytes], tick: Tick) -> Peer | None:
    """zstd with a dictionary of other records, such as the model was trained on."""
    return _dictionary_peer(BASE, "the training data", raws, learned, range(len(raws)), tick)


def _dictionary_peer(
    name: str, source: str, raws: Sequence[bytes], learned: Sequence[bytes], where: range, tick: Tick
) -> Peer | None:
    places = [at for at in where if raws[at]]
    if not places or not any(learned):
        return None
    tick(f"measuring {name}", 0, len(places))
    found = best_dictionary(learned, [raws[at] for at in places[:: max(1, len(places) // TUNING)]])
    if found is None:
        return None
    kb, way, size = found
    setting = f"level {PEER_LEVEL}, magicless, {kb} KB dictionary trained on {source}"
    return measured(name, setting, way, raws, places, tick, size)


def every_peer(
    raws: Sequence[bytes], types: Sequence[int], learned: Sequence[bytes] | None, tick: Tick
) -> tuple[list[Peer], dict[str, str]]:
    """All peers, and those that were left out with the reason. `learned`: what the base dictionary is trained on."""
    found = without_dictionary(raws, types, tick)
    left_out = {
        name: "there is no text among the records"
        for name, texts, _ in contestants()
        if texts and not any(one.name == name for one in found)
    }
    own = own_dictionary(raws, tick)
    if own is None:
        left_out[OWN] = "the records are too few to train a dictionary on"
    base = base_dictionary(raws, learned, tick) if learned is not None else None
    if base is None:
        left_out[BASE] = "it needs --train-dict, with the records that the model was trained on"
    found[2:2] = [one for one in (own, base) if one is not None]
    return found, left_out
