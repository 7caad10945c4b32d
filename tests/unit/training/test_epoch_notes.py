"""What a run says while it trains: lines of epochs in a log."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import pytest

from dinoneck.training import epoch_notes
from dinoneck.training.epoch_notes import EpochNotes


class Clock:
    """The time in seconds, which a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(epoch_notes, "time", clock)
    return clock


def train_fold(notes: EpochNotes, clock: Clock, title: str, seconds: Sequence[float]) -> None:
    """Pass the epochs of a fold, each of which takes so many seconds."""
    notes.start_fold(title)
    for epoch, seconds_of_epoch in enumerate(seconds):
        clock.now += seconds_of_epoch
        notes(epoch, {"loss": 0.5 / (epoch + 1), "val_loss": 2.0, "seconds": seconds_of_epoch})
    notes.end_fold()


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr; there are none on stdout."""
    captured = capsys.readouterr()
    assert not captured.out
    return captured.err.splitlines()


def test_a_log_has_a_line_for_every_epoch_of_5_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = EpochNotes(epochs=3)

    train_fold(notes, clock, "fold 1", [5.0, 5.0, 6.25])

    assert printed(capsys) == [
        "fold 1, epoch 1 of 3: loss 0.5, val_loss 2, 5.0 s",
        "fold 1, epoch 2 of 3: loss 0.25, val_loss 2, 5.0 s",
        "fold 1, epoch 3 of 3: loss 0.1667, val_loss 2, 6.2 s",
    ]


def test_short_epochs_have_a_line_per_5_seconds_and_the_first_and_last_of_each_fold(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = EpochNotes(epochs=9)

    train_fold(notes, clock, "fold 0", [2.0] * 8)  # of 9: patience ended it
    train_fold(notes, clock, "fold 1", [0.1] * 9)

    positions = [line.partition(":")[0] for line in printed(capsys)]
    # after 2, 8, 14 and 16 seconds; then the first and the last of the next fold
    assert positions == [
        "fold 0, epoch 1 of 9",
        "fold 0, epoch 4 of 9",
        "fold 0, epoch 7 of 9",
        "fold 0, epoch 8 of 9",
        "fold 1, epoch 1 of 9",
        "fold 1, epoch 9 of 9",
    ]


def test_a_run_without_folds_names_the_epoch_alone_and_its_average_precision(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = EpochNotes(epochs=2)
    notes.start_fold("")

    notes(0, {"loss": 3.0, "classification": 1.0, "seconds": 0.5, "AP": 0.125, "per_class": {}})

    assert printed(capsys) == ["epoch 1 of 2: loss 3, AP 0.125, 0.5 s"]


def test_a_terminal_has_no_lines_of_epochs(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)

    train_fold(EpochNotes(epochs=10), clock, "fold 0", [30.0, 30.0])

    assert terminal.getvalue() == ""
