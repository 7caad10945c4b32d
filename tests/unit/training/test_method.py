"""Which method predicts, the score of the choice on the other folds, and another method on a finished run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import kit
from tests.unit.training.meadow import COUNT, a_run, rows_of, write_meadow

from dinoneck import HeadCheckpoint, load_head
from dinoneck.cli.text import no_better_than_mean
from dinoneck.errors import CheckpointError, ConfigError, DataError
from dinoneck.heads import CLSGatingHead, HeadEnsemble, LinearHead, PatchMeanHead
from dinoneck.tasks import Task
from dinoneck.tokens import Tokens
from dinoneck.training import TrainConfig, engine, train
from dinoneck.training.method import (
    Candidates,
    Choice,
    ChosenMethod,
    HeldOut,
    candidates_of,
)
from dinoneck.training.report import scores_of
from dinoneck.training.result import TrainingResult
from dinoneck.training.scored import ValueTarget
from dinoneck.training.scores import Split

ALL = ("head", "linear", "average")
FROZEN = Path(__file__).parents[2] / "fixtures" / "0.3.0" / "runs"


# the choice, by hand


def held_out_by_hand() -> HeldOut:
    """Three folds of four rows with the values 0 1 2 3, and a constant error of each method in a fold.

    The squared errors in the folds a, b, c are 0, 0, 16 of the head and 4, 4, 0 of the linear
    baseline. The squared deviation of the truth is 5 in a fold, 15 in all.
    """
    truth = np.tile([0.0, 1.0, 2.0, 3.0], 3)
    head = truth + np.repeat([0.0, 0.0, 2.0], 4)
    linear = truth + np.repeat([1.0, 1.0, 0.0], 4)
    return HeldOut(
        targets={"y": ValueTarget("y", columns=(0,), truth=truth[:, None])},
        methods={"head": {"y": head[:, None]}, "linear": {"y": linear[:, None]}},
        folds={"a": np.arange(4), "b": np.arange(4, 8), "c": np.arange(8, 12)},
        groups=[*range(12)],
        weights={},
    )


def choice_by_hand(lacking: dict[Any, str]) -> Choice:
    held_out = held_out_by_hand()
    split = Split(list(held_out.folds.values()), held_out.groups)
    scores = scores_of(held_out.targets, held_out.methods, split)
    return Choice.of(Candidates(("head", "linear"), lacking), held_out, scores)


def test_the_choice_is_scored_with_the_method_that_is_best_on_the_other_folds() -> None:
    choice = choice_by_hand({})

    assert choice.best == "linear"
    assert choice.methods["head"].score == pytest.approx(1 - 16 / 15)
    assert choice.methods["linear"].score == pytest.approx(1 - 8 / 15)
    # b and c: 16 against 4; a and c: 16 against 4; a and b: 0 against 8
    assert choice.on_other_folds == {"a": "linear", "b": "linear", "c": "head"}
    assert choice.score_on_other_folds == pytest.approx(1 - (4 + 4 + 16) / 15)


def test_a_method_that_lacks_an_output_of_the_head_is_not_chosen() -> None:
    choice = choice_by_hand({"linear": "map of y"})

    assert choice.best == "head"
    assert choice.on_other_folds == dict.fromkeys("abc", "head")
    assert choice.score_on_other_folds == pytest.approx(1 - 16 / 15)


@pytest.mark.parametrize("folds", ["abc", "a", ""], ids=["three folds", "one fold", "no fold"])
def test_a_report_keeps_the_choice(folds: str) -> None:
    held_out = held_out_by_hand()
    of_folds = replace(held_out, folds={name: held_out.folds[name] for name in folds})
    split = Split(list(held_out.folds.values()), held_out.groups)
    scores = scores_of(held_out.targets, held_out.methods, split)
    choice = Choice.of(Candidates(("head", "linear"), {"linear": "gate"}), of_folds, scores)

    in_report = json.loads(json.dumps(choice.record()))

    assert Choice.from_record(in_report) == choice
    assert ("best" in in_report, "target" in in_report) == (len(folds) > 1, len(folds) > 0)


@pytest.mark.parametrize(
    ("config", "method", "words"),
    [
        ({}, "linear", "the best on held-out images: R² 0.47, and −0.60 with the choice made on"),
        ({"head": {"hidden_dim": 4}}, "linear", "the best on held-out images"),
        ({"head": {"type": "fpn"}}, "head", "the head, as head.type (--head) names it: R² −0.07."),
        (
            {"head": {"type": "fpn"}, "predict_with": "linear"},
            "linear",
            "the linear baseline, as predict_with (--predict-with) says: R² 0.47.",
        ),
        ({"backbone": {"lora": 2}}, "head", "the linear baseline reads another backbone"),
    ],
    ids=["best", "width alone", "named head", "named method", "lora"],
)
def test_the_score_decides_if_no_head_and_no_method_is_named(
    config: dict[str, Any], method: str, words: str
) -> None:
    predicts = ChosenMethod.of(TrainConfig.from_dict(config), choice_by_hand({}))
    assert predicts.method == method
    assert words in predicts.sentence


def test_the_sentence_names_an_output_that_the_named_method_lacks() -> None:
    choice = choice_by_hand({"linear": "value of total"})

    named = ChosenMethod.of(TrainConfig.from_dict({"predict_with": "linear"}), choice)
    best = ChosenMethod.of(TrainConfig(), choice)

    assert named.sentence.endswith("R² 0.47. Its file has no value of total, which the head has.")
    assert "Its file" not in best.sentence


def test_one_fold_predicts_with_its_head() -> None:
    held_out = held_out_by_hand()
    one_fold = HeldOut(
        held_out.targets,
        methods=held_out.methods,
        folds={"c": held_out.folds["c"]},
        groups=held_out.groups,
        weights={},
    )
    scores = scores_of(held_out.targets, held_out.methods, Split([range(8, 12)], held_out.groups))
    choice = Choice.of(Candidates(("head", "linear"), {}), one_fold, scores)

    predicts = ChosenMethod.of(TrainConfig(), choice)

    assert predicts.method == "head"
    assert "as a choice takes two folds" in predicts.sentence


def test_a_clearly_better_method_is_named() -> None:
    """A head that is named predicts though it adds noise to the linear baseline."""
    random = np.random.default_rng(0)
    truth = random.normal(size=(60, 1))
    held_out = HeldOut(
        targets={"y": ValueTarget("y", columns=(0,), truth=truth)},
        methods={
            "head": {"y": truth + random.normal(size=(60, 1))},
            "linear": {"y": truth + random.normal(size=(60, 1)) / 9},
        },
        folds={"0": np.arange(30), "1": np.arange(30, 60)},
        groups=[row // 5 for row in range(60)],
        weights={},
    )
    split = Split(list(held_out.folds.values()), held_out.groups)
    scores = scores_of(held_out.targets, held_out.methods, split)
    candidates = Candidates(("head", "linear"), {"linear": "gate"})
    choice = Choice.of(candidates, held_out, scores)

    named = ChosenMethod.of(TrainConfig(head={"type": "fpn"}), choice)
    chosen = ChosenMethod.of(TrainConfig(predict_with="linear"), choice)

    low, high = scores["overall"]["linear"]["head_minus"]["r2"]
    assert named.better == "linear"
    assert (
        f"The linear baseline is better (difference {-high:.2f} to {-low:.2f}, 95 %), but has no "
        "gate."
    ) in named.sentence
    assert chosen.better is None


# what a method gives


TOKENS = Tokens.from_patches(
    torch.zeros(1, 6, 8), grid=(2, 3), patch_size=16, cls_token=torch.zeros(1, 8)
)


@pytest.mark.parametrize(
    ("head", "lacking"),
    [
        (LinearHead(8, [Task("y")], pool="cls"), {}),
        (PatchMeanHead(8, [Task("y")]), {}),
        (CLSGatingHead(8, [Task("y")], num_patches=6), {"linear": "gate"}),
    ],
    ids=["no further output", "a map, as the baseline", "a gate"],
)
def test_a_linear_baseline_has_the_maps_of_a_number_and_lacks_a_gate(
    head: Any, lacking: dict[str, str]
) -> None:
    linear = LinearHead(8, [Task("y")], pool="mean")
    average = HeadEnsemble([head, linear])
    heads: dict[Any, Any] = {"head": head, "linear": linear, "average": average}
    for module in heads.values():
        module.eval()

    candidates = candidates_of(heads, TOKENS)

    assert candidates.methods == ALL
    assert candidates.lacking == lacking


# runs


@pytest.fixture(scope="module")
def meadow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_meadow(tmp_path_factory.mktemp("meadow"))


@pytest.fixture(scope="module")
def run(meadow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of masks without a named head, whose linear baseline has a map too."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(masks(meadow), folder)
    return folder


def masks(meadow: Path, **options: Any) -> TrainConfig:
    data = {"csv": str(meadow), "labels": "mask", "classes": ["soil", "crop", "weed"]}
    return a_run(None, data=data, optim={"epochs": 1}, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_a_run_keeps_the_heads_of_all_methods(run: Path) -> None:
    assert sorted(path.name for path in (run / "heads").iterdir()) == [
        "fold-0.safetensors",
        "fold-1.safetensors",
    ]
    report = json.loads((run / "report.json").read_text())
    for fold in (0, 1):
        checkpoint = HeadCheckpoint.load(run / "baselines" / f"fold-{fold}.safetensors")
        assert checkpoint.head_type == "linear"
        scores = report["scores"]["segmentation"]["linear"]["mean_iou"]["folds"]
        metrics = checkpoint.meta["training"]["metrics"]
        assert metrics["mean_iou segmentation"] == pytest.approx(scores[fold])


def test_a_run_without_a_named_head_predicts_with_the_best_method(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    pooled = {
        method: scores["mean_iou"]["pooled"]
        for method, scores in report["scores"]["segmentation"].items()
    }
    best = max(pooled, key=lambda method: pooled[method])
    checkpoint = HeadCheckpoint.load(run / "head.safetensors")
    metrics = checkpoint.meta["training"]["metrics"]

    assert best != "head", "or this test shows nothing"
    assert report["predicts"]["method"] == best
    assert checkpoint.meta["extra"] == {"predicts_with": best}
    assert metrics["mean_iou segmentation"] == pooled[best]
    assert (
        metrics["mean_iou segmentation (chosen on the other folds)"]
        == (report["choice"]["score_on_other_folds"])
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ALL)
def test_another_method_of_a_finished_run_gives_the_files_of_a_run_with_it(
    run: Path,
    meadow: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: Any,
) -> None:
    """Nothing is trained, and no image is read."""
    direct = tmp_path / "direct"
    shutil.copytree(run, tmp_path / "switched")
    train(masks(meadow, predict_with=method), direct)
    monkeypatch.setattr(engine.Engine, "step", None)
    monkeypatch.setattr("dinoneck.training.run.prepare", None)

    report = train(masks(meadow, predict_with=method), tmp_path / "switched")

    expected = files_of(direct)
    switched = files_of(tmp_path / "switched")
    for name in ("logs/fold-0.jsonl", "logs/fold-1.jsonl"):  # seconds
        del expected[name], switched[name]
    assert report == json.loads(switched.pop("report.json"))
    expected_report = json.loads(expected.pop("report.json"))
    expected_report["peak_memory_mb"] = report["peak_memory_mb"]  # of its own training
    assert report == expected_report
    assert switched == expected
    assert report["predicts"]["method"] == method


@pytest.mark.slow
def test_the_folder_and_the_method_are_enough(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")

    ran = kit.cli("train", "--out", tmp_path / "run", "--predict-with", "head")

    assert ran.code == 0, ran.err
    assert "is a finished run: nothing is trained" in ran.out
    chosen, next_command = ran.out.splitlines()[-2:]
    assert chosen.startswith("It predicts with the head, as predict_with")
    assert next_command.startswith("predict with it: dinoneck predict IMAGES --heads ")
    heads = load_head(tmp_path / "run" / "head.safetensors").heads
    folds = [load_head(run / "heads" / f"fold-{number}.safetensors") for number in (0, 1)]
    for head, fold in zip(heads, folds, strict=True):
        for name, weight in fold.state_dict().items():
            assert torch.equal(head.state_dict()[name], weight)


@pytest.mark.slow
def test_a_method_with_another_config_is_refused(run: Path, meadow: Path) -> None:
    before = files_of(run)
    other = masks(meadow, predict_with="head").changed(
        folds=TrainConfig.from_dict({"folds": {"count": 3}}).folds
    )
    with pytest.raises(DataError, match=r"another config.*run\.folds\.count: 2 / 3.*without other"):
        train(other, run)
    assert files_of(run) == before


@pytest.mark.slow
def test_the_command_of_a_finished_run_is_refused_as_ever(
    run: Path, meadow: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    config = masks(meadow, predict_with="head")
    train(config, tmp_path / "run")
    for again in (config, masks(meadow)):
        with pytest.raises(DataError, match=r"holds results .*--overwrite"):
            train(again, tmp_path / "run")


@pytest.mark.slow
def test_a_run_without_baselines_names_what_to_do(run: Path, meadow: Path, tmp_path: Path) -> None:
    """Such as one of 0.3."""
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "baselines")
    before = files_of(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no linear baseline .*--overwrite"):
        train(masks(meadow, predict_with="linear"), tmp_path / "run")
    assert files_of(tmp_path / "run") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("heads/fold-1.safetensors", r"heads holds the heads of 1 of 2 folds.*restore the others"),
        ("heads/fold-*.safetensors", r"heads holds no heads of folds.*--overwrite"),
    ],
    ids=["one", "all"],
)
def test_a_run_whose_heads_were_removed_does_not_change_its_method(
    removed: str, message: str, run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    for file in (tmp_path / "run").glob(removed):
        file.unlink()
    before = files_of(tmp_path / "run")

    with pytest.raises(CheckpointError, match=message):
        train(TrainConfig(predict_with="linear"), tmp_path / "run")

    assert files_of(tmp_path / "run") == before


@pytest.mark.slow
def test_a_run_of_0_3_with_both_in_one_file_predicts_with_each(tmp_path: Path) -> None:
    """Its folds were written with ``with_ridge``; its report has the old names."""
    frozen = FROZEN / "numbers"
    shutil.copytree(frozen, tmp_path / "run")
    config = TrainConfig(predict_with="linear")

    report = train(config, tmp_path / "run")

    linear = load_head(tmp_path / "run" / "head.safetensors").heads
    for fold in (0, 1):
        both = load_head(frozen / "heads" / f"fold-{fold}.safetensors")
        for name, weight in both.heads[1].state_dict().items():
            assert torch.equal(linear[fold].state_dict()[name], weight)
    assert {*report["scores"]["crop"]} == {*ALL}
    assert report["predicts"]["sentence"] == (
        "It predicts with the linear baseline, as predict_with (--predict-with) says: "
        "overall R² −1.36."
    )
    assert report["config"]["predict_with"] == "linear"
    assert "with_ridge" not in report["config"]
    train(TrainConfig(predict_with="average"), tmp_path / "run")
    average = load_head(tmp_path / "run" / "head.safetensors").state_dict()
    for name, weight in load_head(frozen / "head.safetensors").state_dict().items():
        assert torch.equal(average[name], weight)


@pytest.mark.parametrize(
    ("name", "best"),
    [
        # with_ridge: true
        ("numbers", ("average", "overall", "r2", -0.430)),
        # with_ridge: false
        ("masks", ("head", "segmentation", "mean_iou", 0.185)),
    ],
)
def test_a_report_of_0_3_has_the_present_names(name: str, best: tuple[Any, ...]) -> None:
    result = TrainingResult.open(FROZEN / name)

    assert {row.method for row in result.rows()} == {*ALL}
    assert result.best is not None
    assert result.best[:3] == best[:3]
    assert result.best.score == pytest.approx(best[3], abs=5e-4)


def test_what_is_printed_of_a_report_of_0_3_is_of_its_method() -> None:
    """The R² of its head is above 0, that of the average, which predicts, is not."""
    result = TrainingResult.open(FROZEN / "numbers")

    assert result["scores"]["crop"]["head"]["r2"]["pooled"] == pytest.approx(0.107, abs=5e-4)
    assert result["scores"]["crop"]["average"]["r2"]["pooled"] == pytest.approx(-0.162, abs=5e-4)
    assert no_better_than_mean(result) == ["crop", "weed", "green"]


def test_a_run_on_all_images_predicts_with_the_method_that_is_named(
    meadow: Path, tmp_path: Path
) -> None:
    report = train(
        a_run(meadow, ["crop"], folds={"count": 1}, predict_with="linear"), tmp_path / "run"
    )
    assert type(load_head(tmp_path / "run" / "head.safetensors")) is LinearHead
    assert report["predicts"]["method"] == "linear"
    assert rows_of(tmp_path / "run" / "out_of_fold.csv") == []
    assert report["images"] == COUNT


@pytest.mark.parametrize("method", ["linear", "average"])
def test_a_trained_backbone_has_no_other_method(meadow: Path, tmp_path: Path, method: str) -> None:
    config = a_run(meadow, ["crop"], backbone={"unfreeze_last": 1}, predict_with=method)
    with pytest.raises(ConfigError, match=r"has no effect with backbone\.unfreeze_last.*frozen"):
        train(config, tmp_path / "run")


def test_with_linear_is_the_average(meadow: Path, tmp_path: Path) -> None:
    words = ("--csv", meadow, "--targets", "crop", "--out", tmp_path / "run")
    ran = kit.cli("train", *words, "--with-linear", "--predict-with", "linear")
    assert ran.code == 1
    assert "--with-linear is --predict-with average" in ran.err
    ran = kit.cli("train", *words, "--with-ridge")
    assert ran.code != 0
    assert "It is called --with-linear now" in ran.err


@pytest.mark.slow
def test_a_run_with_one_head_of_all_images_has_no_other_method(tmp_path: Path) -> None:
    table = write_meadow(tmp_path)
    config = a_run(table, ["crop"], optim={"epochs": 1}, backbone={"unfreeze_last": 1})
    train(config, tmp_path / "run")
    before = (tmp_path / "run" / "head.safetensors").read_bytes()
    with pytest.raises(DataError, match="one head that was trained on all images"):
        train(config.changed(predict_with="head"), tmp_path / "run")
    assert (tmp_path / "run" / "head.safetensors").read_bytes() == before


def test_a_method_alone_does_not_train_where_no_run_is_finished(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run holds no finished run of heads of images"):
        train(out=tmp_path / "run", predict_with="linear")

    assert not (tmp_path / "run").exists()
