"""Runs that train the backbone along with every head: LoRA weights, last blocks, freeze plans; and earlier heads."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.training.meadow import a_run, rows_of

from dinoneck import ConfigError, HeadCheckpoint, LinearHead, Task, evaluate, load_backbone, load_head, save_head
from dinoneck.data import Pasture
from dinoneck.training import LiveTokens, Recipe, fit, train

RUNS: dict[str, dict[str, Any]] = {
    "lora": {"backbone": {"lora": 2}, "optim": {"cutmix_alpha": 1.0}},
    "blocks": {"backbone": {"unfreeze_last": 1}, "optim": {"layer_decay": 0.5}},
    "plan": {"backbone": {"lora": 2}, "optim": {"freeze": ["0=all", "1=last:2"], "backbone_lr": 1e-3}},
}
TABLE = Pasture(seed=0, size=(32, 32)).table(range(8))


class Stopped(Exception):
    pass


def live_run(**changes: Any) -> Any:
    return a_run(None, ["GDM_g"], **{**changes, "backbone": {"name": "dinoneck_tiny", **changes.get("backbone", {})}})


@pytest.mark.parametrize("name", [*(pytest.param(own, marks=pytest.mark.slow) for own in ("lora", "blocks")), "plan"])
def test_files_hold_what_was_trained_along(name: str, tmp_path: Path) -> None:
    """The score of a fold's file is that of the report. An interrupted run gives the same files."""
    config = live_run(**RUNS[name])
    report = train(config, tmp_path / "run", table=TABLE)
    rows = rows_of(tmp_path / "run" / "out_of_fold.csv")
    for number in range(2):
        file = HeadCheckpoint.load(tmp_path / "run" / "heads" / f"fold-{number}.safetensors")
        assert (bool(file.adapter_state), file.backbone_weights is not None) == (name != "blocks", name != "lora")
        valid = [row["image"] for row in rows if row["fold"] == str(number)]
        found = evaluate(file.source, None, TABLE.loc[valid])["scores"]["GDM_g"]["head"]["r2"]["pooled"]
        assert found == pytest.approx(report["scores"]["GDM_g"]["head"]["r2"]["folds"][number], abs=1e-6)
    assert evaluate(tmp_path / "run", None, TABLE)["images"] == 8
    epochs = iter(range(4))

    def stop(epoch: int, row: object) -> None:
        if next(epochs) == 2:
            raise Stopped

    with pytest.raises(Stopped):
        train(config, tmp_path / "again", table=TABLE, callbacks=[stop])
    train(config, tmp_path / "again", table=TABLE)
    for file_name in ("head.safetensors", "heads/fold-0.safetensors", "heads/fold-1.safetensors", "out_of_fold.csv"):
        assert (tmp_path / "run" / file_name).read_bytes() == (tmp_path / "again" / file_name).read_bytes()


def test_the_head_on_all_images_is_trained_to_the_last_epoch(tmp_path: Path) -> None:
    """No image is held out to judge its epochs by; those of the folds are judged."""
    rows: list[str] = []
    optim = {"patience": 1, "epochs": 3, "lr": 1e-12, "weight_decay": 0.0, "backbone_lr": 1e-12}
    config = live_run(backbone={"unfreeze_last": 1}, optim=optim, losses={"weighting": "uncertainty"})
    report = train(config, tmp_path, table=TABLE, callbacks=[lambda epoch, row: rows.append(" ".join(row))])
    assert ["val_loss" in row for row in rows[-3:]] == [False] * 3
    assert all("val_loss" in row for row in rows[:-3])
    assert [*report["loss_weights"]] == ["fold-0", "fold-1", "fold-all"]


def test_a_plan_trains_the_blocks_of_its_epoch_at_decayed_rates() -> None:
    """Block 4 learns at the rate of block 5 times the decay; before the plan's epoch nothing of the backbone moves."""
    backbone = load_backbone("dinoneck_tiny")
    live, head = LiveTokens(backbone, list(TABLE["images"]), list(TABLE.index)), LinearHead(64, [Task("GDM_g")])
    states = []

    def keep(epoch: int, row: object) -> None:
        blocks = backbone.adapter.blocks
        states.append([torch.cat([x.detach().flatten() for x in block.parameters()]).clone() for block in blocks])

    recipe = Recipe(epochs=2, batch_size=8, freeze=("1=last:2",), layer_decay=0.1, warmup=0.0, weight_decay=0.0)
    keep(-1, None)
    fit(head, live, TABLE[["GDM_g"]], recipe=recipe, clip_norm=None, callbacks=[keep])
    moved = [[float((x - y).abs().max()) for x, y in zip(*pair, strict=True)] for pair in pairwise(states)]
    assert moved[0] == [0.0] * 6
    assert moved[1][:4] == [0.0] * 4
    assert moved[1][4] == pytest.approx(0.1 * moved[1][5], rel=0.05)  # of Adam, a first step is the rate


def test_a_head_starts_from_an_earlier_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A slow run stays at the earlier weights; tensors that fit nothing are listed, or refused where none fits."""
    train(live_run(folds={"only": 0}), tmp_path / "first", table=TABLE)
    first = str(tmp_path / "first" / "head.safetensors")
    slow = {"lr": 1e-12, "weight_decay": 0.0}
    with caplog.at_level(logging.WARNING):
        train(live_run(init=first, optim=slow, folds={"only": 0}), tmp_path / "second", table=TABLE)
    assert "mlps.0.out.weight" in caplog.text
    old, new = (load_head(path).state_dict() for path in (first, tmp_path / "second" / "head.safetensors"))
    assert old.keys() == new.keys()
    assert all(torch.allclose(x, new[name], atol=1e-6) for name, x in old.items()), "the token scale too"
    caplog.clear()
    table = TABLE.assign(other=np.arange(8.0))
    own = {"tasks": {"GDM_g": {}, "other": {}}, "folds": {"only": 0}}
    with caplog.at_level(logging.WARNING):
        train(live_run(init=first, **own), tmp_path / "third", table=table[["images", "GDM_g", "other"]])
    assert "mlps.1.out.weight" in caplog.text.partition("without a match")[2]
    save_head(tmp_path / "linear.safetensors", LinearHead(64, [Task("x")]), backbone=load_backbone("dinoneck_tiny"))
    with pytest.raises(ConfigError, match="readouts"):
        train(live_run(init=str(tmp_path / "linear.safetensors")), tmp_path / "fourth", table=TABLE)
