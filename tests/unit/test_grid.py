"""TokenGrid and Tokens: index images and exact maps, not shapes."""

from __future__ import annotations

import pytest
import torch
from tests import kit
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from dinoneck import GridSize, TokenGrid, Tokens, collate

# their N is a square although they are not, as of images of 16:9
WIDE_GRIDS = [(9, 16), (18, 32), (27, 48), (36, 64), (16, 9), (4, 9), (2, 8), (8, 32)]
ODD_GRIDS = [(30, 60), (15, 31), (31, 15), (63, 64), (64, 64), (1, 64), (64, 1), (37, 37)]
SMALL_GRIDS = [(rows, cols) for rows in range(1, 9) for cols in range(1, 9)]
GRIDS = sorted({*SMALL_GRIDS, *WIDE_GRIDS, *ODD_GRIDS})

# name -> arguments of TokenGrid after the patch, where it does not divide the sides of an image
REMAINDERS = {
    "crop": ("crop",),
    "pad": ("pad",),
    "center": ("pad", "center"),
    "resize": ("resize",),
}
PATCHES = [
    pytest.param(14, id="14 px"),
    pytest.param(16, id="16 px"),
    pytest.param((8, 16), id="8 x 16 px"),
]


def grid_of(patch: object, how: str) -> TokenGrid:
    """A grid that treats remainders in one of the ways of REMAINDERS, or refuses them (``error``)."""
    return TokenGrid(patch, *REMAINDERS.get(how, ()))  # type: ignore[arg-type]


def numbered(*shape: int) -> torch.Tensor:
    """0, 1, 2, ... in float64, in a shape."""
    size = torch.Size(shape)
    return torch.arange(size.numel(), dtype=torch.float64).reshape(size)


def index_image(rows: int, cols: int, patch: int) -> torch.Tensor:
    """Patch (r, c) of the image has the value r * cols + c."""
    index = numbered(1, 1, rows, cols)
    return index.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)


def coordinate_image(height: int, width: int) -> torch.Tensor:
    """Channel 0 holds x, channel 1 holds y of every pixel's centre."""
    y = torch.arange(height, dtype=torch.float64) + 0.5
    x = torch.arange(width, dtype=torch.float64) + 0.5
    ys, xs = torch.meshgrid(y, x, indexing="ij")
    return torch.stack((xs, ys))[None]


# Grids


@pytest.mark.parametrize("patch", [14, 16])
def test_patch_r_c_lands_at_r_c(patch: int) -> None:
    grid = TokenGrid(patch)
    for rows, cols in GRIDS:
        image = index_image(rows, cols, patch)
        pixels_of_patches = torch.nn.functional.unfold(image, patch, stride=patch)
        patches = pixels_of_patches.transpose(1, 2)[..., :1]

        maps = grid(patches, image.shape[-2:])

        assert torch.equal(maps[0, 0], numbered(rows, cols)), (rows, cols)
        assert torch.equal(grid.flatten(maps), patches), (rows, cols)


@pytest.mark.parametrize(
    ("how", "size", "expected"),
    [
        pytest.param("crop", (361, 483), GridSize(22, 30), id="crop"),
        pytest.param("pad", (361, 483), GridSize(23, 31), id="pad"),
        pytest.param("resize", (361, 483), GridSize(23, 30), id="resize"),
        pytest.param("resize", (3, 5), GridSize(1, 1), id="resize an image below a patch"),
        pytest.param("center", (1, 17), GridSize(1, 2), id="pad around an image below a patch"),
    ],
)
def test_sizes_that_the_patch_does_not_divide(
    how: str, size: tuple[int, int], expected: GridSize
) -> None:
    assert grid_of(16, how).size(size) == expected


@pytest.mark.parametrize("how", REMAINDERS)
@pytest.mark.parametrize("size", [(45, 70), (33, 31), (64, 50), (16, 48)])
def test_prepared_pixels_know_where_they_came_from(how: str, size: tuple[int, int]) -> None:
    height, width = size
    prepared = grid_of(16, how).prepare(coordinate_image(height, width))

    prepared_size = (prepared.grid.rows * 16, prepared.grid.cols * 16)
    assert prepared.images.shape[-2:] == prepared_size
    places = coordinate_image(*prepared_size)[0].flatten(1).T
    origins = prepared.to_original(places)
    assert torch.allclose(prepared.to_prepared(origins), places, atol=1e-9)

    values = prepared.images[0].flatten(1).T
    ends = torch.tensor([width, height])
    if how in ("pad", "center"):
        inside = ((origins > 0) & (origins < ends)).all(dim=1)
        assert (values[~inside] == 0).all()
    else:
        # resampling bends the rim
        inside = ((origins > 2) & (origins < ends - 2)).all(dim=1)
    tolerance = 0.75 if how == "resize" else 1e-9
    assert inside.any()
    assert (values[inside] - origins[inside]).abs().max() <= tolerance


