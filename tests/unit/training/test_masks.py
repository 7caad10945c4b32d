"""The masks of a training: their classes, what has no label, and what is named before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dinoneck.data.labels
import dinoneck.data.masks
from dinoneck import ConfigError, DataError, DenseHead, Predictor, Task, evaluate
from dinoneck.backbones import Backbone
from dinoneck.checkpoint import HeadCheckpoint
from dinoneck.data import Preprocessing, read_masks
from dinoneck.data.table import Table
from dinoneck.training import TrainConfig, train
from dinoneck.training.config import DataConfig
from dinoneck.training.masks import KeptMaps, Maps, read_maps
from dinoneck.training.run import prepare

SIZE = (32, 48)
PREPARE = Preprocessing(16)


def written(folder: Path, masks: Sequence[np.ndarray]) -> Path:
    """Write an image for each mask, and the masks; the folder is returned."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number, values in enumerate(masks):
        Image.new("RGB", SIZE[::-1], (60 * number, 90, 30)).save(folder / f"images/{number}.png")
        Image.fromarray(values).save(folder / f"masks/{number}.png")
    return folder


def halves(left: float, right: float, dtype: str = "u1") -> np.ndarray:
    values = np.full(SIZE, left, dtype)
    values[:, 24:] = right
    return values


def maps_of(folder: Path, **data: Any) -> Maps:
    table = Table.from_frame(read_masks(folder / "images", folder / "masks"))
    return read_maps(DataConfig(**data), table, PREPARE)


def test_black_and_white_masks_train_two_classes(tmp_path: Path) -> None:
    folder = written(tmp_path, [halves(0, 255), halves(0, 0), halves(255, 255)])
    maps = maps_of(folder, classes=("soil", "crop"))
    assert maps.names == ("soil", "crop")
    assert maps.values[0, 1, 0].tolist() == [0.0, 0.5, 1.0]
    assert maps.values[:, 1].mean().item() == 0.5
    assert (maps.weight == 256).all()
    assert maps.read_pixels(0).unique(return_counts=True)[1].tolist() == [768, 768]


def test_class_values_name_the_numbers_of_the_classes(tmp_path: Path) -> None:
    folder = written(tmp_path, [halves(30, 10), halves(20, 30)])
    maps = maps_of(folder, class_values=(10, 20, 30))
    assert maps.names == ("10", "20", "30")
    assert maps.values[0, :, 0, 0].tolist() == [0, 0, 1]
    named = maps_of(folder, class_values=(10, 20, 30), classes=("a", "b", "c"))
    assert named.names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("masks", "data"),
    [
        pytest.param([halves(0, 255)], {"classes": ("soil", "crop"), "nodata": (255,)}, id="255"),
        pytest.param([halves(0, 7)], {"nodata": (7,)}, id="no names"),
        pytest.param([halves(1, 1)], {"classes": ("soil", "crop")}, id="one class in the masks"),
    ],
)
def test_masks_of_one_class_are_refused(
    masks: list[np.ndarray], data: dict[str, Any], tmp_path: Path
) -> None:
    folder = written(tmp_path, masks)
    with pytest.raises(DataError, match="alone; expected two classes or more"):
        maps_of(folder, **data)


def trained(folder: Path, out: Path) -> dict[str, Any]:
    """Train on the images and masks of a folder, where 255 is no class."""
    data = {"images": str(folder / "images"), "labels": str(folder / "masks"), "nodata": [255]}
    config = {
        "data": {**data, "size": SIZE},
        "backbone": {"name": "dinoneck_tiny"},
        "head": {"type": "dense"},
        "optim": {"epochs": 1},
        "folds": {"count": 2},
    }
    return train(TrainConfig.from_dict(config), out)


