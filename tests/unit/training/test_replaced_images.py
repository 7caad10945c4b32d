"""A run that was stopped does not go on with other images than it began with, whatever reads them.

Runs on a feature store are in ``test_run_tokens.py``, those of objects and boxes next to their
programs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.unit.training.meadow import COUNT, a_run, write_meadow

from dinoneck import CheckpointError
from dinoneck.training import engine, train

pytestmark = pytest.mark.slow


class Stopped(Exception):
    """Ends a run after its second epoch."""


def stop(epoch: int, row: dict[str, Any]) -> None:
    if epoch == 1:
        raise Stopped


BACKBONES: dict[str, dict[str, Any]] = {
    "frozen": {},
    "LoRA": {"lora": 2},
    "unfrozen": {"unfreeze_last": 1},
}


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=list(BACKBONES))
def test_an_image_file_that_was_replaced_does_not_continue_a_run(
    backbone: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SAVE_EVERY_S", 0.0)
    config = a_run(write_meadow(tmp_path), ["crop"], backbone=backbone)
    with pytest.raises(Stopped):
        train(config, tmp_path / "run", callbacks=[stop])
    image = tmp_path / "05.png"
    pixels = np.asarray(Image.open(image))
    Image.fromarray(255 - pixels).save(image)

    with pytest.raises(CheckpointError, match=r"run\.tokens"):
        train(config, tmp_path / "run")

    Image.fromarray(pixels).save(image)
    assert train(config, tmp_path / "run")["images"] == COUNT


def test_an_image_file_that_was_replaced_after_a_fold_does_not_continue_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head of the first fold is finished, and no epoch of the second one."""
    config = a_run(write_meadow(tmp_path), ["crop"])
    epochs = []

    def stop_in_second_fold(epoch: int, row: dict[str, Any]) -> None:
        epochs.append(epoch)
        if epochs == [0, 1, 0]:
            raise Stopped

    with pytest.raises(Stopped):
        train(config, tmp_path / "run", callbacks=[stop_in_second_fold])
    image = tmp_path / "05.png"
    Image.fromarray(255 - np.asarray(Image.open(image))).save(image)

    with pytest.raises(CheckpointError, match=r"run\.tokens"):
        train(config, tmp_path / "run")
