"""RF-DETR by name: its rows, its files, and what it predicts, next to transformers."""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import logging
import re
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from safetensors.torch import load_file, save_file
from tests.hub_server import WRITER, Hub
from tests.kit import needs_export, same
from tests.unit.detection import rf_detr_files as files
from tests.unit.detection.rf_detr_files import BOXES, MASKS
from transformers import RfDetrImageProcessor

from dinoneck import (
    CheckpointError,
    ConfigError,
    DataError,
    HeadCheckpoint,
    Predictor,
    evaluate,
    load_published,
)
from dinoneck.backbones import openvino, program_costs
from dinoneck.backbones.token_batch import TokenBatch
from dinoneck.cli.main import main
from dinoneck.detection import Detector, onnx
from dinoneck.detection.onnx import FLOAT32_MODULES, BoxParity, OneImage, exported_model
from dinoneck.detection.rf_detr import RfDetr
from dinoneck.detection.rf_detr_vit import WindowedVit
from dinoneck.export.onnx_file import modules_of, to_half
from dinoneck.published import list_published
from dinoneck.published.detectors import DETECTORS, coco_classes
from dinoneck.serve.models import open_model
from dinoneck.serve.settings import Settings

# what the 91 outputs of the published models have no class for, and an independent part of the rest
GAPS = {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
SOME_IDS = {1: "person", 13: "stop sign", 17: "cat", 27: "backpack", 44: "bottle", 90: "toothbrush"}
SIZES = {
    "landscape": (120, 200),
    "portrait": (200, 120),
    "tiny": (5, 7),
    "1x3": (60, 180),
    "grey": (100, 90),
}


@pytest.fixture(scope="module")
def short_rows() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        files.shorten(patch)
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, short_rows: None) -> dict[str, Path]:
    """Name -> a folder of that row as the Hub has it."""
    folder = tmp_path_factory.mktemp("hub")
    for name in (BOXES, MASKS):
        files.write_folder(folder / name, name)
    return {name: folder / name for name in (BOXES, MASKS)}


