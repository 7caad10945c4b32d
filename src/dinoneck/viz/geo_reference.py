"""Where the pixels of a GeoTIFF lie on the ground, as rasterio reads it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinoneck.images.storage import read_storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GeoReference:
    """Where the stored pixels of a GeoTIFF lie on the ground.

    Attributes:
        size: (height, width) of the stored pixels.
        orientation: the EXIF orientation of the stored pixels, which GDAL ignores.
        crs: of the transform or of the control points.
        transform: from pixels to coordinates; None = by control points or RPCs alone.
        control_points: of pixels whose coordinates are known.
        rpcs: rational polynomial coefficients of a satellite's camera.
    """

    size: tuple[int, int]
    orientation: int
    crs: Any
    transform: Any
    control_points: list[Any]
    rpcs: Any


def read_geo_reference(image: Path) -> GeoReference | None:
    """Return where the pixels of a GeoTIFF lie; None for other images, and with a warning without rasterio."""
    storage = read_storage(image)
    if storage is None or not storage.has_position:
        return None
    try:
        import rasterio
    except ImportError:
        logger.warning(
            "%s is a GeoTIFF; its maps have no position without rasterio: pip install dinoneck[geo]",
            image,
        )
        return None
    with rasterio.open(image) as file:
        control_points, crs_of_points = file.gcps
        return GeoReference(
            size=(file.height, file.width),
            orientation=storage.orientation,
            crs=crs_of_points if control_points else file.crs,
            transform=None if file.transform.is_identity else file.transform,
            control_points=control_points,
            rpcs=file.rpcs,
        )
