"""A whole run: photos and targets in; cross-validated heads, predictions and a report on disk."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dinoneck.atomic import write_text
from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.data.photos import Preprocessing
from dinoneck.data.tables import PhotoTable, csv_text
from dinoneck.errors import DataError
from dinoneck.heads.patch_mean import PatchMeanHead
from dinoneck.training.crossval import CrossValidation, Plan, cross_validate
from dinoneck.training.sources import MemoryTokens
from dinoneck.version import versions

HEADS, REPORT, PREDICTIONS = "heads", "report.json", "out_of_fold.csv"


def run_experiment(
    table: PhotoTable,
    backbone: Backbone,
    preprocess: Preprocessing,
    out: str | os.PathLike[str],
    plan: Plan | None = None,
    *,
    overwrite: bool = False,
) -> tuple[CrossValidation, MemoryTokens, dict[str, Any]]:
    """Extract tokens once, cross-validate PatchMean heads, write heads, predictions and report.

    Written are ``out/heads/fold-K.safetensors``, ``out/out_of_fold.csv`` and, last, ``out/report.json``: each file
    appears whole or not at all, and a folder without a report is an unfinished run.

    Args:
        table: photos, targets and groups.
        backbone: frozen; gives the tokens.
        preprocess: how photos are prepared; goes into the head files.
        out: the folder; made if missing.
        plan: the run's plain values.
        overwrite: replace the results of an earlier run in ``out``.

    Returns:
        The cross-validation, the tokens and the report.

    Raises:
        DataError: if the data cannot be used, or ``out`` holds results and ``overwrite`` is off.
    """
    plan = plan or Plan()
    folder = Path(out)
    if (old := _results(folder)) and not overwrite:
        raise DataError(
            f"{folder} holds results of an earlier run ({old[0].name}); choose another folder, or overwrite"
        )
    source = MemoryTokens.extract(backbone, table.photos, table.ids, preprocess=preprocess)
    result = cross_validate(
        lambda tasks: PatchMeanHead(backbone.embed_dim, tasks, hidden_dim=plan.hidden_dim), source, table, plan
    )
    report = {
        "photos": len(table),
        "groups": len(set(table.groups or table.ids)),
        "weights": dict(table.weights),
        "scores": result.scores(),
        "plan": asdict(plan),
        "backbone": backbone.record(),
        "inputs": preprocess.record(),
        "versions": versions(),
    }
    _write(folder, result, report, preprocess)
    return result, source, report


def _write(folder: Path, result: CrossValidation, report: dict[str, Any], preprocess: Preprocessing) -> None:
    """Replace what an earlier run left; the report comes last."""
    for path in _results(folder):
        path.unlink()
    (folder / HEADS).mkdir(parents=True, exist_ok=True)
    facts = {key: report["plan"][key] for key in ("folds", "seed", "epochs")}
    for fold, head in enumerate(result.heads):
        checkpoint = HeadCheckpoint.from_module(
            head, backbone=report["backbone"], preprocess=preprocess, extra={"fold": fold, **facts}
        )
        checkpoint.save(folder / HEADS / f"fold-{fold}.safetensors")
    write_text(folder / PREDICTIONS, _out_of_fold(result))
    write_text(folder / REPORT, json.dumps(report, indent=2, sort_keys=True) + "\n")


def _results(folder: Path) -> list[Path]:
    """Files that an earlier run left in the folder; the report first, so that a half-removed run has none."""
    found = [folder / REPORT, folder / PREDICTIONS, *sorted((folder / HEADS).glob("*.safetensors"))]
    return [path for path in found if path.exists()]


def _out_of_fold(result: CrossValidation) -> str:
    fold_of = {int(row): fold for fold, (_, valid) in enumerate(result.folds) for row in valid}
    header = ["id", "fold"]
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
