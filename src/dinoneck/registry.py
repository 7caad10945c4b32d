"""Which name in a checkpoint means which class. Imports no torch; a class is imported when first asked for.

A file can only name what this table (or a program's own :func:`register` call) holds, or a head that another installed
package offers and the caller allowed (:mod:`dinoneck.third_party`): no import path is ever taken from a file.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

from dinoneck import third_party
from dinoneck.errors import RegistryError, did_you_mean

_HOMES: dict[str, str] = {
    "cls_gating": "dinoneck.heads.cls_gating:CLSGatingHead",
    "cls_gating_pool": "dinoneck.heads.cls_gating:CLSGating",
    "decoder_injection": "dinoneck.points.injection:DecoderInjection",
    "dense": "dinoneck.heads.dense:DenseHead",
    "dpt": "dinoneck.necks.dpt:DPTNeck",
    "ensemble": "dinoneck.heads.ensemble:HeadEnsemble",
    "fpn": "dinoneck.heads.fpn:FPNHead",
    "gated_fusion": "dinoneck.points.fusion:GatedFusion",
    "layer_grouper": "dinoneck.necks.layer_grouper:LayerGrouper",
    "patch_mean": "dinoneck.heads.patch_mean:PatchMeanHead",
    "patch_mean_mlp": "dinoneck.heads.patch_mean:PatchMeanMLP",
    "pyramid": "dinoneck.heads.pyramid:PyramidHead",
    "simple_pyramid": "dinoneck.necks.simple_pyramid:SimplePyramid",
    "spatial_tuning_adapter": "dinoneck.necks.spatial_tuning_adapter:SpatialTuningAdapter",
    "sta_pyramid": "dinoneck.necks.sta_pyramid:STAPyramid",
    "vit_fpn": "dinoneck.necks.vit_fpn:ViTFPN",
}
_OWN: dict[str, type] = {}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def names() -> tuple[str, ...]:
    """Return every registered name, sorted."""
    return tuple(sorted({*_HOMES, *_OWN}))


def resolve(head_type: Any) -> type[Any]:
    """Return the class registered under a name.

    Raises:
        RegistryError: if nothing is, or another package's head is not allowed, see
            :func:`dinoneck.third_party.allowing`.
    """
    if isinstance(head_type, str) and head_type in _OWN:
        return _OWN[head_type]
    if third_party.is_third_party(head_type):
        return third_party.resolve(head_type)
    if not isinstance(head_type, str) or head_type not in _HOMES:
        raise RegistryError(
            f"head_type {head_type!r} is not registered.{did_you_mean(head_type, names())} Registered: "
            f"{', '.join(names())}. A class of your own needs dinoneck.registry.register() first"
        )
    module, _, name = _HOMES[head_type].partition(":")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


def name_of(cls: type) -> str:
    """Return the name a class is registered under.

    Raises:
        RegistryError: if it is not.
    """
    home = f"{cls.__module__}:{cls.__qualname__}"
    for name, known in _HOMES.items():
        if known == home:
            return name
    for name, own in _OWN.items():
        if own is cls:
            return name
    if (offered := third_party.name_of(cls)) is not None:
        return offered
    raise RegistryError(
        f"{home} is not registered, so a file could not say how to build it; registered: {', '.join(names())}. "
        "Register a class of your own with dinoneck.registry.register(name, cls)"
    )


def register(name: str, cls: type) -> None:
    """Let checkpoints name a class of your own, for the life of this process.

    Args:
        name: lower snake case, at most 64 characters, not taken.
        cls: a torch module that mixes in :class:`dinoneck.configured.Configured`.

    Raises:
        RegistryError: if the name is malformed or taken by another class, or the class records no config.
    """
    if not _NAME.fullmatch(name):
        raise RegistryError(f"{name!r} is no head_type: lower snake case, a letter first, at most 64 characters")
    if name in _HOMES or _OWN.get(name, cls) is not cls:
        raise RegistryError(f"head_type {name!r} is taken by {_HOMES.get(name) or _OWN[name]}")
    if not callable(getattr(cls, "from_config", None)):
        raise RegistryError(f"{cls!r} has no from_config; mix in dinoneck.configured.Configured")
    _OWN[name] = cls
