"""Exported heads predict what the head predicts, and describe themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import kit

from dinoneck import Backbone, CheckpointError, CLSGatingHead, FPNHead, HeadCheckpoint, TargetTransform, Task, Tokens
from dinoneck.data import Preprocessing
from dinoneck.export import export_head

TASKS = [
    Task("mass", unit="g", activation="relu", transform=TargetTransform(log1p=True, mean=1.5, std=0.7), minimum=0.0),
    Task("state", dim=4, kind="classification"),
]


def tokens_of(rows: int, cols: int, batch: int = 2, layers: tuple[int, ...] = (5,)) -> Tokens:
    sequence = [torch.randn(batch, 3 + rows * cols, 64) for _ in layers]
    return kit.tokens_from(sequence, rows, cols, 3, layers=layers, normed=True)


def saved(head: Any, backbone: Backbone) -> HeadCheckpoint:
    return HeadCheckpoint.from_module(kit.randomised(head), backbone=backbone)


@pytest.mark.slow
def test_a_program_predicts_the_same_on_other_grids(tmp_path: Path) -> None:
    tasks = [*TASKS, Task("cover", kind="dense", minimum=0.0)]
    checkpoint = saved(FPNHead(64, tasks, num_layers=2, layer_indices=(1, 3), fpn_dim=16), kit.backbone(layers=[1, 3]))
    export_head(checkpoint, tmp_path / "h.pt2", format="pt2")
    extra = {"dinoneck": ""}
    program = torch.export.load(tmp_path / "h.pt2", extra_files=extra).module()
    assert json.loads(extra["dinoneck"]) == checkpoint.meta
    for rows, cols in ((5, 9), (12, 7)):
        tokens = tokens_of(rows, cols, batch=4, layers=(1, 3))
        wanted = checkpoint.build().predict(tokens)  # type: ignore[operator]
        found = program(tokens)
        assert found.keys() == wanted.keys()
        assert all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in wanted)


def test_a_head_with_a_grid_of_its_own(tiny: Backbone, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    checkpoint = saved(CLSGatingHead(64, TASKS[1:], num_patches=6, hidden_dim=8), tiny)
    export_head(checkpoint, tmp_path / "h.pt2", format="pt2", grid=(2, 3))
    done = export_head(checkpoint, tmp_path / "h.onnx", grid=(2, 3))
    assert done.parity is not None and done.parity.largest < 1e-5  # in ONNX Runtime
    tokens = tokens_of(2, 3, batch=5)
    wanted = checkpoint.build().predict(tokens)["state"]  # type: ignore[operator]
    program = torch.export.load(tmp_path / "h.pt2").module()
    assert torch.allclose(program(tokens)["state"], wanted, atol=1e-6)


def test_the_grid_of_the_images_fixes_a_gate_over_places(tiny: Backbone, tmp_path: Path) -> None:
    head = CLSGatingHead(64, TASKS[1:], num_patches=6, hidden_dim=8)
    checkpoint = HeadCheckpoint.from_module(head, backbone=tiny, preprocess=Preprocessing(patch_size=16, size=(32, 48)))
    with pytest.warns(UserWarning, match=r"takes 2x3 patches only: a gate of mode 'mlp'.*grid=\(rows, cols\)"):
        done = export_head(checkpoint, tmp_path / "h.pt2", format="pt2")
    assert done.size == (2, 3) and done.parity is not None and done.parity.tried == [[1, 2, 3], [3, 2, 3]]
    with pytest.raises(CheckpointError, match="2 rows x 3 cols"):
        export_head(checkpoint, tmp_path / "other.pt2", format="pt2", grid=(3, 2))
