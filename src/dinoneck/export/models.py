"""What is exported: a head, which takes tokens, or backbone and heads as one module, which takes images."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dinoneck.backbones.backbone import LARGEST_NORMALISED
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.schema import need
from dinoneck.errors import CheckpointError
from dinoneck.grid import GridSize, PatchSize, TokenGrid, patch_pair
from dinoneck.heads.ensemble import HeadEnsemble
from dinoneck.heads.head import Head
from dinoneck.heads.outputs import recompute_dependent_values
from dinoneck.images.bands import RGB_CHANNELS
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.inference.loaded_head import LoadedHead
from dinoneck.inference.predictor import Predictor
from dinoneck.layers.inputs import as_tokens
from dinoneck.runtime.description import Content
from dinoneck.tasks import CLASSES, GATE, MAP, MASKS, Task
from dinoneck.tokens import Tokens


class Output(NamedTuple):
    """An output of a model.

    Attributes:
        name: of the output in files.
        content: what it is: a task's prediction, its map, what its queries give, or a gate.
        task: whose output it is; None for a gate, which belongs to all tasks.
        tensor: of a batch.
    """

    name: str
    content: Content
    task: Task | None
    tensor: Tensor


class OnnxInput(NamedTuple):
    """An input of an ONNX model.

    Attributes:
        name: of the input in files.
        free_sides: per dimension the name of its free size, None of a fixed one; empty for a number.
        is_grid_side: whether it is the number of rows or of columns, which a fixed grid has inside.
    """

    name: str
    free_sides: tuple[str | None, ...]
    is_grid_side: bool = False


class _Heads(nn.Module, ABC):
    """Heads and what the exporters need to know of them.

    Attributes:
        loaded_head: what is exported, with what its file records.
        heads: its head, or several as one :class:`dinoneck.HeadEnsemble`. The names of weights in
            exported files begin with the name of this attribute.
        patch_size: (height, width) of a patch in pixels.
        recipe: how images are prepared; None if the file does not record it.
        head_dtype: of the weights of the heads.
        backbone_dtype: of those of the backbone; None of a head alone.
        unit: of the sizes in messages and records.
        remedy: the option that fixes the size.
        smallest_sides: patches a side to trace for, tried in this order.
        only_grid: the one grid that the backbone takes; None = any.
        prepared_grid: the grid that the files prepare the heads' images to; None if it depends on
            the image. It is used where no size is asked for.
        onnx_inputs: every input of the ONNX model, in its order.
    """

    only_grid: GridSize | None = None
    backbone_dtype: torch.dtype | None = None
    onnx_inputs: list[OnnxInput]

    def __init__(
        self, loaded_head: LoadedHead, patch: PatchSize, recipe: Preprocessing | None
    ) -> None:
        super().__init__()
        self.loaded_head = loaded_head
        self.heads = loaded_head.head
        self.patch_size = patch_pair(patch)
        self.recipe = recipe
        self.prepared_grid = None if recipe is None else recipe.grid()
        # torch.export stores weights of this layout only
        self.heads.to("cpu").to(memory_format=torch.contiguous_format)
        self.head_dtype = next(self.heads.parameters()).dtype

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Those of all weights."""
        if self.backbone_dtype is None:
            return {self.head_dtype}
        return {self.head_dtype, self.backbone_dtype}

    @abstractmethod
    def outputs(self, inputs: Any) -> list[Output]:
        """Return the outputs in the order of the file."""

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        """Return ``{output name: tensor}``."""
        return {output.name: output.tensor for output in self.outputs(inputs)}

    def object_outputs(self, tokens: Tokens) -> list[Output]:
        """Return the head's outputs for a task of objects as they are: a program does not decode objects."""
        task = self.loaded_head.object_task
        if task is None:
            return []
        tensors = self.heads(tokens)
        outputs = []
        for name, tensor in tensors.items():
            if name == f"{task.name}{MAP}":
                outputs.append(Output(name, "map", task, tensor))
            elif name == f"{task.name}{CLASSES}":
                outputs.append(Output(name, "classes", task, tensor))
            elif name == f"{task.name}{MASKS}":
                outputs.append(Output(name, "masks", task, tensor))
        return outputs


