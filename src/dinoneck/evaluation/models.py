"""The models that are scored: opened, what they cost, and which images they were trained on."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import nn

from dinoneck.backbones.backbone import Backbone, plain_backbone
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.training_images import NO_IMAGES, TrainingImages
from dinoneck.detection.detector import Detector
from dinoneck.detection.evaluation import BoxModel, HeadModel
from dinoneck.errors import ConfigError
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.inference.loaded_head import LoadedHead
from dinoneck.inference.predictor import Predictor
from dinoneck.inference.sources import Heads, open_heads
from dinoneck.registry import DETECTORS
from dinoneck.runtime.exported import ExportedDetector, ExportedPredictor
from dinoneck.runtime.names import is_exported
from dinoneck.training.result import TrainingResult
from dinoneck.training.trained_images import seen_in_training

logger = logging.getLogger(__name__)

Model = HeadModel | BoxModel | TrainingResult | Heads
"""A model that can be called, the result of a training, or what a Predictor takes."""


def open_models(model: Model | Mapping[str, Model]) -> dict[str, HeadModel | BoxModel]:
    """Return name -> model that can be called; a single model has the name ``head``.

    Args:
        model: as of :func:`dinoneck.evaluate`.

    Raises:
        ConfigError: if there is no model, or one has several keys.
        CheckpointError: if a model cannot be read.
        DataError: for the result of a training whose folder has no head of its own.
    """
    if isinstance(model, TrainingResult) or not isinstance(model, Mapping):
        return {"head": _open_model(model)}
    models = {}
    for name, named_model in model.items():
        models[name] = _open_model(named_model)
    if not models:
        raise ConfigError("model is an empty mapping; name one model or more")
    return models


def _open_model(model: Model) -> HeadModel | BoxModel:
    if isinstance(model, TrainingResult):
        trained: Predictor | Detector = model.predictor()
        return trained
    if is_exported(model):
        model = Predictor(cast("str", model))
    if isinstance(model, BoxModel | ExportedPredictor):
        return model
    if isinstance(model, Predictor):
        if isinstance(model.detector, Detector):
            return model.detector
        if isinstance(model.tasks, Mapping):  # a predictor of several heads has tasks by their keys
            raise _several_keys(model.tasks)
        return model
    checkpoints_by_key = open_heads(model)
    if len(checkpoints_by_key) > 1:
        raise _several_keys(checkpoints_by_key)
    [checkpoints] = checkpoints_by_key.values()
    first = checkpoints[0]
    if isinstance(first, HeadCheckpoint) and first.head_type in DETECTORS:
        return Detector.from_checkpoint(first)
    return Predictor(checkpoints)


def _several_keys(keys: Iterable[str]) -> ConfigError:
    """The error for a model of several heads next to each other, which are no single model."""
    return ConfigError(
        f"the model has the keys {', '.join(keys)}; give {{name: model}} with a head each"
    )


def loaded_heads_of(predictor: HeadModel) -> list[LoadedHead]:
    """Return the heads of a model with what their files record, over all of its backbones.

    An exported file has none: it records neither masks nor weights of targets.
    """
    loaded_heads: list[LoadedHead] = []
    if isinstance(predictor, ExportedPredictor):
        return loaded_heads
    for backbone_pass in predictor.passes:
        loaded_heads += backbone_pass.heads.values()
    return loaded_heads


def preprocessing_for(model: HeadModel, image: Any) -> Preprocessing:
    """Return how a model prepares an image."""
    recipe = model.recipe(image)
    if isinstance(recipe, Preprocessing):
        return recipe
    return Preprocessing.from_record(recipe.record())


class Stopwatch:
    """Takes the time that a model needs for its predictions, without its first pass.

    A first pass also loads and allocates what later ones use. The runtime ``auto`` compiles in the
    second one. Programs for further sizes of images are made later: that time does not count.
    """

    def __init__(self, model: HeadModel | BoxModel) -> None:
        self._model = model
        self._started = time.perf_counter()
        self._seconds_for_programs = 0.0

    def begin(self, image: Any) -> None:
        """Predict an image, whose predictions are thrown away, and begin to count."""
        is_automatic = any(backbone.runtime == "auto" for backbone in _backbones_of(self._model))
        num_passes = 2 if is_automatic else 1
        for _ in range(num_passes):
            if isinstance(self._model, Detector):
                self._model.predict([image])
            else:
                self._model([image])
        self._seconds_for_programs = _seconds_for_programs(self._model)
        self._started = time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds since the beginning."""
        for_programs = _seconds_for_programs(self._model) - self._seconds_for_programs
        return time.perf_counter() - self._started - for_programs


