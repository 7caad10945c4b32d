"""One fold of a cross-validation: a new head, trained on the fold's photos, in a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dinoneck.data.tables import PhotoTable
from dinoneck.errors import DataError
from dinoneck.heads.head import Head
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.losses.uncertainty import UncertaintyWeighting
from dinoneck.tasks import TargetTransform, Task
from dinoneck.training.cell_targets import CellTargets
from dinoneck.training.fitting import fit
from dinoneck.training.folds import Fold
from dinoneck.training.plan import Plan
from dinoneck.training.recipe import Recipe
from dinoneck.training.sources import TokenSource

MakeHead = Callable[[Sequence[Task]], Head]
MakeTasks = Callable[[PhotoTable, Any], Sequence[Task]]


@dataclass(frozen=True)
class FoldTraining:
    """What all folds share.

    Attributes:
        make_head: builds a new head for tasks.
        source: the table's photos as tokens.
        table: targets and what only helps.
        plan: epochs and the other plain values.
        recipe: the rest of the recipe.
        cells: labels per cell.
        make_tasks: (table, training rows) -> tasks; None = one per target, by the plan.
        weighting: ``fixed``, or ``uw`` for uncertainty weighting.
        out: a folder that gets ``fold-K/log.jsonl`` and ``fold-K/last.safetensors``, the state to go on from.
        resume: go on from such states.
    """

    make_head: MakeHead
    source: TokenSource
    table: PhotoTable
    plan: Plan = field(default_factory=Plan)
    recipe: Recipe = field(default_factory=Recipe)
    cells: CellTargets | None = None
    make_tasks: MakeTasks | None = None
    weighting: str = "fixed"
    out: str | os.PathLike[str] | None = None
    resume: bool = True

    def train(self, number: int, fold: Fold) -> Head:
        """Return the head of a fold; the same call gives the same weights, resumed or not."""
        plan = self.plan
        tasks = self._tasks(fold[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed + number)
            head = self.make_head(tasks)
        try:
            self._fit(head, number, fold)
        except DataError as error:
            raise DataError(f"fold {number}: {error}") from error
        return head

    def _fit(self, head: Head, number: int, fold: Fold) -> None:
        plan, table, (train, valid) = self.plan, self.table, fold
        validates = self.out is not None or self.recipe.patience is not None
        fit(
            head,
            self.source,
            targets={**table.targets, **table.auxiliary, **self._cell_values()},
            weights={} if self.cells is None else {self.cells.name: self.cells.weight},
            target_ids=table.ids,
            ids=[table.ids[row] for row in train],
            val_ids=[table.ids[row] for row in valid] if validates else None,
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            lr=plan.lr,
            seed=plan.seed + number,
            out=None if self.out is None else fold_folder(self.out, number),
            resume=self.resume,
            recipe=self.recipe,
            loss=self._loss(head),
            target_weights=table.weights or None,
            groups=dict(zip(table.ids, table.groups, strict=True)) if table.groups else None,
        )

    def _tasks(self, train: Any) -> list[Task]:
        found = list((self.make_tasks or self._plain_tasks)(self.table, train))
        if self.cells is None:
            return found
        shares = self._shares
        found = [self.cells.share_task(task) if task.name in shares else task for task in found]
        minimum = None if shares else self.table.minimum  # a mean of clipped cells would be too high
        return [*found, self.cells.task(train, self.plan.standardise, minimum)]

    @cached_property
    def _shares(self) -> tuple[str, ...]:
        """The targets that are the mean over the cells of their name; computed, and reported in the log, once."""
        return () if self.cells is None else self.cells.shares(self.table.targets)

    def _plain_tasks(self, table: PhotoTable, train: Any) -> Iterable[Task]:
        """One task per target, by the plan."""
        for name, values in table.targets.items():
            task = Task(name, activation=self.plan.activation, unit=table.units.get(name, ""), minimum=table.minimum)
            if self.plan.head == "dense":
                task = replace(task, kind="density", aggregate="mean")
            if self.plan.standardise:
                task = replace(task, transform=TargetTransform().fit(values[train]))
            yield task

    def _cell_values(self) -> Mapping[str, Any]:
        return {} if self.cells is None else {self.cells.name: self.cells.values}

    def _loss(self, head: Head) -> TaskLoss | None:
        if self.weighting != "uw":
            return None
        names = [task.name for task in head.predicted]
        return TaskLoss(head.tasks, head.compositions, UncertaintyWeighting(names))


def fold_folder(out: str | os.PathLike[str], number: int) -> Path:
    """Return the folder of a fold's log and state."""
    return Path(out) / f"fold-{number}"
