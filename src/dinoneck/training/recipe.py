"""How a head is trained, in plain values; imports no torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Suppress

from dinoneck.errors import ConfigError, did_you_mean
from dinoneck.training.config_flags import or_none


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


def check_whole(name: str, value: Any, low: int = 0, high: int = 1_000_000) -> None:
    """Refuse what is not a whole number in the range."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; expected a whole number {low} ... {high}")


@dataclass(frozen=True)
class Recipe:
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
        standardise_tokens: standardise tokens per channel (default: on), for heads that start with a linear layer or a
            norm.
        mixup_alpha: manifold mixup of tokens and targets, Beta(alpha, alpha); None = off.
        mixup_off_last: share of the steps at the end without mixup.
        cutmix_alpha: paste parts of images by :func:`dinoneck.training.cutmix`, for live tokens; None = do not. With
            ``mixup_alpha`` too, each batch is first pasted, then its tokens are blended; targets follow both.
        patience: epochs without a better validation loss before training stops with the best weights; None = keep the
            last.
        backbone_lr: peak learning rate of a trained backbone; None = a tenth of lr.

    ``standardise_tokens`` measures the channels on the training ids. Heads whose first layer is linear keep mean and
    deviation in two buffers at their entrance; heads with a norm there start with that norm set to them. A head that
    has other values than 0 and 1 there keeps its own.

    Raises:
        ConfigError: if a value is unknown or out of range, or two of them contradict each other.
    """

    epochs: int = 40
    batch_size: int = 8
    lr: float = 1e-3
    seed: int = 42
    optimizer: Literal["adamw", "sam"] = "adamw"
    rho: float = 0.05
    weight_decay: float = 1e-2
    warmup: float = 0.1
    ema_decay: Annotated[float | None, or_none(float)] = None
    amp: Annotated[Literal["bf16", "fp16"] | bool | None, or_none(str)] = None
    clip_norm: Annotated[float | None, or_none(float)] = 1.0
    standardise_tokens: bool = True
    mixup_alpha: Annotated[float | None, or_none(float)] = None
    mixup_off_last: float = 0.2
    cutmix_alpha: Suppress[float | None] = None
    patience: Annotated[int | None, or_none(int)] = None
    backbone_lr: Annotated[float | None, or_none(float)] = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(number := getattr(self, field.name), "ndim", None) == 0:  # of NumPy
                object.__setattr__(self, field.name, number.item())
        if isinstance(self.amp, bool):
            object.__setattr__(self, "amp", "bf16" if self.amp else None)
        for name, known in (("optimizer", ("adamw", "sam")), ("amp", ("bf16", "fp16", None))):
            if (value := getattr(self, name)) not in known:
                words = [str(word) for word in known]
                raise ConfigError(
                    f"{name} is {value!r}; expected one of {', '.join(words)}.{did_you_mean(value, words)}"
                )
        if not isinstance(self.standardise_tokens, bool):
            raise ConfigError(f"standardise_tokens is {self.standardise_tokens!r}; expected True or False")
        check_whole("seed", self.seed, high=2**32 - 1)
        for name in ("epochs", "batch_size"):
            check_whole(name, getattr(self, name), 1)
        for name in ("lr", "rho"):
            check_number(name, getattr(self, name), above=True)
        check_number("weight_decay", self.weight_decay)
        check_number("mixup_off_last", self.mixup_off_last, high=1)
        check_number("warmup", self.warmup, below=1)
        # None switches these off
        if self.patience is not None:
            check_whole("patience", self.patience, 1)
        for name in ("clip_norm", "mixup_alpha", "cutmix_alpha", "backbone_lr"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=True)
        if self.ema_decay is not None:
            check_number("ema_decay", self.ema_decay, below=1)
        if self.optimizer == "sam" and self.amp == "fp16":
            raise ConfigError(
                "optimizer 'sam' with amp 'fp16': the first gradient would carry the loss scale into the step to the "
                "worst point; take amp='bf16', which needs no scale"
            )
