"""Several files, one after the other: what one of them does keeps none of the others from being looked at."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from dinoneck.cli.text import say
from dinoneck.errors import CheckpointError, DinoneckError, first_line

logger = logging.getLogger(__name__)


def refused(place: Path, look: Callable[[], int]) -> int:
    """Return how many things ``look`` refuses; one, and told, where it raises."""
    try:
        return look()
    except BrokenPipeError:  # the reader has seen enough
        raise
    except CheckpointError as error:
        say(f"refused  {place}  at step {error.step!r}: {error}", sys.stderr)
    except (DinoneckError, OSError) as error:
        say(f"refused  {place}  {error}", sys.stderr)
    except Exception as error:
        logger.info("%s", place, exc_info=True)
        told = f"unexpected {type(error).__name__}: {first_line(error)}"
        say(f"error    {place}  {told} (--verbose shows where)", sys.stderr)
    return 1
