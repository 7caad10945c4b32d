"""``migrate``, ``diff``, and that what reads headers alone stays quick and without torch."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from tests.fixtures.ensembles import write_ensemble

from dinoneck import Backbone, HeadCheckpoint, PatchMeanHead, Task, save_head
from dinoneck.checkpoint import read_header
from dinoneck.checkpoint.schema import SCHEMA
from dinoneck.cli.main import main

FIRST = Path(__file__).resolve().parents[2] / "fixtures" / "head_v1"


def head_of(**changes: object) -> PatchMeanHead:
    torch.manual_seed(0)
    return PatchMeanHead(4, [Task("a")], **{"hidden_dim": 2, **changes})


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIRST, tmp_path / "heads"))


def test_a_folder_is_migrated(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = sorted(file.name for file in old.glob("*.safetensors"))
    before = {name: HeadCheckpoint.load(old / name) for name in names}
    save_head(old / "z.safetensors", head_of())
    kept = (old / "z.safetensors").read_bytes()
    assert main(["migrate", str(old)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["migrated"] * len(names) + ["current"]
    assert (old / "z.safetensors").read_bytes() == kept
    for name in names:
        meta = read_header(old / name).meta
        assert meta["schema"] == SCHEMA
        now = HeadCheckpoint.load(old / name)
        assert now.meta == before[name].meta == meta
        for key, value in before[name].state_dict.items():
            assert torch.equal(now.state_dict[key], value)
    assert sorted(os.listdir(old)) == sorted([*names, "z.safetensors", "answers.json"])
    assert main(["migrate", str(old)]) == 0
    assert all(line.startswith("current") for line in capsys.readouterr().out.splitlines())


def test_a_member_of_an_ensemble_folder_is_not_changed_under_it(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (old.parent / "ensemble.json").write_text("{}")
    before = (old / "fpn.safetensors").read_bytes()
    assert main(["migrate", str(old / "fpn.safetensors")]) == 1
    assert "belongs to an ensemble" in capsys.readouterr().err
    assert (old / "fpn.safetensors").read_bytes() == before


def test_diff(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    save_head(a, head_of(), note="x", training={"metrics": {"R2": 0.5}})
    save_head(b, head_of(), note="x", training={"metrics": {"R2": 0.5}})
    assert main(["diff", str(a), str(b)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "the same content"
    changed = head_of()
    with torch.no_grad():
        changed.mlps[0].out.bias.add_(0.5)
    save_head(b, changed, training={"metrics": {"R2": 0.75}}, license="MIT")
    assert main(["diff", str(a), str(b), "--values"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        'header   extra.note: "x" -> nothing',
        'header   license: null -> "MIT"',
        "header   training.metrics.R2: 0.5 -> 0.75",
        "equal    mlps.0.hidden.bias  first F32 [2], second F32 [2]",
        "equal    mlps.0.hidden.weight  first F32 [2, 4], second F32 [2, 4]",
        "differs  mlps.0.out.bias  first F32 [1], second F32 [1], gap 0.5",
        "equal    mlps.0.out.weight  first F32 [1, 2], second F32 [1, 2]",
        "3 entries and 1 of 4 tensors differ",
    ]


def test_diff_of_other_shapes_names_and_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    save_head(a, head_of())
    save_head(b, PatchMeanHead(4, [Task("a", unit="g"), Task("b")], hidden_dim=3))
    assert main(["diff", str(b), str(a)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert "differs  mlps.0.hidden.weight  first F32 [3, 4], second F32 [2, 4]" in printed
    assert "only in the first mlps.1.out.bias  first F32 [1]" in printed
    assert "header   config.hidden_dim: 3 -> 2" in printed
    save_head(b, PatchMeanHead(4, [Task("a", unit="g")], hidden_dim=2))
    main(["diff", str(a), str(b)])
    assert 'header   tasks[0].unit: "" -> "g"' in capsys.readouterr().out


def test_inspect_and_verify_print_the_facts(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = {"seed": 7, "data": {"name": "pasture", "revision": "r1"}, "metrics": {"R2": {"mean": 0.5, "sd": 0.25}}}
    save_head(tmp_path / "h", head_of(), training=facts, license="MIT", tta="flip4")
    assert main(["inspect", str(tmp_path / "h")]) == 0
    printed = capsys.readouterr().out
    shown = ("seed 7", "data (name pasture, revision r1)", "metrics (R2 (mean 0.5, sd 0.25))")
    for text in (*shown, "licence    MIT", "views      flip4"):
        assert text in printed
    assert main(["inspect", str(old / "with_records.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "schema 1, made by dinoneck 0.1.0; 'dinoneck migrate' rewrites it in" in printed
    assert "mean [0.485, 0.456, 0.406]" in printed and "std [0.229, 0.224, 0.225]" in printed
    assert main(["verify", str(old / "fpn.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert json.loads((old / "answers.json").read_text())["fpn"]["digest"] in printed
    assert "schema 1: 'dinoneck migrate' rewrites it in schema" in printed


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
    assert (
        "heads/total-fold1.safetensors: patch_mean, total (kind regression, dim 1, unit g), weight 1, sha256:" in shown
    )
    assert main(["inspect", str(tmp_path / "a"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in document["ensemble"]["members"]] == list(document["heads"])
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "equal    total-fold0.safetensors  entries 0, tensors 0",
        "differs  total-fold1.safetensors  entries 0, tensors 4",
    ]
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "a" / "heads" / "total-fold0.safetensors")]) == 1
    assert "dinoneck inspect FOLDER" in capsys.readouterr().err
