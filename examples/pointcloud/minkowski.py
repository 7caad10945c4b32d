"""Weights of MinkowskiEngine's Res16UNet, as Mask3D and ESAM have them, in this example's names and layout.

MinkowskiEngine keeps a kernel of K x K x K cells as (K^3, C_in, C_out). Row k belongs to the cell k mod K along x,
k // K mod K along y and k // K^2 along z, counted from -(K // 2) where K is odd and from 0 where it is even. The source
is ``coordinate_at`` of MinkowskiEngine 0.5.4 (src/kernel_region.hpp), which CPU and GPU share. A transposed convolution
reverses the pairs of the plain one (src/coordinate_map_manager.cpp). Both were read and not run: MinkowskiEngine could
not be built. Kernels of its region type HYBRID have another order, which no shape shows; Mask3D and ESAM have none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dinoneck.errors import CheckpointError, some_of

_STEM, _KERNEL = "conv0p1s1", ".kernel"
_OF_BLOCK = (
    ("first.conv", "first.norm", "conv1", "norm1"),
    ("conv", "norm", "conv2", "norm2"),
    ("shortcut.0", "shortcut.1", "downsample.0", "downsample.1"),
)
_SHOWN = 6
_logger = logging.getLogger("examples.pointcloud")


def is_minkowski(given: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has kernels named as MinkowskiEngine names them."""
    return any(name.endswith(_KERNEL) for name in given)


def own_weights(given: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the weights that a file of MinkowskiEngine has for a Res16UNet; log what is taken and what is not.

    A convolution and its norm are taken together or not at all: not if a tensor is missing or has another shape. The
    classifier ``final`` is not taken: Mask3D does not train it.

    Args:
        given: the file's state dict, of the network or of a model that has it (``backbone.conv0p1s1.kernel``).
        own: the network's state dict.
        path: of the file.

    Returns:
        Weights by their names in ``own``, as far as they fit.

    Raises:
        CheckpointError: if no convolution fits, or the file has no Res16UNet or several.
    """
    stems = [name for name in given if f".{name}".endswith(f".{_STEM}{_KERNEL}")]
    if len(stems) != 1:
        raise CheckpointError(
            f"{path} has {len(stems)} tensors named {_STEM}{_KERNEL}; expected one, of a Res16UNet of MinkowskiEngine. "
            f"It has {_listed(given)}",
            step="tensors",
        )
    prefix = stems[0].removesuffix(_STEM + _KERNEL)
    weights: dict[str, Tensor] = {}
    taken: list[str] = []
    new: list[str] = []
    listed: set[str] = set()
    for layer in _layers(own):
        sources = {key: f"{prefix}{source}" for key, source in layer.items()}
        found = {key: _converted(given.get(source), own[key].shape) for key, source in sources.items()}
        wrong = [key for key, value in found.items() if value is None]
        key = wrong[0] if wrong else next(iter(layer))
        there = tuple(given[sources[key]].shape) if sources[key] in given else "not in the file"
        line = f"{sources[key]} {there} -> unet.{key} {tuple(own[key].shape)}"
        if wrong:
            new.append(line)
        else:
            taken.append(line)
            weights |= {key: value for key, value in found.items() if value is not None}
        listed |= {*sources.values()}
    _log(path, taken, new, {name: value for name, value in given.items() if name not in listed})
    if not weights:
        raise CheckpointError(
            f"{path}: no layer fits this network, such as {new[0]}; the file belongs to another --network",
            step="tensors",
        )
    return weights


def own_kernel(kernel: Tensor, shape: torch.Size) -> Tensor | None:
    """Return a kernel of MinkowskiEngine in the layout of a weight; None if it is of another size.

    Args:
        kernel: (K^3, C_in, C_out), or (C_in, C_out) for a single cell.
        shape: of the weight: (C_out, K, K, K, C_in), kernel axes x, y, z, or (C_out, C_in) for a single cell.
    """
    rows = kernel[None] if kernel.ndim == 2 else kernel
    sides = tuple(shape[1:-1]) or (1, 1, 1)
    if tuple(rows.shape) != (math.prod(sides), shape[-1], shape[0]):
        return None
    # (K^3, C_in, C_out) -> (z, y, x, C_in, C_out) -> (C_out, x, y, z, C_in)
    return rows.unflatten(0, sides).permute(4, 2, 1, 0, 3).reshape(shape)


def _converted(value: Tensor | None, shape: torch.Size) -> Tensor | None:
    """Return a kernel, or a tensor of a norm (one axis or none), in a shape; None if it is missing or does not fit."""
    if value is None or len(shape) > 1:
        return None if value is None else own_kernel(value, shape)
    return value if value.shape == shape else None


def _layers(own: Mapping[str, Tensor]) -> Iterator[dict[str, str]]:
    """Yield the tensors of every convolution and its norm: their names here, and in MinkowskiEngine's Res16UNet."""
    layers = [("stem.conv", "stem.norm", _STEM, "bn0")]
    for i in range(1, 5):
        layers.append((f"down{i}.conv", f"down{i}.norm", f"conv{i}p{2 ** (i - 1)}s2", f"bn{i}"))
    for i in range(4, 8):
        layers.append((f"up{i + 1}.conv", f"up{i + 1}.norm", f"convtr{i}p{2 ** (8 - i)}s2", f"bntr{i}"))
    for block in dict.fromkeys(".".join(name.split(".")[:2]) for name in own if name.startswith("block")):
        layers += [tuple(f"{block}.{name}" for name in names) for names in _OF_BLOCK]  # type: ignore[misc]
    for conv, norm, source, source_norm in layers:
        if f"{conv}.weight" in own:  # not every block has a shortcut with weights
            parts = [name.removeprefix(norm) for name in own if name.startswith(f"{norm}.")]
            yield {f"{conv}.weight": f"{source}{_KERNEL}", **{norm + part: f"{source_norm}.bn{part}" for part in parts}}


def _log(path: Path, taken: Sequence[str], new: Sequence[str], rest: Mapping[str, Tensor]) -> None:
    """Log which layers are taken, which are not, and what else is in the file."""
    _logger.info("%s: %d of %d layers fit", path, len(taken), len(taken) + len(new))
    for line in taken:
        _logger.info("  taken: %s", line)
    for line in new:
        _logger.info("  not taken, new weights: %s", line)
    if rest:
        _logger.info("  %d tensors of the file are not taken: %s", len(rest), _listed(rest))


def _listed(tensors: Mapping[str, Tensor]) -> str:
    return some_of([f"{name} {tuple(value.shape)}" for name, value in tensors.items()], _SHOWN)
