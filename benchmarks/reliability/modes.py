"""A failure mode: what is done to a head file or around it, and the step that must refuse it, or why it is harmless.

The numbers are those of the list in ``docs/reliability.md``. Faults that lie behind the digest are written with a
digest computed anew (:mod:`benchmarks.reliability.forge`): otherwise that one check would hide all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dinoneck.errors import CheckpointError, DinoneckError

HARMLESS = "harmless"


class Missed(Exception):
    """A fault passed, was refused by another step than it ought to be, or raised something else."""


@dataclass(frozen=True)
class Case:
    """One way to bring a failure about.

    Attributes:
        name: unique within its mode.
        outcome: the step that refuses it (``CheckpointError.step``; of a sound head that is given what it was not
            built for, the name of the error); or ``"harmless"``: then ``run`` ends by itself, having proven that what
            was loaded has the right bits (it raises :class:`Missed` otherwise).
        run: does it, in an empty folder of its own.
        message: a part of what the error says; for modes whose point is that the cause is named.
    """

    name: str
    outcome: str
    run: Callable[[Path], None]
    message: str = ""

    def check(self, folder: Path) -> None:
        """Bring the failure about in an empty folder and judge what came of it.

        Raises:
            Missed: if it is not refused by its step, or not harmless.
        """
        try:
            self.run(folder)
        except DinoneckError as error:
            step = error.step if isinstance(error, CheckpointError) else type(error).__name__
            if step != self.outcome:
                raise Missed(f"{self.name}: refused by {step!r}, expected {self.outcome!r}: {error}") from error
            if self.message not in str(error):
                raise Missed(f"{self.name}: the error does not say {self.message!r}: {error}") from error
            return
        except Missed:
            raise
        except Exception as error:
            raise Missed(f"{self.name}: {type(error).__name__} is none of the family: {error}") from error
        if self.outcome != HARMLESS:
            raise Missed(f"{self.name}: passed; expected the step {self.outcome!r} to refuse it")


@dataclass(frozen=True)
class Mode:
    """A numbered failure mode with all its cases.

    Attributes:
        number: 1 to 79.
        what: it, in a few words.
        cases: at least one.
        slow: belongs to the second tier of tests (seconds, not milliseconds).
    """

    number: int
    what: str
    cases: tuple[Case, ...]
    slow: bool = False
