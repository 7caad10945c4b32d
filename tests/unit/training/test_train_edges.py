"""What a run does with values that are easily read as something else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.unit.training.meadow import COUNT, a_run, one_image_only, rows_of, write_meadow

from dinoneck import ConfigError, DataError
from dinoneck.data import read_table
from dinoneck.errors import DinoneckError
from dinoneck.training import MemoryTokens, train


@pytest.fixture
def meadow(tmp_path: Path) -> Path:
    return write_meadow(tmp_path)


def with_columns(table: Path, **columns: list[Any]) -> Path:
    """The table with further columns."""
    rows = table.read_text().splitlines()
    out = [",".join([rows[0], *columns])]
    out += [",".join([row, *(str(values[i]) for values in columns.values())]) for i, row in enumerate(rows[1:])]
    table.write_text("\n".join(out) + "\n")
    return table


def test_numbers_are_classes_where_the_task_is_a_classification(meadow: Path) -> None:
    table = with_columns(meadow, code=[("10", "9.0", "2", "10", "9", "2.00")[i % 6] for i in range(COUNT)])
    report = train(a_run(table, tasks={"code": {"kind": "classification"}}), meadow.parent / "run")
    assert set(report["scores"]) == {"code"}
    assert report["scores"]["code"]["head"]["labels"] == ["2", "9", "10"]
    assert [row["code"] for row in rows_of(meadow.parent / "run" / "out_of_fold.csv")][:3] == ["10", "9", "2"]


def test_pixels_without_a_label_count_for_nothing(meadow: Path) -> None:
    labels: list[np.ndarray[Any, Any]] = []
    for i in range(COUNT):
        path = meadow.parent / f"{i:02}-mask.png"
        mask = np.array(Image.open(path))
        mask[24:] = 255
        Image.fromarray(mask).save(path)
        labels.append(mask)
    data = {"csv": str(meadow), "labels": "mask", "targets": []}
    with pytest.raises(DataError, match="255"):
        train(a_run(None, data=data), meadow.parent / "refused")
    report = train(a_run(None, data={**data, "nodata": [255]}), meadow.parent / "run")
    whole = np.concatenate([mask[mask < 255] for mask in labels])
    for own in report["scores"]["segmentation"].values():
        assert np.sum(own["confusion_matrix"], axis=1).tolist() == np.bincount(whole, minlength=3).tolist()


def test_a_class_that_a_fold_does_not_train_on_is_named(meadow: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = with_columns(meadow, sort=["rare" if i == 3 else ("a", "b")[i % 2] for i in range(COUNT)])
    with caplog.at_level(logging.WARNING):
        train(a_run(table, ["sort"]), meadow.parent / "run")
    assert "holds out images of the sort rare and trains on none" in caplog.text


def test_groups_that_a_fold_column_splits_are_counted(meadow: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = a_run(meadow, ["crop"], folds={"column": "part", "group": ["place"]})
    with caplog.at_level(logging.WARNING):
        train(config, meadow.parent / "run")
    assert "4 groups" in caplog.text and "'place 0'" in caplog.text


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": {"targets": ["weed"]}}, "'weed'"),
        ({"folds": {"group": ["place"]}}, "'group'"),
        ({"folds": {"column": "part"}}, "'fold'"),
        ({"data": {"csv": "other.csv"}}, "'other.csv'"),
    ],
)
def test_a_table_and_a_config_that_differ_are_refused(meadow: Path, changes: dict[str, Any], named: str) -> None:
    table = read_table(meadow, meadow.parent, "crop")
    with pytest.raises(ConfigError, match=named):
        train(a_run(None, **changes), meadow.parent / "run", table=table)


@pytest.mark.parametrize("values", [[1.0, float("nan"), 2.0, 3.0], pd.Categorical(["u", None, "v", "v"])])
def test_an_image_of_which_nothing_is_known_is_refused(tmp_path: Path, values: Any) -> None:
    images = [np.full((32, 32, 3), 60 * i, np.uint8) for i in range(4)]
    table = pd.DataFrame({"images": images, "x": values}, index=[*"abcd"])
    with pytest.raises(DataError, match="'b'"):
        train(a_run(None), tmp_path / "run", table=table)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("embed_dim: int, tasks", "needs the annotation tasks: Sequence"),
        ("embed_dim: int, tasks: Sequence[Task], **more", r"EdgeHead takes '\*\*more'.*give each argument.*a name"),
        ("embed_dim: int, tasks: Sequence[Task], width: int", "needs the argument 'width'"),
    ],
)
def test_a_head_that_cannot_be_built_by_name_is_refused(
    meadow: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, message: str
) -> None:
    own = meadow.parent / "own.py"
    own.write_text(
        "from collections.abc import Sequence\nimport dinoneck\nfrom dinoneck import Task\n"
        "from dinoneck.heads.head import Head\n\n@dinoneck.register\nclass EdgeHead(Head):\n"
        f"    def __init__(self, {arguments}):\n        super().__init__()\n"
    )
    monkeypatch.setattr(MemoryTokens, "extract", one_image_only(MemoryTokens.extract))
    with pytest.raises(DinoneckError, match=message):
        train(a_run(meadow, ["crop"], head={"type": "edge_head"}, imports=[str(own)]), meadow.parent / "run")
