"""Targets and classes may be called like columns and scores of the program, and stay what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests import kit
from tests.unit.training.meadow import a_run, rows_of

from dinoneck import ConfigError, Predictor, evaluate
from dinoneck.data.cells import OWN_COLUMNS
from dinoneck.tasks import TABLE_COLUMNS, Task, columns_of
from dinoneck.training import train
from dinoneck.training.data_folder import of_data_folder
from dinoneck.viz.score_tables import all_tables

metrics = pytest.importorskip("sklearn.metrics")
FOUR_CLASSES = ("image", "group", "labels")


def renamed(table: Path, **names: str) -> Path:
    """A table next to another one with other names of columns; the other one is shared by tests."""
    file = table.with_name(f"{'-'.join(names.values())}.csv")
    pd.read_csv(table, dtype=str).rename(columns=names).to_csv(file, index=False)
    return file


@pytest.mark.parametrize("targets", [["overall", "weed"], ["weed", "overall"]])
def test_a_target_called_overall_has_a_score_of_its_own(
    meadow: Path, tmp_path: Path, targets: list[str]
) -> None:
    table = renamed(meadow, crop="overall")
    report = train(a_run(table, targets), tmp_path / "run")
    held_out = pd.read_csv(tmp_path / "run" / "out_of_fold.csv")
    expected = {}
    for name in targets:
        r2 = metrics.r2_score(held_out[name], held_out[f"{name} (head)"])
        expected[name] = r2
        assert report["scores"][name]["head"]["r2"]["pooled"] == pytest.approx(r2, abs=1e-4)
    mean = report["scores"]["overall (mean)"]["head"]["r2"]["pooled"]
    assert mean == pytest.approx(np.mean([*expected.values()]), abs=1e-4)
    assert abs(mean - expected["overall"]) > 1e-3
    assert report["mean_over_targets"] == "overall (mean)"
    assert ": overall R² " in report["verdict"]
    [scores, *_] = all_tables(report)
    assert scores.header[1:] == [*targets, "overall (mean)", "its 95 % interval", "its worst fold"]


@pytest.mark.slow
def test_evaluate_scores_a_target_called_overall(meadow: Path, tmp_path: Path) -> None:
    table = renamed(meadow, crop="overall", weed="maps of weed")
    train(a_run(table, ["overall", "maps of weed"]), tmp_path / "run")
    head = tmp_path / "run" / "head.safetensors"
    scores = evaluate(head, meadow.parent, table)["scores"]
    rows = pd.read_csv(table)
    predicted = Predictor(head)([meadow.parent / name for name in rows["image"]])
    r2 = metrics.r2_score(rows["overall"], [row["overall"] for row in predicted])
    assert scores["overall"]["head"]["r2"]["pooled"] == pytest.approx(r2, abs=1e-9)
    for target, value, code in (
        ("overall", r2 - 0.01, 0),
        ("overall", r2 + 0.01, 1),
        ("overall (mean)", scores["overall (mean)"]["head"]["r2"]["pooled"] - 0.01, 0),
    ):
        least = f"{target}={value}"
        ran = kit.cli(
            "evaluate", meadow.parent, "--heads", head, "--truth", table, "--at-least", least
        )
        assert ran.code == code, ran.err


@pytest.mark.slow
def test_classes_called_like_columns_of_tables_have_columns_of_their_own(
    meadow: Path, tmp_path: Path
) -> None:
    data = {"labels": "mask", "targets": [], "classes": [*FOUR_CLASSES]}
    train(a_run(meadow, data=data | {"csv": str(meadow)}), tmp_path / "run")
    out = tmp_path / "p.csv"
    ran = kit.cli("predict", meadow.parent / "00.png", "--heads", tmp_path / "run", "--out", out)
    assert ran.code == 0, ran.err
    [row] = rows_of(out)
    assert [*row] == ["image", *(f"segmentation {name}" for name in FOUR_CLASSES)]
    shares = [float(row[f"segmentation {name}"]) for name in FOUR_CLASSES]
    assert sum(shares) == pytest.approx(1.0, abs=1e-4)
    scores = evaluate(tmp_path / "run", meadow.parent, meadow, labels="mask", group=["place"])
    assert [*scores["scores"]] == ["segmentation"]
    assert [*scores["scores"]["segmentation"]["head"]["iou"]] == [*FOUR_CLASSES]


@pytest.mark.parametrize("name", TABLE_COLUMNS)
def test_a_class_called_like_a_column_is_named_with_its_task(name: str) -> None:
    cover = Task("cover", dim=2, kind="segmentation", labels=("soil", name))
    assert [column.name for column in columns_of([cover])] == ["soil", f"cover {name}"]


def test_a_class_called_overall_keeps_its_name() -> None:
    cover = Task("cover", dim=2, kind="segmentation", labels=("overall", "soil"))
    assert [column.name for column in columns_of([cover])] == ["overall", "soil"]


@pytest.mark.parametrize("method", ["head", "linear", "average"])
def test_a_target_called_like_predictions_of_another_one_is_refused(
    meadow: Path, tmp_path: Path, method: str
) -> None:
    """One of them would overwrite the other in out_of_fold.csv."""
    table = renamed(meadow, crop=f"weed ({method})")
    with pytest.raises(ConfigError, match=rf"'weed \({method}\)'.*rename it"):
        train(a_run(table, ["weed", f"weed ({method})"]), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("column", "kept"), [("cells", "cells"), ("height", "height")])
def test_a_target_called_like_the_task_of_masks_is_still_learned(
    meadow: Path, tmp_path: Path, column: str, kept: str
) -> None:
    table = renamed(meadow, weed="cells")
    data = {"csv": str(table), "targets": [column], "labels": "mask", "classes": ["a", "b", "c"]}
    report = train(a_run(table, data=data), tmp_path / "run")
    held_out = pd.read_csv(tmp_path / "run" / "out_of_fold.csv").dropna()
    r2 = metrics.r2_score(held_out[column], held_out[f"{column} (head)"])
    assert report["scores"][kept]["head"]["r2"]["pooled"] == pytest.approx(r2, abs=1e-3)
    maps = "cells map" if column == "cells" else "cells"
    assert {f"{maps} {name}" for name in "abc"} <= {*report["scores"]}


def test_two_targets_of_one_name_in_the_scores_are_refused(meadow: Path, tmp_path: Path) -> None:
    table = renamed(meadow, crop="cells b")
    data: dict[str, Any] = {"csv": str(table), "labels": "mask", "classes": ["a", "b", "c"]}
    with pytest.raises(ConfigError, match="both have a target 'cells b'"):
        train(a_run(table, data=data | {"targets": ["cells b"]}), tmp_path / "run")


def test_the_columns_of_predictions_include_those_of_tables() -> None:
    assert {*OWN_COLUMNS} < {*TABLE_COLUMNS}


def test_maps_of_numbers_in_a_folder_called_labels_are_learned(tmp_path: Path) -> None:
    """The task would have the name of a column of tables of predictions."""
    random = np.random.RandomState(0)
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number in range(6):
        grey = np.kron(random.randint(0, 200, (4, 4)), np.ones((16, 16))).astype(np.uint8)
        Image.fromarray(grey).convert("RGB").save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(grey // 2).save(tmp_path / "labels" / f"{number}.png")
    data = {"images": str(tmp_path), "label_kind": "numbers"}
    config, _ = of_data_folder(a_run(None, data=data))

    report = train(config, tmp_path / "run")

    assert [*report["scores"]] == ["labels map"]
    row = Predictor(tmp_path / "run")([tmp_path / "images" / "0.png"])[0]
    assert "labels map" in row
