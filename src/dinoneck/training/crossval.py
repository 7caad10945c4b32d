"""Cross-validation of a head on a table of images, next to baselines on the same folds."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.devices import local_device
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.head import Head
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.losses.uncertainty import UncertaintyWeighting
from dinoneck.progress import note
from dinoneck.store.feature_store import FeatureStore
from dinoneck.training.cell_targets import CellTargets
from dinoneck.training.config import TrainConfig
from dinoneck.training.engine import Callback
from dinoneck.training.fitting import fit
from dinoneck.training.folds import Fold, check_folds, folds_of, group_folds
from dinoneck.training.live_tokens import trained_backbone
from dinoneck.training.matching import SourceIds
from dinoneck.training.metrics import confusion_matrix
from dinoneck.training.probes import knn_out_of_fold, pooled_tokens, ridge_out_of_fold
from dinoneck.training.sources import MemoryTokens, SomeTokens, TokenSource, in_batches
from dinoneck.training.table import Table, table_of
from dinoneck.training.table_source import compare_table
from dinoneck.training.tasks import Problem

HEAD, TOKENS, KNN, COLOUR, FREQUENT = "head", "token ridge", "token knn", "colour ridge", "most frequent class"
_BINS = 5  # of a column of numbers that folds are stratified by
_Floats = np.ndarray[Any, np.dtype[np.float64]]
_Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class CrossValidation:
    """Heads of all folds, and what they and the baselines predict for images that they were not trained on.

    Attributes:
        heads: one per trained fold.
        folds: ``(train, valid)`` rows per trained fold.
        numbers: of the trained folds, counted from 0.
        table: the images and targets.
        values: target of numbers -> (n,) true values, NaN = missing, in the order of ``predictions``' columns.
        predictions: method -> (n, t) out-of-fold predictions in original units, NaN for images that no trained fold
            predicts; methods are ``"head"``, ``"token ridge"``, ``"token knn"`` and ``"colour ridge"``.
        classes: target of classes -> method -> (n,) predicted class indices, -1 for images that are not predicted.
        masks: (n, K, K) confusion matrix per image and method of a segmentation, rows true.
        cells: (n, K, rows, cols) out-of-fold maps of a dense task in original units.
        auxiliary: auxiliary task -> (n, dim) out-of-fold predictions: values, or probabilities of classes.
        auxiliary_values: auxiliary task -> what is known of it.
        cell_targets: what the maps are compared with.
        report: scores, config and versions, filled in by :func:`dinoneck.training.train`.
    """

    heads: list[Head]
    folds: list[Fold]
    numbers: tuple[int, ...]
    table: Table
    values: dict[str, _Floats]
    predictions: dict[str, _Floats]
    classes: dict[str, dict[str, _Ints]] = field(default_factory=dict)
    masks: dict[str, _Ints] = field(default_factory=dict)
    cells: Tensor | None = None
    auxiliary: dict[str, _Floats] = field(default_factory=dict)
    auxiliary_values: dict[str, Any] = field(default_factory=dict)
    cell_targets: CellTargets | None = None
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> _Ints:
        """The rows of the table that were predicted, ascending."""
        return np.sort(np.concatenate([valid for _, valid in self.folds]))

    @property
    def groups(self) -> list[str]:
        """The group of each row of the table; without groups every image is its own."""
        return list(self.table.groups or self.table.ids)

    def to_frame(self) -> Any:
        """Return the out-of-fold predictions as a pandas DataFrame, indexed by image."""
        from dinoneck.data.tables import pd  # type: ignore[attr-defined]  # names the extra where it is missing

        header, *rows = self.out_of_fold()
        return pd.DataFrame(rows, columns=header).set_index(header[0])

    def out_of_fold(self) -> list[list[Any]]:
        """Return a header, and per predicted image its id, fold, and the true and predicted values and classes.

        What is not known is None.
        """
        fold_of = {int(row): fold for fold, (_, valid) in zip(self.numbers, self.folds, strict=True) for row in valid}
        header = ["image", "fold"]
        for name in self.values:
            header += [name, *(f"{name} ({method})" for method in self.predictions)]
        for name, methods in self.classes.items():
            header += [name, *(f"{name} ({method})" for method in methods)]
        rows = []
        for i in self.rows:
            row: list[Any] = [self.table.ids[i], fold_of[int(i)]]
            for column, values in enumerate(self.values.values()):
                each = (values[i], *(p[i, column] for p in self.predictions.values()))
                row += [None if np.isnan(x) else float(f"{x:.6g}") for x in each]
            for name, methods in self.classes.items():
                labels = self.table.classes[name]
                row += [None if x[i] < 0 else labels[x[i]] for x in (self.table.targets[name], *methods.values())]
            rows.append(row)
        return [header, *rows]


def cross_validate(
    config: TrainConfig,
    table: Any,
    source: TokenSource,
    cells: CellTargets | None = None,
    *,
    folds: Sequence[Fold] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    callback: Callable[[int], Sequence[Callback]] = lambda fold: (),
) -> CrossValidation:
    """Train one head per fold and predict the images that it was not trained on.

    Args:
        config: head, tasks, recipe, folds; data and backbone are not used.
        table: a DataFrame of :func:`dinoneck.data.read_table`: targets, groups, folds.
        source: the table's images as tokens, matched by id (``a.jpg`` and ``a`` are one id); it may hold others too.
        cells: labels per cell, matched by id: every head gets their task too.
        folds: ``(train, valid)`` rows of the table; None = by ``config.folds``.
        out: a folder for the logs and states of the folds, see :func:`dinoneck.training.fit`; None = keep nothing.
        resume: continue from the states there; the result is that of one run.
        callback: fold -> callbacks of its training, see :func:`dinoneck.training.fit`.

    Raises:
        DataError: if groups are too few for the folds, the source lacks images of the table, or predictions of a fold
            are not finite.
        ConfigError: if the source's backbone is trainable (the folds would share what it learns), or head, tasks and
            tokens do not fit together.
    """
    source, table = _matched(source, table_of(table, config))
    problem = Problem.of(config, table, None if cells is None else cells.of(table.ids))
    numbers, chosen = choose_folds(config, table, folds)
    result = _baselines(problem, source, chosen, numbers)
    tokens = source.batch(source.ids[:1])
    for number, (train, valid) in zip(numbers, result.folds, strict=True):
        head = problem.head(tokens, train, config.optim.seed + number)
        head = head.to(local_device(config.device))
        folder = None if out is None else fold_folder(out, number)
        try:
            _fit(problem, head, source, number, (train, valid), folder, resume, callback(number))
        except DataError as error:
            raise DataError(f"fold {number}: {error}") from error
        _predict(result, problem, head, source, valid)
        _refuse_divergence(result, number, valid, config)
        result.heads.append(head)
        note(f"fold {number} is trained, {len(result.heads)} of {len(chosen)}")
    return result


def make_folds(config: TrainConfig, table: Table) -> list[Fold]:
    """Return the folds of ``config.folds``: of a column, or of groups, stratified on request.

    Raises:
        ConfigError: if the column to stratify by is not a target of the table.
        DataError: if there are fewer groups than folds.
    """
    if config.folds.column is not None:
        return folds_of(table.folds or ())
    stratify = config.folds.stratify
    known = {**table.targets, **table.auxiliary}
    if stratify is not None and stratify not in known:
        raise ConfigError(f"folds.stratify is {stratify!r}; expected one of the targets {', '.join(known)}")
    labels = None if stratify is None else known[stratify]
    if labels is not None and labels.dtype.kind == "f":
        labels = np.searchsorted(np.nanquantile(labels, np.linspace(0, 1, _BINS + 1)[1:-1]), labels)
    classes = None if labels is None else labels.tolist()
    return group_folds(table.groups or range(len(table)), config.folds.count, config.optim.seed, stratify=classes)


def choose_folds(
    config: TrainConfig, table: Table, folds: Sequence[Fold] | None = None
) -> tuple[tuple[int, ...], list[Fold]]:
    """Return the numbers of the folds to train, and the folds: those of the caller, or of ``config.folds``.

    Raises:
        ConfigError: if no fold has the number ``config.folds.only``.
        DataError: if the folds do not fit the table.
    """
    every = make_folds(config, table) if folds is None else check_folds(folds, len(table))
    numbers = tuple(range(len(every))) if config.folds.only is None else (config.folds.only,)
    if numbers[-1] >= len(every):
        raise ConfigError(f"fold is {numbers[-1]} and there are {len(every)} folds; expected 0 ... {len(every) - 1}")
    return numbers, [every[number] for number in numbers]


def fold_folder(out: str | os.PathLike[str], number: int) -> Path:
    """Return the folder of a fold's log and state."""
    return Path(out) / f"fold-{number}"


