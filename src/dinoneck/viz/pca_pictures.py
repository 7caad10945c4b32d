"""Photos beside the colours of their features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dinoneck.data.photos import Photo
from dinoneck.errors import DataError
from dinoneck.tokens import Tokens
from dinoneck.viz.pca import PCABasis, pca_rgb
from dinoneck.viz.sheet import Sheet, checked_names, pictures_of, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pca_figure(
    photos: Photo | Sequence[Photo],
    tokens: Tokens,
    *,
    layer: int = -1,
    basis: PCABasis | None = None,
    foreground: float | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw every photo beside its patches as colours, which :func:`pca_rgb` chooses for all of them together.

    Args:
        photos: what the tokens are of, as the backbone saw it (``Preprocessing.picture``), so that cropping and padding
            do not shift the patches.
        tokens: of these photos, as one batch.
        layer: which of the tokens' layers, by position; -1 = the last.
        basis: directions and range to use; None = fitted on these tokens.
        foreground: None, or a share 0 ... 1 to leave out the background, see :meth:`PCABasis.fit`.
        names: one per photo, shown above it.

    Returns:
        a ``matplotlib.figure.Figure``: one row per photo.

    Raises:
        DataError: if there are more or fewer photos than samples, or values are not finite.
        ShapeError: if the tokens do not fit the basis.
        ImportError: if matplotlib is missing.

    Examples:
        >>> import torch
        >>> from dinoneck import load_backbone
        >>> photo, backbone = torch.rand(3, 32, 48), load_backbone("dinoneck_tiny")
        >>> len(pca_figure(photo, backbone(backbone.preprocess(photo))).axes)
        2
    """
    pictures = pictures_of(photos)
    named = checked_names(names, len(pictures))
    colours = pca_rgb(tokens, layer=layer, basis=basis, foreground=foreground)
    if len(colours) != len(pictures):
        raise DataError(f"{len(pictures)} photos with tokens of {len(colours)}; expected one of each")
    blocks = tokens.layers
    title = "features" if blocks is None else f"features of block {blocks[layer]}"
    sheet = Sheet([picture.shape[:2] for picture in pictures], [[name, title] for name in named])
    for row, (picture, patches) in enumerate(zip(pictures, colours, strict=True)):
        show(sheet.picture(row, 0), picture)
        show(sheet.picture(row, 1), patches, interpolation="nearest")
    return sheet.figure
