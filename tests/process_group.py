"""A command of a test, and all the processes it starts, gone when it ends or a limit has passed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def printed_by(
    command: Sequence[str | Path], limit_s: float, env: Mapping[str, str] | None = None
) -> str:
    """Return what a command prints, run in the checkout; it must succeed."""
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
        shown, _ = process.communicate(timeout=limit_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
    assert process.returncode == 0, (
        shown if len(shown) < 8000 else f"{shown[:4000]}\n...\n{shown[-4000:]}"
    )
    return shown
