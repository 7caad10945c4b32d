"""Numbers of images that are read from the map of a run, whose means they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tests.kit import cli
from tests.unit.training.meadow import a_run, files_of, rows_of, with_columns, write_meadow
from tests.unit.training.test_train_run import stopped

from dinoneck import (
    Backbone,
    CheckpointError,
    ConfigError,
    HeadEnsemble,
    Task,
    load_head,
)
from dinoneck.data import Preprocessing, run_names
from dinoneck.data.table import Table
from dinoneck.training import MemoryTokens, TrainConfig, engine, folder, train
from dinoneck.training.problem import Problem, read_problem
from dinoneck.training.run import prepare

NUM_IMAGES = 8
SIDE = 32  # px, of 2 x 2 patches
PREPARE = Preprocessing(16)
# of the 32 rows of pixels of each image those of the class crop, and its share
CROP_ROWS = [0, 4, 8, 12, 16, 20, 24, 28]
SHARES = np.array([0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875])


def masks() -> list[np.ndarray]:
    """A mask per image with crop, class 1, in its first rows."""
    drawn = []
    for rows in CROP_ROWS:
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[:rows] = 1
        drawn.append(mask)
    return drawn


def table_of_fields(**columns: Any) -> pd.DataFrame:
    """Eight images with masks of soil and crop, and further columns."""
    columns = {
        "images": [np.zeros((SIDE, SIDE, 3), np.uint8)] * NUM_IMAGES,
        "labels": masks(),
        **columns,
    }
    return pd.DataFrame(columns, index=[f"{i}.png" for i in range(NUM_IMAGES)])


def problem_of(table: pd.DataFrame, preprocess: Preprocessing = PREPARE, **groups: Any) -> Problem:
    """What a run on the table learns; the classes of its masks are soil and crop."""
    data = {"labels": "labels", "classes": ["soil", "crop"], **groups.pop("data", {})}
    config = TrainConfig.from_dict({"data": data, **groups})
    return read_problem(config, Table.from_frame(table), preprocess)


def crop_of(table: pd.DataFrame, preprocess: Preprocessing = PREPARE, **groups: Any) -> Task:
    """The task of the number crop."""
    tasks = {task.name: task for task in problem_of(table, preprocess, **groups).tasks}
    return tasks["crop"]


def with_gaps(values: Any, num_known: int) -> list[Any]:
    """The first values, and None for the others."""
    return [*values[:num_known], *[None] * (NUM_IMAGES - num_known)]


# what is read from the map


READ: dict[str, dict[str, Any]] = {
    "the share": {"crop": SHARES},
    "a share with errors below 0.02": {"crop": SHARES + 0.019},
    "numbers of some images": {"crop": with_gaps(SHARES, 5)},
}


@pytest.mark.parametrize("columns", READ.values(), ids=READ)
def test_a_number_that_is_the_share_of_its_class_is_read_from_the_map(
    columns: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    task = crop_of(table_of_fields(**columns))

    assert task.from_map == "cells"
    assert task.weight == (0.0,)
    [record] = caplog.records
    assert "'crop'" in record.getMessage()
    assert "--no-numbers-from-maps" in record.getMessage()


def test_numbers_and_masks_of_different_images_train_the_map_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Six images have both; the number of the seventh and eighth has a loss, as it has no mask."""
    table = table_of_fields(crop=SHARES, labels=with_gaps(masks(), 6))

    task = crop_of(table)

    assert (task.from_map, task.weight) == ("cells", (1.0,))
    assert "6 images" in caplog.text


def test_shares_are_those_of_the_labelled_pixels(caplog: pytest.LogCaptureFixture) -> None:
    """Half of each image has no label: of its 16 labelled rows the first 2 i are crop."""
    halves = []
    for i in range(NUM_IMAGES):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[: 2 * i] = 1
        mask[16:] = 255
        halves.append(mask)
    shares = np.array([0, 2, 4, 6, 8, 10, 12, 14]) / 16

    task = crop_of(table_of_fields(crop=shares, labels=halves), data={"nodata": [255]})

    assert task.from_map == "cells"
    assert "difference in 8 images is 0)" in caplog.text


