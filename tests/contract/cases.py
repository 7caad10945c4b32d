"""One line per registered class: how the battery builds it, and what it is fed.

A new neck or head adds a case here; ``test_every_registered_class_has_a_case`` fails until it does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import dinoneck
from dinoneck import (
    Bins,
    CLSGating,
    CLSGatingHead,
    DenseHead,
    DPTHead,
    DPTNeck,
    FPNHead,
    HeadEnsemble,
    LayerGrouper,
    LinearHead,
    MaskHead,
    PatchMeanHead,
    PatchMeanMLP,
    PyramidHead,
    SpatialTuningAdapter,
    STAPyramid,
    TargetTransform,
    Task,
    ViTFPN,
)
from dinoneck.points import DecoderInjection, GatedFusion
from tests import kit
from tests.kit import WIDTH

POINT_WIDTH = 8
TASKS = (
    Task("mass", unit="g", activation="softplus", transform=TargetTransform(area=0.21)),
    Task("parts", dim=3, kind="ratio"),
    Task("state", dim=4, kind="classification", labels=("a", "b", "c", "d")),
)
TAGS = Task("tags", kind="multilabel", labels=("a", "b", "c"), thresholds=(0.25, 0.5, 0.75))
MAPS = (
    Task("ndvi", kind="dense", transform=TargetTransform(mean=0.4, std=0.2)),
    Task("plants", kind="density", activation="softplus", transform=TargetTransform(std=2.0)),
    Task("cover", kind="density", aggregate="mean"),
    Task("class", dim=3, kind="segmentation"),
)


@dataclass(frozen=True)
class Case:
    """A registered class in one configuration."""

    name: str
    build: Callable[..., nn.Module]
    # "patches": a (B, N, C) tensor; "layers": a list of them; "pair": CLS (B, C) and patches;
    # "tokens+images": both; "points": features of N points (B, N, 8), tokens (B, N, C) at the same
    # points and which of them count (B, N)
    takes: str = "tokens"
    layers: int = 1
    # export and compile tie a graph to sizes of 1: pyramids are traced, and tried, where the
    # coarsest level has more
    smallest: int = 1
    grid: tuple[int, int] | None = None  # the only one that the module takes; None = any
    cell_px: int = 16  # pixels of the images per token, where images are taken
    registers: bool = False  # register tokens are read, which plain patches and CLS tokens lack

    def inputs(self, **how: Any) -> Any:
        """What the module is called with, see :meth:`args`."""
        own = {} if self.grid is None else {"rows": self.grid[0], "cols": self.grid[1]}
        tokens = kit.tokens(**{"layers": self.layers, **how, **own})
        if self.takes == "tokens":
            return tokens
        if self.takes == "tokens+images":
            rows, cols = tokens.grid
            images = torch.randn(len(tokens), 3, rows * self.cell_px, cols * self.cell_px)
            return tokens, images.to(tokens.sequence[0])
        patches = [x.contiguous() for x in tokens.patches]
        if self.takes == "pair":
            return (tokens.cls_token[0].contiguous(), patches[0])
        if self.takes == "points":
            points = torch.arange(tokens.grid.count).expand(len(tokens), -1)
            return (
                torch.randn(*points.shape, POINT_WIDTH).to(patches[0]),
                patches[0],
                points % 3 != 1,
            )
        return patches if self.takes == "layers" else patches[0]

    def args(self, inputs: Any) -> tuple[Any, ...]:
        """The inputs as positional arguments."""
        return inputs if self.takes in ("pair", "points", "tokens+images") else (inputs,)

    def sample(self, inputs: Any, i: int) -> Any:
        """Sample ``i`` of the inputs, as a batch of one."""
        if self.takes in ("layers", "pair", "points", "tokens+images"):
            return type(inputs)(x[i : i + 1] for x in inputs)
        return inputs[i : i + 1]

    def cast(self, inputs: Any, dtype: torch.dtype) -> Any:
        """The inputs in another dtype."""
        if self.takes in ("layers", "pair", "tokens+images"):
            return type(inputs)(x.to(dtype=dtype) for x in inputs)
        if self.takes == "points":
            return inputs[0].to(dtype=dtype), inputs[1].to(dtype=dtype), inputs[2]
        return inputs.to(dtype=dtype)

    def __str__(self) -> str:
        return self.name


def member(seed: int) -> dict[str, Any]:
    return {"type": "patch_mean", "config": PatchMeanHead(WIDTH, TASKS, hidden_dim=8 + seed).config}


def gated(mode: str, num_patches: Any = None) -> dict[str, Any]:
    return {
        "type": "cls_gating",
        "config": CLSGatingHead(WIDTH, TASKS, mode, num_patches, 8).config,
    }  # type: ignore[arg-type]


def awake(module: nn.Module) -> nn.Module:
    """What starts at zero, and would keep gradients from others, is given values."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "gains" in name and not parameter.is_meta:
                parameter.fill_(0.5)
    return module


