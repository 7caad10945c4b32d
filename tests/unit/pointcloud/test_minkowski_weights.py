"""Files of MinkowskiEngine's Res16UNet give the numbers of a dense network that follows the engine's rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from examples.pointcloud.__main__ import main
from examples.pointcloud.minkowski_weights import (
    file_channels,
    minkowski_name,
    own_layout,
    unet_weights,
)
from examples.pointcloud.res16unet import Res16UNet
from examples.pointcloud.segmentation import (
    NETWORKS,
    Segmenter,
    build,
    load_unet,
    load_weights,
    save_weights,
)
from examples.pointcloud.sparse_conv import DownConv, SubmanifoldConv, UpConv, sparse
from torch import Tensor

from dinoneck import CheckpointError, ConfigError
from dinoneck.points import VoxelGrid

LOW, SIZE = -16, 32  # a dense box with room around all voxels; begins at a multiple of 16
EPS = 1e-5  # of batch norms


def step_of(row: int, size: int) -> tuple[int, int, int]:
    """Where a row of a kernel lies, by the engine's rule: x changes fastest, even sizes begin at 0."""
    first = -(size // 2) if size % 2 else 0
    return row % size + first, row // size % size + first, row // size**2 + first


class DenseReference:
    """Mask3D's Res16UNet in dense boxes (x, y, z, C), from a state dict in its own names."""

    def __init__(self, state: dict[str, Tensor], grid: VoxelGrid) -> None:
        self.state = state
        self.place = tuple((grid.coords - LOW).T)
        self.masks = []
        mask = torch.zeros(SIZE, SIZE, SIZE, 1, dtype=torch.float64)
        mask[self.place] = 1
        for _ in range(5):
            self.masks.append(mask)
            side = len(mask) // 2
            mask = mask.reshape(side, 2, side, 2, side, 2, 1).amax((1, 3, 5))

    def __call__(self, feats: Tensor) -> Tensor:
        box = feats.new_zeros(SIZE, SIZE, SIZE, feats.shape[1])
        box[self.place] = feats
        out = self.normed(self.conv(box, "conv0p1s1"), "bn0", 0).relu()
        skips = []
        for level in range(1, 5):
            skips.append(out)
            down = self.down(out, f"conv{level}p{2 ** (level - 1)}s2")
            out = self.normed(down, f"bn{level}", level).relu()
            out = self.blocks(out, f"block{level}", level)
        for number in range(4, 8):
            level = 7 - number
            up = self.up(out, f"convtr{number}p{2 ** (8 - number)}s2")
            up = self.normed(up, f"bntr{number}", level).relu()
            out = self.blocks(torch.cat((up, skips[level]), dim=-1), f"block{number + 1}", level)
        return out[self.place]

    def conv(self, box: Tensor, name: str) -> Tensor:
        kernel = self.state[f"{name}.kernel"]
        if kernel.ndim == 2:
            return box @ kernel
        size = round(len(kernel) ** (1 / 3))
        side, margin = len(box), size // 2
        padded = F.pad(box, (0, 0, *[margin] * 6))
        out = box.new_zeros(side, side, side, kernel.shape[2])
        for row in range(len(kernel)):
            x, y, z = (margin + step for step in step_of(row, size))
            out += padded[x : x + side, y : y + side, z : z + side] @ kernel[row]
        return out

    def down(self, box: Tensor, name: str) -> Tensor:
        kernel = self.state[f"{name}.kernel"]
        out = 0
        for row in range(8):
            x, y, z = step_of(row, 2)
            out = out + box[x::2, y::2, z::2] @ kernel[row]
        return out

    def up(self, box: Tensor, name: str) -> Tensor:
        kernel = self.state[f"{name}.kernel"]
        side = 2 * len(box)
        out = box.new_zeros(side, side, side, kernel.shape[2])
        for row in range(8):
            x, y, z = step_of(row, 2)
            out[x::2, y::2, z::2] = box @ kernel[row]
        return out

    def normed(self, box: Tensor, name: str, level: int) -> Tensor:
        part = {key: self.state[f"{name}.bn.{key}"] for key in ("weight", "bias")}
        mean = self.state[f"{name}.bn.running_mean"]
        variance = self.state[f"{name}.bn.running_var"]
        scaled = (box - mean) / (variance + EPS).sqrt() * part["weight"] + part["bias"]
        return scaled * self.masks[level]

    def blocks(self, box: Tensor, name: str, level: int) -> Tensor:
        number = 0
        while f"{name}.{number}.conv1.kernel" in self.state:
            block = f"{name}.{number}"
            out = self.normed(self.conv(box, f"{block}.conv1"), f"{block}.norm1", level).relu()
            out = self.normed(self.conv(out, f"{block}.conv2"), f"{block}.norm2", level)
            shortcut = box
            if f"{block}.downsample.0.kernel" in self.state:
                shortcut = self.conv(box, f"{block}.downsample.0")
                shortcut = self.normed(shortcut, f"{block}.downsample.1", level)
            box = (out + shortcut).relu() * self.masks[level]
            number += 1
        return box


def random_state(network: str = "small", in_channels: int = 4) -> dict[str, Tensor]:
    """Random weights in Mask3D's names and shapes, from the widths of a network."""
    options = NETWORKS[network] or {
        "planes": (32, 64, 128, 256, 256, 128, 96, 96),
        "layers": (2, 3, 4, 6, 2, 2, 2, 2),
        "init_dim": 32,
    }
    planes, layers, width = options["planes"], options["layers"], options["init_dim"]
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def kernel(name: str, *shape: int) -> None:
        scale = (shape[0] * shape[-2]) ** -0.5
        state[f"{name}.kernel"] = (
            torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        )

    def norm(name: str, channels: int) -> None:
        for key in ("weight", "bias", "running_mean", "running_var"):
            values = torch.rand(channels, generator=generator, dtype=torch.float64)
            state[f"{name}.bn.{key}"] = values + 0.5
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)

    kernel("conv0p1s1", 125, in_channels, width)
    norm("bn0", width)
    skips = [width, *planes[:3]]
    for number, (channels, count) in enumerate(zip(planes, layers, strict=True), start=1):
        if number <= 4:
            kernel(f"conv{number}p{2 ** (number - 1)}s2", 8, width, width)
            norm(f"bn{number}", width)
        else:
            kernel(f"convtr{number - 1}p{2 ** (9 - number)}s2", 8, width, channels)
            norm(f"bntr{number - 1}", channels)
            width = channels + skips.pop()
        for block in range(count):
            name = f"block{number}.{block}"
            kernel(f"{name}.conv1", 27, width, channels)
            norm(f"{name}.norm1", channels)
            kernel(f"{name}.conv2", 27, channels, channels)
            norm(f"{name}.norm2", channels)
            if width != channels:
                state[f"{name}.downsample.0.kernel"] = torch.randn(
                    width, channels, generator=generator, dtype=torch.float64
                )
                norm(f"{name}.downsample.1", channels)
            width = channels
    state["final.kernel"] = torch.zeros(width, 200)
    state["final.bias"] = torch.zeros(1, 200)
    return state


