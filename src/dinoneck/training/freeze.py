"""A plan of which part of the backbone learns from which epoch on, also under DistributedDataParallel.

Switching ``requires_grad`` is the easy half. The optimizer, learning-rate schedules, EMA copies and resumed runs all
hold on to groups and parameters as they were when they were made, so here groups never change: frozen parameters are
in them from the first step and have no gradient. DistributedDataParallel notes at construction which parameters
require gradients and never looks again: what is thawed afterwards is not averaged over ranks, and nobody is told.
So its wrapper is made anew where the plan changes something.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from dinoneck.backbones.backbone import Backbone
from dinoneck.errors import ConfigError, did_you_mean
from dinoneck.training.parameter_groups import backbone_of, param_groups
from dinoneck.training.recipe import check_number

_SAME = (
    "device_ids",
    "output_device",
    "dim",
    "process_group",
    "find_unused_parameters",
    "gradient_as_bucket_view",
    "static_graph",
)
_SAME_IF_KNOWN = ("skip_all_reduce_unused_params", "batched_grad_copy", "lazy_bucket_allocation")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FreezeReport:
    """What holds after a stage was applied.

    Attributes:
        epoch: the epoch asked for.
        stage: the plan's word for it.
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
        plan: epoch -> ``"all"`` (all frozen), ``"last:n"`` (the last n blocks that run learn, and the final norm if it
            is applied) or ``"none"`` (nothing frozen: everything that takes part learns). A stage holds until the
            next one; before the first it is ``"all"``. LoRA weights learn in every stage.
        lr_scale: :meth:`param_groups` gives the backbone this times the head's learning rate.
        backbone_lr: the backbone's learning rate; wins over ``lr_scale``.

    Raises:
        ConfigError: if an epoch, a stage or a number is none of these.

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
            ConfigError: if the epoch is no integer of 0 or more.
        """
        _check_epoch(epoch, "epoch is")
        return self.plan[max(begin for begin in self.plan if begin <= epoch)]

    def apply(self, model: nn.Module, epoch: int) -> FreezeReport:
        """Freeze and thaw as the plan says for an epoch; frozen parameters lose their gradients.

        In a loop use :meth:`start_epoch`, which also looks after DistributedDataParallel and the optimizer. Called
        before the model is wrapped this is enough by itself.

        Args:
            model: a Backbone, a module with one as ``.backbone`` or anywhere inside, or DistributedDataParallel
                around it.
            epoch: counted from 0.

        Raises:
            ConfigError: if there is no backbone, or the plan, at whatever epoch, asks for more blocks than run.
        """
        backbone, stage = backbone_of(model), self.stage(epoch)
        self._check_depth(backbone)
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
                parameter.grad = None  # a left-over one would let optimizers go on moving it
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
        """Apply the epoch's stage; return the model to go on with and the same optimizer.

        The model comes back as it is, except when DistributedDataParallel was built for other trainable parameters:
        then a new wrapper with the same settings and communication hooks stands around the same module, and the old
        one lets go of it. Call it in all ranks alike. No learning rate is changed. Trainable backbone parameters that
        the optimizer lacks are added as new groups with a warning: a learning-rate schedule made before does not know
        these, which :meth:`param_groups` avoids.

        Args:
            epoch: counted from 0.
            model: as for :meth:`apply`.
            optimizer: best made from :meth:`param_groups`.

        Raises:
            ConfigError: as :meth:`apply` does; if DistributedDataParallel does not hold the backbone or would have
                nothing to train; or if parameters must be added and no learning rate is known for them.
        """
        report = self.apply(model, epoch)
        backbone = backbone_of(model)
        model = _renewed(model, backbone, report)
        self._add_missing(model, backbone, optimizer, report)
        if report.changed and report.trainable_parameters:
            self._mention_high_rate(backbone, optimizer)
        return model, optimizer

    def _check_depth(self, backbone: Backbone) -> None:
        runs = max(backbone.layers) + 1
        for epoch, stage in self.plan.items():
            if (_blocks_of(stage, epoch) or 1) > runs:
                raise ConfigError(
                    f"plan has {stage!r} at epoch {epoch}, but {runs} blocks of {backbone.name} run for "
                    f"layers={backbone.layers}; expected 'last:{runs}' at most, or 'none'"
                )

    def _add_missing(self, model: nn.Module, backbone: Backbone, optimizer: Optimizer, report: FreezeReport) -> None:
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = _trainable(backbone).keys() - known
        if not missing:
            return
        heads = _groups(optimizer, backbone, inside=False)
        if self.backbone_lr is None and not heads:
            raise ConfigError(
                "the optimizer lacks backbone parameters and has no head to take a learning rate from; build it with "
                "schedule.param_groups(model, lr=...), or pass backbone_lr="
            )
        rates = {}
        for key in ("lr", "initial_lr"):
            found = [float(group[key]) for group in heads if key in group]
            if found or key == "lr":
                rates[key] = self.backbone_lr if self.backbone_lr is not None else self.lr_scale * max(found)
        decay = max(float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups)
        for group in param_groups(model, lr=1.0, weight_decay=decay):
            wanted = [parameter for parameter in group["params"] if id(parameter) in missing]
            if wanted:
                name = f"{group['name']}.epoch{report.epoch}"
                optimizer.add_param_group({**group, **rates, "params": wanted, "name": name})
        warnings.warn(
            f"epoch {report.epoch} trains {len(missing)} backbone parameters that the optimizer lacked; they were "
            f"added with lr {rates['lr']:g}. Learning-rate schedules made before do not know them, and resumed runs do "
            "not fit; build the optimizer with schedule.param_groups(model, lr=...)",
            stacklevel=3,
        )

    def _mention_high_rate(self, backbone: Backbone, optimizer: Optimizer) -> None:
        """Param_groups called without backbone_lr gives the backbone the head's rate, whatever lr_scale says."""
        own, heads = (
            [float(group.get("initial_lr", group["lr"])) for group in _groups(optimizer, backbone, inside=inside)]
            for inside in (True, False)
        )
        meant = self.backbone_lr if self.backbone_lr is not None else self.lr_scale * max(heads, default=float("inf"))
        if own and max(own) > 1.001 * meant:
            _logger.warning(
                "the backbone's groups have lr %g, this schedule means %g, and groups are left as they are; build them "
                "with schedule.param_groups(model, lr=...), or give the schedule backbone_lr=%g",
                max(own),
                meant,
                max(own),
            )


