"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.heads.cls_gating import CLSGating as CLSGating
from dinoneck.heads.cls_gating import CLSGatingHead as CLSGatingHead
from dinoneck.heads.dense import DenseHead as DenseHead
from dinoneck.heads.dpt import DPTHead as DPTHead
from dinoneck.heads.ensemble import HeadEnsemble as HeadEnsemble
from dinoneck.heads.head import Head as Head
from dinoneck.heads.linear import Bins as Bins
from dinoneck.heads.linear import LinearHead as LinearHead
from dinoneck.heads.mask import MaskHead as MaskHead
from dinoneck.heads.patch_mean import PatchMeanHead as PatchMeanHead
from dinoneck.heads.patch_mean import PatchMeanMLP as PatchMeanMLP
from dinoneck.heads.pyramid import FPNHead as FPNHead
from dinoneck.heads.pyramid import PyramidHead as PyramidHead
