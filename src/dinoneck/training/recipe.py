"""How a head is trained, in plain values: the keys of a training file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from dinoneck.errors import ConfigError, did_you_mean
from dinoneck.training.parameter_groups import check_number

Optimizer = Literal["adamw", "sam"]
Precision = Literal["bf16", "fp16"]


@dataclass(frozen=True)
class Recipe:
    """How a head is trained, in plain values.

    Attributes:
        optimizer: ``"adamw"``, or ``"sam"``: AdamW on the gradient at the worst point nearby, at twice the cost.
        rho: how far SAM looks, in the norm of all trained weights together.
        weight_decay: of AdamW, for matrices; biases, norms and the loss's own parameters have none.
        warmup: share of the steps in which the learning rate rises.
        min_lr: where the cosine ends, at most the peak of any group.
        ema_decay: of the moving average of the weights, which is validated and kept in the end; None = no average.
        ema_start: share of the steps before the averaging begins; until then the average is the weights themselves.
        amp: ``"bf16"`` or ``"fp16"``: autocast of the forward pass, losses in float32; None = off. True is ``"bf16"``,
            which needs no scaling of the loss.
        clip_norm: gradients are scaled down to this norm; None = never.
        standardise_tokens: train on tokens of zero mean and unit spread per channel (measured on the training
            ids): heads whose first layer is linear absorb the scale after, exactly; heads with a norm at the
            entrance start with that norm set to it. Other heads take tokens as they are.
        ridge_blend: share of ridge regression on the mean token in the trained head, 0 ... 1; 0 = none. It has an
            effect on regression tasks of a ``PatchMeanHead`` without an activation or log1p only, which holds it
            exactly, in two more hidden units per output; the log (INFO) states which tasks. ``fit(groups=)`` is for
            the choice of the ridge strength only. The head's parameters are replaced by new, wider ones: an
            optimizer or a moving average made before ``fit`` no longer holds them. Another ``fit`` trains the weights
            from before the blend if the head still has exactly those that ``fit`` left; otherwise it trains all of
            the head as it is. The blend takes one more pass over the training ids; what ``fit`` returns per epoch is
            of the head before it.
        mixup_alpha: blend the tokens of samples by :func:`dinoneck.training.manifold_mixup`; None = do not.
        mixup_off_last: share of the steps at the end without any blending.
        cutmix_alpha: paste parts of images by :func:`dinoneck.training.cutmix`, for live tokens; None = do not. With
            ``mixup_alpha`` too, each batch is first pasted, then its tokens are blended; targets follow both.
        patience: stop after so many epochs without a better validation loss, and keep the best weights; None = train
            to the end and keep the last ones.
        backbone_lr: peak learning rate of a backbone that is trained along; None = a tenth of the head's.
        save_steps: write the run's state after every so many steps too; None = at the end of every epoch only. It
            changes nothing in the result.

    Raises:
        ConfigError: if a value is unknown or out of range, or two of them contradict each other.
    """

    optimizer: Optimizer = "adamw"
    rho: float = 0.05
    weight_decay: float = 1e-2
    warmup: float = 0.1
    min_lr: float = 0.0
    ema_decay: float | None = 0.997
    ema_start: float = 0.025
    amp: Precision | bool | None = None
    clip_norm: float | None = 1.0
    standardise_tokens: bool = True
    ridge_blend: float = 0.5
    mixup_alpha: float | None = None
    mixup_off_last: float = 0.2
    cutmix_alpha: float | None = None
    patience: int | None = None
    backbone_lr: float | None = None
    save_steps: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.amp, bool):
            object.__setattr__(self, "amp", "bf16" if self.amp else None)
        self._check_words()
        for name in ("rho", "clip_norm", "mixup_alpha", "cutmix_alpha", "backbone_lr"):
            if getattr(self, name) is not None or name == "rho":
                check_number(name, getattr(self, name))
        for name in ("weight_decay", "min_lr"):
            check_number(name, getattr(self, name), zero=True)
        for name in ("ema_start", "mixup_off_last", "ridge_blend"):
            check_number(name, getattr(self, name), zero=True, most=1.0)
        for name in ("warmup", "ema_decay"):
            self._check_below_one(name)
        for name in ("patience", "save_steps"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} is {value!r}; expected a whole number of 1 or more, or None")
        self._check_together()

    def _check_words(self) -> None:
        for name, known in (("optimizer", get_args(Optimizer)), ("amp", (*get_args(Precision), None))):
            value = getattr(self, name)
            if value not in known:
                words = ", ".join(str(word) for word in known)
                near = did_you_mean(value, [word for word in known if word])
                raise ConfigError(f"{name} is {value!r}; expected one of {words}.{near}")
        if not isinstance(self.standardise_tokens, bool):
            raise ConfigError(f"standardise_tokens is {self.standardise_tokens!r}; expected True or False")

    def _check_below_one(self, name: str) -> None:
        value: Any = getattr(self, name)
        if value is None and name == "ema_decay":
            return
        check_number(name, value, zero=True)
        if value >= 1:
            raise ConfigError(f"{name} is {value!r}; expected 0 or more and below 1")

    def _check_together(self) -> None:
        if self.optimizer == "sam" and self.amp == "fp16":
            raise ConfigError(
                "optimizer 'sam' with amp 'fp16': the first gradient would carry the loss scale into the step to the "
                "worst point; take amp='bf16', which needs no scale"
            )

    def record(self) -> dict[str, Any]:
        """Return what decides the result, as plain values: all fields but ``save_steps``."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "save_steps"}
