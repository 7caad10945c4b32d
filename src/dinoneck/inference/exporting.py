"""Whole models for programs without dinoneck: pixels in, every task in natural units out, in one file."""

from __future__ import annotations

import io
import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import torch

from dinoneck.atomic import write_whole
from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.eval_mode import evaluating
from dinoneck.checkpoint.file import METADATA_KEY, canonical, check_path
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.data.photos import Preprocessing
from dinoneck.errors import CheckpointError, ConfigError, did_you_mean
from dinoneck.inference import export_parity, onnx_file
from dinoneck.inference.export_description import Format, described
from dinoneck.inference.predictor import Predictor
from dinoneck.inference.sources import HeadSource, listed, opened
from dinoneck.inference.whole_model import Traced, WholeModel, own_size, sides_of, traced

if TYPE_CHECKING:
    from dinoneck.inference.export_parity import Parity

EXPORT_KEY = "dinoneck_export"
_INPUTS = ("images", "pixels", "photo.pixels")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: the file, and for ONNX models above 2 GiB the one with their weights.
        format: ``onnx`` or ``pt2``.
        description: what the file says of itself under the key ``dinoneck_export``.
        parity: how far it is from the eager model; None if nobody asked.
        fixed_because: why it takes one size only, where none was asked for; else None.
    """

    files: tuple[Path, ...]
    format: Format
    description: dict[str, Any]
    parity: Parity | None
    fixed_because: str | None

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the images it takes; None if any multiples of the patch."""
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
    check: bool = True,
    preprocess: Preprocessing | None = None,
    revision: str | None = None,
) -> Exported:
    """Write backbone and heads as one model that runs without dinoneck.

    The model takes RGB values in 0 ... 1 and normalises them itself; how a photo comes to them (size, fit,
    interpolation) is told by the metadata inside the file, together with names, units and labels of the outputs. The
    batch is free, and so are height and width where backbone and heads allow. LoRA weights that travel with the heads
    are merged into the weights. Views (``tta``) and tiles are no part of it.

    Args:
        heads: as for :class:`dinoneck.Predictor`: one or several, which share the backbone; those that know a task are
            averaged.
        path: the file; whole or not at all.
        format: ``"onnx"``, or ``"pt2"``: a ``torch.export`` program, which holds no pickle.
        backbone: the backbone; None rebuilds it from the record in the files. It is checked against them.
        size: (height, width) in pixels, multiples of the patch: the only one that the model will take, and the one that
            photos are to be brought to. None = free where it can be, else the heads' own, with a warning.
        maps: also give what every patch says (``"task.map"``), and the gate of heads that have one
            (``"photo.gate"``).
        check: compare it with the eager model at batches and sizes it was not traced with, before it is written.
        preprocess: how photos are prepared, instead of what the files say.
        revision: branch, tag or commit of the hub repositories among the heads.

    Shape:
        (B, 3, H, W) float32 -> every task (B, dim); (B, dim, rows, cols) for dense and segmentation tasks and for maps.

    Raises:
        CheckpointError: if it cannot be exported or written, or differs from the eager model; an older file stays.
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
    _check_arguments(path, format)
    sources = opened(_kept(Path(path), listed(heads)), revision)
    predictor = Predictor(sources, backbone, preprocess=preprocess)
    done = _written(predictor, sources, path, format, size, maps, check)
    if done.size is not None and done.fixed_because is not None:
        told = f"{done.size[0]}x{done.size[1]} px only: {done.fixed_because}"
        warnings.warn(f"this model takes images of {told}. Another: size=(height, width) (--size)", stacklevel=2)
    return done


def _written(
    predictor: Predictor,
    sources: Sequence[HeadSource],
    path: str | os.PathLike[str],
    form: Format,
    size: tuple[int, int] | None,
    maps: bool,
    check: bool,
) -> Exported:
    """Trace, compare, describe, write."""
    own = size or own_size(predictor)
    model = WholeModel.of(predictor, maps)
    if form == "onnx" and torch.bfloat16 in model.dtypes:
        raise CheckpointError(
            "the backbone or a head computes in bfloat16, which ONNX Runtime does not on a CPU: load the backbone with "
            "dtype=torch.float32 and pass backbone=, save the head as head.float(), or take format='pt2'",
            step="config",
        )
    with warnings.catch_warnings(), evaluating(model.backbone, *model.heads):
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the exporters, about themselves
        warnings.filterwarnings("ignore", category=FutureWarning)
        found = traced(model.merged(), sides_of(predictor, size), own)
        making = _Onnx(found) if form == "onnx" else _Program(found)
        parity = making.check(model, own) if check else None
    description = described(predictor, found, making.image, size, parity, form)
    texts = {METADATA_KEY: _records(predictor, sources), EXPORT_KEY: json.dumps(description, sort_keys=True)}
    try:
        files = making.write(Path(path), texts)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}", step="write") from error
    return Exported(tuple(files), form, description, parity, found.sides.reason)


def _check_arguments(path: object, form: str) -> None:
    if form not in get_args(Format):
        known = get_args(Format)
        raise ConfigError(f"format is {form!r}; expected {' or '.join(known)}.{did_you_mean(form, known)}")
    check_path(path)


def _kept(path: Path, sources: list[HeadSource]) -> list[HeadSource]:
    """Return the sources; refuse a file that heads are read from: nothing else holds them."""
    for source in sources:
        if not isinstance(source, str | os.PathLike) or not path.is_file() or not Path(source).exists():
            continue
        ensemble = Path(source).is_dir() and Path(source).resolve() in path.resolve().parents
        if ensemble or path.samefile(source):
            raise ConfigError(f"{path} belongs to the heads that are exported and would be replaced; choose another")
    return sources


class _Onnx:
    """An ONNX model in the making."""

    def __init__(self, found: Traced) -> None:
        self.image, self.outputs, self.sides = _image_name(found.outputs), list(found.outputs), found.sides
        self.model = onnx_file.onnx_model(found.program, self.image, self.outputs, found.sides)

    def check(self, model: WholeModel, own: tuple[int, int] | None) -> Parity:
        """Compare it with the eager model."""
        try:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                run = onnx_file.onnx_runner(self.model, Path(folder), self.outputs)
                return export_parity.check(model, run, self.sides, own)
        except CheckpointError:
            raise
        except OSError as error:
            raise CheckpointError(
                f"the copy to check cannot be written: {error}. Let TMPDIR name a folder with room, or leave the check "
                "out: check=False (--no-check)",
                step="write",
            ) from error

    def write(self, path: Path, texts: Mapping[str, str]) -> list[Path]:
        """Write it with these texts inside; return the files."""
        return onnx_file.write_onnx(path, onnx_file.with_metadata(self.model, texts))


class _Program:
    """A ``torch.export`` program in the making."""

    def __init__(self, found: Traced) -> None:
        self.image, self.program, self.sides = _image_name(found.outputs), found.program, found.sides

    def check(self, model: WholeModel, own: tuple[int, int] | None) -> Parity:
        """Compare it with the eager model."""
        return export_parity.check(model, self.program.module(), self.sides, own)

    def write(self, path: Path, texts: Mapping[str, str]) -> list[Path]:
        """Write it with these texts inside; return the files."""
        buffer = io.BytesIO()
        torch.export.save(self.program, buffer, extra_files=dict(texts))
        write_whole(path, [buffer.getbuffer()])
        return [path]


def _image_name(outputs: Iterable[str]) -> str:
    return next(name for name in _INPUTS if name not in outputs)


def _records(predictor: Predictor, sources: Sequence[HeadSource]) -> str:
    """The metadata of the heads' files: one object, or a list of several."""
    found = []
    backbone, recipe = predictor.backbone, predictor.preprocess
    for source in sources:
        if isinstance(source, torch.nn.Module):
            source = HeadCheckpoint.from_module(source, backbone=backbone, preprocess=recipe)
        found.append(cast("HeadCheckpoint", source).meta)
    return canonical(found[0] if len(found) == 1 else found).decode("utf-8")
