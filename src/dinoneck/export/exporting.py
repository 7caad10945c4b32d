"""``torch.export`` programs and ONNX models of a head, or of backbone and heads."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from dinoneck.atomic import write_whole
from dinoneck.backbones.adapter import evaluating
from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.backbone_part import changed_weights
from dinoneck.checkpoint.format import METADATA_KEY, canonical, check_path, spelling
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.dtypes import dtype_name
from dinoneck.errors import CheckpointError, ConfigError
from dinoneck.export import onnx_file, program
from dinoneck.export.models import ImagesModel, Model, TokensModel
from dinoneck.export.program import Traced, TracedOutput
from dinoneck.grid import GridSize, TokenGrid
from dinoneck.heads.ensemble import (
    HeadEnsemble,
    has_intervals_of_other_views,
    without_intervals_of_other_views,
)
from dinoneck.inference.predictor import Predictor
from dinoneck.inference.sources import NO_KEY, HeadSource, open_heads
from dinoneck.inference.tiles import TrainedBoxes
from dinoneck.losses.composition import Composed
from dinoneck.runtime.description import (
    FORMAT,
    MODEL_KEY,
    ModelRecord,
    OutputRecord,
    ViewsRecord,
    record_task,
    to_entry,
)
from dinoneck.task_facts import TaskRecord
from dinoneck.task_intervals import NO_VIEWS
from dinoneck.tasks import Task
from dinoneck.text import did_you_mean, reason_of
from dinoneck.version import __version__

Format = Literal["onnx", "pt2"]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: the file, and for ONNX models above 2 GiB the one with their weights.
        description: the entry ``dinoneck_export`` of the file.
        parity: how far it is from the eager model; None if that was not checked.
        fixed_because: why it takes one size only, where none was asked for; else None.
    """

    files: tuple[Path, ...]
    description: dict[str, Any]
    parity: program.Parity | None
    fixed_because: str | None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the images, or (rows, cols) of the tokens, that it takes; None if it takes any."""
        size = self.description["input"]["size"]
        return None if size is None else (size[0], size[1])

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its outputs, in order."""
        return tuple(output["name"] for output in self.description["outputs"])


def export_model(
    heads: HeadSource | Sequence[HeadSource],
    path: str | os.PathLike[str],
    *,
    format: Format = "onnx",  # noqa: A002
    backbone: Backbone | None = None,
    size: tuple[int, int] | None = None,
    maps: bool = False,
    half: bool = False,
    check: bool = True,
) -> Exported:
    """Write backbone and heads as one model that takes images and runs without dinoneck.

    The model takes RGB values in 0 ... 1, or the bands of a backbone of other channels, and
    normalises them itself. The metadata inside the file describe how images are prepared (size,
    resize mode, interpolation), and the names, units and labels of the outputs. The batch is free,
    and so are height and width where backbone and heads allow. LoRA weights of the heads are merged
    into the weights. Tiles and views (``tta``) are not part of it; a warning names the views that
    the heads record.

    Args:
        heads: as for :class:`dinoneck.Predictor`: one or several, which share the backbone; those
            that predict the same task are averaged.
        path: the file; whole or not at all.
        format: ``"onnx"``, or ``"pt2"``: a ``torch.export`` program, which holds no pickle.
        backbone: the backbone; None rebuilds it from the record in the files. It is checked against
            them.
        size: (height, width) in pixels, multiples of the patch: the only one that the model takes,
            and the one that images are prepared to. None = free where possible, else the heads'
            own, with a warning.
        maps: also give the predictions of every patch (``"task.map"``), and the gate of heads that
            have one (``"gate"``).
        half: an ONNX model half as large: products of matrices in float16; all else, inputs and
            outputs in float32.
        check: compare it with the eager model at batches and sizes it was not traced with, before
            it is written.

    Shape:
        (B, 3, H, W) float32 -> every task (B, dim); (B, dim, rows, cols) for dense and segmentation
        tasks and for maps.

    Raises:
        CheckpointError: if it cannot be exported or written, differs from the eager model, or a head
            with maps replaces ``natural`` or ``predict_maps`` and so shows other maps than those of
            its values; a file that was there stays.
        ConfigError: for an unknown format, a dtype that it does not take, or a ``path`` that is one
            of the head files.
        GridError: if the patch does not divide ``size``.
        ImportError: naming the extra, if onnx, onnxscript or onnxruntime is not installed.

    Examples:
        >>> import tempfile
        >>> from dinoneck import PatchMeanHead, Task, load_backbone
        >>> backbone = load_backbone("dinoneck_tiny", layers=[0])
        >>> head = PatchMeanHead(64, [Task("total", unit="g")])
        >>> file = Path(tempfile.mkdtemp()) / "model.pt2"
        >>> done = export_model(head, file, format="pt2", backbone=backbone)
        >>> done.outputs, done.size, done.parity.largest < 1e-4
        (('total',), None, True)
    """
    checkpoints = _checkpoints(heads, path, format, backbone)
    _warn_of_tiles(checkpoints)
    model = ImagesModel(Predictor(checkpoints, backbone, "none", tile=None), maps, size)
    asked_grid = None
    if size is not None:
        asked_grid = TokenGrid(model.patch_size).size(size)
    return _export(
        model,
        path,
        form=format,
        checkpoints=checkpoints,
        asked_grid=asked_grid,
        half=half,
        check=check,
    )


