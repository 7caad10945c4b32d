"""What is exported: a head, which takes tokens, or backbone and heads as one module, which takes images."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck.backbones.backbone import LARGEST_NORMALISED
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.pairing import need
from dinoneck.data.bands import RGB_CHANNELS
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import CheckpointError
from dinoneck.grid import GridSize, PatchSize, TokenGrid, patch_pair
from dinoneck.heads.head import recompute_derived
from dinoneck.inference.predictor import Predictor
from dinoneck.inference.sources import Reading, load
from dinoneck.layers.inputs import as_tokens
from dinoneck.tasks import MAP
from dinoneck.tokens import Tokens


class _Heads(nn.Module):
    """Heads and what the exporters need to know of them.

    Attributes:
        unit: of the sizes in messages and records.
        remedy: the option that fixes the size.
        smallest: patches a side to trace for, tried in this order.
        only: the one grid that the backbone takes; None = any.
        own: the grid that the heads' images are prepared to; None if it depends on the image.
        inputs: (name, names of the free dimensions) of every input of the ONNX model.
    """

    only: GridSize | None = None
    inputs: list[tuple[str, tuple[str | None, ...]]]

    def __init__(self, reading: Reading, patch: PatchSize, recipe: Preprocessing | None) -> None:
        super().__init__()
        self.reading, self.heads, self.patch, self.recipe = (
            reading,
            reading.head,
            patch_pair(patch),
            recipe,
        )
        self.own = None if recipe is None else recipe.grid()
        # torch stores no other layout as it is
        self.heads.to("cpu").to(memory_format=torch.contiguous_format)
        self.dtypes = {next(self.heads.parameters()).dtype}

    def of_objects(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return what the head itself gives for tasks of objects, which a program does not decode."""
        task = self.reading.objects
        return (
            {}
            if task is None
            else {k: x for k, x in self.heads(tokens).items() if k.startswith(f"{task.name}.")}
        )


class TokensModel(_Heads):
    """A head: tokens in, ``{task: original units}`` out.

    Raises:
        CheckpointError: if it has no tasks, or its file does not state which tokens it takes.
    """

    unit, remedy, smallest = (
        "patches",
        "grid=(rows, cols) (--grid ROWSxCOLS on the command line)",
        (1,),
    )

    def __init__(self, checkpoint: HeadCheckpoint) -> None:
        reading, record = load(checkpoint), checkpoint.meta["backbone"]
        if record is None:
            raise CheckpointError(
                "this head file does not state which tokens the head takes; save it with backbone=",
                step="pairing",
            )
        layers = tuple(getattr(reading.head, "layer_indices", None) or need(record, "layers"))
        super().__init__(reading, need(record, "patch_size"), checkpoint.preprocess)
        self.record, self.layers, self.embed_dim = record, layers, reading.head.embed_dim
        self.prefix = need(record, "num_cls") + need(record, "num_registers")
        self.inputs = [(f"tokens_{i}", ("batch", "tokens", None)) for i in range(len(self.layers))]
        self.inputs += [("rows", ()), ("cols", ())]

    def example(self, batch: int, grid: GridSize) -> Tokens:
        """Return random tokens like those of the backbone that the head was trained on."""
        generator, (dtype,) = torch.Generator().manual_seed(0), self.dtypes
        shape = (batch, self.prefix + grid.count, self.embed_dim)
        sequence = [torch.randn(shape, generator=generator).to(dtype) for _ in self.layers]
        plain = as_tokens(sequence, grid, self.prefix, patch_size=self.patch)
        return replace(plain, layers=self.layers, normed=self.record.get("norm"))

    def dynamic(self, tokens: Tokens, smallest: int | None) -> Any:
        """Return the free dimensions: the batch; the grid too if a smallest one is given."""
        only_batch = [*({0: torch.export.Dim.DYNAMIC} for _ in self.layers), None, None]
        return only_batch if smallest is None else tokens.dynamic_spec()

    def values(self, tokens: Tokens) -> list[Any]:
        """Return the values of the ONNX model's inputs."""
        return [*tokens.sequence, *tokens.grid]

    def size_of(self, grid: GridSize) -> list[int]:
        """Return a grid in ``unit``."""
        return [*grid]

    def describe(self, names: list[str]) -> dict[str, Any]:
        """Describe the inputs."""
        return {
            "names": names,
            "layers": [*self.layers],
            "prefix": self.prefix,
            "normed": self.record.get("norm"),
        }

    def forward(self, tokens: Tokens) -> dict[str, Tensor]:
        """Return ``{task: original units}``, and of objects what the head itself gives."""
        return self.heads.natural(tokens) | self.of_objects(tokens)


