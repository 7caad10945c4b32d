"""Images with boxes and masks, read from COCO JSON: checked whole when opened, decoded one by one.

:class:`BoxImages` is a torch dataset; :func:`dinoneck.data.box_transforms` brings its images and boxes to one size.
"""

from __future__ import annotations

import copy
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from dinoneck.data.coco import BBOX, CocoBox, CocoImage, chosen_classes, decoded, read_coco, shape_of
from dinoneck.data.decoding import read_pixels
from dinoneck.data.resizing import to_uint8
from dinoneck.errors import DataError, some_of

logger = logging.getLogger(__name__)

Target = dict[str, Any]
Array = np.ndarray[Any, Any]

_SHOWN = 3
_MOST_OVER = 0.1  # of the boxes; above it they are of another form
_MOST_UNUSABLE = 0.99  # of the boxes; above it, as for shares of the sides, they are of another form
_ROUNDING_PX = 2  # by which a rounded box may reach over the edge
_FEWEST = 10  # boxes; of fewer, the edge may cut so many by chance
_SHORTEST_PX = 1  # side of a box


class _Rows(NamedTuple):
    """The boxes of one image: corners (n, 4), labels (n,), which are crowds (n,), and their masks."""

    corners: Array
    labels: Array
    crowd: Array
    shapes: list[Any]


class BoxImages(Dataset[Any]):
    """Images with boxes in COCO JSON form, for training and testing detectors.

    All entries are checked when the dataset is made; an image is decoded when it is asked for. ``dataset[i]`` is
    ``(image, target)``: a uint8 ``tv_tensors.Image`` (3, H, W), RGB, turned upright by its EXIF tag, and a dict of

    * ``boxes``: float32 ``tv_tensors.BoundingBoxes`` (n, 4), XYXY in pixels of the upright image;
    * ``labels``: int64 (n,), 0-based and without gaps, indices into ``classes``;
    * ``masks``: only with ``masks=True``, uint8 ``tv_tensors.Mask`` (n, H, W);
    * ``image_id``: the image's id in the JSON;
    * ``size``: (height, width) of the image before any transform.

    Images without boxes stay: background is information. An image of more than 8 bits comes to 8.

    Args:
        annotations: the JSON with ``images`` (id, file_name, width, height), ``annotations`` (id, image_id,
            category_id, bbox as x, y, width, height in pixels, iscrowd, segmentation as polygons or RLE) and
            ``categories`` (id, name).
        images: the folder that file names are relative to; None = the folder of the JSON, or ``images`` in it,
            whichever holds the first image.
        transform: called as ``transform(image, target)``, for instance :func:`dinoneck.data.box_transforms`.
        classes: names to keep, in the order that labels number them; boxes of others are skipped and counted.
            None = all, by ascending category id. Give the test set the classes of the training set.
        masks: also give the mask of every box (needs pycocotools, the extra ``detection``).

    Attributes:
        classes: names, in the order of the labels.
        category_ids: their ids in the JSON, in the same order, to write results with.
        skipped: reason -> boxes left out: ``outside``, ``not finite``, ``too small`` (a side in the image is shorter
            than 1 px), ``crowd``, ``other class``, ``unknown image``.
        clipped: boxes that reached over the image's edge and were cut there.
        without_boxes: images that have none left.

    Raises:
        DataError: if the JSON or an image cannot be used, or the boxes are given in another form (corners, shares of
            the image's sides); it names the file, the entry, the value and the remedy.

    Examples:
        >>> import json, tempfile
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

    def __init__(
        self,
        annotations: str | os.PathLike[str],
        images: str | os.PathLike[str] | None = None,
        *,
        transform: Callable[[Any, Target], Any] | None = None,
        classes: Sequence[str] | None = None,
        masks: bool = False,
    ) -> None:
        self.file, self.transform, self.masks = Path(annotations), transform, masks
        coco = read_coco(self.file)
        self.classes, self.category_ids = chosen_classes(coco.categories, classes, self.file)
        self._entries = tuple(coco.images)
        self._folder = _folder(self.file, images, self._entries)
        self.skipped: Counter[str] = Counter()
        self._rows = self._sorted(coco.annotations)
        if self.skipped:
            logger.warning("%s: boxes skipped: %s", self.file, _listed(self.skipped))

    @property
    def ids(self) -> tuple[int, ...]:
        """The images' ids, in the order of the JSON."""
        return tuple(entry.id for entry in self._entries)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The images' files, in the order of :attr:`ids`."""
        return tuple(self._folder / entry.file_name for entry in self._entries)

    @property
    def without_boxes(self) -> int:
        """How many images have no box."""
        return sum(bool(rows.crowd.all()) for rows in self._rows)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, i: int) -> Any:
        image, boxes = self.original(i)
        size, rows = boxes.canvas_size, self._rows[i]
        labels = torch.from_numpy(rows.labels[~rows.crowd])
        target: Target = {"boxes": boxes, "labels": labels, "image_id": self._entries[i].id, "size": size}
        if self.masks:
            planes = [decoded(shape, *size) for shape in rows.shapes]
            target["masks"] = tv_tensors.Mask(torch.from_numpy(np.array(planes, np.uint8).reshape(-1, *size)))
        return (image, target) if self.transform is None else self.transform(image, target)

    def original(self, i: int) -> tuple[tv_tensors.Image, tv_tensors.BoundingBoxes]:
        """Return one image and its boxes without the transform, for instance to draw them.

        Raises:
            DataError: if the image cannot be read, or has another size than in the JSON.
        """
        entry, rows = self._entries[i], self._rows[i]
        path = self._folder / entry.file_name
        image = to_uint8(read_pixels(path))
        size = height, width = image.shape[-2], image.shape[-1]
        if size != (entry.height, entry.width):
            raise DataError(
                f"the upright image of {path} is {height}x{width} px (height x width), {self.file} has "
                f"{entry.height}x{entry.width} for image {entry.id}; its boxes belong to another image: correct the "
                "JSON or restore the file"
            )
        boxes = torch.from_numpy(rows.corners[~rows.crowd]).float()
        return tv_tensors.Image(image), tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)

    def take(self, rows: Iterable[int]) -> BoxImages:
        """Return the dataset of these images, in this order; the counts stay those of the whole JSON."""
        part, rows = copy.copy(self), list(rows)
        part._entries = tuple(self._entries[row] for row in rows)
        part._rows = [self._rows[row] for row in rows]
        return part

    def ground_truth(self) -> dict[str, Any]:
        """Return what was kept as a COCO dict, for COCO's evaluation; no image is decoded.

        Boxes are as clipped, with their category ids of the JSON and new ids from 1; crowd regions are back, marked
        by ``iscrowd``, since detections inside them count for nothing.
        """
        boxes: list[dict[str, Any]] = []
        for image_id, rows in zip(self.ids, self._rows, strict=True):
            for (left, top, right, bottom), label, crowd in zip(*rows[:3], strict=True):
                box = [float(left), float(top), float(right - left), float(bottom - top)]
                about = {"image_id": image_id, "category_id": self.category_ids[label], "iscrowd": int(crowd)}
                boxes.append({"id": len(boxes) + 1, **about, "bbox": box, "area": box[2] * box[3]})
        names = zip(self.category_ids, self.classes, strict=True)
        categories = [{"id": category, "name": name} for category, name in names]
        return {"images": msgspec.to_builtins(self._entries), "annotations": boxes, "categories": categories}

    def _sorted(self, boxes: Sequence[CocoBox]) -> list[_Rows]:
        """Clip the boxes, count what is left out, and sort the others to their images."""
        image = _places([box.image_id for box in boxes], self.ids)
        label = _places([box.category_id for box in boxes], self.category_ids)
        crowd = np.array([box.iscrowd for box in boxes], bool)
        sizes = [(entry.height, entry.width) for entry in self._entries]
        xywh, limits = np.reshape([box.bbox for box in boxes], (-1, 4)), np.array(sizes, np.float64)[image, ::-1]
        ends = np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])
        _check_form(ends[image >= 0], limits[image >= 0], self.file)
        corners = np.hstack([ends[:, :2].clip(0), np.minimum(ends[:, 2:], limits)])
        nowhere = {"other class": label < 0, "unknown image": image < 0}
        unusable = {
            "not finite": ~np.isfinite(ends).all(axis=1),
            "too small": (xywh[:, 2:] < _SHORTEST_PX).any(axis=1),
            "outside": (corners[:, 2:] - corners[:, :2] < _SHORTEST_PX).any(axis=1),
        }
        kept = np.ones(len(boxes), bool)
        for reason, where in {**nowhere, "crowd": crowd, **unusable}.items():
            self.skipped += Counter({reason: int((kept & where).sum())})
            kept &= ~where
        if len(boxes) and np.any([*unusable.values()], axis=0).mean() > _MOST_UNUSABLE:
            raise DataError(f"{self.file}: boxes are left out ({_listed(self.skipped)}), such as {xywh[0]}; {BBOX}")
        self.clipped = int((kept & (corners != ends).any(axis=1)).sum())
        usable = ~np.any([*nowhere.values(), *unusable.values()], axis=0)
        order = np.flatnonzero(usable)[np.argsort(image[usable], kind="stable")]
        groups = np.split(order, np.searchsorted(image[order], np.arange(1, len(sizes))))
        shapes = [
            [shape_of(boxes[i], f"{self.file}: annotations[{i}]", size) for i in rows if self.masks and not crowd[i]]
            for rows, size in zip(groups, sizes, strict=True)
        ]
        return [_Rows(corners[rows], label[rows], crowd[rows], own) for rows, own in zip(groups, shapes, strict=True)]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))


