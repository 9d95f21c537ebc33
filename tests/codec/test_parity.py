"""The C kernel at every SIMD level and the NumPy reference: the same bytes, the same errors."""

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nbmf import samples
from nbmf.codec import model, reference, reference_context, reference_dense, reference_model, values
from nbmf.errors import FormatError, StreamError, StreamLimit

c_kernel = pytest.importorskip("nbmf.codec._kernel")

TEXT = (
    '{"user": "Ada", "tags": ["réseau", "\\"q\\"", "日本語のテキスト"], "n": {"a": [1, 2.5, null], "b": true}}\n'
    "The invoice, 1248.50, was paid on Friday; the invoice was paid.\n"
).encode()
RECORDS = [
    b"",
    b"\0",
    bytes(12),
    b"a\0b\0\0c",
    bytes(range(256)),
    TEXT,
    TEXT[:90] * 3,
    b"a" * 400,  # counts and match lengths at their ends
    b"id,name|x;\ty\n1,Ann|2;\t3\n2,Bob|3;\t4\n" * 2,
    b"[" * 20 + b"1" + b"]" * 20 + b'}]:,"',
    b'{"a":' * 18 + b'"x\\"y\\\\"' + b"}" * 18,
    "한국어 文字 ÿ é".encode(),
    bytes([0xFF, 0xE3, 0xED, 0xEE, 0x80]) * 6,
]
TYPED = [(raw, i % 4) for i, raw in enumerate(RECORDS)]
SIMD: list[str] = []
for _name in ("plain", "avx2", "avx2-vnni", "avx512"):
    try:
        _used = c_kernel.simd()
        c_kernel.simd(_name)
        c_kernel.simd(_used)
        SIMD.append(_name)
    except ValueError:
        pass

Pair = tuple[Any, Any]  # the same model in C, in the reference


def lines(rng: random.Random, hashes: list[list[int]], text: bytes, n: int) -> bytes:
    """A line table that knows `text`: runs of every length, some cut in two, some longer than a list."""
    rows = [[(rng.randrange(1 << 16), rng.randrange(256)) for _ in range(21)] for _ in range(n)]
    for found, symbol in zip(hashes, text, strict=True):
        for h in found:
            row, tag = rows[(h >> 32) * n >> 32], (h >> 20 & 0xFFF) << 4
            at, count = rng.randrange(21), rng.randrange(1, 12)
            for j in range(at, min(at + count, 21)):
                row[j] = tag | rng.randrange(16), symbol if rng.random() < 0.6 else rng.randrange(256)
            if rng.random() < 0.2:
                row[rng.randrange(21)] = tag | 15, symbol
    return b"".join(
        b"".join(code.to_bytes(2, "little") for code, _ in row) + bytes(symbol for _, symbol in row) + b"\xff"
        for row in rows
    )


