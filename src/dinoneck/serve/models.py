"""What is served: heads on their backbone, or a detector; predictions as JSON values."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.detection.detector import Detector
from dinoneck.dtypes import WEIGHT_DTYPES
from dinoneck.errors import ConfigError, DataError
from dinoneck.grid import patch_pair
from dinoneck.images.bands import RGB_CHANNELS
from dinoneck.images.recipe import ImageRecipe, Size
from dinoneck.inference import MicroBatcher, Predictor, coco_objects
from dinoneck.inference.sources import NO_KEY, names_detector, open_heads
from dinoneck.registry import DETECTORS
from dinoneck.runtime.exported import (
    ExportedDetector,
    open_exported,
)
from dinoneck.runtime.intervals import default_level, interval_entries
from dinoneck.runtime.names import check_backbone_runtime, is_exported
from dinoneck.serve.settings import Settings
from dinoneck.task_facts import ROW_LABELS, TaskFacts
from dinoneck.text import counted
from dinoneck.viz.style import normal_colours

MAPS = ("none", "lists", "png")
# a service computes as many images as come: more than any program takes to be compiled
_MANY_IMAGES = 1_000_000_000
# before the first request: one is timed in torch, and the next one compiles a program and compares it
_PREDICTIONS_OF_AUTO = 2


class Model(NamedTuple):
    """A loaded model.

    Attributes:
        predict: returns the prediction for one image, pixels (3, H, W), as JSON values; with maps
            as one of MAPS.
        preprocess: the resizing and normalisation of images.
        recipe: (height, width) of an image -> how it is prepared before it is cut into tiles;
            without tiles that is ``preprocess``.
        backbones: what computes tokens; none where transformers computes the ViT of a detector.
        facts: description for clients.
        tile: (height, width) of the tiles that images are cut into; None = they are not.
    """

    predict: Callable[[Tensor, str], dict[str, Any]]
    preprocess: ImageRecipe
    recipe: Callable[[Size], ImageRecipe]
    backbones: tuple[Backbone, ...]
    facts: dict[str, Any]
    tile: Size | None = None


def open_model(head: str | os.PathLike[str], settings: Settings) -> Model:
    """Return the model of a head file, a folder of them, a published head or a Hub repository, after a prediction.

    Or that of an exported file, which ONNX Runtime or OpenVINO runs.

    Programs of OpenVINO are compiled here, for the sizes that the heads or tiles fix. ``auto`` that
    finds none to be faster leaves the backbones to torch.

    Raises:
        CheckpointError: if a file cannot be used.
        BackboneError: if the backbone cannot be loaded.
        ConfigError: for views or batches of a detector, several files with a detector among them,
            and a head of images that are not RGB.
        DataError: if its prediction is not finite.
    """
    if is_exported(head):
        return _file(head, settings)
    if names_detector(head, has_weights=settings.weights is not None):
        _check_settings_of_detector(settings)  # before its file is fetched
    checkpoints = cast("list[HeadCheckpoint]", open_heads(head, weights=settings.weights)[NO_KEY])
    for checkpoint in checkpoints:  # before their backbone is loaded
        _check_channels(checkpoint.preprocess)
    if checkpoints[0].head_type in DETECTORS:
        model = _detector(checkpoints[0], settings)
    else:
        model = _heads(checkpoints, settings)
    model.facts.update(
        size=model.preprocess.size,
        digests=[checkpoint.meta["digest"] for checkpoint in checkpoints],
    )
    _check_channels(model.preprocess)
    size = _size_of_first_image(model.preprocess, model.tile)
    num_predictions = _PREDICTIONS_OF_AUTO if settings.runtime == "auto" else 1
    for _ in range(num_predictions):
        model.predict(torch.rand(3, *size), "none")
    if settings.runtime == "auto" and not any(
        backbone.has_programs for backbone in model.backbones
    ):
        for backbone in model.backbones:
            backbone.runtime = "torch"
    return model


def _size_of_first_image(preprocess: ImageRecipe, tile: Size | None) -> Size:
    """Return the (height, width) of an image whose prediction compiles what later ones need: two tiles, if any."""
    if tile is not None:
        return (2 * tile[0], tile[1])
    if preprocess.size is not None:
        return preprocess.size
    patch_height, patch_width = patch_pair(preprocess.patch_size)
    return (4 * patch_height, 4 * patch_width)


def _file(path: str | os.PathLike[str], settings: Settings) -> Model:
    """The model of an exported file, after a prediction."""
    unused = {
        "tta": settings.tta,
        "precision": settings.precision,
        "weights": settings.weights,
        "device": settings.device,
        "tile": settings.tile if isinstance(settings.tile, tuple) else None,
        "overlap": settings.overlap,
    }
    for name, value in unused.items():
        if value is not None:
            raise ConfigError(
                f"{name} is {value!r}, which has no effect on the exported file {path}; leave it out "
                f"(--{name})"
            )
    if settings.batch != 1:
        raise ConfigError(
            f"batch is {settings.batch}, which is for head files; the exported file {path} takes 1"
        )
    opened = open_exported(path, settings.runtime)

    def predict(image: Tensor, maps: str) -> dict[str, Any]:
        pixels = image.permute(1, 2, 0).numpy()
        if isinstance(opened, ExportedDetector):
            _check_no_maps(maps)
            return _boxes(opened.predict([pixels])[0])
        return _as_json(opened.one(pixels, None if maps == "none" else "patch"), maps, opened.tasks)

    facts: dict[str, Any] = {
        "device": "cpu",
        "runtime": opened.runtime,
        "size": opened.preprocess.size,
    }
    if isinstance(opened, ExportedDetector):
        facts["classes"] = list(opened.classes)
        facts["digests"] = [opened.record.digest]
    else:
        facts["tasks"] = _describe_tasks(opened.tasks)
        facts["tta"] = opened.tta
        facts["digests"] = opened.record.digests
    size = _size_of_first_image(opened.preprocess, tile=None)
    predict(torch.rand(3, *size), "none")
    return Model(
        predict=predict,
        preprocess=opened.preprocess,
        recipe=lambda size: opened.preprocess,
        backbones=(),
        facts=facts,
    )


def _check_channels(recipe: ImageRecipe | None) -> None:
    """Reject heads whose images are not RGB: the service reads picture files.

    Raises:
        ConfigError: naming the number of channels.
    """
    if recipe is not None and recipe.channels != RGB_CHANNELS:
        raise ConfigError(
            f"the head takes images of {counted(recipe.channels, 'channel')}, and the service reads "
            f"RGB pictures; predict arrays and GeoTIFFs of {recipe.channels} bands with "
            "dinoneck.Predictor, or serve the model of 'dinoneck export' in a program of your own"
        )


def _heads(checkpoints: list[HeadCheckpoint], settings: Settings) -> Model:
    predictor = Predictor(
        checkpoints,
        tta=settings.tta,
        tile=settings.tile,
        overlap=settings.overlap,
        device=settings.device,
        runtime=settings.runtime,
        dtype=None if settings.precision is None else WEIGHT_DTYPES[settings.precision],
    )
    if settings.runtime == "auto":
        predictor.expect_images(_MANY_IMAGES)
    batcher = MicroBatcher(
        predictor, max_batch=settings.batch, max_waiting=settings.concurrency + settings.batch
    )

    def predict(image: Tensor, maps: str) -> dict[str, Any]:
        with_maps = maps != "none"
        if settings.batch > 1:
            prediction = batcher.predict(image, with_maps)
        else:
            [prediction] = predictor(image, "patch" if with_maps else None)
        return _as_json(prediction, maps, predictor.tasks)

    [model_pass] = predictor.passes
    tiling = model_pass.object_tiling if model_pass.object_tasks else model_pass.tiling
    tile = None if tiling is None else tiling.tile
    facts: dict[str, Any] = {
        "tasks": _describe_tasks(predictor.tasks),
        "tta": predictor.tta,
        "tile": tile,
        "overlap": 0 if tiling is None else tiling.stated_overlap,
        "backbone": predictor.backbone.name,
        "device": str(predictor.device),
    }
    return Model(
        predict=predict,
        preprocess=predictor.preprocess,
        recipe=model_pass.recipe,
        backbones=tuple(backbone_pass.backbone for backbone_pass in predictor.passes),
        facts=facts,
        tile=tile,
    )


def _describe_tasks(tasks: Sequence[TaskFacts]) -> list[dict[str, Any]]:
    """What clients learn of the tasks."""
    described = []
    for task in tasks:
        description = {
            "name": task.name,
            "kind": task.kind,
            "unit": task.unit,
            "dim": task.dim,
            "labels": list(task.labels),
        }
        if task.is_multilabel or task.thresholds:
            description["thresholds"] = list(task.label_thresholds)
        if task.interval:
            description["interval"] = [asdict(interval) for interval in task.interval]
        described.append(description)
    return described


def _check_settings_of_detector(settings: Settings) -> None:
    """Raise a ConfigError for a setting that is for heads."""
    if settings.batch != 1:
        raise ConfigError(f"batch is {settings.batch}, which is for heads; a detector takes 1")
    if settings.tta not in (None, "none"):
        raise ConfigError(f"tta is {settings.tta!r}, which is for heads; leave it out")
    if settings.precision is not None:
        raise ConfigError(
            f"precision is {settings.precision!r}, which is for heads; leave it out (--precision)"
        )


def _detector(checkpoint: HeadCheckpoint, settings: Settings) -> Model:
    _check_settings_of_detector(settings)
    runtime = None if settings.runtime is None else check_backbone_runtime(settings.runtime)
    detector = Detector.from_checkpoint(checkpoint, device=settings.device, runtime=runtime)
    detector.use_tiles(settings.tile, settings.overlap)
    if settings.runtime == "auto":
        detector.expect_images(_MANY_IMAGES)

    def predict(image: Tensor, maps: str) -> dict[str, Any]:
        _check_no_maps(maps)
        [prediction] = detector.predict(image)
        return _boxes(prediction)

    tile = None if detector.tiling is None else detector.tiling.tile
    facts: dict[str, Any] = {
        "classes": list(detector.classes),
        "tile": tile,
        "overlap": 0 if detector.tiling is None else detector.tiling.stated_overlap,
        "backbone": detector.backbone_name,
        "device": str(detector.device),
    }
    if detector.thresholds:
        facts["thresholds"] = list(detector.thresholds)
    backbone = detector.runtime_backbone
    return Model(
        predict=predict,
        preprocess=detector.preprocess,
        recipe=lambda size: detector.preprocess,
        backbones=() if backbone is None else (backbone,),
        facts=facts,
        tile=tile,
    )


def _check_no_maps(maps: str) -> None:
    """Raise a DataError for maps that are asked of a detector."""
    if maps != "none":
        raise DataError(f"maps is {maps!r}, and a detector has no maps; leave maps out")


def _boxes(prediction: Mapping[str, Any]) -> dict[str, Any]:
    """What a detector predicts, as JSON values."""
    scores = prediction["scores"].tolist()
    corners = prediction["boxes"].tolist()
    boxes = []
    for label, score, box in zip(prediction["names"], scores, corners, strict=True):
        boxes.append({"label": label, "score": score, "box": box})
    if "masks" in prediction:
        for box, record in zip(boxes, coco_objects(prediction), strict=True):
            box["segmentation"] = record["segmentation"]
    return {"boxes": boxes}


def _as_json(prediction: dict[str, Any], maps: str, tasks: Sequence[TaskFacts]) -> dict[str, Any]:
    """A prediction as JSON values: numbers without rounding; maps as nested lists or as small images.

    Of heads that hold intervals it has those of the level of tables.
    """
    values: dict[str, Any] = {}
    answer: dict[str, Any] = {"values": values}
    for name, value in prediction.items():
        if name == ROW_LABELS and _are_labels(value):
            answer[ROW_LABELS] = value
        elif name not in ("maps", "gate"):
            values[name] = _json_value(value)
    level = default_level(tasks)
    if level is not None:
        answer["level"] = level
        for name, entry in interval_entries(tasks, prediction, level).items():
            answer[name] = _json_entries(entry)
    if maps == "none":
        return answer
    encode = _json_value if maps == "lists" else _png
    normals = [task.name for task in tasks if task.is_unit]
    answer["maps"] = {}
    for name, value in prediction["maps"].items():
        if maps == "png" and name in normals:
            answer["maps"][name] = _normals_png(value)
        else:
            answer["maps"][name] = encode(value)
    if "gate" in prediction:
        answer["gate"] = encode(prediction["gate"])
    return answer


def _are_labels(value: Any) -> bool:
    """Whether these are the labels of multilabel tasks, not the prediction of a task."""
    return isinstance(value, dict) and all(isinstance(labels, list) for labels in value.values())


def _json_entries(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The bounds, or the labels, of every task; null for outputs without an interval."""
    return {name: _without_nan([*ends_or_labels]) for name, ends_or_labels in entry.items()}


