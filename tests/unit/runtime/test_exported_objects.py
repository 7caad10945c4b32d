"""Exported heads of objects give the objects of their heads, and the same scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests import kit
from tests.unit.runtime.test_exported_files import changed

from dinoneck import CheckpointError, ConfigError, MaskHead, Predictor, PyramidHead, Task, evaluate
from dinoneck.data import Preprocessing
from dinoneck.export import export_model
from dinoneck.inference import coco_objects
from dinoneck.runtime import open_exported

LABELS = ("leaf", "soil")
INSTANCES = Task("object", dim=2, kind="instances", labels=LABELS)
PANOPTIC = Task("object", dim=2, kind="panoptic", labels=LABELS, things=("leaf",))
# images of other sizes lie in a part of the prepared one
RECIPE = Preprocessing(patch_size=16, size=(80, 96), resize="pad")


def head_named(name: str) -> Any:
    if name == "centres":
        neck = {"type": "simple_pyramid", "out_channels": 8}
        return kit.randomised(PyramidHead(64, [INSTANCES], neck))
    task = PANOPTIC if name == "panoptic" else INSTANCES
    head = MaskHead(64, [task], 1, 12, 1, 2, 8)
    return kit.randomised(head, std=0.4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a head of queries, for one size of images."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    file = tmp_path_factory.mktemp("objects") / "queries.onnx"
    backbone = kit.backbone(layers=[0])
    export_model(head_named("queries"), file, backbone=backbone, size=(80, 96), check=False)
    return changed(file, file.with_name("padded.onnx"), preprocess=RECIPE.record())


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 130, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("images") / "image.png"
    Image.fromarray(pixels).save(path)
    return path


def assert_same_objects(objects: Any, expected: Any) -> None:
    """To the rounding of logits: a pixel where one is 0 may fall to either side."""
    if isinstance(expected, tuple):
        segments, infos = objects
        expected_segments, expected_infos = expected
        assert segments.shape == expected_segments.shape == (70, 130)
        assert (segments != expected_segments).mean() < 1e-3
        assert [info["category_id"] for info in infos] == [
            info["category_id"] for info in expected_infos
        ]
        return
    assert objects.keys() == expected.keys()
    np.testing.assert_array_equal(objects["labels"], expected["labels"])
    np.testing.assert_allclose(objects["scores"], expected["scores"], atol=1e-4)
    assert objects["masks"].shape[1:] == (70, 130)
    assert (objects["masks"] != expected["masks"]).mean() < 1e-3


@pytest.mark.slow
def test_a_file_gives_the_objects_of_its_head(exported: Path, image: Path) -> None:
    predictor = Predictor(head_named("queries"), kit.backbone(layers=[0]), preprocess=RECIPE)
    expected = predictor.one(image, min_score=0.05)["object"]

    row = Predictor(str(exported)).one(image, min_score=0.05)

    assert len(expected["scores"]) > 1
    assert_same_objects(row["object"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["centres", "panoptic"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_files_of_other_heads_give_their_objects(
    name: str, runtime: Any, image: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip(runtime)
    backbone = kit.backbone(layers=[0])
    head = head_named(name)
    export_model(head, tmp_path / "m.onnx", backbone=backbone, check=False)
    file = changed(tmp_path / "m.onnx", tmp_path / "padded.onnx", preprocess=RECIPE.record())
    expected = Predictor(head, backbone, preprocess=RECIPE).one(image, min_score=0.05)["object"]

    row = Predictor(str(file), runtime=runtime).one(image, min_score=0.05)

    assert len(expected[1] if name == "panoptic" else expected["scores"]) > 0
    assert_same_objects(row["object"], expected)


def test_a_file_has_the_scores_of_its_head(exported: Path, image: Path, tmp_path: Path) -> None:
    """The truth is two objects of the head's, and a third that it does not find."""
    pytest.importorskip("pycocotools")
    predictor = Predictor(head_named("queries"), kit.backbone(layers=[0]), preprocess=RECIPE)
    objects = coco_objects(predictor.one(image, min_score=0.0)["object"])[:2]
    missed = {**objects[0], "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]], "bbox": [1, 1, 3, 3]}
    annotations = []
    for number, record in enumerate([*objects, missed]):
        about = {"id": number + 1, "image_id": 1, "iscrowd": 0}
        about["category_id"] = record["category_id"] + 1
        shape = {"bbox": record["bbox"], "segmentation": record["segmentation"]}
        annotations.append(about | shape | {"area": record["bbox"][2] * record["bbox"][3]})
    entry = {"id": 1, "file_name": image.name, "width": 130, "height": 70}
    categories = [{"id": i + 1, "name": label} for i, label in enumerate(LABELS)]
    content = {"images": [entry], "annotations": annotations, "categories": categories}
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(content))

    scores = evaluate({"head": predictor, "file": str(exported)}, image.parent, truth)["masks"]

    assert 0.2 < scores["head"]["AP"] < 1.0
    assert scores["file"]["AP"] == pytest.approx(scores["head"]["AP"], abs=1e-3)
    words = ["evaluate", str(image.parent), "--heads", str(exported), "--truth", str(truth)]
    ran = kit.cli(*words, "--json")
    assert ran.json["masks"]["head"]["AP"] == scores["file"]["AP"]


def test_without_a_decoder_objects_are_refused(exported: Path) -> None:
    with pytest.raises(CheckpointError, match="predicts objects .object., which are decoded with"):
        open_exported(exported)


def test_the_smallest_score_of_objects_is_a_number_from_0_to_1(exported: Path) -> None:
    with pytest.raises(ConfigError, match="min_score is 2"):
        Predictor(str(exported)).one(np.zeros((80, 96, 3), np.uint8), min_score=2)


def test_outputs_that_make_no_objects_are_refused(exported: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    [entry] = [
        entry for entry in onnx.load(exported).metadata_props if entry.key == "dinoneck_export"
    ]
    described = json.loads(entry.value)["outputs"]
    without_masks = [output for output in described if output["of"] != "masks"]
    file = changed(exported, tmp_path / "m.onnx", outputs=without_masks)
    with pytest.raises(CheckpointError, match="do not give the objects of the task 'object'"):
        Predictor(str(file))
