"""LingBot-Vision and TIPSv2: names, positions, files of their publishers, and the contracts of every backbone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file
from tests.unit.backbones.official_objects import Dinov2Like
from tests.unit.backbones.test_weights import official_dinov2, official_dinov3
from torch import Tensor, nn

from dinoneck import Backbone, BackboneError, load_backbone, wrap_backbone
from dinoneck.backbones import timm as timm_adapter
from dinoneck.backbones import transformers as transformers_adapter
from dinoneck.backbones import weights
from dinoneck.backbones.adapter import tipsv2_positions
from dinoneck.backbones.known import (
    KNOWN,
    NEEDED_TIMM,
    NEEDED_TRANSFORMERS,
    Known,
    position_recipe,
)
from dinoneck.backbones.load import fill_seeded

if Version(timm.__version__) < max(map(Version, NEEDED_TIMM.values())):
    pytest.skip("this timm has not all of these models", allow_module_level=True)
if Version(transformers.__version__) < Version(NEEDED_TRANSFORMERS["tipsv2"]):
    pytest.skip("this transformers has no TIPSv2", allow_module_level=True)

LINGBOT = [known for known in KNOWN if "lingbot" in known.name]
TIPSV2 = [known for known in KNOWN if "tipsv2" in known.name]
OPEN = [*LINGBOT, *TIPSV2]
IS_GIANT = "giant"
QUICK_WIDTH = 768
GRIDS = ((5, 7), (9, 3), (32, 32))
TRAINED_GRID = (32, 32)  # of TIPSv2
BOUND = 1e-5  # between libraries, in float32; the largest values are about 4


def name_of(known: Known) -> str:
    return known.name


def in_tier(models: list[Known]) -> list[Any]:
    """Parameters of a test: the wide models are for the slow tier."""
    parameters = []
    for known in models:
        marks = [] if known.width <= QUICK_WIDTH else [pytest.mark.slow]
        parameters.append(pytest.param(known, id=known.name, marks=marks))
    return parameters


def shallow(known: Known, seed: int = 1) -> nn.Module:
    """A timm model in its own width, with its first blocks."""
    depth = 1 if IS_GIANT in known.name else 2
    model = timm_adapter.build(known.name, depth=depth)
    fill_seeded(model, seed)
    return model.eval()


def both(known: Known, **options: Any) -> tuple[Backbone, Backbone]:
    """The same weights in both libraries."""
    model = shallow(known)
    other = transformers_adapter.from_timm(model)
    return wrap_backbone(model, **options), wrap_backbone(other, **options)


def images_of(grid: tuple[int, int], patch: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(1, 3, grid[0] * patch, grid[1] * patch, generator=generator)


def gap(one: Backbone, other: Backbone, grid: tuple[int, int]) -> float:
    images = images_of(grid, one.adapter.patch_size[0])
    first = one(images).sequence[0]
    second = other(images).sequence[0]
    return (first - second).abs().max().item()


# --- libraries and positions


@pytest.mark.slow
@pytest.mark.parametrize("known", in_tier(OPEN))
def test_two_libraries_give_the_same_tokens_at_three_sizes(known: Known) -> None:
    one, other = both(known, pos_embed="official")
    assert one.adapter.num_registers == other.adapter.num_registers == known.registers
    for grid in GRIDS:
        assert gap(one, other, grid) <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("known", TIPSV2[:1], ids=name_of)
def test_timms_own_positions_are_others_than_the_publishers(known: Known) -> None:
    """Bicubic and bilinear: they differ wherever positions are resampled, and nowhere else."""
    model = shallow(known)
    native = wrap_backbone(model)
    official = wrap_backbone(model, pos_embed="official")
    assert gap(native, official, TRAINED_GRID) == 0.0
    assert gap(native, official, (5, 7)) > 1e-3
    images = images_of((5, 7), known.patch)
    assert native(images).source != official(images).source


@pytest.mark.parametrize("known", LINGBOT[:1], ids=name_of)
def test_rotary_positions_have_one_recipe(known: Known) -> None:
    model = shallow(known)
    official = wrap_backbone(model, pos_embed="official")
    assert gap(wrap_backbone(model), official, (5, 7)) == 0.0


def test_a_record_says_which_recipe_tipsv2_has() -> None:
    record = {"name": "vit_base_patch14_reg1_tipsv2.webli", "family": "tipsv2", "num_registers": 1}
    of_timm = record | {"source": "timm", "pos_embed": "native"}
    official = record | {"source": "timm", "pos_embed": "official"}
    of_transformers = record | {"source": "transformers", "pos_embed": "native"}
    assert position_recipe(official) == position_recipe(of_transformers) == "'official'"
    assert position_recipe(of_timm) == "'native' of timm"
    # of a version that did not know the family
    assert position_recipe(of_timm | {"family": "other"}) == "'native' of timm"


@pytest.mark.parametrize("length", [3, 5, 9])
def test_tipsv2s_positions_are_the_formula(length: int) -> None:
    """A triangle as wide as a cell of the coarser grid, written out for one axis in float64."""
    side = 5
    line = torch.randn(side, dtype=torch.float64)
    embedding = line.repeat_interleave(side).float()[None, :, None]
    resampled = tipsv2_positions(embedding, (length, side), (side, side))
    rows = resampled[0, :, 0].reshape(length, side)[:, 2]
    step = side / length
    width = max(step, 1.0)
    for i in range(length):
        center = (i + 0.5) * step
        shares = [max(0.0, 1.0 - abs(k + 0.5 - center) / width) for k in range(side)]
        expected = sum(share * value for share, value in zip(shares, line.tolist(), strict=True))
        assert rows[i].item() == pytest.approx(expected / math.fsum(shares), abs=1e-6)


def test_tipsv2s_positions_are_kept_at_the_trained_size() -> None:
    embedding = torch.randn(1, 12, 2)
    assert tipsv2_positions(embedding, (3, 4), (3, 4)) is embedding


# --- records


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_small_patch16_lingbot", "robbyant/lingbot-vision-vit-small"])
def test_lingbot_is_loaded_by_name(name: str) -> None:
    backbone = load_backbone(name, pretrained=False)
    record = backbone.record()
    assert (record["family"], record["num_registers"], record["patch_size"]) == (
        "lingbot",
        4,
        [16, 16],
    )
    assert record["license"] is None  # of random weights
    assert backbone(torch.zeros(1, 3, 32, 48)).grid == (2, 3)


def test_a_wrapped_object_of_timm_has_licence_mean_and_std() -> None:
    backbone = wrap_backbone(shallow(TIPSV2[0]))
    record = backbone.record()
    assert record["name"] == "vit_base_patch14_reg1_tipsv2.webli"
    assert (record["family"], record["license"]) == ("tipsv2", "apache-2.0")
    assert (record["mean"], record["std"]) == ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    pixels = torch.full((3, 14, 14), 51, dtype=torch.uint8)
    assert backbone.preprocess(pixels).unique().tolist() == pytest.approx([51 / 255])


@pytest.mark.slow
def test_the_name_decides_between_families_of_one_class() -> None:
    backbone = load_backbone("vit_small_patch16_lingbot", pretrained=False, source="transformers")
    assert type(backbone.adapter.model).__name__ == "DINOv3ViTModel"
    assert backbone.record()["family"] == "lingbot"


@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "transformers"])
@pytest.mark.parametrize("known", [LINGBOT[0], TIPSV2[0]], ids=name_of)
def test_lora_starts_at_nothing_and_merges(known: Known, library: str) -> None:
    backbone = both(known)[0 if library == "timm" else 1]
    images = images_of((2, 3), known.patch)
    before = backbone(images).sequence[0]
    backbone.add_lora(2, targets="all")
    # products differ in the last bit with the place of the pixels in memory
    assert torch.allclose(backbone(images).sequence[0].detach(), before, atol=1e-5)
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    trained = backbone(images).sequence[0].detach()
    assert not torch.allclose(trained, before, atol=1e-2)
    backbone.merge_lora()
    assert torch.allclose(backbone(images).sequence[0], trained, atol=BOUND)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "transformers"])
@pytest.mark.parametrize("known", [LINGBOT[0], TIPSV2[0]], ids=name_of)
def test_everything_that_is_trainable_gets_a_gradient(known: Known, library: str) -> None:
    backbone = both(known)[0 if library == "timm" else 1]
    backbone.unfreeze()
    backbone(images_of((2, 3), known.patch)).sequence[0].square().sum().backward()
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name


# --- files of the publishers


def tips_file(known: Known) -> dict[str, Tensor]:
    """The state dict of the publisher's repository on the Hub, with a tensor of its model of texts."""
    state = official_dinov2(wrap_backbone(shallow(known, seed=7)), chunks=False)
    names = {}
    for name in state:
        renamed = name
        if IS_GIANT in known.name:
            renamed = name.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")
        names[name] = f"vision_encoder.{renamed}"
    file = {names[name]: value.contiguous() for name, value in state.items()}
    return file | {"text_encoder.ln_final.weight": torch.zeros(3), "temperature": torch.ones(1)}