def _fit(
    problem: Problem,
    head: Head,
    source: TokenSource,
    number: int,
    fold: Fold,
    folder: Path | None,
    resume: bool,
    callbacks: Sequence[Callback],
) -> None:
    config, table, cells, targets = problem.config, problem.table, problem.cells, problem.targets
    recipe = replace(config.optim, seed=config.optim.seed + number)
    validates = folder is not None or bool(callbacks) or recipe.patience is not None
    weighting = None
    if config.losses.weighting == "uncertainty":
        names = [*(task.name for task in head.tasks), *(own.name for own in head.compositions if not own.adds_tasks)]
        weighting = TaskLoss(head.tasks, head.compositions, UncertaintyWeighting(names))
    fit(
        head,
        source,
        targets=targets if cells is None else {**targets, cells.name: cells.targets},
        weights={cells.name: cells.weight} if cells is not None and cells.kind == "dense" else {},
        target_ids=table.ids,
        ids=[table.ids[row] for row in fold[0]],
        val_ids=[table.ids[row] for row in fold[1]] if validates else None,
        out=folder,
        resume=resume,
        recipe=recipe,
        loss=weighting,
        callbacks=callbacks,
    )


def _predict(result: CrossValidation, problem: Problem, head: Head, source: TokenSource, valid: _Ints) -> None:
    """Write the head's predictions for the held-out images of a fold into the result."""
    table, cells = problem.table, problem.cells
    kept: dict[str, list[Tensor]] = {}
    for rows in in_batches(valid.tolist(), 16):
        outputs = head.predict(source.batch([table.ids[row] for row in rows]).to(next(head.parameters()).device))
        if cells is not None and cells.kind == "segmentation":
            maps = outputs.pop(cells.name).float().cpu()
            for row, own in zip(rows, maps, strict=True):
                if cells.files[row] is not None:
                    pixels = cells.pixels([row])
                    predicted = F.interpolate(own[None], pixels.shape[1:], mode="bilinear").argmax(dim=1)
                    result.masks[HEAD][row] = confusion_matrix(
                        pixels, predicted, num_classes=maps.shape[1], ignore_index=-1
                    )
        for name, output in outputs.items():
            kept.setdefault(name, []).append(output.cpu())
    outputs = {name: torch.cat(parts) for name, parts in kept.items()}
    for place, (name, column) in enumerate(problem.columns.values()):
        result.predictions[HEAD][valid, place] = outputs[name][:, column].double().numpy()
    for name, task in problem.tasks.items():
        if task.auxiliary:
            values = outputs[name].double().numpy()
            result.auxiliary.setdefault(name, np.full((len(table), values.shape[1]), np.nan))[valid] = values
        elif task.kind == "classification":
            result.classes[task.columns[0]][HEAD][valid] = outputs[name].argmax(dim=1).numpy()
    if cells is not None and result.cells is not None:
        result.cells[torch.as_tensor(valid)] = outputs[cells.name].float()