class TokensModel(_Heads):
    """A head: tokens in, ``{task: original units}`` out.

    Raises:
        CheckpointError: if it has no tasks, or its file does not state which tokens it takes.
    """

    unit = "patches"
    remedy = "grid=(rows, cols) (--grid ROWSxCOLS on the command line)"
    smallest_sides = (1,)

    def __init__(self, checkpoint: HeadCheckpoint) -> None:
        loaded_head = LoadedHead.load(checkpoint)
        record = checkpoint.meta["backbone"]
        if record is None:
            raise CheckpointError(
                "this head file does not state which tokens the head takes; save it with backbone=",
                step="pairing",
            )
        super().__init__(loaded_head, need(record, "patch_size"), checkpoint.preprocess)
        self.record = record
        self.layers = tuple(getattr(self.heads, "layer_indices", None) or need(record, "layers"))
        self.embed_dim = self.heads.embed_dim
        self.num_prefix_tokens = need(record, "num_cls") + need(record, "num_registers")
        self.onnx_inputs = []
        for i in range(len(self.layers)):
            self.onnx_inputs.append(OnnxInput(f"tokens_{i}", ("batch", "tokens", None)))
        for side in ("rows", "cols"):
            self.onnx_inputs.append(OnnxInput(side, free_sides=(), is_grid_side=True))

    def example(self, batch: int, grid: GridSize) -> Tokens:
        """Return random tokens like those of the backbone that the head was trained on."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch, self.num_prefix_tokens + grid.count, self.embed_dim)
        sequence = [torch.randn(shape, generator=generator) for _ in self.layers]
        sequence = [x.to(self.head_dtype) for x in sequence]
        tokens = as_tokens(sequence, grid, self.num_prefix_tokens, patch_size=self.patch_size)
        return replace(tokens, layers=self.layers, normed=self.record.get("norm"))

    def dynamic_shapes(self, tokens: Tokens, smallest: int | None) -> Any:
        """Return the free dimensions: the batch; the grid too if a smallest one is given."""
        if smallest is not None:
            return tokens.dynamic_spec()
        free_batch = {0: torch.export.Dim.DYNAMIC}
        sequences = [free_batch] * len(self.layers)
        return [*sequences, None, None]  # rows and cols are fixed

    def onnx_values(self, tokens: Tokens) -> list[Any]:
        """Return the values of the ONNX model's inputs."""
        return [*tokens.sequence, *tokens.grid]

    def size_of(self, grid: GridSize) -> list[int]:
        """Return a grid in ``unit``."""
        return list(grid)

    def describe(self, names: list[str]) -> dict[str, Any]:
        """Describe the inputs."""
        return {
            "names": names,
            "layers": list(self.layers),
            "prefix": self.num_prefix_tokens,
            "normed": self.record.get("norm"),
        }

    def outputs(self, tokens: Tokens) -> list[Output]:
        """Return every task in original units, and of objects what the head itself gives."""
        predictions = self.heads.natural(tokens)
        outputs = []
        for task in self.heads.predicted:
            if not task.is_masks:
                outputs.append(Output(task.name, "task", task, predictions[task.name]))
        return outputs + self.object_outputs(tokens)


