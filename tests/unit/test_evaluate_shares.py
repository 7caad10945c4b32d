"""Maps of shares, weights of targets and auxiliary tasks count in ``evaluate`` as in the training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tests.unit.training.meadow import a_run, rows_of

from dinoneck import (
    Backbone,
    ConfigError,
    DataError,
    DenseHead,
    DinoneckError,
    PatchMeanHead,
    Predictor,
    Task,
    evaluate,
    load_backbone,
)
from dinoneck.data import read_table
from dinoneck.evaluation.models import Stopwatch
from dinoneck.training import train, weighted_r2
from dinoneck.viz import write_maps
from dinoneck.viz.score_tables import all_tables

NAMES = ("soil", "crop", "weed")
SHARES = Task("cells", dim=3, kind="dense", labels=NAMES, shares=True)


def shares_model(tiny: Backbone, task: Task = SHARES) -> Predictor:
    """A head of random weights that predicts the shares of three classes per patch."""
    torch.manual_seed(0)
    return Predictor(DenseHead(64, [task]), tiny)


@pytest.mark.slow
def test_the_patches_of_a_fold_are_scored_as_in_its_training(meadow: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = {"labels": "mask", "classes": NAMES}
    of_training = train(a_run(meadow, ["crop"], data=data, head={"type": "dense"}), run)
    held_out = [row["image"] for row in rows_of(run / "out_of_fold.csv") if row["fold"] == "0"]
    table = pd.read_csv(meadow)
    table_of_fold = table[table["image"].isin(held_out)]

    report = evaluate(run / "heads/fold-0.safetensors", meadow.parent, table_of_fold, labels="mask")

    for name in ("cells soil", "cells crop", "cells weed"):
        r2_of_fold = of_training["scores"][name]["head"]["r2"]["folds"][0]
        r2 = report["scores"][name]["head"]["r2"]["pooled"]
        assert r2 == pytest.approx(r2_of_fold, abs=5e-3)
    assert "cells crop" not in report["auxiliary"]


def test_the_classes_of_pixels_are_those_of_the_largest_share(meadow: Path, tiny: Backbone) -> None:
    model = shares_model(tiny)
    rows = rows_of(meadow)
    images = [meadow.parent / row["image"] for row in rows]
    confusion = np.zeros((3, 3), np.int64)  # true class, predicted class
    for row, result in zip(rows, model(images, maps="patch"), strict=True):
        true_classes = np.array(Image.open(meadow.parent / row["mask"]))
        shares = torch.as_tensor(result["maps"]["cells"])[None]
        shares_of_pixels = F.interpolate(shares, true_classes.shape, mode="bilinear")[0]
        predicted_classes = shares_of_pixels.argmax(dim=0).numpy()
        np.add.at(confusion, (true_classes.ravel(), predicted_classes.ravel()), 1)
    intersection = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - intersection

    report = evaluate(model, meadow.parent, meadow, labels="mask")

    scores = report["scores"]["cells"]["head"]
    assert scores["confusion_matrix"] == confusion.tolist()
    assert scores["mean_iou"]["pooled"] == pytest.approx(np.nanmean(intersection / union))


def test_the_shares_of_images_of_several_sizes_are_scored(
    meadow: Path, tiny: Backbone, tmp_path: Path
) -> None:
    """The truth of each patch is its share of pixels, whatever the grid of other images is."""
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    model = shares_model(tiny)
    true_shares = []
    predicted_shares = []
    for row, width in zip(rows_of(meadow)[:6], (64, 48, 32, 64, 48, 32), strict=True):
        image = Image.open(meadow.parent / row["image"]).crop((0, 0, width, 32))
        mask = Image.open(meadow.parent / row["mask"]).crop((0, 0, width, 32))
        image.save(tmp_path / "images" / row["image"])
        mask.save(tmp_path / "masks" / row["image"])
        is_crop = np.array(mask) == 1
        patches = is_crop.reshape(2, 16, width // 16, 16)  # of 16 x 16 pixels
        true_shares.append(patches.mean(axis=(1, 3)).ravel())
        [result] = model(tmp_path / "images" / row["image"], maps="patch")
        predicted_shares.append(result["maps"]["cells"][1].ravel())
    truth = np.concatenate(true_shares)
    error = np.concatenate(predicted_shares) - truth
    r2 = 1 - (error**2).sum() / ((truth - truth.mean()) ** 2).sum()

    report = evaluate(model, tmp_path / "images", tmp_path / "masks")

    scores = report["scores"]["cells crop"]["head"]
    assert scores["r2"]["pooled"] == pytest.approx(r2, abs=1e-4)
    assert scores["sd"] == pytest.approx(truth.std(), abs=1e-5)


def test_the_shares_of_images_without_a_mask_are_not_scored(meadow: Path, tiny: Backbone) -> None:
    model = shares_model(tiny)
    table = read_table(meadow, meadow.parent, [], labels="mask")
    table.loc[table.index[6:], "labels"] = None

    report = evaluate(model, None, table)

    expected = evaluate(model, None, table.iloc[:6])
    r2 = report["scores"]["cells crop"]["head"]["r2"]["pooled"]
    assert r2 == pytest.approx(expected["scores"]["cells crop"]["head"]["r2"]["pooled"])


@pytest.mark.slow
def test_the_trainings_of_two_models_that_weigh_targets_differently_are_refused(
    meadow: Path, tmp_path: Path
) -> None:
    for run, weights in (("a", {"crop": 0.3, "weed": 0.7}), ("b", {"crop": 0.6, "weed": 0.4})):
        data = {"target_weights": weights}
        train(a_run(meadow, ["crop", "weed"], data=data, optim={"epochs": 1}), tmp_path / run)
    models = {"a": tmp_path / "a", "b": tmp_path / "b"}

    with pytest.raises(ConfigError, match="the trainings of a and b weigh targets differently"):
        evaluate(models, meadow.parent, meadow)


def test_patches_that_show_other_pixels_are_not_compared(meadow: Path, tiny: Backbone) -> None:
    """The head of ``b`` is that of ``a``, and reads twice as large images."""
    torch.manual_seed(0)
    head = DenseHead(64, [SHARES])
    larger = tiny.preprocess.changed(size=(64, 128))
    models = {"a": Predictor(head, tiny), "b": Predictor(head, tiny, preprocess=larger)}

    report = evaluate(models, meadow.parent, meadow, labels="mask")

    assert {*report["scores"]["cells crop"]} == {"a"}
    assert {*report["scores"]["cells"]} == {"a", "b"}
    assert "cells crop: the patches of b show other pixels than those of a" in report["verdict"]


def test_shares_of_other_classes_by_one_name_are_evaluated_apart(
    meadow: Path, tiny: Backbone
) -> None:
    other_order = Task("cells", dim=3, kind="dense", labels=("weed", "crop", "soil"), shares=True)
    models = {"a": shares_model(tiny), "b": shares_model(tiny, other_order)}

    with pytest.raises(DataError, match="a predicts the shares of .* in cells, and b"):
        evaluate(models, meadow.parent, meadow, labels="mask")


def test_a_map_of_shares_has_the_most_probable_class_next_to_it(tmp_path: Path) -> None:
    soil = [[0.6, 0.2], [np.nan, np.nan]]
    crop = [[0.3, 0.5], [np.nan, np.nan]]
    weed = [[0.1, 0.3], [np.nan, np.nan]]
    shares = np.array([soil, crop, weed], np.float32)

    files = write_maps(tmp_path, "a", {"cells": shares}, [SHARES])

    names = [file.relative_to(tmp_path).as_posix() for file in files]
    assert names[:3] == [f"cells/{name}/a.tif" for name in NAMES]
    assert names[3:] == ["cells/most probable class/a.png"]
    assert np.array(Image.open(files[3])).tolist() == [[0, 1], [255, 255]]  # soil, crop; none


def test_weights_of_the_call_make_one_weighted_r2(meadow: Path, tiny: Backbone) -> None:
    model = Predictor(PatchMeanHead(64, [Task("soil"), Task("crop")], hidden_dim=4), tiny)
    table = pd.read_csv(meadow)
    results = model([meadow.parent / name for name in table["image"]])
    predicted = {name: [row[name] for row in results] for name in ("soil", "crop")}
    weights = {"soil": 0.2, "crop": 0.8}
    truth = {name: table[name].to_numpy() for name in weights}
    r2 = weighted_r2(truth, predicted, weights)

    report = evaluate(model, meadow.parent, meadow, target_weights=weights)

    assert report["scores"]["overall"]["head"]["r2"]["pooled"] == pytest.approx(r2)
    assert report["target_weights"] == weights
    assert "overall (weighted)" in all_tables(report, held_out=False)[0].header


@pytest.mark.slow
def test_weights_and_auxiliary_tasks_of_a_training_hold_in_evaluate(
    meadow: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = {"aux_targets": ["soil"], "target_weights": {"crop": 0.3, "weed": 0.7}}
    run = tmp_path / "run"
    of_training = train(a_run(meadow, ["crop", "weed"], data=data, optim={"epochs": 1}), run)

    as_trained = evaluate(run, meadow.parent, meadow)
    with_equal_weights = evaluate(run, meadow.parent, meadow, target_weights={"crop": 1, "weed": 1})

    assert of_training["target_weights"] == {"crop": 0.3, "weed": 0.7}
    assert as_trained["target_weights"] == {"crop": 0.3, "weed": 0.7}
    assert "weighted as in training: crop=0.3 weed=0.7" in caplog.text
    assert as_trained["auxiliary"] == ["soil"]
    assert with_equal_weights["target_weights"] == {"crop": 1.0, "weed": 1.0}
    with pytest.raises(DinoneckError, match="names 'soil', which is none of the numbers"):
        evaluate(run, meadow.parent, meadow, target_weights={"crop": 1, "weed": 1, "soil": 1})


@pytest.mark.slow
def test_an_auxiliary_task_does_not_count_in_the_mean(meadow: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(a_run(meadow, ["crop"], data={"aux_targets": ["soil"]}, optim={"epochs": 1}), run)

    scores = evaluate(run, meadow.parent, meadow)["scores"]

    crop = scores["crop"]["head"]["r2"]["pooled"]
    assert scores["overall"]["head"]["r2"]["pooled"] == crop
    assert scores["soil"]["head"]["r2"]["pooled"] != crop


def test_a_missing_interval_has_a_reason(meadow: Path, tiny: Backbone) -> None:
    model = Predictor(PatchMeanHead(64, [Task("soil")], hidden_dim=4), tiny)

    few_groups = evaluate({"a": model, "b": model}, meadow.parent, meadow, group=["place"])
    enough = evaluate({"a": model, "b": model}, meadow.parent, meadow)
    few_images = evaluate(model, meadow.parent, pd.read_csv(meadow)[:3])

    scores_of_b = few_groups["scores"]["soil"]["b"]
    assert scores_of_b["head_minus"]["r2"] is None
    assert scores_of_b["no_interval"] == "4 groups, and an interval needs 5"
    [_, intervals] = all_tables(few_groups, held_out=False)[:2]
    assert intervals.rows[0][0] == "none: 4 groups, and an interval needs 5"
    assert "no_interval" not in enough["scores"]["soil"]["b"]
    assert (
        few_images["scores"]["soil"]["head"]["no_interval"] == "3 images, and an interval needs 5"
    )


def test_the_reason_of_a_missing_interval_names_what_it_is_of(meadow: Path, tiny: Backbone) -> None:
    """Soil is known of all images and crop of three, for which there is no interval."""
    models = {}
    for name, targets in {"a": ["soil", "crop"], "b": ["soil"], "c": ["crop"]}.items():
        tasks = [Task(target) for target in targets]
        models[name] = Predictor(PatchMeanHead(64, tasks, hidden_dim=4), tiny)
    table = pd.read_csv(meadow)
    table.loc[3:, "crop"] = np.nan

    report = evaluate(models, meadow.parent, table)

    [_, intervals, *_] = all_tables(report, held_out=False)
    assert intervals.header == ["R², 95 % interval", "soil", "crop"]
    assert [row[0] for row in intervals.rows] == [
        "a minus b",
        "none of crop for a, c: 3 images, and an interval needs 5",
    ]
    assert intervals.rows[0][2] == "-"


def test_the_reason_is_shown_of_a_single_model_too(meadow: Path, tiny: Backbone) -> None:
    model = Predictor(PatchMeanHead(64, [Task("soil")], hidden_dim=4), tiny)

    report = evaluate(model, meadow.parent, pd.read_csv(meadow)[:3])

    assert all_tables(report, held_out=False)[1].rows == [
        ["none: 3 images, and an interval needs 5", ""]
    ]


def test_boxes_of_other_classes_have_no_interval_for_that_model_alone() -> None:
    scores = {"AP": 0.5, "AP50": 0.6, "AP75": 0.5, "AR100": 0.5}
    report = {
        "boxes": {
            "a": scores,
            "b": scores | {"head_minus": {"AP": [0.1, 0.2]}},
            "c": scores | {"no_interval": "the models predict other classes"},
        }
    }

    rows = all_tables(report, held_out=False)[0].rows

    assert rows[-1][0] == "intervals: none for c: the models predict other classes"


def test_models_called_as_methods_of_a_run_have_their_differences(
    meadow: Path, tiny: Backbone
) -> None:
    model = Predictor(PatchMeanHead(64, [Task("soil")], hidden_dim=4), tiny)

    report = evaluate({"head": model, "head + linear": model}, meadow.parent, meadow)

    [scores, differences, *_] = all_tables(report, held_out=False)
    assert [row[0] for row in scores.rows[:2]] == ["head", "head + linear"]
    assert differences.rows == [["head minus head + linear", "+0.00 ... +0.00"]]


def test_the_standard_deviation_stands_below_the_errors(meadow: Path, tiny: Backbone) -> None:
    model = Predictor(PatchMeanHead(64, [Task("soil"), Task("crop")], hidden_dim=4), tiny)
    expected = pd.read_csv(meadow)["soil"].std(ddof=0)

    report = evaluate(model, meadow.parent, meadow)

    assert report["scores"]["soil"]["head"]["sd"] == pytest.approx(expected)
    assert "sd" not in report["scores"]["overall"]["head"]
    row = all_tables(report, held_out=False)[0].rows[-2]
    assert row[:2] == ["standard deviation", f"{expected:.3g}"]
    assert row[3:] == ["", ""]


def test_the_time_of_a_first_pass_is_not_counted() -> None:
    class SlowAtFirst:
        calls = 0

        def __call__(self, images: list[Any]) -> list[Any]:
            self.calls += 1
            if self.calls == 1:
                time.sleep(0.5)
            return images

    model: Any = SlowAtFirst()
    watch = Stopwatch(model)
    watch.begin("image")
    model(["image"])

    assert watch.seconds() < 0.4
    assert model.calls == 2


def test_the_runtime_auto_compiles_before_the_time_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It times torch in the first pass, and compiles in the second one where that pays."""
    backbone = load_backbone("dinoneck_tiny", runtime="auto")
    predictor = Predictor(PatchMeanHead(64, [Task("a")]), backbone)
    counts = []
    run = backbone.adapter.forward

    def forward(*args: Any) -> Any:
        counts.append(len(args[0]))
        return run(*args)

    monkeypatch.setattr(backbone.adapter, "forward", forward)
    counts.clear()
    Stopwatch(predictor).begin(torch.rand(3, 32, 32))
    assert len(counts) == 2


