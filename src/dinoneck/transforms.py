"""TargetTransform: from original units to the units that a head outputs, and exactly back."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.codec import normalize_fields, restore
from dinoneck.errors import ConfigError, DataError, ShapeError

STD_FLOOR = 1e-6  # of a standard deviation, which is divided by
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TargetTransform:
    """Original units <-> normalised units: divide by the area, then log1p, then z-score; and exactly back.

    Args:
        area: what a value is divided by (0.21 turns grams on a 0.21 m² quadrat into g/m²).
        log1p: whether log(1 + x) follows.
        mean: z-score mean, one number or one per output, in the space after ``log1p``.
        std: z-score standard deviation, given as ``mean`` is; without it values are only centred.

    Raises:
        ConfigError: if the area or a standard deviation is not positive, or a number is not finite.

    Examples:
        >>> transform = TargetTransform(area=0.5).fit(torch.tensor([1.0, 2.0, 3.0]))
        >>> transform.mean, round(transform.std, 4)
        (4.0, 1.633)
        >>> transform.inverse(transform.forward(torch.tensor([2.5])))
        tensor([2.5000])
    """

    area: float | None = None
    log1p: bool = False
    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None

    def __setstate__(self, state: object) -> None:
        restore(self, state)

    def __post_init__(self) -> None:
        normalize_fields(self)
        for name, values in (("area", self.area), ("std", self.std)):
            if any(value <= 0 for value in each(values)):
                raise ConfigError(
                    f"TargetTransform: {name} is {values!r}; expected positive numbers"
                )
        lengths = {len(values) for values in (self.mean, self.std) if isinstance(values, tuple)}
        if len(lengths) > 1 or 0 in lengths:
            raise ConfigError(
                f"TargetTransform: mean is {self.mean} and std {self.std}; expected one length, "
                "not 0"
            )

    @property
    def outputs(self) -> int | None:
        """The number of outputs it was fitted on; None if one number serves all."""
        for values in (self.mean, self.std):
            if isinstance(values, tuple):
                return len(values)
        return None

    def fit(self, values: Any) -> TargetTransform:
        """Return a new transform whose mean and std are those of ``values`` (original units; NaN, masked = missing).

        The standard deviation is the population's, at least 1e-6. Among several outputs, one that
        does not vary is only centred (its standard deviation is 1), and a warning names it. Fit on
        the training fold only.

        Args:
            values: (n,) or (n, outputs), a tensor, a pandas Series or anything ``torch.as_tensor``
                takes.

        Raises:
            DataError: if an output has no finite value, a value is beyond float32, or no output
                varies.
        """
        if isinstance(values, Tensor):
            values = values.detach().cpu().double().numpy()
        numbers = np.ma.asarray(values)
        if numbers.dtype.kind not in "biuf":
            raise DataError(
                f"target values are no numbers but {numbers.dtype}; a transform cannot be fitted"
            )
        table = torch.tensor(np.ma.filled(numbers.astype(np.float64), np.nan))
        if not table.numel():
            raise DataError(
                f"there are no target values (shape {tuple(table.shape)}); a transform cannot be "
                "fitted"
            )
        table = table.reshape(table.shape[0], -1) if table.ndim else table.reshape(1, 1)
        beyond = table[table.abs() > torch.finfo(torch.float32).max]
        if beyond.numel():
            raise DataError(
                f"the target value {beyond[0].item():g} is beyond float32 (+-3.4e38); give it "
                "another unit"
            )
        unscaled = replace(self, mean=None, std=None).forward(table)
        mean = unscaled.nanmean(dim=0)
        if bool(mean.isnan().any()):
            raise DataError(
                "an output has no target value at all (every one is NaN); a transform cannot be "
                "fitted"
            )
        variance = (unscaled - mean).square().nanmean(dim=0)
        std = variance.sqrt().clamp_min(STD_FLOOR)
        std = std.where(_varying(unscaled), 1.0)
        if len(mean) == 1:
            return replace(self, mean=mean.item(), std=std.item())
        return replace(self, mean=tuple(mean.tolist()), std=tuple(std.tolist()))

    def forward(self, values: Tensor) -> Tensor:
        """Original units -> normalised units; the outputs are the last axis.

        Computed in float64, dtype kept.
        """
        x = _wide(values)
        if self.area is not None:
            x = x / self.area
        if self.log1p:
            if bool((x <= -1).any()):
                raise DataError(f"log1p needs values above -1; the smallest is {x.min().item():g}")
            x = torch.log1p(x)
        x = (x - self._row(self.mean, x, 0.0)) / self._row(self.std, x, 1.0)
        return x.to(values.dtype if values.is_floating_point() else torch.get_default_dtype())

    def inverse(self, values: Tensor, parts: int = 1) -> Tensor:
        """Normalised units -> original units.

        Never clamps: the task's activation or ``minimum`` does.

        Args:
            values: (..., outputs).
            parts: how many of the values add up to one. The mean is shared out over them, so that
                the natural parts add up to the inverse of the sum of the values.

        Raises:
            ConfigError: if there are parts and the transform has a logarithm, under which nothing
                adds up.
        """
        if parts != 1 and self.log1p:
            raise ConfigError(
                f"{parts} parts do not add up after log1p; use a transform without it"
            )
        x = _wide(values)
        x = x * self._row(self.std, x, 1.0) + self._row(self.mean, x, 0.0) / parts
        if self.log1p:
            x = torch.expm1(x)
        if self.area is not None:
            x = x * self.area
        return x.to(values.dtype if values.is_floating_point() else torch.get_default_dtype())

    def _row(
        self, numbers: float | tuple[float, ...] | None, like: Tensor, default: float
    ) -> Tensor:
        if not isinstance(numbers, tuple):
            return like.new_full((), default if numbers is None else numbers)
        if like.shape[-1] != len(numbers):
            raise ShapeError(
                f"values have shape {tuple(like.shape)}; it was fitted on {len(numbers)} outputs"
            )
        return constants(numbers, like)


def _varying(table: Tensor) -> Tensor:
    """Which outputs of (n, outputs) vary, (outputs,) bool; NaN = missing."""
    lowest = table.nan_to_num(nan=math.inf).amin(dim=0)
    highest = table.nan_to_num(nan=-math.inf).amax(dim=0)
    constant = (lowest == highest).nonzero().flatten().tolist()
    if len(constant) == len(lowest):
        raise DataError(
            f"all {len(table)} target values are equal ({lowest[0].item():g} before the z-score); "
            "a standard deviation cannot be fitted: leave the target out, or fit on rows in which "
            "it varies"
        )
    if constant:
        logger.warning(
            "outputs %s do not vary among %d rows; they are only centred", constant, len(table)
        )
    return lowest != highest


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Return a few numbers (n,) as a tensor like another; filled where that is, without a copy from the host."""
    return torch.stack([like.new_full((), value) for value in values])


def each(values: float | tuple[float, ...] | None) -> tuple[float, ...]:
    """Return the numbers as a tuple."""
    if values is None:
        return ()
    return values if isinstance(values, tuple) else (values,)


def _wide(values: Tensor) -> Tensor:
    """float64 where the device has it, else float32."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)
