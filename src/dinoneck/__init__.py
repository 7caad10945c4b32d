"""Necks, heads and training for DINOv2/DINOv3 backbones.

Public names only; each is imported on first use.
"""

from pathlib import Path

from dinoneck import errors
from dinoneck.lazy import attach, homes
from dinoneck.registry import exports
from dinoneck.version import __version__ as __version__

HOMES = {
    **exports("dinoneck.heads", "dinoneck.necks"),
    **{name: "dinoneck.errors" for name in vars(errors) if name.endswith("Error")},
    **homes("dinoneck.backbones", backbone=["Backbone"], load=["load_backbone", "wrap_backbone"]),
    **homes(
        "dinoneck.checkpoint",
        head_checkpoint=["HeadCheckpoint", "load_head", "save_head"],
        pickled=["safe_globals"],
    ),
    **homes("dinoneck.published", table=["list_published"], loading=["load_published"]),
    **homes(
        "dinoneck",
        evaluation=["evaluate"],
        registry=["register"],
        tasks=["TargetTransform", "Task"],
    ),
    **homes(
        "dinoneck",
        grid=["GridSize", "PreparedImages", "TokenGrid"],
        tokens=["FeaturePyramid", "Tokens", "collate"],
    ),
    "DetectionHead": "dinoneck.detection.head",
    "RfDetr": "dinoneck.detection.rf_detr",
    "list_heads": "dinoneck.checkpoint.hub",
    "import_weights": "dinoneck.checkpoint.importing",
    "Predictor": "dinoneck.inference.predictor",
    "Composition": "dinoneck.losses.composition",
    "train": "dinoneck.training.from_python",
    "FeatureStore": "dinoneck.store.feature_store",
}
PACKAGES = sorted(file.parent.name for file in Path(__file__).parent.glob("*/__init__.py"))

__all__ = [*HOMES, "__version__"]
__getattr__, __dir__ = attach(__name__, HOMES, PACKAGES)
