"""``dinoneck paint``: the page, the head and the masks that it writes, and what is refused before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from tests.kit import cli
from tests.unit.painting.painted_photos import (
    CLASSES,
    HEIGHT,
    SIZE,
    WIDTH,
    painted,
    sha256_of,
    strokes_on,
    write_photos,
    write_strokes,
)
from tests.unit.viz.test_panels import with_orientation

from dinoneck import Backbone, HeadCheckpoint, Predictor, load_head
from dinoneck.cli.paint import files_of_store
from dinoneck.data import DenseLabels
from dinoneck.errors import ConfigError
from dinoneck.images.decoding import read_image_size, read_pixels
from dinoneck.painting import PaintedImage, PhotoTokens, Stroke, Strokes, files, fit_strokes, head
from dinoneck.painting.strokes import UNPAINTED
from dinoneck.serve import models
from dinoneck.serve.settings import Settings
from dinoneck.store import FeatureStore

TINY = ("--backbone", "dinoneck_tiny", "--size", SIZE)
NAMES = ("a/0.png", "a/1.png", "b/2.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, NAMES)
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with strokes on two photos."""
    folder = tmp_path_factory.mktemp("run")
    strokes = write_strokes(folder / "strokes.json", strokes_on(photos, ("a/0.png", "b/2.png")))
    result = cli("paint", photos, *TINY, "--strokes", strokes, "--out", folder / "out")
    assert result.code == 0, result.err
    return folder / "out"


def test_without_strokes_it_writes_the_page_and_says_what_to_do_next(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    result = cli("paint", photos, *TINY, "--classes", *CLASSES, "--out", out, "--json")

    assert result.code == 0, result.err
    assert [file.name for file in out.iterdir()] == ["paint.html"]
    assert "3 photos, 144 patches in all" in result.err  # 6 x 8 each
    assert f"Open {out / 'paint.html'} in a browser" in result.err
    assert result.json["photos"] == 3
    assert result.json["painted"] == 0
    assert "b/2.png" in (out / "paint.html").read_text("utf-8")


def test_the_saved_head_predicts_what_the_fit_predicts(
    photos: Path, run: Path, tiny: Backbone
) -> None:
    files = {name: photos / name for name in NAMES}
    tokens = PhotoTokens.extract(files, tiny, size=(HEIGHT, WIDTH))
    head = fit_strokes(tokens.photos, strokes_on(photos, ("a/0.png", "b/2.png")))
    saved = load_head(run / "head.safetensors")
    for name, value in head.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name]), name

    predicted = Predictor(run / "head.safetensors", tiny)([*files.values()], maps="patch")

    for photo, row in zip(tokens.photos, predicted, strict=True):
        rows, cols, _ = photo.patches.shape
        patches = photo.patches.reshape(1, rows * cols, -1)
        probabilities = head(patches, grid=(rows, cols))["segmentation"].softmax(dim=1)[0]
        expected = probabilities.detach().numpy()
        assert np.allclose(row["maps"]["segmentation"], expected, rtol=0, atol=1e-5)
        # the left half is of the class left, though one photo is not painted
        assert (expected[0, :, :2] > 0.5).all()
        assert (expected[1, :, -2:] > 0.5).all()


def test_the_head_file_names_what_made_it(run: Path) -> None:
    checkpoint = HeadCheckpoint.load(run / "head.safetensors")

    assert checkpoint.head_type == "linear"
    [task] = checkpoint.config["tasks"]
    assert task["labels"] == list(CLASSES)
    assert task["kind"] == "segmentation"
    assert checkpoint.meta["backbone"]["name"] == "dinoneck_tiny"
    assert checkpoint.meta["inputs"]["resize"] == "keep"
    assert checkpoint.meta["inputs"]["size"] == [HEIGHT, WIDTH]
    assert checkpoint.meta["training"]["masks"] == {"nodata": [255.0]}


def test_a_mask_holds_the_strokes_of_its_photo(photos: Path, run: Path) -> None:
    masks = sorted(file.relative_to(run / "masks").as_posix() for file in run.rglob("masks/**/*.*"))
    assert masks == ["a/0.png", "b/2.png"]
    for name in masks:
        with Image.open(run / "masks" / name) as image:
            assert image.mode == "P"
            mask = np.asarray(image)
        assert np.array_equal(mask, painted(photos / name, name).mask(CLASSES))
        assert set(np.unique(mask)) == {0, 1, UNPAINTED}
    labels = DenseLabels(classes=2, nodata=UNPAINTED)
    read = labels.indices([run / "masks" / name for name in masks], preprocess(), None)
    assert set(read.unique().tolist()) == {-1, 0, 1}