def fpn(**options: Any) -> Callable[..., nn.Module]:
    return lambda **f: awake(
        ViTFPN(**{"embed_dim": WIDTH, "num_layers": 4, "fpn_dim": 8, **options, **f})
    )


def dpt_neck(**options: Any) -> Callable[..., nn.Module]:
    return lambda **f: DPTNeck(**{"embed_dim": WIDTH, "out_channels": 8, **options, **f})


def dpt(
    tasks: Sequence[Task],
    bins: Bins | None = None,
    mix: bool = False,
    linear: bool = False,
    **neck: Any,
) -> Callable[..., nn.Module]:
    activation = None if linear else "relu"
    small = {
        "type": "dpt_neck",
        "num_layers": 2,
        "out_channels": 8,
        "hidden_sizes": (4, 4),
        "patch_size": 16,
        **neck,
    }
    return lambda **f: DPTHead(WIDTH, tasks, small, 4, bins, mix, activation, linear, **f)


def injection(**options: Any) -> Callable[..., nn.Module]:
    return lambda **f: DecoderInjection(
        **{"c_dino": WIDTH, "levels": {4: POINT_WIDTH}, "zero_init": False, **options, **f}
    )


def sta(**options: Any) -> Callable[..., nn.Module]:
    return lambda **f: STAPyramid(WIDTH, 8, **options, **f)


def mask(name: str, kind: Any, *more: int) -> Callable[..., nn.Module]:
    return lambda **f: MaskHead(WIDTH, [Task(name, dim=3, kind=kind)], 2, 5, 1, 2, *more, **f)


def adapter(
    name: str, layers: int, cell_px: int = 16, takes: str = "tokens+images", **options: Any
) -> Case:
    small = {"embed_dim": WIDTH, "out_channels": 8, "detail_dim": 4, **options}
    name = f"spatial_tuning_adapter{name}"
    return Case(
        name,
        lambda **f: SpatialTuningAdapter(**small, **f),
        takes,
        layers,
        smallest=3,
        cell_px=cell_px,
    )


BILINEAR = {"upsample": "bilinear", "downsample": "avgpool"}
EVERYTHING = {"fusion": "pixel", "downsample": "pool", "residual_init": "zero", "use_coords": True}

