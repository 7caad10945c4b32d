"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.necks.dpt import DPTNeck as DPTNeck
from dinoneck.necks.layer_grouper import LayerGrouper as LayerGrouper
from dinoneck.necks.neck import Neck as Neck
from dinoneck.necks.simple_pyramid import SimplePyramid as SimplePyramid
from dinoneck.necks.spatial_tuning_adapter import SpatialTuningAdapter as SpatialTuningAdapter
from dinoneck.necks.sta_pyramid import STAPyramid as STAPyramid
from dinoneck.necks.vit_fpn import TopDown as TopDown
from dinoneck.necks.vit_fpn import ViTFPN as ViTFPN
