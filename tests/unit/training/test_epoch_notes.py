"""What a run says while it trains: lines of epochs in a log, and estimates of its time."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import pytest

from dinoneck.progress import in_time
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
    notes = EpochNotes({"fold 1": 8}, epochs=3, what="the fold")

    train_fold(notes, clock, "fold 1", [5.0, 5.0, 6.25])

    assert printed(capsys) == [
        "fold 1, epoch 1 of 3: loss 0.5, val_loss 2, 5.0 s",
        "fold 1, epoch 2 of 3: loss 0.25, val_loss 2, 5.0 s",
        "fold 1, epoch 3 of 3: loss 0.1667, val_loss 2, 6.2 s",
    ]


def test_short_epochs_have_a_line_per_5_seconds_and_the_first_and_last_of_each_fold(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = EpochNotes({"fold 0": 8, "fold 1": 8}, epochs=9, what="the 2 folds")

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
    notes = EpochNotes({"": 8}, epochs=2, what="the training")
    notes.start_fold("")

    notes(0, {"loss": 3.0, "classification": 1.0, "seconds": 0.5, "AP": 0.125, "per_class": {}})

    assert printed(capsys) == ["epoch 1 of 2: loss 3, AP 0.125, 0.5 s"]


def test_a_terminal_has_no_lines_of_epochs_and_the_estimate_above_the_bar(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    notes = EpochNotes({"fold 0": 8}, epochs=10, what="the fold")

    train_fold(notes, clock, "fold 0", [30.0, 30.0])

    assert terminal.getvalue() == "about 5 min for the fold\n"


def estimates(lines: Sequence[str]) -> list[str]:
    """The lines that state how long a run takes."""
    return [line for line in lines if "about" in line]


def test_the_time_of_all_folds_is_estimated_once_after_the_first_epoch(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """10 s for 8 images, 2 folds of 20 epochs with 8 and 12: 10 / 8 * 20 * 20 = 500 s, 8 min."""
    notes = EpochNotes({"fold 0": 8, "fold 1": 12}, epochs=20, what="the 2 folds")

    train_fold(notes, clock, "fold 0", [10.0] * 20)
    train_fold(notes, clock, "fold 1", [15.0] * 20)

    assert estimates(printed(capsys)) == ["about 8 min for the 2 folds"]


def test_the_estimate_is_of_5_seconds_or_more(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """After 3 epochs of 2 s there are 6 s, which promise 6 + 97 * 2 = 200 s."""
    notes = EpochNotes({"fold 0": 8}, epochs=100, what="the fold")
    notes.start_fold("fold 0")

    texts = []
    for epoch in range(3):
        clock.now += 2.0
        notes(epoch, {"loss": 1.0, "seconds": 2.0})
        texts.append(estimates(printed(capsys)))

    assert texts == [[], [], ["about 3 min for the fold"]]


def test_a_run_below_a_minute_has_no_estimate(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = EpochNotes({"fold 0": 8}, epochs=8, what="the fold")

    train_fold(notes, clock, "fold 0", [7.0] * 8)

    assert estimates(printed(capsys)) == []


def test_an_estimate_that_slow_first_steps_made_too_long_is_corrected_once(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """A first epoch of 20 s promises 2000 s; at 60 s, after 1 + 20 epochs: 60 + 79 * 2 = 218 s."""
    notes = EpochNotes({"fold 0": 8}, epochs=100, what="the fold", may_end_early=True)

    train_fold(notes, clock, "fold 0", [20.0] + [2.0] * 99)

    assert estimates(printed(capsys)) == [
        "at most about 33 min for the fold",
        "at most about 4 min for the fold, by the epochs so far",
    ]


@pytest.mark.parametrize(
    ("seconds", "correction"),
    [
        pytest.param(1800.0, [], id="as long as the epochs promise"),
        # 50 epochs of 20 s: 1000 s
        pytest.param(3600.0, ["about 17 min for the fold, by the epochs so far"], id="too long"),
    ],
)
def test_an_estimate_before_the_first_epoch_is_the_only_one_if_the_epochs_agree(
    clock: Clock, capsys: pytest.CaptureFixture[str], seconds: float, correction: list[str]
) -> None:
    notes = EpochNotes({"fold 0": 8}, epochs=50, what="the fold")
    notes.state_estimate(seconds, "; --head dense is much faster")
    stated = estimates(printed(capsys))

    train_fold(notes, clock, "fold 0", [20.0 if correction else 36.0] * 50)

    assert stated == [f"about {in_time(seconds)} for the fold; --head dense is much faster"]
    assert estimates(printed(capsys)) == correction


def test_a_run_that_is_continued_counts_the_epochs_that_are_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """From epoch 81 of 100 on, 10 s each: 20 epochs are 200 s."""
    notes = EpochNotes({"fold 3": 8}, epochs=100, what="the fold")
    notes.start_fold("fold 3")
    clock.now += 10.0

    notes(80, {"loss": 1.0, "seconds": 10.0})

    assert estimates(printed(capsys)) == ["about 3 min for the fold"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (40, "40 s"),
        (89, "89 s"),
        (90, "2 min"),
        (720, "12 min"),
        (5399, "90 min"),
        (12600, "3.5 h"),
        (1389600, "386 h"),
    ],
)
def test_times_are_stated_in_plain_words(seconds: float, words: str) -> None:
    assert in_time(seconds) == words
