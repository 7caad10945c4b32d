"""The page to paint in: one HTML file with photos, reduced tokens and the head that is trained in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

PENALTY = 1e-2  # of the head, times the squared norm of its weights on standardised features


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo to paint on, with its tokens.

    Attributes:
        name: of the file, unlike those of the other photos.
        sha256: of the file's bytes, in hexadecimal digits.
        height: of the upright original, in pixels.
        width: of the upright original, in pixels.
        picture: what is shown, upright; it may be smaller than the original.
        patches: (rows, cols, channels) tokens; the grid covers the whole photo evenly.
    """

    name: str
    sha256: str
    height: int
    width: int
    picture: Image.Image
    patches: Tensor


def painting_page(
    photos: Sequence[Photo],
    classes: Sequence[str],
    *,
    strokes: Mapping[str, Any] | None = None,
    title: str = "Paint classes",
) -> str:
    """Return a page in which strokes on one photo give the maps of all others.

    Args:
        photos: the photos, at least one.
        classes: names of the classes, at least two.
        strokes: the content of a ``strokes.json`` to begin with; None = no strokes.
        title: of the page.

    Returns:
        HTML that loads nothing: no network is needed.

    Raises:
        DataError: if the page would be larger than 200 MB.
    """
    raise NotImplementedError
