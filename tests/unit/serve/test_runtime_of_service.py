"""The runtime of the service: programs are compiled at the start, for the sizes that the heads fix."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests import kit

from dinoneck import Backbone, ConfigError, Predictor, STAPyramid, save_head
from dinoneck.backbones import openvino, runtime
from dinoneck.detection import DetectionHead, Detector
from dinoneck.kinds import Runtime
from dinoneck.serve import Settings, app
from dinoneck.serve.models import Model, open_model
from dinoneck.serve.uploads import prepared_pixels

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra [fast] is not installed"
)
SIZE_OF_DETECTOR = (64, 96)


def head_on_one_block(folder: Path) -> Path:
    """A head that reads the first block: a program of one block is compiled in half the time."""
    return kit.saved_head(
        folder / "head.safetensors",
        kit.randomised(kit.head()),
        backbone=kit.backbone(layers=[0]),
    )


@pytest.mark.slow
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
    head = head_on_one_block(tmp_path)

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


@pytest.mark.parametrize(
    "kind", ["sized head", "detector", "head of any size", "tiles of a head of any size"]
)
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
    tile = (64, 32) if kind == "tiles of a head of any size" else None
    open_model(file, Settings(runtime="auto", tile=tile))
    assert len(images) == 2
    counts = announced[-1]
    if tile is not None:
        assert [*counts] == [tile]
    if kind == "head of any size":
        assert counts == {}
    else:
        [number] = counts.values()
        assert [*counts] == [images[0][-2:]]
        assert number >= 1_000_000


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_auto_leaves_the_backbone_to_torch_unless_a_program_is_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """The clock is false: torch takes half or twice the time of a program, and less than it really does."""

    def times(compute: Any) -> tuple[Any, float]:
        result = compute()
        # a program gives tokens by block, torch a list of them
        seconds = 1e-9 if isinstance(result, dict) else factor * 1e-9
        return result, seconds

    monkeypatch.setattr(runtime, "timed_twice", times)
    monkeypatch.setattr(runtime, "expected_gain", lambda batch: 2.0)
    head = head_on_one_block(tmp_path)

    model = open_model(head, Settings(runtime="auto"))

    [backbone] = model.backbones
    assert backbone.has_programs == (factor > 1)
    assert backbone.runtime == ("auto" if factor > 1 else "torch")


def test_tiles_are_predicted_as_by_a_predictor_and_count_as_what_they_are_resized_to(
    tmp_path: Path,
) -> None:
    head = kit.saved_head(tmp_path / "head.safetensors", kit.randomised(kit.head()))
    settings = Settings(tile=(40, 60), overlap=10, batch=2)
    model = open_model(head, settings)
    image = kit.images(1, 90, 200)[0]
    [expected] = Predictor(head, tile=(40, 60), overlap=10)([image])
    assert model.predict(image, "none")["values"] == pytest.approx(expected, rel=1e-5)
    assert (model.facts["tile"], model.facts["overlap"]) == ((40, 60), 10)
    # 40 x 60 px become kit.SIZE, so four tiles become four of these
    height, width = kit.SIZE
    assert model.recipe((80, 120)).size == (2 * height, 2 * width)
    num_pixels = prepared_pixels(Image.new("RGB", (120, 80)), model.recipe)
    assert num_pixels == pytest.approx(4 * height * width, abs=1)  # it is rounded up


def test_views_are_for_heads_and_an_overlap_for_tiles(tmp_path: Path) -> None:
    head = DetectionHead("fcos", ("red",), STAPyramid(64, 32))
    detector = tmp_path / "detector.safetensors"
    Detector(head, kit.backbone(), size=SIZE_OF_DETECTOR).save(detector)
    with pytest.raises(ConfigError, match="overlap is 3, and what predicts was not trained"):
        open_model(detector, Settings(overlap=3))
    with pytest.raises(ConfigError, match="tta is 'flip4', which is for heads"):
        open_model(detector, Settings(tta="flip4"))
    assert open_model(detector, Settings(tta="none")).facts["classes"] == ["red"]
    with pytest.raises(ConfigError, match="overlap is 3, and what predicts was not trained"):
        open_model(kit.saved_head(tmp_path / "head.safetensors"), Settings(overlap=3))


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
    ("runtime_of_settings", "runtime_after_start", "batch", "num_threads"),
    [
        ("torch", "torch", 1, 2),
        ("torch", "torch", 4, 8),  # requests are gathered
        pytest.param("openvino", "openvino", 1, 8, marks=needs_openvino),
        ("auto", "auto", 1, 8),
        ("auto", "torch", 1, 2),  # no program was faster
        ("auto", "torch", 4, 8),
        ("auto", None, 1, 2),  # a detector with a ViT of its own
    ],
)
def test_requests_share_the_threads_unless_a_program_takes_all(
    monkeypatch: pytest.MonkeyPatch,
    runtime_of_settings: Runtime,
    runtime_after_start: Runtime | None,
    batch: int,
    num_threads: int,
) -> None:
    threads = [8]
    preprocess = kit.backbone().preprocess
    backbones = ()
    if runtime_after_start is not None:
        backbones = (kit.backbone().with_runtime(runtime_after_start),)
    model = Model(
        predict=lambda image, maps: {},
        preprocess=preprocess,
        recipe=lambda size: preprocess,
        backbones=backbones,
        facts={},
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(app, "is_installed", lambda: True)
    monkeypatch.setattr(app, "open_model", lambda head, settings: model)
    settings = Settings(runtime=runtime_of_settings, batch=batch, concurrency=4)
    assert app.open_with_threads("head.safetensors", settings) is model
    assert threads[-1] == num_threads
