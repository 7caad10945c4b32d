"""The head of a run that names none, and the peak memory that its report states."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.meadow import a_run, files_of, write_meadow

from dinoneck import CheckpointError
from dinoneck.devices import peak_memory_mb
from dinoneck.training import run, train

pytestmark = pytest.mark.slow

MASKS = {"labels": "mask", "classes": ["soil", "crop", "weed"]}
WIDTH = 8


@pytest.fixture(scope="module")
def meadow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_meadow(tmp_path_factory.mktemp("meadow"))


# the default head


def test_masks_of_classes_are_learned_by_an_fpn_head_on_the_last_block(
    meadow: Path, tmp_path: Path
) -> None:
    """It is trained as the head that is named so."""
    one_epoch = {"epochs": 1}
    report = train(a_run(meadow, data=MASKS, optim=one_epoch), tmp_path / "default")
    named_head = a_run(meadow, data=MASKS, optim=one_epoch, head={"type": "fpn"})
    train(named_head, tmp_path / "named")

    assert report["backbone"]["layers"] == [5]
    default = files_of(tmp_path / "default")
    named = files_of(tmp_path / "named")
    for log in ("logs/fold-0.jsonl", "logs/fold-1.jsonl"):
        assert default[log] == named[log]


def test_a_run_of_masks_that_0_3_began_is_not_continued_with_another_head(
    meadow: Path, tmp_path: Path
) -> None:
    class Stopped(Exception):
        """Ends a run after the first epoch of its second fold."""

    epochs: list[int] = []

    def stop(epoch: int, _: Any) -> None:
        epochs.append(epoch)
        if len(epochs) == 3:
            raise Stopped

    config = a_run(meadow, data=MASKS)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", callbacks=[stop])
    record = tmp_path / "run" / "unfinished" / "run.json"
    values = json.loads(record.read_text())
    del values["default head of masks"]
    record.write_text(json.dumps(values))

    with pytest.raises(CheckpointError, match="default head of masks"):
        train(config, tmp_path / "run")


def test_a_damaged_record_of_an_unfinished_run_is_refused(meadow: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "run" / "unfinished"
    (unfinished / "fold-0").mkdir(parents=True)
    (unfinished / "fold-0" / "state.pt").touch()
    (unfinished / "run.json").write_text("{")

    with pytest.raises(CheckpointError, match=r"run\.json is damaged: .*--no-resume"):
        train(a_run(meadow, data=MASKS), tmp_path / "run")


@pytest.mark.parametrize(
    ("targets", "data"),
    [
        pytest.param(["crop"], {}, id="numbers"),
        pytest.param(["crop"], MASKS, id="numbers and masks"),
        pytest.param([], {"labels": "mask", "label_kind": "numbers"}, id="masks of numbers"),
    ],
)
def test_other_trainings_have_the_default_heads_of_0_3(
    targets: list[str], data: dict[str, Any], meadow: Path, tmp_path: Path
) -> None:
    config = a_run(meadow, data={"targets": targets, **data})
    trainer = run.prepare(config, tmp_path / "run")

    assert trainer.config.head == {}
    assert type(trainer.heads["0"]).__name__ == ("DenseHead" if data else "PatchMeanHead")


# memory


def test_reports_state_the_most_memory_of_all_epochs_and_predictions(
    meadow: Path, tmp_path: Path
) -> None:
    report = train(a_run(meadow, ["crop"]), tmp_path)

    peaks = []
    for log in (tmp_path / "logs").iterdir():
        for line in log.read_text().splitlines():
            peaks.append(json.loads(line)["peak_memory_mb"])
    present = peak_memory_mb(torch.device("cpu"))
    assert present is not None
    # torch alone takes more than 50 MiB
    assert 50 < max(peaks) <= report["peak_memory_mb"] <= present


def test_nothing_is_stated_where_the_system_does_not_tell_the_memory(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows, where Python has no module ``resource``."""
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory_mb(torch.device("cpu")) is None

    report = train(a_run(meadow, ["crop"]), tmp_path)

    assert "peak_memory_mb" not in report
    row = json.loads((tmp_path / "logs" / "fold-0.jsonl").read_text().splitlines()[0])
    assert "seconds" in row and "peak_memory_mb" not in row