@pytest.mark.slow
@pytest.mark.parametrize("known", in_tier([TIPSV2[0], TIPSV2[2], TIPSV2[3]]))
def test_tipsv2_is_read_from_its_publishers_file(known: Known, tmp_path: Path) -> None:
    save_file(tips_file(known), tmp_path / "w.safetensors")
    model = shallow(known)
    weights.load_file(model, tmp_path / "w.safetensors")
    # one sum of CLS and its position is rounded
    difference = gap(wrap_backbone(model), wrap_backbone(shallow(known, seed=7)), (5, 7))
    assert difference <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("known", in_tier([TIPSV2[0], TIPSV2[3]]))
def test_tipsv2_is_read_as_transformers_saves_it(known: Known, tmp_path: Path) -> None:
    source = shallow(known, seed=7)
    transformers_adapter.from_timm(source).save_pretrained(tmp_path)
    model = shallow(known)
    weights.load_file(model, tmp_path / "model.safetensors")
    assert gap(wrap_backbone(model), wrap_backbone(source), (5, 7)) <= BOUND


@pytest.mark.slow
def test_tipsv2_is_read_from_the_arrays_of_the_tips_repository(tmp_path: Path) -> None:
    known = TIPSV2[0]
    source = wrap_backbone(shallow(known, seed=7))
    state = official_dinov2(source, chunks=False)
    file = tmp_path / "tips_v2_oss_b14_vision.npz"
    np.savez(file, **{name: value.numpy() for name, value in state.items()})
    model = shallow(known)
    weights.load_file(model, file)
    assert gap(wrap_backbone(model), source, (5, 7)) <= BOUND


