"""The options of ``evaluate`` that are of masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dinoneck.errors import ConfigError
from dinoneck.evaluation.predicted import Predicted
from dinoneck.inference.loaded_head import MaskRecord
from dinoneck.text import some_of


@dataclass(frozen=True)
class MaskOptions:
    """How masks are read, as of :func:`dinoneck.evaluate`; empty = not given.

    Attributes:
        labels: the table's column of masks.
        nodata: values without a label.
        class_values: the value of each class.
    """

    labels: str | None
    nodata: Sequence[float]
    class_values: Sequence[int]

    @property
    def record(self) -> MaskRecord:
        """What they say, to compare with the records of trainings."""
        return MaskRecord("the call", tuple(self.class_values), tuple(self.nodata))

    def check_not_given(self) -> None:
        """Raise a ConfigError for an option that changes nothing, since the truth has no masks."""
        for name, value in self._stated():
            raise ConfigError(
                f"{name} is {value!r}, which is of masks, and the truth has none; name its column "
                "of masks with labels= (--labels), and leave cells of a table empty where the "
                "value is unknown"
            )

    def check_used(self, predicted: Predicted) -> None:
        """Raise a ConfigError for an option that changes nothing, since no model predicts classes of pixels."""
        if predicted.segmentations:
            return
        for name, value in self._stated():
            if predicted.number_maps:
                raise ConfigError(
                    f"{name} is {value!r}, which is of masks of classes, and the heads predict maps "
                    f"of numbers, {some_of(predicted.number_maps, 5)}, which are not scored; leave "
                    "it out"
                )
            raise ConfigError(
                f"{name} is {value!r}, which is of masks, and the heads predict "
                f"{some_of([*predicted.tasks], 5)}, which no mask shows; leave it out"
            )

    def _stated(self) -> list[tuple[str, Any]]:
        """Names and values of the options that are given."""
        options = {"labels": self.labels, "nodata": self.nodata, "class_values": self.class_values}
        return [(name, value) for name, value in options.items() if value]