CASES = [
    Case("patch_mean_mlp", lambda **f: PatchMeanMLP(WIDTH, 8, 2, "softplus", **f), takes="patches"),
    Case("patch_mean", lambda **f: PatchMeanHead(WIDTH, TASKS, hidden_dim=8, **f)),
    Case("patch_mean-labels", lambda **f: PatchMeanHead(WIDTH, TAGS, hidden_dim=8, **f)),
    Case("cls_gating_pool", lambda **f: CLSGating(WIDTH, 15, **f), "pair", grid=(3, 5)),
    Case("cls_gating_pool-query", lambda **f: CLSGating(WIDTH, mode="query", **f), "pair"),
    Case("cls_gating", lambda **f: CLSGatingHead(WIDTH, TASKS, "mlp", 15, 8, **f), grid=(3, 5)),
    Case("cls_gating-query", lambda **f: CLSGatingHead(WIDTH, TASKS, "query", hidden_dim=8, **f)),
    Case("cls_gating-resized", lambda **f: CLSGatingHead(WIDTH, TASKS, "resized", (3, 4), 8, **f)),
    Case(
        "ensemble-gating", lambda **f: HeadEnsemble([gated("query"), gated("resized", (2, 3))], **f)
    ),
    Case("ensemble", lambda **f: HeadEnsemble([member(0), member(1), member(2)], **f)),
    Case(
        "ensemble-weighted",
        lambda **f: HeadEnsemble([member(0), member(1)], weights=[1.0, 2.0], **f),
    ),
    Case(
        "ensemble-labels",
        lambda **f: HeadEnsemble(
            [{"type": "linear", "config": LinearHead(WIDTH, TAGS, 1, "mean").config}] * 2, **f
        ),
    ),
    Case("mask", mask("class", "segmentation", 8), layers=2, registers=True),
    Case("mask-instances", mask("leaf", "instances"), layers=2, registers=True),
    Case("layer_grouper", lambda **f: LayerGrouper(WIDTH, 4, 8, 2, **f), "layers", 4),
    Case(
        "layer_grouper-shared-softmax",
        lambda **f: LayerGrouper(WIDTH, 3, 8, 2, [[2, 0], [1]], False, None, "softmax", **f),
        "layers",
        3,
    ),
    Case(
        "layer_grouper-pixel",
        lambda **f: LayerGrouper(WIDTH, 4, 8, 2, fusion="pixel", **f),
        "layers",
        4,
    ),
    Case("vit_fpn", fpn(), layers=4, smallest=5),
    Case("vit_fpn-one-layer", fpn(num_layers=1, num_levels=2, norm="group"), layers=1, smallest=3),
    Case(
        "vit_fpn-two-layers",
        fpn(num_layers=2, downsample="interpolate", activation="relu"),
        layers=2,
        smallest=5,
    ),
    Case(
        "vit_fpn-linear",
        fpn(norm=None, activation=None, use_separate_bottlenecks=False),
        layers=4,
        smallest=5,
    ),
    Case(
        "vit_fpn-everything",
        fpn(num_levels=4, num_layers=5, use_cls_context=True, **EVERYTHING),
        layers=5,
        smallest=9,
    ),
    Case("simple_pyramid", lambda **f: dinoneck.SimplePyramid(WIDTH, 8, **f), smallest=3),
    Case(
        "dpt_neck",
        dpt_neck(num_layers=4, readout="project", hidden_sizes=(4, 6, 8, 10)),
        layers=4,
        smallest=3,
    ),
    Case("dpt_neck-ignore", dpt_neck(num_layers=2, hidden_sizes=(6, 8)), layers=2, smallest=3),
    Case(
        "dpt_neck-double",
        dpt_neck(
            num_layers=3,
            hidden_sizes=(6, 8, 8),
            upsample="double",
            align_corners=True,
            unit_bias=False,
        ),
        layers=3,
        smallest=3,
    ),
    Case("sta_pyramid", sta(), smallest=3),
    Case("sta_pyramid-everything", sta(pre_norm=True, pos_embed=True, **BILINEAR), smallest=3),
    Case("sta_pyramid-strides", sta(strides=(10, 20, 40), **BILINEAR), smallest=5),
    adapter("", 3),
    adapter("-no-detail", 1, takes="tokens", detail=None, norm="layer", num_layers=1),
    adapter("-image", 4, 32, norm="group", num_layers=4, grid_from="image"),
    adapter("-resized", 2, 24, norm="layer", num_layers=2),
    Case("decoder_injection", injection(), "points"),
    Case("decoder_injection-scalar", injection(norm=None, gate="scalar"), "points"),
    Case("decoder_injection-channel", injection(gate="channel"), "points"),
    Case("decoder_injection-token", injection(gate="token", target="skip"), "points"),
    Case(
        "gated_fusion", lambda **f: GatedFusion(WIDTH, POINT_WIDTH, POINT_WIDTH, 6, **f), "points"
    ),
    Case("linear", lambda **f: LinearHead(WIDTH, TASKS, 2, **f), layers=2),
    Case("linear-cls", lambda **f: LinearHead(WIDTH, TASKS, 2, "cls", **f), layers=2),
    Case("linear-mean", lambda **f: LinearHead(WIDTH, TASKS, 2, "mean", **f), layers=2),
    Case("linear-maps", lambda **f: LinearHead(WIDTH, MAPS, 2, None, **f), layers=2, smallest=2),
    Case(
        "linear-upsampled",
        lambda **f: LinearHead(WIDTH, MAPS[:1], 2, None, True, 4, Bins(0.1, 9.0, 8, "mixed"), **f),
        layers=2,
        smallest=2,
    ),
    Case("dpt", dpt(MAPS[3:]), layers=2, smallest=3),
    Case(
        "dpt-bins",
        dpt(MAPS[:1], Bins(0.1, 9.0, 8), True, upsample="double", align_corners=True),
        layers=2,
        smallest=3,
    ),
    Case(
        "dpt-linear",
        dpt(
            [MAPS[3], Task("normals", kind="dense", dim=3, activation="unit")],
            mix=True,
            linear=True,
            readout="project",
            readout_activation="gelu_tanh",
            upsample="double",
            align_corners=True,
        ),
        layers=2,
        smallest=3,
    ),
    Case("dense", lambda **f: DenseHead(WIDTH, MAPS, 8, 1, **f), smallest=2),
    Case("fpn", lambda **f: FPNHead(WIDTH, TASKS, 3, fpn_dim=8, **f), layers=3, smallest=5),
    Case(
        "fpn-maps",
        lambda **f: FPNHead(
            WIDTH,
            (*TASKS, *MAPS),
            2,
            (0, 1),
            8,
            2,
            tower_depth=1,
            hidden_dim=6,
            ratio_readout="patch",
            **f,
        ),
        layers=2,
        smallest=3,
    ),
    Case(
        "pyramid",
        lambda **f: PyramidHead(
            WIDTH,
            (TASKS[0], MAPS[0]),
            {"type": "simple_pyramid", "out_channels": 8, "scales": [2, 1]},
            **f,
        ),
        smallest=2,
    ),
    Case(
        "ensemble-of-pyramids",
        lambda **f: HeadEnsemble(
            [member(0), {"type": "dense", "config": DenseHead(WIDTH, MAPS, 8, 0).config}], **f
        ),
        smallest=2,
    ),
]
