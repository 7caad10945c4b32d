"""What a run predicts and reports: every kind of task on small tables, compared with plain computations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dinoneck.training.inputs import read_data
from PIL import Image
from tests.unit.training.meadow import COUNT, a_run, one_image_only, rows_of

from dinoneck import Backbone, DataError, DinoneckError, load_head
from dinoneck.data import Pasture
from dinoneck.training import (
    CrossValidation,
    MemoryTokens,
    TrainConfig,
    confusion_matrix,
    cross_validate,
    mean_iou,
    r2,
    train,
)
from dinoneck.training.table import Table


def trained(config: TrainConfig, out: Path, **options: Any) -> tuple[CrossValidation, dict[str, Any]]:
    result = train(config, out, **options)
    return result, json.loads((out / "report.json").read_text())


def numbers(rows: list[dict[str, str]], column: str) -> Any:
    return np.array([float(row[column]) for row in rows])


def test_numbers_in_groups(meadow: Path, tiny: Backbone, tmp_path: Path) -> None:
    data = {"csv": str(meadow), "targets": ["crop", "weed"], "minimum": 0, "unit": "g"}
    config = a_run(None, data=data, folds={"group": ["place"]})
    result, report = trained(config, tmp_path)
    rows = rows_of(tmp_path / "out_of_fold.csv")
    assert len(rows) == report["images"] == report["predicted"] == COUNT
    assert report["groups"] == 4
    assert TrainConfig.from_dict(report["config"]) == config
    places = {row["image"]: row["place"] for row in rows_of(meadow)}
    assert len({(places[row["image"]], row["fold"]) for row in rows}) == 4, "a place is in one fold"
    for method in ("head", "token ridge", "token knn", "colour ridge"):
        scores = [r2(numbers(rows, name), numbers(rows, f"{name} ({method})")) for name in ("crop", "weed")]
        own = report["scores"][method]
        assert [own["crop"], own["weed"]] == pytest.approx(scores, abs=1e-4)
        assert own["overall"] == pytest.approx(np.mean(scores), abs=1e-4)
    assert (numbers(rows, "crop (head)") >= 0).all()
    source = MemoryTokens.extract(tiny, [meadow.parent / row["image"] for row in rows], [row["image"] for row in rows])
    for number in range(2):
        head = load_head(tmp_path / "heads" / f"fold-{number}.safetensors")
        held_out = [i for i, row in enumerate(rows) if row["fold"] == str(number)]
        predicted = head.predict(source.batch([source.ids[i] for i in held_out]))
        np.testing.assert_allclose(predicted["weed"][:, 0], numbers(rows, "weed (head)")[held_out], rtol=1e-3, atol=0.1)
        crop = head.tasks[0]
        train_rows = [i for i in range(COUNT) if i not in held_out]
        assert crop.transform is not None
        assert crop.transform.mean == pytest.approx(numbers(rows, "crop")[train_rows].mean())
        assert (crop.unit, crop.minimum) == ("g", 0.0)
    assert result.heads[0].tasks[0].name == "crop"


def test_classes_that_colours_separate_are_all_right(meadow: Path, tmp_path: Path) -> None:
    config = a_run(meadow, ["kind"], optim={"epochs": 12, "lr": 1e-2}, folds={"stratify": "kind"})
    _, report = trained(config, tmp_path)
    scores = report["classes"]["kind"]["head"]
    assert scores["labels"] == ["bare", "crop", "weedy"]
    assert scores["accuracy"]["pooled"] == scores["macro_f1"]["pooled"] == 1
    assert scores["confusion_matrix"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    head = load_head(tmp_path / "heads" / "fold-0.safetensors")
    assert (head.tasks[0].kind, head.tasks[0].labels) == ("classification", ("bare", "crop", "weedy"))


def test_masks_are_scored_by_the_pixels_of_the_prepared_images(meadow: Path, tiny: Backbone, tmp_path: Path) -> None:
    labels = {"csv": str(meadow), "labels": "mask", "classes": ["soil", "crop", "weed"], "size": [64, 128]}
    _, report = trained(a_run(None, data=labels, optim={"epochs": 12, "lr": 1e-2}), tmp_path)
    scores = report["masks"]["segmentation"]
    assert set(scores) == {"head", "most frequent class"}
    matrix = np.zeros((3, 3), int)
    preprocess = tiny.preprocess.changed(size=(64, 128))
    for row in rows_of(tmp_path / "out_of_fold.csv"):
        head = load_head(tmp_path / "heads" / f"fold-{row['fold']}.safetensors")
        source = MemoryTokens.extract(tiny, [meadow.parent / row["image"]], ["a"], preprocess=preprocess)
        maps = head.predict(source.batch(["a"]))["segmentation"]
        predicted = torch.nn.functional.interpolate(maps, (64, 128), mode="bilinear").argmax(dim=1)[0]
        with Image.open(meadow.parent / row["image"].replace(".png", "-mask.png")) as mask:
            true = np.asarray(mask).repeat(2, axis=0).repeat(2, axis=1)
        matrix += confusion_matrix(true, predicted, num_classes=3)
    assert matrix.sum() == COUNT * 64 * 128
    assert np.abs(matrix - scores["head"]["confusion_matrix"]).sum() <= 4, "ties of the argmax aside"
    assert scores["head"]["mean_iou"]["pooled"] == pytest.approx(mean_iou(matrix)[0], abs=1e-4)
    assert [*scores["head"]["iou"].values()] == pytest.approx(mean_iou(matrix)[1], abs=1e-4)
    assert scores["head"]["pixel_accuracy"]["pooled"] > 0.9 > 0.5 > scores["most frequent class"]["mean_iou"]["pooled"]


def test_shares_times_a_total_add_up(meadow: Path, tmp_path: Path) -> None:
    config = a_run(
        meadow,
        ["green"],
        tasks={"total": {"minimum": 0}, "shares": {"kind": "ratio", "columns": ["soil", "crop", "weed"]}},
        compositions={"grams": {"total": "total", "ratio": "shares", "sums": {"green": ["crop", "weed"]}}},
        losses={"weighting": "uncertainty"},
    )
    _, report = trained(config, tmp_path)
    rows = rows_of(tmp_path / "out_of_fold.csv")
    soil, crop, weed, green, total = (
        numbers(rows, f"{name} (head)") for name in ("soil", "crop", "weed", "green", "total")
    )
    np.testing.assert_allclose(crop + weed, green, rtol=1e-5)
    np.testing.assert_allclose(soil + green, total, rtol=1e-5)
    assert set(report["values"]) == {"soil", "crop", "weed", "green", "total"}
    assert report["scores"]["head"]["green"] == pytest.approx(r2(numbers(rows, "green"), green), abs=1e-4)
    head = load_head(tmp_path / "heads" / "fold-1.safetensors")
    assert [own.name for own in head.compositions] == ["grams"]


def test_a_ratio_alone_is_scored_by_its_shares(meadow: Path, tmp_path: Path) -> None:
    config = a_run(meadow, tasks={"shares": {"kind": "ratio", "columns": ["soil", "crop", "weed"]}})
    _, report = trained(config, tmp_path)
    rows, table = rows_of(tmp_path / "out_of_fold.csv"), rows_of(meadow)
    shares = {name: numbers(rows, f"{name} (head)") for name in ("soil", "crop", "weed")}
    np.testing.assert_allclose(sum(shares.values()), np.ones(COUNT), rtol=1e-5)
    true = numbers(table, "crop") / numbers(table, "total")
    np.testing.assert_allclose(numbers(rows, "crop"), true, rtol=1e-5)
    assert report["mae"]["head"]["crop"] == pytest.approx(np.abs(shares["crop"] - true).mean(), abs=1e-4)


def test_columns_with_gaps_help(meadow: Path, tmp_path: Path) -> None:
    data = {"csv": str(meadow), "targets": ["crop"], "aux_targets": ["height", "weather"]}
    result, report = trained(a_run(None, data=data), tmp_path / "a")
    assert set(report["scores"]["head"]) == {"crop", "overall", "worst fold"}
    height, weather = (numbers_or_nan(meadow, "height"), [row["weather"] for row in rows_of(meadow)])
    known = ~np.isnan(height)
    assert known.sum() == COUNT - 1
    own = report["auxiliary_scores"]
    assert own["height"] == pytest.approx(r2(height[known], result.auxiliary["height"][known, 0]))
    picked = np.array(["rain", "sun"])[result.auxiliary["weather"].argmax(axis=1)]
    assert own["weather"] == np.mean(
        [is_right for is_right, name in zip(picked == weather, weather, strict=True) if name]
    )
    assert {task.name: task.weight for task in result.heads[0].tasks} == {"crop": 1.0, "height": 0.05, "weather": 0.05}
    own_weight = {"height": {"auxiliary": True, "weight": 0.3, "loss": "smooth_l1", "beta": 2}}
    config = a_run(meadow, ["crop"], tasks=own_weight, losses={"aux_weight": 0.7}, folds={"only": 1})
    result, report = trained(config, tmp_path / "b")
    [height_task, crop] = result.heads[0].tasks
    assert (height_task.weight, height_task.loss, height_task.beta, crop.weight) == (0.3, "smooth_l1", 2.0, 1.0)
    assert [*report["auxiliary_scores"]] == ["height"]


def numbers_or_nan(path: Path, column: str) -> Any:
    return np.array([float(row[column] or "nan") for row in rows_of(path)])


def test_sums_follow_their_parts(csiro: Path, tmp_path: Path) -> None:
    parts, sums = ["Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g"], {"GDM_g": ["Dry_Clover_g", "Dry_Green_g"]}
    sums["Dry_Total_g"] = parts
    own = {"compositions": {"masses": {"sums": sums}}, "folds": {"count": 2, "group": ["State", "Sampling_Date"]}}
    config = a_run(csiro / "table.csv", [*parts, *sums], **own)
    config = replace(config, data=replace(config.data, minimum=0.0, unit="g"))
    result, report = trained(config, tmp_path)
    table = read_data(config)
    assert {task.name: task.unit for task in result.heads[0].tasks} == dict.fromkeys(parts, "g")
    rows = rows_of(tmp_path / "out_of_fold.csv")
    clover, dead, green = (numbers(rows, f"Dry_{name}_g (head)") for name in ("Clover", "Dead", "Green"))
    assert min(clover.min(), dead.min(), green.min()) >= 0
    np.testing.assert_allclose(numbers(rows, "GDM_g (head)"), clover + green, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(numbers(rows, "Dry_Total_g (head)"), clover + green + dead, rtol=1e-4, atol=1e-3)
    predicted = np.stack([numbers(rows, f"{name} (head)") for name in table.targets], axis=1)
    true = np.stack([numbers(rows, name) for name in table.targets], axis=1)
    scores = [r2(true[:, i], predicted[:, i]) for i in range(5)]
    assert [report["scores"]["head"][name] for name in table.targets] == pytest.approx(scores, abs=1e-3)
    folds = {row["image"]: row["fold"] for row in rows}
    assert len(set(zip(table.groups or (), (folds[name] for name in table.ids), strict=True))) == len(
        set(table.groups or ())
    )


def test_folds_of_a_column_of_classes_and_of_the_caller(meadow: Path, tmp_path: Path) -> None:
    def run(name: str, own: dict[str, Any], **options: Any) -> list[dict[str, str]]:
        trained(a_run(meadow, ["crop"], optim={"epochs": 1}, folds=own), tmp_path / name, **options)
        return rows_of(tmp_path / name / "out_of_fold.csv")

    table = rows_of(meadow)
    parts = {row["image"]: row["part"] for row in table}
    rows = run("column", {"column": "part"})
    assert {(parts[row["image"]], row["fold"]) for row in rows} == {("early", "0"), ("late", "1")}
    config = a_run(None, data={"csv": str(meadow), "targets": ["crop"], "aux_targets": ["kind"]}, optim={"epochs": 1},
                   folds={"stratify": "kind", "count": 4})  # fmt: skip
    result, _ = trained(config, tmp_path / "stratified")
    kinds = [row["kind"] for row in table]
    assert all(sorted(kinds[row] for row in valid) == ["bare", "crop", "weedy"] for _, valid in result.folds)
    rows = run("own", {}, folds=[(range(6), range(8, 12))])
    assert [(row["image"], row["fold"]) for row in rows] == [(f"{i:02}.png", "0") for i in range(8, 12)]
    report = json.loads((tmp_path / "own" / "report.json").read_text())
    assert (report["images"], report["predicted"]) == (COUNT, 4)
    rows = run("only", {"only": 1, "column": "part"})
    assert {parts[row["image"]] for row in rows} == {"late"}
    assert [path.name for path in (tmp_path / "only" / "heads").iterdir()] == ["fold-1.safetensors"]
    with pytest.raises(DataError, match="fold 0 trains on row 1 and holds it out"):
        run("wrong", {}, folds=[([0, 1], [1, 2])])
    assert not (tmp_path / "wrong").exists()


def test_a_data_frame_is_a_table(meadow: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    config = a_run(None, ["crop", "kind"], data={"images": str(meadow.parent), "targets": ["crop", "kind"]})
    frame = pandas.read_csv(meadow)
    result, report = trained(config, tmp_path / "frame", table=frame)
    other, _ = trained(a_run(meadow, ["crop", "kind"]), tmp_path / "file")
    assert result.out_of_fold() == other.out_of_fold()
    assert report["images"] == COUNT
    shown = result.to_frame()
    assert [*shown.index] == [*frame["image"]]
    assert [*shown["crop"]] == pytest.approx([*frame["crop"]])
    assert r2(shown["crop"], shown["crop (head)"]) == pytest.approx(report["scores"]["head"]["crop"], abs=1e-4)


OWN = """
from collections.abc import Sequence
import torch
from torch import nn
import dinoneck
from dinoneck import FeaturePyramid, Task
from dinoneck.heads import Head
from dinoneck.necks import Neck