def export_head(
    head: HeadSource,
    path: str | os.PathLike[str],
    *,
    format: Format = "onnx",  # noqa: A002
    backbone: Backbone | None = None,
    grid: tuple[int, int] | None = None,
    half: bool = False,
    check: bool = True,
) -> Exported:
    """Write a head alone as a model that takes tokens and gives every task in original units.

    An ONNX model takes ``tokens_0``, ... (batch, prefix + rows * cols, width), one per layer, and
    the integers ``rows`` and ``cols`` where the grid is free. A program takes
    :class:`dinoneck.Tokens`, so dinoneck must be imported.

    Args:
        head: a head file, a hub repository, a HeadCheckpoint or a module.
        path: the file; whole or not at all.
        format: ``"onnx"``, or ``"pt2"``: a ``torch.export`` program, which holds no pickle.
        backbone: the backbone of a module; the others have its record.
        grid: (rows, cols) in patches, the only one that the model takes. None = free where
            possible, else that of the head's own images, with a warning.
        half: as for :func:`export_model`; the tokens stay float32.
        check: compare it with the eager head at batches and grids it was not traced with, before it
            is written.

    Raises:
        CheckpointError: if the head has no tasks or no record of its backbone, cannot be exported
            or written, needs a ``grid``, or the result differs from it; a file that was there
            stays.
        ConfigError: for an unknown format, a dtype that it does not take, several heads, or a
            ``path`` that is one of the head files.
        ImportError: naming the extra, if onnx, onnxscript or onnxruntime is not installed.
    """
    checkpoints = _checkpoints(head, path, format, backbone)
    if len(checkpoints) != 1:
        raise ConfigError(
            f"{head} holds {len(checkpoints)} heads; export one of them, or save them as one "
            "HeadEnsemble"
        )
    asked_grid = None
    if grid is not None:
        asked_grid = GridSize(*grid)
    return _export(
        TokensModel(checkpoints[0]),
        path,
        form=format,
        checkpoints=checkpoints,
        asked_grid=asked_grid,
        half=half,
        check=check,
    )


def _checkpoints(
    heads: HeadSource | Sequence[HeadSource],
    path: str | os.PathLike[str],
    form: str,
    backbone: Backbone | None,
) -> list[HeadCheckpoint]:
    """Read the files of the heads, or make those that modules would have; check format and path first."""
    formats = get_args(Format)
    if form not in formats:
        raise ConfigError(
            f"format is {form!r}; expected {' or '.join(formats)}.{did_you_mean(form, formats)}"
        )
    check_path(path)
    _check_not_replaced(heads, Path(path))
    checkpoints = []
    for source in open_heads(heads)[NO_KEY]:
        if isinstance(source, HeadCheckpoint):
            checkpoint = source
        else:
            checkpoint = HeadCheckpoint.from_module(
                source,
                backbone=backbone,
                # only the record goes into the export
                backbone_weights=changed_weights(backbone),
                preprocess=None if backbone is None else backbone.preprocess,
            )
        checkpoints.append(checkpoint)
    return checkpoints


