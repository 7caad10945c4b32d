"""Weights of DEIMv2: the same maps as transformers' module, under either naming, whole or in part; what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from dinoneck import CheckpointError, SpatialTuningAdapter, Tokens, split_deimv2, wrap_backbone

transformers = pytest.importorskip("transformers")
from transformers.models.deimv2.modeling_deimv2 import Deimv2DINOv3ConvEncoder  # noqa: E402

WIDTH, OUT, DETAIL = 32, 24, 4
SIZES = [(64, 96), (128, 64), (160, 224)]
REPOSITORY = (
    (r"^spatial_tuning_adapter\.stem_conv\.conv", "sta.stem.0"),
    (r"^spatial_tuning_adapter\.stem_conv\.norm", "sta.stem.1"),
    (r"^spatial_tuning_adapter\.conv2\.conv", "sta.conv2.0"),
    (r"^spatial_tuning_adapter\.conv2\.norm", "sta.conv2.1"),
    (r"^spatial_tuning_adapter\.conv([34])\.conv", r"sta.conv\1.1"),
    (r"^spatial_tuning_adapter\.conv([34])\.norm", r"sta.conv\1.2"),
    (r"^fusion_proj\.(\d)\.conv", r"convs.\1"),
    (r"^fusion_proj\.(\d)\.norm", r"norms.\1"),
    (r"^backbone\.", "dinov3."),
)


def settings(**vit: Any) -> tuple[dict[str, Any], Any]:
    own = {
        "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
        "patch_size": 16, "image_size": 64, "num_register_tokens": 4, **vit,
    }  # fmt: skip
    config = transformers.Deimv2Config(
        backbone_config={"model_type": "dinov3_vit", "out_indices": [1, 2, 3], **own},
        encoder_hidden_dim=OUT, d_model=OUT, encoder_in_channels=[OUT] * 3, decoder_in_channels=[OUT] * 3,
        encoder_attention_heads=4, decoder_attention_heads=4, decoder_layers=2, num_queries=10, encoder_ffn_dim=32,
        decoder_ffn_dim=32, spatial_tuning_adapter_inplanes=DETAIL,
    )  # fmt: skip
    return own, config


def awake(model: nn.Module, seed: int = 0) -> Any:
    """Every weight and statistic drawn, so that nothing is left at a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator)
                positive = "running_var" in name or ("norm" in name and name.endswith("weight"))
                value.copy_(noise.abs() * 0.3 + 0.5 if positive else noise * 0.2)
    return model.eval()


def encoder(**vit: Any) -> Any:
    return awake(Deimv2DINOv3ConvEncoder(settings(**vit)[1]))


def random_tokens(rows: int, cols: int, layers: int = 3, **how: Any) -> Tokens:
    torch.manual_seed(rows)
    patches = [torch.randn(2, rows * cols, WIDTH, **how) for _ in range(layers)]
    return Tokens.from_patches(patches, grid=(rows, cols), patch_size=16)


class Given(nn.Module):
    """Stands in for the ViT: gives maps that are known."""

    def __init__(self, maps: tuple[Tensor, ...], config: Any) -> None:
        super().__init__()
        self.maps, self.config = maps, config

    def forward(self, images: Tensor, **_: Any) -> Any:
        return transformers.modeling_outputs.BackboneOutput(feature_maps=self.maps)


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_the_adapter_gives_what_transformers_gives(size: tuple[int, int]) -> None:
    theirs = encoder()
    ours = SpatialTuningAdapter.from_deimv2(theirs)
    assert not ours.training
    tokens, images = random_tokens(size[0] // 16, size[1] // 16), torch.randn(2, 3, *size)
    theirs.backbone = Given(tokens.maps(), theirs.backbone.config)
    for a, b in zip(theirs(images), ours(tokens, images).maps, strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["encoder", "whole model", "state dict", ".safetensors", ".pth"])
def test_backbone_and_adapter_of_a_detector_give_its_maps(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own, config = settings()
    whole = awake(transformers.Deimv2ForObjectDetection(config))
    theirs = whole.model.conv_encoder
    source: Any = {"encoder": theirs, "whole model": whole, "state dict": whole.state_dict()}.get(form)
    if form.startswith("."):
        source = tmp_path / f"detector{form}"
        tensors = {key: value.clone() for key, value in whole.state_dict().items()}
        if form == ".pth":
            torch.save({"model": tensors}, source)
        else:
            safetensors.torch.save_file(tensors, source)
    state, neck = split_deimv2(source)
    vit = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**own))
    vit.load_state_dict(state)
    backbone = wrap_backbone(vit, layers=[0, 1, 2])
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            pairs = zip(theirs(images), neck(backbone(images), images).maps, strict=True)
            for a, b in pairs:
                assert torch.allclose(a, b, rtol=0, atol=1e-5)


