"""An older file becomes no larger in memory than it is, and builds no more than it holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dinoneck import BackboneError, CheckpointError, Task
from dinoneck.checkpoint import import_described, import_patch_mean, read_legacy
from dinoneck.weight_files import check_held, read_state

TASK = Task("a", activation="relu")
SMALL = {"network.0.bias": torch.zeros(3), "network.2.weight": torch.zeros(1, 3), "network.2.bias": torch.zeros(1)}


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(1).expand(1 << 16, 1 << 16),
        lambda: torch.zeros(3, 1).expand(3, 4),
        lambda: torch.zeros(8).as_strided((3, 4), (1, 1)),
        lambda: torch.zeros(3, 4, device="meta"),
    ],
    ids=["expanded", "one column", "overlapping", "meta"],
)
def test_what_is_not_held_is_refused(make: Callable[[], Tensor], tmp_path: Path) -> None:
    torch.save({"network.0.weight": make(), **SMALL}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"network\.0\.weight hold fewer values than their shapes say"):
        import_patch_mean(tmp_path / "a.pt", TASK)
    with pytest.raises(BackboneError, match=r"a\.pt: network\.0\.weight hold fewer values"):
        read_state(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("form", ["to_sparse", "to_sparse_csr"])
def test_sparse_tensors_are_refused(form: str, tmp_path: Path) -> None:
    odd = {"network.0.weight": getattr(torch.eye(3, 4), form)(), **SMALL}
    with pytest.raises(BackboneError, match="expected dense ones"):
        check_held(odd, "a.pt")
    torch.save(odd, tmp_path / "a.pt")
    with pytest.raises(CheckpointError):
        import_patch_mean(tmp_path / "a.pt", TASK)


def test_many_names_of_one_memory_are_refused_and_tied_weights_are_not(tmp_path: Path) -> None:
    one = torch.ones(1 << 10)
    torch.save({f"a{i}": one for i in range(100)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="its 100 tensors have 409600 bytes and share 4096 of them"):
        read_legacy(tmp_path / "a.pt")
    torch.save({"a": one, "b": one, "c": one[:8], "d": torch.zeros(0), "e": torch.ones(3, 4).t()}, tmp_path / "b.pt")
    assert list(read_legacy(tmp_path / "b.pt").state) == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize(
    "meta",
    [
        {"depth": 20_000},
        {"depth": 10**9},
        {"hidden_dim": 1 << 62},
        {"hidden_dim": 10**400},
        {"hidden_dim": -1},
        {"depth": True},
    ],
)
def test_a_file_builds_no_more_than_it_holds(meta: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "meta": {"head_type": "dense", **meta}}, tmp_path / "a.pt")
    before = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        import_described(tmp_path / "a.pt", tasks=[Task("a", kind="dense")], embed_dim=4)
    assert caught.value.step in ("config", "schema")
    assert time.process_time() - before < 3
    assert torch.is_grad_enabled()
