"""Objects of GeoTIFF images are polygons in the coordinate system of the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import kit
from tests.unit.inference.test_image_resolution import head_of

from dinoneck import Predictor
from dinoneck.errors import DataError
from dinoneck.images.orientation import SWAPS_SIDES, turn_back
from dinoneck.inference.cropped_masks import CroppedMasks
from dinoneck.viz.geo_reference import GeoReference
from dinoneck.viz.geojson import PlacedObjects, feature_collection, read_references

SIZE = (64, 96)
WEST = 500_000.0
NORTH = 5_600_000.0
PIXEL = 0.25  # m

pytestmark = pytest.mark.filterwarnings(
    "ignore::PendingDeprecationWarning"
)  # of rasterio and affine


@pytest.fixture
def rasterio() -> Any:
    return pytest.importorskip("rasterio", reason="rasterio (the extra geo) is not installed")


def write_geotiff(rasterio: Any, path: Path, **options: Any) -> Path:
    """Write random colours with a position in UTM zone 32, unless options say otherwise."""
    path.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, *SIZE), np.uint8)
    options = {
        "crs": "EPSG:32632",
        "transform": rasterio.transform.from_origin(WEST, NORTH, PIXEL, PIXEL),
        **options,
    }
    with rasterio.open(
        path, "w", driver="GTiff", height=SIZE[0], width=SIZE[1], count=3, dtype="uint8", **options
    ) as file:
        file.write(pixels)
    return path


def drawn(rasterio: Any, geometry: Any, transform: Any, size: tuple[int, int]) -> np.ndarray:
    """Where a polygon covers the middles of stored pixels, (height, width) bool."""
    mask: np.ndarray = rasterio.features.geometry_mask(
        [geometry], out_shape=size, transform=transform, invert=True
    )
    return mask


@pytest.mark.parametrize("orientation", range(1, 9))
def test_polygons_cover_the_stored_pixels_of_their_objects(orientation: int, rasterio: Any) -> None:
    import rasterio.features

    upright_size = SIZE[::-1] if orientation in SWAPS_SIDES else SIZE
    masks = np.zeros((3, *upright_size), bool)
    masks[0, 5:20, 7:30] = True
    masks[0, 9:12, 9:14] = False  # a hole
    masks[1, :3, :4] = True
    masks[1, 40:44, 50:60] = True  # of two parts
    masks[2, 30:33, 10:50] = True
    transform = rasterio.transform.from_origin(WEST, NORTH, PIXEL, PIXEL)
    reference = GeoReference(
        size=SIZE,
        orientation=orientation,
        crs=rasterio.crs.CRS.from_epsg(32632),
        transform=transform,
        control_points=[],
        rpcs=None,
    )
    objects = {"labels": np.array([0, 1, 0]), "scores": np.array([0.9, 0.8, 0.7])}
    boxes = torch.tensor([[10.0, 30.0, 50.0, 33.0]])  # of the last one

    of_masks = feature_collection([PlacedObjects("a", reference, {**objects, "masks": masks})])
    cropped = CroppedMasks.of_masks(masks, size=upright_size)
    of_crops = feature_collection([PlacedObjects("a", reference, {**objects, "masks": cropped})])
    of_box = {
        "labels": torch.tensor([0]),
        "names": ["weed"],
        "scores": torch.tensor([0.7]),
        "boxes": boxes,
    }
    of_boxes = feature_collection([PlacedObjects("a", reference, of_box)])

    stored = turn_back(masks, orientation)
    assert of_crops == of_masks
    for feature, mask in zip(of_masks["features"], stored, strict=True):
        assert np.array_equal(drawn(rasterio, feature["geometry"], transform, SIZE), mask)
    [feature] = of_boxes["features"]
    assert feature["properties"]["class"] == "weed"
    assert np.array_equal(drawn(rasterio, feature["geometry"], transform, SIZE), stored[2])


def test_an_object_without_pixels_has_no_geometry(rasterio: Any) -> None:
    reference = GeoReference(
        size=SIZE,
        orientation=1,
        crs=rasterio.crs.CRS.from_epsg(32632),
        transform=rasterio.transform.from_origin(WEST, NORTH, PIXEL, PIXEL),
        control_points=[],
        rpcs=None,
    )
    objects = {
        "labels": np.array([0]),
        "scores": np.array([0.9]),
        "masks": np.zeros((1, *SIZE), bool),
    }

    [feature] = feature_collection([PlacedObjects("a", reference, objects)])["features"]

    assert feature["geometry"] is None
    assert feature["properties"]["score"] == pytest.approx(0.9)


def test_no_images_are_a_document_without_features() -> None:
    assert feature_collection([]) == {"type": "FeatureCollection", "features": []}


def test_predict_writes_the_objects_of_geotiffs(rasterio: Any, tmp_path: Path) -> None:
    import rasterio.features

    image = write_geotiff(rasterio, tmp_path / "images" / "a.tif")
    write_geotiff(rasterio, tmp_path / "images" / "b.tif")
    head = kit.saved_head(tmp_path / "h.safetensors", head_of("mask"), SIZE)
    words = ("predict", tmp_path / "images", "--heads", head, "--out", tmp_path / "out.csv")

    result = kit.cli(*words, "--geojson", tmp_path / "objects.geojson")

    assert result.code == 0, result.err
    document = json.loads((tmp_path / "objects.geojson").read_text())
    assert document["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32632"
    [row] = Predictor(head)(image)
    plants = row["plant"]
    features = [one for one in document["features"] if one["properties"]["image"] == str(image)]
    assert len(features) == len(plants["scores"]) > 0
    assert len(document["features"]) == 2 * len(features)
    transform = rasterio.transform.from_origin(WEST, NORTH, PIXEL, PIXEL)
    for number, feature in enumerate(features):
        mask = drawn(rasterio, feature["geometry"], transform, SIZE)
        assert np.array_equal(mask, plants["masks"][number])
        assert feature["properties"]["class"] == "ab"[plants["labels"][number]]
        assert feature["properties"]["score"] == pytest.approx(plants["scores"][number], abs=1e-4)


def test_tiles_and_segments_are_polygons_too(rasterio: Any, tmp_path: Path) -> None:
    write_geotiff(rasterio, tmp_path / "images" / "a.tif")
    head = kit.saved_head(tmp_path / "h.safetensors", head_of("panoptic"), (32, 48))
    words = ("predict", tmp_path / "images", "--heads", f"plants={head}", "--tile", "32x48")

    result = kit.cli(
        *words, "--out", tmp_path / "out.csv", "--geojson", tmp_path / "o.json", "--json"
    )

    assert result.code == 0, result.err
    features = json.loads((tmp_path / "o.json").read_text())["features"]
    [row] = result.json["predictions"]
    assert len(features) == len(row["plants/plant objects"]) > 0
    assert {feature["properties"]["head"] for feature in features} == {"plants"}


def test_longitudes_come_first(rasterio: Any, tmp_path: Path) -> None:
    transform = rasterio.transform.from_origin(8.5, 47.5, 1e-5, 1e-5)
    image = write_geotiff(rasterio, tmp_path / "a.tif", crs="EPSG:4326", transform=transform)
    reference = read_references([image])[image]
    box = {"labels": np.array([0]), "scores": np.array([0.5]), "boxes": np.array([[0, 0, 9, 9]])}

    document = feature_collection([PlacedObjects("a", reference, box)])

    assert document["crs"]["properties"]["name"] == "urn:ogc:def:crs:OGC:1.3:CRS84"
    assert document["features"][0]["geometry"]["coordinates"][0][0] == [8.5, 47.5]


def test_images_without_a_grid_on_the_ground_are_refused(rasterio: Any, tmp_path: Path) -> None:
    utm_32 = write_geotiff(rasterio, tmp_path / "utm_32.tif")
    utm_33 = write_geotiff(rasterio, tmp_path / "utm_33.tif", crs="EPSG:32633")
    no_system = write_geotiff(rasterio, tmp_path / "none.tif", crs=None)
    no_code = write_geotiff(
        rasterio, tmp_path / "no_code.tif", crs="+proj=tmerc +lat_0=1.5 +lon_0=7.25 +datum=WGS84"
    )
    point = rasterio.control.GroundControlPoint(0, 0, WEST, NORTH)
    points = write_geotiff(rasterio, tmp_path / "points.tif", transform=None, gcps=[point])
    picture = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(picture)

    for images, message in (
        ([utm_32, utm_33], "utm_33.tif has coordinates of EPSG:32633"),
        ([no_system], "none.tif has no coordinate system"),
        ([no_code], "no_code.tif has no code, such as EPSG:32632"),
        ([points], "points.tif is placed by control points or RPCs"),
        ([picture], "a.png has no coordinate system"),
    ):
        with pytest.raises(DataError, match=message):
            read_references(images)


def test_damaged_files_are_left_out_of_the_geojson(rasterio: Any, tmp_path: Path) -> None:
    whole = write_geotiff(rasterio, tmp_path / "images" / "a.tif")
    cut_short = write_geotiff(rasterio, tmp_path / "images" / "b.tif")
    cut_short.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (tmp_path / "images" / "c.tif").write_text("no picture")
    head = kit.saved_head(tmp_path / "h.safetensors", head_of("mask"), SIZE)
    words = ("predict", tmp_path / "images", "--heads", head, "--out", tmp_path / "out.csv")
    words += ("--geojson", tmp_path / "objects.geojson")

    refused = kit.cli(*words)
    result = kit.cli(*words, "--skip-unusable", "--json")

    assert refused.code == 1
    assert result.code == 0, result.err
    left_out = [Path(name).name for name in result.json["unusable"]]
    assert left_out == ["b.tif", "c.tif"]
    features = json.loads((tmp_path / "objects.geojson").read_text())["features"]
    assert {feature["properties"]["image"] for feature in features} == {str(whole)}


def test_an_image_without_a_position_is_refused_also_where_unusable_ones_are_skipped(
    rasterio: Any, tmp_path: Path
) -> None:
    write_geotiff(rasterio, tmp_path / "images" / "a.tif")
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "b.png")
    head = kit.saved_head(tmp_path / "h.safetensors", head_of("mask"), SIZE)
    words = ("predict", tmp_path / "images", "--heads", head, "--out", tmp_path / "out.csv")

    result = kit.cli(*words, "--geojson", tmp_path / "o.geojson", "--skip-unusable")

    assert result.code == 1
    assert "b.png has no coordinate system" in result.err


def test_heads_without_objects_are_refused(rasterio: Any, tmp_path: Path) -> None:
    write_geotiff(rasterio, tmp_path / "images" / "a.tif")
    head = kit.saved_head(tmp_path / "h.safetensors")
    words = ("predict", tmp_path / "images", "--heads", head, "--out", tmp_path / "out.csv")

    result = kit.cli(*words, "--geojson", tmp_path / "o.geojson")

    assert result.code == 1
    assert "these heads predict no objects; leave --geojson out" in result.err
    assert not (tmp_path / "o.geojson").exists()


def test_without_rasterio_the_error_names_the_extra(tmp_path: Path) -> None:
    kit.write_images(tmp_path, ["images/a.png"])
    head = kit.saved_head(tmp_path / "h.safetensors")
    words = ("predict", tmp_path / "images", "--heads", head, "--out", tmp_path / "out.csv")

    with kit.without("rasterio"):
        result = kit.cli(*words, "--geojson", tmp_path / "o.geojson")

    assert result.code != 0
    assert (
        "rasterio is not installed; it comes with an extra: pip install 'dinoneck[geo]'"
        in result.err
    )
