"""Images with boxes and masks, read from COCO JSON: checked whole when opened, decoded one by one.

:class:`BoxImages` is a torch dataset; :func:`box_transforms` brings its images and boxes to one
size, for training with augmentation, and :func:`to_original` is the way back.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from dinoneck.data.area_checks import (
    check_areas,
    check_holes,
    warn_of_crossing_outlines,
    warn_of_mask_areas,
)
from dinoneck.data.box_checks import check_forms, reaching_over_edge
from dinoneck.data.box_entries import BoxOfImage, bboxes_of, measure_masks
from dinoneck.data.cells import PathLike
from dinoneck.data.coco_entries import BBOX, CocoBox, CocoImage, Repairs, name_entry
from dinoneck.data.equal_boxes import EqualBoxes, find_equal, warn_of_twins
from dinoneck.data.listed_images import (
    NO_OBJECT,
    UNKNOWN_IMAGE,
    Crowd,
    Ids,
    ListedImages,
    ListedObject,
    ObjectMap,
    open_json,
)
from dinoneck.data.mark_checks import (
    warn_of_marks,
    warn_of_turned_boxes,
)
from dinoneck.data.mask_checks import check_masks, warn_of_unchecked_masks
from dinoneck.data.segmentations import (
    RECTANGLES,
    MaskCrop,
    Shape,
    check_pycocotools,
    crop_mask,
    decode,
    is_empty,
    polygon_extent,
    read_shape,
    run_length_extents,
)
from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.images.decoding import read_pixels, to_uint8
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.images.recipe import IMAGENET_MEAN, IMAGENET_STD
from dinoneck.text import in_words, shorten, some_of

logger = logging.getLogger(__name__)

Target = dict[str, Any]
Flip = Literal["horizontal", "both"]
BBox = tuple[float, float, float, float]

SHORTEST_PX = 1  # side of a box
ZEROS = (0.0, 0.0, 0.0, 0.0)  # of tools that write a bbox though they know none
_MOST_SIZES = 20  # images whose sizes are read before the form of boxes is doubted
LARGEST_ZOOM = 2.0  # sides of the canvas over those of the image
# reasons to leave an object out, see BoxImages.skipped
OTHER_CLASS = "other class"
WITHOUT_BOX = "without box"
NOT_FINITE = "not finite"
TOO_SMALL = "too small"
OUTSIDE = "outside"
TWICE = "twice"
EMPTY_MASK = "empty mask"
CROWD = "crowd"
BOXES_OF_MASKS = "boxes taken from their masks"  # a kind of repair, as it is logged
MASKS_NOT_READ = "the masks were not read; make the dataset with masks=True"


@dataclass(slots=True)
class _BoxObject(ListedObject):
    """An object with a box.

    Attributes:
        corners: left, top, right and bottom of its box in pixels, cut at the edge of the image.
        shape: its mask; None if masks are not asked for.
    """

    corners: BBox
    shape: Shape | None


class BoxImages(ListedImages):
    """Images with boxes in COCO JSON form, for training and testing detectors.

    All entries are checked when the dataset is made; an image is decoded when it is asked for.
    ``dataset[i]`` is ``(image, target)``: a uint8 ``tv_tensors.Image`` (3, H, W), RGB, turned
    upright by its EXIF tag, and a dict of

    * ``boxes``: float32 ``tv_tensors.BoundingBoxes`` (n, 4), XYXY in pixels of the upright image;
    * ``labels``: int64 (n,), 0-based and without gaps, indices into ``classes``;
    * ``masks``: only with ``masks=True``, uint8 ``tv_tensors.Mask`` (n, H, W);
    * ``image_id``: the image's id in the JSON;
    * ``size``: (height, width) of the image before any transform.

    Images without boxes stay: background is information. An image of more than 8 bits comes to 8.

    Args:
        annotations: the JSON with ``images`` (id, file_name, width, height), ``annotations`` (id,
            image_id, category_id, bbox as x, y, width, height in pixels, iscrowd, segmentation as
            polygons or RLE) and ``categories`` (id, name).
        images: the folder that file names are relative to; None = the folder of the JSON if it
            holds the first image, else ``images`` in it, or next to it if the JSON lies in
            ``annotations``.
        transform: called as ``transform(image, target)``, for instance
            :func:`dinoneck.data.box_transforms`.
        classes: names to keep, in the order that labels number them; boxes of others are skipped
            and counted. None = all, by ascending category id. Give the test set the classes of the
            training set. If the file lacks some, names are compared without case and blanks.
        allow_unlisted: whether the file may lack some of the ``classes``, as a test set may that
            shows none of them; a warning names them. A file that has other classes too is refused.
        masks: also give the mask of every box (needs pycocotools, the extra ``masks``).
        crowd: ``"ignore"``: entries with ``iscrowd`` are regions of many objects, which are neither
            trained on nor scored. ``"objects"``: they are objects, as in exports that mark every
            mask.
        bits: how many bits images of 16 bits use, see :class:`dinoneck.data.Preprocessing`.

    Attributes:
        file: the JSON.
        classes: names, in the order of the labels.
        category_ids: their ids in the JSON, in the same order, to write results with; None of a
            class that the JSON does not list.
        unlisted: labels of the classes that the JSON does not list.
        ids: of the images: whole numbers, or texts if the JSON has other texts than numbers.
        paths: files of the images, in the same order.
        crowd: as passed.
        numbers: image id -> number of its objects, without crowd regions.
        class_counts: class -> number of its objects in all images, without crowd regions.
        skipped: reason -> number of boxes left out. The reasons are ``crowd``, ``other class``,
            ``unknown image``, ``not finite``, and five more. ``outside``: less than 1 px of a side
            lies in the image. ``too small``: a side is shorter than 1 px. ``twice``: image, class,
            box and mask are equal. ``without box``: it has no box and no mask. ``empty mask`` (with
            ``masks``): no pixel of the mask lies in the image.
        repaired: what was written in another way than COCO's, and read -> how often.
        clipped: boxes that reached over the image's edge and were cut there.
        without_boxes: images that have none left.

    Raises:
        DataError: if the JSON or an image cannot be used, the boxes are given in another form
            (corners, shares of the image's sides), or they contradict their masks or areas; it
            names the file, the entry, the value and the remedy.
        ConfigError: if ``crowd`` is another word.
        ImportError: if masks are asked for and pycocotools is not installed.

    Examples:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (40, 30)).save(folder / "a.png")
        >>> box = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [30, 10, 20, 5]}
        >>> content = {"images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}],
        ...            "annotations": [box], "categories": [{"id": 3, "name": "cell"}]}
        >>> _ = (folder / "boxes.json").write_text(json.dumps(content))
        >>> data = BoxImages(folder / "boxes.json")
        >>> image, target = data[0]
        >>> target["boxes"].tolist(), target["labels"].tolist(), data.classes, data.clipped
        ([[30.0, 10.0, 40.0, 15.0]], [0], ('cell',), 1)
    """

    _objects: Sequence[Sequence[_BoxObject]]

    def __init__(
        self,
        annotations: PathLike,
        images: PathLike | None = None,
        *,
        transform: Callable[[Any, Target], Any] | None = None,
        classes: Sequence[str] | None = None,
        masks: bool = False,
        crowd: Crowd = "ignore",
        bits: int | None = None,
        allow_unlisted: bool = False,
    ) -> None:
        if masks:
            check_pycocotools()
        with _paused_collector():
            opened = open_json(
                annotations, CocoBox, images, classes, crowd, allow_unlisted=allow_unlisted
            )
            boxes = opened.annotations
            super().__init__(opened)
            self.transform = transform
            self.masks = masks
            self.bits = bits
            self.clipped = 0
            self._objects = self._objects_of_images(boxes)
        self._log_repairs()
        self._log_skipped(boxes)

    @property
    def without_boxes(self) -> int:
        """How many images have no box."""
        return sum(all(entry.is_crowd for entry in objects) for objects in self._objects)

    @property
    def longest_box(self) -> float | None:
        """The longest side of a box in pixels of its image, without crowd regions; None if there is no box."""
        longest = 0.0
        for objects in self._objects:
            for entry in objects:
                left, top, right, bottom = entry.corners
                if not entry.is_crowd:
                    longest = max(longest, right - left, bottom - top)
        return longest or None

    def __getitem__(self, i: int) -> Any:
        image, boxes = self.original(i)
        size = boxes.canvas_size
        target: Target = {
            "boxes": boxes,
            "labels": self.labels(i),
            "image_id": self.ids[i],
            "size": size,
        }
        if self.masks:
            planes = torch.zeros(len(boxes), *size, dtype=torch.uint8)
            kept = [entry for entry in self._objects[i] if not entry.is_crowd]
            for plane, entry in zip(planes, kept, strict=True):
                plane.copy_(torch.from_numpy(_decoded(entry, *size)))
            target["masks"] = tv_tensors.Mask(planes)
        if self.transform is None:
            return image, target
        return self.transform(image, target)

    def original(self, i: int) -> tuple[tv_tensors.Image, tv_tensors.BoundingBoxes]:
        """Return one image and its boxes without the transform, for instance to draw them.

        Raises:
            DataError: if the image cannot be read, or has another size than in the JSON.
        """
        image = to_uint8(read_pixels(self.paths[i], self.bits))
        size = self._check_size(i, (image.shape[-2], image.shape[-1]))
        return tv_tensors.Image(image), tv_tensors.BoundingBoxes(
            self.corners(i), format="XYXY", canvas_size=size
        )

    def corners(self, i: int) -> Tensor:
        """Return the boxes of an image, float32 (n, 4), XYXY in its pixels; the image is not decoded."""
        corners = [entry.corners for entry in self._objects[i] if not entry.is_crowd]
        return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)

    def labels(self, i: int) -> Tensor:
        """Return the labels of the boxes of an image, int64 (n,); the image is not decoded."""
        labels = [entry.label for entry in self._objects[i] if not entry.is_crowd]
        return torch.tensor(labels, dtype=torch.int64)

    def mask_crops(self, i: int) -> list[MaskCrop]:
        """Return the mask of each box of an image, cut out around its pixels; the image is not decoded.

        In large images that takes far less memory than whole masks.

        Raises:
            DataError: without ``masks=True``.
        """
        image = self._images[i]
        crops = []
        for entry in self._objects[i]:
            if not entry.is_crowd:
                crops.append(_crop(entry, image.height, image.width))
        return crops

    def pixels(self, i: int) -> Ids:
        """Return the ids of the pixels of an image (H, W), int64; small objects lie on top, crowd regions below.

        An id is 1000 * (class + 1) + the number of the object in its class, -1000 * (class + 1) in
        a crowd region of the class, 0 where nothing is.

        Raises:
            DataError: without ``masks=True``, if the image has another size than in the JSON, or
                1000 objects of a class or more.
        """
        return self._object_map(i).ids()

    def _object_map(self, i: int) -> ObjectMap:
        """Which object every pixel of an image belongs to, as :meth:`pixels`, for any number of objects.

        Raises:
            DataError: without ``masks=True``, or if the image has another size than in the JSON.
        """
        if not self.masks:
            raise DataError(MASKS_NOT_READ)
        size = self._check_size(i)
        objects = self._objects[i]
        crops = [_crop(entry, *size) for entry in objects]
        # drawn first: crowd regions; then objects, the large ones before the small ones
        order = sorted(
            range(len(objects)),
            key=lambda row: (not objects[row].is_crowd, -crops[row].pixels.sum()),
        )
        rows = np.full(size, NO_OBJECT, np.int64)
        for row in order:
            crop = crops[row]
            height, width = crop.pixels.shape
            window = rows[crop.top : crop.top + height, crop.left : crop.left + width]
            window[crop.pixels] = row
        return self._map_of_rows(i, rows, background=0)

    def ground_truth(self) -> dict[str, Any]:
        """Return what was kept as a COCO dict, for COCO's evaluation; no image is decoded.

        Boxes are as clipped, with their category ids of the JSON and new ids from 1; crowd regions
        are back, marked by ``iscrowd``, so that the evaluation ignores detections inside them. With
        masks a box has its ``segmentation``.
        """
        annotations: list[dict[str, Any]] = []
        for image, objects in zip(self._images, self._objects, strict=True):
            for entry in objects:
                left, top, right, bottom = entry.corners
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": image.id,
                    "category_id": self.category_ids[entry.label],
                    "iscrowd": int(entry.is_crowd),
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                }
                if self.masks:
                    annotation["area"] = int(_decoded(entry, image.height, image.width).sum())
                    annotation["segmentation"] = msgspec.to_builtins(entry.shape)
                annotations.append(annotation)
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.classes, strict=True)
            if category_id is not None
        ]
        return {
            "images": msgspec.to_builtins(self._images),
            "annotations": annotations,
            "categories": categories,
        }

    def _objects_of_images(self, boxes: Sequence[CocoBox]) -> list[list[_BoxObject]]:
        """The objects of each image: boxes are clipped, and compared with their images and masks."""
        crowds_are_regions = self.crowd == "ignore"
        selected = self._select(boxes)
        bboxes = bboxes_of(selected)
        equal = find_equal(selected, bboxes, crowds_are_regions=crowds_are_regions)
        lost = Counter[str]()  # reason -> boxes that show nothing
        visible: list[BoxOfImage] = []
        for entry in selected:
            reason = reason_to_skip(entry.bbox, clip(entry.bbox, entry.image))
            if reason:
                lost[reason] += 1
                self._count_skipped(entry, reason)
            elif entry.index in equal.repeated:
                self._count_skipped(entry, TWICE)
            else:
                visible.append(entry)
        self._read_shapes(visible)

        # what the file says of its boxes, in this order: the first error explains those that follow
        self._check_sizes(reaching_over_edge(selected, bboxes))
        check_forms(self.file, selected, bboxes, lost)
        self._check_boxes(visible)
        self._warn_of_contradictions(equal, visible)
        warn_of_twins(self.file, visible, crowds_are_regions=crowds_are_regions)

        objects: dict[Any, list[_BoxObject]] = {image_id: [] for image_id in self.ids}
        for entry in visible:
            if self.masks and _shows_nothing(entry):
                self._count_skipped(entry, EMPTY_MASK)
            else:
                objects[entry.image.id].append(self._object_of(entry))
        return list(objects.values())

    def _read_shapes(self, boxes: Sequence[BoxOfImage]) -> None:
        """Read the masks of boxes into their ``shape``.

        Raises:
            DataError: with ``masks=True``, if none of the boxes has a mask, or one cannot be read.
        """
        # repairs of masks that are only compared are not reported
        repairs = self.repaired if self.masks else Repairs()
        if self.masks:
            self._check_masked(boxes)
        for entry in boxes:
            entry.shape = self._read_shape(entry, repairs)

    def _check_sizes(self, boxes: Sequence[BoxOfImage]) -> None:
        """Compare the sizes of the images of some boxes with their files: other sizes explain the boxes.

        Raises:
            DataError: if the JSON states another size.
        """
        row_of = {image_id: row for row, image_id in enumerate(self.ids)}
        rows = dict.fromkeys(row_of[entry.image.id] for entry in boxes)
        for row in list(rows)[:_MOST_SIZES]:
            self._check_size(row)

    def _count_skipped(self, entry: BoxOfImage, reason: str) -> None:
        """Count a box that is left out; a crowd region counts as one, whatever else it is."""
        self.skipped[CROWD if self._is_crowd(entry.box.iscrowd) else reason] += 1

    def _object_of(self, entry: BoxOfImage) -> _BoxObject:
        """The object that a box shows; a crowd region and a box that is clipped are counted."""
        is_crowd = self._is_crowd(entry.box.iscrowd)
        corners = clip(entry.bbox, entry.image)
        if is_crowd:
            self.skipped[CROWD] += 1  # it is kept as a region, but is no object
        elif is_clipped(entry.bbox, corners):
            self.clipped += 1
        return _BoxObject(
            label=self._label_of[entry.box.category_id],
            is_crowd=is_crowd,
            corners=corners,
            shape=entry.shape if self.masks else None,
        )

    def _check_boxes(self, visible: Sequence[BoxOfImage]) -> None:
        """Compare boxes with their masks and areas, and look at what they say of themselves."""
        masked = measure_masks(visible)
        check_masks(self.file, masked, num_boxes=len(visible))
        warn_of_unchecked_masks(self.file, masked)
        warn_of_mask_areas(self.file, masked)
        check_areas(self.file, visible)
        warn_of_turned_boxes(self.file, visible)
        warn_of_marks(self.file, visible)
        if self.masks:
            self._check_shown(visible)
            check_holes(self.file, visible)
            warn_of_crossing_outlines(self.file, visible)

    def _warn_of_contradictions(self, equal: EqualBoxes, visible: Sequence[BoxOfImage]) -> None:
        """Warn of equal boxes of two classes."""
        shown = {entry.index for entry in visible}
        pairs = []
        for first, second in equal.contradicting:
            if first.index in shown and second.index in shown:
                pairs.append((first, second))
        if not pairs:
            return
        first, second = pairs[0]
        logger.warning(
            "%s: %d of %d boxes are in the place of a box of another class, such as %s, %r, and %s, "
            "%r, both %s in image %s. If an object has one class, take the wrong one out",
            self.file,
            len(pairs),
            len(visible),
            first.name,
            self.classes[self._label_of[first.box.category_id]],
            second.name,
            self.classes[self._label_of[second.box.category_id]],
            list(first.bbox),
            first.image.id,
        )

    def _select(self, boxes: Sequence[CocoBox]) -> list[BoxOfImage]:
        """The boxes of the classes and of listed images; the others are counted."""
        image_of = {image.id: image for image in self._images}
        selected = []
        for i, box in enumerate(boxes):
            image = image_of.get(box.image_id)
            if box.category_id not in self._label_of:
                self.skipped[OTHER_CLASS] += 1
                continue
            if image is None:
                self.skipped[UNKNOWN_IMAGE] += 1
                continue
            bbox = box.bbox
            if (bbox is None or bbox == ZEROS) and box.segmentation:
                bbox = self._bbox_of_mask(i, box, image)
            if bbox is None:
                self.skipped[WITHOUT_BOX] += 1
            else:
                selected.append(BoxOfImage(i, box, bbox, image))
        return selected

    def _bbox_of_mask(self, i: int, box: CocoBox, image: CocoImage) -> BBox:
        """The extent of the mask of an annotation that has no box, or one of zeros."""
        try:
            bbox = self._extent_of_mask(i, box, image)
        except (DataError, ImportError):
            if box.bbox is None:
                raise
            return box.bbox
        self.repaired[BOXES_OF_MASKS] += 1
        return bbox

    def _extent_of_mask(self, i: int, box: CocoBox, image: CocoImage) -> BBox:
        """The extent of a mask as x, y, width and height."""
        where = f"{self.file}: {name_entry('annotations', i, box.id)}"
        # the mask is read again with those of the other boxes, and its repairs are counted there
        uncounted = Repairs()
        shape = read_shape(box, (image.height, image.width), where, uncounted)
        if shape is None:
            raise DataError(
                f"{where} has no bbox, and its segmentation {shorten(box.segmentation)} covers no "
                f"area; expected a bbox: {BBOX}"
            )
        if isinstance(shape, list):
            left, top, right, bottom = polygon_extent(shape)
        else:
            left, top, right, bottom = run_length_extents([shape])[0].tolist()
        return left, top, right - left, bottom - top

    def _read_shape(self, entry: BoxOfImage, repairs: Repairs) -> Shape | None:
        """The mask of a box; without ``masks`` it is only compared, so what cannot be read is None."""
        size = (entry.image.height, entry.image.width)
        if self.masks:
            return read_shape(entry.box, size, f"{self.file}: {entry.name}", repairs)
        if not entry.box.segmentation:
            return None
        try:
            return read_shape(entry.box, size, "", repairs)
        except DataError:
            return None

    def _check_masked(self, boxes: Sequence[BoxOfImage]) -> None:
        """Refuse a file of boxes alone where masks are asked for."""
        if boxes and all(entry.box.segmentation is None for entry in boxes):
            raise DataError(
                f"{self.file}: none of the {len(boxes)} objects has a mask (segmentation), such as "
                f"{boxes[0].name}; draw masks, or train a detector of boxes (--boxes)"
            )

    def _check_shown(self, boxes: Sequence[BoxOfImage]) -> None:
        """Refuse a file of which no object has a mask that shows something."""
        if not boxes:
            return
        if all(entry.shape is None for entry in boxes):
            first = boxes[0]
            raise DataError(
                f"{self.file}: the masks of all {len(boxes)} objects are empty, such as the "
                f"segmentation {shorten(first.box.segmentation)} of {first.name}; expected "
                "polygons of three points or more, [[x, y, x, y, x, y, ...]], or run lengths"
            )
        num_rectangles = self.repaired[RECTANGLES]  # boxes that were read as their own mask
        # rectangles are masks only next to masks
        if num_rectangles >= len(boxes):
            raise DataError(
                f"{self.file}: none of the {len(boxes)} objects has a mask: their segmentation is "
                "empty or repeats the box; draw masks, or train a detector of boxes (--boxes)"
            )

    def _log_skipped(self, boxes: Sequence[CocoBox]) -> None:
        """Say what was left out; crowd regions have a line of their own."""
        left_out = Counter(self.skipped)
        self._log_crowd(left_out.pop(CROWD, 0), len(boxes))
        if left_out:
            logger.warning(
                "%s: boxes left out: %s (of %d)", self.file, in_words(left_out), len(boxes)
            )


@contextlib.contextmanager
def _paused_collector() -> Iterator[None]:
    """Pause Python's garbage collector.

    A file of 100,000 boxes becomes millions of values, none of them garbage; the collector looks at
    them again and again, which takes half of the time of reading.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _shows_nothing(entry: BoxOfImage) -> bool:
    """Whether the mask of an object has no pixel in its image."""
    if entry.shape is None:
        return True
    return is_empty(entry.shape, entry.image.height, entry.image.width)


