"""What is served: a head (or several) on its backbone, or a detector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.data.decoding import ImageInput
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.detection.detector import HEAD_TYPE, Detector
from dinoneck.errors import ConfigError, DataError
from dinoneck.grid import patch_pair
from dinoneck.inference import MicroBatcher, Predictor
from dinoneck.inference.sources import listed, opened
from dinoneck.serve.responses import Maps, as_json
from dinoneck.serve.settings import Settings


class Model(Protocol):
    """A loaded model.

    Attributes:
        preprocess: the resizing and normalisation of images.
        facts: description for clients.
        ready: what the log shows when the model is loaded.
    """

    preprocess: Preprocessing
    facts: dict[str, Any]
    ready: str

    def predict(self, image: ImageInput, name: str, maps: Maps) -> dict[str, Any]:
        """Return the prediction of one image as JSON values."""

    def close(self) -> None:
        """Complete the waiting predictions and stop."""


def open_model(head: Any, settings: Settings) -> Model:
    """Return the model of a head file, a folder of them, or a Hub repository, loaded and checked.

    Raises:
        CheckpointError: if a file cannot be used.
        BackboneError: if the backbone cannot be loaded.
        ConfigError: for several detectors.
    """
    sources = opened(listed(head))
    first = sources[0]
    if isinstance(first, HeadCheckpoint) and first.head_type == HEAD_TYPE:
        if len(sources) > 1:
            raise ConfigError(f"{head} holds {len(sources)} files and the first is a detector; serve one detector file")
        return DetectorModel(first, settings)
    return HeadModel(sources, settings)


class DetectorModel:
    """A detector; see :class:`Model`."""

    def __init__(self, checkpoint: HeadCheckpoint, settings: Settings) -> None:
        if (settings.batch, settings.tta) != (1, None):
            raise ConfigError("batch and tta are for heads; leave them out for a detector")
        self._detector = Detector.from_checkpoint(checkpoint, device=settings.device)
        self.preprocess = self._detector.preprocess
        self.ready = ", ".join(self._detector.classes)
        self.facts: dict[str, Any] = {
            "classes": list(self._detector.classes),
            "digests": [checkpoint.meta["digest"]],
            "backbone": self._detector.backbone.name,
            "size": self.preprocess.size,
            "device": str(self._detector.device),
        }
        self._detector.predict(torch.zeros(3, *self._detector.size))

    def predict(self, image: ImageInput, name: str, maps: Maps) -> dict[str, Any]:
        """Return the boxes of one image as JSON values."""
        if maps != "none":
            raise DataError("a detector has no maps; leave maps out")
        [found] = self._detector.predict(image)
        rows = zip(found["names"], found["scores"].tolist(), found["boxes"].tolist(), strict=True)
        return {"name": name, "boxes": [{"label": label, "score": score, "box": box} for label, score, box in rows]}

    def close(self) -> None:
        """There is nothing to complete."""


class HeadModel:
    """Heads and their backbone; see :class:`Model`."""

    def __init__(self, sources: Sequence[Any], settings: Settings) -> None:
        self._predictor = Predictor(sources, tta=settings.tta, device=settings.device)
        self.preprocess = self._predictor.preprocess
        tasks = [
            {"name": task.name, "kind": task.kind, "unit": task.unit, "dim": task.dim, "labels": list(task.labels)}
            for task in self._predictor.tasks
        ]
        self.ready = ", ".join(task.name for task in self._predictor.tasks)
        self.facts: dict[str, Any] = {
            "tasks": tasks,
            "digests": [source.meta["digest"] for source in sources if isinstance(source, HeadCheckpoint)],
            "backbone": self._predictor.backbone.name,
            "size": self.preprocess.size,
            "tta": self._predictor.tta,
            "device": str(self._predictor.device),
        }
        self._check()
        self._batcher: MicroBatcher | None = None
        if settings.batch > 1:
            waiting = settings.concurrency * settings.max_images
            self._batcher = MicroBatcher(self._predictor, max_batch=settings.batch, max_waiting=waiting)

    def predict(self, image: ImageInput, name: str, maps: Maps) -> dict[str, Any]:
        """Return the prediction of one image as JSON values."""
        with_maps = maps != "none"
        if self._batcher is not None:
            return as_json(name, self._batcher.predict(image, with_maps), maps)
        return as_json(name, self._predictor(image, with_maps)[0], maps)

    def close(self) -> None:
        """Complete the waiting predictions and stop."""
        if self._batcher is not None:
            self._batcher.close()

    def _check(self) -> None:
        """Predict one random image twice: outputs must be finite and equal."""
        rows, cols = patch_pair(self.preprocess.patch_size)
        size = self.preprocess.size or (4 * rows, 4 * cols)
        image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
        first, second = self._predictor(image)[0], self._predictor(image)[0]  # not finite is a DataError
        for task in self._predictor.tasks:
            if not math.isclose(float(torch.as_tensor(first[task.name] - second[task.name]).abs().max()), 0.0):
                raise RuntimeError(f"two predictions of {task.name!r} for one image differ; the model is not usable")
