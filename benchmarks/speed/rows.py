"""What a row of the speed table is: settings, and variants of one computation with equal results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.measure import is_gpu
from dinoneck import Tokens

Form = Literal["published", "fixed", "ours", "option"]
PREFIX = 5  # CLS and four registers
PATCH = 16
PERTURBATION = 0.1  # of weights, as a multiple of normal noise
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
        out: channels of the results, where they can be chosen.
        dtype: of weights and tokens.
        device: of weights and tokens.
        learns: whether tokens need gradients, as when the backbone is tuned; otherwise they are
            frozen or stored.
        points: of a cloud, if there is one; the batch is then its views.
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
        """The name in tables."""
        rows, cols = self.grid
        title = f"B{self.batch} {rows}×{cols} C{self.channels}"
        if self.layers > 1:
            title += f", {self.layers} layers"
        if self.points > 0:
            title += f", {self.points:,} points"
        return title

    def changed(self, **changes: Any) -> Setting:
        """Return the setting with other values."""
        return replace(self, **changes)

    @property
    def factory_kwargs(self) -> dict[str, Any]:
        """``device`` and ``dtype``, for constructors."""
        return {"device": self.device, "dtype": self.dtype}

    def tokens(self, prefix: int = PREFIX) -> Tokens:
        """Draw tokens with prefix tokens in front, the same for the same sizes."""
        rows, cols = self.grid
        shape = (self.batch, prefix + rows * cols, self.channels)
        layers = random_tensors([shape] * self.layers, seed=1, device=self.device)
        sequence = [layer.to(self.dtype).requires_grad_(self.learns) for layer in layers]
        return Tokens.from_sequence(
            sequence,
            image_size=(rows * PATCH, cols * PATCH),
            patch_size=PATCH,
            num_prefix_tokens=prefix,
        )

    def images(self) -> Tensor:
        """Draw the images of the tokens, (B, 3, 16 rows, 16 cols)."""
        rows, cols = self.grid
        shape = (self.batch, 3, rows * PATCH, cols * PATCH)
        [images] = random_tensors([shape], seed=2, device=self.device)
        return images.to(self.dtype)


@dataclass
class Variant:
    """One formulation of a computation.

    Attributes:
        form: as ``published``; with its layout ``fixed`` (channels-last weights and views instead
            of copies); ``ours``; or an ``option`` of ours, which is shown but has no goal.
        call: computes the results and returns tensors.
        module: the module with the weights.
        inputs: tensors that the call reads, tokens first; they do not count as saved for the
            backward pass.
        same: whether the results equal those of the first published variant; False: other weights
            or another function, shown apart.
        own_weights: whether the same function has weights of other values, whose gradients differ
            from the peer's.
        capturable: whether a CUDA graph can capture the forward: it neither copies from the host
            nor reads a value.
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
    """One computation.

    Attributes:
        name: of the computation.
        build: setting -> variants by name; the first ``published`` one is the peer, the first
            ``fixed`` one its layout-fixed form. They share weights and tokens.
        settings: sizes to measure.
        group: of the tables: parts, necks, heads, published, detection, backbones or points.
        steps: the steps that are timed; see ``STEPS``.
        gpu_batch: B of all settings on a GPU, which small batches leave idle; None: unchanged.
        neck: whether it is a neck, which on a GPU is measured next to its whole backbone.
        only_float32: whether float32 is the only dtype.
        float64_bound: how far the variants may differ in float64, relative to the norm.
    """

    name: str
    build: Callable[[Setting], Mapping[str, Variant]]
    settings: Sequence[Setting]
    group: str = "necks"
    steps: Sequence[str] = STEPS
    gpu_batch: int | None = 32
    neck: bool = False
    only_float32: bool = False
    float64_bound: float = 1e-9

    def settings_on(self, device: str) -> list[Setting]:
        """Return the sizes to measure on a device, each once."""
        if device == "cpu" or self.gpu_batch is None:
            return [setting.changed(device=device) for setting in self.settings]
        # settings that differ in the batch alone become equal
        settings: list[Setting] = []
        for setting in self.settings:
            on_gpu = setting.changed(device=device, batch=self.gpu_batch)
            if on_gpu not in settings:
                settings.append(on_gpu)
        return settings


def random_tensors(
    shapes: Sequence[Sequence[int]], seed: int, device: str | torch.device
) -> list[Tensor]:
    """Draw normal float32 numbers, the same for the same seed and kind of device."""
    if is_gpu(device):
        # drawn there: the host takes seconds
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
    """Return all tensors in the result of a variant."""
    if isinstance(result, Tensor):
        return [result]
    values = result.values() if isinstance(result, Mapping) else result
    tensors = []
    for value in values:
        tensors += tensors_of(value)
    return tensors


@torch.no_grad()
def perturb(module: nn.Module) -> nn.Module:
    """Add noise to every weight and batch statistic and return the module.

    Norms whose weights are 1 and 0, or weights of equal values, would hide differences.
    """
    generator = torch.Generator().manual_seed(3)
    for name, value in module.state_dict(keep_vars=True).items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator).to(value)
        if name.endswith("running_var"):
            noise = noise.abs()
        value.add_(PERTURBATION * noise)
    for submodule in module.modules():
        if isinstance(submodule, nn.BatchNorm2d):
            # train mode then leaves the running statistics as they are
            submodule.momentum = 0.0
    return module
