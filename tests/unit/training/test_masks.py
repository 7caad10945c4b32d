"""The masks of a training: their classes, what has no label, and what is named before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.unit.data.tiff_files import nodata_tag, write_tiff

from dinoneck import ConfigError, DataError, DenseHead, Predictor, Task, evaluate
from dinoneck.backbones import Backbone
from dinoneck.data import Preprocessing, read_masks
from dinoneck.data.table import Table
from dinoneck.training import TrainConfig, train
from dinoneck.training.config import DataConfig
from dinoneck.training.masks import Maps, read_maps
from dinoneck.training.run import prepare

SIZE = (32, 48)
PREPARE = Preprocessing(16)


def written(folder: Path, masks: Sequence[np.ndarray], suffix: str = "png") -> Path:
    """Write an image for each mask, and the masks; the folder is returned."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for number, values in enumerate(masks):
        Image.new("RGB", SIZE[::-1], (60 * number, 90, 30)).save(folder / f"images/{number}.png")
        if suffix == "png":
            Image.fromarray(values).save(folder / f"masks/{number}.png")
    return folder


def halves(left: float, right: float, dtype: str = "u1") -> np.ndarray:
    values = np.full(SIZE, left, dtype)
    values[:, 24:] = right
    return values


def maps_of(folder: Path, **data: Any) -> Maps:
    table = Table.from_frame(read_masks(folder / "images", folder / "masks"))
    return read_maps(DataConfig(**data), table, PREPARE)


def test_black_and_white_masks_train_two_classes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = written(tmp_path, [halves(0, 255), halves(0, 0), halves(255, 255)])
    maps = maps_of(folder, classes=("soil", "crop"))
    assert maps.names == ("soil", "crop")
    assert maps.values[0, 1, 0].tolist() == [0.0, 0.5, 1.0]
    assert maps.values[:, 1].mean().item() == 0.5
    assert (maps.weight == 256).all()
    assert maps.read_pixels(0).unique(return_counts=True)[1].tolist() == [768, 768]
    assert "read as the classes 'soil' and 'crop'" in caplog.text


def test_class_values_name_the_numbers_of_the_classes(tmp_path: Path) -> None:
    folder = written(tmp_path, [halves(30, 10), halves(20, 30)])
    maps = maps_of(folder, class_values=(10, 20, 30))
    assert maps.names == ("10", "20", "30")
    assert maps.values[0, :, 0, 0].tolist() == [0, 0, 1]
    named = maps_of(folder, class_values=(10, 20, 30), classes=("a", "b", "c"))
    assert named.names == ("a", "b", "c")


def test_a_class_without_a_pixel_is_named_before_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = written(tmp_path, [halves(1, 2)])
    maps_of(folder, classes=("soil", "crop", "weed"))
    assert "no pixel of the class 'soil'" in caplog.text
    assert "They hold 1, 2" in caplog.text


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


def test_the_nodata_that_hides_a_class_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path, [halves(0, 255)])
    with pytest.raises(DataError, match=r"768 pixels by nodata \(255\): leave it out"):
        maps_of(folder, classes=("soil", "crop"), nodata=(255,))