class ImagesModel(_Heads):
    """Normalisation, backbone and heads: images in, original units out.

    All are on the CPU; a backbone on another device or with LoRA is copied.

    Shape:
        (B, 3, H, W) RGB in 0 ... 1, or the backbone's bands -> ``{task: (B, dim)}``, (B, dim, rows,
        cols) for tasks that are maps; with ``maps`` also ``{"task.map": (B, dim, rows, cols)}`` of
        the other tasks that have a map, and ``{"gate": (B, 1, rows, cols)}``.
    """

    unit = "px"
    remedy = "size=(height, width) (--size HxW on the command line)"
    smallest_sides = (2, 4)  # torch.export fixes a side of 1, also of a coarse level
    _dinoneck_mean: Tensor
    _dinoneck_std: Tensor

    def __init__(self, predictor: Predictor, maps: bool, size: tuple[int, int] | None) -> None:
        backbone = predictor.backbone
        recipe = predictor.preprocess
        [loaded_head] = predictor.passes[0].heads.values()
        super().__init__(loaded_head, backbone.adapter.patch_size, recipe)
        for head in _heads_of_maps(self.heads):
            _check_replaces_no_maps(type(head))
        has_lora = backbone.adapter.lora is not None
        self.backbone = backbone
        if has_lora or predictor.device.type != "cpu":
            self.backbone = copy.deepcopy(backbone).to("cpu")
        if has_lora:
            self.backbone.merge_lora()
        self.onnx_inputs = [OnnxInput("images", ("batch", None, "height", "width"))]
        self.recipe = recipe.changed(size=size)
        self.maps = maps
        self.channels = recipe.channels
        self.backbone_dtype = backbone.dtype
        if backbone.adapter.fixed_size is not None:
            self.only_grid = TokenGrid(self.patch_size).size(backbone.adapter.fixed_size)
        for name, values in (("mean", recipe.mean), ("std", recipe.std)):
            self.register_buffer(
                f"_dinoneck_{name}", torch.tensor(values).view(1, -1, 1, 1), persistent=False
            )

    def example(self, batch: int, grid: GridSize) -> Tensor:
        """Return random images (B, 3, H, W), or of as many channels as the backbone takes."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(batch, self.channels, *self.size_of(grid), generator=generator)

    def dynamic_shapes(self, images: Tensor, smallest: int | None) -> Any:
        """Return the free dimensions: the batch; height and width too if a smallest grid is given."""
        free: dict[int, Any] = {0: torch.export.Dim("batch", min=1)}
        if smallest is not None:
            free[2] = self.patch_size[0] * torch.export.Dim("rows", min=smallest)
            free[3] = self.patch_size[1] * torch.export.Dim("cols", min=smallest)
        return free

    def onnx_values(self, images: Tensor) -> list[Any]:
        """Return the value of the ONNX model's input."""
        return [images]

    def size_of(self, grid: GridSize) -> list[int]:
        """Return [height, width] in pixels."""
        return [grid.rows * self.patch_size[0], grid.cols * self.patch_size[1]]

    def describe(self, names: list[str]) -> dict[str, Any]:
        """Describe the input."""
        is_rgb = self.channels == RGB_CHANNELS
        return {
            "name": names[0],
            "layout": "NCHW",
            "channels": "RGB" if is_rgb else f"{self.channels} bands",
            "dtype": "float32",
            "range": [0.0, 1.0],
            "normalised_inside": True,
        }

    def outputs(self, images: Tensor) -> list[Output]:
        """Return the outputs in float32; as a program NaN for images far beyond 0 ... 1."""
        normalised = self._normalised(images)  # (B, 3, H, W)
        tokens = self._tokens(normalised)
        one_or_nan = _one_or_nan(normalised)  # (B, 1, 1, 1)
        checked = []
        for output in [*self._predictions(tokens), *self.object_outputs(tokens)]:
            x = output.tensor
            tensor = x.float() * one_or_nan.view(-1, *[1] * (x.ndim - 1))
            checked.append(output._replace(tensor=tensor))
        return checked

    def check_shows_its_maps(self, images: Tensor) -> None:
        """Raise a CheckpointError for heads that show other maps than those that their values come from.

        A file has one map of a task, see ``shown_maps`` of :class:`dinoneck.heads.outputs.HeadOutputs`.
        Heads that predict by ``predict_outputs`` of their own are run; others cannot show other maps.

        Args:
            images: an example.
        """
        names = []
        for head in _heads_of_maps(self.heads):
            if _has_own_outputs(type(head)):
                names.append(type(head).__name__)
        if not names:
            return
        tokens = self._tokens(self._normalised(images))
        outputs = self.heads.predict_outputs(tokens, with_maps=True)
        if outputs.shown_maps is None:
            return
        for name, shown in outputs.shown_maps.items():
            cells = outputs.maps[name]
            if shown.shape != cells.shape or not torch.allclose(shown, cells):
                raise CheckpointError(
                    f"{', '.join(names)} shows other maps of {name!r} than those of its values, and "
                    "an exported file has one map of a task; export a head that shows those, or the "
                    "head without its backbone (export_head)",
                    step="config",
                )

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self._dinoneck_mean) / self._dinoneck_std

    def _tokens(self, normalised: Tensor) -> Tokens:
        return self.loaded_head.select(self.backbone(normalised), self.backbone)

    def _predictions(self, tokens: Tokens) -> list[Output]:
        """Every task in original units; with maps also the gate, and maps of tasks that are no maps."""
        outputs = self.heads.predict_outputs(tokens, self.maps)
        tasks = {task.name: task for task in self.heads.predicted}
        values = recompute_dependent_values(self.heads.predicted, outputs)

        predictions = []
        for name, task in tasks.items():
            if task.is_map:
                predictions.append(Output(name, "task", task, outputs.maps[name]))
            elif not task.is_masks:
                predictions.append(Output(name, "task", task, values[name]))
        for name, cells in outputs.maps.items():
            if not tasks[name].is_map:
                predictions.append(Output(f"{name}{MAP}", "map", tasks[name], cells))
        if outputs.gate is not None:
            gate = outputs.gate[:, None]  # (B, 1, rows, cols)
            predictions.append(Output(GATE, "gate", None, gate))
        return predictions


def _heads_of_maps(heads: nn.Module) -> list[Head]:
    """The heads that have a task that is a map; of an ensemble its members."""
    of_maps = []
    for head in heads.modules():
        if isinstance(head, Head) and not isinstance(head, HeadEnsemble):
            if any(task.is_map for task in head.tasks):
                of_maps.append(head)
    return of_maps


def _has_own_outputs(kind: type[Head]) -> bool:
    return kind.predict_outputs is not Head.predict_outputs


def _check_replaces_no_maps(kind: type[Head]) -> None:
    """Raise a CheckpointError for a class whose values and maps come from separate runs.

    Of a class with ``predict_outputs`` of its own, the maps are compared when it is exported.
    """
    is_separate = kind.natural is not Head.natural or kind.predict_maps is not Head.predict_maps
    if is_separate and not _has_own_outputs(kind):
        raise CheckpointError(
            f"{kind.__name__} replaces natural or predict_maps, so the maps that it shows may be "
            "others than those of its values, and an exported file has one map of a task; export "
            "a head that replaces neither, or the head without its backbone (export_head)",
            step="config",
        )


def _one_or_nan(normalised: Tensor) -> Tensor:
    """The factor of an image's outputs (B, 1, 1, 1): 1, or NaN for an image that the backbone rejects.

    Such are values in 0 ... 255. A program cannot raise an error. The NaN is 0 / 0, since torch 2.8
    stores no program that holds a NaN constant.
    """
    # False for NaN too, which a minimum or maximum of the values might skip
    within = normalised.abs() <= LARGEST_NORMALISED
    one_or_zero = torch.where(within, 1.0, 0.0).amin(dim=(1, 2, 3), keepdim=True)
    return one_or_zero / one_or_zero


Model = TokensModel | ImagesModel