def _warn_of_tiles(checkpoints: Sequence[HeadCheckpoint]) -> None:
    """Name the tiles of a training, which the model does not cut images into."""
    for checkpoint in checkpoints:
        boxes = TrainedBoxes.from_record(checkpoint.meta["training"])
        if boxes is not None and boxes.tile is not None:
            height, width = boxes.tile
            warnings.warn(
                f"the head was trained on tiles of {height}x{width} px (height x width), and the "
                "exported model takes whole images: cut large ones before it",
                stacklevel=3,
            )


def _check_not_replaced(heads: HeadSource | Sequence[HeadSource], path: Path) -> None:
    """Raise a ConfigError if the file to write is one of the head files that are read."""
    sources = [heads] if isinstance(heads, str) or not isinstance(heads, Sequence) else heads
    for source in sources:
        if not isinstance(source, str | os.PathLike) or not path.is_file():
            continue
        files = [Path(source)]
        if Path(source).is_dir():
            files = list(Path(source).rglob("*.safetensors"))
        if any(file.is_file() and path.samefile(file) for file in files):
            raise ConfigError(
                f"{path} belongs to the heads that are exported and would be replaced; choose "
                "another name"
            )


def _check_dtypes(model: Model, form: Format, half: bool) -> None:
    """Raise a ConfigError if a model of these dtypes is not written in this format."""
    if half and form != "onnx":
        raise ConfigError(
            f"half is True, and format is {form!r}; half is of ONNX models: leave it out"
        )
    if form == "onnx" and model.backbone_dtype == torch.bfloat16:
        raise ConfigError(
            "the backbone computes in bfloat16, which ONNX Runtime does not on a CPU: load it with "
            "dtype=torch.float32 (--precision float32), or take format='pt2' (--format pt2)"
        )
    if form == "onnx" and model.head_dtype == torch.bfloat16:
        raise ConfigError(
            "the head computes in bfloat16, which ONNX Runtime does not on a CPU: save it as "
            "head.float(), or take format='pt2' (--format pt2)"
        )
    if half and model.backbone_dtype not in (None, torch.float32):
        raise ConfigError(
            f"half is True, and the backbone computes in {dtype_name(model.backbone_dtype)}; expected "
            "float32, of which half of the weights' bytes are left: leave half out"
        )
    if half and model.head_dtype != torch.float32:
        raise ConfigError(
            f"half is True, and the head computes in {dtype_name(model.head_dtype)}; expected "
            "float32, of which half of the weights' bytes are left: leave half out"
        )


def _export(
    model: Model,
    path: str | os.PathLike[str],
    *,
    form: Format,
    checkpoints: list[HeadCheckpoint],
    asked_grid: GridSize | None,
    half: bool,
    check: bool,
) -> Exported:
    """Trace, compare, describe, write."""
    _check_dtypes(model, form, half)

    # trace and compare
    with warnings.catch_warnings(), evaluating(model):
        # of the exporters, about themselves
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        traced = program.trace(model, asked_grid)
        onnx = onnx_file.onnx_model(traced, model) if form == "onnx" else None
        if half:
            onnx_file.to_half(onnx)
        parity = None
        if check:
            parity = _check_parity(model, traced, onnx, half)

    # describe
    metas = [checkpoint.meta for checkpoint in checkpoints]
    recorded = _recorded_views(metas)
    record = ModelRecord(
        format=FORMAT,
        input=_describe_input(model, traced),
        preprocess=None if model.recipe is None else model.recipe.record(),
        outputs=[_output(name, output) for name, output in traced.outputs.items()],
        tasks=tuple(_record_task(task) for task in _tasks_of_image_alone(model)),
        parity=None if parity is None else parity._asdict(),
        made_with=_versions(form),
        half=half,
        views=ViewsRecord(exported="none", recorded=recorded),
        digests=[meta["digest"] for meta in metas],
        resamples_queries=_resamples_queries(model.heads),
    )
    description = to_entry(record)
    records = canonical(metas[0] if len(metas) == 1 else metas).decode("utf-8")
    texts = {METADATA_KEY: records, MODEL_KEY: spelling(description)}

    # write
    try:
        if onnx is None:
            _write_program(path, traced, texts)
            files = [Path(path)]
        else:
            files = onnx_file.write_onnx(Path(path), onnx, texts)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be written: {reason_of(error)}", step="write"
        ) from error

    if traced.grid is not None and traced.reason is not None:
        warnings.warn(
            f"this model takes {program.size_text(model, traced.grid)} only: {traced.reason}. "
            f"For another give {model.remedy}",
            stacklevel=3,
        )
    if recorded:
        warnings.warn(
            f"this model predicts one view; its heads record {', '.join(recorded)}, which "
            "Predictor averages. Predictor(..., tta='none') gives the numbers of this model",
            stacklevel=3,
        )
    return Exported(tuple(files), description, parity, traced.reason)


