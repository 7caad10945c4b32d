"""Masks of COCO JSON: polygons and run lengths show the same pixels; what pycocotools would misread is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import Raw
from tests.unit.data.coco_run_lengths import run_lengths_of

from dinoneck import DataError
from dinoneck.data.segmentations import area_of, count_pixels, decode, extent_of, read_mask

masks = pytest.importorskip("pycocotools.mask", reason="needs dinoneck[masks]")

SIZE = HEIGHT, WIDTH = 36, 52
POLYGON = [10, 8, 34, 8, 34, 23, 10, 23]
RECTANGLE = np.zeros(SIZE, np.uint8)
RECTANGLE[8:23, 10:34] = 1


def read(segmentation: Any) -> Any:
    return read_mask(Raw(msgspec.json.encode(segmentation)), SIZE, "annotations[0]")


def encoded(counts: Any, size: Any = SIZE) -> dict[str, Any]:
    return {"size": size, "counts": counts}


def text_of(mask: np.ndarray[Any, Any]) -> str:
    return str(masks.encode(np.asfortranarray(mask))["counts"].decode())


def unchecked_text(counts: list[int]) -> str:
    """COCO's text of run lengths, whatever they add up to."""
    plain = {"size": [HEIGHT, WIDTH], "counts": counts}
    return str(masks.frPyObjects(plain, HEIGHT, WIDTH)["counts"].decode())


@pytest.mark.parametrize(
    "segmentation",
    [
        pytest.param([POLYGON], id="polygon"),
        pytest.param([[10, 8, 34, 8, 34, 23], [10, 8, 34, 23, 10, 23]], id="two parts"),
        pytest.param(POLYGON, id="flat list"),
        pytest.param([[*map(str, POLYGON)]], id="texts"),
        pytest.param([POLYGON, [5, 5, 6, 6]], id="a part of two points"),
        pytest.param(encoded(run_lengths_of(RECTANGLE)), id="run lengths"),
        pytest.param(encoded([*map(float, run_lengths_of(RECTANGLE))]), id="with a point"),
        pytest.param(encoded(text_of(RECTANGLE)), id="text"),
    ],
)
def test_every_form_shows_the_same_pixels(segmentation: Any) -> None:
    mask = read(segmentation)

    assert np.array_equal(decode(mask), RECTANGLE)
    assert area_of(mask) == RECTANGLE.sum()
    assert extent_of(mask) == (10, 8, 34, 23)


@pytest.mark.parametrize("segmentation", [[], None, [[]], [[10, 8, 34, 23]], [10, 8, 34, 23]])
def test_what_covers_no_area_is_no_mask(segmentation: Any) -> None:
    assert read(segmentation) is None


@pytest.mark.parametrize(
    ("segmentation", "named"),
    [
        pytest.param([[*POLYGON, 5]], "odd", id="an odd number"),
        pytest.param([["a", "b", "c", "d", "e", "f"]], "a", id="words"),
        pytest.param("polygon", "polygon", id="a word"),
        pytest.param({"x": [10, 34], "y": [8, 23]}, "size", id="coordinates by name"),
        pytest.param([[10, 8, 34, 8, 34, 3e6]], "3000000.0", id="far away"),
        pytest.param([["nan", 8, 34, 8, 34, 23]], "nan", id="not finite"),
        pytest.param(encoded([30], (5, 6)), r"\(5, 6\).*\(36, 52\)", id="another size"),
        pytest.param(encoded([100, 20]), "120 .*1872", id="too few pixels"),
        pytest.param(encoded([1872, 1]), "1873 .*1872", id="too many pixels"),
        pytest.param(encoded([-1, 1873]), "-1", id="a negative run"),
        pytest.param(encoded(unchecked_text([100, 20])), "120 .*1872", id="text that ends early"),
        pytest.param(encoded(text_of(RECTANGLE)[:-1] + "o"), "counts", id="text cut in a number"),
        pytest.param(encoded("\u00e9"), "counts", id="another character"),
        pytest.param(encoded("oooooooooooo0"), "-1 .*1872", id="a number beyond all images"),
        pytest.param(encoded(""), "0 pixels", id="text without runs"),
    ],
)
def test_what_pycocotools_would_misread_is_refused(segmentation: Any, named: str) -> None:
    with pytest.raises(DataError, match=rf"annotations\[0\].*{named}"):
        read(segmentation)


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_of_random_masks_add_up(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.random((37, 53)) > rng.uniform(0.1, 0.9)).astype(np.uint8)

    assert count_pixels(text_of(mask)) == mask.size
    assert count_pixels(run_lengths_of(mask)) == mask.size
