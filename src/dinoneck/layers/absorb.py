"""An affine change of channels, taken over by the linear layer that reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def absorb(linear: nn.Linear, mean: Tensor, std: Tensor) -> None:
    """Change a linear layer so that it says of x what it said of (x - mean) / std, both (in_features,).

    A layer without a bias takes over the scale alone: for one whose result may shift by a constant, such as the
    logits of a softmax.
    """
    weight = linear.weight.double() / std.to(linear.weight.device, torch.float64)
    if linear.bias is not None:
        linear.bias.sub_((weight @ mean.to(weight)).to(linear.bias.dtype))
    linear.weight.copy_(weight)
