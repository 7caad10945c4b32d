"""The plain values of a cross-validation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinoneck.errors import ConfigError
from dinoneck.tasks import Activation

HeadName = Literal["patch_mean", "fpn", "cls_gating", "dense"]


@dataclass(frozen=True)
class Plan:
    """The plain values of a cross-validation.

    Attributes:
        folds: number of folds.
        epochs: passes over the training photos, per fold.
        batch_size: photos per step.
        lr: peak learning rate.
        seed: of the split, the heads' first weights and the order of samples.
        hidden_dim: hidden units per head; channels of the pyramid.
        activation: of every task; None = linear.
        standardise: give each target a z-score fitted on the training fold; off, heads learn natural units.
        head: ``patch_mean``, ``fpn`` on all layers of the tokens, ``cls_gating``, or ``dense``, whose targets are
            means over cells.
        fold: train and judge this one alone, counted from 0; None = all.

    Raises:
        ConfigError: if there is no such fold.
    """

    folds: int = 5
    epochs: int = 40
    batch_size: int = 8
    lr: float = 1e-3
    seed: int = 42
    hidden_dim: int = 128
    activation: Activation | None = None
    standardise: bool = True
    head: HeadName = "patch_mean"
    fold: int | None = None

    def __post_init__(self) -> None:
        if self.fold is not None and not 0 <= self.fold < self.folds:
            raise ConfigError(f"fold is {self.fold} and there are {self.folds} folds; expected 0 ... {self.folds - 1}")

    @property
    def chosen(self) -> list[int]:
        """The numbers of the folds that are trained."""
        return list(range(self.folds)) if self.fold is None else [self.fold]
