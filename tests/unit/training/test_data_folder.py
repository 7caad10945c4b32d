"""A folder of data is trained as what it holds: masks, parts that make the fold, classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.kit import cli
from tests.unit.training.meadow import rows_of

from dinoneck import ConfigError, DataError, Task
from dinoneck.data.pairs import Pairing
from dinoneck.evaluation.predicted_tasks import PredictedTasks
from dinoneck.evaluation.truth import truth_table
from dinoneck.training import TrainConfig
from dinoneck.training.data_folder import of_data_folder
from dinoneck.training.folds import folds_of
from dinoneck.training.table import table_of

COLOURS = {"blue": (20, 30, 200), "red": (200, 30, 20)}
RUN = ("--backbone", "dinoneck_tiny", "--size", "32x48", "--epochs", "2")


def pictures(root: Path, *names: str) -> Path:
    """Write images whose colour is that of their folder; those called masks are masks of two halves."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if "masks" in name:
            pixels = np.zeros((32, 48), np.uint8)
            pixels[:, 24:] = 1
        else:
            noise = np.random.default_rng(i).integers(0, 50, (32, 48, 3))
            pixels = (noise + COLOURS.get(Path(name).parent.name, (90, 90, 90))).astype(np.uint8)
        Image.fromarray(pixels).save(root / name)
    return root


def class_parts(root: Path, **counts: int) -> Path:
    """Write parts with class folders, so many images of each class."""
    for part, count in counts.items():
        for colour in COLOURS:
            pictures(root, *(f"{part}/{colour}/{i}.png" for i in range(count)))
    return root


def config_of(folder: Path, folds: dict[str, Any] | None = None, **data: Any) -> TrainConfig:
    values = {"data": {"images": str(folder), **data}, "folds": folds or {}}
    config, _ = of_data_folder(TrainConfig.from_dict(values))
    return config


def test_train_and_val_are_one_fold_and_test_is_left(tmp_path: Path) -> None:
    config = config_of(class_parts(tmp_path, train=3, valid=2, test=4))
    table = table_of(config)
    folds = folds_of(config, table)
    [fold] = folds
    assert {table.ids[row].partition("/")[0] for row in fold.train} == {"train"}
    assert {table.ids[row].partition("/")[0] for row in fold.valid} == {"valid"}
    assert (len(fold.train), len(fold.valid), len(table)) == (6, 4, 10)


def test_folders_that_are_folds_are_held_out_in_turn(tmp_path: Path) -> None:
    folder = class_parts(tmp_path, k1=1, k2=2, k3=3)
    config = config_of(folder, subfolders="folds")
    folds = folds_of(config, table_of(config))
    assert [len(fold.valid) for fold in folds] == [2, 4, 6]


def test_one_head_on_all_images_trains_on_both_parts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = config_of(class_parts(tmp_path, train=3, val=2), folds={"count": 1})
    [fold] = folds_of(config, table_of(config))
    assert (len(fold.train), len(fold.valid)) == (10, 0)
    assert "none is held out" in caplog.text


@pytest.mark.parametrize("folds", [{"count": 3}, {"stratify": "class"}])
def test_folds_that_folders_make_take_no_options(folds: dict[str, Any], tmp_path: Path) -> None:
    folder = class_parts(tmp_path, train=1, val=1)
    with pytest.raises(ConfigError, match="the folders train, val are the folds"):
        config_of(folder, folds)


def test_the_masks_of_a_folder_are_its_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures(tmp_path, "images/1.png", "masks/1.png")
    config = config_of(tmp_path, classes=["soil", "crop"])
    assert config.data.images == str(tmp_path / "images")
    assert config.data.labels == str(tmp_path / "masks")
    assert not caplog.records
    unchanged, _ = of_data_folder(config)
    assert unchanged == config


@pytest.mark.slow
def test_a_folder_that_is_read_as_in_0_3_changes_nothing(tmp_path: Path) -> None:
    pictures(tmp_path, "blue/1.png", "red/1.png")
    config = TrainConfig.from_dict({"data": {"images": str(tmp_path)}})
    unchanged, _ = of_data_folder(config)
    assert unchanged == config
    assert "subfolders" not in config.to_dict()["data"]
    parts = config_of(class_parts(tmp_path / "parts", train=1, val=1))
    assert parts.to_dict()["data"]["subfolders"] == "parts"
    assert TrainConfig.from_dict(parts.to_dict()) == parts


