"""A small 3D U-Net on plain tensors that knows nothing of injections, the same edited by hand, and pyramids for it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinoneck.points import DecoderInjection, PlainSparse, SparseFeatures, VoxelGrid

C_DINO = 6
UP, SKIP = {2: 10, 1: 9}, {2: 7, 1: 5}
NAMES = {2: "block2", 1: "block1"}
Checkpointing = Literal["reentrant", "non-reentrant"] | None


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(c_in, c_out), nn.LayerNorm(c_out)

    def forward(self, x: PlainSparse) -> PlainSparse:
        return x.with_feats(torch.relu(self.norm(self.linear(x.feats))))


def halved(x: PlainSparse, stride: int) -> tuple[PlainSparse, Tensor]:
    """The cells of ``stride`` that x's voxels lie in, their mean features, and the cell of every voxel."""
    cells = torch.cat(
        (x.batch[:, None], x.coords.div(stride, rounding_mode="floor") * stride), dim=1
    )
    unique, cell = cells.unique(dim=0, return_inverse=True)
    sums = x.feats.new_zeros(len(unique), x.feats.shape[1]).index_add(0, cell, x.feats)
    return PlainSparse(unique[:, 1:], unique[:, 0], sums / cell.bincount()[:, None]), cell


class PlainUNet(nn.Module):
    """Forward as published; ``edit(up, skip, stride)`` is what someone would write who edits the network."""

    def __init__(self, checkpointing: Checkpointing = None) -> None:
        super().__init__()
        self.checkpointing, self.edit = checkpointing, lambda up, skip, stride: (up, skip.feats)
        self.enc1, self.enc2, self.enc4 = (
            Block(3, SKIP[1]),
            Block(SKIP[1], SKIP[2]),
            Block(SKIP[2], 12),
        )
        self.up2, self.up1 = nn.Linear(12, UP[2]), nn.Linear(11, UP[1])
        self.block2, self.block1 = Block(UP[2] + SKIP[2], 11), Block(UP[1] + SKIP[1], 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: PlainSparse) -> Tensor:
        fine = self.enc1(x)
        middle, cell2 = halved(fine, 2)
        middle = self.enc2(middle)
        coarse, cell4 = halved(middle, 4)
        middle = self.run(self.block2, self.up2(self.enc4(coarse).feats)[cell4], middle, 2)
        fine = self.run(self.block1, self.up1(middle.feats)[cell2], fine, 1)
        scores: Tensor = self.head(fine.feats)
        return scores

    def run(self, block: nn.Module, up: Tensor, skip: PlainSparse, stride: int) -> PlainSparse:
        x = skip.with_feats(torch.cat(self.edit(up, skip, stride), dim=1))
        if self.checkpointing == "reentrant":  # it follows tensors only
            return x.with_feats(
                checkpoint(
                    lambda feats: block(x.with_feats(feats)).feats, x.feats, use_reentrant=True
                )
            )
        if self.checkpointing == "non-reentrant":
            return checkpoint(block, x, use_reentrant=False)
        return block(x)


def cloud(seed: int = 0, voxels: int = 60) -> PlainSparse:
    """Voxels of two samples, negative coordinates among them, in no order."""
    made = torch.Generator().manual_seed(seed)
    places = torch.randint(-6, 7, (2 * voxels, 4), generator=made)
    places[:, 0] = places[:, 0] > 0
    places = places.unique(dim=0)
    places = places[torch.randperm(len(places), generator=made)]
    return PlainSparse(places[:, 1:], places[:, 0], torch.randn(len(places), 3, generator=made))


def pyramid_of(
    x: PlainSparse,
    seed: int = 0,
    strides: tuple[int, ...] = (1, 2, 4),
    channels: int = C_DINO,
    seen: float = 0.6,
) -> dict[int, SparseFeatures]:
    """Random features on the cells of x; a share of them seen."""
    made = torch.Generator().manual_seed(seed)
    pyramid = {}
    for stride in strides:
        cells = VoxelGrid.from_coords(halved(x, stride)[0].coords, halved(x, stride)[0].batch)
        valid = torch.rand(len(cells.coords), generator=made) < seen
        feats = torch.randn(len(valid), channels, generator=made) * valid[:, None]
        pyramid[stride] = SparseFeatures(cells.coords, cells.batch, feats, valid, stride)
    return pyramid


def injection_of(target: Literal["up", "skip"] = "up", **options: object) -> DecoderInjection:
    levels = UP if target == "up" else SKIP
    return DecoderInjection(C_DINO, levels, target=target, **{"zero_init": False, **options})  # type: ignore[arg-type]
