"""Reading of maps and suppression of boxes in plain operators equal those of torch and torchvision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.export.runtimes import RUNTIMES
from tests.unit.detection.test_detector import detector_of
from torch import Tensor, nn
from torchvision.ops import batched_nms

from dinoneck.detection.onnx import dense_candidates
from dinoneck.detection.plain_operators import add_suppression, sample_by_gathers
from dinoneck.errors import CheckpointError

onnx = pytest.importorskip("onnx", reason="needs dinoneck[export]")
pytest.importorskip("onnxruntime", reason="needs dinoneck[export]")
pytest.importorskip("openvino", reason="needs dinoneck[fast]")


def test_gathers_read_between_cells_and_zeros_outside() -> None:
    """By hand on a map of one row, 10 and 30, whose centres lie at x = -0.5 and 0.5."""
    maps = torch.tensor([[[[10.0, 30.0]]]])
    x = torch.tensor([-0.5, 0.0, 0.25, 0.5, 1.0, 1.5, -7.0])
    points = torch.stack((x, torch.zeros_like(x)), dim=-1)[None, None]

    values = sample_by_gathers(maps, points, 0, 0, False)

    expected = [10.0, 20.0, 25.0, 30.0, 15.0, 0.0, 0.0]
    assert values.flatten().tolist() == expected


@pytest.mark.parametrize("sizes", [(5, 7), (1, 1), (1, 9), (32, 20)], ids=str)
def test_gathers_equal_grid_sample(sizes: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 4, *sizes, generator=generator, dtype=torch.float64)
    points = 3 * torch.rand(3, 6, 5, 2, generator=generator, dtype=torch.float64) - 1.5
    points[0, 0] = torch.tensor([[-1.0, 1], [1, -1], [0, 0], [1e20, 0], [-1e20, 3]])

    values = sample_by_gathers(maps, points, 0, 0, False)

    expected = F.grid_sample(maps, points, align_corners=False)
    assert values.shape == expected.shape
    torch.testing.assert_close(values, expected, rtol=0.0, atol=1e-12)


def test_places_are_computed_in_float32_on_maps_in_float16() -> None:
    """Between a column of zeros and one of ones, the value is the share of a cell that a point lies to the right.

    float16 would hold a place near column 90 to 1/32 of a cell, and the share with it.
    """
    columns = (torch.arange(128) % 2).half()
    maps = columns.expand(1, 1, 4, 128)
    places = torch.tensor([90.02, 90.17, 90.29])
    x = ((places.double() + 0.5) / 64 - 1).half()
    points = torch.stack((x, torch.zeros_like(x)), dim=-1)[None, None]

    values = sample_by_gathers(maps, points, 0, 0, False)

    shares = (x.double() + 1) * 64 - 0.5 - 90
    assert values.dtype == torch.float16
    torch.testing.assert_close(values.flatten().double(), shares, rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("point", [(math.nan, 0.0), (0.0, math.nan)], ids=["x", "y"])
def test_a_point_at_nan_reads_nan_and_its_neighbour_a_number(point: tuple[float, float]) -> None:
    """As torch's ``grid_sample`` does: a broken model must not give confident boxes."""
    points = torch.tensor([[[point, (0.0, 0.0)]]])

    values = sample_by_gathers(torch.ones(1, 1, 3, 3), points, 0, 0, False)

    assert values.flatten().isnan().tolist() == [True, False]


@pytest.mark.parametrize("settings", [(1, 0, False), (0, 1, False), (0, 0, True)], ids=str)
def test_other_kinds_of_reading_are_refused(settings: tuple[int, int, bool]) -> None:
    maps = torch.ones(1, 1, 3, 3)
    with pytest.raises(CheckpointError, match="expected .0, 0, False., bilinear with zeros"):
        sample_by_gathers(maps, torch.zeros(1, 1, 1, 2), *settings)


class Reader(nn.Module):
    """Reads maps at points."""

    def forward(self, maps: Tensor, points: Tensor) -> Tensor:
        """Return values (B, C, h, w)."""
        return F.grid_sample(maps, points, align_corners=False)


@pytest.mark.slow
def test_a_program_reads_by_gathers_and_torch_itself_does_not() -> None:
    inputs = (torch.randn(2, 3, 4, 5), torch.rand(2, 6, 1, 2) * 2 - 1)
    program = torch.export.export(Reader(), inputs, strict=False)

    plain = program.run_decompositions({torch.ops.aten.grid_sampler.default: sample_by_gathers})

    torch.testing.assert_close(plain.module()(*inputs), Reader()(*inputs))
    operators = {str(node.target) for node in plain.graph.nodes}
    assert not [operator for operator in operators if "grid_sampler" in operator]
    unchanged = torch.export.export(Reader(), inputs, strict=False)
    assert "aten.grid_sampler.default" in {str(node.target) for node in unchanged.graph.nodes}


