"""Files of surface normals as targets: forms, unknown pixels, orientations, patches and what is refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dinoneck.images.vector_tiffs import encode_vectors
from PIL import Image
from tests.unit.data.tiff_files import DEFLATE, LONG, tiff
from tests.unit.images.test_storage import write_colours

from dinoneck.data import Preprocessing
from dinoneck.data.normals import NormalLabels
from dinoneck.errors import DataError

ORIENTATION = 0x0112
STRIP_OFFSETS, STRIP_BYTES = 273, 279
RGB = 2
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
    path.write_bytes(encode_vectors(vectors.transpose(2, 0, 1)))
    return path


def write_png(path: Path, vectors: np.ndarray) -> Path:
    Image.fromarray(as_colours(vectors)).save(path)
    return path


def as_deep_colours(vectors: np.ndarray) -> np.ndarray:
    return np.rint((vectors + 1) * 32767.5).astype(np.uint16)


def with_orientation(path: Path, orientation: int) -> Path:
    """State an EXIF orientation in a PNG file."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return with_chunk(path, b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))


def with_chunk(path: Path, kind: bytes, data: bytes) -> Path:
    """Insert a chunk behind the header of a PNG file."""
    checksum = zlib.crc32(kind + data)
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
    content = path.read_bytes()
    end_of_header = 8 + 25  # of the signature and IHDR
    path.write_bytes(content[:end_of_header] + chunk + content[end_of_header:])
    return path


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
        write_colours(tmp_path / "deep.png", as_deep_colours(vectors)),
        Image.open(tmp_path / "deep.png"),
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


def test_both_bytes_of_a_png_of_16_bits_count(tmp_path: Path) -> None:
    """A step of 16 bits is 0.001 degrees, one of 8 bits 0.3; the picture is mirrored by EXIF."""
    stored = as_deep_colours(normals() * (-1, 1, 1))
    path = with_orientation(write_colours(tmp_path / "a.png", stored), 2)
    values, counts = NormalLabels().cells([path], Preprocessing(16), [(32, 48)])
    assert degrees(values[0, :, 0, 0], (0.0, 0.0, 1.0)) < 0.005
    assert degrees(values[0, :, 1, 2], LEANING) < 0.005
    assert (counts == 256).all()


def test_transparent_pixels_of_16_bits_have_no_normal(tmp_path: Path) -> None:
    alpha = np.full((32, 48, 1), 65535, np.uint16)
    alpha[:, :16] = 0
    colours = np.concatenate([as_deep_colours(normals()), alpha], axis=2)
    _, counts = NormalLabels().cells(
        [write_colours(tmp_path / "a.png", colours)], Preprocessing(16)
    )
    assert counts[0].tolist() == [[0.0, 256.0, 256.0]] * 2


def test_pixels_of_the_transparent_colour_of_16_bits_have_no_normal(tmp_path: Path) -> None:
    colours = as_deep_colours(normals())
    colours[:16, :16] = (1, 2, 3)
    path = write_colours(tmp_path / "a.png", colours)
    with_chunk(path, b"tRNS", struct.pack(">HHH", 1, 2, 3))

    _, counts = NormalLabels().cells([path], Preprocessing(16))

    assert counts[0].tolist() == [[0.0, 256.0, 256.0], [256.0, 256.0, 256.0]]


def test_a_decoded_image_of_16_bits_whose_file_is_known_is_refused(tmp_path: Path) -> None:
    """Pillow has dropped the low bytes."""
    image = Image.open(write_colours(tmp_path / "a.png", as_deep_colours(normals())))
    image.load()

    with pytest.raises(DataError, match=r"label 0 \(a PIL image\) has several bands of 16 bits"):
        NormalLabels().cells([image], Preprocessing(16))


def test_a_map_without_a_normal_has_no_known_pixel() -> None:
    unknown = np.full((32, 48, 3), np.nan, np.float32)

    values, counts = NormalLabels().cells(unknown, Preprocessing(16))

    assert not values.any()
    assert not counts.any()


def test_a_tiff_is_read_where_pillow_has_no_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = write_tiff(tmp_path / "a.tif", normals())

    _, counts = NormalLabels().cells([path], Preprocessing(16))

    assert (counts == 256).all()


