"""``dinoneck export``: what it prints, what it refuses, and its earlier name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dinoneck import PatchMeanHead, Task, load_backbone, save_head
from dinoneck.cli.main import main
from dinoneck.data import Preprocessing


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    backbone = load_backbone("dinoneck_tiny", layers=[0])
    fed = Preprocessing(patch_size=16, size=(32, 48))
    save_head(path, PatchMeanHead(64, [Task("mass", unit="g")], 8), backbone=backbone, preprocess=fed)
    return str(path)


@pytest.mark.slow
def test_a_whole_model_is_described_in_lines_and_as_json(
    head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", head, "--with-backbone", "--format", "pt2", "--out", str(tmp_path / "m.pt2"), "--maps"]
    assert main([*command, "--json", "--size", "32x64", "--random-backbone"]) == 0
    both = capsys.readouterr()
    printed = json.loads(both.out)
    assert printed["ok"] and printed["files"] == [str(tmp_path / "m.pt2")] and printed["fixed_because"] is None
    assert [output["name"] for output in printed["description"]["outputs"]] == ["mass", "mass.map"]
    assert printed["description"]["parity"]["tried"] == [[1, 32, 64], [3, 32, 64]]
    for line in ("written", "size [32, 64]", "name mass, task mass", "unit g", "tried [[1, 32, 64], [3, 32, 64]]"):
        assert line in both.err
    run = torch.export.load(tmp_path / "m.pt2").module()
    assert set(run(torch.rand(1, 3, 32, 64))) == {"mass", "mass.map"}


def test_a_half_model_is_written_and_compared(head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    command = ["export", head, "--format", "onnx", "--half", "--out", str(tmp_path / "m.onnx"), "--json"]
    assert main([*command, "--with-backbone", "--random-backbone", "--size", "32x48"]) == 0
    about = json.loads(capsys.readouterr().out)["description"]
    assert about["half"] is True
    assert about["parity"]["largest"] < about["parity"]["tolerance"] == 2e-2


