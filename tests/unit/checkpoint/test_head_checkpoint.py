"""HeadCheckpoint: bit-identical round trips, records, damaged files."""

from __future__ import annotations

import copy
import json
import os
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import kit
from tests.faults.signed import Change, forged

from dinoneck import (
    Backbone,
    CheckpointError,
    HeadCheckpoint,
    PatchMeanHead,
    PatchMeanMLP,
    Predictor,
    TargetTransform,
    Task,
    load_head,
    save_head,
    wrap_backbone,
)
from dinoneck.checkpoint.contents import check_finite
from dinoneck.checkpoint.format import canonical
from dinoneck.errors import BackboneError


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_head_keeps_its_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    head, tokens = kit.head().to(dtype), kit.tokens(width=64, dtype=dtype)
    save_head(tmp_path / "h", head)
    again = load_head(tmp_path / "h")(tokens)["mass"]
    assert again.dtype == dtype
    assert torch.equal(again, head(tokens)["mass"])
    assert (
        HeadCheckpoint.load(tmp_path / "h").build(dtype=torch.float32).mlps[0].out.weight.dtype
        == torch.float32
    )


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_head(tmp_path / name, kit.head())
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


def test_other_weights_of_the_same_dtype_are_not_blamed_on_it() -> None:
    checkpoint = HeadCheckpoint.from_module(kit.head(), backbone=kit.backbone(seed=0))
    with pytest.raises(CheckpointError, match="seed 1") as refused:
        checkpoint.check_backbone(kit.backbone(seed=1))
    assert "dtype" not in str(refused.value)


def test_a_backbone_that_was_tuned_along_travels_in_the_file(tmp_path: Path) -> None:
    tuned = kit.backbone()
    with torch.no_grad():
        next(tuned.parameters()).mul_(1.1)
    weights = tuned.adapter.model.state_dict()
    save_head(tmp_path / "h", kit.head(), backbone=tuned, backbone_weights=weights)
    loaded, images = HeadCheckpoint.load(tmp_path / "h"), torch.rand(1, 3, 32, 48)
    assert torch.equal(loaded.load_backbone()(images).sequence[0], tuned(images).sequence[0])
    assert str(Predictor(tmp_path / "h")(images[0])) == str(
        Predictor(tmp_path / "h", tuned)(images[0])
    )
    loaded.save(tmp_path / "again")
    assert (tmp_path / "h").read_bytes() == (tmp_path / "again").read_bytes()
    first = next(key for key, value in weights.items() if value.is_floating_point())
    more = {**weights, "more": torch.zeros(1)}
    less = {key: value for key, value in weights.items() if key != first}
    other, nan = (
        weights | {first: weights[first] + 1},
        weights | {first: weights[first] * torch.nan},
    )
    for wrong, step in ((other, "tensors"), (more, "tensors"), (less, "tensors"), (nan, "finite")):
        with pytest.raises(CheckpointError) as caught:
            HeadCheckpoint.from_module(kit.head(), backbone=tuned, backbone_weights=wrong)
        assert caught.value.step == step
    seeded = HeadCheckpoint.from_module(kit.head(), backbone=kit.backbone(seed=3))
    assert seeded.load_backbone().record()["weights"]["seed"] == 3


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]
)
def test_a_copy_saves_and_builds(
    copied: Callable[[HeadCheckpoint], HeadCheckpoint], tmp_path: Path
) -> None:
    one = HeadCheckpoint.from_module(kit.head())
    other = copied(one)
    other.save(tmp_path / "h")
    assert other.config == kit.head().config
    for module in (other.build(), other.build(), load_head(tmp_path / "h")):
        assert kit.same(module.state_dict(), kit.head().state_dict())


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
    # their sum is not
    for finite in ([largest, largest], [-largest] * 9, [largest, largest, -largest, -largest]):
        check_finite({"w": torch.tensor(finite, dtype=dtype), "none": torch.zeros(0)}, "x")
    for size in (1, 4097):
        for place in {0, size // 2, size - 1}:
            for values in ((torch.nan,), (torch.inf, -torch.inf)):
                broken = torch.randn(size).to(dtype)
                broken[place : place + len(values)] = torch.tensor(
                    values[: size - place], dtype=dtype
                )
                with pytest.raises(CheckpointError, match="w holds NaN or infinite"):
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
        assert kit.same(module.state_dict(), expected)


@pytest.fixture
def head() -> HeadCheckpoint:
    torch.manual_seed(0)
    return HeadCheckpoint.from_module(PatchMeanHead(8, [Task("total", unit="g")], hidden_dim=4))


def test_any_changed_bit_is_refused(tmp_path: Path) -> None:
    """Every 7th bit of a small file."""
    HeadCheckpoint.from_module(PatchMeanMLP(2, 1, 1)).save(tmp_path / "h")
    content = (tmp_path / "h").read_bytes()
    for bit in range(0, len(content) * 8, 7):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "h").write_bytes(damaged)
        with pytest.raises(CheckpointError):
            HeadCheckpoint.load(tmp_path / "h")


