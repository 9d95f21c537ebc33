"""Codec over the shipped model: round trips, guarantees, damage, limits, threads."""

import lzma
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import by_kernel, nested, same, short_values

import nbmf
from nbmf import samples
from nbmf.codec import format, kernel
from nbmf.codec.codec import Codec
from nbmf.codec.format import BARE_FRAMING, ID_SIZE, SEGMENT_SIZE, SELF_FRAMING
from nbmf.codec.values import to_raw
from nbmf.errors import (
    CorruptRecord,
    FormatError,
    NbmfError,
    OutputLimit,
    PolicyError,
    UnknownModel,
    UnsupportedValue,
)

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
GOLDEN_PACK = str(GOLDEN / "golden.nbp")
EXAMPLES = by_kernel(200, 8)
SHORT = 32  # bytes

# One value a method and type, and the edges; small, since each is decoded hundreds of times below.
SMALL: tuple[Any, ...] = (
    "",
    "a",
    "The meeting moved to Thursday at 3.",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    {"role": "user", "ok": True, "n": -0.0},
    [1, 1.0, True, None, [], {}],
    10**40,
    b"\x00\xff\x80binary",
    bytes(200),
    np.array([1.5, np.nan, -0.0], np.float32),
    "lone \ud800 surrogate",
)


@pytest.fixture(scope="module")
def packed() -> Codec:
    return Codec(domain=GOLDEN_PACK)


@pytest.fixture(params=["base", "pack"])
def either(request: pytest.FixtureRequest, codec: Codec, packed: Codec) -> Codec:
    return codec if request.param == "base" else packed


def zstd_size(raw: bytes) -> int:
    """Bytes of zstd's smallest frame at its default level, by the library's own means, less the magic number."""
    return len(zstandard.ZstdCompressor(level=3, write_content_size=False).compress(raw)) - 4


def check_guarantees(codec: Codec, value: Any, **options: Any) -> None:
    raw = to_raw(value, **options)[1]
    least = min(len(raw), zstd_size(raw))
    bare = codec.encode(value, bare=True, **options)
    blob = codec.encode(value, **options)
    assert same(codec.decode(bare, bare=True), value)
    assert same(codec.decode(blob), value)
    assert len(bare) <= least + BARE_FRAMING
    assert len(blob) <= least + SELF_FRAMING
    bare_parts, parts = format.parse(bare, bare=True), format.parse(blob, bare=False)
    assert len(bare) - len(bare_parts.payload) == BARE_FRAMING == 3
    assert len(blob) - len(parts.payload) == SELF_FRAMING + (ID_SIZE if parts.id else 0)
    assert bool(parts.id) == (parts.method == format.NEURAL)


# -- round trips and guarantees ----------------------------------------------------------------------------------------


@given(short_values)
@settings(max_examples=EXAMPLES)
def test_any_value(codec: Codec, value: Any) -> None:
    check_guarantees(codec, value)


@given(short_values)
@settings(max_examples=by_kernel(60, 4))
def test_any_value_with_a_pack(packed: Codec, value: Any) -> None:
    check_guarantees(packed, value)


@pytest.mark.parametrize("value", SMALL, ids=range(len(SMALL)))
def test_edges(either: Codec, value: Any) -> None:
    check_guarantees(either, value)
    assert same(either.decode(either.encode(value, verify=True)), value)
    assert same(either.decode(memoryview(either.encode(value))), value)  # type: ignore[arg-type]


@given(st.integers(0, 2**32 - 1), st.integers(1, by_kernel(3000, 60)), st.integers(1, 255))
@settings(max_examples=by_kernel(100, 5))
def test_noise_never_grows(codec: Codec, seed: int, size: int, symbols: int) -> None:
    source = random.Random(seed)
    check_guarantees(codec, bytes(source.randrange(symbols + 1) for _ in range(size)))


def test_samples(codec: Codec) -> None:
    loaded = samples.load()
    for sample in loaded[:: by_kernel(1, 40)]:
        check_guarantees(codec, sample.value)


def test_samples_come_out_small(codec: Codec) -> None:
    """Not the benchmark: a floor that only a broken model falls under."""
    values = [sample.value for sample in samples.load()[:: by_kernel(1, 40)]]
    raw = sum(len(to_raw(value)[1]) for value in values)
    assert raw > 2.5 * sum(map(len, codec.encode_many(values, bare=True)))


