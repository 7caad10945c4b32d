"""Loading by name: the table of published models agrees with timm's, and every name gives tokens."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg

from dinoneck import Backbone, load_backbone
from dinoneck.backbones.known import KNOWN, architecture_of, names_of, resolve_name
from dinoneck.backbones.timm import TimmAdapter, names

SMALL = "vit_small_patch16_dinov3.lvd1689m"


def test_every_supported_architecture_is_in_the_table() -> None:
    assert set(names()) <= {model.name for model in KNOWN}  # an older timm knows fewer


@pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
def test_rows_are_true(known) -> None:  # type: ignore[no-untyped-def]
    if known.name not in names():
        pytest.skip(f"timm {timm.__version__} does not know {known.name}")
    with torch.device("meta"):
        adapter = TimmAdapter(timm.create_model(known.name, num_classes=0))
    assert (adapter.patch_size[0], adapter.embed_dim, adapter.depth) == (
        known.patch,
        known.width,
        known.depth,
    )
    assert adapter.num_registers == known.registers
    tags = [name.split(".", 1)[1] for name in timm.list_pretrained(f"{known.name}.*")]
    assert set(tags) <= set(known.hubs)
    for tag in tags:
        assert get_pretrained_cfg(f"{known.name}.{tag}").license == known.license(tag)


def test_names_lead_to_each_other() -> None:
    short, hub = "vit_small_patch16_dinov3", "facebook/dinov3-vits16-pretrain-lvd1689m"
    assert names_of(hub) == names_of(SMALL) == names_of(short) == (SMALL, hub)
    assert names_of("mine") is None
    assert architecture_of(hub) == architecture_of(f"{short}_qkvb.lvd1689m") == short


@pytest.mark.parametrize(
    ("name", "timm_name"),
    [
        (f"timm/{SMALL}", SMALL),
        ("facebook/dinov2-with-registers-base", "vit_base_patch14_reg4_dinov2.lvd142m"),
        ("me/my-own-model", "me/my-own-model"),
    ],
)
def test_the_names_people_use_are_those_of_timms_models(name: str, timm_name: str) -> None:
    assert resolve_name(name) == timm_name


def test_every_name_in_torch_hub_is_resolved() -> None:
    dinov2 = {f"dinov2_vit{size}14{registers}" for size in "sblg" for registers in ("", "_reg")}
    dinov3 = {f"dinov3_vit{size}" for size in ("s16", "s16plus", "b16", "l16", "h16plus", "7b16")}
    assert {model.official for model in KNOWN} - {None} == dinov2 | dinov3
    for model in KNOWN:
        if model.official is not None:
            assert resolve_name(model.official) == f"{model.name}.{next(iter(model.hubs))}"


def test_the_list_is_timms_list() -> None:
    vits = [
        name
        for name in timm.list_models("*dinov2*") + timm.list_models("*dinov3*")
        if name.startswith("vit_")
    ]
    assert sorted(names()) == sorted(set(vits))
    assert len(vits) >= 19


def cached(folder: Path, name: str) -> Backbone:
    """Write random weights of a model into a cache of the Hub, as its commit "aa...", and return the model."""
    source, model = load_backbone(name, pretrained=False, seed=9), folder / f"models--timm--{name}"
    snapshot = model / "snapshots" / ("a" * 40)
    for made in (snapshot, model / "refs"):
        made.mkdir(parents=True)
    (model / "refs" / "main").write_text("a" * 40)
    save_file(source.adapter.model.state_dict(), snapshot / "model.safetensors")
    return source


def test_cached_weights_are_used_without_asking_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cached(tmp_path, "vit_small_patch16_dinov3_qkvb.lvd1689m")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    loaded = load_backbone("vit_small_patch16_dinov3_qkvb")
    assert loaded.record()["weights_sha256"] == source.record()["weights_sha256"]
    assert loaded.weights == {
        "kind": "hub",
        "repo": "timm/vit_small_patch16_dinov3_qkvb.lvd1689m",
        "revision": "a" * 40,
    }
    assert loaded.record()["license"] == "dinov3-license"
    assert loaded.name == "vit_small_patch16_dinov3_qkvb.lvd1689m"
