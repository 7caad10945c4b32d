"""Several files, one after the other: what one of them does keeps none of the others from being looked at."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dinoneck.cli.text import say
from dinoneck.errors import CheckpointError, DinoneckError, first_line

logger = logging.getLogger(__name__)


Rows = list[dict[str, Any]]


def refused(place: Path, look: Callable[[], int], rows: Rows) -> int:
    """Return how many things ``look`` refuses; one, told and put down among the rows, where it raises."""
    try:
        return look()
    except BrokenPipeError:  # the reader has seen enough
        raise
    except CheckpointError as error:
        say(f"refused  {place}  at step {error.step!r}: {error}", sys.stderr)
        rows.append({"path": place, "state": "refused", "step": error.step, "told": str(error)})
    except (DinoneckError, OSError) as error:
        say(f"refused  {place}  {error}", sys.stderr)
        rows.append({"path": place, "state": "refused", "told": str(error)})
    except Exception as error:
        logger.info("%s", place, exc_info=True)
        told = f"unexpected {type(error).__name__}: {first_line(error)}"
        say(f"error    {place}  {told} (--verbose shows where)", sys.stderr)
        rows.append({"path": place, "state": "error", "told": told})
    return 1
