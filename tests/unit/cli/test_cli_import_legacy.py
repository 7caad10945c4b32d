"""``dinoneck import-legacy`` and ``export-head``: nothing is guessed, and the answers stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dinoneck import Backbone, HeadCheckpoint, Predictor, load_head
from dinoneck.checkpoint.legacy import BIOMASS_TARGETS
from dinoneck.cli.main import main

LEVELS = (1.0, 2.0, 4.0, 8.0, 16.0)
IMAGES = ["--layers", "5", "--norm", "--size", "32x48", "--fit", "stretch", "--interpolation", "bilinear"]
TINY = ["--backbone", "dinoneck_tiny", *IMAGES, "--blur", "5"]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two folds of five targets, each of which always answers its level."""
    (tmp_path / "models").mkdir()
    for index, level in enumerate(LEVELS):
        for fold in range(2):
            state = {
                "network.0.weight": torch.randn(4, 64),
                "network.0.bias": torch.randn(4),
                "network.2.weight": torch.zeros(1, 4),
                "network.2.bias": torch.tensor([level]),
            }
            torch.save(state, tmp_path / "models" / f"t{index}_f{fold}.pth")
    return tmp_path / "models"


def imported(models: Path, out: Path, *more: str) -> int:
    pattern = ["--pattern", "t{target}_f{fold}.pth", "--unit", "g"]
    return main(["import-legacy", "biomass-mlp", str(models), *pattern, "--out", str(out), *more])


@pytest.mark.parametrize("form", ["ensemble", "files"])
def test_biomass_heads_answer_under_their_names(form: str, models: Path, tmp_path: Path, tiny: Backbone) -> None:
    out = tmp_path / "out"
    assert imported(models, out, "--form", form, *TINY) == 0
    (answer,) = Predictor(out, tiny, preprocess=tiny.preprocess)([torch.rand(3, 32, 48)])
    assert answer == {name: pytest.approx(level) for name, level in zip(BIOMASS_TARGETS, LEVELS, strict=True)}
    names = [f"{name}-fold{fold}.safetensors" for name in sorted(BIOMASS_TARGETS) for fold in range(2)]
    assert form == "ensemble" or sorted(file.name for file in out.iterdir()) == names
    meta = HeadCheckpoint.load(out if form == "ensemble" else out / names[0]).meta
    assert (meta["inputs"]["size"], meta["inputs"]["blur"]["kernel"]) == ([32, 48], 5)
    assert len(meta["backbone"]["probe"]) > 1
    assert meta["extra"]["imported"] == {"format": "biomass-mlp", "source": "models"}
    if form == "ensemble":
        assert meta["extra"]["members"] == [[name, fold] for name in BIOMASS_TARGETS for fold in range(2)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give --like, or --backbone, --layers, --norm or --no-norm, --size, --fit, --interpolation, --blur"),
        (TINY[:-2], "give --like, or --blur"),
        ([*TINY, "--like", "x"], "--like takes it from the other head file"),
        ([*TINY[:-1], "five"], "--blur is 'five'"),
        ([*TINY, "--targets", "a", "b"], "target 2 of 2"),
    ],
    ids=range(5),
)
def test_nothing_is_guessed(
    more: list[str], message: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert imported(models, tmp_path / "out", *more) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_cls_gating_head(tmp_path: Path, tiny: Backbone, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"gate_mlp.0": (16, 64), "gate_mlp.2": (6, 16), "shared_mlp.0": (8, 128), "shared_mlp.1": (8,)}
    sizes |= {"main_head": (3, 8), "state_head": (4, 8), "height_head": (1, 8), "aux_head": (2, 8)}
    state = {f"{name}.weight": torch.randn(shape) for name, shape in sizes.items()}
    state |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in sizes.items()}
    torch.save({"_orig_mod." + key: value for key, value in state.items()}, tmp_path / "old.pth")
    command = [
        "import-legacy",
        "cls-gating",
        str(tmp_path / "old.pth"),
        "--out",
        str(tmp_path / "new.safetensors"),
        *TINY,
    ]
    assert main(command) == 0
    assert torch.equal(
        load_head(tmp_path / "new.safetensors").state_dict()["trunk.weight"], state["shared_mlp.0.weight"]
    )
    torch.save({"state_dict": state, "meta": {"a": 1}}, tmp_path / "old.pth")
    assert main(command) == 1
    assert "expected a state dict alone" in capsys.readouterr().err
