"""``dinoneck viz``: reports and figures from files, and what is refused before any work."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tests.unit.detection.coloured_boxes import write as write_boxes

from dinoneck import Backbone, DataError, PatchMeanHead, Predictor, Task, save_head
from dinoneck.cli.main import main
from dinoneck.cli.viz_known import known_values
from dinoneck.data import Pasture
from dinoneck.viz.drawing import minus

IMAGES = 5


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
        torch.manual_seed(fold)
        head = PatchMeanHead(64, [Task("mass", unit="g"), Task("cover")], hidden_dim=8)
        training = {"fold": fold, "folds": 2, "metrics": {"r2": 0.5 + fold / 10}}
        save_head(
            folder / f"fold-{fold}.safetensors", head, backbone=tiny, preprocess=tiny.preprocess, training=training
        )
    return folder


def cells(page: str, tag: str) -> list[str]:
    return [re.sub("<.*?>", "", cell) for cell in re.findall(rf"<{tag}[ >].*?</{tag}>", page)]


def entry(page: str, term: str) -> str:
    found = re.search(rf"<dt>{term}</dt><dd>(.*?)</dd>", page)
    assert found is not None, term
    return found[1]


def truth(path: Path, rows: list[tuple[str, str]], column: str = "mass") -> Path:
    path.write_text("\n".join([f"image,{column}", *(f"{name},{value}" for name, value in rows)]) + "\n")
    return path


def test_a_report_of_a_folder_of_heads(heads: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert main(["viz", "report", str(heads), str(images), "--out", str(out), "--tta", "flip4"]) == 0
    assert os.listdir(tmp_path) == ["report.html"]
    page = out.read_text()
    results = Predictor(heads, tta="flip4")(sorted(images.iterdir()))
    expected = [minus(f"{result[name]:.6g}") for result in results for name in ("mass", "cover")]
    assert cells(page, "td")[: 2 * IMAGES] == expected
    assert cells(page, "h3") == [f"{i}.png" for i in range(IMAGES)]
    assert entry(page, "head_type").startswith("patch_mean (schema")
    assert "dinoneck_tiny" in entry(page, "backbone")
    assert entry(page, "from").endswith("2 heads")
    assert entry(page, "views") == "not recorded"
    assert "flip4, the mean of 4 views" in page
    assert page.count("tokens of") == IMAGES
    assert f"{torch.__version__}"[:4] in entry(page, "versions")


def test_bad_images_are_listed_and_strict_reports_them_by_the_exit_code(
    heads: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(images, folder)
    (folder / "1.png").write_bytes(b"nothing of the kind")
    (folder / "3.png").write_bytes((images / "3.png").read_bytes()[:300])
    out = tmp_path / "report.html"
    arguments = ["viz", "report", str(heads), str(folder), "--out", str(out)]
    assert main(arguments) == 0
    assert "left out" in capsys.readouterr().out
    page = out.read_text()
    assert cells(page, "h3") == ["0.png", "2.png", "4.png"]
    assert "3 images, all drawn, 2 could not be read." in page
    assert "cannot be decoded" in page
    results = Predictor(heads)([images / f"{i}.png" for i in (0, 2, 4)])
    assert cells(page, "td")[:6:2] == [minus(f"{result['mass']:.6g}") for result in results]
    assert main([*arguments, "--strict", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["ok"], printed["images"], printed["drawn"]) == (False, 3, 3)
    assert sorted(Path(name).name for name in printed["unread"]) == ["1.png", "3.png"]
    assert printed["bytes"] == out.stat().st_size
    out.unlink()
    assert main(["viz", "report", str(heads), str(folder / "1.png"), "--out", str(out)]) == 1
    assert "none of the 1 images can be used" in capsys.readouterr().err
    assert not out.exists()


def test_known_values_bring_residuals_and_the_worst_images(
    heads: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predicted = [result["mass"] for result in Predictor(heads)(sorted(images.iterdir()))]
    gaps = [0.1, -3.0, 0.5, 2.0]
    rows = [(f"{i}.png", f"{predicted[i] - gap}") for i, gap in enumerate(gaps)]
    table = truth(tmp_path / "known.csv", [*rows, ("4.png", ""), ("elsewhere.png", "7")])
    out = tmp_path / "report.html"
    arguments = ["viz", "report", str(heads), str(images), "--out", str(out), "--truth", str(table)]
    assert main([*arguments, "--max-images", "2", "--json", "--no-tokens"]) == 0
    printed = json.loads(capsys.readouterr().out)
    page = out.read_text()
    assert cells(page, "h3") == ["1.png", "3.png"]
    assert "Too good where the model was trained on these images" in page
    assert "tokens of" not in page
    assert printed["scores"]["mass"]["images"] == 4
    assert printed["scores"]["mass"]["mae"] == pytest.approx(np.abs(gaps).mean(), abs=1e-5)
    assert printed["drawn"] == 2
    assert list(printed["scores"]) == ["mass"]
    assert f"{printed['scores']['mass']['rmse']:.4g}" in cells(page, "td")
    assert cells(page, "td").count("–") == 1  # the image without a known value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "{head}", "{images}", "--out", "r.pdf"], "ends in .html or .htm"),
        (
            ["report", "{head}", "{images}", "--out", "{images}/page.html", "--truth", "{images}/page.html"],
            "one of the",
        ),
        (["report", "{head}", "{images}", "--out", "r.html", "--truth", "gone.csv"], "gone.csv does not exist"),
        (["report", "{head}", "{images}", "--out", "r.html", "--scores", "gone.json"], "--scores gone.json cannot"),
        (["report", "{head}", "{images}", "--out", "r.html", "--scores", "{images}/page.html"], "cannot be used"),
        (
            ["report", "{head}", "{images}", "--out", "r.html", "--scores", "{images}/report.json"],
            "holds the scores of weed, and the head predicts mass, cover",
        ),
        (
            ["report", "{head}", "{images}", "--out", "r.html", "--random-backbone", "--backbone-file", "w"],
            "exclude each other",
        ),
        (["tokens", "{images}", "--backbone", "dinoneck_tiny", "--out", "t.svg"], "ends in .png"),
        (["tokens", "{images}", "--backbone", "dinoneck_tiny", "--out", "{images}/0.png"], "one of the inputs"),
    ],
)
def test_refusals_come_before_any_work(
    arguments: list[str], message: str, heads: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "field"
    shutil.copytree(images, folder)
    (folder / "page.html").write_text("image,mass\n")
    score = {"pooled": 0.5, "interval": None, "folds": [0.5]}
    scores = {"weed": {"head": {"r2": score, "mae": score, "images": 5}}}
    run = {"scores": scores, "spread": {"weed": {"all": 1, "folds": [1]}}, "auxiliary": []}
    (folder / "report.json").write_text(json.dumps(run))
    monkeypatch.chdir(tmp_path)
    places = {"head": str(heads / "fold-0.safetensors"), "images": str(folder)}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["viz", *(argument.format(**places) for argument in arguments)]) == 1
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_picture_of_tokens_names_random_weights(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, *more: texts.append(text))
    for suffix in ("png", "jpg", "pdf"):
        out = tmp_path / f"t.{suffix}"
        assert main(["viz", "tokens", str(images), "--backbone", "dinoneck_tiny", "--out", str(out)]) == 0
        assert out.stat().st_size > 1000
        assert texts.count("tokens of block 5 (random weights)") == 1
        texts.clear()


def test_known_values_may_have_decimal_commas(tmp_path: Path) -> None:
    text = "image;mass;kind\n1.jpg;1,5;a,b\n2.jpg;2;c\n"
    (tmp_path / "t.csv").write_text(text)
    columns = {"mass": (), "kind": ("a,b", "c")}
    found = known_values(tmp_path / "t.csv", "image", [Path("1.jpg"), Path("2.jpg")], columns)
    assert found == [{"mass": 1.5, "kind": "a,b"}, {"mass": 2.0, "kind": "c"}]
    (tmp_path / "t.csv").write_text(text.replace(";2;", ";1.234;"))
    with pytest.raises(DataError, match="1,5"):
        known_values(tmp_path / "t.csv", "image", [Path("1.jpg"), Path("2.jpg")], columns)


def test_images_find_their_rows_by_unique_file_names(tmp_path: Path) -> None:
    table = truth(tmp_path / "t.csv", [("a/1.jpg", "1.5"), ("2.jpg", " nan"), ("b/4.jpg", "2"), ("./c/3.jpg", "3")])
    images = [Path("x/1.jpg"), Path("2.jpg"), Path("../c/3.jpg"), Path("7.jpg")]
    assert known_values(table, "image", images, {"mass": ()}) == [{"mass": 1.5}, {}, {"mass": 3.0}, {}]
    table = truth(tmp_path / "t.csv", [("1.jpg", "soil"), ("2.jpg", "")], "kind")
    found = known_values(table, "image", [Path("1.jpg"), Path("2.jpg")], {"kind": ("soil", "crop")})
    assert found == [{"kind": "soil"}, {}]


@pytest.mark.parametrize(
    ("rows", "images", "columns", "named"),
    [
        ([("1.jpg", "1")], ["a/1.jpg", "b/1.jpg"], {"mass": ()}, "1.jpg"),
        ([("a/1.jpg", "1"), ("b/1.jpg", "2")], ["1.jpg"], {"mass": ()}, "1.jpg"),
        ([("1.jpg", "1")], ["7.jpg"], {"mass": ()}, "7.jpg"),
        ([("1.jpg", "1")], ["1.jpg"], {"cover": ()}, "cover"),
        ([("1.jpg", "heavy"), ("2.jpg", "light")], ["1.jpg"], {"mass": ()}, "heavy"),
        ([("1.jpg", "inf")], ["1.jpg"], {"mass": ()}, "inf"),
        ([("1.jpg", "soil")], ["1.jpg"], {"mass": ("crop", "weed")}, "soil"),
    ],
)
def test_known_values_that_fit_nothing_are_refused(
    rows: list[tuple[str, str]], images: list[str], columns: dict[str, tuple[str, ...]], named: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=re.escape(named)):
        known_values(truth(tmp_path / "t.csv", rows), "image", [*map(Path, images)], columns)


def test_a_report_of_a_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of its run: the images that it held out. Of a file: images, with the boxes of a COCO file on request."""
    pytest.importorskip("pycocotools", reason="held-out boxes need pycocotools, the extra [detection]")
    from dinoneck.detection import Detector, train_detector
    from dinoneck.training import TrainConfig

    boxes = write_boxes(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    config = {
        "data": {"boxes": "data/boxes.json", "val_boxes": "data/boxes.json", "size": [64, 96]},
        "backbone": {"name": "dinoneck_tiny"},
        "detector": {"name": "fcos"},
        "head": {"type": "spatial_tuning_adapter", "out_channels": 32},
        "optim": {"epochs": 2, "batch_size": 3, "freeze": ["0=all"]},
    }
    report = train_detector(TrainConfig.from_dict(config), tmp_path / "run")
    out, arguments = tmp_path / "r.html", ["--min-score", "0.05", "--out", str(tmp_path / "r.html"), "--json"]
    assert main(["viz", "report", str(tmp_path / "run"), "--max-images", "2", *arguments]) == 0
    written, page = json.loads(capsys.readouterr().out), out.read_text()
    assert (written["images"], written["drawn"]) == (3, 2)
    assert {name: each["known"] for name, each in written["scores"].items()} == {"blue": 2, "red": 3}
    assert cells(page, "td")[0] == f"{report['best']['AP']:.3f}"
    assert set(cells(page, "h3")) == {"0.png", "1.png"}, "the two images with boxes are the worst"
    monkeypatch.chdir("/")
    assert main(["viz", "report", str(tmp_path / "run"), "--max-images", "2", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == written["scores"], "the files are found from any folder"
    file = str(tmp_path / "run" / "detector.safetensors")
    assert main(["viz", "report", file, str(boxes.parent), "--truth", str(boxes), *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == written["scores"]
    assert main(["viz", "report", file, str(boxes.parent / "0.png"), *arguments]) == 0
    page, [own] = out.read_text(), Detector.load(file).predict([boxes.parent / "0.png"], min_score=0.05)
    assert cells(page, "td")[0] == str(len(own["names"]))
    assert "known boxes" not in page and "Held-out scores" not in page
