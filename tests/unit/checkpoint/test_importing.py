"""Weights of others: read by names without running anything; every tensor takes part, or nothing is loaded."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests import kit
from torch import Tensor, nn

from dinoneck import CheckpointError, PatchMeanHead, Task, import_weights, load_head, save_head

WIDTH, HIDDEN = 12, 8
NAMES = {"network.0.": "mlps.0.hidden.", "network.2.": "mlps.0.out."}


class MLP(nn.Module):
    """A user's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.LeakyReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.network(x)).mean(dim=(1, 2))


def head(**options: Any) -> PatchMeanHead:
    return PatchMeanHead(
        WIDTH, [Task("mass", unit="g", activation="relu")], hidden_dim=HIDDEN, **options
    )


@pytest.mark.parametrize("form", ["m.pth", "m.safetensors", "under state_dict", "under model"])
def test_a_head_predicts_what_the_users_module_predicts(form: str, tmp_path: Path) -> None:
    source, x, path = MLP(), torch.randn(4, 6, WIDTH), tmp_path / (form if "." in form else "m.pt")
    if path.suffix == ".safetensors":
        save_file(source.state_dict(), path)
    else:
        content = source.state_dict()
        torch.save(
            {form.split()[1]: content, "epoch": 3} if form.startswith("under") else content, path
        )
    own = head()
    found = import_weights(own, path, NAMES)
    assert found is own and not found.training
    assert torch.allclose(found(x, grid=(2, 3))["mass"][:, 0], source(x), atol=1e-6)
    save_head(tmp_path / "own.safetensors", found)
    assert kit.same(load_head(tmp_path / "own.safetensors")(x, grid=(2, 3)), found(x, grid=(2, 3)))


def test_the_prefix_of_a_wrapped_module_is_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, x = MLP(), torch.randn(4, 6, WIDTH)
    wrapped = nn.DataParallel(source)
    torch.save(wrapped.state_dict(), tmp_path / "m.pth")

    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        found = import_weights(head(), tmp_path / "m.pth", NAMES)

    assert torch.allclose(found(x, grid=(2, 3))["mass"][:, 0], source(x), atol=1e-6)
    assert "saved from a wrapped module: 'module.' is taken from all its names" in caplog.text


def test_packed_files_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 14)}, tmp_path / "m.pth")
    with (
        zipfile.ZipFile(tmp_path / "m.pth") as plain,
        zipfile.ZipFile(tmp_path / "p.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        import_weights(head(), tmp_path / "p.pth", NAMES)