@dinoneck.register
class MeadowHead(Head):
    def __init__(self, embed_dim: int, tasks: Sequence[Task], width: int = 8):
        super().__init__()
        self.embed_dim = embed_dim
        self._set_tasks(tasks, (), "regression", "classification")
        self.width = width
        self.body = nn.ModuleList(nn.Linear(embed_dim, t.dim) for t in self.tasks)

    def forward(self, tokens, **plain):
        x = self._tokens(tokens, **plain).last.patches[0].mean(1)
        return {t.name: body(x) for t, body in zip(self.tasks, self.body)}

@dinoneck.register
class MeadowNeck(Neck):
    def __init__(self, embed_dim: int, out_channels: int = 16, patch_size: int = 16):
        super().__init__()
        self.embed_dim, self.out_channels, self.patch_size = embed_dim, out_channels, patch_size
        self.strides = (patch_size,)
        self.proj = nn.Conv2d(embed_dim, out_channels, 1)

    def forward(self, tokens, images=None, **plain):
        return FeaturePyramid((self.proj(tokens.last.maps()[0]),), self.strides)
"""


@pytest.mark.parametrize(
    ("head", "argument"),
    [
        ({"type": "meadow_head", "width": 5}, {"width": 5}),
        ({"type": "meadow_neck", "out_channels": 6}, {}),
        ({"type": "pyramid", "neck": {"type": "dpt", "out_channels": 8}}, {}),
        ({"type": "vit_fpn", "fpn_dim": 8}, {}),
    ],
)
def test_heads_and_necks_by_name(meadow: Path, tmp_path: Path, head: dict[str, Any], argument: dict[str, int]) -> None:
    own = tmp_path / "own.py"
    own.write_text(OWN)
    config = a_run(meadow, ["crop", "kind"], head=head, imports=[str(own)], optim={"epochs": 1}, folds={"only": 0})
    result, report = trained(config, tmp_path / "run")
    loaded = load_head(tmp_path / "run" / "heads" / "fold-0.safetensors")
    assert [task.name for task in loaded.tasks] == ["crop", "kind"]
    assert type(loaded) is type(result.heads[0])
    assert argument.items() <= loaded.config.items()
    assert report["config"]["head"] == head


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": {"type": "fpn", "fpn_dims": 8}}, "FPNHead has no argument 'fpn_dims'. Did you mean 'fpn_dim'"),
        ({"tasks": {"crops": {}}}, "no column 'crops'. Did you mean 'crop'"),
        ({"tasks": {"both": {"columns": ["crop", "kind"]}}}, "classes are one column"),
        ({"tasks": {"kind": {"kind": "regression"}}}, "'kind' is of kind 'regression', for num.*classes bare, crop"),
        ({"tasks": {"crop": {"columns": ["weed"]}}}, "the target 'crop' needs a task of that name"),
        ({"tasks": {"x": {"columns": ["crop"]}, "y": {"columns": ["crop"]}}}, "'x' and 'y' both predict column 'crop'"),
        ({"tasks": {"kind": {"log1p": True}}}, "kind 'classification', which has no 'log1p'"),
        ({"tasks": {"crop": {"beta": 2.0}}}, "beta 2, which belongs to loss: smooth_l1"),
        ({"tasks": {"m": {"kind": "dense"}}}, "task m is per cell; name its masks with data.labels"),
        ({"data": {"classes": ["a", "b"]}}, "data.classes describes masks; name them with data.labels"),
        ({"data": {"views": 2}}, "data.views is 2 without a store"),
        ({"tasks": {"t": {"kind": "ratio", "columns": ["crop", "weed"]}},
          "compositions": {"m": {"total": "total", "ratio": "t"}}}, "expected two of the tasks"),
        ({"folds": {"stratify": "place"}}, "folds.stratify is 'place'; expected one of the targets"),
        ({"data": {"labels": "mask", "targets": ["kind"]}}, "task 'kind' is 'classification'. FPNHead and PyramidHead"),
        ({"folds": {"only": 2}}, r"fold is 2 and there are 2 folds; expected 0 \.\.\. 1"),
        ({"optim": {"cutmix_alpha": 1.0}}, "cutmix_alpha is 1.0; it is for images"),
        ({"backbone": {"name": "vit_small_patch16_dinov3", "seed": 1}}, "--random-backbone"),
        ({"data": {"boxes": "b.json"}}, "train_detector"),
        ({"data": {"targets": ["height"]}}, "nothing is known of the images '04.png'"),
        ({"data": {"labels": "mask", "label_kind": "numbers"}, "tasks": {"m": {"kind": "segmentation"}}}, "write 'cl"),
        ({"data": {"targets": []}}, "no target columns are named"),
        ({"tasks": {"r": {"kind": "ratio", "columns": ["crop"]}}}, "ratio of crop alone; name two columns"),
        ({"tasks": {"x": {"columns": ["crop", "crop"]}}}, "columns crop, crop; name each once"),
        ({"data": {"targets": ["crop", "crop"]}}, "targets are crop, crop; name each once"),
        ({"data": {"pasture": 10}}, "pasture is 10, the number of generated images, but .* is the data"),
        ({"data": {"csv": None, "targets": ["crop"]}}, "targets: these describe a table"),
        ({"head": {"type": "ensemble"}}, "HeadEnsemble needs the argument 'members'"),
        ({"tasks": {"crop": {"loss": "smooth_l1", "beta": 0.0}}}, "beta is 0.0; expected a positive number"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_the_work(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(MemoryTokens, "extract", one_image_only(MemoryTokens.extract))
    changes = {**changes, "data": {"csv": str(meadow), "targets": ["crop"], **changes.get("data", {})}}
    with pytest.raises(DinoneckError, match=message):
        train(a_run(None, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_source_in_memory_is_cross_validated(tiny: Backbone) -> None:
    """Nothing is written; the source may hold images that the table lacks, in another order."""
    whole = Pasture(size=(32, 64)).table(range(8))
    source = MemoryTokens.extract(tiny, whole["images"], whole.index)
    table = Table(
        tuple(whole.index[6:0:-1]), (), {"mass": np.arange(6.0), "kind": np.arange(6) % 2}, classes={"kind": ("a", "b")}
    )
    config = a_run(None, head={"type": "patch_mean", "hidden_dim": 4})
    result = cross_validate(config, table, source)
    assert [head.config["hidden_dim"] for head in result.heads] == [4, 4]
    assert np.isfinite(result.predictions["head"]).all()
    assert (result.classes["kind"]["head"] >= 0).all()
    for head, (_, valid) in zip(result.heads, result.folds, strict=True):
        predicted = head.predict(source.batch([table.ids[row] for row in valid]))["mass"][:, 0].double()
        np.testing.assert_allclose(predicted, result.predictions["head"][valid, 0], rtol=1e-5, atol=1e-6)
