"""``dinoneck export``: what it writes and prints; its refusals are in test_wrong_input."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.kit import cli, saved_head

MODEL = ("--with-backbone", "--random-backbone", "--json")


@pytest.mark.slow
def test_a_whole_model_is_described_in_lines_and_as_json(tmp_path: Path) -> None:
    out, head = tmp_path / "m.pt2", saved_head(tmp_path / "h.safetensors")
    found = cli("export", head, *MODEL, "--format", "pt2", "--out", out, "--maps", "--size", "32x64")
    printed = found.json
    assert printed["ok"] and printed["files"] == [str(out)] and printed["fixed_because"] is None
    assert [output["name"] for output in printed["description"]["outputs"]] == ["mass", "mass.map"]
    lines = ("written", "size [32, 64]", "name mass, shape", "task mass", "unit g", "tried [[1, 32, 64], [3, 32, 64]]")
    assert all(line in found.err for line in lines)
    assert set(torch.export.load(out).module()(torch.rand(1, 3, 32, 64))) == {"mass", "mass.map"}


@pytest.mark.slow
def test_a_half_model_is_written_and_compared(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    words = ("--format", "onnx", "--half", "--out", tmp_path / "m.onnx", "--size", "32x48")
    about = cli("export", saved_head(tmp_path / "h.safetensors"), *MODEL, *words).json["description"]
    assert about["half"] is True
    assert about["parity"]["largest"] < about["parity"]["tolerance"] == 2e-2