def networks(draw: np.random.Generator, width: int, wild: int) -> dict[str, bytes]:
    """Random networks of the dense profile; `wild` multiplies what a trained one's weights are like."""
    d = reference_dense
    middle, most = 2 * width, d.WEIGHT_MOST if wild > 1 else 400

    def bytes_of(*shape: int) -> bytes:
        return draw.integers(-127, 128, shape).astype("i1").tobytes()

    def words(limit: int, *shape: int) -> bytes:
        return draw.integers(-limit, limit + 1, shape).astype("<i2").tobytes()

    rows = draw.integers(-20 * wild, 20 * wild + 1, (d.ROWS, width)).clip(-127, 127).astype("i1")
    return {
        "dense_rows": rows.tobytes(),
        "dense_layer1": bytes_of(2 * width, width),
        "dense_scale1": words(1000 * wild, 2, 2 * width),
        "dense_layer2": bytes_of(2 * width, width),
        "dense_scale2": words(1000 * wild, 2, 2 * width),
        "dense_middle": bytes_of(middle, width),
        "dense_mid_scale": words(1000 * wild, 2, middle),
        "dense_context": bytes_of(d.ONES, middle),
        "dense_ctx_scale": words(1000 * wild, 2, d.ONES),
        "dense_byte": bytes_of(256, middle),
        "dense_byte_scal": words(most // 4, 256),
        "dense_node": words(most * wild // 4, 256, d.ONES),
        "dense_first": words(most, d.ONES, d.INPUTS),
        "dense_second": words(most, d.TWOS, d.ONES),
        "dense_second_b": words(most, d.TWOS),
        "dense_third": words(most, d.TWOS + 1),
        "dense_skip": words(most // 4, 256, d.LOGITS),
    }


def files(seed: int, most: int) -> tuple[bytes, bytes]:
    """A model of random tables, with logits to `most` in magnitude, and a pack for it; both know TEXT."""
    rng, draw = random.Random(seed), np.random.default_rng(seed)

    def numbers(count: int, limit: int) -> bytes:
        return draw.integers(-limit, limit, count).astype("<i2").tobytes()

    context = reference_context.Context(0)
    hashes = []
    for byte in TEXT:
        hashes.append(reference_context.context_hashes(context))
        reference_context.context_update(context, byte)
    weights, packed = (
        reference_model.TOTAL_ROWS * reference_model.LANES,
        [[found[j] for j in (13, 0, 1, 3)] for found in hashes],
    )
    x = np.arange(-2048, 2048) / 170
    squash = np.clip(np.round(65536 / (1 + np.exp(-x))), 1, 65535) if most < 4096 else draw.integers(1, 65536, 4096)
    sections = {
        "lines": lines(rng, [found[:12] for found in hashes], TEXT, 1500),
        "primer": b"xyz" + TEXT[20:120] + b" paid on Friday; and more",
        "lists": numbers(12 * 2048, most),
        "local": numbers(8 * 2048, most),
        "match": numbers(256, most),
        "primer_match": numbers(256, most),
        "order1": numbers(65536, most),
        "order2": draw.integers(-128, 128, 3 * 256).astype("i1").tobytes(),
        "order2_row": draw.integers(0, 3, 65536).astype("<u2").tobytes(),
        "state": numbers(65536, most),
        "squash": squash.astype("<u2").tobytes(),
        "pack_lists": numbers(8 * 2048, most),
        "pack_match": numbers(256, most),
    }
    for prefix in ("", "pack_"):
        sections[prefix + "weights"] = numbers(weights, 8 * most)
        sections[prefix + "final"] = numbers(2048, 8 * most)
        sections[prefix + "rates"] = draw.integers(0, 128, 8).astype("<i4").tobytes()
    sections |= networks(draw, 32 if most < 4096 else 64, 1 if most < 4096 else 30)
    base = model.build_file(b"NBMM", sections)
    pack = {
        "lines": lines(rng, packed, TEXT, 700),
        "primer": TEXT[60:],
        "model_id": base[model.ID_AT : model.ID_AT + model.ID_SIZE],
    }
    return base, model.build_file(b"NBMP", pack)


MILD = files(1, 2000)
WILD = files(2, 4096)  # its weights have every int16, and so its sums meet every bound


def pair(*parts: Any) -> Pair:
    return c_kernel.load(*parts), reference.load(*parts)


def extremes(base: bytes) -> bytes:
    """The model with every list, order and match logit, and half of the weights, at the ends of int16."""
    out, draw = bytearray(base), np.random.default_rng(3)
    for name, (at, size) in model.section_table(base).items():
        if name.endswith(("lists", "local", "match", "order1", "weights")):
            out[at : at + size] = draw.choice(np.array([-32768, -32767, 32767], "<i2"), size // 2).tobytes()
    return bytes(out)


PAIRS: dict[str, Callable[[], Pair]] = {
    "base": lambda: pair(memoryview(model.load_model("base").buffer)),
    "mild": lambda: pair(MILD[0]),
    "mild pack": lambda: pair(*MILD),
    "wild": lambda: pair(WILD[0]),
    "wild pack": lambda: pair(*WILD),
    # Every zero costs 16 bits, so a stream above the range wraps the code within a byte.
    "costly": lambda: pair(poked(WILD[0], "squash", b"\xff" * 8192)),
    "extreme pack": lambda: pair(extremes(WILD[0]), WILD[1]),
}


@pytest.fixture(scope="module", params=PAIRS)
def both(request: pytest.FixtureRequest) -> Pair:
    return PAIRS[request.param]()


@pytest.fixture(scope="module")
def base() -> Pair:
    return PAIRS["base"]()


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    used = c_kernel.simd()
    yield
    c_kernel.simd(used)


def outcome(call: Callable[..., Any], *args: Any) -> Any:
    """What the call returns, or the class and text of what it raises."""
    try:
        return call(*args)
    except Exception as error:
        return type(error), str(error)


def check(both: Pair, raw: bytes, value_type: int, profile: int = 0) -> bytes:
    """Encode, decode and costs agree at every level. Returns the payload."""
    c, numpy = both
    payload: bytes = numpy.encode(raw, value_type, profile)
    assert numpy.decode(payload, value_type, profile) == raw
    costs = numpy.costs(raw, value_type, profile)
    for name in SIMD:
        c_kernel.simd(name)
        assert c.encode(raw, value_type, profile) == payload, name
        assert c.decode(payload, value_type, profile) == raw, name
        assert c.costs(raw, value_type, profile) == costs, name
    return payload


def check_decode(both: Pair, payload: bytes, value_type: int, max_out: int, profile: int = 0) -> Any:
    """Decoding agrees at every level, whatever comes of it. Returns that."""
    c, numpy = both
    found = outcome(numpy.decode, payload, value_type, profile, max_out)
    for name in SIMD:
        c_kernel.simd(name)
        assert outcome(c.decode, payload, value_type, profile, max_out) == found, name
    return found


@pytest.mark.parametrize("i", range(len(TYPED)))
def test_fixed_records(both: Pair, i: int) -> None:
    check(both, *TYPED[i])


@pytest.mark.parametrize("i", range(len(TYPED)))
def test_fixed_records_in_the_dense_profile(both: Pair, i: int) -> None:
    raw, value_type = TYPED[i]
    check(both, raw[:90], value_type, 1)


def test_the_dense_profile_is_another() -> None:
    c, _ = PAIRS["mild"]()
    assert c.encode(TEXT, 1, 1) != c.encode(TEXT, 1)


def test_garbage_in_the_dense_profile(both: Pair) -> None:
    rng = random.Random(5)
    for n in (0, 3, 4, 7, 30):
        check_decode(both, rng.randbytes(n), n % 4, 40, 1)
        check_decode(both, b"\xff" * n, n % 4, 40, 1)
    payload = both[1].encode(TEXT[:48], 1, 1)
    for cut in range(0, len(payload), 7):
        check_decode(both, payload[:cut], 1, 60, 1)
    assert check_decode(both, payload, 1, 47, 1)[0] is StreamLimit


def test_sequences_in_the_dense_profile(both: Pair) -> None:
    c, numpy = both
    raws, types = [TEXT[:60], b"", TEXT[60:90], b"a\0b", TEXT[:60]], bytes([1, 0, 0, 2, 3])
    for primed in (0, 2):
        payload = numpy.encode_sequence(raws, types, 1, primed)
        for name in SIMD:
            c_kernel.simd(name)
            assert c.encode_sequence(raws, types, 1, primed) == payload, name
            assert c.decode_sequence(payload, types, 1, 1 << 18, raws[:primed]) == raws[primed:], name
        assert numpy.decode_sequence(payload, types, 1, 1 << 18, raws[:primed]) == raws[primed:]
    # A sequence of one is the record; a second record does not see the first one's state.
    assert numpy.encode_sequence(raws[:1], types[:1], 1) == c.encode(raws[0], 1, 1)


@pytest.mark.parametrize("section", ["dense_rows", "dense_layer2", "dense_ctx_scale", "dense_third"])
def test_a_network_of_the_wrong_size_is_refused(section: str) -> None:
    table = model.section_table(MILD[0])
    sections = {name: bytes(model.section(MILD[0], name)) for name in table}
    sections[section] = sections[section][:-2]
    file = model.build_file(b"NBMM", sections)
    found = [outcome(load, file) for load in (c_kernel.load, reference.load)]
    assert found[0] == found[1] and found[0][0] is FormatError and section in found[0][1]


@pytest.mark.parametrize("section", ["dense_first", "dense_second", "dense_third", "dense_skip", "dense_byte_scal"])
def test_weights_that_could_pass_their_bounds_are_refused(section: str) -> None:
    file = poked(MILD[0], section, (4096).to_bytes(2, "little"))
    found = [outcome(load, file) for load in (c_kernel.load, reference.load)]
    assert found[0] == found[1] and found[0][0] is FormatError and "4095" in found[0][1]


def test_samples(base: Pair) -> None:
    for sample in samples.load()[::25]:
        value_type, raw = values.to_raw(sample.value)
        check(base, raw[:300], value_type)


@settings(max_examples=25)
@given(
    raw=st.binary(max_size=40) | st.text(max_size=30).map(lambda text: text.encode(errors="replace")),
    t=st.integers(0, 3),
)
@example(raw=TEXT[:60], t=1)
def test_any_record(base: Pair, raw: bytes, t: int) -> None:
    check(base, raw, t)


def test_truncated_and_continued(both: Pair) -> None:
    raw = TEXT[:48]
    payload = both[1].encode(raw, 1)
    for cut in range(0, len(payload), 3):
        check_decode(both, payload[:cut], 1, 80)
    for add in (b"\0", b"\1", b"\xff", b"\x80" * 9):
        check_decode(both, payload + add, 1, 80)
    # The decoder reads at most four bytes past the code, so it stops before the last of nine.
    assert check_decode(both, payload + bytes(9), 1, 80)[0] is StreamError
    assert check_decode(both, payload, 1, len(raw)) == raw
    assert check_decode(both, payload, 1, len(raw) - 1)[0] is StreamLimit
    assert check_decode(both, payload, 1, -5)[0] is StreamLimit


@settings(max_examples=25)
@given(payload=st.binary(max_size=40), t=st.integers(0, 3), max_out=st.integers(0, 60))
@example(payload=b"", t=0, max_out=60)
@example(payload=b"\xff" * 12, t=0, max_out=60)  # the code equals the range
@example(payload=b"\xff" * 12, t=2, max_out=60)
@example(payload=bytes(12), t=1, max_out=60)
def test_garbage(base: Pair, payload: bytes, t: int, max_out: int) -> None:
    check_decode(base, payload, t, max_out)


@settings(max_examples=25)
@given(at=st.integers(0, 8 * 20), t=st.integers(0, 3), add=st.binary(max_size=3))
def test_flipped_bit(base: Pair, at: int, t: int, add: bytes) -> None:
    payload = bytearray(base[0].encode(TEXT[:48], t))
    payload[at // 8 % len(payload)] ^= 1 << at % 8
    check_decode(base, bytes(payload) + add, t, 80)


def test_garbage_under_every_model(both: Pair) -> None:
    rng = random.Random(4)
    for n in (0, 1, 3, 4, 7, 30):
        check_decode(both, rng.randbytes(n), n % 4, 70)
        check_decode(both, b"\xff" * n, n % 4, 40)
        check_decode(both, b"\xff" * 4 + rng.randbytes(n), n % 4, 40)


def test_many(base: Pair) -> None:
    c, numpy = base
    raws = [raw[:60] for raw in RECORDS] * 2
    types = bytes(i % 4 for i in range(len(raws)))
    payloads = numpy.encode_many(raws, types, 0, 2)
    assert payloads == c.encode_many(raws, types, 0, 3)
    assert numpy.decode_many(payloads, types, 0, 2) == raws == c.decode_many(payloads, types, 0, 2)
    assert numpy.encode_many([], b"", 0, 1) == c.encode_many([], b"", 0, 1) == []
    payloads[3] += b"?"
    for method, args in [
        ("decode_many", (payloads, types, 0, 2)),
        ("decode_many", (payloads, types, 0, 2, 1)),
        ("decode_many", (payloads, types[1:], 0, 1)),
        ("decode_many", (payloads[:2], b"\0\4", 0, 1)),
        ("encode_many", (raws, types[1:], 0, 1)),
        ("encode_many", (raws[:2], b"\7\0", 0, 1)),
        ("encode_many", (raws[:2], b"\0\0", 2, 1)),
        ("encode_many", ([bytes(c_kernel.SEGMENT_SIZE + 1)], b"\0", 0, 1)),
    ]:
        found = outcome(getattr(numpy, method), *args)
        assert found == outcome(getattr(c, method), *args)
        assert issubclass(found[0], ValueError)


def test_bad_calls(base: Pair) -> None:
    c, numpy = base
    over = bytes(c_kernel.SEGMENT_SIZE + 1)
    calls: list[tuple[str, Any]] = [(name, args) for name in ("encode", "costs") for args in ((over, 0), (over, 4))]
    calls += [(name, (b"a", *rest)) for name in ("encode", "decode", "costs") for rest in ((4,), (-1,), (0, 1), (5, 2))]
    calls += [(name, ("text", 0)) for name in ("encode", "decode", "costs")]
    for method, args in calls:
        found, wanted = outcome(getattr(numpy, method), *args), outcome(getattr(c, method), *args)
        assert found[0] is wanted[0]
        assert found == wanted or found[0] is TypeError
    assert reference.SEGMENT_SIZE == c_kernel.SEGMENT_SIZE


def test_reference_is_thread_safe(base: Pair) -> None:
    c, numpy = base
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: numpy.encode(*job), [(raw[:80], t) for raw, t in TYPED]))
    assert found == [c.encode(raw[:80], t) for raw, t in TYPED]


# -- model and pack files ----------------------------------------------------------------------------------------------


def patched(file: bytes, at: int, data: bytes) -> bytes:
    return file[:at] + data + file[at + len(data) :]


def entry(file: bytes, name: str) -> int:
    """Where the section's line of the table begins."""
    return 64 + 32 * list(model.section_table(file)).index(name)


def resized(file: bytes, name: str, size: int) -> bytes:
    return patched(file, entry(file, name) + 24, size.to_bytes(8, "little"))


def poked(file: bytes, name: str, data: bytes) -> bytes:
    return patched(file, model.section_table(file)[name][0], data)


def files_with_faults() -> Iterator[tuple[bytes, bytes | None]]:
    base, pack = MILD
    for whole in (base, pack):
        other = (lambda file: (file, None)) if whole is base else (lambda file: (base, file))
        yield other(b"")
        yield other(whole[:63])
        yield other(b"NBMX" + whole[4:])
        yield other(patched(whole, 5, b"\2"))
        yield other(patched(whole, 6, (65).to_bytes(2, "little")))
        yield other(whole[:70])
        yield other(whole + b"\0")
        for name in model.section_table(whole):
            yield other(patched(whole, entry(whole, name), b"?"))
            yield other(patched(whole, entry(whole, name) + 16, (len(whole) + 1).to_bytes(8, "little")))
            yield other(patched(whole, entry(whole, name) + 16, b"\xff" * 8))
            yield other(resized(whole, name, 1 << 40))
            yield other(resized(whole, name, 1))
            yield other(resized(whole, name, 0))
    yield pack, None
    yield base, base
    yield base, poked(pack, "model_id", b"\1\2\3")
    for prefix, second in (("", None), ("pack_", pack)):
        yield poked(base, prefix + "rates", b"\x80"), second
        yield poked(base, prefix + "rates", b"\xff" * 4), second
        yield patched(base, entry(base, prefix + "weights"), b"?"), second
    yield poked(base, "order2_row", b"\3\0"), None
    yield poked(base, "squash", b"\0\0"), None


def test_faulty_files() -> None:
    refused = 0
    for parts in files_with_faults():
        wanted, found = outcome(c_kernel.load, *parts), outcome(reference.load, *parts)
        if isinstance(wanted, tuple):
            assert found == wanted
            assert wanted[0] is FormatError
            refused += 1
        else:
            assert check((wanted, found), TEXT[:12], 0)
    assert refused > 100


@settings(max_examples=60)
@given(at=st.integers(0, 64 + 32 * 20), byte=st.integers(0, 255))
def test_any_fault_in_the_header(at: int, byte: int) -> None:
    file = patched(MILD[0], at, bytes([byte]))
    wanted, found = outcome(c_kernel.load, file), outcome(reference.load, file)
    if isinstance(wanted, tuple):
        assert found == wanted
    else:
        assert wanted.encode(b"abcdef", 0) == found.encode(b"abcdef", 0)


def test_sections_off_their_alignment() -> None:
    """Sections may lie anywhere: those at odd offsets are copied."""
    table = model.section_table(MILD[0])
    at, head, body = 64 + 32 * len(table), b"", b""
    for name, (offset, size) in table.items():
        pad = 1 - at % 2
        head += name.encode().ljust(16, b"\0") + (at + pad).to_bytes(8, "little") + size.to_bytes(8, "little")
        body += bytes(pad) + MILD[0][offset : offset + size]
        at += pad + size
    file = MILD[0][:8] + at.to_bytes(8, "little") + MILD[0][16:64] + head + body
    plain, odd = pair(MILD[0]), pair(file)
    assert check(odd, TEXT[:80], 1) == check(plain, TEXT[:80], 1)


# -- sequences ---------------------------------------------------------------------------------------------------------


def test_sequences_agree(both: Pair) -> None:
    c, numpy = both
    raws, types = RECORDS, bytes(kind for _, kind in TYPED)
    payload = numpy.encode_sequence(raws, types, 0)
    assert numpy.decode_sequence(payload, types, 0) == raws
    for name in SIMD:
        c_kernel.simd(name)
        assert c.encode_sequence(raws, types, 0) == payload, name
        assert c.decode_sequence(payload, types, 0) == raws, name


def test_primed_sequences_agree(both: Pair) -> None:
    c, numpy = both
    raws, types = RECORDS[:7], bytes(kind for _, kind in TYPED[:7])
    for primed in (1, 4, 6):
        payload = numpy.encode_sequence(raws, types, 0, primed)
        assert numpy.decode_sequence(payload, types, 0, 1 << 18, raws[:primed]) == raws[primed:]
        for name in SIMD:
            c_kernel.simd(name)
            assert c.encode_sequence(raws, types, 0, primed) == payload, name
            assert c.decode_sequence(payload, types, 0, 1 << 18, raws[:primed]) == raws[primed:], name
        for coder in both:
            with pytest.raises(StreamLimit):
                coder.decode_sequence(payload, types, 0, 0, [b"ab", *raws[1:primed]])


def test_a_sequence_of_one_is_the_record_alone(base: Pair) -> None:
    c, _ = base
    for raw, kind in TYPED:
        assert c.encode_sequence([raw], bytes([kind]), 0) == c.encode(raw, kind)


def test_a_sequence_knows_what_came_before(base: Pair) -> None:
    c, _ = base
    assert len(c.encode_sequence([TEXT] * 8, b"\1" * 8, 0)) < len(c.encode(TEXT, 1)) + 8 * 16


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=40), st.integers(0, 3)), min_size=1, max_size=8))
def test_any_sequence_comes_back(records: list[tuple[bytes, int]]) -> None:
    c = c_kernel.load(MILD[0])
    raws, types = [raw for raw, _ in records], bytes(kind for _, kind in records)
    assert c.decode_sequence(c.encode_sequence(raws, types, 0), types, 0) == raws


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=30), st.binary(min_size=1, max_size=5), st.integers(0, 60))
def test_damaged_sequences_agree(payload: bytes, types: bytes, most: int) -> None:
    c, numpy = pair(MILD[0])
    types = bytes(kind & 3 for kind in types)
    assert outcome(c.decode_sequence, payload, types, 0, most) == outcome(
        numpy.decode_sequence, payload, types, 0, most
    )


def test_what_no_sequence_is(base: Pair) -> None:
    for coder in base:
        for raws, types in (([], b""), ([b"a"], b""), ([b"a"], b"\4"), ([bytes(1 << 17)] * 3, bytes(3))):
            with pytest.raises(ValueError):
                coder.encode_sequence(raws, types, 0)
        with pytest.raises(ValueError):
            coder.decode_sequence(b"abc", b"", 0)
