"""Learned weights of several losses, trained together with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dinoneck.configured import Configured
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.losses.masked import exact

LOG_VARIANCE_BOUND = 12.0


class UncertaintyWeighting(Configured, nn.Module):
    """The sum of ½ e^(-s) L + ½ s over the losses L, with one learned log-variance s for each.

    A loss that stays high gets a large s and so a small weight; the optimum of s is ln L. The first training forward in
    which a loss counts sets its s to ln L, so that all losses begin with equal parts in the total. Use it where the
    scales of several losses are unknown; known weights, such as those of a metric, belong to the tasks instead. The
    total becomes negative as losses become small: do not select a checkpoint by it.

    Pass its parameter to the optimizer, without weight decay. It has one axis, so that rules which exclude biases and
    norms from weight decay exclude it too. s is limited to -12 ... 12: each training forward first clamps the values,
    and the gradient passes through the limit. The state dict holds which s were set, so a resumed run keeps them.

    Args:
        names: of the losses.
        device: torch factory keyword.
        dtype: torch factory keyword; float32 by default, whatever torch's default is.

    Shape:
        ``{name: scalar}`` -> a scalar in float32 or wider.

    Raises:
        ConfigError: if names are missing, empty or repeated.
        ShapeError: if a loss is missing, unknown or not a single number.

    Examples:
        >>> weighting = UncertaintyWeighting(["mass", "state"])
        >>> weighting({"mass": torch.tensor(4.0), "state": torch.tensor(1.0)})
        tensor(1.6931, grad_fn=<SumBackward0>)
        >>> {name: round(s, 4) for name, s in weighting.log_variances.items()}
        {'mass': 1.3863, 'state': 0.0}

    Reference: Kendall, Gal and Cipolla, "Multi-task learning using uncertainty to weigh losses" (CVPR 2018).
    Deviations: the same ½ for classes as for values; s is bounded and begins at ln L; a loss in which nothing counts is
    left out.
    """

    is_set: Tensor

    def __init__(self, names: Sequence[str], *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.names = tuple(names)
        if not self.names or "" in self.names or len(set(self.names)) < len(self.names):
            raise ConfigError(f"UncertaintyWeighting(names=) is {self.names}; expected one or more names, each once")
        self.log_variance = nn.Parameter(torch.empty(len(self.names), device=device, dtype=dtype or torch.float32))
        self.register_buffer("is_set", torch.zeros(len(self.names), dtype=torch.bool, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set s to 0 until the next training forward in which its loss counts."""
        nn.init.zeros_(self.log_variance)
        self.is_set.zero_()

    @property
    def log_variances(self) -> dict[str, float]:
        """The bounded s of each loss, for logs."""
        values = self.log_variance.detach().clamp(-LOG_VARIANCE_BOUND, LOG_VARIANCE_BOUND).tolist()
        return dict(zip(self.names, values, strict=True))

    def weights(self) -> dict[str, Tensor]:
        """Return the factor ½ exp(-s) of each loss, on the device and without a gradient."""
        s = self.log_variance.detach().clamp(-LOG_VARIANCE_BOUND, LOG_VARIANCE_BOUND)
        return dict(zip(self.names, (0.5 * torch.exp(-s)).unbind(), strict=True))

    def extra_repr(self) -> str:
        """Show the names."""
        return ", ".join(self.names)

    def forward(self, losses: Mapping[str, Tensor], counts: Mapping[str, Tensor | float] | None = None) -> Tensor:
        """Return the weighted sum.

        Args:
            losses: name -> a single number, of every name.
            counts: name -> the number of values that count, of every name; a loss with 0 of them adds 0 and its s gets
                no gradient (an optimizer's momentum may still change it). None = all count.
        """
        values = exact(self._stacked("losses", losses))
        keep = None if counts is None else self._stacked("counts", counts) > 0
        if self.training:  # without a branch on is_set, which would wait for the device
            first, counted = _over_processes(values.detach(), torch.ones_like(self.is_set) if keep is None else keep)
            known = (first > 0) & counted  # else s begins at 0
            initial = torch.where(known, first, 1.0).log().to(self.log_variance.dtype)
            self.log_variance.data.copy_(torch.where(self.is_set, self.log_variance.data, initial))
            self.is_set.logical_or_(counted)
        s = self._bounded()
        if keep is None:
            return (0.5 * torch.exp(-s) * values + 0.5 * s).sum()
        values = torch.where(keep, values, 0.0)
        return torch.where(keep, 0.5 * torch.exp(-s) * values + 0.5 * s, 0.0).sum()

    def _bounded(self) -> Tensor:
        """Return the log-variances within their bound; the gradient passes through, so that they can return."""
        if self.training:  # through .data, so that an earlier forward of the same step can still go backward
            self.log_variance.data.clamp_(-LOG_VARIANCE_BOUND, LOG_VARIANCE_BOUND)
        s = exact(self.log_variance)
        return s + (s.clamp(-LOG_VARIANCE_BOUND, LOG_VARIANCE_BOUND) - s).detach()

    def _stacked(self, what: str, scalars: Mapping[str, Any]) -> Tensor:
        if set(scalars) != set(self.names):
            missing, unknown = sorted(set(self.names) - set(scalars)), sorted(set(scalars) - set(self.names))
            raise ShapeError(
                f"the {what} lack {missing or 'nothing'} and add {unknown or 'nothing'}; this weighting was built for "
                f"{list(self.names)}"
            )
        values = {name: torch.as_tensor(scalars[name], device=self.log_variance.device) for name in self.names}
        for name, value in values.items():
            if value.numel() != 1:
                raise ShapeError(f"{what}[{name!r}] has shape {tuple(value.shape)}; expected a single number")
        return torch.stack([value.reshape(()) for value in values.values()])


def _over_processes(values: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean loss of the processes in which it counts, and whether it counts in any: they all start alike."""
    if not dist.is_available() or not dist.is_initialized():
        return values, keep
    table = torch.stack([torch.where(keep, values, 0.0), keep.to(values.dtype)])
    dist.all_reduce(table)
    return table[0] / table[1].clamp_min(1.0), table[1] > 0
