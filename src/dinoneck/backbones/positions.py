"""Absolute position embeddings for another grid than the trained one, as DINOv2's own code does it.

Libraries resample them differently, and plain DINOv2 (without registers) feels it: 2 to 6 % of the features at
224 x 224. The recipe of facebookresearch/dinov2 at its published settings is bicubic, without antialiasing,
with a scale factor of (n + 0.1) / M rather than an exact size; models with registers use antialiasing and exact
sizes, which is what timm and transformers do too.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.errors import BackboneError
from dinoneck.grid import GridSize

_OFFSET = 0.1


def official_positions(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample plain DINOv2's position embedding to a grid.

    Args:
        embedding: (1, 1 + M * M, C): CLS first, then the trained square grid.
        grid: (rows, cols) wanted.

    Returns:
        (1, 1 + rows * cols, C) in the embedding's dtype.

    Raises:
        BackboneError: if the embedding has no square grid.
    """
    trained = math.isqrt(embedding.shape[1] - 1)
    if trained * trained != embedding.shape[1] - 1:
        raise BackboneError(
            f"the position embedding has {embedding.shape[1]} entries: no CLS and a square grid, so it is not plain "
            "DINOv2's; use pos_embed='native'"
        )
    if grid == (trained, trained):
        return embedding
    patches = embedding[:, 1:].float().reshape(1, trained, trained, -1).permute(0, 3, 1, 2)
    scale = ((grid[0] + _OFFSET) / trained, (grid[1] + _OFFSET) / trained)
    patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
    if patches.shape[-2:] != torch.Size(grid):
        raise BackboneError(
            f"the official recipe gives a grid of {GridSize(*patches.shape[-2:])} where the image has "
            f"{GridSize(*grid)}; use pos_embed='native' for this size"
        )
    return torch.cat((embedding[:, :1], patches.flatten(2).transpose(1, 2).to(embedding.dtype)), dim=1)
