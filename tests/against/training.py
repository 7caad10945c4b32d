"""8 trainings, a comparison of two heads and 2 evaluations: reports, head files, tables and logs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dinoneck import evaluate
from dinoneck.data import Pasture
from tests.against.canonical import canonical, canonical_folder
from tests.against.left_out import REPORT
from tests.against.material import write_meadow
from tests.against.this_version import run_command, train, with_present_names

BACKBONE = {"name": "dinoneck_tiny", "random": True}
MASSES = ("Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "GDM_g", "Dry_Total_g")
PARTS = ("Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g")
SUMS = {"GDM_g": ["Dry_Clover_g", "Dry_Green_g"], "Dry_Total_g": list(PARTS)}

MEADOW_RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "grouped_folds_patience_ema_linear": {
        "data": {"targets": ["soil", "kind"]},
        "optim": {"epochs": 2, "patience": 2, "ema_decay": 0.5},
        "folds": {"count": 3, "group": ["place"]},
        "with_ridge": True,
    },
    "stratified_folds_auxiliary_sam_mixup": {
        "data": {"targets": ["soil"], "aux_targets": ["kind"]},
        "optim": {"epochs": 2, "optimizer": "sam", "mixup_alpha": 0.4},
        "folds": {"count": 2, "stratify": "kind"},
    },
    "masks": {
        "data": {"labels": "mask", "classes": ["a", "b", "c"]},
        "head": {"type": "dpt_neck"},  # the default of 0.3
        "optim": {"epochs": 1},
        "folds": {"count": 2},
    },
    "numbers_and_cells_uncertainty": {
        "data": {"targets": ["soil"], "labels": "mask", "classes": ["soil", "crop", "weed"]},
        "losses": {"weighting": "uncertainty"},
        "optim": {"epochs": 2},
        "folds": {"count": 2},
    },
    "numbers_of_pixels": {
        "data": {"labels": "mask", "label_kind": "numbers", "nodata": [255]},
        "optim": {"epochs": 1},
        "folds": {"count": 2},
    },
    "unfrozen_backbone_cutmix_freeze_plan": {
        "data": {"targets": ["soil"]},
        "backbone": {"unfreeze_last": 1},
        "optim": {
            "epochs": 2,
            "cutmix_alpha": 1.0,
            "mixup_alpha": 0.2,
            "freeze": ["0=all", "1=last:1"],
        },
        "folds": {"count": 2},
    },
}
"""Settings of the runs on the meadow, next to those that all share."""

TOTAL_AND_SHARES: dict[str, Any] = {
    "data": {"targets": list(MASSES), "minimum": 0, "unit": "g"},
    "backbone": {**BACKBONE, "layers": [1, 3, 4, 5]},
    "head": {"type": "fpn", "fpn_dim": 16},
    "tasks": {
        "total": {
            "columns": ["Dry_Total_g"],
            "area": 0.21,
            "log1p": True,
            "minimum": 0,
            "unit": "g",
        },
        "shares": {"kind": "ratio", "columns": list(PARTS)},
    },
    "compositions": {
        "masses": {
            "total": "total",
            "ratio": "shares",
            "sums": SUMS,
            "weights": dict(zip(MASSES, (0.1, 0.1, 0.1, 0.2, 0.5), strict=True)),
        }
    },
    "losses": {"weighting": "uncertainty"},
    "optim": {"epochs": 2, "optimizer": "sam"},
    "folds": {"count": 2},
    "device": "cpu",
}
SUMS_OF_GENERATED_IMAGES: dict[str, Any] = {
    "data": {"pasture": 20},
    "backbone": BACKBONE,
    "optim": {"epochs": 1},
    "folds": {"count": 2},
    "device": "cpu",
}


def with_meadow(settings: Mapping[str, Any], table: Path) -> dict[str, Any]:
    """Return the settings of a run on the meadow, whose table is given."""
    return {
        **settings,
        "data": {"csv": str(table), **settings["data"]},
        "backbone": {**BACKBONE, **settings.get("backbone", {})},
        "device": "cpu",
    }


def results(report: Mapping[str, Any], run: Path, folder: Path) -> dict[str, Any]:
    """Return what a run returned and wrote."""
    returned = canonical(report, folder, left_out=REPORT)
    return with_present_names({"report": returned, "files": canonical_folder(run, folder)})


def run_on_meadow(name: str, folder: Path) -> dict[str, Any]:
    table = write_meadow(folder / "meadow")
    report = dict(
        train(with_meadow(MEADOW_RUNS[name], table), folder / "run")
    )  # its items alone, as 0.3 returns
    return results(report, folder / "run", folder)


def run_total_and_shares(folder: Path) -> dict[str, Any]:
    table = Pasture(seed=0).table(range(24))
    report = dict(train(TOTAL_AND_SHARES, folder / "run", table=table))
    return results(report, folder / "run", folder)


def run_sums(folder: Path) -> dict[str, Any]:
    report = dict(train(SUMS_OF_GENERATED_IMAGES, folder / "run"))
    return results(report, folder / "run", folder)


def compare_heads(folder: Path) -> dict[str, Any]:
    """Train two heads on the same folds with the verb."""
    table = write_meadow(folder / "meadow")
    data = ["--csv", str(table), "--targets", "soil"]
    backbone = ["--backbone", "dinoneck_tiny", "--random-backbone"]
    options = ["--epochs", "1", "--folds", "2", "--device", "cpu"]
    out = ["--out", str(folder / "run")]
    heads = ["--heads", "patch_mean", "fpn"]
    ran = run_command(["train", *data, *backbone, *options, *out, *heads])
    files = canonical_folder(folder / "run", folder)
    return with_present_names({"exit": ran.code, "files": files})


def evaluate_two_runs(folder: Path) -> Any:
    """Compare two finished runs on the meadow; intervals resample its places."""
    table = write_meadow(folder / "meadow")
    models = {}
    for name in ("grouped_folds_patience_ema_linear", "stratified_folds_auxiliary_sam_mixup"):
        settings = {**MEADOW_RUNS[name], "optim": {"epochs": 1}}
        train(with_meadow(settings, table), folder / name)
        models[name] = str(folder / name)
    scores = evaluate(models, table.parent, table, group=["place"])
    return canonical(scores, folder, left_out=REPORT)


def evaluate_masks(folder: Path) -> Any:
    """Score the masks of a finished run, whose head is a small one."""
    table = write_meadow(folder / "meadow")
    settings = {**MEADOW_RUNS["masks"], "head": {"type": "dense", "hidden_dim": 8}}
    train(with_meadow(settings, table), folder / "run")
    scores = evaluate(str(folder / "run"), table.parent, table, labels="mask")
    return canonical(scores, folder, left_out=REPORT)


CASES = {name: partial(run_on_meadow, name) for name in MEADOW_RUNS}
CASES |= {
    "total_and_shares": run_total_and_shares,
    "sums_of_generated_images": run_sums,
    "two_heads": compare_heads,
    "evaluation_of_two_runs": evaluate_two_runs,
    "evaluation_of_masks": evaluate_masks,
}
