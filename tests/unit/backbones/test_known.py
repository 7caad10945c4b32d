"""Loading by name: the table of published models agrees with timm's, and every name gives tokens."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg

from dinoneck import Backbone, BackboneError, load_backbone, wrap_backbone
from dinoneck.backbones.known import (
    KNOWN,
    architecture_of,
    license_of,
    names_of,
    normalisation_of,
    resolve_name,
    weights_of_file,
)
from dinoneck.backbones.timm import TimmAdapter, names
from dinoneck.images.recipe import IMAGENET_MEAN, IMAGENET_STD

SMALL = "vit_small_patch16_dinov3.lvd1689m"


def test_every_supported_architecture_is_in_the_table() -> None:
    assert set(names()) <= {model.name for model in KNOWN}  # an older timm knows fewer


@pytest.mark.slow
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
    size = known.image_size
    assert adapter.trained_size == (None if size is None else (size, size))
    tags = [name.split(".", 1)[1] for name in timm.list_pretrained(f"{known.name}.*")]
    assert set(tags) <= set(known.hubs)
    for tag in tags:
        name = f"{known.name}.{tag}"
        assert get_pretrained_cfg(name).license == known.license(tag)
        mean, std = normalisation_of(name) or (IMAGENET_MEAN, IMAGENET_STD)
        assert (get_pretrained_cfg(name).mean, get_pretrained_cfg(name).std) == (mean, std)


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
        ("tipsv2_b14", "vit_base_patch14_reg1_tipsv2.webli"),
        ("tipsv2_l14", "vit_large_patch14_reg1_tipsv2.webli"),
        ("tipsv2_so400m14", "vit_so400m_patch14_reg1_tipsv2.webli"),
        ("tipsv2_g14", "vit_giant_patch14_reg1_tipsv2.webli"),
        ("google/tipsv2-b14", "vit_base_patch14_reg1_tipsv2.webli"),
        ("robbyant/lingbot-vision-vit-giant", "vit_giant_patch16_lingbot.robbyant"),
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
    listed = []
    for family in ("dinov2", "dinov3", "lingbot", "tipsv2"):
        listed += timm.list_models(f"*{family}*")
    vits = {name for name in listed if name.startswith("vit_")}
    assert set(names()) == vits
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


LARGE_SATELLITE = "vit_large_patch16_dinov3.sat493m"
TINY_EUPE = "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("dinov2_vits14_pretrain.pth", "vit_small_patch14_dinov2.lvd142m"),
        ("dinov2_vitg14_pretrain.pth", "vit_giant_patch14_dinov2.lvd142m"),
        ("dinov2_vitb14_reg4_pretrain.pth", "vit_base_patch14_reg4_dinov2.lvd142m"),
        ("dinov3_vits16_pretrain_lvd1689m-08c60483.pth", SMALL),
        ("dinov3_vits16plus_pretrain_lvd1689m.pth", "vit_small_plus_patch16_dinov3.lvd1689m"),
        (
            "dinov3_vith16plus_pretrain_lvd1689m-7c1da9a5.pth",
            "vit_huge_plus_patch16_dinov3.lvd1689m",
        ),
        ("dinov3_vit7b16_pretrain_sat493m-a6675841.pth", "vit_7b_patch16_dinov3.sat493m"),
        ("dinov3_vitl16_pretrain_sat493m-eadcf0ff (1).pth", LARGE_SATELLITE),
        ("satellite-eadcf0ff.pt", LARGE_SATELLITE),
        (f"{LARGE_SATELLITE}.safetensors", LARGE_SATELLITE),
        (f"{LARGE_SATELLITE}/model.safetensors", LARGE_SATELLITE),
        ("dinov3-vitl16-pretrain-sat493m/model.safetensors", LARGE_SATELLITE),
        (
            "models--facebook--dinov3-vitl16-pretrain-sat493m/snapshots/0a/model.safetensors",
            LARGE_SATELLITE,
        ),
        (f"models--timm--{TINY_EUPE}/snapshots/0a/model.safetensors", TINY_EUPE),
        ("EUPE-ViT-T.pt", TINY_EUPE),
        ("lbotv_vit_giant.pt", "vit_giant_patch16_lingbot.robbyant"),
        ("lingbot-vision-vit-base/model.pt", "vit_base_patch16_lingbot.robbyant"),
        (
            "models--google--tipsv2-so400m14/snapshots/0a/model.safetensors",
            "vit_so400m_patch14_reg1_tipsv2.webli",
        ),
        ("tips_v2_oss_so14_vision.npz", "vit_so400m_patch14_reg1_tipsv2.webli"),
        ("weights/model.pt", None),
        ("dinov2_vits14_nyu_linear_head.pth", None),
        ("dinov3_vitl16_chmv2_dpt_head-01234567.pth", None),
        ("my_dinov3_vits16_pretrain_lvd1689m.pth", None),
        ("last.ckpt", None),
        ("model.safetensors", None),
    ],
)
def test_a_files_name_says_which_published_weights_it_holds(file: str, name: str | None) -> None:
    assert weights_of_file(Path("weights") / file) == name


def test_every_published_model_is_known_by_a_file() -> None:
    for model in KNOWN:
        for tag in model.hubs:
            full = f"{model.name}.{tag}"
            assert weights_of_file(f"{full}.safetensors") == full


def saved_weights(name: str, file: Path) -> Path:
    """Write seeded weights of a model."""
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(load_backbone(name, pretrained=False).adapter.model.state_dict(), file)
    return file


# a model of the satellite weights' architecture is large: its EUPE sister shows the same
@pytest.mark.slow
@pytest.mark.parametrize(
    "file", ["EUPE-ViT-S.pt", "vit_small_patch16_dinov3_qkvb.eupe_lvd1689m/model.safetensors"]
)
def test_a_files_name_gives_tag_and_licence(file: str, tmp_path: Path) -> None:
    architecture = "vit_small_patch16_dinov3_qkvb"
    source = load_backbone(architecture, pretrained=False)
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    source.save_weights(path) if path.suffix == ".safetensors" else torch.save(
        source.adapter.model.state_dict(), path
    )
    loaded = load_backbone(architecture, checkpoint=path)
    assert loaded.name == f"{architecture}.eupe_lvd1689m"
    assert loaded.record()["license"] == "fair-noncommercial-research-license"


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("vit_small_patch14_dinov2", "apache-2.0"),
        ("vit_small_patch16_dinov3", "dinov3-license"),
        ("vit_tiny_patch16_dinov3_qkvb", "fair-noncommercial-research-license"),  # of EUPE
    ],
)
def test_a_wrapped_model_has_the_licence_of_its_family(name: str, licence: str) -> None:
    """Its weights may be anybody's, and are most often made of published ones, which the licence covers."""
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    model = timm.create_model(name, pretrained=False, num_classes=0, dynamic_img_size=True, depth=1)
    assert wrap_backbone(model).record()["license"] == licence


