"""A command of a test, and all the processes it starts, gone when it ends or a limit has passed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def told_by(command: Sequence[str | Path], limit_s: float, env: Mapping[str, str] | None = None) -> str:
    """Return what a command says, run in the checkout; it must succeed."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        told, _ = process.communicate(timeout=limit_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
    assert process.returncode == 0, told if len(told) < 8000 else f"{told[:4000]}\n...\n{told[-4000:]}"
    return told
