"""The backbone that a head file names, with random weights: where it fits, and where it is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinoneck import Backbone, HeadCheckpoint, PatchMeanHead, Task, load_backbone, save_head
from dinoneck.cli.main import main, parser
from dinoneck.inference.rebuild import rebuild


def saved(path: Path, backbone: Backbone) -> Path:
    save_head(path, PatchMeanHead(64, [Task("x")]), backbone=backbone, preprocess=backbone.preprocess)
    return path


def predict(tmp_path: Path, head: Path, *more: str) -> int:
    Image.fromarray(np.full((32, 48, 3), 90, np.uint8)).save(tmp_path / "p.png")
    out = ["--out", str(tmp_path / "o.csv")]
    return main(["predict", str(tmp_path / "p.png"), "--heads", str(head), *out, *more])


def test_seeded_heads_get_their_own_seed(tmp_path: Path) -> None:
    head = saved(tmp_path / "h.safetensors", load_backbone("dinoneck_tiny", seed=7))
    assert predict(tmp_path, head) == 0
    plain = (tmp_path / "o.csv").read_text()
    assert predict(tmp_path, head, "--random-backbone") == 0
    assert (tmp_path / "o.csv").read_text() == plain
    record = HeadCheckpoint.load(head).meta["backbone"]
    assert (record["weights"]["kind"], record["weights"]["seed"]) == ("seeded", 7)
    assert rebuild(record, random=True).record()["weights"] == record["weights"]


def test_heads_of_other_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained on weights from a file: those with random ones in their place answer nothing."""
    load_backbone("dinoneck_tiny", seed=1).save_weights(tmp_path / "w.safetensors")
    trained = load_backbone("dinoneck_tiny", checkpoint=tmp_path / "w.safetensors")
    head = saved(tmp_path / "h.safetensors", trained)
    assert predict(tmp_path, head) == 1
    assert "--backbone-file" in capsys.readouterr().err
    assert predict(tmp_path, head, "--random-backbone") == 1
    told = capsys.readouterr().err
    assert "weights: the head was trained on" in told
    assert "seeded random weights (seed 0)" in told
    assert predict(tmp_path, head, "--backbone-file", str(tmp_path / "w.safetensors")) == 0


def test_what_contradicts_or_cannot_be_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = saved(tmp_path / "h.safetensors", load_backbone("dinoneck_tiny"))
    assert predict(tmp_path, head, "--random-backbone", "--backbone-file", "w.pth") == 1
    assert "contradict each other" in capsys.readouterr().err
    assert predict(tmp_path, head, "--random-backbone", "--device", "cuda:99") == 1
    assert "cannot be used here" in capsys.readouterr().err
    save_head(tmp_path / "alone.safetensors", PatchMeanHead(64, [Task("x")]))
    assert predict(tmp_path, tmp_path / "alone.safetensors", "--random-backbone") == 1
    assert "does not state which backbone it needs" in capsys.readouterr().err


def test_every_verb_that_loads_a_backbone_can_do_without_a_download() -> None:
    verbs = next(action for action in parser()._actions if action.dest == "verb").choices
    for verb in ("demo", "extract", "train", "predict", "import-legacy", "bench", "export"):
        assert "--random-backbone" in verbs[verb].format_help(), verb
    actions = next(action for action in verbs["viz"]._actions if action.dest == "action").choices
    for name, sub in actions.items():
        loads = {"--backbone", "--backbone-file"} & set(sub._option_string_actions)
        assert not loads or "--random-backbone" in sub._option_string_actions, name
