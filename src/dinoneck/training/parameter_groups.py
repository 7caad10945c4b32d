"""The parameters of a model with a backbone: learning rate and weight decay of each, and which are trained when.

A parameter belongs to the backbone because it is inside ``model.backbone``, and to block 3 because
it is inside that block, not because of its name. A detector that holds its own ViT states it as an
:class:`OwnVit`. timm's ``param_groups_layer_decay`` skips frozen parameters and needs a model of
timm.

The optimizer's groups, learning-rate schedules, EMA copies and resumed runs hold on to the
parameters that they were made with. So groups never change: frozen parameters are in them from the
first step and have no gradient.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from msgspec import Meta
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from dinoneck.backbones.adapter import is_trainable
from dinoneck.backbones.backbone import Backbone
from dinoneck.errors import BackboneError, ConfigError
from dinoneck.training.recipe import PLAN_PATTERN, NotNegative, Positive, Scale, converted

_NORM_LAYERS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)
_LINEAR_LAYERS = (nn.Linear, _ConvNd)
_Stage = Annotated[str, Meta(pattern=PLAN_PATTERN)]
_Plan = Annotated[dict[Annotated[int, Meta(ge=0)], _Stage], Meta(min_length=1)]


@dataclass(frozen=True)
class OwnVit:
    """The ViT of a detector that holds its own: what of it is trained, with the words of :class:`dinoneck.Backbone`.

    Attributes:
        name: for messages.
        module: the ViT.
        blocks: its blocks, of which all run.
        norm: its final norm.
        unused: parameters that no output depends on.
    """

    name: str
    module: nn.Module
    blocks: Sequence[nn.Module]
    norm: nn.Module
    unused: Collection[nn.Parameter] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        """The last block, by its index."""
        return (len(self.blocks) - 1,)

    @property
    def trainable_blocks(self) -> tuple[int, ...]:
        """Indices of the blocks that have trainable parameters."""
        return tuple(i for i, block in enumerate(self.blocks) if is_trainable(block))

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the ViT."""
        return self.module.parameters()

    def modules(self) -> Iterator[nn.Module]:
        """Yield the modules of the ViT."""
        return self.module.modules()

    def freeze(self, *, keep_lora: bool = False) -> OwnVit:
        """Make nothing trainable; there are no LoRA weights."""
        self.module.requires_grad_(False)
        return self

    def unfreeze(self) -> OwnVit:
        """Make all parameters trainable that affect the output."""
        for parameter in self.parameters():
            parameter.requires_grad_(all(parameter is not other for other in self.unused))
        return self

    def unfreeze_last(self, n: int) -> OwnVit:
        """Make exactly the last n blocks trainable, with the final norm.

        Raises:
            BackboneError: if n is not between 1 and the number of blocks.
        """
        if not 1 <= n <= len(self.blocks):
            raise BackboneError(
                f"unfreeze_last({n}): expected 1 ... {len(self.blocks)}, the blocks of {self.name}"
            )
        self.freeze()
        for module in (*self.blocks[-n:], self.norm):
            module.requires_grad_(True)
        return self


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    backbone_lr: float | None = None,
    weight_decay: float = 0.05,
    layer_decay: float | None = None,
    include_frozen: bool = False,
) -> list[dict[str, Any]]:
    """Return groups for an optimizer; every parameter is in one of them, once.

    LoRA weights are the backbone's.

    No weight decay reaches norms, biases, LayerScale, position embeddings, CLS, register and mask
    tokens, any other one-dimensional parameter, and whatever a module names in
    ``no_weight_decay()``, as timm's do.

    With ``layer_decay`` the embeddings are layer 0, block i is layer i + 1, and the final norm
    shares the layer of the last block that runs; a layer's learning rate is
    ``backbone_lr * layer_decay ** (last - layer)``. These are timm's numbers for a model without a
    classifier. With one, timm's rates are one factor lower.

    Args:
        model: a module whose ``.backbone`` is a :class:`dinoneck.Backbone`, or with one anywhere
            inside, such as a detector (or a Backbone alone), wrapped in DistributedDataParallel or
            not.
        lr: of everything outside the backbone.
        backbone_lr: of the backbone; None = lr.
        weight_decay: of weight matrices and kernels.
        layer_decay: factor per layer, above 0 and at most 1; None = one learning rate for the whole
            backbone.
        include_frozen: take frozen parameters in as well, for a
            :class:`dinoneck.training.FreezeSchedule` that unfreezes them later. Until then they
            have no gradient and optimizers skip them.

    Returns:
        Dicts with ``params``, ``lr``, ``weight_decay`` and ``name``, such as
        ``backbone.block3.no_decay`` or ``head.decay``.

    Raises:
        ConfigError: if the model has no backbone, a value is out of range, or nothing is trainable.

    Examples:
        >>> from dinoneck import load_backbone
        >>> model = nn.Module()
        >>> model.backbone, model.head = load_backbone("dinoneck_tiny").unfreeze_last(1), nn.Linear(64, 2)
        >>> [(group["name"], group["lr"]) for group in param_groups(model, lr=1e-3, backbone_lr=1e-5)]
        [('backbone.no_decay', 1e-05), ('backbone.decay', 1e-05), ('head.decay', 0.001), ('head.no_decay', 0.001)]
    """
    backbone = backbone_of(model)
    if backbone_lr is None:
        backbone_lr = lr
    converted("lr", lr, Positive)
    converted("backbone_lr", backbone_lr, Positive)
    converted("weight_decay", weight_decay, NotNegative)
    converted("layer_decay", layer_decay, Scale | None)
    rates = _rates(backbone, backbone_lr, layer_decay)
    head_rate = _Rate("head", lr)  # of everything outside the backbone
    groups: dict[str, dict[str, Any]] = {}
    for parameter, decays in _decaying_parameters(model, backbone).items():
        if not include_frozen and not parameter.requires_grad:
            continue
        rate = rates.get(parameter, head_rate)
        name = f"{rate.name}.decay" if decays else f"{rate.name}.no_decay"
        if name not in groups:
            groups[name] = {
                "params": [],
                "lr": rate.lr,
                "weight_decay": weight_decay if decays else 0.0,
                "name": name,
            }
        groups[name]["params"].append(parameter)
    if not groups:
        raise ConfigError(
            "no parameter is trainable; call backbone.unfreeze_last(n), or pass include_frozen=True"
        )
    return list(groups.values())


