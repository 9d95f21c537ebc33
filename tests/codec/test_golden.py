"""Golden blobs, errors and streams: bytes that every later version must read. No test run ever writes them.

A missing file is a failure. `scripts/make_golden.py` adds lines and refuses to change any.
"""

import hashlib
import json
import lzma
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategies import same

import nbmf
from nbmf import samples
from nbmf.codec.codec import Codec
from nbmf.codec.format import ZSTD
from nbmf.codec.group import NeuralGroups
from nbmf.codec.model import load_model, load_pack
from nbmf.codec.values import VALUE_TYPES, VECTOR, from_raw
from nbmf.errors import NbmfError

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "golden"
PACK = GOLDEN / "golden.nbp"
LEAST = {"blobs.jsonl": 60, "errors.jsonl": 45, "streams.txt": 240, "lasting.jsonl": 60, "lasting-dense.jsonl": 60}


def lines(name: str) -> list[str]:
    path = GOLDEN / name
    return path.read_text(encoding="ascii").splitlines() if path.exists() else []


BLOBS = [json.loads(line) for line in lines("blobs.jsonl")]
ERRORS = [json.loads(line) for line in lines("errors.jsonl")]
LASTING = {name: [json.loads(line) for line in lines(f"{name}.jsonl")] for name in ("lasting", "lasting-dense")}
LASTING_GROUPS = [(name, line) for name, held in LASTING.items() for line in held if "group" in line]
STREAMS = [line.split(" ") for line in lines("streams.txt")]


def ids() -> dict[str, str]:
    """Content ids of the model and the pack, and the SHA-256 of the UTF-8 of the text in segmented.nbmf."""
    found: dict[str, str] = json.loads((GOLDEN / "ids.json").read_text(encoding="ascii"))
    return found


@pytest.fixture(autouse=True)
def the_model_they_were_made_with() -> None:
    """Explains, once a test, what would otherwise look like a hundred different faults."""
    wanted = ids()
    found = {"model": load_model().id.hex(), "pack": load_pack(PACK).id.hex()}
    if (found["model"], found["pack"]) != (wanted["model"], wanted["pack"]):
        pytest.fail(
            f"the golden files were made with model {wanted['model'][:8]} and pack {wanted['pack'][:8]}; here are "
            f"{found['model'][:8]} and {found['pack'][:8]}. A released model stays readable for ever: keep its file "
            "and give the new one another name. Before the first release: python scripts/make_golden.py --fresh",
            pytrace=False,
        )


@cache
def coders() -> tuple[Codec, Codec]:
    return Codec(), Codec(domain=str(PACK))


def value_of(line: dict[str, Any]) -> Any:
    if line["type"] == "bytes":
        return bytes.fromhex(line["value"])
    if line["type"] == "vector":
        return np.frombuffer(bytes.fromhex(line["value"]), "<u4").astype(np.uint32).view(np.float32)
    if line["type"] == "text" and isinstance(line["value"], dict):
        return bytes.fromhex(line["value"]["utf8"]).decode("utf-8", "surrogatepass")
    return line["value"]


@pytest.mark.parametrize("name", LEAST)
def test_golden_files_are_there(name: str) -> None:
    assert len(lines(name)) >= LEAST[name], f"tests/golden/{name} is missing or has lost lines"
    held = {"blobs.jsonl": BLOBS, "errors.jsonl": ERRORS, **{f"{name}.jsonl": lines for name, lines in LASTING.items()}}
    keys = [line["name"] for line in held.get(name, [])]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("line", BLOBS, ids=lambda line: line["name"])
def test_golden_blob(line: dict[str, Any]) -> None:
    codec, packed = coders()
    value = value_of(line)
    bare, whole, with_pack = (bytes.fromhex(line[form]) for form in ("bare", "self", "packed"))
    assert same(codec.decode(bare, bare=True), value)
    assert same(codec.decode(whole), value)
    assert same(packed.decode(with_pack), value)
    made = (
        codec.encode(value, True, allow_nan=True),
        codec.encode(value, allow_nan=True),
        packed.encode(value, allow_nan=True),
    )
    for held, new in zip((bare, whole, with_pack), made, strict=True):
        assert new == held or held[0] & 3 == ZSTD  # another release of zstd may write another frame