def suppressed(
    candidates: Sequence[Tensor],
    iou_threshold: float,
    num_detections: int,
    *,
    file: Path,
    runtime: str = "ONNX Runtime",
) -> list[np.ndarray[Any, Any]]:
    """Boxes, scores and labels that the nodes leave of candidates."""
    boxes, scores, labels = candidates
    count = len(scores)
    helper = onnx.helper
    float_type = onnx.TensorProto.FLOAT
    types = {
        "boxes": (float_type, [count, 4]),
        "scores": (float_type, [count]),
        "labels": (onnx.TensorProto.INT64, [count]),
    }
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"{name}:input"], [f"{name}:all"]) for name in types],
        "candidates",
        [helper.make_tensor_value_info(f"{name}:input", *types[name]) for name in types],
        [helper.make_tensor_value_info(f"{name}:all", *types[name]) for name in types],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    add_suppression(proto, [*types], iou_threshold=iou_threshold, num_detections=num_detections)

    onnx.checker.check_model(proto, full_check=True)
    assert [output.name for output in proto.graph.output] == [*types]
    onnx.save(proto, file)
    run = RUNTIMES[runtime](file)
    values = (boxes.numpy(), scores.numpy(), labels.numpy())
    outputs = run({f"{name}:input": value for name, value in zip(types, values, strict=True)})
    return [outputs[name] for name in types]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_best_box_suppresses_those_of_its_class_alone(runtime: str, tmp_path: Path) -> None:
    """Boxes of 10 x 10 px, 2 px apart, share 80 of 120 px; two without area share 0 of 0, and both stay."""
    boxes = torch.tensor(
        [
            [0.0, 0.0, 10.0, 10.0],
            [2.0, 0.0, 12.0, 10.0],
            [2.0, 0.0, 12.0, 10.0],
            [50.0, 50.0, 60.0, 60.0],
            [5.0, 5.0, 5.0, 9.0],
            [5.0, 5.0, 5.0, 9.0],
        ]
    )
    scores = torch.tensor([0.5, 0.9, 0.8, 0.0, 0.6, 0.55])
    labels = torch.tensor([0, 0, 1, 0, 0, 0])
    file = tmp_path / "model.onnx"
    candidates = (boxes, scores, labels)

    kept = suppressed(candidates, 0.6, 5, file=file, runtime=runtime)
    more = suppressed(candidates, 0.7, 5, file=file, runtime=runtime)

    kept_boxes, kept_scores, kept_labels = kept
    assert kept_scores.tolist() == pytest.approx([0.9, 0.8, 0.6, 0.55, 0.0])
    assert kept_labels[:4].tolist() == [0, 1, 0, 0]
    assert kept_boxes[:4].tolist() == boxes[[1, 2, 4, 5]].tolist()
    assert more[1].tolist() == pytest.approx([0.9, 0.8, 0.6, 0.55, 0.5])


def test_suppression_is_torchvisions_on_crowded_boxes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    corners = 30 * torch.rand(300, 2, generator=generator)
    sides = 10 + 10 * torch.rand(300, 2, generator=generator)
    boxes = torch.cat((corners, corners + sides), dim=1)
    scores = torch.rand(300, generator=generator)
    labels = torch.randint(0, 3, (300,), generator=generator)
    kept = batched_nms(boxes, scores, labels, 0.5)
    assert 100 < len(kept) < 200

    for count in (30, 200):
        found = suppressed((boxes, scores, labels), 0.5, count, file=tmp_path / "model.onnx")

        expected = kept[:count]
        assert np.array_equal(found[0][: len(expected)], boxes[expected])
        assert np.array_equal(found[1][: len(expected)], scores[expected])
        assert np.array_equal(found[2][: len(expected)], labels[expected])
        assert not found[1][len(expected) :].any()


@pytest.mark.parametrize("kind", ["fcos", "retinanet"])
@torch.no_grad()
def test_what_is_left_of_the_candidates_are_torchvisions_detections(
    kind: str, tmp_path: Path
) -> None:
    model = detector_of(kind).eval().head.model
    model.score_thresh = 0.01  # untrained scores are low
    for parameter in model.head.parameters():
        # untrained boxes are anchors, with overlaps of exactly 1/2
        parameter.add_(0.03 * torch.randn_like(parameter))
    images = torch.randn(1, 3, 96, 128)
    [expected] = model([images[0]])

    candidates = dense_candidates(model, images)
    boxes, scores, labels = suppressed(
        candidates, model.nms_thresh, model.detections_per_img, file=tmp_path / "model.onnx"
    )

    count = len(expected["scores"])
    assert count > 5
    assert not scores[count:].any()
    np.testing.assert_allclose(boxes[:count], expected["boxes"], atol=1e-4)
    np.testing.assert_allclose(scores[:count], expected["scores"], atol=1e-6)
    assert np.array_equal(labels[:count], expected["labels"])
