"""``dinoneck train`` from a file and from a store: the whole way on small photos, resumed, and refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dinoneck import HeadCheckpoint, load_backbone
from dinoneck.cli import train
from dinoneck.cli.main import main
from dinoneck.data import Pasture
from dinoneck.store import FeatureStore
from dinoneck.training import CrossValidation, Recipe, TrainConfig, crossval


@pytest.fixture(scope="module")
def csiro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("csiro")
    Pasture(seed=1, size=(32, 64)).write_csiro(root, train=10, test=1)
    return root


@pytest.fixture(scope="module")
def store(csiro: Path) -> Path:
    made = FeatureStore.create(
        csiro / "store", backbone=load_backbone("dinoneck_tiny"), patterns="flips4", image_size=(32, 64)
    )
    made.extract([csiro / "train", csiro / "test"], root=csiro)
    return csiro / "store"


def said(*arguments: str) -> TrainConfig:
    config: TrainConfig = train.parse([*arguments, "--out", "x"]).config()
    return config


def files_of(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_flags_over_file_over_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("optim: {batch_size: 4, optimizer: sam, rho: 0.1, patience: 4}\nhead: {type: fpn, num_levels: 2}\n")
    flags = "--epochs 9 --head patch_mean --hidden-dim 16 --rho 0.2 --patience none --fold 1 --size 32x64 --store s"
    config = said(str(path), *flags.split(), "--random-backbone", "--group", "State", "Sampling_Date")
    optim = config.optim
    assert (optim.epochs, optim.batch_size, optim.lr, optim.seed) == (9, 4, 1e-3, 42)
    assert (optim.optimizer, optim.rho, optim.patience) == ("sam", 0.2, None)
    assert (config.head, config.folds.only) == ({"type": "patch_mean", "hidden_dim": 16}, 1)
    assert (config.data.store, config.data.size, config.backbone.random) == ("s", (32, 64), True)
    assert config.folds.group == ("State", "Sampling_Date")


def test_the_defaults_are_those_of_the_config() -> None:
    assert said("--csv", "t.csv").optim == Recipe() == TrainConfig().optim
    optim = said("--ema", "0.9", "--mixup-alpha", "0.4", "--amp", "bf16", "--optimizer", "sam").optim
    assert optim == Recipe(ema_decay=0.9, mixup_alpha=0.4, amp="bf16", optimizer="sam")
    assert said("--unit", "none").data.unit == "none", "only numbers are switched off by that word"


GATING = """
backbone: {{name: dinoneck_tiny}}
data: {{csv: {csv}, store: {store}, views: 4, tta: flip4,
  targets: [Dry_Clover_g, Dry_Dead_g, Dry_Green_g, GDM_g, Dry_Total_g]}}
head: {{type: cls_gating, hidden_dim: 16, dropout: 0.1}}
tasks:
  Dry_Clover_g: {{activation: softplus, loss: smooth_l1, weight: 1.65}}
  State: {{auxiliary: true, weight: 0.1}}
  Height_Ave_cm: {{auxiliary: true, activation: softplus, loss: smooth_l1}}
