"""What exports refuse: formats, sizes, dtypes, heads without a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dinoneck import (
    Backbone,
    CheckpointError,
    CLSGatingHead,
    ConfigError,
    HeadCheckpoint,
    PatchMeanMLP,
    Task,
    load_backbone,
)
from dinoneck.export import export_head, export_model
from tests import kit
from tests.refusals import Row


def model(
    head: Any = None, name: str = "m.onnx", backbone: Backbone | None = None, **options: Any
) -> Any:
    """Export with the first block of the tiny backbone."""

    def call(folder: Path) -> Any:
        own = backbone or load_backbone("dinoneck_tiny", layers=[0])
        return export_model(head or kit.head(), folder / name, backbone=own, **options)

    return call


def alone(module: Any, backbone: Backbone | None = None, **options: Any) -> Any:
    checkpoint = HeadCheckpoint.from_module(module, backbone=backbone)
    return lambda folder: export_head(checkpoint, folder / "h.pt2", format="pt2", **options)


def heavy() -> Any:
    head = kit.head()
    torch.nn.init.constant_(head.get_parameter("mlps.0.hidden.weight"), 1e6)
    return head


GATE = CLSGatingHead(64, [Task("a")], num_patches=6, hidden_dim=8)
ROWS: list[Row] = [
    (model(format="onxx"), ConfigError, ("'onxx'", "'onnx'")),
    (model(backbone=load_backbone("dinoneck_tiny", dtype=torch.bfloat16)), ConfigError, "bfloat16"),
    (model(name="no/m.pt2", format="pt2", check=False, size=(32, 32)), CheckpointError, "m.pt2"),
    (model(kit.head().half(), half=True), ConfigError, "float16"),
    (model(heavy(), half=True, size=(32, 32)), CheckpointError, "1e+06"),
    (model(GATE, format="pt2"), CheckpointError, "size="),
    (
        lambda folder: export_head([kit.head(), kit.head(Task("b"))], folder / "m"),
        ConfigError,
        "2 heads",
    ),  # type: ignore
    (alone(PatchMeanMLP(4, 2)), CheckpointError, "PatchMeanMLP"),
    (alone(kit.head()), CheckpointError, "does not state"),
]
