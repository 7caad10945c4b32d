"""D-FINE and RT-DETRv2 of transformers, on a dinoneck encoder or on HGNetV2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    DFineConfig,
    DFineForObjectDetection,
    PretrainedConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    TimmBackboneConfig,
)
from transformers.utils.logging import disable_progress_bar

from dinoneck.data.photos import IMAGENET_MEAN, IMAGENET_STD
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.interop import DinoneckBackboneConfig, find_encoder, register
from examples.detection import dfine_configs
from examples.detection.detectors import recipe
from examples.detection.options import HGNET, Design

MODELS = {"dfine": DFineForObjectDetection, "rtdetrv2": RTDetrV2ForObjectDetection}
HGNET_MAPS = (1, 2, 3)
STRIDES = (8, 16, 32)
_ROUNDING = 1e-6
CONFIGS = {"dfine": DFineConfig, "rtdetrv2": RTDetrV2Config}
Parts = tuple[nn.Module, Design, tuple[float, ...], tuple[float, ...]]


def built(design: Design) -> Parts:
    """Return the model with first weights, its design, and the mean and std that it is to see.

    Raises:
        ConfigError: if neck, size and detector do not fit.
    """
    disable_progress_bar()
    config = config_of(design)
    model = MODELS[design.detector](config)
    _check_cells(
        design, STRIDES if design.backbone.startswith(HGNET) else find_encoder(model).strides, config.num_queries
    )
    return _with_statistics(model, design)


def restored(design: Design, folder: Path) -> Parts:
    """Return a saved model.

    Raises:
        CheckpointError: if its weights do not fit its config.
    """
    register()
    disable_progress_bar()
    try:
        model, told = MODELS[design.detector].from_pretrained(folder, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no {design.detector} that loads: {error}") from error
    wrong = {key: names for key, names in told.items() if names and key != "error_msgs"}
    if wrong:
        raise CheckpointError(f"{folder}: weights and config do not fit: {wrong}")
    return _with_statistics(model, design)


def config_of(design: Design) -> PretrainedConfig:
    """Return the detector's configuration."""
    register()
    own = _variant(design)
    own |= {"id2label": dict(enumerate(design.classes)), "label2id": {name: i for i, name in enumerate(design.classes)}}
    if design.num_queries is not None:
        own["num_queries"] = design.num_queries
    if design.encoder_layers is not None:
        own["encoder_layers"] = design.encoder_layers
    width = own.get("encoder_hidden_dim", 256)
    if design.backbone.startswith(HGNET):
        backbone, own["encoder_in_channels"] = _convolutional(design)
    else:
        own_recipe = recipe(design, width)
        backbone = DinoneckBackboneConfig(
            backbone=own_recipe.backbone,
            layers=own_recipe.layers,
            neck=own_recipe.neck,
            neck_config=own_recipe.neck_config,
            pretrained=own_recipe.pretrained,
            seed=own_recipe.seed,
            features_at=own_recipe.features_at,
        )
        _check_levels(design, backbone.recipe.sketch().strides)
        own["encoder_in_channels"] = [width] * 3
    return CONFIGS[design.detector](backbone_config=backbone, freeze_backbone_batch_norms=False, **own)


def _check_levels(design: Design, strides: Sequence[float]) -> None:
    if len(strides) != len(STRIDES) or any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
        raise ConfigError(
            f"the {design.neck} gives levels of strides {tuple(strides)}; {design.detector} reads {len(STRIDES)}, each "
            "twice the one before: change --neck-option"
        )


def _check_cells(design: Design, strides: Sequence[float], queries: int) -> None:
    """Every level must be half the one before, and together they must hold as many cells as there are queries."""
    height, width = design.size
    if any(abs(side / strides[-1] - round(side / strides[-1])) > _ROUNDING for side in design.size):
        near = "x".join(f"{math.ceil(side / strides[-1]) * strides[-1]:g}" for side in design.size)
        raise ConfigError(
            f"--size is {height}x{width}; {design.detector} halves its maps to stride {strides[-1]:g} and back: both "
            f"sides must be multiples of it, such as {near}"
        )
    cells = sum(round(height / stride) * round(width / stride) for stride in strides)
    if cells < queries:
        raise ConfigError(
            f"--size {height}x{width} gives {cells} cells, and {queries} of them are to become queries: take a larger "
            "--size or a smaller --num-queries"
        )


def _convolutional(design: Design) -> tuple[PretrainedConfig, list[int]]:
    """HGNetV2 of timm, and the channels of its maps of strides 8, 16 and 32."""
    sizes = {"stock": "hgnetv2_b4", "25m": "hgnetv2_b2", "tiny": "hgnetv2_b0"}
    name = sizes[design.variant] if design.backbone == HGNET else design.backbone
    try:
        with torch.device("meta"):
            channels = timm.create_model(name, features_only=True, out_indices=HGNET_MAPS).feature_info.channels()
    except RuntimeError as error:
        raise ConfigError(
            f"--backbone {name}: {error}; expected one of {', '.join(timm.list_models('hgnetv2*'))}"
        ) from None
    config = TimmBackboneConfig(
        backbone=name,
        use_pretrained_backbone=design.pretrained,
        out_indices=list(HGNET_MAPS),
        freeze_batch_norm_2d=False,
    )
    return config, list(channels)


def _variant(design: Design) -> dict[str, Any]:
    if design.detector != "dfine":
        return {}
    return dict(dfine_configs.config_named(design.variant, len(design.classes)))


def _with_statistics(model: nn.Module, design: Design) -> Parts:
    if design.backbone.startswith(HGNET):
        model.config.backbone_config.use_pretrained_backbone = False  # a saved detector brings its weights
        return model, design, IMAGENET_MEAN, IMAGENET_STD
    preprocess = find_encoder(model).backbone.preprocess
    return model, design, tuple(preprocess.mean), tuple(preprocess.std)
