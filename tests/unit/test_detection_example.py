"""The detection example: boxes keep their units through every library, files give the same boxes back, it learns."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from examples.detection import detectors, loop, session
from examples.detection.__main__ import main
from examples.detection.detectors import Detector, build, load
from examples.detection.options import Design, backbone_rate, check, parser, plan, size
from safetensors.torch import load_file
from tests.process_group import told_by
from tests.unit import coloured_boxes

from dinoneck import ConfigError, DataError, HeadCheckpoint, load_head
from dinoneck.training import param_groups

pytest.importorskip("pycocotools", reason="needs dinoneck[detection]")

DESIGN = Design(
    detector="fcos",
    variant="tiny",
    backbone="dinoneck_tiny",
    layers=(1, 3, 5),
    pretrained=False,
    neck="spatial_tuning_adapter",
    neck_config={},
    out_channels=32,
    features_at=1.0,
    num_queries=20,
    encoder_layers=None,
    classes=("red", "blue"),
    size=(96, 128),
    seed=0,
)
KINDS = ("dfine", "rtdetrv2", "fcos", "retinanet", "fasterrcnn")
TINY = [
    "--backbone",
    "dinoneck_tiny",
    "--layers",
    "1,3,5",
    "--variant",
    "tiny",
    "--size",
    "96x128",
    "--out-channels",
    "32",
]
TARGETS = [
    {"boxes": torch.tensor([[8.0, 16.0, 72.0, 80.0]]), "labels": torch.tensor([1])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)},
]


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_boxes.write(tmp_path_factory.mktemp("photos"))


def arguments(boxes: Path, out: Path, *more: object) -> list[str]:
    return [*TINY, "--train", str(boxes), "--val", str(boxes), "--out", str(out), *map(str, more)]


def detector_of(kind: str, **changes: Any) -> Detector:
    return build(replace(DESIGN, detector=kind, **changes))


def parsed(*words: str) -> argparse.Namespace:
    return parser().parse_args(["--train", "a.json", "--val", "b.json", *words])


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_detector_finds_the_same_boxes(kind: str, tmp_path: Path) -> None:
    detector = detector_of(kind).eval()
    detector.save(tmp_path / "d")
    detector.save(tmp_path / "d")  # replaces the older one whole
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
    images = torch.rand(2, 3, 96, 128)
    again = load(tmp_path / "d")
    with torch.no_grad():
        for one, other in zip(detector(images), again(images), strict=True):
            for name in ("boxes", "scores", "labels"):
                assert torch.equal(one[name], other[name])
    assert again.design == detector.design
    neck = load_head(tmp_path / "d" / detectors.NECK)
    assert HeadCheckpoint.load(tmp_path / "d" / detectors.NECK).head_type == "spatial_tuning_adapter"
    for name, value in detector.encoder.neck.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(neck.state_dict()[name], value)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_finite_with_an_empty_photo_and_reach_neck_and_detector(kind: str) -> None:
    detector = detector_of(kind, neck="sta_pyramid").train()
    losses = detector(torch.rand(2, 3, 96, 128), TARGETS)
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    assert all(p.grad is not None for p in detector.encoder.neck.parameters())  # type: ignore[union-attr]
    assert all(p.grad is None for p in detector.backbone.parameters())  # type: ignore[union-attr]


def test_detr_targets_are_centres_and_sizes_as_shares_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, seen = detector_of("dfine"), []

    def model(pixel_values: torch.Tensor, labels: Any) -> Any:
        seen.extend([pixel_values, labels])
        parts = {"loss_vfl": 1.0, "loss_bbox": 2.0, "loss_vfl_aux_0": 10.0, "loss_bbox_dn_1": 100.0}
        return argparse.Namespace(loss_dict={name: torch.tensor(value) for name, value in parts.items()})

    monkeypatch.setattr(detector.model, "forward", model)
    grey = torch.tensor(detector.mean)[:, None, None].expand(1, 3, 96, 128)  # type: ignore[attr-defined]
    assert {name: float(value) for name, value in detector.losses(grey, TARGETS[:1]).items()} == {
        "loss_vfl": 11.0,
        "loss_bbox": 102.0,
    }
    assert seen[0].abs().max() < 1e-6
    assert torch.allclose(seen[1][0]["boxes"], torch.tensor([[40 / 128, 48 / 96, 64 / 128, 64 / 96]]))


def test_detr_boxes_come_back_in_pixels() -> None:
    detector = detector_of("dfine").eval()
    images = torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        outputs = detector.model(pixel_values=detector._normalised(images))  # type: ignore[attr-defined]
        found = detector(images)[0]
    best = outputs.logits.sigmoid().flatten().argmax()
    x, y, width, height = outputs.pred_boxes[0, best // 2].tolist()
    wanted = [(x - width / 2) * 128, (y - height / 2) * 96, (x + width / 2) * 128, (y + height / 2) * 96]
    assert torch.allclose(found["boxes"][0], torch.tensor(wanted), atol=1e-4)
    assert found["labels"][0] == best % 2


def test_faster_rcnn_keeps_its_background_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, seen = detector_of("fasterrcnn"), []
    monkeypatch.setattr(detector.model, "forward", lambda images, targets: seen.append(targets) or {})
    detector.losses(torch.rand(2, 3, 96, 128), TARGETS)
    assert seen[0][0]["labels"].tolist() == [2]


def test_the_seed_and_the_options_decide_the_detector() -> None:
    one, same, other = (detector_of("fcos", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    few, many = (detector_of("dfine", num_queries=n, encoder_layers=n // 10).model.config for n in (10, 20))
    assert (few.num_queries, few.encoder_layers, many.num_queries, many.encoder_layers) == (10, 1, 20, 2)
    seen = detector_of("dfine", features_at=0.5, neck_config={"grid_from": "image"})
    assert seen.encoder.features_at == 0.5  # type: ignore[union-attr]


def test_the_neck_inside_the_backbone_module_learns_at_the_detectors_rate() -> None:
    detector = detector_of("dfine")
    groups = param_groups(detector, lr=1e-3, backbone_lr=1e-5, include_frozen=True)
    rate = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    neck, vit = detector.encoder.neck, detector.backbone  # type: ignore[union-attr]
    assert {rate[id(p)][0] for p in neck.parameters()} == {1e-3}
    assert {rate[id(p)][0] for p in vit.parameters()} == {1e-5}  # type: ignore[union-attr]
    assert {rate[id(p)][1] for p in neck.norms.parameters()} == {0.0}  # type: ignore[union-attr]


def test_a_convolutional_baseline_has_groups_of_its_own() -> None:
    detector = detector_of("dfine", backbone="hgnetv2_b0")
    groups = loop.convolutional_groups(detector, detector.convolutions, lr=1e-3, backbone_lr=1e-5, weight_decay=0.1)  # type: ignore[attr-defined]
    own = [id(p) for group in groups for p in group["params"]]
    assert len(own) == len(set(own)) == sum(p.requires_grad for p in detector.parameters())
    inside = {id(p) for p in detector.convolutions.parameters()}  # type: ignore[attr-defined]
    for group in groups:
        assert all((id(p) in inside) == (group["lr"] == 1e-5) for p in group["params"])
        assert all((p.ndim > 1) == (group["weight_decay"] == 0.1) for p in group["params"])
    assert detector.backbone is None


def test_words_of_the_command_line() -> None:
    assert size("640") == (640, 640)
    assert size("480x640") == (480, 640)
    assert plan("0=all,10=last:4") == {0: "all", 10: "last:4"}
    assert backbone_rate("x0.05") == (0.05, True)
    assert backbone_rate("1e-5") == (1e-5, False)
    for read, text in (
        (size, "0"),
        (size, "1x2x3"),
        (plan, "all"),
        (plan, "a=all"),
        (plan, "0=all,0=none"),
        (backbone_rate, "x-1"),
    ):
        with pytest.raises(argparse.ArgumentTypeError):
            read(text)
    told = parsed("--neck-option", "detail=deimv2", "--neck-option", "detail_dim=8")
    assert dict(told.neck_option) == {"detail": "deimv2", "detail_dim": 8}
    assert (told.batch, told.seed, told.lr, told.backbone_lr, told.clip) == (2, 0, 2.5e-4, (1e-5, False), 0.1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--backbone", "hgnetv2", "--detector", "fcos"], "baseline of dfine"),
        (["--backbone", "hgnetv2", "--freeze", "0=all"], "--freeze is for the blocks"),
        (["--backbone", "hgnetv2", "--layer-decay", "0.8"], "--layer-decay does nothing for hgnetv2"),
        (["--backbone", "hgnetv2", "--checkpointing"], "--checkpointing does nothing for hgnetv2"),
        (["--backbone", "hgnetv2", "--neck-option", "norm=group"], "--neck-option does nothing for hgnetv2"),
        (["--detector", "fcos", "--num-queries", "30"], "--num-queries does nothing for fcos"),
    ],
)
def test_options_that_do_not_go_together(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(parsed(*words))


def test_missing_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--val", "b.json"]) == 1
    assert "--train is missing" in capsys.readouterr().err
    assert main(["--test-only", "--val", "b.json", "--out", str(tmp_path)]) == 1
    assert "detector.json" in capsys.readouterr().err
    (tmp_path / "detector.json").write_text('{"detector": "fcos"}')
    with pytest.raises(DataError, match="does not describe a detector"):
        load(tmp_path)


def test_one_run_from_photos_to_pictures(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that is cut short goes on to the same numbers, and its detector tests the same from its folder."""
    words = ["--detector", "fcos", "--epochs", 3, "--freeze", "0=all,1=last:2", "--accumulate", 2, "--ema", 0.9]
    words += ["--checkpointing", "--amp", "bf16", "--layer-decay", 0.8]
    assert main(arguments(boxes, tmp_path / "whole", *words)) == 0
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["all", "last:2", "last:2"]
    assert {"classification", "bbox_regression", "bbox_ctrness", "AP50", "per_class"} <= rows[0].keys()
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["best"]["AP"] == max(row["AP"] for row in rows)
    assert {"untrained", "versions", "skipped", "minutes"} <= result.keys()
    assert all((tmp_path / "whole" / name).stat().st_size > 0 for name in ("curves.png", "detections.png"))

    keep = loop.Run._save

    def cut_short(run: loop.Run) -> None:
        keep(run)
        if run.epoch == 1:
            raise DataError("the light went out")

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_save", cut_short)
        assert main(arguments(boxes, tmp_path / "cut", *words)) == 1
    assert main(arguments(boxes, tmp_path / "cut", *words)) == 1
    assert "pass --resume" in capsys.readouterr().err
    assert main(arguments(boxes, tmp_path / "cut", *words, "--lr", "1e-3", "--resume")) == 1
    assert "other options: lr" in capsys.readouterr().err
    assert main(arguments(boxes, tmp_path / "cut", *words, "--resume")) == 0
    assert (tmp_path / "cut" / "log.jsonl").read_text() == (tmp_path / "whole" / "log.jsonl").read_text()
    capsys.readouterr()
    assert main(["--test-only", "--val", str(boxes), "--out", str(tmp_path / "cut"), "--batch", "2"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["AP"] == pytest.approx(result["best"]["AP"], abs=1e-6)
    assert "it/s" not in told.err  # bars are for terminals


def test_a_loss_that_is_not_finite_stops_the_run(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nan = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr(detectors.TorchvisionDetector, "losses", lambda *_: {"classification": nan * 1})
    assert main(arguments(boxes, tmp_path, "--detector", "fcos", "--epochs", "1")) == 1
    assert "classification nan" in capsys.readouterr().err


def test_classes_of_the_held_out_photos_follow_the_training_ones(boxes: Path, tmp_path: Path) -> None:
    content = json.loads(boxes.read_text())
    content["categories"] = [{"id": 2, "name": "red"}, {"id": 1, "name": "blue"}]
    other = boxes.with_name("swapped.json")
    other.write_text(json.dumps(content))
    options = parsed("--size", "96x128")
    train = session._photos(options, boxes, train=True)
    val = session._photos(options, other, train=False, classes=train.classes)
    assert train.classes == val.classes == ("red", "blue")
    assert (train.category_ids, val.category_ids) == ((1, 2), (2, 1))


def test_held_out_photos_may_have_a_folder_of_their_own(boxes: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.json").write_text(boxes.read_text())
    for train, words in ((True, ["--photos"]), (False, ["--photos"]), (False, ["--photos", "nowhere", "--val-photos"])):
        options = parsed("--size", "96x128", *words, str(boxes.parent))
        assert len(session._photos(options, tmp_path / "alone.json", train=train)) == 3
    with pytest.raises(DataError, match="nowhere"):
        session._photos(options, tmp_path / "alone.json", train=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("fcos", ["--epochs", "150", "--lr", "1e-3", "--clip", "5"]),
        ("dfine", ["--epochs", "160", "--lr", "2e-3", "--num-queries", "30", "--size", "64x96"]),
    ],
)
def test_one_pair_of_photos_is_learnt_by_heart(kind: str, more: list[str], boxes: Path, tmp_path: Path) -> None:
    words = ["--detector", kind, "--photo-limit", "2", "--plain-views", "--freeze", "0=none", "--backbone-lr", "x1"]
    assert main(arguments(boxes, tmp_path, *words, "--ema", "0", "--eval-every", "20", *more)) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["untrained"]["AP"] < 0.1
    assert result["best"]["AP"] >= 0.75  # 0.81 to 1.0 from one CPU to another


@pytest.mark.slow
def test_two_processes_hold_the_same_weights_past_the_thaw(boxes: Path, tmp_path: Path) -> None:
    words = arguments(
        boxes, tmp_path / "run", "--detector", "fcos", "--epochs", 3, "--freeze", "0=all,1=last:2,2=none", "--batch", 1
    )
    torchrun = [shutil.which("torchrun", path=Path(sys.executable).parent) or "torchrun", "--standalone"]
    told_by([*torchrun, "--nproc_per_node=2", "-m", "tests.unit.detection_two_processes", str(tmp_path), *words], 240)
    start = dict(detector_of("fcos").named_parameters())
    for epoch in range(3):
        one, other = (load_file(tmp_path / f"{rank}-{epoch}") for rank in (0, 1))
        assert any(name.endswith("running_var") for name in one)
        assert all(torch.equal(value, other[name]) for name, value in one.items())
        moved = [not torch.equal(one[name], start[name]) for name in start if ".blocks.5." in name]
        assert any(moved) == (epoch > 0)