def _without_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    if isinstance(value, np.ndarray):
        return _without_nan(value.tolist())
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def _json_value(value: Any) -> Any:
    """Objects as COCO has them, an array as nested lists, a number as it is."""
    if isinstance(value, dict | tuple):
        return coco_objects(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    return float(value)


def _png(values: np.ndarray[Any, Any]) -> Any:
    """An 8-bit grey image in base64 with its values of black and white; one per output, for (dim, rows, cols)."""
    if values.ndim == 3:
        return [_png(output) for output in values]
    low = float(values.min())
    high = float(values.max())
    grey = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return _picture(grey * 255, black=low, white=high)


def _normals_png(normals: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Surface normals (3, rows, cols) as one picture: x, y and z are red, green and blue, -1 black and 1 white."""
    return _picture(normal_colours(np.nan_to_num(normals)), black=-1.0, white=1.0)


def _picture(values: np.ndarray[Any, Any], *, black: float, white: float) -> dict[str, Any]:
    """Values 0 ... 255 as a PNG of 8 bits in base64, with what black and white stand for."""
    file = io.BytesIO()
    Image.fromarray(values.round().astype(np.uint8)).save(file, format="PNG")
    png = base64.b64encode(file.getvalue()).decode("ascii")
    return {"png": png, "black": black, "white": white}
