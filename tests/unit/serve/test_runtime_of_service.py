"""The runtime of the service: programs are compiled at the start, for the sizes that the heads fix."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import kit

from dinoneck import Backbone, ConfigError, STAPyramid, save_head
from dinoneck.backbones import openvino
from dinoneck.detection import DetectionHead, Detector
from dinoneck.serve import Settings
from dinoneck.serve.models import open_model

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra [fast] is not installed"
)


@needs_openvino
def test_openvino_is_compiled_before_the_first_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_program = openvino.compile_program
    sizes: list[tuple[int, int]] = []

    def noted(adapter: Any, size: tuple[int, int], **options: Any) -> Any:
        sizes.append(size)
        return compile_program(adapter, size, **options)

    monkeypatch.setattr(openvino, "compile_program", noted)
    head = kit.saved_head(tmp_path / "head.safetensors", kit.randomised(kit.head()))
    model = open_model(head, Settings(runtime="openvino"))
    assert sizes == [kit.SIZE]
    image = kit.images(1, 100, 70)[0]  # brought to the size of the head
    values = model.predict(image, "none")["values"]
    assert sizes == [kit.SIZE]
    expected = open_model(head, Settings()).predict(image, "none")["values"]
    assert values["mass"] == pytest.approx(expected["mass"], rel=1e-4)


def test_openvino_that_is_missing_stops_the_start(tmp_path: Path) -> None:
    head = kit.saved_head(tmp_path / "head.safetensors")
    with kit.without("openvino"), pytest.raises(ImportError, match="openvino is not installed"):
        open_model(head, Settings(runtime="openvino"))


@pytest.mark.parametrize("kind", ["sized head", "detector", "head of any size"])
def test_auto_is_told_of_the_sizes_that_are_fixed_and_tried_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Other sizes are announced by nobody, so torch computes them."""
    announced: list[dict[tuple[int, int], int]] = []
    images: list[torch.Size] = []
    forward = Backbone.forward

    def noted(self: Backbone, batch: torch.Tensor, *arguments: Any) -> Any:
        images.append(batch.shape)
        return forward(self, batch, *arguments)

    monkeypatch.setattr(Backbone, "expect_images", lambda self, of: announced.append(dict(of)))
    monkeypatch.setattr(Backbone, "forward", noted)
    file = tmp_path / "head.safetensors"
    if kind == "detector":
        head = DetectionHead("fcos", ("red",), STAPyramid(64, 32))
        Detector(head, kit.backbone(), size=kit.SIZE).save(file)
    elif kind == "sized head":
        kit.saved_head(file)
    else:
        backbone = kit.backbone()
        save_head(file, kit.head(), backbone=backbone, preprocess=backbone.preprocess)
    images.clear()
    open_model(file, Settings(runtime="auto"))
    assert len(images) == 4
    [counts] = announced
    if kind == "head of any size":
        assert counts == {}
    else:
        assert counts[kit.SIZE] >= 1_000_000


def test_the_precision_is_for_heads(tmp_path: Path) -> None:
    head = DetectionHead("fcos", ("red",), STAPyramid(64, 32))
    Detector(head, kit.backbone(), size=kit.SIZE).save(tmp_path / "detector.safetensors")
    with pytest.raises(ConfigError, match="precision is 'bfloat16', which is for heads"):
        open_model(tmp_path / "detector.safetensors", Settings(precision="bfloat16"))
    model = open_model(
        kit.saved_head(tmp_path / "head.safetensors"), Settings(precision="bfloat16")
    )
    assert model.predict(kit.images(1)[0], "none")["values"]["mass"] > 0
