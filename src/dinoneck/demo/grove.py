"""Generated views of a grove from above, whose trees are counted: few large trees or many small ones.

Meant for demonstrations without downloads. The number of trees and the share of the image that they
cover are drawn independently of each other. A mean over the image, such as its colour, therefore
says little about the number; how the cover is arranged says it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinoneck.atomic import write_text
from dinoneck.data.cells import csv_text
from dinoneck.demo.generated_files import make_folders, write_image
from dinoneck.demo.noise import smooth_noise

IMAGES_PER_SITE = 4
"""Images of one site, which share their light and colours, and belong in one fold."""
_TREES = (5, 50)
"""The fewest and the most trees of an image."""
_COVER = (0.08, 0.32)
"""The least and the largest share of an image under trees."""
_SPREAD = 0.12  # of the logarithm of the radius, within an image
_TRIES = 400  # to find room for a tree; one without room is left out
_LEAST_DISTANCE = 0.95  # of two centres, in sums of their radii
_RELIEF = (0.04, 0.14)
"""The least and the largest relief of the ground of an image, as a share of its colour."""
_GROUND = np.array((132.0, 140.0, 78.0))
_CROWN = np.array((46.0, 92.0, 44.0))
_SHADOW = 0.75  # of the light on the ground
_SHADOW_OFFSET = 0.3  # of the radius, down and to the right
_LIGHT_CELL_PX = 16

_Array = np.ndarray[Any, Any]
_Size = tuple[int, int]


class GroveSample(NamedTuple):
    """A generated image, and what is known about it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        classes: (H, W) uint8: 0 ground, 1 tree.
        trees: how many trees have their centre in the image.
        site: images of one site look alike.
    """

    image: _Array
    classes: _Array
    trees: int
    site: str

    @property
    def cover(self) -> float:
        """The share of the image under trees."""
        return float((self.classes > 0).mean())


class Grove:
    """Generator of images of groves; sample i of a seed is the same on every machine and in every order.

    Args:
        seed: which grove.
        size: (height, width) in pixels, 64 or more each.

    Examples:
        >>> sample = Grove(seed=0).sample(3)
        >>> sample.image.shape, sample.trees, round(sample.cover, 2)
        ((192, 320, 3), 21, 0.3)
    """

    def __init__(self, seed: int = 0, size: _Size = (192, 320)) -> None:
        self.seed = seed
        self.size = size

    def sample(self, index: int) -> GroveSample:
        """Draw sample ``index``."""
        site = index // IMAGES_PER_SITE
        site_random = np.random.RandomState([self.seed, 1, site])
        hue = site_random.normal(0.0, 8.0, 3)
        exposure = np.exp(site_random.normal(0.0, 0.12))

        random = np.random.RandomState([self.seed, 2, index])
        centres, radii = _place_trees(random, self.size)
        pixels = _ground(random, self.size) + hue
        for centre, radius in zip(centres, radii, strict=True):
            shadow = _Disc.around(centre + _SHADOW_OFFSET * radius, radius, self.size)
            pixels[shadow.window][shadow.is_inside] *= _SHADOW
        classes = np.zeros(self.size, np.uint8)
        for centre, radius in zip(centres, radii, strict=True):
            disc = _Disc.around(centre, radius, self.size)
            crown = _crown(random, disc)
            pixels[disc.window][disc.is_inside] = crown[disc.is_inside]
            classes[disc.window][disc.is_inside] = 1

        grid = (self.size[0] // _LIGHT_CELL_PX, self.size[1] // _LIGHT_CELL_PX)
        light = 1.0 + 0.1 * smooth_noise(random, grid, passes=2, size=self.size)[..., None]
        noise = random.normal(0.0, 4.0, pixels.shape)
        image = np.clip(np.rint(pixels * light * exposure + noise), 0, 255).astype(np.uint8)
        return GroveSample(
            image=image, classes=classes, trees=len(radii), site=f"site {self.seed}.{site}"
        )

    def write(self, folder: str | Path, images: int) -> None:
        """Write ``table.csv``, ``images/*.jpg`` and class masks ``masks/*.png``.

        The table has one row per image: image, mask (paths below the folder), site, trees and cover
        (the share of the image under trees). The masks hold 0 ground, 1 tree.

        Args:
            folder: made if missing; files of the same names are replaced.
            images: how many, samples 0, 1, 2, ... of this grove.
        """
        root = Path(folder)
        make_folders(root)
        rows = []
        for i in range(images):
            sample = self.sample(i)
            image, mask = write_image(root, i, sample.image, sample.classes)
            rows.append([image, mask, sample.site, str(sample.trees), f"{sample.cover:.4f}"])
        write_text(root / "table.csv", csv_text(("image", "mask", "site", "trees", "cover"), rows))


def _place_trees(random: np.random.RandomState, size: _Size) -> tuple[_Array, _Array]:
    """Draw trees that leave each other room: centres (n, 2) as (x, y), and radii (n,), in pixels."""
    height, width = size
    number = random.randint(_TREES[0], _TREES[1] + 1)
    cover = random.uniform(*_COVER)
    mean_radius = np.sqrt(cover * height * width / (np.pi * number))
    radii = np.sort(mean_radius * np.exp(random.normal(0.0, _SPREAD, number)))[::-1]
    centres = np.empty((0, 2))
    placed_radii = np.empty(0)
    for radius in radii:
        candidates = random.uniform((0.0, 0.0), (width, height), (_TRIES, 2))
        distances = np.linalg.norm(candidates[:, None] - centres, axis=2)
        has_room = (distances > _LEAST_DISTANCE * (placed_radii + radius)).all(axis=1)
        if has_room.any():
            centres = np.concatenate([centres, candidates[[has_room.argmax()]]])
            placed_radii = np.append(placed_radii, radius)
    return centres, placed_radii


def _ground(random: np.random.RandomState, size: _Size) -> _Array:
    """Grass (H, W, 3) with patches of three sizes, more or less distinct."""
    relief = np.zeros(size)
    for patch_px in (64, 16, 4):
        grid = (size[0] // patch_px, size[1] // patch_px)
        relief += smooth_noise(random, grid, passes=1, size=size)
    strength = random.uniform(*_RELIEF)
    return _GROUND * (1.0 + strength * relief[..., None])


class _Disc(NamedTuple):
    """A disc in an image.

    Attributes:
        window: the rows and the columns around it.
        offset: (2, h, w), from the centre to each pixel of the window, x and y in radii.
        distance: (h, w), of each pixel of the window from the centre, in radii.
    """

    window: tuple[slice, slice]
    offset: _Array
    distance: _Array

    @classmethod
    def around(cls, centre: _Array, radius: float, size: _Size) -> _Disc:
        """Return the disc around a centre (x, y) in an image of this size."""
        height, width = size
        left, top = np.maximum(np.floor(centre - radius), 0).astype(int)
        right, bottom = np.minimum(np.ceil(centre + radius) + 1, (width, height)).astype(int)
        window = (slice(top, bottom), slice(left, right))
        y, x = np.mgrid[window]
        offset = np.stack([x - centre[0], y - centre[1]]) / radius
        return cls(window, offset, np.linalg.norm(offset, axis=0))

    @property
    def is_inside(self) -> _Array:
        """(h, w), whether a pixel of the window is in the disc."""
        is_inside: _Array = self.distance < 1.0
        return is_inside


def _crown(random: np.random.RandomState, disc: _Disc) -> _Array:
    """The leaves of a tree (h, w, 3): darker to the edge, and away from the light."""
    shade = 1.1 - 0.35 * disc.distance**2 - 0.2 * disc.offset.sum(axis=0)
    leaves = 1.0 + 0.12 * random.normal(size=shade.shape)
    colour = _CROWN + random.normal(0.0, 7.0, 3)
    crown: _Array = (shade * leaves)[..., None] * colour
    return crown
