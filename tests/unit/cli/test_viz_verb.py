"""``dinoneck viz``: reports and figures from files, and what is refused before any work."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.detection.coloured_boxes import write as write_boxes

from dinoneck import (
    Backbone,
    CLSGatingHead,
    DataError,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    Task,
    load_backbone,
    save_head,
)
from dinoneck.cli import viz as viz_verb
from dinoneck.cli.main import main
from dinoneck.cli.viz_truth import known_values
from dinoneck.data import Pasture
from dinoneck.viz import PCABasis, pca_rgb

PHOTOS = 5


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("field")
    for i in range(PHOTOS):
        Image.fromarray(Pasture(seed=2, size=(32, 64)).sample(i).image).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def heads(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    for fold in range(2):
        torch.manual_seed(fold)
        head = PatchMeanHead(64, [Task("mass", unit="g"), Task("cover")], hidden_dim=8)
        told = {"fold": fold, "folds": 2, "metrics": {"r2": 0.5 + fold / 10}}
        save_head(folder / f"fold-{fold}.safetensors", head, backbone=tiny, preprocess=tiny.preprocess, training=told)
    return folder


@pytest.fixture(scope="module")
def gated(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gated") / "gated.safetensors"
    head = CLSGatingHead(64, [Task("mass", unit="g")], mode="query", hidden_dim=8)
    save_head(path, head, backbone=tiny, preprocess=tiny.preprocess, license="MIT")
    return path


def cells(page: str, tag: str) -> list[str]:
    return [re.sub("<.*?>", "", cell) for cell in re.findall(rf"<{tag}[ >].*?</{tag}>", page)]


def entry(page: str, term: str) -> str:
    found = re.search(rf"<dt>{term}</dt><dd>(.*?)</dd>", page)
    assert found is not None, term
    return found[1]


def truth(path: Path, rows: list[tuple[str, str]], column: str = "mass") -> Path:
    path.write_text("\n".join([f"image,{column}", *(f"{name},{value}" for name, value in rows)]) + "\n")
    return path


def test_a_report_of_a_folder_of_heads(heads: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert main(["viz", "report", str(heads), str(photos), "--out", str(out), "--tta", "flip4"]) == 0
    assert os.listdir(tmp_path) == ["report.html"]
    page = out.read_text()
    results = Predictor(heads, tta="flip4")(sorted(photos.iterdir()))
    expected = [f"{result[name]:.6g}" for result in results for name in ("mass", "cover")]
    assert cells(page, "td")[: 2 * PHOTOS] == expected
    assert cells(page, "h3") == [f"{i}.png" for i in range(PHOTOS)]
    assert entry(page, "head_type").startswith("patch_mean (schema")
    assert "dinoneck_tiny" in entry(page, "backbone")
    assert "r2 0.6" in entry(page, f"{re.escape(str(heads))}/fold-1.safetensors")
    assert entry(page, "views") == "not recorded"
    assert "flip4, the mean of 4 views" in page
    assert page.count("tokens of") == PHOTOS
    assert f"{torch.__version__}"[:4] in entry(page, "versions")


def test_the_scores_of_the_run_are_a_section(heads: Path, photos: Path, tmp_path: Path) -> None:
    out, run = tmp_path / "report.html", tmp_path / "report.json"
    run.write_text('{"scores": {"head": {"mass": 0.25, "overall": 0.25}}, "mae": {"head": {"mass": 3.5}}}')
    arguments = ["viz", "report", str(heads), str(photos / "0.png"), "--out", str(out), "--scores", str(run)]
    assert main(arguments) == 0
    assert cells(out.read_text(), "td")[:2] == ["0.250 (3.5)", "0.250"]
    (tmp_path / "out_of_fold.csv").write_text("image,fold,mass,mass (head)\nx,0,1,1.5\ny,1,2,1.5\n")
    assert main(arguments) == 0
    assert "<b>mass, held out</b>: residuals over known" in out.read_text()
    run.write_text("{}")
    assert main(arguments) == 1


def test_colours_of_many_photos_are_those_of_the_first(
    heads: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pictures() -> list[str]:
        out = tmp_path / "report.html"
        assert main(["viz", "report", str(heads), str(photos), "--out", str(out)]) == 0
        return re.findall(r"tokens of .*?base64,([^\"]*)", out.read_text(), re.DOTALL)

    whole = pictures()
    monkeypatch.setattr(viz_verb, "_FITTED", 2)
    some = pictures()
    assert len(whole) == len(some) == PHOTOS
    assert whole != some, "the directions are fitted on two photos only"
    tokens = [load_backbone("dinoneck_tiny")(Predictor(heads).preprocess(path)).last.maps()[0].detach()
              for path in sorted(photos.iterdir())]  # fmt: skip
    basis = PCABasis.fit(torch.cat([m[0].flatten(1).T for m in tokens[:2]]))
    for found, maps in zip(some, tokens, strict=True):
        with Image.open(io.BytesIO(base64.b64decode(found))) as picture:
            assert np.abs(np.asarray(picture.convert("RGB")) / 255.0 - pca_rgb(maps, basis=basis)[0]).max() < 0.02


def test_bad_photos_are_listed_and_strict_tells_them_by_the_exit_code(
    heads: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(photos, folder)
    (folder / "1.png").write_bytes(b"nothing of the kind")
    (folder / "3.png").write_bytes((photos / "3.png").read_bytes()[:300])
    out = tmp_path / "report.html"
    arguments = ["viz", "report", str(heads), str(folder), str(folder / "gone.png"), "--out", str(out)]
    assert main(arguments) == 0
    assert "left out" in capsys.readouterr().out
    page = out.read_text()
    assert cells(page, "h3") == ["0.png", "2.png", "4.png"]
    assert "3 images, all drawn, 3 could not be read." in page
    assert "cannot be decoded as an image" in page
    assert "there is no image" in page
    results = Predictor(heads)([photos / f"{i}.png" for i in (0, 2, 4)])
    assert cells(page, "td")[:6:2] == [f"{result['mass']:.6g}" for result in results]
    assert main([*arguments, "--strict", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["images"], told["drawn"]) == (False, 3, 3)
    assert sorted(Path(name).name for name in told["unread"]) == ["1.png", "3.png", "gone.png"]
    assert told["bytes"] == out.stat().st_size
    out.unlink()
    assert main(["viz", "report", str(heads), str(folder / "1.png"), "--out", str(out)]) == 1
    assert "none of the 1 images can be used" in capsys.readouterr().err
    assert not out.exists()


def test_known_values_bring_residuals_and_the_worst_photos(
    heads: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = [result["mass"] for result in Predictor(heads)(sorted(photos.iterdir()))]
    gaps = [0.1, -3.0, 0.5, 2.0]
    rows = [(f"{i}.png", f"{said[i] - gap}") for i, gap in enumerate(gaps)]
    table = truth(tmp_path / "known.csv", [*rows, ("4.png", ""), ("elsewhere.png", "7")])
    out = tmp_path / "report.html"
    arguments = ["viz", "report", str(heads), str(photos), "--out", str(out), "--truth", str(table)]
    assert main([*arguments, "--max-images", "2", "--json", "--title", "A <b>", "--no-tokens"]) == 0
    told = json.loads(capsys.readouterr().out)
    page = out.read_text()
    assert cells(page, "h3") == ["1.png", "3.png"]
    assert "Too good where a head was trained on these images" in page
    assert "<h1>A &lt;b&gt;</h1>" in page
    assert "tokens of" not in page
    assert told["scores"]["mass"]["images"] == 4
    assert told["scores"]["mass"]["mae"] == pytest.approx(np.abs(gaps).mean(), abs=1e-5)
    assert told["drawn"] == 2
    assert list(told["scores"]) == ["mass"]
    assert f"{told['scores']['mass']['rmse']:.4g}" in cells(page, "td")
    assert cells(page, "td").count("–") == 1  # the image without a known value


def test_an_ensemble_and_a_gate(heads: Path, gated: Path, photos: Path, tmp_path: Path) -> None:
    folds = [HeadCheckpoint.load(heads / f"fold-{fold}.safetensors") for fold in (0, 1)]
    one, records = tmp_path / "ensemble.safetensors", folds[0].meta
    ensemble = HeadEnsemble.from_heads([fold.build() for fold in folds])
    save_head(one, ensemble, backbone=records["backbone"], preprocess=records["inputs"])
    out = tmp_path / "report.html"
    assert main(["viz", "report", str(one), str(photos / "0.png"), "--out", str(out)]) == 0
    page = out.read_text()
    assert f"{Predictor(one)(photos / '0.png')[0]['mass']:.6g}" in cells(page, "td")
    assert entry(page, "head_type").startswith("ensemble")
    assert main(["viz", "report", str(gated), str(photos / "0.png"), "--out", str(out)]) == 0
    page = out.read_text()
    assert "<b>gate</b>" in page
    assert entry(page, "licence") == "MIT"


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_figures_of_tokens_gates_and_residuals(suffix: str, gated: Path, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / f"figure.{suffix}"
    table = tmp_path / "out_of_fold.csv"
    table.write_text("image,fold,a,a (head),b,b (head)\nx,0,1,1.5,2,2\ny,1,2,1.5,3,2\nz,1,4,3,4,5\n")
    calls = [
        ["tokens", str(photos), "--backbone", "dinoneck_tiny", "--layers", "0", "--size", "32x48"],
        ["gate", str(gated), str(photos)],
        ["residuals", str(table), "--target", "b", "--by-fold", "--unit", "g"],
    ]
    seen = set()
    for call in calls:
        assert main(["viz", *call, "--out", str(out)]) == 0
        content = out.read_bytes()
        assert content.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
        seen.add(content)
    assert len(seen) == 3


def test_cropped_photos_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    Image.fromarray(Pasture(size=(32, 64)).sample(0).image[:20, :33]).save(tmp_path / "odd.png")
    arguments = ["viz", "tokens", str(tmp_path), "--backbone", "dinoneck_tiny", "--out", str(tmp_path / "t.png")]
    assert main(arguments) == 0
    assert "odd.png: 20x33 px are cropped to 16x32" in capsys.readouterr().out
    (tmp_path / "t.png").unlink()
    assert main([*arguments, "--size", "32x48"]) == 0
    assert "are cropped" not in capsys.readouterr().out


def test_photos_of_very_many_patches_are_told_what_helps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("dinoneck.cli.train_text._MANY_PATCHES", 400)
    Image.new("RGB", (1280, 96)).save(tmp_path / "wide.png")
    arguments = ["viz", "tokens", str(tmp_path), "--backbone", "dinoneck_tiny", "--out", str(tmp_path / "t.png")]
    assert main(arguments) == 0
    assert "480 patches an image: slow, and much memory. --size 48x640 brings images to 120." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["report", "{head}", "{photos}", "--out", "r.pdf"], "ends in .html or .htm"),
        (["report", "{head}", "{photos}", "--out", "no/r.html"], "the folder no does not exist"),
        (
            ["report", "{head}", "{photos}", "--out", "{photos}/page.html", "--truth", "{photos}/page.html"],
            "one of the",
        ),
        (["report", "no.safetensors", "{photos}", "--out", "r.html"], "no.safetensors"),
        (["report", "{head}", "empty", "--out", "r.html"], "holds no images"),
        (["report", "{head}", "{photos}", "--out", "r.html", "--truth", "gone.csv"], "there is no file gone.csv"),
        (["report", "{head}", "{photos}", "--out", "r.html", "--scores", "gone.json"], "--scores gone.json cannot"),
        (["report", "{head}", "{photos}", "--out", "r.html", "--scores", "{photos}/page.html"], "cannot be used"),
        (
            ["report", "{head}", "{photos}", "--out", "r.html", "--scores", "{photos}/report.json"],
            "holds the scores of weed, and the head predicts mass, cover",
        ),
        (
            ["report", "{head}", "{photos}", "--out", "r.html", "--random-backbone", "--backbone-file", "w"],
            "exclude each other",
        ),
        (["gate", "{head}", "{photos}", "--out", "g.png"], "has no gate"),
        (["gate", "{head}", "{photos}", "--out", "{photos}/0.png"], "one of the inputs"),
        (["tokens", "{photos}", "--backbone", "dinoneck_tiny", "--out", "t.jpg"], "ends in .png"),
        (["residuals", "{photos}/page.html", "--out", "t.png"], "out_of_fold.csv"),
    ],
)
def test_refusals_come_before_any_work(
    arguments: list[str], told: str, heads: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "field"
    shutil.copytree(photos, folder)
    (folder / "page.html").write_text("image,mass\n")
    scores = {"weed": 0.5, "overall": 0.5, "worst fold": 0.4}
    run = {"scores": {"head": scores}, "mae": {"head": {"weed": 0.1}}, "target_sd": {"weed": {"all": 1, "folds": [1]}}}
    (folder / "report.json").write_text(json.dumps(run))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    places = {"head": str(heads / "fold-0.safetensors"), "photos": str(folder)}
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main(["viz", *(argument.format(**places) for argument in arguments)]) == 1
    assert told in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_photos_find_their_rows_from_the_end_of_their_names(tmp_path: Path) -> None:
    table = truth(tmp_path / "t.csv", [("a/1.jpg", "1.5"), ("2.jpg", " nan"), ("b/1.jpg", "2"), ("./c/3.jpg", "3")])
    found = known_values(
        table, "image", [Path("x/a/1.jpg"), Path("x/b/1.jpg"), Path("2.jpg"), Path("c/3.jpg")], {"mass": ()}
    )
    assert found == [{"mass": 1.5}, {"mass": 2.0}, {}, {"mass": 3.0}]
    table = truth(tmp_path / "t.csv", [("1.jpg", "1")])
    for photos, columns, told in (
        ([Path("a/1.jpg"), Path("b/1.jpg")], {"mass": ()}, "stands for a/1.jpg and for b/1.jpg"),
        ([Path("7.jpg")], {"mass": ()}, "for none of the 1 images"),
        ([Path("1.jpg")], {"cover": ()}, "known values of none of cover"),
    ):
        with pytest.raises(DataError, match=told):
            known_values(table, "image", photos, columns)
    for rows, told in (
        ([("1.jpg", "heavy")], "expected a number"),
        ([("1.jpg", "inf")], "expected a number"),
        ([("1.jpg", "1"), ("1.jpg", "2")], "has '1.jpg' more than once"),
    ):
        with pytest.raises(DataError, match=told):
            known_values(truth(table, rows), "image", [Path("1.jpg")], {"mass": ()})
    table = truth(tmp_path / "t.csv", [("1.jpg", "soil"), ("2.jpg", "")], "kind")
    found = known_values(table, "image", [Path("1.jpg"), Path("2.jpg")], {"kind": ("soil", "crop")})
    assert found == [{"kind": "soil"}, {}]
    with pytest.raises(DataError, match="kind is 'soil'; expected one of crop, weed"):
        known_values(table, "image", [Path("1.jpg")], {"kind": ("crop", "weed")})


def test_a_csiro_table_is_read_too(tmp_path: Path) -> None:
    Pasture(seed=1, size=(32, 64)).write_csiro(tmp_path, train=3, test=1)
    images = sorted((tmp_path / "train").iterdir())
    found = known_values(tmp_path / "train.csv", "image", images, {"GDM_g": (), "other": ()})
    with (tmp_path / "train.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["target_name"] == "GDM_g"]
    assert found == [{"GDM_g": float(row["target"])} for row in rows]
    with pytest.raises(DataError, match="known values of none of mass"):
        known_values(tmp_path / "train.csv", "image", images, {"mass": ()})


def test_a_report_of_a_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of its run: the images that it held out. Of a file: images, with the boxes of a COCO file on request."""
    pytest.importorskip("pycocotools", reason="held-out boxes need pycocotools, the extra [detection]")
    from dinoneck.detection import Detector, train_detector
    from dinoneck.training import TrainConfig

    boxes = write_boxes(tmp_path / "data")
    config = {
        "data": {"boxes": str(boxes), "val_boxes": str(boxes), "size": [64, 96]},
        "backbone": {"name": "dinoneck_tiny"},
        "detector": {"name": "fcos", "freeze": ["0=all"]},
        "head": {"type": "spatial_tuning_adapter", "out_channels": 32},
        "optim": {"epochs": 2, "batch_size": 3},
    }
    report = train_detector(TrainConfig.from_dict(config), tmp_path / "run")
    out, arguments = tmp_path / "r.html", ["--min-score", "0.05", "--out", str(tmp_path / "r.html"), "--json"]
    assert main(["viz", "report", str(tmp_path / "run"), "--max-images", "2", *arguments]) == 0
    written, page = json.loads(capsys.readouterr().out), out.read_text()
    assert (written["images"], written["drawn"]) == (3, 2)
    assert {name: each["known"] for name, each in written["scores"].items()} == {"blue": 2, "red": 3}
    assert cells(page, "td")[0] == f"{report['best']['AP']:.3f}"
    assert page.count("known dark") == 5 + page.count(".known dark"), "the two images with boxes are the worst"
    file = str(tmp_path / "run" / "detector.safetensors")
    assert main(["viz", "report", file, str(boxes.parent), "--truth", str(boxes), *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["scores"] == written["scores"]
    assert main(["viz", "report", file, str(boxes.parent / "0.png"), *arguments]) == 0
    page, [own] = out.read_text(), Detector.load(file).predict([boxes.parent / "0.png"], min_score=0.05)
    assert cells(page, "td")[0] == str(len(own["names"]))
    assert "known dark" not in page and "Held-out scores" not in page
