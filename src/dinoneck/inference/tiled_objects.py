"""The objects that heads predict in the tiles of a large image, put together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from dinoneck.images.recipe import Size
from dinoneck.inference.cropped_masks import ROWS_AT_ONCE, CropMemory, CroppedMasks
from dinoneck.inference.tile_merging import Detections, Tile, copy_to_keep, merge_tiles
from dinoneck.tasks import Task

Array = np.ndarray[Any, Any]


class TiledObjects(Protocol):
    """The objects of the tiles of an image."""

    def add(self, tile: Tile, objects: Any) -> None:
        """Take the objects of a tile, as :func:`dinoneck.inference.resolution.objects_at_image_size` gives them."""

    def merged(self) -> Any:
        """Return those of the image in the same form."""


def tiled_objects(task: Task, tiles: Sequence[Tile], image_size: Size) -> TiledObjects:
    """Return what puts the objects of a task together.

    Args:
        task: of instances or panoptic segments.
        tiles: of the image, of :func:`dinoneck.inference.tile_merging.tiles_of`.
        image_size: (height, width) of the image.
    """
    if task.kind == "panoptic":
        return TiledSegments(tiles, image_size, num_classes=task.dim)
    return TiledInstances(tiles, image_size)


class TiledInstances:
    """The instances of the tiles of an image, merged by :func:`dinoneck.inference.tile_merging.merge_tiles`."""

    def __init__(self, tiles: Sequence[Tile], image_size: Size) -> None:
        self._tiles = tiles
        self._image_size = image_size
        self._detections: list[Detections] = []

    def add(self, tile: Tile, objects: Mapping[str, Any]) -> None:
        """Take the instances of a tile: ``boxes``, ``labels``, ``scores`` and ``masks``, which are cropped."""
        corner = np.array([tile.left, tile.top, tile.left, tile.top], np.float32)
        self._detections.append(
            Detections(
                boxes=copy_to_keep(objects["boxes"] + corner),
                scores=copy_to_keep(objects["scores"]),
                labels=copy_to_keep(objects["labels"]),
                masks=objects["masks"].moved((tile.top, tile.left), self._image_size),
            )
        )

    def merged(self) -> dict[str, Any]:
        """Return the instances of the image, by falling score."""
        merged = merge_tiles(self._detections, self._tiles, self._image_size)
        return {
            "boxes": merged.boxes.numpy(),
            "labels": merged.labels.numpy(),
            "scores": merged.scores.numpy(),
            "masks": merged.masks,
        }


class TiledSegments:
    """The panoptic segments of the tiles of an image.

    Things are merged by :func:`dinoneck.inference.tile_merging.merge_tiles`. Where two of them have
    pixels in common, those are of the one with the higher score. The segments of a class of stuff
    are one, with the highest of their scores. Of the tiles that show a pixel as stuff, the one whose
    middle is nearest says which, and the first one where that tile shows none; things lie over stuff.

    Args:
        tiles: of the image.
        image_size: (height, width) of the image.
        num_classes: of the task.
    """

    def __init__(self, tiles: Sequence[Tile], image_size: Size, *, num_classes: int) -> None:
        height, width = image_size
        self._tiles = tiles
        self._image_size = image_size
        self._num_classes = num_classes
        self._rows = _cores({tile.top for tile in tiles}, tiles[0].height, height)
        self._cols = _cores({tile.left for tile in tiles}, tiles[0].width, width)
        # 1 + the class of stuff, 0 = none
        self._segments = np.zeros(image_size, np.int32)
        self._stuff_scores: dict[int, float] = {}
        self._things: list[Detections] = []
        self._memory = CropMemory()

    def add(self, tile: Tile, objects: tuple[Array, Sequence[Mapping[str, Any]]]) -> None:
        """Take the segments (h, w) of a tile and what they are."""
        segments, infos = objects
        things = [info for info in infos if info["isthing"]]
        self._things.append(self._detections(tile, segments, things))
        class_of_id = np.zeros(1 + max((info["id"] for info in infos), default=0), np.int32)
        for info in infos:
            if not info["isthing"]:
                label = info["category_id"]
                class_of_id[info["id"]] = 1 + label
                best_score = max(info["score"], self._stuff_scores.get(label, 0.0))
                self._stuff_scores[label] = best_score
        self._paint_stuff(tile, class_of_id[segments])

    def _detections(
        self, tile: Tile, segments: Array, things: Sequence[Mapping[str, Any]]
    ) -> Detections:
        """The things of a tile, in the pixels of the image."""
        ids = [info["id"] for info in things]
        of_tile = CroppedMasks.of_segments(segments, ids, self._memory)
        masks = of_tile.moved((tile.top, tile.left), self._image_size)
        boxes = [masks.rectangle(number) for number in range(len(masks))]
        return Detections(
            boxes=copy_to_keep(np.array(boxes, np.float32).reshape(-1, 4)),
            scores=copy_to_keep(np.array([info["score"] for info in things], np.float32)),
            labels=copy_to_keep(np.array([info["category_id"] for info in things], np.int64)),
            masks=masks,
        )

    def _paint_stuff(self, tile: Tile, stuff: Array) -> None:
        """Paint the stuff of a tile, (h, w): all of it in its core, around that where there is none yet."""
        top, left, height, width = tile
        painted = self._segments[top : top + height, left : left + width]
        first_row, end_row = self._rows[top]
        first_col, end_col = self._cols[left]
        is_core = np.zeros(stuff.shape, bool)
        is_core[first_row - top : end_row - top, first_col - left : end_col - left] = True
        is_painted = (stuff > 0) & (is_core | (painted == 0))
        painted[is_painted] = stuff[is_painted]

    def merged(self) -> tuple[Array, list[dict[str, Any]]]:
        """Return the segments (height, width) int32 of the image, and what they are: stuff, then things."""
        things = merge_tiles(self._things, self._tiles, self._image_size)
        entries: dict[int, dict[str, Any]] = {}  # value in the segments -> what it is
        for label, score in sorted(self._stuff_scores.items()):
            entries[1 + label] = {"category_id": label, "isthing": False, "score": score}
        first_thing = 1 + self._num_classes
        labels = things.labels.tolist()
        scores = things.scores.tolist()
        for number, (label, score) in enumerate(zip(labels, scores, strict=True)):
            entries[first_thing + number] = {"category_id": label, "isthing": True, "score": score}
        self._paint_things(things, first_thing)

        areas = np.zeros(first_thing + len(things), np.int64)
        for strip in self._strips():
            areas += np.bincount(strip.ravel(), minlength=len(areas))
        ids = np.zeros(len(areas), np.int32)
        visible: list[dict[str, Any]] = []
        for value, entry in entries.items():
            if areas[value]:
                ids[value] = 1 + len(visible)
                visible.append({"id": int(ids[value]), **entry, "area": int(areas[value])})
        for strip in self._strips():
            strip[:] = ids[strip]
        return self._segments, visible

    def _paint_things(self, things: Detections, first_value: int) -> None:
        """Paint things, which come by falling score, the best one last."""
        masks = things.masks
        if masks is None:
            return
        for number in reversed(range(len(masks))):
            left, top, right, bottom = masks.rectangle(number)
            painted = self._segments[top:bottom, left:right]
            painted[masks.crops[number]] = first_value + number

    def _strips(self) -> Iterator[Array]:
        for begin in range(0, len(self._segments), ROWS_AT_ONCE):
            yield self._segments[begin : begin + ROWS_AT_ONCE]


def _cores(starts: set[int], length: int, total: int) -> dict[int, tuple[int, int]]:
    """Start of a tile along an axis -> first and last + 1 of the pixels whose nearest middle is that of the tile."""
    in_order = sorted(starts)
    borders = [0]
    for start, next_start in pairwise(in_order):
        borders.append((start + length + next_start) // 2)
    borders.append(total)
    cores = {}
    for number, start in enumerate(in_order):
        cores[start] = (borders[number], borders[number + 1])
    return cores
