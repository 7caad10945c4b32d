"""Rooms as a U-Net takes them: voxels of deformed points, features of images whose cameras saw the undeformed ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.backbones.backbone import Backbone
from dinoneck.errors import ConfigError
from dinoneck.points import Links, PointProjector, SparseFeatures, SparsePyramid, VoxelGrid, lift
from examples.pointcloud.features import frame_maps
from examples.pointcloud.rooms import CLASSES, Room, room

# in a backbone's place: what an image shows, patch by patch, mixed into channels with noise
STAND_IN: Literal["labels"] = "labels"
IGNORED = -1  # label of points that are not learned
Inputs = Literal["geometry", "colours", "both"]
INPUT_CHANNELS: dict[Inputs, int] = {"geometry": 4, "colours": 3, "both": 7}
PATCH, STAND_IN_CHANNELS, STAND_IN_NOISE = 16, 32, 1.5


@dataclass(frozen=True)
class Scene:
    """Points of a room, and the images' features of them.

    Attributes:
        points: float64 (N, 3), metres, as the cameras saw them.
        normals: float32 (N, 3).
        colours: uint8 (N, 3).
        labels: int64 (N,).
        maps: float16 (V, C, rows, cols), or None without images.
        links: which view sees which point where, or None without images.
        instances: int64 (N,), the object of every point, negative = none; or None.
    """

    points: Tensor
    normals: Tensor
    colours: Tensor
    labels: Tensor
    maps: Tensor | None = None
    links: Links | None = None
    instances: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Rooms to name at once.

    Attributes:
        grid: the voxels of all points.
        feats: float32 (M, C), of every voxel.
        labels: int64 (N,), of every point; ``grid.inverse`` leads from points to voxels.
        pyramid: stride -> float32 features of the images, or None.
    """

    grid: VoxelGrid
    feats: Tensor
    labels: Tensor
    pyramid: dict[int, SparseFeatures] | None

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        pyramid = None
        if self.pyramid is not None:
            pyramid = {stride: level.to(device) for stride, level in self.pyramid.items()}
        tensors = {name: getattr(self, name).to(device) for name in ("feats", "labels")}
        return Batch(self.grid.to(device), pyramid=pyramid, **tensors)


@dataclass(frozen=True)
class Voxels:
    """How points become a network's input.

    Attributes:
        size: metres.
        inputs: what a voxel's features hold: ``geometry`` is 1 and the normal, ``colours`` the
            colour from -1 to 1 (what Mask3D's and ESAM's networks take), ``both`` all of it.
        strides: levels of the images' pyramid; empty = no images.
    """

    size: float
    inputs: Inputs = "geometry"
    strides: tuple[int, ...] = ()

    @property
    def channels(self) -> int:
        """Of a voxel's features."""
        return INPUT_CHANNELS[self.inputs]


def scene(
    seed: int,
    *,
    views: int,
    size: tuple[int, int],
    points: int,
    backbone: Backbone | Literal["labels"] | None = None,
) -> Scene:
    """Draw a room and, with a backbone, run it over its images.

    Args:
        seed: of the room.
        views: images.
        size: of the images, in pixels.
        points: to draw.
        backbone: of the images' features; ``"labels"`` = a stand-in for one that is trained:
            :func:`label_maps`; None = without images.
    """
    made = room(seed, views, size, points)
    if backbone is None:
        return Scene(made.points, made.normals, made.colours, made.labels)
    frames = made.frames
    # maps cover the whole images, whatever size the ViT saw them in: links need no resize
    maps = (
        label_maps(made, seed)
        if isinstance(backbone, str)
        else frame_maps(backbone, frames)[0].half().cpu()
    )
    links = PointProjector()(made.points, frames.cameras, frames.depth)
    return Scene(made.points, made.normals, made.colours, made.labels, maps, links)


