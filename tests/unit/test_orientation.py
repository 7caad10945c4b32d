"""An image with an EXIF orientation is the upright image everywhere: its pixels, size, mask, boxes and predictions.

The files of a folder show one upright scene. Each is stored in one of the eight orientations and
tagged with it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import kit
from tests.unit.detection.test_detector import detector_of

from dinoneck import Backbone, DataError, FeatureStore, Predictor
from dinoneck.data import BoxImages, DenseLabels, Preprocessing, read_image_size
from dinoneck.training import LiveTokens, MemoryTokens

Pixels = np.ndarray[Any, Any]
HEIGHT, WIDTH = 32, 64
ORIENTATION = 0x0112
ORIENTATIONS = range(1, 9)
PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

# how the pixels of an upright image (H, W, ...) are stored under each orientation, by its
# definition in EXIF 2.32
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}

# suffix, options of saving, largest difference of a value
FORMS: dict[str, tuple[str, dict[str, Any], int]] = {
    "JPEG": ("jpg", {"quality": 100, "subsampling": 0}, 3),
    "PNG": ("png", {}, 0),
    "TIFF": ("tif", {}, 0),
    "TIFF LZW": ("tif", {"compression": "tiff_lzw"}, 0),
    "WebP": ("webp", {"lossless": True}, 0),
}
LABEL_FORMS = ("PNG", "TIFF", "TIFF LZW")


def scene() -> Pixels:
    """An upright image that no turn or flip maps to itself: blocks of 8 x 8 pixels, so that a JPEG keeps it."""
    blocks = np.random.RandomState(0).randint(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def mask() -> Pixels:
    return np.random.RandomState(1).randint(0, 3, (HEIGHT, WIDTH)).astype(np.uint8)


def write(
    file: Path, pixels: Pixels, orientation: int | None, options: dict[str, Any], mode: str = ""
) -> Path:
    """Save an upright image as it is stored under an orientation, with the tag; None saves it as it is, without."""
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(STORED[orientation or 1](pixels))
    image = Image.fromarray(stored)
    if mode == "P":
        image.putpalette(np.random.RandomState(2).randint(0, 256, 768, np.uint8).tobytes())
    elif mode == "CMYK":
        image = Image.merge(
            "CMYK", [Image.fromarray(np.ascontiguousarray(stored[..., i])) for i in range(4)]
        )
    image.save(file, exif=exif, **options)
    return file


def upright_of(file: Path) -> Pixels:
    """The upright image that a file shows, by the definitions above, of its pixels read without the tag."""
    turn = {6: STORED[8], 8: STORED[6]}.get(int(file.stem), STORED[int(file.stem)])
    with file.open("rb") as opened, Image.open(opened) as image:
        if image.format == "TIFF":  # Pillow turns it itself
            return scene()
        return turn(np.asarray(image.convert("RGB")))


@pytest.fixture(params=("JPEG", "TIFF"))  # tests/unit/images/test_decoding reads every form
def files(request: pytest.FixtureRequest, tmp_path: Path) -> list[Path]:
    """One scene in eight files, ``1`` to ``8``."""
    (tmp_path / "images").mkdir()
    suffix, options, _ = FORMS[request.param]
    return [write(tmp_path / "images" / f"{i}.{suffix}", scene(), i, options) for i in ORIENTATIONS]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_raw_tiffs_of_every_mode_are_turned(mode: str, tmp_path: Path) -> None:
    """Pillow 11 to 13 maps such files into memory and gives scrambled pixels for a quarter turn."""
    shape = (HEIGHT, WIDTH, 4) if mode in ("RGBA", "CMYK") else (HEIGHT, WIDTH)
    deep = mode == "I;16"
    pixels = np.random.RandomState(0).randint(
        0, 1 << (16 if deep else 8), shape, np.uint16 if deep else np.uint8
    )
    if mode == "RGBA":
        pixels[..., 3] = np.where(pixels[..., 3] > 127, 255, 0)  # a noisy band would be no alpha
    upright = Preprocessing(16, **PLAIN)(write(tmp_path / "0.tif", pixels, None, {}, mode))
    for orientation in ORIENTATIONS:
        file = write(tmp_path / "x.tif", pixels, orientation, {}, mode)
        for given in (file, Image.open(file)):
            assert torch.equal(Preprocessing(16, **PLAIN)(given), upright), orientation
            if mode in ("L", "P", "I;16"):
                assert np.array_equal(
                    DenseLabels().cells(given, Preprocessing(1))[0][0, 0], pixels
                ), orientation


# Masks and boxes
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", LABEL_FORMS)
def test_masks_lie_on_the_upright_image(form: str, files: list[Path], tmp_path: Path) -> None:
    suffix, options, _ = FORMS[form]
    recipe, how = Preprocessing(16), DenseLabels(classes=3)
    cells, _ = how.cells(mask(), recipe)
    untagged = write(tmp_path / f"upright.{suffix}", mask(), None, options)
    for file in files:
        sizes = [read_image_size(file)]
        tagged = write(tmp_path / f"tagged.{suffix}", mask(), int(file.stem), options)
        for given in (tagged, untagged, Image.open(tagged)):
            assert torch.equal(how.cells(given, recipe, sizes)[0], cells), file.name
            assert np.array_equal(how.indices(given, recipe, sizes)[0], mask()), file.name
        if int(file.stem) >= 5:
            stored = write(
                tmp_path / f"stored.{suffix}", STORED[int(file.stem)](mask()), None, options
            )
            with pytest.raises(DataError, match=rf"stored.{suffix}.*{WIDTH}x{HEIGHT}"):
                how.cells(stored, recipe, sizes)


def test_boxes_lie_on_the_upright_image(files: list[Path], tmp_path: Path) -> None:
    def listed(height: int, width: int) -> BoxImages:
        box = {"category_id": 1, "bbox": [8, 0, 24, 16], "iscrowd": 0}
        content = {
            "images": [
                {"id": i, "file_name": file.name, "height": height, "width": width}
                for i, file in numbered
            ],
            "annotations": [{"id": i, "image_id": i, **box} for i, _ in numbered],
            "categories": [{"id": 1, "name": "plant"}],
        }
        (tmp_path / "boxes.json").write_text(json.dumps(content))
        return BoxImages(tmp_path / "boxes.json", files[0].parent)

    numbered = [(int(file.stem), file) for file in files]
    for (image, target), file in zip(listed(HEIGHT, WIDTH), files, strict=True):  # type: ignore[call-overload]
        assert np.array_equal(image.permute(1, 2, 0), upright_of(file)), file.name
        assert (target["size"], target["boxes"].canvas_size) == ((HEIGHT, WIDTH), (HEIGHT, WIDTH))
        assert target["boxes"].tolist() == [[8, 0, 32, 16]]
    sideways = listed(WIDTH, HEIGHT)
    for i, file in enumerate(files):
        if int(file.stem) >= 5:
            with pytest.raises(DataError, match=rf"{file.name}.* {HEIGHT}x{WIDTH} "):
                sideways[i]


# Training, stores, predictions
# ------------------------------------------------------------------------------


def predicted(backbone: Backbone, images: list[Any], **options: Any) -> Any:
    """Numbers, maps and pictures of a head."""
    predictor = Predictor(kit.head(), backbone, **options)
    rows = predictor(images, maps="patch")
    return [(row["mass"], row["maps"]["mass"]) for row in rows], [
        predictor.picture(image) for image in images
    ]


def detected(images: list[Any]) -> Any:
    detector = detector_of("fcos", size=(64, 64))
    found = [detector.predict(image, min_score=0.0) for image in images]
    return [[one[0][name] for name in ("boxes", "scores", "labels")] for one in found]


IDS = [str(i) for i in ORIENTATIONS]
# what is computed from the files of images, or from arrays of the upright ones
USES: dict[str, Callable[[Backbone, list[Any]], Any]] = {
    "memory": lambda own, images: (
        MemoryTokens.extract(own, images, IDS, dtype=torch.float32).batch(IDS).sequence
    ),
    "live": lambda own, images: LiveTokens(own, images, IDS).batch(IDS).sequence,
    "predictor": lambda own, images: predicted(own, images),
    "tiles": lambda own, images: predicted(own, images, tile=(32, 16)),  # 1 x 4 of an image
    "detector": lambda own, images: detected(images),
}


@pytest.mark.parametrize("use", USES)
def test_what_is_computed_is_that_of_the_upright_image(
    use: str, tiny: Backbone, files: list[Path]
) -> None:
    found, expected = (
        USES[use](tiny, images) for images in (files, [upright_of(file) for file in files])
    )
    assert kit.same(found, expected, 1e-5)


@pytest.mark.parametrize("size", [None, (32, 48)])
def test_stored_tokens_are_those_of_the_upright_image(
    tiny: Backbone, files: list[Path], size: tuple[int, int] | None, tmp_path: Path
) -> None:
    expected = tiny(
        tiny.preprocess.changed(size=size)([upright_of(file) for file in files])
    ).sequence[0]
    store = FeatureStore.create(tmp_path / "store", backbone=tiny, image_size=size)
    store.extract(tmp_path / "images")
    assert kit.same(store.batch(store.ids).sequence[0], expected, 4e-3)
