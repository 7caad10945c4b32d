"""A whole run: photos and targets in; cross-validated heads, predictions and a report on disk."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dinoneck.atomic import STALE_AFTER_S, write_text
from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.data.photos import Preprocessing
from dinoneck.data.tables import PhotoTable, csv_text
from dinoneck.devices import local_device
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.head import Head
from dinoneck.tasks import Task
from dinoneck.training.cell_targets import CellTargets
from dinoneck.training.crossval import QUICK_RECIPE, CrossValidation, cross_validate
from dinoneck.training.fold_training import MakeTasks, fold_folder
from dinoneck.training.folds import group_folds
from dinoneck.training.head_choice import POOLED_HEADS, HeadChoice
from dinoneck.training.plan import Plan
from dinoneck.training.recipe import Recipe
from dinoneck.training.sources import MemoryTokens, TokenSource
from dinoneck.training.state import LOG
from dinoneck.training.targets import check_minimum, check_varies
from dinoneck.version import versions

logger = logging.getLogger(__name__)

HEADS, LOGS, REPORT, PREDICTIONS = "heads", "logs", "report.json", "out_of_fold.csv"
UNFINISHED, HEAD_FILE = "unfinished", "head.safetensors"
_NEW = ".unfinished-"
_OWN_COLUMNS = ("image", "fold")


@dataclass(frozen=True)
class RunOptions:
    """What a run may have beside its plan.

    Attributes:
        source: the table's photos as tokens, by the table's ids; None = they are extracted into memory.
        recipe: the rest of the training recipe, see :func:`dinoneck.training.cross_validate`.
        head: which head; None = the plan's.
        make_tasks: see :func:`dinoneck.training.cross_validate`.
        weighting: of the tasks' losses, ``fixed`` or ``uw``.
        device: of the heads; None = the backbone's, or the CPU.
        resume: go on from the states of an interrupted run.
        extra: more to keep in the report; ``tta`` goes into the head files too.
    """

    source: TokenSource | None = None
    recipe: Recipe | None = None
    head: HeadChoice | None = None
    make_tasks: MakeTasks | None = None
    weighting: str = "fixed"
    device: str | None = None
    resume: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)


def run_experiment(
    table: PhotoTable,
    backbone: Backbone | Mapping[str, Any],
    preprocess: Preprocessing,
    out: str | os.PathLike[str],
    plan: Plan | None = None,
    *,
    overwrite: bool = False,
    cells: CellTargets | None = None,
    options: RunOptions | None = None,
) -> tuple[CrossValidation, TokenSource, dict[str, Any]]:
    """Extract tokens once, cross-validate heads, write heads, predictions and report.

    Each head is written as soon as it is trained, to ``out/unfinished/fold-K/head.safetensors``. In the end there are
    ``out/heads/fold-K.safetensors``, ``out/logs/fold-K.jsonl`` (a line per epoch), ``out/out_of_fold.csv`` and, last,
    ``out/report.json``: each file appears whole or not at all, and a folder without a report is an unfinished run.
    Until then ``out/unfinished`` holds states to go on from: the same call made again takes up a run that was killed,
    and writes what it would have written.

    Args:
        table: photos, targets and groups.
        backbone: frozen; gives the tokens. Where the options have a source, its record will do.
        preprocess: how photos are prepared; goes into the head files.
        out: the folder; made if missing.
        plan: the run's plain values.
        overwrite: replace the results of an earlier run in ``out``.
        cells: labels per cell, for a plan whose head has a dense task.
        options: the rest.

    Returns:
        The cross-validation, the tokens and the report.

    Raises:
        DataError: if the data cannot be used, or ``out`` holds results and ``overwrite`` is off, or cannot be
            written to.
        ConfigError: if a target's name is no task name, or the head does not fit.
        CheckpointError: if ``out`` holds states of another run and ``resume`` is on.
    """
    plan, folder, options = plan or Plan(), Path(out), options or RunOptions()
    choice = options.head or HeadChoice(plan.head, plan.hidden_dim)
    check_folder(folder, overwrite=overwrite)
    _check_before(table, plan, choice, folder, cells)
    cells = None if cells is None else cells.of(table.ids)
    source = options.source or _extracted(table, backbone, preprocess)

    def keep(fold: int, head: Head) -> None:
        if _writes():
            whole = _checkpoint(head, fold, plan, preprocess, backbone, options.extra.get("tta"))
            whole.save(fold_folder(folder / UNFINISHED, fold) / HEAD_FILE)

    result = _trained(table, backbone, source, folder / UNFINISHED, plan, choice, cells, options, keep)
    with _heads_kept(folder / UNFINISHED):
        report = _report(result, plan, backbone, preprocess, cells, options)
        if _writes():
            check_folder(folder, overwrite=overwrite)  # another run may have ended here meanwhile
            _write(folder, result, report, plan, options.extra.get("tta"), preprocess, backbone)
            shutil.rmtree(folder / UNFINISHED)
    return result, source, report


def _writes() -> bool:
    """Whether this process writes: the first one under torchrun."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _heads_kept(running: Path) -> Iterator[None]:
    """Name the heads that are on disk when something after the training fails."""
    try:
        yield
    except Exception:
        kept = running / "fold-*" / HEAD_FILE
        logger.warning("the heads are trained and kept in %s; the same call again does not train them again", kept)
        raise