def clip(bbox: BBox, image: CocoImage) -> BBox:
    """Return left, top, right and bottom of the part of a box that lies in its image."""
    x, y, width, height = bbox
    return (
        max(x, 0.0),
        max(y, 0.0),
        min(x + width, float(image.width)),
        min(y + height, float(image.height)),
    )


def is_clipped(bbox: BBox, corners: BBox) -> bool:
    """Whether corners are those of a part of a box."""
    x, y, width, height = bbox
    return corners != (x, y, x + width, y + height)


def reason_to_skip(bbox: BBox, corners: BBox) -> str:
    """Return why a box shows nothing; empty if it shows something.

    Args:
        bbox: x, y, width and height.
        corners: left, top, right and bottom of the part in the image.
    """
    left, top, right, bottom = corners
    if not all(map(math.isfinite, bbox)):
        return NOT_FINITE
    if min(bbox[2], bbox[3]) < SHORTEST_PX:
        return TOO_SMALL
    if min(right - left, bottom - top) < SHORTEST_PX:
        return OUTSIDE
    return ""


def _decoded(entry: _BoxObject, height: int, width: int) -> np.ndarray[Any, Any]:
    """The mask of an object (height, width), uint8."""
    if entry.shape is None:
        raise DataError(MASKS_NOT_READ)
    return decode(entry.shape, height, width)


