"""Do strides and channels of the images' features agree with those of the 3D network, level by level?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck.errors import DinoneckError
from dinoneck.points import PlainSparse, SparseFeatures
from dinoneck.points.keys import encode
from examples.pointcloud.room_batches import Batch
from examples.pointcloud.segmentation import Segmenter

STRIDES = (1, 2, 4, 8, 16)
# stride -> the module whose output is the branch that is injected into, and the one behind it; the
# coarsest level of the encoder has no injection
UP_BRANCHES = {8: "up5", 4: "up6", 2: "up7", 1: "up8"}
BLOCKS = {16: "block4", 8: "block5", 4: "block6", 2: "block7", 1: "block8"}


@dataclass
class LevelReport:
    """One stride: the images' pyramid next to the 3D network.

    Attributes:
        stride: voxels per cell.
        block: module of the network that works at it.
        pyramid_cells: cells of the pyramid.
        network_cells: cells that the block worked on; None if it was not reached.
        same_cells: whether both are the same cells.
        seen: share of the pyramid's cells that an image shows.
        feature_channels: channels of the images' features.
        projected_channels: what the injection's 1x1 projection makes of them; None without one.
        branch_channels: channels of the network's branch that they are added to; None without one.
        hit_rate: share of the network's cells that got a feature; None without an injection.
        not_finite: NaN and infinite values in the pyramid and in the block's input and output.
    """

    stride: int
    block: str
    pyramid_cells: int
    network_cells: int | None
    same_cells: bool
    seen: float
    feature_channels: int
    projected_channels: int | None
    branch_channels: int | None
    hit_rate: float | None
    not_finite: int

    @property
    def channels_agree(self) -> bool:
        """Whether the projection has as many channels as the branch; True where that was not reached."""
        return self.branch_channels in (None, self.projected_channels)

    def problems(self) -> list[str]:
        """Return a sentence for everything that is wrong with the level."""
        found = []
        if self.network_cells is None:
            found.append(f"stride {self.stride}: {self.block} was not reached")
        elif not self.same_cells:
            found.append(
                f"stride {self.stride}: {self.block} works on {self.network_cells} cells that are "
                f"not the {self.pyramid_cells} of the pyramid; voxelise both alike"
            )
        if not self.channels_agree:
            found.append(
                f"stride {self.stride}: the projection has {self.projected_channels} channels and "
                f"the branch before {self.block} has {self.branch_channels}; set the injection's "
                f"levels to {{{self.stride}: {self.branch_channels}}}"
            )
        if self.not_finite:
            found.append(f"stride {self.stride}: {self.not_finite} values are NaN or infinite")
        return found


@dataclass
class NetworkReport:
    """One forward pass.

    Attributes:
        levels: a row per stride, coarse to fine.
        scores: (M, classes) of the voxels; None if the pass failed.
        error: why it failed, or "".
        stats: what fusion and injection did.
    """

    levels: list[LevelReport]
    scores: Tensor | None
    error: str
    stats: dict[str, Any]

    def problems(self) -> list[str]:
        """Return a sentence for everything that is wrong."""
        found = []
        if self.error:
            found.append(f"the forward pass failed: {self.error}")
        for level in self.levels:
            # what lies behind a failure is not reached: one cause, one sentence
            if not self.error or level.network_cells is not None:
                found += level.problems()
        if self.scores is not None:
            count = not_finite(self.scores)
            if count:
                found.append(f"{count} scores are NaN or infinite")
        return found


@dataclass
class _Met:
    """What hooks saw at a module."""

    input: PlainSparse | None = None
    output: PlainSparse | None = None


@torch.no_grad()
def check_network(
    model: Segmenter, batch: Batch, pyramid: Mapping[int, SparseFeatures]
) -> NetworkReport:
    """Run a model once and compare every level of the pyramid with the network's.

    Args:
        model: with an injection, in ``eval`` mode.
        batch: the network's input.
        pyramid: the images' features at all of ``STRIDES``.
    """
    met = {name: _Met() for name in (*UP_BRANCHES.values(), *BLOCKS.values())}
    handles = []
    for name, seen in met.items():
        module = model.unet.get_submodule(name)
        # behind the injection's own hooks: what is seen is what the block gets
        handles.append(module.register_forward_pre_hook(_note_input(seen)))
        handles.append(module.register_forward_hook(_note_output(seen)))
    scores = None
    error = ""
    try:
        scores = model(batch.grid, batch.feats, pyramid)
    except DinoneckError as raised:
        error = str(raised)
    finally:
        for handle in handles:
            handle.remove()
    levels = []
    for stride in sorted(STRIDES, reverse=True):
        levels.append(_level_report(model, stride, pyramid[stride], met))
    return NetworkReport(levels, scores, error, model.stats() if scores is not None else {})


def _note_input(seen: _Met) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.input = inputs[0]

    return hook


def _note_output(seen: _Met) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen.output = output

    return hook


def _level_report(
    model: Segmenter, stride: int, features: SparseFeatures, met: dict[str, _Met]
) -> LevelReport:
    block = met[BLOCKS[stride]]
    branch = met[UP_BRANCHES[stride]].output if stride in UP_BRANCHES else None
    injection = model.injection
    level = None
    if injection is not None and stride in injection.strides:
        level = injection.levels[str(stride)]
    not_finite_values = not_finite(features.feats)
    for sparse in (block.input, block.output):
        if sparse is not None:
            not_finite_values += not_finite(sparse.feats)
    same_cells = False
    if block.input is not None:
        keys = encode(block.input.coords, block.input.batch)
        same_cells = torch.equal(keys.sort().values, features.keys)
    stats = injection.stats if injection is not None else {}
    return LevelReport(
        stride=stride,
        block=BLOCKS[stride],
        pyramid_cells=len(features),
        network_cells=None if block.input is None else len(block.input.coords),
        same_cells=same_cells,
        seen=share(features.valid),
        feature_channels=features.feats.shape[1],
        projected_channels=None if level is None else int(level.proj.weight.shape[0]),
        branch_channels=None if branch is None else branch.feats.shape[1],
        hit_rate=stats[stride].hit_rate if stride in stats else None,
        not_finite=not_finite_values,
    )


def not_finite(values: Tensor) -> int:
    """Return how many values are NaN or infinite."""
    return int((~values.isfinite()).sum())


def share(mask: Tensor) -> float:
    """Return the share of what is true; 0 of nothing."""
    return float(mask.double().mean()) if mask.numel() else 0.0
