"""``train`` from Python: every way to describe a run is the same run, and its result is the report."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.kit import cli
from tests.unit.detection import coloured_boxes
from tests.unit.training.meadow import a_run, write_meadow

from dinoneck import ConfigError, DataError, Predictor, evaluate
from dinoneck.cli.arguments import flags
from dinoneck.detection import Detector
from dinoneck.training import TrainConfig, TrainingResult, train
from dinoneck.training.config import TRAININGS
from dinoneck.training.from_python import keys_of_keywords
from dinoneck.training.trainings import keys_of

OPTIONS: dict[str, Any] = {
    "targets": ["crop", "weed"],
    "backbone": "dinoneck_tiny",
    "epochs": 2,
    "batch_size": 4,
    "folds": 2,
}


@pytest.fixture(scope="module")
def meadow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_meadow(tmp_path_factory.mktemp("meadow"))


@pytest.fixture(scope="module")
def of_config(meadow: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    """The result of a run that a config describes."""
    return train(a_run(meadow, ["crop", "weed"]), tmp_path_factory.mktemp("run"))


def test_every_flag_is_a_keyword() -> None:
    keywords = keys_of_keywords()
    for training in TRAININGS.all:
        names = {flag.removeprefix("--").replace("-", "_") for flag in flags(training.config)}
        # the one that is a word of Python
        names = {"imports" if name == "import" else name for name in names}
        assert names <= keywords.keys()


def test_every_key_of_training_files_has_one_keyword() -> None:
    keys = set()
    for training in TRAININGS.all:
        keys |= keys_of(training.config).keys()
    assert sorted(keys_of_keywords().values()) == sorted(keys)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["file name", "nested", "yaml", "config and keywords", "frame"])
def test_however_it_is_described_a_run_is_the_same(
    how: str, meadow: Path, of_config: TrainingResult, tmp_path: Path
) -> None:
    if how == "file name":
        result = train(meadow, tmp_path / "run", **OPTIONS)
    elif how == "nested":
        result = train(a_run(meadow, ["crop", "weed"]).to_dict(), tmp_path / "run")
    elif how == "yaml":
        file = tmp_path / "run.yaml"
        file.write_text(f"data: {{csv: {meadow}, targets: [soil]}}\noptim: {{epochs: 9}}\n")
        result = train(file, tmp_path / "run", **OPTIONS)
    elif how == "config and keywords":
        config = TrainConfig.from_dict({"data": {"csv": str(meadow), "targets": ["soil"]}})
        result = train(config, tmp_path / "run", **OPTIONS)
    else:
        frame = pd.read_csv(meadow)
        result = train(frame, tmp_path / "run", images=meadow.parent, **OPTIONS)
    assert result["scores"] == of_config["scores"]
    if how != "frame":
        assert result["config"] == of_config["config"]


def test_the_result_is_the_report(of_config: TrainingResult) -> None:
    written = json.loads((of_config.folder / "report.json").read_text())
    assert of_config == written
    assert json.loads(json.dumps(of_config)) == written
    again = TrainingResult.open(of_config.folder)
    assert again == of_config
    for copied in (copy.deepcopy(of_config), pickle.loads(pickle.dumps(of_config))):
        assert copied == of_config
        assert copied.folder == of_config.folder


def test_the_table_has_the_scores_of_every_method(of_config: TrainingResult) -> None:
    table = of_config.table().set_index(["target", "method"])
    assert [*table.columns] == ["metric", "score", "low", "high", "images"]
    # crop, weed and their mean, each by head, linear and their average
    assert len(table) == 9
    for target, methods in of_config["scores"].items():
        for method, scores in methods.items():
            row = table.loc[(target, method)]
            assert row["score"] == scores["r2"]["pooled"]
            assert [row["low"], row["high"]] == scores["r2"]["interval"]
            assert row["images"] == 12
    assert of_config.scores == of_config["scores"]


def test_the_best_is_the_method_that_predicts(of_config: TrainingResult) -> None:
    best = of_config.best
    assert best is not None
    method = of_config["predicts"]["method"]
    assert (best.method, best.target, best.metric) == (method, "overall", "r2")
    assert best.score == of_config["scores"]["overall"][method]["r2"]["pooled"]


def test_the_predictor_is_that_of_the_folder(of_config: TrainingResult, meadow: Path) -> None:
    image = meadow.parent / "00.png"
    [row] = of_config.predictor(device="cpu")(image)
    assert row == Predictor(of_config.folder, device="cpu").one(image)


def test_the_result_is_a_model_to_evaluate(of_config: TrainingResult, meadow: Path) -> None:
    scores = evaluate(of_config.predictor(), meadow.parent, meadow)["scores"]

    assert evaluate(of_config, meadow.parent, meadow)["scores"] == scores
    assert {*evaluate({"a": of_config}, meadow.parent, meadow)["scores"]["overall"]} == {"a"}


def test_the_result_shows_the_table_and_the_verdict(of_config: TrainingResult) -> None:
    lines = repr(of_config).splitlines()
    score = of_config["scores"]["crop"]["head"]["r2"]["pooled"]
    assert lines[0] == f"TrainingResult of {of_config.folder}"
    assert lines[1].startswith(f"crop  head  R² {score:.3f}")
    assert lines[-1] == of_config["verdict"]


@pytest.mark.slow
def test_classes_have_a_row_each(meadow: Path, tmp_path: Path) -> None:
    result = train(meadow, tmp_path, **{**OPTIONS, "targets": ["kind"]}, head="patch_mean")
    table = result.table().set_index(["target", "method"])
    scores = result["scores"]["kind"]["head"]
    assert table.loc[("kind", "head")]["score"] == scores["accuracy"]["pooled"]
    assert table.loc[("kind: bare", "head")]["score"] == scores["f1"]["bare"]
    assert result["config"]["head"] == {"type": "patch_mean"}


@pytest.mark.slow
def test_width_and_average_are_keywords_as_they_are_flags(meadow: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "targets": ["crop"], "epochs": 1}
    result = train(meadow, tmp_path / "python", hidden_dim=6, with_linear=True, **options)
    words = [
        *("--csv", str(meadow), "--targets", "crop", "--backbone", "dinoneck_tiny"),
        *("--epochs", "1", "--batch-size", "4", "--folds", "2"),
        *("--hidden-dim", "6", "--with-linear", "--out", str(tmp_path / "words")),
    ]
    ran = cli("train", *words)
    assert ran.code == 0
    of_words = TrainingResult.open(tmp_path / "words")
    assert result["config"] == of_words["config"]
    assert result["scores"] == of_words["scores"]
    assert result["config"]["head"] == {"hidden_dim": 6}
    assert result["predicts"]["method"] == "average"


@pytest.mark.slow
def test_several_heads_are_compared(meadow: Path, tmp_path: Path) -> None:
    result = train(meadow, tmp_path, heads=["patch_mean", "linear"], **OPTIONS)
    methods = result["scores"]["overall"]
    best = result.best
    assert best is not None
    assert best.score == max(methods[name]["r2"]["pooled"] for name in ("patch_mean", "linear"))
    with pytest.raises(DataError, match=r"open the result of one of its heads: linear, patch_mean"):
        result.predictor()
    TrainingResult.open(tmp_path / "linear").predictor()


def test_boxes_train_a_detector(tmp_path: Path) -> None:
    boxes = coloured_boxes.write(tmp_path / "images")
    result = train(
        boxes=boxes,
        out=tmp_path / "run",
        backbone="dinoneck_tiny",
        size=(96, 128),
        epochs=1,
        batch_size=2,
        head={"type": "simple_pyramid", "out_channels": 32},
        val_boxes=boxes,
    )
    assert result == json.loads((tmp_path / "run" / "report.json").read_text())
    table = result.table().set_index(["target", "method"])
    assert table.loc[("boxes", "before training")]["score"] == result["untrained"]["AP"]
    assert table.loc[("boxes: red", "before training")]["metric"] == "AP"
    best = result.best
    assert best is not None
    assert (best.method, best.metric, best.score) == (
        f"epoch {result['best']['epoch']}",
        "AP",
        result["best"]["AP"],
    )
    detector = result.predictor()
    assert isinstance(detector, Detector)
    assert detector.classes == ("red", "blue")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"out": "x", "target": ["crop"]}, TypeError, r"Did you mean 'targets'\?", id="typo"),
        pytest.param({"out": "x", "hiden_dim": 8}, TypeError, r"Did you mean 'hidden_dim'\?", id="typo of an argument"),
        pytest.param({"out": "x", "boxes": "b", "with_linear": True}, ConfigError, "with_linear has no", id="boxes"),
        pytest.param({"out": "x", "with_linear": True, "predict_with": "head"}, ConfigError, "give one", id="methods"),
        pytest.param({"targets": ["crop"]}, TypeError, "needs the argument 'out'", id="no folder"),
        pytest.param({"out": "x", "targets": "crop"}, ConfigError, r"such as \['crop'\]", id="a text for a list"),
        pytest.param({"out": "x", "boxes": "b.json", "heads": ["a"]}, ConfigError, "heads has no effect", id="heads"),
        pytest.param({"config": {}, "out": "x"}, ConfigError, r"names no data; name .*data\.csv", id="empty"),
        pytest.param({"out": "x"}, ConfigError, "config is None, which names no data", id="nothing"),
        pytest.param({"config": 5, "out": "x"}, ConfigError, "config is a int; expected a DataFrame", id="no config"),
        pytest.param({"out": "x", "epochs": "3"}, ConfigError, "optim.epochs is '3'; expected an integer", id="type"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(
    arguments: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        train(**arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"report\.json is damaged: Expecting .*; restore it, or remove it"),
        ("[1]", "it holds no report"),
        ('{"scores": [1]}', "it holds no report"),
    ],
)
def test_a_damaged_report_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError, match=message):
        TrainingResult.open(tmp_path)


def test_a_folder_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"report\.json does not exist; expected the folder"):
        TrainingResult.open(tmp_path)
