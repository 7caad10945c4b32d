"""What was trained of a detector's backbone is in its file, and no backbone of others is written to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.tuned_backbones import CHANGES, change, train_blocks, train_lora
from torch import nn

from dinoneck import (
    Backbone,
    BackboneError,
    CheckpointError,
    HeadCheckpoint,
    SimplePyramid,
    load_backbone,
    save_head,
    wrap_backbone,
)
from dinoneck.detection import DetectionHead, Detector

SIZE = (64, 96)
IMAGE = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0))
TARGETS = [{"boxes": torch.tensor([[4.0, 8.0, 40.0, 60.0]]), "labels": torch.tensor([1])}]


def detector_on(backbone: Any) -> Detector:
    torch.manual_seed(0)
    neck = SimplePyramid(64, 16, scales=(1.0,))
    detector = Detector(DetectionHead("retinanet", ("a", "b"), neck), backbone, SIZE)
    change(detector.head.parameters())
    return detector.eval()


def boxes_of(detector: Detector) -> list[torch.Tensor]:
    [prediction] = detector.predict(IMAGE, min_score=0.0)
    assert len(prediction["boxes"]) > 10
    return [prediction[name] for name in ("boxes", "scores", "labels")]


def are_equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def state_of(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in backbone.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before the detector is made", "after it"])
@pytest.mark.parametrize("is_frozen", [True, False], ids=["frozen again", "trainable"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_file_gives_the_boxes_of_the_backbone_as_it_is(
    name: str, is_frozen: bool, when: str, tmp_path: Path
) -> None:
    backbone = load_backbone("dinoneck_tiny")
    if when == "after it":
        detector = detector_on(backbone)
        CHANGES[name](backbone)
    else:
        CHANGES[name](backbone)
        detector = detector_on(backbone)
    if is_frozen:
        backbone.freeze()
    detector.save(tmp_path / "d.safetensors")
    expected = boxes_of(detector)
    again = Detector.load(tmp_path / "d.safetensors")
    assert are_equal(boxes_of(again), expected)
    again.save(tmp_path / "e.safetensors")
    assert (tmp_path / "e.safetensors").read_bytes() == (tmp_path / "d.safetensors").read_bytes()


def as_it_is(backbone: Backbone) -> Any:
    return backbone


def compiled(backbone: Backbone) -> Any:
    return torch.compile(backbone, backend="eager")


@pytest.mark.parametrize("wrapper", [as_it_is, compiled, nn.DataParallel])
@pytest.mark.parametrize("name", CHANGES)
def test_the_backbone_of_the_caller_is_not_written_to(
    name: str, wrapper: Any, tmp_path: Path
) -> None:
    tuned = load_backbone("dinoneck_tiny")
    detector = detector_on(tuned)
    CHANGES[name](tuned)
    detector.save(tmp_path / "d.safetensors")
    shared = load_backbone("dinoneck_tiny")
    before = state_of(shared)
    first = Detector.load(tmp_path / "d.safetensors", backbone=wrapper(shared))
    second = Detector.load(tmp_path / "d.safetensors", backbone=wrapper(shared))
    assert are_equal(boxes_of(first), boxes_of(detector))
    assert are_equal(boxes_of(second), boxes_of(detector))
    after = state_of(shared)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_frozen_detector_shares_the_backbone_of_the_caller(tmp_path: Path) -> None:
    detector_on(load_backbone("dinoneck_tiny")).save(tmp_path / "d.safetensors")
    shared = load_backbone("dinoneck_tiny")
    assert Detector.load(tmp_path / "d.safetensors", backbone=shared).backbone is shared


def test_the_file_holds_the_changed_weight_and_names_the_backbone_of_the_others(
    tmp_path: Path,
) -> None:
    backbone = load_backbone("dinoneck_tiny")
    detector = detector_on(backbone)
    with torch.no_grad():
        backbone.adapter.model.blocks[1].mlp.fc1.bias.add_(1.0)

    detector.save(tmp_path / "d.safetensors")

    checkpoint = HeadCheckpoint.load(tmp_path / "d.safetensors")
    assert [*checkpoint.config["tuned"]] == ["adapter.model.blocks.1.mlp.fc1.bias"]
    # the weights of dinoneck_tiny are drawn with a seed
    assert checkpoint.meta["backbone"]["weights"]["kind"] == "seeded"


@pytest.mark.parametrize("order", ["cast, then trained", "trained, then cast"])
def test_weights_in_half_precision_come_back_in_it(order: str, tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    detector = detector_on(backbone)
    if order == "cast, then trained":
        detector.to(torch.bfloat16)
        train_blocks(backbone)
    else:
        train_blocks(backbone)
        detector.to(torch.bfloat16)
    detector.save(tmp_path / "d.safetensors")
    again = Detector.load(tmp_path / "d.safetensors")
    assert again.backbone.dtype == torch.bfloat16
    tokens = backbone(IMAGE[None]).sequence[0]
    assert torch.equal(again.backbone(IMAGE[None]).sequence[0], tokens)
    config = HeadCheckpoint.load(tmp_path / "d.safetensors").config
    assert not any("blocks.0" in name for name in config["tuned"])


def test_weights_that_a_cast_has_rounded_are_in_the_file(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny").to(torch.bfloat16).to(torch.float32)
    detector = detector_on(backbone)
    detector.save(tmp_path / "d.safetensors")
    assert are_equal(boxes_of(Detector.load(tmp_path / "d.safetensors")), boxes_of(detector))


def test_a_dtype_of_the_backbone_that_the_head_has_not_is_refused(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    detector = detector_on(backbone)
    train_blocks(backbone)
    backbone.to(torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"bfloat16.*float32.*detector\.float\(\)"):
        detector.save(tmp_path / "d.safetensors")


def test_a_detector_on_a_model_of_the_users_is_saved_as_it_was_trained(tmp_path: Path) -> None:
    def model() -> Any:
        return load_backbone("dinoneck_tiny", seed=3).adapter.model

    backbone = wrap_backbone(model())
    detector = detector_on(backbone)
    train_blocks(backbone)
    detector.save(tmp_path / "d.safetensors")
    again = Detector.load(tmp_path / "d.safetensors", backbone=wrap_backbone(model()))
    assert are_equal(boxes_of(again), boxes_of(detector))


def test_a_head_file_with_all_weights_is_a_detector_too(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    detector = detector_on(backbone)
    train_blocks(backbone)
    save_head(
        tmp_path / "d.safetensors",
        detector.head,
        backbone=backbone,
        backbone_weights=backbone.state_dict(),
        preprocess=detector.preprocess,
    )
    again = Detector.load(tmp_path / "d.safetensors")
    expected = [boxes_of(detector)[1], boxes_of(detector)[0]]
    assert are_equal([boxes_of(again)[1], boxes_of(again)[0]], expected)


def test_a_backbone_with_other_lora_weights_is_refused(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    detector = detector_on(backbone)
    train_lora(backbone)
    detector.save(tmp_path / "d.safetensors")
    other = load_backbone("dinoneck_tiny").add_lora(2, seed=9)
    with pytest.raises(CheckpointError, match="LoRA weights of its own"):
        Detector.load(tmp_path / "d.safetensors", backbone=other)
    with pytest.raises(CheckpointError, match="seed 4"):
        Detector.load(
            tmp_path / "d.safetensors",
            backbone=load_backbone("dinoneck_tiny", pretrained=False, seed=4),
        )


def test_weights_that_change_between_two_calls_are_noticed(tmp_path: Path) -> None:
    detector_on(load_backbone("dinoneck_tiny")).save(tmp_path / "d.safetensors")
    shared = load_backbone("dinoneck_tiny")
    detector = Detector.load(tmp_path / "d.safetensors", backbone=shared)
    boxes_of(detector)
    train_blocks(shared)
    with pytest.raises(BackboneError, match=r"'dinoneck_tiny' changed.*note_trained\(\)"):
        detector.predict(IMAGE)
    detector.note_trained()
    boxes_of(detector)


def test_weights_that_change_after_loading_are_noticed(tmp_path: Path) -> None:
    detector_on(load_backbone("dinoneck_tiny")).save(tmp_path / "d.safetensors")
    detector = Detector.load(tmp_path / "d.safetensors")
    detector.backbone.add_lora(2)
    change(p for name, p in detector.backbone.named_parameters() if "lora_" in name)
    with pytest.raises(BackboneError, match="changed"):
        detector.predict(IMAGE)


def test_lora_that_is_switched_off_is_noticed() -> None:
    backbone = load_backbone("dinoneck_tiny")
    train_lora(backbone)
    detector = detector_on(backbone)
    boxes_of(detector)
    with backbone.lora_disabled(), pytest.raises(BackboneError, match="switched off"):
        detector.predict(IMAGE)
    boxes_of(detector)


def test_a_detector_predicts_between_the_steps_of_its_own_training() -> None:
    backbone = load_backbone("dinoneck_tiny").unfreeze_last(1)
    detector = detector_on(backbone)
    trained = [p for p in detector.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3)
    before = boxes_of(detector)
    for _ in range(2):
        optimizer.zero_grad()
        sum(detector.train()(IMAGE[None], TARGETS).values()).backward()
        optimizer.step()
        after = boxes_of(detector)
    assert not are_equal(before, after)


def test_the_hash_is_not_taken_again_while_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = detector_on(load_backbone("dinoneck_tiny").unfreeze_last(1))
    before = boxes_of(detector)

    def fail(*_: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr("dinoneck.backbones.weight_hashes.state_digest", fail)
    assert are_equal(boxes_of(detector), before)


@pytest.mark.parametrize("kind", ["fused", "through data", "plain"])
def test_weights_that_others_train_are_noticed_however_they_are_written(kind: str) -> None:
    backbone = load_backbone("dinoneck_tiny").unfreeze_last(1)
    detector = detector_on(backbone)
    boxes_of(detector)
    trained = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, fused=kind == "fused")
    backbone(IMAGE[None]).sequence[0].square().mean().backward()
    if kind == "through data":
        trained[0].data.mul_(1.5)
    else:
        optimizer.step()
    with pytest.raises(BackboneError, match="changed after"):
        detector.predict(IMAGE)


@pytest.mark.parametrize("way", ["itself", "inside another module"])
def test_a_state_that_is_loaded_into_a_detector_is_taken(way: str) -> None:
    trained = load_backbone("dinoneck_tiny")
    train_blocks(trained)
    expected = detector_on(trained)
    detector = detector_on(load_backbone("dinoneck_tiny"))
    boxes_of(detector)
    if way == "itself":
        detector.load_state_dict(expected.state_dict())
    else:
        nn.Sequential(detector).load_state_dict(nn.Sequential(expected).state_dict())
    assert are_equal(boxes_of(detector), boxes_of(expected))


def test_an_average_of_weights_is_named_in_the_error() -> None:
    detector = detector_on(load_backbone("dinoneck_tiny"))
    averaged = torch.optim.swa_utils.AveragedModel(detector)
    averaged.update_parameters(detector)
    boxes_of(averaged.module)
    train_blocks(detector.backbone)
    averaged.update_parameters(detector)
    with pytest.raises(BackboneError, match="AveragedModel"):
        averaged.module.predict(IMAGE)
    averaged.module.note_trained()
    boxes_of(averaged.module)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_backbone_whose_dtype_rounds_the_untrained_weights_is_refused(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    backbone = load_backbone("dinoneck_tiny")
    detector = detector_on(backbone)
    train_blocks(backbone)
    detector.save(tmp_path / "d.safetensors")
    half = load_backbone("dinoneck_tiny", dtype=dtype)
    with pytest.raises(CheckpointError, match=r"load it with dtype=torch\.float32"):
        Detector.load(tmp_path / "d.safetensors", backbone=half)
    full = load_backbone("dinoneck_tiny")
    again = Detector.load(tmp_path / "d.safetensors", backbone=full)
    assert are_equal(boxes_of(again), boxes_of(detector))


def test_one_half_precision_does_not_hold_the_other(tmp_path: Path) -> None:
    model = load_backbone("dinoneck_tiny").adapter.model.to(torch.float16)
    backbone = wrap_backbone(model)
    detector = detector_on(backbone).to(torch.float16)
    train_blocks(backbone)
    detector.save(tmp_path / "d.safetensors")
    other = wrap_backbone(model, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"torch\.bfloat16.*torch\.float16"):
        Detector.load(tmp_path / "d.safetensors", backbone=other)


def test_float32_weights_that_were_trained_from_half_precision_come_back(tmp_path: Path) -> None:
    def model() -> Any:
        return load_backbone("dinoneck_tiny").adapter.model.to(torch.bfloat16)

    backbone = wrap_backbone(model()).to(torch.float32)
    detector = detector_on(backbone)
    train_blocks(backbone)
    detector.save(tmp_path / "d.safetensors")
    again = Detector.load(
        tmp_path / "d.safetensors", backbone=wrap_backbone(model(), dtype=torch.float32)
    )
    assert are_equal(boxes_of(again), boxes_of(detector))


def test_a_backbone_is_checked_before_it_is_copied(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backbone = load_backbone("dinoneck_tiny")
    detector = detector_on(backbone)
    train_blocks(backbone)
    detector.save(tmp_path / "d.safetensors")
    other = load_backbone("dinoneck_tiny", pretrained=False, seed=4)

    def fail(*_: object) -> None:
        raise AssertionError("copied before the check")

    monkeypatch.setattr(Backbone, "__deepcopy__", fail, raising=False)
    with pytest.raises(CheckpointError, match="seed 4"):
        Detector.load(tmp_path / "d.safetensors", backbone=other)


def test_buffers_of_another_dtype_are_no_training(tmp_path: Path) -> None:
    """An official object keeps its periods in float32 after half()."""
    model: Any = load_backbone("dinoneck_tiny").adapter.model.to(torch.bfloat16)
    model.register_buffer("count", torch.tensor(3))
    backbone = wrap_backbone(model)
    record = {**backbone.record(), "weights_sha256": "0" * 64}
    torch.manual_seed(0)
    neck = SimplePyramid(64, 16, scales=(1.0,))
    head = DetectionHead("retinanet", ("a", "b"), neck).to(torch.bfloat16)
    detector = Detector(head, backbone, SIZE, record=record)
    detector.save(tmp_path / "d.safetensors")
    tuned = HeadCheckpoint.load(tmp_path / "d.safetensors").config["tuned"]
    assert "adapter.model.count" not in tuned
    assert len(tuned) == len([*model.parameters()])


def test_a_file_keeps_the_mean_and_std_of_the_detector(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    detector = detector_on(backbone)
    expected = boxes_of(detector)
    backbone.preprocess = backbone.preprocess.changed(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))

    detector.save(tmp_path / "d.safetensors")

    again = Detector.load(tmp_path / "d.safetensors")
    assert are_equal(boxes_of(again), expected)
    assert again.preprocess == detector.preprocess


def test_a_backbone_that_another_detector_trained_is_named_when_a_detector_is_saved(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = load_backbone("dinoneck_tiny")
    first = detector_on(backbone)
    boxes_of(first)
    first.save(tmp_path / "before.safetensors")
    assert caplog.text == ""
    train_blocks(backbone)

    first.save(tmp_path / "after.safetensors")
    assert "its head may not fit them" in caplog.text

    caplog.clear()
    first.note_trained()
    first.save(tmp_path / "noted.safetensors")
    assert caplog.text == ""
