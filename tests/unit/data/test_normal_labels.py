"""Files of surface normals as targets: forms, unknown pixels, orientations, patches and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinoneck.data import Preprocessing
from dinoneck.data.normals import NormalLabels
from dinoneck.errors import DataError

ORIENTATION = 0x0112
LEANING = np.array([0.6, 0.0, 0.8], np.float32)


def normals(height: int = 32, width: int = 48) -> np.ndarray:
    """The upper half faces the camera, the lower one leans to the right, (H, W, 3)."""
    vectors = np.zeros((height, width, 3), np.float32)
    vectors[: height // 2, :, 2] = 1.0
    vectors[height // 2 :] = LEANING
    return vectors


def as_colours(vectors: np.ndarray) -> np.ndarray:
    return np.rint((vectors + 1) * 127.5).astype(np.uint8)


def write_tiff(path: Path, vectors: np.ndarray) -> Path:
    """Write a GeoTIFF of three bands."""
    rasterio = pytest.importorskip("rasterio")
    height, width, _ = vectors.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=3,
        dtype="float32",
        crs="EPSG:25832",
        transform=rasterio.transform.from_origin(500_000, 5_600_000, 0.1, 0.1),
    ) as file:
        file.write(vectors.transpose(2, 0, 1))
    return path


def write_png(path: Path, vectors: np.ndarray) -> Path:
    Image.fromarray(as_colours(vectors)).save(path)
    return path


def as_deep_colours(vectors: np.ndarray) -> np.ndarray:
    return np.rint((vectors + 1) * 32767.5).astype(np.uint16)


def degrees(one: Any, other: Any) -> float:
    cosine = np.clip(np.sum(np.asarray(one) * np.asarray(other), axis=0), -1, 1)
    return float(np.degrees(np.arccos(cosine)).max())


def test_all_forms_are_the_same_normals(tmp_path: Path) -> None:
    vectors = normals()
    forms = [
        write_tiff(tmp_path / "a.tif", vectors),
        write_png(tmp_path / "a.png", vectors),
        vectors,
        torch.from_numpy(2.2 * vectors / 2),
        as_colours(vectors),
        as_deep_colours(vectors),
        Image.fromarray(as_colours(vectors)),
    ]
    for form in forms:
        values, counts = NormalLabels().cells([form], Preprocessing(16), [(32, 48)])
        assert values.shape == (1, 3, 2, 3)
        assert degrees(values[0, :, 0, 0], (0.0, 0.0, 1.0)) < 0.5, "8 bits are 0.3 degrees"
        assert degrees(values[0, :, 1, 2], LEANING) < 0.5
        assert torch.allclose(values.square().sum(dim=1), torch.ones(()), atol=1e-6)
        assert (counts == 256).all()


def test_a_patch_has_the_direction_of_the_mean_vector_of_its_known_pixels() -> None:
    vectors = normals(16, 16)
    vectors[:4] = np.nan

    values, counts = NormalLabels().cells(vectors, Preprocessing(16))

    # 4 rows of the upper half and the 8 rows of the lower one are left
    mean = 4 * np.array([0.0, 0.0, 1.0]) + 8 * LEANING
    known_pixels = 12 * 16
    assert values[0, :, 0, 0].tolist() == pytest.approx(mean / np.linalg.norm(mean))
    assert counts.item() == known_pixels


UNKNOWN = [
    pytest.param(np.full(3, np.nan, np.float32), id="NaN"),
    pytest.param(np.zeros(3, np.float32), id="the zero vector"),
    pytest.param(np.full(3, 0, np.uint8), id="black"),
    pytest.param(np.full(3, 127, np.uint8), id="grey 127"),
    pytest.param(np.full(3, 128, np.uint8), id="grey 128"),
    pytest.param(np.full(3, 255, np.uint8), id="white"),
    pytest.param(np.full(3, 0, np.uint16), id="black of 16 bits"),
    pytest.param(np.full(3, 32767, np.uint16), id="grey 32767"),
    pytest.param(np.full(3, 32768, np.uint16), id="grey 32768"),
    pytest.param(np.full(3, 65535, np.uint16), id="white of 16 bits"),
    pytest.param(np.full(3, 128 * 257, np.uint16), id="grey 128 of 8 bits"),
]


@pytest.mark.parametrize("mark", UNKNOWN)
def test_pixels_without_a_normal_weigh_nothing(mark: np.ndarray) -> None:
    vectors = normals()
    if mark.dtype == np.uint8:
        stored = as_colours(vectors)
    elif mark.dtype == np.uint16:
        stored = as_deep_colours(vectors)
    else:
        stored = vectors
    stored[:, :16] = mark
    values, counts = NormalLabels().cells(stored, Preprocessing(16))
    assert counts[0].tolist() == [[0.0, 256.0, 256.0]] * 2
    assert not values[0, :, :, 0].any()
    pixels = NormalLabels().pixels(stored, Preprocessing(16))
    assert pixels[:, :, :16].isnan().all()
    assert not pixels[:, :, 16:].isnan().any()


@pytest.mark.parametrize("length", [0.4, 1.6, 1000.0])
def test_single_vectors_of_a_length_far_from_1_are_unknown(length: float) -> None:
    vectors = normals()
    vectors[:, 42:] *= length  # an eighth of them: the file still holds normals
    vectors[:, 40:42] *= 0.7  # between two surfaces
    _, counts = NormalLabels().cells(vectors, Preprocessing(16))
    assert counts[0].tolist() == [[256.0, 256.0, 160.0]] * 2
    pixels = NormalLabels().pixels(vectors, Preprocessing(16))
    assert pixels[:, :, 42:].isnan().all()
    assert not pixels[:, :, :42].isnan().any()


def test_transparent_pixels_have_no_normal(tmp_path: Path) -> None:
    alpha = np.full((32, 48, 1), 255, np.uint8)
    alpha[:, :16] = 0
    path = tmp_path / "a.png"
    Image.fromarray(np.concatenate([as_colours(normals()), alpha], axis=2)).save(path)
    _, counts = NormalLabels().cells([path], Preprocessing(16))
    assert counts[0].tolist() == [[0.0, 256.0, 256.0]] * 2


def test_pixels_are_those_of_the_prepared_image_and_nan_in_padding() -> None:
    recipe = Preprocessing(16, size=(48, 48), resize="pad")
    pixels = NormalLabels().pixels(normals(), recipe)
    assert pixels.shape == (3, 48, 48)
    assert pixels[:, 8, 8].tolist() == [0.0, 0.0, 1.0]
    assert pixels[:, 24, 8].tolist() == pytest.approx(LEANING.tolist())
    assert pixels[:, 32:].isnan().all()


def test_a_picture_that_exif_mirrors_has_mirrored_vectors(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[ORIENTATION] = 2  # mirrored left and right
    stored = normals() * (-1, 1, 1)
    Image.fromarray(as_colours(stored)).save(path, exif=exif)
    values, _ = NormalLabels().cells([path], Preprocessing(16))
    assert degrees(values[0, :, 1, 1], LEANING) < 0.5


def test_a_map_without_a_normal_has_no_known_pixel() -> None:
    unknown = np.full((32, 48, 3), np.nan, np.float32)

    values, counts = NormalLabels().cells(unknown, Preprocessing(16))

    assert not values.any()
    assert not counts.any()


def test_labels_of_two_sizes_are_refused_with_the_way_to_one() -> None:
    labels = [normals(32, 48), normals(48, 48)]

    with pytest.raises(DataError, match=r"different sizes: 3x2x3, 3x3x3; give preprocess a size="):
        NormalLabels().cells(labels, Preprocessing(16))


def mirrored_tiff(folder: Path) -> Path:
    """:func:`normals` as colours in a TIFF whose EXIF mirrors them left and right."""
    path = folder / "mirrored.tif"
    exif = Image.Exif()
    exif[ORIENTATION] = 2
    Image.fromarray(as_colours(normals() * (-1, 1, 1))).save(path, exif=exif)
    return path


def test_the_vectors_of_a_pil_image_are_mirrored_as_those_of_its_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 2
    path = tmp_path / "a.png"
    Image.fromarray(as_colours(normals() * (-1, 1, 1))).save(path, exif=exif)
    of_file, _ = NormalLabels().cells([path], Preprocessing(16))
    of_image, _ = NormalLabels().cells([Image.open(path)], Preprocessing(16))
    assert degrees(of_file[0, :, 1, 1], LEANING) < 0.5
    assert torch.equal(of_image, of_file)


def test_a_pil_image_of_a_tiff_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(DataError, match="a PIL image of a TIFF.* pass its path")
    with Image.open(mirrored_tiff(tmp_path)) as image, refused:
        NormalLabels().cells([image], Preprocessing(16))


REFUSED = [
    pytest.param(-normals(), "point towards the camera: z is negative in 100%", id="outward"),
    pytest.param(3 * normals(), "length near 1, the first has 3", id="long"),
    pytest.param(normals()[..., :2], r"has 2 of the three bands", id="two bands"),
    pytest.param(normals().astype(np.int32), "numbers of the type int32", id="integers"),
]


@pytest.mark.parametrize(("label", "message"), REFUSED)
def test_what_is_no_map_of_normals_is_refused(label: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        NormalLabels().cells([label], Preprocessing(16))


def test_a_label_of_another_size_is_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", normals())
    with pytest.raises(DataError, match=r"a\.tif is 32x48 px .*, its image is 16x48 px"):
        NormalLabels().cells([path], Preprocessing(16), [(16, 48)])