def _refuse_divergence(result: CrossValidation, number: int, valid: _Ints, config: TrainConfig) -> None:
    """Refuse predictions of a fold that no score can be computed of."""
    predicted = result.predictions[HEAD][valid]
    wrong = [name for i, name in enumerate(result.values) if not _is_usable(predicted[:, i], result.values[name])]
    wrong += [name for name, values in result.auxiliary.items() if not np.isfinite(values[valid]).all()]
    if result.cells is not None and not bool(result.cells[torch.as_tensor(valid)].isfinite().all()):
        wrong.append("the cells")
    if wrong:
        raise DataError(
            f"fold {number}: the predictions of {', '.join(wrong)} are not finite, or so large that no R² can be "
            f"computed: training diverged at lr {config.optim.lr:g}; lower it (lr=, --lr)"
        )


def _is_usable(predictions: _Floats, true: _Floats) -> bool:
    known = true[np.isfinite(true)]
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite((predictions**2).sum() / max(float(np.ptp(known)) ** 2, 1e-300)))


def _matched(source: TokenSource, table: Table) -> tuple[TokenSource, Table]:
    """The source in the table's order, and the table with the source's spelling of its ids."""
    if trained_backbone(source) is not None:
        raise ConfigError(
            "the backbone of these live tokens is trainable, and the folds would share what it learns; load one per "
            "fold and call fit, or freeze it"
        )
    table = replace(table, ids=tuple(SourceIds(source.ids).all_of(table.ids, "images of the table")))
    if isinstance(source, FeatureStore):
        compare_table(source, table, table.ids)
    return source if tuple(source.ids) == table.ids else SomeTokens(source, table.ids), table


