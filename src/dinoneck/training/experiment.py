"""A whole run: photos and targets in; cross-validated heads, predictions and a report on disk."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.atomic import write_text
from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.data.photos import Preprocessing
from dinoneck.data.tables import PhotoTable, csv_text
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.fpn import FPNHead
from dinoneck.heads.head import Head
from dinoneck.heads.patch_mean import PatchMeanHead
from dinoneck.tasks import Task
from dinoneck.training.cell_targets import CellTargets
from dinoneck.training.crossval import CrossValidation, Plan, cross_validate
from dinoneck.training.folds import group_folds
from dinoneck.training.sources import MemoryTokens
from dinoneck.version import versions

HEADS, REPORT, PREDICTIONS = "heads", "report.json", "out_of_fold.csv"
_OWN_COLUMNS = ("image", "fold")


def run_experiment(
    table: PhotoTable,
    backbone: Backbone,
    preprocess: Preprocessing,
    out: str | os.PathLike[str],
    plan: Plan | None = None,
    *,
    overwrite: bool = False,
    cells: CellTargets | None = None,
) -> tuple[CrossValidation, MemoryTokens, dict[str, Any]]:
    """Extract tokens once, cross-validate heads, write heads, predictions and report.

    Written are ``out/heads/fold-K.safetensors``, ``out/out_of_fold.csv`` and, last, ``out/report.json``: each file
    appears whole or not at all, and a folder without a report is an unfinished run.

    Args:
        table: photos, targets and groups.
        backbone: frozen; gives the tokens.
        preprocess: how photos are prepared; goes into the head files.
        out: the folder; made if missing.
        plan: the run's plain values.
        overwrite: replace the results of an earlier run in ``out``.
        cells: labels per cell, for a plan whose head has a dense task.

    Returns:
        The cross-validation, the tokens and the report.

    Raises:
        DataError: if the data cannot be used, or ``out`` holds results and ``overwrite`` is off, or cannot be
            written to.
        ConfigError: if a target's name is no task name.
    """
    plan = plan or Plan()
    folder = Path(out)
    if (old := _results(folder)) and not overwrite:
        raise DataError(
            f"{folder} holds results of an earlier run ({old[0].name}); choose another folder, or pass overwrite=True "
            "(--overwrite)"
        )
    _check_before(table, plan, folder, cells)
    source = MemoryTokens.extract(backbone, table.photos, table.ids, preprocess=preprocess)
    result = cross_validate(lambda tasks: _head(plan, backbone, tasks), source, table, plan, cells=cells)
    report = {
        "photos": len(table),
        "groups": len(set(table.groups or table.ids)),
        "target_weights": dict(table.weights),
        "scores": result.scores(),
        **({} if cells is None or result.cells is None else {"cell_scores": cells.scores(result.cells)}),
        "plan": asdict(plan),
        "backbone": backbone.record(),
        "inputs": preprocess.record(),
        "versions": versions(),
    }
    _write(folder, result, report, preprocess, backbone)
    return result, source, report


def _head(plan: Plan, backbone: Backbone, tasks: Sequence[Task]) -> Head:
    """The head that a plan names, on the backbone's device."""
    head: Head
    if plan.head == "fpn":
        if not isinstance(backbone.patch_size, int):
            raise ConfigError(f"head 'fpn' needs square patches; this backbone's are {backbone.patch_size} px")
        layers = backbone.layers
        head = FPNHead(
            backbone.embed_dim,
            tasks,
            len(layers),
            layers,
            fpn_dim=plan.hidden_dim,
            tower_depth=1,
            patch_size=backbone.patch_size,
        )
    else:
        head = PatchMeanHead(backbone.embed_dim, tasks, hidden_dim=plan.hidden_dim)
    return head.to(next(backbone.parameters()).device)


def _check_before(table: PhotoTable, plan: Plan, folder: Path, cells: CellTargets | None) -> None:
    """Refuse before the work what would fail after it."""
    if cells is not None and cells.name in table.targets:
        raise DataError(f"a target is named {cells.name!r}, as the task of the labels per cell; rename one of them")
    if cells is not None and plan.head == "patch_mean":
        raise ConfigError("head 'patch_mean' has no labels per cell; take head='fpn'")
    for name, values in table.targets.items():
        Task(name)
        if name in _OWN_COLUMNS:
            raise DataError(f"a target named {name!r} would clash with a column of {PREDICTIONS}; rename it")
        if not np.ptp(values):
            raise DataError(
                f"target {name!r} is {values[0]:g} for every photo; there is nothing to learn, leave it out"
            )
    group_folds(table.groups or table.ids, plan.folds, plan.seed)
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise DataError(f"the results cannot be written to {folder}: {parent} is no folder that can be written to")


def _write(
    folder: Path, result: CrossValidation, report: dict[str, Any], preprocess: Preprocessing, backbone: Backbone
) -> None:
    """Write everything beside, then replace what an earlier run left; the report goes first and comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=folder))
    try:
        _write_into(new, result, report, preprocess, backbone)
        (folder / HEADS).mkdir(exist_ok=True)
        for path in _results(folder):
            if path.name == REPORT or not (new / path.relative_to(folder)).exists():
                path.unlink()
        for path in [*sorted((new / HEADS).iterdir()), new / PREDICTIONS, new / REPORT]:
            path.replace(folder / path.relative_to(new))
    finally:
        shutil.rmtree(new)


def _write_into(
    folder: Path, result: CrossValidation, report: dict[str, Any], preprocess: Preprocessing, backbone: Backbone
) -> None:
    (folder / HEADS).mkdir()
    facts = {key: report["plan"][key] for key in ("folds", "seed", "epochs")}
    for fold, head in enumerate(result.heads):
        checkpoint = HeadCheckpoint.from_module(
            head, backbone=backbone, preprocess=preprocess, extra={"fold": fold, **facts}
        )
        checkpoint.save(folder / HEADS / f"fold-{fold}.safetensors")
    write_text(folder / PREDICTIONS, _out_of_fold(result))
    write_text(folder / REPORT, json.dumps(report, indent=2, sort_keys=True, allow_nan=False) + "\n")


def _results(folder: Path) -> list[Path]:
    """Files that an earlier run left in the folder; the report first, so that a half-removed run has none."""
    found = [folder / REPORT, folder / PREDICTIONS, *sorted((folder / HEADS).glob("fold-*.safetensors"))]
    return [path for path in found if path.exists()]


def _out_of_fold(result: CrossValidation) -> str:
    fold_of = {int(row): fold for fold, (_, valid) in enumerate(result.folds) for row in valid}
    header = [*_OWN_COLUMNS]
    for name in result.names:
        header += [name, *(f"{name} ({method})" for method in result.predictions)]
    rows = []
    for i, image_id in enumerate(result.table.ids):
        row: list[Any] = [image_id, fold_of[i]]
        for column, name in enumerate(result.names):
            row.append(f"{result.table.targets[name][i]:.6g}")
            row += [f"{values[i, column]:.6g}" for values in result.predictions.values()]
        rows.append(row)
    return csv_text(header, rows)
