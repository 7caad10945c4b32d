"""Grouped cross-validation of a head on a table of photos, beside the baselines, on the same folds."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.tables import PhotoTable
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.head import Head
from dinoneck.training.cell_targets import CellTargets
from dinoneck.training.fold_training import FoldTraining, MakeHead, MakeTasks
from dinoneck.training.folds import Fold, group_folds
from dinoneck.training.matching import SourceIds
from dinoneck.training.metrics import bootstrap_difference, r2, weighted_r2
from dinoneck.training.plan import Plan as Plan
from dinoneck.training.probes import knn_out_of_fold, pooled_tokens, ridge_out_of_fold
from dinoneck.training.recipe import Recipe
from dinoneck.training.sources import MemoryTokens, SomeTokens, TokenSource, in_batches, trained_backbone
from dinoneck.training.targets import as_array

logger = logging.getLogger(__name__)

HEAD, TOKENS, KNN, COLOUR = "head", "token ridge", "token knn", "colour ridge"
QUICK_RECIPE = Recipe(ema_decay=None)
_FEWEST_GROUPS = 5  # with fewer, an interval of two equal methods leaves out 0 in a quarter of the cases or more
_Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class CrossValidation:
    """Heads of all folds and what they and the baselines predict for photos they never saw.

    Attributes:
        heads: one per fold that was trained.
        folds: ``(train, valid)`` rows per fold that was trained.
        predictions: method -> (n, t) out-of-fold predictions in natural units, NaN for photos of folds that were
            not trained; methods are ``"head"``, ``"token ridge"``, ``"token knn"`` and ``"colour ridge"``.
        table: the photos and targets.
        cells: (n, K, rows, cols) out-of-fold maps in natural units, where there were cell targets.
        numbers: of the folds that were trained, counted from 0.
        auxiliary: what only helped -> (n, dim) out-of-fold predictions: values, or probabilities of classes.
    """

    heads: list[Head]
    folds: list[Fold]
    predictions: dict[str, _Floats]
    table: PhotoTable
    cells: Tensor | None = None
    numbers: tuple[int, ...] = ()
    auxiliary: dict[str, _Floats] = field(default_factory=dict)

    @property
    def rows(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The rows of the table that were predicted, ascending."""
        return np.sort(np.concatenate([valid for _, valid in self.folds]))

    @property
    def groups_predicted(self) -> int:
        """How many groups (without groups: images) were predicted."""
        return len(set(self._groups()))

    @property
    def names(self) -> list[str]:
        """The targets, in the columns' order."""
        return list(self.table.targets)

    def scores(self) -> dict[str, dict[str, float | None]]:
        """Return method -> R² per target over all out-of-fold rows, their ``overall`` and the ``worst fold``'s.

        ``overall`` is the weighted R² where the table has weights (one global mean over all targets), else the
        plain mean of the targets' R²: one mean over targets of different levels would flatter every method.
        Targets that do not vary in a fold have no R² there and are left out of that fold; None stands where no
        target varies.
        """
        true, rows = target_matrix(self.table), self.rows
        result = {}
        for method, pred in self.predictions.items():
            row = self._row(pred[rows], true[rows])
            in_folds = [self._overall(pred[valid], true[valid]) for _, valid in self.folds]
            row["worst fold"] = min((score for score in in_folds if score is not None), default=None)
            result[method] = row
        return result

    def fold_scores(self) -> list[dict[str, float | None]]:
        """Return, for each trained fold, its own head's R² per target and ``overall``, on the photos of the fold.

        None stands where the target does not vary in the fold.
        """
        true, pred = target_matrix(self.table), self.predictions[HEAD]
        return [self._row(pred[valid], true[valid]) for _, valid in self.folds]

    def errors(self) -> dict[str, dict[str, float]]:
        """Return method -> mean absolute error per target over all out-of-fold rows, in original units."""
        true, rows = target_matrix(self.table), self.rows
        means = {method: np.abs(pred[rows] - true[rows]).mean(axis=0) for method, pred in self.predictions.items()}
        return {method: dict(zip(self.names, values.tolist(), strict=True)) for method, values in means.items()}

    def spread(self) -> dict[str, dict[str, Any]]:
        """Return target -> its standard deviation over ``all`` out-of-fold rows and in each of the ``folds``."""
        true = target_matrix(self.table)
        every = true[self.rows].std(axis=0).tolist()
        folds = np.array([true[valid].std(axis=0) for _, valid in self.folds]).T.tolist()
        return {name: {"all": every[i], "folds": folds[i]} for i, name in enumerate(self.names)}

    def differences(self) -> dict[str, dict[str, list[float] | None]]:
        """Return baseline -> 95 % interval of the head's R² minus the baseline's, per target and ``overall``.

        See :func:`dinoneck.training.bootstrap_difference`; None where fewer than five groups were predicted, whose
        interval would show differences that are not there, or the target does not vary.
        """
        table, rows = self.table, self.rows
        groups = self._groups()
        true, head = target_matrix(table)[rows], self.predictions[HEAD][rows]
        varying = [i for i in range(true.shape[1]) if np.ptp(true[:, i])]
        weights = [table.weights[name] for name in self.names] if table.weights else None
        columns = {name: [i] if i in varying else [] for i, name in enumerate(self.names)}
        columns["overall"] = list(range(true.shape[1])) if weights else varying

        def interval(pred: _Floats, name: str) -> list[float] | None:
            chosen = columns[name]
            if self.groups_predicted < _FEWEST_GROUPS or not chosen:
                return None
            shares = weights if name == "overall" else None
            return list(bootstrap_difference(true[:, chosen], head[:, chosen], pred[:, chosen], groups, shares))

        baselines = {method: pred[rows] for method, pred in self.predictions.items() if method != HEAD}
        return {method: {name: interval(pred, name) for name in columns} for method, pred in baselines.items()}

    def auxiliary_scores(self) -> dict[str, float | None]:
        """Return, for what only helped, R² of values and accuracy of classes over the rows where they are known."""
        found: dict[str, float | None] = {}
        for name, pred in self.auxiliary.items():
            values, rows = self.table.auxiliary[name], self.rows
            if values.dtype.kind == "i":
                known = rows[values[rows] >= 0]
                right = pred[known].argmax(axis=1) == values[known]
                found[name] = float(right.mean()) if len(known) else None
            else:
                known = rows[np.isfinite(values[rows])]
                found[name] = _r2(pred[known, 0], values[known])
        return found

    def _groups(self) -> list[str]:
        """The group of each row that was predicted."""
        return [(self.table.groups or self.table.ids)[row] for row in self.rows]

    def _row(self, pred: _Floats, true: _Floats) -> dict[str, float | None]:
        """R² per target, and what they come to together."""
        row = {name: _r2(pred[:, i], true[:, i]) for i, name in enumerate(self.names)}
        return row | {"overall": self._overall(pred, true)}

    def _overall(self, pred: _Floats, true: _Floats) -> float | None:
        weights = self.table.weights
        if weights and np.ptp(true):
            return weighted_r2(pred, true, [weights[name] for name in self.names])
        varying = [i for i in range(true.shape[1]) if np.ptp(true[:, i]) > 0]
        return float(np.mean([r2(pred[:, i], true[:, i]) for i in varying])) if varying else None


