"""Every process under torchrun takes its own GPU; a name that is not a device is refused."""

from __future__ import annotations

import pytest
import torch

from dinoneck.devices import local_device
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


def test_cuda_is_the_gpu_of_this_process(
    gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert local_device("cuda") == torch.device("cuda") and gpus == []
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_device("cuda") == torch.device("cuda", 1) and gpus == [torch.device("cuda", 1)]
    assert local_device("cuda:0") == torch.device("cuda", 0) and local_device(
        "cpu"
    ) == torch.device("cpu")
    assert len(gpus) == 1, "a device with a number is kept"


def test_a_rank_that_is_no_number_is_refused(
    gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "x")
    with pytest.raises(ConfigError, match="LOCAL_RANK x"):
        local_device("cuda")


@pytest.mark.parametrize("name", ["nonsense", "meta"])
def test_what_holds_no_tensors_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}'"):
        local_device(name)
