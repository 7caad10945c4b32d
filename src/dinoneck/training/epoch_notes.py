"""What a run says while it trains: a line per epoch, in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from dinoneck.progress import note

logger = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 5.0
"""The lines of shorter epochs are left out, but for the first and the last of a fold."""
# of a row, in this order
_SHOWN = ("loss", "val_loss", "AP")


class EpochNotes:
    """Prints a line per epoch with its losses and seconds, in a log.

    An instance is a callback of the epochs, which the first process alone calls. On a terminal
    there is no line, as the bar shows as much. If an epoch is shorter than 5 s, lines are left out
    until 5 s have passed since the last one; the first and the last epoch of a fold have one. All
    numbers of every epoch are logged as information.

    Args:
        epochs: of each fold.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self._title = ""  # of the fold that is trained
        self._printed_at: float | None = None  # when the last line of the fold was printed
        self._left_out: str | None = None  # the line of the last epoch, if it was not printed

    def start_fold(self, title: str) -> None:
        """Begin a fold; where there is one alone, its title may be empty."""
        self._title = title
        self._printed_at = None
        self._left_out = None

    def __call__(self, epoch: int, row: Mapping[str, Any]) -> None:
        """Print the line of an epoch.

        Args:
            epoch: of the fold, from 0.
            row: its numbers.
        """
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

    def end_fold(self) -> None:
        """Print the line of the last epoch if it was left out."""
        if self._left_out is not None:
            note(self._left_out)
            self._left_out = None


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