def preprocess() -> Any:
    from dinoneck.data import Preprocessing

    return Preprocessing(16, size=(HEIGHT, WIDTH))


def test_the_page_begins_with_the_strokes(photos: Path, run: Path) -> None:
    page = (run / "paint.html").read_text("utf-8")

    for name in ("a/0.png", "b/2.png"):
        image = painted(photos / name, name)
        assert image.sha256 in page
        for stroke in image.strokes:
            points = [list(point) for point in stroke.points]
            text = json.dumps(points, separators=(",", ":"))
            assert page.count(text) == 2  # once for each painted photo


@pytest.mark.slow
def test_train_goes_on_from_the_masks(photos: Path, run: Path, tmp_path: Path) -> None:
    words = ("train", "--csv", run / "masks.csv", "--images", photos, "--labels", "mask")
    words += ("--classes", *CLASSES, "--nodata", "255", "--folds", "2", "--epochs", "1")

    result = cli(*words, *TINY, "--out", tmp_path / "run")

    assert result.code == 0, result.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert "segmentation" in report["scores"]
    scored = cli(
        *("evaluate", photos, "--heads", run / "head.safetensors", "--truth", run / "masks.csv"),
        *("--labels", "mask", "--json"),
    )
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["trained_on"] == {"head": 2}


def test_the_command_that_it_prints_names_the_table(photos: Path, tmp_path: Path) -> None:
    strokes = write_strokes(tmp_path / "strokes.json", strokes_on(photos, ("a/0.png",)))

    result = cli("paint", photos, *TINY, "--strokes", strokes, "--out", tmp_path / "out")

    assert result.code == 0, result.err
    assert (
        f"dinoneck train --csv {tmp_path / 'out' / 'masks.csv'} --images {photos} --labels mask "
        "--classes left right --nodata 255 --folds 1"
    ) in result.out


def test_classes_of_the_command_line_number_the_masks(photos: Path, tmp_path: Path) -> None:
    strokes = write_strokes(tmp_path / "strokes.json", strokes_on(photos, ("a/0.png",)))
    out = tmp_path / "out"

    result = cli(
        *("paint", photos, *TINY, "--strokes", strokes, "--out", out),
        *("--classes", "right", "straw", "left"),
    )

    assert result.code == 0, result.err
    mask = np.asarray(Image.open(out / "masks" / "a" / "0.png"))
    assert mask[40, 21] == 2
    assert mask[40, 106] == 0
    assert load_head(out / "head.safetensors").tasks[0].labels == ("right", "straw", "left")


