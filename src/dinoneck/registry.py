"""Which name in a checkpoint means which class.

Imports no torch; a class is imported when first asked for.

A file can only name what this table holds, or what the running program has registered with
:func:`register`: no import path is ever taken from a file.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location  # noqa: TID251 - of a file that the user names
from pathlib import Path
from typing import Any, TypeVar, cast

from dinoneck.errors import ConfigError, RegistryError
from dinoneck.text import did_you_mean, first_line

# name -> module and name of the class that the package registers
HOMES: dict[str, str] = {
    "bins": "dinoneck.heads.linear:Bins",
    "cls_gating": "dinoneck.heads.cls_gating:CLSGatingHead",
    "cls_gating_pool": "dinoneck.heads.cls_gating:CLSGating",
    "decoder_injection": "dinoneck.points.injection:DecoderInjection",
    "dense": "dinoneck.heads.dense:DenseHead",
    "detector": "dinoneck.detection.head:DetectionHead",
    "dpt": "dinoneck.heads.dpt:DPTHead",
    "dpt_neck": "dinoneck.necks.dpt:DPTNeck",
    "ensemble": "dinoneck.heads.ensemble:HeadEnsemble",
    "fpn": "dinoneck.heads.pyramid:FPNHead",
    "gated_fusion": "dinoneck.points.fusion:GatedFusion",
    "layer_grouper": "dinoneck.necks.layer_grouper:LayerGrouper",
    "linear": "dinoneck.heads.linear:LinearHead",
    "mask": "dinoneck.heads.mask:MaskHead",
    "patch_mean": "dinoneck.heads.patch_mean:PatchMeanHead",
    "patch_mean_mlp": "dinoneck.heads.patch_mean:PatchMeanMLP",
    "pyramid": "dinoneck.heads.pyramid:PyramidHead",
    "simple_pyramid": "dinoneck.necks.simple_pyramid:SimplePyramid",
    "rf_detr": "dinoneck.detection.rf_detr:RfDetr",
    "spatial_tuning_adapter": "dinoneck.necks.spatial_tuning_adapter:SpatialTuningAdapter",
    "sta_pyramid": "dinoneck.necks.sta_pyramid:STAPyramid",
    "vit_fpn": "dinoneck.necks.vit_fpn:ViTFPN",
}
# name -> what it is for, of the heads and necks that a training takes; the others are parts of them,
# or made by dinoneck itself
PURPOSES: dict[str, str] = {
    "patch_mean": "numbers and classes of an image, from the mean of its patches; the default of "
    "tables",
    "cls_gating": "numbers and classes of an image, from the patches that its CLS token picks",
    "linear": "the linear probe: one linear layer, on pooled tokens or on every patch",
    "fpn": "maps from several layers, and numbers too; the default of masks of classes",
    "dense": "maps from one layer, of classes or numbers; the default of masks of numbers",
    "dpt": "maps of numbers such as depth, or of classes, finer than the patches",
    "mask": "objects and panoptic segments by queries; the default of panoptic segments",
    "pyramid": "maps and numbers on any neck: '{type: pyramid, neck: {type: vit_fpn}}'",
    "dpt_neck": "neck: fine maps from several layers; the default of objects",
    "vit_fpn": "neck: levels from groups of layers, that of fpn",
    "simple_pyramid": "neck: finer and coarser levels from the last layer alone",
    "spatial_tuning_adapter": "neck of detectors, with detail from the image; the default of boxes",
    "sta_pyramid": "neck of detectors, from the last layer alone",
}
# types of the files that a Detector loads
DETECTORS = frozenset({"detector", "rf_detr"})
_DETECTOR_HOME = "dinoneck.detection.detector:Detector"
# those of them whose ViT is a part of the head: they take no backbone
WITH_OWN_VIT = frozenset({"rf_detr"})
REGISTERED: dict[str, type] = {}  # name -> class that the running program has registered
_NAME = re.compile(r"([a-z0-9][a-z0-9_]{0,63}\.)?[a-z][a-z0-9_]{0,63}")
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_Class = TypeVar("_Class", bound=type)


def _known() -> dict[str, str | type]:
    return {**HOMES, **REGISTERED}


def names() -> tuple[str, ...]:
    """Return every registered name, sorted."""
    return tuple(sorted(_known()))


def classes() -> dict[str, str]:
    """Return every registered name -> module and name of its class, sorted by name; no class is imported."""
    return {name: _home(cls) for name, cls in sorted(_known().items())}


def exports(*packages: str) -> dict[str, str]:
    """Return the classes of the table in these packages: class name -> the module that defines it."""
    homes = (home.partition(":") for home in HOMES.values())
    return {name: module for module, _, name in homes if module.rpartition(".")[0] in packages}


def resolve(head_type: Any) -> type[Any]:
    """Return the class registered under a name.

    Raises:
        RegistryError: if there is none.
    """
    known = _home_or_class(head_type)
    if isinstance(known, type):
        return known
    return _import(known)


def check_registered(head_type: Any) -> None:
    """Raise the error of :func:`resolve` for a name that is not registered; no class is imported."""
    _home_or_class(head_type)


def _home_or_class(head_type: Any) -> str | type:
    """What is registered under a name.

    Raises:
        RegistryError: if there is nothing.
    """
    known = _known().get(head_type) if isinstance(head_type, str) else None
    if known is None:
        raise RegistryError(
            f"head_type {head_type!r} is not registered.{did_you_mean(head_type, names())} "
            f"Registered: {', '.join(names())}. Register a class of your own with "
            "dinoneck.register(cls) before loading, or name its file (--import FILE.py)"
        )
    return known


def detector_class() -> type[Any]:
    """Return the class that loads the files of :data:`DETECTORS`, for packages that its own one imports."""
    return _import(_DETECTOR_HOME)


def _import(home: str) -> type[Any]:
    """The class of a home in this module."""
    module, _, name = home.partition(":")
    return cast("type[Any]", getattr(importlib.import_module(module), name))  # noqa: TID251 - of our own table


def name_of(cls: type) -> str:
    """Return the name a class is registered under.

    Raises:
        RegistryError: if it is not registered.
    """
    for name, known in _known().items():
        if known in (_home(cls), cls):
            return name
    raise RegistryError(
        f"{_home(cls)} is not registered, so a file could not name it; registered: "
        f"{', '.join(names())}. Register a class of your own with dinoneck.register(cls), "
        "or name its file (--import FILE.py)"
    )


def _home(cls: str | type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}" if isinstance(cls, type) else cls


def register(cls: _Class, /, *, name: str | None = None) -> _Class:
    """Let head files name a class of your own, for the life of this process; also a decorator, ``@register``.

    Args:
        cls: a torch module on :class:`dinoneck.heads.Head`, :class:`dinoneck.necks.Neck` or
            :class:`dinoneck.configured.Configured`.
        name: lower snake case, a letter first, at most 64 characters, not taken; a package's name
            and a dot may stand in front. None = the class's name in snake case: ``MyHead`` becomes
            ``my_head``.

    Returns:
        The class. A class defined again under the same name, as in a notebook, replaces the earlier
        one.

    Raises:
        RegistryError: if the name is malformed or taken by another class, or the class records no
            configuration.
    """
    if not (isinstance(cls, type) and hasattr(cls, "from_config") and hasattr(cls, "state_dict")):
        raise RegistryError(
            f"{str(cls)[:60]} is not the class of a torch module that records its configuration; "
            "derive it from dinoneck.heads.Head, dinoneck.necks.Neck, or "
            "dinoneck.configured.Configured and nn.Module"
        )
    head_type = _WORDS.sub("_", cls.__name__.strip("_")).lower() if name is None else name
    if not _NAME.fullmatch(head_type):
        raise RegistryError(
            f"{head_type!r} is not a valid head_type; expected lower snake case, a letter first, "
            "at most 64 characters"
        )
    known = _known().get(head_type, cls)
    if isinstance(known, str) or _home(known) != _home(cls):
        raise RegistryError(
            f"head_type {head_type!r} is taken by {known}; choose another one with name="
        )
    REGISTERED[head_type] = cls
    return cls


def import_modules(names: Sequence[str]) -> None:
    """Import modules, or Python files, that register heads and necks.

    Raises:
        ConfigError: if a file does not exist, or one of them cannot be imported, whatever it
            raises.
    """
    for name in names:
        if name.endswith(".py") and not Path(name).exists():
            raise ConfigError(f"there is no file {name}; check the name and the working folder")
        try:
            spec = spec_from_file_location(Path(name).stem, name) if name.endswith(".py") else None
            if spec is None or spec.loader is None:
                importlib.import_module(name)  # noqa: TID251
                continue
            sys.modules[spec.name] = module = module_from_spec(spec)
            spec.loader.exec_module(module)
        except Exception as error:  # a user's file may raise anything
            kind = type(error).__name__
            raise ConfigError(f"{name} cannot be imported: {kind}: {first_line(error)}") from error
