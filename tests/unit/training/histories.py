"""Rows of epochs without what differs from run to run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.training.engine import TIMES


def without_times(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without seconds, images per second and memory."""
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def logged(path: Path) -> list[dict[str, Any]]:
    """The rows of a log, without times."""
    return without_times(map(json.loads, path.read_text().splitlines()))


def mean_iou(matrix: Any) -> tuple[float, list[float | None]]:
    """The mean IoU and that of each class of a confusion matrix; None where a class occurs nowhere."""
    counts = np.asarray(matrix, float)
    right = np.diagonal(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - right
    each = [own / whole if whole else None for own, whole in zip(right, union, strict=True)]
    return float(np.mean([score for score in each if score is not None])), each
