"""Codec over a small fake coder: the race, the framing, batches, limits and errors, whatever the model does."""

import lzma
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbmf.codec import codec as codec_module
from nbmf.codec import format
from nbmf.codec.codec import Codec
from nbmf.codec.model import MODEL_MAGIC, Model, build_file
from nbmf.codec.values import to_raw
from nbmf.errors import (
    CorruptRecord,
    FormatError,
    NbmfError,
    OutputLimit,
    PolicyError,
    StreamError,
    StreamLimit,
    UnknownModel,
    UnsupportedValue,
)

ID = bytes(range(200, 232))


PHRASES = b"tomorrow, please? Could you book two seats on the 9:40 train to Ghent "
LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 16}]


class FakeCoder:
    """The better of deflate primed with PHRASES and LZMA. It ends by itself and is keyed to the value type."""

    def __init__(self) -> None:
        self.batches: list[int] = []  # sizes of the batches that came through encode_many and decode_many
        self.lie = False  # decode something else than was encoded

    def encode(self, raw: bytes, value_type: int, profile: int = 0) -> bytes:
        assert 0 < len(raw) <= format.SEGMENT_SIZE
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, PHRASES)
        first = bytes([value_type]) + deflate.compress(raw) + deflate.flush()
        second = bytes([value_type | 4]) + lzma.compress(raw, lzma.FORMAT_RAW, filters=LZMA)
        return min(first, second, key=len)

    def decode(self, payload: bytes, value_type: int, profile: int = 0, max_out: int = 1 << 18) -> bytes:
        tag = payload[0] if payload else 255
        if tag & ~4 != value_type:
            raise StreamError("another value type")
        stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=LZMA) if tag & 4 else zlib.decompressobj(-15, PHRASES)
        try:
            raw = stream.decompress(payload[1:], max_out + 1)
        except (zlib.error, lzma.LZMAError) as error:
            raise StreamError(str(error)) from None
        if len(raw) > max_out:
            raise StreamLimit("over max_out")
        if not stream.eof or stream.unused_data:
            raise StreamError("no end, or bytes after it")
        return raw[::-1] if self.lie else raw

    def costs(self, raw: bytes, value_type: int, profile: int = 0) -> bytes:
        return bytes(2 * len(raw) + 2)

    def encode_many(self, raws: list[bytes], value_types: bytes, profile: int, threads: int) -> list[bytes]:
        self.batches.append(len(raws))
        return [self.encode(raw, kind, profile) for raw, kind in zip(raws, value_types, strict=True)]

    def decode_many(
        self, payloads: list[bytes], value_types: bytes, profile: int, threads: int, max_out: int = 1 << 18
    ) -> list[bytes]:
        self.batches.append(len(payloads))
        return [self.decode(data, kind, profile, max_out) for data, kind in zip(payloads, value_types, strict=True)]


@pytest.fixture
def coder(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCoder]:
    fake = FakeCoder()
    model = Model(Path("fake.nbm"), ID, build_file(MODEL_MAGIC, {}))  # type: ignore[arg-type]
    monkeypatch.setattr(codec_module, "load_model", lambda _name: model)
    monkeypatch.setattr(codec_module, "_coder", lambda _model, _pack: fake)
    yield fake


@pytest.fixture
def codec(coder: FakeCoder) -> Codec:
    return Codec()


any_text = st.text(st.characters(exclude_categories=()))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text
json_values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(any_text, inner), max_leaves=20)
long_texts = st.builds(lambda words, times: " ".join(words) * times, st.lists(st.text(max_size=8)), st.integers(1, 60))
values = json_values | st.binary() | long_texts | st.binary(min_size=1, max_size=9).map(lambda piece: piece * 50)
shared_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)

TALK = "Could you book two seats on the 9:40 train to Ghent tomorrow, please? Two seats, and no more than two."
NOISE = np.random.default_rng(7).bytes(300)


def identical(left: Any, right: Any) -> bool:
    return type(left) is type(right) and repr(left) == repr(right)


@shared_fixture
@given(value=values, bare=st.booleans(), verify=st.booleans())
def test_values_come_back(codec: Codec, value: Any, bare: bool, verify: bool) -> None:
    blob = codec.encode(value, bare=bare, verify=verify)
    assert identical(codec.decode(blob, bare=bare), value)
    assert codec.encode(value, bare=bare) == blob


@shared_fixture
@given(value=values, bare=st.booleans())
def test_the_smallest_method_wins(codec: Codec, coder: FakeCoder, value: Any, bare: bool) -> None:
    value_type, raw = to_raw(value)
    stored = len(raw)
    zstd = len(format.zstd_compress(raw))
    neural = len(coder.encode(raw, value_type)) + (0 if bare else 4) if raw else stored + 1
    blob = codec.encode(value, bare=bare)
    assert len(blob) - (3 if bare else 5) == min(stored, zstd, neural)
    if stored == min(zstd, stored, neural):
        assert format.parse(blob, bare=bare).method == format.STORED


