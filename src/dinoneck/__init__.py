"""Necks, heads and training for DINOv2/DINOv3 backbones. Public names only; each is imported on first use."""

from dinoneck.lazy import attach
from dinoneck.registry import exports
from dinoneck.version import __version__ as __version__

_HOMES = {
    **exports("dinoneck.heads", "dinoneck.necks"),
    "DetectionHead": "dinoneck.detection.head",
    "Backbone": "dinoneck.backbones.backbone",
    "load_backbone": "dinoneck.backbones.load",
    "wrap_backbone": "dinoneck.backbones.load",
    "HeadCheckpoint": "dinoneck.checkpoint.head_checkpoint",
    "load_head": "dinoneck.checkpoint.head_checkpoint",
    "save_head": "dinoneck.checkpoint.head_checkpoint",
    "list_heads": "dinoneck.checkpoint.hub",
    "import_weights": "dinoneck.checkpoint.importing",
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
    "evaluate": "dinoneck.evaluation",
    "GridSize": "dinoneck.grid",
    "PreparedImages": "dinoneck.grid",
    "TokenGrid": "dinoneck.grid",
    "Predictor": "dinoneck.inference.predictor",
    "list_published": "dinoneck.published.table",
    "load_published": "dinoneck.published.loading",
    "Composition": "dinoneck.losses.composition",
    "register": "dinoneck.registry",
    "FeatureStore": "dinoneck.store.feature_store",
    "TargetTransform": "dinoneck.tasks",
    "Task": "dinoneck.tasks",
    "FeaturePyramid": "dinoneck.tokens",
    "Tokens": "dinoneck.tokens",
    "collate": "dinoneck.collation",
}

_PACKAGES = (
    "backbones",
    "checkpoint",
    "data",
    "detection",
    "export",
    "heads",
    "inference",
    "interop",
    "layers",
    "losses",
    "necks",
    "points",
    "published",
    "registry",
    "serve",
    "store",
    "training",
    "viz",
)

__all__ = [*_HOMES, "__version__"]
__getattr__, __dir__ = attach(__name__, _HOMES, _PACKAGES)
