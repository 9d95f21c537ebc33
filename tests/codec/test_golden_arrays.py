"""Golden blobs of arrays and of toleranced numbers: every later version reads the same floats out of them.

A missing file is a failure. `scripts/make_golden_arrays.py` adds lines and refuses to change any.
"""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from strategies import same

from nbmf.codec.codec import Codec
from nbmf.codec.format import ZSTD
from nbmf.codec.model import load_pack

ROOT = Path(__file__).resolve().parent.parent.parent
FILE = ROOT / "tests" / "golden" / "arrays.jsonl"
LINES = [json.loads(line) for line in FILE.read_text(encoding="ascii").splitlines()] if FILE.exists() else []


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_golden_arrays", ROOT / "scripts" / "make_golden_arrays.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = script()


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Codec, Codec]:
    made: tuple[Codec, Codec] = MAKE.codecs(tmp_path_factory.mktemp("lasting"))
    return made


def test_they_are_there() -> None:
    assert len(LINES) >= 21, "tests/golden/arrays.jsonl is missing or has lost lines"
    assert load_pack(MAKE.PACK).id.hex()[:8] == "7d704f5c"


@pytest.mark.parametrize("line", LINES, ids=lambda line: line["name"])
def test_a_blob_gives_the_same_floats(codecs: tuple[Codec, Codec], line: dict[str, Any]) -> None:
    codec, options = codecs["pack" in line["options"]], MAKE.options_of(line)
    blob = bytes.fromhex(line["bare"])
    back = codec.decode(blob, bare=True, beside=options.get("beside"))
    if "value" in line:
        value = line["value"]
        assert same(back, line["back"])
    else:
        value = np.frombuffer(bytes.fromhex(line["raw"]), line["type"]).reshape(line["shape"])
        assert back.dtype == value.dtype and back.shape == value.shape
        assert back.astype(back.dtype.newbyteorder("<")).tobytes().hex() == line["back"]
    assert codec.encode(value, bare=True, **options) == blob or blob[0] & 3 == ZSTD
