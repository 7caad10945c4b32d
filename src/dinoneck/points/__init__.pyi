"""Written by python -m tests.house.test_house from __init__.py."""

from dinoneck.points.attachment import Attached as Attached
from dinoneck.points.attachment import PlainAdapter as PlainAdapter
from dinoneck.points.attachment import PlainSparse as PlainSparse
from dinoneck.points.attachment import PointceptAdapter as PointceptAdapter
from dinoneck.points.attachment import SparseAdapter as SparseAdapter
from dinoneck.points.attachment import SpconvAdapter as SpconvAdapter
from dinoneck.points.attachment import adapter_of as adapter_of
from dinoneck.points.camera_check import CameraCheck as CameraCheck
from dinoneck.points.camera_check import check_cameras as check_cameras
from dinoneck.points.cameras import Cameras as Cameras
from dinoneck.points.fusion import GatedFusion as GatedFusion
from dinoneck.points.injection import DecoderInjection as DecoderInjection
from dinoneck.points.injection import InjectedUNet as InjectedUNet
from dinoneck.points.injection import LevelStats as LevelStats
from dinoneck.points.lifting import lift as lift
from dinoneck.points.minkowski import MinkowskiAdapter as MinkowskiAdapter
from dinoneck.points.minkowski import minkowski_offsets as minkowski_offsets
from dinoneck.points.minkowski import minkowski_to_conv3d as minkowski_to_conv3d
from dinoneck.points.projection import Links as Links
from dinoneck.points.projection import PointProjector as PointProjector
from dinoneck.points.pyramid import SparsePyramid as SparsePyramid
from dinoneck.points.voxels import SparseFeatures as SparseFeatures
from dinoneck.points.voxels import VoxelGrid as VoxelGrid
