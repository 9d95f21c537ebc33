"""The old stub encoder's dicts and the drop-in ones that replace them."""

import base64
import copy
import hashlib
import json
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbmf.codec import codec, dropin, format, stub
from nbmf.codec.values import to_raw
from nbmf.errors import CorruptRecord, FormatError, OutputLimit, PolicyError, UnsupportedValue

text = st.text(st.characters(exclude_categories=("Cs",)))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
finite = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text
finite_values = st.recursive(finite, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=20)
json_values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=20)


@pytest.fixture(autouse=True)
def blobs_without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the dicts hold is tested here, not how small it gets: blobs are stored ones."""

    def encode(value: Any, fidelity: str = "lossless", domain: str | None = None) -> bytes:
        if fidelity != "lossless":
            raise PolicyError(fidelity)
        value_type, raw = to_raw(value)
        return format.build(format.STORED, value_type, format.crc(value_type, raw), raw, bare=False)

    monkeypatch.setattr(codec, "encode", encode)


def sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def old_lossless(payload: Any) -> dict[str, Any]:
    """A lossless dict, spelled out from the description of the old format."""
    code = zlib.compress(json.dumps(payload, ensure_ascii=False).encode(), 9)
    meta = {"fidelity": "lossless", "type": type(payload).__name__, "length_bytes": len(code)}
    return {"meta": meta, "code": code.hex(), "sig": sha(payload)}


# -- old dicts ---------------------------------------------------------------------------------------------------------


def test_the_old_dicts_byte_for_byte() -> None:
    assert stub.encode({"b": 1, "a": "é"}, "lossless") == {
        "meta": {
            "fidelity": "lossless",
            "type": "dict",
            "length_bytes": len(zlib.compress(b'{"b": 1, "a": "\xc3\xa9"}', 9)),
        },
        "code": zlib.compress(b'{"b": 1, "a": "\xc3\xa9"}', 9).hex(),
        "sig": hashlib.sha256(b'{"a": "\xc3\xa9", "b": 1}').hexdigest(),
    }
    assert stub.encode(" two\n\n words\t", "semantic") == {
        "meta": {"fidelity": "semantic", "type": "str", "preview_length": 9},
        "code": b"two words".hex(),
        "sig": hashlib.sha256(b'"two words"').hexdigest(),
    }
    assert stub.encode({"b": 1, "a": 2}) == {
        "meta": {"fidelity": "semantic", "type": "dict", "preview_length": 16},
        "code": b'{"a": 2, "b": 1}'.hex(),
        "sig": hashlib.sha256(rb'"{\"a\": 2, \"b\": 1}"').hexdigest(),
    }


@given(json_values)
def test_lossless_comes_back(value: Any) -> None:
    blob = stub.encode(value, "lossless")
    assert blob == old_lossless(value)
    for form in (blob, json.loads(json.dumps(blob))):
        assert stub.read(form) == (value, "lossless", False)
        assert repr(stub.decode(form)) == repr(dropin.decode(form)) == repr(value)


@given(json_values)
def test_semantic_gives_the_preview(value: Any) -> None:
    expected = (
        " ".join(value.split()) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    )
    assert stub.read(stub.encode(value, "semantic")) == (expected[:2048], "semantic", len(expected) > 2048)


def test_a_truncated_preview_says_so() -> None:
    for length, truncated in ((2047, False), (2048, False), (2049, True), (9000, True)):
        read = stub.read(stub.encode("é" * length, "semantic"))
        assert read == ("é" * min(length, 2048), "semantic", truncated)


def test_keys_that_were_numbers_are_still_read() -> None:
    # Signed with the keys sorted as numbers, which cannot be told from the text.
    assert stub.decode(old_lossless({10: "a", 2: "b"})) == {"10": "a", "2": "b"}
    assert stub.decode(old_lossless([{1: [{True: None}]}])) == [{"1": [{"true": None}]}]
    assert stub.decode(old_lossless({"t": (1, 2)})) == {"t": [1, 2]}


def test_what_the_old_encoder_could_not_write() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for payload in (b"bytes", {1}, "\ud800", deep, 10**5000, {1: 1, "a": 2}):
        for fidelity in ("lossless", "semantic"):
            if (fidelity, payload) == ("lossless", {1: 1, "a": 2}):
                continue  # refused while the signature is made
            with pytest.raises(UnsupportedValue):
                stub.encode(payload, fidelity)
    with pytest.raises(UnsupportedValue):
        stub.encode({1: 1, "a": 2}, "lossless")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"sig": "0" * 64}, CorruptRecord),
        ({"code": "zz"}, CorruptRecord),
        ({"code": "abc"}, CorruptRecord),
        ({"code": ""}, CorruptRecord),
        ({"code": None}, FormatError),
        ({"sig": None}, FormatError),
        ({"meta": None}, FormatError),
        ({"meta": {}}, FormatError),
        ({"meta": {"fidelity": "exact"}}, FormatError),
        ({"meta": {"fidelity": "lossless", "length_bytes": 3}}, CorruptRecord),
        ({"meta": {"fidelity": "lossless", "encoder_version": 3}}, FormatError),
        ({"meta": {"fidelity": "lossless", "encoder_version": "2"}}, FormatError),
        ({"meta": {"fidelity": "lossless", "encoder_version": True}}, FormatError),
    ],
)
def test_damaged_old_dicts(change: dict[str, Any], error: type[Exception]) -> None:
    blob = {**stub.encode({"a": "some words"}, "lossless"), **change}
    for decode in (stub.decode, dropin.decode):
        with pytest.raises(error) as caught:
            decode(blob)
        assert "\n" not in str(caught.value)


def recoded(blob: dict[str, Any], code: bytes) -> dict[str, Any]:
    """The dict with another code of a length that its meta agrees with."""
    return {**blob, "code": code.hex(), "meta": {**blob["meta"], "length_bytes": len(code)}}


def test_codes_that_are_no_exact_zlib_stream() -> None:
    blob = stub.encode(["some words"] * 5, "lossless")
    code = bytes.fromhex(blob["code"])
    for wrong in (
        code[:-1],
        code + b"\0",
        code[:-1] + b"\0",
        code[2:],
        zlib.compress(b"[1, 2"),
        zlib.compress(b"\xff"),
    ):
        with pytest.raises(CorruptRecord):
            stub.decode(recoded(blob, wrong))
    with pytest.raises(CorruptRecord, match="sig"):
        stub.decode(recoded(blob, zlib.compress(b'["other words"]')))


def test_damaged_previews() -> None:
    blob = stub.encode("some words", "semantic")
    for code in (b"some wordz", b"\xff" * 10):
        with pytest.raises(CorruptRecord):
            stub.decode({**blob, "code": code.hex()})
    with pytest.raises(CorruptRecord, match="preview_length"):
        stub.decode({**blob, "code": b"some".hex()})
    longer = "x" * 2049
    meta = {"fidelity": "semantic", "type": "str", "preview_length": 2049}
    with pytest.raises(CorruptRecord):
        stub.decode({"meta": meta, "code": longer.encode().hex(), "sig": "0" * 64})


def test_a_zlib_bomb_is_stopped() -> None:
    blob = recoded(stub.encode("", "lossless"), zlib.compress(b'"' + bytes(200 << 20), 9))
    with pytest.raises(OutputLimit):
        stub.decode(blob, max_out=1 << 20)


@given(st.binary(max_size=80))
def test_any_code_gives_a_clear_error(code: bytes) -> None:
    for form in (code, zlib.compress(code)):
        with pytest.raises(CorruptRecord):
            stub.decode(recoded(stub.encode("x", "lossless"), form))


def test_the_json_text_of_a_dict() -> None:
    blob = stub.encode({"a": 1}, "lossless")
    assert stub.parse_text(json.dumps(blob)) == stub.parse_text(json.dumps(blob).encode()) == blob
    for wrong in ("", "[]", '{"a": 1}', "{", b"\xff", '{"meta": 1, "code": "", "sig": ""}'):
        with pytest.raises(FormatError):
            stub.parse_text(wrong)


# -- drop-in dicts -----------------------------------------------------------------------------------------------------


@given(finite_values | st.text(st.characters(exclude_categories=())) | st.binary())
@settings(max_examples=200)
def test_drop_in_dicts_come_back(value: Any) -> None:
    blob = dropin.encode(value, "lossless")
    data = base64.b85decode(blob["code"])
    assert data == codec.encode(value)
    assert blob["meta"] == {
        "fidelity": "lossless",
        "type": type(value).__name__,
        "length_bytes": len(data),
        "encoder_version": 2,
    }
    assert len(blob["code"]) <= len(data.hex())
    assert json.dumps(blob["code"]) == f'"{blob["code"]}"'
    assert repr(dropin.decode(json.loads(json.dumps(blob)))) == repr(value)


@given(finite_values)
def test_the_signature_is_the_old_one(value: Any) -> None:
    assert dropin.encode(value)["sig"] == stub.encode(value, "lossless")["sig"]


def test_a_drop_in_vector() -> None:
    vector = np.array([1.5, -0.0, np.inf], dtype=np.float32)
    blob = dropin.encode(vector)
    assert blob["sig"] == hashlib.sha256(vector.tobytes()).hexdigest()
    assert dropin.decode(blob).tobytes() == vector.tobytes()


def test_drop_in_values_that_the_old_encoder_could_not_write() -> None:
    deep: Any = 10**5000
    for _ in range(2000):
        deep = {"\ud800": deep}
    back = dropin.decode(dropin.encode(deep))
    for _ in range(2000):
        back = back["\ud800"]
    assert back == 10**5000


def test_semantic_is_refused() -> None:
    with pytest.raises(PolicyError):
        dropin.encode("words", "semantic")


def test_damaged_drop_in_dicts() -> None:
    blob = dropin.encode({"a": "some words"})
    changes: list[tuple[str, Any]] = [("sig", "0" * 64), ("code", "\u00e9"), ("code", "~"), ("code", blob["code"][:-5])]
    for field, value in changes:
        with pytest.raises(CorruptRecord):
            dropin.decode({**blob, field: value})
    flipped = bytearray(base64.b85decode(blob["code"]))
    flipped[-1] ^= 1
    with pytest.raises(CorruptRecord):
        dropin.decode({**blob, "code": base64.b85encode(flipped).decode()})
    wrong = copy.deepcopy(blob)
    wrong["meta"]["length_bytes"] += 1
    with pytest.raises(CorruptRecord, match="length_bytes"):
        dropin.decode(wrong)
    with pytest.raises(FormatError, match="encoder_version"):
        stub.decode(blob)
    with pytest.raises(OutputLimit):
        dropin.decode(blob, max_out=3)
    for other in ("x", [], None, {}):
        with pytest.raises(FormatError):
            dropin.decode(other)  # type: ignore[arg-type]
