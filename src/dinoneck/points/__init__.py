"""Points: from photos with known cameras to features on a point cloud, and into any 3D decoder. Pure torch."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.points.attachment import Attached as Attached
    from dinoneck.points.attachment import InjectedUNet as InjectedUNet
    from dinoneck.points.camera_check import CameraCheck as CameraCheck
    from dinoneck.points.camera_check import check_cameras as check_cameras
    from dinoneck.points.cameras import Cameras as Cameras
    from dinoneck.points.engines import MinkowskiAdapter as MinkowskiAdapter
    from dinoneck.points.engines import PlainAdapter as PlainAdapter
    from dinoneck.points.engines import PlainSparse as PlainSparse
    from dinoneck.points.engines import PointceptAdapter as PointceptAdapter
    from dinoneck.points.engines import SparseAdapter as SparseAdapter
    from dinoneck.points.engines import SpconvAdapter as SpconvAdapter
    from dinoneck.points.engines import adapter_of as adapter_of
    from dinoneck.points.fusion import GatedFusion as GatedFusion
    from dinoneck.points.injection import DecoderInjection as DecoderInjection
    from dinoneck.points.injection import LevelStats as LevelStats
    from dinoneck.points.lifting import lift as lift
    from dinoneck.points.projection import Links as Links
    from dinoneck.points.projection import PointProjector as PointProjector
    from dinoneck.points.pyramid import SparsePyramid as SparsePyramid
    from dinoneck.points.sparse import SparseFeatures as SparseFeatures
    from dinoneck.points.voxels import VoxelGrid as VoxelGrid

_HOMES = {
    "Attached": "dinoneck.points.attachment",
    "CameraCheck": "dinoneck.points.camera_check",
    "Cameras": "dinoneck.points.cameras",
    "DecoderInjection": "dinoneck.points.injection",
    "GatedFusion": "dinoneck.points.fusion",
    "InjectedUNet": "dinoneck.points.attachment",
    "LevelStats": "dinoneck.points.injection",
    "Links": "dinoneck.points.projection",
    "MinkowskiAdapter": "dinoneck.points.engines",
    "PlainAdapter": "dinoneck.points.engines",
    "PlainSparse": "dinoneck.points.engines",
    "PointProjector": "dinoneck.points.projection",
    "PointceptAdapter": "dinoneck.points.engines",
    "SparseAdapter": "dinoneck.points.engines",
    "SparseFeatures": "dinoneck.points.sparse",
    "SparsePyramid": "dinoneck.points.pyramid",
    "SpconvAdapter": "dinoneck.points.engines",
    "VoxelGrid": "dinoneck.points.voxels",
    "adapter_of": "dinoneck.points.engines",
    "check_cameras": "dinoneck.points.camera_check",
    "lift": "dinoneck.points.lifting",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
