"""A head that its first prediction would refuse is refused when it is saved, and no other one is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import kit
from tests.unit.detection.test_tuned_detector import detector_on
from torch import Tensor

from dinoneck import (
    Backbone,
    CheckpointError,
    CLSGatingHead,
    DPTHead,
    DPTNeck,
    FPNHead,
    HeadCheckpoint,
    HeadEnsemble,
    LinearHead,
    MaskHead,
    PatchMeanHead,
    Predictor,
    ShapeError,
    SimplePyramid,
    Task,
    load_backbone,
    load_head,
    registry,
    save_head,
    wrap_backbone,
)
from dinoneck.data import Preprocessing
from dinoneck.detection import Detector

MASS = [Task("mass", unit="g")]


def test_views_of_a_module_that_is_no_head_are_only_recorded() -> None:
    neck = SimplePyramid(64, 8)

    checkpoint = HeadCheckpoint.from_module(neck, backbone=kit.backbone(), tta="flip4")

    assert checkpoint.meta["tta"]["ops"] == "flip4"


CLASSES = [Task("crop", dim=3, kind="segmentation")]
SIZE = (64, 96)

HEADS: dict[str, Callable[[], Any]] = {
    "mean of one layer": lambda: PatchMeanHead(64, MASS),
    "pyramid of two layers": lambda: FPNHead(64, MASS, num_layers=2),
    "pyramid of patches of 14 px": lambda: FPNHead(64, MASS, num_layers=1, patch_size=14),
    "queries on two layers": lambda: MaskHead(64, CLASSES, num_layers=2, dim=32),
    "several queries on two layers": lambda: HeadEnsemble(
        [MaskHead(64, CLASSES, num_layers=2, dim=32) for _ in range(2)]
    ),
    "linear on two layers": lambda: LinearHead(64, MASS, num_layers=2),
    "gate of 24 places": lambda: CLSGatingHead(64, MASS, num_patches=24, mode="mlp"),
    "gate of 10 places": lambda: CLSGatingHead(64, MASS, num_patches=10, mode="mlp"),
    "dense prediction on two layers": lambda: DPTHead(64, CLASSES, neck=DPTNeck(64, num_layers=2)),
}


def predicts(head: Any, backbone: Backbone, preprocess: Preprocessing) -> bool:
    try:
        Predictor(head, backbone, preprocess=preprocess)(torch.rand(3, *SIZE))
    except ShapeError:
        return False
    return True


@pytest.mark.parametrize("size", [SIZE, (32, 32)])
@pytest.mark.parametrize("layers", [[5], [2, 5]], ids=str)
@pytest.mark.parametrize("name", HEADS)
def test_what_is_saved_predicts(
    name: str, layers: list[int], size: tuple[int, int], tmp_path: Path
) -> None:
    head = HEADS[name]()
    backbone = load_backbone("dinoneck_tiny", layers=layers)
    preprocess = backbone.preprocess.changed(size=size)
    file = tmp_path / "h.safetensors"
    if predicts(head, backbone, preprocess):
        save_head(file, head, backbone=backbone, preprocess=preprocess)
        Predictor(file)(torch.rand(3, *SIZE))
    else:
        with pytest.raises(CheckpointError):
            save_head(file, head, backbone=backbone, preprocess=preprocess)


@pytest.mark.parametrize("name", ["mean of one layer", "gate of 24 places", "gate of 10 places"])
def test_images_of_any_size_refuse_no_head(name: str, tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    save_head(
        tmp_path / "h.safetensors",
        HEADS[name](),
        backbone=backbone,
        preprocess=backbone.preprocess,
    )
    assert type(load_head(tmp_path / "h.safetensors")) is type(HEADS[name]())


def test_the_reason_of_the_head_is_named(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    with pytest.raises(CheckpointError, match=r"patches are 16 px.*built for 14 px"):
        save_head(
            tmp_path / "h.safetensors", HEADS["pyramid of patches of 14 px"](), backbone=backbone
        )
    assert not (tmp_path / "h.safetensors").exists()


def test_channels_of_images_are_those_of_the_backbone(tmp_path: Path) -> None:
    preprocess = Preprocessing(16, mean=(0.5,) * 4, std=(0.2,) * 4, size=SIZE)
    with pytest.raises(CheckpointError, match=r"4 channels.*the backbone takes 3"):
        save_head(
            tmp_path / "h.safetensors",
            kit.head(),
            backbone=load_backbone("dinoneck_tiny"),
            preprocess=preprocess,
        )


@registry.register
class OfOneGrid(PatchMeanHead):
    """A head of a user's that takes one grid."""

    def forward(self, tokens: Any, **plain: Any) -> dict[str, Tensor]:
        if tuple(tokens.grid) != (2, 2):
            raise ShapeError(f"the grid is {tokens.grid}")
        return super().forward(tokens, **plain)


