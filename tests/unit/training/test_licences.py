"""The licences that the files of a run state: of the head, and of the backbone's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests import kit
from tests.unit.store.store_samples import write_images

from dinoneck import HeadCheckpoint
from dinoneck.training import folder

NAMES = [f"{i}.png" for i in range(6)]
OWN_WEIGHTS = ["--backbone", "dinoneck_tiny", "--backbone-file", "own.safetensors"]
RUN = ["--csv", "t.csv", "--targets", "mass", "--epochs", "1", "--folds", "2"]


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of six images, and weights of one's own, in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path, NAMES)
    rows = [f"{name},{i}.5" for i, name in enumerate(NAMES)]
    (tmp_path / "t.csv").write_text("\n".join(["image,mass", *rows]) + "\n")
    backbone = kit.backbone()
    with torch.no_grad():
        next(backbone.adapter.parameters()).add_(0.1)
    backbone.save_weights(tmp_path / "own.safetensors")


def licences(file: str) -> tuple[str | None, dict[str, Any]]:
    """The licences in the header of a head file: of the head, and of what it is built on."""
    meta = HeadCheckpoint.load(file).meta
    return meta["license"], meta["licences"]


@pytest.mark.slow
def test_both_licences_are_in_every_file_and_stay_with_another_method() -> None:
    flags = ["--license", "MIT", "--backbone-license", "CC-BY-4.0"]
    assert kit.cli("train", *RUN, *OWN_WEIGHTS, *flags, "--out", "run").code == 0
    expected = ("MIT", {"backbone": "CC-BY-4.0"})
    for name in ("heads/fold-0", "baselines/fold-1", "head"):
        assert licences(f"run/{name}.safetensors") == expected, name
    assert kit.cli("train", "--out", "run", "--predict-with", "average").code == 0
    assert licences("run/head.safetensors") == expected


def test_without_flags_neither_licence_is_stated() -> None:
    assert kit.cli("train", *RUN, *OWN_WEIGHTS, "--out", "run").code == 0
    assert licences("run/head.safetensors") == (None, {})


@pytest.mark.parametrize("stated_at", ["extract", "train"])
def test_the_licence_of_a_store_is_stated_where_it_is_made_or_used(stated_at: str) -> None:
    flags: dict[str, list[str]] = {"extract": [], "train": []}
    flags[stated_at] = ["--backbone-license", "CC-BY-4.0"]
    extract = ["extract", *NAMES, *OWN_WEIGHTS, "--size", "32x48", "--out", "store"]
    assert kit.cli(*extract, *flags["extract"]).code == 0
    run = ["train", *RUN, "--store", "store", "--out", "run", *flags["train"]]
    assert kit.cli(*run).code == 0
    assert licences("run/head.safetensors") == (None, {"backbone": "CC-BY-4.0"})


def test_another_licence_than_that_of_a_store_is_refused() -> None:
    extract = ["extract", *NAMES, *OWN_WEIGHTS, "--size", "32x48", "--out", "store"]
    assert kit.cli(*extract, "--backbone-license", "MIT").code == 0
    run = kit.cli(
        "train", *RUN, "--store", "store", "--out", "run", "--backbone-license", "Apache-2.0"
    )
    assert run.code == 1
    assert "the licence of dinoneck_tiny is 'MIT'; leave it out" in run.err


def test_random_weights_of_a_store_have_no_licence() -> None:
    extract = ["extract", *NAMES, "--backbone", "dinoneck_tiny", "--size", "32x48"]
    assert kit.cli(*extract, "--out", "store").code == 0
    run = kit.cli("train", *RUN, "--store", "store", "--out", "run", "--backbone-license", "MIT")
    assert run.code == 1
    assert "random weights have none" in run.err


def test_a_run_continues_that_stated_the_licence_of_own_weights() -> None:
    """0.3 took the licence of the published weights for that of a file under their name."""
    record = {"name": "vit_small_patch14_dinov2", "license": "apache-2.0"}
    present = {**record, "license": None}
    folder.check_same({"backbone record": record}, {"backbone record": present}, "run")
