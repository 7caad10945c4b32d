"""transformers' contract for backbones, and the segmenters that build on it: Mask2Former and UperNet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from dinoneck import load_backbone
from dinoneck.interop import DinoneckBackboneConfig, find_encoder

D = 32
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


def config_of(**changed: Any) -> DinoneckBackboneConfig:
    arguments: dict[str, Any] = {"layers": None, "neck": "simple_pyramid", "neck_config": {"out_channels": D}}
    return DinoneckBackboneConfig("dinoneck_tiny", **{**arguments, "pretrained": False, "seed": 7, **changed})


def mask2former() -> tuple[Any, dict[str, Any]]:
    config = transformers.Mask2FormerConfig(backbone_config=config_of(), **SMALL_MASK2FORMER)
    masks = [torch.randint(0, 2, (count, 64, 96)).float() for count in (2, 1)]
    labels = {"mask_labels": masks, "class_labels": [torch.tensor([0, 2]), torch.tensor([1])]}
    return transformers.Mask2FormerForUniversalSegmentation(config), labels


def upernet() -> tuple[Any, dict[str, Any]]:
    config = transformers.UperNetConfig(backbone_config=config_of(), **SMALL_UPERNET)
    return transformers.UperNetForSemanticSegmentation(config), {"labels": torch.randint(0, 3, (2, 64, 96))}


def prediction(model: Any, images: Tensor) -> Tensor:
    with torch.no_grad():
        output = model.eval()(images)
    logits: Tensor = output.masks_queries_logits if hasattr(output, "masks_queries_logits") else output.logits
    return logits


@pytest.mark.parametrize("build", [mask2former, upernet])
def test_segmenters_train_and_reload_with_equal_outputs(build: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, labels = build()
    encoder = find_encoder(model)
    published = load_backbone("dinoneck_tiny", seed=7)
    for (name, own), value in zip(encoder.backbone.named_parameters(), published.parameters(), strict=True):
        assert torch.equal(own, value), name  # the segmenter's own initialisation must not touch it
    loss = model.train()(torch.randn(2, 3, 64, 96), **labels).loss
    assert torch.isfinite(loss)
    loss.backward()
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in encoder.neck.parameters())

    model.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 64, 96)
    assert torch.equal(prediction(model, images), prediction(type(model).from_pretrained(tmp_path), images))


@pytest.mark.parametrize("source", ["timm", "transformers"])
@pytest.mark.parametrize("layers", [None, (1, 3, 5)])
def test_hidden_states_are_those_of_the_dino_model(source: Any, layers: Any) -> None:
    neck = {"neck": "vit_fpn", "neck_config": {"fpn_dim": D}} if layers else {}
    config = config_of(backbone_source=source, layers=layers, **neck)
    assert (config.hidden_size, config.num_hidden_layers) == (64, 6)
    model = transformers.AutoBackbone.from_config(config).eval()
    images = torch.randn(2, 3, 64, 96)
    output = model(images, output_hidden_states=True)

    # the embeddings, then the output of every block without the final norm: CLS, 2 registers, 4 x 6 patches
    assert len(output.hidden_states) == 6 + 1
    assert {tuple(state.shape) for state in output.hidden_states} == {(2, 1 + 2 + 24, 64)}
    every = load_backbone("dinoneck_tiny", source=source, seed=7, layers=range(6), norm=False)(images).sequence
    for state, block in zip(output.hidden_states[1:], every, strict=True):
        assert torch.equal(state, block)
    if source == "transformers":
        reference = model.backbone.adapter.model(images, output_hidden_states=True).hidden_states
        assert torch.equal(output.hidden_states[0], reference[0])
    for level, plain in zip(output.feature_maps, model(images).feature_maps, strict=True):
        assert torch.equal(level, plain)
