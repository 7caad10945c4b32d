"""transformers' detectors and segmenters on a dinoneck backbone: weights kept, files exact, gradients sound."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tests import kit
from torch import Tensor, nn

from dinoneck import SimplePyramid, SpatialTuningAdapter, load_backbone
from dinoneck.interop import (
    DinoneckBackbone,
    DinoneckBackboneConfig,
    PyramidEncoder,
    attach_to_detr,
    find_encoder,
    register,
)

D = 32
SMALL: dict[str, Any] = {
    **dict.fromkeys(("encoder_hidden_dim", "d_model", "encoder_ffn_dim", "decoder_ffn_dim"), D),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    "decoder_in_channels": [D] * 3,
    "decoder_layers": 2,
    "num_queries": 12,
    "num_denoising": 4,
    "num_labels": 3,
}
DETECTORS = {
    "d_fine": ("DFine", {"depth_mult": 0.34, "hidden_expansion": 0.5}),
    "rt_detr": ("RTDetr", {}),
    "rt_detr_v2": ("RTDetrV2", {}),
}
SMALL_MASK2FORMER: dict[str, Any] = {
    **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), D),
    **dict.fromkeys(("encoder_feedforward_dim", "dim_feedforward"), D),
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "num_queries": 9,
    "num_labels": 3,
    "train_num_points": 64,
}
SMALL_UPERNET: dict[str, Any] = {"hidden_size": D, "auxiliary_channels": D, "num_labels": 3}


def config_of(neck: str = "spatial_tuning_adapter", **changed: Any) -> DinoneckBackboneConfig:
    arguments = {"backbone": "dinoneck_tiny", "layers": (1, 3, 5), "pretrained": False, "seed": 7}
    own = {
        "spatial_tuning_adapter": {"out_channels": D},
        "simple_pyramid": {"out_channels": D, "scales": [2, 1, 0.5]},
    }
    return DinoneckBackboneConfig(
        **{**arguments, "neck": neck, "neck_config": own.get(neck), **changed}
    )


def classes(kind: str) -> tuple[type, type]:
    stem, _ = DETECTORS[kind]
    return getattr(transformers, f"{stem}Config"), getattr(
        transformers, f"{stem}ForObjectDetection"
    )


def detector(kind: str, config: DinoneckBackboneConfig | None = None, **changed: Any) -> Any:
    config = config or config_of()
    of_config, of_model = classes(kind)
    fixed = {"encoder_in_channels": config.channels, "freeze_backbone_batch_norms": False}
    return of_model(
        of_config(backbone_config=config, **{**SMALL, **DETECTORS[kind][1], **fixed, **changed})
    )


def outputs(model: Any) -> list[Tensor]:
    """What a detector or a segmenter predicts for two images."""
    with torch.no_grad():
        found = model.eval()(torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)))
    names = ("logits", "pred_boxes", "class_queries_logits", "masks_queries_logits")
    return [found[name] for name in names if name in found]


def moved(model: nn.Module) -> nn.Module:
    """Weights and statistics unlike any first values."""
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.mul_(1 + 0.1 * torch.rand_like(value)).add_(0.01)
    return model


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("source", ["timm", "transformers"])
def test_a_new_detector_keeps_backbone_and_neck_as_they_are_made(kind: str, source: Any) -> None:
    """transformers draws the weights of all it knows; here it must not."""
    torch.manual_seed(5)
    encoder = find_encoder(detector(kind, config_of(backbone_source=source)))
    torch.manual_seed(5)
    neck = SpatialTuningAdapter(64, D)
    backbone = load_backbone("dinoneck_tiny", source=source, seed=7, layers=(1, 3, 5))
    for one, other in ((encoder.backbone, backbone), (encoder.neck, neck)):
        assert kit.same(list(one.parameters()), list(other.parameters()))
    assert encoder.backbone.record() == backbone.record()


@pytest.mark.slow
@pytest.mark.parametrize("kind", DETECTORS)
def test_a_saved_detector_is_the_same_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = moved(detector(kind))
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    again = classes(kind)[1].from_pretrained(tmp_path)  # type: ignore[attr-defined]
    assert kit.same(outputs(model), outputs(again))
    assert kit.same(dict(model.state_dict()), dict(again.state_dict()))


def test_a_configuration_survives_json() -> None:
    config = config_of(
        neck_config={"out_channels": D, "detail": None},
        features_at=0.5,
        norm=False,
        out_indices=(0, -1),
    )
    again = DinoneckBackboneConfig.from_dict(json.loads(config.to_json_string()))
    assert again.to_dict() == config.to_dict()
    assert again.recipe == config.recipe
    assert (again.channels, again.out_features, again.out_indices) == (
        [D, D],
        ["level0", "level2"],
        [0, 2],
    )
    assert config_of(out_features=["level1"]).out_indices == [1]
    counted = config_of(layers=[*np.arange(1, 6, 2)], seed=np.int64(3), out_indices=[np.int64(1)])
    assert json.loads(counted.to_json_string()) == json.loads(
        config_of(seed=3, out_indices=[1]).to_json_string()
    )
    register()
    register()
    assert type(transformers.AutoBackbone.from_config(config)) is DinoneckBackbone
    assert type(transformers.AutoModel.from_config(config)) is DinoneckBackbone


@pytest.mark.slow
@pytest.mark.parametrize("kind", DETECTORS)
def test_an_encoder_can_be_put_into_a_detector_that_exists(kind: str) -> None:
    """The same outputs as with the configuration, once the weights are the same."""
    channels = 24
    built = detector(
        kind,
        config_of("simple_pyramid", neck_config={"out_channels": channels, "scales": [2, 1, 0.5]}),
    )
    host = detector(kind)
    backbone = load_backbone("dinoneck_tiny", layers=(1, 3, 5), seed=7)
    encoder = PyramidEncoder(backbone, SimplePyramid(64, channels, scales=(2.0, 1.0, 0.5)))
    decoder = host.model.decoder.state_dict()
    assert attach_to_detr(host, encoder) is host
    assert find_encoder(host) is encoder
    assert kit.same(dict(decoder), dict(host.model.decoder.state_dict()))
    renamed = {
        name.replace("backbone.model.encoder.", "backbone.encoder."): v
        for name, v in built.state_dict().items()
    }
    host.load_state_dict(renamed)
    assert kit.same(outputs(built), outputs(host))


def pyramid_config() -> DinoneckBackboneConfig:
    return config_of("simple_pyramid", layers=None, neck_config={"out_channels": D})


def mask2former() -> tuple[Any, dict[str, Any]]:
    config = transformers.Mask2FormerConfig(backbone_config=pyramid_config(), **SMALL_MASK2FORMER)
    masks = [torch.randint(0, 2, (count, 64, 96)).float() for count in (2, 1)]
    labels = {"mask_labels": masks, "class_labels": [torch.tensor([0, 2]), torch.tensor([1])]}
    return transformers.Mask2FormerForUniversalSegmentation(config), labels


def upernet() -> tuple[Any, dict[str, Any]]:
    config = transformers.UperNetConfig(backbone_config=pyramid_config(), **SMALL_UPERNET)
    return transformers.UperNetForSemanticSegmentation(config), {
        "labels": torch.randint(0, 3, (2, 64, 96))
    }


@pytest.mark.slow
@pytest.mark.parametrize("build", [mask2former, upernet])
def test_segmenters_train_and_reload_with_equal_weights_and_outputs(
    build: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, labels = build()
    encoder = find_encoder(model)
    published = load_backbone("dinoneck_tiny", seed=7)
    # the segmenter's own initialisation must not touch it
    assert kit.same(list(encoder.backbone.parameters()), list(published.parameters()))
    loss = model.train()(torch.randn(2, 3, 64, 96), **labels).loss
    assert torch.isfinite(loss)
    loss.backward()
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in encoder.neck.parameters())

    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert kit.same(dict(model.state_dict()), dict(again.state_dict()))
    assert kit.same(outputs(model), outputs(again), 1e-6)


@pytest.mark.parametrize("source", ["timm", "transformers"])
@pytest.mark.parametrize("layers", [None, (1, 3, 5)])
def test_hidden_states_are_those_of_the_dino_model(source: Any, layers: Any) -> None:
    neck, own = ("vit_fpn", {"fpn_dim": D}) if layers else ("simple_pyramid", {"out_channels": D})
    config = config_of(neck, backbone_source=source, layers=layers, neck_config=own)
    model = transformers.AutoBackbone.from_config(config).eval()
    images = torch.randn(2, 3, 64, 96)
    output = model(images, output_hidden_states=True)

    # the embeddings, then the output of every block without the final norm: CLS, 2 registers, 4 x 6
    # patches
    every = load_backbone("dinoneck_tiny", source=source, seed=7, layers=range(6), norm=False)(
        images
    ).sequence
    assert kit.same(output.hidden_states[1:], every)
    if source == "transformers":
        reference = model.backbone.adapter.model(images, output_hidden_states=True).hidden_states
        assert torch.equal(output.hidden_states[0], reference[0])
    assert kit.same(output.feature_maps, model(images).feature_maps)


def test_frozen_batch_norms_of_an_untrained_neck_are_pointed_out_once() -> None:
    """A detector freezes those of its backbone, and the neck is a part of it: never trained."""
    model = detector("rt_detr", freeze_backbone_batch_norms=True)

    with pytest.warns(UserWarning, match="freeze_backbone_batch_norms=False"):
        outputs(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs(model)


def test_a_neck_without_batch_norms_is_not_pointed_out() -> None:
    config = config_of("simple_pyramid")
    model = detector("rt_detr", config, freeze_backbone_batch_norms=True)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs(model)
