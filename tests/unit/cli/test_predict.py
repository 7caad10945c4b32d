"""``dinoneck extract``, ``dinoneck verify`` and ``dinoneck predict``."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tests.kit import cli, saved_head
from tests.unit.inference.test_image_resolution import head_of
from tests.unit.store.store_samples import make, same, write_images
from tests.unit.training.meadow import rows_of

from dinoneck import (
    CLSGatingHead,
    DenseHead,
    FeatureStore,
    HeadCheckpoint,
    LinearHead,
    MaskHead,
    Predictor,
    Task,
    load_backbone,
    save_head,
)
from dinoneck.backbones.known import DINOV3_SMALL
from dinoneck.checkpoint.rebuild import rebuild
from dinoneck.inference import ImagePrediction, coco_objects
from dinoneck.viz import boxes_panel, overlay

TINY = ("--backbone", "dinoneck_tiny")


def test_the_backbone_that_the_help_names_is_the_default(tmp_path: Path) -> None:
    write_images(tmp_path, ["p/a.png"])
    assert (
        cli(
            "extract",
            tmp_path / "p",
            "--out",
            tmp_path / "s",
            "--size",
            "32x48",
            "--random-backbone",
        ).code
        == 0
    )
    assert FeatureStore.open(tmp_path / "s").backbone_record["name"] == DINOV3_SMALL


def test_extract_and_verify(tmp_path: Path) -> None:
    write_images(tmp_path, ["p/a.png", "p/b.png"])
    out = tmp_path / "s"
    words = (
        "extract",
        tmp_path / "p",
        "--out",
        out,
        *TINY,
        "--size",
        "32x48",
        "--views",
        "flips4",
        "--layers",
        "0",
        "-1",
    )
    assert "1 image extracted, 0 were there" in cli(*words, "--shard", "1/2").out
    (tmp_path / "p" / "c.png").write_text("no picture")
    refused = cli(*words)
    assert refused.code == 1 and "c.png" in refused.err
    printed = cli(*words, "--skip-unusable").out
    assert "0 images extracted, 2 were there, 1 left out" in printed and "left out:" in printed
    store, expected = (
        FeatureStore.open(out),
        make(tmp_path / "expected", load_backbone("dinoneck_tiny", layers=[0, -1])),
    )
    expected.extract([tmp_path / "p" / "a.png", tmp_path / "p" / "b.png"])
    assert same(store, expected)

    assert "images 2, views 4" in cli("verify", out).out
    shard = out / store.shard_of("b")
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    damaged = cli("verify", out)
    assert damaged.code == 1 and f"damaged (b {store.shard_of('b')})" in damaged.err


def test_options_change_the_store(tmp_path: Path) -> None:
    """A size that the patch does not divide is rounded and reported, as in training."""
    write_images(tmp_path, ["p/b.png", "p/x.png"])
    stores = {}
    for name, more in {
        "plain": [],
        "resize": ["--resize", "pad"],
        "interpolation": ["--interpolation", "bicubic"],
        "dtype": ["--dtype", "int8"],
        "norm": ["--no-norm"],
        "batch": ["--batch-size", "2"],
    }.items():
        printed = cli(
            "extract", tmp_path / "p", *TINY, "--size", "40x60", "--out", tmp_path / name, *more
        ).out
        assert "does not divide 40x60 px" in printed and "48x64 px" in printed
        stores[name] = FeatureStore.open(tmp_path / name).batch(["x"])
    plain, tiny = stores.pop("plain"), load_backbone("dinoneck_tiny")
    expected = tiny(tiny.preprocess(tmp_path / "p" / "x.png", size=(40, 60)))
    assert plain.grid == (3, 4)
    assert torch.allclose(plain.sequence[0].float(), expected.sequence[0], atol=4e-3)
    assert torch.allclose(stores.pop("batch").sequence[0], plain.sequence[0], atol=4e-3)
    for name, own in stores.items():
        assert not torch.equal(own.sequence[0], plain.sequence[0]), name


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with images of two sizes and the heads of two folds."""
    write_images(tmp_path / "images", ["large.png"], 60, 150)
    write_images(tmp_path / "images", ["small.png"], 30, 40, seed=1)
    tasks = [Task("mass", kind="density", unit="g"), Task("kind", kind="segmentation", dim=2)]
    for fold in range(2):
        saved_head(tmp_path / "heads" / f"{fold}.safetensors", DenseHead(64, tasks, hidden_dim=8))
    return tmp_path