def test_the_line_names_all_numbers_and_the_largest_difference(
    caplog: pytest.LogCaptureFixture,
) -> None:
    soil = 1 - SHARES
    soil[3] -= 0.015

    problem = problem_of(table_of_fields(crop=SHARES, soil=soil))

    assert [task.from_map for task in problem.tasks] == ["cells", "cells", None]
    [record] = caplog.records
    assert "'crop', 'soil' (the largest difference in 8 images is 0.015)" in record.getMessage()


def test_a_segmentation_is_read_too() -> None:
    tasks = {"classes": {"kind": "segmentation"}}

    assert crop_of(table_of_fields(crop=SHARES), tasks=tasks).from_map == "classes"


@pytest.mark.parametrize(
    ("error", "from_map"), [(0.6, "height map"), (0.8, None)], ids=["0.6 m", "0.8 m"]
)
def test_the_number_of_a_map_of_numbers_has_the_name_of_its_folder(
    error: float, from_map: str | None, tmp_path: Path
) -> None:
    """Heights may differ by 2 % of their range of 35 m, which are 0.7 m."""
    (tmp_path / "height").mkdir()
    means = np.array([0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 35.0])
    maps = [np.full((SIDE, SIDE), mean, np.float32) for mean in means]
    table = table_of_fields(height=means, labels=maps)
    table.loc["2.png", "height"] += error
    data = {"labels": str(tmp_path / "height"), "label_kind": "numbers", "classes": []}

    problem = problem_of(table, data=data)

    assert [task.from_map for task in problem.tasks] == [from_map, None]


def test_the_bounds_of_a_number_are_none_of_its_map() -> None:
    """A mean of clipped cells would be too high, or too low."""
    problem = problem_of(table_of_fields(crop=SHARES), data={"minimum": 0.0, "maximum": 1.0})

    assert [task.minimum for task in problem.tasks] == [0.0, None]
    assert [task.maximum for task in problem.tasks] == [1.0, None]


# what has a readout of its own


DIFFERENT = SHARES.copy()
DIFFERENT[5] += 0.021
KEPT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "it differs": ({"crop": DIFFERENT}, {}, "differs by up to 0.021 (of image '5.png')"),
    "per cent": ({"crop": 100 * SHARES}, {}, "are 100 times the map's; divide them by 100"),
    "few images": ({"crop": with_gaps(SHARES, 4)}, {}, "4 images with a number and a mask"),
    "the flag": (
        {"crop": SHARES},
        {"data": {"numbers_from_maps": False}},
        "numbers_from_maps is off",
    ),
    "auxiliary": (
        {"crop": SHARES, "mass": 2.0},
        {"data": {"targets": ["mass"], "aux_targets": ["crop"]}},
        "auxiliary",
    ),
    "another kind": ({"crop": SHARES}, {"tasks": {"crop": {"kind": "density"}}}, "'density'"),
    "a loss": ({"crop": SHARES}, {"tasks": {"crop": {"loss": "smooth_l1"}}}, "has loss"),
    "a weight": ({"crop": SHARES}, {"tasks": {"crop": {"weight": 2.0}}}, "has weight"),
    "log1p": ({"crop": SHARES}, {"tasks": {"crop": {"log1p": True}}}, "has log1p"),
    "an area": ({"crop": 2 * SHARES}, {"tasks": {"crop": {"area": 2.0}}}, ""),
    "a sum": (
        {"crop": SHARES, "mass": np.arange(8.0), "both": np.arange(8.0) + SHARES},
        {"compositions": {"sum": {"sums": {"both": ["crop", "mass"]}}}},
        "composition 'sum'",
    ),
    "a lower bound of the map": (
        {"crop": SHARES},
        {"tasks": {"cells": {"kind": "dense", "minimum": 0.0}}},
        "the map has a minimum",
    ),
    "an upper bound of the map": (
        {"crop": SHARES},
        {"tasks": {"cells": {"kind": "dense", "maximum": 1.0}}},
        "the map has a maximum",
    ),
}


