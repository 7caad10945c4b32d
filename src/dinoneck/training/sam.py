"""Sharpness-aware minimisation: step by the gradient at the worst point nearby."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dinoneck.errors import ConfigError, DataError
from dinoneck.training.parameter_groups import check_number

TINY = 1e-12


class SAM(Optimizer):
    """Walk ``rho`` up the gradient, take the gradient there, come back, and let the base optimizer step by it.

    The way up is ``rho * g / (||g|| + 1e-12)`` with one norm over all trainable parameters of ``model``, taken in
    float32. Parameters that only the optimizer has (those of a loss, say) stay where they are and step by the second
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
