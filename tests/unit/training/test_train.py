"""What a run predicts and reports: every kind of task on small tables, compared with plain computations."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.unit.training.meadow import (
    COUNT,
    a_run,
    rows_of,
    with_columns,
    with_gaps,
    write_meadow,
    write_rows,
)

from dinoneck import Backbone, HeadEnsemble, load_head
from dinoneck.metrics import class_counts, class_iou, confusion_matrix
from dinoneck.training import MemoryTokens, TrainConfig, run, train

pytestmark = pytest.mark.slow

SHARES = ("soil", "crop", "weed")
# rows in which each is known
CROP, KIND, MASK = range(8), range(3, 11), (0, 4, 5, 6, 7, 8, 9, 10, 11)


def trained(config: TrainConfig, out: Path, **options: Any) -> dict[str, Any]:
    """The report, which is also the file: all its numbers are finite."""
    report = train(config, out, **options)
    assert json.loads((out / "report.json").read_text()) == report
    return report


def numbers(rows: list[dict[str, str]], column: str) -> Any:
    return np.array([float(row[column]) for row in rows])


def test_numbers_in_groups(meadow: Path, tiny: Backbone, tmp_path: Path) -> None:
    data = {"csv": str(meadow), "targets": ["crop", "weed"], "minimum": 0, "unit": "g"}
    config = a_run(None, data=data, folds={"group": ["place"]}, predict_with="head")
    report = trained(config, tmp_path)
    rows = rows_of(tmp_path / "out_of_fold.csv")
    assert len(rows) == report["images"] == report["predicted"] == COUNT
    assert report["groups"] == 4
    assert TrainConfig.from_dict(report["config"]) == config
    assert len({(int(row["image"][:2]) // 3, row["fold"]) for row in rows}) == 4, (
        "a place is in one fold"
    )
    metrics = pytest.importorskip("sklearn.metrics")
    for method in ("head", "linear", "average"):
        pairs = [
            (numbers(rows, name), numbers(rows, f"{name} ({method})")) for name in ("crop", "weed")
        ]
        scores = [metrics.r2_score(*pair) for pair in pairs]
        own = {name: report["scores"][name][method] for name in ("crop", "weed", "overall")}
        assert [own["crop"]["r2"]["pooled"], own["weed"]["r2"]["pooled"]] == pytest.approx(
            scores, abs=1e-4
        )
        assert own["overall"]["r2"]["pooled"] == pytest.approx(np.mean(scores), abs=1e-4)
        assert own["crop"]["mae"]["pooled"] == pytest.approx(
            metrics.mean_absolute_error(*pairs[0]), rel=1e-4
        )
    assert (numbers(rows, "crop (head)") >= 0).all()
    source = MemoryTokens.extract(
        tiny, [meadow.parent / row["image"] for row in rows], [row["image"] for row in rows]
    )
    for number in range(2):
        head = load_head(tmp_path / "heads" / f"fold-{number}.safetensors")
        held_out = [i for i, row in enumerate(rows) if row["fold"] == str(number)]
        predicted = head.predict(source.batch([source.ids[i] for i in held_out]))
        np.testing.assert_allclose(
            predicted["weed"][:, 0], numbers(rows, "weed (head)")[held_out], rtol=1e-3, atol=0.1
        )
        crop = head.tasks[0]
        train_rows = [i for i in range(COUNT) if i not in held_out]
        assert crop.transform is not None
        assert crop.transform.mean == pytest.approx(numbers(rows, "crop")[train_rows].mean())
        assert (crop.unit, crop.minimum) == ("g", 0.0)
    whole = load_head(tmp_path / "head.safetensors")
    folds = [load_head(tmp_path / "heads" / f"fold-{number}.safetensors") for number in range(2)]
    tokens = source.batch(source.ids)
    expected = torch.stack([head.predict(tokens)["crop"] for head in folds]).mean(dim=0)
    torch.testing.assert_close(whole.predict(tokens)["crop"], expected)


def test_masks_are_scored_by_the_pixels_of_the_prepared_images(
    meadow: Path, tiny: Backbone, tmp_path: Path
) -> None:
    labels = {"csv": str(meadow), "labels": "mask", "classes": list(SHARES), "size": [64, 128]}
    options = {"optim": {"epochs": 12, "lr": 1e-2}, "head": {"type": "dense"}}
    report = trained(a_run(None, data=labels, **options), tmp_path)
    scores = report["scores"]["segmentation"]
    assert set(scores) == {"head", "linear", "average"}
    matrix = np.zeros((3, 3), int)
    preprocess = tiny.preprocess.changed(size=(64, 128))
    for row in rows_of(tmp_path / "out_of_fold.csv"):
        head = load_head(tmp_path / "heads" / f"fold-{row['fold']}.safetensors")
        source = MemoryTokens.extract(
            tiny, [meadow.parent / row["image"]], ["a"], preprocess=preprocess
        )
        maps = head.predict(source.batch(["a"]))["segmentation"]
        predicted = torch.nn.functional.interpolate(maps, (64, 128), mode="bilinear").argmax(dim=1)[
            0
        ]
        with Image.open(meadow.parent / row["image"].replace(".png", "-mask.png")) as mask:
            true = np.asarray(mask).repeat(2, axis=0).repeat(2, axis=1)
        matrix += confusion_matrix(true, predicted, num_classes=3)
    assert matrix.sum() == COUNT * 64 * 128
    assert np.abs(matrix - scores["head"]["confusion_matrix"]).sum() <= 4, (
        "ties of the argmax aside"
    )
    each = class_iou(class_counts(matrix))
    assert scores["head"]["mean_iou"]["pooled"] == pytest.approx(np.mean(each), abs=1e-4)
    assert [*scores["head"]["iou"].values()] == pytest.approx([*each], abs=1e-4)
    assert scores["head"]["pixel_accuracy"]["pooled"] > 0.9


def test_composed_outputs_count_by_the_weights_of_the_config(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # parts come first, in the order of the ratio
    weights = {"green": 0.5, "soil": 0.1, "crop": 0.25, "weed": 0.15}
    made = {
        "total": "total",
        "ratio": "shares",
        "sums": {"green": ["crop", "weed"]},
        "weights": weights,
    }
    options: dict[str, Any] = {
        "tasks": {"total": {}, "shares": {"kind": "ratio", "columns": list(SHARES)}}
    }
    losses, real = [], run.fit
    monkeypatch.setattr(
        run, "fit", lambda *given, **own: (losses.append(own["loss"]), real(*given, **own))[1]
    )
    trained(a_run(meadow, ["green"], compositions={"grams": made}, **options), tmp_path / "run")
    assert losses and all(loss.compositions[0].weights == (0.1, 0.25, 0.15, 0.5) for loss in losses)


def test_sums_follow_their_parts(csiro: Path, tmp_path: Path) -> None:
    parts, sums = (
        ["Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g"],
        {"GDM_g": ["Dry_Clover_g", "Dry_Green_g"]},
    )
    sums["Dry_Total_g"] = parts
    own = {
        "compositions": {"masses": {"sums": sums}},
        "folds": {"count": 2, "group": ["State", "Sampling_Date"]},
    }
    data = {
        "csv": str(csiro / "table.csv"),
        "targets": [*parts, *sums],
        "minimum": 0.0,
        "unit": "g",
    }
    report = trained(a_run(None, data=data, **own), tmp_path)
    head = load_head(tmp_path / "heads" / "fold-0.safetensors")
    assert {task.name: task.unit for task in head.tasks} == dict.fromkeys(parts, "g")
    rows = rows_of(tmp_path / "out_of_fold.csv")
    for method in ("head", "linear"):
        clover, dead, green = (
            numbers(rows, f"Dry_{name}_g ({method})") for name in ("Clover", "Dead", "Green")
        )
        assert min(clover.min(), dead.min(), green.min()) >= 0
        np.testing.assert_allclose(
            numbers(rows, f"GDM_g ({method})"), clover + green, rtol=1e-4, atol=1e-3
        )
        total = numbers(rows, f"Dry_Total_g ({method})")
        np.testing.assert_allclose(total, clover + green + dead, rtol=1e-4, atol=1e-3)
    assert {*report["scores"]} == {*parts, *sums, "overall"}


def test_a_sum_of_a_map_and_a_number_is_scored_of_the_linear_baseline_too(
    meadow: Path, tmp_path: Path
) -> None:
    config = a_run(
        meadow,
        data={"targets": ["crop", "weed", "green"]},
        head={"type": "fpn", "fpn_dim": 8},
        tasks={"crop": {"kind": "density"}},
        compositions={"plants": {"sums": {"green": ["crop", "weed"]}}},
        optim={"epochs": 1},
    )

    report = trained(config, tmp_path)

    rows = rows_of(tmp_path / "out_of_fold.csv")
    for method in ("head", "linear", "average"):
        crop = numbers(rows, f"crop ({method})")
        weed = numbers(rows, f"weed ({method})")
        green = numbers(rows, f"green ({method})")
        np.testing.assert_allclose(green, crop + weed, rtol=1e-4, atol=1e-3)
    # its two heads are linear layers on patches and on their mean, and none has both parts
    assert report["choice"]["methods"]["linear"]["lacks"] == "value of plants"
    assert report["predicts"]["method"] != "linear"


def test_folds_of_a_column_and_of_classes(
    meadow: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(name: str, own: dict[str, Any]) -> list[dict[str, str]]:
        trained(a_run(meadow, ["crop", "kind"], optim={"epochs": 1}, folds=own), tmp_path / name)
        return rows_of(tmp_path / name / "out_of_fold.csv")

    table = rows_of(meadow)
    parts, kinds = ({row["image"]: row[name] for row in table} for name in ("part", "kind"))
    with caplog.at_level(logging.WARNING):
        rows = run("column", {"column": "part", "group": ["place"]})
    assert "4 groups" in caplog.text and "'place 0'" in caplog.text
    assert {(parts[row["image"]], row["fold"]) for row in rows} == {("early", "0"), ("late", "1")}
    rows = run("stratified", {"stratify": "kind", "count": 4})
    for fold in "0123":
        assert sorted(kinds[row["image"]] for row in rows if row["fold"] == fold) == [
            "bare",
            "crop",
            "weedy",
        ]
    rows = run("only", {"only": 1, "column": "part"})
    assert {parts[row["image"]] for row in rows} == {"late"}
    assert [path.name for path in (tmp_path / "only" / "heads").iterdir()] == ["fold-1.safetensors"]
    report = json.loads((tmp_path / "only" / "report.json").read_text())
    assert (report["images"], report["predicted"]) == (COUNT, 6)


def test_one_fold_is_one_head_on_all_images(meadow: Path, tmp_path: Path) -> None:
    report = trained(a_run(meadow, ["crop", "kind"], folds={"count": 1}), tmp_path)
    assert (report["images"], report["predicted"], report["scores"]) == (COUNT, 0, {})
    assert rows_of(tmp_path / "out_of_fold.csv") == []
    head = load_head(tmp_path / "head.safetensors")
    assert not isinstance(head, HeadEnsemble)
    transform = head.tasks[0].transform
    assert transform is not None and transform.mean == pytest.approx(
        numbers(rows_of(meadow), "crop").mean()
    )


def test_held_out_images_and_values_change_no_head_and_no_baseline(
    meadow: Path, tmp_path: Path
) -> None:
    """The pixels and values of the images that are held out are replaced; what they are predicted from is not."""
    rows, states = rows_of(meadow), []
    for name, poisoned in (("clean", False), ("poisoned", True)):
        table = pd.DataFrame(index=[row["image"] for row in rows])
        images = [np.asarray(Image.open(meadow.parent / row["image"])) for row in rows]
        table["images"] = [255 - x if poisoned and i % 2 else x for i, x in enumerate(images)]
        crop = numbers(rows, "crop")
        table["crop"] = np.where(poisoned & (np.arange(COUNT) % 2 == 1), 1e5, crop)
        kinds = ["bare" if poisoned and i % 2 else row["kind"] for i, row in enumerate(rows)]
        table["kind"] = pd.Categorical(kinds, ["bare", "crop", "weedy"])
        table["fold"] = np.arange(COUNT) % 2
        config = a_run(None, folds={"column": "fold", "only": 1}, predict_with="average")  # type: ignore[arg-type]
        trained(config, tmp_path / name, table=table)
        states.append(load_head(tmp_path / name / "head.safetensors").state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(x, states[1][name]) for name, x in states[0].items())


def test_a_run_predicts_with_the_average_of_head_and_baseline(
    meadow: Path, tiny: Backbone, tmp_path: Path
) -> None:
    config = a_run(meadow, ["crop"])
    plain = trained(config, tmp_path / "plain")
    report = trained(config.changed(predict_with="average"), tmp_path / "both")
    assert report["scores"] == plain["scores"]
    rows = rows_of(tmp_path / "both" / "out_of_fold.csv")
    source = MemoryTokens.extract(
        tiny, [meadow.parent / row["image"] for row in rows], [row["image"] for row in rows]
    )
    tokens, each = source.batch(source.ids), []
    for fold in range(2):
        linear = load_head(tmp_path / "both" / "baselines" / f"fold-{fold}.safetensors")
        own = load_head(tmp_path / "plain" / "heads" / f"fold-{fold}.safetensors").predict(tokens)[
            "crop"
        ]
        each.append((own + linear.predict(tokens)["crop"]) / 2)
        held_out = [i for i, row in enumerate(rows) if row["fold"] == str(fold)]
        np.testing.assert_allclose(
            each[-1][held_out, 0], numbers(rows, "crop (average)")[held_out], rtol=1e-3
        )
    whole = load_head(tmp_path / "both" / "head.safetensors").predict(tokens)["crop"]
    torch.testing.assert_close(whole, torch.stack(each).mean(dim=0))


def test_every_kind_of_task_is_trained_and_scored(meadow: Path, tmp_path: Path) -> None:
    """Classes, auxiliary values with gaps, a ratio, a total, their composition, and shares per patch."""
    config = a_run(
        None,
        data={
            "csv": str(meadow),
            "targets": ["kind", "green"],
            "aux_targets": ["height"],
            "labels": "mask",
            "classes": list(SHARES),
            "minimum": 0,
        },
        head={"type": "fpn", "fpn_dim": 8},
        predict_with="average",
        tasks={
            "total": {},
            "shares": {"kind": "ratio", "columns": list(SHARES)},
            "crop map": {"kind": "dense"},
        },
        compositions={
            "grams": {"total": "total", "ratio": "shares", "sums": {"green": ["crop", "weed"]}}
        },
    )
    report = trained(config, tmp_path)
    names = {
        *SHARES,
        "total",
        "green",
        "kind",
        "height",
        "overall",
        *(f"crop map {name}" for name in SHARES),
    }
    assert {*report["scores"]} == names
    for methods in report["scores"].values():
        assert {"head", "linear", "average"} <= {*methods}
        assert all(
            (own.get("r2") or own["accuracy"])["pooled"] is not None for own in methods.values()
        )
    rows = rows_of(tmp_path / "out_of_fold.csv")
    soil, crop, weed, green, total = (
        numbers(rows, f"{name} (head)") for name in (*SHARES, "green", "total")
    )
    np.testing.assert_allclose(crop + weed, green, rtol=1e-5)
    np.testing.assert_allclose(soil + green, total, rtol=1e-5)


def test_a_dpt_neck_reads_four_layers_of_a_segmentation_into_a_pyramid(
    meadow: Path, tmp_path: Path
) -> None:
    data = {"csv": str(meadow), "labels": "mask", "classes": list(SHARES)}
    config = a_run(
        None,
        data=data,
        head={"type": "dpt_neck"},
        optim={"epochs": 1},
        folds={"only": 0},
    )
    report = trained(config, tmp_path)
    head = load_head(tmp_path / "head.safetensors")
    assert type(head).__name__ == "PyramidHead"
    assert report["backbone"]["layers"] == [0, 2, 3, 5]
    assert {"head", "linear", "average"} == {*report["scores"]["segmentation"]}


def test_numbers_are_classes_where_the_task_is_a_classification(tmp_path: Path) -> None:
    code = [("10", "9.0", "2", "10", "9", "2.00")[i % 6] for i in range(COUNT)]
    table = with_columns(write_meadow(tmp_path), code=code)
    report = trained(a_run(table, tasks={"code": {"kind": "classification"}}), tmp_path / "run")
    assert report["scores"]["code"]["head"]["labels"] == ["2", "9", "10"]
    assert [row["code"] for row in rows_of(tmp_path / "run" / "out_of_fold.csv")][:3] == [
        "10",
        "9",
        "2",
    ]


def test_pixels_without_a_label_count_for_nothing(tmp_path: Path) -> None:
    data, labels = (
        {"csv": str(write_meadow(tmp_path)), "labels": "mask", "targets": []},
        list[Any](),
    )
    for path in sorted(tmp_path.glob("*-mask.png")):
        mask = np.array(Image.open(path))
        mask[24:] = 255
        Image.fromarray(mask).save(path)
        labels.append(mask)
    run = a_run(None, head={"type": "dense"}, data={**data, "nodata": [255]}, optim={"epochs": 1})
    report = trained(run, tmp_path / "run")
    whole = np.bincount(np.concatenate([mask[mask < 255] for mask in labels]), minlength=3)
    for own in report["scores"]["segmentation"].values():
        assert np.sum(own["confusion_matrix"], axis=1).tolist() == whole.tolist()


def test_scores_rest_on_the_images_that_are_known(tmp_path: Path) -> None:
    """They are those of scikit-learn on the file of predictions; each image has one value at least."""
    metrics, meadow = pytest.importorskip("sklearn.metrics"), write_meadow(tmp_path)
    data = {
        "csv": str(with_gaps(meadow, crop=CROP, kind=KIND, mask=MASK)),
        "targets": ["crop"],
        "labels": "mask",
    }
    own = {"head": {"type": "fpn", "fpn_dim": 8}, "folds": {"column": "part"}}
    report = trained(a_run(None, data={**data, "aux_targets": ["kind"]}, **own), tmp_path / "run")
    rows, scores = rows_of(tmp_path / "run" / "out_of_fold.csv"), report["scores"]
    assert {row["image"] for row in rows if row["crop"]} == {f"{i:02}.png" for i in CROP}
    known = [row for row in rows if row["crop"]]
    for method, score in scores["crop"].items():
        assert all(row[f"crop ({method})"] for row in rows), "every image is predicted"
        true, pred = numbers(known, "crop"), numbers(known, f"crop ({method})")
        assert score["images"] == 8
        assert score["r2"]["pooled"] == pytest.approx(metrics.r2_score(true, pred), abs=1e-4)
        assert score["mae"]["pooled"] == pytest.approx(
            metrics.mean_absolute_error(true, pred), rel=1e-4
        )
    assert scores["kind"]["head"]["images"] == 8
    assert {
        each["head"]["images"] for name, each in scores.items() if name.startswith("cells ")
    } == {len(MASK)}


def test_two_data_sets_with_different_labels_are_one_table(tmp_path: Path) -> None:
    """Twelve images with a mass in one folder, twelve with a map of numbers in another one."""
    rows = rows_of(write_meadow(tmp_path))
    table: list[dict[str, Any]] = [
        {"image": row["image"], "mass": row["crop"], "nd": ""} for row in rows
    ]
    (tmp_path / "maps").mkdir()
    for i, row in enumerate(rows):
        with Image.open(tmp_path / row["image"]) as image:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "maps" / row["image"])
            values = np.asarray(image.convert("L"), np.float32) / 255
        Image.fromarray(values).save(tmp_path / "maps" / f"{i:02}.tif")
        table.append({"image": f"maps/{row['image']}", "mass": "", "nd": f"maps/{i:02}.tif"})
    csv = write_rows(tmp_path / "both.csv", table)
    data = {"csv": str(csv), "targets": ["mass"], "labels": "nd", "label_kind": "numbers"}
    config = a_run(None, data=data, head={"type": "fpn", "fpn_dim": 8}, folds={"count": 3})
    report = trained(config, tmp_path / "run")
    assert (report["images"], report["predicted"]) == (24, 24)
    assert [report["scores"][name]["head"]["images"] for name in ("mass", "nd")] == [12, 12]