def test_programs_of_later_sizes_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 7 s for a second size 5 s are spent on its program; 100 s on the first one were before."""
    backbone = load_backbone("dinoneck_tiny", runtime="auto")
    predictor = Predictor(PatchMeanHead(64, [Task("a")]), backbone)
    watch = Stopwatch(predictor)
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    for_programs = [100.0]
    monkeypatch.setattr(Backbone, "seconds_for_programs", property(lambda self: for_programs[0]))
    watch.begin(torch.rand(3, 32, 32))

    clock[0] += 7.0
    for_programs[0] += 5.0

    assert watch.seconds() == pytest.approx(2.0)


def test_classes_are_shown_of_every_model() -> None:
    of_all_classes = {"AP": 0.5, "AP50": 0.6, "AP75": 0.5, "AR100": 0.5}
    classes_of_a = {"cell": {"AP": 0.2, "AP50": 0.3}}
    classes_of_b = {"cell": {"AP": 0.3, "AP50": 0.4}, "dust": {"AP": 0.4, "AP50": 0.5}}
    report = {
        "boxes": {
            "a": {**of_all_classes, "per_class": classes_of_a},
            "b": {**of_all_classes, "per_class": classes_of_b},
        }
    }

    by_class = all_tables(report, held_out=False)[1]

    assert by_class.header == ["class", "AP a", "AP b", "AP50 a", "AP50 b"]
    assert by_class.rows == [
        ["cell", "0.200", "0.300", "0.300", "0.400"],
        ["dust", "-", "0.400", "-", "0.500"],
    ]
    assert by_class.note == ""


def test_classes_without_an_object_in_the_truth_are_named_below_the_table() -> None:
    of_all_classes = {"AP": 0.5, "AP50": 0.6, "AP75": 0.5, "AR100": 0.5}
    classes = {"cell": {"AP": 0.0, "AP50": 0.0}}  # a score of 0 is one
    for name in ("e", "d", "c", "b", "a"):
        classes[name] = {"AP": None, "AP50": None}
    report = {"boxes": {"model": {**of_all_classes, "per_class": classes}}}

    by_class = all_tables(report, held_out=False)[1]

    assert by_class.rows == [["cell", "0.000", "0.000"]]
    assert by_class.note == (
        "Classes without an object in the truth are not scored: a, b, c, d and 1 more."
    )
