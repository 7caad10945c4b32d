"""Frozen head files that read plain tokens: every head type with every kind of task, and every field of a task.

What a head computes is recorded next to the tokens that it was given, so a test needs the file and
the record alone: no function that builds a head is called for a file that is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck import (
    Bins,
    CLSGatingHead,
    DenseHead,
    DPTHead,
    FPNHead,
    HeadCheckpoint,
    HeadEnsemble,
    LinearHead,
    MaskHead,
    PatchMeanHead,
    PyramidHead,
    TargetTransform,
    Task,
    Tokens,
)
from dinoneck.heads import Head
from dinoneck.losses import Composition
from dinoneck.tasks import Interval
from tests import kit
from tests.contract.cases import CASES
from tests.frozen.folder import FrozenFile, VersionFolder, is_frozen

FOLDER = "heads"
WIDTH = 8  # channels of the tokens
LEAST_SCORE = 0.02  # of objects, in the tasks


@dataclass(frozen=True)
class TokenShape:
    """The tokens that a head is given: CLS and registers, then rows x cols patches, of every layer.

    Attributes:
        width: channels.
        layers: block indices.
        rows: of the patch grid.
        cols: of the patch grid.
        prefix: CLS and register tokens.
        patch_size: pixels per patch.
        batch: images.
    """

    width: int = WIDTH
    layers: tuple[int, ...] = (0,)
    rows: int = 2
    cols: int = 3
    prefix: int = 3
    patch_size: int = 16
    batch: int = 2

    def draw(self) -> list[Tensor]:
        """Return random sequences (batch, prefix + rows * cols, width), one per layer, of a fixed seed."""
        generator = torch.Generator().manual_seed(0)
        count = self.prefix + self.rows * self.cols
        return [
            torch.randn(self.batch, count, self.width, generator=generator) for _ in self.layers
        ]

    def tokens(self, sequences: list[Tensor], dtype: torch.dtype = torch.float32) -> Tokens:
        """Return Tokens of these sequences."""
        tokens = kit.tokens_from(
            sequences,
            self.rows,
            self.cols,
            prefix=self.prefix,
            patch=self.patch_size,
            layers=self.layers,
            normed=True,
        )
        return tokens.to(dtype=dtype)


@dataclass(frozen=True)
class HeadToFreeze:
    """A head that is written once.

    Attributes:
        name: of its file, without the suffix.
        build: returns it; its parameters are drawn afterwards.
        reads: the tokens that it is given.
        records: further arguments of ``HeadCheckpoint.from_module``.
        std: of the parameters; large ones give heads of centres some centres.
    """

    name: str
    build: Callable[[], nn.Module]
    reads: TokenShape = TokenShape()
    records: dict[str, Any] = field(default_factory=dict)
    std: float = 0.2

    @property
    def file(self) -> str:
        """Its path in the folder of a version."""
        return f"{FOLDER}/{self.name}.safetensors"


# Tasks that hold, together, every field of Task and TargetTransform with a value of its own.

MASS = Task(
    "mass",
    activation="softplus",
    loss="smooth_l1",
    weight=2.0,
    beta=0.5,
    transform=TargetTransform(area=0.25, log1p=True, mean=1.5, std=0.75),
    unit="g",
    minimum=0.5,
    maximum=40.0,
)
ORGANS = Task(
    "organs",
    dim=3,
    weight=(0.5, 0.25, 0.25),
    transform=TargetTransform(mean=(1.0, 2.0, 3.0), std=(0.5, 1.0, 2.0)),
    labels=("leaf", "stem", "root"),
)
HEIGHT = Task("height", activation="relu", unit="cm")
COVER = Task("cover (%)", activation="sigmoid", transform=TargetTransform(std=100.0))
STATE = Task(
    "state",
    dim=3,
    kind="classification",
    loss="cross_entropy",
    labels=("green", "dry", "unknown"),
    ignore_index=2,
)
CERTAIN = Task(
    "certain",
    unit="g",
    interval=(Interval(levels=(0.5, 0.9), half_widths=(1.5, 4.0), groups=12),),
)
TAGS = Task("tags", kind="multilabel", labels=("moss", "rust"), thresholds=(0.25, 0.5))
SHARES = Task("shares", dim=3, kind="ratio", labels=("crop", "weed", "soil"))
TOTAL = Task("total", unit="g", minimum=0.0, activation="softplus")
CROP = Task("crop", unit="g", minimum=0.0, activation="softplus")
WEED = Task("weed", unit="g", minimum=0.0, activation="softplus")

# Maps.
NDVI = Task(
    "ndvi",
    kind="dense",
    transform=TargetTransform(mean=0.4, std=0.2),
    minimum=0.1,
    maximum=0.7,
)
GROUND = Task("ground", dim=2, kind="dense", shares=True, labels=("covered", "bare"))
PLANTS = Task("plants", kind="density", activation="softplus", transform=TargetTransform(std=2.0))
DENSITY = Task("density", kind="density", aggregate="mean", unit="1/m2")
CLASSES = Task(
    "classes", dim=3, kind="segmentation", labels=("soil", "leaf", "stone"), ignore_index=0
)
# the mean of the map `classes` over its cells of "leaf"
LEAF = Task("leaf", from_map="classes", unit="%", minimum=0.0, maximum=1.0)
INSTANCES = Task("plant", dim=2, kind="instances", labels=("crop", "weed"), minimum=LEAST_SCORE)
PANOPTIC = Task(
    "scene",
    dim=3,
    kind="panoptic",
    labels=("plant", "stone", "soil"),
    things=("plant", "stone"),
    minimum=LEAST_SCORE,
)

# Outputs that are computed from tasks: parts of a total, and sums of tasks.
PARTS = Composition(
    parts=("crop", "weed", "soil"),
    sums={"green": ("crop", "weed")},
    name="parts",
    total="total",
    ratio="shares",
)
SUMS = Composition(parts=("crop", "weed"), sums={"green": ("crop", "weed")}, name="sums")


def calibrated_head() -> PatchMeanHead:
    """Return a head that has measured its tokens, whose scale is stored."""
    head = PatchMeanHead(WIDTH, [MASS], hidden_dim=4)
    shape = TokenShape()
    sequences = [3.0 * x + 1.0 for x in shape.draw()]
    head.calibrate([shape.tokens(sequences)])
    return head


def head_in(dtype: torch.dtype) -> PatchMeanHead:
    """Return a head whose parameters are stored in another dtype than float32."""
    return PatchMeanHead(WIDTH, [MASS, STATE], hidden_dim=4).to(dtype)


def nested_ensemble() -> HeadEnsemble:
    """Return an ensemble whose members are an ensemble with a member of weight 0, and a head."""
    folds = [PatchMeanHead(WIDTH, [MASS, STATE], hidden_dim=4) for _ in range(3)]
    inner = HeadEnsemble(folds, weights=[1.0, 0.0, 3.0])
    return HeadEnsemble([inner, CLSGatingHead(WIDTH, [MASS, STATE], "query", hidden_dim=4)])


def ensemble_of_layers() -> HeadEnsemble:
    """Return an ensemble whose members read different layers."""
    shallow_and_deep = LinearHead(WIDTH, [HEIGHT], num_layers=2)
    deep = PatchMeanHead(WIDTH, [HEIGHT, SHARES], hidden_dim=4)
    return HeadEnsemble([shallow_and_deep, deep], layers=[(2, 5), (5,)])


def ensemble_of_compositions() -> HeadEnsemble:
    """Return an ensemble whose outputs follow from those that are averaged: parts, sums and means of maps."""
    members: list[Head] = []
    for _ in range(2):
        members.append(PatchMeanHead(WIDTH, [TOTAL, SHARES], hidden_dim=4, compositions=[PARTS]))
        members.append(DenseHead(WIDTH, [CLASSES, LEAF], hidden_dim=4, depth=0))
    return HeadEnsemble(members)


PUBLISHED_WIDTH = 384
PUBLISHED_LAYERS = (8, 9, 10, 11)


def published_head() -> LinearHead:
    """Return a head of the form of ``dinov2_vits14_imagenet_linear4``, for two classes instead of a thousand."""
    task = Task("class", dim=2, kind="classification", labels=("tench", "goldfish"))
    return LinearHead(PUBLISHED_WIDTH, [task], num_layers=len(PUBLISHED_LAYERS))


# what `load_published` records: the backbone by its name, without a hash of its weights, the licence,
# and where the file is from
PUBLISHED_RECORDS = {
    "backbone": {
        "name": "vit_small_patch14_dinov2.lvd142m",
        "family": "dinov2",
        "source": "timm",
        "patch_size": [14, 14],
        "embed_dim": PUBLISHED_WIDTH,
        "depth": 12,
        "num_cls": 1,
        "num_registers": 0,
        "layers": list(PUBLISHED_LAYERS),
        "norm": True,
        "pos_embed": "official",
        "dtype": "float32",
        "weights": {"kind": "hub", "repo": "timm/vit_small_patch14_dinov2.lvd142m"},
        "license": "apache-2.0",
    },
    "preprocess": {
        "patch_size": 14,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "size": [224, 224],
        "resize": "crop",
        "pad_to": "corner",
        "interpolation": "bicubic",
        "blur": None,
    },
    "license": "apache-2.0",
    "extra": {"published": "dinov2_vits14_imagenet_linear4", "sha256": "0" * 64},
}

NEW_HEADS = (
    HeadToFreeze(
        "patch_mean-every-field",
        lambda: PatchMeanHead(WIDTH, [MASS, ORGANS, HEIGHT, COVER, STATE, SHARES], hidden_dim=4),
    ),
    HeadToFreeze(
        "patch_mean-compositions",
        lambda: PatchMeanHead(
            WIDTH,
            [TOTAL, SHARES, Task("dry", unit="g"), Task("fresh", unit="g")],
            hidden_dim=4,
            compositions=[
                PARTS,
                Composition(("dry", "fresh"), {"both": ("dry", "fresh")}, name="sums"),
            ],
        ),
    ),
    HeadToFreeze(
        "patch_mean-intervals-and-labels",
        lambda: PatchMeanHead(WIDTH, [CERTAIN, TAGS], hidden_dim=4),
    ),
    HeadToFreeze(
        "cls_gating-labels",
        lambda: CLSGatingHead(WIDTH, [TAGS], "query", hidden_dim=4),
    ),
    HeadToFreeze("linear-labels", lambda: LinearHead(WIDTH, [TAGS])),
    HeadToFreeze(
        "fpn-labels",
        lambda: FPNHead(WIDTH, [TAGS], num_layers=2, fpn_dim=4, hidden_dim=4),
        TokenShape(layers=(0, 1)),
    ),
    HeadToFreeze(
        "pyramid-labels",
        lambda: PyramidHead(
            WIDTH,
            [TAGS],
            {"type": "vit_fpn", "num_layers": 2, "fpn_dim": 4, "num_levels": 2},
            hidden_dim=4,
        ),
        TokenShape(layers=(0, 1)),
    ),
    HeadToFreeze(
        "ensemble-labels",
        lambda: HeadEnsemble([PatchMeanHead(WIDTH, [TAGS], hidden_dim=4) for _ in range(2)]),
    ),
    HeadToFreeze("patch_mean-calibrated", calibrated_head),
    HeadToFreeze("patch_mean-float16", lambda: head_in(torch.float16)),
    HeadToFreeze("patch_mean-bfloat16", lambda: head_in(torch.bfloat16)),
    HeadToFreeze("patch_mean-float64", lambda: head_in(torch.float64)),
    HeadToFreeze(
        "cls_gating-compositions",
        lambda: CLSGatingHead(
            WIDTH, [CROP, WEED, STATE], "query", hidden_dim=4, dropout=0.2, compositions=[SUMS]
        ),
    ),
    HeadToFreeze(
        "linear-compositions",
        lambda: LinearHead(WIDTH, [TOTAL, SHARES], pool="cls+mean", compositions=[PARTS]),
    ),
    HeadToFreeze(
        "linear-maps-of-ratios",
        lambda: LinearHead(
            WIDTH, [SHARES, CLASSES, LEAF, GROUND, NDVI], pool=None, use_cls=True, upsample=2
        ),
    ),
    HeadToFreeze(
        "dense-compositions",
        lambda: DenseHead(
            WIDTH,
            [Task("total", kind="density", unit="g"), SHARES, CLASSES, LEAF],
            hidden_dim=4,
            depth=1,
            compositions=[PARTS],
        ),
    ),
    HeadToFreeze(
        "dpt-dense",
        lambda: DPTHead(
            WIDTH,
            [NDVI, CLASSES],
            {
                "type": "dpt_neck",
                "num_layers": 2,
                "out_channels": 4,
                "hidden_sizes": (4, 4),
                "patch_size": 4,
            },
            hidden_dim=4,
        ),
        TokenShape(layers=(0, 1), patch_size=4),
    ),
    HeadToFreeze(
        "dpt-log-bins",
        lambda: DPTHead(
            WIDTH,
            [Task("depth", kind="dense", unit="m")],
            {
                "type": "dpt_neck",
                "num_layers": 1,
                "out_channels": 4,
                "hidden_sizes": (4,),
                "patch_size": 4,
            },
            hidden_dim=4,
            bins=Bins(0.5, 20.0, 4, "log", 0.01),
        ),
        TokenShape(patch_size=4),
    ),
    HeadToFreeze(
        "fpn-every-kind",
        lambda: FPNHead(
            WIDTH,
            [TOTAL, SHARES, STATE, NDVI, PLANTS, DENSITY, CLASSES, LEAF, INSTANCES],
            num_layers=3,
            layer_indices=(1, 3, 4),
            fpn_dim=4,
            num_levels=2,
            layer_groups=((2, 0), (1,)),
            fusion="pixel",
            downsample="pool",
            norm="layer",
            activation="silu",
            use_coords=True,
            use_cls_context=True,
            hidden_dim=4,
            tower_depth=1,
            compositions=[PARTS],
        ),
        TokenShape(layers=(1, 3, 4)),
        std=0.8,
    ),
    HeadToFreeze(
        "pyramid-on-vit_fpn",
        lambda: PyramidHead(
            WIDTH,
            [MASS, STATE, PLANTS],
            {"type": "vit_fpn", "num_layers": 2, "fpn_dim": 4, "num_levels": 2},
        ),
        TokenShape(layers=(0, 1)),
    ),
    HeadToFreeze(
        "pyramid-on-simple_pyramid",
        lambda: PyramidHead(
            WIDTH,
            [CLASSES, LEAF, SHARES],
            {"type": "simple_pyramid", "out_channels": 4, "scales": [1, 0.5]},
            ratio_readout="patch",
            tower_depth=0,
        ),
    ),
    HeadToFreeze(
        "pyramid-on-sta_pyramid",
        lambda: PyramidHead(
            WIDTH,
            [INSTANCES],
            {"type": "sta_pyramid", "out_channels": 4, "pre_norm": True, "pos_embed": True},
            tower_depth=0,
        ),
        std=0.8,
    ),
    HeadToFreeze(
        "pyramid-on-spatial_tuning_adapter",
        lambda: PyramidHead(
            WIDTH,
            [TOTAL, SHARES],
            {
                "type": "spatial_tuning_adapter",
                "out_channels": 4,
                "num_layers": 1,
                "detail": None,
                "norm": "layer",
            },
            hidden_dim=4,
            compositions=[PARTS],
        ),
    ),
    HeadToFreeze(
        "pyramid-on-dpt_neck",
        lambda: PyramidHead(
            WIDTH,
            [CLASSES, DENSITY],
            {"type": "dpt_neck", "num_layers": 2, "out_channels": 4, "hidden_sizes": (4, 4)},
            layer_indices=(1, 3),
            tower_depth=0,
        ),
        TokenShape(layers=(1, 3)),
    ),
    HeadToFreeze(
        "mask-panoptic",
        lambda: MaskHead(WIDTH, [PANOPTIC], num_layers=1, num_queries=4, num_blocks=1, num_heads=1),
    ),
    HeadToFreeze("ensemble-nested", nested_ensemble),
    HeadToFreeze("ensemble-layers", ensemble_of_layers, TokenShape(layers=(2, 5))),
    HeadToFreeze("ensemble-compositions", ensemble_of_compositions),
    HeadToFreeze(
        "linear-published",
        published_head,
        TokenShape(
            PUBLISHED_WIDTH,
            PUBLISHED_LAYERS,
            rows=1,
            cols=1,
            prefix=1,
            patch_size=14,
            batch=1,
        ),
        PUBLISHED_RECORDS,
    ),
)

REFUSED = {
    # an ensemble was the median of its members
    "heads/ensemble-median.safetensors": ("reduce is 'median'", "0.4", "with dinoneck 0.3"),
}
"""Files that this version refuses -> what the message names."""

GAINED_MAPS = {
    # linear layers on the mean patch have maps since 0.4
    "heads/linear-mean.safetensors",
}
"""Files whose heads give maps now that they did not give when they were written."""

# The first frozen heads were cases of the contract battery, with five prefix tokens of 24 channels.
CONTRACT_CASES = (
    "patch_mean",
    "cls_gating",
    "cls_gating-query",
    "cls_gating-resized",
    "ensemble",
    "ensemble-gating",
    "ensemble-weighted",
    "ensemble-of-pyramids",
    "mask",
    "mask-instances",
    "linear",
    "linear-cls",
    "linear-mean",
    "linear-maps",
    "linear-upsampled",
    "dpt",
    "dpt-bins",
    "dense",
    "fpn",
    "fpn-maps",
    "pyramid",
)


def heads() -> list[HeadToFreeze]:
    """Return the heads on plain tokens."""
    cases = {case.name: case for case in CASES}
    every = list(NEW_HEADS)
    for name in CONTRACT_CASES:
        if name in cases:
            case = cases[name]
            rows, cols = case.grid or (3, 5)
            layers = tuple(range(case.layers))
            reads = TokenShape(kit.WIDTH, layers, rows=rows, cols=cols, prefix=5)
            every.append(HeadToFreeze(name, case.build, reads))
    return every


def freeze(folder: VersionFolder) -> None:
    """Write the heads that no version has written, and record what they compute."""
    for head in heads():
        if is_frozen(head.file):
            continue
        module = kit.randomised(head.build(), std=head.std).eval()
        path = folder.new_path(head.file)
        checkpoint = HeadCheckpoint.from_module(module, **head.records)
        checkpoint.save(path)
        sequences = head.reads.draw()
        facts = {"reads": asdict(head.reads), **describe(HeadCheckpoint.load(path))}
        numbers = {f"tokens/{number}": x for number, x in enumerate(sequences)}
        for name, value in compute(module, head.reads, sequences).items():
            numbers[f"result/{name}"] = value
        folder.record(head.file, facts, numbers)


def describe(checkpoint: HeadCheckpoint) -> dict[str, Any]:
    """Return how a head file is understood; what its header says is in the file itself."""
    head: Any = checkpoint.build()
    preprocess = checkpoint.preprocess
    tasks = getattr(head, "predicted", ())
    return {
        "class": type(head).__name__,
        "head_type": checkpoint.head_type,
        "tasks": [asdict(task) for task in tasks],
        "columns": [column for task in tasks for column in task.columns],
        "preprocess": None if preprocess is None else asdict(preprocess),
    }


def shape_of(file: FrozenFile) -> TokenShape:
    """Return the shape of the tokens that a frozen head was given."""
    recorded = dict(file.facts["reads"])
    layers = tuple(recorded.pop("layers"))
    return TokenShape(layers=layers, **recorded)


def compute_recorded(head: Any, file: FrozenFile) -> dict[str, Tensor]:
    """Return what a head computes from the tokens that were recorded with its file."""
    tokens = file.numbers("tokens")
    shape = shape_of(file)
    sequences = [tokens[str(number)] for number in range(len(shape.layers))]
    return compute(head, shape, sequences)


@torch.no_grad()
def compute(head: Any, shape: TokenShape, sequences: list[Tensor]) -> dict[str, Tensor]:
    """Return what a head computes from tokens: outputs, predictions, maps, its gate and objects, in float32.

    Names are ``output/TASK``, ``prediction/TASK``, ``map/TASK`` of the tasks whose prediction is no
    map, ``gate``, ``instances/IMAGE/PART`` and ``panoptic/IMAGE/PART``.
    """
    tokens = shape.tokens(sequences, next(head.parameters()).dtype)
    predictions = head.predict(tokens)
    results: dict[str, Tensor] = {}
    for name, output in head(tokens).items():
        results[f"output/{name}"] = output
    for name, prediction in predictions.items():
        results[f"prediction/{name}"] = prediction
    for name, cells in head.predict_maps(tokens).items():
        if name not in predictions or predictions[name].ndim < 4:
            results[f"map/{name}"] = cells
    gate = head.gate(tokens) if hasattr(head, "gate") else None
    if gate is not None:
        results["gate"] = gate
    kinds = {task.kind for task in head.tasks}
    if "instances" in kinds:
        for image, objects in enumerate(head.predict_instances(tokens, min_score=0.0)):
            for part, value in objects.items():
                results[f"instances/{image}/{part}"] = value
    if "panoptic" in kinds:
        for image, (segments, listed) in enumerate(head.predict_panoptic(tokens)):
            results[f"panoptic/{image}/segments"] = segments.to(torch.uint8)
            results[f"panoptic/{image}/listed"] = table_of_segments(listed)
    return {name: x.float() if x.is_floating_point() else x for name, x in results.items()}


def table_of_segments(segments: list[dict[str, Any]]) -> Tensor:
    """Return panoptic segments as rows of id, category, whether it is a thing, area and score."""
    columns = ("id", "category_id", "isthing", "area", "score")
    rows = [[float(segment[column]) for column in columns] for segment in segments]
    return torch.tensor(rows).reshape(len(rows), len(columns))
