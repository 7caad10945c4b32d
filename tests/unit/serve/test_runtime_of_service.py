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
from dinoneck.kinds import Runtime
from dinoneck.serve import Settings, app
from dinoneck.serve.models import Model, open_model

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra [fast] is not installed"
)
SIZE_OF_DETECTOR = (64, 96)


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
        Detector(head, kit.backbone(), size=SIZE_OF_DETECTOR).save(file)
    elif kind == "sized head":
        kit.saved_head(file)
    else:
        backbone = kit.backbone()
        save_head(file, kit.head(), backbone=backbone, preprocess=backbone.preprocess)
    images.clear()
    open_model(file, Settings(runtime="auto"))
    assert len(images) == 2
    [counts] = announced
    if kind == "head of any size":
        assert counts == {}
    else:
        [number] = counts.values()
        assert [*counts] == [images[0][-2:]]
        assert number >= 1_000_000


def test_the_precision_is_for_heads(tmp_path: Path) -> None:
    head = DetectionHead("fcos", ("red",), STAPyramid(64, 32))
    Detector(head, kit.backbone(), size=SIZE_OF_DETECTOR).save(tmp_path / "detector.safetensors")
    with pytest.raises(ConfigError, match="precision is 'bfloat16', which is for heads"):
        open_model(tmp_path / "detector.safetensors", Settings(precision="bfloat16"))
    model = open_model(
        kit.saved_head(tmp_path / "head.safetensors"), Settings(precision="bfloat16")
    )
    assert model.predict(kit.images(1)[0], "none")["values"]["mass"] > 0


@pytest.mark.parametrize(
    ("runtime", "size", "batch", "num_threads"),
    [
        ("torch", (32, 48), 1, 2),
        ("torch", (32, 48), 4, 8),  # requests are gathered
        ("openvino", None, 1, 8),
        ("auto", (32, 48), 1, 8),
        ("auto", None, 1, 2),  # runs in torch
    ],
)
def test_requests_share_the_threads_unless_a_program_takes_all(
    monkeypatch: pytest.MonkeyPatch,
    runtime: Runtime,
    size: tuple[int, int] | None,
    batch: int,
    num_threads: int,
) -> None:
    threads = [8]
    preprocess = kit.backbone().preprocess.changed(size=size)
    model = Model(lambda image, maps: {}, preprocess, facts={})
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(app, "is_installed", lambda: True)
    monkeypatch.setattr(app, "open_model", lambda head, settings: model)
    settings = Settings(runtime=runtime, batch=batch, concurrency=4)
    assert app.open_with_threads("head.safetensors", settings) is model
    assert threads[-1] == num_threads
