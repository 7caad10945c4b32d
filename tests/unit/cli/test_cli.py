"""The main job in the shell: a table, a training, predictions; the demo; a refused run keeps the earlier one."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.kit import cli

from dinoneck import HeadCheckpoint
from dinoneck.training import r2

TRAIN = ["--backbone", "dinoneck_tiny", "--folds", "2", "--epochs", "2"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eight images of 20x33 px, whose green is the target, and the field that they are of."""
    lines, levels = ["image,green,field"], np.random.RandomState(0).randint(0, 255, 8)
    for i, level in enumerate(levels):
        image = np.full((20, 33, 3), 100, np.uint8)
        image[..., 1] = level
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{level / 255:.4f},{i % 4}")
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "t.csv"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_from_a_table_to_predictions(table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", "--csv", table, "--targets", "green", *TRAIN, "--out", run]
    refused = cli(*words, "--resize", "keep")
    assert refused.code == 1 and "20x33 px" in refused.err and not run.exists()
    done = cli(*words)
    assert done.code == 0
    for text in ("becomes 16x32 px, 1x2 patches", "does not divide 20x33 px: --resize crop makes it 16x32 px",
                 "No --group", "overall (mean)"):  # fmt: skip
        assert text in done.out
    assert "No --group" not in cli(*words, "--group", "field", "--overwrite").out
    assert sorted(os.listdir(run)) == ["head.safetensors", "heads", "logs", "out_of_fold.csv", "report.json"]
    rows = rows_of(run / "out_of_fold.csv")
    for fold in "01":  # a head's file holds its own fold's score, not that of all heads together
        own = [(float(row["green"]), float(row["green (head)"])) for row in rows if row["fold"] == fold]
        recorded = HeadCheckpoint.load(run / "heads" / f"fold-{fold}.safetensors").meta["training"]["metrics"]
        assert recorded["R2 green"] == pytest.approx(r2(*np.array(own).T), rel=1e-3, abs=1e-4)
    before, image = contents(run), (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(image[:40])
    for more in ([], ["--overwrite", "--seed", "1"]):
        assert cli(*words, *more).code == 1
        assert contents(run) == before, "a run that is refused keeps the earlier one"
    (tmp_path / "3.png").write_bytes(image)
    assert cli(*words, "--overwrite", "--size", 32).code == 0
    assert json.loads((run / "report.json").read_text())["inputs"]["size"] == [32, 32]
    images = [tmp_path / f"{i}.png" for i in range(8)]
    assert cli("predict", *images, "--heads", run / "heads", "--out", tmp_path / "p.csv").code == 0
    assert [row["image"] for row in rows_of(tmp_path / "p.csv")] == [*map(str, images)]
