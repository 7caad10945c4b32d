"""The learning-rate schedule, the moving average of the weights, and sharpness-aware minimisation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dinoneck.errors import ConfigError, DataError
from dinoneck.training.recipe import check_number


def cosine_with_warmup(optimizer: Optimizer, total_steps: int, warmup: float = 0.1, min_lr: float = 0.0) -> LambdaLR:
    """Linear from lr / w to lr over the first ``warmup`` share of the steps (w of them), then a half cosine down.

    Args:
        optimizer: its groups keep their own learning rates as the peak.
        total_steps: optimizer steps in the whole run; call ``step()`` after each.
        warmup: share of them, 0 ... 1.
        min_lr: where the cosine ends, in every group.

    Raises:
        ConfigError: if a value is out of range.
    """
    if total_steps < 1 or not 0.0 <= warmup < 1.0:
        raise ConfigError(f"total_steps is {total_steps} and warmup {warmup}; expected 1 or more and 0 ... 1")
    rising = round(warmup * total_steps)
    peaks = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    if not 0.0 <= min_lr <= min(peaks):
        raise ConfigError(f"min_lr is {min_lr}; expected 0 ... {min(peaks):g}, the smallest learning rate of a group")

    def factor(step: int, least: float) -> float:
        if step < rising:
            return (step + 1) / rising
        left = 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - rising) / max(1, total_steps - rising))))
        return left + (1.0 - left) * least

    return LambdaLR(optimizer, [partial(factor, least=min_lr / peak if min_lr else 0.0) for peak in peaks])


class EMA:
    """A moving average of the trained weights: ``average = d * average + (1 - d) * weights`` after every step.

    With ``warmup`` the decay of update t (counted from 0) is ``min(decay, (1 + t) / (10 + t))``: without it the
    initial weights still make up half of the average after 231 steps at 0.997. Averages are kept in float32 (or
    wider), since bfloat16 cannot hold a change of 0.003. Buffers are copied, not averaged. Frozen parameters are
    shared with the model, not copied; what is thawed later joins with its weights of then.

    Args:
        model: the module whose trainable parameters are averaged.
        decay: at least 0 and below 1.
        warmup: see above.

    Attributes:
        module: the averaged model, in eval mode.
        updates: how many updates the average has seen.

    Raises:
        ConfigError: if the decay is out of range.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> average = EMA(model, decay=0.997)
        >>> with torch.no_grad():
        ...     _ = model.weight.add_(1.0)
        >>> average.update(model)  # the first update has decay 0.1
        >>> torch.allclose(average.module.weight, model.weight - 0.1)
        True
        >>> average.copy_to(model)  # for validation or the file

    Reference: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging" (1992); the decay's
    warm-up is that of TensorFlow's ExponentialMovingAverage; 0.997 and the late start are design source 003's.
    """

    def __init__(self, model: nn.Module, decay: float = 0.997, warmup: bool = True) -> None:
        check_number("decay", decay, below=1)
        self.decay, self.warmup, self.updates = float(decay), bool(warmup), 0
        frozen = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
        self.module = copy.deepcopy(model, frozen).eval()
        self._averaged: set[str] = set()
        self._joined: set[str] = set()  # those, and the other names of weights that stand in several places
        self._join(model)

    @property
    def next_decay(self) -> float:
        """The decay of the next update."""
        return min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Start again: the average is the model's weights, and the warm-up starts again."""
        self.updates = 0
        self._join(model)
        self._count_in(model, 1.0)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Count the model's present weights in; call it after every optimizer step."""
        self._join(model)
        self._count_in(model, 1.0 - self.next_decay)
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Give a model of the same form the averaged weights, in its own dtype, and the buffers.

        Raises:
            ConfigError: if it lacks one of them.
        """
        own = _named(model)
        for name, value in self._averages().items():
            if name not in own or own[name].shape != value.shape:
                raise ConfigError(f"the model has no {name} of shape {tuple(value.shape)}; it is not the one averaged")
            own[name].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the block ``model`` has the averaged weights; after it its own again, bit for bit."""
        own = _named(model)
        before = {name: own[name].detach().clone() for name in self._averages() if name in own}
        try:
            self.copy_to(model)
            yield
        finally:
            with torch.no_grad():
                for name, value in before.items():
                    own[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates, and averages and buffers by their names in the model."""
        return {"updates": self.updates, "module": self._averages()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`.

        Raises:
            ConfigError: if it is of a model of another form.
        """
        own, given = self._averages(), state["module"]
        for name in own.keys() | given.keys():
            if name not in own or name not in given or given[name].shape != own[name].shape:
                raise ConfigError(f"the state and the model differ in {name}: the average is of another model")
        for name, value in own.items():
            value.copy_(given[name])
        self.updates = int(state["updates"])

    def _join(self, model: nn.Module) -> None:
        """Give what became trainable weights of its own in the averaged model."""
        own: dict[int, nn.Parameter] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if parameter.requires_grad and name not in self._joined:
                place, _, last = name.rpartition(".")
                if id(parameter) not in own:
                    wide = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32)).clone()
                    own[id(parameter)] = nn.Parameter(wide, requires_grad=False)
                    self._averaged.add(name)
                setattr(self.module.get_submodule(place), last, own[id(parameter)])
                self._joined.add(name)

    def _count_in(self, model: nn.Module, share: float) -> None:
        shadow = dict(self.module.named_parameters(remove_duplicate=False))
        for name, parameter in model.named_parameters():
            if name in self._averaged:
                shadow[name].lerp_(parameter.detach().to(shadow[name]), share)
        buffers = dict(self.module.named_buffers())
        for name, value in model.named_buffers():
            buffers[name].copy_(value)

    def _averages(self) -> dict[str, Tensor]:
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        averaged = {name: parameters[name].detach() for name in sorted(self._averaged)}
        return {**averaged, **{name: value.detach() for name, value in self.module.named_buffers()}}


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