def backbone_of(model: nn.Module) -> Backbone | OwnVit:
    """Return the model if it is a Backbone, else ``model.backbone``, else the only one anywhere inside.

    Wrappers (DistributedDataParallel, torch.compile) are looked through. The last case is that of a
    detector; one that holds its own ViT has it as ``model.own_vit``.

    Raises:
        ConfigError: if there is none, or there are several, naming what was found.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    attribute = getattr(inner, "backbone", None)
    if isinstance(attribute, Backbone):
        return attribute
    own_vit = getattr(inner, "own_vit", None)
    if isinstance(own_vit, OwnVit):
        return own_vit
    nested: dict[str, Backbone] = {}
    for name, module in inner.named_modules():
        if isinstance(module, Backbone):
            nested[name] = module
    if len(nested) == 1:
        [backbone] = nested.values()
        return backbone
    raise ConfigError(
        f"{type(inner).__name__}.backbone is {type(attribute).__name__}, and "
        f"{', '.join(nested) or 'no backbone'} inside; set model.backbone to a dinoneck.Backbone: "
        "load_backbone(...), or wrap_backbone(model)"
    )


class _Rate(NamedTuple):
    """The learning rate in a part of the model, and the name of the part."""

    name: str
    lr: float


def _rates(
    backbone: Backbone | OwnVit, lr: float, layer_decay: float | None
) -> dict[nn.Parameter, _Rate]:
    """Return the rate of each parameter of the backbone."""
    if layer_decay is None:
        return dict.fromkeys(backbone.parameters(), _Rate("backbone", lr))
    last = max(backbone.layers) + 1
    # the later entries are inside the first one, and replace its rate
    layers: list[tuple[nn.Module | OwnVit, str, int]] = [(backbone, "backbone.embeddings", 0)]
    for i, block in enumerate(_blocks_of(backbone)):
        layers.append((block, f"backbone.block{i}", min(i + 1, last)))
    for norm in _norms_of(backbone):
        layers.append((norm, "backbone.norm", last))
    rates = {}
    for module, name, layer in layers:
        rate = _Rate(name, lr * layer_decay ** (last - layer))
        for parameter in module.parameters():
            rates[parameter] = rate
    return rates


def _blocks_of(backbone: Backbone | OwnVit) -> Sequence[nn.Module]:
    """The blocks of a backbone."""
    if isinstance(backbone, OwnVit):
        return backbone.blocks
    return list(backbone.adapter.blocks)


def _norms_of(backbone: Backbone | OwnVit) -> Sequence[nn.Module]:
    """The final norms of a backbone."""
    if isinstance(backbone, OwnVit):
        return [backbone.norm]
    return list(backbone.adapter.norms)


def _decaying_parameters(model: nn.Module, backbone: Backbone | OwnVit) -> dict[nn.Parameter, bool]:
    """Return for each parameter whether weight decay acts on it, the backbone's first."""
    in_backbone = set(backbone.parameters())
    in_blocks: set[nn.Parameter] = set()
    for block in _blocks_of(backbone):
        in_blocks.update(block.parameters())
    modules = [*backbone.modules(), *model.modules()]
    decays: dict[nn.Parameter, bool] = {}
    for module in modules:
        is_norm = isinstance(module, _NORM_LAYERS)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in decays:
                continue
            is_matrix = parameter.ndim > 1 and name != "bias" and not is_norm
            if parameter in in_backbone and not isinstance(module, _LINEAR_LAYERS):
                # outside the blocks these are tokens and positions; inside, what has one long side
                # is LayerScale
                has_one_side = parameter.numel() <= max(parameter.shape, default=0)
                is_matrix = is_matrix and parameter in in_blocks and not has_one_side
            decays[parameter] = is_matrix
    for module in modules:
        # what a module names in timm's way
        exempt: Collection[str] = getattr(module, "no_weight_decay", set)()
        for name, parameter in module.named_parameters():
            if name in exempt:
                decays[parameter] = False
    return decays


