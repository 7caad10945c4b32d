"""Views that a head's file records: every way to predict with it averages them, unless others are named."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.service import running
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
    each = [head.predict(predictor.backbone(view.apply(pixels)))["mass"].item() for view in VIEWS[views]]
    return sum(each) / len(each)


def by_commands(source: Path, image: Path, folder: Path, *flags: str) -> Iterator[float]:
    """The predictions of ``dinoneck predict`` and of the page of ``dinoneck viz report``."""
    table, page = folder / "predictions.csv", folder / "report.html"
    assert main(["predict", str(image), "--heads", str(source), "--out", str(table), *flags]) == 0
    [row] = csv.DictReader(table.read_text().splitlines())
    yield float(row["mass"])
    assert main(["viz", "report", str(source), str(image), "--out", str(page), *flags]) == 0
    yield float(re.findall(r"<td.*?>(.*?)</td>", page.read_text())[0])


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
    for source in (run, file):
        assert list(by_commands(source, image, tmp_path)) == pytest.approx([expected] * 2, rel=1e-5)
        assert views in capsys.readouterr().out
    assert f"`{views}`" in model_card(file, "user/name")


def test_views_that_are_named_take_the_place_of_the_recorded_ones(
    runs: dict[str, Path], image: Path, tmp_path: Path
) -> None:
    for views in VIEWS:
        expected = averaged(runs["flip4"], image, views)
        assert Predictor(runs["flip4"], tta=views)(image)[0]["mass"] == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]
        found = by_commands(runs["flip4"], image, tmp_path, "--tta", views)
        assert list(found) == pytest.approx([expected] * 2, rel=1e-5)


@pytest.mark.skipif(
    None in map(find_spec, ("fastapi", "uvicorn", "python_multipart")), reason="the extra serve is not installed"
)
def test_the_service_averages_the_recorded_views_and_names_them(runs: dict[str, Path], image: Path) -> None:
    with running(runs["flip4"], OMP_NUM_THREADS="1") as service:
        [result] = service.predict((image.name, image.read_bytes())).json()["images"]
        assert result["values"]["mass"] == pytest.approx(averaged(runs["flip4"], image, "flip4"), rel=1e-5)
        assert service.get("/").json()["tta"] == "flip4"


def test_heads_that_record_different_views_need_a_choice(
    runs: dict[str, Path], image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
        heads = ["--heads", str(runs["flip4"]), str(other), "--out", str(tmp_path / "p.csv")]
        assert main(["predict", str(image), *heads]) == 1
        assert "--tta" in capsys.readouterr().err
        assert main(["predict", str(image), *heads, "--tta", "d6"]) == 0


def test_only_the_record_of_views_counts(tiny: Backbone, tmp_path: Path) -> None:
    head = PatchMeanHead(64, [Task("mass")])
    save_head(tmp_path / "h.safetensors", head, backbone=tiny, extra={"tta": "flip4"})
    assert Predictor(tmp_path / "h.safetensors").tta == Predictor(head, tiny).tta == "none"


def test_views_of_a_later_version_are_refused_by_name(tiny: Backbone) -> None:
    later: Any = HeadCheckpoint.from_module(PatchMeanHead(64, [Task("mass")]), backbone=tiny, tta="flip4")
    later.meta["tta"]["ops"] = "d8"
    with pytest.raises(CheckpointError, match=r"'d8'.*none, flip4, d6"):
        Predictor(later)
    assert Predictor(later, tta="none").tta == "none"
