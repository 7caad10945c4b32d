"""Every process under torchrun takes its own GPU; a name that is not a device is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dinoneck.devices import local_device, to_local_device
from dinoneck.errors import ConfigError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two GPUs that can be chosen, and where tensors can be made; the list of those that were chosen."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    made = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, device: made(*shape))
    return chosen


class Placed(nn.Module):
    """A module that stands on a GPU."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)

    def parameters(self, recurse: bool = True):
        return iter([self])

    def to(self, device: torch.device):
        self.device = device


def test_cuda_is_the_gpu_of_this_process(gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_device("cuda") == torch.device("cuda") and gpus == []
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_device("cuda") == torch.device("cuda", 1) and gpus == [torch.device("cuda", 1)]
    assert local_device("cuda:0") == torch.device("cuda", 0) and local_device("cpu") == torch.device("cpu")
    assert len(gpus) == 1, "a device with a number is kept"


@pytest.mark.parametrize(
    ("rank", "message"), [("2", "LOCAL_RANK is 2, and torch sees 2 GPU"), ("x", "LOCAL_RANK is 'x'")]
)
def test_a_rank_without_a_gpu_is_refused(
    rank: str, message: str, gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(ConfigError, match=message):
        local_device("cuda")
    assert gpus == []


def test_modules_leave_the_first_gpu(gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    def places() -> list[str]:
        modules = [Placed("cuda:0"), Placed("cuda:1"), Placed("cpu")]
        to_local_device(*modules)
        return [str(module.device) for module in modules]

    assert places() == ["cuda:0", "cuda:1", "cpu"], "not under torchrun"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert places() == ["cuda:1", "cuda:1", "cpu"] and gpus == [torch.device("cuda", 1)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert places() == ["cuda:0", "cuda:1", "cpu"], "a process that sees one GPU has its own"


@pytest.mark.parametrize("name", ["nonsense", "meta"])
def test_what_holds_no_tensors_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}'"):
        local_device(name)
