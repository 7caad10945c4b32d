"""Images with panoptic segments, read from COCO JSON and PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinoneck.data.cells import PathLike, check_unique
from dinoneck.data.coco_checks import check_bbox
from dinoneck.data.coco_entries import CocoCategory, CocoSegments, Crowd, Id
from dinoneck.data.listed_images import (
    NO_OBJECT,
    UNKNOWN,
    Ids,
    ListedImages,
    ListedObject,
    ObjectMap,
    open_coco,
)
from dinoneck.data.names import find_files
from dinoneck.errors import DataError
from dinoneck.images.rasters import read_label
from dinoneck.text import some_of

_CHANNELS = np.array([1, 256, 256**2])  # what a step of red, green and blue adds to an id


@dataclass(slots=True)
class _Segment(ListedObject):
    """A panoptic segment, and the id of its pixels in the PNG."""

    png_id: int


class PanopticImages(ListedImages):
    """Images with segments in COCO's panoptic form: a JSON, and a PNG per image whose colours are ids of segments.

    The id of a pixel is red + 256 green + 65536 blue, 0 = unknown; that of a grey PNG is its value.
    A PNG with alpha is read if it is opaque.

    Args:
        annotations: the JSON with ``images``, ``annotations`` (image_id, file_name of the PNG,
            ``segments_info`` with id, category_id, iscrowd) and ``categories`` (id, name, isthing).
        folder: of the PNG files.
        images: as of :class:`dinoneck.data.BoxImages`.
        classes: as of :class:`dinoneck.data.BoxImages`; pixels of others are unknown. None = all.
        crowd: as of :class:`dinoneck.data.BoxImages`.
        allow_unlisted: as of :class:`dinoneck.data.BoxImages`.

    Attributes:
        classes: names, in the order of the labels.
        category_ids: their ids in the JSON, in the same order; None of a class that the JSON does
            not list.
        unlisted: labels of the classes that the JSON does not list.
        stuff: labels whose segments have no number of their own, by ``isthing``.

    Raises:
        DataError: if the JSON or a file cannot be used, an image has no PNG, or a category does
            not say whether it ``isthing``.
        ConfigError: if ``crowd`` is another word.
    """

    _objects: Sequence[Sequence[_Segment]]

    def __init__(
        self,
        annotations: PathLike,
        folder: PathLike,
        images: PathLike | None = None,
        *,
        classes: Sequence[str] | None = None,
        crowd: Crowd = "ignore",
        allow_unlisted: bool = False,
    ) -> None:
        listed = open_coco(Path(annotations), CocoSegments, images)
        super().__init__(listed, classes=classes, crowd=crowd, allow_unlisted=allow_unlisted)
        entry_of = {entry.image_id: entry for entry in listed.coco.annotations}
        check_unique(
            (entry.image_id for entry in listed.coco.annotations),
            f"{self.file}: annotations: the image_id",
            "each image has one entry",
        )
        missing = [str(image_id) for image_id in self.ids if image_id not in entry_of]
        if missing:
            raise DataError(
                f"{self.file} has no annotations of the images {some_of(missing, 3)}; expected one "
                "entry for each image"
            )
        self._entries = {image_id: entry_of[image_id] for image_id in self.ids}
        names = [entry.file_name for entry in self._entries.values()]
        files = find_files(names, folder, f"PNG files of {self.file}")
        self._pngs: dict[Id, Path] = dict(zip(self.ids, files, strict=True))
        self._check_images_are_no_pngs()
        self.stuff = self._find_stuff(listed.coco.categories)
        self._objects = [self._segments_of(entry) for entry in self._entries.values()]

    @property
    def longest_box(self) -> float | None:
        """The longest side of the ``bbox`` of a thing in pixels of its image; None if one has none."""
        sides = [0.0]
        for image_id in self.ids:
            for segment in self._entries[image_id].segments_info:
                label = self._label_of.get(segment.category_id)
                if label is None or label in self.stuff or self._is_crowd(segment.iscrowd):
                    continue
                if not segment.bbox:
                    return None
                sides += check_bbox(segment.bbox, f"{self.file}: segment {segment.id}")[2:]
        return max(sides) or None

    def _check_images_are_no_pngs(self) -> None:
        """Refuse an image that is the PNG of its own segments, as files of one name are."""
        for path, image_id in zip(self.paths, self.ids, strict=True):
            if path.samefile(self._pngs[image_id]):
                raise DataError(
                    f"{self.file}: {path} is the image and the PNG of its segments; name the folder "
                    "of the images: images= (--images)"
                )

    def _find_stuff(self, categories: Sequence[CocoCategory]) -> frozenset[int]:
        """The labels that are no things."""
        unsaid = [category.name for category in categories if category.isthing is None]
        if unsaid:
            raise DataError(
                f"{self.file} has categories without isthing: {some_of(map(repr, unsaid), 5)}; write 1 "
                "if its objects are counted one by one, 0 for stuff such as soil or sky"
            )
        stuff = [category.id for category in categories if not category.isthing]
        return frozenset(self._label_of[key] for key in stuff if key in self._label_of)

    def _segments_of(self, entry: CocoSegments) -> list[_Segment]:
        """The segments of an image that are of the classes."""
        ids = (listed.id for listed in entry.segments_info)
        check_unique(ids, f"{self.file}: segments_info of {entry.file_name}: the id", "correct it")
        segments = []
        for listed in entry.segments_info:
            label = self._label_of.get(listed.category_id)
            if label is not None:
                segments.append(_Segment(label, self._is_crowd(listed.iscrowd), listed.id))
        return segments

    def pixels(self, i: int) -> Ids:
        """Return the ids of the pixels of an image (H, W), int64.

        An id is 1000 * (class + 1) + the number of the segment in its class (0 for stuff). In a
        crowd region of the class it is -1000 * (class + 1), and where nothing is known -1.

        Raises:
            DataError: if the image or its PNG has another size than in the JSON, or the PNG shows
                other ids than are listed.
        """
        return self._object_map(i).ids()

    def _object_map(self, i: int) -> ObjectMap:
        size = self._check_size(i)
        png = self._pngs[self.ids[i]]
        png_ids = _read_png_ids(png, size)
        listed = {segment.id for segment in self._entries[self.ids[i]].segments_info}
        shown = {*np.unique(png_ids).tolist()} - {0}
        if shown != listed:
            raise DataError(
                f"{png} shows the ids {some_of(map(str, sorted(shown)), 3)}, and its segments_info lists "
                f"{some_of(map(str, sorted(listed)), 3)}; expected the same: red + 256 green + 65536 "
                "blue, 0 where nothing is known"
            )
        rows = np.full(size, NO_OBJECT, np.int64)
        for row, segment in enumerate(self._objects[i]):
            rows[png_ids == segment.png_id] = row
        return self._map_of_rows(i, rows, background=UNKNOWN)


def _read_png_ids(png: Path, size: tuple[int, int]) -> Ids:
    """The ids (H, W) that the colours of a PNG spell; a grey one holds small ids as they are."""
    raster = read_label(png, size)
    ids: Ids
    if raster.values.shape[2] == 1 and raster.palette is None:
        ids = raster.values[..., 0].astype(np.int64)
    elif raster.values.shape[2] == 3 and raster.is_hidden is None:
        ids = raster.values.astype(np.int64) @ _CHANNELS
    else:
        raise DataError(f"{png} has a palette or transparent pixels; save it as RGB without alpha")
    return ids
