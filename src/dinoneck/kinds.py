"""The kinds of tasks, and the groups that code decides by. It imports no torch, for configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

TrainedKind = Literal[
    "regression", "ratio", "classification", "multilabel", "dense", "density", "segmentation"
]
"""Kinds that a training of a table or of masks learns, those of its ``tasks: {NAME: {kind: ...}}``."""
Kind = Literal[TrainedKind, "instances", "panoptic"]
"""All kinds."""

# what the targets of images are; each kind is in one of these
NUMBER_KINDS: tuple[Kind, ...] = ("regression", "ratio", "density")
"""One number of an image, or several; a table has them in columns of numbers."""
CLASS_KINDS: tuple[Kind, ...] = ("classification",)
"""One class of an image; a table has it in a column of words."""
LABEL_KINDS: tuple[Kind, ...] = ("multilabel",)
"""Any number of labels of an image; a table has them in a column of words, or in one of 0 and 1 for each label."""
MAP_KINDS: tuple[Kind, ...] = ("dense", "segmentation")
"""A value or a class per cell: outputs are maps, and targets are masks."""
MASK_KINDS: tuple[Kind, ...] = ("instances", "panoptic")
"""Objects with a class and a mask."""

# what the outputs of heads are
CATEGORICAL_KINDS: tuple[Kind, ...] = (*CLASS_KINDS, "segmentation", *MASK_KINDS)
"""Outputs are logits of classes."""
PROBABILITY_KINDS: tuple[Kind, ...] = (*CATEGORICAL_KINDS, "ratio")
"""Outputs in original units are parts of one whole."""
POOLED_KINDS: tuple[Kind, ...] = ("regression", "ratio", *CLASS_KINDS, *LABEL_KINDS)
"""Kinds that a head without maps predicts, from one vector of an image."""

OBJECTS = 1000
"""Objects of one class that the ids of pixels can tell apart.

The id of a pixel is ``OBJECTS * (class + 1) + number`` with the number of its object in the class,
0 for stuff; 0 where nothing is, -1 where nothing is known, and ``-OBJECTS * (class + 1)`` in a crowd
region of the class.
"""
THRESHOLD_KINDS: tuple[Kind, ...] = (*LABEL_KINDS, "instances")
"""Kinds with a threshold for each label: what is predicted of it reaches this score."""

# how a backbone computes tokens
Runtime = Literal["torch", "openvino", "auto"]
"""What computes the tokens of a frozen backbone, see :meth:`dinoneck.Backbone.with_runtime`."""
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)
FileRuntime = Literal["onnxruntime", "openvino"]
"""What runs an exported file, see :class:`dinoneck.runtime.ExportedPredictor`."""
FILE_RUNTIMES: tuple[FileRuntime, ...] = get_args(FileRuntime)
AnyRuntime = Literal[Runtime, "onnxruntime"]
"""What a command line may name: of a backbone, or of an exported file."""
Precision = Literal["float32", "bfloat16"]
"""The dtype of a backbone's weights and tokens, of those that every runtime computes in."""

TTA = Literal["none", "flip4", "d6"]
"""The views of an image that predictions are averaged over: itself, flips, and flips with quarter turns."""

TileSize = int | tuple[int, int] | Literal["auto"] | None
"""(height, width) of the tiles that large images are cut into, in pixels, or one number for both.

None: images are not cut. ``"auto"``: into the tiles of the training, if it was one on tiles.
"""

# what predicts in a training of numbers, classes and masks
Method = Literal["head", "linear", "average"]
"""The head, its linear baseline, or the average of both."""
METHODS: tuple[Method, ...] = get_args(Method)
"""All methods, in the order of reports."""
METHOD_NAMES: dict[str, str] = {
    "head": "the head",
    "linear": "the linear baseline",
    "average": "the average of head and linear baseline",
}
"""What sentences call them."""
AVERAGE_OF_0_3 = "head + linear"
"""What reports and tables of 0.3 call the average."""


def present_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report of a training with the present names of its methods.

    A report of 0.3 calls the average otherwise, and states what predicts by its option
    ``with_ridge``. Any other report stays as it is.
    """
    present = dict(report)
    is_of_models = "cost" in report  # compared by names that the user gave
    if is_of_models:
        return present
    if "scores" in report:
        present["scores"] = {}
        for target, methods in report["scores"].items():
            present["scores"][target] = _with_present_names(methods)
    if "predicts" not in report and report.get("config", {}).get("with_ridge"):
        present["predicts"] = {"method": "average"}
    return present


def _with_present_names(methods: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of a target by the present names of the methods."""
    present = {}
    for method, scores in methods.items():
        name = "average" if method == AVERAGE_OF_0_3 else method
        present[name] = scores
    return present


def predicting_method(report: Mapping[str, Any]) -> Method:
    """Return the method that a run predicts with, by its report of :func:`present_report`."""
    method: Method = report.get("predicts", {}).get("method", "head")
    return method
