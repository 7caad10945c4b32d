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
from torch import nn

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
    head = kit.head().to(dtype)
    tokens = kit.tokens(width=64, dtype=dtype)
    save_head(tmp_path / "h", head)

    output = load_head(tmp_path / "h")(tokens)["mass"]

    assert output.dtype == dtype
    assert torch.equal(output, head(tokens)["mass"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_head_may_be_built_in_another_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    save_head(tmp_path / "h", kit.head().to(dtype))

    head = HeadCheckpoint.load(tmp_path / "h").build(dtype=torch.float32)

    assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}


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
    backbone = wrap_backbone(kit.backbone(seed=0).adapter.model)
    other = wrap_backbone(kit.backbone(seed=1).adapter.model, dtype=torch.bfloat16)
    checkpoint = HeadCheckpoint.from_module(kit.head(), backbone=backbone)

    with pytest.raises(CheckpointError, match=r"dtype=torch\.float32"):
        checkpoint.check_backbone(other)


def test_the_record_of_a_backbone_is_compared_as_the_backbone_is() -> None:
    backbone = kit.backbone(seed=0)
    checkpoint = HeadCheckpoint.from_module(kit.head(), backbone=backbone)

    checkpoint.check_backbone(backbone.record())

    with pytest.raises(CheckpointError, match="seed 1"):
        checkpoint.check_backbone(kit.backbone(seed=1).record())


def test_other_weights_of_the_same_dtype_are_not_blamed_on_it() -> None:
    checkpoint = HeadCheckpoint.from_module(kit.head(), backbone=kit.backbone(seed=0))

    with pytest.raises(CheckpointError, match="seed 1") as refused:
        checkpoint.check_backbone(kit.backbone(seed=1))

    assert "dtype" not in str(refused.value)


@pytest.fixture
def tuned() -> Backbone:
    """A backbone whose weights were changed."""
    backbone = kit.backbone()
    with torch.no_grad():
        next(backbone.parameters()).mul_(1.1)
    return backbone


@pytest.fixture
def with_tuned(tuned: Backbone, tmp_path: Path) -> Path:
    """A head file that holds its weights."""
    path = tmp_path / "h"
    save_head(path, kit.head(), backbone=tuned, backbone_weights=tuned.adapter.model.state_dict())
    return path


def test_a_backbone_that_was_tuned_along_travels_in_the_file(
    with_tuned: Path, tuned: Backbone
) -> None:
    images = torch.rand(1, 3, 32, 48)

    backbone = HeadCheckpoint.load(with_tuned).load_backbone()

    assert torch.equal(backbone(images).sequence[0], tuned(images).sequence[0])


def test_a_predictor_takes_the_tuned_backbone_out_of_the_file(
    with_tuned: Path, tuned: Backbone
) -> None:
    image = torch.rand(3, 32, 48)

    prediction = Predictor(with_tuned)(image)

    assert str(prediction) == str(Predictor(with_tuned, tuned)(image))


def test_a_file_with_a_tuned_backbone_is_written_again_byte_for_byte(
    with_tuned: Path, tmp_path: Path
) -> None:
    HeadCheckpoint.load(with_tuned).save(tmp_path / "again")

    assert with_tuned.read_bytes() == (tmp_path / "again").read_bytes()


Weights = dict[str, torch.Tensor]


def first_of(weights: Weights) -> str:
    """The name of the first tensor of floating-point numbers."""
    return next(name for name, tensor in weights.items() if tensor.is_floating_point())


def with_another_value(weights: Weights) -> Weights:
    name = first_of(weights)
    return weights | {name: weights[name] + 1}


def with_one_more(weights: Weights) -> Weights:
    return weights | {"more": torch.zeros(1)}


def with_one_less(weights: Weights) -> Weights:
    name = first_of(weights)
    return {other: tensor for other, tensor in weights.items() if other != name}


def with_nan(weights: Weights) -> Weights:
    name = first_of(weights)
    return weights | {name: weights[name] * torch.nan}


@pytest.mark.parametrize(
    ("change", "step"),
    [
        pytest.param(with_another_value, "tensors", id="another value"),
        pytest.param(with_one_more, "tensors", id="one more"),
        pytest.param(with_one_less, "tensors", id="one less"),
        pytest.param(with_nan, "finite", id="NaN"),
    ],
)
def test_weights_that_are_not_those_of_the_backbone_are_refused(
    tuned: Backbone, change: Callable[[Weights], Weights], step: str
) -> None:
    weights = change(tuned.adapter.model.state_dict())

    with pytest.raises(CheckpointError) as refused:
        HeadCheckpoint.from_module(kit.head(), backbone=tuned, backbone_weights=weights)

    assert refused.value.step == step


def test_seeded_weights_are_drawn_again() -> None:
    checkpoint = HeadCheckpoint.from_module(kit.head(), backbone=kit.backbone(seed=3))

    backbone = checkpoint.load_backbone()

    assert backbone.record()["weights"]["seed"] == 3


@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(copy.copy, id="copy"),
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(lambda checkpoint: pickle.loads(pickle.dumps(checkpoint)), id="pickle"),
    ],
)
def test_a_copy_saves_and_builds(
    copied: Callable[[HeadCheckpoint], HeadCheckpoint], tmp_path: Path
) -> None:
    checkpoint = copied(HeadCheckpoint.from_module(kit.head()))

    checkpoint.save(tmp_path / "h")

    expected = kit.head().state_dict()
    assert checkpoint.config == kit.head().config
    assert kit.same(checkpoint.build().state_dict(), expected)
    assert kit.same(checkpoint.build().state_dict(), expected)
    assert kit.same(load_head(tmp_path / "h").state_dict(), expected)


