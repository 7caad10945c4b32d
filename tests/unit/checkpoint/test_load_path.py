"""The quick ways of reading a head say the same as the plain ones, and share nothing between modules."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from dinoneck import CheckpointError, FPNHead, HeadCheckpoint, PatchMeanMLP, Task, load_head, save_head
from dinoneck.checkpoint import file as files
from dinoneck.checkpoint.read import _FILLING, _Limited, check_finite, on_meta, read_head

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", FLOATS)
def test_one_value_that_is_not_finite_is_found_anywhere(dtype: torch.dtype) -> None:
    for size in (1, 7, 64, 4097):
        sound = torch.randn(size).to(dtype)
        check_finite({"w": sound, "none": sound[:0]}, "x")
        for place in {0, size // 2, size - 1}:
            for values in ((torch.nan,), (torch.inf,), (-torch.inf,), (torch.inf, -torch.inf)):
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


@pytest.mark.parametrize("part", ["[", '{"a":', '"', '\\"', '"\\', '"a', "[]"])
def test_a_header_of_brackets_and_quotes_is_refused(part: str) -> None:
    with pytest.raises(CheckpointError, match="not valid JSON") as caught:
        files.strict_json((part * (files.MAX_HEADER_BYTES // len(part))).encode(), "h", "header")
    assert caught.value.step == "json"


def test_nesting_has_a_limit() -> None:
    def nested(depth: int) -> bytes:
        return b"[" * depth + b'"[[[["' + b"]" * depth

    files.strict_json(nested(files.MAX_DEPTH), "h", "header")
    with pytest.raises(CheckpointError, match="nested deeper than 32"):
        files.strict_json(nested(files.MAX_DEPTH + 1), "h", "header")


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


def test_a_changed_configuration_is_not_overlooked(tmp_path: Path) -> None:
    save_head(tmp_path / "h", PatchMeanMLP(8, 4, activation="relu"))
    checkpoint = HeadCheckpoint.load(tmp_path / "h")
    checkpoint.meta["config"]["activation"] = "softplus"
    assert checkpoint.build().activation == "softplus"


def test_a_file_that_changes_later_changes_no_weights(tmp_path: Path) -> None:
    path = tmp_path / "h"
    save_head(path, PatchMeanMLP(512, 64))
    head = load_head(path)
    before = {key: value.clone() for key, value in head.state_dict().items()}
    path.write_bytes(b"")
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())


def test_only_memory_that_is_not_there_is_left_unfilled() -> None:
    with _Limited(10_000):
        real = nn.Linear(3, 3)
        nn.init.constant_(real.weight, 2.0)
        nn.init.zeros_(tensor=real.bias)
        hollow = on_meta(FPNHead, FPNHead(16, [Task("t")], num_layers=2, fpn_dim=8).config, "x")
    assert real.weight.eq(2).all()
    assert real.bias.eq(0).all()
    plain = FPNHead(16, [Task("t")], num_layers=2, fpn_dim=8)
    found = hollow.state_dict()
    assert {key: (value.shape, value.dtype) for key, value in plain.state_dict().items()} == {
        key: (value.shape, value.dtype) for key, value in found.items()
    }
    assert all(value.is_meta for value in found.values())
    assert {nn.init.kaiming_uniform_, nn.init.trunc_normal_, torch.Tensor.uniform_} <= _FILLING


def test_the_module_it_was_checked_against_is_given(tmp_path: Path) -> None:
    save_head(tmp_path / "h", PatchMeanMLP(8, 4))
    header, state, skeleton = read_head(tmp_path / "h")
    assert isinstance(skeleton, PatchMeanMLP)
    assert skeleton.config == header.meta["config"]
    assert all(value.is_meta for value in skeleton.state_dict().values())
    assert all(not value.is_meta for value in state.values())
