"""The sparse 3D U-Net of the point-cloud models that DINO features are brought into: Res16UNet34C's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.points import PlainSparse, VoxelGrid
from examples.pointcloud.sparse_conv import DownConv, SubmanifoldConv, UpConv, sparse

PLANES = (32, 64, 128, 256, 256, 128, 96, 96)
LAYERS = (2, 3, 4, 6, 2, 2, 2, 2)
_DEPTH = 4  # levels down, and as many up
_STEM_SIZE = 5  # cells along each side of the first kernel


class ConvNormReLU(nn.Module):
    """A convolution, batch statistics over all voxels, ReLU."""

    def __init__(self, conv: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: PlainSparse, *finer: PlainSparse) -> PlainSparse:
        """Return features where the convolution puts them."""
        out: PlainSparse = self.conv(x, *finer)
        return out.with_feats(F.relu(self.norm(out.feats), inplace=True))


class BasicBlock(nn.Module):
    """Two convolutions of 3x3x3 and a shortcut, which is linear where channels change."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.first = ConvNormReLU(SubmanifoldConv(c_in, c_out), c_out)
        self.conv = SubmanifoldConv(c_out, c_out)
        self.norm = nn.BatchNorm1d(c_out)
        linear = nn.Linear(c_in, c_out, bias=False)
        self.shortcut = (
            nn.Identity() if c_in == c_out else nn.Sequential(linear, nn.BatchNorm1d(c_out))
        )

    def forward(self, x: PlainSparse) -> PlainSparse:
        """Return c_out channels on the same voxels."""
        out: PlainSparse = self.conv(self.first(x))
        return out.with_feats(F.relu(self.norm(out.feats) + self.shortcut(x.feats)))


def _residual_blocks(c_in: int, c_out: int, number: int) -> nn.Sequential:
    """Return residual blocks in a row, of which the first changes the channels."""
    blocks = nn.Sequential()
    for _ in range(number):
        blocks.append(BasicBlock(c_in, c_out))
        c_in = c_out
    return blocks


class Res16UNet(nn.Module):
    """Four levels down, four up; each level up sees [up, skip], which is where injections go.

    The defaults are Res16UNet34C: 37.85 M parameters. Blocks take
    :class:`dinoneck.points.PlainSparse` with coordinates in base units, so
    ``injection.wrap(net, net.BLOCKS)`` needs no adapter.

    Args:
        in_channels: of the voxels' features.
        planes: channels of block1 ... block8, strides 2, 4, 8, 16, 8, 4, 2, 1.
        layers: residual blocks in each.
        init_dim: channels of the stem, stride 1.

    Examples:
        >>> grid = VoxelGrid.from_coords(torch.randint(-9, 9, (200, 3)))
        >>> net = Res16UNet(3, planes=(4,) * 8, layers=(1,) * 8, init_dim=4).eval()
        >>> net(net.sparse(grid, torch.rand(len(grid), 3))).shape == (len(grid), net.out_channels)
        True

    Reference: shape of Res16UNet34C in SpatioTemporalSegmentation (Choy et al., arXiv 1904.08755),
    as used by ESAM.
    """

    BLOCKS: ClassVar[dict[int, str]] = {8: "block5", 4: "block6", 2: "block7", 1: "block8"}

    def __init__(
        self,
        in_channels: int,
        planes: Sequence[int] = PLANES,
        layers: Sequence[int] = LAYERS,
        init_dim: int = 32,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.init_dim = init_dim
        self.planes = tuple(planes)
        self.stem = ConvNormReLU(SubmanifoldConv(in_channels, init_dim, _STEM_SIZE), init_dim)
        width = init_dim  # channels of what was built last
        skip_widths = []  # channels of strides 1, 2, 4, 8 on the way down
        for level, (channels, number) in enumerate(zip(planes, layers, strict=True), start=1):
            if level <= _DEPTH:
                skip_widths.append(width)
                self.add_module(f"down{level}", ConvNormReLU(DownConv(width, width), width))
                block_width = width
            else:
                self.add_module(f"up{level}", ConvNormReLU(UpConv(width, channels), channels))
                block_width = channels + skip_widths.pop()  # [up, skip]
            self.add_module(f"block{level}", _residual_blocks(block_width, channels, number))
            width = channels

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        return self.planes[7]

    def levels(self) -> dict[int, int]:
        """Return stride -> channels of the branch up, which is injected into: DecoderInjection's ``levels``."""
        return dict(zip(self.BLOCKS, self.planes[4:], strict=True))

    def sparse(self, grid: VoxelGrid, feats: Tensor) -> PlainSparse:
        """Return what the network takes.

        Args:
            grid: voxels, anywhere within reach of their keys; of several samples, which never see
                each other.
            feats: (M, in_channels), rows as in the grid.
        """
        return sparse(grid, feats)

    def forward(self, x: PlainSparse) -> Tensor:
        """Return (M, out_channels) of what ``sparse`` made, rows as in the grid."""
        out = self.stem(x)
        skips = []
        for level in range(1, 2 * _DEPTH + 1):
            if level <= _DEPTH:
                skips.append(out)
                out = self.get_submodule(f"down{level}")(out)
            else:
                skip = skips.pop()
                out = self.get_submodule(f"up{level}")(out, skip)
                out = out.with_feats(torch.cat((out.feats, skip.feats), dim=1))
            out = self.get_submodule(f"block{level}")(out)
        feats: Tensor = out.feats
        return feats
