"""Necks: from Tokens to a FeaturePyramid, and the building blocks they are made of."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.necks.dpt import DPTNeck as DPTNeck
    from dinoneck.necks.layer_grouper import LayerGrouper as LayerGrouper
    from dinoneck.necks.neck import Neck as Neck
    from dinoneck.necks.simple_pyramid import SimplePyramid as SimplePyramid
    from dinoneck.necks.spatial_tuning_adapter import SpatialTuningAdapter as SpatialTuningAdapter
    from dinoneck.necks.spatial_tuning_adapter import split_deimv2 as split_deimv2
    from dinoneck.necks.sta_pyramid import STAPyramid as STAPyramid
    from dinoneck.necks.vit_fpn import TopDown as TopDown
    from dinoneck.necks.vit_fpn import ViTFPN as ViTFPN

_HOMES = {
    "DPTNeck": "dinoneck.necks.dpt",
    "LayerGrouper": "dinoneck.necks.layer_grouper",
    "Neck": "dinoneck.necks.neck",
    "SimplePyramid": "dinoneck.necks.simple_pyramid",
    "STAPyramid": "dinoneck.necks.sta_pyramid",
    "SpatialTuningAdapter": "dinoneck.necks.spatial_tuning_adapter",
    "TopDown": "dinoneck.necks.vit_fpn",
    "ViTFPN": "dinoneck.necks.vit_fpn",
    "split_deimv2": "dinoneck.necks.spatial_tuning_adapter",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