def test_masks_of_photos_that_are_not_painted_any_more_are_named(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    for names in (("a/0.png", "b/2.png"), ("b/2.png",)):
        strokes = write_strokes(tmp_path / "strokes.json", strokes_on(photos, names))
        caplog.clear()
        assert cli("paint", photos, *TINY, "--strokes", strokes, "--out", out).code == 0
    assert "1 other file of photos that are not painted now, such as a/0.png" in caplog.text
    table = (out / "masks.csv").read_text()
    assert table == "image,mask\nb/2.png,masks/b/2.png\n"


def test_a_store_gives_the_same_head_as_its_photos(
    photos: Path, tmp_path: Path, tiny: Backbone
) -> None:
    here = Path(shutil.copytree(photos, tmp_path / "photos"))
    store = tmp_path / "store"
    words = ("extract", here, "--out", store, *TINY, "--resize", "keep")
    assert cli(*words).code == 0
    strokes = write_strokes(tmp_path / "strokes.json", strokes_on(here, ("a/1.png",)))

    result = cli("paint", store, "--strokes", strokes, "--out", tmp_path / "out")

    assert result.code == 0, result.err
    files = {name: photos / name for name in NAMES}
    tokens = PhotoTokens.extract(files, tiny, size=(HEIGHT, WIDTH))
    expected = fit_strokes(tokens.photos, strokes_on(here, ("a/1.png",)))
    [weight] = [v for k, v in expected.state_dict().items() if k.endswith("weight")]
    saved = load_head(tmp_path / "out" / "head.safetensors")
    assert torch.allclose(saved.readouts[0].weight, weight, rtol=0, atol=0.05 * weight.abs().max())
    predicted = Predictor(tmp_path / "out" / "head.safetensors", tiny).one(here / "b" / "2.png")
    assert abs(sum(predicted["segmentation"]) - 1) < 1e-5

    # the folder was moved: the photos are named
    moved = here.rename(tmp_path / "moved")
    lost = cli("paint", store, "--strokes", strokes, "--out", tmp_path / "out")
    assert lost.code == 1
    assert "name them with --images" in lost.err
    again = cli(
        *("paint", store, "--images", moved, "--strokes", strokes, "--out", tmp_path / "out")
    )
    assert again.code == 0, again.err


def test_a_store_of_cropped_photos_is_refused(photos: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    words = ("--backbone", "dinoneck_tiny", "--size", "96x96", "--resize", "crop")
    assert cli("extract", photos, "--out", store, *words).code == 0

    result = cli("paint", store, "--classes", *CLASSES, "--out", tmp_path / "out")

    assert result.code == 1
    assert "seen as a whole; extract with --resize keep" in result.err
    assert FeatureStore.open(store).ids  # it can be read all the same


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param("", "classes are []; expected 2 ... 255 names (--classes)", id="no classes"),
        pytest.param("--classes crop", "classes are ['crop']", id="one class"),
        pytest.param("--classes crop crop", "expected each name once", id="a class twice"),
        pytest.param("--strokes no.json", "no.json does not exist", id="no such strokes"),
        pytest.param(
            "--strokes strokes.json --classes left middle",
            "'right', which is not among left, middle",
            id="a class of the strokes is missing",
        ),
        pytest.param(
            "--classes a b --images elsewhere", "no store is named", id="images without a store"
        ),
        pytest.param("--classes a b --backbone vit_smal", "vit_smal", id="a backbone"),
        pytest.param(
            "--classes a b --out photos/paint", "--out photos/paint is inside photos", id="inside"
        ),
        pytest.param("--classes a b --out strokes.json", "is a file; name a folder", id="a file"),
    ],
)
def test_what_is_wrong_is_refused_before_any_work(
    words: str, message: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(photos)
    write_strokes(tmp_path / "strokes.json", strokes_on(photos, ("a/0.png",)))
    out = () if "--out" in words else ("--out", "out")

    result = cli("paint", "photos", *words.split(), *out)

    assert result.code == 1
    assert message in result.err
    assert not (tmp_path / "out").exists()


def test_strokes_on_another_file_of_the_name_are_refused(photos: Path, tmp_path: Path) -> None:
    [image] = strokes_on(photos, ("a/0.png",)).images
    other = PaintedImage(image.name, "a" * 64, image.height, image.width, image.strokes)
    strokes = write_strokes(tmp_path / "strokes.json", Strokes(CLASSES, (other,)))

    result = cli("paint", photos, *TINY, "--strokes", strokes, "--out", tmp_path / "out")

    assert result.code == 1
    assert "'a/0.png'" in result.err
    assert "sha256" in result.err
    assert not (tmp_path / "out" / "head.safetensors").exists()


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of rasterio and affine
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_mask_of_a_turned_geotiff_is_read_as_it_was_painted(
    orientation: int, tmp_path: Path
) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio (the extra geo) is not installed")
    photo = tmp_path / "photos" / "a.tif"
    write_geotiff(rasterio, photo)
    with_orientation(photo, orientation)
    height, width = read_image_size(photo)
    left = Stroke("left", 4.0, ((10.0, 12.0), (20.0, 12.0)))  # at the upper left
    right = Stroke("right", 4.0, ((width - 6.0, 60.0),))
    image = PaintedImage(
        "a.tif", sha256_of(photo), height=height, width=width, strokes=(left, right)
    )
    strokes = write_strokes(tmp_path / "strokes.json", Strokes(CLASSES, (image,)))

    result = cli(
        "paint", photo.parent, *TINY, "--strokes", strokes, "--out", tmp_path / "out", "--json"
    )

    assert result.code == 0, result.err
    [mask] = (tmp_path / "out" / "masks").iterdir()
    assert mask.suffix == (".tif" if orientation == 1 else ".png")
    reader = DenseLabels(classes=2, nodata=UNPAINTED)
    whole = preprocess().changed(size=(height, width))
    read = reader.indices([mask], whole, [(height, width)])[0].numpy()
    expected = np.where(image.mask(CLASSES) == UNPAINTED, -1, image.mask(CLASSES).astype(int))
    assert np.array_equal(read, expected)


def write_geotiff(rasterio: Any, file: Path) -> None:
    """A photo of 96 x 128 px with a position."""
    file.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (3, HEIGHT, WIDTH)).astype(np.uint8)
    transform = rasterio.transform.from_origin(500_000, 5_000_000, 0.5, 0.5)
    settings = {"driver": "GTiff", "crs": "EPSG:32633", "transform": transform, "dtype": "uint8"}
    with rasterio.open(file, "w", height=HEIGHT, width=WIDTH, count=3, **settings) as opened:
        opened.write(pixels)


