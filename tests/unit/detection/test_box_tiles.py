"""Boxes and masks of large images are cut to the tiles that a training draws, and files remember the tiles."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import kit
from tests.unit.detection import coloured_boxes
from tests.unit.detection.test_train_detector import config_of, contents, stopped_after
from tests.unit.training.histories import logged

from dinoneck import (
    ConfigError,
    DataError,
    HeadCheckpoint,
    Predictor,
    PyramidHead,
    SimplePyramid,
    STAPyramid,
    Task,
)
from dinoneck.checkpoint.card import model_card
from dinoneck.data import BoxImages, box_transforms
from dinoneck.detection import (
    DetectionHead,
    Detector,
    box_tiles,
    evaluate_boxes,
    train_detector,
    training,
)
from dinoneck.detection.box_tiles import BoxTiles
from dinoneck.inference.tiles import Tiling, TrainedBoxes
from dinoneck.training import TrainDetectorConfig, TrainInstancesConfig, engine

pytest.importorskip("pycocotools", reason="needs dinoneck[detection]")

# columns 0 to 100, 50 to 150 and 100 to 200 of an image of 100 x 200 px
TILING = Tiling((100, 100), 20)
SIZE = (100, 200)


def write(folder: Path, *objects: dict[str, Any], size: tuple[int, int] = SIZE) -> Path:
    """Write a random image with objects, and its JSON; return the path of the JSON."""
    height, width = size
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "0.png")
    annotations = []
    for i, entry in enumerate(objects):
        annotations.append({"id": i + 1, "image_id": 7, "category_id": 1, "iscrowd": 0, **entry})
    content = {
        "images": [{"id": 7, "file_name": "0.png", "width": width, "height": height}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cell"}],
    }
    file = folder / "boxes.json"
    file.write_text(json.dumps(content))
    return file


def boxes_of(tiles: BoxTiles) -> list[list[list[float]]]:
    """The boxes of every tile."""
    return [tiles[i][1]["boxes"].tolist() for i in range(len(tiles))]


# boxes and masks of a tile


@pytest.mark.parametrize(
    ("bbox", "expected"),
    [
        pytest.param([10, 10, 20, 20], [[[10, 10, 30, 30]], [], []], id="whole in one tile"),
        pytest.param(
            [90, 40, 40, 20],
            [[[90, 40, 100, 60]], [[40, 40, 80, 60]], [[0, 40, 30, 60]]],
            id="a quarter, all and three quarters",
        ),
        pytest.param(
            [98, 70, 100, 20],
            [[], [[48, 70, 100, 90]], [[0, 70, 98, 90]]],
            id="2 % is left out",
        ),
        pytest.param(
            [90, 5, 100, 10],
            [[[90, 5, 100, 15]], [[40, 5, 100, 15]], [[0, 5, 90, 15]]],
            id="a tenth is an object",
        ),
        pytest.param(
            [99.5, 70, 4, 20],
            [[], [[49.5, 70, 53.5, 90]], [[0, 70, 3.5, 90]]],
            id="half a pixel is left out",
        ),
    ],
)
def test_a_box_is_cut_to_each_tile(
    bbox: list[float], expected: list[list[list[float]]], tmp_path: Path
) -> None:
    tiles = BoxTiles(BoxImages(write(tmp_path, {"bbox": bbox})), TILING)

    assert boxes_of(tiles) == expected
    assert tiles.num_empty == expected.count([])


def test_a_box_of_many_tiles_is_trained_on_where_it_fills_a_tenth_of_one(tmp_path: Path) -> None:
    file = write(tmp_path, {"bbox": [0, 0, 200, 100]})

    tiles = BoxTiles(BoxImages(file), Tiling((20, 20), 0))

    assert len(tiles) == 50  # each shows 2 % of the box
    assert boxes_of(tiles) == [[[0, 0, 20, 20]]] * 50
    assert tiles.num_empty == 0


def test_a_tile_shows_its_pixels_of_the_image(tmp_path: Path) -> None:
    tiles = BoxTiles(BoxImages(write(tmp_path, {"bbox": [10, 10, 20, 20]})), TILING)
    pixels = np.asarray(Image.open(tmp_path / "0.png"))

    image, target = tiles[1]

    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels[:, 50:150])
    assert target["size"] == (100, 100) and target["image_id"] == 7


def test_the_box_of_a_whole_mask_is_the_one_that_the_file_states(tmp_path: Path) -> None:
    """The mask of the file is smaller than its box, as that of a plant whose stem was left out."""
    square = [[20, 20, 40, 20, 40, 40, 20, 40]]
    bbox = [15, 15, 30, 35]
    file = write(tmp_path, {"bbox": bbox, "segmentation": square, "area": 400})

    tiles = BoxTiles(BoxImages(file, masks=True), TILING)

    assert boxes_of(tiles)[0] == [[15, 15, 45, 50]]


def test_a_mask_is_cut_to_each_tile_and_the_box_to_what_is_left_of_it(tmp_path: Path) -> None:
    """The triangle is one pixel high at column 40 and 60 px high at column 160: its box says little of a part."""
    triangle = [[40, 80, 160, 20, 160, 80]]
    bbox = [40, 20, 120, 60]
    file = write(tmp_path, {"bbox": bbox, "segmentation": triangle, "area": 3600})
    images = BoxImages(file, masks=True)
    [whole] = images[0][1]["masks"].numpy()

    for i, first in enumerate((0, 50, 100)):
        _, target = BoxTiles(images, TILING)[i]
        expected = whole[:, first : first + 100]
        rows, cols = expected.nonzero()
        [mask] = target["masks"].numpy()
        np.testing.assert_array_equal(mask, expected)
        corners = [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
        assert target["boxes"].tolist() == [corners]


def test_the_share_of_a_mask_counts_not_that_of_its_box(tmp_path: Path) -> None:
    """A third of the box of this triangle is in the first tile, and a ninth of its area; then a fourteenth."""
    kept = {"bbox": [70, 10, 90, 60], "segmentation": [[70, 70, 160, 10, 160, 70]], "area": 2700}
    dropped = {"bbox": [76, 10, 90, 60], "segmentation": [[76, 70, 166, 10, 166, 70]], "area": 2700}

    for number, (entry, count) in enumerate(((kept, 1), (dropped, 0))):
        images = BoxImages(write(tmp_path / str(number), entry), masks=True)
        tiles = BoxTiles(images, TILING)
        _, target = tiles[0]
        assert len(target["masks"]) == len(target["labels"]) == count
        assert tiles.num_empty == 1 - count  # the other two tiles show it


def test_crowd_regions_are_left_out(tmp_path: Path) -> None:
    crowd = {"bbox": [10, 10, 20, 20], "iscrowd": 1}
    images = BoxImages(write(tmp_path, crowd, {"bbox": [40, 40, 20, 20]}))

    assert boxes_of(BoxTiles(images, TILING))[0] == [[40, 40, 60, 60]]
    objects = BoxImages(write(tmp_path, crowd, {"bbox": [40, 40, 20, 20]}), crowd="objects")
    assert len(boxes_of(BoxTiles(objects, TILING))[0]) == 2


def test_an_image_that_fits_a_tile_is_as_without_tiles(tmp_path: Path) -> None:
    images = BoxImages(write(tmp_path, {"bbox": [10, 10, 20, 20]}))
    tiles = BoxTiles(images, Tiling((100, 200), 20))

    [(image, target)] = [tiles[i] for i in range(len(tiles))]

    expected_image, expected = images[0]
    assert torch.equal(image, expected_image)
    assert torch.equal(target["boxes"], expected["boxes"])
    assert target["size"] == expected["size"] and tiles.num_cut == 0


def test_augmentation_is_of_tiles(tmp_path: Path) -> None:
    images = BoxImages(write(tmp_path, {"bbox": [60, 10, 20, 20]}))
    mirrored = box_transforms(50, train=True, photometric=False, mean=None, std=None)
    torch.manual_seed(0)
    seen = [BoxTiles(images, TILING, mirrored)[1][1]["boxes"][0].tolist() for _ in range(20)]

    # columns 10 to 30 of the tile, at half its size; mirrored in the tile 70 to 90
    assert {tuple(box) for box in seen} == {(5, 5, 15, 15), (35, 5, 45, 15)}


# decoding


def test_an_epoch_decodes_every_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, {"bbox": [10, 10, 20, 20]})
    content = json.loads(file.read_text())
    content["images"] = []
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes((tmp_path / "0.png").read_bytes())
        content["images"].append(
            {"id": 7 + i, "file_name": f"{i}.png", "width": 200, "height": 100}
        )
    file.write_text(json.dumps(content))
    images = BoxImages(file)
    tiles = BoxTiles(images, TILING)
    monkeypatch.setattr(box_tiles, "CACHE_BYTES", 2 * 3 * 100 * 200)
    decoded = Counter[int]()
    original = images.original

    def counted(i: int) -> Any:
        decoded[i] += 1
        return original(i)

    monkeypatch.setattr(images, "original", counted)

    orders = [tiles.epoch_order(np.random.default_rng(seed)) for seed in (0, 0, 1)]
    for i in orders[0]:
        tiles[i]

    assert sorted(orders[0]) == list(range(15))
    assert orders[0] == orders[1] != orders[2]
    assert decoded == dict.fromkeys(range(5), 1)
    # two images are kept: in the order of the file each one is gone when it is read again
    for i in (*range(0, 15, 3), *range(0, 15, 3)):
        tiles[i]
    assert sum(decoded.values()) >= 5 + 9


# the overlap


@pytest.mark.parametrize(
    ("longest_box", "expected"),
    [
        pytest.param(None, (0, 80, 160, 240, 320, 400), id="unknown: a fifth of the tile"),
        pytest.param(12.5, (0, 80, 160, 240, 320, 400), id="shorter than a fifth"),
        pytest.param(39.2, (0, 57, 114, 171, 229, 286, 343, 400), id="40 px"),
        pytest.param(4000.0, (0, 50, 100, 150, 200, 250, 300, 350, 400), id="half a tile at most"),
    ],
)
def test_tiles_overlap_by_the_longest_box(
    longest_box: float | None, expected: tuple[int, ...]
) -> None:
    detector = small_detector()
    if longest_box is not None:
        detector.note_trained_boxes(TrainedBoxes(longest_box))
    detector.use_tiles(100)

    assert detector.tiling is not None
    tiles = box_tiles.tiles_of((100, 500), detector.tiling)
    assert tuple(tile.left for tile in tiles) == expected


def test_no_overlap_of_the_tiles_of_a_detector_without_tiles_is_no_tiles() -> None:
    detector = small_detector()

    detector.use_tiles("auto", 0)

    assert detector.tiling is None


def test_a_stated_overlap_counts_alone() -> None:
    detector = small_detector()
    detector.note_trained_boxes(TrainedBoxes(longest_box=40.0))
    detector.use_tiles(100, 0)

    assert detector.tiling == Tiling((100, 100), 0)


def small_detector() -> Detector:
    return Detector(DetectionHead("fcos", ("cell",), STAPyramid(64, 32)), kit.backbone(), (96, 128))


def test_heads_of_objects_overlap_by_the_longest_box_too() -> None:
    tasks = [Task("objects", kind="instances", labels=("cell",))]
    head = PyramidHead(64, tasks, neck=SimplePyramid(64, 8))
    file = HeadCheckpoint.from_module(
        head, backbone=kit.backbone(), training=TrainedBoxes(longest_box=40.0).record()
    )

    [its_pass] = Predictor(file, kit.backbone(), tile=96).passes

    assert its_pass.object_tiling == Tiling((96, 96), 0.2, longest_box=40.0)


# files


def test_a_file_keeps_what_is_known_of_the_boxes(tmp_path: Path) -> None:
    detector = small_detector()
    detector.save(tmp_path / "unknown.safetensors")
    detector.note_trained_boxes(TrainedBoxes(40.0, tile=(64, 80), overlap=30))
    detector.save(tmp_path / "first.safetensors", training={"epochs": 3})

    loaded = Detector.load(tmp_path / "first.safetensors")
    loaded.save(tmp_path / "second.safetensors", training={"epochs": 3})

    assert loaded.trained_boxes == detector.trained_boxes
    assert loaded.tiling == Tiling((64, 80), 30)
    first = (tmp_path / "first.safetensors").read_bytes()
    assert (tmp_path / "second.safetensors").read_bytes() == first
    assert HeadCheckpoint.load(tmp_path / "unknown.safetensors").meta["training"] is None
    shown = kit.cli("inspect", tmp_path / "first.safetensors").out
    assert "longest_box 40" in shown and "tile [64, 80]" in shown
    page = model_card(tmp_path / "first.safetensors")
    assert "By default images are cut into tiles of `64x80` px" in page


# trainings


@pytest.fixture(scope="module")
def mosaics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mosaics(tmp_path_factory.mktemp("mosaics"), count=2, seed=0)


def write_mosaics(folder: Path, *, count: int, seed: int) -> Path:
    """Write images of 192 x 256 px with 24 squares of 12 x 12 px each, of two colours."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    annotations = []
    for number in range(count):
        pixels = (128 + 8 * rng.standard_normal((192, 256, 3))).clip(0, 255)
        cells = rng.permutation(8 * 10)[:24]
        for i, cell in enumerate(cells.tolist()):
            row, col = divmod(cell, 10)
            top, left = 24 * row + int(rng.integers(11)), 25 * col + int(rng.integers(11))
            name = list(coloured_boxes.COLOURS)[i % 2]
            pixels[top : top + 12, left : left + 12] = coloured_boxes.COLOURS[name]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1 + i % 2,
                    "bbox": [left, top, 12, 12],
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 256, "height": 192} for i in range(count)
        ],
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": n} for i, n in enumerate(coloured_boxes.COLOURS)],
    }
    file = folder / "boxes.json"
    file.write_text(json.dumps(content))
    return file


