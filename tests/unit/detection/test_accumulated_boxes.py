"""The losses of the parts of a detector's batch add up to that of the batch, and so do their gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.detection import coloured_boxes
from tests.unit.detection.test_train_detector import config_of
from torch import Tensor, nn

from dinoneck import DetectionHead, STAPyramid, load_backbone
from dinoneck.detection import Detector, train_detector
from dinoneck.detection.head import loss_counts

pytestmark = pytest.mark.slow

pytest.importorskip("pycocotools", reason="needs dinoneck[detection]")

SIZE = (64, 96)
PARTS = (slice(0, 2), slice(2, 3), slice(3, 5))
# boxes of five images; one has none
BOXES = [
    [[4, 4, 40, 44], [30, 10, 90, 60]],
    [[10, 10, 26, 30]],
    [],
    [[0, 0, 60, 60], [50, 8, 80, 30], [5, 30, 25, 55]],
    [[20, 20, 90, 62]],
]


def targets() -> list[dict[str, Tensor]]:
    tables = []
    for boxes in BOXES:
        tables.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                "labels": torch.arange(len(boxes)) % 2,
            }
        )
    return tables


def detector_of(name: Any) -> Detector:
    torch.manual_seed(0)
    backbone = load_backbone("dinoneck_tiny").with_layers([1, 3, 5])
    neck = STAPyramid(64, 128 if name in ("dfine", "rtdetrv2") else 32)
    options = {"variant": "tiny", "queries": 20} if name == "dfine" else {}
    if name == "rtdetrv2":
        options = {"queries": 20}
    detector = Detector(DetectionHead(name, ("red", "blue"), neck, **options), backbone, SIZE)
    detector.train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()  # statistics of a batch are those of the part
        config = getattr(module, "config", None)
        if hasattr(config, "num_denoising"):
            config.num_denoising = 0  # noisy boxes are drawn for each part
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return detector


@pytest.mark.parametrize("name", ["fcos", "retinanet", "dfine", "rtdetrv2"])
def test_losses_and_gradients_of_parts_add_up(name: str) -> None:
    if name in ("dfine", "rtdetrv2"):
        pytest.importorskip("transformers", reason="needs dinoneck[detection]")
    detector = detector_of(name)
    images = torch.rand(5, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    parameters = [p for p in detector.head.parameters() if p.requires_grad]

    def gradient(losses: dict[str, Tensor]) -> list[Tensor]:
        # loss_ddf of D-FINE weighs means of two sets of queries by the roots of their numbers
        total = torch.stack([x for key, x in losses.items() if key != "loss_ddf"]).sum()
        grads = torch.autograd.grad(total, parameters, allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)
        ]

    whole = detector(images, targets())
    expected = gradient(whole)
    counts = loss_counts(detector.head, targets(), SIZE)
    assert counts[2] == (1 if name == "retinanet" else 0)
    losses: dict[str, float] = dict.fromkeys(whole, 0.0)
    added = [torch.zeros_like(p) for p in parameters]
    for rows in PARTS:
        share = max(1.0, sum(counts[rows])) / sum(counts)
        of_part = {key: share * x for key, x in detector(images[rows], targets()[rows]).items()}
        for key, x in of_part.items():
            losses[key] += float(x.detach())
        added = [a + b for a, b in zip(added, gradient(of_part), strict=True)]
    for key, x in whole.items():
        if key != "loss_ddf":
            assert losses[key] == pytest.approx(float(x.detach()), rel=1e-4), key
    norm = torch.nn.utils.get_total_norm(expected)
    difference = torch.nn.utils.get_total_norm(
        [a - b for a, b in zip(added, expected, strict=True)]
    )
    assert difference < 1e-3 * norm


def test_a_run_in_parts_has_the_losses_of_whole_batches(tmp_path: Path) -> None:
    boxes = coloured_boxes.write(tmp_path)
    losses = []
    for accumulate in (1, 2):
        config = config_of(
            boxes,
            head={"type": "spatial_tuning_adapter", "out_channels": 32, "norm": "group"},
            optim={"batch_size": 4, "epochs": 2, "seed": 0, "lr": 1e-3, "accumulate": accumulate},
            detector={"augment": "none"},
        )
        train_detector(config, tmp_path / f"run{accumulate}")
        lines = (tmp_path / f"run{accumulate}" / "log.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-4)
