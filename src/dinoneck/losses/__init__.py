"""Losses that ignore masked values, and the loss built from a head's tasks."""

from dinoneck.lazy import attach, homes

HOMES = homes(
    __name__,
    composition=["Composed", "Composition", "CompositionLoss"],
    gram_anchor=["GramAnchor"],
    masked=[
        "DensityRegulariser",
        "dense_masked_cosine",
        "dense_masked_mse",
        "map_cross_entropy",
        "masked_cross_entropy",
        "masked_mse",
        "masked_smooth_l1",
        "ratio_mse",
        "scale_invariant_log",
    ],
    task_loss=["TaskLoss", "UncertaintyWeighting"],
)

__all__ = [*HOMES]
__getattr__, __dir__ = attach(__name__, HOMES)