def test_each_method_is_used(codec: Codec) -> None:
    assert format.parse(codec.encode(TALK), bare=False).method == format.NEURAL
    assert format.parse(codec.encode(NOISE), bare=False).method == format.STORED
    assert format.parse(codec.encode(""), bare=False).method == format.STORED
    assert format.parse(codec.encode(NOISE * 2), bare=False).method == format.ZSTD
    assert len(codec.encode("", bare=True)) == 3
    assert len(codec.encode("")) == 5


def test_a_self_describing_blob_names_the_model(codec: Codec) -> None:
    parsed = format.parse(codec.encode(TALK), bare=False)
    assert parsed.id == ID[:4]
    assert codec.id.startswith(ID[:4].hex())
    assert format.parse(codec.encode(TALK, bare=True), bare=True).id == b""


@shared_fixture
@given(batch=st.lists(values, max_size=12), bare=st.booleans(), verify=st.booleans())
def test_batches_equal_a_loop(codec: Codec, batch: list[Any], bare: bool, verify: bool) -> None:
    blobs = codec.encode_many(iter(batch), bare=bare, verify=verify)
    assert blobs == [codec.encode(value, bare=bare) for value in batch]
    back = codec.decode_many(iter(blobs), bare=bare)
    assert all(identical(*pair) for pair in zip(back, batch, strict=True))


def test_a_batch_is_one_kernel_call(codec: Codec, coder: FakeCoder) -> None:
    blobs = codec.encode_many([TALK + str(turn) for turn in range(50)])
    assert coder.batches == [50]
    coder.batches.clear()
    codec.decode_many([*blobs, codec.encode(NOISE)])
    assert coder.batches == [50]


# -- large values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [-1, 0, 1, format.SEGMENT_SIZE])
def test_segments_begin_past_their_size(codec: Codec, extra: int) -> None:
    # Skewed bits take a whole bit each in zstd's Huffman codes, and less under a range coder.
    words = (np.random.default_rng(1).random(format.SEGMENT_SIZE + extra) < 0.02).astype(np.uint8).tobytes()
    blob = codec.encode(words, verify=True)
    parsed = format.parse(blob, bare=False)
    assert parsed.method == format.NEURAL
    assert parsed.segmented == (extra > 0)
    assert codec.decode(blob) == words
    assert codec.decode_many([blob]) == codec.decode_many(codec.encode_many([words])) == [words]


def test_ten_megabytes_and_great_depth(codec: Codec) -> None:
    text = TALK * (10_000_000 // len(TALK))
    assert codec.decode(codec.encode(text)) == text
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    back = codec.decode(codec.encode(deep, verify=True))
    depth = 0
    while back:
        (back,) = back
        depth += 1
    assert depth == 100_000


def neural_blob(payload: bytes, *, segmented: bool = False, raw: bytes = b"", header: int = 0) -> bytes:
    blob = format.build(format.NEURAL, 0, format.crc(0, raw), payload, bare=False, segmented=segmented, id=ID[:4])
    return bytes([blob[0] | header]) + blob[1:]


def test_segments_of_wrong_sizes(codec: Codec, coder: FakeCoder) -> None:
    full, rest = bytes(format.SEGMENT_SIZE), b"rest"
    part = {raw: coder.encode(raw, 0) for raw in (full, rest)}
    good = neural_blob(format.join_segments([part[full], part[rest]]), segmented=True, raw=full + rest)
    assert codec.decode(good) == (full + rest).decode()
    for order in ([rest, full], [rest, rest], [full]):
        joined = format.join_segments([part[raw] for raw in order])
        with pytest.raises(CorruptRecord, match="segment"):
            codec.decode(neural_blob(joined, segmented=True, raw=b"".join(order)))


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NOISE, TALK, b"ab" * 5000, NOISE * 300])
@pytest.mark.parametrize("bare", [False, True])
def test_output_is_capped(codec: Codec, coder: FakeCoder, value: Any, bare: bool) -> None:
    blob = codec.encode(value, bare=bare)
    size = len(to_raw(value)[1])
    assert Codec(max_out=size).decode(blob, bare=bare) == value
    assert Codec(max_out=size).decode_many([blob], bare=bare) == [value]
    with pytest.raises(OutputLimit, match=str(size - 1)):
        Codec(max_out=size - 1).decode(blob, bare=bare)
    with pytest.raises(OutputLimit):
        Codec(max_out=size - 1).decode_many([blob], bare=bare)


