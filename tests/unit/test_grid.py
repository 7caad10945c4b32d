"""TokenGrid and Tokens: index images and exact maps, not shapes."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests import kit
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from dinoneck import GridSize, TokenGrid, Tokens, collate

# grids that matter: every small one, odd ones, and those whose N is a square although they are not
# (16:9 images)
GRIDS = sorted(
    {(r, c) for r in range(1, 9) for c in range(1, 9)}
    | {(9 * a, 16 * a) for a in (1, 2, 3, 4)}
    | {
        (16, 9),
        (4, 9),
        (2, 8),
        (8, 32),
        (30, 60),
        (15, 31),
        (31, 15),
        (63, 64),
        (64, 64),
        (1, 64),
        (64, 1),
        (37, 37),
    }
)


def index_image(rows: int, cols: int, patch: int) -> torch.Tensor:
    """Patch (r, c) of the image has the value r * cols + c."""
    index = torch.arange(rows * cols, dtype=torch.float64).reshape(1, 1, rows, cols)
    return index.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)


@pytest.mark.parametrize("patch", [14, 16])
def test_patch_r_c_lands_at_r_c(patch: int) -> None:
    for rows, cols in GRIDS:
        image = index_image(rows, cols, patch)
        patches = torch.nn.functional.unfold(image, patch, stride=patch).transpose(1, 2)[..., :1]
        grid = TokenGrid(patch)
        maps = grid(patches, image.shape[-2:])
        assert torch.equal(
            maps[0, 0], torch.arange(rows * cols, dtype=torch.float64).reshape(rows, cols)
        ), (rows, cols)
        assert torch.equal(grid.flatten(maps), patches)


def test_sizes_that_the_patch_does_not_divide() -> None:
    expected = {"crop": (22, 30), "pad": (23, 31), "resize": (23, 30)}
    for how, (rows, cols) in expected.items():
        assert TokenGrid(16, how).size((361, 483)) == GridSize(rows, cols)  # type: ignore[arg-type]
    assert TokenGrid(16, "resize").size((3, 5)) == GridSize(1, 1)
    assert TokenGrid(16, "pad", "center").size((1, 17)) == GridSize(1, 2)


REMAINDERS = {
    "crop": ("crop",),
    "pad": ("pad",),
    "center": ("pad", "center"),
    "resize": ("resize",),
}


def coordinate_image(height: int, width: int) -> torch.Tensor:
    """Channel 0 holds x, channel 1 holds y of every pixel's centre."""
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack((xs, ys))[None].double()


@pytest.mark.parametrize("how", REMAINDERS)
@pytest.mark.parametrize("size", [(45, 70), (33, 31), (64, 50), (16, 48)])
def test_prepared_pixels_know_where_they_came_from(how: str, size: tuple[int, int]) -> None:
    grid = TokenGrid(16, *REMAINDERS[how])  # type: ignore[arg-type]
    prepared = grid.prepare(coordinate_image(*size))
    assert prepared.images.shape[-2:] == (prepared.grid.rows * 16, prepared.grid.cols * 16)
    places = coordinate_image(*prepared.images.shape[-2:])[0].flatten(1).T
    text = prepared.to_original(places)
    assert torch.allclose(prepared.to_prepared(text), places, atol=1e-9)
    read = prepared.images[0].flatten(1).T
    # resampling bends the rim
    inside = ((text > 2) & (text < torch.tensor([size[1], size[0]]) - 2)).all(dim=1)
    if how in ("pad", "center"):
        real = ((text > 0) & (text < torch.tensor([size[1], size[0]]))).all(dim=1)
        assert (read[~real] == 0).all()
        inside = real
    tolerance = 0.75 if how == "resize" else 1e-9
    assert inside.any()
    assert (read[inside] - text[inside]).abs().max() <= tolerance


def test_crop_keeps_the_centre_and_pad_adds_at_the_end_or_around() -> None:
    image = coordinate_image(35, 33)
    assert torch.equal(TokenGrid(16, "crop").prepare(image).images, image[..., 1:33, :32])
    padded = TokenGrid(16, "pad").prepare(image)
    assert torch.equal(padded.images[..., :35, :33], image)
    assert padded.valid.tolist() == [[True] * 3] * 3
    centred = TokenGrid(16, "pad", "center").prepare(image)
    assert torch.equal(centred.images[..., 6:41, 7:40], image)
    assert (centred.offset, centred.images.shape) == ((7.0, 6.0), padded.images.shape)


