"""What pictures, colours and the report refuse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from dinoneck import ConfigError, DataError, ShapeError, Task, Tokens
from dinoneck.viz import (
    PCABasis,
    ReportEntry,
    boxes_panel,
    heat,
    html_report,
    pca_panels,
    pca_rgb,
)
from dinoneck.viz.overlay import write_maps
from tests.refusals import Row

BOXES = np.array([[90.0, 180.0, 360.0, 450.0], [540.0, 45.0, 810.0, 270.0]])
IMAGE = np.zeros((60, 100, 3), np.uint8)
SQUARE = np.zeros((9, 9, 3), np.uint8)
TOKENS = Tokens.from_patches(torch.randn(1, 12, 8), grid=(3, 4), patch_size=16)
TOKENS_OF_NAN = Tokens.from_patches(torch.full((1, 12, 8), torch.nan), grid=(3, 4), patch_size=16)
KIND = Task("kind", kind="classification", dim=2, labels=("soil", "crop"))
CHANCES = np.array([0.5, 0.5])
PLANE = np.zeros((4, 4), np.float32)
COLLIDING = [Task("a?b", kind="dense"), Task("a/b", kind="dense")]
WRONG_REPORT = {"scores": {"kind": {"head": {"confusion_matrix": []}}}, "auxiliary": []}


def drawn(boxes: Any, truth: Any = None) -> Any:
    return boxes_panel(IMAGE, boxes, truth, classes=("cell", "clot"))


def page(known: Any = None, tokens: Any = None, task: Task = Task("a"), **result: Any) -> str:  # noqa: B008
    entry = ReportEntry("x", {"a": 1.0, **result}, SQUARE, tokens, known=known or {})
    return html_report([entry], [task])


ROWS: list[Row] = [
    (lambda: heat(np.zeros(3), 0, 1), ShapeError, "(3,)"),
    (lambda: heat(np.full((2, 2), np.nan), 0, 1), DataError, "nan"),
    (lambda: drawn([[10.0, 20.0, 5.0, 50.0]]), DataError, "5.0"),
    (lambda: drawn(BOXES, [[0.0, 0.0, np.nan, 1.0]]), DataError, "nan"),
    (
        lambda: drawn(BOXES, {"boxes": BOXES, "names": ["cell"]}),
        ShapeError,
        ("2 known boxes", "1 labels"),
    ),
    (lambda: drawn({"boxes": BOXES, "names": ["cell"]}), ShapeError, ("2 boxes", "1 labels")),
    (lambda: drawn({"boxes": BOXES, "scores": [0.5]}), ShapeError, ("2 boxes", "1 scores")),
    (lambda: drawn(BOXES[:, :3]), ShapeError, "3"),
    (lambda: drawn({"boxes": BOXES, "labels": [0, 2]}), DataError, "2"),
    (lambda: pca_panels([IMAGE, IMAGE], TOKENS), DataError, "2 images"),
    (lambda: pca_rgb(torch.zeros(5)), ShapeError, "(5,)"),
    (lambda: pca_rgb(TOKENS_OF_NAN), DataError, "nan"),
    (lambda: pca_rgb(TOKENS, basis=PCABasis.fit(torch.randn(5, 7))), ShapeError, ("8", "7")),
    (
        lambda: pca_rgb(TOKENS, basis=PCABasis.fit(TOKENS), foreground=0.5),
        ConfigError,
        "foreground",
    ),
    (lambda: pca_rgb(TOKENS, foreground=2), ConfigError, "2"),
    (lambda: pca_rgb(torch.randn(5, 7), foreground=0.5), ShapeError, "places of patches"),
    (lambda: pca_rgb(torch.ones(1, 8, 1, 2), foreground=0.9), DataError, "0.9"),
    (lambda: html_report([], [Task("a")]), DataError, "one image at least"),
    (lambda: page(known={"a": math.inf}), DataError, "known values of 'a' hold inf"),
    (lambda: page(known={"a": "heavy"}), DataError, ("'a'", "heavy")),
    (lambda: page(tokens=np.zeros((2, 2))), ShapeError, "colours"),
    (lambda: page(a=math.nan), DataError, "'a' hold nan"),
    (lambda: page(task=Task("b")), DataError, ("no prediction of 'b'", "holds a")),
    (lambda: page(a="much"), DataError, "predictions of 'a'"),
    (lambda: page(maps={"a": np.zeros((2, 2))}), ShapeError, "maps of 'a'"),
    (lambda: page(maps={"a": np.full((1, 2, 2), np.nan)}), DataError, "maps of 'a' hold nan"),
    (lambda: page(gate=np.zeros((1, 2, 2))), ShapeError, "the gate of x"),
    (lambda: page({"kind": "weed"}, task=KIND, kind=CHANCES), DataError, ("'weed'", "soil, crop")),
    (
        lambda: html_report([ReportEntry("a", {"a": 1.0})], [Task("a")], training=WRONG_REPORT),
        DataError,
        "report.json",
    ),
    (
        lambda folder: write_maps(folder, "a", {"a?b": PLANE, "a/b": PLANE}, COLLIDING),
        ConfigError,
        ("'a?b'", "'a/b'", "'a_b'"),
    ),
]