def test_strokes_are_matched_with_their_photos_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matched = []
    match_photos = files.match_photos

    def counted_match(*arguments: Any) -> Strokes:
        matched.append(arguments)
        return match_photos(*arguments)

    for module in (files, head):
        monkeypatch.setattr(module, "match_photos", counted_match)
    strokes = write_strokes(tmp_path / "strokes.json", strokes_on(photos, ("a/0.png", "b/2.png")))

    result = cli("paint", photos, *TINY, "--strokes", strokes, "--out", tmp_path / "out")

    assert result.code == 0, result.err
    assert len(matched) == 1


def test_a_service_answers_with_a_painted_head(photos: Path, run: Path) -> None:
    model = models.open_model(run / "head.safetensors", Settings(runtime="torch"))
    image = read_pixels(photos / "a/1.png")

    answer = model.predict(image, "none")
    assert model.facts["tasks"][0]["labels"] == list(CLASSES)
    [expected] = Predictor(run / "head.safetensors")(image)
    shares = answer["values"]["segmentation"]
    assert shares == pytest.approx(expected["segmentation"].tolist(), abs=1e-6)
    assert sum(shares) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of rasterio and affine
def test_a_painted_head_has_no_objects_for_a_geojson(run: Path, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio (the extra geo) is not installed")
    photo = tmp_path / "photos" / "a.tif"
    write_geotiff(rasterio, photo)
    words = ("predict", photo, "--heads", run / "head.safetensors", "--out", tmp_path / "a.csv")

    with_maps = cli(*words, "--maps", tmp_path / "maps")
    refused = cli(*words, "--geojson", tmp_path / "a.geojson")

    assert with_maps.code == 0, with_maps.err
    with rasterio.open(tmp_path / "maps" / "a.tif") as written:
        assert written.crs.to_epsg() == 32633
    assert refused.code == 1
    assert "these heads predict no objects; leave --geojson out (--maps has maps)" in refused.err


def test_strokes_are_in_pixels_of_the_upright_photo(tmp_path: Path, tiny: Backbone) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.full((64, 96, 3), 90, np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown 64 px wide and 96 px high
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=exif)

    tokens = PhotoTokens.extract({"turned.jpg": folder / "turned.jpg"}, tiny, size=(96, 96))

    [photo] = tokens.photos
    assert (photo.height, photo.width) == (96, 64)
    assert photo.picture.size == (64, 96)
    assert tuple(photo.patches.shape[:2]) == (6, 4)
    stroke = Stroke("left", 2.0, ((60.0, 90.0),))  # outside of the file's own frame
    image = PaintedImage("turned.jpg", photo.sha256, height=96, width=64, strokes=(stroke,))
    assert (image.mask(CLASSES) == 0).sum() > 0


@pytest.mark.parametrize(
    ("roots", "message"),
    [
        pytest.param([], "store holds no images; name one with tokens of photos", id="none"),
        pytest.param(
            ["a", "b"], "extracted from the folders a, b, and photos are looked", id="two"
        ),
        pytest.param(["a"], "extracted from a, where its photos are not found; name", id="lost"),
    ],
)
def test_photos_of_a_store_that_are_not_in_one_folder_are_to_be_named(
    roots: list[str], message: str
) -> None:
    store = SimpleNamespace(path="store", entries=SimpleNamespace(roots=lambda: roots))
    with pytest.raises(ConfigError, match=message):
        files_of_store(cast("FeatureStore", store))
