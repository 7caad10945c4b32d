"""Files of MinkowskiEngine: kernels in its order give the numbers of this example's, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from examples.pointcloud.minkowski import own_kernel, own_weights
from examples.pointcloud.room_batches import Voxels, batch_of
from examples.pointcloud.rooms import CLASSES
from examples.pointcloud.segmentation import Segmenter, Variant, build, load_weights
from examples.pointcloud.sparse_conv import DownConv, SubmanifoldConv, UpConv, sparse
from tests.unit.pointcloud.test_pointcloud_training import rooms
from torch import Tensor, nn

from dinoneck import BackboneError
from dinoneck.points import VoxelGrid

OURS = ("stem", "down1", "down2", "down3", "down4", "up5", "up6", "up7", "up8")
CONVS = (
    *("conv0p1s1", "conv1p1s2", "conv2p2s2", "conv3p4s2", "conv4p8s2"),
    *("convtr4p16s2", "convtr5p8s2", "convtr6p4s2", "convtr7p2s2"),
)
NORMS = ("bn0", "bn1", "bn2", "bn3", "bn4", "bntr4", "bntr5", "bntr6", "bntr7")
IN_BLOCKS = {  # the first that fits
    ".first.conv.weight": ".conv1.kernel",
    ".first.norm.": ".norm1.bn.",
    ".conv.weight": ".conv2.kernel",
    ".norm.": ".norm2.bn.",
    ".shortcut.0.weight": ".downsample.0.kernel",
    ".shortcut.1.": ".downsample.1.bn.",
}


def made(seed: int, variant: Variant = "3d", in_channels: int = 4, network: str = "small") -> Segmenter:
    """A network with weights and batch statistics as after some training."""
    torch.manual_seed(seed)
    model = build(
        variant, network=network, in_channels=in_channels, classes=len(CLASSES), c_dino=64, engine="torch"
    ).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            for values, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.3)):
                nn.init.uniform_(values, low, low + 1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return model


def rows_of(weight: Tensor) -> Tensor:
    """A kernel (C_out, x, y, z, C_in) as MinkowskiEngine has it: a row (C_in, C_out) per cell, x changing fastest."""
    if weight.ndim == 2:
        return weight.T
    cells = range(weight.shape[1])
    return torch.stack([weight[:, x, y, z].T for z in cells for y in cells for x in cells])


def minkowski(model: Segmenter, prefix: str = "backbone.") -> dict[str, Tensor]:
    """The state dict of a model with this network in MinkowskiEngine, with a decoder next to it."""
    found = {}
    for key, value in model.unet.state_dict().items():
        stage, _, part = key.partition(".")
        if stage in OURS:
            kernel = part == "conv.weight"
            name = f"{CONVS[OURS.index(stage)]}.kernel" if kernel else key.replace(
                f"{stage}.norm.", f"{NORMS[OURS.index(stage)]}.bn."
            )  # fmt: skip
        else:
            block, _, part = part.partition(".")
            old = next(old for old in IN_BLOCKS if f".{part}".startswith(old))
            name = f"{stage}.{block}" + f".{part}".replace(old, IN_BLOCKS[old])
        found[prefix + name] = rows_of(value) if name.endswith(".kernel") else value
    final = {f"{prefix}final.kernel": torch.zeros(32, 200), f"{prefix}final.bias": torch.zeros(1, 200)}
    return {**found, **final, "query.weight": torch.zeros(3, 3)}


def scores(model: Segmenter) -> Tensor:
    batch = batch_of(rooms().test, Voxels(0.25))
    x = model.unet.sparse(batch.grid, batch.feats)
    with torch.no_grad():
        found: Tensor = model.unet(x) if model.injection is None else model.network(x, pyramid=None)
    return found


def plain(coords: Tensor, feats: Tensor, out: Tensor, kernel: Tensor, size: int, *, up: bool = False) -> Tensor:
    """MinkowskiEngine's rule, cell by cell: row k is for the neighbour at (k % K, k // K % K, k // K^2)."""
    at = {tuple(cell): row for row, cell in enumerate(coords.tolist())}
    start = size // 2 if size % 2 else 0
    result = torch.zeros(len(out), kernel.shape[2], dtype=feats.dtype)
    for row, cell in enumerate(out.tolist()):
        for k in range(size**3):
            step = [k % size - start, k // size % size - start, k // size**2 - start]
            # a transposed convolution reverses the pairs: the finer cell lies at the step from the coarser one
            source = tuple(c - s if up else c + s for c, s in zip(cell, step, strict=True))
            if source in at:
                result[row] += feats[at[source]] @ kernel[k]
    return result


@pytest.mark.parametrize("size", [3, 5])
def test_a_kernel_computes_what_minkowski_engines_rule_gives(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    coords = (torch.rand(5, 6, 7, generator=generator) < 0.4).nonzero() - 3
    grid = VoxelGrid.from_coords(coords)
    feats = torch.rand(len(grid), 2, generator=generator, dtype=torch.float64)
    kernel = torch.rand(size**3, 2, 3, generator=generator, dtype=torch.float64)
    conv = SubmanifoldConv(2, 3, size).double()
    conv.weight.data = own_kernel(kernel, conv.weight.shape)  # type: ignore[assignment]
    expected = plain(grid.coords, feats, grid.coords, kernel, size)
    torch.testing.assert_close(conv(sparse(grid, feats)).feats, expected)
    conv.weight.data = conv.weight.data.transpose(1, 3).contiguous()  # x and z exchanged
    assert not torch.allclose(conv(sparse(grid, feats)).feats, expected)


def test_kernels_of_stride_2_follow_the_rule_both_ways() -> None:
    generator = torch.Generator().manual_seed(0)
    coords = (torch.rand(6, 6, 6, generator=generator) < 0.3).nonzero() - 3
    grid = VoxelGrid.from_coords(coords)
    feats = torch.rand(len(grid), 2, generator=generator, dtype=torch.float64)
    kernels = torch.rand(2, 8, 2, 2, generator=generator, dtype=torch.float64)
    down, up = DownConv(2, 2).double(), UpConv(2, 2).double()
    for conv, kernel in zip((down, up), kernels, strict=True):
        conv.weight.data = own_kernel(kernel, conv.weight.shape)  # type: ignore[assignment]
    x = sparse(grid, feats)
    coarse = down(x)
    torch.testing.assert_close(coarse.feats, plain(grid.coords, feats, coarse.coords, kernels[0], 2))
    expected = plain(coarse.coords, coarse.feats, grid.coords, kernels[1], 2, up=True)
    torch.testing.assert_close(up(coarse, x).feats, expected)


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.backbone."])
def test_weights_in_minkowskis_order_give_the_same_output(prefix: str, tmp_path: Path) -> None:
    model, other = made(0), made(1)
    torch.save({"state_dict": minkowski(model, prefix)}, tmp_path / "mask3d.pth")
    before = other.classifier.weight.clone()
    assert not torch.equal(scores(other), scores(model))
    assert load_weights(other, tmp_path / "mask3d.pth") == ("classifier",)
    assert torch.equal(scores(other), scores(model))
    assert torch.equal(other.classifier.weight, before)
    injected = made(2, "inject")
    assert load_weights(injected, tmp_path / "mask3d.pth", CLASSES) == ("classifier", "injection")
    assert torch.equal(scores(injected), scores(model))


def test_names_and_shapes_are_those_of_the_published_network(tmp_path: Path) -> None:
    """Of Mask3D's Res16UNet34C, read in its source."""
    with torch.device("meta"):
        network = build("3d", network="34c", in_channels=3, classes=5, c_dino=1, engine="torch")
    shapes = {name: tuple(value.shape) for name, value in minkowski(network, "").items()}
    expected = {
        "conv0p1s1.kernel": (125, 3, 32),
        "conv4p8s2.kernel": (8, 128, 128),
        "convtr4p16s2.kernel": (8, 256, 256),
        "convtr5p8s2.kernel": (8, 256, 128),
        "convtr7p2s2.kernel": (8, 96, 96),
        "block4.5.conv2.kernel": (27, 256, 256),
        "block5.0.downsample.0.kernel": (384, 256),
        "block8.1.norm2.bn.running_var": (96,),
        "bntr5.bn.weight": (128,),
    }
    assert {name: shapes[name] for name in expected} == expected
    held = own_weights(
        {name: torch.empty(shape) for name, shape in shapes.items()}, network.unet.state_dict(), tmp_path
    )
    assert {key: value.shape for key, value in held.items()} == {
        key: value.shape for key, value in network.unet.state_dict().items()
    }


def test_a_state_dict_of_torch_save_in_the_examples_names_is_read(tmp_path: Path) -> None:
    model, other = made(0), made(1)
    torch.save(model.weights(), tmp_path / "own.pth")
    assert load_weights(other, tmp_path / "own.pth") == ()
    assert torch.equal(scores(other), scores(model))
    torch.save({"state_dict": nn.Linear(2, 2)}, tmp_path / "module.pth")
    with pytest.raises(BackboneError, match="is code"):
        load_weights(other, tmp_path / "module.pth")
