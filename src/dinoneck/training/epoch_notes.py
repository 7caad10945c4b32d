"""What a run says while it trains: a line per epoch in a log, and about how long all of it takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dinoneck.progress import announce, in_time, note

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 5.0
"""The lines of shorter epochs are left out, but for the first and the last of a fold."""
SECONDS_MEASURED = 5.0
"""An estimate is of as much training or more: the first steps of a process are slow."""
SHARE_MEASURED = 0.1
"""Of the run; a correction is of as much or more, so that other programs change it little."""
SHORTEST_RUN = 60.0
"""Seconds; a run that is shorter has no estimate."""
LARGEST_RATIO = 1.25
"""Of two estimates; a second one that differs more is stated."""
# of a row, in this order
_SHOWN = ("loss", "val_loss", "AP")


@dataclass(frozen=True)
class _Estimate:
    """An estimate of the whole run, and what it is of.

    Attributes:
        total: seconds of the run.
        measured_seconds: since the start.
        measured_images: that were trained on in this time, each as often as it was.
    """

    total: float
    measured_seconds: float
    measured_images: int


class EpochNotes:
    """Prints where a run is: a line per epoch in a log, and an estimate of the whole run.

    An instance is a callback of the epochs, which the first process alone calls. On a terminal
    there is no line, as the bar shows as much. If an epoch is shorter than 5 s, lines are left out
    until 5 s have passed since the last one; the first and the last epoch of a fold have one. All
    numbers of every epoch are logged as information. The estimate comes after the first epoch that
    ends 5 s or more after the start, unless one was stated before. It is corrected once, if the
    epochs since then differ by more than a quarter.

    Args:
        images_of_fold: title of a fold, such as ``"fold 0"``, -> the number of its training images,
            for the folds to train in their order. A title may be empty where there is one.
        epochs: of each fold.
        what: what the estimate is of, such as ``"the 5 folds"``.
        may_end_early: whether a fold may take fewer epochs.
    """

    def __init__(
        self,
        images_of_fold: Mapping[str, int],
        epochs: int,
        *,
        what: str,
        may_end_early: bool = False,
    ) -> None:
        self.images_of_fold = dict(images_of_fold)
        self.epochs = epochs
        self.what = what
        self.may_end_early = may_end_early
        self._title = ""  # of the fold that is trained
        self._printed_at: float | None = None  # when the last line of the fold was printed
        self._left_out: str | None = None  # the line of the last epoch, if it was not printed
        self._started_at: float | None = None
        self._num_images = 0  # that were trained on since the start, each as often as it was
        self._first_estimate: _Estimate | None = None
        self._is_corrected = False

    def start_fold(self, title: str) -> None:
        """Begin a fold."""
        self._title = title
        self._printed_at = None
        self._left_out = None
        if self._started_at is None:
            self._started_at = time.monotonic()

    def __call__(self, epoch: int, row: Mapping[str, Any]) -> None:
        """Print the line of an epoch, and the estimate where it is due.

        Args:
            epoch: of the fold, from 0.
            row: its numbers.
        """
        self._print_line(epoch, row)
        self._num_images += self.images_of_fold[self._title]
        self._print_estimate(self._images_left(epoch))

    def end_fold(self) -> None:
        """Print the line of the last epoch if it was left out."""
        if self._left_out is not None:
            note(self._left_out)
            self._left_out = None

    def state_estimate(self, seconds: float, remark: str = "") -> None:
        """Print in plain words how long the run takes, and a remark, before the first epoch.

        The epochs may correct it, and state no estimate of their own.
        """
        self._first_estimate = _Estimate(seconds, measured_seconds=0.0, measured_images=0)
        self._announce(seconds, remark)

    def _announce(self, seconds: float, remark: str = "") -> None:
        at_most = "at most " if self.may_end_early else ""
        announce(f"{at_most}about {in_time(seconds)} for {self.what}{remark}")

    def _print_line(self, epoch: int, row: Mapping[str, Any]) -> None:
        position = f"epoch {epoch + 1} of {self.epochs}"
        if self._title:
            position = f"{self._title}, {position}"
        logger.info("%s: %s", position, _all_numbers(row))
        numbers = [f"{name} {row[name]:.4g}" for name in _SHOWN if name in row]
        line = f"{position}: {', '.join(numbers)}, {row['seconds']:.1f} s"
        now = time.monotonic()
        if self._printed_at is not None and now - self._printed_at < SECONDS_BETWEEN_LINES:
            self._left_out = line
            return
        note(line)
        self._printed_at = now
        self._left_out = None

    def _images_left(self, epoch: int) -> int:
        """How many images are still to be trained on after an epoch of a fold, each as often as it is."""
        titles = list(self.images_of_fold)
        later_folds = titles[titles.index(self._title) + 1 :]
        images = self.images_of_fold[self._title] * (self.epochs - epoch - 1)
        for title in later_folds:
            images += self.images_of_fold[title] * self.epochs
        return images

    def _print_estimate(self, images_left: int) -> None:
        """Print the first estimate, or its correction, where it is due."""
        if self._started_at is None:
            return
        seconds = time.monotonic() - self._started_at
        if seconds < SECONDS_MEASURED:
            return
        if self._first_estimate is None:
            self._print_first_estimate(seconds, images_left)
        elif not self._is_corrected:
            self._print_correction(self._first_estimate, seconds, images_left)

    def _print_first_estimate(self, seconds: float, images_left: int) -> None:
        """Print the estimate of a run that takes some time, by all epochs so far."""
        total = seconds + images_left * seconds / self._num_images
        if total >= SHORTEST_RUN:
            self._first_estimate = _Estimate(
                total, measured_seconds=seconds, measured_images=self._num_images
            )
            self._announce(total)

    def _print_correction(self, first: _Estimate, seconds: float, images_left: int) -> None:
        """Print another estimate if the epochs since the first one differ from it by much."""
        # the steps that the first estimate is of include the slow ones
        is_long_enough = seconds >= 3 * first.measured_seconds
        share_done = self._num_images / (self._num_images + images_left)
        if not is_long_enough or share_done < SHARE_MEASURED:
            return
        images_since = self._num_images - first.measured_images
        pace = (seconds - first.measured_seconds) / images_since
        seconds_left = images_left * pace
        total = seconds + seconds_left
        ratio = total / first.total
        if seconds_left >= SHORTEST_RUN and not 1 / LARGEST_RATIO < ratio < LARGEST_RATIO:
            self._is_corrected = True
            self._announce(total, ", by the epochs so far")


def _all_numbers(row: Mapping[str, Any]) -> str:
    """The numbers of an epoch in words, without those of single classes."""
    texts = []
    for name, value in row.items():
        if name == "per_class":
            continue
        if isinstance(value, float):
            texts.append(f"{name} {value:.4g}")
        else:
            texts.append(f"{name} {value}")
    return ", ".join(texts)
