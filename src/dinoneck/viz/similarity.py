"""A page to touch features: the cosine similarity of one patch to all others, in one HTML file without a network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import torch
from torch import Tensor
from torch.nn import functional as F

from dinoneck.data.decoding import ImageInput, as_list
from dinoneck.errors import DataError
from dinoneck.text import printable
from dinoneck.tokens import Tokens
from dinoneck.viz import style
from dinoneck.viz.panels import data_uri
from dinoneck.viz.pictures import as_image

COORDINATES = 64  # fewer keep the variance, and lose which patches are the nearest
_BLOCK = 1024  # patches that are compared with all others at once, to bound memory
_LARGEST_CODE = 127  # of int8
_FOLDER = Path(__file__).parent


def similarity_page(
    tokens: Tokens | Sequence[Tokens],
    images: ImageInput | Sequence[ImageInput],
    *,
    names: Sequence[str] | None = None,
    title: str = "Similar patches",
) -> str:
    """Return a page that shows how similar every patch is to the one under the pointer.

    The tokens of the last layer are centred by their mean over all images shown, scaled to length 1
    and reduced to 64 coordinates, which are stored with 8 bits each. The page states the largest
    error of a similarity that this makes. It loads nothing: no network is needed.

    Args:
        tokens: of these images, as one batch; or one Tokens of one image each, where grids differ.
        images: the images that the tokens are of, as the backbone saw them
            (``Preprocessing.picture``).
        names: one per image; None = image 1, image 2, ...
        title: of the page.

    Returns:
        HTML. ``#image,row,col`` in its address chooses a patch; the numbers begin at 0.

    Raises:
        DataError: if there are more or fewer images or names than samples, or tokens are not
            finite.
    """
    image_list = as_list(images)
    batches = [tokens] if isinstance(tokens, Tokens) else [*tokens]
    samples = []
    grids = []
    for batch in batches:
        for patches in batch.patches[-1].detach().cpu().float():
            samples.append(patches)
            grids.append(batch.grid)
    if names is None:
        names = [f"image {i + 1}" for i in range(len(image_list))]
    if not samples or not len(samples) == len(image_list) == len(names):
        raise DataError(
            f"{len(samples)} samples, {len(image_list)} images and {len(names)} names; expected "
            "one of each"
        )
    encoded = _encode(torch.cat(samples))
    shown = []
    for name, image, grid in zip(names, image_list, grids, strict=True):
        shown.append(
            {
                "name": printable(name),
                "rows": grid.rows,
                "cols": grid.cols,
                "uri": data_uri(as_image(image), style.SIMILARITY_PX),
            }
        )
    data = {
        "images": shown,
        "scales": encoded.scales,
        "codes": encoded.codes,
        "colours": style.SCALE.tolist(),
    }
    css = (_FOLDER / "similarity.css").read_text("utf-8")
    script = (_FOLDER / "similarity.js").read_text("utf-8")
    html = (_FOLDER / "similarity.html.j2").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(html).render(
        title=title,
        images=shown,
        style=css,
        script=script,
        style_hash=_content_hash(css),
        script_hash=_content_hash(script),
        data=json.dumps(data).replace("<", "\\u003c"),
        note="Cosine similarities of centred tokens; 64 coordinates of 8 bits change them by at "
        f"most {encoded.error:.2f}.",
    )


class _Encoded(NamedTuple):
    """Unit vectors of few coordinates.

    Attributes:
        codes: base64 of int8 (n, coordinates).
        scales: a coordinate is its code times its scale.
        error: the largest error of a cosine of two vectors.
    """

    codes: str
    scales: list[float]
    error: float


def _encode(patches: Tensor) -> _Encoded:
    """Encode tokens (n, C), centred and scaled to length 1."""
    if not patches.isfinite().all():
        raise DataError("tokens are not finite; they have no similarity")
    unit = F.normalize(patches - patches.mean(dim=0), dim=1)
    _, directions = torch.linalg.eigh((unit.T @ unit).double())
    coordinates = unit @ directions[:, -COORDINATES:].float()
    scale = coordinates.abs().amax(dim=0).clamp_min(1e-12) / _LARGEST_CODE
    codes = (coordinates / scale).round().to(torch.int8)
    return _Encoded(
        codes=base64.b64encode(codes.numpy().tobytes()).decode("ascii"),
        scales=[float(f"{value:.6g}") for value in scale.tolist()],
        error=_largest_error(codes * scale, unit),
    )


def _largest_error(decoded: Tensor, unit: Tensor) -> float:
    """The largest difference of a dot product of two rows, over all pairs."""
    errors = []
    for start in range(0, len(unit), _BLOCK):
        rows = slice(start, start + _BLOCK)
        error = (decoded[rows] @ decoded.T - unit[rows] @ unit.T).abs()
        error.diagonal(start).zero_()  # a patch and itself are drawn as 1
        errors.append(error.max())
    return float(torch.stack(errors).max())


def _content_hash(text: str) -> str:
    """The hash that a content security policy allows inline text by."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
