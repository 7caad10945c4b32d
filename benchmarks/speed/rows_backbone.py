"""Rows of whole frozen backbones: maps of one or several blocks, next to the plain use of timm and transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.rows import Row, Setting, Variant, nchw, nhwc
from dinoneck import Backbone, load_backbone

MODEL, TINY = "vit_small_patch16_dinov3", 64
# On a GPU dinoneck computes the rotary positions there, and timm on the host. The coordinates of
# patches are float32 in both, also in a model of float64, and devices divide differently in the
# last bit.
FLOAT32_COORDINATES = 1e-7


def frozen(setting: Setting, source: str, early: bool = False) -> Backbone:
    """Return the backbone with evenly spaced blocks, the last one among them, or with the first two of those.

    The widths that ``setting`` may ask for are those of a ViT-S and, for quick checks, of the
    built-in tiny model.
    """
    name = "dinoneck_tiny" if setting.channels == TINY else MODEL
    made = load_backbone(name, source=source, pretrained=False, dtype=setting.dtype)  # type: ignore[arg-type]
    four = [made.depth * k // 4 - 1 for k in (1, 2, 3, 4)]
    layers = {1: four[3:], 4: four}.get(setting.layers, list(range(made.depth)))
    return made.with_layers(four[:2] if early else layers).to(setting.device)


def without_autograd(run: Callable[[], Sequence[Tensor]]) -> Callable[[], Sequence[Tensor]]:
    """Return a call without autograd, whatever the mode of its caller."""
    return torch.no_grad()(run)


def timm(setting: Setting, early: bool = False) -> dict[str, Variant]:
    """``forward_intermediates`` as it comes (all blocks, NCHW copies), with views, and stopped at the last block."""
    own, images = frozen(setting, "timm", early), setting.images()
    model, layers, grid = own.adapter.model, list(own.layers), setting.grid

    def plain() -> Sequence[Tensor]:
        return list(model.forward_intermediates(images, indices=layers, norm=True)[1])  # type: ignore[operator]

    def viewed(stop_early: bool) -> Sequence[Tensor]:
        options: dict[str, Any] = {"norm": True, "output_fmt": "NLC", "intermediates_only": True}
        found = model.forward_intermediates(
            images, indices=layers, stop_early=stop_early, **options
        )  # type: ignore[operator]
        return [nhwc(x, grid) for x in found]

    runs = {"timm, plain": plain, "timm, layout fixed": partial(viewed, False)}
    runs |= {"timm, layout fixed, stop_early": partial(viewed, True)}
    forms = ("published", "fixed", "fixed")
    return {
        # timm makes the positions of every forward on the host
        **{
            name: Variant(form, without_autograd(run), own, [images], capturable=False)  # type: ignore[arg-type]
            for form, (name, run) in zip(forms, runs.items(), strict=True)
        },
        "dinoneck": Variant("ours", without_autograd(lambda: own(images).maps()), own, [images]),
    }


def transformers(setting: Setting, early: bool = False) -> dict[str, Variant]:
    """``output_hidden_states=True``, then norm, prefix off and NCHW copies, or views; it cannot stop early."""
    own, images = frozen(setting, "transformers", early), setting.images()
    model, norm, prefix = own.adapter.model, own.adapter.norms[0], own.num_prefix_tokens

    def states(to_map: Callable[..., Tensor]) -> Sequence[Tensor]:
        hidden = model(images, output_hidden_states=True).hidden_states  # type: ignore[operator]
        return [to_map(norm(hidden[layer + 1])[:, prefix:], setting.grid) for layer in own.layers]

    plain, viewed = partial(states, nchw), partial(states, nhwc)
    return {
        "transformers, plain": Variant(
            "published", without_autograd(plain), own, [images], capturable=False
        ),
        "transformers, layout fixed": Variant(
            "fixed", without_autograd(viewed), own, [images], capturable=False
        ),
        "dinoneck": Variant(
            "ours", without_autograd(lambda: own(images).maps()), own, [images], capturable=False
        ),
    }


SETTINGS = [Setting(2, (14, 28), 384, layers) for layers in (1, 4, 12)]
ROWS = [
    Row(
        f"backbone of {build.__name__}{', early layers' if early else ''}",
        partial(build, early=early),
        SETTINGS[1:2] if early else SETTINGS,
        "backbones",
        steps=("forward",),
        equal=FLOAT32_COORDINATES,
    )
    for build in (timm, transformers)
    for early in (False, True)
]
