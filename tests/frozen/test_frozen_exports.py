"""Frozen exports give what they gave, in ONNX Runtime and as torch programs."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from packaging.version import Version

from dinoneck import ConfigError
from dinoneck.export import export_head
from dinoneck.runtime import open_exported
from tests.frozen import exports
from tests.frozen.comparison import assert_same_numbers
from tests.frozen.folder import FrozenFile, frozen_files

EXPORTS = frozen_files(exports.FOLDER)
MODELS = [file for file in EXPORTS if file.name == f"{exports.FOLDER}/model.onnx"]
DETECTORS = [file for file in EXPORTS if file.facts["takes"] == "image"]


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
def test_a_frozen_model_predicts_images(file: FrozenFile) -> None:
    """It takes everything from the metadata: how images are prepared, and the names of the outputs."""
    skip_if_too_old(file)
    [pixels] = (file.numbers()["input"] * 255).round().to(torch.uint8)
    row = open_exported(file.path).one(pixels.permute(1, 2, 0).contiguous().numpy())
    recorded = file.numbers("result")
    for name in ("mass", "leaf"):
        np.testing.assert_allclose(row[name], recorded[name].item(), rtol=1e-3)
    assert row["classes"].sum() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("file", DETECTORS, ids=str)
def test_a_frozen_detector_finds_what_was_recorded(file: FrozenFile) -> None:
    """Of 0.3 it does not state the smallest score of its boxes."""
    skip_if_too_old(file)
    [pixels] = (file.numbers()["input"] * 255).round().to(torch.uint8)
    with pytest.raises(ConfigError, match="min_score"):
        open_exported(file.path)
    detector = open_exported(file.path, min_score=0.0)
    [row] = detector([pixels.permute(1, 2, 0).contiguous().numpy()])
    scores = file.numbers("result")["scores"].numpy()
    np.testing.assert_allclose(row["scores"], scores[: len(row["scores"])], rtol=1e-2, atol=1e-3)
    assert {*row["names"]} <= {"crop", "weed"}


def test_every_format_has_a_frozen_head_and_a_frozen_model() -> None:
    frozen = {file.path.name for file in EXPORTS}
    formats = get_args(get_type_hints(export_head)["format"])
    expected = {f"{what}.{form}" for what in ("head", "model") for form in formats}
    missing = sorted(expected - frozen)
    assert missing == [], "add a row to tests/frozen/exports.py, then: python -m tests.frozen"