def _seconds_for_programs(model: HeadModel | BoxModel) -> float:
    """Return the seconds that were spent on programs of a model's backbones until now."""
    # passes of the same weights share their programs
    by_weights = {id(backbone.adapter): backbone for backbone in _backbones_of(model)}
    return sum(backbone.seconds_for_programs for backbone in by_weights.values())


def _backbones_of(model: HeadModel | BoxModel) -> list[Backbone]:
    """Return the backbones of a model whose runtimes compute tokens."""
    backbones: list[Any] = []
    if isinstance(model, Detector):
        backbones.append(model.runtime_backbone)
    elif isinstance(model, Predictor):
        for backbone_pass in model.passes:
            backbones.append(plain_backbone(backbone_pass.backbone))
    return [backbone for backbone in backbones if isinstance(backbone, Backbone)]


def cost_of(model: HeadModel | BoxModel, seconds_per_image: float) -> dict[str, float]:
    """Return what a report holds of a model's cost: the time, and the parameters of heads and backbone.

    Of an exported file it is the time alone.
    """
    if isinstance(model, ExportedPredictor | ExportedDetector):
        return {"seconds_per_image": seconds_per_image}
    if isinstance(model, Detector):
        backbone_parameters = list(model.vit.parameters())
    else:
        backbone_parameters = list(model.backbone.parameters())
    backbone_ids = {id(parameter) for parameter in backbone_parameters}
    head_parameters = []
    for head in _heads_of(model):
        for parameter in head.parameters():
            if id(parameter) not in backbone_ids:  # a detector holds its backbone
                head_parameters.append(parameter)
    return {
        "seconds_per_image": seconds_per_image,
        "parameters": sum(parameter.numel() for parameter in head_parameters),
        "backbone_parameters": sum(parameter.numel() for parameter in backbone_parameters),
    }


def _heads_of(model: HeadModel | Detector) -> list[nn.Module]:
    """What reads the tokens of a model's one backbone: its head, or the whole detector."""
    if isinstance(model, Detector):
        return [model]
    return [loaded_head.head for loaded_head in loaded_heads_of(model)]


def count_trained_on(
    models: Mapping[str, HeadModel | BoxModel], images: Sequence[Any]
) -> dict[str, int]:
    """Return model -> how many of the images it was trained on, of the models that were on some.

    A warning names each model that was trained on some of them.
    """
    counts = {}
    for name, model in models.items():
        seen = seen_in_training(_files_of(model), images, _stated_images(model))
        if seen.paths:
            counts[name] = len(seen.paths)
            logger.warning(
                "%s was trained on %d%s of the %d images, such as %s: its scores on them are too good. "
                "Scores of held-out images are those that its training printed",
                name,
                len(seen.paths),
                " or more" if seen.may_be_more else "",
                len(images),
                seen.paths[0],
            )
    return counts


def _stated_images(model: HeadModel | BoxModel) -> TrainingImages:
    """The images that a detector or the heads of a model state; none of an exported file."""
    images = NO_IMAGES
    if isinstance(model, Detector):
        return model.training_images
    if not isinstance(model, BoxModel):
        for loaded_head in loaded_heads_of(model):
            images |= loaded_head.training_images
    return images


def _files_of(model: HeadModel | BoxModel) -> list[str]:
    """The files that a model was read from; none of an exported file, which lies outside of its training."""
    if isinstance(model, ExportedDetector):
        return []
    if isinstance(model, Detector):
        return [model.source] if model.source else []
    files: list[str] = []
    for loaded_head in loaded_heads_of(model):
        files += loaded_head.files
    return files