@pytest.mark.slow
def test_an_image_without_a_labelled_pixel_is_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scores are those of a training without it."""
    folder = written(tmp_path, [halves(0, 1), halves(255, 255), halves(1, 1), halves(1, 0)])
    scores = trained(folder, tmp_path / "with")["scores"]
    assert "masks: 4 of 4 images, 1 without a labelled pixel" in capsys.readouterr().err

    for name in ("images", "masks"):
        (folder / name / "1.png").unlink()
    assert trained(folder, tmp_path / "without")["scores"] == scores


def test_images_of_which_none_has_a_labelled_pixel_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, [halves(255, 255), halves(255, 255)])
    with pytest.raises(DataError, match="unlabelled"):
        trained(folder, tmp_path / "out")


def test_an_image_of_which_another_target_is_known_stays_without_a_labelled_pixel(
    tmp_path: Path,
) -> None:
    folder = written(tmp_path, [halves(0, 1), halves(255, 255), halves(1, 1), halves(1, 0)])
    rows = [f"images/{number}.png,masks/{number}.png,{number}" for number in range(4)]
    (folder / "t.csv").write_text("\n".join(["image,mask,height", *rows]))
    data = {"csv": str(folder / "t.csv"), "targets": ["height"], "labels": "mask", "nodata": [255]}
    config = {
        "data": {**data, "size": SIZE},
        "backbone": {"name": "dinoneck_tiny"},
        "head": {"type": "dense"},
        "folds": {"count": 2},
    }

    trainer = prepare(TrainConfig.from_dict(config), tmp_path / "out")

    assert trainer.problem.targets["height"].flatten().tolist() == [0, 1, 2, 3]


def test_numbers_are_scaled_and_shifted(tmp_path: Path) -> None:
    folder = written(tmp_path, [halves(10, 30), halves(0, 20)])
    maps = maps_of(folder, label_kind="numbers", scale=0.5, offset=-1.0, nodata=(0,))
    assert maps.values[0, 0, 0].tolist() == [4.0, 9.0, 14.0]
    assert maps.values[1, 0, 0].nan_to_num(-9).tolist() == [-9, 9.0, 9.0]


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"labels": "m", "label_kind": "numbers", "class_values": (0, 255)}, "class_values"),
        ({"labels": "m", "classes": ("a",), "class_values": (0, 255)}, "1 classes and 2"),
    ],
)
def test_class_values_that_have_no_effect_are_refused(data: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        DataConfig(**data)


@pytest.mark.slow
def test_class_values_are_in_a_record_only_where_they_are_set() -> None:
    assert not TrainConfig().to_dict()["data"].keys() & {"bits", "class_values", "scale", "offset"}
    config = TrainConfig.from_dict({"data": {"labels": "mask", "class_values": [0, 255]}})
    assert config.to_dict()["data"]["class_values"] in ([0, 255], (0, 255))
    assert TrainConfig.from_dict(config.to_dict()) == config


# Evaluation
# ----------------------------------------------------------------------------------------------------


@pytest.fixture
def segmenter(tiny: Backbone) -> Predictor:
    task = Task("cover", dim=2, kind="segmentation", labels=("soil", "crop"))
    return Predictor(DenseHead(64, [task]), tiny)


def true_pixels(found: dict[str, Any]) -> list[int]:
    matrix = found["scores"]["cover"]["head"]["confusion_matrix"]
    return [sum(row) for row in matrix]


def test_black_and_white_masks_are_evaluated_as_two_classes(
    segmenter: Predictor, tmp_path: Path
) -> None:
    folder = written(tmp_path, [halves(0, 255), halves(0, 0)])
    found = evaluate(segmenter, folder / "images", folder / "masks")
    assert true_pixels(found) == [768 * 3, 768]


def test_class_values_are_evaluated(segmenter: Predictor, tmp_path: Path) -> None:
    folder = written(tmp_path, [halves(1, 2), halves(1, 1)])
    found = evaluate(segmenter, folder / "images", folder / "masks", class_values=(1, 2))
    assert true_pixels(found) == [768 * 3, 768]


def test_palettes_of_the_truth_must_agree(segmenter: Predictor, tmp_path: Path) -> None:
    folder = written(tmp_path, [halves(0, 1), halves(0, 1)])
    for number, palette in enumerate(([0, 0, 0, 255, 0, 0], [255, 0, 0, 0, 0, 0])):
        image = Image.fromarray(halves(0, 1), "P")
        image.putpalette(palette)
        image.save(folder / f"masks/{number}.png")
    with pytest.raises(DataError, match="index 0 is RGB 255,0,0 in .*0,0,0 in"):
        evaluate(segmenter, folder / "images", folder / "masks")


# Images that EXIF turns
# ----------------------------------------------------------------------------------------------------


def turned_folder(folder: Path, size: tuple[int, int], orientation: int, suffix: str) -> Path:
    """Two images of (height, width) stored pixels, of which one is tagged, and masks of their stored size."""
    height, width = size
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("images", "masks"):
        (folder / name).mkdir()
    values = np.zeros(size, np.uint8)
    values[:, width // 2 :] = 1
    for number in range(2):
        image = Image.new("RGB", (width, height), (60 * number, 90, 30))
        options = {"exif": exif} if number else {}
        image.save(folder / f"images/{number}.{suffix}", **options)
        Image.fromarray(values).save(folder / f"masks/{number}.png")
    return folder


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_mask_of_the_stored_pixels_of_a_turned_image_has_another_size(
    suffix: str, tmp_path: Path
) -> None:
    folder = turned_folder(tmp_path, (32, 48), 6, suffix)
    with pytest.raises(DataError, match=r"1.png is 32x48 .* 48x32 px.*EXIF"):
        maps_of(folder)


def test_infinity_as_nodata_is_kept_as_the_largest_float_and_nan_is_dropped() -> None:
    data = DataConfig(nodata=(float("inf"), -float("inf"), float("nan"), -9999.0))
    assert data.nodata == (3.4028234663852886e38, -3.4028234663852886e38, -9999.0)


# A run
# ----------------------------------------------------------------------------------------------------


def configured(folder: Path, head: dict[str, Any], **data: Any) -> TrainConfig:
    """A training on the images and masks of a folder."""
    config = {
        "data": {
            "images": str(folder / "images"),
            "labels": str(folder / "masks"),
            "size": SIZE,
            **data,
        },
        "backbone": {"name": "dinoneck_tiny"},
        "head": head,
        "optim": {"epochs": 1},
        "folds": {"count": 2},
    }
    return TrainConfig.from_dict(config)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each label is decoded, by its name; counted from now on."""
    counts: Counter[str] = Counter()
    for module in (dinoneck.data.masks, dinoneck.data.labels):
        for name in ("read_label", "read_labels"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, counting(getattr(module, name), counts))
    return counts


