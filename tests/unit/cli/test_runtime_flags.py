"""``--runtime`` and ``--precision`` of the verbs, their default, and what they have no effect on."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from tests import kit

from dinoneck import Backbone, ConfigError, Predictor, STAPyramid
from dinoneck.backbones import openvino
from dinoneck.cli.arguments import RUNTIME_VARIABLE, default_runtime, with_default_runtime
from dinoneck.detection import DetectionHead, Detector
from dinoneck.dtypes import WEIGHT_DTYPES
from dinoneck.kinds import Precision
from dinoneck.store import FeatureStore
from dinoneck.training.config import FrozenBackbone

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra [fast] is not installed"
)


@needs_openvino
def test_openvino_computes_in_every_precision() -> None:
    for precision in get_args(Precision):
        openvino.check_usable(WEIGHT_DTYPES[precision])


@pytest.mark.parametrize(
    ("variable", "runtime"), [(None, "auto"), ("", "auto"), ("torch", "torch")]
)
def test_the_variable_names_the_default_of_commands(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, runtime: str
) -> None:
    if variable is None:
        monkeypatch.delenv(RUNTIME_VARIABLE)
    else:
        monkeypatch.setenv(RUNTIME_VARIABLE, variable)
    assert default_runtime() == runtime
    assert with_default_runtime(FrozenBackbone(runtime="openvino")).runtime == "openvino"
    stated = with_default_runtime(FrozenBackbone()).runtime
    assert (stated or "torch") == runtime


def test_the_variable_is_checked_like_the_flag(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(RUNTIME_VARIABLE, "onnx")
    message = "DINONECK_RUNTIME is 'onnx'; expected 'torch' or 'openvino' or 'auto', or unset it"
    with pytest.raises(ConfigError, match=message):
        default_runtime()
    kit.write_images(tmp_path, ["a.png"])
    ran = kit.cli(
        *("extract", tmp_path, "--out", tmp_path / "store", "--size", "32x48"),
        *("--backbone", "dinoneck_tiny"),
    )
    assert ran.code == 1
    assert message in ran.err
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
@needs_openvino
def test_extract_records_the_runtime_and_the_precision(tmp_path: Path) -> None:
    kit.write_images(tmp_path / "images", ["a.png"])
    records: dict[str, dict[str, Any]] = {}
    cases = {"plain": (), "half": ("--runtime", "openvino", "--precision", "bfloat16")}
    for name, words in cases.items():
        ran = kit.cli(
            *("extract", tmp_path / "images", "--out", tmp_path / name, "--size", "32x48"),
            *("--backbone", "dinoneck_tiny", *words),
        )
        assert ran.code == 0, ran.err
        records[name] = FeatureStore.open(tmp_path / name).backbone_record
    assert "runtime" not in records["plain"]
    assert records["plain"]["dtype"] == "float32"
    assert records["half"]["runtime"] == "openvino"
    assert records["half"]["dtype"] == "bfloat16"


@pytest.mark.slow
@needs_openvino
@pytest.mark.usefixtures("shared_programs")
def test_predict_and_evaluate_give_with_openvino_what_they_give_with_torch(tmp_path: Path) -> None:
    paths = kit.write_images(tmp_path / "images", ["a.png", "b.png"])
    head = kit.saved_head(tmp_path / "head.safetensors", kit.randomised(kit.head()))
    truth = tmp_path / "truth.csv"
    truth.write_text("image,mass\na.png,1\nb.png,3\n")
    expected = [row["mass"] for row in Predictor(head)(paths)]
    ran = kit.cli(
        *("predict", tmp_path / "images", "--heads", head, "--out", tmp_path / "p.csv"),
        *("--runtime", "openvino", "--json"),
    )
    assert ran.code == 0, ran.err
    values = [row["mass"] for row in ran.json["predictions"]]
    assert values == pytest.approx(expected, rel=1e-4)
    scores = []
    for runtime in ("torch", "openvino"):
        ran = kit.cli(
            *("evaluate", tmp_path / "images", "--heads", head, "--truth", truth),
            *("--runtime", runtime, "--json"),
        )
        assert ran.code == 0, ran.err
        scores.append(ran.json["scores"]["mass"]["head"]["mae"]["pooled"])
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)


def test_the_precision_of_predict_is_that_of_the_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that was saved with float32 weights is compared with them before they are rounded."""
    dtypes = []
    forward = Backbone.forward

    def noted(self: Backbone, *arguments: Any) -> Any:
        dtypes.append(self.dtype)
        return forward(self, *arguments)

    monkeypatch.setattr(Backbone, "forward", noted)
    kit.write_images(tmp_path / "images", ["a.png"])
    head = kit.saved_head(tmp_path / "head.safetensors")
    for words in ((), ("--precision", "bfloat16")):
        ran = kit.cli(
            *("predict", tmp_path / "images", "--heads", head, "--out", tmp_path / "p.csv", *words)
        )
        assert ran.code == 0, ran.err
    assert dtypes == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("option", [("--runtime", "torch"), ("--precision", "float32")])
def test_predictions_of_a_store_take_neither(tmp_path: Path, option: tuple[str, str]) -> None:
    head = kit.saved_head(tmp_path / "head.safetensors")
    ran = kit.cli(
        *("predict", "--store", tmp_path, "--heads", head, "--out", tmp_path / "p.csv", *option)
    )
    assert ran.code == 1
    assert f"without effect on a feature store, so leave out {option[0]}" in ran.err


def a_detector(path: Path) -> Path:
    head = DetectionHead("fcos", ("red", "blue"), STAPyramid(64, 32))
    backbone = kit.backbone(layers=[0])  # whose program is compiled sooner than that of all blocks
    Detector(kit.randomised(head, std=0.05), backbone, size=(64, 96)).eval().save(path)
    return path


@pytest.mark.slow
@needs_openvino
def test_a_detector_takes_the_runtime_and_not_the_precision(tmp_path: Path) -> None:
    paths = kit.write_images(tmp_path / "images", ["a.png"])
    file = a_detector(tmp_path / "detector.safetensors")
    words = ("predict", tmp_path / "images", "--heads", file, "--out", tmp_path / "p.csv")
    refused = kit.cli(*words, "--precision", "bfloat16")
    assert refused.code == 1
    assert "without effect on a detector, so leave out --precision" in refused.err
    ran = kit.cli(*words, "--runtime", "openvino", "--min-score", "0", "--json")
    assert ran.code == 0, ran.err
    [expected] = Detector.load(file).predict(paths, min_score=0.0)
    scores = [row["score"] for row in ran.json["predictions"]]
    assert len(scores) == len(expected["scores"]) > 0
    assert scores == pytest.approx(expected["scores"].tolist(), abs=1e-4)


def test_openvino_that_is_not_installed_is_named_with_its_extra(tmp_path: Path) -> None:
    kit.write_images(tmp_path / "images", ["a.png"])
    head = kit.saved_head(tmp_path / "head.safetensors")
    words = ("predict", tmp_path / "images", "--heads", head, "--out", tmp_path / "p.csv")
    with kit.without("openvino"):
        refused = kit.cli(*words, "--runtime", "openvino")
        assert refused.code == 1
        assert "openvino is not installed" in refused.err
        assert kit.cli(*words, "--runtime", "auto").code == 0