def large(meta: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    """List an empty tensor with sides that no empty tensor can have."""
    meta["tensors"].append(["zz", "F32", [1 << 30, 0, 1 << 31]])
    state["zz"] = torch.empty(0)


@pytest.mark.parametrize(
    ("change", "step", "named"),
    [
        (lambda meta, state: meta.pop("extra"), "schema", "extra"),
        (lambda meta, state: meta.update(versions={"patch_mean": 1}), "schema", "versions"),
        (lambda meta, state: meta.update(schema=2), "schema", "schema 2"),
        (lambda meta, state: meta.update(schema=0), "schema", "schema"),
        (
            lambda meta, state: meta.update(schema=7, created_by={"dinoneck": "9.8.7"}),
            "schema",
            "9.8.7",
        ),
        (lambda meta, state: meta["config"].update(embed_dim=9), "tensors", "(9,)"),
        (lambda meta, state: meta["tensors"].pop(), "tensors", "scale.std"),
        (large, "tensors", "zz"),
    ],
)
def test_forged_files_are_refused(
    change: Change, step: str, named: str, head: HeadCheckpoint, tmp_path: Path
) -> None:
    """The digest and the spelling of each are valid."""
    (tmp_path / "h").write_bytes(forged(head, change))
    with pytest.raises(CheckpointError) as caught:
        HeadCheckpoint.load(tmp_path / "h")
    assert caught.value.step == step
    assert named in str(caught.value)


def test_numbers_and_text_have_one_spelling(tmp_path: Path) -> None:
    """The digest covers the text of the header, so another spelling of a number would be another file."""
    values = {"a": [1e-06, 3e-05, 1e16, -0.0, 0.1, 2.0, 2], "é": "grün\u2028"}
    assert canonical(values) == '{"a":[1e-06,3e-05,1e+16,-0.0,0.1,2.0,2],"é":"grün\u2028"}'.encode()
    tasks = [
        Task("grün", unit="g/m²", transform=TargetTransform(mean=-0.0, std=3e-05), weight=1e16)
    ]
    written = HeadCheckpoint.from_module(PatchMeanHead(8, tasks, hidden_dim=2), extra=values)
    written.save(tmp_path / "one")
    loaded = HeadCheckpoint.load(tmp_path / "one")
    assert repr(loaded.meta) == repr(json.loads(canonical(written.meta)))
    assert repr(loaded.meta["tasks"][0]["transform"]["mean"]) == "-0.0"
    loaded.save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_own_entries_of_a_record_may_hold_any_text(tmp_path: Path) -> None:
    weights = {"kind": "file", "note": "a\tb", "base": {"note": "\x1b"}}
    record = {"name": "mine", "layers": [0], "norm": True, "note": "a\nb", "weights": weights}
    checkpoint = HeadCheckpoint.from_module(PatchMeanMLP(4), backbone=record)
    checkpoint.save(tmp_path / "h")
    assert HeadCheckpoint.load(tmp_path / "h").meta["backbone"] == record


def test_records_of_converted_features_may_leave_layers_open(tmp_path: Path) -> None:
    open_record = {
        "name": "unknown",
        "patch_size": [16, 16],
        "embed_dim": 64,
        "layers": None,
        "norm": None,
    }
    save_head(tmp_path / "h", kit.head(), backbone=open_record)
    tokens = kit.backbone()(torch.rand(1, 3, 32, 32))
    assert load_head(tmp_path / "h").predict(tokens)["mass"].shape == (1, 1)
    with pytest.raises(CheckpointError, match=r"does not state its .*save the head again"):
        Predictor(tmp_path / "h", kit.backbone())


def test_a_head_of_converted_features_predicts_once_it_is_saved_with_their_backbone(
    tmp_path: Path,
) -> None:
    backbone = kit.backbone()
    head = kit.head()
    open_record = {"name": "unknown", "embed_dim": 64, "layers": None, "norm": None}
    save_head(tmp_path / "open", head, backbone=open_record)
    [image] = kit.write_images(tmp_path, ["a.png"], 32, 48)
    with torch.no_grad():
        right = head.predict(backbone(backbone.preprocess([image])))["mass"].item()

    with pytest.raises(CheckpointError, match="does not state 'layers'.*save the head again"):
        Predictor(tmp_path / "open")
    save_head(
        tmp_path / "stated",
        load_head(tmp_path / "open"),
        backbone=backbone,
        preprocess=backbone.preprocess,
    )

    [row] = Predictor(tmp_path / "stated")([image])
    assert row["mass"] == pytest.approx(right, rel=1e-6)


def test_a_probe_is_proposed_only_for_a_file_that_has_one(tmp_path: Path) -> None:
    backbone = kit.backbone()
    record = {**backbone.record(), "weights_sha256": None, "weights": {"kind": "file"}}

    save_head(tmp_path / "without", kit.head(), backbone=record)
    with pytest.raises(CheckpointError, match="Without both hashes") as refused:
        Predictor(tmp_path / "without", backbone)
    assert "probe" not in str(refused.value)

    save_head(tmp_path / "with", kit.head(), backbone={**record, "probe": backbone.probe()})
    with pytest.raises(CheckpointError, match="probe=True"):
        Predictor(tmp_path / "with", backbone)
    assert Predictor(tmp_path / "with", backbone, probe=True).backbone is backbone


def test_a_head_without_a_record_warns_when_saved_and_when_used(tmp_path: Path) -> None:
    backbone = kit.backbone()
    with pytest.warns(UserWarning, match="saved without backbone=") as caught:
        kit.head().save_pretrained(tmp_path / "a")
        save_head(tmp_path / "h", kit.head())
    assert {one.filename for one in caught} == {__file__}
    with pytest.warns(
        UserWarning, match="does not state its backbone, so 'dinoneck_tiny' is used unchecked"
    ) as caught:
        Predictor(tmp_path / "h", backbone)
    assert {one.filename for one in caught} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_head(tmp_path / "mlp", PatchMeanMLP(8))
        save_head(tmp_path / "h", kit.head(), backbone=backbone)
        Predictor(tmp_path / "h", backbone)
        Predictor(kit.head(), backbone)


@pytest.mark.parametrize(
    "make", [lambda b: b, lambda b: b.unfreeze_last(1), lambda b: b.add_lora(2)]
)
def test_a_predictor_notices_weights_that_change(make: Callable[[Backbone], Backbone]) -> None:
    backbone = make(kit.backbone())
    predictor = Predictor(kit.head(), backbone)
    image = torch.rand(3, 32, 32)
    before = predictor(image)
    assert predictor(image) == predictor(image) == before
    learning = [p for p in backbone.parameters() if p.requires_grad] or list(backbone.parameters())
    with torch.no_grad():
        learning[-1].add_(0.1)
    for _ in range(2):
        with pytest.raises(BackboneError, match="changed after this Predictor was made"):
            predictor(image)
        backbone.freeze()


def test_a_loaded_head_keeps_what_it_was_trained_on(tmp_path: Path) -> None:
    backbone = kit.backbone()
    save_head(tmp_path / "h", kit.head(), backbone=backbone)
    loaded = load_head(tmp_path / "h")
    other = kit.backbone(layers=[2], norm=False)(torch.rand(1, 3, 64, 64))
    for kept in (loaded, copy.deepcopy(loaded), HeadCheckpoint.load(tmp_path / "h").build()):
        with pytest.raises(
            BackboneError,
            match=r"normed.*trained on True, got False; layers: trained on \(5,\), got \(2,\)",
        ):
            kept.predict(other)
    compiled = torch.compile(loaded, backend="eager", fullgraph=True)
    assert compiled(backbone(torch.rand(1, 3, 64, 64)))["mass"].shape == (1, 1)


@pytest.mark.parametrize("probe", [False, True])
@pytest.mark.parametrize("key", ["mean", "std"])
def test_a_backbone_with_another_normalisation_is_refused(
    key: str, probe: bool, tmp_path: Path
) -> None:
    """Its weights are the same, and every token would be another one."""
    path = kit.saved_head(tmp_path / "h.safetensors")
    other = kit.backbone()
    other.preprocess = other.preprocess.changed(**{key: (0.43, 0.411, 0.296)})

    with pytest.raises(CheckpointError, match=rf"{key}.*0\.43, 0\.411, 0\.296"):
        HeadCheckpoint.load(path).check_backbone(other, probe=probe)


def test_a_normalisation_that_differs_by_rounding_is_the_same(tmp_path: Path) -> None:
    path = kit.saved_head(tmp_path / "h.safetensors")
    other = kit.backbone()
    mean = tuple(value + 1e-4 for value in other.preprocess.mean)
    other.preprocess = other.preprocess.changed(mean=mean)

    HeadCheckpoint.load(path).check_backbone(other)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        pytest.param(pickle.dumps([0.5]), "a pickle, which may run code", id="pickle"),
        pytest.param(b"PK\x03\x04", "a zip or torch.save file, which may run code", id="zip"),
        pytest.param(b"version https://git-lfs.github.com", "git lfs pull", id="Git LFS"),
        pytest.param(b"<!doctype html>", "a web page", id="web page"),
        pytest.param(b"\x1f\x8b\x08", "unpack it first", id="gzip"),
    ],
)
def test_what_is_mistaken_for_a_head_file_is_called_by_its_name(
    content: bytes, named: str, tmp_path: Path
) -> None:
    path = tmp_path / "head.safetensors"
    path.write_bytes(content + bytes(64))

    with pytest.raises(CheckpointError, match=named):
        HeadCheckpoint.load(path)