def job(place: Path, *options: object, heads: Path | None = None) -> list[object]:
    return [
        "predict",
        place / "images",
        "--heads",
        heads or place / "heads",
        "--out",
        place / "out.csv",
        *options,
    ]


def predicted(place: Path, *options: object, heads: Path | None = None) -> list[float]:
    assert cli(*job(place, *options, heads=heads)).code == 0
    return [float(row["mass"]) for row in rows_of(place / "out.csv")]


@pytest.mark.slow
def test_options_reach_the_predictor_and_pictures_change_no_value(place: Path) -> None:
    images, heads = sorted((place / "images").iterdir()), place / "heads"

    def expected(**settings: Any) -> Any:
        return pytest.approx(
            [row["mass"] for row in Predictor(heads, **settings)(images)], rel=1e-4
        )

    tiles = ["--tile", "40x60", "--overlap", "15"]
    assert predicted(place, *tiles) == expected(tile=(40, 60), overlap=15) != expected()
    assert predicted(place, "--tta", "flip4") == expected(tta="flip4")
    found = cli(*job(place, "--maps", place / "maps", "--overlay", place / "pictures", "--json"))
    assert f"written: {place / 'out.csv'}, {place / 'maps'}, {place / 'pictures'}" in found.err
    assert sorted(path.stem for path in (place / "pictures").iterdir()) == ["large", "small"]
    for row, result in zip(found.json["predictions"], Predictor(heads)(images), strict=True):
        assert row["mass"] == pytest.approx(result["mass"], rel=1e-5)
        assert [row["kind 0"], row["kind 1"]] == pytest.approx(
            list(map(float, result["kind"])), rel=1e-5
        )
    Image.open(images[0]).save(images[0].with_suffix(".bmp"))
    twice = cli(*job(place, "--maps", place / "m"))
    assert twice.code == 1 and "differ in their suffix" in twice.err


def test_masks_are_those_of_the_predictor_in_the_pixels_of_the_image(tmp_path: Path) -> None:
    """Images of one name in two folders, one of them turned by its tag."""
    backbone, exif, file = load_backbone("dinoneck_tiny"), Image.Exif(), tmp_path / "h.safetensors"
    exif[0x0112] = 6
    module = LinearHead(
        64, [Task("crop", dim=3, kind="segmentation", labels=("soil", "crop", "weed"))], pool=None
    )
    save_head(
        file, module, backbone=backbone, preprocess=backbone.preprocess.changed(resize="crop")
    )
    _, turned = write_images(tmp_path / "images", ["a/1.png", "b/1.png"], 46, 94)
    Image.open(turned).save(turned, exif=exif)
    assert (
        cli(*job(tmp_path, "--maps", tmp_path / "m", "--overlay", tmp_path / "o", heads=file)).code
        == 0
    )
    for folder, size in (("a", (46, 94)), ("b", (94, 46))):
        [row] = Predictor(file)(tmp_path / "images" / folder / "1.png", maps="image")
        with Image.open(tmp_path / "m" / folder / "1.png") as stored:
            mask = np.asarray(stored)
        assert mask.shape == size
        assert np.mean(mask == row["maps"]["crop"]) > 0.999
        with Image.open(tmp_path / "o" / folder / "1.jpg") as picture:
            assert picture.width == round(1200 * size[1] / 94)