def _crop(entry: _BoxObject, height: int, width: int) -> MaskCrop:
    """The mask of an object around its pixels."""
    if entry.shape is None:
        raise DataError(MASKS_NOT_READ)
    return crop_mask(entry.shape, height, width)


def box_transforms(
    size: int | tuple[int, int],
    *,
    train: bool,
    flip: Flip | None = "horizontal",
    photometric: bool = True,
    zoom: bool = False,
    crop: bool = False,
    antialias: bool = True,
    mean: Sequence[float] | None = IMAGENET_MEAN,
    std: Sequence[float] | None = IMAGENET_STD,
    min_box_px: float = SHORTEST_PX,
) -> v2.Compose:
    """Give the transform of :class:`dinoneck.data.BoxImages`: boxes follow their pixels.

    Every image is stretched to ``size``, so that batches stack and :func:`to_original` is one
    division. Training draws from torch's global random state: the same seed gives the same
    images.

    Args:
        size: (height, width) in pixels of the result, or one number for both; a multiple of the
            patch.
        train: augment, and drop boxes that came out smaller than ``min_box_px``. Otherwise only
            resize and normalise, and keep every box.
        flip: ``horizontal`` mirrors half of the images; ``both`` also turns half upside down, for
            images without an up; None leaves them.
        photometric: change brightness, contrast and saturation of half of the images. Hues stay and
            channels are never exchanged: colours may be what tells classes apart.
        zoom: place half of the images on a larger canvas of the mean colour, at most twice as wide
            and high: objects become smaller (torchvision's ``RandomZoomOut``).
        crop: cut a part out of most images that holds the centre of at least one box, and drop
            boxes whose centre is outside: objects become larger (torchvision's ``RandomIoUCrop``).
        antialias: off: in float32 and without antialiasing, as RF-DETR takes images.
        mean: per channel in 0 ... 1, as in ``backbone.preprocess``; None (with ``std=None``) leaves
            the values in 0 ... 1, for detectors that normalise themselves.
        std: per channel, given or None together with ``mean``.
        min_box_px: the shortest side, in pixels of the result, that a box of training may have; 1
            or more.

    Raises:
        ConfigError: if mean or std is given alone, or they are not three numbers each. Also if
            ``flip`` is another value, a side of ``size`` is no whole number from 1 on, or
            ``min_box_px`` is below 1.

    Examples:
        >>> from torchvision import tv_tensors
        >>> image = tv_tensors.Image(torch.zeros(3, 30, 40, dtype=torch.uint8))
        >>> box = tv_tensors.BoundingBoxes([[10.0, 3.0, 20.0, 9.0]], format="XYXY", canvas_size=(30, 40))
        >>> target = {"boxes": box, "labels": torch.tensor([0])}
        >>> image, target = box_transforms((64, 96), train=False)(image, target)
        >>> tuple(image.shape), [round(v, 2) for v in target["boxes"][0].tolist()]
        ((3, 64, 96), [24.0, 6.4, 48.0, 19.2])
    """
    height_and_width = _check_transform(size, mean, std, flip)
    if not min_box_px >= SHORTEST_PX:
        raise ConfigError(f"min_box_px is {min_box_px}; expected {SHORTEST_PX} or more")
    steps: list[Any] = []
    if train and zoom:
        mean_colour = [round(255 * value) for value in mean or IMAGENET_MEAN]
        fill = {tv_tensors.Mask: 0, "others": mean_colour}
        steps.append(v2.RandomZoomOut(fill=fill, side_range=(1.0, LARGEST_ZOOM)))
    if train and crop:
        steps.append(v2.RandomIoUCrop())
    if train and flip is not None:
        steps.append(v2.RandomHorizontalFlip())
    if train and flip == "both":
        steps.append(v2.RandomVerticalFlip())
    if not antialias:
        steps.append(v2.ToDtype(torch.float32, scale=True))
    steps.append(v2.Resize(height_and_width, antialias=antialias))
    if train and photometric:
        jitter = v2.ColorJitter(brightness=0.2, contrast=0.3, saturation=0.3)
        steps.append(v2.RandomApply([jitter]))
    if train:
        steps.append(v2.ClampBoundingBoxes())
        steps.append(v2.SanitizeBoundingBoxes(min_size=float(min_box_px)))
    steps.append(v2.ToDtype(torch.float32, scale=True))
    if mean is not None and std is not None:
        steps.append(v2.Normalize(list(mean), list(std)))
    return v2.Compose(steps)


