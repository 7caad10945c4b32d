"""Points: from images with known cameras to features on a point cloud, and into any 3D decoder.

Pure torch.
"""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    attachment=[
        "Attached",
        "PlainAdapter",
        "PlainSparse",
        "PointceptAdapter",
        "SparseAdapter",
        "SpconvAdapter",
        "adapter_of",
    ],
    camera_check=["CameraCheck", "check_cameras"],
    cameras=["Cameras"],
    fusion=["GatedFusion"],
    injection=["DecoderInjection", "InjectedUNet", "LevelStats"],
    lifting=["lift"],
    minkowski=["MinkowskiAdapter", "minkowski_offsets", "minkowski_to_conv3d"],
    projection=["Links", "PointProjector"],
    pyramid=["SparsePyramid"],
    voxels=["SparseFeatures", "VoxelGrid"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
