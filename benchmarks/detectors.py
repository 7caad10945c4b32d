"""One photo to boxes: RF-DETR of this library next to the pipeline of transformers, on the same weights.

It is the part "detectors" of ``python -m benchmarks images``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import RfDetrImageProcessor

from benchmarks.measure import Row, Variants, ratios, turns_by_both_clocks
from dinoneck import HeadCheckpoint
from dinoneck.detection import Detector, RfDetr
from dinoneck.kinds import Runtime
from dinoneck.published.detectors import DETECTORS

PEER = "pipeline of transformers"
OF_CPU_TIME = "× by CPU time"
MIN_SCORE = 0.5
RUNTIMES: tuple[Runtime, ...] = ("torch", "openvino")
SCORES_TOLERANCE = 1e-3


def pipeline_script(model: Any, side: int) -> Callable[[Path], dict[str, torch.Tensor]]:
    """Return what the documentation of transformers shows: processor, model and boxes above a score.

    Args:
        model: of transformers.
        side: pixels of the square images that it takes.
    """
    processor: Any = RfDetrImageProcessor(size={"height": side, "width": side})

    @torch.inference_mode()
    def script(path: Path) -> dict[str, torch.Tensor]:
        image = Image.open(path).convert("RGB")
        outputs = model(**processor(image, return_tensors="pt"))
        [boxes] = processor.post_process_object_detection(
            outputs, threshold=MIN_SCORE, target_sizes=[(image.height, image.width)]
        )
        return dict(boxes)

    return script


def seeded_rf_detr(name: str) -> RfDetr:
    """Return the detector of a row with seeded random weights, of which some scores are high."""
    torch.manual_seed(0)
    head = RfDetr.from_config(DETECTORS[name].config).eval()
    boxes_model = head.model.model if head.has_masks else head.model
    with torch.no_grad():
        boxes_model.class_embed.bias.zero_()
        boxes_model.class_embed.weight.mul_(5)
    return head.requires_grad_(False)


def compare(name: str, image: Path, folder: Path, rounds: int) -> dict[str, Row]:
    """Return the rows of a detector: its ratio to the pipeline, by wall clock and by CPU time.

    Args:
        name: of the row.
        image: a file.
        folder: for the file of the detector.
        rounds: how often each variant runs.

    Raises:
        SystemExit: if the scores differ, or there are none.
    """
    head = seeded_rf_detr(name)
    side = head.image_size
    script = pipeline_script(head.model, side)
    file = folder / f"{name}.safetensors"
    Detector(head, None, size=(side, side)).save(file)
    checkpoint = HeadCheckpoint.load(file)
    variants: Variants = {PEER: functools.partial(script, image)}
    expected = script(image)
    for runtime in RUNTIMES:
        detector = Detector.from_checkpoint(checkpoint, runtime=runtime)
        predict = functools.partial(detector.predict, image, min_score=MIN_SCORE)
        [prediction] = predict()
        _check_boxes(expected, prediction, head.outputs, title=f"{name}, {runtime}")
        variants[f"Detector, {runtime}"] = predict
    wall_clock, cpu_time = turns_by_both_clocks(variants, rounds=rounds)
    rows = ratios(wall_clock.seconds, PEER, f"× {PEER}")
    for variant, row in ratios(cpu_time.seconds, PEER, OF_CPU_TIME).items():
        rows[variant][OF_CPU_TIME] = row[OF_CPU_TIME]
    return rows


def _check_boxes(
    expected: Mapping[str, torch.Tensor],
    prediction: Mapping[str, Any],
    outputs: tuple[int, ...],
    *,
    title: str,
) -> None:
    """Raise SystemExit if the scores of classes differ from those of transformers, or there are none."""
    is_class = torch.isin(expected["labels"], torch.tensor(outputs))
    scores = expected["scores"][is_class]
    count = min(len(scores), len(prediction["scores"]))  # a detector gives 100 boxes at most
    if count == 0:
        raise SystemExit(f"{title}: no box above {MIN_SCORE}")
    difference = (prediction["scores"][:count] - scores[:count]).abs().max()
    if not difference <= SCORES_TOLERANCE:
        raise SystemExit(f"{title}: the scores of {count} boxes differ by {difference:.1e}")
