"""The folder of a run: what it holds, and which folders are refused."""

from __future__ import annotations

import os
from pathlib import Path

from dinoneck.errors import DataError, counted, some_of

HEADS, LOGS, HEAD_FILE, REPORT, PREDICTIONS = "heads", "logs", "head.safetensors", "report.json", "out_of_fold.csv"
UNFINISHED, RUN = "unfinished", "run.json"


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds other files than an earlier run, or results of one that are not to be replaced.

    Hidden files do not count.

    Raises:
        DataError: naming it and some of its files, or the folder that cannot be written to.
    """
    last = (REPORT,) if (folder / UNFINISHED).is_dir() else (REPORT, HEAD_FILE)  # a run may stop before its report
    finished = [path for path in results_in(folder) if path.name in last]
    if finished and not overwrite:
        raise DataError(
            f"{folder} holds results of an earlier run ({finished[0].name}); choose another folder, or pass "
            "overwrite=True (--overwrite)"
        )
    own = finished or results_in(folder) or (folder / UNFINISHED).is_dir()
    if folder.is_dir() and not own and (names := [p.name for p in folder.iterdir() if not p.name.startswith(".")]):
        raise DataError(
            f"{folder} holds {counted(len(names), 'file')} or folders that are not of a run: {some_of(names, 3)}. "
            "Results go into a folder of their own; choose a new or empty one"
        )
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise DataError(f"the results cannot be written to {folder}: {parent} is not a folder that can be written to")


def results_in(folder: Path) -> list[Path]:
    """Files that a run leaves in the folder; the report first, so that a half-removed run has none."""
    found = [folder / REPORT, folder / HEAD_FILE, folder / PREDICTIONS]
    found += [*sorted((folder / HEADS).glob("fold-*.safetensors")), *sorted((folder / LOGS).glob("fold-*.jsonl"))]
    return [path for path in found if path.exists()]
