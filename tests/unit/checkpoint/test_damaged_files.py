"""A head file with any changed bit is refused; a forged one by the check that its content fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.signed import Change, forged

from dinoneck import CheckpointError, HeadCheckpoint, PatchMeanHead, PatchMeanMLP, TargetTransform, Task
from dinoneck.checkpoint.format import canonical


@pytest.fixture
def head() -> HeadCheckpoint:
    torch.manual_seed(0)
    return HeadCheckpoint.from_module(PatchMeanHead(8, [Task("total", unit="g")], hidden_dim=4))


def test_any_changed_bit_is_refused(tmp_path: Path) -> None:
    """Every 7th bit of a small file."""
    HeadCheckpoint.from_module(PatchMeanMLP(2, 1, 1)).save(tmp_path / "h")
    content = (tmp_path / "h").read_bytes()
    for bit in range(0, len(content) * 8, 7):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "h").write_bytes(damaged)
        with pytest.raises(CheckpointError):
            HeadCheckpoint.load(tmp_path / "h")


def large(meta: dict[str, Any], state: dict[str, torch.Tensor], *shape: int) -> None:
    """List an empty tensor with sides that no empty tensor can have."""
    meta["tensors"].append(["zz", "F32", [*shape]])
    state["zz"] = torch.empty(0)


@pytest.mark.parametrize(
    ("change", "step", "named"),
    [
        (lambda meta, state: meta.pop("extra"), "schema", "extra"),
        (lambda meta, state: meta.update(versions={"patch_mean": 1}), "schema", "versions"),
        (lambda meta, state: meta.update(schema=2), "schema", "schema 2"),
        (lambda meta, state: meta.update(schema=0), "schema", "schema"),
        (lambda meta, state: meta.update(schema=7, created_by={"dinoneck": "9.8.7"}), "schema", "9.8.7"),
        (lambda meta, state: meta["config"].update(embed_dim=9), "tensors", "(9,)"),
        (lambda meta, state: meta["tensors"].pop(), "tensors", "scale.std"),
        (lambda meta, state: large(meta, state, 0, 1 << 47, 1 << 47), "tensors", "zz"),
        (lambda meta, state: large(meta, state, 1 << 30, 0, 1 << 31), "tensors", "zz"),
    ],
)
def test_forged_files_are_refused(change: Change, step: str, named: str, head: HeadCheckpoint, tmp_path: Path) -> None:
    """The digest and the spelling of each are valid."""
    (tmp_path / "h").write_bytes(forged(head, change))
    with pytest.raises(CheckpointError) as caught:
        HeadCheckpoint.load(tmp_path / "h")
    assert caught.value.step == step
    assert named in str(caught.value)


def test_numbers_and_text_have_one_spelling(tmp_path: Path) -> None:
    """The digest covers the text of the header, so another spelling of a number would be another file."""
    values = {"a": [1e-06, 3e-05, 1e16, -0.0, 0.1, 2.0, 2], "é": "grün\u2028"}
    assert canonical(values) == '{"a":[1e-06,3e-05,1e+16,-0.0,0.1,2.0,2],"é":"grün\u2028"}'.encode()
    tasks = [Task("grün", unit="g/m²", transform=TargetTransform(mean=-0.0, std=3e-05), weight=1e16)]
    written = HeadCheckpoint.from_module(PatchMeanHead(8, tasks, hidden_dim=2), extra=values)
    written.save(tmp_path / "one")
    loaded = HeadCheckpoint.load(tmp_path / "one")
    assert repr(loaded.meta) == repr(json.loads(canonical(written.meta)))
    assert repr(loaded.meta["tasks"][0]["transform"]["mean"]) == "-0.0"
    loaded.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
