"""Images with boxes -> batches of one size: augmentation for training, plain resizing for tests, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchvision.transforms import v2

from dinoneck.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from dinoneck.errors import ConfigError, DataError, ShapeError

Flip = Literal["horizontal", "both"]


def box_transforms(
    size: int | tuple[int, int],
    *,
    train: bool,
    flip: Flip | None = "horizontal",
    photometric: bool = True,
    mean: Sequence[float] | None = IMAGENET_MEAN,
    std: Sequence[float] | None = IMAGENET_STD,
) -> v2.Compose:
    """Give the transform of :class:`dinoneck.data.BoxImages`: boxes follow their pixels.

    Every image is stretched to ``size``, antialiased, so that batches stack and :func:`to_original` is one division.
    Training draws from torch's global random state: the same seed gives the same images.

    Args:
        size: (height, width) in pixels of the result, or one number for both; a multiple of the patch.
        train: augment, and drop boxes of which a side came out below 1 px. Otherwise only resize and
            normalise, and keep every box.
        flip: ``horizontal`` mirrors half of the images; ``both`` also turns half upside down, for images without
            an up; None leaves them.
        photometric: change brightness, contrast and saturation of half of the images. Hues stay and channels
            are never exchanged: colours may be what tells classes apart.
        mean: per channel in 0 ... 1, as in ``backbone.preprocess``; None (with ``std=None``) leaves the values in
            0 ... 1, for detectors that normalise themselves.
        std: per channel, given or None together with ``mean``.

    Raises:
        ConfigError: if a value is out of range.

    Examples:
        >>> from torchvision import tv_tensors
        >>> image = tv_tensors.Image(torch.zeros(3, 30, 40, dtype=torch.uint8))
        >>> box = tv_tensors.BoundingBoxes([[10.0, 3.0, 20.0, 9.0]], format="XYXY", canvas_size=(30, 40))
        >>> image, target = box_transforms((64, 96), train=False)(image, {"boxes": box, "labels": torch.tensor([0])})
        >>> tuple(image.shape), [round(v, 2) for v in target["boxes"][0].tolist()]
        ((3, 64, 96), [24.0, 6.4, 48.0, 19.2])
    """
    if (mean is None) != (std is None) or flip not in (None, *get_args(Flip)):
        raise ConfigError(f"mean is {mean}, std {std}, flip {flip!r}; expected mean and std or neither, a flip or None")
    colours = {} if mean is None else {"mean": mean, "std": std}
    recipe = Preprocessing(size=(size, size) if isinstance(size, int) else size, **colours)  # type: ignore[arg-type]
    steps: list[Any] = []
    if train and flip:
        steps.append(v2.RandomHorizontalFlip())
    if train and flip == "both":
        steps.append(v2.RandomVerticalFlip())
    steps.append(v2.Resize(list(recipe.size or ()), antialias=True))
    if train and photometric:
        steps.append(v2.RandomApply([v2.ColorJitter(brightness=0.2, contrast=0.3, saturation=0.3)]))
    if train:
        steps += [v2.ClampBoundingBoxes(), v2.SanitizeBoundingBoxes(min_size=1.0)]
    steps.append(v2.ToDtype(torch.float32, scale=True))
    if mean is not None:
        steps.append(v2.Normalize(list(recipe.mean), list(recipe.std)))
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
        DataError: if boxes are integers.

    Examples:
        >>> to_original(torch.tensor([[24.0, 6.4, 48.0, 19.2]]), (64, 96), (30, 40)).round().tolist()
        [[10.0, 3.0, 20.0, 9.0]]
    """
    if not boxes.ndim or boxes.shape[-1] != 4:
        raise ShapeError(f"boxes have shape {tuple(boxes.shape)}; expected (..., 4): left, top, right, bottom")
    if not boxes.is_floating_point():
        raise DataError(f"boxes are {boxes.dtype}; expected floating-point pixels, which scaling does not round")
    x, y = original[1] / size[1], original[0] / size[0]
    plain = boxes.as_subclass(Tensor)
    return plain * plain.new_tensor([x, y, x, y])


def collate_boxes(batch: Sequence[tuple[Tensor, dict[str, Any]]]) -> tuple[Tensor, list[dict[str, Any]]]:
    """Stack images of one size into (B, 3, H, W) and list their targets: the ``collate_fn`` of a DataLoader."""
    return torch.stack([image.as_subclass(Tensor) for image, _ in batch]), [target for _, target in batch]
