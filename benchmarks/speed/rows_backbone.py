"""Rows of whole frozen backbones: maps of some blocks, next to the usual calls of timm and transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.rows import Form, Row, Setting, Variant, nchw, nhwc
from dinoneck import Backbone, load_backbone

BACKBONES = {384: "vit_small_patch16_dinov3", 64: "dinoneck_tiny"}  # by width
# On a GPU dinoneck computes the rotary positions there, and timm on the host. The coordinates of
# patches are float32 in both, also in a model of float64, and devices divide differently in the
# last bit.
FLOAT32_COORDINATES = 1e-7


def frozen(setting: Setting, source: str, early: bool = False) -> Backbone:
    """Return the backbone with evenly spaced blocks, or with the first two of four.

    The last block is among the evenly spaced ones. The widths that ``setting`` may have are those
    of a ViT-S and, for quick checks, of the built-in tiny model.
    """
    name = BACKBONES[setting.channels]
    backbone = load_backbone(name, source=source, pretrained=False, dtype=setting.dtype)
    depth = backbone.depth
    four = [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
    if early:
        layers = four[:2]
    elif setting.layers == 1:
        layers = four[3:]
    elif setting.layers == 4:
        layers = four
    else:
        layers = list(range(depth))
    return backbone.with_layers(layers).to(setting.device)


def without_autograd(run: Callable[[], Sequence[Tensor]]) -> Callable[[], Sequence[Tensor]]:
    """Return a call without autograd, whatever the mode of its caller."""
    return torch.no_grad()(run)


def timm(setting: Setting, early: bool = False) -> dict[str, Variant]:
    """``forward_intermediates`` with its defaults, with views, and stopped at the last block needed.

    By default it runs all blocks and returns NCHW copies.
    """
    backbone = frozen(setting, "timm", early)
    model: Any = backbone.adapter.model
    layers = list(backbone.layers)
    images = setting.images()

    def with_defaults() -> Sequence[Tensor]:
        _, maps = model.forward_intermediates(images, indices=layers, norm=True)
        return list(maps)

    def with_views(stop_early: bool) -> Sequence[Tensor]:
        patches = model.forward_intermediates(
            images,
            indices=layers,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
            stop_early=stop_early,
        )
        return [nhwc(layer, setting.grid) for layer in patches]

    def variant(form: Form, call: Callable[[], Sequence[Tensor]], capturable: bool) -> Variant:
        return Variant(form, without_autograd(call), backbone, [images], capturable=capturable)

    # timm computes positions on the host in every forward, so that no graph captures it
    return {
        "timm, plain": variant("published", with_defaults, capturable=False),
        "timm, layout fixed": variant("fixed", partial(with_views, False), capturable=False),
        "timm, layout fixed, stop_early": variant(
            "fixed", partial(with_views, True), capturable=False
        ),
        "dinoneck": variant("ours", lambda: backbone(images).maps(), capturable=True),
    }


def transformers(setting: Setting, early: bool = False) -> dict[str, Variant]:
    """``output_hidden_states=True``, then the norm without prefix tokens, as NCHW copies or views.

    It cannot stop early.
    """
    backbone = frozen(setting, "transformers", early)
    model: Any = backbone.adapter.model
    norm = backbone.adapter.norms[0]
    prefix = backbone.num_prefix_tokens
    images = setting.images()

    def from_hidden_states(to_map: Callable[..., Tensor]) -> Sequence[Tensor]:
        hidden_states = model(images, output_hidden_states=True).hidden_states
        maps = []
        for layer in backbone.layers:
            # the first hidden state is the embedding
            patches = norm(hidden_states[layer + 1])[:, prefix:]
            maps.append(to_map(patches, setting.grid))
        return maps

    def variant(form: Form, call: Callable[[], Sequence[Tensor]]) -> Variant:
        return Variant(form, without_autograd(call), backbone, [images], capturable=False)

    return {
        "transformers, plain": variant("published", partial(from_hidden_states, nchw)),
        "transformers, layout fixed": variant("fixed", partial(from_hidden_states, nhwc)),
        "dinoneck": variant("ours", lambda: backbone(images).maps()),
    }


def row(build: Callable[..., dict[str, Variant]], early: bool) -> Row:
    """Return the row of a library: of one, four and all layers, or of two early ones."""
    name = f"backbone of {build.__name__}"
    settings = [Setting(2, (14, 28), 384, layers) for layers in (1, 4, 12)]
    if early:
        name += ", early layers"
        settings = settings[1:2]
    return Row(
        name,
        partial(build, early=early),
        settings,
        "backbones",
        steps=("forward",),
        float64_bound=FLOAT32_COORDINATES,
    )


ROWS = [
    row(timm, early=False),
    row(timm, early=True),
    row(transformers, early=False),
    row(transformers, early=True),
]
