"""Images with boxes, read from COCO JSON: checked whole when opened, decoded one by one.

:class:`BoxImages` is a torch dataset; :func:`dinoneck.data.box_transforms` brings its images and boxes to one size.
"""

from __future__ import annotations

import copy
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from dinoneck.data.coco import CocoBox, CocoImage, read_categories, read_coco, refuse_repeats, short
from dinoneck.data.decoding import read_pixels
from dinoneck.data.resizing import to_uint8
from dinoneck.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

Target = dict[str, Any]
Array = np.ndarray[Any, Any]

_SHOWN = 3
_MOST_CLIPPED = 0.1  # of the boxes; above it their form is in doubt
_OF_ONE_FORM = 0.99  # of the boxes fit a form if the file is in it: single entries may be wrong
_ROUNDING_PX = 2  # by which a rounded box may reach over the edge
_FEWEST = 10  # boxes; fewer of them may fit another form by chance


class BoxImages(Dataset[Any]):
    """Images with boxes in COCO JSON form, for training and testing detectors.

    All entries are checked when the dataset is made; an image is decoded when it is asked for. ``dataset[i]`` is
    ``(image, target)``: a uint8 ``tv_tensors.Image`` (3, H, W), RGB, turned upright by its EXIF tag, and a dict of

    * ``boxes``: float32 ``tv_tensors.BoundingBoxes`` (n, 4), XYXY in pixels of the upright image;
    * ``labels``: int64 (n,), 0-based and without gaps, indices into ``classes``;
    * ``image_id``: the image's id in the JSON;
    * ``size``: (height, width) of the image before any transform.

    Images without boxes stay: background is information. An image of more than 8 bits comes to 8.

    Args:
        annotations: the JSON with ``images`` (id, file_name, width, height), ``annotations`` (id, image_id,
            category_id, bbox as x, y, width, height in pixels, iscrowd) and ``categories`` (id, name).
        images: the folder that file names are relative to; None = the folder of the JSON, or ``images`` in it,
            whichever holds the first image.
        transform: called as ``transform(image, target)``, for instance :func:`dinoneck.data.box_transforms`.
        min_side_px: a box with a shorter side, inside the image, is skipped and counted.
        classes: names to keep, in the order that labels number them; boxes of others are skipped and counted.
            None = all, by ascending category id. Give the test set the classes of the training set.
        form: ``torchvision``: targets as its reference training engine reads them: every value is a tensor, labels
            count from 1, and ``area`` and ``iscrowd`` (all 0) are there too.

    Attributes:
        classes: names, in the order of the labels.
        category_ids: their ids in the JSON, in the same order, to write results with.
        ids: the images' ids, in the order of the JSON.
        skipped: reason -> boxes left out: ``zero area``, ``outside``, ``not finite``, ``too small``, ``crowd``,
            ``other class``, ``unknown image``.
        clipped: boxes that reached over the image's edge and were cut there.
        without_boxes: images that have none left.

    Raises:
        DataError: if the JSON or an image cannot be used, or the boxes are given in another form (corners, shares of
            the image's sides); it names the file, the entry, the value and the remedy.
        ConfigError: if ``min_side_px`` is out of range.

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
        min_side_px: float = 1.0,
        classes: Sequence[str] | None = None,
        form: Literal["dinoneck", "torchvision"] = "dinoneck",
    ) -> None:
        if isinstance(min_side_px, bool) or not isinstance(min_side_px, int | float) or not 0 <= min_side_px < math.inf:
            raise ConfigError(f"min_side_px is {min_side_px!r}; expected a number of pixels, 0 or more")
        if form not in ("dinoneck", "torchvision"):
            raise ConfigError(f"form is {form!r}; expected 'dinoneck' or 'torchvision'")
        file = Path(annotations)
        content = read_coco(file)
        entries = [CocoImage.read(entry, f"{file}: images[{i}]") for i, entry in enumerate(content["images"])]
        if not entries:
            raise DataError(f"{file} lists no images; a dataset needs one or more")
        refuse_repeats([entry.id for entry in entries], f"{file}: images: the id")
        refuse_repeats([str(PurePath(entry.name)) for entry in entries], f"{file}: images: the file_name")
        self.file = file
        self.transform, self.form = transform, form
        self.ids = tuple(entry.id for entry in entries)
        self._entries = tuple(entries)
        self._folder = _folder(file, images, entries)
        _refuse_missing(self._folder, entries, file)
        self.classes, self.category_ids, listed = read_categories(content["categories"], classes, file)
        self.skipped: Counter[str] = Counter()
        self.clipped = 0
        self._keep(content["annotations"], listed, float(min_side_px))
        self.without_boxes = sum(not len(labels) for labels in self._labels)
        if self.skipped:
            counts = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
            logger.warning("%s: boxes skipped: %s", file, counts)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The images' files, in the order of :attr:`ids`."""
        return tuple(self._folder / entry.name for entry in self._entries)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Any:
        image, boxes = self.original(i)
        height, width = boxes.canvas_size
        target: Target = {
            "boxes": boxes,
            "labels": torch.from_numpy(self._labels[i].copy()),
            "image_id": self.ids[i],
            "size": (height, width),
        }
        if self.form == "torchvision":
            target = {
                **target,
                "labels": target["labels"] + 1,
                "image_id": torch.tensor(self.ids[i]),
                "size": torch.tensor(target["size"]),
                "area": (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
                "iscrowd": torch.zeros_like(target["labels"]),
            }
        return (image, target) if self.transform is None else self.transform(image, target)

    def original(self, i: int) -> tuple[tv_tensors.Image, tv_tensors.BoundingBoxes]:
        """Return one image and its boxes without the transform, for instance to draw them.

        Raises:
            DataError: if the image cannot be read, or has another size than in the JSON.
        """
        entry = self._entries[i]
        path = self._folder / entry.name
        image = to_uint8(read_pixels(path))
        height, width = image.shape[-2:]
        if (height, width) != (entry.height, entry.width):
            raise DataError(
                f"the upright image of {path} is {height}x{width} px (height x width), {self.file} has "
                f"{entry.height}x{entry.width} for image {entry.id}; its boxes belong to another image: correct the "
                "JSON or restore the file"
            )
        boxes = torch.from_numpy(self._boxes[i]).float()
        return tv_tensors.Image(image), tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))

    def take(self, rows: Iterable[int]) -> BoxImages:
        """Return the dataset of these images, in this order, each once; the counts stay those of the whole JSON.

        Raises:
            DataError: if there are none, or one is given twice.
        """
        places = [range(len(self))[i] for i in rows]
        if not places or len(set(places)) != len(places):
            raise DataError(f"rows are {short(places)}; expected one image or more, each once")
        part = copy.copy(self)
        part._entries = tuple(self._entries[i] for i in places)
        part.ids = tuple(entry.id for entry in part._entries)
        part._boxes = tuple(self._boxes[i] for i in places)
        part._labels = tuple(self._labels[i] for i in places)
        part._crowds = {new: self._crowds[i] for new, i in enumerate(places) if i in self._crowds}
        part.without_boxes = sum(not len(labels) for labels in part._labels)
        return part

    def first(self, count: int) -> BoxImages:
        """Return the dataset of the first ``count`` images, or of all if there are fewer."""
        return self.take(range(min(count, len(self))))

    def ground_truth(self) -> dict[str, Any]:
        """Return what was kept as a COCO dict, for COCO's evaluation; no image is decoded.

        Boxes are as clipped, with their category ids of the JSON and new ids from 1; crowd regions are back, marked
        by ``iscrowd``, since detections inside them count for nothing.
        """
        boxes: list[dict[str, Any]] = []
        for i, entry in enumerate(self._entries):
            crowds, crowd_labels = self._crowds.get(i, ((), ()))
            for crowd, rows, labels in ((0, self._boxes[i], self._labels[i]), (1, crowds, crowd_labels)):
                for (left, top, right, bottom), label in zip(rows, labels, strict=True):
                    box = [float(left), float(top), float(right - left), float(bottom - top)]
                    category = self.category_ids[int(label)]
                    own = {"id": len(boxes) + 1, "image_id": entry.id, "category_id": category, "bbox": box}
                    boxes.append({**own, "area": box[2] * box[3], "iscrowd": crowd})
        images = [{"id": e.id, "file_name": e.name, "width": e.width, "height": e.height} for e in self._entries]
        names = zip(self.category_ids, self.classes, strict=True)
        categories = [{"id": category, "name": name} for category, name in names]
        return {"images": images, "annotations": boxes, "categories": categories}

    def _keep(self, annotations: Sequence[Any], listed: Mapping[int, int | None], min_side_px: float) -> None:
        """Sort the boxes to their images, clip them and count what is left out."""
        place = {image_id: i for i, image_id in enumerate(self.ids)}
        kept: list[list[tuple[float, ...]]] = [[] for _ in self.ids]
        crowds: dict[int, list[tuple[float, ...]]] = {}
        seen: set[int] = set()
        for number, entry in enumerate(annotations):
            where = f"{self.file}: annotations[{number}]"
            box = CocoBox.read(entry, where)
            if box.id in seen:
                raise DataError(f"{where}: the id {box.id} is given twice; give every entry an id of its own")
            seen.add(box.id)
            if box.category not in listed:
                raise DataError(
                    f"{where} has the category_id {box.category}, which is not among the categories "
                    f"{sorted(listed)[:20]}; list it there or correct it"
                )
            label, i = listed[box.category], place.get(box.image)
            if i is None or label is None:
                self.skipped["other class" if label is None else "unknown image"] += 1
                continue
            corners, reason = _clip(box.bbox, self._entries[i], min_side_px)
            if reason is None and box.crowd:
                crowds.setdefault(i, []).append((*corners, label))
            reason = "crowd" if box.crowd else reason
            if reason is not None:
                self.skipped[reason] += 1
                continue
            x, y, width, height = box.bbox
            self.clipped += corners != (x, y, x + width, y + height)
            kept[i].append((*corners, label))
        self._refuse_other_forms(annotations, sum(map(len, kept)))
        self._boxes, self._labels = zip(*(_arrays(rows) for rows in kept), strict=True)
        self._crowds = {i: _arrays(rows) for i, rows in crowds.items()}

    def _refuse_other_forms(self, annotations: Sequence[Any], kept: int) -> None:
        """Refuse boxes that are corners (XYXY), or shares of the image's sides, in place of x, y, width, height."""
        sizes = {image.id: (image.width, image.height) for image in self._entries}
        pairs = [(sizes[entry["image_id"]], entry["bbox"]) for entry in annotations if entry["image_id"] in sizes]
        if not pairs or not self.classes:
            return
        example = f"such as {short(pairs[0][1])} in an image of {pairs[0][0][0]}x{pairs[0][0][1]} px (width x height)"
        expected = "expected x, y of the upper left corner, width and height in pixels"
        small = sum(max(map(abs, bbox)) <= 1 < min(size) for size, bbox in pairs)
        if small >= _OF_ONE_FORM * len(pairs) and any(max(bbox) > 0 for _, bbox in pairs):
            message = (
                f"{self.file}: {small} of {len(pairs)} boxes have no value above 1, {example}; {expected}. They seem "
                "to be shares of the image's width and height: multiply them by its size"
            )
            _refuse(message, certain=len(pairs) > 1)
        differing = [(size, bbox) for size, bbox in pairs if bbox[0] or bbox[1]]  # at 0, 0 both forms are the same
        corners = [
            (x + right > w + _ROUNDING_PX or y + low > h + _ROUNDING_PX)
            for (w, h), (x, y, right, low) in differing
            if 0 <= x < right <= w + 1 and 0 <= y < low <= h + 1
        ]
        if len(corners) >= _OF_ONE_FORM * len(differing) and sum(corners) > _MOST_CLIPPED * len(differing):
            message = (
                f"{self.file}: {sum(corners)} of {len(pairs)} boxes reach over the edge of their image, {example}; "
                f"{expected}. They seem to be corners, x1, y1, x2, y2: write x1, y1, x2 - x1, y2 - y1"
            )
            _refuse(message, certain=len(differing) >= _FEWEST)
        cut = sum(
            min(x, y) < -_ROUNDING_PX or w > width - x + _ROUNDING_PX or h > height - y + _ROUNDING_PX
            for (width, height), (x, y, w, h) in pairs
        )
        if len(pairs) >= _FEWEST and cut > _MOST_CLIPPED * len(pairs):
            logger.warning(
                "%s: %s of %s boxes reach over the edge of their image and are cut there, %s; %s. Check whether x, y "
                "are centres",
                *(self.file, cut, len(pairs), example, expected),
            )
        geometry = sum(self.skipped[reason] for reason in ("zero area", "outside", "not finite", "too small"))
        if geometry and not kept and geometry == sum(self.skipped.values()):
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
            raise DataError(f"{self.file}: every box is left out ({reasons}), {example}; {expected}")


