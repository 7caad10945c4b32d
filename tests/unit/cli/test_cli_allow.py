"""Heads of other packages on the command line: only with ``--allow``; what loads no class needs none."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.hub_server import WRITER, Hub
from tests.unit.checkpoint.test_third_party import installed

from dinoneck import Backbone, CheckpointError, HeadCheckpoint, PatchMeanHead, Predictor, Task, save_head
from dinoneck.checkpoint import Member, import_described, save_ensemble
from dinoneck.cli.main import main

# the client's own way of uploading without Xet
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
ALLOW = ["--allow", "other.head", "--allow", "acme_heads.*"]


@pytest.fixture
def place(tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Files of another package's head, which is installed and not imported."""
    monkeypatch.syspath_prepend(str(installed(tmp_path / "site")))
    import acme_heads  # type: ignore[import-not-found]

    recipe = tiny.preprocess.changed(size=(32, 48))
    heads = [acme_heads.PineHead(64, [Task("mass", unit="g")], hidden_dim=4) for _ in range(2)]
    made = [HeadCheckpoint.from_module(head, backbone=tiny, preprocess=recipe) for head in heads]
    made[0].save(tmp_path / "pine.safetensors")
    save_ensemble(tmp_path / "many", [Member(checkpoint, "mass", fold) for fold, checkpoint in enumerate(made)])
    torch.save({"state_dict": heads[0].state_dict(), "meta": {"head_type": "acme_heads.pine"}}, tmp_path / "old.pt")
    (tmp_path / "tasks.json").write_text('[{"name": "mass", "unit": "g"}]')
    Image.fromarray(np.full((32, 48, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    del sys.modules["acme_heads"]
    yield tmp_path
    for name in ("acme_heads", "acme_broken"):
        sys.modules.pop(name, None)


def verb(name: str, place: Path) -> list[str]:
    """A command line of every verb that builds the class a file names."""
    head, out = str(place / "pine.safetensors"), str(place / "out")
    like = ["--like", head, "--argument", "hidden_dim=4", "--tasks", str(place / "tasks.json")]
    return {
        "verify": ["verify", head],
        "verify many": ["verify", str(place / "many")],
        "card": ["card", str(place / "many")],
        "predict": ["predict", str(place / "photo.png"), "--heads", head, "--out", f"{out}.csv"],
        "predict many": ["predict", str(place / "photo.png"), "--heads", str(place / "many"), "--out", f"{out}.csv"],
        "export-head": ["export-head", head, "--format", "state-dict", "--out", f"{out}.safetensors"],
        "import-legacy": ["import-legacy", "described", str(place / "old.pt"), *like, "--out", f"{out}.safetensors"],
    }[name]


NAMES = ["verify", "verify many", "card", "predict", "predict many", "export-head", "import-legacy"]


@pytest.mark.parametrize("name", NAMES)
def test_only_with_permission(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name for path in place.iterdir()}
    for permission in ([], ["--allow", "other.*"]):
        assert main([*verb(name, place), *permission]) == 1
        told = capsys.readouterr().err
        assert "is code of the installed package 'acme-heads'" in told
        assert "--allow 'acme_heads.*'" in told
    assert "acme_heads" not in sys.modules
    assert {path.name for path in place.iterdir()} == before
    assert main([*verb(name, place)[:1], *ALLOW, *verb(name, place)[1:]]) == 0, "also before the other arguments"
    assert "acme_heads" in sys.modules


def test_what_is_written_with_permission(place: Path) -> None:
    assert main([*verb("predict", place), *ALLOW]) == 0
    with (place / "out.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    (answer,) = Predictor(place / "pine.safetensors", allow=["acme_heads.pine"])(place / "photo.png")
    assert float(row["mass"]) == pytest.approx(answer["mass"], rel=1e-4)
    assert main([*verb("export-head", place), *ALLOW]) == 0
    weights = HeadCheckpoint.load(place / "pine.safetensors", allow=["acme_heads.*"]).state_dict
    assert all(torch.equal(value, weights[key]) for key, value in load_file(place / "out.safetensors").items())
    assert main([*verb("import-legacy", place), *ALLOW]) == 0
    again = HeadCheckpoint.load(place / "out.safetensors", allow=["acme_heads.*"])
    assert again.head_type == "acme_heads.pine"
    assert all(torch.equal(value, weights[key]) for key, value in again.state_dict.items())


def test_what_builds_nothing_needs_no_permission(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, other = place / "pine.safetensors", next((place / "many" / "heads").iterdir())
    assert main(["inspect", str(head), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["head_type"] == "acme_heads.pine"
    assert main(["inspect", str(head)]) == 0
    assert main(["diff", str(head), str(head)]) == 0
    assert "the same content" in capsys.readouterr().out
    assert main(["diff", str(head), str(place / "many" / "heads" / "mass-fold1.safetensors"), "--values"]) == 1
    assert "at most by" in capsys.readouterr().out
    assert main(["card", str(other)]) == 0
    assert "`acme_heads.pine`" in capsys.readouterr().out
    assert "acme_heads" not in sys.modules


def test_permission_is_checked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb("verify", place), "--allow", "*"]) == 1
    assert "expected names such as 'vendor.*'" in capsys.readouterr().err


def test_pushed_pulled_and_verified_from_the_hub(
    hub: Hub, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    for source, repo in (("pine.safetensors", "me/pine"), ("many", "me/many")):
        assert main(["push", str(place / source), repo]) == 1
        assert main(["push", str(place / source), repo, *ALLOW]) == 0
        assert main(["verify", repo]) == 1
        capsys.readouterr()
        assert main(["verify", repo, *ALLOW]) == 0
        assert f"commit {hub.repos[repo].branches['main']}" in capsys.readouterr().out
        assert main(["pull", repo, "--out", str(place / "back"), *ALLOW]) == 0
        if source == "pine.safetensors":
            (place / "back").unlink()


def test_from_python(place: Path, tiny: Backbone) -> None:
    arguments: dict[str, Any] = {"tasks": [Task("mass", unit="g")], "embed_dim": 64, "arguments": {"hidden_dim": 4}}
    with pytest.raises(CheckpointError, match="is code of the installed package") as caught:
        import_described(place / "old.pt", **arguments)
    assert caught.value.step == "registry"
    head, _ = import_described(place / "old.pt", **arguments, allow=["acme_heads.pine"])
    assert type(head).__name__ == "PineHead"
    with pytest.raises(CheckpointError, match="is code of the installed package"):
        Predictor(place / "many", tiny)
    own = place / "own.safetensors"
    save_head(own, PatchMeanHead(64, [Task("mass", unit="g")]), backbone=tiny, preprocess=tiny.preprocess)
    assert Predictor([place / "many"], tiny, allow=["acme_heads.*"]).tasks == Predictor(own, tiny).tasks
