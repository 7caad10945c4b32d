"""Frozen head files, modules and detectors say what they said, and compute what they computed."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from safetensors import safe_open

from dinoneck import CheckpointError, HeadCheckpoint, TargetTransform, Task, load_head, registry
from dinoneck.data import Preprocessing
from dinoneck.detection import DetectionHead, Detector
from dinoneck.heads import Head
from tests import kit
from tests.frozen import detectors, heads, heads_on_backbones, modules
from tests.frozen.comparison import assert_same_numbers, differences
from tests.frozen.folder import FIXTURES, FrozenFile, frozen_files, plain

HEADS = [file for file in frozen_files(heads.FOLDER) if file.name not in heads.REFUSED]
REFUSED = [file for file in frozen_files(heads.FOLDER) if file.name in heads.REFUSED]
HEADS_ON_TOKENS = [file for file in HEADS if "reads" in file.facts]
HEADS_ON_BACKBONES = [file for file in HEADS if "reads" not in file.facts]
MODULES = frozen_files(modules.FOLDER)
DETECTORS = frozen_files(detectors.FOLDER)
ALL_FILES = [*HEADS, *MODULES, *DETECTORS]
KIND_NAMES = get_args(get_type_hints(Task)["kind"])
DETECTOR_NAMES = get_args(get_type_hints(DetectionHead.__init__)["detector"])
ADD_IT = "add a row to its table in tests/frozen, then: python -m tests.frozen"

# another processor or torch rounds differently: (rtol, atol)
SINGLE_PRECISION = (1e-4, 1e-5)
HALF_PRECISION = (2e-2, 2e-2)
THROUGH_BACKBONE = (1e-3, 1e-4)

OF_IMAGES = ("regression", "ratio", "classification", "multilabel")
# the kinds of task that each head type takes
KINDS = {
    "patch_mean": OF_IMAGES,
    "cls_gating": OF_IMAGES,
    "linear": (*OF_IMAGES, "dense", "density", "segmentation"),
    "dense": ("regression", "ratio", "dense", "density", "segmentation"),
    "dpt": ("dense", "segmentation"),
    "fpn": tuple(kind for kind in KIND_NAMES if kind != "panoptic"),
    "pyramid": tuple(kind for kind in KIND_NAMES if kind != "panoptic"),
    "mask": ("segmentation", "instances", "panoptic"),
    "ensemble": (*OF_IMAGES, "dense", "density", "segmentation"),
}


@pytest.mark.parametrize("file", HEADS_ON_TOKENS, ids=str)
def test_a_head_computes_what_was_recorded(file: FrozenFile) -> None:
    head: Any = load_head(file.path)
    is_half = next(head.parameters()).dtype in (torch.float16, torch.bfloat16)
    rtol, atol = HALF_PRECISION if is_half else SINGLE_PRECISION
    results = heads.compute_recorded(head, file)
    if file.name in heads.GAINED_MAPS:
        added = results.keys() - file.numbers("result").keys()
        assert added and all(name.startswith("map/") for name in added)
        results = {name: x for name, x in results.items() if name not in added}
    assert_same_numbers(results, file.numbers("result"), rtol=rtol, atol=atol)


@pytest.mark.parametrize("file", REFUSED, ids=str)
def test_a_file_that_is_no_longer_read_is_refused_with_the_reason(file: FrozenFile) -> None:
    with pytest.raises(CheckpointError) as raised:
        HeadCheckpoint.load(file.path)

    message = str(raised.value)
    assert file.path.name in message
    for part in heads.REFUSED[file.name]:
        assert part in message


@pytest.mark.parametrize("file", HEADS_ON_BACKBONES, ids=str)
def test_a_head_on_its_backbone_predicts_what_was_recorded(file: FrozenFile) -> None:
    checkpoint = HeadCheckpoint.load(file.path)
    rtol, atol = THROUGH_BACKBONE
    results = heads_on_backbones.predict_recorded(checkpoint, file)
    assert_same_numbers(results, file.numbers("result"), rtol=rtol, atol=atol)


@pytest.mark.parametrize("file", MODULES, ids=str)
def test_a_module_computes_what_was_recorded(file: FrozenFile) -> None:
    cls = registry.resolve(file.facts["head_type"])
    module = cls.from_pretrained(file.path)
    rtol, atol = SINGLE_PRECISION
    results = modules.compute_recorded(module, file)
    assert_same_numbers(results, file.numbers("result"), rtol=rtol, atol=atol)


@pytest.mark.parametrize("file", DETECTORS, ids=str)
def test_a_detector_finds_the_recorded_boxes_on_its_trained_backbone(file: FrozenFile) -> None:
    detector = Detector.load(file.path)
    assert list(detector.classes) == file.facts["classes"]
    assert detector.min_score == file.facts["min_score"]
    rtol, atol = THROUGH_BACKBONE
    results = detectors.observe_recorded(detector, file)
    assert_same_numbers(results, file.numbers("result"), rtol=rtol, atol=atol)


@pytest.mark.parametrize("file", ALL_FILES, ids=str)
def test_tasks_columns_and_preprocessing_are_those_recorded(file: FrozenFile) -> None:
    described = plain(heads.describe(HeadCheckpoint.load(file.path)))
    recorded = {name: fact for name, fact in file.facts.items() if name in described}
    assert len(recorded) == len(described)
    assert differences(recorded, described) == []


@pytest.mark.parametrize("file", ALL_FILES, ids=str)
def test_every_entry_of_the_header_is_read(file: FrozenFile) -> None:
    """The header is read without dinoneck here: a lost or renamed key of ``meta`` is noticed."""
    with safe_open(file.path, "pt") as opened:
        header = json.loads(opened.metadata()["dinoneck"])
    checkpoint = HeadCheckpoint.load(file.path)
    assert differences(header, plain(checkpoint.meta)) == []
    assert differences(header["config"], plain(checkpoint.config)) == []
    assert differences(header, kit.cli("inspect", file.path, "--json").json) == []


@pytest.mark.parametrize("file", ALL_FILES, ids=str)
def test_a_file_that_is_saved_again_is_read_as_before(file: FrozenFile, tmp_path: Path) -> None:
    checkpoint = HeadCheckpoint.load(file.path)
    checkpoint.save(tmp_path / "again.safetensors")
    again = HeadCheckpoint.load(tmp_path / "again.safetensors")
    assert plain(heads.describe(again)) == plain(heads.describe(checkpoint))
    assert again.meta == checkpoint.meta
    assert kit.same(all_tensors(again), all_tensors(checkpoint))


def all_tensors(checkpoint: HeadCheckpoint) -> dict[str, Any]:
    """The tensors of a file, and a count: ``kit.same`` asks for something to compare."""
    weights = checkpoint.backbone_weights or {}
    return {"count": len(weights), **checkpoint.state_dict, **checkpoint.adapter_state, **weights}


def test_verify_accepts_every_file_that_is_read() -> None:
    folders = sorted({file.path.parent for file in ALL_FILES})

    ran = kit.cli("verify", *folders, "--json")

    states = {Path(row["path"]).resolve(): row["state"] for row in ran.json["checked"]}
    expected = {file.path.resolve(): "ok" for file in ALL_FILES}
    expected |= {file.path.resolve(): "refused" for file in REFUSED}
    assert states == expected
    assert len(ran.json["checked"]) == len(expected)


def names_of_the_library() -> set[str]:
    """Return the registered names without those of classes that tests or benchmarks registered."""
    homes = registry.classes()
    return {name for name, home in homes.items() if home.startswith("dinoneck.")}


def test_every_registered_class_has_a_frozen_file() -> None:
    frozen = {file.facts["head_type"] for file in ALL_FILES}
    missing = sorted(names_of_the_library() - frozen - detectors.TOO_LARGE_TYPES)
    assert missing == [], ADD_IT


def test_a_class_that_a_program_registers_needs_no_frozen_file() -> None:
    class Foreign(Head):
        pass

    registry.register(Foreign)

    names = names_of_the_library()

    assert "foreign" not in names
    assert {"fpn", "dpt_neck", "detector"} <= names


def test_every_head_type_has_a_file_with_every_kind_of_task_that_it_takes() -> None:
    frozen = set()
    for file in HEADS:
        for task in file.facts["tasks"]:
            if "parts_of" not in task:
                frozen.add((file.facts["head_type"], task["kind"]))
    expected = {(name, kind) for name, kinds in KINDS.items() for kind in kinds}
    assert sorted(expected - frozen) == [], ADD_IT


def test_every_head_type_and_every_kind_of_task_is_expected() -> None:
    types = {name for name in names_of_the_library() if issubclass(registry.resolve(name), Head)}
    assert sorted(types - {*KINDS}) == [], f"add it to KINDS; {ADD_IT}"
    taken = {kind for kinds in KINDS.values() for kind in kinds}
    assert sorted({*KIND_NAMES} - taken) == [], f"add it to KINDS; {ADD_IT}"


TASKS = [task for file in HEADS for task in file.facts["tasks"]]
TRANSFORMS = [task["transform"] for task in TASKS if task["transform"]]
PREPROCESSINGS = [file.facts["preprocess"] for file in HEADS if file.facts["preprocess"]]


@pytest.mark.parametrize(
    ("cls", "records", "never_set"),
    [
        (Task, TASKS, set()),
        (TargetTransform, TRANSFORMS, set()),
        # every backbone that a test can have normalises images alike
        (Preprocessing, PREPROCESSINGS, {"mean", "std"}),
    ],
    ids=["Task", "TargetTransform", "Preprocessing"],
)
def test_every_field_is_set_in_some_file(
    cls: Any, records: list[dict[str, Any]], never_set: set[str]
) -> None:
    missing = []
    for field in fields(cls):
        default = None if field.default is MISSING else plain(field.default)
        is_set = any(record.get(field.name, default) != default for record in records)
        if not is_set and field.name not in never_set:
            missing.append(field.name)
    assert missing == [], ADD_IT


def test_every_entry_of_a_header_is_filled_in_some_file() -> None:
    known = set()
    filled = set()
    for file in ALL_FILES:
        meta = HeadCheckpoint.load(file.path).meta
        known |= {*meta}
        filled |= {name for name, value in meta.items() if value}
    assert sorted(known - filled) == [], ADD_IT


def test_every_neck_is_in_a_frozen_pyramid_head() -> None:
    frozen = set()
    for file in HEADS:
        if file.facts["head_type"] == "pyramid":
            frozen.add(HeadCheckpoint.load(file.path).config["neck"]["type"])
    necks = {"vit_fpn", "simple_pyramid", "sta_pyramid", "spatial_tuning_adapter", "dpt_neck"}
    assert sorted(necks - frozen) == [], ADD_IT


def test_every_detector_is_frozen_or_too_large() -> None:
    known = detectors.FROZEN_KINDS | detectors.TOO_LARGE
    assert sorted({*DETECTOR_NAMES} - known) == [], ADD_IT


def test_frozen_files_name_no_machine() -> None:
    places = [f"/{name}/".encode() for name in ("home", "root", "work", "farm", "mnt", "Users")]
    for path in FIXTURES.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [place for place in places if place in content], path
