"""Heads of the user that replace a method of Head, or give what a predictor cannot expect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import kit
from torch import Tensor

from dinoneck import (
    CheckpointError,
    CLSGatingHead,
    DenseHead,
    HeadEnsemble,
    Predictor,
    SimplePyramid,
    Task,
    load_head,
    register,
    save_head,
)
from dinoneck.detection import DetectionHead
from dinoneck.heads import Head
from dinoneck.layers.inputs import TokensLike, as_tokens

WIDTH = 64
COVER = Task("cover", kind="dense")
HEIGHT = Task("height", kind="dense")
IMAGE = kit.images(1, 32, 64)[0]


def randomised(head_class: type[DenseHead], seed: int = 0) -> DenseHead:
    return kit.randomised(head_class(WIDTH, [COVER, HEIGHT], hidden_dim=8), seed=seed).eval()


@register
class Tenfold(DenseHead):
    """Predicts ten times what its maps show."""

    def natural(self, tokens: TokensLike, **plain: Any) -> dict[str, Tensor]:
        return {name: 10 * cells for name, cells in super().natural(tokens, **plain).items()}


@register
class TenfoldMaps(DenseHead):
    """Shows ten times what it predicts."""

    @torch.no_grad()
    def predict_maps(self, tokens: TokensLike, **plain: Any) -> dict[str, Tensor]:
        return {name: 10 * cells for name, cells in super().predict_maps(tokens, **plain).items()}


@register
class OneMap(DenseHead):
    """Shows the map of one of its tasks."""

    @torch.no_grad()
    def predict_maps(self, tokens: TokensLike, **plain: Any) -> dict[str, Tensor]:
        return {"cover": super().predict_maps(tokens, **plain)["cover"]}


@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize("tta", ["none", "d6"])
def test_values_come_from_natural_and_maps_from_predict_maps(tile: int | None, tta: Any) -> None:
    [plain] = Predictor(randomised(DenseHead), kit.backbone(), tta, tile=tile)(IMAGE, "patch")
    cases = [(Tenfold, 10, 1), (TenfoldMaps, 1, 10), (OneMap, 1, 1)]
    for head_class, value_factor, map_factor in cases:
        predictor = Predictor(randomised(head_class), kit.backbone(), tta, tile=tile)

        [row] = predictor(IMAGE)
        [row_with_maps] = predictor(IMAGE, "patch")

        for name in ("cover", "height"):
            assert row[name] == pytest.approx(value_factor * plain[name], rel=1e-5)
            assert row_with_maps[name] == row[name]
        cells = row_with_maps["maps"]["cover"]
        np.testing.assert_allclose(cells, map_factor * plain["maps"]["cover"], rtol=1e-5)


def test_a_map_that_a_head_does_not_show_is_not_in_a_row() -> None:
    predictor = Predictor(randomised(OneMap), kit.backbone())

    [row] = predictor(IMAGE, "patch")
    [row_of_image] = predictor(IMAGE, "image")

    assert list(row["maps"]) == ["cover"]
    assert list(row_of_image["maps"]) == ["cover"]


def test_an_ensemble_shows_the_mean_of_the_maps_that_its_members_show() -> None:
    dense = randomised(DenseHead)
    other_dense = randomised(DenseHead, seed=1)
    ensemble = HeadEnsemble([randomised(TenfoldMaps), other_dense])

    [row] = Predictor(ensemble, kit.backbone())(IMAGE, "patch")

    [first] = Predictor(dense, kit.backbone())(IMAGE, "patch")
    [second] = Predictor(other_dense, kit.backbone())(IMAGE, "patch")
    assert row["cover"] == pytest.approx((first["cover"] + second["cover"]) / 2, rel=1e-4)
    expected = (10 * first["maps"]["cover"] + second["maps"]["cover"]) / 2
    np.testing.assert_allclose(row["maps"]["cover"], expected, rtol=1e-4, atol=1e-6)


@register
class BrightnessHead(Head):
    """Predicts the mean of the tokens; it has no parameters."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.embed_dim = WIDTH
        self.tasks = tuple(tasks)

    def forward(self, tokens: TokensLike, **plain: Any) -> dict[str, Tensor]:
        patches = as_tokens(tokens, **plain, owner=self).patches[-1]
        return {task.name: patches.mean(dim=(1, 2))[:, None] for task in self.tasks}


@torch.no_grad()
def test_a_head_without_parameters_predicts() -> None:
    head = BrightnessHead([Task("brightness")])
    backbone = kit.backbone()
    predictor = Predictor(head, backbone)

    [row] = predictor(IMAGE)

    tokens = predictor.backbone(predictor.preprocess(IMAGE))
    expected = tokens.patches[-1].mean().item()
    assert row["brightness"] == pytest.approx(expected, rel=1e-5)


def test_a_head_without_parameters_keeps_its_origin_when_it_is_cast(tmp_path: Path) -> None:
    backbone = kit.backbone()
    save_head(tmp_path / "h", BrightnessHead([Task("brightness")]), backbone=backbone)
    head = load_head(tmp_path / "h")
    origin = head.trained_on

    cast = head.double()

    assert origin is not None
    assert cast.trained_on == origin


def test_a_loaded_head_on_the_meta_device_keeps_its_origin(tmp_path: Path) -> None:
    head = kit.randomised(DenseHead(WIDTH, [COVER], hidden_dim=4))
    save_head(tmp_path / "h", head, backbone=kit.backbone())
    loaded = load_head(tmp_path / "h")
    origin = loaded.trained_on

    moved = loaded.to("meta", torch.float16)

    assert origin is not None
    assert moved.trained_on == origin
    assert {(x.device.type, x.dtype) for x in moved.parameters()} == {("meta", torch.float16)}


def test_a_detection_head_is_no_head_of_a_predictor_and_the_message_names_its_class() -> None:
    head = DetectionHead("fcos", ("red",), SimplePyramid(WIDTH, 32))

    with pytest.raises(
        CheckpointError, match=r"load a detector with dinoneck\.detection\.Detector"
    ):
        Predictor(head, kit.backbone())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tile", [None, 32])
def test_the_gate_of_a_head_in_half_precision_is_float32(dtype: Any, tile: int | None) -> None:
    head = CLSGatingHead(WIDTH, [Task("mass")], mode="query", hidden_dim=8)
    head = kit.randomised(head).eval()
    predictor = Predictor(head, kit.backbone(), tile=tile)
    [row] = predictor(IMAGE, "patch")

    half_predictor = Predictor(head.to(dtype), kit.backbone(), tile=tile)
    [half_row] = half_predictor(IMAGE, "patch")

    assert half_row["gate"].dtype == np.float32
    np.testing.assert_allclose(half_row["gate"], row["gate"], rtol=0.05, atol=1e-3)