def counting(read: Any, counts: Counter[str]) -> Any:
    def read_and_count(label: Any, *arguments: Any) -> Any:
        for file in label if isinstance(label, list) else [label]:
            counts[Path(file).name] += 1
        return read(label, *arguments)

    return read_and_count


@pytest.mark.parametrize(
    "head",
    [
        pytest.param({"type": "dense", "hidden_dim": 8}, id="a map of patches"),
        pytest.param({"type": "dpt"}, id="a finer map", marks=pytest.mark.slow),
    ],
)
def test_every_mask_is_decoded_at_most_twice_in_a_run_and_in_an_evaluation(
    head: dict[str, Any], tmp_path: Path, reads: Counter[str]
) -> None:
    folder = written(tmp_path, [halves(0, 1), halves(1, 1), halves(1, 0), halves(0, 255)])

    train(configured(folder, head), tmp_path / "run")

    assert set(reads) == {f"{number}.png" for number in range(4)}
    assert max(reads.values()) <= 2

    reads.clear()
    models = {"one": tmp_path / "run", "other": tmp_path / "run"}
    evaluate(models, folder / "images", folder / "masks")
    assert max(reads.values()) <= 2


def test_every_mask_of_numbers_is_decoded_once_and_once_more_where_it_is_drawn(
    tmp_path: Path, reads: Counter[str]
) -> None:
    folder = written(tmp_path, [halves(0, 1), halves(1, 1), halves(1, 0), halves(0, 2)])
    config = configured(folder, {"type": "dense", "hidden_dim": 8}, label_kind="numbers")

    train(config, tmp_path / "run")

    assert set(reads.values()) == {2}


def test_what_was_decided_over_all_masks_is_in_the_head_file(tmp_path: Path) -> None:
    """255 beside other classes is unlabelled in a truth that has 0 and 255 alone."""
    folder = written(tmp_path, [halves(0, 1), halves(1, 1), halves(1, 0), halves(0, 255)])
    train(configured(folder, {"type": "dense", "hidden_dim": 8}), tmp_path / "run")
    truth = written(tmp_path / "truth", [halves(0, 255)])

    found = evaluate(tmp_path / "run", truth / "images", truth / "masks")

    [head_file] = (tmp_path / "run").glob("head.safetensors")
    masks = HeadCheckpoint.load(head_file).meta["training"]["masks"]
    assert masks == {"nodata": [255]}
    assert found["scores"]["segmentation"]["head"]["confusion_matrix"][1] == [0, 0]


def test_masks_of_colours_are_trained_and_evaluated(tmp_path: Path) -> None:
    red, green = (255, 0, 0), (0, 128, 0)
    colours = np.array([red, green], np.uint8)
    folder = written(
        tmp_path, [colours[halves(0, 1)], colours[halves(1, 1)], colours[halves(1, 0)]]
    )
    table = tmp_path / "classes.csv"
    table.write_text("name,r,g,b\ncrop,0,128,0\nsoil,255,0,0\n")
    config = configured(folder, {"type": "dense", "hidden_dim": 8}, classes=[str(table)])

    train(config, tmp_path / "run")
    images, masks = folder / "images", folder / "masks"
    recorded = evaluate(tmp_path / "run", images, masks)
    stated = evaluate(tmp_path / "run", images, masks, classes=table)

    matrix = recorded["scores"]["segmentation"]["head"]["confusion_matrix"]
    assert np.sum(matrix, axis=1).tolist() == [4 * 384 * 2, 2 * 384 * 2]
    assert stated["scores"] == recorded["scores"]
    with pytest.raises(ConfigError, match="255,0,0 0,128,0"):
        evaluate(tmp_path / "run", images, masks, class_colors=["255,0,0", "0,128,0"])


def test_kept_maps_are_read_once_and_those_beyond_the_limit_again() -> None:
    read: list[int] = []

    def read_map(key: int) -> torch.Tensor:
        read.append(key)
        return torch.randint(-1, 9, (40, 50), generator=torch.Generator().manual_seed(key))

    maps = KeptMaps(read_map, most_bytes=1500)
    first = [maps(0), maps(0), maps.once(0)]
    second = [maps(1), maps.once(1)]

    assert read == [0, 1, 1]
    assert all(torch.equal(value, read_map(0)) for value in first)
    assert all(torch.equal(value, read_map(1)) for value in second)