def load_by_name(path: Path) -> nn.Module:
    return load_head(path)


def build_once(path: Path) -> nn.Module:
    return HeadCheckpoint.load(path).build()


def build_twice(path: Path) -> nn.Module:
    checkpoint = HeadCheckpoint.load(path)
    checkpoint.build()
    return checkpoint.build()


def assert_learns(module: nn.Module) -> None:
    module(torch.randn(2, 6, 64), grid=(2, 3))["mass"].sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("read", [load_by_name, build_once, build_twice])
def test_what_is_read_in_inference_mode_can_be_trained(
    read: Callable[[Path], nn.Module], tmp_path: Path
) -> None:
    with torch.inference_mode():
        path = kit.saved_head(tmp_path / "h")
        module = read(path)
        assert torch.is_inference_mode_enabled()

    assert_learns(module)


def test_what_is_built_after_inference_mode_can_be_trained(tmp_path: Path) -> None:
    with torch.inference_mode():
        path = kit.saved_head(tmp_path / "h")
        checkpoint = HeadCheckpoint.load(path)
        checkpoint.build()

    assert_learns(checkpoint.build())


dtypes = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16]
)


@dtypes
@pytest.mark.parametrize("signs", [[1, 1], [-1] * 9, [1, 1, -1, -1]], ids=str)
def test_the_largest_values_are_finite_though_their_sum_is_not(
    dtype: torch.dtype, signs: list[int]
) -> None:
    largest = torch.finfo(dtype).max
    values = torch.tensor([sign * largest for sign in signs], dtype=dtype)

    check_finite({"w": values, "none": torch.zeros(0)}, "x")


@dtypes
@pytest.mark.parametrize(
    ("size", "index"),
    [
        (1, 0),
        (4097, 0),
        (4097, 2048),
        (4097, 4096),
    ],
)
@pytest.mark.parametrize("values", [[torch.nan], [torch.inf, -torch.inf]], ids=str)
def test_one_value_that_is_not_finite_is_found_anywhere(
    dtype: torch.dtype, size: int, index: int, values: list[float]
) -> None:
    broken = torch.randn(size).to(dtype)
    fitting = values[: size - index]
    broken[index : index + len(fitting)] = torch.tensor(fitting, dtype=dtype)

    with pytest.raises(CheckpointError, match="w holds NaN or infinite"):
        check_finite({"a": torch.zeros(3), "w": broken}, "x")


def test_a_checkpoint_and_the_modules_of_it_share_nothing() -> None:
    head = kit.head()
    expected = kit.head().state_dict()
    checkpoint = HeadCheckpoint.from_module(head)
    with ThreadPoolExecutor(8) as pool:
        first, *others = pool.map(lambda _: checkpoint.build(), range(16))

    for module in (head, *others):
        for tensor in module.state_dict().values():
            tensor.zero_()

    assert kit.same(first.state_dict(), expected)
    assert kit.same(checkpoint.build().state_dict(), expected)


@pytest.fixture
def head() -> HeadCheckpoint:
    torch.manual_seed(0)
    return HeadCheckpoint.from_module(PatchMeanHead(8, [Task("total", unit="g")], hidden_dim=4))


@pytest.mark.slow
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


Meta = dict[str, Any]


def without_extra(meta: Meta, state: Weights) -> None:
    meta.pop("extra")


def with_versions(meta: Meta, state: Weights) -> None:
    meta.update(versions={"patch_mean": 1})


def of_schema_2(meta: Meta, state: Weights) -> None:
    meta.update(schema=2)


def of_schema_0(meta: Meta, state: Weights) -> None:
    meta.update(schema=0)