def test_the_tag_that_hides_a_class_is_named(tmp_path: Path) -> None:
    """QGIS and others note 0 as nodata in masks whose 0 is the background."""
    folder = written(tmp_path, [halves(0, 1)], suffix="tif")
    write_tiff(folder / "masks/0.tif", halves(0, 1), tags=nodata_tag("0"))
    with pytest.raises(DataError, match=r"the class '1' alone.*GDAL_NODATA \(0\).*unsetnodata"):
        maps_of(folder)


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
def test_an_image_without_a_labelled_pixel_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The scores are those of a training without it."""
    folder = written(tmp_path, [halves(0, 1), halves(255, 255), halves(1, 1), halves(1, 0)])
    scores = trained(folder, tmp_path / "with")["scores"]
    message = "1 of 4 images have no labelled pixel in their label files and are left out: '1.png'"
    assert message in caplog.text

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


def test_numbers_leave_out_what_the_file_marks(tmp_path: Path) -> None:
    folder = written(tmp_path, [halves(0, 0)], suffix="tif")
    height = halves(-9999, 0.5, dtype="f4")
    write_tiff(folder / "masks/0.tif", height, tags=nodata_tag("-9999"))
    maps = maps_of(folder, label_kind="numbers")
    assert maps.weight[0].tolist() == [[0, 128, 256], [0, 128, 256]]
    assert maps.values[0, 0].nan_to_num(-1).tolist() == [[-1, 0.5, 0.5], [-1, 0.5, 0.5]]


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


def test_a_class_that_the_truth_lacks_is_named(
    segmenter: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = written(tmp_path, [halves(0, 0)])
    evaluate(segmenter, folder / "images", folder / "masks")
    assert "no pixel of the class 'crop'" in caplog.text


def test_palettes_of_the_truth_must_agree(segmenter: Predictor, tmp_path: Path) -> None:
    folder = written(tmp_path, [halves(0, 1), halves(0, 1)])
    for number, palette in enumerate(([0, 0, 0, 255, 0, 0], [255, 0, 0, 0, 0, 0])):
        image = Image.fromarray(halves(0, 1), "P")
        image.putpalette(palette)
        image.save(folder / f"masks/{number}.png")
    with pytest.raises(DataError, match="index 0 is red in .*black in"):
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


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize(
    ("size", "orientation"), [((32, 48), 2), ((32, 48), 3), ((32, 48), 4), ((32, 32), 6)]
)
def test_masks_whose_size_does_not_tell_whether_they_are_turned_are_counted(
    size: tuple[int, int],
    orientation: int,
    suffix: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    maps_of(turned_folder(tmp_path, size, orientation, suffix))
    assert "1 image with masks turned or mirrored by the EXIF tag, of the same size" in caplog.text
    assert f"1.{suffix}: masks are read as those of the upright image" in caplog.text


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("of_image", "of_mask"), [(1, 3), (3, 4), (3, 3), (1, 1)])
def test_masks_that_their_own_tag_turns_otherwise_than_their_images_are_counted(
    of_image: int, of_mask: int, suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = turned_folder(tmp_path, (32, 48), of_image, suffix)
    mask = folder / "masks/1.png"
    exif = Image.Exif()
    exif[0x0112] = of_mask
    with Image.open(mask) as opened:
        values = np.asarray(opened)
    mask.unlink()
    Image.fromarray(values).save(mask.with_suffix(f".{suffix}"), exif=exif)
    maps_of(folder)
    lines = [record.getMessage() for record in caplog.records if "EXIF" in record.getMessage()]
    if of_image == of_mask:
        assert not lines
    else:
        [line] = lines
        assert line.startswith(
            "1 mask turned or mirrored by the EXIF tag otherwise than their images"
        )
        assert f"1.{suffix}: masks are read upright by their own tag" in line


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_a_mask_of_the_stored_pixels_is_refused_with_the_likely_cause(
    suffix: str, tmp_path: Path
) -> None:
    folder = turned_folder(tmp_path, (32, 48), 6, suffix)
    with pytest.raises(DataError, match=r"1.png is 32x48 .* 48x32 px.*stored pixels.*EXIF"):
        maps_of(folder)


def test_masks_of_upright_images_are_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    maps_of(turned_folder(tmp_path, (32, 48), 1, "jpg"))
    assert "EXIF" not in caplog.text


def test_infinity_as_nodata_is_kept_as_the_largest_float_and_nan_is_dropped() -> None:
    data = DataConfig(nodata=(float("inf"), -float("inf"), float("nan"), -9999.0))
    assert data.nodata == (3.4028234663852886e38, -3.4028234663852886e38, -9999.0)


def test_equal_masks_of_other_images_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = written(tmp_path, [halves(0, 1)] * 4)
    maps_of(folder)
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if line.startswith("3 masks with more than one class, such as ")]
    assert f"{folder / 'masks/1.png'}, equal that of another image" in caplog.text


def test_equal_masks_of_one_class_of_few_images_and_of_equal_images_are_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one_class = [halves(0, 0)] * 4
    several = [halves(0, 1), halves(0, 1), halves(1, 0)]
    maps_of(written(tmp_path, one_class + several))
    assert "equal that of another image" not in caplog.text
    for number in range(4):
        Image.fromarray(halves(0, 1)).save(tmp_path / f"masks/{number}.png")
        Image.new("RGB", SIZE[::-1], (7, 8, 9)).save(tmp_path / f"images/{number}.png")
    maps_of(tmp_path)
    assert "equal that of another image" not in caplog.text
