"""What ``benchmarks.speed.scaling`` runs: necks, heads and, for comparison, a small ViT, at sizes along an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.speed.rows import Setting
from dinoneck import (
    CLSGatingHead,
    DenseHead,
    DPTNeck,
    FPNHead,
    HeadEnsemble,
    LayerGrouper,
    PatchMeanHead,
    SimplePyramid,
    SpatialTuningAdapter,
    STAPyramid,
    Task,
    Tokens,
    ViTFPN,
    load_backbone,
)

WIDTH, OUT, PATCH, LAYERS = 192, 32, 16, 4
VIT, VIT_LIMIT = "a ViT (dinoneck_tiny)", 10_000
LOOP = ", in a loop"
Calls = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Axis:
    """One direction in which work grows.

    Attributes:
        title: what is counted.
        setting: the sizes that stay.
        points: values along the axis.
        start: from where on fits are made: before, the fixed cost of a call shows.
        calls: value, device -> what runs, by name.
    """

    title: str
    setting: str
    points: Sequence[int]
    start: int
    calls: Callable[[int, str], Calls]


def necks(layers: int = LAYERS) -> dict[str, nn.Module]:
    """Every neck; those that take a fixed number of layers only where it is theirs."""
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {
        "LayerGrouper": LayerGrouper(WIDTH, layers, OUT),
        "ViTFPN": ViTFPN(WIDTH, layers, OUT),
    }
    if layers == LAYERS:
        made |= {
            "STAPyramid": STAPyramid(WIDTH, OUT),
            "SpatialTuningAdapter": SpatialTuningAdapter(WIDTH, OUT, LAYERS - 1),
            "SimplePyramid": SimplePyramid(WIDTH, OUT),
            "DPTNeck": DPTNeck(WIDTH, LAYERS, OUT, hidden_sizes=(12, 24, 48, 96)),
        }
    return {name: module.eval() for name, module in made.items()}


def heads(layers: int = LAYERS) -> dict[str, nn.Module]:
    """Every head."""
    torch.manual_seed(0)
    task, cells = [Task("mass")], [Task("cover", kind="dense")]
    made: dict[str, nn.Module] = {"FPNHead": FPNHead(WIDTH, task, layers, fpn_dim=OUT)}
    if layers == LAYERS:
        made |= {
            "PatchMeanHead": PatchMeanHead(WIDTH, task),
            "CLSGatingHead": CLSGatingHead(WIDTH, task, mode="query"),
            "DenseHead": DenseHead(WIDTH, cells, hidden_dim=OUT),
            "HeadEnsemble of 5": HeadEnsemble.from_heads([PatchMeanHead(WIDTH, task) for _ in range(5)]),
        }
    return {name: module.eval() for name, module in made.items()}


def tokens_of(side: int, batch: int, layers: int, device: str = "cpu") -> Tokens:
    """Seeded tokens of a square grid."""
    return Setting(batch, (side, side), WIDTH, layers, device=device).tokens()


def run(module: nn.Module, tokens: Tokens, images: torch.Tensor) -> Callable[[], Any]:
    """What one call of a module is."""
    if isinstance(module, LayerGrouper):
        return lambda: module(tokens.sequence)
    if isinstance(module, SpatialTuningAdapter):
        some = tokens.select(tokens.layers[-3:]) if tokens.layers else three(tokens)
        return lambda: module(some, images).maps
    if isinstance(module, STAPyramid | SimplePyramid):
        last = tokens.last
        return lambda: module(last).maps
    if isinstance(module, ViTFPN | DPTNeck):
        return lambda: module(tokens).maps
    return lambda: module(tokens)


def three(tokens: Tokens) -> Tokens:
    """The last three layers."""
    return Tokens.from_sequence(
        tokens.sequence[-3:], image_size=tokens.image_size, patch_size=PATCH, num_prefix_tokens=tokens.num_prefix_tokens
    )


def everything(side: int, batch: int, device: str = "cpu") -> Calls:
    """All necks and heads, and the ViT while it is small."""
    tokens = tokens_of(side, batch, LAYERS, device)
    images = Setting(batch, (side, side), WIDTH, device=device).images()
    calls = {name: run(module.to(device), tokens, images) for name, module in {**necks(), **heads()}.items()}
    if side * side <= VIT_LIMIT:
        backbone = load_backbone("dinoneck_tiny").to(device)
        calls[VIT] = lambda: backbone(images).sequence
    return calls


def by_tokens(count: int, device: str = "cpu") -> Calls:
    """One image of ``count`` patches."""
    return everything(round(count**0.5), 1, device)


def by_batch(batch: int, device: str = "cpu") -> Calls:
    """Images of 256 patches."""
    return everything(16, batch, device)


def by_layers(layers: int, device: str = "cpu") -> Calls:
    """One image of 1024 patches; the modules that take any number of layers."""
    tokens = tokens_of(32, 1, layers, device)
    images = torch.empty(0)
    made = {
        name: module
        for name, module in {**necks(layers), **heads(layers)}.items()
        if name in ("LayerGrouper", "ViTFPN", "FPNHead")
    }
    return {name: run(module.to(device), tokens, images) for name, module in made.items()}


def by_heads(count: int, device: str = "cpu") -> Calls:
    """Four images of 256 patches; k heads together and one after the other."""
    tokens = tokens_of(16, 4, 1, device)
    torch.manual_seed(0)
    task = [Task("mass")]
    kinds: dict[str, list[Any]] = {
        "PatchMeanHead": [PatchMeanHead(WIDTH, task).to(device).eval() for _ in range(count)],
        "CLSGatingHead": [CLSGatingHead(WIDTH, task, mode="query").to(device).eval() for _ in range(count)],
    }
    calls: Calls = {}
    for name, members in kinds.items():
        together = HeadEnsemble.from_heads(members).eval()
        calls[f"{name} × k, HeadEnsemble"] = lambda together=together: together.predict(tokens)
        calls[f"{name} × k{LOOP}"] = lambda members=members: [head.predict(tokens) for head in members]
    return calls


SIDES = (10, 18, 32, 56, 100, 178, 316)
AXES = (
    Axis("tokens N", f"batch 1, C {WIDTH}, D {OUT}", [side * side for side in SIDES], 3000, by_tokens),
    Axis("layers L", f"N 1024, C {WIDTH}, D {OUT}", [1, 2, 3, 6, 12, 24], 3, by_layers),
    Axis("batch B", f"N 256, C {WIDTH}, D {OUT}", [1, 2, 4, 8, 16, 32, 64], 4, by_batch),
    Axis("heads k", f"batch 4, N 256, C {WIDTH}", [1, 2, 5, 10, 25, 50, 100], 5, by_heads),
)
