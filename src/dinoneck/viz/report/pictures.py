"""Pictures inside a page: data URIs, and figures that show a photo, a map and the map over the photo."""

from __future__ import annotations

import base64
import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from dinoneck.data.photos import Photo
from dinoneck.viz.panels import as_image, heat
from dinoneck.viz.report.markup import Markup, element

_Array = np.ndarray[Any, Any]
_QUALITY = 85


class Shown(NamedTuple):
    """A photo in a page: what figures lay their maps over.

    Attributes:
        id: of its ``image`` element, which the figures refer to, so that its bytes stand in the page once.
        width: in pixels, as the model saw it.
        height: likewise.
    """

    id: str
    width: int
    height: int


def photo_svg(photo: Photo, id_: str, alt: str, largest_side: int) -> tuple[Shown, Markup]:
    """Return a photo as a picture of at most ``largest_side`` pixels, and what overlays need to know of it."""
    image = as_image(photo)
    shown = Shown(id_, image.width, image.height)
    image.thumbnail((largest_side, largest_side), Image.Resampling.LANCZOS)
    return shown, _svg(shown, alt, _image(shown, uri(image, "JPEG"), id=id_))


def map_svg(values: _Array, span: tuple[float, float], shown: Shown, id_: str, alt: str) -> Markup:
    """Return a map (rows, cols) as colours over the area of its photo."""
    return cells_svg(heat(values, *span), shown, id_, alt)


def cells_svg(image: Image.Image, shown: Shown, id_: str, alt: str) -> Markup:
    """Return a picture of one pixel per cell over the area of its photo, with hard edges between the cells."""
    return _svg(shown, alt, _image(shown, uri(image, "PNG"), id=id_, class_="cells"))


def overlay_svg(shown: Shown, id_: str, alt: str) -> Markup:
    """Return the photo without its colours, and over it a map that stands elsewhere in the page."""
    cells = element("use", href=f"#{id_}", class_="over")
    return _svg(shown, alt, element("use", href=f"#{shown.id}", class_="under"), cells)


def scale_bar() -> Markup:
    """Return the colours of all maps from low to high."""
    source = uri(heat(np.linspace(0.0, 1.0, 64)[None], 0.0, 1.0), "PNG")
    return element("img", src=source, alt="from dark violet to yellow", class_="scale", width=64, height=10)


def uri(image: Image.Image, kind: str) -> Markup:
    """Return a picture as a data URI: JPEG for photos, PNG where every pixel counts."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=_QUALITY, optimize=True)
    return Markup(f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}")


def _svg(shown: Shown, alt: str, *children: Markup) -> Markup:
    box = f"0 0 {shown.width} {shown.height}"
    return element("svg", *children, viewBox=box, role="img", aria_label=alt, class_="picture")


def _image(shown: Shown, source: Markup, **attributes: object) -> Markup:
    return element(
        "image", href=source, width=shown.width, height=shown.height, preserveAspectRatio="none", **attributes
    )