def grid_of(seed: int = 0) -> VoxelGrid:
    generator = torch.Generator().manual_seed(seed)
    taken = (torch.rand(9, 7, 5, generator=generator) < 0.3).nonzero()
    return VoxelGrid.from_coords(taken - torch.tensor([5, 3, 2]))


# -- positions


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
def test_an_index_kernel_lies_where_the_engine_puts_it(size: int, stride: int) -> None:
    """Two voxels at an offset: each gets from the other the number of the row of that offset, to the bit."""
    kernel = torch.arange(1.0, size**3 + 1).reshape(size**3, 1, 1)
    conv = SubmanifoldConv(1, 1, size)
    conv.weight.data = own_layout(kernel).contiguous()
    own = size**3 // 2 + 1
    for row in range(size**3):
        step = torch.tensor(step_of(row, size))
        if not step.any():
            continue
        coords = torch.stack((torch.zeros(3).long(), step)) * stride
        grid = VoxelGrid.from_coords(coords)
        feats = torch.zeros(2, 1)
        feats[grid.inverse[1]] = 1  # the neighbour
        x = sparse(grid, feats)
        if stride == 2:
            # a level of stride 2, from voxels of which each is alone in its cell
            down = DownConv(1, 1)
            down.weight.data = torch.ones(1, 2, 2, 2, 1)
            x = down(x)
        out = conv(x).feats
        assert out[grid.inverse[0]].item() == row + 1
        assert out[grid.inverse[1]].item() == own


def test_index_kernels_of_stride_2_lie_where_the_engine_puts_them_both_ways() -> None:
    kernel = torch.arange(1.0, 9).reshape(8, 1, 1)
    down, up = DownConv(1, 1), UpConv(1, 1)
    for conv in (down, up):
        conv.weight.data = own_layout(kernel).contiguous()
    for row in range(8):
        voxel = torch.tensor([step_of(row, 2)]) + torch.tensor([4, -2, 6])
        x = sparse(VoxelGrid.from_coords(voxel), torch.ones(1, 1))
        coarse = down(x)
        assert coarse.coords.tolist() == [[4, -2, 6]]
        assert coarse.feats.item() == row + 1
        assert up(coarse.with_feats(torch.ones(1, 1)), x).feats.item() == row + 1


