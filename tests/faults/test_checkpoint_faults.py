"""One family of errors with plain messages, and what a refused configuration leaves behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dinoneck import CheckpointError, HeadCheckpoint, PatchMeanMLP, save_head


def test_messages_do_not_steer_a_terminal_and_are_not_endless() -> None:
    assert str(CheckpointError("a\x1b[31m\0\u202e\ud800 grün\nb")) == "a\\x1b[31m\\x00\\u202e\\ud800 grün\\nb"
    long = str(CheckpointError("begin " + "x" * 10**6 + " end"))
    assert (long[:6], long[-4:], len(long) < 2000) == ("begin ", " end", True)


def test_a_file_tells_what_it_was_made_by_in_plain_words(tmp_path: Path) -> None:
    save_head(tmp_path / "h", PatchMeanMLP(2, 1))
    made = HeadCheckpoint.load(tmp_path / "h").meta["created_by"]
    assert sorted(made) == ["dinoneck", "torch"]


def test_a_refused_configuration_leaves_autograd_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit on what a constructor does may strike anywhere, in the end of a torch.no_grad() too."""
    from dinoneck.checkpoint import read

    save_head(tmp_path / "h", PatchMeanMLP(2, 1))
    monkeypatch.setattr(read, "_CALLS_PER_TENSOR", 0)
    refused = 0
    for calls in range(100):
        monkeypatch.setattr(read, "_CALLS", calls)
        try:
            HeadCheckpoint.load(tmp_path / "h")
        except CheckpointError as error:
            assert error.step == "config"
            refused += 1
        assert torch.is_grad_enabled(), calls
    assert 0 < refused < 100
