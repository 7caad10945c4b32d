"""Names of tasks as tables have them: blanks, units, other alphabets; saved, predicted, drawn and exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from dinoneck import (
    Backbone,
    ConfigError,
    DenseHead,
    HeadCheckpoint,
    Task,
    save_head,
)
from dinoneck.checkpoint import model_card
from dinoneck.cli.main import main

NAMES = ("crop cover (%)", "Höhe cm", '1. yield t/ha, "dry"', "the gate", "a|b`c`", "数量", "$x_1$", "=1+1")
TASKS = [Task(name, kind="density", unit="g") for name in NAMES]


@pytest.fixture
def head(tiny: Backbone, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_head(tmp_path / "head.safetensors", DenseHead(64, TASKS, hidden_dim=8, depth=0), backbone=tiny)
    Image.new("RGB", (48, 32), (10, 200, 30)).save(tmp_path / "a.png")
    return tmp_path / "head.safetensors"


def test_a_head_is_saved_loaded_and_described_by_these_names(head: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = HeadCheckpoint.load(head)
    assert [task["name"] for task in checkpoint.meta["tasks"]] == list(NAMES)
    assert not [key for key in checkpoint.state_dict if "crop" in key], "parameters are numbered, not named by tasks"
    rows = [line for line in model_card(checkpoint.meta).splitlines() if line.startswith("| `") and "density" in line]
    assert len(rows) == len(NAMES) and "| `crop cover (%)` |" in rows[0] and "| `a¦bˋcˋ` |" in rows[4]
    assert {row.count("|") for row in rows} == {8}
    assert main(["inspect", str(head)]) == 0
    assert "crop cover (%) (kind density" in capsys.readouterr().out


def test_names_that_another_output_has_are_refused() -> None:
    for name in ("cover.map", "gate"):
        with pytest.raises(ConfigError, match=f"{name!r}; expected another name"):
            Task(name)
