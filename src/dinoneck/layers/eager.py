"""Where the eager shortcuts of layers are not to be taken."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd import forward_ad


def plainly() -> bool:
    """Whether operations are recorded or watched, or torch.func or forward-mode derivatives are at work.

    Then there are plain formulas only.
    """
    if torch.compiler.is_compiling():  # first, so that no compiler has to understand the rest
        return True
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state() is not None


def untouched(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a call does what the class, exactly one of these, says, so that its weights may be read in its place.

    Not so of subclasses and wrappers, of parametrized, hooked and compiled modules, nor with a ``forward`` of its own.
    """
    return type(module) in kinds and not redirected(module)


def redirected(module: nn.Module) -> bool:
    """Whether a call of the module does something beside its class's ``forward``."""
    own = module.__dict__  # at once: this is asked of every layer on every call
    if own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]:
        return True
    return "forward" in own or own.get("_compiled_call_impl") is not None
