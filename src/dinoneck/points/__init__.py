"""Points: from images with known cameras to features on a point cloud, and into any 3D decoder. Pure torch."""

from dinoneck.lazy import attach, homes

_HOMES = homes(
    __name__,
    attachment=["Attached"],
    camera_check=["CameraCheck", "check_cameras"],
    cameras=["Cameras"],
    engines=[
        "PlainAdapter",
        "PlainSparse",
        "PointceptAdapter",
        "SparseAdapter",
        "SpconvAdapter",
        "adapter_of",
    ],
    fusion=["GatedFusion"],
    injection=["DecoderInjection", "InjectedUNet", "LevelStats"],
    lifting=["lift"],
    projection=["Links", "PointProjector"],
    pyramid=["SparsePyramid"],
    sparse=["SparseFeatures"],
    voxels=["VoxelGrid"],
)

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
