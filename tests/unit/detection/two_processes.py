"""What every process of a test runs under torchrun: the training of a detector.

Each process writes its report, and the images that it scored after each epoch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tests.unit.detection.test_train_detector import config_of

from dinoneck.data import BoxImages
from dinoneck.detection import score_boxes, train_detector, training


def main() -> None:
    torch.set_num_threads(1)
    boxes = Path(sys.argv[1])
    out = Path(sys.argv[2])
    scored: list[list[int]] = []

    def noted(images: BoxImages, predictions: Mapping[int, Any]) -> dict[str, Any]:
        scored.append(sorted(predictions))
        return score_boxes(images, predictions)

    with mock.patch.object(training, "score_boxes", noted):
        report = train_detector(config_of(boxes), out / "run")
    rank = os.environ["RANK"]
    (out / f"rank{rank}.json").write_text(json.dumps({"report": report, "scored": scored}))


if __name__ == "__main__":
    main()
