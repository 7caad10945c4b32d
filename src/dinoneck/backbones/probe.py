"""A functional fingerprint of a backbone: what it does, not what its file is called.

Digests tell two files apart, but the same weights have another digest in another library or dtype. The probe runs one
fixed image of 4 x 6 patches (of the model's own size where it takes no other) and projects every layer's whole sequence
on a few fixed sign vectors. Rounding moves these numbers by its own relative size; other weights move them
completely, and a change of the weights shows once it moves them more than rounding does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dinoneck.backbones import tuning

if TYPE_CHECKING:
    from dinoneck.backbones.backbone import Backbone

GRID = (4, 6)
PER_LAYER = 8
# measured over families, libraries and norms: float32 2e-6 (TF32 convolutions: of the order 1e-3), float16 3e-3,
# bfloat16 2e-2; relative noise of 1e-3 on every weight: 3e-3 and more
TOLERANCES = {"float16": 8e-3, "bfloat16": 4e-2}
TOLERANCE = 2e-3


def measure(backbone: Backbone) -> list[float]:
    """Return :data:`PER_LAYER` numbers per layer, each of the order of one."""
    patch = backbone.adapter.patch_size
    weight = backbone.adapter.weight
    height, width = backbone.adapter.fixed_size or (GRID[0] * patch[0], GRID[1] * patch[1])
    channels = weight.shape[1]
    noise = _uniform("image", channels * height * width).reshape(1, channels, height, width)
    images = torch.from_numpy(noise * 4.0 - 2.0).to(weight.device, torch.float32)
    with tuning.evaluating(backbone), torch.no_grad():
        tokens = backbone(images)
    return [number for sequence in tokens.sequence for number in _projected(sequence)]


def differs(trained: list[float], given: list[float], dtypes: tuple[str, str] = ("float32", "float32")) -> float | None:
    """Return the largest difference if it is more than rounding explains, else None.

    Args:
        trained: the probe of one backbone.
        given: of the other.
        dtypes: what the two run in; the coarser one sets the tolerance.
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
