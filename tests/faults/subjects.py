"""The sound head files that the campaigns damage, and what each of them predicts."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dinoneck import (
    CLSGatingHead,
    FPNHead,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    PatchMeanMLP,
    Predictor,
    PyramidHead,
    TargetTransform,
    Task,
    Tokens,
    load_backbone,
)

TINY = "dinoneck_tiny"
TRAINING = {
    "seed": 7,
    "folds": 5,
    "fold": 0,
    "epochs": 40,
    "data": {"name": "pasture", "revision": "2024-10"},
    "metrics": {"R2": 0.75, "R2 over folds": {"mean": 0.7, "sd": 0.05}},
}


def total(**options: Any) -> Task:
    transform = TargetTransform(area=0.25, log1p=True, mean=2.0, std=0.5)
    return Task("total", unit="g", minimum=0.0, transform=transform, **options)


def _records(layers: list[int]) -> dict[str, Any]:
    backbone = load_backbone(TINY, layers=layers)
    preprocess = backbone.preprocess.changed(size=(32, 64), resize="crop", blur=5)
    facts = {"training": TRAINING, "license": "Apache-2.0", "tta": "flip4", "extra": {"note": ["spring", 1, None]}}
    return {"backbone": backbone, "preprocess": preprocess, **facts}


def _facts() -> HeadCheckpoint:
    shares = Task("shares", dim=3, kind="ratio", labels=("clover", "dead", "grün"))
    return HeadCheckpoint.from_module(PatchMeanHead(64, [total(), shares], hidden_dim=2), **_records([2]))


def _fpn() -> HeadCheckpoint:
    tasks = [total(), Task("cover", kind="dense")]
    head = FPNHead(64, tasks, num_layers=2, layer_indices=(1, 3), fpn_dim=4, num_levels=2)
    return HeadCheckpoint.from_module(head, **_records([1, 3]))


def _gating() -> HeadCheckpoint:
    kinds = Task("kind", dim=3, kind="classification", labels=("a", "b", "c"))
    return HeadCheckpoint.from_module(CLSGatingHead(64, [total(), kinds], mode="query", hidden_dim=2), **_records([5]))


def _ensemble() -> HeadCheckpoint:
    members = [PatchMeanHead(64, [total()], hidden_dim=width).eval() for width in (1, 2)]
    return HeadCheckpoint.from_module(HeadEnsemble.from_heads(members, weights=[1.0, 3.0]), **_records([5]))


def _lora() -> HeadCheckpoint:
    backbone = load_backbone(TINY).add_lora(rank=1)
    for parameter in backbone.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    return HeadCheckpoint.from_module(PatchMeanHead(64, [Task("total")], hidden_dim=2), backbone=backbone)


def _pyramid() -> HeadCheckpoint:
    neck = {"type": "simple_pyramid", "out_channels": 4, "scales": [1.0, 0.5]}
    return HeadCheckpoint.from_module(PyramidHead(8, [total()], neck=neck))


MADE: dict[str, Callable[[], HeadCheckpoint]] = {
    "smallest": lambda: HeadCheckpoint.from_module(PatchMeanMLP(2, 1, 1)),
    "patch_mean with all records": _facts,
    "fpn": _fpn,
    "cls_gating": _gating,
    "ensemble": _ensemble,
    "LoRA": _lora,
    "pyramid": _pyramid,
}


@functools.cache
def files() -> dict[str, bytes]:
    """Return name -> the bytes of a sound head file; the same bytes in every process."""
    made = {}
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, make in MADE.items():
            make().save(Path(folder, "head"))
            made[name] = Path(folder, "head").read_bytes()
    return made


@functools.cache
def _tokens(width: int, layers: tuple[int, ...] | None, count: int) -> Tokens:
    """(B, 3 + 2 * 4, D) per layer, always the same; their source is unknown."""
    values = [torch.sin(torch.arange(2 * 11 * width) * (1.0 + i)).reshape(2, 11, width) for i in range(count)]
    return Tokens.from_sequence(values, image_size=(32, 64), patch_size=16, num_prefix_tokens=3, layers=layers)


def predict(module: nn.Module) -> dict[str, Tensor]:
    """What a module predicts from fixed tokens of its own width, or from a fixed (2, D) tensor."""
    with torch.no_grad():
        if isinstance(module, PatchMeanMLP):
            return {"": module(torch.sin(torch.arange(2 * 4 * 2.0)).reshape(2, 4, 2))}
        layers = getattr(module, "layer_indices", None)
        count = getattr(module, "num_layers", None) or 1
        return dict(module.predict(_tokens(module.embed_dim, layers and tuple(layers), count)))  # type: ignore[operator]


@functools.cache
def image() -> Tensor:
    """(3, 32, 64) in 0..1, always the same."""
    return (torch.sin(torch.arange(3 * 32 * 64.0)).reshape(3, 32, 64) + 1) / 2


@functools.cache
def _backbone() -> Any:
    return load_backbone(TINY)


def rows(path: Path) -> list[dict[str, Any]]:
    """What a Predictor of this file returns for the fixed image."""
    return [
        {key: np.asarray(value).tolist() for key, value in row.items()} for row in Predictor(path, _backbone())(image())
    ]
