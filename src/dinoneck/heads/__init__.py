"""Heads: from Tokens to one tensor per task, and the building blocks they are made of."""

from dinoneck.lazy import attach
from dinoneck.registry import exports

_HOMES = {
    **exports(__name__),
    "cls_gating_tasks": "dinoneck.heads.cls_gating_import",
    "import_cls_gating": "dinoneck.heads.cls_gating_import",
    "FPNSettings": "dinoneck.heads.fpn_yaml",
    "read_fpn_yaml": "dinoneck.heads.fpn_yaml",
    "gates_of": "dinoneck.heads.gates",
    "Head": "dinoneck.heads.head",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
