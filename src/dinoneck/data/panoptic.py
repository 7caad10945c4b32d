"""Images with panoptic segments, read from COCO JSON and PNG files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dinoneck.data.cells import PathLike
from dinoneck.data.coco_entries import CocoCategory, CocoSegments, is_number
from dinoneck.data.json_parts import check_stated_part, part_of_json
from dinoneck.data.label_files import LabelRaster, read_labels
from dinoneck.data.listed_images import (
    NO_OBJECT,
    UNKNOWN,
    UNKNOWN_IMAGE,
    Crowd,
    Ids,
    ListedImages,
    ListedObject,
    ObjectMap,
    open_json,
)
from dinoneck.data.segment_checks import check_segments
from dinoneck.data.sources import find_files
from dinoneck.errors import DataError
from dinoneck.images.pixels import read_picture
from dinoneck.text import some_of

logger = logging.getLogger(__name__)

_CHANNELS = np.array([1, 256, 256**2])  # what a step of red, green and blue adds to an id
_OPAQUE = 255
_GREY = 1 + 256 + 256**2  # what a step of grey adds to an id
_WHITE = 256**3 - 1
_GREY_MODES = ("L", "I", "I;16", "I;16B")
_RGB_REMEDY = "save it as RGB, with the id of a segment as red + 256 green + 65536 blue"
_RGB_MODES = ("RGB", "RGBA", "RGBX")  # of Pillow; colours of others, such as CMYK, are no ids


@dataclass(slots=True)
class _Segment(ListedObject):
    """A panoptic segment.

    Attributes:
        png_id: id of its pixels in the PNG.
    """

    png_id: int


class PanopticImages(ListedImages):
    """Images with segments in COCO's panoptic form: a JSON, and a PNG per image whose colours are ids of segments.

    The id of a pixel is red + 256 green + 65536 blue, 0 = unknown; that of a grey PNG is its value.
    A PNG with alpha is read if it is opaque. Values of the JSON that have exactly one reading are
    repaired and counted, as for :class:`dinoneck.data.BoxImages`.

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
        skipped: reason -> annotations left out: ``unknown image`` (the JSON does not list it).
        repaired: as of :class:`dinoneck.data.BoxImages`.

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
        opened = open_json(
            annotations, CocoSegments, images, classes, crowd, allow_unlisted=allow_unlisted
        )
        super().__init__(opened)
        self._png_entries = self._find_png_entries(opened.annotations)
        names = [entry.file_name for entry in self._png_entries.values()]
        part = part_of_json(self.file)
        what = f"PNG files of {self.file}"
        files = find_files(names, folder, what, of_labels=True, part=part)
        check_stated_part(self.file, names, files, "folder=")
        self._pngs: dict[object, Path] = dict(zip(self._png_entries, files, strict=True))
        self._check_images_are_no_pngs()
        self._warn_of_other_names()
        self.stuff = self._find_stuff(opened.categories)
        self._warn_of_semantic_ids(opened.categories)
        self._category_ids_of_file = {category.id for category in opened.categories}
        self._objects = [self._segments_of(self._png_entries[image_id]) for image_id in self.ids]
        self._log_repairs()
        marked = 0
        listed = 0
        for entry in self._png_entries.values():
            marked += sum(segment.iscrowd for segment in entry.segments_info)
            listed += len(entry.segments_info)
        self._log_crowd(marked, listed)

    @property
    def longest_box(self) -> float | None:
        """The longest side of the ``bbox`` of a thing in pixels of its image, without crowd regions.

        None if there is no thing, or one has no ``bbox``.
        """
        longest = 0.0
        for image_id in self.ids:
            for segment in self._png_entries[image_id].segments_info:
                label = self._label_of.get(segment.category_id)
                if label is None or label in self.stuff or self._is_crowd(segment.iscrowd):
                    continue
                bbox = segment.bbox
                if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_number, bbox)):
                    return None
                _, _, width, height = bbox
                longest = max(longest, width, height)
        return longest or None

    def _check_images_are_no_pngs(self) -> None:
        """Raise a DataError for an image that is the PNG of its own segments, as files of one name are."""
        for image, image_id in zip(self.paths, self.ids, strict=True):
            png = self._pngs[image_id]
            if image.samefile(png):
                raise DataError(
                    f"{self.file}: {image} is the image and the PNG of its segments; name the folder "
                    "of the images: images= (--images)"
                )

    def _find_png_entries(self, annotations: Sequence[CocoSegments]) -> dict[object, CocoSegments]:
        """Image id -> the entry of its PNG, for every image."""
        entries = {entry.image_id: entry for entry in annotations}
        for image_id in self.ids:
            if image_id not in entries:
                raise DataError(
                    f"{self.file} has no annotations of image {image_id}; expected one entry for "
                    "each image"
                )
        num_unknown = len(entries) - len(self.ids)
        if num_unknown:
            self.skipped[UNKNOWN_IMAGE] += num_unknown
            listed = {*self.ids}
            first = next(image_id for image_id in entries if image_id not in listed)
            logger.warning(
                "%s: annotations left out: %d of %d, of images that the file does not list, such as "
                "image_id %s",
                self.file,
                num_unknown,
                len(entries),
                first,
            )
        return {image_id: entries[image_id] for image_id in self.ids}

    def _warn_of_other_names(self) -> None:
        """Warn of PNG files that are called like other images than theirs."""
        image_stems = [path.stem for path in self.paths]
        png_stems = [self._pngs[image_id].stem for image_id in self.ids]
        named_stems = _images_in_names(png_stems, image_stems)
        exchanged = []
        for path, image_id, named in zip(self.paths, self.ids, named_stems, strict=True):
            if named is not None and named != path.stem:
                exchanged.append((path, self._pngs[image_id]))
        if exchanged:
            path, png = exchanged[0]
            logger.warning(
                "%s: %d of %d images have a PNG that is called like another image, such as %s with "
                "%s. If they are exchanged, correct file_name",
                self.file,
                len(exchanged),
                len(self.paths),
                path.name,
                png.name,
            )

    def _warn_of_semantic_ids(self, categories: Sequence[CocoCategory]) -> None:
        """Warn of segments whose ids are those of their categories, as in pictures of classes."""
        segments = [
            segment for entry in self._png_entries.values() for segment in entry.segments_info
        ]
        things = {category.id for category in categories if category.isthing}
        shown_things = [segment for segment in segments if segment.category_id in things]
        if shown_things and all(segment.id == segment.category_id for segment in segments):
            logger.warning(
                "%s: the id of all %d segments is that of their category: the PNG files seem to show "
                "classes, and objects of a class in one image are one object. Give every object an id "
                "of its own, or train classes of pixels (masks)",
                self.file,
                len(segments),
            )

    def _find_stuff(self, categories: Sequence[CocoCategory]) -> frozenset[int]:
        """The labels that are no things."""
        unsaid = [category.name for category in categories if category.isthing is None]
        if unsaid:
            raise DataError(
                f"{self.file} has {len(unsaid)} of {len(categories)} categories without "
                f"isthing: {some_of(map(repr, unsaid), 5)}; write 1 if its objects are counted one "
                "by one, 0 for stuff such as soil or sky"
            )
        stuff = set()
        for category in categories:
            if not category.isthing and category.id in self._label_of:
                stuff.add(self._label_of[category.id])
        return frozenset(stuff)

    def _segments_of(self, entry: CocoSegments) -> list[_Segment]:
        """The segments of an image that are of the classes."""
        segments = []
        for listed in entry.segments_info:
            if listed.category_id not in self._label_of:
                continue
            segment = _Segment(
                label=self._label_of[listed.category_id],
                is_crowd=self._is_crowd(listed.iscrowd),
                png_id=listed.id,
            )
            segments.append(segment)
        return segments

    def pixels(self, i: int) -> Ids:
        """Return the ids of the pixels of an image (H, W), int64.

        An id is 1000 * (class + 1) + the number of the segment in its class (0 for stuff). In a
        crowd region of the class it is -1000 * (class + 1), and where nothing is known -1.

        Raises:
            DataError: if the image or its PNG has another size than in the JSON, or there are 1000
                segments of a class or more. Also if the PNG is neither of three colours nor grey,
                has ids that are not listed, or contradicts their ``bbox``.
        """
        return self._object_map(i).ids()

    def _object_map(self, i: int) -> ObjectMap:
        """Which segment every pixel of an image belongs to, as :meth:`pixels`, for any number of segments.

        Raises:
            DataError: as :meth:`pixels`, but for the number of segments.
        """
        size = self._check_size(i)
        image_id = self.ids[i]
        png = self._pngs[image_id]
        png_ids = _read_png_ids(png, size)
        segments = self._png_entries[image_id].segments_info
        self._check_png_ids(png_ids, {segment.id for segment in segments}, png)
        check_segments(png_ids, segments, png)
        rows = np.full(size, NO_OBJECT, np.int64)
        for row, segment in enumerate(self._objects[i]):
            rows[png_ids == segment.png_id] = row
        return self._map_of_rows(i, rows, background=UNKNOWN)

    def _check_png_ids(self, png_ids: Ids, listed: set[int], png: Path) -> None:
        """Raise a DataError for a PNG that shows other ids than its segments_info lists."""
        shown = {*np.unique(png_ids).tolist()} - {0}
        unlisted = shown - listed
        absent = listed - shown
        if unlisted:
            raise DataError(
                f"{png} shows the ids {some_of(map(str, sorted(unlisted)), 3)}, which its "
                f"segments_info does not list{self._cause_of_other_ids(shown, listed, png)}"
            )
        if absent:
            raise DataError(
                f"the segments_info of {png} lists the ids {some_of(map(str, sorted(absent)), 3)}, "
                f"which the picture does not show{self._cause_of_other_ids(shown, listed, png)}"
            )

    def _cause_of_other_ids(self, shown: set[int], listed: set[int], png: Path) -> str:
        """Why a PNG seems to show other ids than are listed, in words; empty if nothing fits."""
        mode = read_picture(png, _mode_of)
        if mode not in _RGB_MODES:
            return f". It has 1 band (mode {mode}); {_RGB_REMEDY}"
        if {_read_as_bgr(png_id) for png_id in shown} == listed:
            return "; read from blue to red they fit: it was saved as BGR"
        if {png_id * _GREY for png_id in listed} == shown:
            return f". All its colours are grey, and red alone fits; {_RGB_REMEDY}"
        if shown - listed == {_WHITE}:
            return (
                f". {_WHITE} is white, which some tools write where nothing is known; write 0, black, "
                "there"
            )
        for image_id, entry in self._png_entries.items():
            if {segment.id for segment in entry.segments_info} == shown:
                return f". They are those of the image {image_id}: correct file_name or image_id"
        if shown <= self._category_ids_of_file:
            return (
                ". They are ids of categories: the PNG seems to show classes; give every object an id "
                "of its own, or train classes of pixels (masks)"
            )
        return ""


