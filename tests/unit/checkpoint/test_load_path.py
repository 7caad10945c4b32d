"""The quick ways of reading a head equal the plain ones, and share nothing between modules."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dinoneck import CheckpointError, HeadCheckpoint, PatchMeanMLP, load_head, save_head
from dinoneck.checkpoint.contents import check_finite

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_value_that_is_not_finite_is_found_anywhere(dtype: torch.dtype) -> None:
    for size in (1, 4097):
        sound = torch.randn(size).to(dtype)
        check_finite({"w": sound, "none": sound[:0]}, "x")
        for place in {0, size // 2, size - 1}:
            for values in ((torch.nan,), (torch.inf, -torch.inf)):
                broken = sound.clone()
                broken[place : place + len(values)] = torch.tensor(values[: size - place], dtype=dtype)
                with pytest.raises(CheckpointError, match="w holds values that are not finite") as caught:
                    check_finite({"a": sound, "w": broken}, "x")
                assert caught.value.step == "finite"


@pytest.mark.parametrize("dtype", FLOATS)
def test_finite_values_whose_sum_is_not_pass(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    for values in ([largest, largest], [-largest] * 9, [largest, largest, -largest, -largest]):
        check_finite({"w": torch.tensor(values, dtype=dtype)}, "x")
    check_finite({"count": torch.tensor([2**62, 2**62])}, "x")


def test_modules_of_one_checkpoint_share_nothing(tmp_path: Path) -> None:
    path = tmp_path / "h"
    save_head(path, PatchMeanMLP(8, 4))
    checkpoint = HeadCheckpoint.load(path)
    with ThreadPoolExecutor(8) as pool:
        built = list(pool.map(lambda _: checkpoint.build(), range(16)))
    built += [load_head(path), load_head(path)]
    assert len({id(module) for module in built}) == len(built)
    places = [value.data_ptr() for module in built for value in module.state_dict().values()]
    places += [value.data_ptr() for value in checkpoint.state_dict.values()]
    assert len(set(places)) == len(places)
    for module in built:
        assert not module.training
        assert all(value.requires_grad for value in module.parameters())
        assert module.config == checkpoint.config
        with torch.no_grad():
            for value in module.parameters():
                value.zero_()
    assert all(torch.equal(checkpoint.build().state_dict()[key], value) for key, value in checkpoint.state_dict.items())
    assert any(value.any() for value in checkpoint.state_dict.values())


def test_a_file_that_changes_later_changes_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "h"
    save_head(path, PatchMeanMLP(512, 64))
    head = load_head(path)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    path.write_bytes(b"")
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())
