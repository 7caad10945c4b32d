"""The group ``detector`` of a training file; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import arg

from dinoneck.errors import ConfigError
from dinoneck.training.recipe import check_number, check_whole


@dataclass(frozen=True)
class DetectorConfig:
    """A detector, for boxes.

    Attributes:
        name: of torchvision (fcos, retinanet, fasterrcnn) or transformers.
        variant: size of D-FINE: stock is D-FINE-L, 25m has 25 million parameters with a ViT-S.
        features_at: scale of the images for the ViT, such as 0.5; a neck with a detail branch sees them at full size.
        queries: of D-FINE and RT-DETRv2; None = the variant's.
        encoder_layers: of their hybrid encoder; None = the variant's.
        freeze: EPOCH=STAGE: what is frozen from an epoch on: all, last:N (the last N blocks are trained) or none.
        layer_decay: factor of the learning rate per block of the backbone; None = one rate.
        augment: horizontal: mirror half of the images and vary colours; both: also upside down.
        accumulate: batches per optimizer step.
        checkpointing: recompute backbone blocks in the backward pass to save memory.
        eval_every: epochs between evaluations.
        workers: processes that read images.
    """

    name: Annotated[Literal["fcos", "retinanet", "fasterrcnn", "dfine", "rtdetrv2"], arg(name="detector")] = "fcos"
    variant: Literal["stock", "25m", "tiny"] = "25m"
    features_at: float = 1.0
    queries: int | None = None
    encoder_layers: int | None = None
    freeze: tuple[str, ...] = ("0=all", "10=last:4")
    layer_decay: float | None = None
    augment: Literal["horizontal", "both", "none"] = "horizontal"
    accumulate: int = 1
    checkpointing: bool = False
    eval_every: int = 1
    workers: int = 0

    def __post_init__(self) -> None:
        check_number("features_at", self.features_at, high=1, above=True)
        for name in ("queries", "encoder_layers", "accumulate", "eval_every"):
            if (value := getattr(self, name)) is not None:
                check_whole(name, value, 1)
        check_whole("workers", self.workers)
        if self.layer_decay is not None:
            check_number("layer_decay", self.layer_decay, high=1, above=True)
        _ = self.plan

    @property
    def plan(self) -> dict[int, str]:
        """``freeze`` as epoch -> stage, for :class:`dinoneck.training.FreezeSchedule`."""
        plan: dict[int, str] = {}
        for entry in self.freeze:
            epoch, sign, stage = entry.partition("=")
            if not sign or not (epoch.isascii() and epoch.isdigit()) or int(epoch) in plan:
                raise ConfigError(f"freeze has {entry!r}; expected EPOCH=STAGE, each epoch once, such as 10=last:4")
            plan[int(epoch)] = stage
        return plan
