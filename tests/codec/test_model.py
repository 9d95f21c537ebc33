"""Model and pack files: layout, identity, lookup."""

import os
import time
from pathlib import Path

import pytest

from nbmf.codec import kernel, model
from nbmf.codec.codec import Codec
from nbmf.codec.model import (
    HEADER_SIZE,
    MODEL_MAGIC,
    PACK_MAGIC,
    build_file,
    content_id,
    load_model,
    load_pack,
    lookup,
    section,
    section_table,
)
from nbmf.errors import FormatError, UnknownModel

SECTIONS = {"card": b'{"made": "by a test"}', "model_id": bytes(range(32)), "empty": b"", "body": b"x" * 100}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NBMF_MODELS", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def test_a_file_built_and_read() -> None:
    data = build_file(MODEL_MAGIC, SECTIONS)
    assert {name: bytes(section(data, name)) for name in section_table(data)} == SECTIONS
    assert data[:8] == b"NBMM\x01\x01\x04\x00"
    assert int.from_bytes(data[8:16], "little") == len(data)
    assert content_id(data) == data[16:48]
    assert data[48:64] == bytes(16)
    assert all(offset % 64 == 0 for offset, _ in section_table(data).values())


def test_sections_that_are_missing() -> None:
    with pytest.raises(FormatError, match="section weights is missing"):
        section(build_file(MODEL_MAGIC, SECTIONS), "weights")


