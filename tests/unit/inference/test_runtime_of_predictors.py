"""The runtime of a Predictor and a Detector: heads of several runtimes fit together, and what they announce."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import kit
from torch import nn

from dinoneck import Backbone, ConfigError, Predictor, STAPyramid
from dinoneck.checkpoint.backbone_part import changed_weights
from dinoneck.detection import DetectionHead, Detector

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra [fast] is not installed"
)


@pytest.fixture
def announced(monkeypatch: pytest.MonkeyPatch) -> list[dict[tuple[int, int], int]]:
    """What backbones are told to expect: (height, width) -> images; the runtime ``auto`` decides by it."""
    calls: list[dict[tuple[int, int], int]] = []
    monkeypatch.setattr(Backbone, "expect_images", lambda self, counts: calls.append(dict(counts)))
    return calls


@needs_openvino
@pytest.mark.usefixtures("shared_programs")
def test_heads_of_two_runtimes_are_one_ensemble_in_one_pass(tmp_path: Path) -> None:
    files = []
    for seed, runtime in enumerate(("torch", "openvino")):
        backbone = kit.backbone(runtime=runtime)
        file = tmp_path / f"{runtime}.safetensors"
        files.append(kit.saved_head(file, kit.head(seed=seed), backbone=backbone))
    assert Predictor(files).one(kit.images(1)[0])["mass"] > 0
    assert len(Predictor({"a": files[0], "b": files[1]}).passes) == 1


def trained_backbone(kind: str) -> Backbone:
    """A backbone with weights of its own, frozen again; of LoRA the first block alone is read."""
    if kind == "lora":
        backbone = kit.backbone(layers=[0])
        backbone.add_lora(2)
        std = 1.0
    else:
        backbone = kit.backbone()
        backbone.unfreeze_last(1)
        std = 0.2
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=std)
    return backbone.freeze()


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("kind", ["lora", "unfrozen"])
def test_weights_of_the_file_are_in_the_program(tmp_path: Path, kind: str) -> None:
    backbone = trained_backbone(kind)
    weights = changed_weights(backbone)
    file = tmp_path / "head.safetensors"
    kit.saved_head(file, kit.randomised(kit.head()), backbone=backbone, backbone_weights=weights)
    image = kit.images(1)[0]
    expected = Predictor(file).one(image)["mass"]

    predictor = Predictor(file, runtime="openvino")

    assert predictor.backbone.runtime == "openvino"
    assert predictor.one(image)["mass"] == pytest.approx(expected, rel=1e-4)
    untrained = kit.backbone(layers=backbone.layers)
    plain = kit.saved_head(
        tmp_path / "plain.safetensors", kit.randomised(kit.head()), backbone=untrained
    )
    assert Predictor(plain).one(image)["mass"] != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        pytest.param({}, {(32, 48): 6}, id="none"),
        pytest.param({"tta": "flip4"}, {(32, 48): 6 * 4}, id="flip4"),
        # of the six views two are quarter turns, which swap the sides
        pytest.param({"tta": "d6"}, {(32, 48): 6 * 4, (48, 32): 6 * 2}, id="d6"),
    ],
)
def test_a_call_tells_its_backbone_how_many_images_follow(
    tmp_path: Path,
    announced: list[dict[tuple[int, int], int]],
    options: dict[str, Any],
    counts: dict[tuple[int, int], int],
) -> None:
    predictor = Predictor(kit.saved_head(tmp_path / "h.safetensors"), **options)

    predictor(kit.images(6))

    assert announced == [counts]


def test_a_larger_announcement_holds_over_several_calls(
    tmp_path: Path, announced: list[dict[tuple[int, int], int]]
) -> None:
    predictor = Predictor(kit.saved_head(tmp_path / "h.safetensors"))
    predictor.expect_images(9)
    predictor(kit.images(5))  # 4 are left
    predictor(kit.images(4))
    assert announced == [{(32, 48): 9}]
    predictor(kit.images(2))
    assert announced == [{(32, 48): 9}, {(32, 48): 2}]
    with pytest.raises(ConfigError, match="count is -1"):
        predictor.expect_images(-1)


def test_tiles_are_announced_for_all_images_to_come(
    tmp_path: Path, announced: list[dict[tuple[int, int], int]]
) -> None:
    """Of 64 x 96 px in tiles of 32 x 48 px, each brought to the 32 x 48 px of the head."""
    predictor = Predictor(kit.saved_head(tmp_path / "h.safetensors"), tile=(32, 48), batch_size=1)
    predictor(kit.images(3, 64, 96))
    assert announced == [{}, {(32, 48): 12}, {(32, 48): 8}, {(32, 48): 4}]


def test_images_of_their_own_sizes_are_not_announced(
    announced: list[dict[tuple[int, int], int]],
) -> None:
    Predictor(kit.head(), kit.backbone())(kit.images(2))
    assert announced == [{}]


def test_passes_of_one_backbone_are_announced_together(
    tmp_path: Path, announced: list[dict[tuple[int, int], int]]
) -> None:
    backbone = kit.backbone()
    heads = {}
    for size in ((32, 48), (64, 48)):
        heads[f"of_{size[0]}"] = kit.saved_head(
            tmp_path / f"{size[0]}.safetensors", size=size, backbone=backbone
        )
    Predictor(heads, backbone)(kit.images(2))
    assert announced == [{(32, 48): 2, (64, 48): 2}]


def test_images_to_come_are_announced_to_the_detector_of_a_predictor(
    tmp_path: Path, announced: list[dict[tuple[int, int], int]]
) -> None:
    head = DetectionHead("fcos", ("red",), STAPyramid(64, 32))
    Detector(head, kit.backbone(), size=(64, 96)).save(tmp_path / "d.safetensors")
    predictor = Predictor(tmp_path / "d.safetensors")

    predictor.expect_images(50)
    predictor(list(kit.images(2, 64, 96)))

    assert {(64, 96): 50} in announced


def test_a_detector_announces_the_size_of_its_features(
    announced: list[dict[tuple[int, int], int]],
) -> None:
    neck = STAPyramid(64, 32)
    head = DetectionHead("fcos", ("red",), neck, features_at=0.5)
    Detector(head, kit.backbone(), size=(128, 192)).eval().predict(list(kit.images(3)))
    assert announced == [{(64, 96): 3}]