def test_names_of_the_repository_under_any_prefix() -> None:
    theirs = encoder()
    state = {}
    for key, value in theirs.state_dict().items():
        for pattern, replacement in REPOSITORY:
            key = re.sub(pattern, replacement, key)
        state[f"module.backbone.{key}"] = value
    state["decoder.norms.0.weight"] = torch.zeros(3)
    backbone, ours = split_deimv2(state)
    for a, b in zip(
        ours.state_dict().values(), SpatialTuningAdapter.from_deimv2(theirs).state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    assert set(backbone) == set(theirs.backbone.state_dict())
    adapter = {key.removeprefix("module.backbone."): value for key, value in state.items() if ".dinov3." not in key}
    backbone, ours = split_deimv2({key: value for key, value in adapter.items() if not key.startswith("decoder")})
    assert backbone == {}
    assert ours.config["detail"] == "deimv2"
    assert (ours.embed_dim, ours.out_channels, ours.config["detail_dim"]) == (WIDTH, OUT, DETAIL)


def changed(**change: Any) -> dict[str, Tensor]:
    return {**encoder().state_dict(), **{key.replace("__", "."): value for key, value in change.items()}}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.zeros(3)}, "holds no adapter of DEIMv2"),
        (
            {k: v for k, v in changed().items() if k != "fusion_proj.1.norm.running_var"},
            r"lacks fusion_proj\.1\.norm\.running_var",
        ),
        (changed(fusion_proj__3__conv__weight=torch.zeros(1)), r"holds fusion_proj\.3\.conv\.weight, which"),
        (changed(fusion_proj__0__conv__weight=torch.zeros(OUT, 2, 1, 1)), r"\(24, 2, 1, 1\).* expected"),
        (changed(fusion_proj__2__conv__weight=torch.zeros(OUT, 9, 1, 1)), r"project\.2\.weight are \(24, 9\)"),
        (changed(fusion_proj__0__norm__weight=torch.full((OUT,), torch.nan)), r"norms\.0\.weight are not all finite"),
        (changed(fusion_proj__0__norm__weight=torch.ones(OUT).double()), r"norms\.0\.weight are torch\.float64"),
        (changed(fusion_proj__0__conv__weight=5), r"no tensors, or none with values, for fusion_proj\.0\.conv\.weight"),
        (
            {**changed(), **{f"ema.{k}": v for k, v in changed().items()}},
            "holds 2 adapters, under '', 'ema\\.'; pass one",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        split_deimv2(state)


def test_files_and_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no weights file"):
        SpatialTuningAdapter.from_deimv2(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        SpatialTuningAdapter.from_deimv2(tmp_path / "text.pth")
    theirs = encoder()
    theirs.fusion_proj[1].norm.eps = 1e-3
    with pytest.raises(CheckpointError, match=r"eps of fusion_proj\.1\.norm is 0\.001"):
        split_deimv2(theirs)
    with pytest.raises(CheckpointError, match="holds no adapter"):
        split_deimv2(nn.Linear(2, 2))
