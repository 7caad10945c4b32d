"""A page to touch features: the cosine similarity of one patch to all others, in one HTML file without a network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
import torch
from torch import Tensor
from torch.nn import functional as F

from dinoneck.data.decoding import ImageInput, as_list
from dinoneck.errors import DataError, printable
from dinoneck.tokens import Tokens
from dinoneck.viz import style
from dinoneck.viz.panels import as_image, data_uri

COORDINATES = 64  # fewer keep the variance, and lose which patches are the nearest
_BLOCK = 1024
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
    listed, parts = as_list(images), [tokens] if isinstance(tokens, Tokens) else [*tokens]
    patches = [
        (own, part.grid) for part in parts for own in part.patches[-1].detach().cpu().float()
    ]
    texts = [f"image {i + 1}" for i in range(len(listed))] if names is None else [*names]
    if not patches or not len(patches) == len(listed) == len(texts):
        raise DataError(
            f"{len(patches)} samples, {len(listed)} images and {len(texts)} names; expected one "
            "of each"
        )
    codes, scales, error = _encoded(torch.cat([own for own, _ in patches]))
    shown = [
        {
            "name": printable(name),
            "rows": grid.rows,
            "cols": grid.cols,
            "uri": data_uri(as_image(image), style.SIMILARITY_PX),
        }
        for name, image, (_, grid) in zip(texts, listed, patches, strict=True)
    ]
    data = {"images": shown, "scales": scales, "codes": codes, "colours": style.SCALE.tolist()}
    css, script = ((_FOLDER / f"similarity.{kind}").read_text("utf-8") for kind in ("css", "js"))
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return page.from_string((_FOLDER / "similarity.html.j2").read_text("utf-8")).render(
        title=title,
        images=shown,
        style=css,
        script=script,
        style_hash=_source(css),
        script_hash=_source(script),
        data=json.dumps(data).replace("<", "\\u003c"),
        note="Cosine similarities of centred tokens; 64 coordinates of 8 bits change them by at "
        f"most {error:.2f}.",
    )


def _encoded(patches: Tensor) -> tuple[str, list[float], float]:
    """Centred unit tokens (n, C) as int8 in base64, the scale of each coordinate, and the largest error of a cosine."""
    if not patches.isfinite().all():
        raise DataError("tokens are not finite; they have no similarity")
    unit = F.normalize(patches - patches.mean(dim=0), dim=1)
    _, directions = torch.linalg.eigh((unit.T @ unit).double())
    coordinates = unit @ directions[:, -COORDINATES:].float()
    scale = coordinates.abs().amax(dim=0).clamp_min(1e-12) / 127
    codes = (coordinates / scale).round().to(torch.int8)
    stored, errors = codes * scale, list[Tensor]()
    for place, (part, own) in enumerate(
        zip(torch.split(stored, _BLOCK), torch.split(unit, _BLOCK), strict=True)
    ):
        error = (part @ stored.T - own @ unit.T).abs()
        error.diagonal(_BLOCK * place).zero_()  # a patch and itself are drawn as 1
        errors.append(error.max())
    text = base64.b64encode(codes.numpy().tobytes()).decode("ascii")
    return (
        text,
        [float(f"{value:.6g}") for value in scale.tolist()],
        float(torch.stack(errors).max()),
    )


def _source(text: str) -> str:
    """A source of a content policy: the hash of what is inline."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"
