"""What happens to a file while it is read or written: others write into it, signals, threads, missing rights."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.faults.disk import heads
from tests.faults.kill import begun as begun_in_process
from tests.faults.kill import ended
from tests.faults.test_named_faults import square

from dinoneck import CheckpointError, HeadCheckpoint


def begun(work: Callable[[], object]) -> tuple[int, int]:
    """Start work in a copy of this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks next to threads: the child uses none of theirs
        return begun_in_process(lambda: [torch.set_num_threads(1), work()][1])


def test_a_file_that_changes_while_it_is_read_is_a_whole_head_or_refused(tmp_path: Path) -> None:
    path, known = tmp_path / "h", heads(2, width=256)
    contents = []
    for head in known:
        head.save(path)
        contents.append(path.read_bytes())

    def disturb() -> None:
        rng = random.Random(0)
        with path.open("r+b", buffering=0) as file:
            while True:
                place = rng.randrange(len(contents[0]))
                file.seek(place)
                file.write(rng.choice(contents)[place : place + 20_000])
                if rng.random() < 0.2:
                    file.truncate(place)
                    file.seek(0)
                    file.write(rng.choice(contents))

    pid, reading = begun(disturb)
    steps = set()
    try:
        for _ in range(150):
            try:
                found = HeadCheckpoint.load(path)
            except CheckpointError as error:
                steps.add(error.step)
                continue
            one = next(head for head in known if head.meta["digest"] == found.meta["digest"])
            assert all(torch.equal(one.state_dict[key], value) for key, value in found.state_dict.items())
    finally:
        os.kill(pid, signal.SIGKILL)
        ended(pid, reading)
    assert steps <= {"header", "json", "schema", "registry", "config", "tensors", "digest"}
    assert steps


def test_a_disk_that_fails_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    square().save(tmp_path / "h")

    class Broken(io.BytesIO):
        def fileno(self) -> int:
            return os.open(tmp_path / "h", os.O_RDONLY)

        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("builtins.open", lambda *arguments, **options: Broken())
    with pytest.raises(CheckpointError, match="Input/output") as caught:
        HeadCheckpoint.load(tmp_path / "h")
    assert caught.value.step == "file"
