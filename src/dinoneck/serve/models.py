"""What is served: a head (or several) on its backbone."""

from __future__ import annotations

import math
from typing import Any

import torch

from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.data.photos import Photo
from dinoneck.grid import patch_pair
from dinoneck.inference import MicroBatcher, Predictor
from dinoneck.inference.sources import listed, opened
from dinoneck.serve.responses import Maps, as_json
from dinoneck.serve.settings import Settings


class HeadModel:
    """Heads and their backbone.

    Attributes:
        preprocess: the resizing and normalisation of images.
        facts: description for clients.
        ready: what the log shows when the model is loaded.
    """

    def __init__(self, head: Any, settings: Settings) -> None:
        sources = opened(listed(head))
        self._predictor = Predictor(sources, tta=settings.tta, device=settings.device)  # type: ignore[arg-type]
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

    def predict(self, image: Photo, name: str, maps: Maps) -> dict[str, Any]:
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