def _check_parity(model: Model, traced: Traced, onnx: Any, half: bool) -> program.Parity:
    """Compare the ONNX model, or without one the program, with the eager model."""
    if onnx is None:
        return program.check_parity(model, traced, traced.program.module(), half)
    with onnx_file.onnx_runner(onnx, model.onnx_values) as run:
        return program.check_parity(model, traced, run, half)


def _recorded_views(metas: list[dict[str, Any]]) -> list[str]:
    """The views that the heads were meant to be averaged over, sorted, without "none"."""
    views = set()
    for meta in metas:
        if meta["tta"]:
            views.add(meta["tta"]["ops"])
    return sorted(views - {"none"})


def _write_program(path: str | os.PathLike[str], traced: Traced, texts: dict[str, str]) -> None:
    buffer = io.BytesIO()  # without example inputs, so without a pickle
    torch.export.save(traced.program, buffer, extra_files=texts)
    # released even where the write fails: Python 3.13 complains otherwise
    with buffer.getbuffer() as content:
        write_whole(path, [content])


def _describe_input(model: Model, traced: Traced) -> dict[str, Any]:
    """What a file takes."""
    inputs = model.describe(onnx_file.input_names(model, traced))
    inputs["batch"] = "free"
    inputs["patch_size"] = list(model.patch_size)
    if traced.grid is None:
        inputs["size"] = None
        inputs["smallest"] = model.size_of(GridSize(traced.smallest, traced.smallest))
    else:
        inputs["size"] = model.size_of(traced.grid)
        inputs["smallest"] = None
    return inputs


def _resamples_queries(heads: Any) -> bool:
    """Whether heads make the maps of an image of other outputs than their maps per patch."""
    return isinstance(heads, HeadEnsemble) and heads.resamples_raw_outputs()


def _versions(form: Format) -> dict[str, str]:
    """The packages that made a file -> their versions."""
    packages = ["torch", "timm"]
    if form == "onnx":
        packages += ["onnx", "onnxscript"]
    made_with = {"dinoneck": __version__}
    for name in packages:
        made_with[name] = metadata.version(name)
    return made_with


def _tasks_of_image_alone(model: Model) -> list[Task]:
    """The tasks of a model, without intervals that were measured with several views."""
    tasks = []
    without_intervals = []
    for task in model.heads.predicted:
        if has_intervals_of_other_views(task, NO_VIEWS):
            without_intervals.append(repr(task.name))
        tasks.append(without_intervals_of_other_views(task, NO_VIEWS))
    if without_intervals:
        warnings.warn(
            f"the intervals of {', '.join(without_intervals)} are of predictions from several views, "
            "and the exported model predicts one: it has no intervals of them",
            stacklevel=4,
        )
    return tasks


def _record_task(task: Task) -> TaskRecord:
    """What a file states of a task, or of a composition."""
    composition = task.parts_of if isinstance(task, Composed) else None
    if composition is None:
        return record_task(task)
    if composition.adds_tasks:
        return record_task(task, composed_of=composition.parts)
    return record_task(task, composed_of=(composition.total, composition.ratio))


def _output(name: str, output: TracedOutput) -> OutputRecord:
    """The record of an output."""
    shape: list[int | str] = ["batch", *output.shape]
    if len(output.shape) == 3:  # (channels, rows, cols), which follow from the image
        shape[-2:] = ["rows", "cols"]
    task = output.task
    if task is None:
        return OutputRecord(
            name=name,
            shape=shape,
            task=None,
            of=output.content,
            kind=None,
            aggregate=None,
            unit="",
            labels=(),
        )
    return OutputRecord(
        name=name,
        shape=shape,
        task=task.name,
        of=output.content,
        kind=task.kind,
        aggregate=task.aggregate if task.kind == "density" else None,
        unit=task.unit,
        labels=task.labels,
        activation="unit" if task.is_unit else None,
    )
