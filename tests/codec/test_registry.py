"""Models and packs under names: found by the codec, proved by their golden blobs, and refused when damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import nbmf
from nbmf import samples
from nbmf.cli import app
from nbmf.codec import kernel, registry
from nbmf.codec.adapt import adapt
from nbmf.codec.model import MODEL_MAGIC, PACKAGED, build_file, load_model, section, section_table
from nbmf.errors import DataError, FormatError, UnknownModel

pytestmark = pytest.mark.skipif(kernel.backend != "c", reason="too slow on the reference")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of its own content, `mine.nbm`, and a pack for the base model, `few.nbp`."""
    folder = tmp_path_factory.mktemp("files")
    base = load_model().buffer
    sections = {name: bytes(section(base, name)) for name in section_table(base) if not name.startswith("dense")}
    sections["card"] = b'{"name": "mine"}'
    (folder / "mine.nbm").write_bytes(build_file(MODEL_MAGIC, sections))
    adapt([sample.value for sample in samples.generate(100, seed=4)], folder / "few.nbp", size=16 << 10)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files are registered."""
    monkeypatch.setenv("NBMF_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    return tmp_path / "models"


def test_a_registered_model_is_found_by_name_and_by_its_blobs(files: Path, place: Path) -> None:
    row = registry.register(files / "mine.nbm", "mine-2")
    assert (row["name"], row["profiles"], Path(row["path"])) == ("mine-2", ["fast"], place / "mine-2.nbm")
    codec = nbmf.Codec(model="mine-2")
    blob = codec.encode({"text": "likes green tea, and the quiet of an early morning"})
    assert nbmf.decode(blob) == {"text": "likes green tea, and the quiet of an early morning"}
    assert registry.verify(place / "mine-2.nbm")["golden_blobs"] == row["values"] > 5
    assert registry.card("mine-2")["card"] == {"name": "mine"}
    assert [(one["name"], one["is"]) for one in registry.listed()] == [("base", "model"), ("mine-2", "model")]
    registry.remove("mine-2")
    assert list(place.iterdir()) == []
    with pytest.raises(UnknownModel):
        nbmf.Codec(model="mine-2")


def test_a_registered_pack_is_found_as_a_domain(files: Path, place: Path) -> None:
    registry.register(files / "few.nbp")
    blob = nbmf.encode("remind me in 20 minutes to book the dentist, please", domain="few")
    assert nbmf.decode(blob) == "remind me in 20 minutes to book the dentist, please"
    assert registry.listed()[-1]["for"] == f"model {load_model().id.hex()[:8]}"
    assert registry.verify(place / "few.nbp")["golden_blobs"] > 5


def test_without_nbmf_models_the_users_folder_takes_it(
    files: Path, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NBMF_MODELS")
    assert Path(registry.register(files / "few.nbp")["path"]) == tmp_path / "home" / "nbmf" / "few.nbp"


def test_names_are_taken_once(files: Path, place: Path) -> None:
    registry.register(files / "few.nbp")
    assert registry.register(files / "few.nbp")["name"] == "few"  # the same again
    adapt([sample.value for sample in samples.generate(60, seed=9)], place.parent / "few.nbp", size=16 << 10)
    with pytest.raises(DataError, match="already"):
        registry.register(place.parent / "few.nbp")
    row = registry.register(place.parent / "few.nbp", replace=True)
    assert registry.card("few")["id"].startswith(row["id"]) and registry.verify(place / "few.nbp")["golden_blobs"] > 5
    for name in ("base", "a/b", "..", "x.nbm", "-x", ""):
        if name:
            with pytest.raises(DataError):
                registry.register(files / "mine.nbm", name)
    with pytest.raises(DataError, match="stays"):
        registry.remove("base")
    with pytest.raises(UnknownModel, match="nobody"):
        registry.remove("nobody")


def test_a_name_of_both_needs_its_suffix(files: Path, place: Path) -> None:
    place.mkdir()
    for name in ("both.nbm", "both.nbp"):
        source = files / ("mine.nbm" if name.endswith("m") else "few.nbp")
        (place / name).write_bytes(source.read_bytes())
    with pytest.raises(DataError, match=r"both\.nbp"):
        registry.find("both")
    assert registry.find("both.nbp").is_pack


def test_what_is_damaged_is_refused(files: Path, place: Path) -> None:
    place.mkdir()
    data = bytearray((files / "few.nbp").read_bytes())
    data[-20] ^= 1
    (place / "bad.nbp").write_bytes(data)
    with pytest.raises(FormatError, match="content"):
        registry.verify(place / "bad.nbp")
    with pytest.raises(FormatError):
        registry.register(place / "bad.nbp", "worse")
    assert "unusable" in registry.listed()[-1]["note"]
    with pytest.raises(DataError, match="ends in"):
        registry.register(files / "few.txt")
    with pytest.raises(OSError, match="none"):
        registry.register(files / "none.nbp")


def test_a_golden_blob_that_changed_is_told(files: Path, place: Path) -> None:
    registry.register(files / "few.nbp")
    path = place / "few.nbp.golden.json"
    lines = json.loads(path.read_text(encoding="utf-8"))
    lines[2]["value"] += "!"
    path.write_text(json.dumps(lines), encoding="utf-8")
    with pytest.raises(DataError, match="golden blob"):
        registry.verify(place / "few.nbp")
    path.write_text("[1]")
    with pytest.raises(DataError, match="no list"):
        registry.verify(place / "few.nbp")


def test_the_shipped_model_proves_itself() -> None:
    found = registry.verify(PACKAGED / "base.nbm")
    assert found["golden_blobs"] == found["values"] * len(found["profiles"])


def test_the_commands_print_and_refuse_in_one_line(files: Path, place: Path) -> None:
    runner = CliRunner()
    made = runner.invoke(app, ["model", "register", str(files / "few.nbp"), "--name", "mine", "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.output)["name"] == "mine"
    for arguments in (["list"], ["card", "mine"], ["verify", "mine"], ["verify", str(files / "few.nbp")]):
        shown = runner.invoke(app, ["model", *arguments])
        assert shown.exit_code == 0 and "pack" in shown.output, shown.output
        assert json.loads(runner.invoke(app, ["model", *arguments, "--json"]).output)
    refused = runner.invoke(app, ["model", "remove", "mine"])
    assert refused.exit_code == 1 and "--yes" in refused.output and refused.output.count("\n") == 1
    assert runner.invoke(app, ["model", "remove", "mine", "--yes"]).exit_code == 0
    assert runner.invoke(app, ["model", "card", "mine"]).exit_code == 1
