"""``dinoneck export``: what it writes and prints; its refusals are in test_wrong_input."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.kit import cli, saved_head

MODEL = ("--with-backbone", "--random-backbone", "--json")


@pytest.mark.slow
def test_a_half_model_is_written_and_compared(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    words = ("--format", "onnx", "--half", "--out", tmp_path / "m.onnx", "--size", "32x48")
    about = cli("export", saved_head(tmp_path / "h.safetensors"), *MODEL, *words).json["description"]
    assert about["half"] is True
    assert about["parity"]["largest"] < about["parity"]["tolerance"] == 2e-2
