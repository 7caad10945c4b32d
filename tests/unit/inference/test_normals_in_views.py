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
from dinoneck.errors import DataError
from dinoneck.grid import GridSize
from dinoneck.heads.head import Head
from dinoneck.heads.outputs import HeadOutputs
from dinoneck.images.orientation import turn, turn_vectors, turn_vectors_back
from dinoneck.inference import to_frame
from dinoneck.inference.resolution import at_image_size
from dinoneck.inference.tiles import Assembly, Tiling, tile_positions
from dinoneck.inference.views import ViewAverage, ViewBatch
from dinoneck.tasks import activate
from dinoneck.tokens import Tokens

Pixels = np.ndarray[Any, Any]

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


def distance_from_sphere_centre() -> Tensor:
    """The distance of every pixel from the centre of the sphere in pixels, (height, width)."""
    offset = positions() - torch.tensor(CENTRE)[:, None, None]
    return offset.square().sum(dim=0).sqrt()


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


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("horizontal", "vertical"),
    [
        pytest.param(False, False, id="no flip"),
        pytest.param(True, False, id="horizontal flip"),
        pytest.param(False, True, id="vertical flip"),
        pytest.param(True, True, id="both flips"),
    ],
)
def test_vectors_of_a_view_are_turned_upright(horizontal: bool, vertical: bool, turns: int) -> None:
    views = Views([{"horizontal": horizontal, "vertical": vertical, "turns": turns}])
    normals_in_view = seen_by(views.place(positions(), 0))

    upright = views.undo_vectors(normals_in_view, 0)

    assert degrees(upright, scene(positions())).max() < 1e-5


def normals_as_stored(orientation: int) -> Pixels:
    """The normals of the scene in a file whose EXIF tag has this orientation."""
    stored_size = SIZE if orientation < 5 else SIZE[::-1]
    stored_positions = positions(stored_size).numpy()
    stored_position_of_upright = turn(stored_positions, orientation)
    columns = (stored_position_of_upright[0] - 0.5).astype(int)
    rows = (stored_position_of_upright[1] - 0.5).astype(int)
    upright_position_of_stored = torch.empty(2, *stored_size, dtype=torch.float64)
    upright_position_of_stored[:, rows, columns] = positions()
    return seen_by(upright_position_of_stored).numpy()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_vectors_of_an_exif_orientation_are_turned_upright(orientation: int) -> None:
    stored = normals_as_stored(orientation)

    upright = turn_vectors(stored, orientation)

    assert degrees(upright, scene(positions())).max() < 1e-5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_vectors_turned_upright_by_exif_are_turned_back_exactly(orientation: int) -> None:
    stored = normals_as_stored(orientation)
    upright = turn_vectors(stored, orientation)

    turned_back = turn_vectors_back(upright, orientation)

    assert np.array_equal(turned_back, stored)


def add_to(average: ViewAverage, normals: Tensor, views: list[int]) -> None:
    """Add normals (views, 3, height, width) of a batch with one image."""
    tokens = Tokens.from_patches(torch.zeros(len(views), 1, 4), grid=(1, 1), patch_size=16)
    batch = ViewBatch(views=views, tokens=tokens, placements=None)
    average.add(HeadOutputs(maps={"normals": normals}), batch)


def test_views_are_averaged_upright() -> None:
    views = Views.named("d6")
    average = ViewAverage(tasks=[NORMALS], views=views, with_maps=True)
    for indices in ([0, 1, 2, 3], [4, 5]):
        normals_in_views = [seen_by(views.place(positions(), index)) for index in indices]
        add_to(average, torch.stack(normals_in_views), indices)

    mean = average.mean().mean

    assert degrees(mean.maps["normals"][0], scene(positions())).max() < 1e-5
    assert "normals" not in mean.values


def test_the_mean_of_views_that_differ_has_length_1() -> None:
    average = ViewAverage(tasks=[NORMALS], views=Views.named("none"), with_maps=True)
    ahead = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    to_the_right = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    add_to(average, ahead, [0])
    add_to(average, to_the_right, [0])

    normal = average.mean().mean.maps["normals"].flatten().tolist()

    assert normal == pytest.approx([0.5**0.5, 0.0, 0.5**0.5])


@pytest.fixture
def whole_patches() -> Preprocessing:
    """The image of the scene stays as it is: 6 x 8 patches."""
    return Preprocessing(patch_size=16, size=None, resize="stretch")


@pytest.fixture
def assembly(whole_patches: Preprocessing) -> Assembly:
    rows, cols = Tiling((48, 64), 0.5).axes(GridSize(6, 8), whole_patches)
    return Assembly(rows=rows, cols=cols)


def exact_tile(assembly: Assembly, row: int, col: int) -> Tensor:
    """The normals of the scene that a tile shows, (3, height, width)."""
    top = assembly.rows.starts[row] * 16
    left = assembly.cols.starts[col] * 16
    bottom = top + assembly.rows.length * 16
    right = left + assembly.cols.length * 16
    return scene(positions())[:, top:bottom, left:right]


