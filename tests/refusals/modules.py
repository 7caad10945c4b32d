"""What necks, heads and losses refuse."""

from __future__ import annotations

from typing import Any

import torch

from dinoneck import (
    CLSGating,
    CLSGatingHead,
    Composition,
    ConfigError,
    DataError,
    DPTNeck,
    GridError,
    HeadEnsemble,
    LayerGrouper,
    PatchMeanHead,
    PyramidHead,
    ShapeError,
    SimplePyramid,
    SpatialTuningAdapter,
    STAPyramid,
    Task,
    Tokens,
)
from dinoneck.losses import (
    CompositionLoss,
    DensityRegulariser,
    GramAnchor,
    TaskLoss,
    UncertaintyWeighting,
    map_cross_entropy,
    masked_cross_entropy,
)
from tests import kit
from tests.refusals import Row

A, B = Task("a"), Task("b")
FIVE = Composition(("x", "y"), {"both": ("x", "y")}, "five", total="mass", ratio="shares")
TWO = (Task("mass"), Task("shares", dim=2, kind="ratio"))
X, MAPS = torch.randn(2, 12, 16), torch.zeros(2, 3, 2, 4)


def tokens(rows: int = 3, cols: int = 4, layers: int = 1, batch: int = 2) -> Tokens:
    return kit.tokens(batch, rows, cols, width=16, layers=layers)


def adapter(images: Any, **options: Any) -> Any:
    return SpatialTuningAdapter(16, 8, 1, **options)(tokens(5, 7), images)


def loss(outputs: dict[str, Any], targets: dict[str, Any] | None = None, masks: Any = None, task: Task = A) -> Any:
    return TaskLoss([task])(outputs, outputs if targets is None else targets, masks)


def composed(**targets: Any) -> Any:
    two = {"mass": torch.zeros(4, 1), "shares": torch.ones(4, 2)}
    return TaskLoss(TWO, [CompositionLoss(FIVE)])(two, {**two, **targets})


