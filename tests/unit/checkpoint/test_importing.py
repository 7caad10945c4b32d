"""Weights of others: read by names without running anything; every tensor takes part, or nothing is loaded."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dinoneck import (
    CheckpointError,
    FPNHead,
    PatchMeanHead,
    Task,
    Tokens,
    import_weights,
    load_head,
    save_head,
)

WIDTH, HIDDEN = 12, 8
NAMES = {"network.0.": "mlps.0.hidden.", "network.2.": "mlps.0.out."}


class MLP(nn.Module):
    """A user's own module."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.LeakyReLU(), nn.Linear(HIDDEN, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.network(x)).mean(dim=(1, 2))


def tokens_of(x: Tensor) -> Tokens:
    return Tokens.from_patches(x, grid=(2, 3), patch_size=14)


def head(**options: Any) -> PatchMeanHead:
    return PatchMeanHead(WIDTH, [Task("mass", unit="g", activation="relu")], hidden_dim=HIDDEN, **options)


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return MLP().state_dict()


@pytest.mark.parametrize("form", ["m.pth", "m.safetensors", "under state_dict", "under model"])
def test_a_head_predicts_what_the_users_module_predicts(form: str, tmp_path: Path) -> None:
    source, x, path = MLP(), torch.randn(4, 6, WIDTH), tmp_path / (form if "." in form else "m.pt")
    if path.suffix == ".safetensors":
        save_file(source.state_dict(), path)
    else:
        content = source.state_dict()
        torch.save({form.split()[1]: content, "epoch": 3} if form.startswith("under") else content, path)
    own = head()
    found = import_weights(own, path, NAMES)
    assert found is own and not found.training
    assert torch.allclose(found(tokens_of(x))["mass"][:, 0], source(x), atol=1e-6)
    save_head(tmp_path / "own.safetensors", found)
    assert torch.equal(load_head(tmp_path / "own.safetensors")(tokens_of(x))["mass"], found(tokens_of(x))["mass"])


def test_the_longest_beginning_counts_and_others_stay(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_layers": 2, "fpn_dim": 8, "num_levels": 2}
    one, other = (FPNHead(WIDTH, [Task("a")], **options).eval() for _ in range(2))
    names = {"spatial_neck.": "neck.", "spatial_neck.lateral.": "neck.top_down.laterals."}
    theirs = {
        key.replace("neck.top_down.laterals.", "spatial_neck.lateral.").replace("neck.", "spatial_neck.", 1)
        if "laterals" not in key
        else key.replace("neck.top_down.laterals.", "spatial_neck.lateral."): value
        for key, value in one.state_dict().items()
    }
    torch.save(theirs, tmp_path / "m.pt")
    import_weights(other, tmp_path / "m.pt", names)
    assert all(torch.equal(other.state_dict()[key], value) for key, value in one.state_dict().items())


class Trap:
    """An object whose unpickling would run a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("protocol", [0, 4])
def test_a_bare_pickle_does_not_run_and_torchs_advice_is_not_passed_on(protocol: int, tmp_path: Path) -> None:
    """The loader's own message names how to run the file after all."""
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"network.0.weight": Trap(tmp_path / "ran")}, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"b\.pt") as no:
        import_weights(head(), tmp_path / "b.pt", NAMES)
    assert "weights_only" not in str(no.value)
    assert not (tmp_path / "ran").exists()


def test_packed_and_damaged_files_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 14)}, tmp_path / "m.pth")
    with (
        zipfile.ZipFile(tmp_path / "m.pth") as plain,
        zipfile.ZipFile(tmp_path / "p.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        import_weights(head(), tmp_path / "p.pth", NAMES)
    (tmp_path / "d.pth").write_bytes((tmp_path / "m.pth").read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"d\.pth"):
        import_weights(head(), tmp_path / "d.pth", NAMES)
