"""Predictions of heads for a batch of images, on the way to the caller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from dinoneck.errors import ConfigError, DataError


class Answers(NamedTuple):
    """Answers in natural units for a batch of B images.

    Attributes:
        values: task name -> (B, dim).
        maps: task name -> (B, dim, rows, cols); empty where none was asked for.
        gate: (B, 1, rows, cols), what gated heads looked at; None without one.
    """

    values: dict[str, Tensor]
    maps: dict[str, Tensor]
    gate: Tensor | None = None

    def rows(self, maps: bool) -> list[dict[str, Any]]:
        """Return one plain dict per image: floats or arrays, with ``"maps"`` (and ``"gate"``) if asked for.

        Raises:
            ConfigError: if maps are asked for and a task is named as their entries are.
            DataError: if a value is not finite.
        """
        check_finite(self.values)
        if taken := {"maps", "gate"} & self.values.keys() if maps else set():
            raise ConfigError(
                f"a task is named {taken.pop()!r}, as an entry of results with maps; rename it, or maps=False"
            )
        found: list[dict[str, Any]] = []
        for i in range(len(next(iter(self.values.values())))):
            row: dict[str, Any] = {
                name: value[i].item() if value.shape[1] == 1 else value[i].numpy()
                for name, value in self.values.items()
            }
            if maps:
                row["maps"] = {name: picture[i].numpy() for name, picture in self.maps.items()}
                if self.gate is not None:
                    row["gate"] = self.gate[i, 0].numpy()
            found.append(row)
        return found


def check_finite(values: Mapping[str, Tensor]) -> None:
    """Refuse values that are not finite.

    Raises:
        DataError: naming the task.
    """
    for name, value in values.items():
        if not bool(value.isfinite().all()):
            raise DataError(
                f"the prediction of {name!r} is {value[~value.isfinite()][0].item()}; the head or image is unfit"
            )
