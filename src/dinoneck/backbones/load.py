"""load_backbone and wrap_backbone: from a name, or from a model somebody already has, to a Backbone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from dinoneck.backbones import timm, weights
from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.known import TINY
from dinoneck.backbones.seeded import SCHEME, fill_seeded
from dinoneck.errors import BackboneError, ConfigError

PosEmbed = Literal["native", "official"]


def load_backbone(
    name: str,
    *,
    source: str = "timm",
    pretrained: bool = True,
    layers: int | Sequence[int] | None = None,
    norm: bool = True,
    frozen: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    pos_embed: PosEmbed = "native",
) -> Backbone:
    """Load a DINOv2 or DINOv3 ViT by its timm name.

    Any image size that the patch divides works, for DINOv2 too. ``"dinoneck_tiny"`` is a built-in seeded
    backbone (64 channels, 6 blocks, patch 16, 2 registers) for documentation and tests.

    Args:
        name: such as ``vit_small_patch16_dinov3``, with or without a weights tag (``.lvd1689m``).
        source: the library that holds the architecture; ``"timm"``.
        pretrained: load the published weights from the local cache or the hub.
        layers: block indices, 0-based, in the order wanted, duplicates kept, negative from the end; None = the
            last block, an integer n = the n last.
        norm: apply the model's final norm to every layer.
        frozen: keep in eval mode for good, without autograd.
        checkpoint: a local official ``.pth`` or ``.safetensors`` file instead; every key must land.
        seed: which random weights, with ``pretrained=False``: the same on every machine; None = 0.
        dtype: of the weights and tokens; None keeps float32.
        pos_embed: ``"native"``: position embeddings are resampled as this library does it.

    Raises:
        BackboneError: if the name is unknown, weights cannot be had or do not fit, or a layer does not exist.
        ConfigError: if arguments contradict each other.

    Examples:
        >>> backbone = load_backbone("dinoneck_tiny", layers=[5, 2])
        >>> tokens = backbone(torch.zeros(1, 3, 32, 48))
        >>> tokens.layers, tokens.grid, tokens.patches[0].shape
        ((5, 2), GridSize(rows=2, cols=3), torch.Size([1, 6, 64]))
    """
    _check_recipe(source, pos_embed)
    _check_plain(name, dtype, seed=seed, pretrained=pretrained, norm=norm, frozen=frozen)
    random = checkpoint is None and (name == TINY or not pretrained)
    if seed is not None and not random:
        raise ConfigError(f"seed={seed} only means something for random weights; pass pretrained=False with it")
    with torch.random.fork_rng(devices=[]):  # what timm draws is overwritten
        adapter = timm.TimmAdapter(timm.build(name))
    if random:
        fill_seeded(adapter.model, seed or 0)
        origin: dict[str, Any] = {"kind": "seeded", "seed": seed or 0, "scheme": SCHEME}
    else:
        origin = _load_weights(adapter, checkpoint)
    if dtype is not None:
        adapter.to(dtype)
    full_name = name if random or adapter.name is None else adapter.name
    return Backbone(adapter, name=full_name, layers=layers, norm=norm, frozen=frozen, weights=origin)


def wrap_backbone(
    model: nn.Module,
    *,
    layers: int | Sequence[int] | None = None,
    norm: bool = True,
    frozen: bool = True,
    dtype: torch.dtype | None = None,
    pos_embed: PosEmbed = "native",
) -> Backbone:
    """Wrap a timm VisionTransformer or Eva that you built yourself. The model is used, not copied.

    With ``frozen=True`` its parameters stop requiring gradients and it goes to eval mode.

    Args:
        model: the timm model.
        layers: as for :func:`load_backbone`.
        norm: as for :func:`load_backbone`.
        frozen: as for :func:`load_backbone`.
        dtype: converted to this; None keeps the model's.
        pos_embed: as for :func:`load_backbone`.

    Raises:
        BackboneError: if the model is of another kind.
    """
    _check_recipe("timm", pos_embed)
    adapter = timm.TimmAdapter(model)
    if dtype is not None:
        adapter.to(dtype)
    name = adapter.name or type(model).__name__
    return Backbone(adapter, name=name, layers=layers, norm=norm, frozen=frozen, weights={"kind": "object"})


def _check_plain(name: object, dtype: object, **values: object) -> None:
    """Refuse arguments of another type than declared."""
    if not isinstance(name, str):
        raise ConfigError(f"name is {name!r}; expected a model name (an object goes to wrap_backbone)")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(f"dtype is {dtype!r}; expected a floating-point torch dtype such as torch.bfloat16")
    seed = values.pop("seed")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
        raise ConfigError(f"seed is {seed!r}; expected an integer or None")
    for key, value in values.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{key} is {value!r}; expected True or False")


def _load_weights(adapter: timm.TimmAdapter, checkpoint: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Load a local file or the published weights; return the record of where they came from."""
    if checkpoint is not None:
        weights.load_file(adapter.model, checkpoint)
        return {"kind": "file"}
    if adapter.hub_id is None:
        raise BackboneError("no published weights of this model are known; pass checkpoint= or pretrained=False")
    path, revision = weights.fetch(adapter.hub_id)
    weights.load_file(adapter.model, path)
    return {"kind": "hub", "repo": adapter.hub_id, "revision": revision}


def _check_recipe(source: str, pos_embed: str) -> None:
    if source != "timm":
        raise BackboneError(f"source is {source!r}; known: 'timm'")
    if pos_embed != "native":
        raise ConfigError(f"pos_embed is {pos_embed!r}; known: 'native'")
