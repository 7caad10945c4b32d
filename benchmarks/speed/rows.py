"""What a row of the speed table is: a setting, and variants of one piece of work that give equal results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dinoneck import Tokens

Form = Literal["published", "fixed", "ours"]
PREFIX, PATCH = 5, 16


@dataclass(frozen=True)
class Setting:
    """Sizes and types of one measurement.

    Attributes:
        batch: B.
        grid: rows, cols of patches.
        channels: C of the tokens.
        layers: L.
        dtype: of weights and tokens.
        device: where.
        learns: tokens need gradients, as when the backbone is tuned; False = they are frozen, or stored.
    """

    batch: int
    grid: tuple[int, int]
    channels: int
    layers: int = 1
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    learns: bool = False

    @property
    def title(self) -> str:
        """How tables name it."""
        rows, cols = self.grid
        layers = f", {self.layers} layers" if self.layers > 1 else ""
        return f"B{self.batch} {rows}×{cols} C{self.channels}{layers}"

    @property
    def patches(self) -> int:
        """B · N."""
        return self.batch * self.grid[0] * self.grid[1]

    def of(self, **changes: Any) -> Setting:
        """Return it with other values."""
        return replace(self, **changes)

    def tokens(self) -> Tokens:
        """Draw tokens with 5 prefix tokens in front, the same for the same sizes."""
        rows, cols = self.grid
        generator = torch.Generator().manual_seed(1)
        shape = (self.batch, PREFIX + rows * cols, self.channels)
        drawn = [torch.randn(shape, generator=generator).to(self.device, self.dtype) for _ in range(self.layers)]
        for x in drawn:
            x.requires_grad_(self.learns)
        return Tokens.from_sequence(
            drawn, image_size=(rows * PATCH, cols * PATCH), patch_size=PATCH, num_prefix_tokens=PREFIX
        )


@dataclass
class Variant:
    """One formulation.

    Attributes:
        form: as ``published``, with its layout ``fixed`` (channels-last weights and views instead of copies), ``ours``.
        call: does the work; returns tensors.
        module: what holds the weights.
        same: gives the results of the first published one; False = other weights or another function, shown apart.
    """

    form: Form
    call: Callable[[], Any]
    module: nn.Module
    same: bool = True


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: of the work.
        build: setting -> variants by name; the first ``published`` one is the peer, the first ``fixed`` one its
            layout-fixed form. They share weights and tokens.
        settings: sizes to measure.
        goals: ``"forward float32"``, ``"step bfloat16"`` ... -> least ratio to the peer as published.
        steps: what is timed beside ``forward``: ``"step"`` = forward and backward in train mode.
        work: setting -> (FLOPs, least bytes moved) of a forward, for the share of the roofline.
    """

    name: str
    build: Callable[[Setting], Mapping[str, Variant]]
    settings: Sequence[Setting]
    goals: Mapping[str, float] = field(default_factory=dict)
    steps: Sequence[str] = ("forward", "step")
    work: Callable[[Setting], tuple[float, float]] | None = None


def nchw(patches: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, N, C) -> (B, C, rows, cols) by the copy that timm, transformers, DEIMv2 and mmseg make."""
    return patches.transpose(1, 2).reshape(patches.shape[0], patches.shape[2], *grid).contiguous()


def nhwc(patches: Tensor, grid: Sequence[int]) -> Tensor:
    """(B, N, C) -> a view (B, C, rows, cols), channels last."""
    return patches.unflatten(1, tuple(grid)).permute(0, 3, 1, 2)


def tensors_of(result: Any) -> list[Tensor]:
    """All tensors in what a variant returns."""
    if isinstance(result, Tensor):
        return [result]
    values = result.values() if isinstance(result, Mapping) else result
    return [tensor for value in values for tensor in tensors_of(value)]
