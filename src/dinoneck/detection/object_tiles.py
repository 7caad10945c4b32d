"""ObjectTiles: the tiles of large images with the ids of their pixels, as samples of heads of objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dinoneck.data.boxes import BoxImages
from dinoneck.data.listed_images import Ids, ObjectMap, object_map_of
from dinoneck.data.panoptic import PanopticImages
from dinoneck.detection.box_tiles import LEAST_SHARE
from dinoneck.images.bands import read_channels
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.inference.tile_merging import Tile, tiles_of
from dinoneck.inference.tiles import Tiling

ObjectImages = BoxImages | PanopticImages
"""Images with their true objects, or their panoptic segments."""


@dataclass(frozen=True)
class TileSample:
    """A part of an image that is trained on.

    Attributes:
        row: of the image in its dataset.
        tile: the part; all of an image that fits a tile.
        num_objects: how many objects it shows that are trained on there, without stuff.
        trained: the places of these objects, and of its stuff and crowd regions, in
            :class:`ObjectMap`; None of an image that is not cut: all.
    """

    row: int
    tile: Tile
    num_objects: int
    trained: Ids | None


class ObjectTiles:
    """The tiles of images with objects, each a sample; an image that fits a tile is one sample.

    Images are cut as a :class:`dinoneck.Predictor` cuts them. The objects of a tile are cut at its
    edges. Of some objects a tile shows too little to tell their class: it has less than a tenth of
    their pixels, or they fill less than a tenth of a tile that is smaller than they are. They are
    neither objects of the tile nor its background: their pixels are unknown, and the losses leave
    them out. Stuff is cut without this rule, as any part of it shows what it is. Tiles without an
    object are kept as background, of which large images have most.

    Args:
        images: with their objects.
        tiling: how they are cut; None: they are not, and each image is a sample.

    Attributes:
        images: as passed.
        tiling: as passed.
        samples: in the order of the images.

    Raises:
        DataError: as :func:`dinoneck.data.listed_images.object_map_of`.
        ConfigError: if the tiles do not move on.
    """

    def __init__(self, images: ObjectImages, tiling: Tiling | None) -> None:
        self.images = images
        self.tiling = tiling
        self.samples: list[TileSample] = []
        if tiling is None:
            for row, count in enumerate(images.numbers.values()):
                height, width = images.sizes[row]
                whole = Tile(top=0, left=0, height=height, width=width)
                self.samples.append(TileSample(row, whole, num_objects=count, trained=None))
            return
        for row in range(len(images)):
            self.samples += self._samples_of(row, tiling)

    def _samples_of(self, row: int, tiling: Tiling) -> list[TileSample]:
        """The tiles of an image, with the objects that are trained on in each."""
        tiles = tiles_of(self.images.sizes[row], tiling)
        object_map = object_map_of(self.images, row)
        areas = object_map.areas(object_map.rows)
        is_thing = object_map.is_thing()
        samples = []
        for tile in tiles:
            is_trained = _are_trained(object_map, areas, tile)
            sample = TileSample(
                row,
                tile,
                num_objects=int((is_trained & is_thing).sum()),
                trained=np.flatnonzero(is_trained) if len(tiles) > 1 else None,
            )
            samples.append(sample)
        return samples

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def most_objects(self) -> int:
        """The largest number of objects of a sample, with every class of stuff as one."""
        most = max(sample.num_objects for sample in self.samples)
        return most + len(self.images.stuff)

    @property
    def largest_size(self) -> tuple[int, int]:
        """The largest (height, width) of a sample in pixels; the tile, unless the images are shorter on a side."""
        height = max(sample.tile.height for sample in self.samples)
        width = max(sample.tile.width for sample in self.samples)
        return height, width

    @property
    def num_cut(self) -> int:
        """How many images are larger than a tile."""
        counts = np.bincount(self.rows)
        return int((counts > 1).sum())

    @property
    def num_empty(self) -> int:
        """How many samples show no object that is trained on there; stuff is none."""
        return sum(sample.num_objects == 0 for sample in self.samples)

    @property
    def rows(self) -> Ids:
        """The row of the image of every sample, (n,) int64."""
        return np.array([sample.row for sample in self.samples], np.int64)

    def names(self) -> list[str]:
        """Return a name of every sample: the file, and the first pixel of a tile of it."""
        counts = np.bincount(self.rows)
        names = []
        for sample in self.samples:
            name = str(self.images.paths[sample.row])
            if counts[sample.row] > 1:
                name = f"{name} (tile at row {sample.tile.top}, column {sample.tile.left})"
            names.append(name)
        return names

    def tile_ids(self) -> Iterator[Ids]:
        """Yield the ids of the pixels (h, w) of every sample, numbered as ``images.pixels`` numbers those of an image.

        The maps of images that are cut were read when their objects were counted, and are read
        again: kept until now, those of large images would take 8 bytes a pixel.

        Raises:
            DataError: if a sample has 1000 objects of a class or more.
        """
        for row in range(len(self.images)):
            object_map = object_map_of(self.images, row)
            for sample in self._samples_of_image(row):
                if sample.trained is None:
                    yield object_map.ids()
                else:
                    ids = object_map.ids_of_objects(sample.trained, shown_in="a tile of ")
                    yield ids[_shown(object_map, sample.tile)]

    def pictures(self, preprocess: Preprocessing) -> list[Tensor]:
        """Return the pixels (channels, h, w) of every sample, as ``preprocess`` takes them.

        Raises:
            DataError: if an image cannot be read.
        """
        pictures = []
        for row, path in enumerate(self.images.paths):
            pixels = read_channels(path, preprocess.channels, preprocess.bits)
            for top, left, height, width in self.tiles_of_image(row):
                # a copy, so that the memory of what tiles share is not kept twice
                pictures.append(pixels[:, top : top + height, left : left + width].clone())
        return pictures

    def tiles_of_image(self, row: int) -> list[Tile]:
        """Return the tiles of an image."""
        return [sample.tile for sample in self._samples_of_image(row)]

    def _samples_of_image(self, row: int) -> list[TileSample]:
        """The samples of an image, tile by tile."""
        return [sample for sample in self.samples if sample.row == row]


def _shown(object_map: ObjectMap, tile: Tile) -> Ids:
    """The part of ``object_map.rows`` that a tile shows, (h, w)."""
    top, left, height, width = tile
    return object_map.rows[top : top + height, left : left + width]


def _are_trained(object_map: ObjectMap, areas: Ids, tile: Tile) -> Ids:
    """Whether each object is trained on in a tile, which shows it, and enough of it, (n,) bool.

    Args:
        object_map: of the image.
        areas: pixels of each object in the image, (n,).
        tile: a part of the image.
    """
    shown_areas = object_map.areas(_shown(object_map, tile))
    largest_shown = np.minimum(areas, tile.height * tile.width)
    is_sliver = object_map.is_thing() & (shown_areas < LEAST_SHARE * largest_shown)
    return (shown_areas > 0) & ~is_sliver