def test_arrays_of_objects_and_compressed_ones_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", cls_token=np.array([{"a": 1}], dtype=object))
    with pytest.raises(BackboneError, match="cannot be read as weights.*allow_pickle=False"):
        load_backbone("tipsv2_b14", checkpoint=tmp_path / "objects.npz")
    np.savez_compressed(tmp_path / "small.npz", cls_token=np.zeros(100_000))
    with pytest.raises(BackboneError, match="compressed zip file"):
        load_backbone("tipsv2_b14", checkpoint=tmp_path / "small.npz")


def change_missing(state: dict[str, Tensor], name: str) -> None:
    del state[name]


def change_extra(state: dict[str, Tensor], name: str) -> None:
    state[name + "_2"] = torch.zeros(3)


def change_shape(state: dict[str, Tensor], name: str) -> None:
    state[name] = torch.zeros(3)


CHANGES = [
    pytest.param(change_missing, "missing", id="missing"),
    pytest.param(change_extra, "without a place", id="extra"),
    pytest.param(change_shape, r"\(3,\), expected", id="reshaped"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_changed_tensor_of_tipsv2_is_named(
    change: Callable[[dict[str, Tensor], str], None], message: str, tmp_path: Path
) -> None:
    state = tips_file(TIPSV2[0])
    change(state, "vision_encoder.blocks.1.norm2.weight")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=message) as raised:
        weights.load_file(shallow(TIPSV2[0]), tmp_path / "w.safetensors")
    assert "blocks.1.norm2.weight" in str(raised.value)


@pytest.mark.parametrize("known", in_tier([LINGBOT[0], LINGBOT[3]]))
def test_lingbot_is_read_from_its_publishers_file(known: Known, tmp_path: Path) -> None:
    source = shallow(known, seed=7)
    state = official_dinov3(wrap_backbone(source))
    state["rope_embed.periods"] = source.rope.periods.clone()  # in float32, not rounded
    torch.save({"backbone": state}, tmp_path / "model.pt")
    model = shallow(known)
    weights.load_file(model, tmp_path / "model.pt")
    assert gap(wrap_backbone(model), wrap_backbone(source), (5, 7)) == 0.0


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_changed_tensor_of_lingbot_is_named(
    change: Callable[[dict[str, Tensor], str], None], message: str, tmp_path: Path
) -> None:
    state = official_dinov3(wrap_backbone(shallow(LINGBOT[0])))
    change(state, "blocks.1.norm2.weight")
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(BackboneError, match=message) as raised:
        weights.load_file(shallow(LINGBOT[0]), tmp_path / "model.pt")
    assert "blocks.1.norm2.weight" in str(raised.value)


def test_missing_biases_of_lingbot_are_not_explained_by_dinov3s_two_architectures(
    tmp_path: Path,
) -> None:
    state = shallow(LINGBOT[0]).state_dict()
    del state["blocks.0.attn.q_bias"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="q_bias") as raised:
        weights.load_file(shallow(LINGBOT[0]), tmp_path / "w.pth")
    assert "qkvb" not in str(raised.value)


@pytest.mark.slow
def test_the_folder_of_lingbots_file_gives_its_licence(tmp_path: Path) -> None:
    source = load_backbone("vit_small_patch16_lingbot", pretrained=False, seed=3)
    folder = tmp_path / "lingbot-vision-vit-small"
    folder.mkdir()
    torch.save(official_dinov3(source), folder / "model.pt")
    loaded = load_backbone("vit_small_patch16_lingbot", checkpoint=folder / "model.pt")
    assert loaded.record()["license"] == "apache-2.0"
    with pytest.raises(BackboneError, match="load it as 'vit_small_patch16_lingbot.robbyant'"):
        load_backbone("dinov3_vits16", checkpoint=folder / "model.pt")


@pytest.mark.slow
def test_a_file_of_a_shape_of_two_families_is_named_as_both(tmp_path: Path) -> None:
    state = shallow(LINGBOT[0]).state_dict()
    for block in range(2, 12):
        for name in list(state):
            if name.startswith("blocks.1."):
                state[name.replace("blocks.1.", f"blocks.{block}.")] = state[name].clone()
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BackboneError) as raised:
        load_backbone("vit_base_patch14_reg1_tipsv2", checkpoint=tmp_path / "w.pth")
    assert "patch 14, 1 register (TIPSv2)" in str(raised.value)
    assert "'dinov3_vits16' or 'vit_small_patch16_lingbot'" in str(raised.value)


