"""An exported detector finds the boxes of its head file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import kit

from dinoneck import ConfigError, DataError, Predictor, STAPyramid
from dinoneck.cli.main import main
from dinoneck.detection import DetectionHead, Detector
from dinoneck.runtime import ExportedDetector, open_exported
from dinoneck.runtime.session import run_session


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


def constant_detector(path: Path, label: int = 1) -> Path:
    """A file that finds the same two boxes, of the scores 0.9 and 0.4, in every image."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper = onnx.helper
    constants = {
        "boxes": np.array([[0, 0, 4, 4], [2, 2, 8, 8]], np.float32),
        "scores": np.array([0.9, 0.4], np.float32),
        "labels": np.array([0, label], np.int64),
    }
    nodes = []
    outputs = []
    for name, values in constants.items():
        tensor = onnx.numpy_helper.from_array(values, name)
        nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        outputs.append(helper.make_tensor_value_info(name, tensor.data_type, values.shape))
    image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 16, 16])
    graph = helper.make_graph(nodes, "detector", [image], outputs)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    record = {
        "classes": ["red", "blue"],
        "detector": "fcos",
        "dinoneck": "0.4.0",
        "min_score": 0.3,
        "size": [16, 16],
    }
    proto.metadata_props.add(key="dinoneck_detector", value=json.dumps(record))
    onnx.save(proto, path)
    return path


IMAGE = np.zeros((16, 16, 3), np.uint8)


def test_an_exported_detector_is_called_as_a_predictor(tmp_path: Path) -> None:
    detector = open_exported(constant_detector(tmp_path / "detector.onnx"))
    assert detector.one(IMAGE)["names"] == ["red", "blue"]
    assert detector.one(IMAGE, min_score=0.5)["names"] == ["red"]
    [row] = detector(IMAGE, min_score=np.float32(0.5))
    assert row["names"] == ["red"]
    with pytest.raises(ConfigError, match="a detector has no maps"):
        detector(IMAGE, "patch")


@pytest.mark.parametrize("min_score", [1.5, -0.1, float("nan"), "high"])
def test_a_smallest_score_is_a_number_from_0_to_1(min_score: Any, tmp_path: Path) -> None:
    file = constant_detector(tmp_path / "detector.onnx")
    with pytest.raises(ConfigError, match="min_score is"):
        open_exported(file, min_score=min_score)
    with pytest.raises(ConfigError, match="min_score is"):
        open_exported(file).one(IMAGE, min_score=min_score)


@pytest.mark.parametrize("label", [2, -1])
def test_a_label_of_no_class_is_refused(label: int, tmp_path: Path) -> None:
    detector = open_exported(constant_detector(tmp_path / "detector.onnx", label))
    with pytest.raises(DataError, match=f"gives the label {label} and states 2 classes"):
        detector.one(IMAGE)


def test_a_size_of_batches_has_no_effect_on_an_exported_detector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = constant_detector(tmp_path / "detector.onnx")
    Image.fromarray(IMAGE).save(tmp_path / "image.png")
    words = ["predict", str(tmp_path / "image.png"), "--heads", str(file)]
    words += ["--out", str(tmp_path / "p.csv")]
    assert main([*words, "--batch-size", "2"]) == 1
    assert "an exported detector, which takes one image at a time, so leave out --batch-size" in (
        capsys.readouterr().err
    )
    assert main(words) == 0


def test_a_failure_counts_its_images() -> None:
    class Failing:
        def run(self, *_: Any) -> list[Any]:
            raise RuntimeError("no memory")

    session: Any = Failing()
    with pytest.raises(DataError, match="fails on 1 image of 16x16 px: no memory"):
        run_session(session, ["boxes"], "image", np.zeros((1, 3, 16, 16), np.float32))
