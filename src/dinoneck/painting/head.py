"""The head of painted strokes: softmax regression on the tokens of the patches that they cover."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.errors import DataError
from dinoneck.heads.linear import LinearHead
from dinoneck.painting.matching import match_photos
from dinoneck.painting.page import PENALTY, Photo
from dinoneck.painting.strokes import UNPAINTED, Mask, Strokes
from dinoneck.tasks import Task
from dinoneck.text import shorten, some_of
from dinoneck.training.baselines import FLOOR, fit_layer

TASK_NAME = "segmentation"
"""Of the head's task, as ``dinoneck train`` calls that of masks."""
_NEVER = -1e4  # the logit of a class that is not painted; float16 holds it
_SHOWN = 5  # names in a message

logger = logging.getLogger(__name__)

Floats = np.ndarray[Any, np.dtype[np.float64]]


def fit_strokes(photos: Sequence[Photo], strokes: Strokes, *, num_layers: int = 1) -> LinearHead:
    """Return a segmentation head that is fitted to painted strokes.

    It is softmax regression with an L2 penalty on the tokens, which are standardised by their mean
    and deviation over all patches of all photos. A patch is an example of every class that is
    painted in it, and weighs as much as the share of its pixels that have the class. The
    standardisation is a part of the head's weights.

    Args:
        photos: all of them, painted or not.
        strokes: on these photos. A photo is found by the hash of its file, so it may have another
            name by now.
        num_layers: how many layers of the backbone the channels of the patches hold, one after the
            other.

    Returns:
        A head in eval mode with one task, ``segmentation``, whose labels are the classes of the
        strokes.

    Raises:
        DataError: if a photo of the strokes is missing or another file, or fewer than two classes
            are painted.

    Examples:
        >>> from PIL import Image
        >>> from dinoneck.painting import PaintedImage, Stroke
        >>> patches = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]])  # (1, 3, channels)
        >>> photo = Photo("a.jpg", "0" * 64, 16, 48, Image.new("RGB", (48, 16)), patches)
        >>> crop = Stroke("crop", 4.0, ((8.0, 8.0),))
        >>> soil = Stroke("soil", 4.0, ((24.0, 8.0),))
        >>> painted = PaintedImage("a.jpg", "0" * 64, height=16, width=48, strokes=(crop, soil))
        >>> head = fit_strokes([photo], Strokes(("crop", "soil"), (painted,)))
        >>> maps = head(patches.reshape(1, 3, 2), grid=(1, 3), num_prefix_tokens=0)
        >>> maps["segmentation"].argmax(dim=1).tolist()
        [[[0, 1, 0]]]
    """
    masks = {}
    for image in match_photos(strokes, photos).images:
        masks[image.name] = image.mask(strokes.classes)
    return fit_masks(photos, masks, strokes.classes, num_layers=num_layers)


