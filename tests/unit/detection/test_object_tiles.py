"""Trainings of heads of objects on tiles: ids of pixels are cut as images are, and predictions of tiles are scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests import kit
from tests.unit.detection.test_panoptic import Segment, write_panoptic
from tests.unit.detection.test_train_instances import COLOURS, stop_in_first_fold, written

from dinoneck import ConfigError, DataError, HeadCheckpoint, Predictor
from dinoneck.data import BoxImages, PanopticImages
from dinoneck.detection import objects, train_instances
from dinoneck.detection.object_tiles import ObjectTiles
from dinoneck.inference import coco_objects
from dinoneck.inference.tiles import Tiling
from dinoneck.training import BackboneConfig, Recipe, TrainInstancesConfig

pytest.importorskip("pycocotools", reason="masks need pycocotools, the extra [masks]")

# columns 0 to 40 and 32 to 72 of an image of 40 x 72 px
TILING = Tiling((40, 40), 8)
SIZE = (40, 72)
TILE = (48, 64)


def rectangle(left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    outline = [left, top, right, top, right, bottom, left, bottom]
    return {
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": [outline],
        "category_id": 1,
    }


def write(folder: Path, *entries: dict[str, Any]) -> BoxImages:
    """An image of 40 x 72 px with objects."""
    folder.mkdir()
    height, width = SIZE
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "0.png")
    annotations = []
    for number, entry in enumerate(entries):
        annotations.append({"id": number + 1, "image_id": 7, "iscrowd": 0, **entry})
    content = {
        "images": [{"id": 7, "file_name": "0.png", "width": width, "height": height}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cell"}],
    }
    file = folder / "objects.json"
    file.write_text(json.dumps(content))
    return BoxImages(file, masks=True)


def test_the_ids_of_objects_are_cut_to_each_tile(tmp_path: Path) -> None:
    images = write(tmp_path / "s", rectangle(4, 4, 12, 12), rectangle(28, 20, 44, 30))
    tiles = ObjectTiles(images, TILING)

    left, right = tiles.tile_ids()

    expected = np.zeros((40, 40), np.int64)
    expected[4:12, 4:12] = 1000
    expected[20:30, 28:40] = 1001
    assert np.array_equal(left, expected)
    expected = np.zeros((40, 40), np.int64)
    expected[20:30, 0:12] = 1000  # of columns 28 to 44 those from 32 on; the first object here
    assert np.array_equal(right, expected)
    assert [sample.num_objects for sample in tiles.samples] == [2, 1]
    assert (tiles.num_cut, tiles.num_empty, tiles.most_objects) == (1, 0, 2)


def many_objects(folder: Path) -> BoxImages:
    """An image of 40 x 72 px with 1080 objects of one class, 600 of them in columns 0 to 40."""
    squares = []
    for top in range(0, 40, 2):
        for left in range(0, 72, 4):
            squares += [rectangle(left, top, left + 2, top + 1)]
            squares += [rectangle(left, top + 1, left + 2, top + 2)]
            squares += [rectangle(left + 2, top, left + 4, top + 2)]
    return write(folder, *squares)


def test_an_image_may_have_more_objects_of_a_class_than_a_tile(tmp_path: Path) -> None:
    images = many_objects(tmp_path / "s")
    tiles = ObjectTiles(images, TILING)

    left, right = tiles.tile_ids()

    assert images.numbers == {7: 1080}
    assert np.unique(left).tolist() == list(range(1000, 1600))
    assert np.unique(right).tolist() == list(range(1000, 1600))
    assert tiles.most_objects == 600


def test_a_thousand_objects_of_a_class_in_an_image_are_refused(tmp_path: Path) -> None:
    images = many_objects(tmp_path / "s")

    with pytest.raises(DataError, match="has 1080 objects of the class 'cell'; expected fewer"):
        images.pixels(0)


def test_a_thousand_objects_of_a_class_in_a_tile_are_refused(tmp_path: Path) -> None:
    tiles = ObjectTiles(many_objects(tmp_path / "s"), Tiling((40, 70), 0))

    with pytest.raises(DataError, match="a tile of .* has 1060 objects of the class 'cell'"):
        list(tiles.tile_ids())


@pytest.mark.parametrize(
    ("right", "value"),
    [
        pytest.param(34, 1000, id="2 of 20 columns are a tenth"),
        pytest.param(33, -1, id="1 of 19 columns is less"),
    ],
)
def test_less_than_a_tenth_of_an_object_is_neither_object_nor_background(
    right: int, value: int, tmp_path: Path
) -> None:
    images = write(tmp_path / "s", rectangle(14, 4, right, 12))
    tiles = ObjectTiles(images, TILING)

    _, ids = tiles.tile_ids()

    assert np.unique(ids[4:12, : right - 32]).tolist() == [value]
    assert tiles.num_empty == (value == -1)


def test_an_object_of_many_tiles_is_trained_on_where_it_fills_a_tenth_of_one(
    tmp_path: Path,
) -> None:
    images = write(tmp_path / "s", rectangle(0, 0, 72, 40))
    tiles = ObjectTiles(images, Tiling((8, 8), 0))

    for ids in tiles.tile_ids():  # each shows 64 of 2880 pixels, 2 % of the object
        assert np.unique(ids).tolist() == [1000]
    assert len(tiles) == 45
    assert tiles.num_empty == 0


def test_a_corner_of_an_object_of_many_tiles_is_unknown(tmp_path: Path) -> None:
    images = write(tmp_path / "s", rectangle(0, 0, 66, 34))
    tiles = ObjectTiles(images, Tiling((8, 8), 0))

    last = list(tiles.tile_ids())[-1]  # rows 32 to 40, columns 64 to 72

    assert np.unique(last[:2, :2]).tolist() == [-1]  # 4 of 64 pixels of the tile
    assert np.unique(last[2:]).tolist() == [0]


def test_a_crowd_region_stays_one_in_every_tile(tmp_path: Path) -> None:
    crowd = {**rectangle(10, 4, 33, 12), "iscrowd": 1}
    images = write(tmp_path / "s", crowd, rectangle(50, 4, 60, 12))

    left, right = ObjectTiles(images, TILING).tile_ids()

    assert np.unique(left[4:12, 10:33]).tolist() == [-1000]
    assert np.unique(right[4:12, 0:1]).tolist() == [-1000]


def test_stuff_is_cut_without_a_least_share(tmp_path: Path) -> None:
    ids = np.full(SIZE, 1, np.int64)
    ids[0:10, 14:33] = 2  # a thing, of which the right tile shows 1 of 19 columns
    ids[20:30, 0:33] = 3  # stuff, of which it shows 1 of 33
    segments = [Segment(1, 4), Segment(2, 9), Segment(3, 2)]
    files = write_panoptic(tmp_path / "s", [ids], [segments])
    images = PanopticImages(files.file, files.folder)
    thing = images.classes.index("square")
    stuff = images.classes.index("soil")

    left, right = ObjectTiles(images, TILING).tile_ids()

    assert np.unique(left[0:10, 14:33]).tolist() == [1000 * (thing + 1)]
    assert np.unique(right[0:10, 0:1]).tolist() == [-1]
    assert np.unique(right[20:30, 0:1]).tolist() == [1000 * (stuff + 1)]


def test_pictures_are_the_tiles_of_the_image(tmp_path: Path) -> None:
    images = write(tmp_path / "s", rectangle(4, 4, 12, 12))
    tiles = ObjectTiles(images, TILING)

    left, right = tiles.pictures(kit.backbone().preprocess)

    pixels = np.asarray(Image.open(images.paths[0])).transpose(2, 0, 1)
    assert np.array_equal(left.numpy(), pixels[:, :, :40])
    assert np.array_equal(right.numpy(), pixels[:, :, 32:])
    assert tiles.names()[1] == f"{images.paths[0]} (tile at row 0, column 32)"


def mosaics(folder: Path, count: int) -> Path:
    """Images of 96 x 128 px with 8 discs and squares each, and their COCO file."""
    rng = np.random.default_rng(0)
    pictures = []
    shapes = []
    for _ in range(count):
        pictures.append(rng.integers(90, 130, (96, 128, 3)).astype(np.uint8))
        drawn = []
        for row in range(2):
            for col in range(4):
                kind = int(rng.integers(len(COLOURS)))
                drawn.append((kind, 16 + 32 * col, 24 + 48 * row, int(rng.integers(7, 11))))
        shapes.append(drawn)
    return written(folder, pictures, shapes, {9: "disc", 4: "square"})


def panoptic_mosaics(folder: Path, count: int) -> dict[str, str | list[str]]:
    """The same as panoptic segments: squares on soil."""
    rng = np.random.default_rng(0)
    maps = []
    pictures = []
    segments = []
    for _ in range(count):
        ids = np.full((96, 128), 1, np.int64)
        picture = rng.integers(90, 130, (96, 128, 3)).astype(np.uint8)
        for number in range(8):
            top = 16 + 48 * (number // 4)
            left = 8 + 32 * (number % 4)
            ids[top : top + 16, left : left + 16] = 2 + number
            picture[top : top + 16, left : left + 16] = COLOURS[number % 2]
        maps.append(ids)
        pictures.append(picture)
        things = [Segment(2 + number, 4 if number % 2 else 9) for number in range(8)]
        segments.append([Segment(1, 2), *things])
    files = write_panoptic(folder, maps, segments, pictures)
    return {"panoptic": [str(files.folder), str(files.file)]}


def config_of(data: dict[str, Any], head: dict[str, Any], **groups: Any) -> TrainInstancesConfig:
    values: dict[str, Any] = {
        "data": {"tile": TILE, **data},
        "folds": {"count": 2, "only": 1},
        "optim": Recipe(epochs=2, batch_size=8, lr=3e-3, seed=0).to_dict(),
        "backbone": BackboneConfig(name="dinoneck_tiny", layers=(1, 2, 4, 5)).to_dict(),
        "head": head,
    }
    return TrainInstancesConfig.from_dict(values | groups)


def assert_nearly_equal(objects: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(objects) == len(expected)
    for predicted, known in zip(objects, expected, strict=True):
        assert predicted["category_id"] == known["category_id"]
        assert predicted["score"] == pytest.approx(known["score"], abs=1e-5)
        assert predicted["bbox"] == known["bbox"]
        assert predicted["segmentation"] == known["segmentation"]


PYRAMID = {"type": "dpt_neck", "out_channels": 16}
MASK = {"type": "mask", "num_blocks": 1, "dim": 32}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "head"),
    [
        pytest.param("instances", PYRAMID, id="pyramid"),
        pytest.param("instances", MASK, id="mask"),
        pytest.param("panoptic", MASK, id="panoptic"),
    ],
)
def test_held_out_images_are_predicted_whole_as_a_predictor_does(
    kind: str, head: dict[str, Any], tmp_path: Path
) -> None:
    data: dict[str, Any]
    if kind == "instances":
        data = {"instances": str(mosaics(tmp_path / "s", 4))}
    else:
        data = panoptic_mosaics(tmp_path / "s", 4)
    # a backbone that trains along gives float32, where tokens in memory are float16
    backbone = {"name": "dinoneck_tiny", "layers": [1, 2, 4, 5], "lora": 2}
    config = config_of(data, head, backbone=backbone)
    images = objects.open_objects(config.data.objects)
    tiling = objects.tiling_of(config, images)
    tiles = ObjectTiles(images, tiling)
    config = objects.with_object_defaults(config, tiles)
    trainer = objects.prepare_instances(config, tmp_path / "run", tiles)

    report = trainer.train()

    assert len(tiles) == 4 * 3 * 3  # 96 = 48 + 2 * 24, of which 20 px or more overlap
    assert config.data.size == TILE
    assert report["tiles"] == {"train": 36, "without_objects": tiles.num_empty}
    head_file = tmp_path / "run" / "head.safetensors"
    training = HeadCheckpoint.load(head_file).meta["training"]
    assert training["tile"] == list(TILE)
    predictor = Predictor(head_file, batch_size=1)
    assert predictor.tiling is not None
    assert predictor.tiling.tile == TILE
    [fold] = trainer.folds
    least_score = min(trainer.evaluator.objects)
    for row in fold.valid.tolist():
        [prediction] = predictor([images.paths[row]], min_score=least_score)
        expected = trainer.evaluator.objects[least_score][images.ids[row]]
        assert_nearly_equal(coco_objects(prediction["objects"]), expected)
        assert expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tile", "overlap", "recorded"),
    [
        pytest.param((48, 64), None, (48, 64), id="cut on both sides"),
        pytest.param((500, 64), None, (96, 64), id="strips"),
        pytest.param((500, 64), 20, (96, 64), id="strips that share pixels"),
        pytest.param((64, 500), 20, (64, 128), id="upright strips"),
        pytest.param((500, 120), 100, (500, 120), id="strips that share more than their height"),
        pytest.param((512, 512), None, (512, 512), id="not cut"),
    ],
)
def test_the_file_records_the_tile_that_was_shown(
    tile: tuple[int, int], overlap: int | None, recorded: tuple[int, int], tmp_path: Path
) -> None:
    file = mosaics(tmp_path / "s", 2)
    data = {"instances": str(file), "tile": tile}
    if overlap is not None:
        data["overlap"] = overlap
    config = config_of(data, MASK, folds={"count": 1})
    images = objects.open_objects(config.data.objects)
    tiles = ObjectTiles(images, objects.tiling_of(config, images))
    config = objects.with_object_defaults(config, tiles)
    trainer = objects.prepare_instances(config, tmp_path / "run", tiles)

    record = trainer.record_of_data()

    assert record["tile"] == list(recorded)
    assert record.get("overlap") == overlap


@pytest.mark.slow
def test_the_tile_of_the_training_can_be_turned_off(tmp_path: Path) -> None:
    data = {"instances": str(mosaics(tmp_path / "s", 2))}
    train_instances(config_of(data, MASK, folds={"count": 1}), tmp_path / "run")
    head = tmp_path / "run" / "head.safetensors"

    assert Predictor(head, tile=None).tiling is None
    stated = Predictor(head, tile=64, overlap=10).tiling
    assert stated is not None
    assert (stated.tile, stated.stated_overlap) == ((64, 64), 10)
    overlapping = Predictor(head, overlap=30).tiling
    assert overlapping is not None
    assert (overlapping.tile, overlapping.stated_overlap) == (TILE, 30)


@pytest.mark.slow
def test_a_run_on_tiles_continues_to_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"instances": str(mosaics(tmp_path / "s", 2))}
    config = config_of(data, MASK, folds={"count": 1})
    train_instances(config, tmp_path / "whole")
    stop_in_first_fold(config, tmp_path / "run", monkeypatch)

    train_instances(config, tmp_path / "run")

    expected = HeadCheckpoint.load(tmp_path / "whole" / "head.safetensors").meta["digest"]
    assert HeadCheckpoint.load(tmp_path / "run" / "head.safetensors").meta["digest"] == expected


@pytest.mark.slow
def test_queries_are_counted_by_the_objects_of_tiles(tmp_path: Path) -> None:
    images = BoxImages(mosaics(tmp_path / "s", 1), masks=True)
    config = config_of({"instances": "objects.json"}, {**MASK, "num_queries": 6})

    with pytest.raises(DataError, match="an image has 8 objects; num_queries is 6"):
        objects.with_object_defaults(config, ObjectTiles(images, None))

    tiles = ObjectTiles(images, Tiling((48, 64), 0))
    assert objects.with_object_defaults(config, tiles).head["num_queries"] == 6
    with pytest.raises(DataError, match="a tile has 2 objects; num_queries is 1"):
        objects.with_object_defaults(config.changed(head={**MASK, "num_queries": 1}), tiles)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tile", "size"),
    [
        pytest.param((48, 64), (48, 64), id="cut on both sides"),
        pytest.param((500, 64), (96, 64), id="cut on one side"),
        pytest.param((500, 500), None, id="not cut"),
    ],
)
def test_the_size_is_that_of_the_largest_tile(
    tile: tuple[int, int], size: tuple[int, int] | None, tmp_path: Path
) -> None:
    images = BoxImages(mosaics(tmp_path / "s", 1), masks=True)
    config = config_of({"instances": "objects.json", "tile": tile}, MASK)
    tiles = ObjectTiles(images, Tiling(tile, 0))

    assert objects.with_object_defaults(config, tiles).data.size == size


@pytest.mark.slow
def test_heads_are_built_for_the_grid_of_tiles_and_not_of_images(tmp_path: Path) -> None:
    file = mosaics(tmp_path / "s", 2)
    data = {"instances": str(file), "tile": 48, "size": 48, "resize": "keep"}
    config = config_of(data, MASK, folds={"count": 1})
    tiles = ObjectTiles(BoxImages(file, masks=True), Tiling((48, 48), 0))
    config = objects.with_object_defaults(config, tiles)

    trainer = objects.prepare_instances(config, tmp_path / "run", tiles)

    assert tuple(trainer.tokens.example.grid) == (3, 3)  # of an image it would be (2, 3)
    assert trainer.problem.targets["objects"].shape == (2 * 2 * 3, 12, 12)


@pytest.mark.slow
def test_a_tile_that_the_size_would_crop_is_refused(tmp_path: Path) -> None:
    data = {"instances": str(mosaics(tmp_path / "s", 2)), "size": 64, "resize": "crop"}

    with pytest.raises(ConfigError, match="resize='crop' keeps proportions"):
        train_instances(config_of(data, MASK), tmp_path / "run")