@pytest.mark.parametrize("how", ["error", *REMAINDERS])
@pytest.mark.parametrize("patch", [14, 16, (8, 16)])
def test_sampling_at_cell_centres_returns_the_cells(how: str, patch: object) -> None:
    grid = TokenGrid(patch, *REMAINDERS.get(how, ()))  # type: ignore[arg-type]
    size = (grid.patch_height * 3, grid.patch_width * 5)
    if how != "error":
        size = (size[0] + 3, size[1] + 5)
    rows, cols = grid.size(size)
    maps = torch.arange(2 * rows * cols, dtype=torch.float64).reshape(1, 2, rows, cols)
    centres = grid.cell_centers(size).double()
    assert torch.allclose(grid.sample(maps, centres, size)[0], maps[0].flatten(1).T, atol=1e-4)


def test_sampling_is_bilinear_and_clamped_at_the_border() -> None:
    grid = TokenGrid(16)
    ramp = ((torch.arange(4) + 0.5) * 16).double().expand(1, 1, 3, 4)  # x of every cell's centre
    points = torch.tensor(
        [[10.0, 8.0], [20.0, 30.0], [55.5, 47.0], [0.0, 0.0], [64.0, 48.0], [-99.0, 999.0]]
    ).double()
    read = grid.sample(ramp, points, (48, 64))[0, :, 0]
    assert torch.allclose(read, points[:, 0].clamp(8, 56))


def test_labels_are_averaged_over_valid_pixels_only() -> None:
    labels = torch.randn(2, 3, 32, 48)
    mask = torch.rand(2, 32, 48) > 0.4
    mask[0, :16, :16] = False
    poisoned = torch.where(mask[:, None], labels, torch.nan)
    values, weight = TokenGrid(16).reduce_labels(poisoned, mask)
    assert (values.shape, weight.shape) == ((2, 3, 2, 3), (2, 2, 3))
    for b, r, c in itertools.product(range(2), range(2), range(3)):
        cell = (b, slice(None), slice(16 * r, 16 * r + 16), slice(16 * c, 16 * c + 16))
        keep = mask[b, cell[2], cell[3]]
        assert weight[b, r, c] == keep.sum()
        expected = labels[cell][:, keep].double().mean(dim=1).nan_to_num(0.0)
        assert torch.allclose(values[b, :, r, c].double(), expected, atol=1e-6)
    assert (values[0, :, 0, 0] == 0).all()


def test_counts_are_exact_in_half_precision_and_the_cropped_rim_does_not_count() -> None:
    labels = torch.ones(1, 1, 64, 64, dtype=torch.bfloat16)
    mask = torch.ones(1, 64, 64, dtype=torch.bool)
    mask[0, 0, :3] = False
    _, weight = TokenGrid(32).reduce_labels(labels, mask)
    assert weight[0].tolist() == [[1021.0, 1024.0], [1024.0, 1024.0]]
    rim = torch.ones(1, 1, 33, 34)
    rim[..., 32:, :] = torch.nan
    rim[..., :, 0] = torch.nan
    values, weight = TokenGrid(32, "crop").reduce_labels(rim)
    assert (values.item(), weight.item()) == (1.0, 1024.0)


@pytest.mark.parametrize("how", REMAINDERS)
def test_labels_follow_the_images(how: str) -> None:
    size = (45, 70)
    grid = TokenGrid(16, *REMAINDERS[how])  # type: ignore[arg-type]
    labels = coordinate_image(*size)
    values, weight = grid.reduce_labels(labels)
    centres = grid.cell_centers(size).double().reshape(*grid.size(size), 2)
    # cells that lie fully in the image average to their centre
    whole = weight[0] >= weight.max() - 1e-6
    assert whole.any()
    got = values[0].permute(1, 2, 0)
    # where resizing cuts a pixel, its value counts for both parts: a hundredth of a pixel
    assert (got - centres)[whole].abs().max() < (0.02 if how == "resize" else 1e-4)
    if how != "crop":
        assert weight.sum().item() == pytest.approx(45 * 70)
        total = (values * weight[:, None]).sum(dim=(2, 3))
        assert torch.allclose(total, labels.sum(dim=(2, 3)), rtol=1e-9)


def test_a_point_that_is_nowhere_reads_nan() -> None:
    maps = torch.rand(2, 3, 2, 2)
    read = TokenGrid(16).sample(maps, torch.tensor([[float("nan"), 3.0], [16.0, 16.0]]), (32, 32))
    assert read[:, 0].isnan().all()
    assert torch.allclose(read[:, 1], maps.mean(dim=(2, 3)))


