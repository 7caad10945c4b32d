"""Gram anchoring: keep the similarities between the patch tokens of an image while a backbone is trained."""

from __future__ import annotations

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.errors import GridError, ShapeError
from dinoneck.grid import GridSize, as_maps
from dinoneck.losses.masked import exact
from dinoneck.tokens import Tokens


class GramAnchor(nn.Module):
    """Penalise changes of the similarities between an image's patches compared with a frozen reference.

    The loss compares Gram matrices (every patch with every other of its image), so it does not
    change when all tokens are rotated or scaled. Add it, with a weight, to the task's loss when
    blocks are unfrozen or LoRA is trained; a frozen backbone does not need it. CLS and register
    tokens are left out.

    The loss is the mean squared difference over images, layers and all N² entries, in float32 for
    half-precision tokens and under autocast. No gradient reaches the reference.

    A reference of another grid, from a larger image of the same view, is resized to the tokens'
    grid (bicubic).

    Shape:
        tokens: Tokens or patch tokens (B, N, C); reference: the same, of any width -> a scalar.

    Raises:
        ShapeError: if batch, number of layers or, between tensors, number of patches differ.
        GridError: if the aspect ratios of the grids differ by a patch or more.

    Examples:
        >>> anchor = GramAnchor()
        >>> patches = torch.eye(2).reshape(1, 2, 2)
        >>> anchor(patches, 3 * patches).item(), round(anchor(patches, torch.ones(1, 2, 5)).item(), 4)
        (0.0, 0.5)

    Reference:
        Siméoni et al., "DINOv3", 2025, section 4. The paper writes the squared Frobenius norm; this
        is its mean over entries, as in the authors' code, whose weight rises to 2 and whose
        reference gets images of twice the size, reduced to the tokens' grid. Their options for
        scalar products and for negatives are left out.
    """

    def forward(self, tokens: Tokens | Tensor, reference: Tokens | Tensor) -> Tensor:
        """Return the mean squared difference of the Gram matrices."""
        layers = _layers(tokens, "tokens")
        anchors = _layers(reference, "the reference")
        if len(layers) != len(anchors):
            raise ShapeError(
                f"tokens have {len(layers)} layers, the reference has {len(anchors)}; ask both for "
                "the same"
            )
        if (
            isinstance(tokens, Tokens)
            and isinstance(reference, Tokens)
            and tokens.grid != reference.grid
        ):
            anchors = _resized(anchors, reference.grid, tokens.grid)
        with _without_autocast(layers[0].device.type):
            losses = []
            for layer, anchor in zip(layers, anchors, strict=True):
                losses.append(_layer_loss(layer, anchor.detach()))
            return torch.stack(losses).mean()


def _without_autocast(device: str) -> contextlib.AbstractContextManager[object]:
    """Turn autocast off, where the device type has it."""
    if device == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def _layer_loss(tokens: Tensor, reference: Tensor) -> Tensor:
    if reference.shape[:2] != tokens.shape[:2]:
        raise ShapeError(
            f"tokens are {tuple(tokens.shape)} and the reference {tuple(reference.shape)}; "
            "expected the same batch and number of patches (pass Tokens, not tensors, to resize "
            "another grid)"
        )
    tokens = exact(tokens)
    # the C x C form of the same norm is smaller for long sequences, but inexact: it is not 0 for
    # equal tokens
    difference = _gram(tokens) - _gram(reference.to(tokens))
    return difference.square().sum() / max(difference.numel(), 1)


def _gram(patches: Tensor) -> Tensor:
    """The cosines (B, N, N) of patch tokens (B, N, C)."""
    patches = F.normalize(patches, dim=-1)
    return patches @ patches.mT


def _layers(tokens: Tokens | Tensor, name: str) -> tuple[Tensor, ...]:
    if isinstance(tokens, Tokens):
        return tokens.patches
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or not tokens.is_floating_point():
        if isinstance(tokens, Tensor):
            got = f"{tuple(tokens.shape)} {tokens.dtype}"
        else:
            got = type(tokens).__name__
        raise ShapeError(
            f"{name}: {got}; expected Tokens or floating-point patch tokens (batch, patches, "
            "channels)"
        )
    return (tokens,)


def _resized(layers: tuple[Tensor, ...], grid: GridSize, target: GridSize) -> tuple[Tensor, ...]:
    """Interpolate patch tokens (B, N, C) of one grid to another of the same view."""
    # how many patches wider or higher the reference is than the target at one scale for both sides
    row_scale = grid.rows / target.rows
    col_scale = grid.cols / target.cols
    cols_off = abs(col_scale / row_scale - 1) * target.cols
    rows_off = abs(row_scale / col_scale - 1) * target.rows
    if cols_off >= 1 or rows_off >= 1:
        raise GridError(
            f"tokens have {target.rows} x {target.cols} patches, the reference {grid.rows} x "
            f"{grid.cols}: another aspect ratio, so not the same view; expected one scale for "
            "both sides"
        )
    resized = []
    for layer in layers:
        maps = as_maps(exact(layer.detach()), grid)
        maps = F.interpolate(maps, tuple(target), mode="bicubic")
        resized.append(maps.flatten(2).mT)
    return tuple(resized)
