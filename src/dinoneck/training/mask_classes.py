"""Warn of classes of masks that a fold cannot learn or score, and of masks that number them differently."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dinoneck.data.table import Table
from dinoneck.text import counted, some_of
from dinoneck.training.folds import Fold
from dinoneck.training.problem import Problem

logger = logging.getLogger(__name__)
_MAX_NAMES = 5  # in a message
# of two classes, 0 and 1, each mask with one class alone would look as if its numbers were shifted
_MIN_CLASSES = 3
_Bools = np.ndarray[Any, np.dtype[np.bool_]]


def warn_of_mask_classes(problem: Problem, table: Table, folds: Sequence[Fold]) -> None:
    """Warn of classes that no head can learn or score, and of masks whose class numbers are shifted.

    Args:
        problem: the tasks and their targets; only segmentation tasks are checked.
        table: the table of :func:`dinoneck.training.table.table_of`.
        folds: those that are trained.
    """
    for task in problem.tasks:
        if task.kind != "segmentation":
            continue
        class_shares = torch.nan_to_num(problem.targets[task.name])  # (n, K, rows, cols)
        shown = class_shares.flatten(2).amax(-1).gt(0).numpy()  # (n, K): the mask shows the class
        names = [str(label) for label in task.labels]
        is_shifted = _warn_of_shifted(names, shown)
        for fold in folds:
            if not len(fold.valid):
                continue
            trained = np.logical_or.reduce(shown[fold.train], axis=0)  # (K,)
            held_out = np.logical_or.reduce(shown[fold.valid], axis=0)  # (K,)
            _warn_of_unseen(names, fold.name, trained, held_out, hints_at_shift=not is_shifted)
            if table.held_out is not None:
                _warn_of_unscored(names, table.held_out, trained, held_out)


def _warn_of_unseen(
    names: list[str], fold_name: str, trained: _Bools, held_out: _Bools, *, hints_at_shift: bool
) -> None:
    """Warn of classes that only the held-out masks of a fold show.

    Args:
        names: names of the K classes.
        fold_name: name of the fold.
        trained: whether a mask to train on shows each class (K,).
        held_out: whether a held-out mask does (K,).
        hints_at_shift: whether to add a hint if the numbers of the classes seem shifted by one.
    """
    unseen = _names_where(names, held_out & ~trained)
    if not unseen:
        return
    hint = ""
    lacks_ends = not trained[-1] and not held_out[0]
    is_shifted = lacks_ends and np.array_equal(trained[:-1], held_out[1:])
    if hints_at_shift and is_shifted:
        trained_names = some_of(_names_where(names, trained), _MAX_NAMES)
        held_out_names = some_of(_names_where(names, held_out), _MAX_NAMES)
        hint = (
            f". The masks to train on hold {trained_names}, those held out {held_out_names}: do they "
            "count from 0 and from 1? Save all in one way"
        )
    logger.warning(
        "fold %s holds out masks of %s and trains on none: no head can learn %s. Move some such "
        "images, or use other folds%s",
        fold_name,
        _in_words(unseen),
        "it" if len(unseen) == 1 else "them",
        hint,
    )


def _warn_of_unscored(names: list[str], part: str, trained: _Bools, held_out: _Bools) -> None:
    """Warn of classes that are trained on, but that no mask of the held-out part shows.

    Args:
        names: names of the K classes.
        part: name of the held-out part of the data set.
        trained: whether a mask to train on shows each class (K,).
        held_out: whether a held-out mask does (K,).
    """
    unscored = _names_where(names, trained & ~held_out)
    if unscored:
        logger.warning(
            "the masks of %s show nothing of %s: %s no score",
            part,
            _in_words(unscored),
            "it gets" if len(unscored) == 1 else "they get",
        )


def _warn_of_shifted(names: list[str], shown: _Bools) -> bool:
    """Warn of masks whose class numbers seem to start at 0 in some and at 1 in the others.

    Some show all classes but the last, and the others all but the first.

    Args:
        names: names of the K classes.
        shown: whether each mask shows each class (n, K).

    Returns:
        Whether there was a warning.
    """
    if len(names) < _MIN_CLASSES:
        return False
    is_empty = ~shown.any(axis=1)
    from_first = shown[:, :-1].all(axis=1) & ~shown[:, -1]
    from_second = shown[:, 1:].all(axis=1) & ~shown[:, 0]
    is_explained = from_first | from_second | is_empty
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


def _in_words(names: list[str]) -> str:
    """Some classes, as messages name them."""
    what = "the class" if len(names) == 1 else "the classes"
    return f"{what} {some_of(names, _MAX_NAMES)}"


def _names_where(names: list[str], is_chosen: _Bools) -> list[str]:
    return [name for name, chosen in zip(names, is_chosen, strict=True) if chosen]
