"""Every pair of options of the verbs that save, load, train, extract, predict and evaluate.

All other options are neutral. Each result is compared with a reference that does not use what is
tested: *harmless* means equal, *refused* an error of dinoneck, and a text that the result differs,
that an option had no effect, or that another error was raised. A case of ``save_head`` and of
``Detector.save`` is one per way of loading.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from tests.faults.pairs.options import sampled

MODES = {
    "save_head, load_head, Predictor": "heads",
    "Detector.save, Detector.load": "detectors",
    "fit": "fits",
    "train": "trainings",
    "train --boxes": "box_trainings",
    "extract": "extractions",
    "predict": "predictions",
    "evaluate": "evaluations",
}
"""What is called -> the module of its pairs."""


def outcomes(mode: str, share: float, folder: Path) -> Iterator[str]:
    """Judge all pairs of one verb, or a share of them."""
    module = importlib.import_module(f"{__name__}.{MODES[mode]}")
    yield from module.outcomes(sampled(module.CASES, share), folder)
