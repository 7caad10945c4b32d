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
from tests.export.exported_models import detector_named

from dinoneck import CheckpointError, ConfigError, DataError, Predictor, STAPyramid, evaluate
from dinoneck.cli.main import main
from dinoneck.cli.text import show_scores
from dinoneck.detection import DetectionHead, Detector, evaluate_boxes
from dinoneck.inference import coco_objects
from dinoneck.kinds import FILE_RUNTIMES
from dinoneck.runtime import ExportedDetector, open_exported
from dinoneck.runtime.session import run_session


@pytest.mark.campaign
def test_an_exported_detector_finds_the_boxes_of_its_head_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    head = DetectionHead("fcos", ("red", "blue"), STAPyramid(64, 32))
    with torch.no_grad():  # untrained, it would be sure of nothing
        head.model.head.classification_head.cls_logits.bias += 4.0
    detector = Detector(head, kit.backbone(layers=[0]), (64, 96)).eval()
    detector.min_score = 0.3
    detector.thresholds = (0.35, 0.3)
    detector.save(tmp_path / "detector.safetensors")
    loaded = Detector.load(tmp_path / "detector.safetensors")
    loaded.export_onnx(tmp_path / "detector.onnx", check=False)
    pixels = np.random.default_rng(0).integers(0, 256, (130, 150, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")

    exported = Predictor(str(tmp_path / "detector.onnx"))
    assert isinstance(exported, ExportedDetector)
    assert exported.min_score == 0.3
    assert exported.thresholds == (0.35, 0.3)
    [expected] = loaded.predict(tmp_path / "image.png")
    [row] = exported(tmp_path / "image.png")
    assert len(expected["scores"]) > 3
    assert row["names"] == expected["names"]
    np.testing.assert_allclose(row["scores"], expected["scores"].numpy(), atol=1e-4)
    np.testing.assert_allclose(row["boxes"], expected["boxes"].numpy(), atol=0.01)


def constant_detector(path: Path, label: int = 1, **facts: Any) -> Path:
    """A file that finds the same two boxes, of the scores 0.9 and 0.4, in every image, and states these facts."""
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
        **facts,
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


def test_an_exported_detector_leaves_out_what_is_below_the_threshold_of_its_class(
    tmp_path: Path,
) -> None:
    file = constant_detector(tmp_path / "detector.onnx", thresholds=[0.95, 0.35])
    detector = open_exported(file)
    assert isinstance(detector, ExportedDetector)

    assert detector.thresholds == (0.95, 0.35)
    assert detector.one(IMAGE)["names"] == ["blue"]
    assert detector.one(IMAGE, min_score=0.3)["names"] == ["red", "blue"]
    assert open_exported(file, min_score=0.5).one(IMAGE)["names"] == ["red"]
    detector.min_score = 0.3
    assert detector.one(IMAGE)["names"] == ["red", "blue"]


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 1.5], [0.5, "high"], 0.5])
def test_an_exported_detector_has_one_threshold_per_class(thresholds: Any, tmp_path: Path) -> None:
    file = constant_detector(tmp_path / "detector.onnx", thresholds=thresholds)
    with pytest.raises(CheckpointError, match="its description is damaged"):
        open_exported(file)


@pytest.mark.parametrize("min_score", [1.5, -0.1, float("nan"), "high"])
def test_a_smallest_score_is_a_number_from_0_to_1(min_score: Any, tmp_path: Path) -> None:
    file = constant_detector(tmp_path / "detector.onnx")
    with pytest.raises(ConfigError, match="min_score is"):
        open_exported(file, min_score=min_score)
    with pytest.raises(ConfigError, match="min_score is"):
        open_exported(file).one(IMAGE, min_score=min_score)
    with pytest.raises(ConfigError, match="min_score is"):
        open_exported(file).min_score = min_score


def two_images(folder: Path, sides: tuple[int, int] = (16, 32)) -> Path:
    """Square images with the boxes of :func:`constant_detector` in them; the second lacks the blue one."""
    folder.mkdir()
    images = []
    annotations = []
    for number, side in enumerate(sides):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": side, "height": side})
        scale = side / 16
        boxes = [(1, [0, 0, 4 * scale, 4 * scale])]
        if number == 0:
            boxes.append((2, [2 * scale, 2 * scale, 6 * scale, 6 * scale]))
        for category, box in boxes:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": box,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    file = folder / "boxes.json"
    file.write_text(json.dumps(content))
    return file