@pytest.mark.parametrize("line", ERRORS, ids=lambda line: line["name"])
def test_golden_error(line: dict[str, Any]) -> None:
    with pytest.raises(NbmfError) as caught:
        Codec(max_out=line["max_out"]).decode(bytes.fromhex(line["blob"]), bare=line["bare"])
    assert (type(caught.value).__name__, str(caught.value)) == (line["error"], line["message"])


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Codec]:
    """The codecs of small models that are never replaced, whatever base model ships."""
    folder = tmp_path_factory.mktemp("lasting")
    for name in LASTING:
        (folder / f"{name}.nbm").write_bytes(lzma.decompress((GOLDEN / f"{name}.nbm.xz").read_bytes()))
    codecs = {
        "lasting": Codec(str(folder / "lasting.nbm")),
        "lasting-dense": Codec(str(folder / "lasting-dense.nbm"), profile="dense"),
    }
    assert [codec.id[:8] for codec in codecs.values()] == ["735b8234", "f284c7ba"]
    return codecs


@pytest.mark.parametrize("model", LASTING)
def test_lasting_blobs(lasting: dict[str, Codec], model: str) -> None:
    codec = lasting[model]
    values = {line["name"]: value_of(line) for line in BLOBS}
    held = {line["name"]: bytes.fromhex(line["bare"]) for line in LASTING[model] if "bare" in line}
    assert held.keys() == values.keys()
    for name, blob in held.items():
        assert same(codec.decode(blob, bare=True), values[name]), name
        assert blob[0] & 3 == ZSTD or codec.encode(values[name], bare=True, allow_nan=True) == blob, name


@pytest.mark.parametrize(("model", "line"), LASTING_GROUPS, ids=[f"{m}: {line['name']}" for m, line in LASTING_GROUPS])
def test_lasting_groups(lasting: dict[str, Codec], model: str, line: dict[str, Any]) -> None:
    codec = lasting[model]
    groups, first, after = NeuralGroups(codec, lambda _: codec), line["first"], line.get("after", 0)
    shipped = [sample.value for sample in samples.load()][first - after : first + line["count"]]
    blobs = [(codec.id, codec.encode(value, bare=True)) for value in shipped]
    known, wanted = [blob for _, blob in blobs[:after]], shipped[after:]
    found = groups.decode(bytes.fromhex(line["group"]), line["count"], lambda: known)
    assert all(same(codec.decode(a, bare=True), b) for a, b in zip(found, wanted, strict=True))
    assert groups.encode(blobs[after:], blobs[:after]).hex() == line["group"]


def unhex(text: str) -> bytes:
    return b"" if text == "-" else bytes.fromhex(text)


@pytest.mark.parametrize(("value_type", "raw", "payload", "pack"), STREAMS, ids=range(len(STREAMS)))
def test_golden_stream(value_type: str, raw: str, payload: str, pack: str) -> None:
    coder, profile = coders()[int(pack) & 1].coder, int(pack) >> 1
    assert coder.encode(unhex(raw), int(value_type), profile) == unhex(payload)
    assert coder.decode(unhex(payload), int(value_type), profile) == unhex(raw)


@pytest.mark.usefixtures("only_c")
def test_golden_segments() -> None:
    text = nbmf.decode((GOLDEN / "segmented.nbmf").read_bytes())
    assert hashlib.sha256(text.encode()).hexdigest() == ids()["segmented"]
    assert coders()[0].encode(text) == (GOLDEN / "segmented.nbmf").read_bytes()


def test_golden_streams_hold_the_values_of_the_blobs() -> None:
    held = {(int(value_type), raw) for value_type, raw, _, _ in STREAMS}
    for line in BLOBS:
        if line["type"] == "bytes":
            assert (VALUE_TYPES.index("bytes"), line["value"] or "-") in held
    for value_type, raw, _, _ in STREAMS:
        if int(value_type) != VECTOR:
            from_raw(int(value_type), unhex(raw))


@pytest.mark.usefixtures("only_c")
def test_golden_lines_would_come_out_the_same() -> None:
    """The script that adds lines agrees with every one there is."""
    before = {path.name: path.read_bytes() for path in GOLDEN.iterdir() if path.is_file()}
    run = subprocess.run([sys.executable, ROOT / "scripts" / "make_golden.py"], capture_output=True, text=True)
    after = {path.name: path.read_bytes() for path in GOLDEN.iterdir() if path.is_file()}
    assert run.returncode == 0, run.stderr
    assert after == before, "the script holds values that the golden files lack: run it and keep what it adds"