# --- folders and objects of transformers


VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "initializer_range": 0.2,
    "layerscale_value": 0.3,
}
TEXTS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
}


def with_texts() -> transformers.Tipsv2Model:
    torch.manual_seed(0)
    config = transformers.Tipsv2Config(vision_config=VISION, text_config=TEXTS)
    return transformers.Tipsv2Model(config).eval()


def test_a_folder_with_a_model_of_texts_gives_the_tokens_of_its_vit(tmp_path: Path) -> None:
    model = with_texts()
    model.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), source="transformers")
    images = images_of((5, 7), 14)
    with torch.no_grad():
        expected = model.vision_model(images).last_hidden_state
    assert torch.equal(backbone(images).sequence[0], expected)
    assert backbone.record()["family"] == "tipsv2"
    assert (backbone.preprocess.mean, backbone.preprocess.std) == ((0.0,) * 3, (1.0,) * 3)


def test_a_folder_that_does_not_normalise_has_mean_0_and_std_1(tmp_path: Path) -> None:
    with_texts().vision_model.save_pretrained(tmp_path)
    transformers.Tipsv2ImageProcessor().save_pretrained(tmp_path)
    assert "image_mean" not in json.loads((tmp_path / "preprocessor_config.json").read_text())
    backbone = load_backbone(str(tmp_path), source="transformers")
    assert (backbone.preprocess.mean, backbone.preprocess.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(change_missing, "missing keys", id="missing"),
        pytest.param(change_extra, "unexpected keys", id="extra"),
        pytest.param(change_shape, "mismatched keys", id="reshaped"),
    ],
)
def test_a_changed_tensor_in_a_folder_is_named(
    change: Callable[[dict[str, Tensor], str], None], message: str, tmp_path: Path
) -> None:
    with_texts().vision_model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state, "blocks.1.norm2.weight")
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=f"{message}.*layer.1.norm2.weight"):
        load_backbone(str(tmp_path), source="transformers")