def changed(at: int, to: bytes) -> bytes:
    data = build_file(MODEL_MAGIC, SECTIONS)
    return data[:at] + to + data[at + len(to) :]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a model or pack file"),
        (b"NBMM", "not a model or pack file"),
        (b"x" * 200, "not a model or pack file"),
        (changed(0, b"NBMX"), "not a model or pack file"),
        (changed(5, b"\x02"), "a reader of version 2"),
        (changed(6, b"\xff\xff"), "cut short or has bytes after its end"),
        (changed(8, b"\x00"), "cut short or has bytes after its end"),
        (build_file(MODEL_MAGIC, SECTIONS)[:-1], "cut short"),
        (build_file(MODEL_MAGIC, SECTIONS) + b"\0", "bytes after its end"),
        (changed(64, b"\xff"), "name is not ASCII"),
        (changed(64 + 16, b"\xff" * 8), "section card lies outside the file"),
        (changed(64 + 24, b"\xff" * 8), "section card lies outside the file"),
        (changed(64 + 24, b"\xff\xff\x00"), "section card lies outside the file"),
    ],
)
def test_wrong_tables(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        section_table(data)


def test_a_later_writer_is_read() -> None:
    """Only the version that a reader needs is refused."""
    assert section_table(changed(4, b"\x07"))


def test_the_shipped_model() -> None:
    base = load_model()
    assert base.id == content_id(base.buffer) == base.buffer[16:48]
    assert base.path.parent == model.PACKAGED
    assert base.path.stat().st_size <= 40 << 20
    assert base.profiles == ("fast", "dense")
    assert isinstance(base.card, dict)
    assert load_model(base.path).buffer is base.buffer or load_model(base.path).id == base.id
    assert lookup(base.id[:4]) == (base, None)
    with pytest.raises(TypeError):
        base.buffer[0] = 0


def test_a_file_is_hashed_once() -> None:
    load_model()
    start = time.perf_counter()
    for _ in range(10):
        load_model()
    assert time.perf_counter() - start < 0.1


def test_wrong_content(folder: Path) -> None:
    data = bytearray(build_file(MODEL_MAGIC, SECTIONS))
    data[-1] ^= 1
    (folder / "flipped.nbm").write_bytes(data)
    with pytest.raises(FormatError, match=r"flipped\.nbm: its content does not have the id"):
        load_model("flipped")
    (folder / "short.nbm").write_bytes(b"NBMM")
    (folder / "empty.nbm").write_bytes(b"")
    for name in ("short", "empty"):
        with pytest.raises(FormatError, match=f"{name}.nbm: not a model or pack file"):
            load_model(name)


def test_models_and_packs_are_not_confused(folder: Path) -> None:
    (folder / "one.nbm").write_bytes(build_file(PACK_MAGIC, SECTIONS))
    (folder / "one.nbp").write_bytes(build_file(MODEL_MAGIC, SECTIONS))
    with pytest.raises(FormatError, match="not a model file"):
        load_model("one")
    with pytest.raises(FormatError, match="not a pack file"):
        load_pack("one")


def test_a_file_replaced_under_its_name(folder: Path) -> None:
    path = folder / "mine.nbm"
    path.write_bytes(build_file(MODEL_MAGIC, SECTIONS))
    first = load_model("mine")
    path.unlink()
    path.write_bytes(build_file(MODEL_MAGIC, {**SECTIONS, "card": b'{"made": "later"}'}))
    os.utime(path, ns=(1, 1))
    assert load_model("mine").id != first.id
    assert load_model("mine").card == {"made": "later"}
    assert first.card == {"made": "by a test"}


def test_cards(folder: Path) -> None:
    for name, card in (("list", b"[1]"), ("broken", b"{"), ("bytes", b"\xff")):
        (folder / f"{name}.nbm").write_bytes(build_file(MODEL_MAGIC, {"card": card}))
    assert load_model("list").card == {}
    for name in ("broken", "bytes"):
        with pytest.raises(FormatError, match="card is not JSON"):
            _ = load_model(name).card
    (folder / "none.nbm").write_bytes(build_file(MODEL_MAGIC, {}))
    with pytest.raises(FormatError, match="section card is missing"):
        _ = load_model("none").card


def test_lookup(folder: Path) -> None:
    strange = build_file(MODEL_MAGIC, SECTIONS)
    (folder / "strange.nbm").write_bytes(strange)
    pack = build_file(PACK_MAGIC, {**SECTIONS, "model_id": strange[16:48]})
    (folder / "strange.nbp").write_bytes(pack)
    orphan = build_file(PACK_MAGIC, SECTIONS)
    (folder / "orphan.nbp").write_bytes(orphan)
    (folder / "short.nbm").write_bytes(b"NB")
    (folder / "folder.nbm").mkdir()
    found, none = lookup(strange[16:20])
    assert (found.id, none) == (strange[16:48], None)
    found, its = lookup(pack[16:20])
    assert its is not None
    assert (found.id, its.id, its.model_id) == (strange[16:48], pack[16:48], strange[16:48])
    with pytest.raises(UnknownModel, match="00010203"):  # the pack is there, the model that it was made for is not
        lookup(orphan[16:20])
    with pytest.raises(UnknownModel, match="0badf00d"):
        lookup(bytes.fromhex("0badf00d"))


def test_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NBMF_MODELS", os.pathsep.join([str(tmp_path / "a"), "", str(tmp_path / "b")]))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert model.directories() == [model.PACKAGED, tmp_path / "a", tmp_path / "b", tmp_path / "data" / "nbmf"]
    (tmp_path / "data" / "nbmf").mkdir(parents=True)
    (tmp_path / "data" / "nbmf" / "home.nbm").write_bytes(build_file(MODEL_MAGIC, SECTIONS))
    assert load_model("home").card == {"made": "by a test"}
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert model.directories()[-1] == tmp_path / ".local" / "share" / "nbmf"


def test_names(folder: Path) -> None:
    for name in ("nosuch", "../models/base", "base.nbp/x"):
        with pytest.raises(UnknownModel):
            load_model(name)
        with pytest.raises(UnknownModel):
            load_pack(name)
    with pytest.raises(FileNotFoundError):
        load_model(folder / "nosuch.nbm")


@pytest.mark.parametrize("drop", ["lines", "weights", "squash", "rates", "order2_row"])
def test_a_model_without_a_section(folder: Path, drop: str) -> None:
    base = load_model()
    sections = {name: bytes(section(base.buffer, name)) for name in section_table(base.buffer) if name != drop}
    path = folder / "part.nbm"
    path.write_bytes(build_file(MODEL_MAGIC, sections))
    with pytest.raises(FormatError, match=f"section {drop} is missing"):
        Codec(model=str(path))


def test_the_kernel_refuses_what_is_no_model() -> None:
    for data in (b"", b"NBMM", bytes(HEADER_SIZE), build_file(PACK_MAGIC, SECTIONS), build_file(MODEL_MAGIC, SECTIONS)):
        with pytest.raises(FormatError):
            kernel.load(data, None)