def of_a_later_version(meta: Meta, state: Weights) -> None:
    meta.update(schema=7, created_by={"dinoneck": "9.8.7"})


def with_another_width(meta: Meta, state: Weights) -> None:
    meta["config"].update(embed_dim=9)


def with_a_tensor_less(meta: Meta, state: Weights) -> None:
    meta["tensors"].pop()


def with_large_sides(meta: Meta, state: Weights) -> None:
    """List an empty tensor with sides that no empty tensor can have."""
    meta["tensors"].append(["zz", "F32", [1 << 30, 0, 1 << 31]])
    state["zz"] = torch.empty(0)


@pytest.mark.parametrize(
    ("change", "step", "named"),
    [
        pytest.param(without_extra, "schema", "extra", id="a key less"),
        pytest.param(with_versions, "schema", "versions", id="a key more"),
        pytest.param(of_schema_2, "schema", "schema 2", id="schema 2"),
        pytest.param(of_schema_0, "schema", "schema", id="schema 0"),
        pytest.param(of_a_later_version, "schema", "9.8.7", id="a later version"),
        pytest.param(with_another_width, "tensors", "(9,)", id="another width"),
        pytest.param(with_a_tensor_less, "tensors", "scale.std", id="a tensor less"),
        pytest.param(with_large_sides, "tensors", "zz", id="large sides"),
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


# a file has one text: its digest covers it, so that another spelling of a number would be another file
VALUES = {"a": [1e-06, 3e-05, 1e16, -0.0, 0.1, 2.0, 2], "é": "grün\u2028"}


def test_numbers_and_text_have_one_spelling() -> None:
    text = '{"a":[1e-06,3e-05,1e+16,-0.0,0.1,2.0,2],"é":"grün\u2028"}'

    assert canonical(VALUES) == text.encode()


@pytest.fixture
def of_odd_values() -> HeadCheckpoint:
    """A checkpoint with numbers and text that JSON could spell in several ways."""
    transform = TargetTransform(mean=-0.0, std=3e-05)
    task = Task("grün", unit="g/m²", transform=transform, weight=1e16)
    return HeadCheckpoint.from_module(PatchMeanHead(8, [task], hidden_dim=2), extra=VALUES)


def test_a_file_keeps_every_number_and_text(of_odd_values: HeadCheckpoint, tmp_path: Path) -> None:
    of_odd_values.save(tmp_path / "h")

    meta = HeadCheckpoint.load(tmp_path / "h").meta

    assert repr(meta) == repr(json.loads(canonical(of_odd_values.meta)))
    assert repr(meta["tasks"][0]["transform"]["mean"]) == "-0.0"


def test_a_file_of_odd_values_is_written_again_byte_for_byte(
    of_odd_values: HeadCheckpoint, tmp_path: Path
) -> None:
    of_odd_values.save(tmp_path / "one")

    HeadCheckpoint.load(tmp_path / "one").save(tmp_path / "two")

    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_own_entries_of_a_record_may_hold_any_text(tmp_path: Path) -> None:
    weights = {"kind": "file", "note": "a\tb", "base": {"note": "\x1b"}}
    record = {"name": "mine", "layers": [0], "norm": True, "note": "a\nb", "weights": weights}
    checkpoint = HeadCheckpoint.from_module(PatchMeanMLP(4), backbone=record)
    checkpoint.save(tmp_path / "h")
    assert HeadCheckpoint.load(tmp_path / "h").meta["backbone"] == record


OPEN_RECORD = {
    "name": "unknown",
    "patch_size": [16, 16],
    "embed_dim": 64,
    "layers": None,
    "norm": None,
}


def test_records_of_converted_features_may_leave_layers_open(tmp_path: Path) -> None:
    tokens = kit.backbone()(torch.rand(1, 3, 32, 32))

    save_head(tmp_path / "h", kit.head(), backbone=OPEN_RECORD)

    assert load_head(tmp_path / "h").predict(tokens)["mass"].shape == (1, 1)


def test_a_predictor_needs_the_layers_of_the_record(tmp_path: Path) -> None:
    save_head(tmp_path / "h", kit.head(), backbone=OPEN_RECORD)

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


@pytest.fixture
def record_of_a_file() -> dict[str, Any]:
    """The record of a backbone of which no hash is known."""
    return {**kit.backbone().record(), "weights_sha256": None, "weights": {"kind": "file"}}


def test_a_probe_is_not_proposed_for_a_file_without_one(
    record_of_a_file: dict[str, Any], tmp_path: Path
) -> None:
    save_head(tmp_path / "h", kit.head(), backbone=record_of_a_file)

    with pytest.raises(CheckpointError, match="Without both hashes") as refused:
        Predictor(tmp_path / "h", kit.backbone())

    assert "probe" not in str(refused.value)


def test_a_probe_is_proposed_for_a_file_that_has_one(
    record_of_a_file: dict[str, Any], tmp_path: Path
) -> None:
    record = {**record_of_a_file, "probe": kit.backbone().probe()}
    save_head(tmp_path / "h", kit.head(), backbone=record)

    with pytest.raises(CheckpointError, match="probe=True"):
        Predictor(tmp_path / "h", kit.backbone())


def test_a_backbone_that_passes_the_probe_is_used(
    record_of_a_file: dict[str, Any], tmp_path: Path
) -> None:
    backbone = kit.backbone()
    record = {**record_of_a_file, "probe": backbone.probe()}
    save_head(tmp_path / "h", kit.head(), backbone=record)

    predictor = Predictor(tmp_path / "h", backbone, probe=True)

    assert predictor.backbone is backbone


def test_a_head_without_a_record_warns_when_it_is_saved(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="saved without backbone=") as warned:
        kit.head().save_pretrained(tmp_path / "a")
        save_head(tmp_path / "h", kit.head())

    assert [warning.filename for warning in warned] == [__file__, __file__]


def test_a_head_without_a_record_warns_when_it_is_used(tmp_path: Path) -> None:
    save_head(tmp_path / "h", kit.head())

    with pytest.warns(UserWarning, match="'dinoneck_tiny' is used unchecked") as warned:
        Predictor(tmp_path / "h", kit.backbone())

    assert {warning.filename for warning in warned} == {__file__}


def test_heads_with_a_record_and_modules_of_other_kinds_do_not_warn(tmp_path: Path) -> None:
    backbone = kit.backbone()

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        save_head(tmp_path / "mlp", PatchMeanMLP(8))
        save_head(tmp_path / "h", kit.head(), backbone=backbone)
        Predictor(tmp_path / "h", backbone)
        Predictor(kit.head(), backbone)

    assert warned == []


@pytest.fixture(params=["frozen", "last block", "lora"])
def backbone_to_change(request: pytest.FixtureRequest) -> Backbone:
    backbone = kit.backbone()
    if request.param == "last block":
        backbone = backbone.unfreeze_last(1)
    elif request.param == "lora":
        backbone = backbone.add_lora(2)
    return backbone


def change_weights(backbone: Backbone) -> None:
    """Change the last weight that learns, or the last one of a frozen backbone."""
    learning = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    with torch.no_grad():
        (learning or list(backbone.parameters()))[-1].add_(0.1)


def test_a_predictor_gives_the_same_again(backbone_to_change: Backbone) -> None:
    predictor = Predictor(kit.head(), backbone_to_change)
    image = torch.rand(3, 32, 32)

    first = predictor(image)

    assert predictor(image) == first
    assert predictor(image) == first


def test_a_predictor_notices_weights_that_change(backbone_to_change: Backbone) -> None:
    predictor = Predictor(kit.head(), backbone_to_change)
    image = torch.rand(3, 32, 32)
    predictor(image)

    change_weights(backbone_to_change)

    with pytest.raises(BackboneError, match="changed after this Predictor was made"):
        predictor(image)
    backbone_to_change.freeze()
    with pytest.raises(BackboneError, match="changed after this Predictor was made"):
        predictor(image)


@pytest.fixture
def with_origin(tmp_path: Path) -> Path:
    """A head file that states its backbone."""
    save_head(tmp_path / "h", kit.head(), backbone=kit.backbone())
    return tmp_path / "h"


@pytest.mark.parametrize(
    "load",
    [
        pytest.param(load_head, id="loaded"),
        pytest.param(lambda path: copy.deepcopy(load_head(path)), id="copied"),
        pytest.param(lambda path: HeadCheckpoint.load(path).build(), id="built"),
    ],
)
def test_a_loaded_head_keeps_what_it_was_trained_on(
    load: Callable[[Path], Any], with_origin: Path
) -> None:
    head = load(with_origin)
    tokens = kit.backbone(layers=[2], norm=False)(torch.rand(1, 3, 64, 64))
    differences = r"normed.*trained on True, got False; layers: trained on \(5,\), got \(2,\)"

    with pytest.raises(BackboneError, match=differences):
        head.predict(tokens)


def test_a_loaded_head_compiles_with_its_check(with_origin: Path) -> None:
    pytest.importorskip("torch", minversion="2.8", reason="torch 2.6 traces no dataclass")
    tokens = kit.backbone()(torch.rand(1, 3, 64, 64))

    compiled = torch.compile(load_head(with_origin), backend="eager", fullgraph=True)

    assert compiled(tokens)["mass"].shape == (1, 1)


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
