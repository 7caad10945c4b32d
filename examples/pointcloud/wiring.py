"""DINO features in a 3D U-Net with plain modules and a plain loop: projection, lift, sparse pyramid, injection.

``python -m examples.pointcloud.wiring`` takes some seconds on a CPU and downloads nothing: a
furnished room is drawn with exact depth, and the backbone is the built-in tiny one with seeded
random weights. In the shapes, V is the number of images, N of points, L of links (a point in an
image), M of voxels; C = 64 are the channels of the backbone. The network knows the shape of the
room only: flat posters, boards and rugs are visible in the images alone. Begin with
``lift_images``.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck import TokenGrid, load_backbone
from dinoneck.points import (
    DecoderInjection,
    Links,
    PlainSparse,
    PointProjector,
    SparseFeatures,
    SparsePyramid,
    VoxelGrid,
    lift,
)
from examples.pointcloud.rooms import CLASSES, Room, room

IMAGE_SIZE = (192, 256)  # (height, width) in pixels
VIEWS = 6
POINTS = 6000
VOXEL_M = 0.1
STEPS = 40
LEARNING_RATE = 5e-3


def lift_images(scene: Room, grid: VoxelGrid) -> tuple[Tensor, Links, SparseFeatures]:
    """Return the maps of the images, which point is seen where, and the features of the voxels."""
    backbone = load_backbone("dinoneck_tiny")  # frozen
    images = backbone.preprocess(scene.frames.images)  # uint8 (V, 3, H, W) -> normalised floats
    [maps] = backbone(images).maps()  # tokens of the last block as maps: (V, C, H / 16, W / 16)
    # points (N, 3) in metres -> links.point (L,), links.view (L,), links.xy (L, 2): which point, in
    # which image, at which pixel. A point behind furniture has no link: its distance is not the
    # depth (V, H, W) at its pixel
    links = PointProjector()(scene.points, scene.frames.cameras, scene.frames.depth)
    # bilinear between cells, the mean over the views of a point, then over the points of a voxel:
    # (M, C); valid (M,) is False, and the features are 0, where no camera looked
    return maps, links, lift(maps, links, grid)


class Block(nn.Module):
    """Linear layer, norm and ReLU on every voxel: (M, c_in) -> (M, c_out)."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(c_in, c_out)
        self.norm = nn.LayerNorm(c_out)

    def forward(self, x: PlainSparse) -> PlainSparse:
        """Return the same voxels with new features."""
        return x.with_feats(F.relu(self.norm(self.linear(x.feats))))


class UNet(nn.Module):
    """A small 3D U-Net that knows nothing of images: strides 1, 2 and 4 and back."""

    def __init__(self, c_in: int, classes: int) -> None:
        super().__init__()
        self.enc1 = Block(c_in, 16)
        self.enc2 = Block(16, 32)
        self.enc4 = Block(32, 64)
        self.up2 = nn.Linear(64, 48)
        self.up1 = nn.Linear(32, 24)
        self.dec2 = Block(48 + 32, 32)
        self.dec1 = Block(24 + 16, 32)
        self.head = nn.Linear(32, classes)

    def forward(self, x: PlainSparse) -> Tensor:
        """Return logits: (M, c_in) -> (M, classes)."""
        fine = self.enc1(x)  # (M, 16)
        middle, cell2 = coarser(fine, 2)  # (M2, 16) and the cell of every voxel (M,)
        middle = self.enc2(middle)  # (M2, 32)
        coarse, cell4 = coarser(middle, 4)  # (M4, 32), (M2,)
        # back up: the coarse cell's features for each of its voxels, next to the skip connection
        up = self.up2(self.enc4(coarse).feats)[cell4]  # (M4, 64) -> (M2, 48)
        # (M2, 48 + 32) -> (M2, 32)
        middle = self.dec2(middle.with_feats(torch.cat((up, middle.feats), dim=1)))
        up = self.up1(middle.feats)[cell2]  # (M2, 32) -> (M, 24)
        # (M, 24 + 16) -> (M, 32)
        fine = self.dec1(fine.with_feats(torch.cat((up, fine.feats), dim=1)))
        return self.head(fine.feats)


