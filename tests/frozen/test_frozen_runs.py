"""Frozen trainings are read as they were: their heads predict, their reports are drawn, an unfinished one goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dinoneck import HeadCheckpoint, Predictor
from dinoneck.detection import Detector
from dinoneck.kinds import AVERAGE_OF_0_3
from dinoneck.training import read_config
from dinoneck.training.config import config_of
from tests import kit
from tests.frozen import runs
from tests.frozen.comparison import assert_same_numbers
from tests.frozen.folder import FrozenFile, frozen_files

pytestmark = pytest.mark.slow

pytest.importorskip("pycocotools", reason="objects need pycocotools, the extra [masks]")
# pycocotools with NumPy 2
RUNS = frozen_files(runs.FOLDER)
FINISHED = [file for file in RUNS if file.path.name != runs.UNFINISHED]
UNFINISHED = [file for file in RUNS if file.path.name == runs.UNFINISHED]
each_run = pytest.mark.parametrize("file", FINISHED, ids=str)
each_unfinished = pytest.mark.parametrize("file", UNFINISHED, ids=str)

# numbers of a CSV file have six digits
IN_TABLES = {"rtol": 1e-3, "atol": 1e-3}
# scores move when the order of two predictions, or the class of a pixel, changes
OF_SCORES = {"rtol": 1e-2, "atol": 1e-2}


@pytest.fixture
def working(file: FrozenFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the working directory in which a training ran: images, store, training files and their folders."""
    folder = shutil.copytree(file.path.parent, tmp_path / runs.FOLDER)
    monkeypatch.chdir(folder)
    return folder


@each_run
def test_a_run_predicts_what_was_recorded(file: FrozenFile, working: Path) -> None:
    columns, words, numbers = runs.predict(file.facts)
    assert columns == file.facts["columns"]
    assert words == file.facts["words"]
    recorded = file.numbers("prediction")
    assert_same_numbers(numbers, recorded, **IN_TABLES)


@each_run
def test_a_run_has_the_recorded_scores(file: FrozenFile, working: Path) -> None:
    assert_same_numbers(runs.evaluate(file.facts), file.numbers("score"), **OF_SCORES)


@each_run
def test_a_report_is_drawn_of_a_run(file: FrozenFile, working: Path) -> None:
    image = runs.PREDICTED_IMAGES[1]
    ran = kit.cli("viz", "report", file.path.name, image, "--out", "report.html")
    assert ran.code == 0, ran.err
    page = Path("report.html").read_text()
    assert "Held-out scores" in page, "those of report.json"


@each_run
def test_the_heads_of_a_run_are_sound(file: FrozenFile) -> None:
    heads = sorted(file.path.rglob("*.safetensors"))
    assert heads
    assert kit.cli("verify", *heads).code == 0


@each_run
def test_the_folder_of_a_run_is_a_model(file: FrozenFile) -> None:
    checkpoint = HeadCheckpoint.load(file.path)
    if checkpoint.head_type == "detector":
        assert Detector.load(file.path).classes == ("plant", "herb")
    else:
        predictor = Predictor(file.path)
        names = {task.name for task in predictor.tasks}
        assert names == {task["name"] for task in checkpoint.meta["tasks"]}


@each_run
def test_no_file_of_a_run_is_missing(file: FrozenFile) -> None:
    assert runs.files_in(file.path) == file.facts["files"]


@each_unfinished
def test_an_unfinished_run_predicts_what_one_without_interruption_does(
    file: FrozenFile, working: Path
) -> None:
    predictions = runs.train_on_store(runs.UNFINISHED)
    recorded = {}
    for column, numbers in file.numbers("held_out").items():
        recorded[column.replace(AVERAGE_OF_0_3, "average")] = numbers
    assert_same_numbers(predictions, recorded, rtol=1e-2, atol=1e-2)


@each_unfinished
def test_an_unfinished_run_is_continued_where_it_ended(file: FrozenFile, working: Path) -> None:
    run = working / runs.UNFINISHED
    finished_head = (run / "heads" / "fold-0.safetensors").read_bytes()
    log = run / runs.UNFINISHED / "fold-1" / "log.jsonl"
    finished_epochs = log.read_text().splitlines()
    assert len(finished_epochs) == runs.FINISHED_EPOCHS

    runs.train_on_store(runs.UNFINISHED)

    assert (run / "heads" / "fold-0.safetensors").read_bytes() == finished_head
    epochs = (run / "logs" / "fold-1.jsonl").read_text().splitlines()
    # seconds included: these epochs were not trained again
    assert epochs[: runs.FINISHED_EPOCHS] == finished_epochs
    assert len(epochs) > runs.FINISHED_EPOCHS
    assert not (run / runs.UNFINISHED).exists()


@each_unfinished
def test_an_unfinished_run_of_other_values_is_refused(file: FrozenFile, working: Path) -> None:
    config = Path(f"{runs.UNFINISHED}.yaml")
    config.write_text(config.read_text().replace("epochs: 6", "epochs: 7"))
    name = runs.UNFINISHED
    ran = kit.cli("train", f"{name}.yaml", "--out", name)
    assert ran.code == 1
    assert "is of another run" in ran.err and "epochs" in ran.err
    assert not (working / runs.UNFINISHED / "report.json").exists()


@each_run
def test_the_config_in_a_report_is_that_of_the_training_file(file: FrozenFile) -> None:
    report = json.loads((file.path / "report.json").read_text())
    trained = config_of(report["config"], where="the report")
    assert trained == read_config(file.path.with_suffix(".yaml"))
