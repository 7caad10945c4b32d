"""Pictures of images with maps, colours or boxes, drawn without a plotting library."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from dinoneck.errors import DataError
from dinoneck.images.decoding import ImageInput, as_list
from dinoneck.text import printable
from dinoneck.tokens import Tokens
from dinoneck.viz import style
from dinoneck.viz.checked import Floats, numbers
from dinoneck.viz.pca import PCABasis, pca_rgb
from dinoneck.viz.pictures import as_image

_JPEG_QUALITY = 82
# widths in pixels and qualities of pictures of a page, the largest first
_WEBP_SIZES = ((700, 78), (560, 75), (480, 72), (400, 70), (320, 65), (240, 60), (240, 30))

Images = ImageInput | Sequence[ImageInput]


def heat(values: Floats, low: float, high: float) -> Image.Image:
    """Colour a map (rows, cols): ``low`` dark violet, ``high`` yellow, one pixel per cell.

    Raises:
        ShapeError: if the map is not two-dimensional.
        DataError: if it is not finite.
    """
    grid = numbers(values, "a heat map", "rows, cols")
    return coloured(style.heat_colours(grid, low, high) / 255.0)


def pca_panels(
    images: Images,
    tokens: Tokens,
    *,
    basis: PCABasis | None = None,
    foreground: float | None = None,
    names: Sequence[str] | None = None,
    note: str = "",
) -> Image.Image:
    """Draw every image next to its patches as colours, which :func:`pca_rgb` chooses for all of them together.

    Args:
        images: the images that the tokens are of, as the backbone saw them
            (``Preprocessing.picture``), so that cropping and padding do not shift the patches.
        tokens: of these images, as one batch; of several layers the last is drawn.
        basis: directions and range to use; None = fitted on these tokens.
        foreground: None, or a share 0 ... 1 to leave out the background, see :meth:`PCABasis.fit`.
        names: one per image, shown above it.
        note: shown next to the block of the tokens, such as "(random weights)".

    Raises:
        DataError: if there are more or fewer images than samples, or values are not finite.
        ShapeError: if the tokens do not fit the basis.

    Examples:
        >>> import torch
        >>> from dinoneck import load_backbone
        >>> image = torch.rand(3, 32, 48)
        >>> backbone = load_backbone("dinoneck_tiny")
        >>> pca_panels(image, backbone(backbone.preprocess(image))).size
        (658, 252)
    """
    colours = pca_rgb(tokens, basis=basis, foreground=foreground)
    named_images = _named(images, names, len(colours))
    caption_of_tokens = f"tokens {note}"
    if tokens.layers is not None:
        caption_of_tokens = f"tokens of block {tokens.layers[-1]} {note}"
    rows = []
    for named_image, patches in zip(named_images, colours, strict=True):
        rows.append([named_image, (coloured(patches), caption_of_tokens)])
        caption_of_tokens = ""  # in the first row only
    return _sheet(rows)


def data_uri(image: Image.Image, side: int, kind: str = "JPEG") -> str:
    """Return an image, ``side`` pixels wide at most, as a data URI: JPEG for images, PNG where every pixel counts."""
    return _as_uri(_encoded(image, side, kind, _JPEG_QUALITY), kind)


def small_data_uri(image: Image.Image, most_bytes: int) -> str:
    """Return an image as a data URI of WebP that has this many characters, if a small picture can have them.

    It is as wide as they allow, and at least 240 px.
    """
    content = b""
    for width, quality in _WEBP_SIZES:
        content = _encoded(image, width, "WEBP", quality)
        if 4 * len(content) <= 3 * most_bytes:
            break
    return _as_uri(content, "WEBP")


def _encoded(image: Image.Image, side: int, kind: str, quality: int) -> bytes:
    """The file of an image that is ``side`` pixels wide at most."""
    shown = image.copy()
    shown.thumbnail((side, 4 * side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shown.save(buffer, kind, quality=quality, optimize=True)
    return buffer.getvalue()


def _as_uri(content: bytes, kind: str) -> str:
    text = base64.b64encode(content).decode("ascii")
    return f"data:image/{kind.lower()};base64,{text}"


def coloured(colours: Floats) -> Image.Image:
    """Return colours (rows, cols, 3) in 0 ... 1 as a picture, one pixel per cell."""
    checked = np.clip(numbers(colours, "colours", "rows, cols, 3"), 0.0, 1.0)
    return Image.fromarray(np.rint(checked * 255.0).astype(np.uint8))


def _named(
    images: Images, names: Sequence[str] | None, count: int
) -> list[tuple[Image.Image, str]]:
    """The images with their names; "" without names."""
    listed = as_list(images)
    texts = [""] * count if names is None else names
    if not count or not len(listed) == len(texts) == count:
        raise DataError(
            f"{len(listed)} images and {len(texts)} names for {count} to draw; expected one of each"
        )
    return [(as_image(image), name) for image, name in zip(listed, texts, strict=True)]


def _sheet(rows: Sequence[Sequence[tuple[Image.Image, str]]]) -> Image.Image:
    """Rows of pictures with captions, each as high as its first one."""
    gap = style.GAP_PX
    heights = []
    for row in rows:
        first, _ = row[0]
        heights.append(max(1, round(style.WIDTH_PX * first.height / first.width)))
    sheet_width = len(rows[0]) * (style.WIDTH_PX + gap) + gap
    sheet_height = sum(heights) + len(rows) * (style.LINE_PX + 2 * gap)
    sheet = Image.new("RGB", (sheet_width, sheet_height), "white")
    top = gap
    for row, height in zip(rows, heights, strict=True):
        left = gap
        for picture, text in row:
            sheet.paste(_tile(picture, text, height), (left, top))
            left += style.WIDTH_PX + gap
        top += style.LINE_PX + height + 2 * gap
    return sheet


def _tile(picture: Image.Image, text: str, height: int) -> Image.Image:
    """A picture, resized to this height, below its caption."""
    tile = Image.new("RGB", (style.WIDTH_PX, style.LINE_PX + height), "white")
    ImageDraw.Draw(tile).text((1, 2), printable(text), style.INK, style.font(style.FONT_PX))
    if picture.width > style.WIDTH_PX:
        resampling = Image.Resampling.BICUBIC
    else:
        resampling = Image.Resampling.NEAREST  # a patch stays a rectangle of one colour
    resized = picture.resize((style.WIDTH_PX, height), resampling)
    tile.paste(resized, (0, style.LINE_PX))
    return tile
