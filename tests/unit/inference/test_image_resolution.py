"""Maps at image resolution: every pixel has the prediction of its place, whatever the image was resized to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates
from torch import Tensor
from torch.nn import functional as F

from dinoneck import HeadEnsemble, MaskHead, Predictor, PyramidHead, SimplePyramid, Task, load_backbone
from dinoneck.data import Preprocessing
from dinoneck.inference.resolution import UNSEEN, at_image_size
from dinoneck.inference.tiles import VIEWS

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
CROP = Preprocessing(16, resize="crop")
CASES: list[dict[str, Any]] = [
    {"size": (64, 96)},
    {"size": (64, 64), "resize": "keep"},
    {"size": (96, 64), "resize": "pad"},
    {"size": (96, 64), "resize": "pad", "pad_to": "center"},
    {"resize": "pad", "pad_to": "center"},
    {"resize": "crop"},
    {"resize": "stretch"},
]


def places(size: tuple[int, int], recipe: Preprocessing, finer: int = 1) -> np.ndarray:
    """(2, rows, cols): the row and column, in pixels of the image, of the centre of every cell."""
    place, patch = recipe.placement(size), int(recipe.patch_size) / finer  # type: ignore[arg-type]
    axes = [
        ((torch.arange(round(canvas / patch)) + 0.5) * patch - corner) * side / resized
        for side, resized, canvas, corner in zip(size, *place, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).numpy()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("finer", [1, 4])
def test_a_map_of_places_gives_every_pixel_its_own_place(case: dict[str, Any], finer: int) -> None:
    size = (83, 130)
    recipe = Preprocessing(16, **case, **PLAIN)
    found = at_image_size(places(size, recipe, finer), Task("y", dim=2, kind="dense"), size, recipe)
    expected = np.stack(np.meshgrid(np.arange(83) + 0.5, np.arange(130) + 0.5, indexing="ij"))
    cell = [16 / finer * side / resized for side, resized in zip(size, recipe.placement(size).resized, strict=True)]
    rows = slice(int(cell[0]) + 1, -int(cell[0]) - 1)  # outside of the outermost centres the border is repeated
    cols = slice(int(cell[1]) + 1, -int(cell[1]) - 1)
    assert found.dtype == np.float32
    assert np.abs(found - expected)[:, rows, cols].max() < 1e-3
    assert np.isfinite(found).all()


def test_pixels_that_were_cut_off_have_no_prediction() -> None:
    recipe = Preprocessing(16, size=(32, 32), resize="crop", **PLAIN)
    ones = np.ones((3, 2, 2))
    values = at_image_size(ones, Task("y", dim=3, kind="dense"), (32, 320), recipe)
    classes = at_image_size(ones / 3, Task("y", dim=3, kind="segmentation"), (32, 320), recipe)
    kept = np.zeros((32, 320), bool)
    kept[:, 144 - 16 : 176 + 16] = True  # the window, and the remainder of a patch around it
    assert np.array_equal(np.isfinite(values), np.broadcast_to(kept, values.shape))
    assert np.array_equal(classes != UNSEEN, kept)


def test_classes_are_resampled_as_logits() -> None:
    logits = 4 * torch.randn(1, 5, 6, 9, generator=torch.Generator().manual_seed(0))
    recipe, task = Preprocessing(16, size=(96, 144), **PLAIN), Task("y", dim=5, kind="segmentation")
    expected = F.interpolate(logits, (200, 300), mode="bilinear")[0]
    cells = logits.softmax(dim=1)[0].numpy()
    assert np.array_equal(at_image_size(cells, task, (200, 300), recipe), expected.argmax(0).numpy())
    shares = at_image_size(cells, task, (200, 300), recipe, probabilities=True)
    assert np.allclose(shares, expected.softmax(0).numpy(), atol=1e-5)


def test_the_pixels_of_a_density_add_up_to_its_cells() -> None:
    cells = np.random.RandomState(0).rand(1, 4, 6)
    for case in CASES:
        recipe = Preprocessing(16, **case, **PLAIN)
        grid = recipe.placement((83, 130)).canvas
        own = np.resize(cells, (1, grid[0] // 16, grid[1] // 16))
        found = at_image_size(own, Task("y", kind="density"), (83, 130), recipe)
        assert found.sum() == pytest.approx(own.sum(), rel=1e-4)


@pytest.fixture(scope="module")
def head() -> PyramidHead:
    torch.manual_seed(0)
    tasks = [Task("crop", dim=3, kind="segmentation"), Task("ndvi", kind="dense")]
    return PyramidHead(64, tasks, neck=SimplePyramid(64, 32))


def test_an_image_and_its_turned_file_have_maps_of_one_size(head: PyramidHead, tmp_path: Path) -> None:
    upright = np.random.RandomState(0).randint(0, 256, (70, 100, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    predictor = Predictor(head, load_backbone("dinoneck_tiny"), preprocess=CROP)
    plain, turned = predictor([upright, tmp_path / "turned.png"], maps="image")
    assert plain["maps"]["crop"].shape == (70, 100)
    assert plain["maps"]["crop"].dtype == np.int64
    assert plain["maps"]["ndvi"].shape == (1, 70, 100)
    assert np.mean(plain["maps"]["crop"] == turned["maps"]["crop"]) > 0.999
    assert np.allclose(plain["maps"]["ndvi"], turned["maps"]["ndvi"], atol=1e-5)
    [cells], [whole] = predictor(upright, maps="patch"), predictor(upright, maps="image")
    for task in predictor.tasks:
        expected = at_image_size(cells["maps"][task.name], task, (70, 100), CROP)
        assert np.array_equal(expected, whole["maps"][task.name])


def reference(outputs: dict[str, Tensor], where: np.ndarray) -> np.ndarray:
    """Shares (K, H, W) in float64 by loops over queries: masks at the places, then sigmoid, sum, normalisation.

    Args:
        outputs: of a MaskHead for one image.
        where: (2, H, W), row and column of every pixel in cells of the masks, 0 at the first centre.
    """
    masks, classes = (outputs[f"plant{kind}"][0].double().numpy() for kind in (".masks", ".classes"))
    sums = np.zeros((classes.shape[1] - 1, *where.shape[1:]))
    for mask, logits in zip(masks, classes, strict=True):
        shares = np.exp(logits - logits.max())
        at = map_coordinates(mask, where, order=1, mode="nearest")
        sums += (shares / shares.sum())[:-1, None, None] / (1 + np.exp(-at))
    return sums / sums.sum(axis=0)


@pytest.mark.parametrize("case", [{"size": (64, 96)}, {"resize": "pad", "pad_to": "center"}, {"resize": "crop"}])
@pytest.mark.parametrize("views", ["none", "flip4"])
def test_masks_are_resampled_before_they_are_shares(case: dict[str, Any], views: Any) -> None:
    torch.manual_seed(0)
    tasks, backbone = [Task("plant", dim=3, kind="segmentation")], load_backbone("dinoneck_tiny", layers=2)
    heads = [MaskHead(64, tasks, num_layers=2, num_queries=count, num_blocks=1, dim=32).eval() for count in (4, 5)]
    for head in heads:
        torch.nn.init.normal_(head.masks[-1].weight, std=0.5)  # masks with edges
    image, recipe = np.random.RandomState(0).randint(0, 256, (83, 130, 3), np.uint8), Preprocessing(16, **case)
    predictor = Predictor(HeadEnsemble(heads, weights=(1.0, 3.0)), backbone, views, preprocess=recipe)
    [row] = predictor(image, maps="image", probabilities=True)
    assert row.keys() == {"plant", "maps"}
    place, prepared = recipe.placement((83, 130)), recipe(image)
    axes = [
        ((np.arange(side) + 0.5) * resized / side + corner) / 4 - 0.5
        for side, resized, corner in zip((83, 130), place.resized, place.corner, strict=True)
    ]
    expected, all_views = np.zeros((3, 83, 130)), VIEWS[views]
    for i in range(len(all_views)):
        with torch.no_grad():
            tokens = backbone(all_views.place(prepared, i))
            found = [head(tokens) for head in heads]
        for weight, outputs in zip((0.25, 0.75), found, strict=True):
            upright = {**outputs, "plant.masks": all_views.undo(outputs["plant.masks"], i)}
            expected += weight * reference(upright, np.stack(np.meshgrid(*axes, indexing="ij"))) / len(all_views)
    limits = [  # at the border of the image, cells that show padding alone are left out
        (4 * (max(corner, 0) // 16) + 1, -(-min(corner + resized, canvas) // 16) * 4 - 2)
        for corner, resized, canvas in zip(place.corner, place.resized, place.canvas, strict=True)
    ]
    rows, cols = (np.flatnonzero((axis > low) & (axis < high)) for axis, (low, high) in zip(axes, limits, strict=True))
    shares = row["maps"]["plant"].astype(np.float64)
    assert np.abs(shares - expected)[:, rows[:, None], cols].max() < 2e-6
    assert np.allclose(shares.sum(axis=0), 1.0, atol=1e-5)
    [cells] = predictor(image, maps="patch")
    other = at_image_size(cells["maps"]["plant"], tasks[0], (83, 130), recipe, probabilities=True)
    assert np.abs(other - expected)[:, rows[:, None], cols].max() > 1e-3  # shares resampled as logits differ
    [classes] = predictor(image, maps="image")
    assert np.array_equal(classes["maps"]["plant"], row["maps"]["plant"].argmax(axis=0))