def make(
    batch: int = 2, rows: int = 3, cols: int = 4, registers: int = 4, layers: tuple[int, ...] = (7,)
) -> Tokens:
    """Tokens whose values name what they are: CLS -1, registers -2, -3, ..., patch (r, c) = r * cols + c."""
    prefix = torch.tensor([-1.0 - i for i in range(1 + registers)])
    one = torch.cat((prefix, torch.arange(rows * cols).float()))
    sequence = [
        (one + 1000 * i)[None, :, None].expand(batch, -1, 5).contiguous()
        for i in range(len(layers))
    ]
    return kit.tokens_from(sequence, rows, cols, 1 + registers, layers=layers, normed=True)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("grid", [(3, 4), (9, 16), (1, 1), (30, 60)])
def test_views_hold_what_their_names_say(registers: int, grid: tuple[int, int]) -> None:
    rows, cols = grid
    tokens = make(rows=rows, cols=cols, registers=registers)
    assert tokens.grid == GridSize(rows, cols)
    assert tokens.num_prefix_tokens == 1 + registers
    assert (tokens.cls_token[0] == -1).all()
    assert tokens.registers[0].shape == (2, registers, 5)
    assert (
        tokens.registers[0] == torch.tensor([-2.0 - i for i in range(registers)])[None, :, None]
    ).all()
    assert torch.equal(
        tokens.maps()[0][1, 3], torch.arange(rows * cols).float().reshape(rows, cols)
    )
    assert tokens.patches[0].data_ptr() == tokens.sequence[0].data_ptr() + (1 + registers) * 5 * 4


def test_from_patches_puts_the_others_in_front() -> None:
    tokens = make()
    options = {"grid": (3, 4), "patch_size": 16, "registers": tokens.registers[0]}
    again = Tokens.from_patches(
        tokens.patches[0], cls_token=tokens.cls_token[0], layers=[7], normed=True, **options
    )
    assert torch.equal(again.sequence[0], tokens.sequence[0])
    assert repr(again) == repr(tokens)
    plain = Tokens.from_patches(tokens.patches[0], grid=(3, 4), patch_size=16)
    assert plain.sequence[0].data_ptr() == tokens.patches[0].data_ptr()
    only_registers = Tokens.from_patches(tokens.patches[0], **options)
    assert (only_registers.num_cls, only_registers.num_registers) == (0, 4)


def test_layers_keep_order_and_duplicates() -> None:
    tokens = make(layers=(11, 2, 5, 5))
    assert tokens.last.layers == (5,)
    assert torch.equal(tokens.last.sequence[0], tokens.sequence[3])
    chosen = tokens.select([5, 11, 11])
    assert chosen.layers == (5, 11, 11)
    assert torch.equal(chosen.sequence[1], tokens.sequence[0])
    assert tokens.select(2).sequence[0] is tokens.sequence[1]


def test_batches() -> None:
    tokens = make(batch=3)
    lengths = [len(tokens[index]) for index in (1, -1, torch.tensor([2, 0]), slice(1, None))]
    assert (len(tokens), lengths) == (3, [1, 1, 2, 2])
    assert [len(one) for one in tokens] == [1, 1, 1]
    joined = Tokens.cat([tokens[0], tokens[1:]])
    assert torch.equal(joined.sequence[0], tokens.sequence[0])


def test_collate_in_a_data_loader() -> None:
    tokens = make(batch=5)
    samples = [{"tokens": tokens[i], "target": float(i), "name": str(i)} for i in range(5)]
    batches = list(DataLoader(samples, batch_size=2, collate_fn=collate))  # type: ignore[arg-type]
    assert [len(batch["tokens"]) for batch in batches] == [2, 2, 1]
    assert batches[1]["target"].tolist() == [2.0, 3.0]
    pair = collate([(tokens[0], [tokens[1], 1]), (tokens[2], [tokens[3], 2])])
    assert isinstance(pair, tuple) and len(pair[0]) == 2 and pair[1][1].tolist() == [1, 2]
    assert collate([GridSize(1, 2), GridSize(3, 4)]).rows.tolist() == [1, 3]


def test_pytree_leaves_are_tensors_and_grid() -> None:
    tokens = make(layers=(3, 1))
    leaves, spec = pytree.tree_flatten(tokens)
    assert [type(leaf).__name__ for leaf in leaves] == ["Tensor", "Tensor", "int", "int"]
    again = pytree.tree_unflatten(leaves, spec)
    assert repr(again) == repr(tokens)
    stored = pytree.treespec_loads(pytree.treespec_dumps(spec))
    assert stored == spec
    doubled = pytree.tree_map_only(torch.Tensor, lambda x: x * 2, tokens)
    assert torch.equal(doubled.sequence[1], tokens.sequence[1] * 2)
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(tokens)[0]]
    assert paths == [".layer_0", ".layer_1", ".rows", ".cols"]
