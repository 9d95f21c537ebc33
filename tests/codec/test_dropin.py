"""The drop-in functions over the shipped model. What the dicts hold in detail is in test_stub.py."""

import base64
import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import by_kernel, same, short_values

import nbmf
from nbmf.codec import dropin, stub
from nbmf.errors import CorruptRecord, FormatError, NbmfError, OutputLimit, PolicyError, UnknownModel, UnsupportedValue

SENTENCE = "Please water the plants in the hall on Sunday."


@given(short_values)
@settings(max_examples=by_kernel(100, 5))
def test_round_trip_through_json_text(value: Any) -> None:
    text = json.dumps(dropin.encode(value))
    assert same(dropin.decode(json.loads(text)), value)
    assert same(dropin.decode(stub.parse_text(text)), value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=4)))
def test_old_dicts_are_read(value: Any) -> None:
    assert same(dropin.decode(stub.encode(value, "lossless")), value)


def test_what_a_dict_says() -> None:
    blob = dropin.encode(SENTENCE)
    assert sorted(blob) == ["code", "meta", "sig"]
    assert base64.b85decode(blob["code"]) == nbmf.encode(SENTENCE)
    assert blob["sig"] == stub.encode(SENTENCE, "lossless")["sig"]
    assert blob["meta"] == {
        "fidelity": "lossless",
        "type": "str",
        "length_bytes": len(nbmf.encode(SENTENCE)),
        "encoder_version": 2,
    }
    assert len(json.dumps(blob)) < len(json.dumps(stub.encode(SENTENCE, "lossless"))) + 30


def test_old_semantic_dicts_give_their_preview() -> None:
    assert dropin.decode(stub.encode("a  b\n c")) == "a b c"
    assert dropin.decode(stub.encode({"b": 1, "a": 2})) == '{"a": 2, "b": 1}'
    assert dropin.decode(stub.encode("x" * 3000)) == "x" * 2048


def test_refusals() -> None:
    with pytest.raises(PolicyError):
        dropin.encode(SENTENCE, "exact")
    with pytest.raises(UnsupportedValue, match=r"^\$\[0\]: tuple"):
        dropin.encode([(1,)])
    with pytest.raises(UnsupportedValue, match=r"^\$: NaN"):
        dropin.encode(float("nan"))


@pytest.mark.parametrize("version", [0, 1, 3, "2", 2.0, True, None])
def test_other_versions(version: Any) -> None:
    blob = dropin.encode(SENTENCE)
    blob["meta"]["encoder_version"] = version
    with pytest.raises(FormatError, match="encoder_version"):
        dropin.decode(blob)


def test_damage() -> None:
    good = dropin.encode(SENTENCE)

    def damaged(**parts: Any) -> dict[str, Any]:
        return {**copy.deepcopy(good), **parts}

    code = good["code"]
    for blob, error in (
        (damaged(code=code + "0"), CorruptRecord),
        (damaged(code=code[:-1]), CorruptRecord),
        (damaged(code=code + " "), CorruptRecord),
        (damaged(code=code[:-1] + "é"), CorruptRecord),
        (damaged(code=""), CorruptRecord),
        (damaged(sig="0" * 64), CorruptRecord),
        (damaged(sig=""), CorruptRecord),
        (damaged(code=code.encode()), FormatError),
        (damaged(sig=None), FormatError),
        (damaged(meta=[]), FormatError),
        (damaged(meta={**good["meta"], "length_bytes": 1}), CorruptRecord),
        ({"meta": good["meta"], "sig": good["sig"]}, FormatError),
        (None, FormatError),
        (nbmf.encode(SENTENCE), FormatError),
    ):
        with pytest.raises(error) as caught:
            dropin.decode(blob)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_a_code_of_another_value() -> None:
    blob = {**dropin.encode(SENTENCE), "code": dropin.encode("b")["code"]}
    blob["meta"]["length_bytes"] = len(nbmf.encode("b"))
    with pytest.raises(CorruptRecord, match="sig does not match"):
        dropin.decode(blob)


def test_unknown_model() -> None:
    blob = dropin.encode(SENTENCE)
    data = bytearray(base64.b85decode(blob["code"]))
    data[5:9] = bytes.fromhex("0badf00d")
    with pytest.raises(UnknownModel, match="0badf00d"):
        dropin.decode({**blob, "code": base64.b85encode(bytes(data)).decode()})


def test_output_limit() -> None:
    for value in (SENTENCE, bytes(300)):
        blob = dropin.encode(value)
        assert dropin.decode(blob, max_out=len(value)) == value
        with pytest.raises(OutputLimit):
            dropin.decode(blob, max_out=len(value) - 1)


def test_bytes_and_vectors() -> None:
    for value in (b"", b"\x00\xff", np.array([1.5, -0.0, np.nan], np.float32)):
        assert same(dropin.decode(json.loads(json.dumps(dropin.encode(value)))), value)


@given(st.recursive(st.none() | st.integers() | st.text(), lambda i: st.dictionaries(st.text(), i) | st.lists(i)))
def test_any_json_value_as_a_dict(blob: Any) -> None:
    with pytest.raises(NbmfError):
        dropin.decode(blob)