# -- the whole network


def test_random_weights_give_the_output_of_the_dense_reference() -> None:
    state = random_state()
    net = Res16UNet(4, **NETWORKS["small"]).double().eval()
    net.load_state_dict(unet_weights(state, net.state_dict(), Path("mask3d.pth")))
    grid = grid_of()
    feats = torch.randn(len(grid), 4, dtype=torch.float64)
    with torch.no_grad():
        found = net(net.sparse(grid, feats))
    expected = DenseReference(state, grid)(feats)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_names_and_shapes_are_those_of_the_published_res16unet34c() -> None:
    """Of Mask3D's Res16UNet34C, read in its source."""
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
    with torch.device("meta"):
        net = Res16UNet(3)
    own = net.state_dict()
    state = {name: value.to("meta") for name, value in random_state("34c", 3).items()}
    assert {name: tuple(state[name].shape) for name in expected} == expected
    weights = unet_weights(state, own, Path("mask3d.pth"))
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in own.items()
    }
    assert {minkowski_name(name) for name in own} == set(state) - {"final.kernel", "final.bias"}


@pytest.mark.parametrize("prefix", ["", "backbone.", "model.backbone."])
def test_a_file_fills_the_unet_of_every_variant_and_no_classifier(
    prefix: str, tmp_path: Path
) -> None:
    state = {prefix + name: value.float() for name, value in random_state().items()}
    state["query_projection.weight"] = torch.zeros(3, 3)
    path = tmp_path / "mask3d.pth"
    torch.save({"state_dict": state}, path)
    model = model_of("both")
    classifier = model.classifier.weight.clone()
    assert load_weights(model, path) == ("classifier", "fusion", "injection")
    assert torch.equal(model.classifier.weight, classifier)
    found = model.unet.state_dict()["down2.conv.weight"]
    assert torch.equal(found, own_layout(state[f"{prefix}conv2p2s2.kernel"]))
    assert torch.equal(
        model.unet.state_dict()["block5.0.shortcut.0.weight"],
        state[f"{prefix}block5.0.downsample.0.kernel"].T,
    )


def model_of(variant: str) -> Segmenter:
    return build(variant, network="small", in_channels=4, classes=3, c_dino=8)  # type: ignore[arg-type]


def test_weights_that_are_missing_or_of_another_shape_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mask3d.pth"
    state = {name: value.float() for name, value in random_state().items()}
    lacking = {name: value for name, value in state.items() if name != "block6.0.conv2.kernel"}
    torch.save(lacking, path)
    with pytest.raises(CheckpointError, match=r"lacks 1 weights.*block6\.0\.conv2\.kernel"):
        load_weights(model_of("3d"), path)
    torch.save({name: value.float() for name, value in random_state(in_channels=3).items()}, path)
    with pytest.raises(CheckpointError, match=r"conv0p1s1\.kernel is \(125, 3, 16\)"):
        load_weights(model_of("3d"), path)
    twice = {
        f"{part}.{name}": value for part in ("student", "teacher") for name, value in state.items()
    }
    torch.save(twice, path)
    with pytest.raises(CheckpointError, match="holds 2 networks"):
        load_weights(model_of("3d"), path)


def permuted(state: dict[str, Tensor]) -> None:
    state["conv1p1s2.kernel"] = state["conv1p1s2.kernel"].permute(1, 2, 0)


def with_dense_axes(state: dict[str, Tensor]) -> None:
    state["conv1p1s2.kernel"] = state["conv1p1s2.kernel"].reshape(2, 2, 2, 16, 16)


def renamed(state: dict[str, Tensor]) -> None:
    state["conv4.kernel"] = state.pop("conv4p8s2.kernel")


def with_nan(state: dict[str, Tensor]) -> None:
    state["bn1.bn.weight"][3] = torch.nan