ROWS: list[Row] = [
    (lambda: CLSGating(16, 20)(X[:, 0], X), ShapeError, ("12", "20")),
    (lambda: CLSGating(16, (5, 4), "resized")(X[:, 0], X), ShapeError, ("12", "(5, 4)")),
    (lambda: CLSGating(16, (3, 4), "resized")(X[:, 0], X, (5, 4)), ShapeError, ("12", "5 rows x 4 cols")),
    (lambda: CLSGating(16, 12)(X[:, 0], X[:, :, :8]), ShapeError, "(2, 12, 8)"),
    (lambda: CLSGatingHead(16, [A], "query", dropout=1.0), ConfigError, "1.0"),
    (
        lambda: HeadEnsemble.from_heads([PatchMeanHead(8, [A]), PatchMeanHead(8, [B])], weights=[0.0, 1.0]),
        ConfigError,
        "'a'",
    ),
    (lambda: PyramidHead(tasks=[A], neck={"type": "simple_pyramid"}), ConfigError, "embed_dim"),
    (lambda: PyramidHead(16, [A]), ConfigError, "neck"),
    (lambda: PyramidHead(16, [A], SimplePyramid(8)), ConfigError, ("8", "16")),
    (lambda: PyramidHead(tasks=[A], neck=SpatialTuningAdapter(16)), ConfigError, "SpatialTuningAdapter"),
    (lambda: DPTNeck(16, 5), ConfigError, "5"),
    (lambda: DPTNeck(16, hidden_sizes=(1, 2, 3)), ConfigError, "(1, 2, 3)"),
    (lambda: LayerGrouper(16, 3, 8, 3, fusion="pixel"), ConfigError, ("pixel", "num_layers=3")),
    (lambda: LayerGrouper(16, 4, 8, 3, fusion="pixel").layer_weights(), ConfigError, "pixel"),
    (lambda: LayerGrouper(16, 3, 8)([X, X]), ShapeError, "2"),
    (lambda: SimplePyramid(16, 8, (3.0,)), ConfigError, "(3.0,)"),
    (lambda: SimplePyramid(16, 8, (1.0, 2.0)), ConfigError, "(1.0, 2.0)"),
    (lambda: STAPyramid(16, strides=(8, 16, 31)), ConfigError, "(8, 16, 31)"),
    (lambda: SpatialTuningAdapter(16, 8, 1, detail=None, grid_from="image"), ConfigError, "detail=None"),
    (lambda: adapter(None), ShapeError, "images"),
    (lambda: adapter(torch.zeros(2, 4, 80, 112)), ShapeError, "(2, 4, 80, 112)"),
    (lambda: adapter(torch.zeros(2, 3, 80, 112, dtype=torch.uint8)), DataError, "uint8"),
    (lambda: adapter(torch.zeros(3, 3, 80, 112)), ShapeError, ("3", "2")),
    (lambda: adapter(torch.zeros(2, 3, 8, 11)), ShapeError, "8x11"),
    (lambda: adapter(torch.zeros(2, 3, 112, 80)), ShapeError, "112x80"),
    (lambda: adapter(torch.zeros(2, 3, 100, 140), image_resize="error"), ShapeError, ("100x140", "80x112")),
    (lambda: GramAnchor(resize="nearest"), ConfigError, "'nearest'"),  # type: ignore[arg-type]
    (lambda: GramAnchor()(tokens(layers=2), tokens()), ShapeError, ("2 layers", "1")),
    (lambda: GramAnchor()(X, X[:, :5]), ShapeError, ("(2, 12, 16)", "(2, 5, 16)")),
    (lambda: GramAnchor()(tokens(), tokens(4, 3)), GridError, ("3 x 4", "4 x 3")),
    (lambda: GramAnchor(resize="bicubic")(tokens(), tokens(4, 3)), GridError, ("3 x 4", "4 x 3")),
    (lambda: GramAnchor()([X], X), ShapeError, "list"),  # type: ignore[arg-type]
    (lambda: FIVE(torch.zeros(4), torch.zeros(4, 2)), ShapeError, "(4,)"),
    (lambda: composed(five=torch.zeros(4, 2)), ShapeError, ("'five'", "(4, 2)")),
    (lambda: masked_cross_entropy(X[0], torch.zeros(12)), ShapeError, "float32"),
    (lambda: map_cross_entropy(MAPS, torch.zeros(2, 3, 8).long()), ShapeError, "3 x 8"),
    (lambda: map_cross_entropy(MAPS, torch.zeros(2, 2, 4)), ShapeError, ("(2, 2, 4)", "float32")),
    (lambda: map_cross_entropy(MAPS, torch.zeros(2, 4, 8).long(), torch.ones(2, 4)), ShapeError, "(2, 4)"),
    (lambda: DensityRegulariser("mass", smoothness=-1.0), ConfigError, ("smoothness", "-1.0")),
    (lambda: loss({"b": X[:, 0, :1]}), ShapeError, "'a'"),
    (lambda: loss({"a": X[:, 0, :1]}, {}), ShapeError, "'a'"),
    (lambda: loss({"a": X[:, 0]}), ShapeError, "(2, 16)"),
    (lambda: loss({"a": X[:, 0, :1]}, {"a": X[:, 0]}), ShapeError, ("(2, 1)", "(2, 16)")),
    (lambda: loss({"a": X[:, 0, :1]}, masks={"c": X}), ShapeError, "['c']"),
    (lambda: TaskLoss([A], weighting=UncertaintyWeighting(["b"])), ConfigError, "['b']"),
    (lambda: TaskLoss([Task("a", weight=0.5)], weighting=UncertaintyWeighting(["a"])), ConfigError, "0.5"),
    (lambda: TaskLoss([A], regularisers=[DensityRegulariser("a", 1.0)]), ConfigError, "a (regression)"),
    (lambda: UncertaintyWeighting(["a", "a"]), ConfigError, "('a', 'a')"),
    (lambda: UncertaintyWeighting(["a"])({"b": X.sum()}), ShapeError, ("['a']", "['b']")),
    (lambda: UncertaintyWeighting(["a"])({"a": X}), ShapeError, "(2, 12, 16)"),
]