@pytest.mark.parametrize("trainable", [False, True])
def test_lora_weights_of_a_head_are_trained_further_on_request_only(
    trainable: bool, tmp_path: Path
) -> None:
    path = kit.saved_head(tmp_path / "h.safetensors", backbone=kit.backbone().add_lora(2))
    base = kit.backbone()

    HeadCheckpoint.load(path).apply_adapter(base, trainable=trainable)

    lora = [parameter for name, parameter in base.named_parameters() if "lora_" in name]
    assert lora
    assert all(parameter.requires_grad == trainable for parameter in lora)


@pytest.mark.parametrize("save", [save_head, HeadCheckpoint.from_module])
def test_a_misspelt_record_is_refused_with_the_nearest(save: Any, tmp_path: Path) -> None:
    """Python names the nearest keyword from 3.13 on; a keyword is no record of its own."""
    arguments = [tmp_path / "head.safetensors"] if save is save_head else []
    with pytest.raises(TypeError, match=r"no argument 'licence'\. Did you mean 'license'\?"):
        save(*arguments, PatchMeanHead(8, Task("mass")), licence="MIT")
    assert not [*tmp_path.iterdir()]


def test_records_of_ones_own_are_kept_under_extra(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    head = PatchMeanHead(8, Task("mass"))
    save_head(path, head, backbone={"name": "x"}, extra={"site": "meadow"})
    assert HeadCheckpoint.load(path).meta["extra"] == {"site": "meadow"}