def test_the_boxes_of_an_exported_detector_are_scored(tmp_path: Path) -> None:
    """Of the class red both boxes are found; of blue the one that is there, and with the same score one that is not."""
    pytest.importorskip("pycocotools")
    file = constant_detector(tmp_path / "detector.onnx")
    truth = two_images(tmp_path / "images")

    report = evaluate(str(file), None, truth)
    scores = report["boxes"]["head"]

    assert scores["per_class"]["red"]["AP"] == pytest.approx(1.0)
    assert scores["per_class"]["blue"]["AP"] == pytest.approx(1.0)
    assert scores["F1"] == pytest.approx(
        6 / 7
    )  # three of four boxes are right, and three of three found
    assert report["cost"]["head"].keys() == {"seconds_per_image"}
    assert evaluate_boxes(open_exported(file), truth) == scores
    compared = evaluate({"first": str(file), "second": open_exported(file)}, None, truth)
    assert compared["boxes"]["second"]["AP"] == scores["AP"]


def test_the_command_line_scores_an_exported_detector(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    file = constant_detector(tmp_path / "detector.onnx")
    truth = two_images(tmp_path / "images")
    words = ["evaluate", str(truth.parent), "--heads", str(file), "--truth", str(truth)]
    ran = kit.cli(*words, "--at-least", "AP=0.9", "--json")
    assert ran.json["boxes"]["head"]["AP"] == pytest.approx(1.0)


def test_models_without_parameters_have_a_dash_in_the_table_of_costs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An exported file has seconds alone, and may be the first or a later model."""
    of_file = {"seconds_per_image": 0.5}
    of_head = {"seconds_per_image": 0.25, "parameters": 7, "backbone_parameters": 9}
    for costs in ({"file": of_file, "head": of_head}, {"head": of_head, "file": of_file}):
        show_scores({"cost": costs, "verdict": None}, held_out=False)
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ["file", "0.5", "–", "–"] in lines
        assert ["head", "0.25", "7", "9"] in lines


def truth_of(detector: Detector, folder: Path) -> Path:
    """Images of noise, whose truth is the three best boxes of a detector in each, with their masks if it gives any."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    images = []
    annotations = []
    for number, (height, width) in enumerate([(130, 150), (96, 128), (200, 111)]):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        name = f"{number}.png"
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        [prediction] = detector.predict(folder / name, min_score=0.0, max_boxes=3)
        masks = coco_objects(prediction) if detector.has_masks else [{}] * 3
        boxes = prediction["boxes"].tolist()
        labels = prediction["labels"].tolist()
        for (left, top, right, bottom), label, mask in zip(boxes, labels, masks, strict=True):
            annotations.append(
                {
                    "bbox": [left, top, right - left, bottom - top],
                    **mask,
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "iscrowd": 0,
                }
            )
    categories = []
    for number, name in enumerate(detector.classes):
        categories.append({"id": number + 1, "name": name})
    content = {"images": images, "annotations": annotations, "categories": categories}
    file = folder / "truth.json"
    file.write_text(json.dumps(content))
    return file


@pytest.mark.campaign
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_exported_file_has_the_masks_of_its_model(runtime: Any, tmp_path: Path) -> None:
    """In the pixels of an image; where a resampled logit is 0 to rounding, a pixel may fall to either side."""
    pytest.importorskip("onnxscript")
    pytest.importorskip(runtime)
    detector = detector_named("rf_detr_seg")
    detector.export_onnx(tmp_path / "detector.onnx", check=False)
    exported = Predictor(str(tmp_path / "detector.onnx"), runtime=runtime)
    pixels = np.random.default_rng(0).integers(0, 256, (130, 150, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")

    [row] = exported(tmp_path / "image.png", min_score=0.0)
    [expected] = detector.predict(tmp_path / "image.png", min_score=0.0)

    masks = expected["masks"].numpy()
    assert row["masks"].shape == masks.shape == (len(expected["scores"]), 130, 150)
    assert row["names"] == expected["names"]
    assert 0.01 < masks.mean() < 0.99
    assert (row["masks"] != masks).mean() < 1e-4
    np.testing.assert_allclose(row["boxes"], expected["boxes"].numpy(), atol=0.02)
    np.testing.assert_allclose(row["scores"], expected["scores"].numpy(), atol=1e-4)


@pytest.mark.campaign
@pytest.mark.parametrize(("name", "key"), [("dfine", "boxes"), ("rf_detr_seg", "masks")])
def test_an_exported_detector_has_the_scores_of_its_head_file(
    name: str, key: str, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("pycocotools")
    pytest.importorskip("openvino")
    detector = detector_named(name)
    detector.export_onnx(tmp_path / "detector.onnx", check=False)
    truth = truth_of(detector, tmp_path / "images")
    models: dict[str, Any] = {"head": detector}
    for runtime in FILE_RUNTIMES:
        models[runtime] = Predictor(str(tmp_path / "detector.onnx"), runtime=runtime)

    scores = evaluate(models, None, truth)[key]

    assert scores["head"]["AP"] > 0.3
    for runtime in FILE_RUNTIMES:
        assert scores[runtime]["AP"] == pytest.approx(scores["head"]["AP"], abs=1e-3)
        assert scores[runtime]["F1"] == pytest.approx(scores["head"]["F1"], abs=1e-3)


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
