"""Heads: from Tokens to one tensor per task, and the building blocks they are made of."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.heads.cls_gating import CLSGating as CLSGating
    from dinoneck.heads.cls_gating import CLSGatingHead as CLSGatingHead
    from dinoneck.heads.cls_gating_import import cls_gating_tasks as cls_gating_tasks
    from dinoneck.heads.cls_gating_import import import_cls_gating as import_cls_gating
    from dinoneck.heads.dense import DenseHead as DenseHead
    from dinoneck.heads.ensemble import HeadEnsemble as HeadEnsemble
    from dinoneck.heads.fpn import FPNHead as FPNHead
    from dinoneck.heads.fpn_yaml import FPNSettings as FPNSettings
    from dinoneck.heads.fpn_yaml import read_fpn_yaml as read_fpn_yaml
    from dinoneck.heads.gates import gates_of as gates_of
    from dinoneck.heads.head import Head as Head
    from dinoneck.heads.patch_mean import PatchMeanHead as PatchMeanHead
    from dinoneck.heads.patch_mean import PatchMeanMLP as PatchMeanMLP
    from dinoneck.heads.pyramid import PyramidHead as PyramidHead

_HOMES = {
    "CLSGating": "dinoneck.heads.cls_gating",
    "CLSGatingHead": "dinoneck.heads.cls_gating",
    "cls_gating_tasks": "dinoneck.heads.cls_gating_import",
    "import_cls_gating": "dinoneck.heads.cls_gating_import",
    "DenseHead": "dinoneck.heads.dense",
    "FPNHead": "dinoneck.heads.fpn",
    "FPNSettings": "dinoneck.heads.fpn_yaml",
    "read_fpn_yaml": "dinoneck.heads.fpn_yaml",
    "gates_of": "dinoneck.heads.gates",
    "Head": "dinoneck.heads.head",
    "HeadEnsemble": "dinoneck.heads.ensemble",
    "PatchMeanHead": "dinoneck.heads.patch_mean",
    "PatchMeanMLP": "dinoneck.heads.patch_mean",
    "PyramidHead": "dinoneck.heads.pyramid",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
