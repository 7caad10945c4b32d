"""The exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck.errors import ConfigError
from dinoneck.training.parameter_groups import check_number


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
        check_number("decay", decay, zero=True)
        if decay >= 1:
            raise ConfigError(f"decay is {decay!r}; expected 0 or more and below 1, such as 0.997")
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
        """Begin anew: the average is the model's weights, and the warm-up starts again."""
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