@registry.register
class LooksAtValues(PatchMeanHead):
    """A head of a user's that needs values."""

    def forward(self, tokens: Any, **plain: Any) -> dict[str, Tensor]:
        if float(tokens.sequence[0].abs().max()) > 1e9:
            raise ShapeError("too large")
        return super().forward(tokens, **plain)


def test_a_head_of_the_users_that_looks_at_values_is_saved(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    recipe = backbone.preprocess.changed(size=SIZE)
    file = tmp_path / "h.safetensors"
    save_head(file, LooksAtValues(64, MASS), backbone=backbone, preprocess=recipe)
    assert HeadCheckpoint.load(file).head_type == "looks_at_values"


def test_a_head_of_the_users_of_one_grid_is_refused_where_the_size_is_known(
    tmp_path: Path,
) -> None:
    backbone = load_backbone("dinoneck_tiny")
    file = tmp_path / "h.safetensors"
    save_head(file, OfOneGrid(64, MASS), backbone=backbone, preprocess=backbone.preprocess)
    recipe = backbone.preprocess.changed(size=(32, 32))
    save_head(file, OfOneGrid(64, MASS), backbone=backbone, preprocess=recipe)
    recipe = backbone.preprocess.changed(size=SIZE)
    with pytest.raises(CheckpointError, match="the grid is"):
        save_head(file, OfOneGrid(64, MASS), backbone=backbone, preprocess=recipe)


@pytest.mark.parametrize("views", ["flip4", "d6"])
def test_views_of_objects_are_refused(views: str, tmp_path: Path) -> None:
    head = MaskHead(
        64, [Task("leaf", dim=1, kind="instances")], num_layers=1, num_queries=4, dim=32
    )
    with pytest.raises(CheckpointError, match=r"'leaf' predicts objects"):
        save_head(
            tmp_path / "h.safetensors", head, backbone=load_backbone("dinoneck_tiny"), tta=views
        )


def test_turned_views_of_one_grid_are_refused(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    recipe = backbone.preprocess.changed(size=SIZE)
    file = tmp_path / "h.safetensors"
    head = HEADS["gate of 24 places"]()
    with pytest.raises(CheckpointError, match=r"4 rows x 6 cols.*tta='flip4'"):
        save_head(file, head, backbone=backbone, preprocess=recipe, tta="d6")
    save_head(file, head, backbone=backbone, preprocess=recipe, tta="flip4")
    Predictor(file)(torch.rand(3, *SIZE))


def test_turned_views_of_patches_that_are_no_squares_are_refused(tmp_path: Path) -> None:
    model: Any = load_backbone("dinoneck_tiny").adapter.model
    record = {**wrap_backbone(model).record(), "patch_size": [16, 8]}
    with pytest.raises(CheckpointError, match=r"16x8 px are not square"):
        save_head(tmp_path / "h.safetensors", kit.head(), backbone=record, tta="d6")


def test_a_detectors_file_that_prepares_images_otherwise_is_refused(tmp_path: Path) -> None:
    detector = detector_on(load_backbone("dinoneck_tiny"))
    save_head(
        tmp_path / "d.safetensors",
        detector.head,
        backbone=detector.backbone,
        preprocess=detector.preprocess.changed(resize="crop"),
    )
    with pytest.raises(CheckpointError, match=r"resize='crop'.*'stretch'"):
        Detector.load(tmp_path / "d.safetensors")


def test_a_detectors_file_of_a_size_that_its_levels_do_not_divide_is_refused(
    tmp_path: Path,
) -> None:
    detector = detector_on(load_backbone("dinoneck_tiny"))
    size = (32, 40)
    with pytest.raises(CheckpointError, match="32x40.*multiples of"):
        save_head(
            tmp_path / "d.safetensors",
            detector.head,
            backbone=detector.backbone,
            preprocess=detector.preprocess.changed(size=size),
        )