def test_crop_keeps_the_centre() -> None:
    image = coordinate_image(35, 33)

    prepared = TokenGrid(16, "crop").prepare(image)

    assert torch.equal(prepared.images, image[..., 1:33, :32])


def test_pad_adds_pixels_at_the_end() -> None:
    image = coordinate_image(35, 33)

    prepared = TokenGrid(16, "pad").prepare(image)

    assert prepared.images.shape[-2:] == (48, 48)
    assert torch.equal(prepared.images[..., :35, :33], image)
    assert prepared.valid.tolist() == [[True] * 3] * 3


def test_pad_to_the_center_adds_pixels_around() -> None:
    image = coordinate_image(35, 33)

    prepared = TokenGrid(16, "pad", "center").prepare(image)

    assert prepared.images.shape[-2:] == (48, 48)
    assert torch.equal(prepared.images[..., 6:41, 7:40], image)
    assert prepared.offset == (7.0, 6.0)


# Sampling


@pytest.mark.parametrize("how", ["error", *REMAINDERS])
@pytest.mark.parametrize("patch", PATCHES)
def test_sampling_at_cell_centres_returns_the_cells(how: str, patch: object) -> None:
    grid = grid_of(patch, how)
    remainder = 0 if how == "error" else 1
    height = 3 * grid.patch_height + 3 * remainder
    width = 5 * grid.patch_width + 5 * remainder
    rows, cols = grid.size((height, width))
    maps = numbered(1, 2, rows, cols)
    centres = grid.cell_centers((height, width)).double()

    values = grid.sample(maps, centres, (height, width))

    assert torch.allclose(values[0], maps[0].flatten(1).T, atol=1e-4)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        pytest.param((8.0, 8.0), 8.0, id="a centre"),
        pytest.param((10.0, 8.0), 10.0, id="near a centre"),
        pytest.param((20.0, 30.0), 20.0, id="between two rows"),
        pytest.param((55.5, 47.0), 55.5, id="below the last centres"),
        pytest.param((0.0, 0.0), 8.0, id="the first corner"),
        pytest.param((64.0, 48.0), 56.0, id="the last corner"),
        pytest.param((-99.0, 999.0), 8.0, id="outside"),
    ],
)
def test_sampling_is_bilinear_and_clamped_at_the_border(
    point: tuple[float, float], expected: float
) -> None:
    x_of_centres = torch.tensor([8.0, 24.0, 40.0, 56.0], dtype=torch.float64)
    maps = x_of_centres.expand(1, 1, 3, 4)
    points = torch.tensor([point], dtype=torch.float64)

    values = TokenGrid(16).sample(maps, points, (48, 64))

    assert values.item() == pytest.approx(expected, rel=1e-5)


def test_a_point_that_is_nowhere_reads_nan() -> None:
    maps = torch.rand(2, 3, 2, 2)
    nowhere = [float("nan"), 3.0]
    middle = [16.0, 16.0]

    values = TokenGrid(16).sample(maps, torch.tensor([nowhere, middle]), (32, 32))

    assert values[:, 0].isnan().all()
    assert torch.allclose(values[:, 1], maps.mean(dim=(2, 3)))


# Labels


def test_labels_are_averaged_over_valid_pixels_only() -> None:
    labels = torch.randn(2, 3, 32, 48)
    is_valid = torch.rand(2, 32, 48) > 0.4
    is_valid[0, :16, :16] = False
    poisoned = torch.where(is_valid[:, None], labels, torch.nan)

    values, weight = TokenGrid(16).reduce_labels(poisoned, is_valid)

    assert values.shape == (2, 3, 2, 3)
    assert weight.shape == (2, 2, 3)
    for image in range(2):
        for row in range(2):
            for col in range(3):
                rows = slice(16 * row, 16 * row + 16)
                cols = slice(16 * col, 16 * col + 16)
                kept = is_valid[image, rows, cols]
                kept_labels = labels[image, :, rows, cols][:, kept].double()
                expected = kept_labels.mean(dim=1).nan_to_num(0.0)
                assert weight[image, row, col] == kept.sum()
                assert torch.allclose(values[image, :, row, col].double(), expected, atol=1e-6)


