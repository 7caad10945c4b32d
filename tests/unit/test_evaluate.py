"""The scores of finished models are those of scikit-learn, of the report of a training, and of ``evaluate_boxes``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests import kit
from tests.unit.training.meadow import COUNT, a_run, rows_of

from dinoneck import (
    Backbone,
    ConfigError,
    DataError,
    DenseHead,
    PatchMeanHead,
    Predictor,
    Task,
    evaluate,
)
from dinoneck.data import read_table
from dinoneck.training import train
from dinoneck.viz.score_tables import all_tables

metrics = pytest.importorskip("sklearn.metrics")
KINDS = ("bare", "crop", "weedy")
TASKS = [Task("soil", unit="g"), Task("kind", dim=3, kind="classification", labels=KINDS)]


def predictor(tiny: Backbone, tasks: list[Task] | None = None) -> Predictor:
    return Predictor(PatchMeanHead(64, tasks or TASKS, hidden_dim=4), tiny)


def test_numbers_and_classes_are_scored_as_by_scikit_learn(meadow: Path, tiny: Backbone) -> None:
    models = {"a": predictor(tiny), "b": predictor(tiny, TASKS[:1])}
    found = evaluate(models, meadow.parent, meadow, group=["place"])
    rows = rows_of(meadow)
    predicted = {
        name: one([meadow.parent / row["image"] for row in rows]) for name, one in models.items()
    }
    true = [float(row["soil"]) for row in rows]
    for name, own in predicted.items():
        scores, values = found["scores"]["soil"][name], [row["soil"] for row in own]
        assert scores["r2"]["pooled"] == pytest.approx(metrics.r2_score(true, values), abs=1e-9)
        assert scores["mae"]["pooled"] == pytest.approx(
            metrics.mean_absolute_error(true, values), abs=1e-9
        )
    classes = [KINDS[int(np.argmax(row["kind"]))] for row in predicted["a"]]
    truth = [row["kind"] for row in rows]
    scores = found["scores"]["kind"]["a"]
    assert scores["accuracy"]["pooled"] == pytest.approx(
        metrics.accuracy_score(truth, classes), abs=1e-9
    )
    matrix = metrics.confusion_matrix(truth, classes, labels=KINDS).tolist()
    assert scores["confusion_matrix"] == matrix
    assert [*found["scores"]["kind"]] == ["a"]
    assert found["groups"] == 4 and "12 images in 4 groups are too few" in found["verdict"]
    assert found["cost"]["a"]["parameters"] > found["cost"]["b"]["parameters"] > 0
    assert json.loads(json.dumps(found, allow_nan=False)) == found and len(all_tables(found)) > 2


@pytest.mark.parametrize("options", [{}, {"decimal": ","}], ids=["told", "stated"])
def test_a_truth_with_decimal_commas_is_that_with_points(
    meadow: Path, tiny: Backbone, tmp_path: Path, options: dict[str, Any]
) -> None:
    rows = pd.read_csv(meadow)[["image", "soil"]]
    rows.to_csv(tmp_path / "t.csv", sep=";", decimal=",", index=False)
    model = predictor(tiny, TASKS[:1])

    found = evaluate(model, meadow.parent, tmp_path / "t.csv", **options)

    assert found["scores"] == evaluate(model, meadow.parent, rows)["scores"]


def test_a_decimal_mark_is_no_option_of_a_truth_that_is_no_csv_file(
    meadow: Path, tiny: Backbone
) -> None:
    model = predictor(tiny, TASKS[:1])

    for truth in (pd.read_csv(meadow), meadow.parent, read_table(meadow, None, "soil")):
        with pytest.raises(ConfigError, match="decimal is ','"):
            evaluate(model, meadow.parent, truth, decimal=",")


def numbered(table: Path, classes: Sequence[Any]) -> pd.DataFrame:
    """A table whose column ``kind`` holds these classes, one after the other."""
    rows = pd.read_csv(table)
    return rows.assign(kind=[classes[row % len(classes)] for row in range(len(rows))])


def test_classes_without_labels_are_called_by_their_numbers(meadow: Path, tiny: Backbone) -> None:
    model = predictor(tiny, [Task("kind", kind="classification", dim=3)])
    rows = numbered(meadow, [0, 1, 2])
    found = evaluate(model, meadow.parent, rows)
    paths = [meadow.parent / name for name in rows["image"]]
    predicted = [int(np.argmax(row["kind"])) for row in model(paths)]
    scores = found["scores"]["kind"]["head"]
    assert scores["labels"] == ["0", "1", "2"]
    expected = metrics.confusion_matrix(rows["kind"], predicted, labels=[0, 1, 2])
    assert scores["confusion_matrix"] == expected.tolist()
    assert scores["accuracy"]["pooled"] == metrics.accuracy_score(rows["kind"], predicted)


def test_words_are_no_classes_of_a_head_without_labels(meadow: Path, tiny: Backbone) -> None:
    model = predictor(tiny, [Task("kind", kind="classification", dim=3)])
    with pytest.raises(DataError, match="has the class 'crop'.*expected one of 0, 1, 2"):
        evaluate(model, meadow.parent, numbered(meadow, ["crop", "weed"]))


def test_a_class_that_the_head_does_not_know_is_named_with_its_target_and_an_image(
    meadow: Path, tiny: Backbone
) -> None:
    rows = numbered(meadow, ["crop", "bare", "wheat"])
    table = read_table(rows, meadow.parent, "kind")

    with pytest.raises(DataError) as refused:
        evaluate(predictor(tiny, TASKS[1:]), None, table)

    assert str(refused.value) == (
        f"kind has the class 'wheat', such as that of {rows['image'][2]!r}; expected one of bare, "
        "crop, weedy"
    )


def test_numbers_of_classes_in_a_ready_made_table_are_scored_as_the_classes(
    meadow: Path, tiny: Backbone
) -> None:
    table = read_table(meadow, meadow.parent, "kind", classes={"kind": KINDS})
    numbers = table.assign(kind=table["kind"].cat.codes)
    model = predictor(tiny, TASKS[1:])

    of_classes = evaluate(model, None, table)["scores"]
    of_numbers = evaluate(model, None, numbers)["scores"]

    assert of_numbers == of_classes


@pytest.mark.parametrize("truth", [{"soil": [1.0]}, 5], ids=["mapping", "number"])
def test_a_truth_that_is_neither_a_table_nor_a_path_is_refused(tiny: Backbone, truth: Any) -> None:
    with pytest.raises(DataError, match="expected a pandas DataFrame, or the path"):
        evaluate(predictor(tiny), None, truth)


def test_two_models_are_compared_over_groups(meadow: Path, tiny: Backbone) -> None:
    """Equal models differ by 0; intervals need five groups or more."""
    one, rows = predictor(tiny, TASKS[:1]), pd.read_csv(meadow).assign(place=range(COUNT))
    found = evaluate({"a": one, "b": one}, meadow.parent, rows, group=["place"])
    assert found["scores"]["soil"]["b"]["head_minus"]["r2"] == [0.0, 0.0]


def test_classes_are_matched_by_their_names(meadow: Path, tiny: Backbone) -> None:
    """Heads may number them in another order, and a table may lack some; masks hold the numbers of one order."""
    heads = {"a": predictor(tiny), "b": predictor(tiny, [replace(TASKS[1], labels=KINDS[::-1])])}
    both = evaluate(heads, meadow.parent, meadow)["scores"]["kind"]
    alone = {
        name: evaluate(one, meadow.parent, meadow)["scores"]["kind"]["head"]
        for name, one in heads.items()
    }
    assert all(both[name]["accuracy"] == own["accuracy"] for name, own in alone.items())
    one, where, rows = (
        heads["a"],
        meadow.parent,
        pd.read_csv(meadow).query("kind != 'bare'")[["image", "kind"]],
    )
    assert (
        evaluate(one, None, read_table(rows, where, "kind"))["scores"]
        == evaluate(one, where, rows)["scores"]
    )
    tasks = [
        replace(TASKS[1], kind="segmentation", labels=labels) for labels in (KINDS, KINDS[::-1])
    ]
    with pytest.raises(
        DataError, match=r"bare predicts the classes .* of kind, and weedy .*; evaluate them apart"
    ):
        evaluate(
            {own.labels[0]: Predictor(DenseHead(64, [own]), tiny) for own in tasks},
            meadow.parent,
            meadow,
        )


def test_the_f1_of_a_class_that_the_truth_lacks_is_unknown_or_0(
    meadow: Path, tiny: Backbone
) -> None:
    rows = pd.read_csv(meadow).query("kind != 'bare'")[["image", "kind"]]
    one = predictor(tiny)
    probabilities = [row["kind"] for row in one([meadow.parent / name for name in rows["image"]])]
    is_predicted = any(int(np.argmax(values)) == 0 for values in probabilities)

    scores = evaluate(one, meadow.parent, rows)["scores"]["kind"]["head"]

    assert scores["f1"]["bare"] == (0.0 if is_predicted else None)


@pytest.mark.parametrize("name", ["Kind", "KIND"])
def test_a_column_in_other_letters_than_the_target_is_named(
    meadow: Path, tiny: Backbone, name: str
) -> None:
    rows = pd.read_csv(meadow).rename(columns={"kind": name})[["image", name]]

    with pytest.raises(DataError, match=rf"none of what is predicted, .* Did you mean '{name}'\?"):
        evaluate(predictor(tiny, TASKS[1:]), meadow.parent, rows)


def test_a_ready_made_table_without_the_target_is_asked_for_a_near_name(
    meadow: Path, tiny: Backbone
) -> None:
    rows = pd.read_csv(meadow).rename(columns={"soil": "Soil"})
    table = read_table(rows, meadow.parent, "Soil")

    with pytest.raises(DataError, match=r"it has the columns Soil, images\. Did you mean 'Soil'\?"):
        evaluate(predictor(tiny, TASKS[:1]), None, table)


def test_a_class_in_other_letters_than_that_of_the_head_is_named(
    meadow: Path, tiny: Backbone
) -> None:
    rows = pd.read_csv(meadow)
    rows["kind"] = rows["kind"].str.upper()

    with pytest.raises(DataError, match=r"one of bare, crop, weedy\. Did you mean 'bare'\?"):
        evaluate(predictor(tiny), meadow.parent, rows.query("kind == 'BARE'"))


def test_known_numbers_that_are_written_with_a_unit_are_refused(
    meadow: Path, tiny: Backbone
) -> None:
    """They would be classes, which no head of numbers predicts: the target would be left out."""
    rows = pd.read_csv(meadow)
    rows["soil"] = [f"{value} g" for value in rows["soil"]]

    with pytest.raises(DataError, match="soil of '00.png' is .* g'"):
        evaluate(predictor(tiny), meadow.parent, rows)


@pytest.mark.parametrize(
    "option", [{"nodata": [-9999.0]}, {"class_values": [0, 1]}], ids=["nodata", "class_values"]
)
def test_options_of_masks_are_refused_for_a_table_of_numbers(
    option: dict[str, Any], meadow: Path, tiny: Backbone
) -> None:
    [(name, value)] = option.items()

    with pytest.raises(ConfigError) as refused:
        evaluate(predictor(tiny), meadow.parent, meadow, **option)

    message = str(refused.value)
    assert f"{name} is {value}, which is of masks, and the truth has none" in message
    assert "--labels" in message and "leave cells of a table empty" in message


def test_a_column_of_masks_is_refused_for_heads_without_maps(meadow: Path, tiny: Backbone) -> None:
    with pytest.raises(ConfigError, match="labels is 'mask'.*the heads predict .*soil.*leave"):
        evaluate(predictor(tiny), meadow.parent, meadow, labels="mask")


def test_number_maps_are_said_not_to_be_scored_against_masks(
    meadow: Path, tiny: Backbone, tmp_path: Path
) -> None:
    for folder, column in (("images", "image"), ("masks", "mask")):
        (tmp_path / folder).mkdir()
        for row in rows_of(meadow):
            Image.open(meadow.parent / row[column]).save(tmp_path / folder / row["image"])
    numbers = Predictor(DenseHead(64, [Task("num", kind="dense")]), tiny)

    with pytest.raises(DataError, match="maps of numbers, num, which are not scored"):
        evaluate(numbers, tmp_path / "images", tmp_path / "masks")


def test_a_column_of_masks_is_refused_for_number_maps(meadow: Path, tiny: Backbone) -> None:
    numbers = Predictor(DenseHead(64, [Task("num", kind="dense")]), tiny)

    with pytest.raises(ConfigError, match="maps of numbers, num, which are not scored"):
        evaluate(numbers, meadow.parent, meadow, labels="mask")


def test_a_categorical_column_of_numbers_is_refused_in_a_ready_made_table(
    meadow: Path, tiny: Backbone
) -> None:
    """Its numbers are names, and the target would be left out of the scores."""
    table = read_table(meadow, meadow.parent, ["soil", "kind"])
    table["soil"] = table["soil"].round().astype(str).astype("category")

    with pytest.raises(DataError, match=r"soil is categorical.*table\['soil'\].astype\(float\)"):
        evaluate(predictor(tiny), None, table)


def test_groups_that_a_ready_made_table_lacks_are_refused(meadow: Path, tiny: Backbone) -> None:
    table = read_table(meadow, meadow.parent, ["soil", "kind"])

    with pytest.raises(ConfigError, match="no column 'group'.*group= of read_table"):
        evaluate(predictor(tiny), None, table, group=["place"])


def test_groups_of_a_table_are_refused_for_a_folder(meadow: Path, tiny: Backbone) -> None:
    with pytest.raises(ConfigError, match="group is .*'place'.*is a folder; leave it out"):
        evaluate(predictor(tiny), None, meadow.parent, group=["place"])


def test_a_column_of_images_is_refused_where_none_is_read(meadow: Path, tiny: Backbone) -> None:
    table = read_table(meadow, meadow.parent, ["soil", "kind"])
    model = predictor(tiny)
    for truth, words in {
        meadow.parent: "image_column is 'file'.*is a folder; leave it out",
        meadow.parent / "objects.json": "image_column is 'file'.*leave it out for objects",
    }.items():
        with pytest.raises(ConfigError, match=words):
            evaluate(model, None, truth, image_column="file")
    with pytest.raises(ConfigError, match=r"image_column is 'file'.*image_column= of read_table"):
        evaluate(model, None, table, image_column="file")


def test_a_ready_made_table_has_the_numbers_of_a_file(meadow: Path, tiny: Backbone) -> None:
    """A column of probabilities is one of numbers, where the truth has no column of the class."""
    rows = pd.read_csv(meadow)
    rows["kind:bare"] = rows.pop("kind")
    table = read_table(rows, meadow.parent, ["soil", "kind:bare"])
    head = PatchMeanHead(
        64,
        [Task("soil"), Task("kind", dim=2, kind="classification", labels=("bare", "crop"))],
        hidden_dim=4,
    )
    model = Predictor(head, tiny)

    for truth in (rows, table):
        with pytest.raises(
            DataError, match="kind:bare (of .* is|holds the words) .* expected (a )?number"
        ):
            evaluate(model, meadow.parent, truth)


def test_groups_of_the_table_are_not_the_truth_of_a_class_of_that_name(
    meadow: Path, tiny: Backbone
) -> None:
    labels = ("soil", "group", "labels")
    head = DenseHead(64, [Task("cover", dim=3, kind="segmentation", labels=labels)])

    report = evaluate(Predictor(head, tiny), meadow.parent, meadow, group=["place"], labels="mask")

    assert [*report["scores"]] == ["soil", "cover", "overall"]


def test_masks_are_scored_by_their_pixels(meadow: Path, tiny: Backbone, tmp_path: Path) -> None:
    head = DenseHead(
        64, [Task("cover", dim=3, kind="segmentation", labels=("soil", "crop", "weed"))]
    )
    own, rows, masks = Predictor(head, tiny), rows_of(meadow), []
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for row in rows:
        masks.append(np.asarray(Image.open(meadow.parent / row["mask"])))
        Image.open(meadow.parent / row["image"]).save(tmp_path / "images" / row["image"])
        Image.fromarray(masks[-1]).save(tmp_path / "masks" / row["image"])
    found = evaluate(own, tmp_path / "images", tmp_path / "masks")
    assert (
        evaluate(own, meadow.parent, meadow, labels="mask")["scores"]["cover"]
        == found["scores"]["cover"]
    )
    predicted = []
    for result in own([meadow.parent / row["image"] for row in rows], maps="patch"):
        maps = torch.as_tensor(result["maps"]["cover"])[None]
        pixels = torch.nn.functional.interpolate(maps, masks[0].shape, mode="bilinear")
        predicted.append(pixels[0].argmax(dim=0).numpy())
    expected = metrics.confusion_matrix(np.ravel(masks), np.ravel(predicted), labels=[0, 1, 2])
    scores = found["scores"]["cover"]["head"]
    assert scores["confusion_matrix"] == expected.tolist()
    iou = metrics.jaccard_score(
        np.ravel(masks), np.ravel(predicted), average="macro", labels=[0, 1, 2]
    )
    assert scores["mean_iou"]["pooled"] == pytest.approx(iou, abs=1e-9)
    turned = tmp_path / "masks" / rows[0]["image"]
    Image.fromarray(np.rot90(masks[0])).save(turned)
    with pytest.raises(DataError, match=turned.name):
        evaluate(own, tmp_path / "images", tmp_path / "masks")


def test_pixels_of_classes_without_labels_are_scored_by_their_numbers(
    meadow: Path, tiny: Backbone
) -> None:
    task = Task("cover", dim=3, kind="segmentation", labels=("soil", "crop", "weed"))
    head = DenseHead(64, [task])
    unlabelled = DenseHead(64, [replace(task, labels=())])
    unlabelled.load_state_dict(head.state_dict())

    scores = {}
    for name, one in {"labels": head, "no labels": unlabelled}.items():
        report = evaluate(Predictor(one, tiny), meadow.parent, meadow, labels="mask")
        scores[name] = report["scores"]["cover"]["head"]
        assert len(all_tables(report)) > 2

    assert scores["no labels"]["labels"] == ["0", "1", "2"]
    assert [*scores["no labels"]["iou"]] == ["0", "1", "2"]
    assert [*scores["no labels"]["iou"].values()] == [*scores["labels"]["iou"].values()]
    assert scores["no labels"]["confusion_matrix"] == scores["labels"]["confusion_matrix"]


@pytest.mark.slow
def test_the_score_of_a_fold_is_that_of_its_head(meadow: Path, tmp_path: Path) -> None:
    """The report's score of held-out images equals that of the fold's head on them, to the rounding of its tokens."""
    report = train(a_run(meadow, ["soil", "kind"], optim={"epochs": 2}), tmp_path / "run")
    rows = [
        row["image"] for row in rows_of(tmp_path / "run" / "out_of_fold.csv") if row["fold"] == "0"
    ]
    table = pd.read_csv(meadow)
    table = table[table["image"].isin(rows)]
    found = evaluate(tmp_path / "run" / "heads" / "fold-0.safetensors", meadow.parent, table)[
        "scores"
    ]
    expected = report["scores"]["soil"]["head"]["r2"]["folds"][0]
    assert found["soil"]["head"]["r2"]["pooled"] == pytest.approx(expected, abs=5e-3)
    assert (
        found["kind"]["head"]["accuracy"]["pooled"]
        == report["scores"]["kind"]["head"]["accuracy"]["folds"][0]
    )
    whole = evaluate(tmp_path / "run", meadow.parent, meadow)
    assert whole["images"] == COUNT and set(whole["scores"]) == {"soil", "kind", "overall"}


@pytest.mark.parametrize(
    ("least", "code", "word"),
    [
        ("soil=-1e9", 0, ""),
        ("soil=0.99", 1, "below 0.99"),
        ("sol=0", 1, "one of"),
        ("soil", 1, "TARGET=VALUE"),
    ],
)
def test_a_score_that_is_too_low_is_exit_code_1(
    meadow: Path, tmp_path: Path, least: str, code: int, word: str
) -> None:
    file = kit.saved_head(tmp_path / "head.safetensors", kit.head(*TASKS))
    ran = kit.cli(
        "evaluate", meadow.parent, "--heads", file, "--truth", meadow, "--at-least", least, "--json"
    )
    assert ran.code == code
    assert word in ran.out + ran.err
    if word == "below 0.99":
        score = ran.json["scores"]["soil"]["head"]["r2"]["pooled"]
        assert f"R² of soil is {score:.6g} for head, below 0.99" in ran.err
    if not code:
        assert [*ran.json["scores"]] == ["soil", "kind", "overall"]


def test_a_truth_whose_masks_are_all_missing_scores_no_image(meadow: Path, tiny: Backbone) -> None:
    head = DenseHead(64, [Task("cover", dim=3, kind="segmentation")])
    table = read_table(meadow, meadow.parent, ["soil"], labels="mask")
    table["labels"] = None

    report = evaluate(Predictor(head, tiny), None, table)

    assert report["scores"]["cover"]["head"]["images"] == 0
