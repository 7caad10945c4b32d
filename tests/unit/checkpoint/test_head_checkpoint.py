"""HeadCheckpoint: bit-identical round trips, honest records, refusals on the way in and out."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dinoneck import (
    Backbone,
    CheckpointError,
    HeadCheckpoint,
    PatchMeanHead,
    PatchMeanMLP,
    Predictor,
    TargetTransform,
    Task,
    Tokens,
    load_backbone,
    load_head,
    save_head,
)
from dinoneck.checkpoint import read_header
from dinoneck.checkpoint.contents import check_finite


def head_of(seed: int = 0) -> PatchMeanHead:
    torch.manual_seed(seed)
    transform = TargetTransform(area=0.21, log1p=True).fit(torch.rand(9) * 50)
    return PatchMeanHead(64, [Task("a", unit="g", transform=transform), Task("s", dim=2, labels=("x", "ü"))])


def tokens_of() -> Tokens:
    return Tokens.from_sequence(torch.randn(2, 3 + 6, 64), image_size=(32, 48), patch_size=16, num_prefix_tokens=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_outputs_are_bit_identical(dtype: torch.dtype, tmp_path: Path) -> None:
    head, tokens = head_of().to(dtype), tokens_of().to(dtype)
    path = tmp_path / "h.safetensors"
    save_head(path, head, note="spring")
    again = load_head(path)
    assert not again.training
    for name, value in head(tokens).items():
        assert torch.equal(again(tokens)[name], value)
        assert again(tokens)[name].dtype == dtype
    assert all(p.requires_grad for p in again.parameters())
    assert HeadCheckpoint.load(path).meta["extra"] == {"note": "spring"}
    assert HeadCheckpoint.load(path).build(dtype=torch.float32).mlps[0].out.weight.dtype == torch.float32


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_head(tmp_path / name, head_of())
    loaded = safetensors.torch.load_file(tmp_path / "a")
    assert all(torch.equal(loaded[key], value) for key, value in head_of().state_dict().items())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_header_describes_the_head(tiny: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "h.safetensors"
    prep = tiny.preprocess.changed(size=(32, 48), blur=5)
    HeadCheckpoint.from_module(head_of(), backbone=tiny, preprocess=prep, extra={"fold": 3}).save(path)
    meta = read_header(path).meta
    assert meta["head_type"] == "patch_mean"
    assert meta["backbone"]["name"] == "dinoneck_tiny"
    assert meta["inputs"]["size"] == [32, 48]
    assert meta["tasks"][0]["transform"]["area"] == 0.21
    checkpoint = HeadCheckpoint.load(path)
    assert checkpoint.meta == meta
    assert checkpoint.preprocess == prep
    assert checkpoint.revision is None
    assert json.loads(json.dumps(checkpoint.config)) == head_of().config


def test_a_checkpoint_is_a_snapshot(tmp_path: Path) -> None:
    head, tokens = head_of(), tokens_of()
    before = head(tokens)["a"]
    checkpoint = HeadCheckpoint.from_module(head)
    with torch.no_grad():
        head.mlps[0].out.bias.add_(1.0)
    first, second = checkpoint.build(), checkpoint.build()
    with torch.no_grad():
        first.mlps[0].out.bias.add_(5.0)
    assert torch.equal(second(tokens)["a"], before)


def test_pairing(tiny: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "h.safetensors"
    save_head(path, head_of(), backbone=tiny)
    checkpoint = HeadCheckpoint.load(path)
    checkpoint.check_backbone(tiny)
    checkpoint.check_backbone(load_backbone("dinoneck_tiny"))
    checkpoint.check_backbone(load_backbone("dinoneck_tiny", dtype=torch.bfloat16))
    checkpoint.check_backbone(tiny, probe=True)


def test_a_save_that_fails_its_check_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "h.safetensors"
    save_head(path, head_of())
    before = path.read_bytes()
    checkpoint = HeadCheckpoint.load(path)
    next(iter(checkpoint.state_dict.values())).add_(1)
    with pytest.raises(CheckpointError, match="digest"):
        checkpoint.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_weights_of_files_are_not_taken_on_trust_in_another_dtype() -> None:
    from dinoneck import wrap_backbone

    one = wrap_backbone(load_backbone("dinoneck_tiny", seed=0).adapter.model)
    other = wrap_backbone(load_backbone("dinoneck_tiny", seed=1).adapter.model, dtype=torch.bfloat16)
    checkpoint = HeadCheckpoint.from_module(head_of(), backbone=one)
    with pytest.raises(CheckpointError, match=r"dtype=torch\.float32"):
        checkpoint.check_backbone(other)
    named = HeadCheckpoint.from_module(head_of(), backbone=load_backbone("dinoneck_tiny"))
    named.check_backbone(load_backbone("dinoneck_tiny", dtype=torch.bfloat16))


def test_a_file_gives_the_backbone_that_was_tuned_along(tmp_path: Path) -> None:
    tuned = load_backbone("dinoneck_tiny")
    with torch.no_grad():
        next(tuned.parameters()).mul_(1.1)
    weights = tuned.adapter.model.state_dict()
    save_head(tmp_path / "h", head_of(), backbone=tuned, backbone_weights=weights)
    again, images = HeadCheckpoint.load(tmp_path / "h").load_backbone(), torch.rand(1, 3, 32, 48)
    assert torch.equal(again(images).sequence[0], tuned(images).sequence[0])
    one, other = Predictor(tmp_path / "h")(images[0]), Predictor(tmp_path / "h", tuned)(images[0])
    assert str(one) == str(other)
    seeded = HeadCheckpoint.from_module(head_of(), backbone=load_backbone("dinoneck_tiny", seed=3))
    assert seeded.load_backbone().record()["weights"]["seed"] == 3


def test_a_backbone_that_was_tuned_along_travels_in_the_file(tmp_path: Path, tiny: Backbone) -> None:
    weights = tiny.adapter.model.state_dict()
    save_head(tmp_path / "h", head_of(), backbone=tiny, backbone_weights=weights)
    loaded = HeadCheckpoint.load(tmp_path / "h")
    assert loaded.backbone_weights is not None and loaded.backbone_weights.keys() == weights.keys()
    assert all(torch.equal(loaded.backbone_weights[key], value) for key, value in weights.items())
    assert loaded.state_dict.keys() == head_of().state_dict().keys()
    loaded.save(tmp_path / "again")
    assert (tmp_path / "h").read_bytes() == (tmp_path / "again").read_bytes()
    assert HeadCheckpoint.from_module(head_of(), backbone=tiny).backbone_weights is None
    other = {key: value + 1 if value.is_floating_point() else value for key, value in weights.items()}
    for wrong in (other, dict([*weights.items()][1:]), {**weights, "more": torch.zeros(1)}):
        with pytest.raises(CheckpointError, match="weights_sha256|SHA-256") as caught:
            HeadCheckpoint.from_module(head_of(), backbone=tiny, backbone_weights=wrong)
        assert caught.value.step == "tensors"
    first = next(iter(weights))
    with pytest.raises(CheckpointError, match=first) as caught:
        nan = {**weights, first: torch.full_like(weights[first], torch.nan)}
        HeadCheckpoint.from_module(head_of(), backbone=tiny, backbone_weights=nan)
    assert caught.value.step == "finite"


def a_head() -> PatchMeanHead:
    return PatchMeanHead(4, [Task("a")], hidden_dim=4)


def tokens() -> Tokens:
    return Tokens.from_patches(torch.randn(2, 6, 4), grid=(2, 3), patch_size=16)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_saves_and_builds(copied: Callable[[HeadCheckpoint], HeadCheckpoint], tmp_path: Path) -> None:
    one = HeadCheckpoint.from_module(a_head())
    other = copied(one)
    other.save(tmp_path / "h")
    for module in (other.build(), other.build(), load_head(tmp_path / "h")):
        assert all(torch.equal(value, one.state_dict[key]) for key, value in module.state_dict().items())


def test_what_is_read_in_inference_mode_can_be_trained(tmp_path: Path) -> None:
    with torch.inference_mode():
        path = tmp_path / "h"
        HeadCheckpoint.from_module(a_head()).save(path)
        found = HeadCheckpoint.load(path)
        modules = [load_head(path), found.build(), found.build(dtype=torch.float64), found.build()]
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
    for module in (*modules, found.build()):
        module(tokens().to(next(module.parameters()).dtype))["a"].sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())


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
        with torch.no_grad():
            for value in module.parameters():
                value.zero_()
    assert all(torch.equal(checkpoint.build().state_dict()[key], value) for key, value in checkpoint.state_dict.items())
    assert any(value.any() for value in checkpoint.state_dict.values())
