"""The intervals that a training writes: of its held-out residuals, in its report, its tables and its head file."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests import kit
from tests.unit.training.meadow import a_run, write_meadow

from dinoneck import HeadCheckpoint, Predictor
from dinoneck.errors import ConfigError
from dinoneck.training import train
from dinoneck.training.config import TrainConfig
from dinoneck.viz.score_tables import all_tables

COMPOSED = {
    "data": {"targets": ["soil", "crop", "weed", "total"]},
    "tasks": {
        "total": {"columns": ["total"], "minimum": 0},
        "shares": {"columns": ["soil", "crop", "weed"], "kind": "ratio"},
    },
    "compositions": {"parts": {"total": "total", "ratio": "shares", "sums": {}}},
}


def quantile_by_hand(residuals: Any, groups: list[str], level: float) -> float:
    """The smallest residual up to which groups of equal size hold the mass level * (groups + 1)."""
    order = sorted(zip(residuals, groups, strict=True))
    size = len(order) / len(set(groups))
    needed = level * (len(set(groups)) + 1) * size
    rank = math.ceil(needed - 1e-9)
    return math.inf if rank > len(order) else order[rank - 1][0]


def report_of(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / "report.json").read_text())
    return report


@pytest.fixture(scope="module")
def run(meadow_of_module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a number and a class, whose images are of four places."""
    out = tmp_path_factory.mktemp("intervals") / "run"
    config = a_run(meadow_of_module, ["total", "kind"], folds={"count": 2, "group": ["place"]})
    train(config, out)
    return out


@pytest.fixture(scope="module")
def meadow_of_module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_meadow(tmp_path_factory.mktemp("meadow"))


@pytest.mark.slow
def test_the_file_holds_quantiles_of_the_out_of_fold_residuals_by_group(
    run: Path, meadow_of_module: Path
) -> None:
    rows = pd.read_csv(run / "out_of_fold.csv")
    method = report_of(run)["predicts"]["method"]
    truth = pd.read_csv(meadow_of_module)
    residuals = (rows["total"] - rows[f"total ({method})"]).abs()

    tasks = {task.name: task for task in HeadCheckpoint.load(run / "head.safetensors").tasks}

    [interval] = tasks["total"].interval
    # four places: 0.8 needs 4, 0.9 needs 9
    assert (interval.levels, interval.groups) == ((0.5, 0.8), 4)
    for level in interval.levels:
        expected = quantile_by_hand(residuals, truth["place"].tolist(), level)
        assert interval.half_width(level) == pytest.approx(expected, rel=1e-4)
    [of_class] = tasks["kind"].interval
    assert of_class.levels == (0.5, 0.8)
    assert 0 < of_class.half_width(0.5) <= of_class.half_width(0.8) < 1


def test_the_report_states_half_widths_groups_and_what_more_levels_need(run: Path) -> None:
    report = report_of(run)

    [table] = [table for table in all_tables(report) if table.header[0].startswith("intervals")]

    assert table.header == [
        "intervals for new groups",
        "50 %",
        "80 %",
        "90 %",
        "95 %",
        "from groups",
    ]
    of_total, of_kind = table.rows
    assert of_total[0] == "total" and of_total[1].startswith("± ")
    assert of_total[3:] == ["needs 9 groups", "needs 19 groups", "4"]
    assert of_kind[1].startswith("p ≥ 0.")


