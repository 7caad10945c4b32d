"""How a head is trained, in plain values; imports no torch."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from msgspec import Meta
from msgspec.structs import force_setattr

from dinoneck.errors import ConfigError
from dinoneck.training.structs import Config

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Seed = Annotated[int, Meta(ge=0, lt=1 << 32)]
Positive = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


def check_number(
    name: str, value: Any, low: float = 0, high: float = math.inf, *, above: bool = False, below: float = math.inf
) -> None:
    """Refuse a number that is not finite or out of range; ``above`` excludes ``low`` itself."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}; expected a finite number")
    if not low <= value <= high or (above and value == low) or value >= below:
        limits = f"above {low:g}" if above else f"{low:g} or more"
        limits += f" and below {below:g}" if below < math.inf else f", at most {high:g}" if high < math.inf else ""
        raise ConfigError(f"{name} is {value!r}; expected {limits}")


class Recipe(Config, frozen=True, kw_only=True):
    """How a head is trained: the group ``optim`` of a training file, and what :func:`dinoneck.training.fit` takes.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, over all processes.
        lr: peak learning rate; cosine with warm-up.
        seed: of the split, the first weights and the order of samples.
        optimizer: adamw, or sam: sharpness-aware minimisation with AdamW, at twice the cost.
        rho: neighbourhood size of SAM, in the norm of all trained weights.
        weight_decay: of AdamW, for weight matrices only.
        warmup: share of the steps with a rising learning rate.
        ema_decay: decay of the moving average of the weights, which is validated and saved; None = no average.
        amp: autocast to bf16 or fp16, losses in float32; True = bf16, None = float32.
        clip_norm: largest norm of the gradients; None = no limit.
        standardise_tokens: measure mean and deviation of every channel on the training images, and standardise tokens
            at the head's entrance (default: on), for heads that start with a linear layer or a norm.
        mixup_alpha: mix tokens and losses of pairs of images, by shares from Beta(alpha, alpha); None = off.
        mixup_off_last: share of the steps at the end without mixup and CutMix.
        cutmix_alpha: paste parts of images, where the backbone is trained along; None = off.
        patience: epochs without a better validation loss before training stops with the best weights; None = keep the
            last.
        backbone_lr: peak learning rate of a trained backbone; None = a tenth of lr.

    Raises:
        ConfigError: if a value is unknown or out of range, or two of them contradict each other.
    """

    epochs: Count = 40
    batch_size: Count = 8
    lr: Positive = 1e-3
    seed: Seed = 42
    optimizer: Literal["adamw", "sam"] = "adamw"
    rho: Positive = 0.05
    weight_decay: Annotated[float, Meta(ge=0)] = 1e-2
    warmup: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    ema_decay: Annotated[float, Meta(ge=0, lt=1)] | None = None
    amp: Literal["bf16", "fp16"] | bool | None = None
    clip_norm: Positive | None = 1.0
    standardise_tokens: bool = True
    mixup_alpha: Positive | None = None
    mixup_off_last: Share = 0.2
    cutmix_alpha: Positive | None = None
    patience: Count | None = None
    backbone_lr: Positive | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.amp, bool):
            force_setattr(self, "amp", "bf16" if self.amp else None)
        if self.optimizer == "sam" and self.amp == "fp16":
            raise ConfigError(
                "optimizer 'sam' with amp 'fp16': the first gradient would carry the loss scale into the step to the "
                "worst point; take amp='bf16', which needs no scale"
            )
