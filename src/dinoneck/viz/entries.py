"""What a report shows of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dinoneck.data.decoding import ImageInput
from dinoneck.viz.drawing import Floats


@dataclass(frozen=True, eq=False)
class ReportEntry:
    """One image of a report.

    Attributes:
        name: the file, or another name that differs from those of the other images.
        result: the Predictor's result, with ``maps=True`` for an image that is drawn; or that of ``Detector.predict``.
        image: the image as the model saw it (``Predictor.picture``), so that maps lie where they belong, or a function
            that returns it, so that many need not be in memory at once; None = the image is listed in the table only.
        tokens: (rows, cols, 3) colours in 0 ... 1 of its patches, see :func:`dinoneck.viz.pca_rgb`; None = not shown.
        known: column -> known value, where there is one; columns are those of ``dinoneck predict``: the task's name,
            or ``task:label``. For a classification the task's name -> the known class. For a detector ``boxes`` (n, 4)
            and ``names``.
    """

    name: str
    result: Mapping[str, Any]
    image: ImageInput | Callable[[], ImageInput] | None = None
    tokens: Floats | None = None
    known: Mapping[str, Any] = field(default_factory=dict)
