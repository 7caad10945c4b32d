"""Random weights that are the same on every machine, and with which every block changes its input.

A freshly built DINOv3 has LayerScale 1e-5: its blocks add almost nothing, every layer returns nearly the same
tensor, and no test can distinguish them. Here LayerScale is drawn from 0.1 ... 0.3, matrices with variance
1 / fan-in, norms around one. Numbers come from NumPy's Philox counter (its raw stream is guaranteed) keyed by
seed and parameter name, and reach float32 by exact steps and one rounding, so neither the machine, the
order of parameters nor a library's own initialisation matters.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor, nn

SCHEME = "philox-uniform-1"
_LAYER_SCALE = (0.1, 0.3)
_NORM_WEIGHT = (0.9, 1.1)
_SMALL_STD = 0.02


def fill_seeded(model: nn.Module, seed: int) -> None:
    """Overwrite every parameter of ``model`` with seeded random values; meta tensors are left alone."""
    norms = {
        f"{name}.{own}" if name else own
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for own, _ in module.named_parameters(recurse=False)
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.is_meta:
                parameter.copy_(_values(name, parameter, seed, is_norm=name in norms))


def _values(name: str, parameter: Tensor, seed: int, *, is_norm: bool) -> Tensor:
    unit = _uniform(name, parameter.numel(), seed).reshape(parameter.shape)
    last = name.rsplit(".", 1)[-1]
    if last.startswith("gamma"):
        low, high = _LAYER_SCALE
    elif is_norm and last == "weight":
        low, high = _NORM_WEIGHT
    elif parameter.ndim >= 2 and last == "weight":
        high = math.sqrt(3.0 / parameter[0].numel())
        low = -high
    else:
        high = _SMALL_STD * math.sqrt(3.0)
        low = -high
    return torch.from_numpy(unit * np.float32(high - low) + np.float32(low))


def _uniform(name: str, count: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """``count`` float32 numbers in [0, 1), multiples of 2**-24."""
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw((count + 1) // 2)
    halves = np.concatenate((raw >> np.uint64(40), (raw >> np.uint64(8)) & np.uint64(0xFFFFFF)))
    return halves[:count].astype(np.float32) * np.float32(2.0**-24)
