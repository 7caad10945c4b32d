"""The page to paint in: one HTML file with photos, reduced tokens and the head that is trained in it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.painting.reduction import COMPONENTS, ReducedTokens, reduce_tokens
from dinoneck.painting.strokes import UNPAINTED, Strokes, problem_of_classes
from dinoneck.text import counted, printable, shorten
from dinoneck.version import __version__
from dinoneck.viz import style
from dinoneck.viz.panels import data_uri

LARGEST_PAGE = 200_000_000  # bytes; browsers get slow and run out of memory on phones
PENALTY = 1e-1  # of the head, times the squared norm of its weights on standardised features
_ENTRY_BYTES = 1000  # of a photo's name, hash and markup, at most
_SCRIPTS = ("strokes.js", "head.js", "painting.js")
_FOLDER = Path(__file__).parent


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

    After each stroke the page trains a multinomial logistic regression with an L2 penalty. A patch
    is an example of each class that is painted in it, weighted by the share of its pixels. Tokens
    are standardised and reduced to 64 principal components of 8 bits; the page states how much of
    the variance they keep. Until a stroke is there, the page shows which patches are similar to
    one patch. A button downloads the strokes as ``strokes.json``.

    Args:
        photos: the photos, at least one.
        classes: names of the classes, 2 ... 255.
        strokes: the content of a ``strokes.json`` on these photos to begin with; None = no strokes.
        title: of the page.

    Returns:
        HTML that loads nothing: no network is needed.

    Raises:
        ConfigError: if there are fewer than 2 or more than 255 classes, or two have one name.
        DataError: if there is no photo, two have one name, tokens are not finite, or the page would
            be larger than 200 MB. Also if ``strokes`` is not the content of such a file, or does
            not fit the photos or classes.
        ShapeError: if tokens are not (rows, cols, channels), or those of photos differ in channels.
    """
    _check_classes(classes)
    _check_photos(photos)
    strokes_by_name = _strokes_by_name(strokes, photos, classes)
    pictures = _encode_pictures(photos)
    tokens = reduce_tokens([photo.patches.flatten(0, 1) for photo in photos])

    entries = []
    for photo, codes in zip(photos, tokens.codes, strict=True):
        rows, cols, _ = photo.patches.shape
        entries.append(
            {
                "name": photo.name,
                "sha256": photo.sha256,
                "width": photo.width,
                "height": photo.height,
                "rows": rows,
                "cols": cols,
                "codes": base64.b64encode(codes.numpy().tobytes()).decode("ascii"),
                "strokes": strokes_by_name.get(photo.name, []),
            }
        )
    colours = style.class_colours(classes)
    class_colours = [style.NODATA if colour is None else colour for colour in colours]
    data = {
        "classes": list(classes),
        "colours": class_colours,
        "heat": style.SCALE.tolist(),
        "scales": tokens.scales.tolist(),
        "penalty": PENALTY,
        "photos": entries,
    }
    css = (_FOLDER / "painting.css").read_text("utf-8")
    script = "\n".join((_FOLDER / name).read_text("utf-8") for name in _SCRIPTS)
    html = (_FOLDER / "painting.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.from_string(html).render(
        title=printable(title),
        classes=[printable(name) for name in classes],
        photos=list(zip([printable(photo.name) for photo in photos], pictures, strict=True)),
        style=css,
        style_hash=_content_hash(css),
        script=script,
        script_hash=_content_hash(script),
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        note=_describe_reduction(tokens),
        version=__version__,
    )


def _check_classes(classes: Sequence[str]) -> None:
    if isinstance(classes, str):
        raise ConfigError(
            f"classes is the text {shorten(classes)}; expected a list of 2 ... {UNPAINTED} names"
        )
    for name in classes:
        if not isinstance(name, str):
            raise ConfigError(f"a class is called {name!r}; expected a word")
    problem = problem_of_classes(classes)
    if problem:
        raise ConfigError(problem)


def _check_photos(photos: Sequence[Photo]) -> None:
    if not photos:
        raise DataError("there is no photo to paint on; name at least one")
    names = set()
    for photo in photos:
        if photo.name in names:
            raise DataError(f"two photos are called {photo.name!r}; expected different names")
        names.add(photo.name)
        if photo.patches.ndim != 3 or 0 in photo.patches.shape:
            raise ShapeError(
                f"tokens of {photo.name} are {tuple(photo.patches.shape)}; expected (rows, cols, "
                "channels)"
            )


def _strokes_by_name(
    strokes: Mapping[str, Any] | None, photos: Sequence[Photo], classes: Sequence[str]
) -> dict[str, list[Any]]:
    """The strokes of each photo that has some."""
    if strokes is None:
        return {}
    photo_of_name = {photo.name: photo for photo in photos}
    strokes_by_name = {}
    for image in Strokes.from_document(strokes).to_document()["images"]:
        if not image["strokes"]:
            continue
        photo = photo_of_name.get(image["name"])
        if photo is None or photo.sha256 != image["sha256"]:
            raise DataError(
                f"strokes are on {image['name']}, whose name and sha256 no photo has; expected "
                "strokes on these photos"
            )
        if (photo.height, photo.width) != (image["height"], image["width"]):
            raise DataError(
                f"strokes are on {photo.name} of {image['height']}x{image['width']} px, and the photo "
                f"has {photo.height}x{photo.width}; expected strokes on these photos"
            )
        for stroke in image["strokes"]:
            if stroke["class"] is not None and stroke["class"] not in classes:
                raise DataError(
                    f"a stroke on {photo.name} is of class {stroke['class']!r}; expected one of "
                    f"{', '.join(classes)}"
                )
        strokes_by_name[photo.name] = list(image["strokes"])
    return strokes_by_name


def _encode_pictures(photos: Sequence[Photo]) -> list[str]:
    """The photos as data URIs, as long as they and their tokens fit into the page."""
    pictures: list[str] = []
    size = 0
    for photo in photos:
        uri = data_uri(photo.picture.convert("RGB"), style.PAINTING_PX)
        rows, cols, channels = photo.patches.shape
        num_codes = rows * cols * min(channels, COMPONENTS)
        base64_characters = 4 * math.ceil(num_codes / 3)
        size += len(uri) + base64_characters + _ENTRY_BYTES
        if size > LARGEST_PAGE:
            raise DataError(
                f"a page of {counted(len(photos), 'photo')} would be larger than "
                f"{LARGEST_PAGE / 1e6:.0f} MB; the first {len(pictures)} fit: make several pages"
            )
        pictures.append(uri)
    return pictures


def _describe_reduction(tokens: ReducedTokens) -> str:
    return (
        f"Tokens are reduced to {counted(len(tokens.scales), 'component')} of 8 bits, which keep "
        f"{100 * tokens.variance:.0f} % of the variance and change cosine similarities by at most "
        f"{tokens.cosine_error:.2f}."
    )


def _content_hash(text: str) -> str:
    """The hash that a content security policy allows inline text by."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
