"""The sparse 3D U-Net of the point-cloud models that DINO features are brought into: Res16UNet34C's shape."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.points import PlainSparse, VoxelGrid
from examples.pointcloud.sparse_conv import DownConv, SubmanifoldConv, UpConv, sparse

PLANES = (32, 64, 128, 256, 256, 128, 96, 96)
LAYERS = (2, 3, 4, 6, 2, 2, 2, 2)


class ConvNormReLU(nn.Module):
    """A convolution, batch statistics over all voxels, ReLU."""

    def __init__(self, conv: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = conv, nn.BatchNorm1d(channels)

    def forward(self, x: PlainSparse, *finer: PlainSparse) -> PlainSparse:
        """Return features where the convolution puts them."""
        out: PlainSparse = self.conv(x, *finer)
        return out.with_feats(F.relu(self.norm(out.feats), inplace=True))


class BasicBlock(nn.Module):
    """Two convolutions of 3x3x3 and a shortcut, which is linear where channels change."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.first = ConvNormReLU(SubmanifoldConv(c_in, c_out), c_out)
        self.conv, self.norm = SubmanifoldConv(c_out, c_out), nn.BatchNorm1d(c_out)
        linear = nn.Linear(c_in, c_out, bias=False)
        self.shortcut = (
            nn.Identity() if c_in == c_out else nn.Sequential(linear, nn.BatchNorm1d(c_out))
        )

    def forward(self, x: PlainSparse) -> PlainSparse:
        """Return c_out channels on the same voxels."""
        out: PlainSparse = self.conv(self.first(x))
        return out.with_feats(F.relu(self.norm(out.feats) + self.shortcut(x.feats)))


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
        self.in_channels, self.init_dim, self.planes = in_channels, init_dim, tuple(planes)
        self.stem = ConvNormReLU(SubmanifoldConv(in_channels, init_dim, 5), init_dim)
        skips, width = [init_dim, *planes[:3]], init_dim
        for i, (channels, number) in enumerate(zip(planes, layers, strict=True), start=1):
            if i <= 4:
                self.add_module(f"down{i}", ConvNormReLU(DownConv(width, width), width))
            else:
                self.add_module(f"up{i}", ConvNormReLU(UpConv(width, channels), channels))
                width = channels + skips.pop()
            widths = [width] + [channels] * number
            self.add_module(
                f"block{i}", nn.Sequential(*(BasicBlock(a, b) for a, b in pairwise(widths)))
            )
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
        out, skips = self.stem(x), []
        for i in range(1, 9):
            if i <= 4:
                skips.append(out)
                out = self.get_submodule(f"down{i}")(out)
            else:
                skip = skips.pop()
                out = self.get_submodule(f"up{i}")(out, skip)
                out = out.with_feats(torch.cat((out.feats, skip.feats), dim=1))
            out = self.get_submodule(f"block{i}")(out)
        feats: Tensor = out.feats
        return feats