def _check_epoch(epoch: object, what: str) -> None:
    if isinstance(epoch, bool) or not isinstance(epoch, Integral) or epoch < 0:
        raise ConfigError(f"{what} {epoch!r}; expected an integer of 0 or more")


def _blocks_of(stage: object, epoch: object) -> int | None:
    """The n of ``last:n``; None for the other stages.

    Raises:
        ConfigError: if it is no stage.
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


def _groups(optimizer: Optimizer, backbone: Backbone, *, inside: bool) -> list[dict[str, Any]]:
    """The groups that hold parameters inside the backbone, or outside."""
    own = {id(parameter) for parameter in backbone.parameters()}
    return [
        group
        for group in optimizer.param_groups
        if any((id(parameter) in own) == inside for parameter in group["params"])
    ]


def _renewed(model: nn.Module, backbone: Backbone, report: FreezeReport) -> nn.Module:
    """The model, in a new DistributedDataParallel if its own was built for other trainable parameters.

    Raises:
        ConfigError: if that cannot be done.
    """
    if not isinstance(model, DistributedDataParallel):
        if report.changed and any(isinstance(module, DistributedDataParallel) for module in model.modules()):
            raise ConfigError(
                f"DistributedDataParallel is inside {type(model).__name__}, where it cannot be renewed; make it the "
                "outermost, as in DistributedDataParallel(torch.compile(model))"
            )
        return model
    ignored = model.parameters_to_ignore
    inside = {id(p) for name, p in model.module.named_parameters() if p.requires_grad and name not in ignored}
    if not _trainable(backbone).keys() <= inside:
        raise ConfigError(
            "DistributedDataParallel does not see the backbone's parameters, so ranks would diverge; register the "
            "backbone as a submodule: self.backbone = backbone"
        )
    if not inside:
        raise ConfigError(
            f"stage {report.stage!r} leaves DistributedDataParallel nothing to train; wrap the model together with its "
            "head"
        )
    # somebody may have thawed blocks by hand since it was built
    told: dict[str, Any] = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    built_for = told.get("num_parameter_tensors", len(inside))
    return _rewrapped(model) if report.changed or built_for != len(inside) else model


def _rewrapped(old: DistributedDataParallel) -> DistributedDataParallel:
    """A new wrapper with the old one's settings; the old one's hooks are taken off the parameters.

    Raises:
        ConfigError: for settings that cannot be carried over.
    """
    if getattr(old, "mixed_precision", None) is not None or getattr(old, "_delay_all_reduce_params", None):
        raise ConfigError(
            "DistributedDataParallel was built with mixed_precision= or delay_all_reduce_named_params=, which cannot "
            "be carried over to a new wrapper; leave them out (for mixed precision use torch.autocast)"
        )
    options = inspect.signature(DistributedDataParallel.__init__).parameters
    settings = {name: getattr(old, name) for name in _SAME}
    settings |= {name: getattr(old, name) for name in _SAME_IF_KNOWN if name in options and hasattr(old, name)}
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
    settings[buffers] = old.broadcast_buffers
    if not getattr(old, "bucket_bytes_cap_default", True):
        settings["bucket_cap_mb"] = old.bucket_bytes_cap / 2**20
    old.reducer._remove_autograd_hooks()
    new = DistributedDataParallel(old.module, **settings)
    for hook, state in old._comm_hooks:
        new.register_comm_hook(state, hook)
    new.training = old.training
    return new
