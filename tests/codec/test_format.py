"""Blob header, segments, and zstd frames."""

import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from nbmf.codec import format
from nbmf.codec.format import ARRAY, NEURAL, SEGMENT_SIZE, STORED, ZSTD
from nbmf.errors import CorruptRecord, FormatError, OutputLimit

MAX_OUT = 1 << 20


@given(
    method=st.sampled_from([STORED, ZSTD, NEURAL]),
    value_type=st.integers(0, 3),
    crc32=st.integers(0, 2**32 - 1),
    payload=st.binary(),
    bare=st.booleans(),
    profile=st.integers(0, 1),
    segmented=st.booleans(),
    id=st.binary(min_size=4, max_size=4),
)
def test_parse_gives_what_was_built(
    method: int, value_type: int, crc32: int, payload: bytes, bare: bool, profile: int, segmented: bool, id: bytes
) -> None:
    neural = method == NEURAL
    profile, segmented = (profile, segmented) if neural else (0, False)
    blob = format.build(
        method, value_type, crc32, payload, bare=bare, profile=profile, segmented=segmented, id=id if neural else b""
    )
    found = format.parse(blob, bare=bare)
    check = format.fold(crc32) if bare else crc32
    named = id if neural and not bare else b""
    assert found == (method, value_type, profile, segmented, not bare, check, named, payload)
    assert len(blob) - len(payload) == (3 if bare else 9 if neural else 5)
    with pytest.raises(FormatError):
        format.parse(blob, bare=not bare)


@pytest.mark.parametrize("header", range(256))
def test_every_header_byte(header: int) -> None:
    """Reserved bits are refused, whatever follows."""
    method, neural_only, future = header & 3, header & 0x50, header & 0x80
    bare = not header & 0x20
    array = method < NEURAL and header & 0x1C == 0x1C
    valid = not future and (method != 3 or bare) and (method >= NEURAL or not neural_only or array)
    blob = bytes([header]) + bytes(20)
    if valid:
        found = format.parse(blob, bare=bare)
        if array:
            assert (found.method, found.value_type) == (ARRAY + method, 4 if header & 0x40 else 3)
            assert (found.profile, found.segmented, found.self_describing) == (0, False, not bare)
            return
        assert (found.method, found.value_type) == (method, header >> 2 & 3)
        assert (found.profile, found.segmented, found.self_describing) == (
            header >> 4 & 1,
            bool(header & 0x40),
            not bare,
        )
    else:
        with pytest.raises(FormatError, match=f"header byte {header:#04x}"):
            format.parse(blob, bare=bare)


def test_no_blob_looks_like_json_text() -> None:
    for bare in (False, True):
        with pytest.raises(FormatError):
            format.parse(b'{"meta": {}, "code": "", "sig": ""}', bare=bare)


@pytest.mark.parametrize(("header", "least"), [(0x20, 5), (0x21, 5), (0x22, 9), (0x00, 3), (0x01, 3), (0x02, 3)])
def test_header_cut_short(header: int, least: int) -> None:
    bare = not header & 0x20
    assert format.parse(bytes([header]).ljust(least, b"\0"), bare=bare).payload == b""
    for size in range(1, least):
        with pytest.raises(FormatError, match=f"a blob of {size} bytes, when its header alone takes {least}"):
            format.parse(bytes([header]).ljust(size, b"\0"), bare=bare)
    with pytest.raises(FormatError, match="an empty blob"):
        format.parse(b"", bare=bare)


def test_what_a_blob_may_be() -> None:
    blob = format.build(STORED, 0, 1, b"abc", bare=True)
    for kind in (bytes, bytearray, memoryview):
        assert format.parse(kind(blob), bare=True).payload == b"abc"
    for other in ("text", None, {"meta": {}}, 5):
        with pytest.raises(FormatError, match="a blob is bytes, not"):
            format.parse(other, bare=True)  # type: ignore[arg-type]


def test_the_check_covers_the_type() -> None:
    assert len({format.crc(value_type, b"abc") for value_type in range(4)}) == 4
    blob = format.parse(format.build(STORED, 1, format.crc(0, b"7"), b"7", bare=False), bare=False)
    with pytest.raises(CorruptRecord):
        format.verify(blob, b"7")


