"""Rooms as a U-Net takes them: voxels of deformed points, features of images whose cameras saw the undeformed ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
# of the stand-in: pixels of a patch, channels, and deviation of the noise
PATCH = 16
STAND_IN_CHANNELS = 32
STAND_IN_NOISE = 1.5


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
        return Batch(
            grid=self.grid.to(device),
            feats=self.feats.to(device),
            labels=self.labels.to(device),
            pyramid=pyramid,
        )


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
    without_images = Scene(
        points=made.points, normals=made.normals, colours=made.colours, labels=made.labels
    )
    if backbone is None:
        return without_images
    frames = made.frames
    if isinstance(backbone, str):
        maps = label_maps(made, seed)
    else:
        maps = frame_maps(backbone, frames)[0].half().cpu()
    # maps cover the whole images, whatever size the ViT saw them in: links need no resize
    links = PointProjector()(made.points, frames.cameras, frames.depth)
    return replace(without_images, maps=maps, links=links)


def label_maps(made: Room, seed: int) -> Tensor:
    """Features that a linear layer can read, as those of a trained backbone are and those of a random one are not.

    Returns:
        float16 (V, C, rows, cols): the labels' shares of every patch, mixed into channels that
            mean the same in all rooms, and as much noise again as makes a single patch unsure.
    """
    height, width = made.frames.cameras.size
    grid = (math.ceil(height / PATCH), math.ceil(width / PATCH))
    one_hot = F.one_hot(made.seen_labels, len(CLASSES)).movedim(-1, 1).float()  # (V, classes, H, W)
    shares = F.adaptive_avg_pool2d(one_hot, grid)
    of_all_rooms = torch.Generator().manual_seed(0)
    mixing = torch.randn(STAND_IN_CHANNELS, len(CLASSES), generator=of_all_rooms)
    maps = torch.einsum("ck,vkyx->vcyx", mixing, shares)
    of_this_room = torch.Generator().manual_seed(seed)
    noise = torch.randn(maps.shape, generator=of_this_room)
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
    points = []
    normals = []
    for drawn in scenes:
        turn, scale, shift = _draw_deformation(generator) if generator else _no_deformation()
        points.append(drawn.points @ turn.mT * scale + shift)
        normals.append(drawn.normals @ turn.mT.float())
    sizes = torch.tensor([len(scene_points) for scene_points in points])
    scene_of_point = torch.repeat_interleave(torch.arange(len(scenes)), sizes)
    grid = VoxelGrid.from_points(torch.cat(points), voxels.size, batch=scene_of_point)

    # the mean over the points of each voxel
    colours = torch.cat([drawn.colours for drawn in scenes])
    point_feats = _point_feats(torch.cat(normals), colours, voxels.inputs)
    sums = torch.zeros(len(grid), voxels.channels).index_add_(0, grid.inverse, point_feats)
    points_in_voxel = grid.inverse.bincount(minlength=len(grid))
    feats = sums / points_in_voxel[:, None]

    labels = torch.cat([drawn.labels for drawn in scenes])
    pyramid = None
    if voxels.strides:
        image_feats, is_seen = _image_feats(scenes)
        lifted = _mean_of_seen(image_feats, is_seen, grid)
        pyramid = SparsePyramid(sorted({1, *voxels.strides}))(lifted)
    return Batch(grid, feats, labels, pyramid)


def _point_feats(normals: Tensor, colours: Tensor, inputs: Inputs) -> Tensor:
    """Return what the 3D network is given of each point, float32 (N, C)."""
    shape = torch.cat((torch.ones(len(normals), 1), normals), dim=1)
    shades = colours.float() / 127.5 - 1  # 0 ... 255 to -1 ... 1
    if inputs == "geometry":
        return shape
    if inputs == "colours":
        return shades
    return torch.cat((shape, shades), dim=1)


def _image_feats(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Return the images' features (N, C) of all scenes' points, and which points an image shows, bool (N,).

    Raises:
        ConfigError: if a scene has no images.
    """
    feats = []
    is_seen = []
    for drawn in scenes:
        if drawn.maps is None or drawn.links is None:
            raise ConfigError(
                "this variant reads images and a scene has no maps; give scene() a backbone"
            )
        scene_feats, scene_is_seen = lift(drawn.maps, drawn.links)
        feats.append(scene_feats)
        is_seen.append(scene_is_seen)
    return torch.cat(feats), torch.cat(is_seen)


def _mean_of_seen(feats: Tensor, is_seen: Tensor, grid: VoxelGrid) -> SparseFeatures:
    """Return the mean over each voxel's seen points, float32; voxels without one are not valid."""
    seen_feats = feats.float()[is_seen]
    voxel = grid.inverse[is_seen]
    count = voxel.bincount(minlength=len(grid))
    sums = seen_feats.new_zeros(len(grid), seen_feats.shape[1]).index_add_(0, voxel, seen_feats)
    means = sums / count.clamp_min(1)[:, None]
    return SparseFeatures(grid.coords, grid.batch, means, count > 0)


def _no_deformation() -> tuple[Tensor, float, Tensor]:
    """No turn, the factor 1, no shift."""
    return torch.eye(3, dtype=torch.float64), 1.0, torch.zeros(3, dtype=torch.float64)


def _draw_deformation(generator: torch.Generator) -> tuple[Tensor, float, Tensor]:
    """A quarter turn about z, mirrored half the time; a factor; a shift in metres."""
    quarter, mirror = torch.randint(4, (2,), generator=generator).tolist()
    cos = round(math.cos(quarter * math.pi / 2))
    sin = round(math.sin(quarter * math.pi / 2))
    turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
    if mirror % 2:
        turn[:, 0] *= -1
    numbers = torch.rand(4, dtype=torch.float64, generator=generator)
    scale = 0.9 + 0.2 * float(numbers[0])
    shift = numbers[1:]
    return turn, scale, shift