def _extracted(table: PhotoTable, backbone: Backbone | Mapping[str, Any], preprocess: Preprocessing) -> MemoryTokens:
    if not isinstance(backbone, Backbone):
        raise ConfigError("tokens can be extracted by a backbone, not by its record; pass RunOptions(source=)")
    return MemoryTokens.extract(backbone, table.photos, table.ids, preprocess=preprocess)


def _trained(
    table: PhotoTable,
    backbone: Backbone | Mapping[str, Any],
    source: TokenSource,
    running: Path,
    plan: Plan,
    choice: HeadChoice,
    cells: CellTargets | None,
    options: RunOptions,
    on_head: Callable[[int, Head], None],
) -> CrossValidation:
    """The cross-validation of the head that was chosen, on the tokens at hand."""
    record, grid = _record(backbone), source.batch(source.ids[:1]).grid
    own = next(backbone.parameters()).device if isinstance(backbone, Backbone) else "cpu"
    device = own if options.device is None else local_device(options.device)

    def make_head(tasks: Sequence[Task]) -> Head:
        return choice.build(record, grid, tasks).to(device)

    return cross_validate(
        make_head,
        source,
        table,
        plan,
        options.recipe,
        cells,
        make_tasks=options.make_tasks,
        weighting=options.weighting,
        out=running,
        resume=options.resume,
        on_head=on_head,
    )


def _checkpoint(
    head: Head,
    fold: int,
    plan: Plan,
    preprocess: Preprocessing,
    backbone: Backbone | Mapping[str, Any],
    tta: str | None,
    metrics: Mapping[str, float] | None = None,
) -> HeadCheckpoint:
    """The file of a fold's head; the scores are known later than the head."""
    facts = {"fold": int(fold), "folds": plan.folds, "seed": plan.seed, "epochs": plan.epochs}
    training = facts if metrics is None else {**facts, "metrics": dict(metrics)}
    return HeadCheckpoint.from_module(head, backbone=backbone, preprocess=preprocess, training=training, tta=tta)


def _report(
    result: CrossValidation,
    plan: Plan,
    backbone: Backbone | Mapping[str, Any],
    preprocess: Preprocessing,
    cells: CellTargets | None,
    options: RunOptions,
) -> dict[str, Any]:
    table = result.table
    return {
        "photos": len(table),
        "predicted": len(result.rows),
        "groups_predicted": result.groups_predicted,
        "groups": len(set(table.groups or table.ids)),
        "target_weights": dict(table.weights),
        "scores": result.scores(),
        "mae": result.errors(),
        "target_sd": result.spread(),
        "head_minus": result.differences(),
        **({} if cells is None or result.cells is None else {"cell_scores": cells.scores(result.cells, result.rows)}),
        **({"auxiliary_scores": result.auxiliary_scores()} if result.auxiliary else {}),
        "plan": asdict(plan),
        "recipe": (options.recipe or QUICK_RECIPE).record(),
        "backbone": _record(backbone),
        "inputs": preprocess.record(),
        "versions": versions(),
        **options.extra,
    }


def _record(backbone: Backbone | Mapping[str, Any]) -> dict[str, Any]:
    return backbone.record() if isinstance(backbone, Backbone) else dict(backbone)


