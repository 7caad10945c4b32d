"""Weights of MinkowskiEngine's Res16UNet, as Mask3D and ESAM have them, for this example's network.

A file holds kernels (K³, C_in, C_out) in the engine's order and batch norms under ``bn``. The
network may be all of the model or a part of it: ``backbone.conv0p1s1.kernel`` is found too. Its
last layer ``final`` is not read; the classes are others here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.points import minkowski_to_conv3d
from dinoneck.text import some_of
from dinoneck.weight_files import read_state

STEM = "conv0p1s1.kernel"
_OWN_STEM = "unet.stem.conv.weight"
# our stage -> the engine's convolution and its norm
STAGES = {
    "stem": ("conv0p1s1", "bn0"),
    "down1": ("conv1p1s2", "bn1"),
    "down2": ("conv2p2s2", "bn2"),
    "down3": ("conv3p4s2", "bn3"),
    "down4": ("conv4p8s2", "bn4"),
    "up5": ("convtr4p16s2", "bntr4"),
    "up6": ("convtr5p8s2", "bntr5"),
    "up7": ("convtr6p4s2", "bntr6"),
    "up8": ("convtr7p2s2", "bntr7"),
}
# of a residual block: how our name begins -> how the engine's does
IN_BLOCK = {
    "first.conv.weight": "conv1.kernel",
    "first.norm.": "norm1.bn.",
    "conv.weight": "conv2.kernel",
    "norm.": "norm2.bn.",
    "shortcut.0.weight": "downsample.0.kernel",
    "shortcut.1.": "downsample.1.bn.",
}
BATCH_COUNTER = "num_batches_tracked"  # older files lack it; it changes no output
_SHOWN = 5


def is_minkowski(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the stem of a Res16UNet as MinkowskiEngine names it."""
    return bool(_stems(state))


def file_channels(path: Path) -> int:
    """Return how many channels per voxel the network of a file takes.

    Args:
        path: a file of MinkowskiEngine's network, or of this example's.

    Raises:
        ConfigError: if it holds neither.
        CheckpointError: if it holds several networks.
    """
    state = read_state(path)
    if is_minkowski(state):
        return _stem_channels(state, _only_stem(state, path), axes=3, axis=1, path=path)
    if _OWN_STEM in state:
        return _stem_channels(state, _OWN_STEM, axes=5, axis=4, path=path)
    raise ConfigError(f"{path} holds no Res16UNet: neither {STEM} nor {_OWN_STEM} is in it")


def _stem_channels(
    state: Mapping[str, Tensor], name: str, *, axes: int, axis: int, path: Path
) -> int:
    """Return the input channels of the first kernel: (K³, C_in, C_out), here (C_out, K, K, K, C_in)."""
    shape = state[name].shape
    if len(shape) != axes:
        raise ConfigError(f"{path}: {name} is {tuple(shape)}; expected a kernel of {axes} axes")
    return int(shape[axis])


def unet_weights(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path
) -> dict[str, Tensor]:
    """Return all weights of a Res16UNet from a MinkowskiEngine file, in the layout of this example.

    Args:
        state: of the file.
        own: state dict of the network that gets them.
        path: of the file, for messages.

    Returns:
        A tensor for every name in ``own``.

    Raises:
        CheckpointError: if the file holds several such networks, lacks a weight, or has one of
            another shape: nothing of the network may start anew without a word.
    """
    prefix = _only_stem(state, path).removesuffix(STEM)
    weights = {}
    missing = []
    other_shapes = []
    for name, value in own.items():
        source = prefix + minkowski_name(name)
        if source in state:
            shape = engine_shape(value)
            if state[source].shape == shape:
                weight = state[source]
                weights[name] = (own_layout(weight) if weight.ndim > 1 else weight).clone()
            else:
                other_shapes.append(f"{source} is {tuple(state[source].shape)} for {shape}")
        elif name.endswith(BATCH_COUNTER):
            weights[name] = value
        else:
            missing.append(source)
    if missing:
        raise CheckpointError(
            f"{path} lacks {len(missing)} weights of the network: {some_of(missing, _SHOWN)}; it "
            f"has {some_of(state, _SHOWN)}. Choose the --network of the file, or a file of all its "
            "weights",
            step="tensors",
        )
    if other_shapes:
        raise CheckpointError(
            f"{path}: {len(other_shapes)} weights do not fit: {some_of(other_shapes, _SHOWN)}; "
            "choose the --network and the --blocks of the file",
            step="tensors",
        )
    return weights


def minkowski_name(name: str) -> str:
    """Return what a weight of this example's Res16UNet is called in MinkowskiEngine's.

    Examples:
        >>> minkowski_name("up5.conv.weight"), minkowski_name("block3.1.norm.bias")
        ('convtr4p16s2.kernel', 'block3.1.norm2.bn.bias')
    """
    stage, _, part = name.partition(".")
    if stage in STAGES:
        conv, norm = STAGES[stage]
        if part == "conv.weight":
            return f"{conv}.kernel"
        return f"{norm}.bn.{part.removeprefix('norm.')}"
    number, _, part = part.partition(".")
    for begin, source in IN_BLOCK.items():
        if part.startswith(begin):
            return f"{stage}.{number}.{source}{part.removeprefix(begin)}"
    raise KeyError(name)


def engine_shape(weight: Tensor) -> tuple[int, ...]:
    """Return the shape of a weight of this example in a MinkowskiEngine file.

    Examples:
        >>> import torch
        >>> engine_shape(torch.zeros(32, 3, 3, 3, 16)), engine_shape(torch.zeros(32, 16))
        ((27, 16, 32), (16, 32))
    """
    shape = tuple(weight.shape)
    if weight.ndim == 5:  # (C_out, K, K, K, C_in)
        return (shape[1] * shape[2] * shape[3], shape[4], shape[0])
    return shape[::-1]


def own_layout(kernel: Tensor) -> Tensor:
    """Return a kernel of MinkowskiEngine as a weight of this example's convolutions.

    Args:
        kernel: (K³, C_in, C_out), or (C_in, C_out) of a single cell.

    Returns:
        (C_out, K, K, K, C_in) with axes x, y, z, or (C_out, C_in) of a single cell.
    """
    weight = minkowski_to_conv3d(kernel)  # (C_out, C_in, x, y, z)
    if kernel.ndim == 2:
        return weight[:, :, 0, 0, 0]
    return weight.permute(0, 2, 3, 4, 1)


def _only_stem(state: Mapping[str, Tensor], path: Path) -> str:
    """Return the name of the first kernel of the one network in a file."""
    stems = _stems(state)
    if len(stems) != 1:
        raise CheckpointError(
            f"{path} holds {len(stems)} networks, {some_of(stems, _SHOWN)}; expected one Res16UNet",
            step="tensors",
        )
    return stems[0]


def _stems(state: Mapping[str, Tensor]) -> list[str]:
    return [name for name in state if f".{name}".endswith(f".{STEM}")]
