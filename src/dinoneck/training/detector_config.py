"""The group ``detector`` of a training file; imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta
from tyro.conf import arg

from dinoneck.errors import ConfigError
from dinoneck.training.recipe import Count
from dinoneck.training.structs import Config

Scale = Annotated[float, Meta(gt=0, le=1)]


class DetectorConfig(Config, frozen=True, kw_only=True):
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
    features_at: Scale = 1.0
    queries: Count | None = None
    encoder_layers: Count | None = None
    freeze: tuple[str, ...] = ("0=all", "10=last:4")
    layer_decay: Scale | None = None
    augment: Literal["horizontal", "both", "none"] = "horizontal"
    accumulate: Count = 1
    checkpointing: bool = False
    eval_every: Count = 1
    workers: Annotated[int, Meta(ge=0)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
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
