"""Predict many images: in batches with a progress bar, leaving out those that cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.errors import ConfigError, DinoneckError, printable
from dinoneck.inference.sources import HeadSource
from dinoneck.inference.tta import TTA
from dinoneck.progress import progress

logger = logging.getLogger(__name__)


def predict_many(
    predict: Callable[[list[Path]], list[dict[str, Any]]],
    images: Sequence[Path],
    places: Sequence[int] | None = None,
    *,
    at_once: int = 32,
    unusable: dict[int, str] | None = None,
) -> dict[int, dict[str, Any]]:
    """Return place among the images -> prediction.

    Args:
        predict: a predictor or detector, which splits images into batches and decodes ahead of the model.
        images: files.
        places: which of them; None = all.
        at_once: images per call; if one of them cannot be used, they are predicted one by one.
        unusable: place -> why the image cannot be used, filled in by this call; None = such an image is an error.

    Raises:
        DinoneckError: the first unusable image, if ``unusable`` is None.
    """
    places = range(len(images)) if places is None else places
    results: dict[int, dict[str, Any]] = {}
    if not places:
        return results
    for begin in progress(range(0, len(places), at_once), desc="images", unit="batch"):
        batch = places[begin : begin + at_once]
        try:
            results |= dict(zip(batch, predict([images[place] for place in batch]), strict=True))
            continue
        except (DinoneckError, OSError):
            if unusable is None:
                raise
            logger.info("an image of %d cannot be used; they are predicted one by one", len(batch), exc_info=True)
        for place in batch:
            try:
                results[place] = predict([images[place]])[0]
            except (DinoneckError, OSError) as error:
                unusable[place] = printable(str(error))
    return results


def recorded_views(heads: Sequence[HeadSource]) -> TTA:
    """Return the views that the training of these heads recorded; files of schema 1 keep them under ``extra``.

    Raises:
        ConfigError: if they differ.
    """
    metas = [head.meta for head in heads if isinstance(head, HeadCheckpoint)]
    named: set[Any] = {(meta.get("tta") or {}).get("ops") or meta["extra"].get("tta", "none") for meta in metas}
    if len(named) > 1:
        shown = ", ".join(sorted(map(str, named)))
        raise ConfigError(f"the heads were trained for different views ({shown}); choose with --tta")
    return cast("TTA", named.pop() if named else "none")
