"""A small 3D U-Net on plain tensors that knows nothing of injections, the same edited by hand, and pyramids for it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinoneck.points import DecoderInjection, PlainSparse, SparseFeatures, VoxelGrid

C_DINO = 6  # channels of the features that are injected
# stride of a level -> its channels in the decoder, and those of its skip connection
UP = {2: 10, 1: 9}
SKIP = {2: 7, 1: 5}
# stride of a level -> the block that an injection hooks
NAMES = {2: "block2", 1: "block1"}
Checkpointing = Literal["reentrant", "non-reentrant"] | None


class Block(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(c_in, c_out)
        self.norm = nn.LayerNorm(c_out)

    def forward(self, x: PlainSparse) -> PlainSparse:
        return x.with_feats(torch.relu(self.norm(self.linear(x.feats))))


def coarsened(x: PlainSparse, stride: int) -> tuple[PlainSparse, Tensor]:
    """Return the cells of ``stride`` with the mean features of their voxels, and the cell of every voxel (M,)."""
    coords = x.coords.div(stride, rounding_mode="floor") * stride
    rows = torch.cat([x.batch[:, None], coords], dim=1)
    cells, cell_of_voxel = rows.unique(dim=0, return_inverse=True)
    sums = x.feats.new_zeros(len(cells), x.feats.shape[1])
    sums = sums.index_add(0, cell_of_voxel, x.feats)
    means = sums / cell_of_voxel.bincount()[:, None]
    return PlainSparse(cells[:, 1:], cells[:, 0], means), cell_of_voxel


class PlainUNet(nn.Module):
    """A U-Net whose decoder calls ``edit(up, skip, stride)`` before each concatenation.

    It changes nothing; tests replace it by an injection that is written by hand.
    """

    def __init__(self, checkpointing: Checkpointing = None) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.edit = lambda up, skip, stride: (up, skip.feats)
        self.enc1 = Block(3, SKIP[1])
        self.enc2 = Block(SKIP[1], SKIP[2])
        self.enc4 = Block(SKIP[2], 12)
        self.up2 = nn.Linear(12, UP[2])
        self.block2 = Block(UP[2] + SKIP[2], 11)
        self.up1 = nn.Linear(11, UP[1])
        self.block1 = Block(UP[1] + SKIP[1], 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: PlainSparse) -> Tensor:
        fine = self.enc1(x)
        middle, cell_of_fine = coarsened(fine, 2)
        middle = self.enc2(middle)
        coarse, cell_of_middle = coarsened(middle, 4)
        coarse = self.enc4(coarse)
        up = self.up2(coarse.feats)[cell_of_middle]
        middle = self.run(self.block2, up, middle, 2)
        up = self.up1(middle.feats)[cell_of_fine]
        fine = self.run(self.block1, up, fine, 1)
        scores: Tensor = self.head(fine.feats)
        return scores

    def run(self, block: nn.Module, up: Tensor, skip: PlainSparse, stride: int) -> PlainSparse:
        x = skip.with_feats(torch.cat(self.edit(up, skip, stride), dim=1))
        if self.checkpointing == "reentrant":  # it follows tensors among the arguments only

            def block_of_feats(feats: Tensor) -> Tensor:
                done: Tensor = block(x.with_feats(feats)).feats
                return done

            return x.with_feats(checkpoint(block_of_feats, x.feats, use_reentrant=True))
        if self.checkpointing == "non-reentrant":
            return checkpoint(block, x, use_reentrant=False)
        return block(x)


def cloud(seed: int = 0, voxels: int = 60) -> PlainSparse:
    """Voxels of two samples, negative coordinates among them, in no order."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(-6, 7, (2 * voxels, 4), generator=generator)
    rows[:, 0] = rows[:, 0] > 0  # the sample
    rows = rows.unique(dim=0)
    rows = rows[torch.randperm(len(rows), generator=generator)]
    feats = torch.randn(len(rows), 3, generator=generator)
    return PlainSparse(rows[:, 1:], rows[:, 0], feats)


def pyramid_of(
    x: PlainSparse,
    seed: int = 0,
    strides: tuple[int, ...] = (1, 2, 4),
    channels: int = C_DINO,
    seen: float = 0.6,
) -> dict[int, SparseFeatures]:
    """Random features on the cells of x; a share of them seen."""
    generator = torch.Generator().manual_seed(seed)
    pyramid = {}
    for stride in strides:
        coarse, _ = coarsened(x, stride)
        cells = VoxelGrid.from_coords(coarse.coords, coarse.batch)
        valid = torch.rand(len(cells.coords), generator=generator) < seen
        feats = torch.randn(len(valid), channels, generator=generator) * valid[:, None]
        pyramid[stride] = SparseFeatures(cells.coords, cells.batch, feats, valid, stride)
    return pyramid


def injection_of(target: Literal["up", "skip"] = "up", **options: object) -> DecoderInjection:
    levels = UP if target == "up" else SKIP
    return DecoderInjection(C_DINO, levels, target=target, **{"zero_init": False, **options})  # type: ignore[arg-type]
