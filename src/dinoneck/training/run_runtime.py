"""Which runtime computes the tokens of a run: one, from its start to its last continuation."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.program_costs import is_worth_compiling
from dinoneck.errors import BackboneError
from dinoneck.images.decoding import ImageInput
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.kinds import Runtime
from dinoneck.text import first_line
from dinoneck.training import folder as files
from dinoneck.training.config import TrainConfig, TrainInstancesConfig

logger = logging.getLogger(__name__)
AnyHeadConfig = TypeVar("AnyHeadConfig", TrainConfig, TrainInstancesConfig)


def continued_runtime(config: AnyHeadConfig, folder: Path) -> AnyHeadConfig:
    """Return the config with the runtime of the unfinished run in a folder, if there is one.

    Its tokens are then those that the finished folds were trained on. A line says so where the config
    names another runtime.
    """
    runtime_of_run = files.runtime_of_unfinished(folder)
    if runtime_of_run is None:
        return config
    configured = config.backbone.runtime
    if configured not in (None, "auto", runtime_of_run):
        logger.warning(
            "%s holds a run that computes its tokens with %s; it goes on with it, and not with %s",
            folder,
            runtime_of_run,
            configured,
        )
    return with_runtime(config, runtime_of_run)


def with_runtime(config: AnyHeadConfig, runtime: Runtime) -> AnyHeadConfig:
    """Return the config with the runtime that a run computes with; torch, the default, is not stated."""
    present = config.backbone.runtime or "torch"
    if present == runtime:
        return config
    stated = None if runtime == "torch" else runtime
    return config.changed(backbone=config.backbone.changed(runtime=stated))


def faster_runtime(
    backbone: Backbone, images: Sequence[ImageInput], preprocess: Preprocessing
) -> Runtime:
    """Return ``openvino`` where it is faster than torch for these images by more than compiling takes, else ``torch``.

    The choice is made once for a run, which keeps it: ``auto`` would choose by the time that it
    measures, and a continued run would get other last bits.

    Args:
        backbone: frozen.
        images: all images of the run; the first one is timed.
        preprocess: how they are prepared.
    """
    if backbone.adapter.weight.device.type != "cpu":
        return "torch"
    try:
        compiled = backbone.with_runtime("openvino")
    except (ImportError, BackboneError) as error:
        logger.info("the tokens are computed by torch: %s", error)
        return "torch"
    first = preprocess([images[0]])
    seconds_in_torch = seconds_of_a_pass(backbone.with_runtime("torch"), first)
    try:
        is_worth_it = is_worth_compiling(
            seconds_in_torch,
            num_images=len(images),
            batch=len(first),
            compile_seconds=compiled.preparation_seconds(first),
            gain=lambda: compiled.expected_gain(first),
        )
        if not is_worth_it:
            return "torch"
        seconds = seconds_of_a_pass(compiled, first)
    except Exception as error:  # the exporter, the converter and programs raise any type
        logger.warning("the tokens are computed by torch: %s", first_line(error))
        return "torch"
    return "openvino" if seconds < seconds_in_torch else "torch"


def seconds_of_a_pass(backbone: Backbone, image: Tensor) -> float:
    """Return the seconds that a backbone takes for an image (1, C, H, W) after a first pass, which compiles."""
    with torch.no_grad():
        backbone(image)
        started = time.perf_counter()
        backbone(image)
        return time.perf_counter() - started
