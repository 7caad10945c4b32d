"""The command line: tiles, weights, medians and heads from the hub."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.hub_server import Hub

from dinoneck import Backbone, DenseHead, HeadCheckpoint, HeadEnsemble, Predictor, Task, load_head, save_head
from dinoneck.cli.main import main
from dinoneck.data import Preprocessing


@pytest.fixture
def place(tiny: Backbone, tmp_path: Path) -> Path:
    """A folder with photos of two sizes and the heads of two folds."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "heads").mkdir()
    for name, size in (("large", (60, 150)), ("small", (30, 40))):
        pixels = np.random.RandomState(len(name)).randint(0, 255, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{name}.png")
    for fold in range(2):
        head = DenseHead(64, [Task("mass", kind="density", unit="g")], hidden_dim=8)
        recipe = tiny.preprocess.changed(size=(32, 48))
        save_head(tmp_path / "heads" / f"{fold}.safetensors", head, backbone=tiny, preprocess=recipe)
    return tmp_path


def predicted(place: Path, *options: str, heads: str | None = None) -> list[float]:
    out = place / "out.csv"
    arguments = ["predict", str(place / "photos"), "--heads", heads or str(place / "heads"), "--out", str(out)]
    assert main([*arguments, *options]) == 0
    with out.open(newline="") as file:
        return [float(row["mass"]) for row in csv.DictReader(file)]


def test_options_reach_the_predictor(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = sorted((place / "photos").iterdir())
    tiles = ["--tile", "40x60", "--overlap", "0.25", "--tile-scale", "0.9"]
    found = predicted(place, *tiles, "--maps", str(place / "maps.png"))
    predictor = Predictor(place / "heads", tile=(40, 60), overlap=0.25, tile_scale=0.9)
    assert found == pytest.approx([row["mass"] for row in predictor(photos)], rel=1e-4)
    assert "becomes 48x112 px (height x width), cut into 2x3 tiles" in capsys.readouterr().out
    assert (place / "maps.png").is_file()
    assert found != pytest.approx(predicted(place), rel=1e-4)
    assert predicted(place, *tiles[:2], "--overlap", "10") == pytest.approx(
        [row["mass"] for row in Predictor(place / "heads", tile=(40, 60), overlap=10)(photos)], rel=1e-4
    )
    weighted = Predictor(place / "heads", weights=[1.0, 0.0])(photos)
    assert predicted(place, "--weights", "1", "0") == pytest.approx([row["mass"] for row in weighted], rel=1e-4)
    median = Predictor(place / "heads", reduce="median")(photos)
    assert predicted(place, "--reduce", "median") == pytest.approx([row["mass"] for row in median], rel=1e-4)


def test_maps_without_a_name_lie_beside_the_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = predicted(place)
    assert not (place / "out.png").exists()
    assert predicted(place, "--maps") == pytest.approx(without, rel=1e-5)
    assert f"written: {place / 'out.csv'}, {place / 'out.png'}" in capsys.readouterr().out
    predicted(place, "--maps", str(place / "named.png"))
    assert (place / "out.png").read_bytes() == (place / "named.png").read_bytes()
    (place / "out.png").rename(place / "photos" / "out.png")
    arguments = ["predict", str(place / "photos"), "--heads", str(place / "heads"), "--maps", "--out"]
    assert main([*arguments, str(place / "photos" / "out.csv")]) == 1
    assert "is one of the inputs" in capsys.readouterr().err


def test_heads_and_ensembles_from_the_hub(place: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((place / "heads").iterdir())
    for file in files:
        head, recipe = HeadCheckpoint.load(file), Preprocessing.from_record(HeadCheckpoint.load(file).meta["inputs"])
        save_head(file, head.build(), backbone=head.meta["backbone"], preprocess=recipe, tta="flip4")
    one = hub.repo("me/grass", {"h.safetensors": files[1].read_bytes()})
    ensemble = HeadEnsemble.from_heads([load_head(file) for file in files])
    save_head(place / "many", ensemble, backbone=head.meta["backbone"], preprocess=recipe, tta="flip4")
    many = hub.repo("me/many", {"h.safetensors": (place / "many").read_bytes()})
    one.branches["v1"] = many.branches["v1"] = many.branches["main"]
    one.commits |= many.commits
    one.commit({"h.safetensors": files[0].read_bytes()})
    assert predicted(place, heads="me/grass") == predicted(place, heads=str(files[0]))
    told = capsys.readouterr().out
    assert f"me/grass is commit {one.branches['main']}." in told
    assert told.count("Views: flip4, as the heads' training file says") == 2, "also of what came from the hub"
    both = predicted(place, heads=str(place / "heads"))
    assert predicted(place, heads="me/many") == predicted(place, heads=str(place / "many")) == both
    assert predicted(place, "--revision", "v1", heads="me/grass") == both, "that branch holds the ensemble"
    assert f"me/grass is commit {many.branches['v1']}." in capsys.readouterr().out
    arguments = ["predict", str(place / "photos"), "--out", str(place / "no.csv"), "--revision", "v1", "--heads"]
    assert main([*arguments, str(place / "heads")]) == 1
    assert "revision='v1' is for hub repositories" in capsys.readouterr().err
    assert not (place / "no.csv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "1"], "weights are (1.0,): 1 for 2 heads"),
        (["--weights", "1", "2", "--reduce", "median"], "no meaning for reduce='median'"),
        (["--overlap", "8"], "tile is None"),
        (["--tile", "32", "--overlap", "40"], "overlap is 40 px"),
    ],
)
def test_what_does_not_fit_writes_nothing(
    place: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "out.csv"
    assert main(["predict", str(place / "photos"), "--heads", str(place / "heads"), "--out", str(out), *options]) == 1
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    "options", [["--overlap", "1.5"], ["--overlap", "-4"], ["--tile", "0"], ["--tile-scale", "0"], ["--weights", "-1"]]
)
def test_numbers_out_of_range_are_wrong_usage(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "p.png", "--heads", "h", "--out", "o.csv", *options])
    assert "error" in capsys.readouterr().err
