"""The numcodecs codec, by the functions that numcodecs checks its own codecs with."""

from __future__ import annotations

import importlib.metadata
import json
from typing import Any

import numcodecs
import numpy as np
import pytest
from numcodecs.tests import common

import nbmf
from nbmf import samples
from nbmf.errors import CorruptRecord, FormatError, NbmfError, PolicyError
from nbmf.integrations.numcodecs import NBMF

common.NBMF = NBMF  # where check_repr evaluates

CODECS = [NBMF(), NBMF(neural_max=0), NBMF(neural_max=1 << 20)]


def arrays() -> list[Any]:
    source = np.random.default_rng(3)
    whole = source.integers(0, 2**60, size=300, dtype="u8")
    return [
        np.arange(300, dtype="i4"),
        np.linspace(1000, 1001, 300, dtype="f8"),
        source.normal(loc=1000, scale=1, size=(30, 10)),
        source.integers(0, 2, size=300).astype(bool).reshape(30, 10, order="F"),
        source.choice([b"a", b"bb", b"ccc"], size=300).reshape(10, 10, 3),
        whole.view("M8[ns]"),
        whole.view("m8[m]"),
        np.zeros(0, "u1"),
        np.frombuffer(b"likes green tea", "u1"),
    ]


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_encode_decode(codec: NBMF) -> None:
    for array in arrays():
        common.check_encode_decode(array, codec)


def test_config_and_repr() -> None:
    for codec in CODECS:
        common.check_config(codec)
        common.check_repr(repr(codec))
        assert json.loads(json.dumps(codec.get_config()))["id"] == "nbmf"
    assert NBMF() == NBMF() != NBMF(neural_max=0) != "nbmf"


def test_object_buffers_are_refused() -> None:
    common.check_err_decode_object_buffer(NBMF())
    common.check_err_encode_object_buffer(NBMF())
    with pytest.raises(TypeError):
        NBMF().encode(["foo", "bar"])
    with pytest.raises(ValueError, match="contiguous"):
        NBMF().encode(np.arange(1000, dtype="i4")[::2])


def test_it_is_found_by_its_id() -> None:
    (point,) = importlib.metadata.entry_points(group="numcodecs.codecs", name="nbmf")
    assert point.load() is NBMF
    codec = numcodecs.get_codec({"id": "nbmf", "neural_max": 5})
    assert type(codec) is NBMF and codec.neural_max == 5


def test_blobs_are_those_of_nbmf_and_small() -> None:
    text = "\n".join(json.dumps(sample.value, ensure_ascii=False) for sample in samples.generate(60, seed=8)).encode()
    blob = NBMF().encode(text)
    assert nbmf.decode(blob) == text and NBMF(neural_max=0).decode(blob) == text
    assert len(blob) < 0.7 * len(NBMF(neural_max=0).encode(text)) < len(numcodecs.Zstd(level=19).encode(text))


def test_what_is_no_blob() -> None:
    damaged = bytearray(NBMF().encode(b"likes green tea"))
    damaged[-3] ^= 1
    for data, error in ((b"plain", FormatError), (bytes(damaged), CorruptRecord), (nbmf.encode("text"), FormatError)):
        with pytest.raises((error, CorruptRecord)) as caught:
            NBMF().decode(data)
        assert isinstance(caught.value, NbmfError)
    with pytest.raises(ValueError):
        NBMF().decode(NBMF().encode(b"likes"), out=bytearray(4))
    for bad in (-1, 1.5, "9", True):
        with pytest.raises(PolicyError):
            NBMF(neural_max=bad)  # type: ignore[arg-type]


def test_a_domain_pack(tmp_path: Any) -> None:
    records = [
        f'{{"sensor": "hall-{i % 7}", "status": "ok", "note": "checked by night shift"}}'.encode() for i in range(300)
    ]
    nbmf.adapt(records, out=tmp_path / "s.nbp")
    codec = numcodecs.get_codec({"id": "nbmf", "domain": str(tmp_path / "s.nbp")})
    assert (
        len(codec.encode(records[5])) < len(NBMF().encode(records[5]))
        and codec.decode(codec.encode(records[5])) == records[5]
    )