def test_a_cell_without_a_valid_pixel_is_zero() -> None:
    labels = torch.full((1, 2, 16, 32), torch.nan)
    labels[..., 16:] = 7.0
    is_valid = torch.zeros(1, 16, 32, dtype=torch.bool)
    is_valid[..., 16:] = True

    values, weight = TokenGrid(16).reduce_labels(labels, is_valid)

    assert values[0].tolist() == [[[0.0, 7.0]], [[0.0, 7.0]]]
    assert weight[0].tolist() == [[0.0, 256.0]]


def test_pixels_are_counted_exactly_in_half_precision() -> None:
    labels = torch.ones(1, 1, 64, 64, dtype=torch.bfloat16)
    is_valid = torch.ones(1, 64, 64, dtype=torch.bool)
    is_valid[0, 0, :3] = False

    _, weight = TokenGrid(32).reduce_labels(labels, is_valid)

    assert weight[0].tolist() == [[1021.0, 1024.0], [1024.0, 1024.0]]


def test_the_rim_that_is_cropped_does_not_count() -> None:
    labels = torch.ones(1, 1, 33, 34)
    labels[..., 32:, :] = torch.nan
    labels[..., :, 0] = torch.nan

    values, weight = TokenGrid(32, "crop").reduce_labels(labels)

    assert values.item() == 1.0
    assert weight.item() == 1024.0


@pytest.mark.parametrize("how", REMAINDERS)
def test_labels_follow_the_images(how: str) -> None:
    height, width = (45, 70)
    grid = grid_of(16, how)
    rows, cols = grid.size((height, width))
    centres = grid.cell_centers((height, width)).double().reshape(rows, cols, 2)

    values, weight = grid.reduce_labels(coordinate_image(height, width))

    # a cell that lies fully in the image averages to its centre
    is_whole = weight[0] >= weight.max() - 1e-6
    assert is_whole.any()
    deviations = values[0].permute(1, 2, 0) - centres
    # where resizing cuts a pixel, its value counts for both parts: a hundredth of a pixel
    tolerance = 0.02 if how == "resize" else 1e-4
    assert deviations[is_whole].abs().max() < tolerance


@pytest.mark.parametrize("how", ["pad", "center", "resize"])
def test_every_pixel_of_a_label_counts_once_unless_it_is_cropped(how: str) -> None:
    labels = coordinate_image(45, 70)

    values, weight = grid_of(16, how).reduce_labels(labels)

    assert weight.sum().item() == pytest.approx(45 * 70)
    total = (values * weight[:, None]).sum(dim=(2, 3))
    assert torch.allclose(total, labels.sum(dim=(2, 3)), rtol=1e-9)


# Tokens


def make(
    batch: int = 2, rows: int = 3, cols: int = 4, registers: int = 4, layers: tuple[int, ...] = (7,)
) -> Tokens:
    """Tokens whose values name what they are: CLS -1, registers -2, -3, ..., patch (r, c) = r * cols + c.

    Every layer has 1000 more than the one before.
    """
    prefix = -1.0 - torch.arange(1 + registers)
    values = torch.cat((prefix, torch.arange(rows * cols).float()))
    sequence = []
    for place in range(len(layers)):
        of_layer = values + 1000 * place
        sequence.append(of_layer[None, :, None].expand(batch, -1, 5).contiguous())
    return kit.tokens_from(sequence, rows, cols, 1 + registers, layers=layers, normed=True)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("grid", [(3, 4), (9, 16), (1, 1), (30, 60)])
def test_views_hold_what_their_names_say(registers: int, grid: tuple[int, int]) -> None:
    rows, cols = grid

    tokens = make(rows=rows, cols=cols, registers=registers)

    assert tokens.grid == GridSize(rows, cols)
    assert tokens.num_prefix_tokens == 1 + registers
    assert (tokens.cls_token[0] == -1).all()
    expected_registers = (-2.0 - torch.arange(registers))[None, :, None].expand(2, -1, 5)
    assert torch.equal(tokens.registers[0], expected_registers)
    assert torch.equal(tokens.maps()[0][1, 3], numbered(rows, cols).float())


@pytest.mark.parametrize("registers", [0, 4])
def test_patches_share_the_memory_of_the_sequence(registers: int) -> None:
    tokens = make(registers=registers)

    bytes_before = (1 + registers) * 5 * 4
    assert tokens.patches[0].data_ptr() == tokens.sequence[0].data_ptr() + bytes_before


def test_from_patches_puts_the_other_tokens_in_front() -> None:
    tokens = make()

    rebuilt = Tokens.from_patches(
        tokens.patches[0],
        grid=(3, 4),
        patch_size=16,
        cls_token=tokens.cls_token[0],
        registers=tokens.registers[0],
        layers=[7],
        normed=True,
    )

    assert torch.equal(rebuilt.sequence[0], tokens.sequence[0])
    assert repr(rebuilt) == repr(tokens)


