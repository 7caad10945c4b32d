"""A plan of which part of the backbone is trained from which epoch on, also under DistributedDataParallel.

The optimizer's groups, learning-rate schedules, EMA copies and resumed runs hold on to the parameters that they were
made with. So groups never change here: frozen parameters are in them from the first step and have no gradient.
DistributedDataParallel lists the parameters to average at construction: it is built while all of them are trainable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from dinoneck.errors import ConfigError, did_you_mean
from dinoneck.training.parameter_groups import backbone_of, param_groups
from dinoneck.training.recipe import check_number


@dataclass(frozen=True)
class FreezeReport:
    """State after a stage was applied.

    Attributes:
        epoch: the epoch asked for.
        stage: its name in the plan.
        changed: whether other parameters than before are trainable now.
        trainable_blocks: indices of the blocks with trainable parameters.
        trainable_parameters: trainable numbers in the backbone, LoRA included.
    """

    epoch: int
    stage: str
    changed: bool
    trainable_blocks: tuple[int, ...]
    trainable_parameters: int


@dataclass(frozen=True)
class FreezeSchedule:
    """Which part of the backbone is frozen, by epoch. The head is never touched.

    It keeps no state: a resumed run asks for its epoch and gets the right stage. Build the optimizer with
    :meth:`param_groups`, before any learning-rate schedule and EMA, and begin every epoch with :meth:`start_epoch`.

    Args:
        plan: epoch -> ``"all"`` (all frozen), ``"last:n"`` (the last n blocks that run are trained, and the final norm
            if it is applied) or ``"none"`` (everything that takes part is trained). A stage holds until the next one;
            before the first it is ``"all"``. LoRA weights are trained in every stage.
        lr_scale: :meth:`param_groups` gives the backbone this times the head's learning rate.
        backbone_lr: the backbone's learning rate; wins over ``lr_scale``.

    Raises:
        ConfigError: if an epoch, a stage or a number is not valid.

    Examples:
        >>> schedule = FreezeSchedule({0: "all", 10: "last:1", 11: "last:2", 20: "none"})
        >>> [schedule.stage(epoch) for epoch in (0, 9, 10, 19, 99)]
        ['all', 'all', 'last:1', 'last:2', 'none']
        >>> from dinoneck import load_backbone
        >>> schedule.apply(load_backbone("dinoneck_tiny"), 11).trainable_blocks
        (4, 5)
    """

    plan: Mapping[int, str]
    lr_scale: float = 0.1
    backbone_lr: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.plan, Mapping) or not self.plan:
            raise ConfigError(f"plan is {self.plan!r}; expected epochs and stages such as {{0: 'all', 10: 'last:4'}}")
        for epoch, stage in self.plan.items():
            _check_epoch(epoch, "plan has epoch")
            _blocks_of(stage, epoch)
        check_number("lr_scale", self.lr_scale, above=True)
        if self.backbone_lr is not None:
            check_number("backbone_lr", self.backbone_lr, above=True)
        object.__setattr__(self, "plan", {0: "all", **{int(epoch): self.plan[epoch] for epoch in sorted(self.plan)}})

    def stage(self, epoch: int) -> str:
        """Return the stage that holds in an epoch.

        Raises:
            ConfigError: if the epoch is not an integer of 0 or more.
        """
        _check_epoch(epoch, "epoch is")
        return self.plan[max(begin for begin in self.plan if begin <= epoch)]

    def apply(self, model: nn.Module, epoch: int) -> FreezeReport:
        """Freeze and unfreeze by the plan for an epoch; frozen parameters lose their gradients.

        In a loop use :meth:`start_epoch`, which also checks DistributedDataParallel and the optimizer.

        Args:
            model: a Backbone, a module with one as ``.backbone`` or anywhere inside, or DistributedDataParallel
                around it.
            epoch: counted from 0.

        Raises:
            ConfigError: if the backbone is missing, or the plan, at any epoch, names more blocks than run.
        """
        backbone, stage = backbone_of(model), self.stage(epoch)
        runs = max(backbone.layers) + 1
        for begin, planned in self.plan.items():
            if (_blocks_of(planned, begin) or 1) > runs:
                raise ConfigError(
                    f"plan has {planned!r} at epoch {begin}, but {runs} blocks of {backbone.name} run for "
                    f"layers={backbone.layers}; expected 'last:{runs}' at most, or 'none'"
                )
        before = _trainable(backbone)
        count = _blocks_of(stage, epoch)
        if stage == "all":
            backbone.freeze(keep_lora=True)
        elif count is None:
            backbone.unfreeze()
        else:
            backbone.unfreeze_last(count)
        for parameter in backbone.parameters():
            if not parameter.requires_grad:
                parameter.grad = None  # optimizers would apply a left-over one
        after = _trainable(backbone)
        return FreezeReport(
            epoch=int(epoch),
            stage=stage,
            changed=before.keys() != after.keys(),
            trainable_blocks=backbone.trainable_blocks,
            trainable_parameters=sum(parameter.numel() for parameter in after.values()),
        )

    def param_groups(
        self, model: nn.Module, *, lr: float, weight_decay: float = 0.05, layer_decay: float | None = None
    ) -> list[dict[str, Any]]:
        """Return :func:`dinoneck.training.param_groups` for the whole run: frozen parameters included.

        The backbone's groups get ``backbone_lr`` if the schedule has one, else ``lr * lr_scale``, from the first
        step on, so that learning-rate schedules see it when they are made.

        Args:
            model: as for :meth:`apply`.
            lr: the head's.
            weight_decay: as for ``param_groups``.
            layer_decay: as for ``param_groups``.

        Raises:
            ConfigError: as ``param_groups`` does.
        """
        return param_groups(
            model,
            lr=lr,
            backbone_lr=lr * self.lr_scale if self.backbone_lr is None else self.backbone_lr,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            include_frozen=True,
        )

    def start_epoch(self, epoch: int, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        """Apply the epoch's stage; return the same model and optimizer.

        Call it in all ranks. No learning rate and no group of the optimizer is changed.

        Args:
            epoch: counted from 0.
            model: as for :meth:`apply`; DistributedDataParallel with ``find_unused_parameters=True``, built while all
                that the plan ever trains is trainable: after ``backbone.unfreeze()``.
            optimizer: made from :meth:`param_groups`.

        Raises:
            ConfigError: as :meth:`apply` does; if the optimizer or DistributedDataParallel lacks parameters that the
                plan trains from now on.
        """
        trained: dict[int, nn.Parameter] = {}
        for part in model.modules():
            if isinstance(part, DistributedDataParallel):
                # a wrapper averages the gradients of what is trainable when it is built: noted before anything changes
                seen = part.__dict__.setdefault("dinoneck_trainable", {*_trainable(part)})
                trained = trained or self._trained_from(epoch, model)
                if not part.find_unused_parameters or not trained.keys() <= seen:
                    raise ConfigError(
                        "DistributedDataParallel does not average all parameters that the plan trains, so ranks would "
                        "diverge; register the backbone as a submodule (self.backbone = backbone), call "
                        "backbone.unfreeze() before the model is wrapped, and pass find_unused_parameters=True"
                    )
        self.apply(model, epoch)
        inside = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if missing := (trained or _trainable(backbone_of(model))).keys() - inside:
            raise ConfigError(
                f"the optimizer lacks {len(missing)} backbone parameters that epoch {epoch} or a later one trains; "
                "build it with schedule.param_groups(model, lr=...), or param_groups(..., include_frozen=True)"
            )
        return model, optimizer

    def _trained_from(self, epoch: int, model: nn.Module) -> dict[int, nn.Parameter]:
        """The backbone's parameters that are trained in this epoch or a later one."""
        found: dict[int, nn.Parameter] = {}
        for begin in (epoch, *(begin for begin in self.plan if begin > epoch)):
            self.apply(model, begin)
            found |= _trainable(backbone_of(model))
        return found


def _check_epoch(epoch: object, what: str) -> None:
    if isinstance(epoch, bool) or not isinstance(epoch, Integral) or epoch < 0:
        raise ConfigError(f"{what} {epoch!r}; expected an integer of 0 or more")


def _blocks_of(stage: object, epoch: object) -> int | None:
    """The n of ``last:n``; None for the other stages.

    Raises:
        ConfigError: if it is not a stage.
    """
    if stage in ("all", "none"):
        return None
    word, _, number = stage.partition(":") if isinstance(stage, str) else ("", "", "")
    if word == "last" and number.isascii() and number.isdigit() and int(number) > 0:
        return int(number)
    near = did_you_mean(stage, ("all", "none", "last:1"))
    raise ConfigError(
        f"plan has {stage!r} at epoch {epoch}; expected 'all' (all frozen), 'last:n' with n of 1 or more, or 'none' "
        f"(nothing frozen).{near}"
    )


def _trainable(module: nn.Module) -> dict[int, nn.Parameter]:
    return {id(parameter): parameter for parameter in module.parameters() if parameter.requires_grad}
