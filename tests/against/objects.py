"""A training of objects with masks, and one of a detector of boxes: reports, files and logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.against.material import write_shapes
from tests.against.this_version import train_detector, train_instances
from tests.against.training import results

IMAGES = 6


def run_instances(folder: Path) -> dict[str, Any]:
    file = write_shapes(folder / "shapes", IMAGES)
    settings = {
        "data": {"instances": str(file)},
        "backbone": {"name": "dinoneck_tiny", "layers": [1, 2, 4, 5]},
        "head": {"type": "dpt_neck", "out_channels": 16},
        "optim": {"epochs": 2, "batch_size": 3, "lr": 3e-3, "seed": 0},
        "folds": {"count": 2},
        "device": "cpu",
    }
    report = train_instances(settings, folder / "run")
    return results(report, folder / "run", folder)


def run_detector(folder: Path) -> dict[str, Any]:
    file = write_shapes(folder / "shapes", IMAGES)
    settings = {
        "data": {"boxes": str(file), "size": [64, 96]},
        "backbone": {"name": "dinoneck_tiny"},
        "optim": {"epochs": 2, "batch_size": 2, "seed": 0},
        "folds": {"count": 3},
        "device": "cpu",
    }
    report = train_detector(settings, folder / "run")
    return results(report, folder / "run", folder)


CASES = {"instances": run_instances, "detector": run_detector}
