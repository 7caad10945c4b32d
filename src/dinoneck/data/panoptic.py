"""Images with panoptic segments, read from COCO JSON and its folder of PNG files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinoneck.data.boxes import Ids, ListedImages, folder_of
from dinoneck.data.coco import Panoptic, read_coco
from dinoneck.data.labels import all_stored
from dinoneck.errors import DataError, some_of

UNKNOWN = -1  # id of pixels of which nothing is known


class _Segment(NamedTuple):
    """A segment of a class that was chosen: its id in the PNG, and whether it is a crowd region."""

    id: int
    label: int
    crowd: bool


class PanopticImages(ListedImages):
    """Images with segments in COCO's panoptic form: a JSON, and a PNG per image whose colours are ids of segments.

    The id of a pixel is red + 256 green + 65536 blue, 0 = unknown.

    Args:
        annotations: the JSON with ``images``, ``annotations`` (image_id, file_name of the PNG, ``segments_info`` with
            id, category_id, iscrowd) and ``categories`` (id, name, isthing).
        folder: of the PNG files.
        images: as of :class:`dinoneck.data.BoxImages`.
        classes: as of :class:`dinoneck.data.BoxImages`; pixels of others are unknown. None = all.

    Attributes:
        classes: names, in the order of the labels.
        category_ids: their ids in the JSON, in the same order.
        stuff: labels whose segments have no number of their own, by ``isthing``.

    Raises:
        DataError: if the JSON or a file cannot be used, or an image has no PNG.
    """

    def __init__(
        self,
        annotations: str | os.PathLike[str],
        folder: str | os.PathLike[str],
        images: str | os.PathLike[str] | None = None,
        *,
        classes: Sequence[str] | None = None,
    ) -> None:
        coco = read_coco(Path(annotations), Panoptic)
        super().__init__(coco, Path(annotations), images, classes)
        stored = {entry.id: entry for entry in coco.annotations}
        if missing := [image_id for image_id in self.ids if image_id not in stored]:
            raise DataError(f"{self.file} has no annotations of image {missing[0]}; expected one entry for each image")
        names = {image_id: stored[image_id].file_name for image_id in self.ids}
        inside = folder_of(self.file, folder, [*names.values()], "PNG files")
        self._pngs = {image_id: inside / name for image_id, name in names.items()}
        label_of = {category: label for label, category in enumerate(self.category_ids)}
        things = {category.id for category in coco.categories if category.isthing}
        self.stuff = frozenset(label for category, label in label_of.items() if category not in things)
        self._boxes = [
            [
                _Segment(own.id, label_of[own.category_id], bool(own.iscrowd))
                for own in stored[image_id].segments_info
                if own.category_id in label_of
            ]
            for image_id in self.ids
        ]
        self._listed = {image_id: {own.id for own in stored[image_id].segments_info} for image_id in self.ids}

    def pixels(self, i: int) -> Ids:
        """Return the ids of the pixels of an image (H, W), int64.

        An id is 1000 * (class + 1) + the number of the segment in its class (0 for stuff), -1000 * (class + 1) in a
        crowd region of the class, -1 where nothing is known.

        Raises:
            DataError: if the image or its PNG has another size than in the JSON, the PNG is not of three colours or has
                an id that is not listed, or there are 1000 segments of a class or more.
        """
        size, image_id = self._size(i), self.ids[i]
        [(colours, name)] = all_stored(self._pngs[image_id], [size])
        if colours.shape[2] != 3 or colours.dtype != np.uint8:
            raise DataError(f"{name} has {colours.shape[2]} bands of {colours.dtype}; expected red, green and blue")
        stored = colours.astype(np.int64) @ np.array([1, 256, 256**2])
        if others := {*np.unique(stored).tolist()} - self._listed[image_id] - {0}:
            raise DataError(f"{name} has the ids {some_of(map(str, others), 3)}, which segments_info does not list")
        ids = np.full(size, UNKNOWN, np.int64)
        for segment, number in zip(self._boxes[i], self._numbered(i), strict=True):
            ids[stored == segment.id] = number
        return ids
