"""An older file becomes no larger in memory than it is, and builds no more than it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dinoneck import BackboneError, CheckpointError, Task
from dinoneck.checkpoint import import_described, import_patch_mean, read_legacy
from dinoneck.weight_files import read_state

TASK = Task("a", activation="relu")
SMALL = {"network.0.bias": torch.zeros(3), "network.2.weight": torch.zeros(1, 3), "network.2.bias": torch.zeros(1)}


@pytest.mark.parametrize("shape", [(1 << 16, 1 << 16), (3, 4)])
def test_what_is_not_held_is_refused(shape: tuple[int, int], tmp_path: Path) -> None:
    torch.save({"network.0.weight": torch.zeros(1).expand(shape), **SMALL}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"network\.0\.weight hold fewer values than their shapes need"):
        import_patch_mean(tmp_path / "a.pt", TASK)
    with pytest.raises(BackboneError, match=r"a\.pt: network\.0\.weight hold fewer values"):
        read_state(tmp_path / "a.pt")


def test_many_names_of_one_memory_are_refused_and_tied_weights_are_not(tmp_path: Path) -> None:
    one = torch.ones(1 << 10)
    torch.save({f"a{i}": one for i in range(100)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="its 100 tensors have 409600 bytes and share 4096 of them"):
        read_legacy(tmp_path / "a.pt")
    torch.save({"a": one, "b": one, "c": one[:8], "d": torch.zeros(0), "e": torch.ones(3, 4).t()}, tmp_path / "b.pt")
    assert list(read_legacy(tmp_path / "b.pt").state) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("meta", [{"depth": 10**9}, {"hidden_dim": 10**400}, {"depth": True}])
def test_a_file_builds_no_more_than_it_holds(meta: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": {"head_type": "dense", **meta}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as caught:
        import_described(tmp_path / "a.pt", tasks=[Task("a", kind="dense")], embed_dim=4)
    assert caught.value.step in ("config", "schema")
    assert torch.is_grad_enabled()
