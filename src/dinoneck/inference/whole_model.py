"""Backbone and heads as one module of pixels, and that module as a ``torch.export`` program."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from packaging.version import Version
from torch import Tensor, nn

from dinoneck.backbones.backbone import LARGEST_NORMALISED, Backbone
from dinoneck.checkpoint.programs import without_paths
from dinoneck.errors import CheckpointError, DinoneckError, first_line
from dinoneck.grid import GridSize, TokenGrid, patch_pair
from dinoneck.heads.gates import scores_places
from dinoneck.inference.panel import Panel
from dinoneck.inference.places import grid_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from dinoneck.inference.predictor import Predictor

TRACED_BATCH = 2
TRACED_GRID = GridSize(10, 13)
OLDEST_TORCH = "2.8"
SMALLEST = (2, 4)  # patches a side, tried in this order: a graph is tied to a side of 1, also to that of a coarse level
MAP, GATE = ".map", "photo.gate"  # no task's name has a point


@dataclass(frozen=True)
class Sides:
    """The sides of the images that a program takes.

    Attributes:
        patch: (height, width) of a patch in pixels.
        size: (height, width) in pixels, the only one; None: any multiples of the patch.
        smallest: patches a side at least, where sides are free.
        reason: why the size is fixed although nobody asked for it.
    """

    patch: tuple[int, int]
    size: tuple[int, int] | None = None
    smallest: int = SMALLEST[0]
    reason: str | None = None


class Traced(NamedTuple):
    """A program, the sides of its images, and the (outputs, axes) of everything it answers with, in order."""

    program: ExportedProgram
    sides: Sides
    outputs: dict[str, tuple[int, int]]


class WholeModel(nn.Module):
    """Pixels in, what heads say of them out: normalisation, backbone and heads as one module.

    Args:
        backbone: over all layers that the heads read.
        panel: the heads.
        mean: per-channel mean of the pixels.
        std: per-channel standard deviation.
        maps: also give what every patch says, and the gate where heads have one.

    Shape:
        (B, 3, H, W) RGB in 0 ... 1 -> ``{task: (B, dim)}``, (B, dim, rows, cols) for the kinds that answer per cell;
        with ``maps`` also ``{"task.map": (B, dim, rows, cols)}`` and ``{"photo.gate": (B, 1, rows, cols)}``.
    """

    _dinoneck_mean: Tensor
    _dinoneck_std: Tensor

    def __init__(
        self, backbone: Backbone, panel: Panel, mean: Sequence[float], std: Sequence[float], maps: bool = False
    ) -> None:
        super().__init__()
        self.backbone, self.panel, self.maps = backbone, panel, maps
        self.heads = nn.ModuleList(panel.heads)
        self.register_buffer("_dinoneck_mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_dinoneck_std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def of(cls, predictor: Predictor, maps: bool) -> WholeModel:
        """Return a predictor's model, on the CPU."""
        recipe, backbone, panel = predictor.preprocess, predictor.backbone, predictor._panel
        if predictor.device.type != "cpu":
            backbone, panel = copy.deepcopy((backbone, panel))
            for module in (backbone, *panel.heads):
                module.to("cpu")
        return cls(backbone, panel, recipe.mean, recipe.std, maps)

    @property
    def dtypes(self) -> set[torch.dtype]:
        """What backbone and heads compute in."""
        return {self.backbone.dtype, *(next(head.parameters()).dtype for head in self.heads)}

    def merged(self) -> WholeModel:
        """Return it with LoRA products added to the weights of a copy; itself, if there are none."""
        if self.backbone.adapter.lora is None:
            return self
        return WholeModel(
            copy.deepcopy(self.backbone).merge_lora(),
            self.panel,
            self._dinoneck_mean.flatten().tolist(),
            self._dinoneck_std.flatten().tolist(),
            self.maps,
        )

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return ``{output: tensor}`` in natural units, float32; as a program NaN for pixels far beyond 0 ... 1."""
        normalised = (pixels - self._dinoneck_mean) / self._dinoneck_std
        tokens = self.backbone(normalised)
        found = self.panel.values(tokens)
        if self.maps:
            found |= {name + MAP: x for name, x in self.panel.maps(tokens).items() if found[name].ndim == 2}
            gate = self.panel.gate(tokens)
            found |= {} if gate is None else {GATE: gate}
        sound = _sound(normalised)
        return {name: x.float() * (sound if x.ndim == 4 else sound.flatten(1)) for name, x in found.items()}


def _sound(normalised: Tensor) -> Tensor:
    """(B, 1, 1, 1): 1, or NaN where the backbone refuses an image; a program cannot, and 0 ... 255 would give grams.

    Made by 0 / 0, since torch 2.8 stores no program with a NaN written into it.
    """
    within = normalised.abs() <= LARGEST_NORMALISED  # NaN is not; a minimum may pass over it
    flag = torch.where(within, 1.0, 0.0).amin(dim=(1, 2, 3), keepdim=True)
    return flag / flag


def sides_of(predictor: Predictor, size: tuple[int, int] | None) -> Sides:
    """Return the sides to export for.

    Args:
        predictor: backbone, heads and preparation.
        size: (height, width) in pixels, or None: free where backbone and heads allow, else the heads' own.

    Raises:
        GridError: if the patch does not divide ``size``.
        CheckpointError: if ``size`` is not the one that backbone or heads take, or they take one and nobody says which.
    """
    adapter = predictor.backbone.adapter
    patch = patch_pair(adapter.patch_size)
    only, reason = adapter.fixed_size, None
    if only is not None:
        reason = f"the backbone takes images of {_told(only)} px only"
    elif any(scores_places(head) for head in predictor._panel.heads):
        reason = "a gate of mode 'mlp' scores the places of one grid"
        only = own_size(predictor)
        if only is None and size is None:
            raise CheckpointError(f"{reason}, and its file does not say which: give {_REMEDY}", step="config")
    if size is not None:
        predictor._panel.check_grid(TokenGrid(patch).size(size), turned=False)
        if adapter.fixed_size not in (None, size):
            raise CheckpointError(f"size is {_told(size)}, but {reason}", step="config")
        return Sides(patch, size)
    if only is not None:
        predictor._panel.check_grid(TokenGrid(patch).size(only), turned=False)
    return Sides(patch, only, reason=reason)


def own_size(predictor: Predictor) -> tuple[int, int] | None:
    """Return the (height, width) in pixels that photos are prepared to; None if it depends on the photo."""
    grid = grid_of(predictor.preprocess)
    if grid is None:
        return None
    height, width = patch_pair(predictor.backbone.adapter.patch_size)
    return grid.rows * height, grid.cols * width


def traced(model: WholeModel, sides: Sides, own: tuple[int, int] | None) -> Traced:
    """Export with free batch, and free sides where they can be.

    Args:
        model: in eval mode.
        sides: wanted.
        own: the (height, width) to fix the size at, where free sides fail.

    Raises:
        CheckpointError: if it cannot be exported, or torch is older than 2.8.
    """
    if Version(torch.__version__) < Version(OLDEST_TORCH):
        raise CheckpointError(
            f"torch {torch.__version__} ties the batch of a whole model to its example; exporting with the backbone "
            f"needs torch {OLDEST_TORCH} or newer (pip install -U torch torchvision)",
            step="config",
        )
    if sides.size is not None:
        return _exported(model, sides)
    reason = ""
    for smallest in SMALLEST:
        try:
            found = _exported(model, replace(sides, smallest=smallest))
        except CheckpointError as error:
            reason = reason or str(error)
            continue
        if _is_free(found):
            return found
        reason = "its code takes the sides of the image to plain numbers, which ties the program to one size"
        break
    if own is None:
        raise CheckpointError(f"this model has no export with free sides ({reason}): give {_REMEDY}", step="config")
    return _exported(model, Sides(sides.patch, own, reason=reason))


def _exported(model: WholeModel, sides: Sides) -> Traced:
    height, width = sides.patch
    grid = TRACED_GRID if sides.size is None else GridSize(sides.size[0] // height, sides.size[1] // width)
    pixels = torch.full((TRACED_BATCH, 3, grid.rows * height, grid.cols * width), 0.5)
    free: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
    if sides.size is None:
        rows, cols = (torch.export.Dim(name, min=sides.smallest) for name in ("rows", "cols"))
        free |= {2: height * rows, 3: width * cols}
    try:
        with torch.no_grad():
            outputs = {name: (x.shape[1], x.ndim) for name, x in model(pixels).items()}
            program = torch.export.export(model, (pixels,), dynamic_shapes=(free,), strict=False)
    except DinoneckError:
        raise
    except Exception as error:  # the exporter raises many unrelated types
        told = first_line(error) or type(error).__name__
        raise CheckpointError(f"this model cannot be exported: {told}", step="config") from error
    program._example_inputs = None  # nothing that a file would hold as a pickle
    return Traced(without_paths(program), sides, outputs)


def _is_free(found: Traced) -> bool:
    """Whether a program takes another size; one whose sides were taken to plain numbers guards against it."""
    rows, cols = found.sides.smallest, found.sides.smallest + 1
    height, width = found.sides.patch
    try:
        with torch.no_grad():
            found.program.module()(torch.full((1, 3, rows * height, cols * width), 0.5))
    except (AssertionError, RuntimeError):
        return False
    return True


def _told(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


_REMEDY = "size=(height, width) (--size HxW on the command line)"
