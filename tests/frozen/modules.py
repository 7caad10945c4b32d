"""Frozen files of necks and building blocks, which ``save_pretrained`` writes: one of every registered class.

The inputs are stored as a list of tensors; ``takes`` says how the module is called with them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck import (
    Bins,
    CLSGating,
    DPTNeck,
    HeadCheckpoint,
    LayerGrouper,
    PatchMeanMLP,
    SimplePyramid,
    SpatialTuningAdapter,
    STAPyramid,
    ViTFPN,
)
from dinoneck.points import DecoderInjection, GatedFusion
from tests import kit
from tests.frozen.folder import FrozenFile, VersionFolder, is_frozen
from tests.frozen.heads import WIDTH, TokenShape, describe

FOLDER = "modules"
POINTS = 6
POINT_WIDTH = 4  # channels of a point


@dataclass(frozen=True)
class ModuleToFreeze:
    """A module that is written once.

    Attributes:
        name: of its file, without the suffix: its registered name, and what is special.
        build: returns it; its parameters are drawn afterwards.
        takes: ``patches``: a tensor (B, N, C); ``layers``: a list of them; ``pair``: CLS (B, C) and
            patches; ``tokens``; ``tokens and images``; ``points``: their features, tokens at the
            same points, and which of them have tokens; ``maps``: a tensor (B, C, rows, cols).
        layers: of the tokens.
    """

    name: str
    build: Callable[[], nn.Module]
    takes: str
    layers: int = 1

    @property
    def file(self) -> str:
        """Its path in the folder of a version."""
        return f"{FOLDER}/{self.name}.safetensors"

    def inputs(self) -> list[Tensor]:
        """Return random inputs of a fixed seed."""
        generator = torch.Generator().manual_seed(0)
        shape = self._shape
        patches = shape.rows * shape.cols

        def draw(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator)

        if self.takes == "maps":
            return [draw(shape.batch, WIDTH, shape.rows, shape.cols)]
        if self.takes == "pair":
            return [draw(shape.batch, WIDTH), draw(shape.batch, patches, WIDTH)]
        if self.takes == "points":
            has_tokens = torch.arange(POINTS).expand(shape.batch, -1) % 3 != 1
            features = draw(shape.batch, POINTS, POINT_WIDTH)
            return [features, draw(shape.batch, POINTS, WIDTH), has_tokens.contiguous()]
        if self.takes in ("patches", "layers"):
            return [draw(shape.batch, patches, WIDTH) for _ in range(self.layers)]
        sequences = shape.draw()
        if self.takes == "tokens and images":
            sequences.append(draw(shape.batch, 3, 16 * shape.rows, 16 * shape.cols))
        return sequences

    @property
    def _shape(self) -> TokenShape:
        return TokenShape(layers=tuple(range(self.layers)), batch=1)


MODULES = (
    ModuleToFreeze("bins", lambda: Bins(0.5, 20.0, WIDTH, "mixed", 0.01), "maps"),
    ModuleToFreeze("patch_mean_mlp", lambda: PatchMeanMLP(WIDTH, 4, 2, "softplus"), "patches"),
    ModuleToFreeze("cls_gating_pool", lambda: CLSGating(WIDTH, 6), "pair"),
    ModuleToFreeze("cls_gating_pool-query", lambda: CLSGating(WIDTH, mode="query"), "pair"),
    ModuleToFreeze(
        "layer_grouper",
        lambda: LayerGrouper(WIDTH, 3, 4, 2, [[2, 0], [1]], False, None, "softmax"),
        "layers",
        layers=3,
    ),
    ModuleToFreeze(
        "layer_grouper-pixel",
        lambda: LayerGrouper(WIDTH, 3, 4, 2, fusion="pixel"),
        "layers",
        layers=3,
    ),
    ModuleToFreeze("vit_fpn", lambda: ViTFPN(WIDTH, 2, 4, num_levels=2), "tokens", layers=2),
    ModuleToFreeze(
        "vit_fpn-everything",
        lambda: ViTFPN(
            WIDTH,
            3,
            4,
            num_levels=2,
            fusion="pixel",
            downsample="pool",
            residual_init="zero",
            use_coords=True,
            use_cls_context=True,
        ),
        "tokens",
        layers=3,
    ),
    ModuleToFreeze(
        "simple_pyramid", lambda: SimplePyramid(WIDTH, 4, scales=(2.0, 1.0, 0.5)), "tokens"
    ),
    ModuleToFreeze(
        "dpt_neck",
        lambda: DPTNeck(WIDTH, 2, 4, readout="project", hidden_sizes=(4, 6)),
        "tokens",
        layers=2,
    ),
    ModuleToFreeze(
        "dpt_neck-double",
        lambda: DPTNeck(
            WIDTH,
            2,
            4,
            readout="add",
            hidden_sizes=(4, 6),
            upsample="double",
            align_corners=True,
            unit_bias=False,
        ),
        "tokens",
        layers=2,
    ),
    ModuleToFreeze("sta_pyramid", lambda: STAPyramid(WIDTH, 4), "tokens"),
    ModuleToFreeze(
        "sta_pyramid-everything",
        lambda: STAPyramid(
            WIDTH,
            4,
            pre_norm=True,
            pos_embed=True,
            upsample="bilinear",
            downsample="avgpool",
            strides=(8, 16, 32),
        ),
        "tokens",
    ),
    ModuleToFreeze(
        "spatial_tuning_adapter",
        lambda: SpatialTuningAdapter(WIDTH, 4, num_layers=2, detail_dim=4),
        "tokens and images",
        layers=2,
    ),
    ModuleToFreeze(
        "decoder_injection",
        lambda: DecoderInjection(
            WIDTH, {4: POINT_WIDTH}, zero_init=False, gate="token", target="skip"
        ),
        "points",
    ),
    ModuleToFreeze(
        "gated_fusion", lambda: GatedFusion(WIDTH, POINT_WIDTH, POINT_WIDTH, 4), "points"
    ),
)


def freeze(folder: VersionFolder) -> None:
    """Write the modules that no version has written, and record what they compute."""
    for entry in MODULES:
        if is_frozen(entry.file):
            continue
        module: Any = kit.randomised(entry.build()).eval()
        path = folder.new_path(entry.file)
        module.save_pretrained(path)
        inputs = entry.inputs()
        facts = {
            "takes": entry.takes,
            "layers": entry.layers,
            **describe(HeadCheckpoint.load(path)),
        }
        numbers = {f"input/{number}": x for number, x in enumerate(inputs)}
        for name, value in compute(module, entry.takes, entry.layers, inputs).items():
            numbers[f"result/{name}"] = value
        folder.record(entry.file, facts, numbers)


def compute_recorded(module: Any, file: FrozenFile) -> dict[str, Tensor]:
    """Return what a module computes from the inputs that were recorded with its file."""
    recorded = file.numbers("input")
    inputs = [recorded[str(number)] for number in range(len(recorded))]
    return compute(module, file.facts["takes"], file.facts["layers"], inputs)


@torch.no_grad()
def compute(module: Any, takes: str, layers: int, inputs: list[Tensor]) -> dict[str, Tensor]:
    """Return the outputs of a module, numbered."""
    arguments: list[Any] = list(inputs)
    if takes == "layers":
        arguments = [inputs]
    elif takes in ("tokens", "tokens and images"):
        shape = TokenShape(layers=tuple(range(layers)))
        arguments = [shape.tokens(inputs[:layers]), *inputs[layers:]]
    outputs = kit.leaves(module(*arguments))
    return {str(number): x for number, x in enumerate(outputs)}
