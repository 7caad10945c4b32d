"""Parameter groups of a model with a backbone: the learning rate and weight decay of every parameter.

A parameter belongs to the backbone because it is inside ``model.backbone``, and to block 3 because it is inside that
block, not because of its name. timm's ``param_groups_layer_decay`` skips frozen parameters and needs a model of timm.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DataParallel, DistributedDataParallel

from dinoneck.backbones.backbone import Backbone
from dinoneck.errors import ConfigError
from dinoneck.training.recipe import check_number

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)
_MAPS = (nn.Linear, _ConvNd)


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    backbone_lr: float | None = None,
    weight_decay: float = 0.05,
    layer_decay: float | None = None,
    include_frozen: bool = False,
) -> list[dict[str, Any]]:
    """Return groups for an optimizer; every parameter is in one of them, once. LoRA weights are the backbone's.

    No weight decay reaches norms, biases, LayerScale, position embeddings, CLS, register and mask tokens, any other
    one-dimensional parameter, and whatever a module names in ``no_weight_decay()``, as timm's do.

    With ``layer_decay`` the embeddings are layer 0, block i is layer i + 1, and the final norm shares the layer of
    the last block that runs; a layer's learning rate is ``backbone_lr * layer_decay ** (last - layer)``. These are
    timm's numbers for a model without a classifier. With one, timm's rates are one factor lower.

    Args:
        model: a module whose ``.backbone`` is a :class:`dinoneck.Backbone`, or with one anywhere inside, such as a
            detector (or a Backbone alone), wrapped in DistributedDataParallel or not.
        lr: of everything outside the backbone.
        backbone_lr: of the backbone; None = lr.
        weight_decay: of weight matrices and kernels.
        layer_decay: factor per layer, above 0 and at most 1; None = one learning rate for the whole backbone.
        include_frozen: take frozen parameters in as well, for a :class:`dinoneck.training.FreezeSchedule` that
            unfreezes them later. Until then they have no gradient and optimizers skip them.

    Returns:
        Dicts with ``params``, ``lr``, ``weight_decay`` and ``name``, such as ``backbone.block3.no_decay`` or
        ``head.decay``.

    Raises:
        ConfigError: if the model has no backbone, a value is out of range, or nothing is trainable.

    Examples:
        >>> from dinoneck import load_backbone
        >>> model = nn.Module()
        >>> model.backbone, model.head = load_backbone("dinoneck_tiny").unfreeze_last(1), nn.Linear(64, 2)
        >>> [(group["name"], group["lr"]) for group in param_groups(model, lr=1e-3, backbone_lr=1e-5)]
        [('backbone.no_decay', 1e-05), ('backbone.decay', 1e-05), ('head.decay', 0.001), ('head.no_decay', 0.001)]
    """
    backbone = backbone_of(model)
    check_number("lr", lr, above=True)
    check_number("weight_decay", weight_decay)
    check_number("backbone_lr", 1 if backbone_lr is None else backbone_lr, above=True)
    check_number("layer_decay", 1 if layer_decay is None else layer_decay, high=1, above=True)
    rates = _rates(backbone, lr if backbone_lr is None else backbone_lr, layer_decay)
    groups: dict[str, dict[str, Any]] = {}
    for parameter, decays in _described(model, backbone):
        if include_frozen or parameter.requires_grad:
            part, own_lr = rates.get(id(parameter), ("head", lr))
            name = f"{part}.{'decay' if decays else 'no_decay'}"
            fresh = {"params": [], "lr": own_lr, "weight_decay": weight_decay if decays else 0.0, "name": name}
            groups.setdefault(name, fresh)["params"].append(parameter)
    if not groups:
        raise ConfigError(
            "the model has no trainable parameters; call backbone.unfreeze_last(n), or pass include_frozen=True"
        )
    return list(groups.values())


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def backbone_of(model: nn.Module) -> Backbone:
    """Return the model if it is a Backbone, else ``model.backbone``, else the only one anywhere inside.

    Wrappers are looked through. The last case is that of a detector, which keeps its backbone deep within.

    Raises:
        ConfigError: if there is none, or there are several, naming what was found.
    """
    inner = unwrapped(model)
    own = getattr(inner, "backbone", None)
    own = unwrapped(own) if isinstance(own, nn.Module) else own
    for module in (inner, own):
        if isinstance(module, Backbone):
            return module
    nested = {name: module for name, module in inner.named_modules() if isinstance(module, Backbone)}
    if len(nested) == 1:
        return next(iter(nested.values()))
    what = "missing" if own is None else f"a {type(own).__name__}"
    raise ConfigError(
        f"{type(inner).__name__}.backbone is {what}, and {', '.join(nested) or 'no backbone'} inside; set "
        "model.backbone to the dinoneck.Backbone that is meant: dinoneck.load_backbone(...), or wrap_backbone(model)"
    )


def _rates(backbone: Backbone, lr: float, layer_decay: float | None) -> dict[int, tuple[str, float]]:
    """The part of the backbone that each of its parameters is in, and the learning rate there."""
    adapter, last = backbone.adapter, max(backbone.layers) + 1
    parts: list[tuple[nn.Module, str, int]] = [(backbone, "backbone.embeddings", 0)]
    parts += [(block, f"backbone.block{i}", min(i + 1, last)) for i, block in enumerate(adapter.blocks)]
    parts += [(norm, "backbone.norm", last) for norm in adapter.norms]
    if layer_decay is None:
        return {id(parameter): ("backbone", lr) for parameter in backbone.parameters()}
    return {
        id(parameter): (name, lr * layer_decay ** (last - layer))
        for module, name, layer in parts
        for parameter in module.parameters()
    }


def _described(model: nn.Module, backbone: Backbone) -> Iterator[tuple[nn.Parameter, bool]]:
    """Every parameter once, the backbone's first, and whether weight decay acts on it."""
    in_backbone = {id(parameter) for parameter in backbone.parameters()}
    in_blocks = {id(parameter) for block in backbone.adapter.blocks for parameter in block.parameters()}
    exempt = _declared_exempt(model) | _declared_exempt(backbone)
    seen: set[int] = set()
    for module in chain(backbone.modules(), model.modules()):
        for own_name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            decays = parameter.ndim > 1 and own_name != "bias" and not isinstance(module, _NORMS)
            if id(parameter) in in_backbone and not isinstance(module, _MAPS):
                # outside the blocks these are tokens and positions; inside, what has one long side is LayerScale
                decays = decays and id(parameter) in in_blocks and parameter.numel() > max(parameter.shape)
            yield parameter, decays and id(parameter) not in exempt


def _declared_exempt(model: nn.Module) -> set[int]:
    """Parameters that a module itself names in timm's way."""
    exempt: set[int] = set()
    for module in model.modules():
        if callable(declared := getattr(module, "no_weight_decay", None)):
            names = set(declared())
            exempt |= {id(parameter) for name, parameter in module.named_parameters() if name in names}
    return exempt
