"""The detection example where something does not fit: parts, devices, damaged folders, few photos."""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from examples.detection import detectors, loop, session
from examples.detection.__main__ import main
from examples.detection.detectors import load
from examples.detection.pictures import draw_detections
from PIL import Image
from tests.unit import coloured_boxes
from tests.unit.test_detection_example import arguments, detector_of, parsed
from timm.models import VisionTransformer

from dinoneck import CheckpointError, ConfigError, DataError, wrap_backbone
from dinoneck.data import BoxPhotos
from dinoneck.interop import encoder as encoder_module
from dinoneck.training.processes import Processes


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_boxes.write(tmp_path_factory.mktemp("photos"))


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("dfine", {"neck": "vit_fpn", "neck_config": {"num_levels": 4}}, "dfine reads 3, each twice the one before"),
        ("dfine", {"neck": "simple_pyramid", "neck_config": {"scales": [4.0, 1.0, 0.5]}}, "reads 3, each twice"),
        ("dfine", {"features_at": 0.5}, "halves its maps to stride 64 and back"),
        ("dfine", {"size": (80, 128)}, "multiples of it, such as 96x128"),
        ("dfine", {"size": (80, 128), "backbone": "hgnetv2_b0"}, "multiples of it, such as 96x128"),
        ("rtdetrv2", {"num_queries": 300}, "96x128 gives 252 cells, and 300 of them"),
        ("fcos", {"out_channels": 40}, "40 channels; fcos needs a multiple of 32"),
        ("fasterrcnn", {"neck_config": {"patch_size": 14}, "backbone": "patch14"}, "powers of two"),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_built(
    kind: str, changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = VisionTransformer(img_size=28, patch_size=14, embed_dim=32, depth=6, num_heads=2, num_classes=0)
    known = encoder_module.load_backbone

    def loaded(name: str, **options: Any) -> Any:
        return wrap_backbone(vit, layers=options["layers"]) if name == "patch14" else known(name, **options)

    monkeypatch.setattr(encoder_module, "load_backbone", loaded)
    with pytest.raises(ConfigError, match=message):
        detector_of(kind, **changes)


@pytest.mark.parametrize("name", ["foo", "cuda:99"])
def test_devices_that_are_not_there(name: str, boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(boxes, tmp_path, "--detector", "fcos", "--device", name)) == 1
    assert f"device {name!r} cannot be used here" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["dfine", "fcos"])
def test_a_damaged_folder_says_so(kind: str, tmp_path: Path) -> None:
    detector_of(kind).save(tmp_path)
    weights, design = tmp_path / detectors.WEIGHTS, tmp_path / detectors.DESIGN
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=tmp_path.name):
        load(tmp_path)
    told = json.loads(design.read_text())
    for key, wrong in (("backbone", 5), ("neck_config", 5), ("layers", "135"), ("size", [96]), ("detector", "yolo")):
        design.write_text(json.dumps({**told, key: wrong}))
        with pytest.raises(DataError, match=f"does not describe a detector.*{key}"):
            load(tmp_path)


def test_a_saved_detector_asks_for_no_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector_of("fcos").save(tmp_path)
    design = json.loads((tmp_path / detectors.DESIGN).read_text())
    design |= {"backbone": "somebody's", "pretrained": True}
    (tmp_path / detectors.DESIGN).write_text(json.dumps(design))
    known = encoder_module.load_backbone

    def loaded(_: str, *, pretrained: bool, **options: Any) -> Any:
        assert not pretrained
        return known("dinoneck_tiny", pretrained=pretrained, **options)

    monkeypatch.setattr(encoder_module, "load_backbone", loaded)
    assert load(tmp_path).design.pretrained


@pytest.mark.parametrize(("photos", "batch", "count"), [(3, 4, 1), (1, 8, 1), (3, 4, 2), (10, 4, 1), (10, 3, 2)])
def test_an_epoch_shows_every_photo_once_and_few_of_them_twice(photos: int, batch: int, count: int) -> None:
    """Where the photos are fewer than a batch too: there is one step then, as the schedule counts."""
    shares = []
    for rank in range(count):
        run = argparse.Namespace(
            options=argparse.Namespace(seed=0, batch=batch),
            epoch=0,
            train=range(photos),
            processes=Processes(rank, count),
        )
        shares.append(list(loop.Run._batches(run)))  # type: ignore[arg-type]
    assert {len(share) for share in shares} == {math.ceil(photos / (batch * count))}
    assert all(len(rows) == batch for share in shares for rows in share)
    shown = Counter(row for share in shares for rows in share for row in rows)
    assert sorted(shown) == list(range(photos))
    assert max(shown.values()) - min(shown.values()) <= 1


def test_a_step_is_the_mean_of_its_batches_also_the_last(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, backward = [], loop.Run._backward

    def noted(run: loop.Run, images: Any, targets: Any, count: int, *, last: bool) -> Any:
        seen.append((count, last))
        return backward(run, images, targets, count, last=last)

    monkeypatch.setattr(loop.Run, "_backward", noted)
    words = ["--detector", "fcos", "--epochs", 1, "--batch", 1, "--accumulate", 2]
    assert main(arguments(boxes, tmp_path, *words)) == 0
    assert seen == [(2, False), (2, True), (1, True)]


def test_batch_norms_of_cpus_cannot_be_synchronised(boxes: Path) -> None:
    options = parsed("--size", "96x128", "--sync-bn")
    photos = session._photos(options, boxes, train=False)
    with pytest.raises(ConfigError, match="--sync-bn needs GPUs"):
        loop.Run(options, detector_of("fcos"), photos, photos, Processes(0, 2), torch.device("cpu"))


def test_pictures_of_several_shapes_stand_whole_on_one_sheet(tmp_path: Path) -> None:
    sizes = {1: (120, 60), 2: (60, 120)}
    for number, wanted in sizes.items():
        Image.new("RGB", wanted, "red").save(tmp_path / f"{number}.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in sizes.items()]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "red"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
    found = dict.fromkeys(sizes, nothing)
    draw_detections(BoxPhotos(tmp_path / "boxes.json"), found, tmp_path / "sheet.png", width=60)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height >= 120
        assert sheet.getpixel((66 + 30, 119)) == (255, 0, 0)  # the lower end of the tall one
