"""Images with boxes and masks, read from COCO JSON: checked whole when opened, decoded one by one.

:class:`BoxImages` is a torch dataset; :func:`box_transforms` brings its images and boxes to one
size, for training with augmentation, and :func:`to_original` is the way back.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from dinoneck.data.cells import PathLike
from dinoneck.data.coco import (
    BBOX,
    Classes,
    Coco,
    CocoBox,
    Ids,
    Listed,
    ListedImages,
    decoded,
    shape_of,
)
from dinoneck.data.decoding import read_pixels, to_uint8
from dinoneck.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from dinoneck.errors import ConfigError, DataError, ShapeError

logger = logging.getLogger(__name__)

Target = dict[str, Any]
Flip = Literal["horizontal", "both"]

# of 10 boxes or more may reach over the edge; else they are of another form, such as corners
_MOST_OVER = 0.1
_FEWEST = 10  # boxes; of fewer, many may reach over the edge by chance
# of the boxes may show nothing; else they are of another form, such as shares of the sides
_MOST_LOST = 0.99
_ROUNDING_PX = 2  # by which a rounded box may reach over the edge
_SHORTEST_PX = 1  # side of a box
_LARGEST_ZOOM = 2.0  # sides of the canvas over those of the image


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
        images: the folder that file names are relative to; None = the folder of the JSON, or
            ``images`` in it, whichever holds the first image.
        transform: called as ``transform(image, target)``, for instance
            :func:`dinoneck.data.box_transforms`.
        classes: names to keep, in the order that labels number them; boxes of others are skipped
            and counted. None = all, by ascending category id. Give the test set the classes of the
            training set.
        masks: also give the mask of every box (needs pycocotools, the extra ``masks``).
        bits: how many bits images of 16 bits use, see :class:`dinoneck.data.Preprocessing`.

    Attributes:
        ids: the images' ids, in the order of the JSON.
        classes: names, in the order of the labels.
        category_ids: their ids in the JSON, in the same order, to write results with.
        skipped: reason -> boxes left out: ``outside`` (less than 1 px of a side lies in the image),
            ``not finite``, ``too small`` (a side is shorter than 1 px), ``crowd``, ``other class``,
            ``unknown image``.
        clipped: boxes that reached over the image's edge and were cut there.
        without_boxes: images that have none left.

    Raises:
        DataError: if the JSON or an image cannot be used, or the boxes are given in another form
            (corners, shares of the image's sides); it names the file, the entry, the value and the
            remedy.

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

    def __init__(
        self,
        annotations: PathLike,
        images: PathLike | None = None,
        *,
        transform: Callable[[Any, Target], Any] | None = None,
        classes: Classes = None,
        masks: bool = False,
        bits: int | None = None,
    ) -> None:
        self.transform, self.masks = transform, masks
        self.bits = bits
        self._objects = self._sorted(
            self._open(annotations, Coco[CocoBox], images, classes).annotations
        )
        if self.skipped:
            logger.warning("%s: boxes skipped: %s", self.file, dict(self.skipped))

    @property
    def without_boxes(self) -> int:
        """How many images have no box."""
        return sum(all(box.crowd for box in boxes) for boxes in self._objects)

    def __getitem__(self, i: int) -> Any:
        image, boxes = self.original(i)
        size, kept = boxes.canvas_size, [box for box in self._objects[i] if not box.crowd]
        labels = torch.tensor([box.label for box in kept], dtype=torch.int64)
        target: Target = {"boxes": boxes, "labels": labels, "image_id": self.ids[i], "size": size}
        if self.masks:
            planes = [torch.from_numpy(decoded(box.shape, *size))[None] for box in kept]
            target["masks"] = tv_tensors.Mask(torch.cat([image.new_zeros(0, *size), *planes]))
        return (image, target) if self.transform is None else self.transform(image, target)

    def original(self, i: int) -> tuple[tv_tensors.Image, tv_tensors.BoundingBoxes]:
        """Return one image and its boxes without the transform, for instance to draw them.

        Raises:
            DataError: if the image cannot be read, or has another size than in the JSON.
        """
        kept, image = (
            [box.corners for box in self._objects[i] if not box.crowd],
            to_uint8(read_pixels(self.paths[i], self.bits)),
        )
        size = self._size(i, (image.shape[-2], image.shape[-1]))
        boxes = torch.tensor(kept, dtype=torch.float32).reshape(-1, 4)
        return tv_tensors.Image(image), tv_tensors.BoundingBoxes(
            boxes, format="XYXY", canvas_size=size
        )

    def pixels(self, i: int) -> Ids:
        """Return the ids of the pixels of an image (H, W), int64; small objects lie on top, crowd regions below.

        An id is 1000 * (class + 1) + the number of the object in its class, -1000 * (class + 1) in
        a crowd region of the class, 0 where nothing is.

        Raises:
            DataError: without ``masks=True``, if the image has another size than in the JSON, or
                1000 objects of a class or more.
        """
        if not self.masks:
            raise DataError("the masks were not read; make the dataset with masks=True")
        size, numbers, boxes = self._size(i), self._numbered(i), self._objects[i]
        ids, masks = np.zeros(size, np.int64), [decoded(box.shape, *size) > 0 for box in boxes]
        for place in sorted(range(len(boxes)), key=lambda k: (not boxes[k].crowd, -masks[k].sum())):
            ids[masks[place]] = numbers[place]
        return ids

    def ground_truth(self) -> dict[str, Any]:
        """Return what was kept as a COCO dict, for COCO's evaluation; no image is decoded.

        Boxes are as clipped, with their category ids of the JSON and new ids from 1; crowd regions
        are back, marked by ``iscrowd``, since detections inside them count for nothing. With masks
        a box has its ``segmentation``.
        """
        listed: list[dict[str, Any]] = []
        for entry, boxes in zip(self._entries, self._objects, strict=True):
            for label, crowd, shape, (left, top, right, bottom), _ in boxes:
                about = {
                    "image_id": entry.id,
                    "category_id": self.category_ids[label],
                    "iscrowd": int(crowd),
                }
                box = {
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                }
                if self.masks:
                    area = int(decoded(shape, entry.height, entry.width).sum())
                    box |= {"segmentation": msgspec.to_builtins(shape), "area": area}
                listed.append({"id": len(listed) + 1, **about, **box})
        categories = [
            {"id": i, "name": name} for i, name in zip(self.category_ids, self.classes, strict=True)
        ]
        return {
            "images": msgspec.to_builtins(self._entries),
            "annotations": listed,
            "categories": categories,
        }

    def _sorted(self, boxes: Sequence[CocoBox]) -> list[list[Listed]]:
        """Clip the boxes, count what is left out, and sort the others to their images."""
        entry_of = {entry.id: entry for entry in self._entries}
        kept: dict[int, list[Listed]] = {image_id: [] for image_id in self.ids}
        self.skipped, self.clipped, over, lost, count = Counter[str](), 0, 0, 0, 0
        for i, box in enumerate(boxes):
            entry, label = entry_of.get(box.image_id), self._label_of.get(box.category_id)
            if label is None or entry is None:
                self.skipped["other class" if label is None else "unknown image"] += 1
                continue
            x, y, width, height = box.bbox
            corners = (
                max(x, 0.0),
                max(y, 0.0),
                min(x + width, entry.width * 1.0),
                min(y + height, entry.height * 1.0),
            )
            cut = max(
                corners[0] - x, corners[1] - y, x + width - corners[2], y + height - corners[3]
            )
            # of what is inside the image
            shortest = min(corners[2] - corners[0], corners[3] - corners[1])
            reason = "" if all(map(math.isfinite, box.bbox)) else "not finite"
            reason = reason or ("too small" if min(width, height) < _SHORTEST_PX else "")
            reason = reason or ("outside" if shortest < _SHORTEST_PX else "")
            over, lost, count = over + (cut > _ROUNDING_PX), lost + bool(reason), count + 1
            if not reason:
                shape = (
                    shape_of(box, f"{self.file}: annotations[{i}]", entry) if self.masks else None
                )
                kept[entry.id].append(Listed(label, bool(box.iscrowd), shape, corners))
            if reason or box.iscrowd:
                self.skipped["crowd" if box.iscrowd else reason] += 1
            elif cut > 0:
                self.clipped += 1
        if lost > _MOST_LOST * count or (count >= _FEWEST and over > _MOST_OVER * count):
            counts = f"{over} of {count} boxes leave their image and {lost} show nothing"
            raise DataError(
                f"{self.file}: {counts}, the first is {boxes[0].bbox}; expected {BBOX}, cut at "
                "the edge"
            )
        return [*kept.values()]


def box_transforms(
    size: int | tuple[int, int],
    *,
    train: bool,
    flip: Flip | None = "horizontal",
    photometric: bool = True,
    zoom: bool = False,
    crop: bool = False,
    mean: Sequence[float] | None = IMAGENET_MEAN,
    std: Sequence[float] | None = IMAGENET_STD,
    min_box_px: float = _SHORTEST_PX,
) -> v2.Compose:
    """Give the transform of :class:`dinoneck.data.BoxImages`: boxes follow their pixels.

    Every image is stretched to ``size``, antialiased, so that batches stack and :func:`to_original`
    is one division. Training draws from torch's global random state: the same seed gives the same
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
        mean: per channel in 0 ... 1, as in ``backbone.preprocess``; None (with ``std=None``) leaves
            the values in 0 ... 1, for detectors that normalise themselves.
        std: per channel, given or None together with ``mean``.
        min_box_px: the shortest side, in pixels of the result, that a box of training may have; 1
            or more.

    Raises:
        ConfigError: if mean or std is given alone, ``flip`` is another value, or ``min_box_px`` is
            below 1.

    Examples:
        >>> from torchvision import tv_tensors
        >>> image = tv_tensors.Image(torch.zeros(3, 30, 40, dtype=torch.uint8))
        >>> box = tv_tensors.BoundingBoxes([[10.0, 3.0, 20.0, 9.0]], format="XYXY", canvas_size=(30, 40))
        >>> target = {"boxes": box, "labels": torch.tensor([0])}
        >>> image, target = box_transforms((64, 96), train=False)(image, target)
        >>> tuple(image.shape), [round(v, 2) for v in target["boxes"][0].tolist()]
        ((3, 64, 96), [24.0, 6.4, 48.0, 19.2])
    """
    if (mean is None) != (std is None):
        raise ConfigError(f"mean is {mean} and std is {std}; expected both, or None for both")
    if flip not in (None, *get_args(Flip)):
        raise ConfigError(f"flip is {flip!r}; expected one of {', '.join(get_args(Flip))}, or None")
    if not min_box_px >= _SHORTEST_PX:
        raise ConfigError(f"min_box_px is {min_box_px}; expected {_SHORTEST_PX} or more")
    steps: list[Any] = []
    if train and zoom:
        mean_colour = [round(255 * value) for value in mean or IMAGENET_MEAN]
        fill = {tv_tensors.Mask: 0, "others": mean_colour}
        steps.append(v2.RandomZoomOut(fill=fill, side_range=(1.0, _LARGEST_ZOOM)))
    if train and crop:
        steps.append(v2.RandomIoUCrop())
    if train and flip is not None:
        steps.append(v2.RandomHorizontalFlip())
    if train and flip == "both":
        steps.append(v2.RandomVerticalFlip())
    steps.append(v2.Resize([size, size] if isinstance(size, int) else list(size), antialias=True))
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
        ShapeError: if the last axis has another length than 4.

    Examples:
        >>> to_original(torch.tensor([[24.0, 6.4, 48.0, 19.2]]), (64, 96), (30, 40)).round().tolist()
        [[10.0, 3.0, 20.0, 9.0]]
    """
    if not boxes.ndim or boxes.shape[-1] != 4:
        raise ShapeError(
            f"boxes have shape {tuple(boxes.shape)}; expected (..., 4): left, top, right, bottom"
        )
    x, y = original[1] / size[1], original[0] / size[0]
    plain = boxes.as_subclass(Tensor) * 1.0  # integers become floats
    return plain * plain.new_tensor([x, y, x, y])


def collate_boxes(
    batch: Sequence[tuple[Tensor, dict[str, Any]]],
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Stack images of one size into (B, 3, H, W) and list their targets: the ``collate_fn`` of a DataLoader."""
    return torch.stack([image.as_subclass(Tensor) for image, _ in batch]), [
        target for _, target in batch
    ]