@pytest.mark.parametrize(("columns", "groups", "reason"), KEPT.values(), ids=KEPT)
def test_a_number_that_follows_its_map_otherwise_is_named_with_the_reason(
    columns: dict[str, Any],
    groups: dict[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    task = crop_of(table_of_fields(**columns), **groups)

    assert task.from_map is None
    assert task.weight != (0.0,)
    messages = [record.getMessage() for record in caplog.records]
    if not reason:
        assert messages == []
        return
    [message] = messages
    assert message.startswith("the target 'crop' follows the mean over its map 'cells'")
    assert reason in message


def test_padding_is_no_part_of_an_image(caplog: pytest.LogCaptureFixture) -> None:
    """A head's mean is over all cells, also those of padding."""
    padded = Preprocessing(16, size=(48, 64), resize="pad")

    assert crop_of(table_of_fields(crop=SHARES), padded).from_map is None
    assert "padding" in caplog.text


UNLIKE: dict[str, dict[str, Any]] = {
    "constant": {"crop": 0.5, "labels": [masks()[4]] * NUM_IMAGES},
    "another number": {"crop": SHARES[::-1]},
    "another name": {"cover": SHARES, "crop": SHARES[::-1]},
    # within 0.02 of the map, as the map itself hardly varies
    "hardly varies": {
        "crop": np.array([0.01, 0.0] * 4),
        "labels": [np.zeros((SIDE, SIDE), np.uint8), np.eye(SIDE, dtype=np.uint8)] * 4,
    },
}


@pytest.mark.parametrize("columns", UNLIKE.values(), ids=UNLIKE)
def test_a_number_that_does_not_follow_the_map_of_its_name_is_not_named(
    columns: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    problem = problem_of(table_of_fields(**columns))

    assert [task.from_map for task in problem.tasks if task.from_map] == []
    assert caplog.records == []


def test_a_description_with_from_map_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    described = {"crop": {"from_map": "cells", "weight": 0.5}}

    task = crop_of(table_of_fields(crop=DIFFERENT), tasks=described)

    assert (task.from_map, task.weight) == ("cells", 0.5)
    assert caplog.records == []


# runs


def shares_of_meadow(meadow: Path) -> dict[str, list[float]]:
    """The shares of the masks of the meadow by class."""
    shares: dict[str, list[float]] = {"soil": [], "crop": [], "weed": []}
    for row in rows_of(meadow):
        with Image.open(meadow.parent / row["mask"]) as image:
            mask = np.asarray(image)
        for index, values in enumerate(shares.values()):
            values.append(float((mask == index).mean()))
    return shares


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    """The table of a meadow whose numbers are the shares of its masks."""
    (tmp_path / "meadow").mkdir()
    path = write_meadow(tmp_path / "meadow")
    return with_columns(path, **shares_of_meadow(path))


def run_of_fields(table: Path, data: dict[str, Any] | None = None, **groups: Any) -> TrainConfig:
    """Two folds on the shares of crop and weed, and the masks, of a dense head."""
    values = {
        "csv": str(table),
        "targets": ["crop", "weed"],
        "labels": "mask",
        "classes": ["soil", "crop", "weed"],
        **(data or {}),
    }
    head = {"type": "dense", "hidden_dim": 8}
    return a_run(None, data=values, head=head, **groups)


@pytest.mark.slow
def test_head_baseline_and_average_predict_the_mean_of_their_own_map(
    fields: Path, tiny: Backbone, tmp_path: Path
) -> None:
    train(run_of_fields(fields), tmp_path / "run")

    rows = rows_of(tmp_path / "run" / "out_of_fold.csv")
    images = [fields.parent / row["image"] for row in rows]
    source = MemoryTokens.extract(tiny, images, [row["image"] for row in rows])
    for fold in ("0", "1"):
        head = load_head(tmp_path / "run" / "heads" / f"fold-{fold}.safetensors")
        linear = load_head(tmp_path / "run" / "baselines" / f"fold-{fold}.safetensors")
        average = HeadEnsemble.from_heads([head, linear])
        held_out = [i for i, row in enumerate(rows) if row["fold"] == fold]
        tokens = source.batch([source.ids[i] for i in held_out])
        methods = {"head": head, "linear": linear, "average": average}
        for method, predicting in methods.items():
            predicted = predicting.predict(tokens)
            for channel, name in ((1, "crop"), (2, "weed")):
                mean = predicted["cells"][:, channel].mean(dim=(1, 2))
                torch.testing.assert_close(predicted[name][:, 0], mean)
                written = [float(rows[i][f"{name} ({method})"]) for i in held_out]
                np.testing.assert_allclose(written, mean.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_flag_gives_every_number_a_readout_of_its_own(fields: Path, tmp_path: Path) -> None:
    """The heads are those of a run whose classes are called otherwise, so that no number is their share."""
    data = ["train", "--csv", fields, "--targets", "crop", "weed", "--labels", "mask"]
    options = ["--backbone", "dinoneck_tiny", "--head", "dense", "--folds", "2", "--epochs", "1"]
    own_names = ["--classes", "soil", "crop", "weed", "--no-numbers-from-maps"]

    cli(*data, *own_names, *options, "--out", tmp_path / "off")
    cli(*data, "--classes", "a", "b", "c", *options, "--out", tmp_path / "other")

    report = json.loads((tmp_path / "off" / "report.json").read_text())
    assert report["config"]["data"]["numbers_from_maps"] is False
    head = load_head(tmp_path / "off" / "heads" / "fold-0.safetensors")
    other = load_head(tmp_path / "other" / "heads" / "fold-0.safetensors").state_dict()
    assert [task.from_map for task in head.tasks] == [None, None, None]
    assert head.state_dict().keys() == other.keys()
    assert all(torch.equal(x, other[name]) for name, x in head.state_dict().items())


def table_with_shares(
    ids: list[str], images: list[np.ndarray], masks_of_images: list[np.ndarray]
) -> pd.DataFrame:
    """Images with masks, the shares of crop and weed in these, and two folds in turn."""
    columns = {
        "images": images,
        "labels": masks_of_images,
        "crop": [float((mask == 1).mean()) for mask in masks_of_images],
        "weed": [float((mask == 2).mean()) for mask in masks_of_images],
        "fold": np.arange(len(ids)) % 2,
    }
    return pd.DataFrame(columns, index=ids)


@pytest.mark.slow
def test_held_out_images_change_no_weight(fields: Path, tmp_path: Path) -> None:
    """Pixels, masks and numbers of the images held out are replaced, and still agree."""
    rows = rows_of(fields)
    ids = [row["image"] for row in rows]
    images = [np.asarray(Image.open(fields.parent / row["image"])) for row in rows]
    drawn = [np.asarray(Image.open(fields.parent / row["mask"])) for row in rows]
    # fold 1, which is held out, are the images 1, 3, 5, ...
    other_images = images.copy()
    other_images[1::2] = [255 - image for image in images[1::2]]
    other_masks = drawn.copy()
    other_masks[1::2] = [(mask + 1) % 3 for mask in drawn[1::2]]
    tables = {
        "clean": table_with_shares(ids, images, drawn),
        "replaced": table_with_shares(ids, other_images, other_masks),
    }
    config = run_of_fields(
        fields,
        {"csv": None, "labels": "labels"},
        folds={"column": "fold", "only": 1},
        with_ridge=True,
    )

    for name, table in tables.items():
        train(config, tmp_path / name, table=table)

    clean = load_head(tmp_path / "clean" / "head.safetensors")
    replaced = load_head(tmp_path / "replaced" / "head.safetensors")
    for ensemble in (clean, replaced):
        assert {task.from_map for task in ensemble.heads[0].tasks} == {"cells", None}  # type: ignore[union-attr]
    weights = replaced.state_dict()
    assert all(torch.equal(x, weights[name]) for name, x in clean.state_dict().items())


# runs that continue


def as_0_3_left_it(out: Path, identity: dict[str, Any]) -> None:
    """Leave in an unfinished run what 0.3 would have written: no entry that came later."""
    path = out / run_names.UNFINISHED / run_names.RUN
    kept = json.loads(path.read_text())
    for name in folder.NOT_IN_OLD_RUNS:
        kept.pop(name, None)
    kept["data"].pop("numbers_from_maps", None)
    kept[folder.TARGETS_OF_0_3] = identity[folder.TARGETS_OF_0_3]
    path.write_text(json.dumps(kept))


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 8], ids=["first fold", "second fold"])
@pytest.mark.parametrize("flag", [True, False], ids=["same command", "with the flag"])
def test_a_run_that_0_3_began_goes_on_with_the_readouts_that_it_has(
    step: int,
    flag: bool,
    fields: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    off = run_of_fields(fields, {"numbers_from_maps": False}, optim={"epochs": 3})
    train(off, tmp_path / "whole")
    stopped(off, tmp_path / "begun", monkeypatch, step)
    identity = prepare(off, tmp_path / "begun").identity(as_in_0_3=True)
    as_0_3_left_it(tmp_path / "begun", identity)
    caplog.clear()

    train(
        run_of_fields(fields, {"numbers_from_maps": flag}, optim={"epochs": 3}), tmp_path / "begun"
    )

    assert files_of(tmp_path / "begun") == files_of(tmp_path / "whole")
    assert ("a run that 0.3 began" in caplog.text) is flag


@pytest.mark.slow
def test_a_run_that_0_3_began_and_that_starts_again_reads_from_the_map(
    fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    off = run_of_fields(fields, {"numbers_from_maps": False})
    stopped(off, tmp_path / "run", monkeypatch, step=5)
    as_0_3_left_it(tmp_path / "run", prepare(off, tmp_path / "run").identity(as_in_0_3=True))

    train(run_of_fields(fields), tmp_path / "run", resume=False)

    head = load_head(tmp_path / "run" / "heads" / "fold-0.safetensors")
    assert [task.from_map for task in head.tasks] == ["cells", "cells", None]


@pytest.mark.slow
@pytest.mark.parametrize("begun", [True, False])
def test_a_run_does_not_go_on_with_the_other_reading(
    begun: bool, fields: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    config = run_of_fields(fields, {"numbers_from_maps": begun})
    stopped(config, tmp_path / "run", monkeypatch, step=5)

    other = run_of_fields(fields, {"numbers_from_maps": not begun})
    with pytest.raises(CheckpointError, match="numbers"):
        train(other, tmp_path / "run")

    train(config, tmp_path / "run")


# the option


def test_the_option_needs_masks() -> None:
    config = a_run(Path("t.csv"), ["crop"], data={"numbers_from_maps": False})

    with pytest.raises(
        ConfigError, match=r"data\.numbers_from_maps is False, and needs data\.labels"
    ):
        config.check_used()


@pytest.mark.slow
def test_a_record_of_the_default_is_that_of_0_3() -> None:
    off = TrainConfig.from_dict({"data": {"labels": "mask", "numbers_from_maps": False}})

    assert "numbers_from_maps" not in TrainConfig().to_dict()["data"]
    assert off.to_dict()["data"]["numbers_from_maps"] is False
    assert TrainConfig.from_dict(off.to_dict()) == off


# hidden data


@pytest.mark.slow
def test_real_fields_get_the_number_of_their_map(
    crop_cover: Path, tiny: Backbone, tmp_path: Path
) -> None:
    """By five group folds: of held-out fields the number is the share in the cells of the head's own map.

    So is its R², which is counted here from the cells alone.
    """
    metrics = pytest.importorskip("sklearn.metrics")
    table = pd.read_csv(crop_cover / "cover.csv").iloc[::4]
    for column in ("image", "mask"):
        table[column] = [str(crop_cover / name) for name in table[column]]
    table.to_csv(tmp_path / "cover.csv", index=False)
    words = "--targets soil crop weed --labels mask --classes soil crop weed --group group"
    options = "--folds 5 --size 96x128 --backbone dinoneck_tiny --epochs 3 --head dense"
    run = tmp_path / "run"

    cli("train", "--csv", tmp_path / "cover.csv", *words.split(), *options.split(), "--out", run)

    report = json.loads((run / "report.json").read_text())
    rows = pd.read_csv(run / "out_of_fold.csv")
    preprocess = tiny.preprocess.changed(size=(96, 128))
    source = MemoryTokens.extract(
        tiny, list(rows["image"]), list(rows["image"]), preprocess=preprocess
    )
    cells = np.zeros((len(rows), 3))
    for fold in range(5):
        held_out = np.flatnonzero(rows["fold"] == fold)
        head = load_head(run / "heads" / f"fold-{fold}.safetensors")
        maps = head.predict(source.batch([source.ids[i] for i in held_out]))["cells"]
        cells[held_out] = maps.mean(dim=(2, 3)).numpy()
    for channel, name in enumerate(("soil", "crop", "weed")):
        np.testing.assert_allclose(rows[f"{name} (head)"], cells[:, channel], rtol=1e-4, atol=1e-5)
        r2_of_cells = metrics.r2_score(rows[name], cells[:, channel])
        r2 = report["scores"][name]["head"]["r2"]["pooled"]
        assert r2 == pytest.approx(r2_of_cells, abs=1e-4)
