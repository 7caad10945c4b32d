"""``torch.export`` programs, ONNX models and plain weights of a head, or of backbone and heads."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast, get_args

import safetensors.torch
import torch
from torch import nn

from dinoneck.atomic import write_whole
from dinoneck.backbones.adapter import evaluating
from dinoneck.backbones.backbone import Backbone
from dinoneck.checkpoint.format import METADATA_KEY, canonical, check_path
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import CheckpointError, ConfigError, did_you_mean
from dinoneck.export import onnx_file, program
from dinoneck.export.models import ImagesModel, Model, TokensModel
from dinoneck.export.program import Traced
from dinoneck.grid import GridSize, TokenGrid
from dinoneck.inference.predictor import Predictor
from dinoneck.inference.sources import HeadSource, opened
from dinoneck.tasks import GATE, MAP
from dinoneck.version import __version__

Format = Literal["onnx", "pt2"]
EXPORT_KEY, EXPORT_FORMAT = "dinoneck_export", 1


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
    preprocess: Preprocessing | None = None,
    revision: str | None = None,
) -> Exported:
    """Write backbone and heads as one model that takes images and runs without dinoneck.

    The model takes RGB values in 0 ... 1 and normalises them itself. The metadata inside the file describe how images
    are prepared (size, resize mode, interpolation), and the names, units and labels of the outputs. The batch is free,
    and so are height and width where backbone and heads allow. LoRA weights of the heads are merged into the weights.
    Tiles and views (``tta``) are not part of it; a warning names the views that the heads record.

    Args:
        heads: as for :class:`dinoneck.Predictor`: one or several, which share the backbone; those that predict the same
            task are averaged.
        path: the file; whole or not at all.
        format: ``"onnx"``, or ``"pt2"``: a ``torch.export`` program, which holds no pickle.
        backbone: the backbone; None rebuilds it from the record in the files. It is checked against them.
        size: (height, width) in pixels, multiples of the patch: the only one that the model takes, and the one that
            images are prepared to. None = free where possible, else the heads' own, with a warning.
        maps: also give the predictions of every patch (``"task.map"``), and the gate of heads that have one
            (``"gate"``).
        half: an ONNX model half as large: products of matrices in float16; all else, inputs and outputs in float32.
        check: compare it with the eager model at batches and sizes it was not traced with, before it is written.
        preprocess: how images are prepared, instead of what the files state.
        revision: branch, tag or commit of the hub repositories among the heads.

    Shape:
        (B, 3, H, W) float32 -> every task (B, dim); (B, dim, rows, cols) for dense and segmentation tasks and for maps.

    Raises:
        CheckpointError: if it cannot be exported or written, or differs from the eager model; a file that was there
            stays.
        ConfigError: for an unknown format, or a file of the heads' own.
        GridError: if the patch does not divide ``size``.
        ImportError: naming the extra, if onnx, onnxscript or onnxruntime is not installed.

    Examples:
        >>> import tempfile
        >>> from dinoneck import PatchMeanHead, Task, load_backbone
        >>> backbone, head = load_backbone("dinoneck_tiny", layers=[0]), PatchMeanHead(64, [Task("total", unit="g")])
        >>> done = export_model(head, Path(tempfile.mkdtemp()) / "model.pt2", format="pt2", backbone=backbone)
        >>> done.outputs, done.size, done.parity.largest < 1e-4
        (('total',), None, True)
    """
    sources = _sources(heads, path, format, revision)
    predictor = Predictor(sources, backbone, "none", preprocess=preprocess)
    model = ImagesModel(predictor, maps, size)
    metas = [_checkpoint(source, predictor.backbone, predictor.preprocess).meta for source in sources]
    return _written(model, path, format, metas, size and TokenGrid(model.patch).size(size), half, check)


def export_head(
    head: HeadSource,
    path: str | os.PathLike[str],
    *,
    format: Format = "onnx",  # noqa: A002
    backbone: Backbone | None = None,
    grid: tuple[int, int] | None = None,
    half: bool = False,
    check: bool = True,
    revision: str | None = None,
) -> Exported:
    """Write a head alone as a model that takes tokens and gives every task in original units.

    An ONNX model takes ``tokens_0``, ... (batch, prefix + rows * cols, width), one per layer, and the integers ``rows``
    and ``cols`` where the grid is free. A program takes :class:`dinoneck.Tokens`, so dinoneck must be imported.

    Args:
        head: a head file, a hub repository, a HeadCheckpoint or a module.
        path: the file; whole or not at all.
        format: ``"onnx"``, or ``"pt2"``: a ``torch.export`` program, which holds no pickle.
        backbone: the backbone of a module; the others have its record.
        grid: (rows, cols) in patches, the only one that the model takes. None = free where possible, else that of the
            head's own images, with a warning.
        half: as for :func:`export_model`; the tokens stay float32.
        check: compare it with the eager head at batches and grids it was not traced with, before it is written.
        revision: branch, tag or commit of a hub repository.

    Raises:
        CheckpointError: if the head has no tasks or no record of its backbone, cannot be exported or written, needs a
            ``grid``, or the result differs from it; a file that was there stays.
        ConfigError: for an unknown format, several heads, or a file of the head's own.
        ImportError: naming the extra, if onnx, onnxscript or onnxruntime is not installed.
    """
    sources = _sources(head, path, format, revision)
    if len(sources) != 1:
        raise ConfigError(f"{head} holds {len(sources)} heads; export one of them, or save them as one HeadEnsemble")
    checkpoint = _checkpoint(sources[0], backbone)
    asked = None if grid is None else GridSize(*grid)
    return _written(TokensModel(checkpoint), path, format, [checkpoint.meta], asked, half, check)


def export_state_dict(checkpoint: HeadCheckpoint, path: str | os.PathLike[str]) -> None:
    """Write the head's weights alone as a plain ``.safetensors`` file, for ``module.load_state_dict`` anywhere.

    Everything else is lost: configuration, backbone, units, digest.

    Args:
        checkpoint: the head.
        path: the file.

    Raises:
        CheckpointError: if LoRA weights would be lost, or the file cannot be written.
    """
    if checkpoint.adapter_state:
        raise CheckpointError(
            "LoRA weights of the backbone travel with this head and have no place among its own; save it with "
            "HeadCheckpoint.save",
            step="write",
        )
    check_path(path)
    try:
        write_whole(path, safetensors.torch.save(dict(checkpoint.state_dict)))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}", step="write") from error


def _sources(
    heads: HeadSource | Sequence[HeadSource], path: str | os.PathLike[str], form: str, revision: str | None
) -> list[HeadCheckpoint | nn.Module]:
    """Open the heads; refuse an unknown format, and a file that heads are read from: nothing else holds them."""
    if form not in (known := get_args(Format)):
        raise ConfigError(f"format is {form!r}; expected {' or '.join(known)}.{did_you_mean(form, known)}")
    check_path(path)
    read, target = opened(heads, revision)[""], Path(path)
    for place in [Path(one.source) for one in read if isinstance(one, HeadCheckpoint)]:
        if place.is_file() and target.exists() and target.samefile(place):
            raise ConfigError(f"{path} belongs to the heads that are exported and would be replaced; choose another")
    return read


def _checkpoint(
    source: HeadSource, backbone: Backbone | None, preprocess: Preprocessing | None = None
) -> HeadCheckpoint:
    """A head's file, or the file that a module would have."""
    if isinstance(source, HeadCheckpoint):
        return source
    return HeadCheckpoint.from_module(cast("nn.Module", source), backbone=backbone, preprocess=preprocess)


