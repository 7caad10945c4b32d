"""Images with boxes and masks of COCO JSON, YOLO or VOC: checked whole when opened, decoded one by one.

:class:`BoxImages` is a torch dataset; :func:`box_transforms` brings its images and boxes to one
size, for training with augmentation, and :func:`to_original` is the way back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dinoneck.data.cells import PathLike
from dinoneck.data.coco import Listed
from dinoneck.data.coco_checks import (
    SHORTEST_PX,
    BBox,
    LeftOut,
    check_bbox,
    clip,
    is_cut,
    reason_to_leave_out,
)
from dinoneck.data.coco_entries import CocoBox, Crowd
from dinoneck.data.listed_images import (
    NO_OBJECT,
    Ids,
    ListedImages,
    ListedObject,
    ObjectMap,
    read_listed,
)
from dinoneck.data.segmentations import (
    Mask,
    MaskCrop,
    area_of,
    check_pycocotools,
    crop_mask,
    decode,
    extent_of,
    is_rectangle,
    polygon_extent,
    reaches_beyond,
    read_mask,
    read_polygons,
    rectangle,
)
from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.images.decoding import read_pixels, to_uint8
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.images.recipe import IMAGENET_MEAN, IMAGENET_STD
from dinoneck.text import some_of

if TYPE_CHECKING:  # its import takes as long as that of torch; only what decodes images needs it
    from torchvision import tv_tensors
    from torchvision.transforms import v2

Target = dict[str, Any]
Flip = Literal["horizontal", "both"]

LARGEST_ZOOM = 2.0  # sides of the canvas over those of the image
MASKS_NOT_READ = "the masks were not read; make the dataset with masks=True"


@dataclass(slots=True)
class _BoxObject(ListedObject):
    """An object with a box.

    Attributes:
        corners: left, top, right and bottom of its box in pixels, cut at the edge of the image.
        mask: None if masks are not asked for.
    """

    corners: BBox
    mask: Mask | None


class BoxImages(ListedImages, Dataset[Any]):
    """Images with boxes of COCO JSON, YOLO or VOC, for training and testing detectors.

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
        annotations: COCO JSON with ``images`` (id, file_name, width, height), ``annotations`` (id,
            image_id, category_id, bbox as x, y, width, height in pixels, iscrowd, segmentation as
            polygons or RLE) and ``categories`` (id, name); or a ``data.yaml`` of YOLO; or the folder
            ``Annotations`` of VOC.
        images: the folder that file names are relative to; None = the folder of the JSON if it
            holds the first image, else ``images`` in it, or next to it if the JSON lies in
            ``annotations``. Of YOLO and VOC None = by their files.
        part: ``train``, ``val`` or ``test`` of a ``data.yaml``, or of VOC with ``ImageSets``; None =
            train, or all images where no parts are stated.
        transform: called as ``transform(image, target)``, for instance
            :func:`dinoneck.data.box_transforms`.
        classes: names to keep, in the order that labels number them; boxes of others are skipped
            and counted. None = all, by ascending category id. Give the test set the classes of the
            training set.
        allow_unlisted: whether the file may lack some of the ``classes``, as a test set may that
            shows none of them.
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
        skipped: reason -> number of objects left out: ``other class``, ``too small`` (a side is
            shorter than 1 px), ``outside`` (less than 1 px of a side lies in the image), ``twice``
            (image, class, corners and mask are equal), ``without box`` (and without a mask); with
            ``masks`` also ``without mask`` and ``empty mask`` (no pixel lies in the image).
        first_skipped: reason -> where the first of them stands.
        clipped: boxes that reached over the image's edge and were cut there.
        num_crowds: how many crowd regions there are.
        rectangles: objects whose mask is their box: with ``segmentation`` ``[]``, as CVAT writes
            them, or the two corners of the box, or a box among YOLO's polygons.
        masks_beyond_boxes: masks that reach more than 2 px beyond their boxes; they are kept.
        left_out: what of the files was not read, in words -> how often.
        without_boxes: images that have none left.

    Raises:
        DataError: if a file or an image cannot be used, a box is not four numbers, one box has two
            classes, no pixel of a mask lies in its box, or more than half of the objects would be
            left out; it names the file, the entry, the value and the remedy.
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
        part: str | None = None,
        transform: Callable[[Any, Target], Any] | None = None,
        classes: Sequence[str] | None = None,
        masks: bool = False,
        crowd: Crowd = "ignore",
        bits: int | None = None,
        allow_unlisted: bool = False,
    ) -> None:
        if masks:
            check_pycocotools()
        listed = read_listed(annotations, images, part)
        super().__init__(listed, classes=classes, crowd=crowd, allow_unlisted=allow_unlisted)
        self.transform = transform
        self.masks = masks
        self.bits = bits
        self.masks_beyond_boxes = 0
        self.rectangles = 0
        self._objects = self._objects_of_images(listed)

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
        from torchvision import tv_tensors

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
                plane.copy_(torch.from_numpy(decode(_mask_of(entry))))
            target["masks"] = tv_tensors.Mask(planes)
        if self.transform is None:
            return image, target
        return self.transform(image, target)

    def original(self, i: int) -> tuple[tv_tensors.Image, tv_tensors.BoundingBoxes]:
        """Return one image and its boxes without the transform, for instance to draw them.

        Raises:
            DataError: if the image cannot be read, or has another size than in the JSON.
        """
        from torchvision import tv_tensors

        image = to_uint8(read_pixels(self.paths[i], self.bits))
        size = self._check_size(i, (image.shape[-2], image.shape[-1]))
        return tv_tensors.Image(image), tv_tensors.BoundingBoxes(
            self.corners(i), format="XYXY", canvas_size=size
        )

    def corners(self, i: int) -> Tensor:
        """Return the boxes of an image, float32 (n, 4), XYXY in its pixels; the image is not decoded."""
        corners = [entry.corners for entry in self._objects[i] if not entry.is_crowd]
        return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)

    def crowd_corners(self, i: int) -> list[tuple[float, ...]]:
        """Return the boxes of the crowd regions of an image, XYXY in its pixels; it is not decoded."""
        return [tuple(entry.corners) for entry in self._objects[i] if entry.is_crowd]

    def labels(self, i: int) -> Tensor:
        """Return the labels of the boxes of an image, int64 (n,); the image is not decoded."""
        return torch.tensor(self.labels_of(i), dtype=torch.int64)

    def mask_crops(self, i: int) -> list[MaskCrop]:
        """Return the mask of each box of an image, cut out around its pixels; the image is not decoded.

        In large images that takes far less memory than whole masks.

        Raises:
            DataError: without ``masks=True``.
        """
        kept = [entry for entry in self._objects[i] if not entry.is_crowd]
        return [crop_mask(_mask_of(entry)) for entry in kept]

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
        crops = [crop_mask(_mask_of(entry)) for entry in objects]
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
        images = []
        annotations: list[dict[str, Any]] = []
        for i, image_id in enumerate(self.ids):
            height, width = self.sizes[i]
            image = {"id": image_id, "file_name": self.paths[i].name}
            images.append({**image, "height": height, "width": width})
            for entry in self._objects[i]:
                annotation = self._annotation_of(entry)
                annotations.append({"id": len(annotations) + 1, "image_id": image_id, **annotation})
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.classes, strict=True)
            if category_id is not None
        ]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _annotation_of(self, entry: _BoxObject) -> dict[str, Any]:
        """An object as COCO's evaluation takes it."""
        left, top, right, bottom = entry.corners
        annotation: dict[str, Any] = {
            "category_id": self.category_ids[entry.label],
            "iscrowd": int(entry.is_crowd),
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
        }
        if self.masks:
            mask = _mask_of(entry)
            annotation["area"] = area_of(mask)
            annotation["segmentation"] = {"size": list(mask.size), "counts": mask.counts.decode()}
        return annotation

    # when the dataset is made

    def _objects_of_images(self, listed: Listed[CocoBox]) -> list[list[_BoxObject]]:
        """The objects of each image: boxes are checked, and cut at the edge of their image."""
        row_of = {image_id: row for row, image_id in enumerate(self.ids)}
        objects: list[list[_BoxObject]] = [[] for _ in self.ids]
        # image, class, corners and crowd -> the first annotation
        first_of: dict[tuple[Any, ...], int] = {}
        left_out = LeftOut()
        boxes = listed.coco.annotations
        for i, box in enumerate(boxes):
            if box.category_id not in self._label_of:
                self.skipped["other class"] += 1
                continue
            where = listed.place(i)
            row = row_of[box.image_id]
            entry = self._object_of(box, self.sizes[row], where, left_out)
            if entry is None:
                continue
            key = (row, entry.label, entry.corners, entry.is_crowd)
            first = first_of.setdefault(key, i)
            if first != i and _have_one_mask(boxes[first], box):
                left_out.add("twice", where)
                continue
            objects[row].append(entry)
        if self.rectangles and self.rectangles == sum(map(len, objects)):
            raise DataError(
                f"{self.file}: none of {self.rectangles} objects has a mask, all are rectangles; draw "
                "masks, or train a detector of boxes (--boxes)"
            )
        left_out.check(self.file, total=len(boxes) - self.skipped["other class"])
        self.skipped = +(self.skipped + left_out.counts)
        self.first_skipped = left_out.firsts
        return objects

    def _object_of(
        self, box: CocoBox, size: tuple[int, int], where: str, left_out: LeftOut
    ) -> _BoxObject | None:
        """The object that an annotation shows; None if it shows nothing, which is counted."""
        bbox = check_bbox(box.bbox, where) if box.bbox else _bbox_of_mask(box, size, where)
        if bbox is None:
            left_out.add("without box", where)
            return None
        mask = read_mask(box.segmentation, size, where) if self.masks else None
        is_box = self.masks and mask is None and is_rectangle(box.segmentation, bbox)
        if is_box:
            mask = rectangle(bbox, size)
        corners = clip(bbox, size)
        reason = reason_to_leave_out(bbox, corners)
        if not reason and self.masks:
            if mask is None:
                reason = "without mask"
            elif not area_of(mask):
                reason = "empty mask"
        if reason:
            left_out.add(reason, where)
            return None
        is_crowd = self._is_crowd(box.iscrowd)
        self.rectangles += is_box
        if mask is not None and reaches_beyond(mask, bbox, where):
            self.masks_beyond_boxes += 1
        if not is_crowd and is_cut(bbox, corners):
            self.clipped += 1
        return _BoxObject(self._label_of[box.category_id], is_crowd, corners, mask)


def _bbox_of_mask(box: CocoBox, size: tuple[int, int], where: str) -> BBox | None:
    """The extent of the mask of an annotation without a bbox; None if it has no mask either."""
    polygons = read_polygons(box.segmentation, where)
    if polygons:
        left, top, right, bottom = polygon_extent(polygons)
    else:
        mask = None if polygons == [] else read_mask(box.segmentation, size, where)
        if mask is None:
            return None
        left, top, right, bottom = extent_of(mask)
    return left, top, right - left, bottom - top


def _have_one_mask(box: CocoBox, other: CocoBox) -> bool:
    """Whether two boxes of one place are not told apart by masks."""
    masks = {bytes(entry.segmentation) for entry in (box, other)} - {b"", b"[]", b"null"}
    return len(masks) < 2


def _mask_of(entry: _BoxObject) -> Mask:
    """The mask of an object.

    Raises:
        DataError: if masks were not read.
    """
    if entry.mask is None:
        raise DataError(MASKS_NOT_READ)
    return entry.mask


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
    from torchvision import tv_tensors
    from torchvision.transforms import v2

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
