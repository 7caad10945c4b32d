"""The folder of a run: its state to go on from, and its log."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinoneck.atomic import write_text
from dinoneck.errors import CheckpointError
from dinoneck.training.loop import Loop
from dinoneck.training.processes import Processes
from dinoneck.training.run_identity import check_same
from dinoneck.training.run_state import load_state, save_state

logger = logging.getLogger(__name__)

STATE, LOG = "last.safetensors", "log.jsonl"


class RunFiles:
    """The state and the log of a run in a folder; without a folder, nothing.

    Args:
        out: the folder; made if missing.
        told: what makes this run this one.
        processes: of which the first writes.
    """

    def __init__(self, out: str | os.PathLike[str] | None, told: dict[str, Any], processes: Processes) -> None:
        self.folder = None if out is None else Path(out)
        self.told, self.processes, self.logged = told, processes, 0

    def found(self) -> dict[str, Any] | None:
        """Return the state of this run, if there is one.

        Raises:
            CheckpointError: if it is damaged, or that of another run.
        """
        path = None if self.folder is None else self.folder / STATE
        state = load_state(path) if path is not None and path.exists() else None
        if state is not None:
            check_same(state["run"], self.told, str(path))
            logger.info("the run goes on from %s, epoch %d", path, state["progress"]["epoch"])
        self.processes.agree(-1 if state is None else state["progress"]["step"], f"the state found in {self.folder}")
        return state

    def begin(self, loop: Loop) -> None:
        """Make the folder, and the log that belongs to the state.

        Raises:
            CheckpointError: if they cannot be written.
        """
        if self.folder is not None and self.processes.writes:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_text(self.folder / LOG, "".join(_line(i, row) for i, row in enumerate(loop.progress.history)))
            except OSError as error:
                raise CheckpointError(f"the run cannot be kept in {self.folder}: {error}", step="write") from error
            self.logged = len(loop.progress.history)

    def save(self, loop: Loop) -> None:
        """Write the state, then what the log lacks.

        Raises:
            CheckpointError: if they cannot be written; the older state stays.
        """
        if self.folder is None or not self.processes.writes:
            return
        save_state(self.folder / STATE, {"run": self.told, **loop.state()})
        new = loop.progress.history[self.logged :]
        try:
            with (self.folder / LOG).open("a", encoding="utf-8") as log:
                log.writelines(_line(self.logged + i, row) for i, row in enumerate(new))
        except OSError as error:
            raise CheckpointError(f"the log of the run cannot be written: {error}", step="write") from error
        self.logged += len(new)


def _line(epoch: int, row: Mapping[str, float]) -> str:
    return json.dumps({"epoch": epoch, **row}, allow_nan=False) + "\n"
