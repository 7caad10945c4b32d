"""Whole models of real architectures and of every head, as ONNX and as programs, at sizes never traced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.export.runtimes import openvino
from tests.kit import randomised
from tests.unit.export.test_export_model import MASS, STATE, assert_answers, run_onnx
from torch import Tensor, nn

from dinoneck import (
    Backbone,
    CLSGatingHead,
    DenseHead,
    FPNHead,
    HeadCheckpoint,
    HeadEnsemble,
    PatchMeanHead,
    Predictor,
    PyramidHead,
    TargetTransform,
    Task,
    load_backbone,
)
from dinoneck.data import Preprocessing
from dinoneck.export import export_model

pytestmark = pytest.mark.campaign
MAPS = [
    Task("ndvi", kind="dense", transform=TargetTransform(mean=0.4, std=0.2)),
    Task("plants", kind="density", activation="softplus"),
    Task("class", dim=3, kind="segmentation"),
]
PARTS = Task("parts", dim=2, kind="ratio")
NECK = {"type": "simple_pyramid", "out_channels": 8, "scales": [2, 1, 0.5]}
GRIDS = [(1, 7, 3), (3, 4, 9)]  # batch, rows, cols: neither traced nor in the check
NAMES_INSIDE = [Task(name) for name in ("images", "mean", "linear", "add", "view", "cat")]

HEADS: dict[str, Callable[[], list[nn.Module]]] = {
    "resized gate": lambda: [CLSGatingHead(64, [MASS, STATE], "resized", (4, 6), 8)],
    "dense": lambda: [DenseHead(64, [*MAPS, PARTS], 8)],
    "fpn": lambda: [
        FPNHead(64, [MASS, STATE, *MAPS], num_layers=2, layer_indices=(0, 1), fpn_dim=8)
    ],
    "pyramid": lambda: [PyramidHead(64, [MASS, PARTS, *MAPS], NECK, tower_depth=1)],
    "several": lambda: [
        HeadEnsemble.from_heads(
            [
                FPNHead(64, [MASS], num_layers=2, layer_indices=(1, 0), fpn_dim=8),
                PatchMeanHead(64, [MASS, STATE], 8),
                CLSGatingHead(64, [MASS], "query", hidden_dim=8),
            ],
            layers=[(1, 0), (1,), (1,)],
        )
    ],
    "names of nodes": lambda: [PatchMeanHead(64, NAMES_INSIDE, 8)],
}
# name, library, positions, whether height and width are free
BACKBONES = {
    "DINOv3, timm": ("vit_small_patch16_dinov3", "timm", "native", True),
    "DINOv3, transformers": ("vit_small_patch16_dinov3", "transformers", "native", True),
    "DINOv2, timm": ("vit_small_patch14_dinov2", "timm", "native", True),
    "DINOv2, transformers": ("vit_small_patch14_dinov2", "transformers", "native", True),
    "DINOv2 with registers, transformers": (
        "vit_small_patch14_reg4_dinov2",
        "transformers",
        "native",
        False,
    ),
    "TIPSv2": ("tipsv2_b14", "timm", "official", True),
    "DINOv2, official positions": ("vit_small_patch14_dinov2", "timm", "official", False),
}


def run_openvino(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return a function that runs a file of images in OpenVINO."""
    run_arrays = openvino(path)

    def run(images: Tensor) -> dict[str, Tensor]:
        outputs = run_arrays({"images": images.numpy()})
        return {"mass": torch.from_numpy(outputs["mass"])}

    return run


def assert_same(
    run: Callable[[Tensor], dict[str, Tensor]], predictor: Predictor, grids: list[Any]
) -> None:
    """At images of the predictor's patches, which keep their own size."""
    height, width = predictor.backbone.adapter.patch_size
    for batch, rows, cols in grids:
        images = torch.rand(batch, 3, rows * height, cols * width)
        assert_answers(run(images), predictor, images)


@pytest.mark.parametrize("name", HEADS)
def test_every_head(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    backbone = load_backbone("dinoneck_tiny", layers=[0, 1])
    heads = [randomised(head) for head in HEADS[name]()]
    predictor = Predictor(heads, backbone)
    for form in ("pt2", "onnx"):
        done = export_model(heads, tmp_path / form, format=form, backbone=backbone, maps=True)  # type: ignore[arg-type]
        assert done.size is None and done.parity is not None and done.parity.largest < 1e-4
        run = (
            run_onnx(tmp_path / form)[0]
            if form == "onnx"
            else torch.export.load(tmp_path / form).module()
        )
        assert_same(run, predictor, GRIDS)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_architecture(name: str, tmp_path: Path) -> None:
    """Two blocks of each, random weights: positions and prefix are what differs, and they come before the blocks."""
    pytest.importorskip("onnxscript")
    architecture, source, positions, free = BACKBONES[name]
    if source == "transformers":
        pytest.importorskip("transformers")
    backbone: Backbone = load_backbone(
        architecture,
        source=source,  # type: ignore[arg-type]
        pretrained=False,
        layers=[0, 1],
        pos_embed=positions,  # type: ignore[arg-type]
    )
    head = randomised(PatchMeanHead(backbone.embed_dim, [MASS], 8))
    patch = backbone.adapter.patch_size[0]
    own = Preprocessing(patch_size=patch, size=(5 * patch, 8 * patch))
    checkpoint = HeadCheckpoint.from_module(head, backbone=backbone, preprocess=own)
    with (
        contextlib.nullcontext()
        if free
        else pytest.warns(UserWarning, match="only: .* plain numbers")
    ):
        done = export_model(checkpoint, tmp_path / "m.onnx", backbone=backbone)
    assert done.size == (None if free else own.size)
    # 37 x 37: DINOv2's trained grid
    grids = [*GRIDS, (2, 37, 37)] if free else [(1, 5, 8), (4, 5, 8)]
    unsized = Preprocessing(patch_size=patch)
    predictor = Predictor(head, backbone, preprocess=unsized)
    assert_same(run_onnx(tmp_path / "m.onnx")[0], predictor, grids)
    pytest.importorskip("openvino")
    assert_same(run_openvino(tmp_path / "m.onnx"), predictor, grids)
