"""Views that a head's file records: every way to predict with it averages them, unless others are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from dinoneck import Backbone, HeadCheckpoint, PatchMeanHead, Predictor, Task, load_head, save_head
from dinoneck.checkpoint import model_card
from dinoneck.cli.main import main
from dinoneck.data import Pasture
from dinoneck.errors import CheckpointError
from dinoneck.inference import VIEWS

SIZE = (48, 64)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "field.png"
    Image.fromarray(Pasture(seed=3, size=SIZE).sample(0).image).save(path)
    return path


@pytest.fixture(scope="module")
def runs(tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Recorded views -> a folder with one head file; its head is the same in all."""
    torch.manual_seed(0)
    head = PatchMeanHead(64, [Task("mass", unit="g")], hidden_dim=8)
    folder, inputs = tmp_path_factory.mktemp("runs"), tiny.preprocess.changed(size=SIZE)
    for views in ("flip4", "d6"):
        (folder / views).mkdir()
        save_head(folder / views / "fold-0.safetensors", head, backbone=tiny, preprocess=inputs, tta=views)
    return {views: folder / views for views in ("flip4", "d6")}


def averaged(run: Path, image: Path, views: str) -> float:
    """The mean of the predictions of each view, made one by one from pixels that were turned before."""
    predictor = Predictor(run, tta="none")
    pixels = predictor.preprocess(image)  # (1, 3, H, W), normalised
    head = load_head(run / "fold-0.safetensors")
    turned = [VIEWS[views].place(pixels, i) for i in range(len(VIEWS[views]))]
    each = [head.predict(predictor.backbone(view))["mass"].item() for view in turned]
    return sum(each) / len(each)


@pytest.mark.parametrize("views", ["flip4", "d6"])
def test_every_way_to_predict_averages_the_recorded_views(
    views: str, runs: dict[str, Path], image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, expected = runs[views], averaged(runs[views], image, views)
    assert abs(expected - averaged(run, image, "none")) > 1e-3 * abs(expected), "the views make a difference"
    file = run / "fold-0.safetensors"
    for source in (run, file, [file], HeadCheckpoint.load(file)):
        predictor = Predictor(source)
        assert predictor.tta == views
        assert predictor(image)[0]["mass"] == pytest.approx(expected, rel=1e-5)
    table = tmp_path / "predictions.csv"
    assert main(["predict", str(image), "--heads", str(run), "--out", str(table)]) == 0
    assert float(table.read_text().splitlines()[1].split(",")[1]) == pytest.approx(expected, rel=1e-5)
    assert views in capsys.readouterr().out
    assert f"`{views}`" in model_card(file, "user/name")


def test_heads_that_record_different_views_need_a_choice(runs: dict[str, Path], image: Path, tmp_path: Path) -> None:
    plain = HeadCheckpoint.from_module(
        PatchMeanHead(64, [Task("mass", unit="g")], hidden_dim=8),
        backbone=HeadCheckpoint.load(runs["d6"] / "fold-0.safetensors").meta["backbone"],
        preprocess=Predictor(runs["d6"]).preprocess,
    )
    plain.save(tmp_path / "plain.safetensors")
    for other, named in ((runs["d6"], "d6"), (tmp_path / "plain.safetensors", "none")):
        with pytest.raises(CheckpointError, match=f"flip4 / {named}.*tta="):
            Predictor([runs["flip4"], other])
        assert Predictor([runs["flip4"], other], tta="flip4")(image)
