"""What necks, heads and losses refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from dinoneck import (
    BackboneError,
    Bins,
    CLSGating,
    CLSGatingHead,
    Composition,
    ConfigError,
    DataError,
    DPTHead,
    DPTNeck,
    FPNHead,
    GridError,
    HeadEnsemble,
    LayerGrouper,
    LinearHead,
    MaskHead,
    PatchMeanHead,
    PatchMeanMLP,
    PyramidHead,
    ShapeError,
    SimplePyramid,
    SpatialTuningAdapter,
    STAPyramid,
    TargetTransform,
    Task,
    Tokens,
)
from dinoneck.heads.head import TokenScale
from dinoneck.layers.inputs import Origin
from dinoneck.losses import (
    CompositionLoss,
    DensityRegulariser,
    GramAnchor,
    TaskLoss,
    UncertaintyWeighting,
    dense_masked_mse,
    map_cross_entropy,
    masked_cross_entropy,
    masked_mse,
    masked_smooth_l1,
    scale_invariant_log,
)
from dinoneck.losses.mask import mask_loss
from tests import kit
from tests.refusals import Row

A, B = Task("a"), Task("b")
SEGMENTED, STATE = (
    Task("soil", dim=2, kind="segmentation"),
    Task("state", dim=3, kind="classification"),
)
DEPTH, LEAF = Task("depth", kind="dense"), Task("leaf", dim=2, kind="instances")
MEMBER = {"type": "patch_mean", "config": {"embed_dim": 8, "tasks": [{"$": "Task", "name": "a"}]}}
FIVE = Composition(("x", "y"), {"both": ("x", "y")}, "five", total="mass", ratio="shares")
MASS_MAP = Task("mass", kind="density")
TWO = (Task("mass"), Task("shares", dim=2, kind="ratio"))
X, MAPS = torch.randn(2, 12, 16), torch.zeros(2, 3, 2, 4)
QUERIES, KNOWN = torch.zeros(1, 4, 3), (torch.zeros(5, dtype=torch.int64), torch.zeros(5, 3, 1))


def neck_of_maps() -> SimplePyramid:
    """A neck that returns a list of maps where a FeaturePyramid is expected."""
    neck = SimplePyramid(16, 8)
    neck.forward = lambda tokens: [MAPS]  # type: ignore[method-assign, assignment]
    return neck


def two_heads() -> list[PatchMeanHead]:
    return [PatchMeanHead(16, [A]), PatchMeanHead(16, [A])]


def tokens(rows: int = 3, cols: int = 4, layers: int = 1, batch: int = 2) -> Tokens:
    return kit.tokens(batch, rows, cols, width=16, layers=layers)


def adapter(images: Any, **options: Any) -> Any:
    return SpatialTuningAdapter(16, 8, 1, **options)(tokens(5, 7), images)


def loss(
    outputs: dict[str, Any],
    targets: dict[str, Any] | None = None,
    masks: Any = None,
    task: Task = A,
) -> Any:
    return TaskLoss([task])(outputs, outputs if targets is None else targets, masks)


def composed(**targets: Any) -> Any:
    two = {"mass": torch.zeros(4, 1), "shares": torch.ones(4, 2)}
    return TaskLoss(TWO, [CompositionLoss(FIVE)])(two, {**two, **targets})


def of_area(area: float | None) -> PatchMeanHead:
    return PatchMeanHead(8, [Task("mass", unit="g", transform=TargetTransform(area=area))])


def from_minimum(minimum: float) -> PatchMeanHead:
    return PatchMeanHead(8, [Task("mass", minimum=minimum)])


def mask_head(**options: Any) -> MaskHead:
    return MaskHead(32, [SEGMENTED], **{"num_layers": 2, "num_heads": 2, **options})


def composition(**changed: Any) -> Composition:
    return Composition(**{"parts": ("x", "y"), "sums": {"both": ("x", "y")}, **changed})


def composed_of(loss: Any = None, **changed: Any) -> Any:
    return TaskLoss(TWO, [CompositionLoss(replace(FIVE, **changed), **(loss or {}))])


def to_origin(**changes: Any) -> Any:
    """Give a head that was trained on the tokens of two blocks other tokens."""
    head = PatchMeanHead(16, [A])
    head.trained_on = Origin("tiny", layers=(3, 5), normed=True, patch_size=16)
    return head(replace(tokens(), **changes))


def objects_without_scipy() -> Any:
    known = (torch.zeros(1, dtype=torch.int64), torch.ones(1, 3, 1))
    with kit.without("scipy.optimize"):
        return mask_loss(QUERIES, torch.zeros(1, 4, 3, 1), [known])


def measured_at_infinity() -> Any:
    infinite = [x * torch.inf for x in tokens().sequence]
    return TokenScale(16).measure([replace(tokens(), sequence=tuple(infinite))])


ROWS: list[Row] = [
    (lambda: CLSGating(16), ConfigError, "num_patches"),
    (lambda: CLSGating(16, mode="quary"), ConfigError, ("'quary'", "'query'")),  # type: ignore[arg-type]
    (lambda: CLSGating(16, mode="query", reduction=17), ConfigError, "17"),
    (lambda: DPTHead(24, [A], DPTNeck(24, 4, 8)), ConfigError, "'a'"),
    (
        lambda: DPTHead(24, [replace(DEPTH, dim=3)], DPTNeck(24, 4, 8), bins=Bins(0.0, 1.0, 4)),
        ConfigError,
        "depth",
    ),
    (lambda: DPTHead(24, [DEPTH], SimplePyramid(24, 8)), ConfigError, "SimplePyramid"),
    (lambda: DPTHead(24, [DEPTH], DPTNeck(24, 4, 8), hidden_dim=0), ConfigError, "hidden_dim"),
    (lambda: HeadEnsemble([]), ConfigError, "members"),
    (
        lambda: HeadEnsemble([MEMBER | {"type": "patch_maen"}]),
        ConfigError,
        ("'patch_maen'", "'patch_mean'"),
    ),
    (lambda: HeadEnsemble([MEMBER, PatchMeanHead(9, [A])]), ConfigError, "[8, 9]"),
    # grams on 0.25 m2 and grams on 1 m2 have no mean
    (
        lambda: HeadEnsemble.from_heads([of_area(0.25), of_area(1.0)]),
        ConfigError,
        ("'mass'", "0.25", "1.0"),
    ),
    (
        lambda: HeadEnsemble.from_heads([from_minimum(0.5), from_minimum(2.0)]),
        ConfigError,
        ("'mass'", "minimum is 0.5", "2 in another"),
    ),
    (lambda: Bins(1.0, 0.5), ConfigError, ("low is 1.0", "high 0.5")),
    (lambda: Bins(0.0, 2.0, spacing="log"), ConfigError, ("low is 0.0", "'log'")),
    (lambda: Bins(0.0, 2.0, eps=0.0), ConfigError, "eps is 0.0"),
    (lambda: Bins(1.0, 2.0, 1), ConfigError, "count"),
    (lambda: LinearHead(8, [STATE], use_cls=True), ConfigError, ("'cls+mean'", "use_cls is")),
    (
        lambda: LinearHead(8, [STATE], upsample=2, bins=Bins(0.0, 1.0)),
        ConfigError,
        "upsample and bins are",
    ),
    (lambda: LinearHead(8, [SEGMENTED], pool=None, bins=Bins(0.0, 1.0)), ConfigError, "soil"),
    (lambda: LinearHead(8, [SEGMENTED], pool="mean"), ConfigError, "segmentation"),
    (lambda: LinearHead(8, [STATE], pool=None), ConfigError, "classification"),
    (lambda: mask_head(dim=18), ConfigError, ("18", "8 (4 x num_heads)")),
    (lambda: mask_head(num_queries=-1), ConfigError, "-1"),
    (lambda: mask_head(dim=0), ConfigError, "dim is 0"),
    (lambda: mask_head(num_heads=0), ConfigError, "num_heads is 0"),
    (lambda: mask_head().predict_instances(tokens(layers=2)), ConfigError, "instances"),
    (lambda: mask_head().predict_panoptic(tokens(layers=2)), ConfigError, "panoptic"),
    (
        lambda: MaskHead(32, [SEGMENTED, Task("b", dim=2, kind="segmentation")]),
        ConfigError,
        "soil, b",
    ),
    (lambda: MaskHead(32, [LEAF]), ConfigError, ("num_queries", "'leaf'", "'instances'")),
    (lambda: MaskHead(32, [A]), ConfigError, "regression"),
    (
        lambda: PyramidHead(16, [SEGMENTED], DPTNeck(16, 2, 8)).predict_instances(tokens(layers=2)),
        ConfigError,
        "0",
    ),
    (
        lambda: PyramidHead(32, [Task("p", dim=2, kind="panoptic")], DPTNeck(32, 2, 8)),
        ConfigError,
        "panoptic",
    ),
    (
        lambda: PyramidHead(24, [A], {"type": "vit_fpm", "num_layers": 1}),
        ConfigError,
        ("vit_fpm", "vit_fpn"),
    ),
    (lambda: PyramidHead(24, [A], {"type": "patch_mean"}), ConfigError, ("PatchMeanHead", "Neck")),
    (
        lambda: PyramidHead(24, [A], {"type": "vit_fpn", "num_layers": 1, "embed_dim": 7}),
        ConfigError,
        ("7", "24"),
    ),
    (lambda: FPNHead(24, [A], 2, (1, 2, 3)), ConfigError, ("3", "2")),
    (lambda: FPNHead(24, [A], 2, (1, -1)), ConfigError, "-1"),
    (lambda: FPNHead(24, [A], 2, ()), ConfigError, "layer_indices is empty"),
    (lambda: FPNHead(16, [A], 2, (0, 7))(tokens(layers=2)), ConfigError, "[7]"),
    (lambda: FPNHead(16, [A], 2)(tokens(layers=4)), ShapeError, "4"),
    (
        lambda: PyramidHead(16, [A], neck_of_maps())(tokens()),
        ShapeError,
        ("SimplePyramid", "list", "FeaturePyramid"),
    ),
    (lambda: LayerGrouper(12, 4, 8, 3, [[0], [1]]), ConfigError, ("2 groups", "3")),
    (lambda: LayerGrouper(12, 4, 8, 3, [[0], [1], []]), ConfigError, "group 2"),
    (lambda: LayerGrouper(12, 4, 8, 3, [[0], [1, 1], [2]]), ConfigError, "position 1"),
    (lambda: LayerGrouper(12, 4, 8, 3, [[0], [1], [4]]), ConfigError, ("position 4", "0 ... 3")),
    (lambda: composition(parts=(), sums=()), ConfigError, "parts=) is empty"),
    (lambda: composition(parts=("a", ""), sums=()), ConfigError, "empty name"),
    (lambda: composition(parts=("a", "b:c"), sums=()), ConfigError, "'b:c'"),
    (lambda: composition(parts=("a", "a"), sums=()), ConfigError, "'a'"),
    (lambda: composition(sums={"both": ("xx", "y")}), ConfigError, ("'both'", "'xx'", "x, y")),
    (lambda: composition(sums={"both": ()}), ConfigError, "'both'"),
    (lambda: composition(sums={"both": ("x", "x")}), ConfigError, ("'both'", "x, x")),
    (lambda: composed_of({"weights": (1.0, 2.0)}), ConfigError, ("2 weights", "x, y, both")),
    (lambda: composed_of({"weights": (1.0, 1.0, -1.0)}), ConfigError, ("'both'", "-1.0")),
    (lambda: composed_of({"beta": 0.0}), ConfigError, "beta"),
    (lambda: TaskLoss(TWO, [CompositionLoss(composition())]), ConfigError, ("x, y", "name=")),
    (lambda: composed_of(total="mas"), ConfigError, ("'mas'", "'mass'")),
    (lambda: composed_of(ratio="mass"), ConfigError, ("'mass'", "'regression'", "ratio")),
    (lambda: composed_of(parts=("x", "y", "z")), ConfigError, ("'shares'", "dim=3", "dim=2")),
    (lambda: composed_of(name="mass"), ConfigError, "'mass'"),
    (lambda: mask_loss(QUERIES, QUERIES[..., None], [KNOWN]), DataError, ("5 masks", "4 queries")),
    (lambda: mask_loss(QUERIES, QUERIES[..., None] * torch.nan, [KNOWN]), DataError, "mask logits"),
    (lambda: mask_loss(QUERIES / 0, QUERIES[..., None], [KNOWN]), DataError, "class logits"),
    (lambda: masked_mse(X[:, 0], X[:, 0, :3]), ShapeError, ("(2, 16)", "(2, 3)")),
    (lambda: masked_mse(X[:, 0], X[:, 0], torch.ones(3)), ShapeError, "mask"),
    (
        lambda: masked_cross_entropy(X[:, 0], torch.zeros(2).long(), torch.ones(3)),
        ShapeError,
        "mask",
    ),
    # NaN in a mask of numbers decides nothing
    (lambda: masked_mse(X[0], X[0], X[0] / 0 * 0), DataError, "NaN"),
    (lambda: masked_cross_entropy(X[:, 0, :3], torch.tensor([0, 3])), ShapeError, "3"),
    (lambda: masked_smooth_l1(X, X, beta=0), ConfigError, "beta"),
    (lambda: scale_invariant_log(torch.ones(4), torch.ones(4)), ShapeError, "(4,)"),
    (lambda: scale_invariant_log(torch.ones(1, 4), torch.ones(1, 4), lam=2), ConfigError, "2"),
    (
        lambda: dense_masked_mse(MAPS, torch.zeros(2, 3, 32, 64)),
        ShapeError,
        ("(2, 3, 2, 4)", "(2, 3, 32, 64)"),
    ),
    (lambda: dense_masked_mse(MAPS, MAPS, torch.ones(2, 4, 2)), ShapeError, "(2, 4, 2)"),
    (lambda: dense_masked_mse(MAPS, MAPS, torch.full((2, 2, 4), -1.0)), DataError, "-1"),
    (lambda: dense_masked_mse(MAPS, MAPS, torch.full((2, 2, 4), torch.nan)), DataError, "nan"),
    (lambda: DensityRegulariser("m", smoothness=1.0).parts(MAPS[0]), ShapeError, "(3, 2, 4)"),
    (lambda: CLSGating(16, 20)(X[:, 0], X), ShapeError, ("12", "20")),
    (lambda: CLSGating(16, (5, 4), "resized")(X[:, 0], X), ShapeError, ("12", "5 rows x 4 cols")),
    (
        lambda: CLSGating(16, (3, 4), "resized")(X[:, 0], X, (5, 4)),
        ShapeError,
        ("12", "5 rows x 4 cols"),
    ),
    (lambda: CLSGating(16, 12)(X[:, 0, :8], X), ShapeError, "(2, 8)"),
    (lambda: CLSGating(16, 12)(X[:, 0], X[:, :, :8]), ShapeError, "(2, 12, 8)"),
    (lambda: CLSGating(16, 12)(X[:, 0], X[:, 0]), ShapeError, ("(2, 16)", "patches")),
    (lambda: CLSGating(16, 12)(X[:1, 0], X), ShapeError, ("1 images", "2")),
    (lambda: CLSGatingHead(16, [A], "query", dropout=1.0), ConfigError, "1.0"),
    (lambda: PyramidHead(tasks=[A], neck={"type": "simple_pyramid"}), ConfigError, "embed_dim"),
    (lambda: PyramidHead(16, [A]), ConfigError, "neck"),
    (
        lambda: PyramidHead(tasks=[A], neck=SpatialTuningAdapter(16)),
        ConfigError,
        "SpatialTuningAdapter",
    ),
    (lambda: DPTNeck(16, 5), ConfigError, "5"),
    (lambda: DPTNeck(16, hidden_sizes=(1, 2, 3)), ConfigError, "(1, 2, 3)"),
    (lambda: LayerGrouper(16, 3, 8, 3, fusion="pixel"), ConfigError, ("pixel", "num_layers=3")),
    (
        lambda: LayerGrouper(16, 4, 8, 2, fusion="pixel").layer_weights(),
        ConfigError,
        ("'pixel'", "layer_weights"),
    ),
    (lambda: LayerGrouper(16, 3, 8)([X, X]), ShapeError, "2"),
    (lambda: SimplePyramid(16, 8, (3.0,)), ConfigError, "(3.0,)"),
    (lambda: SimplePyramid(16, 8, (1.0, 2.0)), ConfigError, ("(1.0, 2.0)", "(2.0, 1.0)")),
    (lambda: STAPyramid(16, strides=(8, 16, 31)), ConfigError, "(8, 16, 31)"),
    (
        lambda: SpatialTuningAdapter(16, 8, 1, detail=None, grid_from="image"),
        ConfigError,
        "detail=None",
    ),
    (lambda: adapter(None), ShapeError, "images"),
    (lambda: adapter(torch.zeros(2, 4, 80, 112)), ShapeError, "(2, 4, 80, 112)"),
    (lambda: adapter(torch.zeros(2, 3, 80, 112, dtype=torch.uint8)), DataError, "uint8"),
    (lambda: adapter(torch.zeros(3, 3, 80, 112)), ShapeError, ("3", "2")),
    (lambda: adapter(torch.zeros(2, 3, 8, 11)), ShapeError, "8x11"),
    (lambda: adapter(torch.zeros(2, 3, 112, 80)), ShapeError, "112x80"),
    (
        lambda: adapter(torch.zeros(2, 3, 100, 140), image_resize="error"),
        ShapeError,
        ("100x140", "80x112"),
    ),
    (lambda: GramAnchor()(tokens(layers=2), tokens()), ShapeError, ("2 layers", "1")),
    (lambda: GramAnchor()(X, X[:, :5]), ShapeError, ("(2, 12, 16)", "(2, 5, 16)")),
    (lambda: GramAnchor()(tokens(), tokens(4, 3)), GridError, ("3 x 4", "4 x 3")),
    (lambda: GramAnchor()([X], X), ShapeError, "list"),  # type: ignore[arg-type]
    (lambda: FIVE(torch.zeros(4), torch.zeros(4, 2)), ShapeError, "(4,)"),
    (lambda: composed(five=torch.zeros(4, 2)), ShapeError, ("'five'", "(4, 2)")),
    (lambda: masked_cross_entropy(X[0], torch.zeros(12)), ShapeError, "float32"),
    (lambda: map_cross_entropy(MAPS, torch.zeros(2, 3, 8).long()), ShapeError, "3 x 8"),
    (lambda: map_cross_entropy(MAPS, torch.zeros(2, 2, 4)), ShapeError, ("(2, 2, 4)", "float32")),
    (
        lambda: map_cross_entropy(MAPS, torch.zeros(2, 4, 8).long(), torch.ones(2, 4)),
        ShapeError,
        "(2, 4)",
    ),
    (lambda: DensityRegulariser("mass", smoothness=-1.0), ConfigError, ("smoothness", "-1.0")),
    (lambda: loss({"b": X[:, 0, :1]}), ShapeError, "'a'"),
    (lambda: loss({"a": X[:, 0, :1]}, {}), ShapeError, "'a'"),
    (lambda: loss({"a": X[:, 0]}), ShapeError, "(2, 16)"),
    (
        lambda: loss({"a": X[:, 0, :1]}, {"a": X[:1, 0, :1]}),
        ShapeError,
        ("'a' is (2, 1)", "(1, 1)"),
    ),
    (lambda: loss({"a": X[:, 0, :1]}, masks={"c": X}), ShapeError, "'c'"),
    (
        lambda: TaskLoss([A], weighting=UncertaintyWeighting(["b"])),
        ConfigError,
        ("built for b", "are a"),
    ),
    (
        lambda: TaskLoss([Task("a", weight=0.5)], weighting=UncertaintyWeighting(["a"])),
        ConfigError,
        "0.5",
    ),
    (
        lambda: TaskLoss([A], regularisers=[DensityRegulariser("a", 1.0)]),
        ConfigError,
        ("'a'", "'regression'"),
    ),
    (
        lambda: TaskLoss([MASS_MAP], regularisers=[DensityRegulariser("maas", 1.0)]),
        ConfigError,
        ("'maas'", "'mass'"),
    ),
    (lambda: UncertaintyWeighting([]), ConfigError, "names="),
    (lambda: UncertaintyWeighting(["a", "a"]), ConfigError, "'a' twice"),
    (lambda: UncertaintyWeighting(["a"])({"b": X.sum()}), ShapeError, ("'a'", "hold b")),
    (
        lambda: UncertaintyWeighting(["a"])({"a": X.sum(), "b": X.sum()}),
        ShapeError,
        ("'b'", "for a"),
    ),
    (lambda: UncertaintyWeighting(["a"])({"a": X}), ShapeError, "(2, 12, 16)"),
    # what modules are given
    (
        lambda: SimplePyramid(16, 8, patch_size=14)(tokens()),
        ShapeError,
        ("16 px", "14 px", "patch_size="),
    ),
    (
        lambda: PatchMeanHead(16, [A])(replace(tokens(), num_registers=3)),
        GridError,
        ("13 patch tokens", "3 rows x 4 cols"),
    ),
    (
        lambda: PatchMeanHead(16, [A])(tokens().to(dtype=torch.float64)),
        ShapeError,
        ("float64", "float32", "PatchMeanHead"),
    ),
    (lambda: to_origin(layers=(3,)), BackboneError, ("layers", "(3, 5)", "(3,)")),
    (lambda: to_origin(layers=(3, 5), normed=False), BackboneError, ("normed", "True", "False")),
    (
        lambda: HeadEnsemble([FPNHead(16, [A], 1, fpn_dim=8), FPNHead(16, [A], 2, fpn_dim=8)]),
        ConfigError,
        ("1 and 2 layers", "layers="),
    ),
    (
        lambda: HeadEnsemble.from_heads(two_heads(), layers=[(0,)]),
        ConfigError,
        ("1 list", "2 members"),
    ),
    (
        lambda: HeadEnsemble.from_heads(two_heads(), layers=[(0,), ()]),
        ConfigError,
        "member 1",
    ),
    (measured_at_infinity, DataError, "not finite"),
    (lambda: PatchMeanMLP(16).per_patch(X[0]), ShapeError, ("(12, 16)", "16)")),
    (lambda: LayerGrouper(16, 1025, 8, 1), ConfigError, ("num_layers is 1025", "1024")),
    (lambda: LayerGrouper(16, 2, 8, 1)([X, X[:, :5]]), ShapeError, ("(2, 12, 16)", "(2, 5, 16)")),
    (
        lambda: adapter(torch.zeros(2, 3, 80, 112, dtype=torch.float64)),
        ShapeError,
        ("float64", "float32"),
    ),
    # losses
    (
        lambda: CompositionLoss(Composition(("a", "b"), {"s": ("a", "b")}, "sums")),
        ConfigError,
        "'sums'",
    ),
    (
        lambda: FIVE.tasks_of([TWO[0], replace(TWO[1], labels=("y", "x"))]),
        ConfigError,
        ("'five'", "x, y", "y, x"),
    ),
    (
        lambda: mask_loss(QUERIES, torch.zeros(1, 4, 5, 1), [KNOWN]),
        ShapeError,
        ("(5, 3, 1)", "(masks, 5, 1)"),
    ),
    (
        lambda: mask_loss(QUERIES, QUERIES[..., None], [(KNOWN[0][:2], KNOWN[1])]),
        ShapeError,
        ("2 known classes", "5 known masks"),
    ),
    (objects_without_scipy, ImportError, "dinoneck[masks]"),
    (
        lambda: TaskLoss([MASS_MAP], regularisers=[DensityRegulariser("mass", 1.0)])(
            {"mass": X[:, 0, :1]}, {"mass": X[:, 0, :1]}
        ),
        ShapeError,
        ("'mass.map'", "hold mass"),
    ),
]
