"""Gates over places at another grid of as many patches: refused, never scrambled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dinoneck import Backbone, CheckpointError, CLSGatingHead, PatchMeanHead, Predictor, Task, save_head
from dinoneck.data import Preprocessing


@pytest.fixture
def gated() -> CLSGatingHead:
    return CLSGatingHead(64, [Task("a")], "mlp", 6, hidden_dim=8)


def test_only_its_own_grid_is_scored(gated: CLSGatingHead, tiny: Backbone, tmp_path: Path) -> None:
    prepared = tiny.preprocess.changed(size=(32, 48))
    save_head(tmp_path / "h", gated, backbone=tiny, preprocess=prepared)
    image = torch.rand(3, 32, 48)
    assert Predictor(tmp_path / "h", tiny, tta="flip4")(image)
    for options in ({"tta": "d6"}, {"preprocess": prepared.changed(size=(48, 32))}):
        with pytest.raises(CheckpointError, match="2 rows x 3 cols; it is given 3 x 2") as caught:
            Predictor(tmp_path / "h", tiny, **options)(image)  # type: ignore[arg-type]
        assert caught.value.step == "pairing"


def test_images_prepared_for_other_patches(tiny: Backbone) -> None:
    other = Preprocessing(patch_size=14, size=(112, 112))
    with pytest.raises(CheckpointError, match="14x14 px .* the backbone has 16x16") as caught:
        Predictor(PatchMeanHead(64, [Task("a")]), tiny, preprocess=other)
    assert caught.value.step == "pairing"
