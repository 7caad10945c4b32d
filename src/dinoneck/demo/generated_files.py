"""The files of generated images: a photo and the mask of its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_JPEG_QUALITY = 92


def make_folders(root: Path) -> None:
    """Make the folders of images and masks, and those above them."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True, exist_ok=True)


def write_image(
    root: Path, number: int, image: np.ndarray[Any, Any], classes: np.ndarray[Any, Any]
) -> tuple[str, str]:
    """Write an image and its mask; return their paths below the folder, as a table names them.

    Args:
        root: a folder of :func:`make_folders`.
        number: of the image, in the names of its files.
        image: (H, W, 3) uint8.
        classes: (H, W) uint8.
    """
    image_name = f"images/{number:04}.jpg"
    mask_name = f"masks/{number:04}.png"
    Image.fromarray(image).save(root / image_name, quality=_JPEG_QUALITY)
    Image.fromarray(classes).save(root / mask_name)
    return image_name, mask_name
