"""Bins: a map of logits over fixed values to a map of one value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dinoneck.codec import at_least
from dinoneck.configured import Configured
from dinoneck.errors import ConfigError
from dinoneck.losses.masked import exact
from dinoneck.tasks import Task

Spacing = Literal["linear", "log", "mixed"]


class Bins(Configured, nn.Module):
    """The weighted mean of fixed values (bins), with weights ReLU(logit) + eps that are divided by their sum.

    It has no parameters. A head with bins learns one logit per bin and cell, and its task keeps ``dim=1``.

    Args:
        low: the first bin, above 0 unless ``spacing="linear"``.
        high: the last bin, above ``low``.
        count: bins.
        spacing: ``linear``: equal steps; ``log``: equal ratios; ``mixed``: t * log + (1 - t) * linear, with t falling
            from 1 at the first bin to 0 at the last.
        eps: added to every ReLU, so that logits of which none is positive give the mean of the bins.
        device: torch factory keyword, without effect.
        dtype: torch factory keyword, without effect.

    Shape:
        (B, count, rows, cols) -> (B, 1, rows, cols) in float32, or float64 for float64 logits.

    Raises:
        ConfigError: if a value is out of range.

    Examples:
        >>> bins = Bins(0.0, 10.0, 3, eps=1e-8)
        >>> bins(torch.tensor([0.0, 1.0, 3.0]).reshape(1, 3, 1, 1)).item()
        8.75

    Reference: AdaBins (arXiv 2011.14141) with fixed bins, as the depth heads of DINOv2 and DINOv3 have them.
    """

    def __init__(
        self,
        low: float,
        high: float,
        count: int = 256,
        spacing: Spacing = "linear",
        eps: float = 0.1,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        at_least(2, count=count)
        if not (low < high and eps > 0) or (spacing != "linear" and low <= 0):
            raise ConfigError(
                f"low is {low}, high {high}, spacing {spacing!r} and eps {eps}; expected low < high, low > 0 for "
                "logarithmic bins, and eps > 0"
            )
        self.low, self.high, self.count, self.spacing, self.eps = low, high, count, spacing, eps

    def reset_parameters(self) -> None:
        """Do nothing: it has no parameters."""

    def check(self, tasks: Sequence[Task]) -> None:
        """Refuse tasks that bins do not fit.

        Raises:
            ConfigError: naming the first.
        """
        for task in tasks:
            if task.kind != "dense" or task.dim > 1:
                raise ConfigError(
                    f"bins give one value per cell; task {task.name!r} has kind {task.kind!r} and dim {task.dim}, "
                    "expected 'dense' and 1"
                )

    def values(self, like: Tensor) -> Tensor:
        """Return the bins (count,) in the dtype and on the device of a tensor."""
        share = torch.linspace(0.0, 1.0, self.count, dtype=like.dtype, device=like.device)
        linear = self.low + (self.high - self.low) * share
        if self.spacing == "linear":
            return linear
        log = self.low * (self.high / self.low) ** share
        return log if self.spacing == "log" else (1.0 - share) * log + share * linear

    def forward(self, logits: Tensor) -> Tensor:
        """Return the weighted mean of the bins in every cell."""
        weights = exact(logits).relu() + self.eps  # (B, count, rows, cols)
        total = (weights * self.values(weights)[:, None, None]).sum(dim=1, keepdim=True)  # (B, 1, rows, cols)
        return total / weights.sum(dim=1, keepdim=True)