class ImagesModel(_Heads):
    """Normalisation, backbone and heads: images in, original units out; on the CPU, copied where a GPU has them.

    Shape:
        (B, 3, H, W) RGB in 0 ... 1, or the backbone's bands -> ``{task: (B, dim)}``, (B, dim, rows,
        cols) for kinds that predict per cell; with ``maps`` also ``{"task.map": (B, dim, rows,
        cols)}`` and ``{"gate": (B, 1, rows, cols)}``.
    """

    unit, remedy = "px", "size=(height, width) (--size HxW on the command line)"
    smallest = (2, 4)  # a graph is tied to a side of 1, also of a coarse level
    _dinoneck_mean: Tensor
    _dinoneck_std: Tensor

    def __init__(self, predictor: Predictor, maps: bool, size: tuple[int, int] | None) -> None:
        backbone, recipe = predictor.backbone, predictor.preprocess
        [reading] = predictor.passes[0].readings.values()
        super().__init__(reading, backbone.adapter.patch_size, recipe)
        has_lora, is_here = backbone.adapter.lora is not None, predictor.device.type == "cpu"
        self.backbone = backbone if is_here and not has_lora else copy.deepcopy(backbone).to("cpu")
        if has_lora:
            self.backbone.merge_lora()
        self.inputs = [("images", ("batch", None, "height", "width"))]
        self.recipe, self.maps = recipe.changed(size=size), maps
        self.channels = recipe.channels
        self.dtypes.add(backbone.dtype)
        if backbone.adapter.fixed_size is not None:
            self.only = TokenGrid(self.patch).size(backbone.adapter.fixed_size)
        for name, values in (("mean", recipe.mean), ("std", recipe.std)):
            self.register_buffer(
                f"_dinoneck_{name}", torch.tensor(values).view(1, -1, 1, 1), persistent=False
            )

    def example(self, batch: int, grid: GridSize) -> Tensor:
        """Return random images (B, 3, H, W), or of as many channels as the backbone takes."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(batch, self.channels, *self.size_of(grid), generator=generator)

    def dynamic(self, images: Tensor, smallest: int | None) -> Any:
        """Return the free dimensions: the batch; height and width too if a smallest grid is given."""
        free: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
        if smallest is not None:
            rows, cols = (torch.export.Dim(name, min=smallest) for name in ("rows", "cols"))
            free |= {2: self.patch[0] * rows, 3: self.patch[1] * cols}
        return free

    def values(self, images: Tensor) -> list[Any]:
        """Return the value of the ONNX model's input."""
        return [images]

    def size_of(self, grid: GridSize) -> list[int]:
        """Return [height, width] in pixels."""
        return [grid.rows * self.patch[0], grid.cols * self.patch[1]]

    def describe(self, names: list[str]) -> dict[str, Any]:
        """Describe the input."""
        values = {"dtype": "float32", "range": [0.0, 1.0], "normalised_inside": True}
        channels = "RGB" if self.channels == RGB_CHANNELS else f"{self.channels} bands"
        return {"name": names[0], "layout": "NCHW", "channels": channels, **values}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return ``{output: tensor}`` in float32; as a program NaN for images far beyond 0 ... 1."""
        normalised = (images - self._dinoneck_mean) / self._dinoneck_std  # (B, 3, H, W)
        tokens = self.reading.tokens(self.backbone, self.backbone(normalised))
        # (B, dim), or (B, dim, rows, cols) of kinds that predict per cell, which need no map next
        # to them
        outputs = recompute_derived(self.heads.predicted, self.reading.outputs(tokens, self.maps))
        per_cell = {name + MAP for name, x in outputs.items() if x.ndim == 4}
        outputs |= self.of_objects(tokens)
        valid = _is_valid(normalised)
        return {
            name: x.float() * valid.view(-1, *[1] * (x.ndim - 1))
            for name, x in outputs.items()
            if name not in per_cell
        }


def _is_valid(normalised: Tensor) -> Tensor:
    """(B, 1, 1, 1): 1, or NaN where the backbone refuses an image; a program cannot, and 0 ... 255 would give numbers.

    Made by 0 / 0, since torch 2.8 stores no program with a NaN written into it.
    """
    within = normalised.abs() <= LARGEST_NORMALISED  # NaN is not; a minimum may pass over it
    flag = torch.where(within, 1.0, 0.0).amin(dim=(1, 2, 3), keepdim=True)
    return flag / flag


Model = TokensModel | ImagesModel
