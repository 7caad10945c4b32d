"""Images cut into tiles: the same as the whole image wherever tokens see their own patch only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import kit
from torch import Tensor

from dinoneck import (
    Backbone,
    CLSGatingHead,
    DenseHead,
    GridSize,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    TargetTransform,
    Task,
)
from dinoneck.data import Preprocessing
from dinoneck.inference.tiles import TileAxis, Tiling, windows

Patchwork = Callable[[int, int], Tensor]
TASKS = (
    Task("mass", kind="density", transform=TargetTransform(area=0.5)),
    Task("cover", kind="density", aggregate="mean", activation="sigmoid"),
    Task("height", kind="dense"),
    Task("crop", 3, kind="segmentation"),
)


def axis(total: int, length: int, overlap: int) -> TileAxis:
    recipe = Preprocessing(patch_size=1)
    return Tiling((length, length), overlap).axes(GridSize(total, 1), recipe)[0]


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 19), st.integers(1, 3))
def test_tiles_cover_every_cell_and_their_weights_add_up_to_one(
    total: int, length: int, overlap: int, finer: int
) -> None:
    overlap = min(overlap, length - 1)
    tiles = axis(total, length, overlap)
    assert tiles.starts[0] == 0
    assert tiles.starts[-1] + tiles.length == total
    steps = np.diff(tiles.starts)
    assert (steps > 0).all()
    assert (length - steps >= overlap).all()
    fewest = 1 if total <= length else -(-(total - length) // (length - overlap)) + 1
    assert len(tiles.starts) == fewest
    sums = torch.zeros(total * finer, dtype=torch.float64)
    for start, window in zip(tiles.starts, windows(tiles, finer), strict=True):
        assert (window > 0).all()
        sums[start * finer : start * finer + len(window)] += window
    assert torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=1e-15)


def test_one_tile_fades_into_the_next() -> None:
    tiles = axis(12, 8, 4)
    assert tiles.starts == (0, 4)
    first, second = windows(tiles)
    assert first[:4].tolist() == second[4:].tolist() == [1.0] * 4
    assert torch.allclose(first[4:], torch.tensor([3.5 / 4, 2.5 / 4, 1.5 / 4, 0.5 / 4], dtype=torch.float64))
    assert torch.allclose(first[4:] + second[:4], torch.ones(4, dtype=torch.float64))


TILES = [(48, 0), (48, 16), ((32, 64), 0.5), ((32, 48), 10)]
SIZES = [(3, 8), (7, 5), (4, 3), (2, 9)]


@pytest.mark.parametrize(
    ("tta", "size", "tile", "overlap"),
    [(tta, size, *tile) for tta in ("none", "flip4", "d6") for size, tile in zip(SIZES, TILES, strict=True)],
)
def test_tiled_equals_whole(
    blind: Backbone, patchwork: Patchwork, tta: Any, size: tuple[int, int], tile: Any, overlap: float
) -> None:
    heads = HeadEnsemble([DenseHead(64, TASKS, hidden_dim=8, depth=0), PatchMeanHead(64, [Task("a", minimum=0.0)])])
    image = patchwork(*size)
    [whole] = Predictor(heads, blind, tta)(image, maps="patch")
    [tiled] = Predictor(heads, blind, tta, tile=tile, overlap=overlap, batch_size=3)(image, maps="patch")
    assert tiled.keys() == whole.keys() and kit.same(tiled, whole, 1e-5)
    assert tiled["mass"] == pytest.approx(tiled["maps"]["mass"].sum(), rel=1e-5)
    [short] = Predictor(heads, blind, tta, tile=tile, overlap=overlap)(image)
    assert "maps" not in short
    assert np.allclose([short["mass"], short["a"]], [tiled["mass"], tiled["a"]], rtol=1e-6)


def test_pooled_answers_are_weighted_by_the_ground_they_stand_for(tiny: Backbone) -> None:
    tasks = [Task("mass", transform=TargetTransform(log1p=True)), Task("kind", 2, kind="classification")]
    head = CLSGatingHead(64, tasks, mode="query", hidden_dim=8).eval()
    image = torch.rand(3, 32, 80, generator=torch.Generator().manual_seed(0))
    cuts = [slice(0, 48), slice(16, 64), slice(32, 80)]
    answers = [Predictor(head, tiny)(image[..., cut], maps="patch")[0] for cut in cuts]
    [tiled] = Predictor(head, tiny, tile=48, overlap=32)(image, maps="patch")
    ramps = np.array([[0.5, 1.5, 0.5, 0, 0], [0, 0.5, 1.5, 0.5, 0], [0, 0, 0.5, 1.5, 0.5]])
    shares = (ramps / ramps.sum(axis=0)).sum(axis=1) / 5
    assert tiled["mass"] == pytest.approx(sum(s * a["mass"] for s, a in zip(shares, answers, strict=True)), rel=1e-5)
    assert np.allclose(tiled["kind"], sum(s * a["kind"] for s, a in zip(shares, answers, strict=True)), atol=1e-6)
    assert tiled["gate"].shape == (2, 5)
    assert tiled["gate"].sum() == pytest.approx(1.0)
    expected = np.zeros((2, 5))
    for k, answer in enumerate(answers):
        expected[:, k : k + 3] += (ramps / ramps.sum(axis=0))[k, k : k + 3] * answer["gate"]
    assert np.allclose(tiled["gate"], expected / expected.sum(), atol=1e-6)


@pytest.mark.parametrize(
    ("image_size", "grid"),
    [
        ((120, 180), (4, 6)),  # 60x90 px become 32x48, 2x3 patches
        ((61, 180), (2, 6)),  # one pixel too much: by less than half a patch brought to whole ones
        ((30, 180), (1, 6)),  # less than a tile high
    ],
)
def test_a_tile_is_brought_to_the_heads_size(
    blind: Backbone, image_size: tuple[int, int], grid: tuple[int, int]
) -> None:
    head, recipe = DenseHead(64, TASKS, hidden_dim=8, depth=0), blind.preprocess.changed(size=(32, 48))
    image = torch.rand(3, *image_size)
    predictor = Predictor(head, blind, preprocess=recipe, tile=(60, 90))
    [tiled] = predictor(image, maps="patch")
    assert tiled["maps"]["mass"].shape == (1, *grid)
    assert predictor.picture(image).shape == (3, grid[0] * 16, grid[1] * 16)
    stretched = blind.preprocess.changed(size=(grid[0] * 16, grid[1] * 16))
    [whole] = Predictor(head, blind, preprocess=stretched)(image, maps="patch")
    assert kit.same(tiled["maps"], whole["maps"], 1e-6)
    assert tiled["mass"] == pytest.approx(whole["mass"], rel=1e-5)