def label_maps(made: Room, seed: int) -> Tensor:
    """Features that a linear layer can read, as those of a trained backbone are and those of a random one are not.

    Returns:
        float16 (V, C, rows, cols): the labels' shares of every patch, mixed into channels that
            stand for the same in
        all rooms, and as much noise again as makes a single patch unsure.
    """
    height, width = made.frames.cameras.size
    grid = (math.ceil(height / PATCH), math.ceil(width / PATCH))
    shares = F.adaptive_avg_pool2d(
        F.one_hot(made.seen_labels, len(CLASSES)).movedim(-1, 1).float(), grid
    )
    mixing = torch.randn(
        STAND_IN_CHANNELS, len(CLASSES), generator=torch.Generator().manual_seed(0)
    )
    maps = torch.einsum("ck,vkyx->vcyx", mixing, shares)
    noise = torch.randn(maps.shape, generator=torch.Generator().manual_seed(seed))
    return (maps + STAND_IN_NOISE * noise).half()


def batch_of(
    scenes: Sequence[Scene], voxels: Voxels, generator: torch.Generator | None = None
) -> Batch:
    """Make voxels of scenes, each turned, mirrored, scaled and shifted its own way if there is a generator.

    Cameras belong to the points as they were measured: who sees what was found before, on these,
    and deforming moves only the voxels that the images' features are lifted to.

    Raises:
        ConfigError: if images are asked for and a scene has none.
    """
    moved, turned = [], []
    for one in scenes:
        turn, scale, shift = _drawn(generator) if generator else _still()
        moved.append(one.points @ turn.mT * scale + shift)
        turned.append(one.normals @ turn.mT.float())
    number = torch.repeat_interleave(
        torch.arange(len(scenes)), torch.tensor([len(one.points) for one in scenes])
    )
    grid = VoxelGrid.from_points(torch.cat(moved), voxels.size, batch=number)
    given = []
    if voxels.inputs != "colours":
        given += [torch.ones(len(number), 1), torch.cat(turned)]
    if voxels.inputs != "geometry":
        given.append(torch.cat([one.colours for one in scenes]).float() / 127.5 - 1)
    sums = torch.zeros(len(grid), voxels.channels).index_add_(0, grid.inverse, torch.cat(given, 1))
    feats = sums / grid.inverse.bincount(minlength=len(grid))[:, None]
    labels = torch.cat([one.labels for one in scenes])
    if not voxels.strides:
        return Batch(grid, feats, labels, None)
    # per scene: (N, C) features of its points, and which of them an image shows
    parts = [
        lift(one.maps, one.links)
        for one in scenes
        if one.maps is not None and one.links is not None
    ]
    seen = torch.cat([valid for _, valid in parts])
    if len(seen) < len(number):
        raise ConfigError(
            "this variant reads images and a scene has no maps; give scene() a backbone"
        )
    shown = torch.cat([own for own, _ in parts]).float()[seen]
    # the mean over a voxel's seen points: (M, C)
    voxel = grid.inverse[seen]
    count = voxel.bincount(minlength=len(grid))
    means = (
        shown.new_zeros(len(grid), shown.shape[1]).index_add_(0, voxel, shown)
        / count.clamp_min(1)[:, None]
    )
    lifted = SparseFeatures(grid.coords, grid.batch, means, count > 0)
    return Batch(grid, feats, labels, SparsePyramid(sorted({1, *voxels.strides}))(lifted))


def _still() -> tuple[Tensor, float, Tensor]:
    return torch.eye(3, dtype=torch.float64), 1.0, torch.zeros(3, dtype=torch.float64)


def _drawn(generator: torch.Generator) -> tuple[Tensor, float, Tensor]:
    """A quarter turn about z, mirrored half the time; a factor; a shift in metres."""
    quarter, mirror = torch.randint(4, (2,), generator=generator).tolist()
    cos, sin = round(math.cos(quarter * math.pi / 2)), round(math.sin(quarter * math.pi / 2))
    turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
    turn[:, 0] *= 1 - 2 * (mirror % 2)
    numbers = torch.rand(4, dtype=torch.float64, generator=generator)
    return turn, 0.9 + 0.2 * float(numbers[0]), numbers[1:]
