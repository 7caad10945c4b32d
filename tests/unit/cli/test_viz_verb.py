"""``dinoneck viz``: reports and figures from files, and what is refused before any work."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tests.kit import cli, head, saved_head, write_images
from tests.unit.detection.coloured_boxes import write as write_boxes

from dinoneck import Backbone, DataError, DenseHead, Predictor, Task, save_head
from dinoneck.cli.truth import values_of_rows
from dinoneck.data import BoxImages, Pasture
from dinoneck.viz import pca_panels
from dinoneck.viz.checked import minus
from dinoneck.viz.overlay import classes_panel
from dinoneck.viz.pictures import boxes_panel

IMAGES = 5
COVER = Task("cover", dim=2, kind="segmentation", labels=("crop", "weed"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("field")
    for i in range(IMAGES):
        Image.fromarray(Pasture(seed=2, size=(32, 64)).sample(i).image).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def heads(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    for fold in range(2):
        module = head(Task("mass", unit="g"), Task("cover"), seed=fold)
        save_head(
            folder / f"fold-{fold}.safetensors", module, backbone=tiny, preprocess=tiny.preprocess
        )
    return folder


def cells(page: str, tag: str) -> list[str]:
    return [re.sub("<.*?>", "", cell) for cell in re.findall(rf"<{tag}[ >].*?</{tag}>", page)]


def entry(page: str, term: str) -> str:
    found = re.search(rf"<dt>{term}</dt><dd>(.*?)</dd>", page)
    assert found is not None, term
    return found[1]


@pytest.mark.slow
def test_a_report_of_a_folder_of_heads(heads: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert cli("viz", "report", heads, images, "--out", out, "--tta", "flip4").code == 0
    page, results = out.read_text(), Predictor(heads, tta="flip4")(sorted(images.iterdir()))
    expected = [minus(f"{result[name]:.3g}") for result in results for name in ("mass", "cover")]
    assert cells(page, "td")[: 2 * IMAGES] == expected
    assert cells(page, "h3") == [f"{i}.png" for i in range(IMAGES)]
    assert entry(page, "head_type").startswith("patch_mean (schema")
    assert "dinoneck_tiny" in entry(page, "backbone") and entry(page, "from").endswith("2 heads")
    assert "flip4, the mean of 4 views" in page
    assert page.count("picture tokens") == IMAGES
    assert f"{torch.__version__}"[:4] in entry(page, "versions")


@pytest.mark.slow
def test_bad_images_are_listed_and_strict_reports_them_by_the_exit_code(
    heads: Path, images: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "mixed", tmp_path / "report.html"
    shutil.copytree(images, folder)
    (folder / "1.png").write_bytes(b"nothing of the kind")
    (folder / "3.png").write_bytes((images / "3.png").read_bytes()[:300])
    words = ("viz", "report", heads, folder, "--out", out)
    found = cli(*words)
    assert found.code == 0 and "left out" in found.out
    page, results = out.read_text(), Predictor(heads)([images / f"{i}.png" for i in (0, 2, 4)])
    assert cells(page, "h3") == ["0.png", "2.png", "4.png"]
    assert "3 images, all drawn, 2 could not be read." in page and "cannot be decoded" in page
    assert cells(page, "td")[:6:2] == [minus(f"{result['mass']:.3g}") for result in results]
    strict = cli(*words, "--strict", "--json")
    assert (strict.code, strict.json["ok"], strict.json["images"], strict.json["drawn"]) == (
        1,
        False,
        3,
        3,
    )
    assert sorted(strict.json["unread"]) == ["1.png", "3.png"]
    none = cli("viz", "report", heads, folder / "1.png", "--out", tmp_path / "none.html")
    assert none.code == 1 and "none of the 1 images can be used" in none.err


def test_pictures_of_tokens_name_random_weights(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, place, text, *more: texts.append(text)
    )
    for suffix in ("png", "pdf"):
        out = tmp_path / f"t.{suffix}"
        assert cli("viz", "tokens", images, "--backbone", "dinoneck_tiny", "--out", out).code == 0
        assert out.stat().st_size > 1000
        assert texts.count("tokens of block 5 (random weights)") == 1
        texts.clear()


def test_tokens_of_the_background_are_left_black(
    images: Path, tiny: Backbone, tmp_path: Path
) -> None:
    out = tmp_path / "tokens.png"
    words = ("viz", "tokens", images, "--backbone", "dinoneck_tiny", "--out", out)
    result = cli(*words, "--foreground", "0.5")
    assert result.code == 0, result.err
    files = sorted(images.iterdir())
    tokens = tiny(tiny.preprocess(files, resize="crop"))
    options: dict[str, Any] = {
        "names": [file.name for file in files],
        "note": "(random weights)",
    }
    pictures = [tiny.preprocess.picture(file) for file in files]
    expected = pca_panels(pictures, tokens, foreground=0.5, **options)
    with_background = pca_panels(pictures, tokens, **options)
    drawn = np.asarray(Image.open(out))
    assert np.array_equal(drawn, np.asarray(expected))
    assert not np.array_equal(drawn, np.asarray(with_background))


def test_a_picture_of_stored_tokens_needs_the_files_that_were_extracted(
    images: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    out = tmp_path / "t.png"
    here = Path(shutil.copytree(images, tmp_path / "images"))
    assert (
        cli("extract", here, "--out", store, "--size", "32x64", "--backbone", "dinoneck_tiny").code
        == 0
    )
    assert cli("viz", "tokens", here, "--store", store, "--out", out).code == 0
    assert out.stat().st_size > 1000
    both = cli("viz", "tokens", here, "--store", store, "--backbone", "dinoneck_tiny", "--out", out)
    assert both.code == 1 and str(store) in both.err
    shutil.copy(here / "1.png", here / "3.png")
    changed = cli("viz", "tokens", here, "--store", store, "--out", out)
    assert changed.code == 1 and "3.png" in changed.err


def test_a_picture_that_is_written_among_images_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path, ["a/1.png"])
    words = ("viz", "tokens", tmp_path / "a", "--backbone", "dinoneck_tiny", "--out")
    assert cli(*words, tmp_path / "t.png").code == 0
    assert caplog.text == ""
    assert cli(*words, tmp_path / "a" / "t.png").code == 0
    assert f"{tmp_path / 'a' / 't.png'} is inside {tmp_path / 'a'}" in caplog.text


def test_images_find_their_rows_by_the_ends_of_their_paths(tmp_path: Path) -> None:
    kind = Task("kind", dim=2, kind="classification", labels=("a,b", "c"))
    (tmp_path / "t.csv").write_text(
        "image;mass;kind\na/1.jpg;1,5;a,b\n2.jpg; nan;c\n./b/3.jpg;3;\nc/4.jpg;1;c\n"
    )
    names = [Path("x/a/1.jpg"), Path("x/2.jpg"), Path("../b/3.jpg"), Path("d/4.jpg")]
    found = values_of_rows(tmp_path / "t.csv", names, [Task("mass"), kind])
    assert found == {
        names[0]: {"mass": 1.5, "kind": "a,b"},
        names[1]: {"kind": "c"},
        names[2]: {"mass": 3.0},
        names[3]: {"mass": 1.0, "kind": "c"},
    }


def test_class_folders_of_other_classes_are_refused(tmp_path: Path) -> None:
    kind = Task("kind", dim=2, kind="classification", labels=("oats", "rye"))
    files = []
    for name in ("oats", "wheat"):
        files += write_images(tmp_path / name, ["1.png"], 8, 8)
    with pytest.raises(DataError) as error:
        values_of_rows(tmp_path, files[:1], [kind])
    assert "has the class folder 'wheat'; the heads predict oats, rye" in str(error.value)


def test_class_folders_are_known_classes(tmp_path: Path) -> None:
    files = write_images(tmp_path, ["a/0.png", "a/1.png", "b/0.png"])
    kind = Task("species", dim=2, kind="classification", labels=("b", "a"))
    found = values_of_rows(tmp_path, [files[0], files[2]], [kind])
    assert found == {files[0]: {"species": "a"}, files[2]: {"species": "b"}}


# the left quarter of an image of 64 px is weed, the rest crop; the lower half is unlabelled in 1.png
WEED_SHARE = 0.25


@pytest.fixture(scope="module")
def masks(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    for i in range(IMAGES):
        classes = np.zeros((32, 64), np.uint8)
        classes[:, :16] = 1
        if i == 1:
            classes[16:] = 255
        Image.fromarray(classes).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def cover_head(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("cover") / "head.safetensors"
    module = DenseHead(64, [COVER], hidden_dim=4)
    save_head(
        file,
        module,
        backbone=tiny,
        preprocess=tiny.preprocess,
        training={"masks": {"nodata": [255.0], "class_values": [0, 1]}},
    )
    return file


@pytest.mark.slow
def test_a_report_of_known_masks_has_their_shares_and_draws_them(
    cover_head: Path, images: Path, masks: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.html"
    words = ("viz", "report", cover_head, images, "--truth", masks, "--out", out, "--no-tokens")
    result = cli(*words, "--json")
    assert result.code == 0, result.err
    scores = result.json["scores"]
    predictions = [each["cover"] for each in Predictor(cover_head)(sorted(images.iterdir()))]
    weed_errors = [float(prediction[1]) - WEED_SHARE for prediction in predictions]
    assert scores["weed"]["images"] == IMAGES
    assert scores["weed"]["bias"] == pytest.approx(np.mean(weed_errors), abs=1e-6)
    assert out.read_text().count('class="picture truth"') == IMAGES


@pytest.fixture(scope="module")
def mass_and_cover_head(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("both") / "head.safetensors"
    module = DenseHead(64, [Task("mass", kind="density", unit="g"), COVER], hidden_dim=4)
    masks = {"nodata": [255.0], "class_values": [0, 1]}
    save_head(file, module, backbone=tiny, preprocess=tiny.preprocess, training={"masks": masks})
    return file


@pytest.mark.slow
def test_a_report_takes_a_table_and_a_folder_of_masks(
    mass_and_cover_head: Path, images: Path, masks: Path, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("image,mass\n0.png,12.5\n3.png,8\n")
    out = tmp_path / "r.html"
    words = ("viz", "report", mass_and_cover_head, images, "--out", out, "--no-tokens", "--json")

    result = cli(*words, "--truth", table, masks)

    assert result.code == 0, result.err
    scores = result.json["scores"]
    assert scores["mass"]["images"] == 2
    assert scores["weed"]["images"] == IMAGES
    page = out.read_text()
    assert page.count('class="picture truth"') == IMAGES
    assert "(true 12.5 g)" in page
    assert f"{table}, {masks}" in entry(page, "known values")


def test_a_number_in_the_table_wins_over_that_of_a_mask(
    cover_head: Path, images: Path, masks: Path, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("image,weed\n0.png,0.75\n")
    pictures = tmp_path / "pictures"
    shown: list[Any] = []

    def noted(*arguments: Any, known: Any, **options: Any) -> Image.Image:
        shown.append(known)
        return Image.new("RGB", (8, 8))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dinoneck.viz.overlay.overlay_panel", noted)
        words = ("--overlay", pictures, "--truth", masks, table, "--out", tmp_path / "p.csv")
        result = cli("predict", images, "--heads", cover_head, *words)

    assert result.code == 0, result.err
    assert [known["weed"] for known in shown] == [0.75, *[WEED_SHARE] * (IMAGES - 1)]


def test_two_truths_of_one_kind_are_refused(
    cover_head: Path, images: Path, masks: Path, tmp_path: Path
) -> None:
    words = ("viz", "report", cover_head, images, "--out", tmp_path / "r.html", "--truth")

    refused = cli(*words, masks, images)

    assert refused.code == 1
    assert "expected one file, one folder of masks, or both" in refused.err


def test_known_masks_belong_to_one_folder_of_images(
    cover_head: Path, images: Path, masks: Path, tmp_path: Path
) -> None:
    words = ("--truth", masks, "--out", tmp_path / "r.html")
    refused = cli("viz", "report", cover_head, images / "0.png", *words)
    assert refused.code == 1
    assert "name the one folder that the images are in" in refused.err


@pytest.mark.parametrize(
    ("task", "message"),
    [
        pytest.param(
            Task("depth", kind="dense"),
            "maps of numbers, depth, which are compared with the number of each image alone; "
            "name a CSV of known values",
            id="numbers",
        ),
        pytest.param(
            Task("normals", kind="dense", dim=3, activation="unit"),
            "maps, which 'dinoneck evaluate' compares; here name a CSV of known values",
            id="normals",
        ),
    ],
)
def test_a_folder_is_no_truth_of_maps_that_have_no_classes(
    task: Task, message: str, images: Path, masks: Path, tmp_path: Path
) -> None:
    file = saved_head(tmp_path / "h.safetensors", DenseHead(64, [task], hidden_dim=4))
    words = ("viz", "report", file, images, "--truth", masks, "--out", tmp_path / "r.html")

    refused = cli(*words)

    assert refused.code == 1
    assert refused.err.rstrip().endswith(message)


def test_known_classes_are_drawn_in_their_colours_and_unlabelled_pixels_in_grey() -> None:
    classes = np.full((4, 8), -1)
    classes[:2, :4] = 0
    classes[:2, 4:] = 1
    white = np.full((4, 8, 3), 255, np.uint8)
    pixels = np.asarray(classes_panel(white, {"cover": classes}, COVER)).astype(int)
    assert pixels.shape == (600, 1200, 3)
    crop, weed, unlabelled = pixels[150, 300], pixels[150, 900], pixels[450, 600]
    assert len(set(unlabelled)) == 1, "grey"
    for colour in (crop, weed):
        assert len(set(colour)) > 1, "coloured"
    assert not np.array_equal(crop, weed)
    # pixels are enlarged about their centres: the borders stay in the middle
    assert np.array_equal(pixels[299, 599], crop)
    assert np.array_equal(pixels[299, 600], weed)
    assert np.array_equal(pixels[300, 600], unlabelled)


@pytest.mark.parametrize(
    ("rows", "images", "task", "named"),
    [
        ([("1.jpg", "1")], ["a/1.jpg", "b/1.jpg"], Task("mass"), "1.jpg"),
        ([("a/1.jpg", "1"), ("b/1.jpg", "2")], ["1.jpg"], Task("mass"), "1.jpg"),
        ([("1.jpg", "1")], ["7.jpg"], Task("mass"), "7.jpg"),
        ([("1.jpg", "1")], ["1.jpg"], Task("cover"), "cover"),
        ([("1.jpg", "inf")], ["1.jpg"], Task("mass"), "inf"),
        (
            [("1.jpg", "soil")],
            ["1.jpg"],
            Task("mass", dim=2, kind="classification", labels=("crop", "weed")),
            "soil",
        ),
    ],
)
def test_known_values_that_fit_nothing_are_refused(
    rows: list[tuple[str, str]], images: list[str], task: Task, named: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(
        "\n".join(["image,mass", *(f"{name},{value}" for name, value in rows)]) + "\n"
    )
    with pytest.raises(DataError, match=re.escape(named)):
        values_of_rows(tmp_path / "t.csv", [*map(Path, images)], [task])


@pytest.mark.parametrize("target", ["mass", "weed"])
def test_the_scores_of_the_run_are_found_next_to_its_heads(
    target: str, heads: Path, images: Path, tmp_path: Path
) -> None:
    """Those of a run with other targets are left out."""
    shutil.copytree(heads, tmp_path / "run" / "heads")
    score = {"pooled": 0.125, "interval": None, "folds": [0.125]}
    scores = {target: {"head": {"r2": score, "mae": score, "images": 5}}}
    report = {"scores": scores, "auxiliary": [], "verdict": "so so"}
    (tmp_path / "run" / "report.json").write_text(json.dumps(report | {"target_weights": {}}))
    (tmp_path / "run" / "out_of_fold.csv").write_text(
        f"image,{target},{target} (head)\n1,2,3\n2,4,5\n3,,6\n"
    )
    found = cli(
        "viz",
        "report",
        tmp_path / "run" / "heads",
        images,
        "--out",
        tmp_path / "r.html",
        "--no-tokens",
    )
    page = (tmp_path / "r.html").read_text()
    assert found.code == 0
    assert (
        ("so so" in page)
        == (f"{target}, held out" in page)
        == ("0.125 (0.125)" in page)
        == (target == "mass")
    )


@pytest.mark.slow
def test_a_report_of_a_detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its run: the images that it held out.

    Of a file: images, with the boxes of a COCO file on request.
    """
    pytest.importorskip(
        "pycocotools", reason="held-out boxes need pycocotools, the extra [detection]"
    )
    from dinoneck.detection import Detector, evaluate_boxes, train_detector
    from dinoneck.training import TrainDetectorConfig

    boxes, out, run = write_boxes(tmp_path / "data"), tmp_path / "r.html", tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    config = {
        "data": {"boxes": "data/boxes.json", "val_boxes": "data/boxes.json", "size": [64, 96]},
        "backbone": {"name": "dinoneck_tiny"},
        "detector": {"name": "fcos"},
        "head": {"type": "spatial_tuning_adapter", "out_channels": 32},
        "optim": {"epochs": 2, "batch_size": 3, "freeze": ["0=all"]},
    }
    report = train_detector(TrainDetectorConfig.from_dict(config), run)

    def written(*words: object) -> Any:
        return cli("viz", "report", *words, "--min-score", 0.05, "--out", out, "--json").json

    found, page = written(run, "--max-images", 2), out.read_text()
    assert {name: each["known"] for name, each in found["scores"].items()} == {"blue": 2, "red": 3}
    assert cells(page, "td")[0] == f"{report['best']['AP']:.3f}"
    assert set(cells(page, "h3")) == {"0.png", "1.png"}, "the two images with boxes are the worst"
    monkeypatch.chdir("/")
    assert written(run, "--max-images", 2)["scores"] == found["scores"], (
        "the files are found from any folder"
    )
    file = run / "detector.safetensors"
    with_truth = written(file, boxes.parent, "--truth", boxes)
    assert with_truth["scores"] == found["scores"]
    expected = evaluate_boxes(Detector.load(file), boxes)
    assert with_truth["boxes"]["AP"] == pytest.approx(expected["AP"])
    assert f"<td>{expected['AP']:.3f}</td>" in out.read_text()
    shown: list[Any] = []

    def noted(image: Any, result: Any, truth: Any = None, **options: Any) -> Image.Image:
        shown.append(truth)
        return boxes_panel(image, result, truth, **options)

    monkeypatch.setattr("dinoneck.viz.pictures.boxes_panel", noted)
    words = (boxes.parent, "--heads", file, "--truth", boxes, "--overlay", tmp_path / "o")
    drawn = cli("predict", *words, "--out", tmp_path / "p.csv")
    assert drawn.code == 0, drawn.err
    assert sorted(len(truth["names"]) for truth in shown) == sorted(
        len(target["labels"]) for _, target in BoxImages(boxes)
    )
    written(file, boxes.parent / "0.png")
    page, [own] = (
        out.read_text(),
        Detector.load(file).predict([boxes.parent / "0.png"], min_score=0.05),
    )
    assert cells(page, "td")[-6] == str(len(own["names"]))
    assert "known boxes" not in page


def test_images_of_one_name_keep_their_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, place, text, *more: texts.append(text)
    )
    for folder in ("a", "b"):
        write_images(tmp_path / folder, ["1.png"])
    options = ("--backbone", "dinoneck_tiny", "--out", tmp_path / "tokens.png")
    assert cli("viz", "tokens", tmp_path / "a", tmp_path / "b", *options).code == 0
    assert [text for text in texts if text.endswith(".png")] == ["a/1.png", "b/1.png"]
