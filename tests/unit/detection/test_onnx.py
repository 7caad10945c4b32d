"""A detector in ONNX Runtime gives the boxes of torch, on images and at sizes that its export has not seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.detection.test_detector import detector_of

from dinoneck.detection.onnx import dense_detections, unmatched

onnxruntime = pytest.importorskip("onnxruntime", reason="needs dinoneck[export]")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter


@pytest.mark.parametrize("kind", ["fcos", "retinanet"])
@torch.no_grad()
def test_the_form_without_shapes_that_depend_on_data_is_torchvisions(kind: str) -> None:
    model = detector_of(kind).eval().head.model
    model.score_thresh = 0.01  # untrained scores are low
    for parameter in model.head.parameters():
        # untrained boxes are anchors, with overlaps of exactly 1/2
        parameter.add_(0.03 * torch.randn_like(parameter))
    images = torch.randn(1, 3, 96, 128)
    [wanted] = model([images[0]])
    boxes, scores, labels = dense_detections(model, images)
    count = len(wanted["scores"])
    assert count > 5 and not scores[count:].any()
    found = (boxes[:count], scores[:count], labels[:count])
    assert (
        unmatched(
            [x.numpy() for x in found],
            [wanted[key].numpy() for key in ("boxes", "scores", "labels")],
        )
        is None
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fcos", "retinanet", "dfine", "rtdetrv2"])
def test_boxes_are_equal_on_unseen_images_and_at_another_size(kind: str, tmp_path: Path) -> None:
    """Each export has one size: both sizes for one detector of torchvision and one of transformers."""
    for size, cells in (((64, 160), 210), ((96, 128), 252))[
        : 2 if kind in ("fcos", "dfine") else 1
    ]:
        # untrained scores are near ties: with as many queries as cells, no choice among them
        # decides
        detector = detector_of(kind, queries=cells) if kind == "rtdetrv2" else detector_of(kind)
        detector.export_onnx(tmp_path / f"{size[0]}.onnx", size=size)
        session = onnxruntime.InferenceSession(tmp_path / f"{size[0]}.onnx")
        facts = json.loads(session.get_modelmeta().custom_metadata_map["dinoneck_detector"])
        assert (facts["classes"], facts["size"]) == (["red", "blue"], list(size))
        image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            [own] = detector(image)
        found = session.run(None, {"image": image.numpy()})
        assert unmatched([own[key].numpy() for key in ("boxes", "scores", "labels")], found) is None


def test_other_boxes_are_found_out() -> None:
    one = [np.array([[0.0, 0, 9, 9], [5, 5, 8, 8]]), np.array([0.9, 0.01]), np.array([0, 1])]
    assert unmatched(one, [x[:1] for x in one]) is None  # scores below 0.05 do not count
    for other in (
        [one[0] + 1, one[1], one[2]],
        [one[0], one[1] - 0.1, one[2]],
        [one[0], one[1], one[2] + 1],
        [one[0][1:], one[1][1:], one[2][1:]],
    ):
        assert "in one of them only" in str(unmatched(one, other))
