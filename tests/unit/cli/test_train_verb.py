"""``dinoneck train``: flags over file over defaults, every kind of task, stores, refusals and exit codes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.kit import cli
from tests.unit.training.meadow import HEIGHT, WIDTH, rows_of, write_rows

from dinoneck import Backbone, HeadCheckpoint
from dinoneck.cli import train
from dinoneck.cli.main import command
from dinoneck.store import FeatureStore
from dinoneck.training import Recipe, TrainConfig

TINY = ["--backbone", "dinoneck_tiny", "--folds", "2", "--epochs", "1"]
QUICK = "backbone: {name: dinoneck_tiny}\noptim: {epochs: 2, batch_size: 4}\nfolds: {count: 2}\n"


@pytest.fixture(scope="module")
def store(csiro: Path, tiny: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    made = FeatureStore.create(path, backbone=tiny, views="flips4", image_size=(32, 64))
    made.extract([csiro / "train", csiro / "test"], root=csiro)
    return path


def written(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


def parsed(*arguments: str) -> TrainConfig:
    given = command("train", [*arguments, "--out", "x"]).keywords
    config: TrainConfig = train.with_width(given["run"], given["hidden_dim"])
    return config


def test_flags_over_file_over_defaults(tmp_path: Path) -> None:
    text = "head: {type: fpn, fpn_dim: 16}\noptim: {optimizer: sam, rho: 0.1, patience: 4, batch_size: 4}\n"
    path = written(tmp_path, f"{text}folds: {{count: 10}}\ndata: {{targets: [a, b], size: 64}}\n")
    flags = "--epochs 9 --rho 0.2 --patience 3 --fold 7 --resize crop --random-backbone --store s --lr 1e-2"
    config = parsed(path, *flags.split(), "--group", "State", "Sampling_Date", "--targets", "c")
    assert config.optim == Recipe(epochs=9, batch_size=4, lr=1e-2, optimizer="sam", rho=0.2, patience=3)
    assert (config.folds.count, config.folds.only, config.folds.group) == (10, 7, ("State", "Sampling_Date"))
    assert (config.data.size, config.data.resize, config.data.store) == ((64, 64), "crop", "s")
    assert (config.data.targets, config.backbone.random) == (("c",), True)
    assert config.head == {"type": "fpn", "fpn_dim": 16}


@pytest.mark.parametrize(
    ("flags", "head"),
    [
        (["--head", "fpn"], {"type": "fpn"}),
        (["--head", "{type: fpn, fpn_dim: 8, layer_groups: [[0], [1]]}"],
         {"type": "fpn", "fpn_dim": 8, "layer_groups": [[0], [1]]}),
        (["--head", "fpn", "--hidden-dim", "8"], {"type": "fpn", "fpn_dim": 8}),
        (["--head", "vit_fpn", "--hidden-dim", "8"], {"type": "vit_fpn", "fpn_dim": 8}),
        (["--hidden-dim", "8"], {"hidden_dim": 8}),
        (["--boxes", "boxes.json", "--hidden-dim", "8"], {"out_channels": 8}),
    ],
)  # fmt: skip
def test_heads_by_flags(flags: list[str], head: dict[str, Any]) -> None:
    assert parsed(*flags).head == head


@pytest.fixture(scope="module")
def labelled(meadow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The meadow as folders of images, masks and classes, and as a table with a number per pixel."""
    root, rows, rng = tmp_path_factory.mktemp("labelled"), rows_of(meadow), np.random.default_rng(0)
    for i, row in enumerate(rows):
        for folder, file in (("images", "image"), ("masks", "mask"), (f"classes/{row['kind']}", "image")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(meadow.parent / row[file], root / folder / row["image"])
        Image.fromarray(rng.random((HEIGHT, WIDTH), np.float32)).save(root / f"{i}.tif")
        row |= {"image": f"images/{row['image']}", "ndvi": f"{i}.tif"}
    write_rows(root / "t.csv", rows)
    return root


KINDS = [  # flags, what is shown, and a score of one target
    ("--csv t.csv --targets crop kind --group place", "12 images, 4 groups, targets crop, kind", "kind", "accuracy"),
    ("--images classes", "", "class", "accuracy"),
    ("--csv t.csv --targets crop --labels ndvi --label-kind numbers", "targets crop, ndvi\n", "ndvi", "r2"),
]
MASKS = ("--images images --labels masks --classes soil crop weed", "", "segmentation", "mean_iou")


@pytest.mark.parametrize(("words", "shown", "target", "score"), [*KINDS, pytest.param(*MASKS, marks=pytest.mark.slow)])
def test_every_kind_of_data_is_trained_on_and_its_score_is_shown(
    words: str, shown: str, target: str, score: str, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(labelled)
    found = cli("train", *words.split(), *TINY, "--out", tmp_path / "run", "--json")
    report = found.json["report"]
    assert report == json.loads((tmp_path / "run" / "report.json").read_text())
    assert shown in found.err and f"{report['scores'][target]['head'][score]['pooled']:.3f}" in found.err
    if target == "class":
        assert report["scores"]["class"]["head"]["labels"] == ["bare", "crop", "weedy"]
    if target == "ndvi":
        head = HeadCheckpoint.load(tmp_path / "run" / "heads" / "fold-0.safetensors")
        assert [(task["name"], task["kind"]) for task in head.meta["tasks"]][-1] == ("ndvi", "dense")


GATING = """
data: {{csv: {csv}, store: {store}, views: 4, tta: flip4, targets: [Dry_Total_g, GDM_g, Dry_Green_g],
  aux_targets: [Dry_Dead_g, Dry_Clover_g, State, Height_Ave_cm]}}
head: {{type: cls_gating, hidden_dim: 16, dropout: 0.1}}
"""


@pytest.mark.slow
def test_a_run_from_a_store(csiro: Path, store: Path, tmp_path: Path) -> None:
    text = QUICK.replace("batch_size: 4", "batch_size: 4, mixup_alpha: 2.5, ema_decay: 0.997")
    path, run = written(tmp_path, text + GATING.format(csv=csiro / "table.csv", store=store)), tmp_path / "run"
    shown = cli("train", path, "--out", run).out
    assert "dinoneck_tiny, 2x4 patches" in shown
    assert "; auxiliary: Dry_Dead_g, Dry_Clover_g, State, Height_Ave_cm" in shown
    head = HeadCheckpoint.load(run / "heads" / "fold-1.safetensors")
    assert (head.head_type, head.config["num_patches"], head.meta["tta"]["ops"]) == ("cls_gating", 8, "flip4")
    lines = [json.loads(line) for line in (run / "logs" / "fold-0.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert {"loss", "loss/Dry_Total_g", "loss/State", "val_loss", "val_r2"} <= set(lines[0])
    assert "holds results of an earlier run" in cli("train", path, "--out", run).err
    assert cli("train", path, "--out", run, "--fold", 1, "--overwrite", "--no-resume").code == 0
    assert {row["fold"] for row in rows_of(run / "out_of_fold.csv")} == {"1"}
    assert [path.name for path in (run / "heads").iterdir()] == ["fold-1.safetensors"]


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("detector: {name: dfine}\n", "", "detector .*--boxes"),
        ("optim: {backbone_lr: 0.1}\n", "", r"optim\.backbone_lr"),
        ("", "--views 20", "20 .*the store has 4"),
        ("", "--size 960", r"made with size \(32, 64\), not \(960, 960\)"),
        ("", "--backbone vit_small_patch16_dinov3", "made with backbone dinoneck_tiny"),
        ("", "--head fpn --layers 1 3", r"made with layers \(5,\)"),
        ("imports: [none.py]\n", "", r"none\.py"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_work(
    csiro: Path, store: Path, tmp_path: Path, text: str, flags: str, message: str
) -> None:
    path = written(tmp_path, f"data: {{csv: {csiro / 'table.csv'}, targets: [GDM_g], store: {store}}}\n{text}")
    found = cli("train", path, *flags.split(), "--out", tmp_path / "run")
    assert found.code == 1 and re.search(message, found.err), found.err
    assert not (tmp_path / "run").exists()
