"""Surface normals of an analytic scene under views, tiles, EXIF orientations and at the size of images.

The scene is a sphere on a tilted plane, seen without perspective, so that the normals of every pixel are known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dinoneck import Backbone, FeatureStore, HeadEnsemble, Predictor, Task, load_backbone, register
from dinoneck.data import Preprocessing, Views
from dinoneck.data.orientation import turn, turn_vectors, turn_vectors_back
from dinoneck.errors import DataError
from dinoneck.grid import GridSize
from dinoneck.heads.head import Head
from dinoneck.heads.outputs import HeadOutputs
from dinoneck.inference import to_frame
from dinoneck.inference.resolution import at_image_size
from dinoneck.inference.tiles import Assembly, Tiling, tile_positions
from dinoneck.inference.views import ViewAverage, ViewBatch
from dinoneck.tasks import activate
from dinoneck.tokens import Tokens

NORMALS = Task("normals", kind="dense", dim=3, activation="unit")
SIZE = (96, 128)
CENTRE = (50.0, 44.0)  # x, y in pixels
RADIUS = 40.0
PLANE = (0.0, 0.6, 0.8)  # rises away from the camera


def positions(size: tuple[int, int] = SIZE) -> Tensor:
    """The (x, y) of the centres of pixels, (2, height, width)."""
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    return torch.stack([x, y]).double()


def scene(xy: Tensor) -> Tensor:
    """The normals (3, h, w) at positions (2, h, w), in the axes of the upright image, into the surface."""
    x = (CENTRE[0] - xy[0]) / RADIUS
    y = (CENTRE[1] - xy[1]) / RADIUS
    distance = x**2 + y**2
    sphere = torch.stack([x, y, (1 - distance).clamp_min(0).sqrt()])
    plane = torch.tensor(PLANE, dtype=xy.dtype)[:, None, None].expand_as(sphere)
    return torch.where(distance < 1, sphere, plane)


def is_smooth(xy: Tensor) -> Tensor:
    """Where neighbours lie on one surface that does not turn away, (h, w)."""
    distance = (xy - torch.tensor(CENTRE)[:, None, None]).square().sum(dim=0).sqrt() / RADIUS
    return (distance < 0.8) | (distance > 1.1)


def seen_by(placed: Tensor) -> Tensor:
    """The normals of the scene in the axes of a picture whose pixels show these upright positions (2, h, w)."""
    right = (placed[:, 0, 1] - placed[:, 0, 0]).double()  # upright (x, y) of a step to the right
    down = (placed[:, 1, 0] - placed[:, 0, 0]).double()
    normals = scene(placed)
    x = right[0] * normals[0] + right[1] * normals[1]
    y = down[0] * normals[0] + down[1] * normals[1]
    return torch.stack([x, y, normals[2]])


def degrees(one: Any, other: Any) -> Tensor:
    """The angles between vectors (3, h, w)."""
    one = torch.as_tensor(one).double()
    other = torch.as_tensor(other).double()
    cross = torch.linalg.cross(one, other, dim=0).square().sum(dim=0).sqrt()
    return torch.atan2(cross, (one * other).sum(dim=0)).rad2deg()


TURNS = [(flips, turns) for flips in ((0, 0), (1, 0), (0, 1), (1, 1)) for turns in range(4)]


@pytest.mark.parametrize(("flips", "turns"), TURNS)
def test_vectors_of_a_view_are_turned_upright(flips: tuple[int, int], turns: int) -> None:
    views = Views([{"horizontal": bool(flips[0]), "vertical": bool(flips[1]), "turns": turns}])
    seen = seen_by(views.place(positions(), 0))
    assert degrees(views.undo_vectors(seen, 0), scene(positions())).max() < 1e-5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_vectors_are_turned_upright_by_exif_and_back(orientation: int) -> None:
    stored_size = SIZE if orientation < 5 else SIZE[::-1]
    stored_positions = positions(stored_size).numpy()
    upright_of_stored = turn(stored_positions, orientation)  # stored positions, upright
    placed = torch.empty(2, *stored_size, dtype=torch.float64)
    columns = (upright_of_stored[0] - 0.5).astype(int)
    rows = (upright_of_stored[1] - 0.5).astype(int)
    placed[:, rows, columns] = positions()
    stored = seen_by(placed)

    upright = turn_vectors(stored.numpy(), orientation)

    assert degrees(torch.from_numpy(upright), scene(positions())).max() < 1e-5
    assert np.array_equal(turn_vectors_back(upright, orientation), stored.numpy())


def outputs_for_views(views: Views, indices: list[int]) -> HeadOutputs:
    seen = [seen_by(views.place(positions(), i)) for i in indices]
    return HeadOutputs(maps={"normals": torch.stack(seen)})


def test_views_are_averaged_upright() -> None:
    views = Views.named("d6")
    average = ViewAverage(tasks=[NORMALS], views=views, with_maps=True)
    for indices in ([0, 1, 2, 3], [4, 5]):
        tokens = Tokens.from_patches(torch.zeros(len(indices), 1, 4), grid=(1, 1), patch_size=16)
        batch = ViewBatch(views=indices, tokens=tokens, placements=None)
        average.add(outputs_for_views(views, indices), batch)
    mean = average.mean().mean
    assert degrees(mean.maps["normals"][0], scene(positions())).max() < 1e-5
    assert "normals" not in mean.values


def test_the_mean_of_views_that_differ_has_length_1() -> None:
    views = Views.named("none")
    average = ViewAverage(tasks=[NORMALS], views=views, with_maps=True)
    tokens = Tokens.from_patches(torch.zeros(1, 1, 4), grid=(1, 1), patch_size=16)
    for angle in (0.0, 90.0):
        radians = torch.tensor(angle).deg2rad()
        cells = torch.stack([radians.sin(), torch.zeros(()), radians.cos()]).view(1, 3, 1, 1)
        batch = ViewBatch(views=[0], tokens=tokens, placements=None)
        average.add(HeadOutputs(maps={"normals": cells}), batch)
    normal = average.mean().mean.maps["normals"].flatten().tolist()
    assert normal == pytest.approx([0.5**0.5, 0.0, 0.5**0.5])


def test_tiles_are_blended_to_vectors_of_length_1() -> None:
    preprocess = Preprocessing(patch_size=16, size=None, resize="stretch")
    tiling = Tiling((48, 64), 0.5)
    rows, cols = tiling.axes(GridSize(6, 8), preprocess)
    assembly = Assembly(rows=rows, cols=cols)
    tilt = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)[:, None, None]
    truth = scene(positions())
    for row, col in tile_positions(rows, cols):
        top = rows.starts[row] * 16
        left = cols.starts[col] * 16
        tile = truth[:, top : top + rows.length * 16, left : left + cols.length * 16]
        leaning = tile + 0.5 * (-1) ** (row + col) * tilt  # neighbours differ
        for cells in (tile, leaning / leaning.norm(dim=0)):
            assembly.add([(row, col)], HeadOutputs(maps={"normals": cells[None]}))
    placement = preprocess.placement(SIZE)
    blended = assembly.outputs([NORMALS], set(), placement).maps["normals"][0]
    assert torch.allclose(blended.norm(dim=0), torch.ones(()), atol=1e-6)


def test_tiles_of_exact_normals_are_exact() -> None:
    preprocess = Preprocessing(patch_size=16, size=None, resize="stretch")
    rows, cols = Tiling((48, 64), 0.5).axes(GridSize(6, 8), preprocess)
    assembly = Assembly(rows=rows, cols=cols)
    truth = scene(positions())
    for row, col in tile_positions(rows, cols):
        top = rows.starts[row] * 16
        left = cols.starts[col] * 16
        tile = truth[:, top : top + rows.length * 16, left : left + cols.length * 16]
        assembly.add([(row, col)], HeadOutputs(maps={"normals": tile[None]}))
    outputs = assembly.outputs([NORMALS], set(), preprocess.placement(SIZE))
    assert degrees(outputs.maps["normals"][0], truth).max() < 1e-4
    assert "normals" not in outputs.values


def test_maps_at_the_size_of_the_image_are_exact_on_smooth_surfaces() -> None:
    preprocess = Preprocessing(patch_size=4, size=None, resize="keep")
    cells = scene(positions((24, 32)) * 4).float().numpy()

    pixels = at_image_size(cells, NORMALS, SIZE, preprocess)

    assert np.allclose(np.linalg.norm(pixels, axis=0), 1.0, atol=1e-6)
    errors = degrees(pixels, scene(positions()))
    inside = is_smooth(positions())
    inside[:2] = inside[-2:] = False  # half a cell at the border has the value of the nearest cell
    inside[:, :2] = inside[:, -2:] = False
    distance = (positions() - torch.tensor(CENTRE)[:, None, None]).square().sum(dim=0).sqrt()
    assert errors[inside & (distance > 1.2 * RADIUS)].max() < 1e-3  # the plane
    assert errors[inside & (distance < 0.5 * RADIUS)].max() < 0.1  # the sphere: cells of 5.7°


def test_pixels_that_an_image_does_not_show_are_nan() -> None:
    preprocess = Preprocessing(patch_size=16, size=(32, 32), resize="crop")
    cells = np.tile(np.array([0.0, 0.0, 1.0], np.float32)[:, None, None], (1, 2, 2))
    pixels = at_image_size(cells, NORMALS, (32, 160), preprocess)
    assert np.isnan(pixels[:, :, 0]).all()
    assert (pixels[:, 16, 80] == (0.0, 0.0, 1.0)).all()


@register
class SlopeHead(Head):
    """Reads the depth of every patch from its grey, and gives the normals of neighbouring depths."""

    weight: Tensor

    def __init__(self, embed_dim: int, depth_weight: tuple[float, ...]) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.tasks = (NORMALS,)
        self.register_buffer("weight", torch.tensor(depth_weight))

    def forward(self, tokens: Tokens) -> dict[str, Tensor]:
        depth = (tokens.patches[0] @ self.weight).unflatten(1, tokens.grid)
        padded = torch.nn.functional.pad(depth[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        along_x = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
        along_y = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
        vectors = torch.stack([-along_x, -along_y, torch.ones_like(depth)], dim=1)
        return {"normals": activate(vectors, "unit")}


@pytest.fixture(scope="module")
def grey() -> tuple[Backbone, SlopeHead]:
    """A backbone whose tokens are linear in the mean colour of their patch, and a head that reads it."""
    backbone = load_backbone("dinoneck_tiny", norm=False)
    with torch.no_grad():
        for key, parameter in backbone.adapter.model.named_parameters():
            if "gamma" in key:
                parameter.zero_()
        weight = backbone.adapter.model.patch_embed.proj.weight
        weight.copy_(weight.mean(dim=(2, 3), keepdim=True).expand_as(weight))
        greys = torch.linspace(0.0, 1.0, 8)[:, None, None, None].expand(8, 3, 16, 16)
        tokens = backbone(backbone.preprocess(list(greys))).patches[0][:, 0].double()
        slope = tokens[-1] - tokens[0]
    return backbone, SlopeHead(64, tuple((4 * slope / slope.square().sum()).tolist()))


def scene_image() -> Tensor:
    rows = torch.linspace(0, 1, 5)[:, None]
    cols = torch.linspace(0, 1, 6)
    depth = 0.2 + 0.3 * rows + 0.4 * cols**2
    return depth.repeat_interleave(16, 0).repeat_interleave(16, 1).expand(3, -1, -1)


@pytest.mark.parametrize("tta", ["flip4", "d6"])
def test_views_of_a_predictor_agree_with_the_image_as_it_is(
    tta: Any, grey: tuple[Backbone, SlopeHead]
) -> None:
    backbone, head = grey
    [plain] = Predictor(head, backbone)(scene_image(), maps="patch")
    [averaged] = Predictor(head, backbone, tta=tta)(scene_image(), maps="patch")
    x, y, z = plain["maps"]["normals"][:, 2, 2]
    assert x < -0.1 and y < -0.1 and z > 0.5, "the depth rises to the right and down"
    assert degrees(plain["maps"]["normals"], averaged["maps"]["normals"]).max() < 0.01


def test_views_of_a_store_are_averaged_as_those_of_images(
    tmp_path: Path, grey: tuple[Backbone, SlopeHead]
) -> None:
    backbone, head = grey
    pixels = (scene_image() * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    store = FeatureStore.create(tmp_path / "store", backbone=backbone, views="d6", image_size=None)
    store.extract([tmp_path / "a.png"])
    predictor = Predictor(head, backbone, tta="d6")
    [stored] = predictor.predict(store, maps="patch")
    [row] = predictor(tmp_path / "a.png", maps="patch")
    assert list(stored) == ["maps"]
    assert degrees(stored["maps"]["normals"], row["maps"]["normals"]).max() < 0.01


def test_a_row_has_no_number_of_normals(grey: tuple[Backbone, SlopeHead]) -> None:
    backbone, head = grey
    predictor = Predictor(head, backbone)
    [row] = predictor(scene_image())
    assert row == {}
    [with_maps] = predictor(scene_image(), maps="image")
    assert list(with_maps) == ["maps"]
    assert with_maps["maps"]["normals"].shape == (3, 80, 96)
    assert to_frame([row], predictor.tasks, names=["a"]).shape == (1, 0)


def test_tiles_of_a_predictor_have_no_number_of_normals(grey: tuple[Backbone, SlopeHead]) -> None:
    backbone, head = grey
    [tiled] = Predictor(head, backbone, tile=(48, 48), overlap=0.34)(scene_image(), maps="patch")
    assert list(tiled) == ["maps"]
    assert np.allclose(np.linalg.norm(tiled["maps"]["normals"], axis=0), 1.0, atol=1e-6)


def test_members_of_an_ensemble_are_averaged_to_vectors_of_length_1(
    grey: tuple[Backbone, SlopeHead],
) -> None:
    backbone, head = grey
    steeper = SlopeHead(64, tuple((3 * head.weight).tolist()))
    maps = []
    ensemble = HeadEnsemble([head, steeper])
    for heads in (head, steeper, ensemble):
        [row] = Predictor(heads, backbone)(scene_image(), maps="patch")
        maps.append(row["maps"]["normals"])
    mean = maps[0] + maps[1]
    assert np.allclose(maps[2], mean / np.linalg.norm(mean, axis=0), atol=1e-6)
    assert ensemble.by_cells() == set()


def test_a_map_that_is_not_finite_is_refused(grey: tuple[Backbone, SlopeHead]) -> None:
    backbone, head = grey
    broken = SlopeHead(64, tuple(head.weight.tolist()))
    broken.weight.fill_(torch.nan)
    with pytest.raises(DataError, match="the prediction of 'normals' is not finite"):
        Predictor(broken, backbone)(scene_image(), maps="patch")