def picture(kind: str) -> Image.Image:
    height, width = SIZES[kind]
    pixels = np.random.default_rng(3).integers(0, 255, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    return image.convert("L") if kind == "grey" else image


def reference(
    name: str, image: Image.Image, threshold: float
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """The boxes of transformers' own pipeline whose labels are classes, and the masks of all boxes."""
    side = DETECTORS[name].image_size
    processor: Any = RfDetrImageProcessor(size={"height": side, "width": side})
    model = files.random_model(name)
    inputs = processor(image.convert("RGB"), return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    size = (image.height, image.width)
    [boxes] = processor.post_process_object_detection(
        outputs, threshold=threshold, target_sizes=[size]
    )
    masks = None
    if name == MASKS:
        [segments] = processor.post_process_instance_segmentation(
            outputs, threshold=threshold, target_sizes=[size], return_binary_maps=True
        )
        masks = masks_of_boxes(boxes["scores"], segments)
    return boxes, masks


def masks_of_boxes(scores: torch.Tensor, segments: dict[str, Any]) -> torch.Tensor:
    """Return the mask of every box (n, h, w).

    transformers returns no mask for a box whose mask is empty. A mask has the score of its box,
    rounded to six digits.
    """
    returned_masks = segments["segmentation"]
    mask_scores = [segment["score"] for segment in segments["segments_info"]]
    assert len(mask_scores) > 0
    assert len(set(mask_scores)) == len(mask_scores)
    height, width = returned_masks.shape[1:]
    masks = torch.zeros(len(scores), height, width, dtype=torch.bool)
    num_matched = 0
    for row, score in enumerate(scores.tolist()):
        rounded = round(score, 6)
        if rounded in mask_scores:
            masks[row] = returned_masks[mask_scores.index(rounded)]
            num_matched += 1
    assert num_matched == len(returned_masks)
    return masks


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("name", [BOXES, MASKS])
def test_predictions_are_those_of_transformers(
    folders: dict[str, Path], name: str, kind: str
) -> None:
    image = picture(kind)
    detector = Detector.load(name, weights=folders[name])

    [prediction] = detector.predict(image, min_score=0.2)

    boxes, masks = reference(name, image, threshold=0.2)
    classes = coco_classes()
    is_class = torch.tensor([int(label) in classes for label in boxes["labels"]])
    count = int(is_class.sum())
    assert count > 0
    names = [classes[int(label)] for label in boxes["labels"][is_class]]
    assert prediction["names"][:count] == names
    limits = torch.tensor([image.width, image.height] * 2)
    expected = boxes["boxes"][is_class].clamp(min=0).minimum(limits)
    torch.testing.assert_close(prediction["boxes"][:count], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        prediction["scores"][:count], boxes["scores"][is_class], atol=1e-4, rtol=0
    )
    if masks is not None:
        differences = prediction["masks"][:count] != masks[is_class]
        assert prediction["masks"].shape[1:] == (image.height, image.width)
        assert differences.float().mean() < 1e-4


def test_the_published_nano_model_is_that_of_transformers(tmp_path: Path) -> None:
    files.write_folder(tmp_path, BOXES)
    image = picture("landscape")

    [prediction] = Detector.load(BOXES, weights=tmp_path).predict(image)

    boxes, _ = reference(BOXES, image, threshold=0.5)
    classes = coco_classes()
    is_class = torch.tensor([int(label) in classes for label in boxes["labels"]])
    expected = boxes["boxes"][is_class][: len(prediction["boxes"])]
    assert len(expected) > 10
    limits = torch.tensor([image.width, image.height] * 2)
    expected = expected.clamp(min=0).minimum(limits)
    torch.testing.assert_close(prediction["boxes"][: len(expected)], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("row", DETECTORS.values(), ids=lambda row: row.name)
def test_a_row_has_as_many_parameters_as_published(row: Any) -> None:
    module = row.build()

    assert all(parameter.is_meta for parameter in module.parameters())
    assert round(row.size / 1e6, 1) == row.million_parameters
    # whole windows of whole patches
    assert row.image_size % (row.patch_size * row.num_windows) == 0


def test_outputs_are_category_ids_with_gaps() -> None:
    classes = coco_classes()

    assert set(range(91)) - set(classes) == GAPS
    assert len(set(classes.values())) == 80
    assert {i: classes[i] for i in SOME_IDS} == SOME_IDS
    assert DETECTORS[BOXES].config["num_outputs"] == 91


def test_a_score_of_a_gap_is_never_a_box(folders: dict[str, Path]) -> None:
    detector = Detector.load(BOXES, weights=folders[BOXES])
    with torch.no_grad():
        detector.head.model.class_embed.bias[sorted(GAPS)] = 100.0

    [prediction] = detector.predict(picture("landscape"), min_score=0.0)

    assert len(prediction["boxes"]) == 20
    assert set(prediction["names"]) <= set(coco_classes().values())
    assert prediction["scores"].max() < 1


def test_scores_that_are_no_numbers_are_an_error_and_not_an_image_without_boxes(
    folders: dict[str, Path],
) -> None:
    detector = Detector.load(BOXES, weights=folders[BOXES])
    with torch.no_grad():
        detector.head.model.class_embed.bias[1] = torch.nan  # "person"

    with pytest.raises(DataError, match=r"scores are not finite, computed in torch\.float32"):
        detector.predict(picture("landscape"))


@pytest.mark.parametrize("name", [BOXES, MASKS])
def test_the_runtime_auto_gives_the_bits_of_transformers_where_it_computes_in_torch(
    folders: dict[str, Path], name: str
) -> None:
    checkpoint = load_published(name, weights=folders[name])
    image = picture("landscape")
    expected = Detector.from_checkpoint(checkpoint)
    detector = Detector.from_checkpoint(checkpoint, runtime="auto")
    [prediction] = detector.predict(image, min_score=0.0)
    assert same(prediction, expected.predict(image, min_score=0.0)[0])
    assert list(detector.head.state_dict()) == list(expected.head.state_dict())
    assert detector.runtime_backbone is not None
    assert not detector.runtime_backbone.has_programs
    assert expected.runtime_backbone is None


@pytest.mark.slow
@pytest.mark.skipif(not openvino.is_installed(), reason="the extra [fast] is not installed")
@pytest.mark.parametrize(
    ("name", "sides_of_windows"),
    [
        (BOXES, None),
        (MASKS, None),
        (BOXES, 5),
    ],
    ids=["boxes", "masks", "odd windows"],
)
def test_openvino_gives_the_boxes_of_torch(
    folders: dict[str, Path], tmp_path: Path, name: str, sides_of_windows: int | None
) -> None:
    """At the published size, and at one whose positions are resampled, of windows of 5 x 5 patches."""
    detector = Detector.load(name, weights=folders[name])
    if sides_of_windows is not None:
        side = sides_of_windows * detector.head.patch_size * detector.head.num_windows
        detector = Detector(detector.head, None, size=(side, side)).eval()
    file = tmp_path / "detector.safetensors"
    detector.save(file)
    image = picture("landscape")
    [expected] = detector.predict(image, min_score=0.0)

    compiled = Detector.from_checkpoint(HeadCheckpoint.load(file), runtime="openvino")
    [prediction] = compiled.predict(image, min_score=0.0)

    assert compiled.runtime_backbone.has_programs
    torch.testing.assert_close(prediction["scores"], expected["scores"], atol=1e-4, rtol=0)
    is_likely = expected["scores"] > 0.2
    assert is_likely.any()
    torch.testing.assert_close(
        prediction["boxes"][is_likely], expected["boxes"][is_likely], atol=1e-2, rtol=0
    )
    # a copy computes too, and a file of it holds the same weights
    [of_copy] = copy.deepcopy(compiled).predict(image, min_score=0.0)
    torch.testing.assert_close(of_copy["scores"], expected["scores"], atol=1e-4, rtol=0)
    compiled.save(tmp_path / "again.safetensors")
    [again] = Detector.load(tmp_path / "again.safetensors").predict(image, min_score=0.0)
    assert same(again, expected)


@pytest.mark.slow
@pytest.mark.skipif(not openvino.is_installed(), reason="the extra [fast] is not installed")
@pytest.mark.parametrize("num_windows", [1, 2])
def test_the_gain_is_measured_with_the_windows_that_a_block_gets(
    num_windows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """11 images of 6 x 6 patches have about 400 tokens; each window has a CLS token."""
    monkeypatch.setenv("DINONECK_CACHE", str(tmp_path))
    options: dict[str, Any] = {"encoder_layers": 4, "decoder_layers": 1, "queries": 20}
    module = RfDetr(("cell",), (0,), 1, image_size=96, num_windows=num_windows, **options)
    adapter = WindowedVit(module.vit, (96, 96))
    batch = TokenBatch(adapter, torch.zeros(1, 3, 96, 96), [0], norm=True)
    shapes = []
    compile_block = openvino.compile_block

    def record_shape(tokens: torch.Tensor, hidden_width: int) -> Any:
        shapes.append(tuple(tokens.shape))
        return compile_block(tokens, hidden_width)

    monkeypatch.setattr(openvino, "compile_block", record_shape)

    program_costs.expected_gain(batch)

    windows = num_windows**2
    assert shapes == [(11 * windows, 1 + 36 // windows, 384)]
    # that of other windows is another one
    module = RfDetr(("cell",), (0,), 1, image_size=96, num_windows=3 - num_windows, **options)
    other = TokenBatch(WindowedVit(module.vit, (96, 96)), batch.images, [0], norm=True)
    program_costs.expected_gain(other)
    assert len(shapes) == 2


def test_options_of_backbones_are_refused_on_the_command_line(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("tiny").save(tmp_path / "photo.png")
    words = ["predict", str(tmp_path / "photo.png"), "--heads", BOXES]
    words += ["--weights", str(folders[BOXES]), "--out", str(tmp_path / "boxes.csv")]
    for options, message in (
        (["--random-backbone"], "this detector holds its own ViT; leave --backbone-file"),
        (["--precision", "bfloat16"], "without effect on a detector, so leave out --precision"),
    ):
        assert main([*words, *options]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "boxes.csv").exists()


@pytest.mark.slow
def test_products_of_scores_boxes_and_places_stay_in_float32_in_a_half_file(
    folders: dict[str, Path],
) -> None:
    detector = Detector.load(BOXES, weights=folders[BOXES])
    proto = exported_model(OneImage(detector), detector.size)

    to_half(proto, FLOAT32_MODULES)

    halves: dict[str, set[bool]] = {}  # module -> whether its products are in float16
    for node in proto.graph.node:
        if node.op_type in ("MatMul", "Gemm", "Conv"):
            for module in modules_of(node):
                halves.setdefault(module, set()).add(node.input[0].endswith(":half"))
    assert halves["fc1"] == {True}
    for module in ("class_embed", "bbox_embed", "enc_out_class_embed", "enc_out_bbox_embed"):
        assert halves[module] == {False}, module
    for module in ("ref_point_head", "sampling_offsets"):
        assert halves[module] == {False}, module


@pytest.mark.campaign
@pytest.mark.timeout(1200)
def test_a_half_file_gives_the_boxes_of_the_detector(
    short_rows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every patch is a proposal, so that rounding chooses no others, and few boxes have a score at all."""
    monkeypatch.setitem(DETECTORS, BOXES, replace(DETECTORS[BOXES], queries=36))
    files.write_folder(tmp_path / BOXES, BOXES)
    detector = Detector.load(BOXES, weights=tmp_path / BOXES)
    with torch.no_grad():
        detector.head.model.class_embed.bias.fill_(-8.0)

    parity = detector.export_onnx(tmp_path / "half.onnx", half=True)

    assert parity is not None
    assert parity.compared >= 5
    assert parity.unmatched == 0
    assert parity.box_px < 0.05
    detector.export_onnx(tmp_path / "whole.onnx", check=False)
    half_bytes = (tmp_path / "half.onnx").stat().st_size
    assert half_bytes < 0.6 * (tmp_path / "whole.onnx").stat().st_size


@pytest.mark.slow
def test_a_detector_of_another_runtime_is_exported_at_any_size(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = load_published(BOXES, weights=folders[BOXES])
    detector = Detector.from_checkpoint(checkpoint, runtime="auto")
    vit = detector.vit
    onnxscript_logger = logging.getLogger("onnxscript")
    level = onnxscript_logger.level

    parity = detector.export_onnx(tmp_path / "larger.onnx", size=(128, 128))

    assert parity is not None
    assert parity.unmatched == 0
    assert parity.compared > 0
    assert detector.vit is vit
    assert onnxscript_logger.level == level


def test_a_half_file_that_ranks_other_proposals_is_refused_with_the_reason(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Detector.load(BOXES, weights=folders[BOXES])
    other = BoxParity(compared=100, unmatched=5, box_px=0.1, score=0.1, first_unmatched="box 1")
    for step in ("exported_model", "to_half", "drop_metadata"):
        monkeypatch.setattr(onnx, step, lambda *_: None)
    monkeypatch.setattr(onnx, "onnx_runner", lambda *_: contextlib.nullcontext(lambda image: {}))
    monkeypatch.setattr(onnx, "compare_boxes", lambda *_: other)
    with pytest.raises(CheckpointError, match=r"5 of 100 boxes .*rounding ranks proposals") as e:
        detector.export_onnx(tmp_path / "half.onnx", half=True)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "half.onnx").exists()


def test_rows_are_listed_by_task() -> None:
    boxes = [row.name for row in list_published("detection")]
    masks = [row.name for row in list_published("instances") if row.name in DETECTORS]

    assert boxes == [f"rf_detr_{size}" for size in ("nano", "small", "medium", "large")]
    sizes = ("nano", "small", "medium", "large", "xlarge", "2xlarge")
    assert masks == [f"rf_detr_seg_{size}" for size in sizes]
    row = DETECTORS["rf_detr_small"]
    assert (row.licence, row.revision, row.min_score) == ("Apache-2.0", None, 0.5)
    assert row.licence_source.startswith("https://github.com/roboflow/")


@pytest.mark.slow
@pytest.mark.parametrize("name", [BOXES, MASKS])
def test_a_saved_detector_predicts_the_same_bits(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    detector = Detector.from_checkpoint(load_published(name, weights=folders[name]))
    file = tmp_path / "own.safetensors"
    image = picture("portrait")
    [expected] = detector.predict(image, min_score=0.1)

    detector.save(file)

    checkpoint = HeadCheckpoint.load(file)
    loaded = Detector.from_checkpoint(checkpoint)
    [prediction] = loaded.predict(image, min_score=0.1)
    assert len(prediction["boxes"]) > 0
    for key in set(expected) - {"names"}:
        assert torch.equal(prediction[key], expected[key]), key
    assert loaded.min_score == 0.5
    published = load_published(name, weights=folders[name])
    assert published.meta["license"] == "Apache-2.0"
    assert published.meta["extra"]["published"] == name
    assert checkpoint.meta["license"] == "Apache-2.0"
    assert checkpoint.meta["extra"] == published.meta["extra"]


@pytest.mark.slow
def test_the_file_alone_and_the_names_of_the_publisher_are_read(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    state = load_file(folders[BOXES] / "model.safetensors")
    image = picture("landscape")
    [expected] = Detector.load(BOXES, weights=folders[BOXES]).predict(image, min_score=0.1)
    renamed = {}
    for key, value in state.items():
        for ours, theirs in (
            ("model.backbone.backbone.", "backbone.0.encoder.encoder."),
            (
                "model.backbone.projector.projector_layer.conv1.norm.",
                "backbone.0.projector.stages.0.0.cv1.bn.",
            ),
            ("model.reference_point_embed.", "refpoint_embed."),
            ("model.query_feat.", "query_feat."),
            ("model.decoder.layernorm.", "transformer.decoder.norm."),
        ):
            if key.startswith(ours):
                key = key.replace(ours, theirs)
        renamed[key] = value
    save_file(state, tmp_path / "alone.safetensors")
    save_file(renamed, tmp_path / "theirs.safetensors")

    for file in ("alone.safetensors", "theirs.safetensors"):
        [prediction] = Detector.load(BOXES, weights=tmp_path / file).predict(image, min_score=0.1)
        assert torch.equal(prediction["boxes"], expected["boxes"]), file


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_queries": 30}, ("num_queries 30", "expected 20")),
        ({"decoder_layers": 3}, ("decoder_layers 3", "expected 2")),
        ({"model_type": "detr"}, ("'detr'", "'rf_detr'")),
        ({"id2label": {"0": "cell"}}, ("1 labels", "expected 91")),
    ],
    ids=["queries", "layers", "type", "labels"],
)
def test_the_configuration_of_another_model_is_refused(
    folders: dict[str, Path], tmp_path: Path, change: dict[str, Any], words: tuple[str, ...]
) -> None:
    shutil.copytree(folders[BOXES], tmp_path / "hub")
    file = tmp_path / "hub/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))

    with pytest.raises(CheckpointError) as error:
        load_published(BOXES, weights=tmp_path / "hub")

    assert all(word in str(error.value) for word in words)
    assert str(file) in str(error.value)


def test_other_labels_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[BOXES], tmp_path / "hub")
    file = tmp_path / "hub/config.json"
    config = json.loads(file.read_text())
    config["id2label"]["17"] = "dog"  # a cat
    file.write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match="calls output 17 'dog'; expected 'cat'"):
        load_published(BOXES, weights=tmp_path / "hub")


def test_labels_that_name_nothing_are_no_difference(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders[BOXES], tmp_path / "hub")
    file = tmp_path / "hub/config.json"
    config = json.loads(file.read_text())
    config["id2label"] = {str(i): f"LABEL_{i}" for i in range(91)}
    file.write_text(json.dumps(config))

    assert load_published(BOXES, weights=tmp_path / "hub").head_type == "rf_detr"


def test_another_size_has_to_be_a_square_of_whole_windows(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    head = load_published(MASKS, weights=folders[MASKS]).build()

    with pytest.raises(ConfigError, match=r"multiple of 24 .* 120x120"):
        Detector(head, None, (108, 108))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="takes squares"):
        Detector(head, None, (96, 120))  # type: ignore[arg-type]

    detector = Detector(head, None, (120, 120))  # type: ignore[arg-type]
    assert "for 120x120 the positions of its patches are resampled" in caplog.text
    [prediction] = detector.predict(picture("landscape"), min_score=0.0)
    assert prediction["masks"].shape == (20, 120, 200)


def test_a_detector_of_its_own_vit_takes_no_backbone(folders: dict[str, Path]) -> None:
    from dinoneck import load_backbone

    tiny = load_backbone("dinoneck_tiny")
    checkpoint = load_published(BOXES, weights=folders[BOXES])

    with pytest.raises(CheckpointError, match="holds its own ViT"):
        Detector.from_checkpoint(checkpoint, tiny)
    with pytest.raises(ConfigError, match="has a ViT of its own"):
        Detector(checkpoint.build(), tiny, (96, 96))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"in eval mode.*call train\(\) first"):
        checkpoint.build()(torch.rand(1, 3, 96, 96), [])


def write_coco(folder: Path) -> Path:
    """Two images and a COCO file of objects in them, with masks, of two of COCO's classes and another."""
    boxes = [[10, 10, 60, 40], [60, 20, 50, 60], [20, 30, 40, 40]]
    annotations = []
    for i, (x, y, width, height) in enumerate(boxes):
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        annotations.append(
            {
                "id": i + 1,
                "image_id": i % 2 + 1,
                "category_id": i + 1,
                "bbox": [x, y, width, height],
                "area": width * height,
                "iscrowd": 0,
                "segmentation": [corners],
            }
        )
    (folder / "images").mkdir()
    images = []
    for i, kind in enumerate(("landscape", "portrait")):
        picture(kind).save(folder / f"images/{kind}.png")
        height, width = SIZES[kind]
        images.append({"id": i + 1, "file_name": f"{kind}.png", "height": height, "width": width})
    names = ("person", "cat", "dog")
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "coco.json").write_text(json.dumps(coco))
    return folder / "coco.json"


@pytest.mark.parametrize(("name", "key"), [(BOXES, "boxes"), (MASKS, "masks")])
def test_it_is_scored_like_any_detector(
    folders: dict[str, Path], tmp_path: Path, name: str, key: str
) -> None:
    file = write_coco(tmp_path)
    detector = Detector.load(name, weights=folders[name])

    report = evaluate(detector, tmp_path / "images", file)

    scores = report[key]["head"]
    assert 0 <= scores["AP"] <= 1
    assert {
        name for name, of_class in scores["per_class"].items() if of_class["AP"] is not None
    } == {
        "person",
        "cat",
        "dog",
    }
    cost = report["cost"]["head"]
    vit = sum(parameter.numel() for parameter in detector.vit.parameters())
    assert cost["backbone_parameters"] == vit
    whole = sum(parameter.numel() for parameter in detector.parameters())
    assert cost["parameters"] == whole - vit


def test_a_saved_file_states_licence_and_source(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "saved.safetensors"
    Detector.load(BOXES, weights=folders[BOXES]).save(file)

    assert main(["inspect", str(file)]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert "licence    Apache-2.0" in lines
    assert "backbone   DINOv2 ViT-S (tuned), in this file" in lines
    assert "backbone's licence that of this file" in lines
    [extra] = [line for line in lines if line.startswith("extra ")]
    assert "license_source https://github.com/roboflow/rf-detr" in extra
    assert "url https://huggingface.co/Roboflow/rf-detr-nano" in extra


def test_the_shell_shows_the_classes_of_the_truth_alone(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_coco(tmp_path)
    words = ["evaluate", str(tmp_path / "images"), "--heads", BOXES, "--truth", str(file)]

    assert main([*words, "--weights", str(folders[BOXES])]) == 0

    lines = capsys.readouterr().out.splitlines()
    first_words = [line.split()[0] for line in lines if line]
    assert {"person", "cat", "dog"} <= set(first_words)
    assert not {"umbrella", "toothbrush"} & set(first_words)
    [note] = [line for line in lines if line.startswith("Classes without an object")]
    assert note.endswith("airplane, apple, backpack, banana and 73 more.")  # 80 - 3 - 4


@pytest.mark.parametrize("name", [BOXES, MASKS])
def test_it_is_served(folders: dict[str, Path], name: str) -> None:
    model = open_model(name, Settings(weights=str(folders[name])))

    answer = model.predict(torch.rand(3, 60, 90), "none")

    assert model.facts["classes"] == [*coco_classes().values()]
    assert model.facts["backbone"] == "DINOv2 ViT-S (tuned)"
    for box in answer["boxes"]:
        assert box["score"] >= 0.5
        assert ("segmentation" in box) == (name == MASKS)
    json.dumps(answer)


@pytest.mark.slow
def test_the_command_line_predicts_boxes_and_masks(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("landscape").save(tmp_path / "photo.png")
    words = ["predict", str(tmp_path / "photo.png"), "--heads", MASKS, "--json"]
    words += ["--weights", str(folders[MASKS]), "--out", str(tmp_path / "boxes.csv")]
    words += ["--min-score", "0.2", "--overlay", str(tmp_path / "pictures")]

    assert main(words) == 0

    document = json.loads(capsys.readouterr().out)
    [expected] = Detector.load(MASKS, weights=folders[MASKS]).predict(
        picture("landscape"), min_score=0.2
    )
    rows = document["predictions"]
    assert [row["name"] for row in rows] == expected["names"]
    for row, mask in zip(rows, expected["masks"], strict=True):
        assert coco_masks.area(row["segmentation"]) == int(mask.sum())
    assert len((tmp_path / "boxes.csv").read_text().splitlines()) == len(rows) + 1
    assert (tmp_path / "pictures/photo.jpg").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [BOXES, MASKS])
def test_its_onnx_file_gives_what_it_gives(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    detector = Detector.load(name, weights=folders[name])
    side = DETECTORS[name].image_size

    parity = detector.export_onnx(tmp_path / "model.onnx")

    assert parity is not None
    assert parity.compared > 0
    assert parity.unmatched == 0
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(5))
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"image": image.numpy()}), strict=True))
    with torch.no_grad():
        [expected] = detector(image)
    if name == MASKS:
        expected["masks"] = expected["masks"].sigmoid()
    assert set(outputs) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(outputs[key], value.numpy(), atol=1e-4, err_msg=key)


def refused(name: str, weights: Path) -> str:
    """Why a file is refused; nothing is written next to it."""
    before = sorted(weights.parent.rglob("*"))
    with pytest.raises(CheckpointError) as error:
        load_published(name, weights=weights)
    assert sorted(weights.parent.rglob("*")) == before
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
def test_other_files_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    state = load_file(folders[BOXES] / "model.safetensors")
    whole = (folders[BOXES] / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save(state, tmp_path / "pickle.pth")
    torch.save(state, tmp_path / "pickle.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/config.json").write_text("{}")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange/config.json").write_text("[1")
    (tmp_path / "strange/model.safetensors").write_bytes(whole)
    reduced = {**state}
    del reduced["class_embed.bias"]
    save_file({**reduced, "more": torch.zeros(1)}, tmp_path / "other.safetensors")
    save_file({**state, "class_embed.bias": torch.zeros(3)}, tmp_path / "shape.safetensors")

    assert "incomplete" in refused(BOXES, tmp_path / "cut.safetensors")
    assert "is no .safetensors file" in refused(BOXES, tmp_path / "pickle.pth")
    named_otherwise = refused(BOXES, tmp_path / "pickle.safetensors")
    assert "is what torch.save writes, a pickle, with the name of" in named_otherwise
    assert ".pth" not in named_otherwise
    assert "cannot be read as weights" in refused(BOXES, tmp_path / "text.safetensors")
    assert "has no model.safetensors" in refused(BOXES, tmp_path / "folder")
    assert "not valid JSON" in refused(BOXES, tmp_path / "strange")
    assert "is not a file" in refused(BOXES, tmp_path / "nothing.safetensors")
    message = refused(BOXES, tmp_path / "other.safetensors")
    assert "lacks class_embed.bias, and holds" in message
    assert "class_embed.bias of shape (3,), where (91,)" in refused(
        BOXES, tmp_path / "shape.safetensors"
    )
    assert "holds" in refused(BOXES, folders[MASKS] / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("name", [BOXES, MASKS])
def test_a_refusal_has_the_names_of_the_file(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """Its publisher's, of which transformers translates most, and divides some into three."""
    state = load_file(folders[name] / "model.safetensors")
    vit_name = "backbone.0.encoder.encoder.embeddings.cls_token"
    divided_name = "transformer.decoder.layers.0.self_attn.in_proj_weight"
    for file_name in (vit_name, divided_name):
        others = {key: value for key, value in state.items() if key != file_name}
        save_file(others, tmp_path / "lacks.safetensors")
        save_file({**others, file_name: torch.zeros(3)}, tmp_path / "shape.safetensors")
        lacks = refused(name, tmp_path / "lacks.safetensors")
        assert f"lacks {file_name}: it is" in lacks
        assert f"holds {file_name} of shape (3,)" in refused(name, tmp_path / "shape.safetensors")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.full((91,), float("nan")), "class_embed.bias holds NaN or infinite values"),
        (torch.full((91,), float("inf")), "class_embed.bias holds NaN or infinite values"),
        (torch.zeros(91, dtype=torch.int32), "class_embed.bias is torch.int32; expected floats"),
        (torch.zeros(91, dtype=torch.bool), "class_embed.bias is torch.bool; expected floats"),
        (torch.zeros(()), "class_embed.bias of shape \\(\\), where \\(91,\\) is expected"),
    ],
    ids=["nan", "inf", "int32", "bool", "scalar"],
)
def test_a_weight_of_other_values_is_refused_with_the_name_of_the_file(
    folders: dict[str, Path], tmp_path: Path, value: torch.Tensor, reason: str
) -> None:
    state = load_file(folders[BOXES] / "model.safetensors")
    file = tmp_path / "model.safetensors"
    save_file({**state, "class_embed.bias": value}, file)
    message = refused(BOXES, file)
    assert str(file) in message
    assert re.search(reason, message)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_it_computes_in_float32_whatever_the_file_stores(
    folders: dict[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    state = load_file(folders[BOXES] / "model.safetensors")
    file = tmp_path / "model.safetensors"
    save_file({name: value.to(dtype) for name, value in state.items()}, file)

    checkpoint = load_published(BOXES, weights=file)

    assert {value.dtype for value in checkpoint.state_dict.values()} == {torch.float32}
    expected = load_published(BOXES, weights=folders[BOXES]).state_dict
    for name, value in checkpoint.state_dict.items():
        assert torch.equal(value, expected[name].to(dtype).float())


CHANGES_OF_CONFIG = {
    "labels in another order in the file": lambda config: config.update(
        id2label=dict(reversed(config["id2label"].items()))
    ),
    "an unknown key": lambda config: config.update(strange=1),
    "code of another repository": lambda config: config.update(
        auto_map={"AutoModel": "other.Model"}
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES_OF_CONFIG)
def test_what_changes_no_architecture_is_read(
    folders: dict[str, Path], tmp_path: Path, change: str
) -> None:
    config = json.loads((folders[BOXES] / "config.json").read_text())
    CHANGES_OF_CONFIG[change](config)
    shutil.copy(folders[BOXES] / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = load_published(BOXES, weights=folders[BOXES]).meta["digest"]
    assert load_published(BOXES, weights=tmp_path).meta["digest"] == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not valid JSON"),
        (b"[]", "is a JSON list; expected an object"),
        (b"\x1f\x8b", "looks like a gzip file"),
        (b" " * (1 << 21), "more than 1048576 bytes"),
        (b'{"model_type": "detr"}', "of a model of type 'detr'; expected 'rf_detr'"),
        (b'{"model_type": "rf_detr", "id2label": ["a"]}', "is no configuration of RF-DETR"),
        (b'{"model_type": "rf_detr", "num_labels": "x"}', "is no configuration of RF-DETR"),
        (b'{"model_type": "rf_detr", "backbone_config": [1]}', "is no configuration of RF-DETR"),
        (b'{"model_type": "rf_detr", "dtype": "system"}', "is no configuration of RF-DETR"),
    ],
    ids=["empty", "list", "gzip", "large", "model", "labels", "number", "backbone", "dtype"],
)
def test_a_file_that_is_no_configuration_is_refused(
    folders: dict[str, Path],
    tmp_path: Path,
    content: bytes,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(folders[BOXES] / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    capsys.readouterr()
    assert reason in refused(BOXES, tmp_path)
    assert capsys.readouterr().err == ""


def test_a_name_and_its_options_have_to_fit(folders: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="Did you mean 'rf_detr_small'"):
        load_published("rf_detr_smal")
    with pytest.raises(CheckpointError, match="Did you mean 'rf_detr_nano'"):  # as the Hub has it
        Predictor("rf-detr-nano", weights=folders[BOXES])
    with pytest.raises(CheckpointError, match="leave one of them out"):
        load_published(BOXES, weights=folders[BOXES], revision="main")
    with pytest.raises(CheckpointError, match="is not the name of one"):
        Detector.load(folders[BOXES], weights=folders[BOXES])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (f"predict photo.png --heads {BOXES} --out b.csv --random-backbone", "its own ViT"),
        pytest.param(
            f"export {BOXES} --format onnx --out m.onnx --with-backbone",
            "leave out --with-backbone",
            marks=needs_export,
        ),
        (f"export {BOXES} --format pt2 --out m.pt2", "a detector is exported as onnx"),
        pytest.param(
            f"export {BOXES} --format onnx --out m.onnx --random-backbone",
            "its own ViT",
            marks=needs_export,
        ),
        (f"serve {BOXES} --batch 4", "a detector takes 1"),
        (f"evaluate . --heads {BOXES} --truth coco.json --precision bfloat16", "--precision"),
    ],
)
def test_commands_refuse_options_before_anything_is_fetched(
    words: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fetch(*_: object, **__: object) -> str:
        raise AssertionError("a file is fetched")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.chdir(tmp_path)
    picture("tiny").save("photo.png")
    Path("coco.json").write_text("{}")
    before = sorted(tmp_path.iterdir())

    assert main(words.split()) == 1

    assert reason in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


# the Hub client's own way of uploading
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
@pytest.mark.parametrize("name", [BOXES, MASKS])
def test_it_is_pushed_and_read_from_the_hub(
    folders: dict[str, Path], hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    detector = Detector.load(name, weights=folders[name])
    image = picture("landscape")
    [expected] = detector.predict(image, min_score=0.2)
    monkeypatch.setenv("HF_TOKEN", WRITER)

    pushed = detector.push_to_hub("me/own")

    card = hub.repos["me/own"].commits[pushed.oid]["README.md"].decode()
    assert "license: apache-2.0" in card
    assert 'Detector.load("me/own")  # every byte is checked\n' in card
    assert ("Boxes and masks of `person" if name == MASKS else "Boxes of `person") in card
    assert "by `rf_detr`." in card
    assert "The file holds the ViT" in card
    pipeline = "image-segmentation" if name == MASKS else "object-detection"
    assert f"pipeline_tag: {pipeline}" in card
    checkpoint = HeadCheckpoint.load("me/own")
    assert checkpoint.meta["license"] == "Apache-2.0"
    assert checkpoint.meta["extra"]["published"] == name
    for model in (Detector.load("me/own").predict, Predictor("me/own")):
        [prediction] = model(image, min_score=0.2)
        assert prediction["names"] == expected["names"] != []
        for key in set(expected) - {"names"}:
            assert torch.equal(prediction[key], expected[key])
    assert Predictor("me/own").revisions == {"me/own": pushed.oid}


def test_without_a_network_one_sentence_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = logging.getLogger("huggingface_hub.utils._http")
    logged: list[object] = []

    def unreachable(*_: object, **__: object) -> str:
        client.warning("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("no route to host")

    monkeypatch.setattr(client, "handle", logged.append)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)

    with pytest.raises(CheckpointError, match=r"Roboflow/rf-detr-nano .*--weights FILE") as error:
        load_published(BOXES)

    assert "\n" not in str(error.value)
    assert logged == []
    assert client.isEnabledFor(logging.WARNING)  # afterwards as before


def test_a_fetched_model_is_that_of_the_repository(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def fetch(repo_id: str, name: str, *, revision: str | None) -> str:
        asked.append((repo_id, name, revision))
        return str(folders[BOXES] / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)

    checkpoint = load_published(BOXES, revision="v1")

    assert asked == [
        ("Roboflow/rf-detr-nano", "config.json", "v1"),
        ("Roboflow/rf-detr-nano", "model.safetensors", "v1"),
    ]
    assert "the terms of Apache-2.0 hold" in caplog.text
    assert checkpoint.meta["extra"]["url"].startswith("https://huggingface.co/Roboflow/")


def test_an_old_transformers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    monkeypatch.setattr(transformers, "__version__", "5.1.0")
    monkeypatch.delitem(sys.modules, "dinoneck.detection.rf_detr")
    monkeypatch.setitem(sys.modules, "transformers", types.ModuleType("transformers"))
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "5.1.0", raising=False)

    with pytest.raises(ImportError, match=r"from version 5\.9 on, and 5\.1\.0 is installed"):
        importlib.import_module("dinoneck.detection.rf_detr")