def _images_in_names(png_stems: Sequence[str], image_stems: Sequence[str]) -> list[str | None]:
    """The stem of the image that each PNG is called like, None of others.

    Names of PNG files may begin or end with something of their own, such as ``_panoptic``, if all
    do and every one is then the name of an image.
    """
    stems = set(image_stems)
    for stem in image_stems:
        before, is_in_name, after = png_stems[0].partition(stem)
        if not is_in_name:
            continue
        rests = [_without_affixes(png_stem, before, after) for png_stem in png_stems]
        if (before or after) and stems.issuperset(rests):
            return list(rests)
    return [stem if stem in stems else None for stem in png_stems]


def _without_affixes(name: str, before: str, after: str) -> str | None:
    """A name without its beginning and ending; None if it has another one."""
    if not (name.startswith(before) and name.endswith(after)):
        return None
    return name.removeprefix(before).removesuffix(after)


def _read_png_ids(png: Path, size: tuple[int, int]) -> Ids:
    """The ids (H, W) that a PNG spells, 0 where nothing is known.

    They are spelled by its colours. A grey PNG holds small ids as they are.
    """
    [raster] = read_labels(png, [size])
    name = raster.name
    colours = raster.values
    if raster.alpha is not None and (raster.alpha != _OPAQUE).any():
        raise DataError(
            f"{name} has transparent pixels, whose colour may be lost; save it as RGB without alpha"
        )
    bands = colours.shape[2]
    mode = read_picture(png, _mode_of)
    ids: Ids
    if mode in _GREY_MODES and bands == 1 and raster.alpha is None:
        ids = colours[..., 0].astype(np.int64)
        return ids
    if bands != 3 or colours.dtype != np.uint8 or mode not in _RGB_MODES:
        raise DataError(f"{name} has {_content_in_words(raster, mode)}; {_RGB_REMEDY}")
    ids = colours.astype(np.int64) @ _CHANNELS
    return ids


def _content_in_words(raster: LabelRaster, mode: str) -> str:
    """What a PNG holds that holds no ids, for a message."""
    bands = raster.values.shape[2]
    dtype = raster.values.dtype
    if mode == "P":
        return "colours of a palette"
    if bands in (3, 4) and dtype == np.uint8:
        return f"{mode} colours"
    if bands == 1 and raster.alpha is None:
        return f"1 band of {dtype}"
    num_bands = bands if raster.alpha is None else bands + 1
    return f"{num_bands} bands of {dtype}"


def _mode_of(image: Image.Image, _: str) -> str:
    return image.mode


def _read_as_bgr(png_id: int) -> int:
    """The id of a colour whose red and blue are exchanged."""
    red = png_id & 255
    green = png_id >> 8 & 255
    blue = png_id >> 16
    return blue + (green << 8) + (red << 16)
