"""Augmented views of images by the transforms of other libraries: torchvision v2, albumentations or any function."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.decoding import ImageInput, read_pixels
from dinoneck.data.resizing import to_uint8
from dinoneck.errors import ConfigError, DataError
from dinoneck.training.processes import own_random_numbers

Transform = Callable[..., Any]


class Views:
    """The augmented views of a source; the first is the image as it is.

    Args:
        count: how many there are.
        flips: what ``flips`` returns for each; None = a transform makes the views, and their flips are not known.
    """

    def __init__(self, count: int, flips: Callable[[int], tuple[bool, bool]] | None = None) -> None:
        self._count, self._flips = count, flips

    def __len__(self) -> int:
        return self._count

    def flips(self, i: int) -> tuple[bool, bool]:
        """Return whether view i is flipped left and right, top and bottom.

        Raises:
            ConfigError: for a view that a transform makes.
        """
        if self._flips is not None:
            return self._flips(i)
        if i:
            raise ConfigError(
                "tasks with maps cannot be trained on views made by transforms, which may move pixels while the maps "
                "stay; leave the transforms out, or use a feature store, whose augmentations state their flips"
            )
        return False, False


def apply_transform(transform: Transform, image: ImageInput, seed: int) -> Any:
    """Return a transformed image: a tensor (3, height, width) or an array (height, width, 3).

    The transform gets a uint8 tensor (3, height, width); one of albumentations an array (height, width, 3) as
    ``image=``. It draws from generators that are seeded here: the caller's are not changed.

    Args:
        transform: see above.
        image: as for the backbone's preprocessing.
        seed: of the random numbers, 0 ... 2^32 - 1.

    Raises:
        DataError: if the image cannot be read, or the result is not an image.
    """
    pixels = to_uint8(read_pixels(image))
    with own_random_numbers(cuda=False):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        if type(transform).__module__.startswith("albumentations"):
            if hasattr(transform, "set_random_seed"):
                transform.set_random_seed(seed)
            result = transform(image=np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))["image"]
        else:
            result = transform(pixels)
    if not isinstance(result, Tensor | np.ndarray):
        raise DataError(f"a transform returned {type(result).__name__}; expected an image tensor or array")
    return result


def view_seed(image_id: str, view: int) -> int:
    """Return the seed of a view of an image: extracted again, it is the same."""
    return int.from_bytes(hashlib.sha256(f"{view}\0{image_id}".encode()).digest()[:4], "little")


def describe_transform(transform: Transform) -> str:
    """Return a text that identifies a transform, the same in every process."""
    name = getattr(transform, "__qualname__", None)
    return f"{transform.__module__}.{name}" if name else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(transform))