def test_tiles_that_differ_are_blended_to_vectors_of_length_1(
    assembly: Assembly, whole_patches: Preprocessing
) -> None:
    tilt = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)[:, None, None]
    for row, col in tile_positions(assembly.rows, assembly.cols):
        tile = exact_tile(assembly, row, col)
        sign = (-1) ** (row + col)  # neighbours lean to opposite sides
        leaning = tile + 0.5 * sign * tilt
        unit_leaning = leaning / leaning.norm(dim=0)
        assembly.add([(row, col)], HeadOutputs(maps={"normals": tile[None]}))
        assembly.add([(row, col)], HeadOutputs(maps={"normals": unit_leaning[None]}))

    outputs = assembly.outputs([NORMALS], set(), whole_patches.placement(SIZE))

    lengths = outputs.maps["normals"][0].norm(dim=0)
    assert torch.allclose(lengths, torch.ones(()), atol=1e-6)


def test_tiles_of_exact_normals_are_exact(assembly: Assembly, whole_patches: Preprocessing) -> None:
    for row, col in tile_positions(assembly.rows, assembly.cols):
        tile = exact_tile(assembly, row, col)
        assembly.add([(row, col)], HeadOutputs(maps={"normals": tile[None]}))

    outputs = assembly.outputs([NORMALS], set(), whole_patches.placement(SIZE))

    assert degrees(outputs.maps["normals"][0], scene(positions())).max() < 1e-4
    assert "normals" not in outputs.values


@pytest.fixture
def normals_at_image_size() -> Pixels:
    """The normals of 24 x 32 cells of 4 px at the size of the image."""
    preprocess = Preprocessing(patch_size=4, size=None, resize="keep")
    cells = scene(positions((24, 32)) * 4).float().numpy()
    return at_image_size(cells, NORMALS, SIZE, preprocess)


def is_inside_by_2_px() -> Tensor:
    """Half a cell at the border of the image has the value of the nearest cell."""
    inside = torch.zeros(SIZE, dtype=torch.bool)
    inside[2:-2, 2:-2] = True
    return inside


def test_normals_at_the_size_of_the_image_have_length_1(normals_at_image_size: Pixels) -> None:
    lengths = np.linalg.norm(normals_at_image_size, axis=0)

    assert np.allclose(lengths, 1.0, atol=1e-6)


def test_normals_of_a_plane_are_exact_at_the_size_of_the_image(
    normals_at_image_size: Pixels,
) -> None:
    is_plane = distance_from_sphere_centre() > 1.2 * RADIUS

    errors = degrees(normals_at_image_size, scene(positions()))

    assert errors[is_inside_by_2_px() & is_plane].max() < 1e-3


def test_normals_of_a_sphere_are_close_at_the_size_of_the_image(
    normals_at_image_size: Pixels,
) -> None:
    is_facing_sphere = distance_from_sphere_centre() < 0.5 * RADIUS

    errors = degrees(normals_at_image_size, scene(positions()))

    assert errors[is_inside_by_2_px() & is_facing_sphere].max() < 0.1  # cells are 5.7° apart


@pytest.fixture
def normals_of_a_cropped_image() -> Pixels:
    """Normals of the middle square of an image of 32 x 160 px."""
    preprocess = Preprocessing(patch_size=16, size=(32, 32), resize="crop")
    ahead = np.array([0.0, 0.0, 1.0], np.float32)[:, None, None]
    cells = np.tile(ahead, (1, 2, 2))
    return at_image_size(cells, NORMALS, (32, 160), preprocess)


def test_pixels_that_are_cropped_off_are_nan(normals_of_a_cropped_image: Pixels) -> None:
    left_column = normals_of_a_cropped_image[:, :, 0]

    assert np.isnan(left_column).all()


def test_pixels_that_a_crop_keeps_have_normals(normals_of_a_cropped_image: Pixels) -> None:
    middle_pixel = normals_of_a_cropped_image[:, 16, 80]

    assert middle_pixel.tolist() == [0.0, 0.0, 1.0]


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
def grey_backbone() -> Backbone:
    """A backbone whose tokens are linear in the mean colour of their patch."""
    backbone = load_backbone("dinoneck_tiny", norm=False)
    with torch.no_grad():
        for key, parameter in backbone.adapter.model.named_parameters():
            if "gamma" in key:
                parameter.zero_()
        weight = backbone.adapter.model.patch_embed.proj.weight
        weight.copy_(weight.mean(dim=(2, 3), keepdim=True).expand_as(weight))
    return backbone


@pytest.fixture(scope="module")
def slope_head(grey_backbone: Backbone) -> SlopeHead:
    """A head whose depth is 4 times the grey of a patch."""
    greys = torch.linspace(0.0, 1.0, 8)[:, None, None, None].expand(8, 3, 16, 16)
    images = grey_backbone.preprocess(list(greys))
    with torch.no_grad():
        tokens = grey_backbone(images).patches[0][:, 0].double()
    white_minus_black = tokens[-1] - tokens[0]
    depth_weight = 4 * white_minus_black / white_minus_black.square().sum()
    return SlopeHead(embed_dim=64, depth_weight=tuple(depth_weight.tolist()))