def test_subfolders_are_of_folders(tmp_path: Path) -> None:
    refused = cli(
        "train",
        "--images",
        tmp_path,
        "--csv",
        "t.csv",
        "--subfolders",
        "classes",
        "--out",
        tmp_path / "r",
    )
    assert refused.code == 1


@pytest.mark.parametrize("inside", [False, True], ids=["masks/train", "train/masks"])
def test_parts_with_masks_are_trained(inside: bool, tmp_path: Path) -> None:
    names = []
    for part, count in {"train": 3, "val": 2}.items():
        for kind in ("images", "masks"):
            where = f"{part}/{kind}" if inside else f"{kind}/{part}"
            names += [f"{where}/{i}.png" for i in range(count)]
    folder = pictures(tmp_path / "ds", *names)
    found = cli(
        "train",
        "--images",
        folder,
        "--classes",
        "soil",
        "crop",
        "--head",
        "dense",
        *RUN,
        "--out",
        tmp_path / "run",
        "--json",
    )
    assert found.code == 0
    assert found.json["report"]["predicted"] == 2
    scores = found.json["report"]["scores"]["segmentation"]["head"]
    assert np.sum(scores["confusion_matrix"]) == 2 * 32 * 48


@pytest.mark.slow
def test_the_part_that_is_left_is_evaluated(tmp_path: Path) -> None:
    folder = class_parts(tmp_path / "ds", train=4, val=2, test=3)
    run = tmp_path / "run"
    assert cli("train", "--images", folder, *RUN, "--out", run).code == 0
    assert {row["image"].partition("/")[0] for row in rows_of(run / "out_of_fold.csv")} == {"val"}
    test = folder / "test"
    found = cli("evaluate", test, "--heads", run, "--truth", test, "--json")
    assert found.json["images"] == 6
    assert np.sum(found.json["scores"]["class"]["head"]["confusion_matrix"]) == 6
    report = cli(
        "viz", "report", run, test, "--truth", test, "--out", tmp_path / "r.html", "--json"
    )
    assert (
        report.json["scores"]["class"]["accuracy"]
        == found.json["scores"]["class"]["head"]["accuracy"]["pooled"]
    )


def test_a_truth_of_parts_is_refused(tmp_path: Path) -> None:
    kind = Task("kind", dim=2, kind="classification", labels=("blue", "red"))
    folder = class_parts(tmp_path, train=1, val=1)
    with pytest.raises(DataError, match="holds the parts train, val"):
        truth_table(None, folder, PredictedTasks.of_models([[kind]]))
    table = truth_table(folder / "val", folder / "val", PredictedTasks.of_models([[kind]]))
    assert table["kind"].tolist() == ["blue", "red"]
    with pytest.raises(DataError, match="in the place of"):
        truth_table(folder / "train", folder / "val", PredictedTasks.of_models([[kind]]))


def test_the_option_for_folders_works_for_a_truth_too(tmp_path: Path) -> None:
    folder = class_parts(tmp_path / "ds", train=2, val=1)
    kind = Task("kind", dim=2, kind="classification", labels=("train", "val"))
    table = truth_table(None, folder, PredictedTasks.of_models([[kind]]), subfolders="classes")
    assert table["kind"].value_counts().to_dict() == {"train": 4, "val": 2}
    kind = Task("kind", dim=2, kind="classification", labels=("blue", "red"))
    table = truth_table(None, folder, PredictedTasks.of_models([[kind]]), subfolders="folds")
    assert table["kind"].value_counts().to_dict() == {"blue": 3, "red": 3}


