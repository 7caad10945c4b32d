"""A detector in ONNX Runtime gives the boxes of torch, on images and at sizes that its export has not seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import kit
from tests.unit.detection.test_detector import detector_of

from dinoneck.detection import Detector
from dinoneck.detection.onnx import (
    FLOAT32_MODULES,
    FLOAT32_TOLERANCE,
    HALF_TOLERANCE,
    BoxTolerance,
    OneImage,
    compare_boxes,
    exported_model,
)
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.export.onnx_file import modules_of

onnx = pytest.importorskip("onnx", reason="needs dinoneck[export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs dinoneck[export]")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter


@pytest.mark.campaign
def test_a_file_of_another_size_gives_the_boxes_and_states_it(tmp_path: Path) -> None:
    size = (64, 160)
    detector = detector_of("fcos")
    kit.randomised(detector.head, std=0.1)

    parity = detector.export_onnx(tmp_path / "detector.onnx", size=size)

    assert parity is not None
    assert parity.compared > 50
    session = onnxruntime.InferenceSession(tmp_path / "detector.onnx")
    facts = json.loads(session.get_modelmeta().custom_metadata_map["dinoneck_detector"])
    assert (facts["classes"], facts["size"]) == (["red", "blue"], list(size))
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        [expected] = detector(image)
    pair = (
        [expected[key].numpy() for key in ("boxes", "scores", "labels")],
        session.run(None, {"image": image.numpy()}),
    )
    assert compare_boxes([pair], FLOAT32_TOLERANCE).unmatched == 0


def half_export(detector: Detector, path: Path) -> onnx.ModelProto:
    """Write a detector in half precision and read the file."""
    parity = detector.export_onnx(path, half=True)
    assert parity is not None
    assert parity.compared > 50
    assert parity.box_px < 1.0 and parity.score < 0.02
    model = onnx.load(path)
    facts = json.loads(model.metadata_props[0].value)
    assert facts["half"] is True
    assert facts["parity"]["compared"] == parity.compared
    assert facts["parity"]["tolerance"] == {"box_px": 1.0, "score": 0.02, "unmatched": 0.02}
    return model


@pytest.mark.campaign
@pytest.mark.parametrize("kind", ["fcos", "retinanet", "dfine", "rtdetrv2"])
def test_a_half_file_computes_products_in_float16_but_those_of_boxes_and_places(
    kind: str, tmp_path: Path
) -> None:
    """Scores of untrained detectors are low: they are raised, so that boxes are compared."""
    detector = detector_of(kind)
    kit.randomised(detector.head, std=0.1)
    model = half_export(detector, tmp_path / "half.onnx")
    full = exported_model(OneImage(detector), detector.size)

    # the same products, of which those in float32 are of the modules that stay so
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    in_half = set()
    for node in model.graph.node:
        if node.op_type == "Cast":
            [target] = [attribute.i for attribute in node.attribute if attribute.name == "to"]
            types[node.output[0]] = target
        is_product = node.op_type in ("MatMul", "Gemm", "Conv")
        if is_product and types.get(node.input[0]) == onnx.TensorProto.FLOAT16:
            in_half.add(node.name)
            types[node.output[0]] = onnx.TensorProto.FLOAT16
    stayed = set()
    for node in full.graph.node:
        if node.op_type in ("MatMul", "Gemm", "Conv") and node.name not in in_half:
            stayed |= modules_of(node) & set(FLOAT32_MODULES)
            assert modules_of(node) & set(FLOAT32_MODULES)
    of_torchvision = {"cls_logits", "bbox_reg", "bbox_ctrness"}
    of_rf_detr = {"enc_out_class_embed", "enc_out_bbox_embed", "ref_point_head"}
    expected = {
        "fcos": of_torchvision,
        "retinanet": {"cls_logits", "bbox_reg"},
        "dfine": {*FLOAT32_MODULES} - of_torchvision - of_rf_detr,
        "rtdetrv2": {"enc_score_head", "enc_bbox_head", "class_embed", "bbox_embed"}
        | {"query_pos_head", "sampling_offsets"},
    }
    assert stayed == expected[kind]
    assert len(in_half) > 20
    # inputs and outputs stay in float32, and no path of this machine is in the file
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert b"onnx.py" not in (tmp_path / "half.onnx").read_bytes()


@pytest.mark.campaign
def test_a_half_file_with_other_boxes_is_refused_and_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = detector_of("fcos")
    kit.randomised(detector.head, std=0.1)
    exact = BoxTolerance(box_px=1e-9, score=1e-9, unmatched=0.02)
    monkeypatch.setattr("dinoneck.detection.onnx.HALF_TOLERANCE", exact)
    with pytest.raises(
        CheckpointError, match=r"in float16 (\d+) of \1 boxes .* nothing was written"
    ):
        detector.export_onnx(tmp_path / "half.onnx", half=True)
    assert not (tmp_path / "half.onnx").exists()


@pytest.mark.campaign
def test_lora_is_merged_into_the_weights_of_the_file_alone(tmp_path: Path) -> None:
    """The products of LoRA have no place in the file, whose boxes are those with LoRA."""
    detector = detector_of("fcos")
    kit.randomised(detector.head, std=0.1)
    detector.export_onnx(tmp_path / "plain.onnx")
    detector.backbone.add_lora(rank=2)
    for name, parameter in detector.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    detector.note_trained()

    parity = detector.export_onnx(tmp_path / "lora.onnx")

    assert parity is not None and parity.compared > 50
    nodes = {name: onnx.load(tmp_path / f"{name}.onnx").graph.node for name in ("plain", "lora")}
    counts = {name: [node.op_type for node in of].count("MatMul") for name, of in nodes.items()}
    assert counts["lora"] == counts["plain"]
    assert detector.backbone.adapter.lora is not None  # a copy was merged


@pytest.mark.campaign
@pytest.mark.parametrize(
    ("logit", "is_compared"),
    [
        pytest.param(-4.6, False, id="score 0.01 as of an untrained detector"),
        pytest.param(-2.0, True, id="score 0.12"),
    ],
)
def test_the_export_says_whether_there_were_boxes_to_compare(
    logit: float, is_compared: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    detector = detector_of("fcos")
    torch.nn.init.constant_(detector.head.model.head.classification_head.cls_logits.bias, logit)
    # a centreness of almost 1 leaves the scores as they are
    torch.nn.init.constant_(detector.head.model.head.regression_head.bbox_ctrness.bias, 4.0)

    parity = detector.export_onnx(tmp_path / "d.onnx")

    assert parity is not None
    assert (parity.compared > 0) is is_compared
    assert ("so none was compared" in caplog.text) is not is_compared


def test_half_is_of_detectors_in_float32(tmp_path: Path) -> None:
    detector = detector_of("fcos").to(torch.float64)
    with pytest.raises(ConfigError, match="half is True, and the detector computes in float64"):
        detector.export_onnx(tmp_path / "half.onnx", half=True)


def test_boxes_are_compared_as_sets() -> None:
    """Of three boxes one is 0.05 px and 0.0004 off, one is of a low score, one has no counterpart."""
    first = [
        np.array([[0.0, 0, 9, 9], [5, 5, 8, 8], [1, 1, 4, 4]]),
        np.array([0.9, 0.01, 0.5]),
        np.array([0, 1, 1]),
    ]
    second = [
        np.array([[1.0, 1, 4, 6], [0, 0.05, 9, 9]]),
        np.array([0.5, 0.9004]),
        np.array([1, 0]),
    ]
    parity = compare_boxes([(first, second)], FLOAT32_TOLERANCE)
    assert (parity.compared, parity.unmatched) == (4, 2)
    assert parity.box_px == pytest.approx(0.05)
    assert parity.score == pytest.approx(0.0004)
    assert "[1.0, 1.0, 4.0, 4.0] of class 1, score 0.5000" in str(parity.first_unmatched)

    near = HALF_TOLERANCE._replace(box_px=2.5)
    parity = compare_boxes([(first, second)], near)
    assert (parity.compared, parity.unmatched, parity.box_px) == (4, 0, 2.0)


@pytest.mark.parametrize(
    ("difference", "unmatched"),
    [
        pytest.param(0.0004, 0, id="rounding"),
        pytest.param(0.5, 2, id="another object"),
    ],
)
def test_boxes_with_other_masks_are_no_counterparts(difference: float, unmatched: int) -> None:
    box = [np.array([[0.0, 0, 9, 9]]), np.array([0.9]), np.array([0])]
    mask = np.full((1, 3, 3), 0.25)

    first = [*box, mask]
    second = [*box, mask + difference]

    parity = compare_boxes([(first, second)], FLOAT32_TOLERANCE)

    assert (parity.compared, parity.unmatched) == (2, unmatched)


def test_other_boxes_are_found_out() -> None:
    one = [np.array([[0.0, 0, 9, 9], [5, 5, 8, 8]]), np.array([0.9, 0.01]), np.array([0, 1])]
    fewer = [x[:1] for x in one]
    assert (
        compare_boxes([(one, fewer)], FLOAT32_TOLERANCE).unmatched == 0
    )  # scores below 0.05 do not count
    for other in (
        [one[0] + 1, one[1], one[2]],
        [one[0], one[1] - 0.1, one[2]],
        [one[0], one[1], one[2] + 1],
        [one[0][1:], one[1][1:], one[2][1:]],
    ):
        parity = compare_boxes([(one, other)], FLOAT32_TOLERANCE)
        assert parity.unmatched
        assert "in one of them only" in str(parity.first_unmatched)
