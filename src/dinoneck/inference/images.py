"""Which images a call of a predictor means: single images, or all of a folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dinoneck.data.listing import images_below
from dinoneck.errors import DataError
from dinoneck.images.decoding import ImageInput, as_list, is_one_image
from dinoneck.runtime.names import IMAGE, check_row_names
from dinoneck.store.reading import StoredTokens


@dataclass(frozen=True)
class CalledImages:
    """The images of a call, in the order of its rows.

    Attributes:
        images: single images.
        folder: whose images they are; None = they were passed one by one.
    """

    images: Sequence[ImageInput]
    folder: Path | None = None

    @classmethod
    def of_call(cls, images: ImageInput | Sequence[ImageInput]) -> CalledImages:
        """List the images that a user passes to a predictor.

        Args:
            images: a folder, an image, or several.

        Raises:
            DataError: for a store of tokens, for a folder among several images, and for a folder
                without images or that cannot be read.
        """
        if isinstance(images, StoredTokens):
            raise DataError(
                "images are a store of tokens; predict from it with predictor.predict(store, ids)"
            )
        folder = _folder_at(images)
        if folder is not None:
            return cls(images_below(folder), folder)
        image_list = as_list(images)
        for number, image in enumerate(image_list):
            if _folder_at(image) is not None:
                raise DataError(
                    f"images[{number}] is the folder {image}; list its images, or pass the folder "
                    "alone, of which every row names its image"
                )
        return cls(image_list)

    def check_names(self, names: Collection[str]) -> None:
        """Refuse a folder whose rows would hold two entries called ``"image"``.

        Args:
            names: what else a row holds, keys or tasks.

        Raises:
            ConfigError: naming the folder.
        """
        if self.folder is not None:
            check_row_names(self.folder, names)

    @property
    def paths(self) -> list[str | None]:
        """The paths of the images of a folder; None for each image that was passed itself."""
        if self.folder is None:
            return [None] * len(self.images)
        return [str(image) for image in self.images]

    def named(self, results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows of the images, with ``"image"`` first for those of a folder."""
        rows = []
        for path, result in zip(self.paths, results, strict=True):
            if path is None:
                rows.append(dict(result))
            else:
                rows.append({IMAGE: path, **result})
        return rows


def check_one_image(image: Any) -> None:
    """Refuse a folder, a batch, and what is no single image.

    Raises:
        DataError: naming what is passed, and the call for it.
    """
    if _folder_at(image) is not None:
        raise DataError(
            f"the image is the folder {image}; call the predictor for a row per image: "
            f"predictor({str(image)!r})"
        )
    if is_one_image(image):
        return
    passed = f"a {type(image).__name__}"
    if isinstance(image, Tensor | np.ndarray):
        passed = f"a batch of shape {tuple(image.shape)}"
    raise DataError(
        f"the image is {passed}; expected one path, PIL image, array (H, W, 3) or tensor "
        "(3, H, W): call the predictor for several, predictor(images)"
    )


def _folder_at(image: Any) -> Path | None:
    """The folder that a path names; None for other paths and for images in memory."""
    if isinstance(image, str | os.PathLike) and os.path.isdir(image):  # noqa: PTH112 - never raises
        return Path(image)
    return None
