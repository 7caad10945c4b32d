"""Gram anchoring: keep the similarities between the patch tokens of an image while a backbone is trained."""

from __future__ import annotations

import contextlib
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.errors import ConfigError, GridError, ShapeError
from dinoneck.grid import GridSize, as_maps
from dinoneck.tokens import Tokens

Resize = Literal["bicubic", "bilinear"]


class GramAnchor(nn.Module):
    """Penalise changes of the similarities between an image's patches compared with a frozen reference.

    The loss compares Gram matrices (every patch with every other of its image), so it does not change when all tokens
    are rotated or, normalised, scaled. Add it, with a weight, to the task's loss when blocks are unfrozen or LoRA is
    trained; a frozen backbone does not need it. CLS and register tokens are left out.

    Args:
        normalise: divide tokens by their length first, so that Gram entries are cosines; else the scale of the tokens
            matters, and long tokens dominate.
        remove_negatives: compare negative entries as 0, in both matrices.
        resize: interpolation of a reference of another grid (a larger image of the same view, as DINOv3 uses it) to the
            tokens' grid, without antialiasing; None = refuse it.

    Shape:
        tokens: Tokens, with equal weight for every layer, or patch tokens (B, N, C); reference: the same, of any
        width -> a scalar. It is the mean squared difference over images, layers and all N² entries, in float32 for
        half-precision tokens and under autocast. No gradient reaches the reference.

    Raises:
        ConfigError: for another ``resize``.
        ShapeError: if batch, number of layers or, between tensors, number of patches differ.
        GridError: if the grids differ and ``resize`` is None, or their aspect ratios differ by a patch or more.

    Examples:
        >>> anchor = GramAnchor()
        >>> patches = torch.eye(2).reshape(1, 2, 2)
        >>> anchor(patches, 3 * patches).item(), round(anchor(patches, torch.ones(1, 2, 5)).item(), 4)
        (0.0, 0.5)

    Reference:
        Siméoni et al., "DINOv3", 2025, section 4. The paper writes the squared Frobenius norm; this is its mean over
        entries, as in the authors' code, whose weight rises to 2 and whose reference gets images of twice the size,
        reduced with ``resize="bicubic"``. Their option to remove only the reference's negatives is left out.
    """

    def __init__(self, normalise: bool = True, remove_negatives: bool = False, resize: Resize | None = None) -> None:
        super().__init__()
        if resize is not None and resize not in get_args(Resize):
            raise ConfigError(f"resize is {resize!r}; expected None or one of {', '.join(get_args(Resize))}")
        self.normalise = bool(normalise)
        self.remove_negatives = bool(remove_negatives)
        self.resize: Resize | None = resize

    def extra_repr(self) -> str:
        """Show the options."""
        return f"normalise={self.normalise}, remove_negatives={self.remove_negatives}, resize={self.resize!r}"

    def forward(self, tokens: Tokens | Tensor, reference: Tokens | Tensor) -> Tensor:
        """Return the mean squared difference of the Gram matrices."""
        own, anchors = _layers(tokens, "tokens"), _layers(reference, "the reference")
        if len(own) != len(anchors):
            raise ShapeError(f"tokens have {len(own)} layers, the reference has {len(anchors)}; ask both for the same")
        grids = self._grids(tokens, reference)
        kind = own[0].device.type
        with contextlib.nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
            losses = [self._layer_loss(x, y, grids) for x, y in zip(own, anchors, strict=True)]
            return torch.stack(losses).mean()

    def _layer_loss(self, tokens: Tensor, reference: Tensor, grids: tuple[GridSize, GridSize] | None) -> Tensor:
        tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
        with torch.no_grad():
            reference = reference.detach().to(tokens)
            if grids is not None and self.resize is not None:
                reference = _resized(reference, *grids, self.resize)
            if reference.shape[:2] != tokens.shape[:2]:
                raise ShapeError(
                    f"tokens are {tuple(tokens.shape)} and the reference {tuple(reference.shape)}; expected the same "
                    "batch and number of patches (pass Tokens, not tensors, to resize another grid)"
                )
            target = self._gram(reference)  # (B, N, N)
        # the C x C form of the same norm is smaller for long sequences, but inexact: it is not 0 for equal tokens
        difference = self._gram(tokens) - target
        return difference.square().sum() / max(difference.numel(), 1)

    def _gram(self, patches: Tensor) -> Tensor:
        if self.normalise:
            patches = F.normalize(patches, dim=-1)
        gram = patches @ patches.mT  # (B, N, C) x (B, C, N) -> (B, N, N)
        return gram.relu() if self.remove_negatives else gram

    def _grids(self, tokens: Tokens | Tensor, reference: Tokens | Tensor) -> tuple[GridSize, GridSize] | None:
        """Return the reference's grid and the one it is resized to; None where the grids are equal."""
        if isinstance(tokens, Tensor) or isinstance(reference, Tensor) or tokens.grid == reference.grid:
            return None
        own, other = tokens.grid, reference.grid
        what = f"tokens have {own.rows} x {own.cols} patches, the reference {other.rows} x {other.cols}"
        if self.resize is None:
            raise GridError(f"{what}; use the same image size for both, or build GramAnchor(resize='bicubic')")
        heights, widths = other.rows / own.rows, other.cols / own.cols
        if abs(widths / heights - 1) * own.cols >= 1 or abs(heights / widths - 1) * own.rows >= 1:
            raise GridError(f"{what}: another aspect ratio, so not the same view; expected one scale for both sides")
        return other, own


def _layers(tokens: Tokens | Tensor, name: str) -> tuple[Tensor, ...]:
    if isinstance(tokens, Tokens):
        return tokens.patches
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or not tokens.is_floating_point():
        got = f"{tuple(tokens.shape)} {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ShapeError(f"{name}: {got}; expected Tokens or floating-point patch tokens (batch, patches, channels)")
    return (tokens,)


def _resized(patches: Tensor, grid: GridSize, target: GridSize, mode: Resize) -> Tensor:
    """Interpolate patch tokens (B, N, C) of one grid to another."""
    maps = F.interpolate(as_maps(patches, grid), size=tuple(target), mode=mode, align_corners=False)
    return maps.flatten(2).mT
