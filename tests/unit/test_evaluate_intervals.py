"""``evaluate`` states how often the truth lies in intervals, and writes them into a file that has none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests import kit
from tests.unit.training.meadow import a_run

from dinoneck import (
    Composition,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    Task,
    evaluate,
    save_head,
)
from dinoneck.data import read_table
from dinoneck.errors import ConfigError, DataError
from dinoneck.export import export_model
from dinoneck.tasks import Interval
from dinoneck.training import train
from dinoneck.viz.score_tables import all_tables

KINDS = ("bare", "crop", "weedy")


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """The file of an ensemble of a number and classes, without intervals."""
    tasks = [Task("soil", unit="g"), Task("kind", dim=3, kind="classification", labels=KINDS)]
    members = [kit.head(*tasks, seed=seed) for seed in (0, 1)]
    return kit.saved_head(tmp_path / "head.safetensors", HeadEnsemble(members), size=(32, 64))


def residuals_of(head: Path, meadow: Path) -> list[float]:
    """How far the predictions of soil are off, in ascending order."""
    rows = pd.read_csv(meadow)
    predicted = Predictor(head)([meadow.parent / name for name in rows["image"]])
    return sorted(
        abs(row["soil"] - truth) for row, truth in zip(predicted, rows["soil"], strict=True)
    )


def test_a_calibrated_file_covers_the_images_that_it_is_calibrated_on_by_rank(
    head: Path, meadow: Path, tmp_path: Path
) -> None:
    out = tmp_path / "calibrated.safetensors"
    ran = kit.cli("evaluate", meadow.parent, "--heads", head, "--truth", meadow, "--calibrate", out)

    assert ran.code == 0, ran.err
    assert f"written with intervals: {out}" in ran.out
    # the twelve images are groups: 0.5 of 13 masses is reached by the 7th residual, 0.9 by the 12th
    [interval] = HeadCheckpoint.load(out).tasks[0].interval
    residuals = residuals_of(head, meadow)
    assert (interval.levels, interval.groups) == ((0.5, 0.8, 0.9), 12)
    expected = (residuals[6], residuals[10], residuals[11])
    assert interval.half_widths == pytest.approx(expected, rel=1e-6)

    document = kit.cli("evaluate", meadow.parent, "--heads", out, "--truth", meadow, "--json").json

    scores = document["scores"]["soil"]["head"]
    assert scores["coverage"] == pytest.approx({"0.5": 7 / 12, "0.8": 11 / 12, "0.9": 1.0})
    assert scores["width"]["0.9"] == pytest.approx(2 * residuals[11], rel=1e-6)
    of_kind = document["scores"]["kind"]["head"]
    assert of_kind["coverage"]["0.9"] == 1.0 and 1 <= of_kind["width"]["0.9"] <= 3
    table = all_tables(document)[1]
    assert table.header == ["intervals", "promised", "coverage", "mean width"]
    assert table.rows[0][:3] == ["soil", "50 %", "58.3 %"]


def test_groups_of_the_truth_are_those_of_the_intervals(
    head: Path, meadow: Path, tmp_path: Path
) -> None:
    out = tmp_path / "calibrated.safetensors"

    evaluate(head, meadow.parent, meadow, group=["place"], calibrate=out)

    [interval] = HeadCheckpoint.load(out).tasks[0].interval
    assert (interval.levels, interval.groups) == ((0.5, 0.8), 4)


def test_a_ratio_whose_parts_are_scored_as_amounts_is_calibrated_by_its_shares(
    meadow: Path, tmp_path: Path
) -> None:
    parts = ("soil", "crop", "weed")
    tasks = [Task("total", unit="g"), Task("shares", dim=3, kind="ratio", labels=parts)]
    composition = Composition(parts, {}, "masses", total="total", ratio="shares")
    module = PatchMeanHead(64, tasks, hidden_dim=8, compositions=[composition])
    file = kit.saved_head(tmp_path / "head.safetensors", module.eval(), size=(32, 64))
    out = tmp_path / "calibrated.safetensors"

    report = evaluate(file, meadow.parent, meadow, calibrate=out)

    assert [*report["scores"]] == ["total", *parts, "overall"]
    table = pd.read_csv(meadow)
    amounts = table[[*parts]].to_numpy(float)
    rows = Predictor(file)([meadow.parent / name for name in table["image"]])
    predicted = np.stack([row["shares"] for row in rows])
    residuals = np.sort(np.abs(amounts / amounts.sum(axis=1, keepdims=True) - predicted), axis=0)
    of_shares = next(task for task in HeadCheckpoint.load(out).tasks if task.name == "shares")
    # twelve groups: 0.9 of 13 masses is reached by the 12th residual
    half_widths = [interval.half_width(0.9) for interval in of_shares.interval]
    assert half_widths == pytest.approx(residuals[11].tolist(), rel=1e-5)


def test_a_file_with_intervals_is_not_calibrated_again(
    head: Path, meadow: Path, tmp_path: Path
) -> None:
    once = tmp_path / "once.safetensors"
    twice = tmp_path / "twice.safetensors"
    evaluate(head, meadow.parent, meadow, calibrate=once)

    with pytest.raises(ConfigError, match="holds intervals of 'soil' already"):
        evaluate(once, meadow.parent, meadow, calibrate=twice)
    assert not twice.exists()


@pytest.mark.parametrize("case", ["module", "two models", "masks"])
def test_what_is_not_one_head_file_of_numbers_is_not_calibrated(
    case: str, head: Path, meadow: Path, tmp_path: Path
) -> None:
    model: Any = head
    options: dict[str, Any] = {}
    message = "the model is not one head file"
    if case == "module":
        model = Predictor(kit.head(Task("soil")), kit.backbone())
    elif case == "two models":
        model = {"a": head, "b": head}
        message = "there are 2 models: a, b"
    else:
        options["labels"] = "mask"
        message = "the truth has masks"

    with pytest.raises(ConfigError, match=message):
        evaluate(model, meadow.parent, meadow, calibrate=tmp_path / "out.safetensors", **options)


def test_a_head_is_calibrated_by_the_views_that_its_file_records(
    head: Path, meadow: Path, tmp_path: Path
) -> None:
    out = tmp_path / "calibrated.safetensors"
    words = ("evaluate", meadow.parent, "--heads", head, "--truth", meadow, "--calibrate", out)

    refused = kit.cli(*words, "--tta", "flip4")
    calibrated = kit.cli(*words, "--tta", "none")

    assert refused.code == 1
    assert "tta is 'flip4': the file records the views 'none'" in refused.err
    assert calibrated.code == 0, calibrated.err


@pytest.fixture
def of_views(meadow: Path, tmp_path: Path) -> Path:
    """The file of a head that records the views flip4, with intervals of predictions from them."""
    head = kit.saved_head(
        tmp_path / "flipped.safetensors", kit.head(Task("soil")), size=(32, 64), tta="flip4"
    )
    out = tmp_path / "of_views.safetensors"
    evaluate(head, meadow.parent, meadow, calibrate=out)
    return out


def test_intervals_of_views_are_held_with_these_views(of_views: Path, meadow: Path) -> None:
    [interval] = HeadCheckpoint.load(of_views).tasks[0].interval
    [row] = Predictor(of_views, interval=0.5)([meadow.parent / "00.png"])

    assert interval.views == "flip4"
    assert row["interval"]["soil"][0] < row["soil"] < row["interval"]["soil"][1]


@pytest.mark.parametrize("tta", ["none", "d6"])
def test_intervals_of_views_are_refused_with_other_views(tta: Any, of_views: Path) -> None:
    message = f"of predictions from the views 'flip4', not from '{tta}': pass tta='flip4'"

    with pytest.raises(ConfigError, match=message):
        Predictor(of_views, tta=tta, interval=0.5)


def test_predictions_from_other_views_have_no_intervals_and_say_so(
    of_views: Path, meadow: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.csv"

    ran = kit.cli(
        "predict", meadow.parent / "00.png", "--heads", of_views, "--tta", "none", "--out", out
    )

    assert ran.code == 0, ran.err
    assert "Without intervals of soil, which are of predictions from the views that" in ran.out
    assert list(pd.read_csv(out).columns) == ["image", "soil"]


def test_unknown_views_of_intervals_are_refused() -> None:
    with pytest.raises(ConfigError, match="views is 'flips'"):
        Interval(levels=(0.5,), half_widths=(1.0,), groups=1, views="flips")  # type: ignore[arg-type]


def test_intervals_of_the_image_alone_hold_for_views(
    head: Path, meadow: Path, tmp_path: Path
) -> None:
    out = tmp_path / "calibrated.safetensors"
    evaluate(head, meadow.parent, meadow, calibrate=out)

    [row] = Predictor(out, tta="flip4", interval=0.5)([meadow.parent / "00.png"])

    assert "soil" in row["interval"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this model (predicts|takes)")
def test_an_exported_model_has_no_intervals_of_views_and_says_so(
    of_views: Path, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="of 'soil' are of predictions from several views"):
        exported = export_model(of_views, tmp_path / "h.pt2", format="pt2", check=False)

    [task] = exported.description["tasks"]
    assert "interval" not in task


def test_a_head_is_calibrated_in_the_precision_that_its_file_records(
    head: Path, meadow: Path, tmp_path: Path
) -> None:
    out = tmp_path / "calibrated.safetensors"
    words = ("evaluate", meadow.parent, "--heads", head, "--truth", meadow, "--calibrate", out)

    refused = kit.cli(*words, "--precision", "bfloat16")
    calibrated = kit.cli(*words, "--precision", "float32")

    assert refused.code == 1
    assert "the backbone computes in bfloat16: the file records float32" in refused.err
    assert calibrated.code == 0, calibrated.err


def test_a_head_on_a_backbone_in_bfloat16_is_calibrated_in_bfloat16(
    meadow: Path, tmp_path: Path
) -> None:
    file = kit.saved_head(
        tmp_path / "head.safetensors",
        kit.head(Task("soil", unit="g")),
        size=(32, 64),
        backbone=kit.backbone(dtype=torch.bfloat16),
    )
    out = tmp_path / "calibrated.safetensors"

    evaluate(file, meadow.parent, meadow, calibrate=out)

    assert HeadCheckpoint.load(out).tasks[0].interval
    with pytest.raises(ConfigError, match="computes in float32: the file records bfloat16"):
        evaluate(
            Predictor(file, dtype="float32"),
            meadow.parent,
            meadow,
            calibrate=tmp_path / "other.safetensors",
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param({"blur": 3}, "blur of the images is 3: the file records None", id="blur"),
        pytest.param(
            {"preprocess": kit.backbone().preprocess.changed(size=(64, 64))},
            r"size of the images is \(64, 64\): the file records \(32, 64\)",
            id="size",
        ),
    ],
)
def test_a_head_is_calibrated_on_images_that_are_prepared_as_its_file_records(
    options: dict[str, Any], message: str, head: Path, meadow: Path, tmp_path: Path
) -> None:
    predictor = Predictor(head, **options)

    with pytest.raises(ConfigError, match=message):
        evaluate(predictor, meadow.parent, meadow, calibrate=tmp_path / "out.safetensors")


def test_bits_that_a_file_does_not_record_are_those_of_the_images(
    head: Path, meadow: Path, tmp_path: Path
) -> None:
    out = tmp_path / "calibrated.safetensors"

    evaluate(Predictor(head, bits=12), meadow.parent, meadow, calibrate=out)

    assert HeadCheckpoint.load(out).tasks[0].interval


def test_a_head_is_not_calibrated_on_tiles(head: Path, meadow: Path, tmp_path: Path) -> None:
    predictor = Predictor(head, tile=32)

    with pytest.raises(
        ConfigError, match=r"tile is \(32, 32\): intervals hold for images that are"
    ):
        evaluate(predictor, meadow.parent, meadow, calibrate=tmp_path / "out.safetensors")


def test_bits_that_a_file_records_are_those_of_the_images(meadow: Path, tmp_path: Path) -> None:
    backbone = kit.backbone()
    file = tmp_path / "head.safetensors"
    recipe = backbone.preprocess.changed(size=(32, 64), bits=12)
    save_head(file, kit.head(Task("soil")), backbone=backbone, preprocess=recipe)

    with pytest.raises(ConfigError, match="bits of the images is 10: the file records 12"):
        evaluate(
            Predictor(file, bits=10), meadow.parent, meadow, calibrate=tmp_path / "out.safetensors"
        )


@pytest.mark.filterwarnings("ignore:the file of this PatchMeanHead does not state its backbone")
def test_a_file_that_records_no_backbone_and_no_preparation_is_calibrated(
    meadow: Path, tmp_path: Path
) -> None:
    file = tmp_path / "head.safetensors"
    save_head(file, kit.head(Task("soil")))
    out = tmp_path / "calibrated.safetensors"
    backbone = kit.backbone(dtype=torch.bfloat16)
    recipe = backbone.preprocess.changed(size=(32, 64))

    evaluate(Predictor(file, backbone, preprocess=recipe), meadow.parent, meadow, calibrate=out)

    assert HeadCheckpoint.load(out).tasks[0].interval


def test_a_truth_without_numbers_and_classes_gives_no_intervals(
    meadow: Path, tmp_path: Path
) -> None:
    tags = Task("tags", dim=2, kind="multilabel", labels=("wet", "dry"))
    file = kit.saved_head(tmp_path / "head.safetensors", kit.head(tags), size=(32, 64))
    table = pd.read_csv(meadow)[["image"]]
    table["tags"] = ["wet", "dry", "wet;dry"] * 4

    with pytest.raises(DataError, match="there are no intervals to write"):
        evaluate(file, meadow.parent, table, calibrate=tmp_path / "out.safetensors")

    assert not (tmp_path / "out.safetensors").exists()


def test_images_of_the_training_are_refused(meadow: Path, tmp_path: Path) -> None:
    train(a_run(meadow, ["soil"], folds={"count": 1}), tmp_path / "run")

    with pytest.raises(
        DataError, match="12 of the 12 images are those that the head was trained on"
    ):
        evaluate(tmp_path / "run", meadow.parent, meadow, calibrate=tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_the_file_to_write_is_checked_before_anything_is_predicted(
    head: Path, meadow: Path
) -> None:
    ran = kit.cli(
        "evaluate", meadow.parent, "--heads", head, "--truth", meadow, "--calibrate", head
    )

    assert ran.code == 1
    assert f"--calibrate {head} is one of the inputs and would be replaced" in ran.err


def test_a_report_without_intervals_has_neither_coverage_nor_width(
    head: Path, meadow: Path
) -> None:
    report = evaluate(head, meadow.parent, meadow)

    assert not {"coverage", "width"} & {*report["scores"]["soil"]["head"]}
    assert "coverage" not in json.dumps(report)


def test_classes_may_be_known_by_their_numbers(head: Path, meadow: Path, tmp_path: Path) -> None:
    out = tmp_path / "calibrated.safetensors"
    evaluate(head, meadow.parent, meadow, calibrate=out)
    rows = pd.read_csv(meadow)
    rows["kind"] = [KINDS.index(kind) if kind in KINDS else None for kind in rows["kind"]]
    rows.to_csv(meadow.parent / "numbers.csv", index=False)
    truth = read_table(meadow.parent / "numbers.csv", meadow.parent, ["kind"], numbers=["kind"])

    report = evaluate(out, None, truth)

    expected = evaluate(out, meadow.parent, meadow)
    assert (
        report["scores"]["kind"]["head"]["coverage"]
        == (expected["scores"]["kind"]["head"]["coverage"])
    )


def test_a_number_that_is_no_class_is_named(head: Path, meadow: Path) -> None:
    rows = pd.read_csv(meadow)
    rows["kind"] = 7
    rows.to_csv(meadow.parent / "numbers.csv", index=False)
    truth = read_table(meadow.parent / "numbers.csv", meadow.parent, ["kind"], numbers=["kind"])

    with pytest.raises(DataError, match=r"is 7; expected a class, 0 \.\.\. 2"):
        evaluate(head, None, truth)
