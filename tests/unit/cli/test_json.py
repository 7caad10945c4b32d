"""``--json``: one document on stdout and nothing else, whatever the verb says to people."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.fixtures.ensembles import write_ensemble

from dinoneck import Backbone, HeadCheckpoint, PatchMeanHead, Predictor, Task, save_head
from dinoneck.cli import answers
from dinoneck.cli.main import main
from dinoneck.version import __version__


@pytest.fixture
def head(tiny: Backbone, tmp_path: Path) -> Path:
    module = PatchMeanHead(64, [Task("green", unit="g"), Task("kind", kind="classification", dim=2)])
    save_head(tmp_path / "h.safetensors", module, backbone=tiny, preprocess=tiny.preprocess.changed(size=(32, 48)))
    return tmp_path / "h.safetensors"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((32, 48, 3), 60 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def told(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> dict[str, Any]:
    """The document; what every one of them holds is checked here."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert document["verb"] == arguments[0]
    assert document["ok"] is (code == 0)
    assert document["dinoneck"] == __version__
    return document


def test_of_files(head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    meta = HeadCheckpoint.load(head).meta
    inspected = told(capsys, 0, "inspect", head)
    assert {key: inspected[key] for key in meta} == json.loads(json.dumps(meta))
    assert told(capsys, 0, "diff", head, head)["same"] is True
    save_head(tmp_path / "o.safetensors", PatchMeanHead(64, [Task("other")]))
    apart = told(capsys, 1, "diff", head, tmp_path / "o.safetensors")
    assert {"place": "backbone", "first": meta["backbone"], "second": None} in apart["entries"]
    assert {row["state"] for row in apart["tensors"]} >= {"differs", "only in the first"}
    assert told(capsys, 0, "migrate", head)["files"][0]["state"] == "current"
    assert "patch_mean" in told(capsys, 0, "card", head)["page"]
    content = bytearray(head.read_bytes())
    content[-1] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(content)
    checked = told(capsys, 1, "verify", head, tmp_path / "bad.safetensors")["checked"]
    assert [row["state"] for row in checked] == ["ok", "refused"]
    assert checked[0]["digest"] == meta["digest"]
    assert checked[1]["step"] == "digest"


def test_of_backbones(capsys: pytest.CaptureFixture[str]) -> None:
    [row] = told(capsys, 0, "backbones", "vit_small_patch16_dinov3.lvd")["backbones"]
    assert (row["patch"], row["width"], row["registers"]) == (16, 384, 4)
    assert told(capsys, 1, "backbones", "nothing")["backbones"] == []


def test_of_predictions_extraction_and_stores(
    head: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = told(capsys, 0, "predict", photos, "--heads", head, "--out", tmp_path / "p.csv")
    assert document["written"] == [str(tmp_path / "p.csv")]
    assert [task["unit"] for task in document["tasks"]] == ["g", ""]
    expected = Predictor(head)([photos / "0.png", photos / "1.png", photos / "2.png"])
    for row, answer in zip(document["predictions"], expected, strict=True):
        assert row["values"]["green"] == pytest.approx(answer["green"], rel=1e-5)
        assert row["values"]["kind"] == pytest.approx(list(map(float, answer["kind"])), rel=1e-5)
    store = tmp_path / "store"
    command = ("extract", photos, "--out", store, "--size", "32x48", "--backbone", "dinoneck_tiny")
    assert told(capsys, 0, *command)["written"] == 3
    assert told(capsys, 0, *command)["present"] == 3
    for verb in (("verify", store), ("store", "verify", store)):
        [row] = told(capsys, 0, *verb)["checked"]
        assert (row["kind"], row["images"]) == ("feature store", 3)


def test_of_imports(head: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"network.0.weight": torch.rand(8, 64), "network.0.bias": torch.rand(8)}
    state |= {"network.2.weight": torch.rand(1, 8), "network.2.bias": torch.rand(1)}
    (tmp_path / "models").mkdir()
    torch.save(state, tmp_path / "models" / "target0_fold1.pth")
    job = ("import-legacy", "biomass-mlp", tmp_path / "models", "--pattern", "target{target}_fold{fold}.pth")
    document = told(capsys, 0, *job, "--unit", "g", "--targets", "a", "--like", head, "--out", tmp_path / "many")
    assert document["heads"] == [{"output": "a", "fold": 1}]
    assert document["written"] == str(tmp_path / "many")


def test_of_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    document = told(capsys, 0, "train", "--out", run, "--pasture", "8", "--backbone", "dinoneck_tiny", "--folds", "2",
                    "--epochs", "1")  # fmt: skip
    assert document["report"]["photos"] == 8
    assert document["out"] == str(run)
    assert set(document["report"]["scores"]) == set(json.loads((run / "report.json").read_text())["scores"])


def test_a_refusal_is_told_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = told(capsys, 1, "inspect", tmp_path / "no.safetensors")
    assert document["error"] == {
        "type": "CheckpointError",
        "message": f"there is no head file {tmp_path / 'no.safetensors'}, nor a folder of that name",
        "step": "file",
    }
    assert main(["inspect", str(tmp_path / "no.safetensors"), "--json"]) == 1
    assert "error: there is no head file" in capsys.readouterr().err


def test_what_people_read_goes_to_stderr(head: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", str(photos), "--heads", str(head), "--out", str(head.parent / "p.csv")]
    assert main(arguments) == 0
    for_people = capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert for_people in capsys.readouterr().err


def test_documents_hold_only_what_json_has_words_for(capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    options = argparse.Namespace(verb="x", json=True, answer=None)
    answers.answer(options, a=math.nan, b=(Path("c"), math.inf), d="\x1b[2J")
    answers.close(options, 0)
    out = capsys.readouterr().out
    assert json.loads(out) | {"verb": "x"} == {
        "verb": "x", "ok": True, "dinoneck": __version__, "a": None, "b": ["c", None], "d": "\x1b[2J"
    }  # fmt: skip
    assert "\x1b" not in out
    answers.close(argparse.Namespace(verb="x"), 0)
    assert capsys.readouterr().out == ""


def test_folders_of_heads(tiny: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seeds in (("a", (1, 2)), ("b", (1, 3))):
        heads = []
        for seed in seeds:
            torch.manual_seed(seed)
            heads.append(HeadCheckpoint.from_module(PatchMeanHead(64, [Task("total", unit="g")]), backbone=tiny))
        write_ensemble(tmp_path / name, heads, "total")
    assert main(["inspect", str(tmp_path / "a")]) == 0
    shown = capsys.readouterr().out
    assert "folder of 2 head files, an ensemble" in shown
    assert "heads/total-fold1.safetensors: patch_mean, total (regression, dim 1, g), weight 1, sha256:" in shown
    document = told(capsys, 0, "inspect", tmp_path / "a")
    assert [row["file"] for row in document["ensemble"]["members"]] == list(document["heads"])
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "equal    total-fold0.safetensors",
        "differs  total-fold1.safetensors: 0 entries and 4 tensors",
        "1 of 2 heads differ",
    ]
    assert told(capsys, 0, "diff", tmp_path / "a", tmp_path / "a")["same"] is True
    member = tmp_path / "a" / "heads" / "total-fold0.safetensors"
    document = told(capsys, 1, "diff", tmp_path / "a", member)
    assert "dinoneck inspect FOLDER" in document["error"]["message"]