@pytest.mark.slow
def test_own_weights_under_a_published_name_have_no_licence(tmp_path: Path) -> None:
    file = saved_weights("dinov3_vits16", tmp_path / "best.pth")
    loaded = load_backbone("dinov3_vits16", checkpoint=file)
    assert loaded.record()["license"] is None
    loaded.adapter.license = "MIT"
    assert loaded.record()["license"] == "MIT"


@pytest.mark.slow
@pytest.mark.parametrize("source", ["timm", "transformers"])
def test_a_file_of_satellite_weights_has_their_mean_and_std(source: str, tmp_path: Path) -> None:
    model = load_backbone("dinov3_vitl16", pretrained=False, source=source)  # type: ignore[arg-type]
    file = tmp_path / "dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth"
    torch.save(model.adapter.model.state_dict(), file)
    loaded = load_backbone("dinov3_vitl16", checkpoint=file, source=source)  # type: ignore[arg-type]
    assert loaded.name == LARGE_SATELLITE
    assert loaded.preprocess.mean == (0.430, 0.411, 0.296)
    assert loaded.preprocess.std == (0.213, 0.156, 0.143)
    assert loaded.record()["license"] == "dinov3-license"


def test_a_file_with_the_name_of_another_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth"
    file.write_bytes(b"")
    with pytest.raises(BackboneError, match="vit_large_patch16_dinov3.sat493m.*'dinov3_vits16'"):
        load_backbone("dinov3_vits16", checkpoint=file)


@pytest.mark.slow
def test_a_tag_that_is_asked_for_counts_and_the_files_name_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = "vit_small_patch16_dinov3_qkvb.lvd1689m"
    file = saved_weights(name, tmp_path / "EUPE-ViT-S.pt")
    loaded = load_backbone(name, checkpoint=file)
    assert loaded.name == name
    assert "eupe_lvd1689m" in caplog.text


@pytest.mark.slow
def test_a_changed_name_of_a_satellite_file_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = saved_weights("dinov3_vits16", tmp_path / "finetuned_on_sat493m.pth")
    load_backbone("dinov3_vits16", checkpoint=file)
    assert "sat493m" in caplog.text


def test_the_licence_of_every_published_model_is_that_of_its_tag() -> None:
    assert license_of(TINY_EUPE) == "fair-noncommercial-research-license"
    assert license_of("dinov3_vits16") == "dinov3-license"
    assert license_of("facebook/dinov2-base") == "apache-2.0"
    assert license_of("vit_small_patch16_lingbot") == "apache-2.0"
    assert license_of("tipsv2_g14") == "apache-2.0"
    assert license_of("mine") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["somebody/dinov2-finetuned", "hf-hub:somebody/vit_small_patch16_dinov3.lvd1689m", "a/b"],
)
def test_a_repository_that_is_not_metas_has_no_licence_by_its_name(name: str) -> None:
    assert license_of(name) is None
    backbone = wrap_backbone(load_backbone("facebook/dinov2-small", pretrained=False).adapter.model)
    backbone.name = name
    backbone.adapter.license = None  # as of transformers, which states none
    assert backbone.record()["license"] is None


@pytest.mark.parametrize(
    "name",
    ["timm/vit_small_patch14_dinov2.lvd142m", "hf-hub:timm/vit_small_patch14_dinov2.lvd142m"],
)
def test_timms_repositories_have_the_licence_of_the_weights(name: str) -> None:
    assert license_of(name) == "apache-2.0"
