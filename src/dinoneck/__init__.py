"""Everything between a DINOv2/DINOv3 backbone and an answer. Public names only; each is imported on first use."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach
from dinoneck.version import __version__ as __version__

if TYPE_CHECKING:
    from dinoneck.backbones.backbone import Backbone as Backbone
    from dinoneck.backbones.load import load_backbone as load_backbone
    from dinoneck.backbones.load import wrap_backbone as wrap_backbone
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint as HeadCheckpoint
    from dinoneck.checkpoint.head_checkpoint import load_head as load_head
    from dinoneck.checkpoint.head_checkpoint import save_head as save_head
    from dinoneck.checkpoint.hub import list_heads as list_heads
    from dinoneck.collation import collate as collate
    from dinoneck.errors import BackboneError as BackboneError
    from dinoneck.errors import BusyError as BusyError
    from dinoneck.errors import CheckpointError as CheckpointError
    from dinoneck.errors import ConfigError as ConfigError
    from dinoneck.errors import DataError as DataError
    from dinoneck.errors import DinoneckError as DinoneckError
    from dinoneck.errors import GridError as GridError
    from dinoneck.errors import RegistryError as RegistryError
    from dinoneck.errors import ShapeError as ShapeError
    from dinoneck.errors import StoreError as StoreError
    from dinoneck.grid import GridSize as GridSize
    from dinoneck.grid import PreparedImages as PreparedImages
    from dinoneck.grid import TokenGrid as TokenGrid
    from dinoneck.heads.cls_gating import CLSGating as CLSGating
    from dinoneck.heads.cls_gating import CLSGatingHead as CLSGatingHead
    from dinoneck.heads.dense import DenseHead as DenseHead
    from dinoneck.heads.ensemble import HeadEnsemble as HeadEnsemble
    from dinoneck.heads.fpn import FPNHead as FPNHead
    from dinoneck.heads.patch_mean import PatchMeanHead as PatchMeanHead
    from dinoneck.heads.patch_mean import PatchMeanMLP as PatchMeanMLP
    from dinoneck.heads.pyramid import PyramidHead as PyramidHead
    from dinoneck.inference.predictor import Predictor as Predictor
    from dinoneck.losses.composition import Composition as Composition
    from dinoneck.necks.dpt import DPTNeck as DPTNeck
    from dinoneck.necks.layer_grouper import LayerGrouper as LayerGrouper
    from dinoneck.necks.simple_pyramid import SimplePyramid as SimplePyramid
    from dinoneck.necks.spatial_tuning_adapter import SpatialTuningAdapter as SpatialTuningAdapter
    from dinoneck.necks.spatial_tuning_adapter import split_deimv2 as split_deimv2
    from dinoneck.necks.sta_pyramid import STAPyramid as STAPyramid
    from dinoneck.necks.vit_fpn import ViTFPN as ViTFPN
    from dinoneck.registry import register as register
    from dinoneck.store.feature_store import FeatureStore as FeatureStore
    from dinoneck.tasks import TargetTransform as TargetTransform
    from dinoneck.tasks import Task as Task
    from dinoneck.tokens import FeaturePyramid as FeaturePyramid
    from dinoneck.tokens import Tokens as Tokens

_HOMES = {
    "Backbone": "dinoneck.backbones.backbone",
    "load_backbone": "dinoneck.backbones.load",
    "wrap_backbone": "dinoneck.backbones.load",
    "HeadCheckpoint": "dinoneck.checkpoint.head_checkpoint",
    "load_head": "dinoneck.checkpoint.head_checkpoint",
    "save_head": "dinoneck.checkpoint.head_checkpoint",
    "list_heads": "dinoneck.checkpoint.hub",
    "BackboneError": "dinoneck.errors",
    "BusyError": "dinoneck.errors",
    "CheckpointError": "dinoneck.errors",
    "ConfigError": "dinoneck.errors",
    "DataError": "dinoneck.errors",
    "DinoneckError": "dinoneck.errors",
    "GridError": "dinoneck.errors",
    "RegistryError": "dinoneck.errors",
    "ShapeError": "dinoneck.errors",
    "StoreError": "dinoneck.errors",
    "GridSize": "dinoneck.grid",
    "PreparedImages": "dinoneck.grid",
    "TokenGrid": "dinoneck.grid",
    "CLSGating": "dinoneck.heads.cls_gating",
    "CLSGatingHead": "dinoneck.heads.cls_gating",
    "DenseHead": "dinoneck.heads.dense",
    "HeadEnsemble": "dinoneck.heads.ensemble",
    "FPNHead": "dinoneck.heads.fpn",
    "PatchMeanHead": "dinoneck.heads.patch_mean",
    "PatchMeanMLP": "dinoneck.heads.patch_mean",
    "PyramidHead": "dinoneck.heads.pyramid",
    "Predictor": "dinoneck.inference.predictor",
    "Composition": "dinoneck.losses.composition",
    "split_deimv2": "dinoneck.necks.spatial_tuning_adapter",
    "DPTNeck": "dinoneck.necks.dpt",
    "LayerGrouper": "dinoneck.necks.layer_grouper",
    "SimplePyramid": "dinoneck.necks.simple_pyramid",
    "STAPyramid": "dinoneck.necks.sta_pyramid",
    "SpatialTuningAdapter": "dinoneck.necks.spatial_tuning_adapter",
    "ViTFPN": "dinoneck.necks.vit_fpn",
    "register": "dinoneck.registry",
    "FeatureStore": "dinoneck.store.feature_store",
    "TargetTransform": "dinoneck.tasks",
    "Task": "dinoneck.tasks",
    "FeaturePyramid": "dinoneck.tokens",
    "Tokens": "dinoneck.tokens",
    "collate": "dinoneck.collation",
}

_ROOMS = (
    "backbones",
    "checkpoint",
    "data",
    "heads",
    "inference",
    "interop",
    "layers",
    "losses",
    "necks",
    "points",
    "registry",
    "store",
    "training",
    "viz",
)

__all__ = [*_HOMES, "__version__"]
__getattr__, __dir__ = attach(__name__, _HOMES, _ROOMS)