def in_whole_numbers(state: dict[str, Tensor]) -> None:
    state["conv1p1s2.kernel"] = state["conv1p1s2.kernel"].to(torch.int8)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (permuted, r"1 weights do not fit: conv1p1s2.kernel is \(16, 16, 8\) for \(8, 16, 16\)"),
        (with_dense_axes, r"conv1p1s2.kernel is \(2, 2, 2, 16, 16\) for \(8, 16, 16\)"),
        (renamed, r"lacks 1 weights of the network: conv4p8s2.kernel"),
        (with_nan, "down1.norm.weight holds NaN or infinite values"),
        (in_whole_numbers, "down1.conv.weight is of torch.int8; expected floating numbers"),
    ],
)
def test_kernels_that_do_not_fit_are_named_with_their_file(
    spoil: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    state = {name: value.float() for name, value in random_state().items()}
    spoil(state)
    torch.save(state, tmp_path / "mask3d.pth")
    with pytest.raises(CheckpointError, match=rf"mask3d\.pth.*{message}"):
        load_unet(model_of("3d"), tmp_path / "mask3d.pth")


@pytest.mark.parametrize("shape", [(125, 16), (5, 5, 5, 4, 16)])
def test_a_first_kernel_of_other_axes_is_named(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.save({"conv0p1s1.kernel": torch.zeros(shape)}, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=r"a\.pth: conv0p1s1.kernel is .* of 3 axes"):
        file_channels(tmp_path / "a.pth")


def test_the_unet_of_a_run_with_images_starts_a_network_of_other_classes(tmp_path: Path) -> None:
    trained = model_of("both")
    save_weights(trained, tmp_path / "run.safetensors")
    model = build("3d", network="small", in_channels=4, classes=7, c_dino=8)
    classifier = model.classifier.weight.clone()

    fresh = load_unet(model, tmp_path / "run.safetensors")

    assert fresh == ("classifier",)
    for name, value in trained.unet.state_dict().items():
        assert torch.equal(model.unet.state_dict()[name], value)
    assert torch.equal(model.classifier.weight, classifier)


def test_a_run_of_another_network_names_the_option(tmp_path: Path) -> None:
    save_weights(model_of("3d"), tmp_path / "run.safetensors")
    model = build("3d", network="34c", in_channels=4, classes=3, c_dino=8)
    with pytest.raises(CheckpointError, match="choose the --network of the file"):
        load_unet(model, tmp_path / "run.safetensors")


def test_weights_of_another_variant_or_of_other_classes_are_named(tmp_path: Path) -> None:
    save_weights(model_of("both"), tmp_path / "run.safetensors")
    with pytest.raises(CheckpointError, match="weights that are not of this network: fusion"):
        load_weights(model_of("3d"), tmp_path / "run.safetensors")
    more = build("both", network="small", in_channels=4, classes=5, c_dino=8)
    with pytest.raises(CheckpointError, match=r"classifier.bias is \(3,\) for \(5,\)"):
        load_weights(more, tmp_path / "run.safetensors")


# -- compare --init

WORDS = [
    *("--rooms", "2", "--test-rooms", "1", "--views", "3", "--image-size", "96", "128"),
    *("--points", "3000", "--voxel", "0.25", "--backbone", "dinoneck_tiny", "--network", "small"),
    *("--steps", "1", "--seeds", "0", "1"),
]


@pytest.mark.slow
def test_compare_starts_every_configuration_from_the_file(tmp_path: Path) -> None:
    state = {name: value.float() for name, value in random_state(in_channels=3).items()}
    torch.save({"state_dict": state}, tmp_path / "mask3d.pth")
    words = [*WORDS, "--init", str(tmp_path / "mask3d.pth"), "--blocks", "rgb"]
    out = tmp_path / "runs"
    assert main(["compare", "--out", str(out), *words]) == 0
    found = json.loads((out / "point_segmentation.json").read_text())
    assert found["pretrain_steps"] == 0
    block = found["blocks"]["rgb"]
    assert block["summary"]["injection_at_step_0_is_3d_only"]
    for rows in block["seeds"].values():
        assert rows["pretrained"]["fresh"] == ["classifier"]
        assert rows["pretrained"]["loss"] is None
        untrained = rows["pretrained"]["test"]["iou"]
        assert rows["3D only"]["untrained"]["iou"] == untrained
        assert [rows[name]["fresh"] for name in ("3D only", "BiFusion", "inject")] == [
            [],
            ["fusion"],
            ["injection"],
        ]
        assert rows["inject"]["cost"]["training"]["seconds"] > 0
        assert rows["inject"]["cost"]["training"]["peak_memory_mb"] > 50


def test_compare_names_the_block_whose_inputs_fit_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {name: value.float() for name, value in random_state(in_channels=3).items()}
    torch.save(state, tmp_path / "mask3d.pth")
    words = [*WORDS, "--init", str(tmp_path / "mask3d.pth"), "--out", str(tmp_path / "runs")]
    assert main(["compare", *words]) == 1
    message = capsys.readouterr().err
    assert "takes 3 channels per voxel, and --blocks geometry gives 4" in message
    assert "--blocks rgb" in message
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_finished_run_from_other_weights_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mask3d.pth"
    state = {name: value.float() for name, value in random_state().items()}
    torch.save(state, path)
    words = ["compare", *WORDS, "--init", str(path), "--out", str(tmp_path / "runs")]
    assert main(words) == 0
    state["bn0.bn.bias"] += 1
    torch.save(state, path)
    assert main(words) == 1
    assert "init_digest" in capsys.readouterr().err