def test_maps_of_an_image_are_written_before_those_of_the_next_are_made(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps in the pixels of images are large: never more than those of one are in memory."""
    events: list[str] = []
    make_maps = ImagePrediction.image_maps

    def make(prediction: ImagePrediction, *options: Any) -> Any:
        events.append(f"make {prediction.size}")
        return make_maps(prediction, *options)

    def write(folder: Path, name: str, *_: Any, **__: Any) -> list[Path]:
        events.append(f"write {name}")
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.png").touch()
        return [folder / f"{name}.png"]

    monkeypatch.setattr(ImagePrediction, "image_maps", make)
    monkeypatch.setattr(overlay, "write_maps", write)
    assert cli(*job(place, "--maps", place / "maps")).code == 0
    assert events == ["make (60, 150)", "write large", "make (30, 40)", "write small"]


def test_the_gate_of_a_head_is_a_map_and_a_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = CLSGatingHead(64, [Task("mass", unit="g")], mode="query", hidden_dim=8)
    file = saved_head(tmp_path / "h.safetensors", head)
    [image] = write_images(tmp_path / "images", ["a.png"], 60, 150)
    outputs = ("--maps", tmp_path / "m", "--overlay", tmp_path / "o")
    assert cli(*job(tmp_path, *outputs, heads=file)).code == 0

    [prediction] = Predictor(file).predictions(image)
    with Image.open(tmp_path / "m" / "a.tif") as stored:
        weights = np.asarray(stored)
    assert weights.shape == (60, 150)
    assert np.array_equal(weights, prediction.image_gate(), equal_nan=True)
    assert np.nansum(weights.astype(float)) == pytest.approx(1.0, abs=1e-6)
    with Image.open(tmp_path / "o" / "a.jpg") as picture:
        plain = np.ptp(np.asarray(picture, int), axis=2)
    assert plain[: picture.height // 2].mean() > 5  # heat, not the grey of an image without maps


def test_heads_of_objects_are_refused_for_maps_before_an_image_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task("leaf", dim=2, kind="instances")
    head = MaskHead(64, [task], num_layers=1, num_queries=4, num_blocks=1, dim=16)
    file = saved_head(tmp_path / "h.safetensors", head)
    write_images(tmp_path / "images", ["a.png"], 32, 32)
    predicted: list[Any] = []
    monkeypatch.setattr(Predictor, "predictions", predicted.append)

    refused = cli(*job(tmp_path, "--maps", tmp_path / "m", heads=file))

    assert refused.code == 1
    assert f"--maps {tmp_path / 'm'}: these heads have no maps" in refused.err
    assert predicted == []


def test_heads_without_maps_are_refused_with_the_first_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 70 images the first 32 are predicted, and nothing is written."""
    file = saved_head(tmp_path / "h.safetensors", LinearHead(64, [Task("mass")]))
    write_images(tmp_path / "images", [f"{i:02}.png" for i in range(70)], 32, 32)
    num_predicted = 0
    predict = Predictor.predictions

    def count(predictor: Predictor, images: Any, *options: Any) -> Any:
        nonlocal num_predicted
        num_predicted += len(images)
        return predict(predictor, images, *options)

    monkeypatch.setattr(Predictor, "predictions", count)
    refused = cli(*job(tmp_path, "--maps", tmp_path / "m", heads=file))

    assert refused.code == 1
    assert f"--maps {tmp_path / 'm'}: these heads have no maps" in refused.err
    assert num_predicted == 32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["h.safetensors", "images"]


@pytest.mark.slow
def test_maps_of_images_are_dropped_when_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 70 images, of which 32 are predicted at once, the maps of 32 at most are in memory."""
    file = saved_head(
        tmp_path / "h.safetensors",
        LinearHead(64, [Task("crop", dim=3, kind="segmentation")], pool=None),
    )
    write_images(tmp_path / "images", [f"{i:02}.png" for i in range(70)], 32, 32)
    alive: weakref.WeakSet[ImagePrediction] = weakref.WeakSet()
    counts = []
    make_maps = ImagePrediction.image_maps

    def make(prediction: ImagePrediction, *options: Any) -> Any:
        alive.add(prediction)
        counts.append(len(alive))
        return make_maps(prediction, *options)

    monkeypatch.setattr(ImagePrediction, "image_maps", make)
    assert cli(*job(tmp_path, "--maps", tmp_path / "m", heads=file)).code == 0
    assert len(counts) == 70
    assert max(counts) <= 33


def test_masks_of_a_mask_head_are_those_of_the_predictor(tmp_path: Path) -> None:
    """Masks are resampled to the image before they are shares: maps per patch are not enough."""
    torch.manual_seed(0)
    task = Task("crop", dim=3, kind="segmentation")
    head = MaskHead(64, [task], num_layers=1, num_queries=4, num_blocks=1, dim=16)
    torch.nn.init.normal_(head.masks[-1].weight, std=0.5)  # masks with edges
    file = saved_head(tmp_path / "h.safetensors", head)
    [image] = write_images(tmp_path / "images", ["a.png"], 60, 150)
    assert cli(*job(tmp_path, "--maps", tmp_path / "m", "--tta", "flip4", heads=file)).code == 0
    [row] = Predictor(file, tta="flip4")(image, maps="image")
    with Image.open(tmp_path / "m" / "a.png") as stored:
        assert np.array_equal(np.asarray(stored), row["maps"]["crop"])


@pytest.mark.parametrize(
    ("maps", "overlay", "named_first"),
    [
        pytest.param("new", "new", "--maps", id="one folder"),
        pytest.param("new", "new/pictures", "--overlay", id="pictures inside of maps"),
        pytest.param("new/maps", "new", "--maps", id="maps inside of pictures"),
    ],
)
def test_maps_and_pictures_need_a_folder_each(
    maps: str, overlay: str, named_first: str, tmp_path: Path
) -> None:
    task = Task("crop", dim=3, kind="segmentation")
    head = saved_head(tmp_path / "h.safetensors", LinearHead(64, [task], pool=None))
    write_images(tmp_path / "images", ["a.png"])
    (tmp_path / "new").mkdir()
    words = ("predict", tmp_path / "images", "--heads", head, "--out", tmp_path / "out.csv")

    result = cli(*words, "--maps", tmp_path / maps, "--overlay", tmp_path / overlay)

    assert result.code == 1
    assert f"{named_first} {tmp_path}" in result.err
    assert "expected two folders, one next to the other" in result.err
    assert list((tmp_path / "new").iterdir()) == []
    assert not (tmp_path / "out.csv").exists()


def test_folders_of_pictures_keep_what_they_hold(tmp_path: Path) -> None:
    """Images without a map, images with an alpha channel, and folders that hold other files."""
    kinds = {
        "map": Task("crop", dim=3, kind="segmentation"),
        "class": Task("kind", dim=2, kind="classification"),
    }
    for name, task in kinds.items():
        saved_head(
            tmp_path / f"{name}.safetensors",
            LinearHead(64, [task], pool=None if name == "map" else "mean"),
        )
    [image] = write_images(tmp_path / "images", ["a.png"], 60, 150)
    Image.open(image).convert("RGBA").save(image)
    for option in ("--maps", "--overlay"):
        refused = cli(
            *job(tmp_path, option, tmp_path / "images", heads=tmp_path / "map.safetensors")
        )
        assert refused.code == 1 and f"{option} {tmp_path / 'images'}" in refused.err
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["class.safetensors", "images", "map.safetensors"], "nothing is written"
    assert (
        cli(*job(tmp_path, "--maps", tmp_path / "m", heads=tmp_path / "map.safetensors")).code == 0
    )
    with Image.open(tmp_path / "m" / "a.png") as mask:
        assert mask.size == (150, 60)
    assert (
        cli(*job(tmp_path, "--overlay", tmp_path / "o", heads=tmp_path / "class.safetensors")).code
        == 0
    )
    with Image.open(tmp_path / "o" / "a.jpg") as picture:
        assert picture.width == 1200


@pytest.mark.slow
def test_pictures_show_known_values(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, at, text, *more, **how: texts.append(text)
    )
    (place / "t.csv").write_text("image,mass\nlarge.png,12.5\n")
    assert cli(*job(place, "--overlay", place / "o", "--truth", place / "t.csv")).code == 0
    assert sum("(true 12.5 g)" in text for text in texts) == 1


def test_known_values_are_found_by_a_named_column(place: Path) -> None:
    (place / "t.csv").write_text("file,mass\nlarge.png,12.5\n")
    words = job(place, "--overlay", place / "o", "--truth", place / "t.csv")
    refused = cli(*words)
    found = cli(*words, "--image-column", "file")
    assert "image_column= (--image-column) names the column" in refused.err
    assert found.code == 0


@pytest.mark.parametrize("kind", ["mask", "panoptic"])
def test_json_has_tasks_and_objects_and_pictures_their_boxes(kind: str, tmp_path: Path) -> None:
    module, [image] = head_of(kind), write_images(tmp_path / "images", ["a.png"], 64, 96)
    file = saved_head(tmp_path / "h.safetensors", module, (64, 96))
    found = cli(*job(tmp_path, "--overlay", tmp_path / "o", "--json", heads=file)).json
    [task], [row] = found["tasks"], found["predictions"]
    assert task == {"name": "plant", "kind": module.tasks[0].kind, "unit": "", "labels": ["a", "b"]}
    assert row["plant objects"] == coco_objects(Predictor(file)(image)[0]["plant"])
    assert row["plant"] == len(row["plant objects"]) > 0
    with Image.open(tmp_path / "o" / "a.jpg") as picture:
        assert picture.size == boxes_panel(image, np.zeros((0, 4))).size


def test_images_that_cannot_be_used_are_left_out_on_request(place: Path) -> None:
    for name in ("a.png", "m.png", "e.heic", "e.GIF", ".hidden.heic", "notes.txt"):
        (place / "images" / name).write_bytes(b"of another format")
    assert cli(*job(place)).code == 1
    assert not (place / "out.csv").exists()
    printed = cli(*job(place, "--skip-unusable", "--json", "--batch-size", "2"))
    assert sorted(Path(name).name for name in printed.json["unusable"]) == ["a.png", "m.png"]
    for suffix in (".gif", ".heic", ".txt"):
        assert f"1 file of other formats ({suffix})" in printed.err
    assert [Path(row["image"]).stem for row in rows_of(place / "out.csv")] == ["large", "small"]


def test_heads_get_the_backbone_of_their_file(tmp_path: Path) -> None:
    """Heads on seeded weights get their own seed; those on weights from a file are refused on random ones."""
    write_images(tmp_path / "images", ["a.png"])
    file, weights = tmp_path / "h.safetensors", tmp_path / "w.safetensors"
    saved_head(file, backbone=load_backbone("dinoneck_tiny", seed=7))
    assert predicted(tmp_path, heads=file) == predicted(tmp_path, "--random-backbone", heads=file)
    record = HeadCheckpoint.load(file).meta["backbone"]
    assert rebuild(record, random=True).record()["weights"] == record["weights"]
    load_backbone("dinoneck_tiny", seed=1).save_weights(weights)
    saved_head(file, backbone=load_backbone("dinoneck_tiny", checkpoint=weights))
    assert "--backbone-file" in cli(*job(tmp_path, heads=file)).err
    assert (
        "seeded random weights (seed 0)" in cli(*job(tmp_path, "--random-backbone", heads=file)).err
    )
    assert predicted(tmp_path, "--backbone-file", weights, heads=file)


@pytest.mark.parametrize("images", [[], ["images"]], ids=["nothing", "images"])
def test_without_heads_the_options_that_are_missing_are_named(images: list[str]) -> None:
    refused = cli("predict", *images, "--out", "p.csv")

    assert refused.code == 1
    assert "--heads is missing" in refused.err
    assert "(--store)" in refused.err
