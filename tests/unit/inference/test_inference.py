"""Views, presets and the predictor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import kit

from dinoneck import (
    Backbone,
    DenseHead,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    TargetTransform,
    Task,
    load_head,
)
from dinoneck.inference import VIEWS


def test_maps_of_all_views_come_back_to_the_image(blind: Backbone) -> None:
    head = PatchMeanHead(64, [Task("a"), Task("b", transform=TargetTransform(area=2.0))])
    image = torch.rand(3, 32, 80)
    plain = Predictor(head, blind)(image, maps="patch")[0]
    for tta in ("flip4", "d6"):
        averaged = Predictor(head, blind, tta=tta)(image, maps="patch")[0]  # type: ignore[arg-type]
        assert averaged["maps"]["a"].shape == (1, 2, 5)
        for name in ("a", "b"):
            assert np.allclose(averaged["maps"][name], plain["maps"][name], atol=1e-5)
            assert averaged[name] == pytest.approx(plain[name], abs=1e-5)


def test_views_are_averaged_in_natural_units(tiny: Backbone) -> None:
    head = kit.head(Task("a", transform=TargetTransform(log1p=True, mean=1.0, std=2.0), activation="relu"))
    image = kit.images(1)[0]
    images = tiny.preprocess(image)
    each = [head.predict(tiny(VIEWS["d6"].place(images, i)))["a"].item() for i in range(6)]
    assert Predictor(head, tiny, tta="d6")(image)[0]["a"] == pytest.approx(np.mean(each), rel=1e-5)


def test_images_are_normalised_as_the_file_records(tiny: Backbone, tmp_path: Path) -> None:
    head, image = PatchMeanHead(64, [Task("a")]), torch.rand(3, 32, 64)
    own = tiny.preprocess.changed(size=(32, 64), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    HeadCheckpoint.from_module(head, backbone=tiny, preprocess=own).save(tmp_path / "h.safetensors")
    expected = head.predict(tiny(own(image)))["a"].item()
    assert Predictor(tmp_path / "h.safetensors")(image)[0]["a"] == pytest.approx(expected, rel=1e-5)
    assert head.predict(tiny(tiny.preprocess(image)))["a"].item() != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("tta", ["none", "d6"])
def test_padding_is_left_out_of_the_mean_of_a_map(
    blind: Backbone, patchwork: Callable[[int, int], torch.Tensor], tta: Any
) -> None:
    padded = blind.preprocess.changed(size=(64, 64), resize="pad")  # 2 x 4 patches of image in a grid of 4 x 4
    head = DenseHead(64, [Task("a", kind="dense")], hidden_dim=8, depth=0)
    [result] = Predictor(head, blind, tta, preprocess=padded)(patchwork(2, 4), maps="patch")
    [alone] = Predictor(head, blind, tta)(patchwork(2, 4), maps="patch")
    assert result["maps"]["a"].shape == (1, 4, 4)
    assert result["a"] == pytest.approx(result["maps"]["a"][:, :2].mean(), rel=1e-5)
    assert result["a"] == pytest.approx(alone["a"], rel=1e-5)
    assert result["a"] != pytest.approx(result["maps"]["a"].mean(), rel=1e-2)


def test_one_pass_for_heads_of_several_layers(tiny: Backbone, tmp_path: Path) -> None:
    shallow, deep, all_layers = (tiny.with_layers(own) for own in ([1], [2, 4], [1, 2, 4]))
    heads = [PatchMeanHead(64, [Task("a")]), PatchMeanHead(64, [Task("a"), Task("b")])]
    together = HeadEnsemble(heads, layers=[[1], [2, 4]])
    file = kit.saved_head(tmp_path / "h.safetensors", together, backbone=all_layers)
    predictor, image = Predictor(file), kit.images(1)[0]
    assert predictor.backbone.layers == (1, 2, 4)
    images = tiny.preprocess(image)
    a0, both = heads[0].predict(shallow(images)), heads[1].predict(deep(images))
    [result] = predictor(image, maps="patch")
    assert result["a"] == pytest.approx((a0["a"].item() + both["a"].item()) / 2, rel=1e-5)
    assert result["b"] == pytest.approx(both["b"].item(), rel=1e-5)
    assert result["maps"]["a"].shape == (1, 2, 3)
    values = load_head(file).predict(all_layers(images))  # type: ignore[operator]
    assert values["a"].item() == pytest.approx(result["a"], rel=1e-5)


def test_images_of_different_sizes_keep_their_order(tiny: Backbone) -> None:
    predictor = Predictor(PatchMeanHead(64, [Task("a")]), tiny, batch_size=3)
    images = [torch.rand(3, 32, 32), torch.rand(3, 48, 32), torch.rand(3, 32, 32), torch.rand(3, 16, 16)]
    together = [row["a"] for row in predictor(images)]
    assert together == pytest.approx([predictor(image)[0]["a"] for image in images], rel=1e-5)


def test_half_precision_backbones_predict_with_float32_heads(tmp_path: Path) -> None:
    half, head, image = kit.backbone(dtype=torch.bfloat16), kit.head(), kit.images(1)[0]
    rebuilt = Predictor(kit.saved_head(tmp_path / "h.safetensors", head, backbone=half))
    assert next(rebuilt.backbone.parameters()).dtype == torch.bfloat16
    exact = Predictor(head, kit.backbone())(image)[0]["mass"]
    assert rebuilt(image)[0]["mass"] == pytest.approx(exact, abs=0.02)
    assert rebuilt(image) == Predictor(head, half)(image)
