"""Several files, one after the other: a file that is refused does not keep the others from being checked."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dinoneck.cli.text import show
from dinoneck.errors import DinoneckError, first_line

logger = logging.getLogger(__name__)
Rows = list[dict[str, Any]]
GOOD = ("ok", "current", "migrated")


def each(paths: Sequence[Path], look: Callable[[Path], Rows]) -> Rows:
    """Return the rows that ``look`` gives for every path, and one with the reason where it raises."""
    rows: Rows = []
    for path in paths:
        try:
            rows += look(path)
        except BrokenPipeError:  # the reader closed the pipe
            raise
        except (DinoneckError, OSError) as error:
            step = getattr(error, "step", None)
            show(f"refused  {path}  {f'at step {step!r}: ' if step else ''}{error}", sys.stderr)
            rows.append({"path": path, "state": "refused", **({"step": step} if step else {}), "message": str(error)})
        except Exception as error:
            logger.info("%s", path, exc_info=True)
            message = f"unexpected {type(error).__name__}: {first_line(error)}"
            show(f"error    {path}  {message} (--verbose shows where)", sys.stderr)
            rows.append({"path": path, "state": "error", "message": message})
    return rows


def good(rows: Rows) -> bool:
    """Whether nothing was refused."""
    return all(row["state"] in GOOD for row in rows)