def test_from_patches_alone_copies_nothing() -> None:
    patches = make().patches[0]

    tokens = Tokens.from_patches(patches, grid=(3, 4), patch_size=16)

    assert tokens.sequence[0].data_ptr() == patches.data_ptr()


def test_from_patches_takes_registers_without_a_class_token() -> None:
    tokens = make()

    rebuilt = Tokens.from_patches(
        tokens.patches[0], grid=(3, 4), patch_size=16, registers=tokens.registers[0]
    )

    assert rebuilt.num_cls == 0
    assert rebuilt.num_registers == 4


def test_the_last_of_layers_is_the_last_that_is_listed() -> None:
    tokens = make(layers=(11, 2, 5, 5))

    last = tokens.last

    assert last.layers == (5,)
    assert torch.equal(last.sequence[0], tokens.sequence[3])


def test_layers_are_selected_in_order_and_several_times() -> None:
    tokens = make(layers=(11, 2, 5, 5))

    selected = tokens.select([5, 11, 11])

    assert selected.layers == (5, 11, 11)
    assert torch.equal(selected.sequence[1], tokens.sequence[0])


def test_a_layer_that_is_selected_is_not_copied() -> None:
    tokens = make(layers=(11, 2, 5, 5))

    assert tokens.select(2).sequence[0] is tokens.sequence[1]


@pytest.mark.parametrize(
    ("index", "length"),
    [
        pytest.param(1, 1, id="a number"),
        pytest.param(-1, 1, id="a negative number"),
        pytest.param(torch.tensor([2, 0]), 2, id="a tensor"),
        pytest.param(slice(1, None), 2, id="a slice"),
    ],
)
def test_an_index_of_tokens_chooses_images(index: object, length: int) -> None:
    tokens = make(batch=3)

    assert len(tokens[index]) == length  # type: ignore[index]


def test_iterating_over_tokens_gives_one_image_each() -> None:
    tokens = make(batch=3)

    assert len(tokens) == 3
    assert [len(of_image) for of_image in tokens] == [1, 1, 1]


def test_tokens_of_images_are_joined() -> None:
    tokens = make(batch=3)

    joined = Tokens.cat([tokens[0], tokens[1:]])

    assert torch.equal(joined.sequence[0], tokens.sequence[0])


def test_collate_in_a_data_loader() -> None:
    tokens = make(batch=5)
    samples = []
    for place in range(5):
        samples.append({"tokens": tokens[place], "target": float(place), "name": str(place)})

    batches = list(DataLoader(samples, batch_size=2, collate_fn=collate))  # type: ignore[arg-type]

    assert [len(batch["tokens"]) for batch in batches] == [2, 2, 1]
    assert batches[1]["target"].tolist() == [2.0, 3.0]


def test_collate_keeps_tuples_and_lists() -> None:
    tokens = make(batch=4)
    samples = [
        (tokens[0], [tokens[1], 1]),
        (tokens[2], [tokens[3], 2]),
    ]

    batch = collate(samples)

    assert isinstance(batch, tuple)
    first, second = batch
    assert len(first) == 2
    assert len(second[0]) == 2
    assert second[1].tolist() == [1, 2]


def test_collate_keeps_named_tuples() -> None:
    grids = collate([GridSize(1, 2), GridSize(3, 4)])

    assert grids.rows.tolist() == [1, 3]
    assert grids.cols.tolist() == [2, 4]


# Tokens as a pytree


def test_pytree_leaves_are_tensors_and_grid() -> None:
    tokens = make(layers=(3, 1))

    leaves, spec = pytree.tree_flatten(tokens)

    assert [type(leaf).__name__ for leaf in leaves] == ["Tensor", "Tensor", "int", "int"]
    assert repr(pytree.tree_unflatten(leaves, spec)) == repr(tokens)


def test_the_pytree_specification_of_tokens_can_be_stored() -> None:
    _, spec = pytree.tree_flatten(make(layers=(3, 1)))

    text = pytree.treespec_dumps(spec)

    assert pytree.treespec_loads(text) == spec


def test_a_function_of_tensors_is_mapped_over_tokens() -> None:
    tokens = make(layers=(3, 1))

    doubled = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor * 2, tokens)

    assert torch.equal(doubled.sequence[1], tokens.sequence[1] * 2)


def test_pytree_paths_name_layers_rows_and_columns() -> None:
    leaves_with_paths, _ = pytree.tree_flatten_with_path(make(layers=(3, 1)))

    paths = [pytree.keystr(path) for path, _ in leaves_with_paths]

    assert paths == [".layer_0", ".layer_1", ".rows", ".cols"]