def test_nan_when_allowed(codec: Codec) -> None:
    value = {"a": [float("nan"), float("inf")]}
    check_guarantees(codec, value, allow_nan=True)
    with pytest.raises(UnsupportedValue, match=r"^\$\.a\[0\]: NaN"):
        codec.encode(value)
    with pytest.raises(UnsupportedValue, match=r"^\$: NaN"):
        nbmf.encode(float("nan"))


def test_unsupported_values_name_the_path(codec: Codec) -> None:
    for value, path in (((1,), "$"), ([{"k": {1}}], "$[0].k"), ({"n": np.float32(1)}, "$.n")):
        for encode in (codec.encode, nbmf.encode, lambda one: codec.encode_many([1, one])):
            with pytest.raises(UnsupportedValue) as caught:
                encode(value)
            assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.usefixtures("only_c")
def test_long_integers(codec: Codec) -> None:
    for value in (10**10_000, [-(7**12_000)]):
        check_guarantees(codec, value)


@pytest.mark.usefixtures("only_c")
def test_great_depth(codec: Codec) -> None:
    value = nested(100_000, "x")
    assert same(codec.decode(codec.encode(value)), value)


def test_a_long_integer_and_depth_under_either_kernel(codec: Codec) -> None:
    value = nested(300, [10**150])
    assert same(codec.decode(codec.encode(value)), value)


# -- segments ----------------------------------------------------------------------------------------------------------


def long_text(size: int) -> str:
    """Records one after another: text that the neural method wins."""
    parts: list[str] = []
    left = size
    for sample in samples.stream(seed=7):
        parts.append(str(sample.value))
        left -= len(parts[-1]) + 1
        if left < 0:
            break
    return "\n".join(parts).encode("ascii", "replace").decode()[:size]


@pytest.mark.usefixtures("only_c")
@pytest.mark.parametrize("size", [SEGMENT_SIZE, SEGMENT_SIZE + 1])
def test_where_segments_begin(codec: Codec, size: int) -> None:
    value = long_text(size)
    blob = codec.encode(value, bare=True)
    parsed = format.parse(blob, bare=True)
    assert parsed.method == format.NEURAL
    assert parsed.segmented == (size > SEGMENT_SIZE)
    assert codec.decode(blob, bare=True) == value


@pytest.mark.usefixtures("only_c")
def test_segmented_text(codec: Codec) -> None:
    value = long_text(600_000)
    blob, *rest = codec.encode_many([value, "a"])
    assert format.parse(blob, bare=False).segmented
    assert codec.decode_many([blob, *rest]) == [value, "a"]
    small = Codec(max_out=len(value) - 1)
    for decode in (small.decode, lambda one: small.decode_many([one])[0], lambda one: nbmf.decode(one, SEGMENT_SIZE)):
        with pytest.raises(OutputLimit):
            decode(blob)


