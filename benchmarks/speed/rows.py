"""What a row of the speed table is: a setting, and variants of one piece of work that give equal results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.measure import is_gpu
from dinoneck import Tokens

Form = Literal["published", "fixed", "ours", "option"]
PREFIX, PATCH = 5, 16
# without autograd; in train mode, on frozen or stored tokens
STEPS = ("forward", "forward + backward")


@dataclass(frozen=True)
class Setting:
    """Sizes and types of one measurement.

    Attributes:
        batch: B.
        grid: rows, cols of patches.
        channels: C of the tokens.
        layers: L.
        out: channels of the results, where the work has a choice.
        dtype: of weights and tokens.
        device: where.
        learns: tokens need gradients, as when the backbone is tuned; False = they are frozen, or
            stored.
        points: of a cloud, where the work has one; the batch is then its views.
    """

    batch: int
    grid: tuple[int, int]
    channels: int
    layers: int = 1
    out: int = 256
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    learns: bool = False
    points: int = 0

    @property
    def title(self) -> str:
        """How tables name it."""
        rows, cols = self.grid
        layers = f", {self.layers} layers" if self.layers > 1 else ""
        points = f", {self.points:,} points" if self.points else ""
        return f"B{self.batch} {rows}×{cols} C{self.channels}{layers}{points}"

    def of(self, **changes: Any) -> Setting:
        """Return it with other values."""
        return replace(self, **changes)

    @property
    def like(self) -> dict[str, Any]:
        """``device`` and ``dtype``, for constructors."""
        return {"device": self.device, "dtype": self.dtype}

    def tokens(self, prefix: int = PREFIX) -> Tokens:
        """Draw tokens with prefix tokens in front, the same for the same sizes."""
        rows, cols = self.grid
        shape = (self.batch, prefix + rows * cols, self.channels)
        sequence = [
            x.to(self.dtype).requires_grad_(self.learns)
            for x in drawn([shape] * self.layers, 1, self.device)
        ]
        return Tokens.from_sequence(
            sequence,
            image_size=(rows * PATCH, cols * PATCH),
            patch_size=PATCH,
            num_prefix_tokens=prefix,
        )

    def images(self) -> Tensor:
        """Draw the images of the tokens, (B, 3, 16 rows, 16 cols)."""
        rows, cols = self.grid
        [images] = drawn([(self.batch, 3, rows * PATCH, cols * PATCH)], 2, self.device)
        return images.to(self.dtype)


@dataclass
class Variant:
    """One formulation.

    Attributes:
        form: as ``published``, with its layout ``fixed`` (channels-last weights and views instead
            of copies), ``ours``; an ``option`` of ours is shown and held against no goal.
        call: does the work; returns tensors.
        module: what holds the weights.
        inputs: tensors that the call is given, tokens first; they do not count as kept for the
            backward pass.
        same: gives the results of the first published one; False = other weights or another
            function, shown apart.
        own_weights: the same function by weights of other values, whose gradients are not those of
            the peer's.
        capturable: its forward can be captured as a CUDA graph: it neither copies from the host nor
            reads a value.
    """

    form: Form
    call: Callable[[], Any]
    module: nn.Module
    inputs: Sequence[Tensor] = ()
    same: bool = True
    own_weights: bool = False
    capturable: bool = True


@dataclass(frozen=True)
class Row:
    """One piece of work.

    Attributes:
        name: of the work.
        build: setting -> variants by name; the first ``published`` one is the peer, the first
            ``fixed`` one its layout-fixed form. They share weights and tokens.
        settings: sizes to measure.
        group: of the tables: parts, necks, heads, published, detection, backbones or points.
        steps: what is timed; see ``STEPS``.
        gpu_batch: B of all settings on a GPU, which small batches leave idle; None = as they are.
        neck: is a neck, which on a GPU is measured next to its whole backbone.
        only_float32: no other dtype is measured.
        equal: how far results in float64 may differ, relative to their norm.
    """

    name: str
    build: Callable[[Setting], Mapping[str, Variant]]
    settings: Sequence[Setting]
    group: str = "necks"
    steps: Sequence[str] = STEPS
    gpu_batch: int | None = 32
    neck: bool = False
    only_float32: bool = False
    equal: float = 1e-9

    def settings_on(self, device: str) -> list[Setting]:
        """Sizes to measure on a device, each once."""
        if device == "cpu" or self.gpu_batch is None:
            return [setting.of(device=device) for setting in self.settings]
        return list(
            dict.fromkeys(
                setting.of(device=device, batch=self.gpu_batch) for setting in self.settings
            )
        )


def drawn(shapes: Sequence[Sequence[int]], seed: int, device: str | torch.device) -> list[Tensor]:
    """Draw normal float32 numbers, the same for the same seed; on a GPU there, as the host takes seconds for them."""
    if is_gpu(device):
        torch.manual_seed(seed)
        return [torch.randn(*shape, device=device) for shape in shapes]
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


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


@torch.no_grad()
def stirred(module: nn.Module) -> nn.Module:
    """Move every weight and batch statistic a little, so that none is trivial (norms of 1 and 0) and none alike."""
    generator = torch.Generator().manual_seed(3)
    for name, x in module.state_dict(keep_vars=True).items():
        if not x.is_floating_point():
            continue
        noise = torch.randn(x.shape, generator=generator).to(x)
        x.add_(0.1 * (noise.abs() if name.endswith("running_var") else noise))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            # batch statistics are used and not kept: train mode changes nothing
            part.momentum = 0.0
    return module
