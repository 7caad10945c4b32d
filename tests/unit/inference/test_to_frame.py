"""Results as a table: the columns of ``dinoneck predict`` and those of a DataFrame are the same."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tests import kit

from dinoneck import Backbone, Composition, PatchMeanHead, Predictor, Task
from dinoneck.inference import to_frame

SOIL = Task("soil type", dim=3, kind="classification", labels=("wet clay", "sand", "loam"))
TASKS = [Task("leaf", unit="g"), Task("stem", unit="g"), SOIL, Task("kind", dim=2, kind="classification")]
COLUMNS = [
    *("leaf", "stem", "soil type", "soil type:wet clay", "soil type:sand", "soil type:loam"),
    *("kind", "kind:0", "kind:1", "above"),
]


def test_the_csv_and_the_frame_hold_the_same(tmp_path: Path, tiny: Backbone) -> None:
    pytest.importorskip("pandas")
    above = Composition(("leaf", "stem"), {"above": ("leaf", "stem")}, "sums")  # type: ignore[arg-type]
    head = kit.saved_head(tmp_path / "h.safetensors", PatchMeanHead(64, TASKS, 8, compositions=[above]))
    names, out = ["a.png", "b.png"], tmp_path / "p.csv"
    files = kit.write_images(tmp_path, names)
    predictor = Predictor(head, tiny)
    frame = to_frame(predictor(files, maps="patch"), predictor.tasks, names)
    assert list(frame.columns) == COLUMNS and list(frame.index) == names
    assert kit.cli("predict", *files, "--heads", head, "--out", out).code == 0
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