@pytest.mark.usefixtures("only_c")
def test_segmented_blobs_that_are_damaged(codec: Codec) -> None:
    value = long_text(SEGMENT_SIZE + 2000)
    blob = codec.encode(value)
    source = random.Random(5)
    for _ in range(3):
        damaged = bytearray(blob)
        damaged[source.randrange(9, len(blob))] ^= 1 << source.randrange(8)
        with pytest.raises(NbmfError):
            codec.decode(bytes(damaged))
    for size in (9, 10, 12, len(blob) // 2):
        with pytest.raises(NbmfError):
            codec.decode(blob[:size])


@pytest.mark.slow
@pytest.mark.usefixtures("only_c")
def test_ten_megabytes(codec: Codec) -> None:
    value = long_text(10_000_000)
    blob = codec.encode(value)
    assert len(blob) < 5_000_000
    assert codec.decode(blob) == value


# -- damage ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def capped() -> Codec:
    """A damaged stream may go on for a while before it fails, which the reference takes long over."""
    return Codec(max_out=by_kernel(SEGMENT_SIZE, 200))


def outcome(codec: Codec, blob: bytes, value: Any, bare: bool = False) -> str:
    """What became of a damaged blob; fails on any error that is not the codec's own or is no single line."""
    try:
        found = codec.decode(blob, bare=bare)
    except NbmfError as error:
        assert str(error) and "\n" not in str(error)
        return type(error).__name__
    return "same" if same(found, value) else "wrong"


def flips(blob: bytes, most: int) -> Iterator[bytes]:
    """The blob with one bit changed: with every one, or with `most` of them."""
    places = range(len(blob) * 8)
    for place in places if len(places) <= most else random.Random(len(blob)).sample(places, most):
        damaged = bytearray(blob)
        damaged[place >> 3] ^= 1 << (place & 7)
        yield bytes(damaged)


@pytest.mark.parametrize("value", SMALL, ids=range(len(SMALL)))
def test_one_flipped_bit_is_never_a_wrong_value(capped: Codec, value: Any) -> None:
    for damaged in flips(capped.encode(value), by_kernel(10_000, 12)):
        assert outcome(capped, damaged, value) != "wrong"


@pytest.mark.parametrize("value", SMALL, ids=range(len(SMALL)))
def test_cut_blobs(capped: Codec, value: Any) -> None:
    blob, bare = capped.encode(value), capped.encode(value, bare=True)
    for size in range(0, len(blob), by_kernel(1, 7)):
        assert outcome(capped, blob[:size], value) not in ("wrong", "same")
    for size in range(0, len(bare), by_kernel(1, 7)):
        # 16 bits of check: a cut bare blob is caught but for one in 65,536, and these are fixed ones.
        assert outcome(capped, bare[:size], value, bare=True) not in ("wrong", "same")


@pytest.mark.parametrize("value", SMALL, ids=range(len(SMALL)))
def test_blobs_with_bytes_after_them(capped: Codec, value: Any) -> None:
    """The range decoder reads four bytes ahead, so the end of a neural stream is known no closer than that."""
    blob = capped.encode(value)
    for extra in (b"\0\0\0\0\0\0\0\0", b"\xff" * 5, b"\0", b"\xff")[: by_kernel(4, 1)]:
        found = outcome(capped, blob + extra, value)
        assert found != "wrong"
        assert found != "same" or (len(extra) == 1 and blob[0] & 3 == format.NEURAL)


@given(st.binary(max_size=by_kernel(80, 14)), st.booleans())
@settings(max_examples=by_kernel(500, 12))
def test_any_bytes(capped: Codec, blob: bytes, bare: bool) -> None:
    """Foreign bytes: an error of the codec's own, or by luck (a stored blob can be anything) a value."""
    try:
        value = capped.decode(blob, bare=bare)
    except NbmfError as error:
        assert "\n" not in str(error)
    else:
        to_raw(value, allow_nan=True)


@given(st.binary(max_size=by_kernel(60, 10)), st.integers(0, 3))
@settings(max_examples=by_kernel(500, 12))
def test_any_payload_under_a_right_header(capped: Codec, payload: bytes, value_type: int) -> None:
    header = bytes([format.NEURAL | value_type << 2 | 1 << 5]) + bytes(4) + bytes.fromhex(capped.id[:8])
    with pytest.raises((CorruptRecord, OutputLimit)):
        capped.decode(header + payload)


@pytest.mark.parametrize("blob", [b"", b"\x80", b"\x03abc", b'{"meta":1}', b"\x32\0\0\0\0abcdefgh"])
def test_what_is_no_blob(codec: Codec, blob: bytes) -> None:
    for decode in (codec.decode, nbmf.decode, lambda one: codec.decode(one, bare=True)):
        with pytest.raises(NbmfError):
            decode(blob)
    with pytest.raises(FormatError):
        nbmf.decode("text")  # type: ignore[arg-type]
    with pytest.raises(FormatError):
        codec.decode({"meta": {}})  # type: ignore[arg-type]


# -- models, packs, policies -------------------------------------------------------------------------------------------

SENTENCE = "The gate code changed again, please tell everyone before Friday."


def test_unknown_model_is_named(codec: Codec) -> None:
    blob = bytearray(codec.encode(SENTENCE))
    assert blob[5:9].hex() == codec.id[:8]
    blob[5:9] = bytes.fromhex("0badf00d")
    for decode in (codec.decode, nbmf.decode, lambda one: codec.decode_many([one])):
        with pytest.raises(UnknownModel, match="0badf00d") as caught:
            decode(bytes(blob))
        assert caught.value.id == "0badf00d"


def test_unknown_pack_is_named(codec: Codec, packed: Codec) -> None:
    blob = packed.encode(SENTENCE)
    assert codec.id[:8] != packed.id[:8] == blob[5:9].hex()
    assert packed.decode(blob) == SENTENCE
    for decode in (codec.decode, nbmf.decode):
        with pytest.raises(UnknownModel, match=packed.id[:8]):
            decode(blob)


def test_a_pack_in_a_listed_folder_is_found(packed: Codec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = random.Random(3).randbytes(2).hex()
    value = SENTENCE + source
    (tmp_path / "house.nbp").write_bytes(Path(GOLDEN_PACK).read_bytes())
    (tmp_path / "broken.nbp").write_bytes(b"NBMP")
    (tmp_path / "folder.nbp").mkdir()
    monkeypatch.setenv("NBMF_MODELS", str(tmp_path))
    blob = packed.encode(value)
    assert nbmf.decode(blob) == Codec().decode(blob) == value
    assert nbmf.encode(value, domain="house") == blob
    assert Codec(domain="house").encode(value) == blob


def test_a_codec_with_a_pack_reads_blobs_of_the_model_alone(codec: Codec, packed: Codec) -> None:
    assert packed.decode(codec.encode(SENTENCE)) == SENTENCE
    assert packed.decode_many([codec.encode(SENTENCE), packed.encode("b" * 9)]) == [SENTENCE, "b" * 9]


def test_a_pack_learned_anew_under_its_name(packed: Codec, tmp_path: Path) -> None:
    path = tmp_path / "mine.nbp"
    path.write_bytes(Path(GOLDEN_PACK).read_bytes())
    assert nbmf.encode(SENTENCE, domain=str(path))[5:9].hex() == packed.id[:8]
    from nbmf.codec.model import PACK_MAGIC, build_file, load_pack, section, section_table

    old = load_pack(path)
    sections = {name: bytes(section(old.buffer, name)) for name in section_table(old.buffer)}
    other = build_file(PACK_MAGIC, {**sections, "card": b'{"made": "anew"}'})
    path.unlink()
    path.write_bytes(other)
    assert nbmf.encode(SENTENCE, domain=str(path))[5:9] == other[16:20]


def test_a_bare_blob_read_with_the_wrong_pack(codec: Codec, packed: Codec) -> None:
    """Nothing in a bare blob names the model: its check tells."""
    value = samples.generate(1, seed=9)[0].value  # what the golden pack was learned from
    for writer, reader in ((codec, Codec(domain=GOLDEN_PACK, max_out=200)), (packed, Codec(max_out=200))):
        blob = writer.encode(value, bare=True)
        assert format.parse(blob, bare=True).method == format.NEURAL
        with pytest.raises((CorruptRecord, OutputLimit)):
            reader.decode(blob, bare=True)


def test_a_pack_of_another_model(tmp_path: Path) -> None:
    from nbmf.codec.model import PACK_MAGIC, build_file, load_pack, section, section_table

    pack = load_pack(GOLDEN_PACK)
    sections = {name: bytes(section(pack.buffer, name)) for name in section_table(pack.buffer)}
    path = tmp_path / "strange.nbp"
    path.write_bytes(build_file(PACK_MAGIC, {**sections, "model_id": bytes(range(32))}))
    with pytest.raises(UnknownModel, match="00010203"):
        Codec(domain=str(path))
    with pytest.raises(UnknownModel, match="00010203"):
        nbmf.encode("a", domain=str(path))


def test_unknown_names() -> None:
    with pytest.raises(UnknownModel, match="nosuch"):
        Codec(model="nosuch")
    with pytest.raises(UnknownModel, match="nosuch"):
        Codec(domain="nosuch")


def test_policies(codec: Codec) -> None:
    for encode in (codec.encode, nbmf.encode):
        for fidelity in ("exact", ""):
            with pytest.raises(PolicyError):
                encode("text", fidelity=fidelity)
    with pytest.raises(PolicyError, match="slow"):
        Codec(profile="slow")


def test_a_model_without_the_dense_profile_says_so(tmp_path: Path) -> None:
    path = tmp_path / "lasting.nbm"
    path.write_bytes(lzma.decompress((GOLDEN / "lasting.nbm.xz").read_bytes()))
    with pytest.raises(PolicyError, match=r"lasting.* has no dense profile"):
        Codec(str(path), profile="dense")
    fast = Codec(str(path))
    with pytest.raises(PolicyError, match="lasting has no dense profile"):
        fast.in_profile("dense")
    blob = bytearray(fast.encode(SENTENCE, bare=True))
    blob[0] |= 0x10
    with pytest.raises(UnknownModel, match="no dense profile"):
        fast.decode(bytes(blob), bare=True)


def test_profiles_read_each_other(codec: Codec) -> None:
    dense = codec.in_profile("dense")
    assert dense.in_profile("dense") is dense and dense.in_profile("fast").profile == 0 and dense.id == codec.id
    values = [SENTENCE, {"a": [1, 2.5, None], "text": SENTENCE}, "", b"\0\1", SENTENCE * 3]
    mixed = [(codec, dense)[i % 2].encode(value) for i, value in enumerate(values)]
    assert codec.decode_many(mixed) == dense.decode_many(mixed) == [nbmf.decode(blob) for blob in mixed] == values
    assert {blob[0] >> 4 & 1 for blob in mixed} == {0, 1}
    assert dense.encode(SENTENCE) != mixed[0]


def test_output_limit(codec: Codec) -> None:
    for value in (SENTENCE, bytes(300), random.Random(1).randbytes(150), [SENTENCE]):
        size = len(to_raw(value)[1])
        exact, less = Codec(max_out=size), Codec(max_out=size - 1)
        for bare in (False, True):
            blob = codec.encode(value, bare=bare)
            assert same(exact.decode(blob, bare=bare), value)
            with pytest.raises(OutputLimit, match=f"larger than {size - 1} bytes"):
                less.decode(blob, bare=bare)
            with pytest.raises(OutputLimit, match=f"larger than {size - 1} bytes"):
                less.decode_many([blob], bare=bare)
        with pytest.raises(OutputLimit):
            nbmf.decode(codec.encode(value), max_out=size - 1)


# -- many at once ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bare", [False, True])
def test_encode_many_is_a_loop(either: Codec, bare: bool) -> None:
    values = [*SMALL, *(sample.value for sample in samples.load()[:: by_kernel(2, 120)])]
    blobs = [either.encode(value, bare=bare) for value in values]
    assert either.encode_many(values, bare=bare) == blobs
    assert either.encode_many(iter(values), bare=bare, verify=True) == blobs
    assert all(map(same, either.decode_many(blobs, bare=bare), values))
    assert either.encode_many([]) == either.decode_many([]) == []


def test_decode_many_raises_for_the_first_at_fault(codec: Codec) -> None:
    good = codec.encode(SENTENCE)
    wrong_check = good[:1] + bytes([good[1] ^ 1]) + good[2:]
    unknown = good[:5] + b"\x0b\xad\xf0\x0d" + good[9:]
    reserved = b"\x80" + good[1:]
    for order, error in (
        ([good, wrong_check, unknown, reserved], CorruptRecord),
        ([good, unknown, wrong_check, reserved], UnknownModel),
        ([good, reserved, unknown, wrong_check], FormatError),
    ):
        with pytest.raises(error):
            codec.decode_many(order)


def test_eight_threads_on_one_codec(codec: Codec) -> None:
    values = [sample.value for sample in samples.load()[:: by_kernel(3, 100)]]
    blobs = [codec.encode(value) for value in values]
    faults: list[str] = []
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        order = list(range(len(values)))
        random.Random(seed).shuffle(order)
        start.wait()
        for i in order[: by_kernel(len(order), 2)]:
            if codec.encode(values[i]) != blobs[i]:
                faults.append(f"thread {seed} encoded value {i} otherwise")
            if not same(codec.decode(blobs[i]), values[i]):
                faults.append(f"thread {seed} decoded blob {i} otherwise")
        some = order[: by_kernel(20, 1)]
        if codec.encode_many([values[i] for i in some]) != [blobs[i] for i in some]:
            faults.append(f"thread {seed} encoded a batch otherwise")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_module_functions(codec: Codec) -> None:
    assert nbmf.encode(SENTENCE) == codec.encode(SENTENCE)
    assert nbmf.decode(nbmf.encode({"a": [1, 1.0]})) == {"a": [1, 1.0]}
    assert nbmf.encode(SENTENCE, domain=GOLDEN_PACK) == Codec(domain=GOLDEN_PACK).encode(SENTENCE)


def test_identity(codec: Codec, packed: Codec) -> None:
    assert codec.id == codec.model.id.hex()
    assert packed.pack is not None
    assert packed.id == packed.pack.id.hex()
    assert len(codec.id) == len(packed.id) == 64


def test_costs_add_up_to_the_payload(either: Codec) -> None:
    for value in (SENTENCE, {"role": "user", "content": SENTENCE}):
        value_type, raw = to_raw(value)
        costs = np.frombuffer(either.coder.costs(raw, value_type), "<u2")
        assert len(costs) == len(raw) + 1
        bits = 8 * len(either.coder.encode(raw, value_type))
        assert abs(int(costs.sum()) / 256 - bits) < 8 + 0.02 * bits


def test_the_kernel_that_was_asked_for() -> None:
    import os

    wanted = os.environ.get("NBMF_KERNEL")
    assert kernel.backend == wanted if wanted else kernel.backend in ("c", "numpy")