def _written(
    model: Model,
    path: str | os.PathLike[str],
    form: Format,
    metas: list[dict[str, Any]],
    asked: GridSize | None,
    half: bool,
    check: bool,
) -> Exported:
    """Trace, compare, describe, write."""
    if half and (form != "onnx" or model.dtypes != {torch.float32}):
        raise ConfigError(
            f"half=True is for ONNX models of float32 weights; the format is {form!r} and the weights are "
            f"{', '.join(sorted(map(str, model.dtypes)))}. Take format='onnx' and a float32 backbone and head"
        )
    if form == "onnx" and torch.bfloat16 in model.dtypes:
        raise CheckpointError(
            "the backbone or a head computes in bfloat16, which ONNX Runtime does not on a CPU: load the backbone with "
            "dtype=torch.float32 and pass backbone=, save the head as head.float(), or take format='pt2'",
            step="config",
        )
    with warnings.catch_warnings(), evaluating(model):
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the exporters, about themselves
        warnings.filterwarnings("ignore", category=FutureWarning)
        traced = program.trace(model.merged(), asked)
        onnx = onnx_file.onnx_model(traced, model) if form == "onnx" else None
        if half:
            onnx_file.to_half(onnx)
        runner = nullcontext(traced.program.module()) if onnx is None else onnx_file.onnx_runner(onnx, model)
        with runner if check else nullcontext() as run:
            measured = None if run is None else program.check_parity(model, traced, run, half)
    recorded = sorted({meta["tta"]["ops"] for meta in metas if meta["tta"] is not None} - {"none"})
    about = _description(model, traced, measured, form)
    about |= {"half": half, "views": {"exported": "none", "recorded": recorded}}
    records = canonical(metas[0] if len(metas) == 1 else metas).decode("utf-8")
    texts = {METADATA_KEY: records, EXPORT_KEY: json.dumps(about, sort_keys=True)}
    files = [Path(path)]
    try:
        if onnx is None:
            write_whole(path, [program.content(traced.program, texts)])
        else:
            files = onnx_file.write_onnx(Path(path), onnx, texts)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}", step="write") from error
    if traced.grid is not None and traced.reason is not None:
        only = f"this model takes {program.size_text(model, traced.grid)} only: {traced.reason}"
        warnings.warn(f"{only}. For another give {model.remedy}", stacklevel=3)
    if recorded:
        warnings.warn(
            f"this model predicts one view; its heads record {', '.join(recorded)}, which Predictor averages. "
            "Predictor(..., tta='none') gives the numbers of this model",
            stacklevel=3,
        )
    return Exported(tuple(files), about, measured, traced.reason)


