"""Domain packs, learned from records that the project makes itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import nbmf
from nbmf import samples
from nbmf.codec import kernel
from nbmf.codec.model import load_pack

pytestmark = pytest.mark.skipif(kernel.backend != "c", reason="learning needs the C kernel")


def orders(count: int, first: int = 0) -> list[Any]:
    """Records of one application: few shapes, some free parts."""
    return [
        {"order_ref": f"ZQ-{i * 7919 % 99991:05d}", "warehouse": ["Kirkby North", "Vännäs", "Łódź 4"][i % 3],
         "handling": "keep upright; do not stack above two pallets", "weight_kg": i * 37 % 900 / 10}
        for i in range(first, first + count)
    ]  # fmt: skip


def size(codec: nbmf.Codec, values: list[Any]) -> int:
    blobs = codec.encode_many(values, bare=True)
    assert codec.decode_many(blobs, bare=True) == values
    return sum(map(len, blobs))


@pytest.mark.parametrize("count", [50, 2000])
def test_a_pack_pays_on_records_of_its_kind(tmp_path: Path, count: int) -> None:
    out = tmp_path / "orders.nbp"
    card = nbmf.adapt(orders(count), out)
    fresh = orders(100, first=50_000)
    with_pack, without = size(nbmf.Codec(domain=str(out)), fresh), size(nbmf.Codec(), fresh)
    assert with_pack < without / 2
    assert card["bytes"] == out.stat().st_size <= 512 << 10


def test_a_pack_of_strange_records_does_no_harm(tmp_path: Path) -> None:
    out = tmp_path / "orders.nbp"
    nbmf.adapt(orders(60), out)
    others = [s.value for s in samples.load() if not isinstance(s.value, bytes)]
    assert size(nbmf.Codec(domain=str(out)), others) <= 1.01 * size(nbmf.Codec(), others)


def test_same_values_same_pack_and_the_size_is_kept(tmp_path: Path) -> None:
    values = orders(3000)
    for name in ("a", "b"):
        nbmf.adapt(values, tmp_path / f"{name}.nbp", size=16 << 10)
    assert (tmp_path / "a.nbp").read_bytes() == (tmp_path / "b.nbp").read_bytes()
    assert (tmp_path / "a.nbp").stat().st_size <= 16 << 10


def test_blobs_of_a_pack_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "orders.nbp"
    nbmf.adapt(orders(200), out)
    value = orders(1, first=90_000)[0]
    blob = nbmf.encode(value, domain=str(out))
    wanted = load_pack(str(out)).id[:4]
    assert blob[5:9] == wanted
    with pytest.raises(nbmf.UnknownModel, match=wanted.hex()):
        nbmf.decode(blob)
    monkeypatch.setenv("NBMF_MODELS", str(tmp_path))
    assert nbmf.decode(blob) == value


def test_bad_input_is_named(tmp_path: Path) -> None:
    from nbmf.codec.adapt import adapt_file

    with pytest.raises(nbmf.DataError, match="no records"):
        nbmf.adapt([], tmp_path / "x.nbp")
    with pytest.raises(nbmf.DataError, match="not one text"):
        nbmf.adapt("a text", tmp_path / "x.nbp")
    with pytest.raises(nbmf.DataError, match=r"ends in \.nbp"):
        nbmf.adapt(["a"], tmp_path / "x")
    with pytest.raises(nbmf.DataError, match="too small"):
        nbmf.adapt(["a"], tmp_path / "x.nbp", size=10)
    (tmp_path / "x.jsonl").write_text(json.dumps("fine") + "\n{oops\n")
    with pytest.raises(nbmf.DataError, match="line 2"):
        adapt_file(tmp_path / "x.jsonl", tmp_path / "x.nbp")
    assert not list(tmp_path.glob("*.nbp"))


def test_one_record_is_enough(tmp_path: Path) -> None:
    nbmf.adapt(["only this"], tmp_path / "one.nbp")
    codec = nbmf.Codec(domain=str(tmp_path / "one.nbp"))
    assert codec.decode(codec.encode("only that")) == "only that"