TINY = 1e-12


class SAM(Optimizer):
    """Walk ``rho`` up the gradient, take the gradient there, come back, and let the base optimizer step by it.

    The way up is ``rho * g / (||g|| + 1e-12)`` with one norm over all trainable parameters of ``model``, taken in
    float32. Parameters that only the optimizer has (those of a loss) stay where they are and step by the second
    gradient too. Weights come back bit for bit; running statistics of norms count the first pass only; dropout draws
    the same masks in both passes.

    The groups are those of the base optimizer, the same lists: learning-rate schedules may hold either. In several
    processes reduce the gradients inside the closure, so that both passes see the whole batch.

    Args:
        model: whose trainable parameters walk.
        base_optimizer: steps; built for (at least) these parameters.
        rho: how far to walk.

    Raises:
        ConfigError: if rho is not above 0, or the base optimizer has no parameters.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = SAM(model, torch.optim.AdamW(model.parameters(), lr=1e-3), rho=0.05)
        >>> x, y = torch.randn(8, 2), torch.randn(8, 1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (model(x) - y).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)

    Reference: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization" (ICLR 2021);
    design source 002, where it is an option. Deviation: weights come back from copies, not by subtraction.
    """

    def __init__(self, model: nn.Module, base_optimizer: Optimizer, rho: float = 0.05) -> None:
        check_number("rho", rho)
        if not isinstance(base_optimizer, Optimizer) or isinstance(base_optimizer, SAM):
            raise ConfigError(f"base_optimizer is {type(base_optimizer).__name__}; expected a torch optimizer, not SAM")
        super().__init__(base_optimizer.param_groups, base_optimizer.defaults)
        self.model, self.base_optimizer, self.rho = model, base_optimizer, rho
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.base_optimizer.param_groups, self.base_optimizer.state

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """Take one step and return the loss at the weights before it.

        Args:
            closure: zeroes the gradients, computes the loss, backpropagates and returns it. It is called twice.

        Raises:
            ConfigError: without a closure.
            DataError: if the first gradient is not finite; weights are as before.
        """
        if closure is None:
            raise ConfigError("SAM.step needs a closure that zeroes the gradients, backpropagates and returns the loss")
        loss = self.gradient(closure)
        self.base_optimizer.step()
        return loss

    def gradient(self, closure: Callable[[], Tensor]) -> Tensor:
        """Leave the second gradient at the unchanged weights and return the first loss: :meth:`step` without the step.

        For loops that clip the gradient in between.

        Raises:
            DataError: if the first gradient is not finite.
        """
        random = _random_state(self.model)
        with torch.enable_grad():
            loss = closure()
        ways = self._ways()
        statistics = _statistics(self.model)
        with _moved(ways), torch.enable_grad():
            _set_random_state(random)
            closure()
        _put_back(statistics)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Give the base optimizer another group."""
        if hasattr(self, "base_optimizer"):
            self.base_optimizer.add_param_group(param_group)
        else:
            super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state and rho."""
        return {"base": self.base_optimizer.state_dict(), "rho": self.rho}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`."""
        self.base_optimizer.load_state_dict(state_dict["base"])
        self.rho = state_dict["rho"]
        self._share()

    @torch.no_grad()
    def _ways(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Every parameter that walks and where to."""
        walking = [p for p in self.model.parameters() if p.requires_grad and p.grad is not None]
        if not walking:
            return []
        norms = [_wide(p.grad).norm() for p in walking if p.grad is not None]
        norm = torch.stack([own.to(norms[0]) for own in norms]).norm()
        if not bool(norm.isfinite()):
            raise DataError(
                f"SAM's first gradient has norm {norm.item()}; weights are left as they are. Lower lr, check the "
                "targets, or compute the loss in float32"
            )
        scale = self.rho / (norm + TINY)
        return [(p, _wide(p.grad) * scale.to(p.device)) for p in walking if p.grad is not None]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextmanager
def _moved(ways: list[tuple[nn.Parameter, Tensor]]) -> Iterator[None]:
    """Within the block the parameters have walked; after it, also after an error, they are bit for bit as before."""
    before = [parameter.detach().clone() for parameter, _ in ways]
    try:
        with torch.no_grad():
            for parameter, way in ways:
                parameter.copy_(parameter.to(way.dtype) + way)
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), own in zip(ways, before, strict=True):
                parameter.copy_(own)


def _statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Buffers of what is in training mode, and their values."""
    return [(b, b.detach().clone()) for m in model.modules() if m.training for b in m.buffers(recurse=False)]


@torch.no_grad()
def _put_back(statistics: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in statistics:
        buffer.copy_(value)


def _random_state(model: nn.Module) -> list[tuple[torch.device, Tensor]]:
    """The states of the generators that a forward pass may draw from."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    states = [(device, torch.cuda.get_rng_state(device)) for device in devices]
    return [(torch.device("cpu"), torch.get_rng_state()), *states]


def _set_random_state(states: list[tuple[torch.device, Tensor]]) -> None:
    for device, state in states:
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
