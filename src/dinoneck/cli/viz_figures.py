"""``dinoneck viz tokens``, ``gate`` and ``residuals``: one figure each."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinoneck.cli import backbone_options, numbers
from dinoneck.cli.answers import add_json, answer
from dinoneck.cli.outputs import check_output
from dinoneck.cli.text import say
from dinoneck.cli.train_text import describe_many
from dinoneck.cli.viz_report import add_head_and_photos, opened_predictor
from dinoneck.errors import ConfigError, DataError, counted, did_you_mean, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FORMATS = (".png", ".svg", ".pdf")
_DPI = 120
_MOST = 48
_AT_ONCE = 4


class Tokens:
    """Photos beside their patches, whose three main directions are red, green and blue."""

    HELP = "draw photos beside their tokens: the three main directions as red, green and blue"
    EXAMPLE = "dinoneck viz tokens photos/ --backbone dinoneck_tiny --out tokens.png"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "photos", nargs="+", type=Path, metavar="PHOTOS", help="photos, or folders searched to the bottom"
        )
        backbone_options.add_backbone(parser)
        parser.add_argument("--layer", type=int, metavar="N", help="block whose tokens are drawn (default: the last)")
        parser.add_argument(
            "--size", type=backbone_options.size, metavar="HxW", help="bring photos to this size (default: their own)"
        )
        parser.add_argument(
            "--foreground", type=numbers.share, metavar="SHARE", help="leave the background black: 0.5 for a start"
        )
        parser.add_argument("--device", help="such as cuda; default: the CPU")
        _add_out(parser)

    @staticmethod
    def run(options: argparse.Namespace) -> int:
        """Draw."""
        import torch

        from dinoneck.devices import local_device
        from dinoneck.tokens import Tokens
        from dinoneck.viz.pca_pictures import pca_figure

        photos = _photos(options, options.photos)
        backbone = backbone_options.load(options, layers=None if options.layer is None else [options.layer])
        if options.device:
            backbone.to(local_device(options.device))
        recipe = backbone.preprocess.changed(size=options.size, policy="crop")
        prepared = recipe.prepare(photos)
        print("".join(f"{line}\n" for line in describe_many(recipe, prepared.grid)), end="", flush=True)
        device, images = next(backbone.parameters()).device, prepared.images
        batches = [images[i : i + _AT_ONCE] for i in range(0, len(images), _AT_ONCE)]
        with torch.no_grad():
            parts = [backbone(batch.to(device)).to("cpu", torch.float32) for batch in batches]
        tokens = Tokens.cat(parts)
        pictures = [recipe.picture(photo) for photo in photos]
        whole, kept = recipe.fitted(photos[0]).shape[-2:], pictures[0].shape[-2:]
        if whole != kept:
            told = f"{whole[0]}x{whole[1]} px are cropped to {kept[0]}x{kept[1]}"
            say(f"{photos[0]}: {told}, as the patch does not divide them (--size HxW brings photos to a size).")
        figure = pca_figure(pictures, tokens, foreground=options.foreground, names=_names(photos))
        return _write(options, figure, len(photos))


class Gate:
    """Photos beside what a gated head looked at."""

    HELP = "draw photos beside the gate of a head: how much each patch counts"
    EXAMPLE = "dinoneck viz gate head.safetensors photos/ --out gate.png"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add_head_and_photos(parser)
        _add_out(parser)

    @staticmethod
    def run(options: argparse.Namespace) -> int:
        """Draw."""
        from dinoneck.viz.gate_maps import gate_figure

        photos = _photos(options, [options.head, *options.photos])
        predictor, _ = opened_predictor(options)
        results = predictor(photos, maps=True)
        if "gate" not in results[0]:
            raise ConfigError(f"{options.head} has no gate; heads of type 'cls_gating' do (see 'dinoneck inspect')")
        pictures = [predictor.picture(photo) for photo in photos]
        gates = [result["gate"] for result in results]
        return _write(options, gate_figure(pictures, gates, names=_names(photos)), len(photos))


class Residuals:
    """Out-of-fold predictions of a training run against what was known."""

    HELP = "draw held-out predictions of 'dinoneck train' against the known values, and what they are off by"
    EXAMPLE = "dinoneck viz residuals run/out_of_fold.csv --target GDM_g --out residuals.png"

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("table", type=Path, metavar="CSV", help="out_of_fold.csv of a run")
        parser.add_argument("--target", metavar="NAME", help="which target (may be left out where there is one)")
        parser.add_argument(
            "--method",
            default="head",
            metavar="NAME",
            help="whose predictions: head (default), or a baseline of the run",
        )
        parser.add_argument("--unit", default="", help="of the values, for the axes")
        parser.add_argument("--by-fold", action="store_true", help="draw the residuals of every fold below")
        _add_out(parser)

    @staticmethod
    def run(options: argparse.Namespace) -> int:
        """Draw."""
        from dinoneck.viz.residuals import residual_figure

        check_output(options.out, [options.table], _FORMATS)
        name, known, said, folds = _held_out(options.table, options.target, options.method)
        groups = [f"fold {fold}" for fold in folds] if options.by_fold else None
        return _write(options, residual_figure(known, said, groups=groups, unit=options.unit, name=name), len(known))


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help=f"the picture to write ({', '.join(_FORMATS)})")
    add_json(parser)


def _photos(options: argparse.Namespace, inputs: Sequence[str | Path]) -> list[Path]:
    """The photos of a figure, once the output can be written."""
    from dinoneck.cli.predict import files_of

    photos = files_of(options.photos)
    check_output(options.out, [*inputs, *photos], _FORMATS)
    if len(photos) > _MOST:
        raise DataError(f"{len(photos)} photos; one figure takes {_MOST} at most. Name fewer, such as photos/*1.jpg")
    return photos


def _names(photos: Sequence[Path]) -> list[str]:
    """The names to write beside photos; bytes that are no Unicode text, and line breaks, are spelled out."""
    return [printable(photo.name) for photo in photos]


def _write(options: argparse.Namespace, figure: Figure, count: int) -> int:
    from dinoneck.atomic import write_whole

    buffer = io.BytesIO()
    figure.savefig(buffer, format=options.out.suffix[1:].lower(), dpi=_DPI)
    write_whole(options.out, buffer.getvalue())
    answer(options, written=[options.out], photos=count)
    print(f"{counted(count, 'photo')} drawn; written: {options.out}")
    return 0


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
