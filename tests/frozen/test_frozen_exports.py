"""Frozen exports give what they gave, in ONNX Runtime and as torch programs."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from packaging.version import Version
from PIL import Image

from dinoneck.export import export_head
from tests.frozen import exports
from tests.frozen.comparison import assert_same_numbers
from tests.frozen.folder import FrozenFile, frozen_files

EXPORTS = frozen_files(exports.FOLDER)
EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_runtime" / "predict.py"
MODELS = [file for file in EXPORTS if file.name == f"{exports.FOLDER}/model.onnx"]


def skip_if_too_old(file: FrozenFile) -> None:
    """Skip the test where the library that reads a file is missing, or older than the one that wrote it."""
    if file.path.suffix == ".onnx":
        pytest.importorskip("onnxruntime", reason="ONNX files need the extra [export]")
    elif Version(torch.__version__) < Version(file.facts["torch"]):
        pytest.skip(f"torch reads programs of earlier versions; this is of {file.facts['torch']}")


@pytest.mark.parametrize("file", EXPORTS, ids=str)
def test_an_export_gives_what_was_recorded(file: FrozenFile) -> None:
    skip_if_too_old(file)
    outputs = exports.run_recorded(file)
    assert_same_numbers(outputs, file.numbers("result"), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("file", EXPORTS, ids=str)
def test_an_export_describes_itself(file: FrozenFile) -> None:
    skip_if_too_old(file)
    metadata = exports.read_metadata(file.path)
    if file.facts["takes"] == "image":
        detector = metadata["dinoneck_detector"]
        assert (detector["classes"], detector["size"]) == (["crop", "weed"], [32, 32])
    else:
        described = {output["name"] for output in metadata["dinoneck_export"]["outputs"]}
        assert described == {*file.numbers("result")}
        [mass] = [task for task in metadata["dinoneck"]["tasks"] if task["name"] == "mass"]
        assert (mass["unit"], mass["maximum"]) == ("g", 40.0)


@pytest.mark.parametrize("file", MODELS, ids=str)
def test_the_example_program_reads_a_frozen_model(file: FrozenFile, tmp_path: Path) -> None:
    """It takes everything from the metadata: how images are prepared, and the names of the outputs."""
    skip_if_too_old(file)
    [pixels] = (file.numbers()["input"] * 255).round().to(torch.uint8)
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(tmp_path / "image.png")
    table = tmp_path / "answers.csv"
    command = [sys.executable, EXAMPLE, file.path, tmp_path / "image.png", "--csv", table]
    subprocess.run(command, check=True, capture_output=True)
    with table.open(newline="") as opened:
        [answers] = csv.DictReader(opened)
    recorded = file.numbers("result")
    for name in ("mass", "leaf"):
        expected = recorded[name].item()
        np.testing.assert_allclose(float(answers[name]), expected, rtol=1e-3)
    assert {"classes:soil", "classes:leaf", "classes:stone"} <= {*answers}


def test_every_format_has_a_frozen_head_and_a_frozen_model() -> None:
    frozen = {file.path.name for file in EXPORTS}
    formats = get_args(get_type_hints(export_head)["format"])
    expected = {f"{what}.{form}" for what in ("head", "model") for form in formats}
    missing = sorted(expected - frozen)
    assert missing == [], "add a row to tests/frozen/exports.py, then: python -m tests.frozen"
