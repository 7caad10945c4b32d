"""``dinoneck predict``: what is written is what the heads predict; unusable images, tiles, heads from the Hub."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinoneck import (
    Backbone,
    DenseHead,
    HeadCheckpoint,
    LinearHead,
    PatchMeanHead,
    Predictor,
    Task,
    load_backbone,
    save_head,
)
from dinoneck.checkpoint.pairing import rebuild
from dinoneck.cli.main import main


def records_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def draw(path: Path, height: int = 60, width: int = 150, seed: int = 0) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.RandomState(seed).randint(0, 255, (height, width, 3), np.uint8)).save(path)
    return path


@pytest.fixture
def place(tiny: Backbone, tmp_path: Path) -> Path:
    """A folder with images of two sizes and the heads of two folds."""
    draw(tmp_path / "images" / "large.png")
    draw(tmp_path / "images" / "small.png", 30, 40, seed=1)
    (tmp_path / "heads").mkdir()
    for fold in range(2):
        tasks = [Task("mass", kind="density", unit="g"), Task("kind", kind="segmentation", dim=2)]
        preprocess = tiny.preprocess.changed(size=(32, 48))
        head = DenseHead(64, tasks, hidden_dim=8)
        save_head(tmp_path / "heads" / f"{fold}.safetensors", head, backbone=tiny, preprocess=preprocess)
    return tmp_path


def job(place: Path, *options: str, heads: str | None = None) -> list[str]:
    out = ["--out", str(place / "out.csv")]
    return ["predict", str(place / "images"), "--heads", heads or str(place / "heads"), *out, *options]


def predicted(place: Path, *options: str, heads: str | None = None) -> list[float]:
    assert main(job(place, *options, heads=heads)) == 0
    return [float(row["mass"]) for row in records_of(place / "out.csv")]


def test_options_reach_the_predictor(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, heads = sorted((place / "images").iterdir()), place / "heads"

    def expected(**settings: Any) -> Any:
        return pytest.approx([row["mass"] for row in Predictor(heads, **settings)(images)], rel=1e-4)

    tiles = ["--tile", "40x60", "--overlap", "15"]
    found = predicted(place, *tiles)
    assert found == expected(tile=(40, 60), overlap=15) != expected()
    assert predicted(place, *tiles[:2], "--overlap", "10") == expected(tile=(40, 60), overlap=10)
    assert predicted(place, "--tta", "flip4") == expected(tta="flip4")


def test_programs_get_every_value(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(job(place, "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert [task["unit"] for task in document["tasks"]] == ["g", ""]
    results = Predictor(place / "heads")(sorted((place / "images").iterdir()))
    for row, result in zip(document["predictions"], results, strict=True):
        assert row["values"]["mass"] == pytest.approx(result["mass"], rel=1e-5)
        assert row["values"]["kind"] == pytest.approx(list(map(float, result["kind"])), rel=1e-5)


def test_maps_change_no_value(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = predicted(place)
    folders = [str(place / "maps"), str(place / "pictures")]
    assert predicted(place, "--maps", folders[0], "--overlay", folders[1]) == pytest.approx(without, rel=1e-5)
    assert f"written: {place / 'out.csv'}, {', '.join(folders)}" in capsys.readouterr().out
    names = sorted(path.stem for path in (place / "images").iterdir())
    assert sorted(path.stem for path in (place / "pictures").iterdir()) == names
    assert main([*job(place), "--overlay", folders[1]]) == 1, "nothing is overwritten"
    assert "name a new folder" in capsys.readouterr().err


def test_masks_are_those_of_the_predictor_in_the_pixels_of_the_image(tmp_path: Path) -> None:
    """Images of one name in two folders, one of them turned by its tag."""
    backbone, exif = load_backbone("dinoneck_tiny"), Image.Exif()
    exif[0x0112] = 6
    head = LinearHead(64, [Task("crop", dim=3, kind="segmentation", labels=("soil", "crop", "weed"))], pool=None)
    prepare = backbone.preprocess.changed(resize="crop")
    save_head(tmp_path / "h.safetensors", head, backbone=backbone, preprocess=prepare)
    for folder in ("a", "b"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        pixels = np.random.RandomState(ord(folder)).randint(0, 256, (46, 94, 3), np.uint8)
        Image.fromarray(pixels).save(
            tmp_path / "images" / folder / "1.png", **({"exif": exif} if folder == "b" else {})
        )
    words = ["predict", str(tmp_path / "images"), "--heads", str(tmp_path / "h.safetensors")]
    folders = ["--maps", str(tmp_path / "m"), "--overlay", str(tmp_path / "o")]
    assert main([*words, *folders, "--out", str(tmp_path / "o.csv")]) == 0
    for folder, size in (("a", (46, 94)), ("b", (94, 46))):
        [row] = Predictor(tmp_path / "h.safetensors")(tmp_path / "images" / folder / "1.png", maps="image")
        with Image.open(tmp_path / "m" / folder / "1.png") as stored:
            mask = np.asarray(stored)
        assert mask.shape == size
        assert np.mean(mask == row["maps"]["crop"]) > 0.999
        with Image.open(tmp_path / "o" / folder / "1.jpg") as picture:
            assert picture.width == round(1200 * size[1] / 94)


def test_images_that_differ_in_their_suffix_only_have_no_maps(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = sorted((place / "images").iterdir())[0]
    Image.open(first).convert("RGB").save(first.with_suffix(".bmp"))
    assert main([*job(place), "--maps", str(place / "m")]) == 1
    assert "differ in their suffix" in capsys.readouterr().err


def test_images_that_cannot_be_used_are_left_out_on_request(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "m.png"):
        (place / "images" / name).write_bytes(b"")
    for name in ("e.heic", "e.GIF", ".hidden.heic", "notes.txt"):
        (place / "images" / name).write_bytes(b"of another format")
    assert main(job(place)) == 1
    assert not (place / "out.csv").exists()
    capsys.readouterr()
    assert main(job(place, "--skip-unusable", "--json", "--batch-size", "2")) == 0
    printed = capsys.readouterr()
    assert sorted(Path(name).name for name in json.loads(printed.out)["unusable"]) == ["a.png", "m.png"]
    assert "left out: 2 files of other formats (.gif, .heic)" in printed.err
    assert [Path(row["image"]).stem for row in records_of(place / "out.csv")] == ["large", "small"]
    words = ["predict", str(place / "images" / "a.png"), *job(place)[2:], "--skip-unusable"]
    assert main(words) == 1
    assert "none of the 1 images can be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlap", "8"], "tile is None"),
        (["--tile", "32", "--overlap", "40"], "overlap is 40"),
        (["--out", "x.jpg"], "ends in .csv"),
        (["--out", "no/x.csv"], "the folder no does not exist"),
        (["--out", "heads"], "ends in .csv"),
        (["--maps", "images/large.png"], "name a new folder"),
        (["--random-backbone", "--backbone-file", "w.pth"], "exclude each other"),
        (["--device", "cuda:99"], "cannot be used here"),
        (["--revision", "v1"], "revision='v1' is for hub repositories"),
        (["--csv", "t.csv"], "or --csv with their names"),
        (["--image-folder", "images"], "--image-folder"),
    ],
)
def test_what_does_not_fit_writes_nothing(
    place: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert main(["predict", "images", "--heads", "heads", "--out", "out.csv", *options]) == 1
    assert message in capsys.readouterr().err
    assert sorted(place.rglob("*")) == before


def test_heads_get_the_backbone_of_their_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Heads on seeded weights get their own seed; those on weights from a file are refused on random ones."""
    draw(tmp_path / "images" / "a.png", 32, 48)
    seeded = load_backbone("dinoneck_tiny", seed=7)
    head = tmp_path / "h.safetensors"
    save_head(head, PatchMeanHead(64, [Task("mass")]), backbone=seeded, preprocess=seeded.preprocess)
    assert predicted(tmp_path, heads=str(head)) == predicted(tmp_path, "--random-backbone", heads=str(head))
    record = HeadCheckpoint.load(head).meta["backbone"]
    assert rebuild(record, random=True).record()["weights"] == record["weights"]
    weights = tmp_path / "w.safetensors"
    load_backbone("dinoneck_tiny", seed=1).save_weights(weights)
    trained = load_backbone("dinoneck_tiny", checkpoint=weights)
    save_head(head, PatchMeanHead(64, [Task("mass")]), backbone=trained, preprocess=trained.preprocess)
    assert main(job(tmp_path, heads=str(head))) == 1
    assert "--backbone-file" in capsys.readouterr().err
    assert main(job(tmp_path, "--random-backbone", heads=str(head))) == 1
    assert "seeded random weights (seed 0)" in capsys.readouterr().err
    assert predicted(tmp_path, "--backbone-file", str(weights), heads=str(head))
    save_head(head, PatchMeanHead(64, [Task("mass")]))
    assert main(job(tmp_path, "--random-backbone", heads=str(head))) == 1
    assert "does not state which backbone it needs" in capsys.readouterr().err