@pytest.mark.parametrize("reshaped", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_a_backbone_form_gives_its_feature_maps(reshaped: bool, norm: bool) -> None:
    config = transformers.Tipsv2VisionConfig(
        **VISION, out_indices=[1, 3], apply_layernorm=norm, reshape_hidden_states=reshaped
    )
    model = transformers.Tipsv2VisionBackbone(config).eval()
    images = images_of((5, 7), 14)
    tokens = wrap_backbone(model, norm=norm)(images)
    assert tokens.layers == (0, 2)
    with torch.no_grad():
        expected = model(images).feature_maps
    actual = tokens.maps() if reshaped else tokens.sequence
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def test_a_model_with_texts_is_refused_with_the_way() -> None:
    with pytest.raises(BackboneError, match="Tipsv2VisionModel; if it holds one, pass that"):
        wrap_backbone(with_texts())


class TipsLike(Dinov2Like):
    """The interface of the tips repository: two CLS tokens in place of one and registers."""

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        tokens = self.prepare_tokens_with_masks(images)
        return {"x_norm_1st_clstoken": tokens[:, :1], "x_norm_2nd_clstoken": tokens[:, 1:2]}


def test_an_object_of_the_tips_repository_is_refused_with_the_way() -> None:
    with pytest.raises(BackboneError, match=r"mean 0 and std 1.*load_backbone\('tipsv2_b14'"):
        wrap_backbone(TipsLike(registers=1))


# --- versions of the libraries


@pytest.mark.parametrize(
    ("name", "version"), [("vit_base_patch16_lingbot", "1.0.29"), ("tipsv2_b14", "1.0.28")]
)
def test_an_older_timm_is_named(name: str, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_adapter, "names", lambda: ["vit_small_patch14_dinov2"])
    monkeypatch.setattr(timm_adapter.timm, "__version__", "1.0.24")
    with pytest.raises(BackboneError, match=f"timm 1.0.24 has no .*install timm {version}"):
        load_backbone(name, pretrained=False)


class OlderTransformers:
    __version__ = "5.9.0"


def test_an_older_transformers_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_texts().save_pretrained(tmp_path)
    monkeypatch.setattr(transformers_adapter, "import_transformers", OlderTransformers)
    message = "transformers 5.9.0 has no Tipsv2VisionModel; install transformers 5.14.0"
    with pytest.raises(BackboneError, match=message):
        load_backbone(str(tmp_path), source="transformers")
    with pytest.raises(BackboneError, match=message):
        transformers_adapter.from_timm(shallow(TIPSV2[0]))


def test_transformers_has_no_published_weights_of_lingbot() -> None:
    with pytest.raises(BackboneError, match="use source='timm'"):
        load_backbone("vit_small_patch16_lingbot", source="transformers")