def scene_image() -> Tensor:
    rows = torch.linspace(0, 1, 5)[:, None]
    cols = torch.linspace(0, 1, 6)
    depth = 0.2 + 0.3 * rows + 0.4 * cols**2
    return depth.repeat_interleave(16, 0).repeat_interleave(16, 1).expand(3, -1, -1)


def test_normals_of_a_depth_that_rises_to_the_right_and_down(
    grey_backbone: Backbone, slope_head: SlopeHead
) -> None:
    predictor = Predictor(slope_head, grey_backbone)

    [prediction] = predictor(scene_image(), maps="patch")

    x, y, z = prediction["maps"]["normals"][:, 2, 2]
    assert x < -0.1
    assert y < -0.1
    assert z > 0.5


@pytest.mark.parametrize("tta", ["flip4", "d6"])
def test_views_of_a_predictor_agree_with_the_image_as_it_is(
    tta: Any, grey_backbone: Backbone, slope_head: SlopeHead
) -> None:
    one_view = Predictor(slope_head, grey_backbone)
    several_views = Predictor(slope_head, grey_backbone, tta=tta)

    [prediction] = one_view(scene_image(), maps="patch")
    [averaged] = several_views(scene_image(), maps="patch")

    difference = degrees(prediction["maps"]["normals"], averaged["maps"]["normals"])
    assert difference.max() < 0.01


def test_views_of_a_store_are_averaged_as_those_of_images(
    tmp_path: Path, grey_backbone: Backbone, slope_head: SlopeHead
) -> None:
    image_file = tmp_path / "a.png"
    pixels = (scene_image() * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(image_file)
    store = FeatureStore.create(
        tmp_path / "store", backbone=grey_backbone, views="d6", image_size=None
    )
    store.extract([image_file])
    predictor = Predictor(slope_head, grey_backbone, tta="d6")

    [from_store] = predictor.predict(store, maps="patch")
    [from_image] = predictor(image_file, maps="patch")

    assert list(from_store) == ["maps"]
    difference = degrees(from_store["maps"]["normals"], from_image["maps"]["normals"])
    assert difference.max() < 0.01


def test_a_row_has_no_number_of_normals(grey_backbone: Backbone, slope_head: SlopeHead) -> None:
    predictor = Predictor(slope_head, grey_backbone)

    [row] = predictor(scene_image())

    assert row == {}


def test_a_row_with_maps_has_no_number_of_normals(
    grey_backbone: Backbone, slope_head: SlopeHead
) -> None:
    predictor = Predictor(slope_head, grey_backbone)

    [row] = predictor(scene_image(), maps="image")

    assert list(row) == ["maps"]
    assert row["maps"]["normals"].shape == (3, 80, 96)


def test_a_frame_has_no_column_of_normals(grey_backbone: Backbone, slope_head: SlopeHead) -> None:
    predictor = Predictor(slope_head, grey_backbone)
    rows = predictor(scene_image())

    frame = to_frame(rows, predictor.tasks, names=["a"])

    assert frame.shape == (1, 0)


def test_tiles_of_a_predictor_have_no_number_of_normals(
    grey_backbone: Backbone, slope_head: SlopeHead
) -> None:
    predictor = Predictor(slope_head, grey_backbone, tile=(48, 48), overlap=0.34)

    [row] = predictor(scene_image(), maps="patch")

    assert list(row) == ["maps"]
    lengths = np.linalg.norm(row["maps"]["normals"], axis=0)
    assert np.allclose(lengths, 1.0, atol=1e-6)


def predict_normals(head: Head, backbone: Backbone) -> Pixels:
    [row] = Predictor(head, backbone)(scene_image(), maps="patch")
    return np.asarray(row["maps"]["normals"])


def test_members_of_an_ensemble_are_averaged_to_vectors_of_length_1(
    grey_backbone: Backbone, slope_head: SlopeHead
) -> None:
    steeper = SlopeHead(embed_dim=64, depth_weight=tuple((3 * slope_head.weight).tolist()))
    ensemble = HeadEnsemble([slope_head, steeper])

    normals = predict_normals(ensemble, grey_backbone)

    of_members = [predict_normals(head, grey_backbone) for head in (slope_head, steeper)]
    direction = of_members[0] + of_members[1]
    assert np.allclose(normals, direction / np.linalg.norm(direction, axis=0), atol=1e-6)


def test_an_ensemble_of_normals_has_no_task_by_cells(slope_head: SlopeHead) -> None:
    steeper = SlopeHead(embed_dim=64, depth_weight=tuple((3 * slope_head.weight).tolist()))
    ensemble = HeadEnsemble([slope_head, steeper])

    assert ensemble.by_cells() == set()


def test_a_map_that_is_not_finite_is_refused(
    grey_backbone: Backbone, slope_head: SlopeHead
) -> None:
    broken = SlopeHead(embed_dim=64, depth_weight=tuple(slope_head.weight.tolist()))
    broken.weight.fill_(torch.nan)
    predictor = Predictor(broken, grey_backbone)

    with pytest.raises(DataError, match="the prediction of 'normals' is not finite"):
        predictor(scene_image(), maps="patch")