def _refuse(message: str, *, certain: bool) -> None:
    """Refuse boxes of another form, or warn where they are too few to tell."""
    if certain:
        raise DataError(message)
    logger.warning("%s, unless they are right", message)


def _clip(bbox: tuple[float, ...], image: CocoImage, min_side_px: float) -> tuple[tuple[float, ...], str | None]:
    """The corners inside the image, and why the box is left out, or None."""
    x, y, width, height = bbox
    if not all(math.isfinite(value) for value in (*bbox, x + width, y + height)):
        return bbox, "not finite"
    if not width or not height:
        return bbox, "zero area"
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, float(image.width)), min(y + height, float(image.height))
    if right <= left or bottom <= top:
        return bbox, "outside"
    sides = np.float32(right) - np.float32(left), np.float32(bottom) - np.float32(top)
    small = min(sides) <= 0 or min(right - left, bottom - top) < min_side_px
    return (left, top, right, bottom), "too small" if small else None


def _arrays(rows: Sequence[tuple[float, ...]]) -> tuple[Array, Array]:
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return np.ascontiguousarray(table[:, :4]), table[:, 4].astype(np.int64)


def _folder(file: Path, images: str | os.PathLike[str] | None, entries: Sequence[CocoImage]) -> Path:
    if images is not None:
        folder = Path(images)
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder} with images; check the path")
        return folder
    places = (file.parent, file.parent / "images")
    for folder in places:
        if _bytes(folder / entries[0].name) is not None:
            return folder
    raise DataError(
        f"{file} lists the image {short(entries[0].name)}, which is neither in {places[0]} nor in {places[1]}; "
        "pass images=FOLDER"
    )


def _refuse_missing(folder: Path, entries: Sequence[CocoImage], file: Path) -> None:
    sizes = {entry.name: _bytes(folder / entry.name) for entry in entries}
    for wrong, state in ((None, "are not in"), (0, "are empty files in")):
        names = [name for name, size in sizes.items() if size == wrong]
        if names:
            shown = ", ".join(short(name) for name in names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
            raise DataError(
                f"{len(names)} of the {len(entries)} images of {file} {state} {folder}: {shown}; restore them or take "
                "their entries out of the JSON"
            )


def _bytes(path: Path) -> int | None:
    """The size of a file; None where there is none, or its name cannot be one."""
    try:
        return path.stat().st_size if path.is_file() else None
    except (OSError, ValueError):
        return None
