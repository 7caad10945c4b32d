"""Gram anchoring: patch tokens may change while a backbone learns, their likeness to each other may not."""

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
    """Keeps the likeness between the patches of a photo where a frozen reference has it.

    The loss compares Gram matrices (every patch with every other of its photo), so the tokens stay free to turn and,
    normalised, to scale. Add it with a weight of your choice to the task's loss when blocks are unfrozen or LoRA is
    trained; a frozen backbone needs none. CLS and register tokens are left out.

    Args:
        normalise: divide tokens by their length first, so that Gram entries are cosines; without, the unit of the
            tokens counts (and long tokens count most).
        remove_negatives: compare negative entries as 0, in both matrices.
        resize: how a reference of another grid (a larger photo of the same view, as DINOv3 uses it) is brought to
            the tokens' grid, without antialiasing; None = refuse it.

    Shape:
        tokens: Tokens, every layer of which counts alike, or patch tokens (B, N, C); reference: the same, of any
        width -> a scalar. It is the mean squared difference over photos, layers and all N² entries, in float32 for
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
        entries, as in the authors' code, whose weight rises to 2 and whose reference sees photos of twice the size,
        brought down with ``resize="bicubic"``. Their option to remove only the reference's negatives is not offered.
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
            wanted = self._gram(reference)
        # the C x C form of the same norm would be smaller for long sequences, but cancels: it is not 0 at equality
        difference = self._gram(tokens) - wanted
        return difference.square().sum() / max(difference.numel(), 1)

    def _gram(self, patches: Tensor) -> Tensor:
        if self.normalise:
            patches = F.normalize(patches, dim=-1)
        gram = patches @ patches.mT
        return gram.relu() if self.remove_negatives else gram

    def _grids(self, tokens: Tokens | Tensor, reference: Tokens | Tensor) -> tuple[GridSize, GridSize] | None:
        """The reference's grid and the one it is resized to; None where there is nothing to resize."""
        if isinstance(tokens, Tensor) or isinstance(reference, Tensor) or tokens.grid == reference.grid:
            return None
        own, other = tokens.grid, reference.grid
        what = f"tokens have {own.rows} x {own.cols} patches, the reference {other.rows} x {other.cols}"
        if self.resize is None:
            raise GridError(f"{what}; give both the same photo size, or build GramAnchor(resize='bicubic')")
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
    """Patch tokens of one grid, interpolated to another."""
    maps = F.interpolate(as_maps(patches, grid), size=tuple(target), mode=mode, align_corners=False)
    return maps.flatten(2).mT
