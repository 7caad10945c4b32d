"""An exported detector finds the boxes of its head file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests import kit

from dinoneck import Predictor, STAPyramid
from dinoneck.detection import DetectionHead, Detector
from dinoneck.runtime import ExportedDetector


@pytest.mark.slow
def test_an_exported_detector_finds_the_boxes_of_its_head_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    head = DetectionHead("fcos", ("red", "blue"), STAPyramid(64, 32))
    with torch.no_grad():  # untrained, it would be sure of nothing
        head.model.head.classification_head.cls_logits.bias += 4.0
    detector = Detector(head, kit.backbone(layers=[0]), (64, 96)).eval()
    detector.min_score = 0.3
    detector.save(tmp_path / "detector.safetensors")
    loaded = Detector.load(tmp_path / "detector.safetensors")
    loaded.export_onnx(tmp_path / "detector.onnx", check=False)
    pixels = np.random.default_rng(0).integers(0, 256, (130, 150, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")

    exported = Predictor(str(tmp_path / "detector.onnx"))
    assert isinstance(exported, ExportedDetector)
    assert exported.min_score == 0.3
    [expected] = loaded.predict(tmp_path / "image.png")
    [row] = exported(tmp_path / "image.png")
    assert len(expected["scores"]) > 3
    assert row["names"] == expected["names"]
    np.testing.assert_allclose(row["scores"], expected["scores"].numpy(), atol=1e-4)
    np.testing.assert_allclose(row["boxes"], expected["boxes"].numpy(), atol=0.01)
