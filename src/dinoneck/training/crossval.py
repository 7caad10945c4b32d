"""Grouped cross-validation of a head on a table of photos, beside the baselines, on the same folds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.tables import PhotoTable
from dinoneck.errors import DataError
from dinoneck.heads.head import Head
from dinoneck.tasks import Activation, TargetTransform, Task
from dinoneck.training.cell_targets import CellTargets
from dinoneck.training.fitting import Recipe, fit
from dinoneck.training.folds import Fold, group_folds
from dinoneck.training.metrics import r2, weighted_r2
from dinoneck.training.probes import ridge_out_of_fold, ridge_probe
from dinoneck.training.sources import MemoryTokens

logger = logging.getLogger(__name__)

HEAD, TOKENS, COLOUR = "head", "token ridge", "colour ridge"
_Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Plan:
    """The plain values of a cross-validation.

    Attributes:
        folds: number of folds.
        epochs: passes over the training photos, per fold.
        batch_size: photos per step.
        lr: peak learning rate.
        seed: of the split, the heads' first weights and the order of samples.
        hidden_dim: hidden units per head; channels of the pyramid.
        activation: of every task; None = linear.
        standardise: give each target a z-score fitted on the training fold; off, heads learn natural units.
        head: ``patch_mean``, or ``fpn`` on all layers of the tokens.
    """

    folds: int = 5
    epochs: int = 40
    batch_size: int = 8
    lr: float = 1e-3
    seed: int = 42
    hidden_dim: int = 128
    activation: Activation | None = None
    standardise: bool = True
    head: Literal["patch_mean", "fpn"] = "patch_mean"


@dataclass(frozen=True)
class CrossValidation:
    """Heads of all folds and what they and the baselines predict for photos they never saw.

    Attributes:
        heads: one per fold.
        folds: ``(train, valid)`` rows per fold.
        predictions: method -> (n, t) out-of-fold predictions in natural units; methods are ``"head"``,
            ``"token ridge"`` and ``"colour ridge"``.
        table: the photos and targets.
        cells: (n, K, rows, cols) out-of-fold maps in natural units, where there were cell targets.
    """

    heads: list[Head]
    folds: list[Fold]
    predictions: dict[str, _Floats]
    table: PhotoTable
    cells: Tensor | None = None

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
        true = target_matrix(self.table)
        result = {}
        for method, pred in self.predictions.items():
            row: dict[str, float | None] = {name: r2(pred[:, i], true[:, i]) for i, name in enumerate(self.names)}
            row["overall"] = self._overall(pred, true)
            in_folds = [self._overall(pred[valid], true[valid]) for _, valid in self.folds]
            row["worst fold"] = min((score for score in in_folds if score is not None), default=None)
            result[method] = row
        return result

    def _overall(self, pred: _Floats, true: _Floats) -> float | None:
        weights = self.table.weights
        if weights and np.ptp(true):
            return weighted_r2(pred, true, [weights[name] for name in self.names])
        varying = [i for i in range(true.shape[1]) if np.ptp(true[:, i]) > 0]
        return float(np.mean([r2(pred[:, i], true[:, i]) for i in varying])) if varying else None


def cross_validate(
    make_head: Callable[[Sequence[Task]], Head],
    source: MemoryTokens,
    table: PhotoTable,
    plan: Plan | None = None,
    recipe: Recipe | None = None,
    cells: CellTargets | None = None,
) -> CrossValidation:
    """Train one head per fold and predict the photos it did not see; groups are never torn apart.

    Args:
        make_head: builds a new head for tasks.
        source: the table's photos as tokens, ids in the table's order.
        table: targets, groups, weights.
        plan: folds, epochs and the other plain values.
        recipe: the rest of the training recipe.
        cells: labels per cell: every head gets their dense task too.

    Raises:
        DataError: if groups are too few for the folds, or the source holds other photos than the table.
    """
    plan = plan or Plan()
    if tuple(source.ids) != table.ids:
        raise DataError("the tokens belong to other photos than the table, or stand in another order")
    groups = table.groups or table.ids
    folds = group_folds(groups, plan.folds, plan.seed)
    predictions = _baselines(source, table, folds, groups)
    predictions = {HEAD: np.full((len(table), len(table.targets)), np.nan), **predictions}
    heads = []
    maps = None if cells is None else torch.full_like(cells.values, torch.nan)
    for number, (train, valid) in enumerate(folds):
        tasks = _tasks(table, train, plan) + (
            [] if cells is None else [cells.task(train, plan.standardise, table.minimum)]
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed + number)
            head = make_head(tasks)
        fit(
            head,
            source,
            targets={**table.targets, **({} if cells is None else {cells.name: cells.values})},
            weights={} if cells is None else {cells.name: cells.weight},
            ids=[table.ids[row] for row in train],
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            lr=plan.lr,
            seed=plan.seed + number,
            recipe=recipe,
        )
        held_out = [table.ids[row] for row in valid]
        predictions[HEAD][valid] = predict_ids(head, source, held_out, list(table.targets))
        if cells is not None and maps is not None:
            maps[valid] = predict_cells(head, source, held_out, cells.name)
        heads.append(head)
        logger.info("fold %d of %d is trained", number + 1, plan.folds)
    return CrossValidation(heads, folds, predictions, table, maps)


def _baselines(source: MemoryTokens, table: PhotoTable, folds: list[Fold], groups: Sequence[str]) -> dict[str, _Floats]:
    """What ridge regressions say of the same folds, kept at or above the table's minimum like the head."""
    true = target_matrix(table)
    found = {TOKENS: ridge_probe(source, true, folds, groups=groups)}
    if source.colours is not None:
        found[COLOUR] = ridge_out_of_fold(source.colours.double().numpy(), true, folds, groups=groups)
    if table.minimum is None:
        return found
    return {method: np.maximum(values, table.minimum) for method, values in found.items()}


