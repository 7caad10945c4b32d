"""Exported files give in ONNX Runtime and OpenVINO what torch gives, and hold operators that runtimes compute alike."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import get_args

import pytest
from tests import kit
from tests.export.exported_models import (
    DETECTOR_NAMES,
    SIZE,
    box_parities,
    detector_named,
    head_gaps,
    heads,
    published_forms,
    published_head,
)
from tests.export.runtimes import ALLOWED_OPERATORS, operators_of
from tests.unit.detection.test_detector import detector_of

from dinoneck import registry
from dinoneck.detection.head import Kind
from dinoneck.detection.onnx import FLOAT32_TOLERANCE, HALF_TOLERANCE
from dinoneck.heads.head import Head

onnx = pytest.importorskip("onnx", reason="needs dinoneck[export]")
pytest.importorskip("onnxruntime", reason="needs dinoneck[export]")
pytest.importorskip("openvino", reason="needs dinoneck[fast]")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter
BOUND = (
    1e-4  # of a difference, relative to the largest value of an output, or to a side of the image
)
RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "operators.json"
CELLS = 252  # of the three levels of images of 96 x 128 px: 12 x 16, 6 x 8 and 3 x 4
# of the detectors that have an export: height and width of the images, one file each
SIZES = [(96, 128), (64, 160), (128, 96)]
SQUARES = {"rf_detr": [96, 128], "rf_detr_seg": [96, 120]}
FILES = [
    *[(kind, size) for kind in ("fcos", "retinanet", "dfine", "rtdetrv2") for size in SIZES],
    *[(kind, (side, side)) for kind, sides in SQUARES.items() for side in sides],
]


def assert_allowed(file: Path) -> None:
    """A file holds the operators that exports may hold."""
    operators = operators_of(onnx.load(file, load_external_data=False))
    assert {*operators} <= ALLOWED_OPERATORS


@pytest.mark.campaign
@pytest.mark.parametrize("name", heads())
def test_every_head_gives_the_same_in_both_runtimes(name: str, tmp_path: Path) -> None:
    gaps = head_gaps(heads()[name], tmp_path / "head.onnx")
    assert max(gaps.values()) <= BOUND
    assert_allowed(tmp_path / "head.onnx")


@pytest.mark.campaign
@pytest.mark.parametrize("name", published_forms())
def test_every_form_of_published_heads_gives_the_same_in_both_runtimes(
    name: str, tmp_path: Path
) -> None:
    gaps = head_gaps(published_head(name), tmp_path / "head.onnx")
    assert max(gaps.values()) <= BOUND
    assert_allowed(tmp_path / "head.onnx")


@pytest.mark.campaign
@pytest.mark.parametrize(("name", "size"), FILES)
def test_every_detector_gives_the_same_in_both_runtimes(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    detector = detector_named(name)
    detector.export_onnx(tmp_path / "detector.onnx", size=size, check=False)

    parities = box_parities(detector, tmp_path / "detector.onnx", size, FLOAT32_TOLERANCE)

    for parity in parities.values():
        assert parity.compared >= 40
        assert parity.unmatched == 0
        assert parity.box_px <= BOUND * max(size)
        assert parity.score <= BOUND
    assert_allowed(tmp_path / "detector.onnx")


@pytest.mark.campaign
@pytest.mark.parametrize("name", ["fcos", "retinanet", "dfine", "rtdetrv2"])
def test_half_files_are_within_their_bound_in_both_runtimes(name: str, tmp_path: Path) -> None:
    """The decoders have a query for every cell: of fewer, rounding decides which cells they begin with."""
    detector = detector_named(name)
    if name in ("dfine", "rtdetrv2"):
        detector = detector_of(name, size=SIZE, queries=CELLS)
        kit.randomised(detector.head, std=0.1)
        detector.eval()
    detector.export_onnx(tmp_path / "half.onnx", half=True, check=False)

    parities = box_parities(detector, tmp_path / "half.onnx", detector.size, HALF_TOLERANCE)

    for parity in parities.values():
        assert parity.compared >= 40
        assert parity.unmatched <= HALF_TOLERANCE.unmatched * parity.compared
    assert_allowed(tmp_path / "half.onnx")


def test_the_stored_table_names_the_operators_of_every_head_and_detector() -> None:
    """``python -m benchmarks operators`` writes it."""
    rows = json.loads(RESULT.read_text())["tables"]["operators"]["rows"]
    assert set(rows) == {*heads(), *DETECTOR_NAMES}
    for name, row in rows.items():
        assert {*row["operators"].split(", ")} <= ALLOWED_OPERATORS, name


def test_every_kind_of_head_and_detector_is_among_them() -> None:
    registered = set()
    for home in registry.HOMES.values():
        module, _, name = home.partition(":")
        cls = getattr(importlib.import_module(module), name)
        if issubclass(cls, Head):
            registered.add(name)
    assert {type(head.module).__name__ for head in heads().values()} == registered
    kinds = {name for name in get_args(Kind) if name != "fasterrcnn"}  # it has no export
    assert set(DETECTOR_NAMES) == {*kinds, "rf_detr", "rf_detr_seg"}
