"""A 3D U-Net that names voxels, alone or with images: fused once at its end, injected into its decoder, or both."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors.torch
from torch import Tensor, nn

from dinoneck.atomic import write_whole
from dinoneck.errors import CheckpointError
from dinoneck.points import DecoderInjection, GatedFusion, SparseFeatures, VoxelGrid
from dinoneck.text import some_of
from dinoneck.weight_files import read_state
from examples.pointcloud.minkowski_weights import BATCH_COUNTER, is_minkowski, unet_weights
from examples.pointcloud.res16unet import Res16UNet

Variant = Literal["3d", "bifusion", "inject", "both"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
NETWORKS: dict[str, dict[str, Any]] = {
    "34c": {},
    "small": {"planes": (16, 32, 48, 64, 64, 48, 32, 32), "layers": (1,) * 8, "init_dim": 16},
}
_SHOWN = 5  # names in a message


class Segmenter(nn.Module):
    """Scores of every voxel.

    Args:
        unet: gives features of every voxel.
        classes: how many.
        fusion: mixes the images' features with the network's output; None = not there.
        injection: adds them in the decoder; it is hooked onto ``unet``; None = not there.
    """

    def __init__(
        self,
        unet: Res16UNet,
        classes: int,
        fusion: GatedFusion | None,
        injection: DecoderInjection | None,
    ) -> None:
        super().__init__()
        self.unet, self.classifier = unet, nn.Linear(unet.out_channels, classes)
        self.fusion, self.injection = fusion, injection
        if injection is not None:
            injection.attach(
                unet, {stride: Res16UNet.BLOCKS[stride] for stride in injection.strides}
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Levels of the pyramid that are read; empty for the 3D network alone."""
        levels = () if self.injection is None else self.injection.strides
        return tuple(sorted({*levels, *(() if self.fusion is None else (1,))}))

    def forward(
        self, grid: VoxelGrid, feats: Tensor, pyramid: Mapping[int, SparseFeatures] | None = None
    ) -> Tensor:
        """Return scores (M, classes) of the grid's voxels.

        Args:
            grid: the voxels.
            feats: (M, C) of each.
            pyramid: the images' features at ``strides``; None = as if no image had seen anything.
        """
        with nullcontext() if self.injection is None else self.injection.using(pyramid):
            found: Tensor = self.unet(self.unet.sparse(grid, feats))  # (M, C')
        if self.fusion is not None and pyramid is not None:
            found = self.fusion(found, *pyramid[1].at(grid.coords, grid.batch))
        scores: Tensor = self.classifier(found)
        return scores

    def stats(self) -> dict[str, Any]:
        """What fusion and injection did in the last pass."""
        stats: dict[str, Any] = {}
        if self.fusion is not None:
            stats["fusion"] = self.fusion.stats
        if self.injection is not None:
            stats["injection"] = {
                str(stride): vars(level) for stride, level in self.injection.stats.items()
            }
        return stats


def build(
    variant: Variant, *, network: str, in_channels: int, classes: int, c_dino: int
) -> Segmenter:
    """Build a variant with fresh weights.

    Args:
        variant: one of ``VARIANTS``.
        network: one of ``NETWORKS``.
        in_channels: of the voxels' features.
        classes: how many.
        c_dino: channels of the images' features.
    """
    unet = Res16UNet(in_channels, **NETWORKS[network])
    width = unet.out_channels
    fusion = GatedFusion(c_dino, width, width) if variant in ("bifusion", "both") else None
    injection = DecoderInjection(c_dino, unet.levels()) if variant in ("inject", "both") else None
    return Segmenter(unet, classes, fusion, injection)


def save_weights(model: Segmenter, path: Path) -> None:
    """Write all weights to a ``.safetensors`` file, whole or not at all."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_whole(path, safetensors.torch.save(state))


def load_weights(model: Segmenter, path: Path) -> tuple[str, ...]:
    """Read all weights of a file; return the parts of the model that it lacks, which stay as they are.

    Args:
        model: gets them.
        path: what :func:`save_weights` wrote, or a file of MinkowskiEngine's Res16UNet, of which
            the U-Net is read, see :func:`load_unet`.

    Raises:
        CheckpointError: naming weights that are missing, of no part of the model, or of another
            shape.
        BackboneError: if the file is missing or holds something else than tensors.
    """
    state = read_state(path)
    if is_minkowski(state):
        return load_unet(model, path)
    parts = {name.partition(".")[0] for name in state}
    fresh = tuple(name for name, _ in model.named_children() if name not in parts)
    own = model.state_dict()
    expected = {name: value for name, value in own.items() if name.partition(".")[0] not in fresh}
    check_fits(state, expected, path)
    unknown = sorted(set(state) - set(expected))
    if unknown:
        raise CheckpointError(
            f"{path} has {len(unknown)} weights that are not of this network: "
            f"{some_of(unknown, _SHOWN)}; choose its --network and variant",
            step="tensors",
        )
    model.load_state_dict({**own, **state})
    return fresh


def load_unet(model: Segmenter, path: Path) -> tuple[str, ...]:
    """Read the U-Net of a file; return the other parts of the model, which stay as they are.

    Args:
        model: its U-Net gets the weights.
        path: a file of MinkowskiEngine's Res16UNet (Mask3D, ESAM), or what :func:`save_weights`
            wrote of any variant.

    Raises:
        CheckpointError: if the file lacks a weight of the U-Net, or has one of another shape, not
            finite or not of floating numbers.
        BackboneError: if the file is missing or holds something else than tensors.
    """
    state = read_state(path)
    own = model.unet.state_dict()
    if is_minkowski(state):
        weights = unet_weights(state, own, path)
    else:
        weights = {}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            if part == "unet" and rest in own:
                weights[rest] = value
        check_fits(weights, own, path)
    _check_numbers(weights, path)
    model.unet.load_state_dict(weights)
    return tuple(name for name, _ in model.named_children() if name != "unet")


def check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a file that lacks weights of a network, or has them in another shape.

    Raises:
        CheckpointError: naming them.
    """
    missing = sorted(set(expected) - set(state))
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} weights of the network: {some_of(missing, _SHOWN)}; "
            "choose the --network of the file",
            step="tensors",
        )
    other_shapes = []
    for name, value in expected.items():
        if state[name].shape != value.shape:
            shapes = f"{tuple(state[name].shape)} for {tuple(value.shape)}"
            other_shapes.append(f"{name} is {shapes}")
    if other_shapes:
        raise CheckpointError(
            f"{path}: {len(other_shapes)} weights do not fit: {some_of(other_shapes, _SHOWN)}; "
            "choose the --network, the --blocks and the --classes of the file",
            step="tensors",
        )


def _check_numbers(weights: Mapping[str, Tensor], path: Path) -> None:
    for name, value in weights.items():
        if name.endswith(BATCH_COUNTER):
            continue
        if not value.is_floating_point():
            raise CheckpointError(
                f"{path}: {name} is of {value.dtype}; expected floating numbers, and a quantised "
                "network holds others",
                step="tensors",
            )
        if not value.isfinite().all():
            raise CheckpointError(
                f"{path}: {name} holds NaN or infinite values; take another checkpoint of that "
                "training",
                step="tensors",
            )