def _baselines(problem: Problem, source: TokenSource, folds: list[Fold], numbers: tuple[int, ...]) -> CrossValidation:
    """A result that holds the predictions of the baselines, and room for those of the heads."""
    table, cells, tasks = problem.table, problem.cells, problem.tasks
    values = {name: problem.true_values(name) for name in problem.columns}
    names = [task.columns[0] for task in tasks.values() if task.kind == "classification" and not task.auxiliary]
    predictions: dict[str, _Floats] = {HEAD: np.full((len(table), len(values)), np.nan)}
    classes: dict[str, dict[str, _Ints]] = {name: {HEAD: np.full(len(table), -1)} for name in names}
    if values or names:
        features, groups = pooled_tokens(source), table.groups
        methods: dict[str, tuple[Any, _Floats]] = {
            TOKENS: (ridge_out_of_fold, features),
            KNN: (knn_out_of_fold, features),
        }
        if (colours := _colours(source, table.ids)) is not None:
            methods[COLOUR] = (ridge_out_of_fold, colours)
        for method, (probe, x) in methods.items():
            if values:
                found = probe(x, np.stack(list(values.values()), axis=1), folds, groups=groups)
                predictions[method] = found if table.minimum is None else np.maximum(found, table.minimum)
            for name in names:
                count = len(table.classes[name])
                classes[name][method] = probe(x, table.targets[name], folds, groups=groups, num_classes=count)
    helping = {name: problem.targets[name] for name, task in tasks.items() if task.auxiliary}
    result = CrossValidation(
        [], folds, numbers, table, values, predictions, classes, auxiliary_values=helping, cell_targets=cells
    )
    if cells is not None and cells.kind == "dense":
        return replace(result, cells=torch.full_like(cells.values, torch.nan))
    if cells is not None:
        count = cells.values.shape[1]
        result.masks.update({method: np.zeros((len(table), count, count), np.int64) for method in (HEAD, FREQUENT)})
        for train, valid in folds:
            shares = cells.targets[torch.as_tensor(train)].nansum(dim=(0, 2, 3))
            for row in [row for row in valid if cells.files[row] is not None]:
                true = cells.pixels([row])
                best = torch.full_like(true, int(shares.argmax()))
                result.masks[FREQUENT][row] = confusion_matrix(true, best, num_classes=count, ignore_index=-1)
    return result


def _colours(source: TokenSource, ids: Sequence[str]) -> _Floats | None:
    """The mean colours of the images, if the source has them."""
    whole = source.source if isinstance(source, SomeTokens) else source
    if not isinstance(whole, MemoryTokens) or whole.colours is None:
        return None
    colours: _Floats = whole.colours[whole.rows(ids)].double().numpy()
    return colours
