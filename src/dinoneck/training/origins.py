"""What a head was trained on, noted in the head for the file that it is saved in."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from dinoneck.heads.head import Head
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.layers.inputs import Origin
from dinoneck.tokens import Tokens
from dinoneck.training.objective import Trained
from dinoneck.training.token_sources import TokenSource, origin_of

logger = logging.getLogger(__name__)
_FIELDS_OF_TOKENS = ("name", "source", "layers", "normed", "patch_size")  # fields of Origin


def note_origin(trained: Trained, source: TokenSource, inputs: Tokens | Tensor) -> None:
    """Note in the head what it was trained on.

    Args:
        trained: head and, if it was trained along, backbone, which is described as it is now.
        source: of the tokens.
        inputs: of a sample: tokens, or images of live tokens.
    """
    origin = origin_of(source, inputs)
    for head in reversed(trained.heads()):  # members, then ensembles
        if head.trained_on is None:
            head.note_origin(origin)
        else:
            head.note_origin(_update_origin(head, head.trained_on, origin, inputs))


def _update_origin(head: Head, earlier: Origin, origin: Origin, inputs: Tokens | Tensor) -> Origin:
    """Return the origin of a head that was trained before, with what is known of these tokens."""
    images = origin.images or _earlier_images(head, earlier, inputs)
    if not earlier.refuses_tokens:
        return replace(origin, images=images)
    values: dict[str, Any] = {"images": images}
    for name in _FIELDS_OF_TOKENS:
        value = getattr(origin, name)
        if value is not None:
            values[name] = value
    return replace(earlier, **values)


def _earlier_images(
    head: Head, earlier: Origin, inputs: Tokens | Tensor
) -> Mapping[str, Any] | None:
    """Return how images were prepared for an earlier training, if these tokens can be of such images.

    The tokens do not state how their images were prepared.
    """
    if earlier.images is None or not isinstance(inputs, Tokens):
        return earlier.images
    grid = Preprocessing.from_record(earlier.images).grid()
    if grid is None or grid == inputs.grid:
        return earlier.images
    logger.warning(
        "this %s was trained before on images of %d x %d patches (height x width), and now on tokens "
        "of %d x %d, which do not state how their images were prepared: pass preprocess= to save_head "
        "and Predictor",
        type(head).__name__,
        *grid,
        *inputs.grid,
    )
    return None