def _places(values: Sequence[int], known: Sequence[int]) -> Array:
    """The place of every value among those known; -1 where it is not there."""
    place_of = {value: place for place, value in enumerate(known)}
    return np.array([place_of.get(value, -1) for value in values], np.int64)


def _check_form(ends: Array, limits: Array, file: Path) -> None:
    """Refuse corners (n, 4) of boxes in another form; ``limits`` (n, 2) are the sides of their images."""
    over = ((ends[:, :2] < -_ROUNDING_PX) | (ends[:, 2:] > limits + _ROUNDING_PX)).any(axis=1)
    if len(ends) >= _FEWEST and over.mean() > _MOST_OVER:
        raise DataError(
            f"{file}: {over.sum()} of {len(ends)} boxes reach over the edge of their image, such as the box that ends "
            f"at x, y = {ends[over][0, 2:].tolist()}; {BBOX} (cut them at the edge if they are right)"
        )


def _folder(file: Path, images: str | os.PathLike[str] | None, entries: Sequence[CocoImage]) -> Path:
    """The folder of the images, where all of them are files with content."""
    places = [Path(images)] if images is not None else [file.parent, file.parent / "images"]
    folder = next((place for place in places if (place / entries[0].file_name).is_file()), places[0])
    files = ((entry.file_name, folder / entry.file_name) for entry in entries)
    if missing := [ascii(name) for name, path in files if not (path.is_file() and path.stat().st_size)]:
        where = " nor in ".join(map(str, places))
        raise DataError(
            f"{len(missing)} of the {len(entries)} images of {file} are missing or empty in {where}: "
            f"{some_of(missing, _SHOWN)}; pass images=FOLDER, restore them, or take their entries out of the JSON"
        )
    return folder
