"""HeadCheckpoint: bit-identical round trips, honest records, refusals on the way in and out."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests import kit

from dinoneck import CheckpointError, HeadCheckpoint, Predictor, load_head, save_head, wrap_backbone
from dinoneck.checkpoint.contents import check_finite


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_head_keeps_its_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    head, tokens = kit.head().to(dtype), kit.tokens(width=64, dtype=dtype)
    save_head(tmp_path / "h", head)
    again = load_head(tmp_path / "h")(tokens)["mass"]
    assert again.dtype == dtype
    assert torch.equal(again, head(tokens)["mass"])
    assert HeadCheckpoint.load(tmp_path / "h").build(dtype=torch.float32).mlps[0].out.weight.dtype == torch.float32


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_head(tmp_path / name, kit.head())
    loaded = safetensors.torch.load_file(tmp_path / "a")
    assert all(torch.equal(loaded[key], value) for key, value in kit.head().state_dict().items())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_save_that_fails_its_check_keeps_the_old_file(tmp_path: Path) -> None:
    path = kit.saved_head(tmp_path / "h.safetensors")
    before = path.read_bytes()
    checkpoint = HeadCheckpoint.load(path)
    next(iter(checkpoint.state_dict.values())).add_(1)
    with pytest.raises(CheckpointError, match="digest"):
        checkpoint.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_weights_of_files_are_not_taken_on_trust_in_another_dtype() -> None:
    one = wrap_backbone(kit.backbone(seed=0).adapter.model)
    other = wrap_backbone(kit.backbone(seed=1).adapter.model, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"dtype=torch\.float32"):
        HeadCheckpoint.from_module(kit.head(), backbone=one).check_backbone(other)


def test_a_backbone_that_was_tuned_along_travels_in_the_file(tmp_path: Path) -> None:
    tuned = kit.backbone()
    with torch.no_grad():
        next(tuned.parameters()).mul_(1.1)
    weights = tuned.adapter.model.state_dict()
    save_head(tmp_path / "h", kit.head(), backbone=tuned, backbone_weights=weights)
    loaded, images = HeadCheckpoint.load(tmp_path / "h"), torch.rand(1, 3, 32, 48)
    assert torch.equal(loaded.load_backbone()(images).sequence[0], tuned(images).sequence[0])
    assert str(Predictor(tmp_path / "h")(images[0])) == str(Predictor(tmp_path / "h", tuned)(images[0]))
    loaded.save(tmp_path / "again")
    assert (tmp_path / "h").read_bytes() == (tmp_path / "again").read_bytes()
    other = {key: value + 1 if value.is_floating_point() else value for key, value in weights.items()}
    nan = {key: value * torch.nan if value.is_floating_point() else value for key, value in weights.items()}
    more = {**weights, "more": torch.zeros(1)}
    less = dict([*weights.items()][1:])
    for wrong, step in ((other, "tensors"), (more, "tensors"), (less, "tensors"), (nan, "finite")):
        with pytest.raises(CheckpointError) as caught:
            HeadCheckpoint.from_module(kit.head(), backbone=tuned, backbone_weights=wrong)
        assert caught.value.step == step
    seeded = HeadCheckpoint.from_module(kit.head(), backbone=kit.backbone(seed=3))
    assert seeded.load_backbone().record()["weights"]["seed"] == 3


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_saves_and_builds(copied: Callable[[HeadCheckpoint], HeadCheckpoint], tmp_path: Path) -> None:
    one = HeadCheckpoint.from_module(kit.head())
    other = copied(one)
    other.save(tmp_path / "h")
    assert other.config == kit.head().config
    for module in (other.build(), other.build(), load_head(tmp_path / "h")):
        assert all(torch.equal(value, one.state_dict[key]) for key, value in module.state_dict().items())


def test_what_is_read_in_inference_mode_can_be_trained(tmp_path: Path) -> None:
    with torch.inference_mode():
        path = kit.saved_head(tmp_path / "h")
        found = HeadCheckpoint.load(path)
        modules = [load_head(path), found.build(), found.build()]
        assert torch.is_inference_mode_enabled()
    for module in (*modules, found.build()):
        module(torch.randn(2, 6, 64), grid=(2, 3))["mass"].sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_one_value_that_is_not_finite_is_found_anywhere(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    for finite in ([largest, largest], [-largest] * 9, [largest, largest, -largest, -largest]):  # their sum is not
        check_finite({"w": torch.tensor(finite, dtype=dtype), "none": torch.zeros(0)}, "x")
    for size in (1, 4097):
        for place in {0, size // 2, size - 1}:
            for values in ((torch.nan,), (torch.inf, -torch.inf)):
                broken = torch.randn(size).to(dtype)
                broken[place : place + len(values)] = torch.tensor(values[: size - place], dtype=dtype)
                with pytest.raises(CheckpointError, match="w holds values"):
                    check_finite({"a": torch.zeros(3), "w": broken}, "x")


def test_a_checkpoint_and_the_modules_of_it_share_nothing() -> None:
    head, expected = kit.head(), kit.head().state_dict()
    checkpoint = HeadCheckpoint.from_module(head)
    with ThreadPoolExecutor(8) as pool:
        built = list(pool.map(lambda _: checkpoint.build(), range(16)))
    for module in (head, *built[1:]):
        for value in module.state_dict().values():
            value.zero_()
    for module in (built[0], checkpoint.build()):
        assert all(torch.equal(module.state_dict()[key], value) for key, value in expected.items())
