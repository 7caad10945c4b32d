"""Views that a head's file records: every way to predict with it averages them, unless others are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import kit

from dinoneck import Backbone, HeadCheckpoint, Predictor
from dinoneck.checkpoint import model_card
from dinoneck.inference import VIEWS


@pytest.mark.parametrize("views", ["flip4", "d6"])
def test_every_way_to_predict_averages_the_recorded_views(views: str, tiny: Backbone, tmp_path: Path) -> None:
    [image] = kit.write_images(tmp_path, ["field.png"])
    head, file = kit.head(), kit.saved_head(tmp_path / "run" / "fold-0.safetensors", tta=views)
    pixels = tiny.preprocess(image, size=kit.SIZE)
    each = [head.predict(tiny(VIEWS[views].place(pixels, i)))["mass"].item() for i in range(len(VIEWS[views]))]
    expected = sum(each) / len(each)
    assert abs(expected - each[0]) > 1e-4 * abs(expected), "the views make a difference"
    for source in (file.parent, file, [file], HeadCheckpoint.load(file)):
        predictor = Predictor(source)
        assert predictor.tta == views
        assert predictor(image)[0]["mass"] == pytest.approx(expected, rel=1e-5)
    ran = kit.cli("predict", image, "--heads", file.parent, "--out", tmp_path / "p.csv")
    assert float((tmp_path / "p.csv").read_text().splitlines()[1].split(",")[1]) == pytest.approx(expected, rel=1e-5)
    assert views in ran.out and f"`{views}`" in model_card(file, "user/name")