def predict_ids(
    head: Head, source: MemoryTokens, ids: Sequence[str], names: Sequence[str], batch_size: int = 32
) -> _Floats:
    """Return (n, t) predictions in natural units for ids of a source."""
    device = next(head.parameters()).device
    rows = []
    for begin in range(0, len(ids), batch_size):
        answers = head.predict(source.batch(ids[begin : begin + batch_size]).to(device))
        rows.append(torch.cat([answers[name] for name in names], dim=1).double().cpu())
    return torch.cat(rows).numpy()


def predict_cells(head: Head, source: MemoryTokens, ids: Sequence[str], name: str, batch_size: int = 16) -> Tensor:
    """Return (n, K, rows, cols) float32 maps of a dense task in natural units for ids of a source."""
    device = next(head.parameters()).device
    batches = (ids[begin : begin + batch_size] for begin in range(0, len(ids), batch_size))
    return torch.cat([head.predict(source.batch(batch).to(device))[name].float().cpu() for batch in batches])


def target_matrix(table: PhotoTable) -> _Floats:
    """Return the targets as (n, t)."""
    return np.stack([table.targets[name] for name in table.targets], axis=1)


def _tasks(table: PhotoTable, train: Any, plan: Plan) -> list[Task]:
    tasks = []
    for name, values in table.targets.items():
        task = Task(name, activation=plan.activation, unit=table.units.get(name, ""), minimum=table.minimum)
        if plan.standardise:
            task = replace(task, transform=TargetTransform().fit(values[train]))
        tasks.append(task)
    return tasks


def not_beaten(scores: Mapping[str, Mapping[str, Any]], target: str) -> list[str]:
    """Return the baselines that the head does not beat on a target."""
    own = scores[HEAD][target]
    return [method for method in (TOKENS, COLOUR) if method in scores and scores[method][target] >= own]