"""


def test_the_gating_run_from_a_store_and_taken_up_again(
    csiro: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    optim = "optim: {epochs: 2, batch_size: 4, mixup_alpha: 2.5}\nfolds: {count: 2}\n"
    (tmp_path / "run.yaml").write_text(optim + GATING.format(csv=csiro / "train.csv", store=store))
    path = str(tmp_path / "run.yaml")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(["train", path, "--out", str(whole)]) == 0
    told = capsys.readouterr().out
    assert "Auxiliary: State, Height_Ave_cm." in told
    assert "dinoneck_tiny, 2x4 patches, 4 views" in told
    assert "Auxiliary, R² of values and accuracy of classes: State" in told
    report = json.loads((whole / "report.json").read_text())
    assert set(report["scores"]) == {"head", "token ridge", "token knn"}, "a store has no colours"
    assert TrainConfig.from_dict(report["config"]) == TrainConfig.read(path)
    assert set(report["auxiliary_scores"]) == {"State", "Height_Ave_cm"}
    head = HeadCheckpoint.load(whole / "heads" / "fold-1.safetensors")
    assert (head.head_type, head.config["num_patches"], head.meta["tta"]["ops"]) == ("cls_gating", 8, "flip4")
    lines = [json.loads(line) for line in (whole / "logs" / "fold-0.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert {"loss", "Dry_Green_g", "State", "val_loss", "val_r2"} <= set(lines[0])

    rows = {}
    for name, views in {"said": [], "flip4": ["--tta", "flip4"], "none": ["--tta", "none"]}.items():
        flags = ["--heads", str(whole / "heads"), "--out", str(tmp_path / f"{name}.csv"), *views]
        assert main(["predict", "--csv", str(csiro / "test.csv"), *flags]) == 0
        rows[name] = (tmp_path / f"{name}.csv").read_text()
    assert rows["said"] == rows["flip4"] != rows["none"], "the file's views are the default"

    real, calls = crossval.fit, []

    def killed(*arguments: Any, **named: Any) -> Any:
        calls.append(named["out"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(crossval, "fit", killed)
    assert main(["train", path, "--out", str(parts)]) == 130
    assert sorted(file.name for file in (parts / "unfinished").iterdir()) == ["fold-0"]
    assert not (parts / "report.json").exists()
    monkeypatch.undo()
    assert main(["train", path, "--out", str(parts)]) == 0
    assert files_of(parts) == files_of(whole)


def test_states_of_another_run_are_refused_or_left(
    csiro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["train", "--csv", str(csiro / "train.csv"), "--backbone", "dinoneck_tiny", "--folds", "2", "--fold", "1"]
    run = ["--out", str(tmp_path / "run")]
    monkeypatch.setattr(CrossValidation, "out_of_fold", lambda self: 1 / 0)
    assert main([*common, *run, "--epochs", "1"]) == 1
    monkeypatch.undo()
    assert main([*common, *run, "--epochs", "2"]) == 1
    assert re.search("state of another run: .*epochs is 1 there and 2 here", capsys.readouterr().err)
    assert main([*common, *run, "--epochs", "2", "--no-resume"]) == 0
    assert "logs/fold-1.jsonl" in files_of(tmp_path / "run")
    assert "heads/fold-1.safetensors" in files_of(tmp_path / "run")
    rows = (tmp_path / "run" / "out_of_fold.csv").read_text().splitlines()[1:]
    assert rows
    assert {row.split(",")[1] for row in rows} == {"1"}
    assert HeadCheckpoint.load(tmp_path / "run" / "heads" / "fold-1.safetensors").meta["training"]["fold"] == 1


def test_two_runs_that_end_in_one_folder_do_not_replace_each_other(
    csiro: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = ["--csv", str(csiro / "train.csv"), "--backbone", "dinoneck_tiny", "--folds", "2", "--epochs", "1"]

    def meanwhile(*arguments: Any, **named: Any) -> Any:
        (run / "heads").mkdir(parents=True)
        (run / "heads" / "fold-0.safetensors").write_bytes(b"of another run")
        return real(*arguments, **named)

    real = crossval.fit
    monkeypatch.setattr(crossval, "fit", meanwhile)
    assert main(["train", *flags, "--fold", "1", "--out", str(run)]) == 1
    assert "holds results of an earlier run (fold-0.safetensors)" in capsys.readouterr().err
    assert (run / "heads" / "fold-0.safetensors").read_bytes() == b"of another run"


@pytest.mark.parametrize(
    ("text", "flags", "says"),
    [
        ("", ["--group", "site"], "no column or target 'site'"),
        ("", ["--views", "20"], "20 augmentation patterns.*the store has 4"),
        ("", ["--size", "960"], r"made with image size \(32, 64\), and this run asks for \(960, 960\)"),
        ("", ["--interpolation", "bilinear"], "made with interpolation area"),
        ("", ["--backbone", "vit_small_patch16_dinov3"], "made with backbone dinoneck_tiny"),
        ("", ["--layers", "1", "3"], r"made with layers \(5,\)"),
        ("", ["--head", "fpn", "--gate-mode", "query"], "FPNHead has no argument 'mode'"),
        ("optim: {optimizer: sam, amp: fp16}\n", [], "optimizer 'sam' with amp 'fp16'"),
        ("optim: {cutmix_alpha: 1.0}\n", [], "cutmix_alpha is 1.0; it is for images that go through the backbone"),
        ("trainer: {num_epochs: 3}\n", [], "'trainer.num_epochs' is a key of version 0.1; write optim.epochs"),
        ("optin: {epochs: 3}\n", [], "unknown key 'optin'.*Did you mean 'optim'"),
        ("tasks: {mass: {colums: [GDM_g]}}\n", [], "unknown key 'tasks.mass.colums'.*'columns'"),
    ],
)
def test_what_does_not_fit_is_said_before_the_work(
    csiro: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, flags: list[str], says: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"data: {{csv: {csiro / 'train.csv'}, store: {store}}}\n{text}")
    assert main(["train", str(path), *flags, "--out", str(tmp_path / "run")]) == 1
    shown = capsys.readouterr().err
    assert re.search(says, shown), shown
    assert not (tmp_path / "run").exists()


def test_a_photo_that_the_store_lacks(csiro: Path, store: Path, tmp_path: Path, capsys: Any) -> None:
    text = (csiro / "train.csv").read_text().replace("train/ID1000003", "train/ID77")
    (tmp_path / "t.csv").write_text(text)
    flags = ["--csv", str(tmp_path / "t.csv"), "--store", str(store), "--out", str(tmp_path / "run")]
    assert main(["train", *flags]) == 1
    assert "1 of 10 photos of the table are not in the store, the first is 'train/ID77.jpg'" in capsys.readouterr().err


def test_a_folder_of_the_older_layout_is_no_store(csiro: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "ID1.npz").write_bytes(b"")
    flags = ["--csv", str(csiro / "train.csv"), "--out", str(tmp_path / "run"), "--store"]
    assert main(["train", *flags, str(tmp_path)]) == 1
    assert "FeatureStore.from_npz(folder, path, grid=, patch_size=)" in capsys.readouterr().err
    assert main(["train", *flags, str(tmp_path / "no")]) == 1
    assert "is no feature store" in capsys.readouterr().err


def test_a_store_of_features_without_a_backbone_is_refused(
    csiro: Path, store: Path, tmp_path: Path, capsys: Any
) -> None:
    original = FeatureStore.open(store)
    original.to_npz(tmp_path / "npz")
    FeatureStore.from_npz(tmp_path / "npz", tmp_path / "s", grid=(2, 4), patch_size=16)
    flags = ["--csv", str(csiro / "train.csv"), "--out", str(tmp_path / "run"), "--store", str(tmp_path / "s")]
    assert main(["train", *flags]) == 1
    assert "converted from files that name no backbone and no layers" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("head", ["patch_mean", "fpn", "dense", "cls_gating"])
def test_every_head_trains_on_photos(csiro: Path, tmp_path: Path, head: str) -> None:
    out = tmp_path / "run"
    flags = ["--csv", str(csiro / "train.csv"), "--backbone", "dinoneck_tiny", "--head", head, "--hidden-dim", "8"]
    assert main(["train", *flags, "--folds", "2", "--fold", "0", "--epochs", "1", "--out", str(out)]) == 0
    assert HeadCheckpoint.load(out / "heads" / "fold-0.safetensors").head_type == head
    assert "colour ridge" in json.loads((out / "report.json").read_text())["scores"]
