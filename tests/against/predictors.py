"""22 predictors on images of several sizes, in all forms of maps, and on stored tokens of the images."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from dinoneck import (
    CLSGatingHead,
    Composition,
    ConfigError,
    DenseHead,
    FeatureStore,
    HeadEnsemble,
    MaskHead,
    PatchMeanHead,
    Predictor,
    PyramidHead,
    SimplePyramid,
    TargetTransform,
    Task,
)
from dinoneck.data import Preprocessing
from tests.against import this_version
from tests.against.canonical import canonical
from tests.against.material import IMAGES, ODD_IMAGES, WIDTH, random_images, seeded, tiny

MASS = Task(
    "mass",
    unit="g",
    transform=TargetTransform(log1p=True, mean=1.0, std=0.5),
    minimum=0.0,
)
SOIL = Task("soil", dim=2, kind="classification", labels=("wet", "dry"))
COVER = Task("cover", dim=3, kind="dense", labels=("a", "b", "c"))
SEGMENTS = Task("segments", dim=3, kind="segmentation")
COUNT = Task("count", kind="density")
SHARE = Task("a", kind="regression", from_map="cover")
TOTAL = Task("total", minimum=0.0)
RATIO = Task("ratio", dim=2, kind="ratio", labels=("leaf", "stem"))
INSTANCES = Task("objects", dim=2, kind="instances", labels=("x", "y"), minimum=0.0)
PANOPTIC = Task("objects", dim=2, kind="panoptic", labels=("x", "y"), things=("x",), minimum=0.0)
PLANT = Composition(
    ("leaf", "stem"),
    {"both": ("leaf", "stem")},
    "plant",
    total="total",
    ratio="ratio",
)
MAPS = (None, "patch", "image")
VIEWS_OF_STORE = {"none": "none", "flip4": "flips4", "d6": "d6"}
"""Name of what a predictor averages -> name of the views in a store."""
MIN_SCORE = 0.5
"""Leaves some of the objects out: the scores of random heads are about one half."""


@cache
def mass_heads() -> list[PatchMeanHead]:
    return [seeded(PatchMeanHead, WIDTH, [MASS, SOIL], seed=seed) for seed in range(3)]


@cache
def composed_heads() -> list[PatchMeanHead]:
    build = partial(seeded, PatchMeanHead, WIDTH, [TOTAL, RATIO], compositions=[PLANT])
    return [build(seed=seed) for seed in range(2)]


@cache
def dense_heads() -> list[DenseHead]:
    build = partial(seeded, DenseHead, WIDTH, [COVER, SEGMENTS, COUNT, SHARE], hidden_dim=16)
    return [build(seed=seed) for seed in range(2)]


@cache
def gate_heads() -> list[CLSGatingHead]:
    build = partial(seeded, CLSGatingHead, WIDTH, [TOTAL], mode="query", hidden_dim=8)
    return [build(seed=seed) for seed in range(2)]


@cache
def mask_head(task: Task, num_queries: int) -> MaskHead:
    return seeded(
        MaskHead,
        WIDTH,
        [task],
        num_layers=2,
        num_queries=num_queries,
        num_blocks=1,
        dim=32,
        seed=num_queries,
    )


@cache
def pyramid_head() -> PyramidHead:
    neck = seeded(SimplePyramid, WIDTH, 32)
    return seeded(PyramidHead, WIDTH, [INSTANCES, MASS], neck=neck)


def prepared(**changes: Any) -> Preprocessing:
    """Return how the built-in backbone prepares images, with changes."""
    return tiny().preprocess.changed(**changes)


def padded() -> Preprocessing:
    return prepared(size=(64, 96), resize="pad", pad_to="center")


def cropped() -> Preprocessing:
    return prepared(size=(64, 64), resize="crop")


def with_tiny(heads: Any, *views: str, **options: Any) -> Predictor:
    return Predictor(heads, tiny(), *views, **options)


def with_two_layers(heads: Any, *views: str, **options: Any) -> Predictor:
    return Predictor(heads, tiny(layers=2), *views, **options)


def mask_ensemble() -> HeadEnsemble:
    heads = [mask_head(SEGMENTS, 4), mask_head(SEGMENTS, 5)]
    return HeadEnsemble(heads, weights=(1.0, 3.0))


def nested_ensemble() -> HeadEnsemble:
    first = HeadEnsemble(mass_heads()[:2])
    return HeadEnsemble([first, mass_heads()[2], *composed_heads(), *gate_heads()])


def several_heads() -> dict[str, Any]:
    """Return heads of four kinds under keys: one is an ensemble."""
    return {
        "mass": mass_heads(),
        "dense": dense_heads()[0],
        "gate": gate_heads()[0],
        "objects": pyramid_head(),
    }


PREDICTORS: dict[str, Callable[[], Predictor]] = {
    "one_head": lambda: with_tiny(mass_heads()[0]),
    "folds_flip4": lambda: with_tiny(mass_heads(), "flip4"),
    "folds_d6": lambda: with_tiny(mass_heads(), "d6"),
    "weights": lambda: with_tiny(mass_heads(), weights=[1, 0, 2.0]),
    "composition_flip4": lambda: with_tiny(composed_heads(), "flip4"),
    "dense_d6": lambda: with_tiny(dense_heads(), "d6"),
    "dense_pad_flip4": lambda: with_tiny(dense_heads(), "flip4", preprocess=padded()),
    "dense_crop": lambda: with_tiny(dense_heads()[0], preprocess=cropped()),
    "gate_d6": lambda: with_tiny(gate_heads(), "d6", weights=[1.0, 3.0]),
    "mask_ensemble_flip4": lambda: with_two_layers(mask_ensemble(), "flip4", preprocess=padded()),
    "mask_d6": lambda: with_two_layers(mask_head(SEGMENTS, 4), "d6"),
    "instances": lambda: with_two_layers(mask_head(INSTANCES, 6), preprocess=padded()),
    "panoptic": lambda: with_two_layers(mask_head(PANOPTIC, 6), preprocess=padded()),
    "pyramid": lambda: with_tiny(pyramid_head()),
    "tile_flip4": lambda: with_tiny(
        HeadEnsemble([*dense_heads(), *mass_heads()]), "flip4", tile=48, overlap=16
    ),
    "tile_gate": lambda: with_tiny(gate_heads(), tile=48, overlap=0.5),
    "tile_size": lambda: with_tiny(
        dense_heads(), preprocess=prepared(size=(32, 48)), tile=(60, 90)
    ),
    "nested_flip4": lambda: with_tiny(nested_ensemble(), "flip4"),
    "mapping": lambda: with_tiny(several_heads()),
    "mapping_flip4": lambda: with_tiny({"mass": mass_heads(), "dense": dense_heads()[0]}, "flip4"),
}
WITH_ODD_IMAGES = {
    "dense_pad_flip4",
    "dense_crop",
    "mask_ensemble_flip4",
    "instances",
    "panoptic",
    "tile_size",
}
"""Predictors whose preparation takes images of any size."""


def predict(name: str, folder: Path) -> dict[str, Any]:
    """Predict the images with one predictor, in all forms, and stored tokens of them."""
    predictor = PREDICTORS[name]()
    images = random_images(ODD_IMAGES if name in WITH_ODD_IMAGES else IMAGES)
    results = {}
    for maps in MAPS:
        results[f"maps={maps}"] = canonical(predictor(images, maps=maps), folder)
    probabilities = predictor(images, maps="image", probabilities=True)
    results["probabilities"] = canonical(probabilities, folder)
    results["min_score"] = canonical(predictor(images, min_score=MIN_SCORE), folder)
    results["image_maps"] = canonical(maps_of_images(predictor, images), folder)
    if predictor.tiling is None:
        results["store"] = predict_store(predictor, images, folder)
    return results


def predict_store(predictor: Predictor, images: list[Any], folder: Path) -> dict[str, Any]:
    """Predict from a store of the images: call -> rows, or the class of an error.

    A store does not know the sizes of images, so objects and maps of padded images raise one.
    """
    paths = []
    for number, image in enumerate(images):
        path = folder / f"{number}.png"
        Image.fromarray(image).save(path)
        paths.append(path)
    recipe = predictor.preprocess
    fitting = {} if recipe.size is None else {"resize": recipe.resize, "pad_to": recipe.pad_to}
    store = FeatureStore.create(
        folder / "store",
        backbone=predictor.backbone,
        views=VIEWS_OF_STORE[predictor.tta],
        image_size=recipe.size,
        **fitting,
    )
    store.extract(paths, folder, workers=1)
    some = [store.ids[2], store.ids[0]]
    calls = {
        "maps=None": partial(predictor.predict, store),
        "maps=patch": partial(predictor.predict, store, maps="patch"),
        "two images": partial(predictor.predict, store, some),
    }
    results: dict[str, Any] = {}
    for name, call in calls.items():
        try:
            results[name] = canonical(call(), folder)
        except ConfigError as error:
            results[name] = f"raises {type(error).__name__}"
    return results


def maps_of_images(predictor: Predictor, images: list[Any]) -> list[dict[str, Any]]:
    """Return the maps of each image in its pixels, made after all are predicted: key of a head -> maps."""
    has_keys = isinstance(predictor.tasks, dict)
    return this_version.image_maps(predictor, images, has_keys)


CASES = {name: partial(predict, name) for name in PREDICTORS}