def _check_transform(size: Any, mean: Any, std: Any, flip: Any) -> list[int]:
    """The size as [height, width]; an error where an argument cannot be used."""
    if size is None:
        raise ConfigError(
            "size is None; expected (height, width) in pixels, or one number for both"
        )
    if (mean is None) != (std is None):
        raise ConfigError(f"mean is {mean} and std is {std}; expected both, or None for both")
    if mean is not None and len(mean) != len(IMAGENET_MEAN):
        raise ConfigError(f"mean is {tuple(map(float, mean))}; expected three numbers, for R, G, B")
    if flip not in (None, *get_args(Flip)):
        raise ConfigError(f"flip is {flip!r}; expected one of {', '.join(get_args(Flip))}, or None")
    pair = (size, size) if isinstance(size, int) else tuple(size)
    # it checks the values that it shares with this transform
    Preprocessing(
        patch_size=1,
        size=pair,
        mean=IMAGENET_MEAN if mean is None else tuple(mean),
        std=IMAGENET_STD if std is None else tuple(std),
    )
    return list(pair)


def to_original(boxes: Tensor, size: Sequence[int], original: Sequence[int]) -> Tensor:
    """Bring boxes from pixels of the resized image back to pixels of the image itself.

    It undoes what ``box_transforms(size, train=False)`` did.

    Args:
        boxes: XYXY in pixels of the image that the detector saw.
        size: (height, width) of that image.
        original: (height, width) of the image, ``target["size"]``.

    Shape:
        (..., 4) -> (..., 4).

    Raises:
        ShapeError: if the last axis has another length than 4, or a size is no (height, width).

    Examples:
        >>> to_original(torch.tensor([[24.0, 6.4, 48.0, 19.2]]), (64, 96), (30, 40)).round().tolist()
        [[10.0, 3.0, 20.0, 9.0]]
    """
    if not boxes.ndim or boxes.shape[-1] != 4:
        raise ShapeError(
            f"boxes have shape {tuple(boxes.shape)}; expected (..., 4): left, top, right, bottom"
        )
    for name, sides in (("size", size), ("original", original)):
        if len(sides) != 2 or min(sides) < 1:
            raise ShapeError(
                f"{name} is {tuple(sides)}; expected (height, width) in pixels, each 1 or more"
            )
    x_factor = original[1] / size[1]
    y_factor = original[0] / size[0]
    corners = boxes.as_subclass(Tensor) * 1.0  # integers become floats
    return corners * corners.new_tensor([x_factor, y_factor, x_factor, y_factor])


def collate_boxes(
    batch: Sequence[tuple[Tensor, dict[str, Any]]],
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Stack images of one size into (B, 3, H, W) and list their targets: the ``collate_fn`` of a DataLoader.

    Raises:
        ShapeError: if the images have several sizes, or there is none.
    """
    images = [image.as_subclass(Tensor) for image, _ in batch]
    targets = [target for _, target in batch]
    if not images:
        raise ShapeError("the batch is empty; expected one (image, target) or more")
    shapes = sorted({tuple(image.shape) for image in images})
    if len(shapes) > 1:
        raise ShapeError(
            f"the images of a batch have {len(shapes)} sizes (channels, height, width): "
            f"{some_of(map(str, shapes), 5)}; give the dataset transform=box_transforms(size, ...)"
        )
    return torch.stack(images), targets