def test_a_payload_past_its_segment_is_corrupt(codec: Codec) -> None:
    bomb = b"\x04" + lzma.compress(bytes(50 << 20), lzma.FORMAT_RAW, filters=LZMA)
    with pytest.raises(CorruptRecord):
        codec.decode(neural_blob(bomb))
    with pytest.raises(CorruptRecord):
        codec.decode_many([neural_blob(bomb)])
    with pytest.raises(OutputLimit):
        Codec(max_out=1000).decode(neural_blob(bomb))


# -- refusals and damage -----------------------------------------------------------------------------------------------


def test_refusals(codec: Codec) -> None:
    with pytest.raises(PolicyError, match="neither lossless nor semantic"):
        codec.encode("x", fidelity="exact")
    with pytest.raises(PolicyError):
        Codec(profile="slow")
    with pytest.raises(UnsupportedValue, match=r"\$\.a\[0\]: tuple"):
        codec.encode({"a": [()]})
    with pytest.raises(UnsupportedValue, match="NaN"):
        codec.encode(float("nan"))
    assert repr(codec.decode(codec.encode([float("nan")], allow_nan=True))) == "[nan]"
    with pytest.raises(UnsupportedValue):
        codec.encode_many(["fine", {1}])


def test_verify_catches_a_coder_that_is_wrong(codec: Codec, coder: FakeCoder) -> None:
    coder.lie = True
    blob = codec.encode(TALK)
    for attempt in (
        lambda: codec.encode(TALK, verify=True),
        lambda: codec.encode_many([TALK], verify=True),
        lambda: codec.decode(blob),
        lambda: codec.decode_many([blob]),
    ):
        with pytest.raises(CorruptRecord):
            attempt()


def test_bare_and_self_describing_are_not_confused(codec: Codec) -> None:
    for value in (TALK, NOISE, "ab" * 5000):
        with pytest.raises(FormatError, match="bare"):
            codec.decode(codec.encode(value), bare=True)
        with pytest.raises(FormatError, match="bare"):
            codec.decode(codec.encode(value, bare=True))


def test_an_unknown_model_is_named(codec: Codec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NBMF_MODELS", str(tmp_path))
    blob = bytearray(codec.encode(TALK))
    blob[5:9] = bytes.fromhex("0badf00d")
    for attempt in (lambda: codec.decode(bytes(blob)), lambda: codec.decode_many([bytes(blob)])):
        with pytest.raises(UnknownModel, match="0badf00d"):
            attempt()


@pytest.mark.parametrize("header", [0x80, 0x03, 0x50])
def test_reserved_bits(codec: Codec, header: int) -> None:
    blob = codec.encode(NOISE)
    with pytest.raises(FormatError):
        codec.decode(bytes([blob[0] | header]) + blob[1:])
    with pytest.raises(FormatError):
        codec.decode(b"")


@pytest.mark.parametrize("value", [TALK, NOISE, b"ab" * 5000, {"a": [1, 2.5, None], "b": TALK}])
def test_no_single_flip_gives_a_wrong_value(codec: Codec, value: Any) -> None:
    blob = codec.encode(value)
    for bit in range(8 * len(blob)):
        flipped = bytearray(blob)
        flipped[bit >> 3] ^= 1 << (bit & 7)
        try:
            back = codec.decode(bytes(flipped))
        except NbmfError as error:
            assert "\n" not in str(error)
        else:
            assert identical(back, value)
    for length in range(len(blob)):
        with pytest.raises(NbmfError):
            codec.decode(blob[:length])


@shared_fixture
@given(blob=st.binary(max_size=60), bare=st.booleans())
def test_foreign_bytes_give_a_clear_error(codec: Codec, blob: bytes, bare: bool) -> None:
    for attempt in (lambda: codec.decode(blob, bare=bare), lambda: codec.decode_many([blob], bare=bare)):
        try:
            attempt()
        except NbmfError as error:
            assert "\n" not in str(error)


def test_one_bad_blob_fails_its_batch(codec: Codec) -> None:
    good = codec.encode(TALK)
    bad = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(CorruptRecord):
        codec.decode_many([good, bad, good])


# -- overhead ----------------------------------------------------------------------------------------------------------


class InstantCoder(FakeCoder):
    def encode(self, raw: bytes, value_type: int, profile: int = 0) -> bytes:
        return b"0123456789012345678901234567890123456789"


def test_python_costs_little_beside_the_kernel(codec: Codec) -> None:
    codec.coder = InstantCoder()
    record = {"role": "user", "content": TALK[:100], "meta": {"turn": 12, "score": 0.75, "tags": ["travel", "train"]}}
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(100):
            codec.encode(record, bare=True)
        best = min(best, (time.perf_counter() - start) / 100)
    assert best < 60e-6  # about 11 us where this was written; the bound leaves room for slow machines
