"""Learning-rate schedules, per optimizer step."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dinoneck.errors import ConfigError


def cosine_with_warmup(optimizer: Optimizer, total_steps: int, warmup: float = 0.1, min_lr: float = 0.0) -> LambdaLR:
    """Linear from lr / w to lr over the first ``warmup`` share of the steps (w of them), then a half cosine down.

    Args:
        optimizer: its groups keep their own learning rates as the peak.
        total_steps: optimizer steps in the whole run; call ``step()`` after each.
        warmup: share of them, 0 ... 1.
        min_lr: where the cosine ends, in every group.

    Raises:
        ConfigError: if a value is out of range.
    """
    if total_steps < 1 or not 0.0 <= warmup < 1.0:
        raise ConfigError(f"total_steps is {total_steps} and warmup {warmup}; expected 1 or more and 0 ... 1")
    rising = round(warmup * total_steps)
    peaks = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    if not 0.0 <= min_lr <= min(peaks):
        raise ConfigError(f"min_lr is {min_lr}; expected 0 ... {min(peaks):g}, the smallest learning rate of a group")

    def factor(step: int, least: float) -> float:
        if step < rising:
            return (step + 1) / rising
        left = 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total_steps - rising))))
        return left + (1.0 - left) * least

    return LambdaLR(optimizer, [partial(factor, least=min_lr / peak if min_lr else 0.0) for peak in peaks])