def fit_masks(
    photos: Sequence[Photo],
    masks: Mapping[str, Mask],
    classes: Sequence[str],
    *,
    num_layers: int = 1,
) -> LinearHead:
    """Return the head that :func:`fit_strokes` fits to the painted pixels of photos.

    Args:
        photos: all of them, painted or not.
        masks: name of a photo -> the number of a class for each pixel (height, width), 255 where
            nothing is painted.
        classes: their names.
        num_layers: see there.

    Raises:
        DataError: if fewer than two classes are painted.
    """
    examples = _examples_of(photos, masks, num_classes=len(classes))
    total = examples.weights.sum(axis=0)
    numbers = np.flatnonzero(total).tolist()
    painted = [classes[number] for number in numbers]
    if len(painted) < 2:
        shown = f"the class {shorten(painted[0])} alone" if painted else "no class"
        raise DataError(
            f"the strokes show {shown}; paint two classes or more, of {', '.join(classes)}"
        )
    if len(painted) < len(classes):
        others = [shorten(label) for label in classes if label not in painted]
        logger.warning(
            "nothing is painted of %s: the head gives it to no patch", some_of(others, _SHOWN)
        )

    # softmax regression on standardised tokens, of the classes that are painted
    mean, std = _statistics(photos)
    features = (examples.features - mean) / std
    # cross_entropy is a mean over patches; with this scale it is the mean over examples by weight
    scale = len(features) / total.sum()
    targets = torch.from_numpy(examples.weights[:, numbers] * scale)
    layer = fit_layer(features, targets, PENALTY, F.cross_entropy)

    # the same layer on tokens as they are
    channels = photos[0].patches.shape[-1]
    weight = torch.zeros(len(classes), channels, dtype=torch.float64)
    weight[numbers] = layer.weight / std
    bias = torch.full((len(classes),), _NEVER, dtype=torch.float64)
    bias[numbers] = layer.bias - weight[numbers] @ mean
    task = Task(TASK_NAME, dim=len(classes), kind="segmentation", labels=tuple(classes))
    head = LinearHead(channels // num_layers, task, num_layers=num_layers, pool=None)
    head.readouts[0].load_state_dict({"weight": weight, "bias": bias})
    return head.eval()


def patch_weights(mask: Mask, num_classes: int, *, rows: int, cols: int) -> Floats:
    """Return the share of each patch's pixels that is painted in each class (rows * cols, classes).

    Args:
        mask: (height, width), 255 where nothing is painted.
        num_classes: their numbers in the mask begin with 0.
        rows: of patches, which divide the height evenly; a pixel belongs to the patch that holds its
            centre.
        cols: of patches, which divide the width evenly.
    """
    height, width = mask.shape
    row_of_pixel = ((np.arange(height) + 0.5) * rows / height).astype(np.int64)
    col_of_pixel = ((np.arange(width) + 0.5) * cols / width).astype(np.int64)
    patch_of_pixel = row_of_pixel[:, None] * cols + col_of_pixel
    pixels = np.bincount(patch_of_pixel.ravel(), minlength=rows * cols)
    is_painted = mask != UNPAINTED
    cells = patch_of_pixel[is_painted] * num_classes + mask[is_painted]
    counts = np.bincount(cells, minlength=rows * cols * num_classes)
    shares: Floats = counts.reshape(rows * cols, num_classes) / np.maximum(pixels, 1)[:, None]
    return shares


@dataclass(frozen=True)
class _Examples:
    """The painted patches of all photos.

    Attributes:
        features: (n, channels), float64.
        weights: (n, classes): shares of a patch's pixels.
    """

    features: Tensor
    weights: Floats


def _examples_of(photos: Sequence[Photo], masks: Mapping[str, Mask], num_classes: int) -> _Examples:
    """The painted patches of the photos that have a mask."""
    channels = photos[0].patches.shape[-1]
    features = [torch.zeros(0, channels, dtype=torch.float64)]
    weights = [np.zeros((0, num_classes))]
    for photo in photos:
        if photo.name not in masks:
            continue
        rows, cols, _ = photo.patches.shape
        weights_of_photo = patch_weights(masks[photo.name], num_classes, rows=rows, cols=cols)
        is_painted = weights_of_photo.sum(axis=1) > 0
        features.append(photo.patches.flatten(0, 1)[torch.from_numpy(is_painted)].double())
        weights.append(weights_of_photo[is_painted])
    return _Examples(torch.cat(features), np.concatenate(weights))


def _statistics(photos: Sequence[Photo]) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every channel over all patches of all photos, float64."""
    count = 0
    total = torch.zeros(photos[0].patches.shape[-1], dtype=torch.float64)
    for photo in photos:
        patches = photo.patches.flatten(0, 1).double()
        total += patches.sum(dim=0)
        count += len(patches)
    mean = total / count
    squares = torch.zeros_like(total)
    for photo in photos:
        squares += (photo.patches.flatten(0, 1).double() - mean).square().sum(dim=0)
    return mean, (squares / count).sqrt() + FLOOR
