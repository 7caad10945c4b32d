"""What backbones with necks in the detectors of other libraries refuse."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch
from torch import nn

from dinoneck import ConfigError, GridError, ShapeError, SimplePyramid, ViTFPN
from dinoneck.interop import PyramidEncoder, TorchvisionBackbone, attach_to_detr, find_encoder
from tests import kit
from tests.refusals import Row


class Detr(nn.Module):
    """What a D-FINE or an RT-DETR has that an encoder is attached to, for so many levels."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.backbone = nn.Identity()
        self.encoder_input_proj = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(levels))


def pyramid(**options: Any) -> SimplePyramid:
    return SimplePyramid(64, 8, **options)


def encoder(neck: Any = None, **options: Any) -> PyramidEncoder:
    return PyramidEncoder(kit.backbone(), pyramid() if neck is None else neck, **options)


def without_transformers() -> Any:
    name = "dinoneck.interop.transformers"
    with kit.without("transformers"), pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)


ROWS: list[Row] = [
    # a backbone and its neck
    (lambda: encoder(nn.Identity()), ConfigError, ("Identity()", "embed_dim=64")),
    (lambda: encoder(SimplePyramid(32, 8)), ConfigError, ("embed_dim=64", "it has 32")),
    (lambda: encoder(pyramid(patch_size=14)), ConfigError, ("patch_size=(16, 16)", "(14, 14)")),
    (lambda: encoder(ViTFPN(64, 2, fpn_dim=8)), ConfigError, ("num_layers=1", "it has 2")),
    (lambda: encoder(features_at=0.0), ConfigError, "features_at is 0.0"),
    (lambda: encoder(features_at=1.5), ConfigError, "features_at is 1.5"),
    (lambda: encoder(features_at=0.1234), ConfigError, "features_at is 0.1234"),
    (
        lambda: encoder(features_at=0.5)(torch.zeros(1, 3, 48, 64)),
        GridError,
        ("48x64", "32x32"),
    ),
    (
        lambda: encoder(features_at=0.5)(torch.zeros(3, 64, 64)),
        ShapeError,
        "(3, 64, 64)",
    ),
    # detectors
    (
        lambda: TorchvisionBackbone(kit.backbone(), pyramid(), features_at=0.75),
        ConfigError,
        "5.33",
    ),
    (lambda: find_encoder(nn.Linear(1, 1)), ConfigError, ("Linear", "none")),
    (lambda: find_encoder(nn.ModuleList([encoder(), encoder()])), ConfigError, "2 encoders: 0, 1"),
    (lambda: attach_to_detr(Detr(4), pyramid()), ConfigError, "SimplePyramid"),  # type: ignore[arg-type]
    (lambda: attach_to_detr(nn.Linear(1, 1), encoder()), ConfigError, "Linear"),
    (lambda: attach_to_detr(Detr(3), encoder()), ConfigError, ("3 levels", "gives 4")),
    (
        lambda: attach_to_detr(Detr(2), encoder(pyramid(scales=(4.0, 1.0)))),
        ConfigError,
        "(4.0, 16.0)",
    ),
    (without_transformers, ImportError, "dinoneck[hf]"),
]
