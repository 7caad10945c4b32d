"""Ctrl-C in the middle of the work: exit code 130, a word, and nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.kit import saved_head, write_images

from dinoneck.cli.main import main

HOOK = """
import signal, sys, time
from importlib import import_module
from unittest import mock
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without it
module, names, count = sys.argv[1], sys.argv[2].split("."), int(sys.argv[3])
place = import_module(module)
for name in names[:-1]:
    place = getattr(place, name)
real, calls = getattr(place, names[-1]), []
def hooked(*arguments, **named):
    calls.append(None)
    if len(calls) == count:
        print("here", flush=True)
        time.sleep(120)
    return real(*arguments, **named)
setattr(place, names[-1], hooked)
from dinoneck.cli.main import main
sys.exit(main(sys.argv[4:]))
"""


def interrupted(place: str, count: int, *arguments: object) -> tuple[int, str]:
    """Run a command in a process of its own, and press Ctrl-C when a function is called for the n-th time."""
    module, _, name = place.partition(":")
    command = [sys.executable, "-c", HOOK, module, name, str(count), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line == "here\n":
                    process.send_signal(signal.SIGINT)
                    break
            _, err = process.communicate(timeout=100)
        finally:
            process.kill()
    return process.returncode, err


@pytest.mark.slow
def test_a_prediction_leaves_nothing(tmp_path: Path) -> None:
    """It is interrupted while a picture is being written."""
    write_images(tmp_path, [f"p/{name}.png" for name in "abcde"])
    (tmp_path / "out").mkdir()
    head = saved_head(tmp_path / "h.safetensors")
    out = ["--out", str(tmp_path / "out" / "p.csv"), "--overlay", str(tmp_path / "out" / "p"), "--batch-size", "2"]
    job = ["predict", str(tmp_path / "p"), "--heads", str(head), *out]
    code, printed = interrupted("os:fsync", 2, *job)
    assert (code, printed.splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in printed
    assert os.listdir(tmp_path / "out") == []
    assert main(job) == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["p", "p.csv"]
