"""Headers that ask for more than their file holds, or hold records of another type, are refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.signed import forged

from dinoneck import CheckpointError, HeadCheckpoint, PatchMeanHead, Task


def plain(**options: Any) -> HeadCheckpoint:
    return HeadCheckpoint.from_module(PatchMeanHead(4, [Task("a", labels=("x",))], hidden_dim=4), **options)


def refused(content: bytes, path: Path, step: str, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        HeadCheckpoint.load(path)
    assert caught.value.step == step


@pytest.mark.parametrize("shape", [[0, 1 << 47, 1 << 47], [1 << 30, 0, 1 << 31]])
def test_sides_that_no_empty_tensor_can_have(shape: list[int], tmp_path: Path) -> None:
    def change(meta: dict[str, Any], state: dict[str, Any]) -> None:
        meta["tensors"].append(["zz", "F32", shape])
        state["zz"] = torch.empty(0)

    refused(forged(plain(), change), tmp_path / "h", "tensors", r"zz.*fewer than 2\^63")


@pytest.mark.parametrize("digest", ["", "sha256:" + "A" * 64])
def test_a_digest_has_one_spelling(digest: str, tmp_path: Path) -> None:
    content = forged(plain(), lambda meta, state: meta.update(digest=digest), sign=False)
    refused(content, tmp_path / "h", "digest", "digest is")
