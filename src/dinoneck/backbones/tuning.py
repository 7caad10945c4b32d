"""Which parts of a backbone learn, and in which mode each part runs.

The parts are the blocks, the final norm and the rest (patch and position embeddings). A part whose parameters are all
frozen is in eval mode whatever ``train()`` says: dropout and stochastic depth would be noise nobody trains
against. Rotary positions are always in eval mode: in training mode they are shifted and rescaled at random, a
recipe for pretraining that makes the same photo give other tokens each time.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from torch import nn

from dinoneck.backbones import lora, weight_hashes
from dinoneck.backbones.adapter import Adapter, is_trainable
from dinoneck.errors import BackboneError


def set_modes(adapter: Adapter, mode: bool) -> None:
    """Put trainable parts into ``mode`` and everything else into eval mode."""
    parts = [*adapter.blocks, *adapter.norms]
    inside = {id(parameter) for part in parts for parameter in part.parameters()}
    rest = any(parameter.requires_grad and id(parameter) not in inside for parameter in adapter.parameters())
    adapter.train(mode and rest)
    for part in parts:
        part.train(mode and is_trainable(part))
    if adapter.rotary is not None:
        adapter.rotary.eval()
    adapter.training = adapter.model.training = mode and is_trainable(adapter)


class _Held:
    """A module that somebody evaluates: the mode it came with, and how many hold it at the moment."""

    __slots__ = ("holders", "mode", "module")

    def __init__(self, module: nn.Module) -> None:
        self.module, self.mode, self.holders = module, module.training, 0


_held: dict[int, _Held] = {}  # by id; an entry keeps its module alive, so that no id is used twice
_lock = threading.Lock()


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode after; by hand, so that a backbone keeps what train() asked for.

    Threads may be inside at once, with the same modules or with some in common: a module gets its mode back when the
    last of them leaves. The lock is held while modes are switched, not inside. ``train()`` and ``eval()`` of such a
    module are not for this time: in another thread they may be undone.
    """
    inside = {id(module): module for top in modules for module in top.modules()}
    with _lock:
        for key, module in inside.items():
            held = _held.setdefault(key, _Held(module))
            held.holders += 1
            module.training = False
    try:
        yield
    finally:
        with _lock:
            for key, module in inside.items():
                held = _held[key]
                held.holders -= 1
                if not held.holders:
                    module.training = _held.pop(key).mode


def freeze(adapter: Adapter, *, keep_lora: bool) -> None:
    """Make nothing trainable; with ``keep_lora`` those that are among LoRA's stay so."""
    kept = {id(parameter) for parameter in lora.parameters(adapter) if parameter.requires_grad} if keep_lora else set()
    for parameter in adapter.parameters():
        parameter.requires_grad_(id(parameter) in kept)
    weight_hashes.forget(adapter)


def unfreeze_last(adapter: Adapter, n: int, *, runs: int, norm: bool) -> None:
    """Make the last n of the first ``runs`` blocks trainable, and the final norm if it is applied.

    Raises:
        BackboneError: if n is out of range.
    """
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= runs:
        raise BackboneError(f"n is {n!r}; expected 1 ... {runs}, the blocks that run for the layers asked for")
    still = {id(parameter) for parameter in lora.parameters(adapter) if not parameter.requires_grad}
    freeze(adapter, keep_lora=True)
    for part in [*adapter.blocks[runs - n : runs], *(adapter.norms if norm else ())]:
        for parameter in part.parameters():
            parameter.requires_grad_(id(parameter) not in still)
    adapter.thawed = True


def unfreeze(adapter: Adapter, *, runs: int, norm: bool) -> None:
    """Make everything trainable that takes part in the forward pass."""
    adapter.requires_grad_(True)
    adapter.thawed = True
    weight_hashes.forget(adapter)
    for part in [*adapter.blocks[runs:], *adapter.unused, *(() if norm else adapter.norms)]:
        part.requires_grad_(False)
    for name, parameter in adapter.named_parameters():
        if name.endswith("mask_token"):  # for masked images, which are not among the inputs here
            parameter.requires_grad_(False)
