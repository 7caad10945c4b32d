"""One image, one number: a task whose value is the mean over a map's cells has that value everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dinoneck import (
    Backbone,
    ConfigError,
    DenseHead,
    FPNHead,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    TargetTransform,
    Task,
    Tokens,
)
from dinoneck.heads import Head

CELLS = Task("cells", 3, kind="dense", labels=("soil", "crop", "weed"), transform=TargetTransform(mean=0.1, std=0.3))
WEED = Task("weed", from_map="cells", minimum=0.0, transform=TargetTransform(mean=0.02, std=0.03))
CROP = Task("crop", from_map="cells")
TASKS = (WEED, CELLS, CROP)


def tokens(seed: int = 0) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    return Tokens.from_patches(torch.randn(3, 15, 64, generator=generator), grid=(3, 5), patch_size=16)


def head_of(kind: str, tasks: Any = TASKS) -> Head:
    torch.manual_seed(1)
    if kind == "dense":
        return DenseHead(64, tasks, hidden_dim=8, depth=0)
    return FPNHead(64, tasks, 1, fpn_dim=8, num_levels=2, tower_depth=1)


def shares(maps: Tensor) -> dict[str, Tensor]:
    means = maps.double().mean(dim=(2, 3))
    return {"weed": means[:, 2:].clamp_min(0.0), "crop": means[:, 1:2]}


@pytest.mark.parametrize("kind", ["dense", "fpn"])
@pytest.mark.parametrize("segments", [False, True])
def test_the_number_is_the_mean_of_the_maps_cells(kind: str, segments: bool) -> None:
    cells = Task("cells", 3, kind="segmentation", labels=CELLS.labels) if segments else CELLS
    head = head_of(kind, (WEED, cells, CROP)).eval()
    assert not any("weed" in name for name, _ in head.named_parameters())
    assert sum(len(list(own.out.parameters())) for own in head.towers) == 2, "one readout, the map's"  # type: ignore
    values, wanted = head.predict(tokens()), shares(head.predict_maps(tokens())["cells"])
    for name, value in wanted.items():
        torch.testing.assert_close(values[name].double(), value, rtol=1e-5, atol=1e-6)
    assert list(head.predict_maps(tokens())) == ["cells"]
    assert list(values) == ["weed", "cells", "crop"]


@pytest.mark.parametrize(("reduce", "weights"), [("mean", None), ("mean", [1.0, 2.0, 0.5]), ("median", None)])
def test_heads_together(reduce: Any, weights: Any) -> None:
    heads = [head_of("dense").requires_grad_(False).eval() for _ in range(3)]
    for place, head in enumerate(heads):
        for own in head.parameters():
            own.mul_(1.0 + place)
    ensemble = HeadEnsemble.from_heads(heads, weights, reduce)
    wanted = shares(ensemble.predict_maps(tokens())["cells"])
    for name, value in wanted.items():
        torch.testing.assert_close(ensemble.predict(tokens())[name].double(), value, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="members disagree about task 'weed'"):
        HeadEnsemble.from_heads([heads[0], PatchMeanHead(64, [Task("weed", minimum=0.0)])])


@pytest.mark.parametrize("tta", ["none", "d6"])
@pytest.mark.parametrize("reduce", ["mean", "median"])
def test_views_and_tiles(blind: Backbone, patchwork: Callable[[int, int], Tensor], tta: Any, reduce: Any) -> None:
    heads = [head_of("dense"), head_of("dense", (CROP, CELLS, WEED)).requires_grad_(False)]
    for own in heads[1].parameters():
        own.mul_(-1.5)
    image = patchwork(7, 5)
    both = HeadEnsemble(heads, reduce=reduce)
    [whole] = Predictor(both, blind, tta)(image, maps="patch")
    options: dict[str, Any] = {"tile": (48, 64), "overlap": 16, "batch_size": 3}
    [tiled] = Predictor(both, blind, tta, **options)(image, maps="patch")
    for result in (whole, tiled):
        for name, value in shares(torch.as_tensor(result["maps"]["cells"])[None]).items():
            assert result[name] == pytest.approx(value.item(), rel=1e-5, abs=1e-6)
    assert tiled["crop"] == pytest.approx(whole["crop"], rel=1e-5)