def test_strips_of_a_tiff_beyond_its_last_row_are_not_read(tmp_path: Path) -> None:
    vectors = normals()
    strip_bytes = len(zlib.compress(vectors.tobytes()))
    first_byte = 8  # behind the header
    tags = {
        STRIP_OFFSETS: (LONG, [first_byte, first_byte]),
        STRIP_BYTES: (LONG, [strip_bytes, strip_bytes]),
    }
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(vectors, photometric=RGB, compression=DEFLATE, tags=tags))

    pixels = NormalLabels().pixels(path, Preprocessing(16))

    assert degrees(pixels.numpy(), vectors.transpose(2, 0, 1)) < 0.1


def test_labels_of_two_sizes_are_refused_with_the_way_to_one() -> None:
    labels = [normals(32, 48), normals(48, 48)]

    with pytest.raises(DataError, match=r"different sizes: 2x3, 3x3; give preprocess a size="):
        NormalLabels().cells(labels, Preprocessing(16))


def test_a_png_of_16_bits_is_compared_with_its_image_and_refused_where_it_is_cut(
    tmp_path: Path,
) -> None:
    path = write_colours(tmp_path / "a.png", as_deep_colours(normals()))
    with pytest.raises(DataError, match="is 32x48 px .*its image is 48x32 px"):
        NormalLabels().cells([path], Preprocessing(16), [(48, 32)])
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"a\.png"):
        NormalLabels().cells([path], Preprocessing(16))


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of rasterio and affine
@pytest.mark.parametrize(
    "options", [{}, {"compress": "lzw", "tiled": True}, {"interleave": "band"}]
)
def test_a_geotiff_of_normals_is_read(options: dict[str, Any], tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "a.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=32,
        width=48,
        count=3,
        dtype="float32",
        crs="EPSG:25832",
        transform=rasterio.transform.from_origin(500_000, 5_600_000, 0.1, 0.1),
        **options,
    ) as file:
        file.write(normals().transpose(2, 0, 1))
    values, counts = NormalLabels().cells([path], Preprocessing(16), [(32, 48)])
    assert degrees(values[0, :, 0, 0], (0.0, 0.0, 1.0)) < 1e-3
    assert degrees(values[0, :, 1, 2], LEANING) < 1e-3
    assert (counts == 256).all()


def mirrored_tiff(folder: Path) -> Path:
    """:func:`normals` as colours in a TIFF whose EXIF mirrors them left and right."""
    path = folder / "mirrored.tif"
    exif = Image.Exif()
    exif[ORIENTATION] = 2
    Image.fromarray(as_colours(normals() * (-1, 1, 1))).save(path, exif=exif)
    return path


def test_the_vectors_of_a_pil_image_of_a_tiff_are_mirrored_as_those_of_its_file(
    tmp_path: Path,
) -> None:
    path = mirrored_tiff(tmp_path)
    of_file, _ = NormalLabels().cells([path], Preprocessing(16))
    of_image, _ = NormalLabels().cells([Image.open(path)], Preprocessing(16))
    assert degrees(of_file[0, :, 1, 1], LEANING) < 0.5
    assert torch.equal(of_image, of_file)


def test_a_pil_image_of_a_tiff_that_is_loaded_already_is_refused(tmp_path: Path) -> None:
    image = Image.open(mirrored_tiff(tmp_path))
    image.load()
    with pytest.raises(DataError, match="is of a TIFF that is loaded already"):
        NormalLabels().cells([image], Preprocessing(16))


REFUSED = [
    pytest.param(-normals(), "point towards the camera: z is negative in 100%", id="outward"),
    pytest.param(3 * normals(), "holds no surface normals: 100% of its vectors", id="long"),
    pytest.param(normals()[..., :2], r"has 2 of the three bands", id="two bands"),
    pytest.param(normals().astype(np.int32), "numbers of the type int32", id="integers"),
    pytest.param(
        np.random.default_rng(0).integers(0, 255, (32, 48, 3)).astype(np.uint8),
        "holds no surface normals",
        id="a photo",
    ),
]


@pytest.mark.parametrize(("label", "message"), REFUSED)
def test_what_is_no_map_of_normals_is_refused(label: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        NormalLabels().cells([label], Preprocessing(16))


def test_a_label_of_another_size_is_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", normals())
    with pytest.raises(DataError, match=r"a\.tif is 32x48 px .*, its image is 16x48 px"):
        NormalLabels().cells([path], Preprocessing(16), [(16, 48)])
