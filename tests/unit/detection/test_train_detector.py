"""train_detector learns, resumes to the same numbers, and refuses what has no effect."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.process_group import ROOT, told_by
from tests.unit.detection import coloured_boxes
from tests.unit.training.histories import logged

from dinoneck import CheckpointError, ConfigError, DataError
from dinoneck.cli.main import main
from dinoneck.detection import Detector, evaluate_boxes, train_detector
from dinoneck.detection.training import _Run
from dinoneck.training import TrainConfig, engine

pytest.importorskip("pycocotools", reason="needs dinoneck[detection]")

SCORES = ("AP", "AP50", "AP75")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coloured_boxes.write(tmp_path_factory.mktemp("images"))


def config_of(boxes: Path, **groups: dict[str, Any]) -> TrainConfig:
    plain: dict[str, dict[str, Any]] = {
        "data": {"boxes": str(boxes), "val_boxes": str(boxes), "size": [96, 128]},
        "backbone": {"name": "dinoneck_tiny", "layers": [1, 3, 5]},
        "head": {"type": "spatial_tuning_adapter", "out_channels": 32},
        "detector": {"variant": "tiny"},
        "optim": {"batch_size": 2, "epochs": 1, "seed": 0},
    }
    return TrainConfig.from_dict({key: {**own, **groups.get(key, {})} for key, own in {**groups, **plain}.items()})


def test_a_killed_run_goes_on_to_the_same_numbers(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own, optim = {"accumulate": 2, "checkpointing": True}, {"epochs": 3, "ema_decay": 0.9, "amp": "bf16"}
    plan = {"freeze": ["0=all", "1=last:2"], "layer_decay": 0.8}
    config = config_of(boxes, detector=own, optim={**optim, **plan})
    report = train_detector(config, tmp_path / "whole")
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["all", "last:2", "last:2"]
    assert {"classification", "bbox_regression", "bbox_ctrness", "AP50", "per_class"} <= rows[0].keys()
    assert report["best"]["AP"] == max(row["AP"] for row in rows)
    assert json.loads((tmp_path / "whole" / "report.json").read_text()) == json.loads(json.dumps(report))
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == [
        *("detector.safetensors", "log.jsonl", "report.json")
    ]
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)

    def cut_short(run: _Run, epoch: int, row: dict[str, Any]) -> None:
        if epoch == 1:
            raise DataError("no power")

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_log", cut_short)
        with pytest.raises(DataError, match="no power"):
            train_detector(config, tmp_path / "cut")
    other = config_of(boxes, detector=own, optim={"epochs": 3, "ema_decay": 0.9, "amp": "bf16", "lr": 1e-2})
    with pytest.raises(CheckpointError, match="optim.lr is 0.001 there and 0.01 here"):
        train_detector(other, tmp_path / "cut")
    content = boxes.read_text()
    boxes.write_text(content.replace("[8, 10, 40, 30]", "[8, 10, 20, 30]"))
    with pytest.raises(CheckpointError, match="train.boxes_sha256 is"):
        train_detector(config, tmp_path / "cut")
    boxes.write_text(content)
    train_detector(config, tmp_path / "cut")
    assert logged(tmp_path / "cut" / "log.jsonl") == logged(tmp_path / "whole" / "log.jsonl")
    whole, cut = (tmp_path / name / "detector.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    scores = evaluate_boxes(Detector.load(whole), boxes)
    assert {key: scores[key] for key in SCORES} == pytest.approx({key: report["best"][key] for key in SCORES}, abs=1e-6)
    with pytest.raises(DataError, match="results of an earlier run"):
        train_detector(config, tmp_path / "cut")


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a run, without those of an unfinished one."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if "unfinished" not in path.parts}


def test_an_interrupted_overwrite_keeps_the_earlier_results(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    first, second = config_of(boxes), config_of(boxes, optim={"epochs": 2, "lr": 3e-3})
    train_detector(first, tmp_path / "run")
    train_detector(second, tmp_path / "whole")
    earlier, whole = contents(tmp_path / "run"), contents(tmp_path / "whole")
    forward, steps = Detector.forward, []

    def killed_in_the_second_epoch(self: Detector, images: Any, targets: Any = None) -> Any:
        if targets is not None:
            steps.append(len(targets))
            if len(steps) == 3:  # of three images, two at a time
                raise KeyboardInterrupt
        return forward(self, images, targets)

    with monkeypatch.context() as patch:
        patch.setattr(Detector, "forward", killed_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            train_detector(second, tmp_path / "run", overwrite=True)
    assert contents(tmp_path / "run") == earlier
    with pytest.raises(DataError, match="results of an earlier run"):
        train_detector(second, tmp_path / "run")
    steps.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Detector, "forward", killed_in_the_second_epoch)  # after two steps, which are all that is left
        train_detector(second, tmp_path / "run", overwrite=True)
    after = contents(tmp_path / "run")
    assert after.keys() == whole.keys() and not (tmp_path / "run" / "unfinished").exists()
    assert after["detector.safetensors"] == whole["detector.safetensors"]
    assert logged(tmp_path / "run" / "log.jsonl") == logged(tmp_path / "whole" / "log.jsonl")


def test_a_run_that_ends_between_two_files_is_completed(
    boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is the last file: without it there are no results, and the same call writes all of them."""
    first, second = config_of(boxes), config_of(boxes, optim={"lr": 3e-3})
    train_detector(first, tmp_path / "run")
    train_detector(second, tmp_path / "whole")
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if Path(target) == tmp_path / "run" / "log.jsonl":
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            train_detector(second, tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run" / "report.json").exists()
    train_detector(second, tmp_path / "run")
    after, whole = contents(tmp_path / "run"), contents(tmp_path / "whole")
    assert after["detector.safetensors"] == whole["detector.safetensors"]
    assert logged(tmp_path / "run" / "log.jsonl") == logged(tmp_path / "whole" / "log.jsonl")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"data": {"boxes": None}}, "data.boxes is missing"),
        ({"data": {"csv": "a.csv"}}, "csv is 'a.csv'; it has no effect on detectors"),
        ({"optim": {"optimizer": "sam"}}, "optimizer is 'sam'; it has no effect"),
        ({"losses": {"aux_weight": 0.2}}, "it has no effect on detectors"),
        ({"backbone": {"lora": 2}}, "lora is 2"),
        ({"head": {"type": "patch_mean", "out_channels": 32}}, "expected a subclass of Neck"),
    ],
)
def test_values_without_an_effect_are_refused(
    groups: dict[str, dict[str, Any]], message: str, boxes: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_detector(config_of(boxes, **groups), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = torch.tensor(float("nan"), requires_grad=True)
    forward = Detector.forward
    monkeypatch.setattr(
        Detector, "forward", lambda self, x, targets=None: forward(self, x) if targets is None else {"box": nan * 1}
    )
    with pytest.raises(DataError, match="loss is nan in epoch 0"):
        train_detector(config_of(boxes), tmp_path)


def test_the_verbs_train_and_predict(boxes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--size 96x128 --backbone dinoneck_tiny --epochs 1 --batch-size 2 --val-boxes {boxes} --hidden-dim 32"
    run = ["train", "--boxes", str(boxes), "--detector", "retinanet", *words.split(), "--out", str(tmp_path / "run")]
    assert main([*run, "--head", "spatial_tuning_adapter"]) == 0
    assert "held-out boxes" in capsys.readouterr().out
    file = tmp_path / "run" / "detector.safetensors"
    out = tmp_path / "boxes.csv"
    images = [str(boxes.parent / "0.png"), str(boxes.parent / "1.png")]
    written = ["--out", str(out), "--overlay", str(tmp_path / "pictures")]
    assert main(["predict", *images, "--heads", str(file), *written]) == 0
    header, *rows = out.read_text().splitlines()
    assert header == "image,name,score,x0,y0,x1,y1"
    assert len(rows) == sum(len(each["names"]) for each in Detector.load(file).predict(images))
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    assert main(["inspect", str(file)]) == 0
    assert "retinanet" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "own", "optim", "size"),
    [
        ("fcos", {}, {"epochs": 150, "lr": 1e-3, "backbone_lr": 1e-3, "clip_norm": 5.0}, [96, 128]),
        ("dfine", {"queries": 30}, {"epochs": 160, "lr": 2e-3, "backbone_lr": 2e-3, "clip_norm": 0.1}, [64, 96]),
    ],
)
def test_a_pair_of_images_is_learned_by_heart(
    kind: str, own: dict[str, Any], optim: dict[str, Any], size: list[int], boxes: Path, tmp_path: Path
) -> None:
    content = json.loads(boxes.read_text())
    content["images"] = content["images"][:2]
    (boxes.parent / "two.json").write_text(json.dumps(content))
    data = {"boxes": str(boxes.parent / "two.json"), "val_boxes": str(boxes.parent / "two.json"), "size": size}
    detector, optim = {"name": kind, "augment": "none", "eval_every": 20, **own}, {**optim, "freeze": ["0=none"]}
    report = train_detector(config_of(boxes, data=data, detector=detector, optim=optim), tmp_path)
    assert report["untrained"]["AP"] < 0.1
    assert report["best"]["AP"] >= 0.75  # 0.81 to 1.0 from one CPU to another


@pytest.mark.slow
def test_two_processes_hold_the_same_weights_past_the_thaw(boxes: Path, tmp_path: Path) -> None:
    config = config_of(boxes, optim={"epochs": 3, "freeze": ["0=all", "1=last:2", "2=none"]})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    torchrun = [shutil.which("torchrun", path=Path(sys.executable).parent) or "torchrun", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    words = ["--nproc_per_node=2", "-m", "tests.unit.detection.two_processes", str(tmp_path)]
    told_by([*torchrun, *words], 240, environment)
    for epoch in range(3):
        one, other = (load_file(tmp_path / f"{rank}-{epoch}") for rank in (0, 1))
        assert any(name.endswith("running_var") for name in one)
        assert all(torch.equal(value, other[name]) for name, value in one.items())
        first = load_file(tmp_path / "0-0")
        moved = [
            not torch.equal(one[name], first[name]) for name in one if ".blocks.5." in name and "tested" not in name
        ]
        assert any(moved) == (epoch > 0)
