"""A functional fingerprint of a backbone: a few numbers that are a function of its outputs.

A hash distinguishes two files, but the same weights have another hash in another library or dtype. The probe runs one
fixed image of 4 x 6 patches (of the model's own size where it takes no other) and projects every layer's whole sequence
on a few fixed sign vectors. Rounding changes these numbers by its own relative size, other weights change them
completely. A change of the weights is detected once its effect exceeds rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dinoneck.backbones.adapter import Adapter, evaluating

GRID = (4, 6)
PER_LAYER = 8
# measured over families, libraries and norms: float32 2e-6 (TF32 convolutions: of the order 1e-3), float16 3e-3,
# bfloat16 2e-2; relative noise of 1e-3 on every weight: 3e-3 and more
TOLERANCES = {"float16": 8e-3, "bfloat16": 4e-2}
TOLERANCE = 2e-3


def measure(adapter: Adapter, layers: Sequence[int], norm: bool) -> list[float]:
    """Return :data:`PER_LAYER` numbers per layer, each of the order of one."""
    patch, weight, channels = adapter.patch_size, adapter.weight, adapter.in_chans
    height, width = adapter.fixed_size or (GRID[0] * patch[0], GRID[1] * patch[1])
    noise = _uniform("image", channels * height * width).reshape(1, channels, height, width)
    images = torch.from_numpy(noise * 4.0 - 2.0).to(weight.device, weight.dtype)
    with evaluating(adapter), torch.no_grad():
        sequences = adapter(images, layers, norm)
    return [number for sequence in sequences for number in _projected(sequence)]


def differs(trained: list[float], given: list[float], dtypes: tuple[str, str] = ("float32", "float32")) -> float | None:
    """Return the largest difference if it is more than rounding explains, else None.

    Args:
        trained: the probe of one backbone.
        given: the probe of the other.
        dtypes: the dtypes of the two; the coarser one sets the tolerance.
    """
    if len(trained) != len(given):
        return float("inf")
    gap = float(np.abs(np.array(trained) - np.array(given)).max(initial=0.0))
    tolerance = max(TOLERANCES.get(dtype, TOLERANCE) for dtype in dtypes)
    return gap if not gap <= tolerance else None


def _projected(sequence: Tensor) -> list[float]:
    values = sequence[0].double().cpu().numpy()
    scale = np.sqrt(np.mean(values**2)) * np.sqrt(values.size)
    signs = np.where(_uniform("signs", PER_LAYER * values.size) < 0.5, -1.0, 1.0).reshape(PER_LAYER, -1)
    projected = signs @ values.reshape(-1) / max(scale, 1e-12)
    return [round(float(number), 6) for number in projected]


def _uniform(what: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """``count`` fixed numbers in [0, 1), the same on every machine."""
    raw = np.random.Philox(key=sum(ord(sign) for sign in what)).random_raw(count)
    return ((raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)).reshape(count)
