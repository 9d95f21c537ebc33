"""Arrays through the codec: what comes back, how small it gets, and what is refused."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vector_data import cosines, embeddings, gaussian, norms

import nbmf
from nbmf import Bound, Codec
from nbmf.codec import format, kernel
from nbmf.codec.model import PACK_MAGIC, build_file, load_pack, section
from nbmf.codec.vector_transform import SECTION, pack_section, read_section
from nbmf.errors import CorruptRecord, DataError, FormatError, OutputLimit, PolicyError, UnsupportedValue

C = kernel.backend == "c"
DIM = 64
FEW = 40 if C else 4


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    """A codec with a pack learned from embeddings, alone and beside 32 numbers that tell half of them."""
    path = tmp_path_factory.mktemp("packs") / "vectors.nbp"
    rows = embeddings(1200, DIM)
    nbmf.adapt([rows], path, beside=[beside(rows)])
    return Codec(domain=str(path))


def beside(rows: Any) -> Any:
    """What is known beside rows: half of their floats, coarsely."""
    return np.rint(np.atleast_2d(rows)[:, :32] * 256).astype(np.int16) * 16


def spread_floats(shape: Any, kind: Any) -> Any:
    return np.random.default_rng(5).standard_normal(shape).astype(kind)


SHAPES = [(), (0,), (1,), (2,), (63,), (64,), (200,), (0, 5), (5, 0), (1, 1), (3, 7), (4, 100)]


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("bare", [False, True])
def test_exact_arrays(codec: Codec, kind: Any, shape: Any, bare: bool) -> None:
    array = spread_floats(shape, kind)
    blob = codec.encode(array, bare=bare, verify=True)
    back = codec.decode(blob, bare=bare)
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert back.flags.writeable
    assert len(blob) <= array.nbytes + 16
    assert codec.encode_many([array, "text", array], bare=bare) == [blob, codec.encode("text", bare=bare), blob]
    assert codec.decode_many([blob], bare=bare)[0].tobytes() == array.tobytes()


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_bounded_arrays_keep_type_and_shape(codec: Codec, kind: Any, shape: Any) -> None:
    array = spread_floats(shape, kind)
    for bound in (None, Bound(0.999), Bound(cosine=None, max_error=0.05)):
        back = codec.decode(codec.encode(array, fidelity="semantic", bound=bound, verify=True))
        assert (back.dtype, back.shape) == (array.dtype, array.shape)


def test_odd_bits_are_kept_exactly(codec: Codec) -> None:
    odd = np.array([0, 1 << 31, 0x7F800000, 0xFF800001, 0x7FC12345, 1, 0x807FFFFF], np.uint32)
    for array in (odd.view(np.float32), np.tile(odd, 20).view(np.float32), np.tile(odd, (3, 20)).view(np.float32)):
        assert codec.decode(codec.encode(array, verify=True)).tobytes() == array.tobytes()
        back = codec.decode(codec.encode(array, fidelity="semantic", verify=True))
        assert back.tobytes() == array.tobytes()
    halves = np.arange(0, 1 << 16, 7, dtype=np.uint16)[: None if C else 300].view(np.float16)
    assert codec.decode(codec.encode(halves, verify=True)).tobytes() == halves.tobytes()


def test_strides_and_read_only(codec: Codec) -> None:
    array = spread_floats((6, 200), np.float32)
    for part in (array[:, ::2], array[::-1], array.T[:100], array[1], array[:, 3]):
        back = codec.decode(codec.encode(part))
        assert np.array_equal(back, part) and back.shape == part.shape
        near = codec.decode(codec.encode(part, fidelity="semantic"))
        assert near.shape == part.shape and cosines(part, near).min() >= 0.995
    array.setflags(write=False)
    assert cosines(array, codec.decode(codec.encode(array, fidelity="semantic"))).min() >= 0.995


@pytest.mark.parametrize("bound", [0.9, 0.99, 0.995, 0.999, 0.9999, 0.999999])
def test_random_vectors_keep_a_cosine(codec: Codec, bound: float) -> None:
    rows = gaussian(FEW, 384 if C else 96) * np.float32(3.5)
    blobs = codec.encode_many(list(rows), bare=True, fidelity="semantic", bound=Bound(bound), verify=True)
    back = np.stack(codec.decode_many(blobs, bare=True))
    assert cosines(rows, back).min() >= bound
    assert np.abs(norms(back) / norms(rows) - 1).max() <= 1e-4


@pytest.mark.usefixtures("only_c")
def test_random_vectors_reach_their_ratio(codec: Codec) -> None:
    """The bound for any code is 9.6 at a cosine of 0.995."""
    rows = gaussian(200, 384)
    blobs = codec.encode_many(list(rows), bare=True, fidelity="semantic")
    assert rows.nbytes / sum(map(len, blobs)) >= 8.7
    whole = codec.encode(rows, bare=True, fidelity="semantic")
    assert rows.nbytes / len(whole) >= 8.9
    assert cosines(rows, codec.decode(whole, bare=True)).min() >= 0.995


def test_a_pack_makes_vectors_smaller(codec: Codec, learned: Codec) -> None:
    rows = embeddings(FEW, DIM, seed=3)
    known = beside(rows)
    alone = [len(codec.encode(row, bare=True, fidelity="semantic")) for row in rows]
    packed = [learned.encode(row, bare=True, fidelity="semantic", verify=True) for row in rows]
    told = [
        learned.encode(row, bare=True, fidelity="semantic", beside=side, verify=True)
        for row, side in zip(rows, known, strict=True)
    ]
    assert sum(map(len, packed)) < 0.9 * sum(alone)
    assert sum(map(len, told)) < 0.95 * sum(map(len, packed))
    assert cosines(rows, np.stack([learned.decode(blob, bare=True) for blob in packed])).min() >= 0.995
    back = [learned.decode(blob, bare=True, beside=side) for blob, side in zip(told, known, strict=True)]
    assert cosines(rows, np.stack(back)).min() >= 0.995
    whole = learned.encode(rows, fidelity="semantic", beside=known, verify=True)
    assert cosines(rows, learned.decode(whole, beside=known)).min() >= 0.995


def test_what_a_pack_knows_nothing_of(learned: Codec) -> None:
    for array in (gaussian(1, DIM + 1)[0], gaussian(2, DIM), -embeddings(4, DIM), np.eye(DIM, dtype=np.float32)[:3]):
        back = learned.decode(learned.encode(array, fidelity="semantic", verify=True))
        assert cosines(array, back).min() >= 0.995
    half = (embeddings(3, DIM) * 40).astype(np.float16)
    back = learned.decode(learned.encode(half, fidelity="semantic", bound=Bound(0.999), verify=True))
    assert back.dtype == np.float16 and cosines(half, back).min() >= 0.999
    assert np.abs(norms(back) / norms(half) - 1).max() <= 0.001


def test_a_pack_is_found_by_its_id(learned: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = embeddings(1, DIM, seed=4)[0]
    blob = learned.encode(row, fidelity="semantic")
    assert blob[5:9].hex() == learned.id[:8]
    with pytest.raises(nbmf.UnknownModel):
        nbmf.decode(blob)
    assert learned.pack is not None
    (tmp_path / "vectors.nbp").write_bytes(bytes(learned.pack.buffer))
    monkeypatch.setenv("NBMF_MODELS", str(tmp_path))
    assert cosines(row, nbmf.decode(blob)).min() >= 0.995
    bare = learned.encode(row, bare=True, fidelity="semantic")
    with pytest.raises(nbmf.UnknownModel):
        Codec().decode(bare, bare=True)


def test_a_pack_of_texts_and_vectors(tmp_path: Path) -> None:
    if not C:
        pytest.skip("learning from texts takes the C kernel")
    texts = [{"name": f"item {i}", "price": i * 1.25} for i in range(200)]
    card = nbmf.adapt([*texts, embeddings(400, DIM)], tmp_path / "both.nbp", size=32 << 10)
    assert card["records"] == 200 and card["vectors"] == 400
    both = Codec(domain=str(tmp_path / "both.nbp"))
    assert both.decode(both.encode(texts[0], verify=True)) == texts[0]
    row = embeddings(1, DIM, seed=6)[0]
    assert len(both.encode(row, bare=True, fidelity="semantic")) < len(
        Codec().encode(row, bare=True, fidelity="semantic")
    )
    again = nbmf.adapt([*texts, embeddings(400, DIM)], tmp_path / "again.nbp", size=32 << 10)
    assert again["id"] == card["id"]


def test_learning_that_cannot_be(tmp_path: Path) -> None:
    out = tmp_path / "none.nbp"
    for values in ([gaussian(10, DIM)], [gaussian(500, 4)], [gaussian(2000, 16)], [np.zeros((500, DIM), np.float32)]):
        with pytest.raises(DataError, match="arrays are too few"):
            nbmf.adapt(values, out)
    with pytest.raises(DataError, match="2 things beside 1 values"):
        nbmf.adapt([embeddings(100, DIM)], out, beside=[None, None])
    assert not out.exists()


def test_absolute_bound(codec: Codec) -> None:
    rows = spread_floats((FEW, 100), np.float32)
    for most in (1e-4, 0.01, 0.3, 5.0):
        back = codec.decode(codec.encode(rows, fidelity="semantic", bound=Bound(cosine=None, max_error=most)))
        assert np.abs(rows.astype(np.float64) - back).max() <= most
    both = codec.decode(codec.encode(rows, fidelity="semantic", bound=Bound(0.999, max_error=0.3), verify=True))
    assert np.abs(rows - both).max() <= 0.3 and cosines(rows, both).min() >= 0.999


def test_lists_of_floats_are_json(codec: Codec) -> None:
    numbers = [round(float(x), 6) for x in gaussian(1, 50)[0]]
    assert codec.decode(codec.encode(numbers, fidelity="semantic")) == numbers


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(3),
        np.zeros(3, np.int32),
        np.zeros((2, 2, 2), np.float32),
        np.zeros((), np.float32),
        np.array(["a"]),
        np.array([object()]),
        np.zeros(3, ">f4"),
        np.ma.array([1.0, 2.0], dtype=np.float32),
    ],
    ids=lambda array: f"{type(array).__name__} {array.dtype} {array.shape}",
)
def test_other_arrays_are_refused(codec: Codec, array: Any) -> None:
    for fidelity in ("lossless", "semantic"):
        with pytest.raises(UnsupportedValue, match=r"^\$: "):
            codec.encode(array, fidelity=fidelity)


@pytest.mark.parametrize(
    "about",
    [
        {"cosine": 0},
        {"cosine": -0.5},
        {"cosine": 1.01},
        {"cosine": float("nan")},
        {"cosine": "high"},
        {"cosine": None},
        {"max_error": 0},
        {"max_error": -1.0},
        {"max_error": float("inf")},
        {"max_error": float("nan")},
    ],
    ids=str,
)
def test_bounds_that_are_none(about: Any) -> None:
    with pytest.raises(PolicyError):
        Bound(**about)


def test_a_cosine_of_1_is_exact(codec: Codec) -> None:
    row = gaussian(1, 100)[0]
    assert codec.encode(row, fidelity="semantic", bound=Bound(1.0)) == codec.encode(row)


def test_constant_and_repeated_vectors_are_no_larger_than_exact(codec: Codec) -> None:
    for array in (np.full(384, 0.25, np.float32), np.tile(np.float32([1, 2]), (30, 40)), np.zeros((9, 50), np.float32)):
        assert len(codec.encode(array, fidelity="semantic")) <= len(codec.encode(array))


def test_what_stands_beside_is_checked(learned: Codec) -> None:
    row = embeddings(1, DIM)[0]
    side = beside(row)[0]
    blob = learned.encode(row, fidelity="semantic", beside=side)
    for wrong in (side.astype(np.int32), side[None], [1, 2, 3]):
        with pytest.raises(UnsupportedValue, match="int16"):
            learned.encode(row, fidelity="semantic", beside=wrong)
    with pytest.raises(PolicyError, match="predicted"):
        learned.decode(blob)
    with pytest.raises(CorruptRecord):
        learned.decode(blob, beside=side + 999)
    with pytest.raises(CorruptRecord):
        learned.decode(blob, beside=side[:5].copy())
    # Numbers the pack did not learn from are left aside.
    other = learned.encode(row, fidelity="semantic", beside=side[:5].copy())
    assert cosines(row, learned.decode(other)).min() >= 0.995


def test_output_is_limited() -> None:
    narrow = Codec(max_out=1000)
    blob = Codec().encode(gaussian(30, 100), fidelity="semantic")
    exact = Codec().encode(gaussian(30, 100))
    for one in (blob, exact):
        with pytest.raises(OutputLimit):
            narrow.decode(one)
    with pytest.raises(OutputLimit):
        narrow.encode(gaussian(30, 100), fidelity="semantic")


def test_every_damage_is_noticed_or_harmless(codec: Codec, learned: Codec) -> None:
    array = embeddings(2, DIM)
    for one, blob in (
        (codec, codec.encode(array[0], fidelity="semantic")),
        (codec, codec.encode(gaussian(2, DIM))),
        (codec, codec.encode(array, fidelity="semantic", bound=Bound(cosine=None, max_error=0.01))),
        (learned, learned.encode(array[0], fidelity="semantic")),
    ):
        good = one.decode(blob).tobytes()
        places = range(1, len(blob)) if C else range(1, len(blob), 37)
        for at, bit in itertools.product(places, (0, 3, 7)):
            bad = blob[:at] + bytes([blob[at] ^ 1 << bit]) + blob[at + 1 :]
            try:
                assert one.decode(bad).tobytes() == good
            except nbmf.NbmfError:
                continue
        for size in range(0, len(blob), 1 if C else 41):
            with pytest.raises(nbmf.NbmfError):
                one.decode(blob[:size])
        with pytest.raises(CorruptRecord):
            one.decode(blob + bytes(9))


def made(payload: bytes, value_type: int = 3, method: int = format.ARRAY) -> bytes:
    return format.build(method, value_type, 0, payload, bare=False, id=b"none")


@pytest.mark.parametrize(
    ("payload", "value_type"),
    [
        (b"", 3),
        (b"\x80\x05", 3),
        (b"\x03\x05", 3),
        (b"\x10", 3),
        (b"\x20\x05\x01", 3),
        (b"\x40\x05\x00", 3),
        (b"\x04\x05", 3),
        (b"\x08\x01\x05", 3),
        (b"\x00\x05", 4),
        (b"\x00\x05\x03", 3),
        (b"\x00\x05\x00abc", 3),
        (b"\x00\xff\xff\xff\xff\xff\x00", 3),
        (b"\x00\x40\x02\x3f\x00\x00", 3),
        (b"\x00\x40\x02\x00\x00", 3),
        (b"\x01\x00\x05", 3),
        (b"\x01\xff\xff\x7fabc", 3),
        (b"\x09\xff\xff\x03\x01abc", 4),
        (b"\x02\x05\xff", 3),
    ],
    ids=lambda one: one.hex() if isinstance(one, bytes) else str(one),
)
def test_payloads_that_are_none(payload: bytes, value_type: int) -> None:
    with pytest.raises((FormatError, CorruptRecord, OutputLimit)):
        nbmf.decode(made(payload, value_type))


def test_headers() -> None:
    row = gaussian(1, 64)[0]
    for value, kind, header in ((row, "semantic", 0x3C), (row, "lossless", 0x3C), (row[None], "lossless", 0x7C)):
        blob = nbmf.encode(value, fidelity=kind)
        assert blob[0] == header
        parsed = format.parse(blob, bare=False)
        assert (parsed.method, parsed.value_type) == (format.ARRAY, 3 if value.ndim == 1 else 4)
    for header in (0x4C, 0x6C, 0x18, 0x38, 0x14, 0x59):  # bits that no other type has use for
        with pytest.raises(FormatError, match="profile and segments"):
            format.parse(bytes([header]) + bytes(20), bare=not header & 0x20)


def test_the_section_is_checked(learned: Codec) -> None:
    assert learned.pack is not None
    data = bytes(section(learned.pack.buffer, SECTION))
    found = read_section(data)
    assert pack_section(found) == data
    assert [(one.dim, one.sides) for one in found] == [(DIM, 0), (DIM, 32)]
    broken = [
        b"",
        b"\x02\x00",
        data[:-1],
        data + b"\0",
        data[:2] + b"\x03" + data[3:],  # another dim
        data[:2] + b"\xff\xff" + data[4:],
        data[:6] + b"\x00\x00" + data[8:],  # no coefficients
        data[:14] + b"\xff\xff\xff\x7f" + data[18:],  # a mean out of range
    ]
    for bad in broken:
        with pytest.raises(FormatError):
            read_section(bad)


def test_a_pack_with_a_broken_section(learned: Codec, tmp_path: Path) -> None:
    assert learned.pack is not None
    path = tmp_path / "broken.nbp"
    sections = {name: bytes(section(learned.pack.buffer, name)) for name in ("card", "model_id", "primer", "lines")}
    path.write_bytes(build_file(PACK_MAGIC, {**sections, SECTION: b"\x09"}))
    codec = Codec(domain=load_pack(path))
    assert codec.decode(codec.encode("text")) == "text"
    with pytest.raises(FormatError, match="vectors"):
        codec.encode(embeddings(1, DIM)[0], fidelity="semantic")