def cross_validate(
    make_head: MakeHead,
    source: TokenSource,
    table: PhotoTable,
    plan: Plan | None = None,
    recipe: Recipe | None = None,
    cells: CellTargets | None = None,
    *,
    make_tasks: MakeTasks | None = None,
    weighting: str = "fixed",
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    on_head: Callable[[int, Head], None] | None = None,
) -> CrossValidation:
    """Train one head per fold and predict the photos it did not see; groups are never torn apart.

    Args:
        make_head: builds a new head for tasks.
        source: the table's images as tokens, matched by id (``a.jpg`` and ``a`` are one id); it may hold others too.
        table: targets, groups, weights.
        plan: folds, epochs and the other plain values.
        recipe: the rest of the training recipe; None = its defaults without a moving average.
        cells: labels per cell, matched by id: every head gets their dense task too.
        make_tasks: (table, training rows) -> tasks of a head, one for each target and auxiliary entry of the table;
            None = one per target, by the plan.
        weighting: of the tasks' losses: ``fixed``, or ``uw`` for :class:`dinoneck.losses.UncertaintyWeighting`.
        out: a folder for the logs and states of the folds, see :func:`dinoneck.training.fit`; None = keep nothing.
        resume: go on from the states there; the result is that of one run.
        on_head: called with a fold's number and its head as soon as the head is trained.

    Raises:
        DataError: if groups are too few for the folds, the source lacks images of the table, or predictions of a fold
            are not finite.
        ConfigError: if the source's backbone learns: what one fold taught it, the next one would know.
    """
    plan = plan or Plan()
    source, table = _matched(source, table)
    cells = None if cells is None else cells.of(table.ids)
    groups = table.groups or table.ids
    every = group_folds(groups, plan.folds, plan.seed)
    folds = [every[number] for number in plan.chosen]
    predictions = _baselines(source, table, folds, groups)
    predictions = {HEAD: np.full((len(table), len(table.targets)), np.nan), **predictions}
    training = FoldTraining(
        make_head, source, table, plan, recipe or QUICK_RECIPE, cells, make_tasks, weighting, out, resume
    )
    maps = None if cells is None else torch.full_like(cells.values, torch.nan)
    result = CrossValidation([], folds, predictions, table, maps, tuple(plan.chosen), {})
    for number, (train, valid) in zip(plan.chosen, folds, strict=True):
        head = training.train(number, (train, valid))
        if on_head is not None:
            on_head(number, head)
        _judge(result, head, source, valid, cells)
        _refuse_divergence(result, number, valid, plan)
        result.heads.append(head)
        logger.info("fold %d of %d is trained", number + 1, plan.folds)
    return result