def coarser(x: PlainSparse, stride: int) -> tuple[PlainSparse, Tensor]:
    """Return cells of ``stride`` voxels with the mean of their features, and the cell of every voxel."""
    first_voxels = x.coords // stride * stride  # of the cell of every voxel, (M, 3)
    coords, cell = first_voxels.unique(dim=0, return_inverse=True)  # (M', 3), (M,)
    sums = x.feats.new_zeros(len(coords), x.feats.shape[1]).index_add(0, cell, x.feats)  # (M', c)
    counts = cell.bincount()  # (M',)
    batch = coords.new_zeros(len(coords))  # one sample
    return PlainSparse(coords, batch, sums / counts[:, None]), cell


def train(
    model: nn.Module, labels: Tensor, x: PlainSparse, **images: dict[int, SparseFeatures]
) -> list[float]:
    """Fit the model to labels (M,); ``pyramid=`` holds what images show, for a model that takes it.

    Return the loss of every step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    history = []
    for _ in range(STEPS):
        loss = F.cross_entropy(model(x, **images), labels)  # (M, classes), (M,) -> ()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    return history


def main() -> dict[str, float]:
    """Draw a room, lift features, train the U-Net without and with them; print and return the numbers."""
    scene = room(seed=1, views=VIEWS, size=IMAGE_SIZE, points=POINTS)
    grid = VoxelGrid.from_points(scene.points, size=VOXEL_M)
    # one point of every voxel, (M,); grid.inverse (N,) is the voxel of every point
    point = torch.zeros(len(grid), dtype=torch.int64).scatter_(
        0, grid.inverse, torch.arange(len(scene.points))
    )
    labels = scene.labels[point]  # (M,)
    # (M, 6): position and normal
    geometry = torch.cat((grid.centers().float(), scene.normals[point]), dim=1)
    # coordinates, sample of the batch, features
    voxels = PlainSparse(grid.coords, grid.batch, geometry)

    maps, links, features = lift_images(scene, grid)
    print(
        f"{len(scene.points)} points, {len(grid)} voxels; {links.coverage:.0%} of the points are "
        "in an image"
    )
    # the check to do first on data of your own: a point in one image has the features of its pixel
    # there
    per_point, _ = lift(maps, links)  # (N, C)
    # (V, L, C): every pixel in every image
    at_pixels = TokenGrid(16).sample(maps, links.xy.float(), IMAGE_SIZE)
    at_pixels = at_pixels[links.view, torch.arange(len(links))]  # (L, C): in its own
    once = links.n_views[links.point] == 1  # (L,)
    difference = (per_point[links.point] - at_pixels)[once].abs().max()
    print(
        f"{int(once.sum())} points are in one: largest difference to the features of their pixel "
        f"{difference:.1g}"
    )

    # {1: (M, C), 2: (M2, C)} for the decoder
    pyramid = SparsePyramid(strides=(1, 2), reduce="mean")(features)
    torch.manual_seed(0)
    plain = UNet(geometry.shape[1], len(CLASSES))
    unet = copy.deepcopy(plain)
    # where a camera saw the voxel: up + W norm(feature), W = 0 at the start. dec2 and dec1 are
    # given (up, skip) as one tensor; the levels hold the channels of up
    injection = DecoderInjection(maps.shape[1], levels={2: 48, 1: 24})
    # one module, called with pyramid=; UNet's code is unchanged
    model = injection.wrap(unet, {2: "dec2", 1: "dec1"})
    same = torch.equal(model(voxels, pyramid=pyramid), plain(voxels))
    print(f"before training, with the injection: {'the same logits' if same else 'other logits'}")

    without = train(plain, labels, voxels)
    with_images = train(model, labels, voxels, pyramid=pyramid)
    print(f"training loss without images: {without[0]:.2f} -> {without[-1]:.2f}")
    print(f"training loss with images:    {with_images[0]:.2f} -> {with_images[-1]:.2f}")
    for stride, level in injection.stats.items():
        print(
            f"stride {stride}: {level.hit_rate:.0%} of {level.voxels} cells seen; added / own "
            f"norm {level.ratio:.2f}"
        )
    return {
        "difference": float(difference),
        "same": same,
        "without": without[-1],
        "with_images": with_images[-1],
    }


if __name__ == "__main__":
    main()