@pytest.mark.slow
def test_verbs_that_know_a_truth_take_the_option_for_its_folders(tmp_path: Path) -> None:
    folder = class_parts(tmp_path / "ds", train_set=2, test_set=1)
    run = tmp_path / "run"
    words = ("train", "--images", folder, "--subfolders", "classes", *RUN, "--folds", 2)
    trained = cli(*words, "--out", run)
    assert trained.code == 0
    assert "No groups: if images" in trained.out
    assert "No --group" not in trained.out
    option = ("--subfolders", "classes")
    scored = cli("evaluate", folder, "--heads", run, "--truth", folder, *option, "--json")
    assert scored.json["images"] == 6
    out = ("--out", tmp_path / "p.csv", "--overlay", tmp_path / "p")
    assert cli("predict", folder, "--heads", run, "--truth", folder, *option, *out).code == 0
    page = ("--out", tmp_path / "r.html", "--json")
    report = cli("viz", "report", run, folder, "--truth", folder, *option, *page)
    accuracy = scored.json["scores"]["class"]["head"]["accuracy"]["pooled"]
    assert report.json["scores"]["class"]["accuracy"] == accuracy
    for verb in (("predict", folder, "--heads", run), ("viz", "report", run, folder)):
        refused = cli(
            *verb, *option, "--out", tmp_path / ("q.csv" if verb[0] == "predict" else "q.html")
        )
        assert refused.code == 1
        assert "leave out --subfolders" in refused.err


def test_the_option_for_folders_is_refused_where_it_says_nothing(tmp_path: Path) -> None:
    folder = pictures(tmp_path, "images/1.png", "masks/1.png")
    soil = Task("soil", dim=2, kind="segmentation", labels=("a", "b"))
    with pytest.raises(DataError, match="subfolders is classes"):
        truth_table(
            folder / "images",
            folder / "masks",
            PredictedTasks.of_models([[soil]]),
            subfolders="classes",
        )
    (tmp_path / "t.csv").write_text("image,mass\n1.png,1\n")
    with pytest.raises(ConfigError, match="subfolders is 'folds', and the truth is a table"):
        truth_table(
            folder,
            tmp_path / "t.csv",
            PredictedTasks.of_models([[Task("mass", dim=1)]]),
            subfolders="folds",
        )


