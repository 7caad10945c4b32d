"""Where the eager shortcuts of layers are not to be taken."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def plainly() -> bool:
    """Whether graphs are recorded, or torch.func or forward-mode derivatives are at work: plain formulas only."""
    if torch.compiler.is_compiling():  # first, so that no compiler has to understand the rest
        return True
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
