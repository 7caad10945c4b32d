"""The images a backbone sees of one photo: prepared once under every augmentation pattern."""

from __future__ import annotations

import torch
from torch import Tensor

from dinoneck.data.patterns import Patterns
from dinoneck.data.photos import Photo, Preprocessing


def views_of(photo: Photo, preprocess: Preprocessing, patterns: Patterns, image_id: str) -> Tensor:
    """Return a photo under all patterns: (patterns, 3, H, W), normalised.

    The photo is decoded and brought to its size; colours change there, in 0 ... 1; then it is normalised, blurred
    and padded like any photo; flips turn the finished image, padding included. So padding is the mean colour under
    every pattern, and a pattern that only flips is exactly the flip of what ``preprocess`` gives.

    Raises:
        DataError: if the photo cannot be used.
        GridError: if the patch does not divide it.
    """
    fitted = preprocess.fitted(photo)
    images = []
    for i in range(len(patterns)):
        axes = [axis for axis, flipped in zip((-1, -2), patterns.flips(i), strict=True) if flipped]
        upright = patterns.apply(fitted, i, image_id).flip(axes)
        images.append(preprocess.finished([upright]).images[0].flip(axes))
    return torch.stack(images)