@pytest.mark.parametrize(
    ("task", "files", "named"),
    [
        pytest.param(Task("kind", dim=2, kind="classification"), ["1.png"], "no class folders", id="images alone"),
        pytest.param(Task("mass"), ["a/1.png", "b/1.png"], "predict mass", id="numbers"),
        pytest.param(
            Task("soil", dim=2, kind="segmentation"), ["a/1.png", "b/1.png"], "no images with masks", id="masks"
        ),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_truth_of_the_heads_is_refused(
    task: Task, files: list[str], named: str, tmp_path: Path
) -> None:
    folder = pictures(tmp_path, *files)
    with pytest.raises(DataError, match=named):
        truth_table(None, folder, PredictedTasks.of_models([[task]]))


def folders_of_parts(root: Path, *names: str) -> tuple[Path, Path]:
    """Write two images and their masks into each part of img/ and annotations/masks/."""
    for name in names:
        for i in range(2):
            pictures(root, f"img/{name}/{i}.png", f"annotations/masks/{name}/{i}.png")
    return root / "img", root / "annotations" / "masks"


@pytest.mark.parametrize("subfolders", [None, "parts"])
def test_the_parts_of_named_images_and_masks_are_held_out(
    subfolders: str | None, tmp_path: Path
) -> None:
    images, masks = folders_of_parts(tmp_path, "training", "validation")
    config = config_of(images, labels=str(masks), subfolders=subfolders)
    table = table_of(config)
    [fold] = folds_of(config, table)
    assert [table.ids[row] for row in fold.train] == ["training/0.png", "training/1.png"]
    assert [table.ids[row] for row in fold.valid] == ["validation/0.png", "validation/1.png"]
    assert table.masks is not None
    assert table.masks[3] == masks / "validation" / "1.png"
    assert config.data.subfolders == "parts"


def test_the_folds_of_named_images_and_masks_are_read_on_request(tmp_path: Path) -> None:
    images, masks = folders_of_parts(tmp_path, "a", "b", "c")
    config = config_of(images, labels=str(masks), subfolders="folds")
    folds = folds_of(config, table_of(config))
    assert [len(fold.valid) for fold in folds] == [2, 2, 2]


def test_named_images_and_masks_are_no_classes(tmp_path: Path) -> None:
    images, masks = folders_of_parts(tmp_path, "train", "val")
    with pytest.raises(DataError, match="--subfolders is classes"):
        config_of(images, labels=str(masks), subfolders="classes")


def test_parts_of_named_images_and_masks_take_no_number_of_folds(tmp_path: Path) -> None:
    images, masks = folders_of_parts(tmp_path, "train", "val")
    with pytest.raises(ConfigError, match="the folders train, val are the folds"):
        config_of(images, {"count": 3}, labels=str(masks), subfolders="parts")


def street(root: Path) -> Path:
    """Write images of two parts, with two files for each in gtFine, and one image more."""
    for part in ("train", "val"):
        pictures(root, *(f"leftImg8bit/{part}/{i}_leftImg8bit.png" for i in range(3)))
        for i in range(2):
            pictures(root, *(f"gtFine/{part}/{i}_{kind}.png" for kind in ("color", "masks")))
    return root


PAIRING: dict[str, Any] = {"mask_suffix": "_masks", "skip_unpaired": True}


@pytest.mark.parametrize("is_named", [False, True])
def test_a_suffix_and_what_has_no_partner_are_stated(is_named: bool, tmp_path: Path) -> None:
    root = street(tmp_path)
    folder = root / "leftImg8bit" if is_named else root
    labels = str(root / "gtFine") if is_named else None

    config = config_of(folder, labels=labels, **PAIRING)
    table = table_of(config)
    again = table_of(TrainConfig.from_dict(config.to_dict()))  # as a run that is continued

    assert table.masks is not None
    assert [mask.name for mask in table.masks if mask] == ["0_masks.png", "1_masks.png"] * 2
    assert table.left_out == {"masks without _masks": 4, "images without a mask": 2}
    assert again.ids == table.ids
    assert again.masks == table.masks


def test_a_truth_takes_a_suffix_and_what_has_no_partner(tmp_path: Path) -> None:
    root = street(tmp_path)
    soil = PredictedTasks.of_models([[Task("soil", dim=2, kind="segmentation", labels=("a", "b"))]])
    images, masks = root / "leftImg8bit" / "val", root / "gtFine" / "val"

    table = truth_table(images, masks, soil, pairing=Pairing(**PAIRING))

    assert list(table.index) == ["0_leftImg8bit.png", "1_leftImg8bit.png"]


def test_masks_beside_images_are_read_by_their_suffix(tmp_path: Path) -> None:
    pictures(tmp_path, "0.png", "0_masks.png", "a/1.png", "a/1_masks.png")
    table = table_of(config_of(tmp_path, labels=str(tmp_path), mask_suffix="_masks"))
    assert table.masks == [tmp_path / "0_masks.png", tmp_path / "a" / "1_masks.png"]


@pytest.mark.parametrize("option", [{"mask_suffix": "_m"}, {"skip_unpaired": True}])
def test_options_of_pairs_need_masks_in_a_folder(option: dict[str, Any], tmp_path: Path) -> None:
    folder = pictures(tmp_path, "blue/1.png", "red/1.png")
    kind = PredictedTasks.of_models([[Task("kind", dim=2, kind="classification")]])
    with pytest.raises(ConfigError, match=f"{next(iter(option))}.*data.labels"):
        config_of(folder, **option).check_used()
    with pytest.raises(ConfigError, match=f"{next(iter(option))}.*a table"):
        TrainConfig.from_dict({"data": {"csv": "t.csv", "labels": "mask", **option}}).check_used()
    with pytest.raises(ConfigError, match="mask_suffix or skip_unpaired"):
        truth_table(None, folder, kind, pairing=Pairing(**option))


def test_a_run_inside_the_folder_of_its_images_changes_nothing(tmp_path: Path) -> None:
    folder = class_parts(tmp_path, train=2, val=1)
    before = table_of(config_of(folder)).ids
    pictures(folder, "run/heads/0.png", "run/data.jpg")
    (folder / "run" / "report.json").write_text("{}")
    assert table_of(config_of(folder)).ids == before