def check_folder(out: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse a folder that holds results of an earlier run, unless they are to be replaced.

    Raises:
        DataError: naming it.
    """
    if (old := _results(Path(out))) and not overwrite:
        raise DataError(
            f"{out} holds results of an earlier run ({old[0].name}); choose another folder, or pass overwrite=True "
            "(--overwrite)"
        )


def _check_before(table: PhotoTable, plan: Plan, choice: HeadChoice, folder: Path, cells: CellTargets | None) -> None:
    """Refuse before the work what would fail after it."""
    if cells is not None and cells.name in {**table.targets, **table.auxiliary}:
        raise DataError(f"a target is named {cells.name!r}, as the task of the labels per cell; rename one of them")
    if cells is not None and choice.name in POOLED_HEADS:
        raise ConfigError(f"head {choice.name!r} has no labels per cell; take head='fpn'")
    if len(table) < 2:
        raise DataError(f"the table has {len(table)} photo; expected two at least, to train on one and judge the other")
    for name, values in table.targets.items():
        Task(name)
        if name in _OWN_COLUMNS:
            raise DataError(f"a target named {name!r} would clash with a column of {PREDICTIONS}; rename it")
        check_varies(name, values, "image of the table")
        check_minimum(name, values, table.minimum, table.ids)
    folds = group_folds(table.groups or table.ids, plan.folds, plan.seed)
    for fold in plan.chosen:
        for name, values in {**table.targets, **table.auxiliary}.items():
            if values.dtype.kind == "f":
                check_varies(name, values[folds[fold][0]], f"training image of fold {fold}")
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise DataError(f"the results cannot be written to {folder}: {parent} is no folder that can be written to")


def _write(
    folder: Path,
    result: CrossValidation,
    report: dict[str, Any],
    plan: Plan,
    tta: str | None,
    preprocess: Preprocessing,
    backbone: Backbone | Mapping[str, Any],
) -> None:
    """Write everything beside, then replace what an earlier run left; the report goes first and comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{_NEW}*"):  # of a run that was ended while it cleared away
        if time.time() - old.stat().st_mtime > STALE_AFTER_S:
            shutil.rmtree(old, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=_NEW, dir=folder))
    try:
        _write_into(new, result, report, plan, tta, preprocess, backbone)
        for fold in result.numbers:
            shutil.copyfile(fold_folder(folder / UNFINISHED, fold) / LOG, new / LOGS / f"fold-{fold}.jsonl")
        (folder / HEADS).mkdir(exist_ok=True)
        for path in _results(folder):
            if path.name == REPORT or not (new / path.relative_to(folder)).exists():
                path.unlink()
        (folder / LOGS).mkdir(exist_ok=True)
        for path in [
            *sorted((new / HEADS).iterdir()),
            *sorted((new / LOGS).iterdir()),
            new / PREDICTIONS,
            new / REPORT,
        ]:
            path.replace(folder / path.relative_to(new))
    finally:
        shutil.rmtree(new)


def _write_into(
    folder: Path,
    result: CrossValidation,
    report: dict[str, Any],
    plan: Plan,
    tta: str | None,
    preprocess: Preprocessing,
    backbone: Backbone | Mapping[str, Any],
) -> None:
    for room in (HEADS, LOGS):
        (folder / room).mkdir()
    for fold, head, row in zip(result.numbers, result.heads, result.fold_scores(), strict=True):
        scores = {f"R2 {name}": value for name, value in row.items() if value is not None}
        checkpoint = _checkpoint(head, fold, plan, preprocess, backbone, tta, scores)
        checkpoint.save(folder / HEADS / f"fold-{fold}.safetensors")
    write_text(folder / PREDICTIONS, _out_of_fold(result))
    write_text(folder / REPORT, json.dumps(report, indent=2, sort_keys=True, allow_nan=False) + "\n")


def _results(folder: Path) -> list[Path]:
    """Files that an earlier run left in the folder; the report first, so that a half-removed run has none."""
    found = [folder / REPORT, folder / PREDICTIONS, *sorted((folder / HEADS).glob("fold-*.safetensors"))]
    found += sorted((folder / LOGS).glob("fold-*.jsonl"))
    return [path for path in found if path.exists()]


def _out_of_fold(result: CrossValidation) -> str:
    fold_of = {int(row): fold for fold, (_, valid) in zip(result.numbers, result.folds, strict=True) for row in valid}
    header = [*_OWN_COLUMNS]
    for name in result.names:
        header += [name, *(f"{name} ({method})" for method in result.predictions)]
    rows = []
    for i in result.rows:
        row: list[Any] = [result.table.ids[i], fold_of[int(i)]]
        for column, name in enumerate(result.names):
            row.append(f"{result.table.targets[name][i]:.6g}")
            row += [f"{values[i, column]:.6g}" for values in result.predictions.values()]
        rows.append(row)
    return csv_text(header, rows)
