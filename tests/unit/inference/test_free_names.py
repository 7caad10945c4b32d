"""Names of tasks as tables have them: blanks, units, other alphabets; saved, predicted, drawn and exported."""

from __future__ import annotations

from pathlib import Path

from tests import kit

from dinoneck import DenseHead, HeadCheckpoint, Task
from dinoneck.checkpoint import model_card

NAMES = ("crop cover (%)", "Höhe cm", '1. yield t/ha, "dry"', "the gate", "a|b`c`", "数量", "$x_1$", "=1+1")


def test_a_head_is_saved_loaded_and_described_by_these_names(tmp_path: Path) -> None:
    tasks = [Task(name, kind="density", unit="g") for name in NAMES]
    file = kit.saved_head(tmp_path / "head.safetensors", DenseHead(64, tasks, hidden_dim=8, depth=0))
    checkpoint = HeadCheckpoint.load(file)
    assert [task["name"] for task in checkpoint.meta["tasks"]] == list(NAMES)
    assert not [key for key in checkpoint.state_dict if "crop" in key], "parameters are numbered, not named by tasks"
    rows = [line for line in model_card(checkpoint.meta).splitlines() if line.startswith("| `") and "density" in line]
    assert len(rows) == len(NAMES) and "| `crop cover (%)` |" in rows[0] and "| `a¦bˋcˋ` |" in rows[4]
    assert {row.count("|") for row in rows} == {8}
    assert "crop cover (%) (kind density" in kit.cli("inspect", file).out
