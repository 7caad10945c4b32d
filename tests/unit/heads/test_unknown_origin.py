"""What a loaded head cannot compare, since tokens were made by hand, is named in one warning."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import kit

from dinoneck import DPTNeck, PatchMeanHead, ShapeError, Task, Tokens, load_head, save_head


def loaded(folder: Path, name: str) -> Any:
    """Return a head of a file and the backbone that it was trained on."""
    backbone = kit.backbone(layers=[1, 5])
    head = PatchMeanHead(64, [Task(name)])
    save_head(folder / "h.safetensors", head, backbone=backbone.with_layers([5]))
    return load_head(folder / "h.safetensors"), backbone.with_layers([5])


def by_hand(backbone: Any, **stated: Any) -> Tokens:
    patches = backbone(torch.zeros(1, 3, 32, 48)).patches
    return Tokens.from_patches(patches, grid=(2, 3), patch_size=16, **stated)


@pytest.mark.parametrize(
    ("stated", "named"),
    [
        ({}, "source=, layers=, normed="),
        ({"layers": [5]}, "source=, normed="),
        ({"normed": True}, "source=, layers="),
    ],
    ids=["nothing", "layers", "normed"],
)
def test_tokens_made_by_hand_are_named_once(
    stated: dict[str, Any], named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head, backbone = loaded(tmp_path, "made by hand")
    tokens = by_hand(backbone, **stated)
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        head(tokens)
        head(tokens)
    lines = [record.getMessage() for record in caplog.records if named in record.getMessage()]
    assert len(lines) == 1
    assert "layers=(5,)" in lines[0]


def test_tokens_of_the_backbone_and_stated_ones_give_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head, backbone = loaded(tmp_path, "z")
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        head(backbone(torch.zeros(1, 3, 32, 48)))
        head(by_hand(backbone, layers=[5], normed=True, source=backbone.fingerprint))
    assert caplog.records == []


@pytest.mark.parametrize("readout", ["add", "project"])
def test_a_readout_of_tokens_without_cls_names_the_one_that_needs_none(readout: Any) -> None:
    neck = DPTNeck(64, out_channels=16, readout=readout, hidden_sizes=(8, 16, 32, 64))
    tokens = Tokens.from_patches([torch.zeros(1, 6, 64)] * 4, grid=(2, 3), patch_size=16)
    with pytest.raises(ShapeError, match="readout='ignore'"):
        neck(tokens)
