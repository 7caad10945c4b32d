"""Classes of masks that a fold holds out and trains on none of, and masks that count their classes differently."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dinoneck.data.layout import HELD_OUT
from dinoneck.errors import counted, some_of
from dinoneck.training.table import Fold
from dinoneck.training.tasks import Problem

logger = logging.getLogger(__name__)
_SHOWN = 5  # names in a message
_FEWEST_CLASSES = 3  # of two, 0 and 1, every mask of one class alone would be suspicious
_Shown = np.ndarray[Any, np.dtype[np.bool_]]  # (n, K), whether a mask shows a class


def warn_of_mask_classes(problem: Problem, table: Any, folds: Mapping[int | None, Fold]) -> None:
    """Name the classes of masks that no head can learn or score, and masks whose numbers are shifted.

    Args:
        problem: what is learned; only its segmentation is looked at.
        table: of :func:`dinoneck.training.table.table_of`.
        folds: those that are trained.
    """
    for task in problem.tasks:
        if task.kind != "segmentation":
            continue
        shown = torch.nan_to_num(problem.targets[task.name]).flatten(2).amax(-1).gt(0).numpy()
        names = list(map(str, task.labels))
        held_out_part = table.attrs.get(HELD_OUT)
        is_shifted = _warn_of_shifted(names, shown)
        for number, (train, valid) in folds.items():
            if number is None or not len(valid):
                continue
            trained = np.logical_or.reduce(shown[train], axis=0)
            held_out = np.logical_or.reduce(shown[valid], axis=0)
            _warn_of_unseen(names, number, trained, held_out, says_shift=not is_shifted)
            if held_out_part is not None:
                _warn_of_unscored(names, held_out_part, trained, held_out)


def _warn_of_unseen(
    names: list[str], number: int, trained: _Shown, held_out: _Shown, *, says_shift: bool
) -> None:
    """Name the classes that a fold holds out and trains on none of, and that their numbers seem shifted."""
    unseen = _names_where(names, held_out & ~trained)
    if not unseen:
        return
    hint = ""
    is_shifted = np.array_equal(trained[:-1], held_out[1:]) and not trained[-1] and not held_out[0]
    if says_shift and is_shifted:
        hint = (
            f". The masks to train on hold {some_of(_names_where(names, trained), _SHOWN)}, those "
            f"held out {some_of(_names_where(names, held_out), _SHOWN)}: do they count from 0 and "
            "from 1? Save all in one way"
        )
    logger.warning(
        "fold %s holds out masks of %s %s and trains on none: no head can learn it. Move some such "
        "images, or use other folds%s",
        number,
        "the class" if len(unseen) == 1 else "the classes",
        some_of(unseen, _SHOWN),
        hint,
    )


def _warn_of_unscored(names: list[str], part: str, trained: _Shown, held_out: _Shown) -> None:
    """Name the classes that are trained on, and that the part which is held out lacks."""
    unscored = _names_where(names, trained & ~held_out)
    if unscored:
        logger.warning(
            "the masks of %s show nothing of %s %s: it gets no score",
            part,
            "the class" if len(unscored) == 1 else "the classes",
            some_of(unscored, _SHOWN),
        )


def _warn_of_shifted(names: list[str], shown: _Shown) -> bool:
    """Name masks of which some hold all classes but the last, and the others all but the first; return if there are."""
    if len(names) < _FEWEST_CLASSES:
        return False
    has_mask = shown.any(1)
    from_first = shown[:, :-1].all(1) & ~shown[:, -1]
    from_second = shown[:, 1:].all(1) & ~shown[:, 0]
    is_explained = from_first | from_second | ~has_mask
    is_shifted = bool(is_explained.all()) and from_first.sum() > 1 and from_second.sum() > 1
    if is_shifted:
        logger.warning(
            "%s hold the classes %s ... %s, and %s hold %s ... %s: if they count the same classes "
            "from 0 and from 1, save all in one way",
            counted(int(from_first.sum()), "mask"),
            names[0],
            names[-2],
            counted(int(from_second.sum()), "mask"),
            names[1],
            names[-1],
        )
    return is_shifted


def _names_where(names: list[str], is_chosen: _Shown) -> list[str]:
    return [name for name, chosen in zip(names, is_chosen, strict=True) if chosen]
