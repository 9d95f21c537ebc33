"""The course of a training run: its log, its words, its picture, and ending when nothing gets better."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest

from nbmf.bench import losses
from nbmf.codec.counting import Records
from nbmf.errors import DataError
from nbmf.train.course import COLUMNS, Course


def test_figures_go_into_the_log_and_beside_the_bar(tmp_path: Path) -> None:
    said: list[tuple[object, ...]] = []
    course = Course(tmp_path / "log.csv", lambda *what: said.append(what))
    course("counting", 1, 12)
    course("fitting", 1, 4, {"bits_per_byte": 2.5, "bytes": 1000})
    course("networks", 1, 9, {"bytes": 64})
    course(
        "networks",
        3,
        9,
        {"bits_per_byte": 2.0, "bits_per_byte_without": 2.5, "held_back": 2.25, "held_back_without": 2.5},
    )
    again = Course(tmp_path / "log.csv", lambda *_: None)
    again(
        "networks",
        6,
        9,
        {"bits_per_byte": 1.9, "bits_per_byte_without": 2.5, "held_back": 2.125, "held_back_without": 2.5},
    )
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and [row["stage"] for row in rows] == ["fitting", "networks", "networks"]
    assert (rows[1]["bits_per_byte"], rows[1]["held_back"], rows[0]["held_back"]) == ("2.0", "2.25", "")
    assert said[0] == ("counting", 1, 12) and said[2] == ("networks", 1, 9, "")
    assert str(said[3][3]).startswith("2.000 bits/byte, 20.0% saved, held back 2.250 of 2.500")


def test_the_last_stage_is_drawn(tmp_path: Path) -> None:
    log, picture = tmp_path / "log.csv", tmp_path / "loss.svg"
    assert not losses.draw(log, picture)
    course = Course(log, lambda *_: None)
    course("fitting", 1, 2, {"bits_per_byte": 2.5})
    assert not losses.draw(log, picture)
    for step in (200, 400, 100, 200, 300):  # begun anew once
        course(
            "networks",
            step,
            600,
            {"bits_per_byte": 2 - step / 1e3, "bits_per_byte_without": 2.5, "held_back": 2.2, "held_back_without": 2.4},
        )
    assert losses.draw(log, picture)
    lines = [
        line.get("d") or "" for line in ElementTree.parse(picture).getroot().iter("{http://www.w3.org/2000/svg}path")
    ]
    assert len(lines) == 4 and all(line.count("L") == 2 for line in lines)


def test_training_ends_once_held_back_records_gain_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="the networks train in PyTorch, which is an extra")
    from nbmf.train import dense, held

    costs = iter([80.0, 72.0, 76.0, 73.0, 71.0, 75.0, 75.0, 72.0, 60.0])
    monkeypatch.setattr(dense, "measure", lambda *_: (np.full(1, 90.0), np.array([next(costs)])))
    records = Records.of([(0, b"0123456789")])
    net = torch.nn.Linear(1, 1)
    net.rows = SimpleNamespace(weight=net.weight)
    watch = held.Watch(None, records, 3, tmp_path / "best.pt")
    for step in range(1, 10):
        with torch.no_grad():
            net.weight.fill_(step)
        watch.look(net, step)
        if watch.over:
            break
    assert (step, watch.best_step, watch.best, watch.without) == (8, 5, 7.1, 9.0)
    watch.restore(net)
    assert net.weight.item() == 5
    assert held.Watch(None, records, 3, tmp_path / "best.pt").best == watch.best


def test_where_networks_train() -> None:
    torch = pytest.importorskip("torch", reason="the networks train in PyTorch, which is an extra")
    from nbmf.train.train import device_of

    assert device_of("cpu") == "cpu"
    assert device_of("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("abacus", "meta", *(() if torch.cuda.is_available() else ("cuda",))):
        with pytest.raises(DataError, match=name):
            device_of(name)
