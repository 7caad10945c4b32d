"""The boxes and objects of GeoTIFF images as GeoJSON, in the coordinate system of the files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.errors import DataError
from dinoneck.extras import check_installed
from dinoneck.images.decoding import read_image_size
from dinoneck.images.orientation import FLIPS_X, FLIPS_Y, SWAPS_SIDES
from dinoneck.inference.cropped_masks import CroppedMasks
from dinoneck.viz.geo_reference import GeoReference, read_geo_reference
from dinoneck.viz.objects import read_objects

Json = dict[str, Any]
Matrix = np.ndarray[Any, np.dtype[np.float64]]
_SCORE_DIGITS = 4
# GeoJSON's coordinates are x before y; of EPSG 4326 that is what CRS84 names
_LONGITUDE_FIRST = {("EPSG", "4326"): "urn:ogc:def:crs:OGC:1.3:CRS84"}


@dataclass(frozen=True)
class PlacedObjects:
    """The objects of an image.

    Attributes:
        image: what the file calls the image.
        reference: where its pixels lie.
        objects: of a :class:`dinoneck.detection.Detector`, or what a row of a
            :class:`dinoneck.Predictor` holds for a task of instances or panoptic segments.
        labels: names of the classes; empty: numbers are written, or the ``names`` of a detector.
        properties: further properties of each of them.
    """

    image: str
    reference: GeoReference
    objects: Any
    labels: Sequence[str] = ()
    properties: Mapping[str, str] | None = None


def read_references(
    images: Iterable[Path], *, skip_unusable: bool = False
) -> dict[Path, GeoReference]:
    """Return where the pixels of GeoTIFF files of one coordinate system lie.

    Args:
        images: the files.
        skip_unusable: leave out files that are no image or damaged, of which nothing is predicted.

    Raises:
        DataError: naming the first file that has no such position, or another system than the first.
        ImportError: if rasterio is not installed.
    """
    check_installed("rasterio", "geo")
    references: dict[Path, GeoReference] = {}
    first: Path | None = None
    for image in images:
        if skip_unusable and _is_damaged(image):
            continue
        reference = _read_reference(image)
        if first is None:
            first = image
        elif reference.crs != references[first].crs:
            raise DataError(
                f"{image} has coordinates of {reference.crs}, and {first} of "
                f"{references[first].crs}; a GeoJSON file has one system: predict them one after the "
                "other"
            )
        references[image] = reference
    return references


def _is_damaged(image: Path) -> bool:
    """Whether neither Pillow nor rasterio opens a file."""
    import rasterio
    from rasterio.errors import RasterioError

    try:
        read_image_size(image)
    except DataError:
        pass
    else:
        return False
    try:
        with rasterio.open(image):
            return False
    except RasterioError:
        return True


def _read_reference(image: Path) -> GeoReference:
    reference = read_geo_reference(image)
    if reference is None or reference.crs is None:
        raise DataError(
            f"{image} has no coordinate system, in which GeoJSON states its objects; expected a "
            "GeoTIFF, or leave --geojson out"
        )
    if reference.transform is None:
        raise DataError(
            f"{image} is placed by control points or RPCs, which say nothing of single pixels; bring "
            "it to a grid first, such as with gdalwarp"
        )
    if reference.crs.to_authority() is None:
        raise DataError(
            f"the coordinate system of {image} has no code, such as EPSG:32632, by which GeoJSON "
            "names it; bring the image to one that has, such as with gdalwarp -t_srs EPSG:..."
        )
    return reference


def feature_collection(images: Sequence[PlacedObjects]) -> Json:
    """Return the objects of images of one coordinate system as a GeoJSON document.

    A feature has the polygon of its box, or of its mask where there is one, None of an empty mask,
    and the properties ``class``, ``score`` and ``image``. The system is named by ``crs``, as GDAL
    writes and reads it.
    """
    features = []
    for placed in images:
        features += _features(placed)
    document: Json = {"type": "FeatureCollection"}
    if images:
        document["crs"] = {"type": "name", "properties": {"name": _name_of(images[0].reference)}}
    document["features"] = features
    return document


def _name_of(reference: GeoReference) -> str:
    """The name of a coordinate system in GeoJSON."""
    authority, code = reference.crs.to_authority()
    return _LONGITUDE_FIRST.get((authority, code), f"urn:ogc:def:crs:{authority}::{code}")


def _class_names(placed: PlacedObjects, classes: Sequence[int]) -> list[str]:
    """The names of the classes of objects: by their numbers, or as the detector says; else the numbers."""
    if placed.labels:
        return [placed.labels[number] for number in classes]
    if isinstance(placed.objects, Mapping) and "names" in placed.objects:
        return [str(name) for name in placed.objects["names"]]
    return [str(number) for number in classes]


def _features(placed: PlacedObjects) -> list[Json]:
    """The objects of an image as GeoJSON."""
    objects = read_objects(placed.objects)
    names = _class_names(placed, objects.classes)
    to_ground = _to_ground(placed.reference)
    features = []
    for i, (name, score) in enumerate(zip(names, objects.scores, strict=True)):
        if objects.masks is None:
            box = placed.objects["boxes"][i].tolist()
            geometry: Json | None = _polygon_of_box(box, to_ground)
        else:
            geometry = _polygons_of_mask(objects.masks, i, to_ground)
        properties = {
            "class": name,
            "score": round(score, _SCORE_DIGITS),
            "image": placed.image,
            **(placed.properties or {}),
        }
        features.append({"type": "Feature", "properties": properties, "geometry": geometry})
    return features


def _to_ground(reference: GeoReference) -> Matrix:
    """The affine map (3, 3) from (x, y, 1) in pixels of the upright image to coordinates."""
    height, width = reference.size
    sides = np.eye(3)
    if reference.orientation in SWAPS_SIDES:
        height, width = width, height
        sides = sides[[1, 0, 2]]
    flips = np.eye(3)
    if reference.orientation in FLIPS_X:
        flips[0] = (-1, 0, width)
    if reference.orientation in FLIPS_Y:
        flips[1] = (0, -1, height)
    of_stored_pixels = np.array([*reference.transform]).reshape(3, 3)
    return of_stored_pixels @ sides @ flips


def _polygon_of_box(box: Sequence[float], to_ground: Matrix) -> Json:
    """The polygon of a box, XYXY in pixels."""
    x0, y0, x1, y1 = box
    corners = np.array([(x0, y0, 1), (x0, y1, 1), (x1, y1, 1), (x1, y0, 1), (x0, y0, 1)])
    ring = (corners @ to_ground.T)[:, :2]
    return {"type": "Polygon", "coordinates": [ring.tolist()]}


def _polygons_of_mask(masks: CroppedMasks, index: int, to_ground: Matrix) -> Json | None:
    """The polygons along the edges of the pixels of a mask; None of an empty one."""
    from rasterio import Affine, features

    left, top, _, _ = masks.rectangle(index)
    crop = masks.crops[index]
    if not crop.any():
        return None
    of_crop = to_ground.copy()
    of_crop[:, 2] = to_ground @ (left, top, 1)
    transform = Affine(*of_crop[:2].ravel().tolist())
    shapes = features.shapes(crop.astype(np.uint8), mask=crop, transform=transform)
    polygons = [shape["coordinates"] for shape, _ in shapes]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}
