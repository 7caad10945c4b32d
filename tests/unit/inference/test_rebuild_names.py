"""The backbone that a head file names is found by name alone: never in a folder that the file leads to."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from tests import kit

from dinoneck import Backbone, CheckpointError, HeadCheckpoint, Predictor


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a model that loads in ``m`` and in ``user/m``."""
    setting = transformers.Dinov2Config(
        hidden_size=4, num_hidden_layers=1, num_attention_heads=1, image_size=28
    )
    for name in ("m", "user/m"):
        transformers.Dinov2Model(setting).save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def record_of(tiny: Backbone, name: str, repo: str) -> dict[str, Any]:
    changed = {"name": name, "source": "transformers", "family": "other", "layers": [0], "depth": 1}
    weights = {"kind": "hub", "repo": repo, "revision": "0" * 40}
    return {**tiny.record(), **changed, "weights": weights, "weights_sha256": None}


@pytest.mark.parametrize("name", ["m", "{}/m", "../{}/m", "user/m", "file://{}/m", "user/../m"])
def test_no_folder_is_opened(name: str, planted: Path, tiny: Backbone) -> None:
    name = name.format(planted.name if name.startswith("..") else planted)
    record = record_of(tiny, name, name)
    saved = HeadCheckpoint.from_module(kit.head(), backbone=tiny)
    saved.meta["backbone"] = record
    opened: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[0], str | bytes):
            opened.append(os.fsdecode(arguments[0]))

    sys.addaudithook(watch)
    with pytest.raises(CheckpointError) as caught:
        Predictor(saved)
    watching = False
    assert caught.value.step == "pairing"
    assert name in str(caught.value)
    assert "pass backbone=" in str(caught.value)
    assert not [path for path in opened if f"{os.sep}m{os.sep}" in f"{os.sep}{path}"]
