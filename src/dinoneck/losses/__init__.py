"""Losses that skip what is masked, and the loss built from a head's tasks."""

from typing import TYPE_CHECKING

from dinoneck.lazy import attach

if TYPE_CHECKING:
    from dinoneck.losses.gram_anchor import GramAnchor as GramAnchor
    from dinoneck.losses.masked import masked_cross_entropy as masked_cross_entropy
    from dinoneck.losses.masked import masked_mse as masked_mse
    from dinoneck.losses.masked import masked_smooth_l1 as masked_smooth_l1
    from dinoneck.losses.masked import ratio_mse as ratio_mse
    from dinoneck.losses.task_loss import TaskLoss as TaskLoss

_HOMES = {
    "GramAnchor": "dinoneck.losses.gram_anchor",
    "masked_cross_entropy": "dinoneck.losses.masked",
    "masked_mse": "dinoneck.losses.masked",
    "masked_smooth_l1": "dinoneck.losses.masked",
    "ratio_mse": "dinoneck.losses.masked",
    "TaskLoss": "dinoneck.losses.task_loss",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = attach(__name__, _HOMES)
