"""Progress of long work: a bar on a terminal; in a log, a line per minute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from tqdm import tqdm

SECONDS_PER_LINE = 60.0  # of a log


def progress(
    items: Iterable[Any] | None = None,
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    hidden: bool = False,
) -> Any:
    """Return a tqdm over the items: a bar on a terminal, else one flushed line per minute, the first after a minute.

    Args:
        items: to iterate over; None = the caller calls ``update``.
        desc: what is done.
        unit: what is counted.
        total: how many; None = the length of the items.
        initial: how many are done.
        hidden: show nothing, as in all but one of several processes.
    """
    if sys.stderr.isatty():
        return tqdm(
            items, desc=desc, unit=unit, total=total, initial=initial, disable=hidden, leave=False
        )
    return _Lines(
        items,
        desc=desc,
        unit=unit,
        total=total,
        initial=initial,
        disable=hidden,
        leave=False,
        delay=SECONDS_PER_LINE,
        mininterval=SECONDS_PER_LINE,
        maxinterval=SECONDS_PER_LINE,
        miniters=1,
        bar_format="{desc}: {n_fmt} of {total_fmt} in {elapsed}, {remaining} left",
    )


def note(text: str) -> None:
    """Print a flushed line to a log; on a terminal the bars show as much."""
    if not sys.stderr.isatty():
        _print_line(text)


def announce(text: str) -> None:
    """Print a line to a log or above the bars of a terminal."""
    if sys.stderr.isatty():
        tqdm.write(text, file=sys.stderr)
    else:
        _print_line(text)


def _print_line(text: str) -> None:
    """Print a line to a log; tqdm.write would repeat the lines of bars that are open."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class _Lines(tqdm):  # type: ignore[type-arg]
    """A bar whose states are lines of their own."""

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Return the function that prints a state."""
        return lambda text: file.write(f"{text}\n") if text.strip() else None

    def set_description_str(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Set the description for the next line; it has none of its own."""
        super().set_description_str(desc, refresh=False)

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Set what a bar has at its end, for the next line."""
        super().set_postfix_str(s, refresh=False)

    def close(self) -> None:
        """End without a last line; the caller reports the result."""
        self.disable = True