def _judge(result: CrossValidation, head: Head, source: TokenSource, valid: Any, cells: CellTargets | None) -> None:
    """Write down what a head says of the photos of its fold."""
    table, held_out = result.table, [result.table.ids[row] for row in valid]
    helping = {task.name: task.dim for task in head.tasks if task.name in table.auxiliary}
    answers = predict_ids(head, source, held_out, [*table.targets, *helping])
    parts = np.split(answers, np.cumsum([len(table.targets), *helping.values()])[:-1], axis=1)
    result.predictions[HEAD][valid] = parts[0]
    for name, values in zip(helping, parts[1:], strict=True):
        result.auxiliary.setdefault(name, np.full((len(table), values.shape[1]), np.nan))[valid] = values
    if cells is not None and result.cells is not None:
        result.cells[valid] = predict_cells(head, source, held_out, cells.name)


def _refuse_divergence(result: CrossValidation, number: int, valid: Any, plan: Plan) -> None:
    """Refuse predictions of a fold that nothing can be computed with."""
    true, predictions = target_matrix(result.table)[valid], result.predictions[HEAD][valid]
    maps = np.zeros(0) if result.cells is None else result.cells[valid].numpy()
    wrong = [name for i, name in enumerate(result.names) if not _is_usable(predictions[:, i], true[:, i])]
    wrong += [name for name, values in result.auxiliary.items() if not np.isfinite(values[valid]).all()]
    if wrong or not np.isfinite(maps).all():
        raise DataError(
            f"fold {number}: the predictions of {', '.join(wrong) or 'the cells'} are not finite, or so large that no "
            f"R² can be computed: training diverged at lr {plan.lr:g}; lower it (lr=, --lr)"
        )


def _is_usable(predictions: _Floats, true: _Floats) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(((predictions - true) ** 2).sum() / max(float(np.ptp(true)) ** 2, 1e-300)))


def _matched(source: TokenSource, table: PhotoTable) -> tuple[TokenSource, PhotoTable]:
    """The source in the table's order, and the table with the source's spelling of its ids."""
    if trained_backbone(source) is not None:
        raise ConfigError(
            "the backbone of these live tokens is trainable, and the folds would share what it learns; load one per "
            "fold and call fit, or freeze it"
        )
    table = replace(table, ids=tuple(SourceIds(source.ids).all_of(table.ids, "images of the table")))
    return source if tuple(source.ids) == table.ids else SomeTokens(source, table.ids), table


def _baselines(source: TokenSource, table: PhotoTable, folds: list[Fold], groups: Sequence[str]) -> dict[str, _Floats]:
    """What the baselines say of the same folds, kept at or above the table's minimum like the head."""
    true, pooled = target_matrix(table), pooled_tokens(source)
    found = {
        TOKENS: ridge_out_of_fold(pooled, true, folds, groups=groups),
        KNN: knn_out_of_fold(pooled, true, folds, groups=groups),
    }
    colours = _colours(source, table.ids)
    if colours is not None:
        found[COLOUR] = ridge_out_of_fold(colours, true, folds, groups=groups)
    if table.minimum is None:
        return found
    return {method: np.maximum(values, table.minimum) for method, values in found.items()}


def _colours(source: TokenSource, ids: Sequence[str]) -> _Floats | None:
    """The mean colours of the photos, if the source has them."""
    whole = source.source if isinstance(source, SomeTokens) else source
    if not isinstance(whole, MemoryTokens) or whole.colours is None:
        return None
    colours: _Floats = whole.colours[whole.rows(ids)].double().numpy()
    return colours


def predict_ids(
    head: Head, source: TokenSource, ids: Sequence[str], names: Sequence[str], batch_size: int = 32
) -> _Floats:
    """Return (n, t) predictions in natural units for ids of a source."""
    device = next(head.parameters()).device
    rows = []
    for batch in in_batches(ids, batch_size):
        answers = head.predict(source.batch(batch).to(device))
        rows.append(torch.cat([answers[name] for name in names], dim=1).double().cpu())
    return torch.cat(rows).numpy()


def predict_cells(head: Head, source: TokenSource, ids: Sequence[str], name: str, batch_size: int = 16) -> Tensor:
    """Return (n, K, rows, cols) float32 maps of a dense task in natural units for ids of a source."""
    device = next(head.parameters()).device
    answers = [head.predict(source.batch(batch).to(device))[name] for batch in in_batches(ids, batch_size)]
    return torch.cat([answer.float().cpu() for answer in answers])


def target_matrix(table: PhotoTable) -> _Floats:
    """Return the targets as (n, t)."""
    return np.stack([as_array(table.targets[name]) for name in table.targets], axis=1)


def _r2(pred: _Floats, true: _Floats) -> float | None:
    return r2(pred, true) if len(true) and np.ptp(true) else None