@pytest.mark.slow
def test_another_method_on_the_finished_run_has_its_own_intervals(
    run: Path, meadow_of_module: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    report = report_of(copy)
    method = report["predicts"]["method"]
    other = "linear" if method != "linear" else "average"

    train(TrainConfig(predict_with=other), copy)

    [interval] = HeadCheckpoint.load(copy / "head.safetensors").tasks[0].interval
    stated = report["prediction_intervals"]["total"]
    assert list(interval.half_widths) == stated[other]["half_widths"]
    assert stated[other] != stated[method]


def test_single_images_are_groups_where_none_are_named(
    meadow_of_module: Path, tmp_path: Path
) -> None:
    train(a_run(meadow_of_module, ["total"]), tmp_path / "run")

    [interval] = HeadCheckpoint.load(tmp_path / "run" / "head.safetensors").tasks[0].interval

    assert (interval.groups, interval.levels) == (12, (0.5, 0.8, 0.9))


@pytest.mark.slow
def test_compositions_have_intervals_of_their_columns(
    meadow_of_module: Path, tmp_path: Path
) -> None:
    config = a_run(
        meadow_of_module,
        data={"csv": str(meadow_of_module)},
        tasks=COMPOSED["tasks"],
        compositions=COMPOSED["compositions"],
        predict_with="head",
    )

    report = train(config, tmp_path / "run")

    tasks = {
        task.name: task for task in HeadCheckpoint.load(tmp_path / "run/head.safetensors").tasks
    }
    assert [interval.groups for interval in tasks["parts"].interval] == [12, 12, 12]
    stated = report["prediction_intervals"]["weed"]["head"]
    assert (stated["output"], stated["column"]) == ("parts", 2)
    assert tasks["parts"].interval[2].half_widths == tuple(stated["half_widths"])
    row = Predictor(tmp_path / "run", interval=0.9).one(meadow_of_module.parent / "00.png")
    low, high = row["interval"]["parts"]
    assert low.shape == high.shape == (3,)
    assert (low <= row["parts"]).all() and (row["parts"] <= high).all() and (low >= 0).all()


@pytest.mark.slow
def test_a_ratio_that_a_composition_is_scored_for_has_intervals_of_its_shares(
    meadow_of_module: Path, tmp_path: Path
) -> None:
    config = a_run(
        meadow_of_module,
        data={"csv": str(meadow_of_module)},
        tasks=COMPOSED["tasks"],
        compositions=COMPOSED["compositions"],
        predict_with="head",
    )
    report = train(config, tmp_path / "run")
    truth = pd.read_csv(meadow_of_module).set_index("image")

    # the residuals anew, from the heads of the folds
    rows = pd.read_csv(tmp_path / "run" / "out_of_fold.csv")
    residuals = []
    for fold, held_out in rows.groupby("fold"):
        predictor = Predictor(tmp_path / "run" / "heads" / f"fold-{fold}.safetensors")
        for name in held_out["image"]:
            amounts = truth.loc[name, ["soil", "crop", "weed"]].to_numpy(float)
            shares = predictor.one(meadow_of_module.parent / name)["shares"]
            residuals.append(abs(amounts / amounts.sum() - shares))
    groups = [str(number) for number in range(len(residuals))]

    tasks = HeadCheckpoint.load(tmp_path / "run" / "head.safetensors").tasks
    intervals = next(task for task in tasks if task.name == "shares").interval
    assert "shares:crop" not in report["scores"]
    assert [*report["prediction_intervals"]][-3:] == ["shares:soil", "shares:crop", "shares:weed"]
    for column, interval in enumerate(intervals):
        expected = quantile_by_hand([row[column] for row in residuals], groups, 0.9)
        assert interval.half_width(0.9) == pytest.approx(expected, rel=1e-4)


def test_a_run_without_held_out_images_has_no_intervals(
    meadow_of_module: Path, tmp_path: Path
) -> None:
    report = train(a_run(meadow_of_module, ["total"], folds={"count": 1}), tmp_path / "run")

    assert "prediction_intervals" not in report
    assert HeadCheckpoint.load(tmp_path / "run" / "head.safetensors").tasks[0].interval == ()


def test_a_target_that_is_called_as_a_bound_is_refused_before_the_training(
    meadow_of_module: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(meadow_of_module).assign(**{"total low": np.arange(12.0)})
    table["image"] = [str(meadow_of_module.parent / name) for name in table["image"]]

    with pytest.raises(ConfigError, match="'total low', as a column of the interval of 'total'"):
        train(a_run(None, ["total", "total low"]), tmp_path / "run", table=table)
    assert not (tmp_path / "run").exists()


def test_predict_writes_the_bounds_of_every_number_and_the_set_of_every_class(
    run: Path, meadow_of_module: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.csv"
    ran = kit.cli("predict", meadow_of_module.parent / "00.png", "--heads", run, "--out", out)

    assert ran.code == 0, ran.err
    assert "with intervals of 80 % from 4 groups" in ran.out
    [row] = pd.read_csv(out).to_dict("records")
    assert [*row][:5] == ["image", "total", "total low", "total high", "kind"]
    predictor = Predictor(run, interval=0.8)
    result = predictor.one(meadow_of_module.parent / "00.png")
    low, high = result["interval"]["total"]
    assert (row["total low"], row["total high"]) == pytest.approx((low, high), rel=1e-5)
    [interval] = predictor.tasks[0].interval
    assert high - low == pytest.approx(2 * interval.half_width(0.8))
    assert row["kind set"].split(";") == result["set"]["kind"]
    assert result["set"]["kind"][0] == row["kind"]


def test_the_report_and_pictures_show_the_bounds_of_every_image(
    run: Path, meadow_of_module: Path, tmp_path: Path
) -> None:
    image = meadow_of_module.parent / "00.png"
    page = tmp_path / "report.html"

    ran = kit.cli("viz", "report", run, image, "--out", page)

    assert ran.code == 0, ran.err
    text = page.read_text()
    result = Predictor(run, interval=0.8).one(image)
    low, high = result["interval"]["total"]
    assert f"{result['total']:.3g} ({low:.3g} ... {high:.3g})" in text
    assert f"(among {', '.join(result['set']['kind'])})" in text
    assert "80 %, from 4 groups" in text
    with_pictures = kit.cli(
        *("predict", image, "--heads", run, "--out", tmp_path / "p.csv"),
        *("--overlay", tmp_path / "pictures"),
    )
    assert with_pictures.code == 0, with_pictures.err


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (
            "0.9",
            "the head holds 0.5, 0.8, as 0.9 needs held-out images of 9 groups or more; from 4",
        ),
        ("0.7", "interval is 0.7; the head holds 0.5, 0.8; from 4 groups"),
        ("1.5", "expected a number between 0 and 1"),
    ],
)
def test_a_level_that_is_not_stored_is_refused_with_those_that_are(
    run: Path, meadow_of_module: Path, tmp_path: Path, level: str, message: str
) -> None:
    image = meadow_of_module.parent / "00.png"
    ran = kit.cli(
        "predict", image, "--heads", run, "--out", tmp_path / "p.csv", "--interval", level
    )

    assert ran.code == 1 and message in ran.err
    assert not (tmp_path / "p.csv").exists()