# -- segments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, SEGMENT_SIZE - 1, SEGMENT_SIZE, SEGMENT_SIZE + 1, 2 * SEGMENT_SIZE, 700_000])
def test_split_and_join_raw(size: int) -> None:
    raw = bytes(range(256)) * (size // 256 + 1)
    parts = format.split_raw(raw[:size])
    assert len(parts) == -(-size // SEGMENT_SIZE)
    if len(parts) > 1:
        assert format.join_raw(parts) == raw[:size]


@given(st.lists(st.binary(max_size=300), min_size=2, max_size=8))
def test_split_and_join_segments(payloads: list[bytes]) -> None:
    assert format.split_segments(format.join_segments(payloads), len(payloads) * SEGMENT_SIZE) == payloads
    with pytest.raises(OutputLimit):
        format.split_segments(format.join_segments(payloads), (len(payloads) - 1) * SEGMENT_SIZE)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x01a",  # a single segment
        b"\x01a\x02b",  # longer than what is left
        b"\x01a\x80",  # a length cut short
        b"\x81\x00a\x01b",  # a length that is not the shortest
        b"\x01a\xff\xff\xff\xff\x7f",  # over four bytes
        b"\x01a\xff\xff\xff\x7f",
    ],
)
def test_wrong_segment_lengths(payload: bytes) -> None:
    with pytest.raises(CorruptRecord):
        format.split_segments(payload, MAX_OUT)


def test_wrong_segment_sizes() -> None:
    full = bytes(SEGMENT_SIZE)
    assert format.join_raw([full, b"a"]) == full + b"a"
    for parts in ([full, b""], [full[1:], b"a"], [b"", b"a"], [full, full[1:], b"a"]):
        with pytest.raises(CorruptRecord, match="a segment's size is wrong"):
            format.join_raw(parts)


@given(st.binary(max_size=60))
def test_any_bytes_as_segments(payload: bytes) -> None:
    try:
        parts = format.split_segments(payload, MAX_OUT)
    except (CorruptRecord, OutputLimit):
        return
    assert format.join_segments(parts) == payload


# -- zstd --------------------------------------------------------------------------------------------------------------

raws = (
    st.binary(min_size=1)
    | st.builds(lambda unit, n: unit * n, st.binary(min_size=1, max_size=20), st.integers(1, 3000))
    | st.text(st.sampled_from("ab c"), min_size=1, max_size=400).map(str.encode)
)


@given(raws)
def test_zstd_round_trip(raw: bytes) -> None:
    frame = format.zstd_compress(raw)
    assert format.zstd_decompress(frame, MAX_OUT) == raw
    assert format.zstd_decompress(frame, len(raw)) == raw
    if len(raw) > 1:
        with pytest.raises(OutputLimit):
            format.zstd_decompress(frame, len(raw) - 1)


@given(raws)
def test_zstd_floor_is_one(raw: bytes) -> None:
    frame = format.zstd_compress(raw)
    assert len(frame) >= len(raw) or len(frame) >= format.zstd_floor(raw)


@given(raws)
def test_the_frame_is_zstds_own_without_magic(raw: bytes) -> None:
    frame = format.zstd_compress(raw)
    whole = zstandard.ZstdDecompressor().decompress(b"\x28\xb5\x2f\xfd" + frame, max_output_size=len(raw) + 1)
    assert whole == raw


def test_a_frame_of_high_ratio() -> None:
    raw = bytes(MAX_OUT)
    frame = format.zstd_compress(raw)
    assert len(frame) < 200
    assert format.zstd_decompress(frame, MAX_OUT) == raw
    with pytest.raises(OutputLimit):
        format.zstd_decompress(frame, MAX_OUT - 1)


@given(raws, st.data())
def test_damaged_frames(raw: bytes, data: st.DataObject) -> None:
    """A frame has no check of its own: what decodes at all stays under the cap, and cut frames are refused."""
    frame = format.zstd_compress(raw)
    cut = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(CorruptRecord):
        format.zstd_decompress(frame[:cut], MAX_OUT)
    for extra in (b"\0", frame, b"abcdefgh"):
        with pytest.raises(CorruptRecord):
            format.zstd_decompress(frame + extra, MAX_OUT)
    damaged = bytearray(frame)
    damaged[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert len(format.zstd_decompress(bytes(damaged), MAX_OUT)) <= MAX_OUT
    except (CorruptRecord, OutputLimit) as error:
        assert "\n" not in str(error)


def test_foreign_frames() -> None:
    """Sizes, checksums and large windows in a frame's header are no part of the format."""
    raw = random.Random(1).randbytes(2000) * 3
    for options in (
        {"write_content_size": 1},
        {"write_checksum": 1, "write_content_size": 0},
        {"window_log": 24, "write_content_size": 0},
    ):
        parameters = zstandard.ZstdCompressionParameters(
            compression_level=3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, **options
        )
        frame = zstandard.ZstdCompressor(compression_params=parameters).compress(raw)
        if "window_log" in options:
            stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
            frame = stream.compress(raw) + stream.flush()
        with pytest.raises(CorruptRecord, match="header is not one a blob may have"):
            format.zstd_decompress(frame, MAX_OUT)
