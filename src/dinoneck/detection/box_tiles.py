"""BoxTiles: the tiles of large images with their boxes and masks, as samples of a training."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from dinoneck.data.boxes import BoxImages, Target
from dinoneck.data.coco_checks import SHORTEST_PX
from dinoneck.data.segmentations import pixel_extent
from dinoneck.inference.cropped_masks import CroppedMasks
from dinoneck.inference.tile_merging import Tile, tiles_of
from dinoneck.inference.tiles import Tiling

LEAST_SHARE = 0.1
"""The least share of an object inside a tile with which it is trained on there; of one that is larger, of the tile."""
CACHE_BYTES = 512 << 20
"""Of the decoded images that are kept, and so of those whose tiles are mixed in an epoch; at least one image."""


@dataclass(frozen=True)
class _DecodedImage:
    """An image that was decoded, with its boxes.

    Attributes:
        image_id: in the JSON.
        pixels: uint8 (3, H, W).
        boxes: float32 (n, 4), XYXY in pixels.
        labels: int64 (n,).
        masks: of the boxes; None where they are not asked for.
    """

    image_id: int | str
    pixels: Tensor
    boxes: Tensor
    labels: Tensor
    masks: CroppedMasks | None

    def target(self, tile: Tile) -> Target:
        """Return the target of a tile, see :class:`BoxTiles`."""
        shares = _shown_shares(self.boxes, self.masks, tile)
        objects = (shares >= LEAST_SHARE).nonzero()[:, 0].tolist()
        if self.masks is None:
            return self._target_of(objects, in_tile(self.boxes[objects], tile), tile)
        masks = np.asarray(self.masks.take(objects).cut(tile.box), np.uint8)
        boxes = in_tile(self.boxes[objects], tile)
        for number, i in enumerate(objects):
            if shares[i] < 1:
                boxes[number] = torch.tensor(pixel_extent(masks[number]))
        target = self._target_of(objects, boxes, tile)
        target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        return target

    def _target_of(self, objects: list[int], boxes: Tensor, tile: Tile) -> Target:
        """The target of a tile without masks.

        Args:
            objects: numbers of the boxes that it shows.
            boxes: the boxes in pixels of the tile.
            tile: a part of the image.
        """
        size = (tile.height, tile.width)
        return {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": self.labels[objects],
            "image_id": self.image_id,
            "size": size,
        }


class BoxSample(NamedTuple):
    """A part of an image that is trained on.

    Attributes:
        row: of the image in its dataset.
        tile: the part; all of an image that fits a tile.
    """

    row: int
    tile: Tile


class BoxTiles(Dataset[Any]):
    """The tiles of images with boxes, each a sample; an image that fits a tile is one sample.

    Images are cut as :meth:`dinoneck.detection.Detector.predict` cuts them. ``tiles[i]`` is
    ``(image, target)`` as :class:`dinoneck.data.BoxImages` gives them, of a tile: boxes and masks are
    in its pixels and cut at its edges, ``size`` is its size. With masks, the box of an object that is
    cut is that of what is left of its mask.

    An object is left out of a tile that shows less than a tenth of its area. That is the area of
    its mask, or without masks that of its box; each side of the box must have 1 px or more there.
    An object that is larger than the tile is left out where it fills less than a tenth of the tile.
    So little does not show its class; it counts as background, as the losses of detectors know no
    ignored regions. Larger parts are objects: as background they would teach the detector to leave
    out what it sees. Tiles without an object are kept as background, of which large images have
    most. Crowd regions are left out, as from whole images.

    Args:
        images: with their boxes; its own transform is not used.
        tiling: how they are cut.
        transform: of each tile, as of :class:`dinoneck.data.BoxImages`: it augments tiles, not images.

    Attributes:
        images: as passed.
        samples: in the order of the images.
        num_cut: how many images are larger than a tile.
        num_empty: how many tiles show no object.

    Raises:
        ConfigError: if the tiles do not move on.
    """

    def __init__(
        self,
        images: BoxImages,
        tiling: Tiling,
        transform: Callable[[Any, Target], Any] | None = None,
    ) -> None:
        self.images = images
        self.transform = transform
        self.samples: list[BoxSample] = []
        self.num_cut = 0
        self.num_empty = 0
        for row, image_size in enumerate(images.sizes):
            corners = images.corners(row)
            masks = self._masks(row)
            tiles = tiles_of(image_size, tiling)
            self.num_cut += len(tiles) > 1
            for tile in tiles:
                self.samples.append(BoxSample(row, tile))
                shares = _shown_shares(corners, masks, tile)
                self.num_empty += not (shares >= LEAST_SHARE).any()
        self._decoded: OrderedDict[int, _DecodedImage] = OrderedDict()  # last used last

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Any:
        tile = self.samples[i].tile
        decoded = self._image(self.samples[i].row)
        rows = slice(tile.top, tile.top + tile.height)
        cols = slice(tile.left, tile.left + tile.width)
        image = tv_tensors.Image(decoded.pixels[:, rows, cols].clone())
        target = decoded.target(tile)
        if self.transform is None:
            return image, target
        return self.transform(image, target)

    def epoch_order(self, generator: np.random.Generator) -> list[int]:
        """Return all samples in random order, of as few images at a time as are kept decoded.

        The images are in random order too. So each is decoded once in an epoch, by every process
        that reads.

        Args:
            generator: decides the order.
        """
        samples_of_image: dict[int, list[int]] = {}
        for number, sample in enumerate(self.samples):
            samples_of_image.setdefault(sample.row, []).append(number)
        order: list[int] = []
        for rows in self._groups(generator.permutation(len(self.images)).tolist()):
            samples = []
            for row in rows:
                samples += samples_of_image[row]
            order += generator.permutation(samples).tolist()
        return order

    def _groups(self, rows: Sequence[int]) -> list[list[int]]:
        """Images, in the order of ``rows``, in groups that may be decoded at the same time."""
        sizes = self.images.sizes
        groups: list[list[int]] = []
        num_bytes = 0
        for row in rows:
            height, width = sizes[row]
            num_bytes += 3 * height * width
            if not groups or num_bytes > CACHE_BYTES:
                groups.append([])
                num_bytes = 3 * height * width
            groups[-1].append(row)
        return groups

    def _image(self, row: int) -> _DecodedImage:
        """Return an image; it is decoded if it is not kept."""
        if row in self._decoded:
            self._decoded.move_to_end(row)
            return self._decoded[row]
        pixels, boxes = self.images.original(row)
        self._decoded[row] = _DecodedImage(
            image_id=self.images.ids[row],
            pixels=pixels.as_subclass(Tensor),
            boxes=boxes.as_subclass(Tensor),
            labels=self.images.labels(row),
            masks=self._masks(row),
        )
        # masks do not count, as little as they do in groups of images
        num_bytes = sum(decoded.pixels.nbytes for decoded in self._decoded.values())
        while num_bytes > CACHE_BYTES and len(self._decoded) > 1:
            _, oldest = self._decoded.popitem(last=False)
            num_bytes -= oldest.pixels.nbytes
        return self._decoded[row]

    def _masks(self, row: int) -> CroppedMasks | None:
        """Return the masks of an image; None where they are not asked for."""
        if not self.images.masks:
            return None
        crops = self.images.mask_crops(row)
        return CroppedMasks(
            [crop.pixels for crop in crops],
            [(crop.top, crop.left) for crop in crops],
            size=self.images.sizes[row],
        )


def _shown_shares(boxes: Tensor, masks: CroppedMasks | None, tile: Tile) -> Tensor:
    """How much (n,) of every object a tile shows: of its mask, or of its box where there are no masks."""
    if masks is None:
        return visible_shares(boxes, tile)
    # a mask without pixels is left out when the file is read
    largest_shown = np.minimum(masks.areas(), tile.height * tile.width)
    return torch.from_numpy(masks.areas(tile.box) / largest_shown)


def visible_shares(boxes: Tensor, tile: Tile) -> Tensor:
    """Return how much (n,) of each box (n, 4) a tile shows; 0 if a side is below 1 px there.

    It is the share of the area of the box, and of a box that is larger than the tile the share of
    the tile: no tile could show a tenth of a box that is as large as eleven tiles.

    Args:
        boxes: XYXY in pixels of the image.
        tile: a part of the image.
    """
    shown = in_tile(boxes, tile)
    sides = shown[:, 2:] - shown[:, :2]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    largest_shown = areas.clamp(max=tile.height * tile.width)
    shares = sides.prod(dim=1) / largest_shown
    return torch.where(sides.amin(dim=1) >= SHORTEST_PX, shares, 0.0)


def in_tile(boxes: Tensor, tile: Tile) -> Tensor:
    """Return boxes (n, 4) in pixels of a tile, cut at its edges; those outside have no area."""
    left, top, right, bottom = tile.box
    low = boxes.new_tensor([left, top, left, top])
    high = boxes.new_tensor([right, bottom, right, bottom])
    return boxes.clamp(min=low, max=high) - low
