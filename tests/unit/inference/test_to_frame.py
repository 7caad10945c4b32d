"""Results as a table: the columns of ``dinoneck predict`` and those of a DataFrame are the same."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from dinoneck import Backbone, Composition, PatchMeanHead, Predictor, Task, save_head
from dinoneck.cli.main import main
from dinoneck.inference import to_frame

SOIL = Task("soil type", dim=3, kind="classification", labels=("wet clay", "sand", "loam"))
TASKS = [Task("leaf", unit="g"), Task("stem", unit="g"), SOIL, Task("kind", dim=2, kind="classification")]
COLUMNS = [
    *("leaf", "stem", "soil type", "soil type:wet clay", "soil type:sand", "soil type:loam"),
    *("kind", "kind:0", "kind:1", "above"),
]


def test_the_csv_and_the_frame_hold_the_same(tmp_path: Path, tiny: Backbone) -> None:
    pytest.importorskip("pandas")
    torch.manual_seed(0)
    above = Composition(("leaf", "stem"), {"above": ("leaf", "stem")}, "sums")  # type: ignore[arg-type]
    save_head(tmp_path / "h.safetensors", PatchMeanHead(64, TASKS, 8, compositions=[above]), backbone=tiny)
    names = ["a.png", "b.png"]
    for name, colour in zip(names, ((10, 200, 30), (90, 20, 200)), strict=True):
        Image.new("RGB", (48, 32), colour).save(tmp_path / name)
    files = [str(tmp_path / name) for name in names]
    predictor = Predictor(tmp_path / "h.safetensors", tiny)
    frame = to_frame(predictor(files, maps="patch"), predictor.tasks, names)
    assert list(frame.columns) == COLUMNS and list(frame.index) == names
    out = tmp_path / "p.csv"
    assert main(["predict", *files, "--heads", str(tmp_path / "h.safetensors"), "--out", str(out)]) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", *COLUMNS]
    for name, row in zip(names, rows, strict=True):
        shares = {label: float(row[f"soil type:{label}"]) for label in SOIL.labels}
        assert row["soil type"] == frame.loc[name, "soil type"] == max(shares, key=shares.__getitem__)
        assert row["kind"] == frame.loc[name, "kind"] == str(int(float(row["kind:1"]) > 0.5))
        for column in ("leaf", "kind:1", "above"):
            assert float(row[column]) == pytest.approx(frame.loc[name, column], rel=1e-4)
    assert list(to_frame(predictor(files), predictor.tasks).index) == [0, 1]