def tiled_config(boxes: Path, **groups: dict[str, Any]) -> TrainDetectorConfig:
    data = {"tile": [96, 128], **groups.pop("data", {})}
    return config_of(boxes, data=data, **groups)


@pytest.mark.slow
def test_the_reported_scores_are_those_of_evaluate_with_tiles(
    mosaics: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = train_detector(tiled_config(mosaics), tmp_path)

    # 20 % of 96 and 128 px: rows 0, 48, 96 and columns 0, 64, 128 of each of two images
    assert report["tiles"] == {"train": 18, "without_boxes": 0}
    assert report["images"] == {"train": 2, "val": 2}
    assert "2 of 2 training images are cut: 18 tiles, 0 without a box" in caplog.text
    file = tmp_path / "detector.safetensors"
    ran = kit.cli(
        "evaluate", mosaics.parent, "--heads", file, "--truth", mosaics, "--tile", "96x128"
    )
    assert ran.code == 0, ran.err
    detector = Detector.load(file)
    assert detector.tiling == Tiling((96, 128), 0.2, longest_box=12.0)
    scores = evaluate_boxes(detector, mosaics)
    for name in ("AP", "AP50", "AP75", "AR100"):
        assert scores[name] == pytest.approx(report["best"][name], abs=1e-6)
    image = mosaics.parent / "0.png"
    [by_default] = Predictor(file)(image, min_score=0.0)
    [expected] = detector.predict(image, min_score=0.0, tile=(96, 128))
    assert torch.equal(by_default["boxes"], expected["boxes"])
    out = kit.cli("predict", image, "--heads", file, "--out", tmp_path / "boxes.csv").out
    assert "Images are cut into tiles of 96x128 px, as in the training" in out


@pytest.mark.slow
def test_a_killed_run_on_tiles_goes_on_to_the_same_file(
    mosaics: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiled_config(mosaics, optim={"epochs": 2, "batch_size": 6})
    train_detector(config, tmp_path / "whole")
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    with stopped_after(epochs=1, by=DataError("no power")):
        train_detector(config, tmp_path / "cut")

    train_detector(config, tmp_path / "cut")

    assert logged(tmp_path / "cut" / "log.jsonl") == logged(tmp_path / "whole" / "log.jsonl")
    name = "detector.safetensors"
    assert contents(tmp_path / "cut")[name] == contents(tmp_path / "whole")[name]


@pytest.mark.slow
def test_images_are_held_out_and_not_tiles(mosaics: Path, tmp_path: Path) -> None:
    data = {"val_boxes": None}
    config = tiled_config(mosaics, data=data, folds={"count": 2})

    trainer = training.prepare(config, tmp_path / "run")

    assert isinstance(trainer.samples, BoxTiles)
    assert len(trainer.samples) == 9
    paths = {*trainer.samples.images.paths, *trainer.val_images.paths}
    assert len(trainer.val_images) == 1 and len(paths) == 2


@pytest.mark.slow
def test_a_training_without_tiles_keeps_the_longest_box(mosaics: Path, tmp_path: Path) -> None:
    report = train_detector(config_of(mosaics), tmp_path)

    detector = Detector.load(tmp_path / "detector.safetensors")
    assert detector.trained_boxes == TrainedBoxes(longest_box=12.0)
    assert detector.tiling is None
    assert "tile" not in report["config"]["data"] and "tiles" not in report


@pytest.mark.slow
def test_small_objects_are_found_on_tiles_and_not_in_the_reduced_image(tmp_path: Path) -> None:
    """In the tiles a square has 12 px a side, in the reduced images 6 px; both trainings take 135 steps."""
    train = write_mosaics(tmp_path / "train", count=4, seed=0)
    val = write_mosaics(tmp_path / "val", count=2, seed=1)
    data = {"val_boxes": str(val), "size": [96, 128]}
    detector = {"augment": "none", "eval_every": 200}
    optim = {"lr": 2e-3, "backbone_lr": 2e-3, "batch_size": 4, "freeze": ["0=none"]}
    with_tiles = tiled_config(train, data=data, detector=detector, optim={**optim, "epochs": 15})
    reduced = config_of(train, data=data, detector=detector, optim={**optim, "epochs": 135})

    tiled = train_detector(with_tiles, tmp_path / "tiled")
    whole = train_detector(reduced, tmp_path / "whole")

    assert tiled["best"]["AP50"] > 0.9  # 1.0 and 0.22 where it was written
    assert whole["best"]["AP50"] < 0.5


# refusals


def test_a_tile_smaller_than_a_patch_is_refused(mosaics: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tile is \(8, 128\) px .* smaller than a patch"):
        train_detector(tiled_config(mosaics, data={"tile": [8, 128]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param({"overlap": 3}, "overlap is 3, and needs tile", id="overlap alone"),
        pytest.param(
            {"tile": 64, "overlap": 64}, "expected less than its", id="as large as a tile"
        ),
        pytest.param({"tile": [0, 4]}, r"tile is \(0, 4\); expected 1 \.\.\.", id="no pixels"),
    ],
)
def test_tiles_that_are_none_are_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainDetectorConfig.from_dict({"data": {"boxes": "boxes.json", **data}})
    with pytest.raises(ConfigError, match=message):
        TrainInstancesConfig.from_dict({"data": {"instances": "objects.json", **data}})


def test_a_training_of_a_store_has_no_tiles(tmp_path: Path) -> None:
    ran = kit.cli(
        "train", "--csv", "a.csv", "--store", "store", "--tile", "64x64", "--out", tmp_path
    )
    assert ran.code != 0
    assert "It is an option of the training of boxes and of objects" in ran.err