def _description(model: Model, traced: Traced, measured: program.Parity | None, form: Format) -> dict[str, Any]:
    """The JSON-able record of a file, with which it runs without dinoneck."""
    smallest = GridSize(traced.smallest, traced.smallest)
    packages = ("torch", "timm", *(("onnx", "onnxscript") if form == "onnx" else ()))
    size = None if traced.grid is None else model.size_of(traced.grid)
    return {
        "format": EXPORT_FORMAT,
        "input": {
            **model.describe(onnx_file.input_names(model, traced)),
            "batch": "free",
            "patch_size": [*model.patch],
            "size": size,
            "smallest": model.size_of(smallest) if size is None else None,
        },
        "preprocess": None if model.recipe is None else model.recipe.record(),
        "outputs": [_output(name, shape, model) for name, shape in traced.outputs.items()],
        "parity": None if measured is None else measured._asdict(),
        "made_with": {"dinoneck": __version__, **{name: metadata.version(name) for name in packages}},
    }


def _output(name: str, shape: tuple[int, int], model: Model) -> dict[str, Any]:
    task = next((task for task in model.heads.predicted if task.name == name.removesuffix(MAP)), None)
    return {
        "name": name,
        "task": task and task.name,
        "of": "gate" if name == GATE else "map" if name.endswith(MAP) else "task",
        "kind": task and task.kind,
        "aggregate": task.aggregate if task is not None and task.kind == "density" else None,
        "unit": "" if task is None else task.unit,
        "labels": [] if task is None else list(task.labels),
        "shape": ["batch", shape[0], "rows", "cols"][: shape[1]],
    }
