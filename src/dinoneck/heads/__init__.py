"""Heads: from Tokens to one tensor per task, and the building blocks they are made of."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.heads.ensemble import HeadEnsemble as HeadEnsemble
    from dinoneck.heads.head import Head as Head
    from dinoneck.heads.patch_mean import PatchMeanHead as PatchMeanHead
    from dinoneck.heads.patch_mean import PatchMeanMLP as PatchMeanMLP

_HOMES = {
    "Head": "dinoneck.heads.head",
    "HeadEnsemble": "dinoneck.heads.ensemble",
    "PatchMeanHead": "dinoneck.heads.patch_mean",
    "PatchMeanMLP": "dinoneck.heads.patch_mean",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
