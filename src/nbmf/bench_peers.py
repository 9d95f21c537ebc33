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

from nbmf.codec.values import TEXT
from nbmf.errors import NbmfError
from nbmf.quickstart import PEER_LEVEL, zstd_size
from nbmf.report import Tick

DICTIONARY_KB: Final = (110, 512)  # the best of them is kept
DICTIONARY_DATA: Final = 100  # a dictionary is trained on at most this many times its size, as zstd advises
PPMD_ORDERS: Final = (3, 4, 5, 6, 8)
PPMD_MEMORY: Final = 1 << 20  # bytes; larger records get more
LZMA_LITERAL_BITS: Final = (0, 3)  # lc
BROTLI_SMALL: Final = 1 << 15  # bytes up to which the smallest window, whose header is shortest, loses nothing
TUNING: Final = 400  # records on which a peer's setting is chosen
MODULES: Final = {"brotli": "brotli", "pyppmd": "pyppmd", "smaz": "smaz-py3", "unishox2": "unishox2-py3"}

Sizes = NDArray[np.float64]  # a record's stored bytes; NaN where the peer was not measured
Size = Callable[[bytes], int]


@dataclass(frozen=True)
class Peer:
    """A compressor's size of every record, under the setting that is best for them together."""

    name: str
    setting: str
    sizes: Sizes


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


def zlib_size(raw: bytes) -> int:
    return len(zlib.compress(raw, 9))


def brotli_size(raw: bytes) -> int:
    window = 16 if len(raw) <= BROTLI_SMALL else 22
    return len(module("brotli").compress(raw, quality=11, lgwin=window))


def ppmd_size(order: int, raw: bytes) -> int:
    """A PPMd variant H stream, which says nothing of its length."""
    coder = module("pyppmd").Ppmd7Encoder(order, max(PPMD_MEMORY, 16 * len(raw)))
    return len(coder.encode(raw)) + len(coder.flush())


def lzma_size(literal_bits: int, raw: bytes) -> int:
    """A raw LZMA1 stream, with its end marker."""
    chain = [
        {
            "id": lzma.FILTER_LZMA1,
            "preset": 9 | lzma.PRESET_EXTREME,
            "dict_size": max(1 << 12, len(raw)),
            "lc": literal_bits,
            "lp": 0,
            "pb": 0,
        }
    ]
    return len(lzma.compress(raw, format=lzma.FORMAT_RAW, filters=chain))


def short_text_size(name: str, raw: bytes) -> int:
    """A text's size under smaz or unishox2. One that it refuses counts as stored."""
    try:
        packed = module(name).compress(raw.decode("utf-8"))
    except ValueError:  # smaz: an embedded NUL; both: a lone surrogate
        return len(raw)
    return len(packed[0] if isinstance(packed, tuple) else packed)


def contestants() -> list[tuple[str, bool, Mapping[str, Size]]]:
    """Name, whether it is for texts alone, and its settings."""
    return [
        ("zlib-9", False, {"level 9": zlib_size}),
        ("zstd-19", False, {f"level {PEER_LEVEL}, magicless": zstd_size}),
        ("brotli-11", False, {"quality 11": brotli_size}),
        ("ppmd", False, {f"PPMd7, order {n}": functools.partial(ppmd_size, n) for n in PPMD_ORDERS}),
        ("lzma", False, {f"raw LZMA1, 9e, lc={n} pb=0": functools.partial(lzma_size, n) for n in LZMA_LITERAL_BITS}),
        ("unishox2", True, {"default": functools.partial(short_text_size, "unishox2")}),
        ("smaz", True, {"default": functools.partial(short_text_size, "smaz")}),
    ]


def without_dictionary(raws: Sequence[bytes], types: Sequence[int], tick: Tick) -> list[Peer]:
    """Every peer that needs no dictionary. Empty records are left out: the short-text peers have no form for them."""
    peers = []
    for name, texts_only, settings in contestants():
        places = [at for at, raw in enumerate(raws) if raw and (not texts_only or types[at] == TEXT)]
        if not places:
            continue
        trial = [raws[at] for at in places[:: max(1, len(places) // TUNING)]]
        totals = {setting: sum(map(size, trial)) for setting, size in settings.items()} if len(settings) > 1 else {}
        setting = min(settings, key=lambda one: totals.get(one, 0))
        sizes = np.full(len(raws), np.nan)
        for done, at in enumerate(places, 1):
            sizes[at] = settings[setting](raws[at])
            if done % 64 == 0 or done == len(places):
                tick(f"measuring {name}", done, len(places))
        peers.append(Peer(name, setting, sizes))
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


def sizes_with(learned: zstandard.ZstdCompressionDict, raws: Sequence[bytes]) -> list[int]:
    """Sizes of the frames of `compressor_with`."""
    compressor = compressor_with(learned)
    return [len(compressor.compress(raw)) for raw in raws]


def with_dictionary(learned: Sequence[bytes], tested: Sequence[bytes]) -> tuple[int, list[int]]:
    """The KB of the best dictionary learned from `learned`, and each tested record's size with it."""
    tried = []
    for kb in DICTIONARY_KB:
        found = dictionary(learned, kb << 10)
        if len(found):
            tried.append((kb, sizes_with(found, tested)))
    if not tried:
        return 0, [zstd_size(raw) for raw in tested]
    return min(tried, key=lambda one: sum(one[1]))


def zstd_with_dictionary(raws: Sequence[bytes], learned: Sequence[bytes] | None, tick: Tick) -> Peer | None:
    """zstd with a dictionary of `learned`; without that, of the first half of `raws`, measured on the other half."""
    start = 0 if learned is not None else len(raws) // 2
    source = "its own training data" if learned is not None else "the first half"
    learned = learned if learned is not None else raws[:start]
    places = [at for at in range(start, len(raws)) if raws[at]]
    if not places or not any(learned):
        return None
    tick("measuring zstd with a dictionary", 0, 1)
    kb, found = with_dictionary(learned, [raws[at] for at in places])
    tick("measuring zstd with a dictionary", 1, 1)
    sizes = np.full(len(raws), np.nan)
    sizes[places] = found
    return Peer("zstd-19+dict", f"level {PEER_LEVEL}, magicless, {kb} KB dictionary trained on {source}", sizes)
