"""Predictor.predictions: rows and maps in the pixels of images that are made later, one image at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests import kit

from dinoneck import CLSGatingHead, ConfigError, DenseHead, MaskHead, Predictor, Task
from dinoneck.backbones import Backbone
from dinoneck.data import Preprocessing
from dinoneck.inference import ImagePrediction

CLASSES = Task("plant", dim=3, kind="segmentation")
AMOUNT = Task("ndvi", kind="dense")
PADDED = Preprocessing(16, size=(64, 96), resize="pad", pad_to="center")
SIZES = ((40, 70), (32, 48), (64, 33))


def images() -> list[np.ndarray]:
    random = np.random.RandomState(0)
    return [random.randint(0, 256, (*size, 3), np.uint8) for size in SIZES]


def dense() -> DenseHead:
    return kit.randomised(DenseHead(64, [CLASSES, AMOUNT], hidden_dim=8))


def masks() -> MaskHead:
    head = MaskHead(64, [CLASSES], num_layers=1, num_queries=3, num_blocks=1, dim=16)
    return kit.randomised(head).eval()


def gated() -> CLSGatingHead:
    return kit.randomised(CLSGatingHead(64, [Task("mass")], mode="query", hidden_dim=8))


HEADS = {"dense": dense, "masks": masks, "gated": gated}


@pytest.mark.slow
@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("views", ["none", "d6"])
def test_rows_are_those_of_calling_the_predictor(make: Any, views: Any, tiny: Backbone) -> None:
    predictor = Predictor(make(), tiny, views, preprocess=PADDED)
    predictions = predictor.predictions(images())
    for maps in (None, "patch", "image"):
        rows = [prediction.row(maps) for prediction in predictions]
        assert kit.same(rows, predictor(images(), maps=maps))
        assert [list(row) for row in rows] == [list(row) for row in predictor(images(), maps=maps)]


@pytest.mark.parametrize("make", [dense, masks])
def test_image_maps_are_those_of_calling_the_predictor(make: Any, tiny: Backbone) -> None:
    predictor = Predictor(make(), tiny, "flip4", preprocess=PADDED)
    predictions = predictor.predictions(images())
    rows = predictor(images(), maps="image", probabilities=True)
    for prediction, row in zip(predictions, rows, strict=True):
        assert kit.same(prediction.image_maps(probabilities=True), row["maps"])


def test_predictions_of_several_heads_have_their_keys_in_order(tiny: Backbone) -> None:
    heads: dict[str, Any] = {"cover": dense(), "mass": kit.head()}
    predictor = Predictor(heads, tiny)
    image = images()[1]
    [prediction] = predictor.predictions(image)
    [row] = predictor(image, maps="image")
    assert list(prediction) == ["cover", "mass"]
    assert kit.same(prediction["cover"].row("image"), row["cover"])
    assert kit.same(prediction["mass"].row("image"), row["mass"])


def test_objects_below_the_least_score_are_left_out(tiny: Backbone) -> None:
    task = Task("plant", dim=2, kind="instances", labels=("a", "b"))
    torch.manual_seed(3)
    head = MaskHead(64, [task], num_layers=1, num_queries=3, num_blocks=1, dim=16)
    head.classes.weight.data *= 400  # sure of its classes
    head.queries.weight.data *= 40
    predictor = Predictor(head.eval(), tiny)
    [all_objects] = predictor.predictions(images()[1], min_score=0.0)
    [no_objects] = predictor.predictions(images()[1], min_score=1.0)
    assert len(all_objects.row()["plant"]["scores"]) > 0
    assert len(no_objects.row()["plant"]["scores"]) == 0


def test_a_row_is_the_users_own(tiny: Backbone) -> None:
    [prediction] = Predictor(dense(), tiny).predictions(images()[1])
    first = prediction.row(maps="patch")
    first["maps"].clear()
    first.clear()
    second = prediction.row(maps="patch")
    assert list(second) == ["plant", "ndvi", "maps"]
    assert list(second["maps"]) == ["plant", "ndvi"]


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS.keys())
@pytest.mark.parametrize("views", ["none", "flip4"])
def test_rows_hold_what_is_documented_and_nothing_else(
    make: Any, views: Any, tiny: Backbone
) -> None:
    predictor = Predictor(make(), tiny, views)
    [row] = predictor(images()[1], maps="patch")
    names = {task.name for task in predictor.tasks}
    assert set(row) - {"gate"} == names | {"maps"}
    assert ("gate" in row) == isinstance(make(), CLSGatingHead)


def test_its_text_names_the_tasks_and_the_size_of_the_image(tiny: Backbone) -> None:
    [prediction] = Predictor(kit.head(), tiny, preprocess=PADDED).predictions(images()[0])
    assert isinstance(prediction, ImagePrediction)
    assert repr(prediction) == "ImagePrediction(mass (regression, g), of 40 x 70 px)"
    assert prediction.size == (40, 70)


def test_tiled_images_have_maps_of_their_own_size(tiny: Backbone) -> None:
    predictor = Predictor(masks(), tiny, tile=32)
    [large_image] = kit.images(1, 64, 96)
    [small_image] = kit.images(1, 32, 32)

    [large, small] = predictor.predictions([large_image, small_image])

    assert large.image_maps()["plant"].shape == (64, 96)
    assert small.image_maps()["plant"].shape == (32, 32)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"maps": "pixel"}, "maps is 'pixel'"),
        ({"maps": True}, "maps is True"),
        ({"maps": "patch", "probabilities": True}, "maps is 'patch'"),
    ],
    ids=["another word", "a flag", "probabilities of patches"],
)
def test_other_maps_are_refused(options: Any, named: str, tiny: Backbone) -> None:
    [prediction] = Predictor(dense(), tiny).predictions(images()[1])
    with pytest.raises(ConfigError, match=named):
        prediction.row(**options)


def test_a_row_that_is_changed_leaves_the_prediction_as_it_is(tiny: Backbone) -> None:
    head = kit.randomised(DenseHead(64, [Task("cover", dim=2, kind="dense")], hidden_dim=8)).eval()
    [prediction] = Predictor(head, tiny).predictions(images()[1])
    row = prediction.row("patch")
    value = row["cover"].copy()
    cells = row["maps"]["cover"].copy()
    of_image = prediction.image_maps()["cover"]

    row["cover"] *= 100
    row["maps"]["cover"] *= 100

    np.testing.assert_array_equal(prediction.row("patch")["cover"], value)
    np.testing.assert_array_equal(prediction.row("patch")["maps"]["cover"], cells)
    np.testing.assert_array_equal(prediction.image_maps()["cover"], of_image)


@pytest.mark.parametrize("views", ["none", "flip4"])
def test_the_gate_of_an_image_lies_on_its_pixels_and_adds_up_to_one(
    views: Any, tiny: Backbone
) -> None:
    """Weights are spread bilinearly, so pixels in the corners have those of the outer cells."""
    predictor = Predictor([gated(), kit.randomised(gated(), std=0.2)], tiny, views)
    image = torch.rand(3, 32, 48)
    [prediction] = predictor.predictions(image)
    weights = prediction.image_gate()
    assert weights is not None
    assert (weights.shape, weights.dtype) == ((32, 48), np.float32)
    assert weights.astype(float).sum() == pytest.approx(1.0, abs=1e-6)

    gate = prediction.row(maps="patch")["gate"]
    corners = weights[[0, 0, -1, -1], [0, -1, 0, -1]]
    cells = gate[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners / corners[0] == pytest.approx(cells / cells[0], rel=1e-4)


def test_the_gate_on_padding_has_no_pixels(tiny: Backbone) -> None:
    wide = torch.rand(3, 20, 160)  # two of the four rows of its square canvas
    padded = PADDED.changed(size=(64, 64))
    [prediction] = Predictor(gated(), tiny, preprocess=padded).predictions(wide)
    weights = prediction.image_gate()
    assert weights is not None
    gate = prediction.row(maps="patch")["gate"]
    rows, cols = padded.placement(prediction.size).shown_cells(gate.shape)
    shown = float(gate[rows, cols].sum())
    assert 0.0 < shown < 0.9
    assert np.nansum(weights.astype(float)) == pytest.approx(shown, abs=1e-6)


def test_heads_without_a_gate_have_no_map_of_one(tiny: Backbone) -> None:
    [prediction] = Predictor(dense(), tiny, preprocess=PADDED).predictions(images()[0])
    assert prediction.image_gate() is None
