"""``dinoneck viz tokens``, ``gate`` and ``residuals``: one figure each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from dinoneck.cli.arguments import HeadBackbone, Images, Views, check_output, list_images
from dinoneck.cli.text import say
from dinoneck.cli.train_text import describe_many
from dinoneck.cli.viz_report import opened_predictor
from dinoneck.errors import ConfigError, DataError, counted, did_you_mean, printable
from dinoneck.training.config import BackboneConfig
from dinoneck.training.config_flags import SIZE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = (".png", ".svg", ".pdf")
_DPI = 120
_MOST = 48
_AT_ONCE = 4


def tokens(
    images: Images,
    out: Path,
    backbone: Annotated[BackboneConfig, arg(name="")] = BackboneConfig(),
    size: Annotated[tuple[int, int] | None, SIZE] = None,
    foreground: float | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Draw images next to their tokens: the three main directions as red, green and blue.

    Example: dinoneck viz tokens images/ --backbone dinoneck_tiny --out tokens.png

    Args:
        images: images, or folders, which are searched with their subfolders.
        out: the picture to write (.png, .svg, .pdf).
        backbone: the model; --layers names the one block whose tokens are drawn (default: the last).
        size: resize images to it (default: their own size).
        foreground: leave the background black: 0.5 for a start.
        device: such as cpu or cuda:1 (default: a GPU if there is one).
    """
    import torch

    from dinoneck.tokens import Tokens
    from dinoneck.training.inputs import open_backbone
    from dinoneck.viz.pca_pictures import pca_figure

    files = _listed(images, out, images)
    model = open_backbone(backbone, device)
    recipe = model.preprocess.changed(size=size, policy="crop")
    prepared = recipe.prepare(files)
    print("".join(f"{line}\n" for line in describe_many(recipe, prepared.grid)), end="", flush=True)
    place, batches = next(model.parameters()).device, torch.split(prepared.images, _AT_ONCE)
    with torch.no_grad():
        parts = [model(batch.to(place)).to("cpu", torch.float32) for batch in batches]
    pictures = [recipe.picture(file) for file in files]
    whole, kept = recipe.fitted(files[0]).shape[-2:], pictures[0].shape[-2:]
    if whole != kept:
        change = f"{whole[0]}x{whole[1]} px are cropped to {kept[0]}x{kept[1]}"
        say(f"{files[0]}: {change}, as the patch does not divide them (--size HxW resizes images).")
    figure = pca_figure(pictures, Tokens.cat(parts), foreground=foreground, names=_names(files))
    return _write(out, figure, len(files))


def gate(
    head: Annotated[str, Positional],
    images: Images,
    out: Path,
    views: Annotated[Views, arg(name="")] = Views(),
    backbone: Annotated[HeadBackbone, arg(name="")] = HeadBackbone(),
) -> dict[str, Any]:
    """Draw images next to the gate of a head: the weight of each patch.

    Example: dinoneck viz gate head.safetensors images/ --out gate.png

    Args:
        head: a head file, a folder of them or of an ensemble, or a Hub repository.
        images: images, or folders, which are searched with their subfolders.
        out: the picture to write (.png, .svg, .pdf).
        views: how the images are predicted.
        backbone: where the weights come from.
    """
    from dinoneck.viz.gate_maps import gate_figure

    files = _listed(images, out, [head, *images])
    predictor, _ = opened_predictor(head, views, backbone)
    results = predictor(files, maps=True)
    if "gate" not in results[0]:
        raise ConfigError(f"{head} has no gate; heads of type 'cls_gating' do (see 'dinoneck inspect')")
    pictures = [predictor.picture(file) for file in files]
    return _write(out, gate_figure(pictures, [r["gate"] for r in results], names=_names(files)), len(files))


def residuals(
    table: Annotated[Path, Positional, arg(metavar="CSV")],
    out: Path,
    target: str | None = None,
    method: str = "head",
    unit: str = "",
    by_fold: bool = False,
) -> dict[str, Any]:
    """Draw held-out predictions of 'dinoneck train' against the known values, and their differences.

    Example: dinoneck viz residuals run/out_of_fold.csv --target GDM_g --out residuals.png

    Args:
        table: out_of_fold.csv of a run.
        out: the picture to write (.png, .svg, .pdf).
        target: which target (needed where there are several).
        method: whose predictions: head, or a baseline of the run.
        unit: of the values, for the axes.
        by_fold: draw the residuals of every fold below.
    """
    from dinoneck.viz.residuals import residual_figure

    check_output(out, [table], _FORMATS)
    name, known, predictions, folds = _held_out(table, target, method)
    groups = [f"fold {fold}" for fold in folds] if by_fold else None
    return _write(out, residual_figure(known, predictions, groups=groups, unit=unit, name=name), len(known))


def _listed(images: Sequence[Path], out: Path, inputs: Sequence[str | Path]) -> list[Path]:
    """The images of a figure, once the output can be written."""
    files = list_images(images)
    check_output(out, [*inputs, *files], _FORMATS)
    if len(files) > _MOST:
        raise DataError(f"{len(files)} images; one figure takes {_MOST} at most. Name fewer, such as images/*1.jpg")
    return files


def _names(files: Sequence[Path]) -> list[str]:
    """The names to write next to images; bytes that are not Unicode text, and line breaks, are escaped."""
    return [printable(file.name) for file in files]


def _write(out: Path, figure: Figure, count: int) -> dict[str, Any]:
    from dinoneck.atomic import write_whole

    buffer = io.BytesIO()
    figure.savefig(buffer, format=out.suffix[1:].lower(), dpi=_DPI)
    write_whole(out, buffer.getvalue())
    print(f"{counted(count, 'image')} drawn; written: {out}")
    return {"written": [out], "photos": count}


def _held_out(table: Path, target: str | None, method: str) -> tuple[str, list[float], list[float], list[str]]:
    """A target's name, known values, predictions of a method and folds, from what a training run wrote."""
    from dinoneck.data.tables import csv_header, csv_rows

    header = csv_header(table)
    names = [name for name in header if f"{name} ({method})" in header]
    if not names:
        raise DataError(
            f"{table} has no pair of columns NAME and 'NAME ({method})'; give out_of_fold.csv of a training run, and "
            f"one of its methods. It has: {', '.join(header)}"
        )
    if target is None and len(names) > 1:
        raise ConfigError(f"{table} holds {', '.join(names)}; choose one with --target")
    name = names[0] if target is None else target
    if name not in names:
        raise ConfigError(f"{table} has no target {name!r}.{did_you_mean(name, names)} It has: {', '.join(names)}")
    said = f"{name} ({method})"
    rows = csv_rows(table, (name, said, "fold"))
    try:
        return name, [float(row[name]) for row in rows], [float(row[said]) for row in rows], [r["fold"] for r in rows]
    except ValueError as error:
        raise DataError(f"{table}: {error} in the columns of {name!r}") from error