@dataclass(frozen=True)
class FreezeReport:
    """State after a stage was applied.

    Attributes:
        stage: its name in the plan.
        changed: whether other parameters than before are trainable now.
        trainable_blocks: indices of the blocks with trainable parameters.
    """

    stage: str
    changed: bool
    trainable_blocks: tuple[int, ...]


@dataclass(frozen=True)
class FreezeSchedule:
    """Which part of the backbone is frozen, by epoch. The head is never touched.

    It keeps no state: a resumed run asks for its epoch and gets the right stage. Build the
    optimizer with :meth:`param_groups`, before any learning-rate schedule and EMA, and begin every
    epoch with :meth:`start_epoch`.

    Args:
        plan: epoch -> ``"all"`` (all frozen), ``"last:n"`` (the last n blocks that run are trained,
            and the final norm if it is applied) or ``"none"`` (everything that takes part is
            trained). A stage holds until the next one; before the first it is ``"all"``. LoRA
            weights are trained in every stage.
        lr_scale: :meth:`param_groups` gives the backbone this times the head's learning rate.

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

    def __post_init__(self) -> None:
        plan = converted("plan", self.plan, _Plan)
        object.__setattr__(self, "plan", {0: "all"} | dict(sorted(plan.items())))
        converted("lr_scale", self.lr_scale, Positive)

    def stage(self, epoch: int) -> str:
        """Return the stage that holds in an epoch.

        Raises:
            ConfigError: if the epoch is not an integer of 0 or more.
        """
        converted("epoch", epoch, Annotated[int, Meta(ge=0)])
        return self.plan[max(begin for begin in self.plan if begin <= epoch)]

    def apply(self, model: nn.Module, epoch: int) -> FreezeReport:
        """Freeze and unfreeze by the plan for an epoch; frozen parameters lose their gradients.

        In a loop use :meth:`start_epoch`, which also checks DistributedDataParallel and the
        optimizer.

        Args:
            model: a Backbone, a module with one as ``.backbone`` or anywhere inside, or
                DistributedDataParallel around it.
            epoch: counted from 0.

        Raises:
            ConfigError: if the backbone is missing, or the plan, at any epoch, names more blocks
                than run.
        """
        backbone = backbone_of(model)
        stage = self.stage(epoch)
        num_running = max(backbone.layers) + 1
        deepest = max(_num_blocks(planned) for planned in self.plan.values())
        if deepest > num_running:
            raise ConfigError(
                f"plan has 'last:{deepest}', but {num_running} blocks of {backbone.name} run for "
                f"layers {', '.join(map(str, backbone.layers))}; expected 'last:{num_running}' at "
                "most, or 'none'"
            )
        before = _trainable(backbone)
        if stage == "all":
            backbone.freeze(keep_lora=True)
        elif stage == "none":
            backbone.unfreeze()
        else:
            backbone.unfreeze_last(_num_blocks(stage))
        for parameter in backbone.parameters():
            if not parameter.requires_grad:
                parameter.grad = None  # optimizers would apply a left-over one
        has_changed = before != _trainable(backbone)
        return FreezeReport(stage, has_changed, backbone.trainable_blocks)

    def param_groups(
        self, model: nn.Module, *, lr: float, **options: float | None
    ) -> list[dict[str, Any]]:
        """Return :func:`dinoneck.training.param_groups` for the whole run: frozen parameters included.

        The backbone's groups get ``lr * lr_scale`` from the first step on, so that learning-rate
        schedules see it when they are made.

        Args:
            model: as for :meth:`apply`.
            lr: the head's.
            options: ``weight_decay`` and ``layer_decay``, as for ``param_groups``.

        Raises:
            ConfigError: as ``param_groups`` does.
        """
        arguments: dict[str, Any] = {"lr": lr, "backbone_lr": lr * self.lr_scale, **options}
        return param_groups(model, include_frozen=True, **arguments)

    def start_epoch(
        self, epoch: int, model: nn.Module, optimizer: Optimizer
    ) -> tuple[nn.Module, Optimizer]:
        """Apply the epoch's stage; return the same model and optimizer.

        Call it in all ranks. No learning rate and no group of the optimizer is changed.

        Args:
            epoch: counted from 0.
            model: as for :meth:`apply`; DistributedDataParallel with
                ``find_unused_parameters=True``, built while all that the plan ever trains is
                trainable: after ``backbone.unfreeze()``.
            optimizer: made from :meth:`param_groups`.

        Raises:
            ConfigError: as :meth:`apply` does; if the optimizer or DistributedDataParallel lacks
                parameters that the plan trains from now on.
        """
        backbone = backbone_of(model)
        for module in model.modules():
            if isinstance(module, DistributedDataParallel):
                _check_wrapper(module, backbone)
        self.apply(model, epoch)
        in_optimizer: set[nn.Parameter] = set()
        for group in optimizer.param_groups:
            in_optimizer.update(group["params"])
        missing = _trainable(backbone) - in_optimizer
        if missing:
            raise ConfigError(
                f"the optimizer lacks {len(missing)} weights that the plan trains from epoch {epoch} "
                "on; build it from schedule.param_groups(model, lr=...), or param_groups(model, "
                "lr=..., include_frozen=True)"
            )
        return model, optimizer


def _check_wrapper(wrapper: DistributedDataParallel, backbone: Backbone | OwnVit) -> None:
    """Check once that a wrapper averages the gradients of all that a plan may train.

    The backbone is unfrozen for it: the stage of the epoch is applied after this check.
    """
    if "dinoneck_checked" in wrapper.__dict__:
        return
    # it averages the gradients of what is trainable when it is built
    averaged = _trainable(wrapper)
    wrapper.__dict__["dinoneck_checked"] = True
    if not wrapper.find_unused_parameters:
        raise ConfigError(
            "DistributedDataParallel waits for the gradients of frozen parameters; build "
            "it with find_unused_parameters=True"
        )
    if not set(backbone.parameters()) <= set(wrapper.parameters()):
        raise ConfigError(
            "DistributedDataParallel does not see the parameters of the backbone, so that "
            "ranks would diverge; register it as a submodule: self.backbone = backbone"
        )
    backbone.unfreeze()
    if not _trainable(backbone) <= averaged:
        raise ConfigError(
            "DistributedDataParallel was built while parameters that the plan may train "
            "were frozen, and does not average them, so that ranks would diverge; call "
            "backbone.unfreeze() before the model is wrapped"
        )


def _num_blocks(stage: str) -> int:
    """Return the n of ``last:n``, 0 for the other stages."""
    return int(stage.partition(":")[2] or 0)


def _trainable(module: nn.Module | OwnVit) -> set[nn.Parameter]:
    """Return the parameters of a module that are trained now."""
    return {parameter for parameter in module.parameters() if parameter.requires_grad}
