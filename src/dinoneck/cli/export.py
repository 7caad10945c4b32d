"""``dinoneck export``: a head, or backbone and head as one model, for programs without dinoneck."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.cli import backbone_options, detect
from dinoneck.cli.answers import add_json, answer
from dinoneck.cli.outputs import check_output
from dinoneck.cli.text import file_size
from dinoneck.errors import ConfigError

if TYPE_CHECKING:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.export import Exported

HELP = "write a head, or backbone and head as one model, as ONNX model, torch program or plain weights"
EXAMPLE = "dinoneck export head.safetensors --with-backbone --format onnx --out model.onnx"

_EARLIER = {"torch": "pt2"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("file", help="a head file, an ensemble's folder, or a hub repository (user/name)")
    parser.add_argument("--revision", help="a branch, tag or commit of the hub repository (default: main)")
    parser.add_argument(
        "--format",
        type=lambda name: _EARLIER.get(name, name),
        choices=("onnx", "pt2", "state-dict"),
        required=True,
        help="onnx, or pt2 (a torch.export program): original units out, with the metadata inside; state-dict: the "
        "head's weights alone",
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument(
        "--grid",
        type=backbone_options.size,
        metavar="ROWSxCOLS",
        help="without backbone: the one grid the head takes (default: any where the head allows, else its own)",
    )
    parser.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="compare it with the eager model, at sizes it was not traced with, before it is written (default: yes)",
    )
    add_json(parser)
    whole = parser.add_argument_group("backbone and head as one model: RGB in 0 ... 1 in, original units out")
    whole.add_argument(
        "--with-backbone", action="store_true", help="export both; else the head alone, which takes tokens"
    )
    whole.add_argument(
        "--size",
        type=backbone_options.size,
        metavar="HxW",
        help="the one size of images it takes, in pixels (default: any multiples of the patch where the backbone "
        "allows, else the head's own)",
    )
    whole.add_argument(
        "--maps", action="store_true", help="also give the predictions of every patch, where the head has maps"
    )
    backbone_options.add_rebuilt(parser)


def run(options: argparse.Namespace) -> int:
    """Export."""
    _check_options(options)
    check_output(options.out, [options.file, options.backbone_file])
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    found = HeadCheckpoint.load(options.file, revision=options.revision)
    if found.head_type == "detector":
        detect.export(options, found)
    elif options.with_backbone:
        _whole(options, found)
    else:
        _head(options, found)
    return 0


def _check_options(options: argparse.Namespace) -> None:
    """Refuse options that have no meaning together."""
    if not options.with_backbone:
        wrong = [
            name
            for name, given in (
                ("--size", options.size),
                ("--maps", options.maps),
                ("--backbone-file", options.backbone_file),
                ("--random-backbone", options.random_backbone),
                ("--device", options.device),
            )
            if given
        ]
        if wrong:
            raise ConfigError(f"{wrong[0]} is for models with their backbone: add --with-backbone, or leave it out")
        if options.format == "state-dict" and options.grid is not None:
            raise ConfigError("--grid has no meaning for plain weights; leave it out")
        return
    if options.format == "state-dict":
        raise ConfigError("--format state-dict is for the head's weights alone; leave --with-backbone out")
    if options.grid is not None:
        raise ConfigError("--grid is for heads without backbone; give --size HEIGHTxWIDTH in pixels")


def _head(options: argparse.Namespace, head: HeadCheckpoint) -> None:
    from dinoneck.export import export_head, export_state_dict

    files = [options.out]
    if options.format == "state-dict":
        export_state_dict(head, options.out)
    else:
        done = export_head(head, options.out, format=options.format, grid=options.grid, check=options.check)
        files = list(done.files)
    answer(options, files=files, format=options.format, with_backbone=False)
    print(f"{head.head_type} written: {', '.join(map(str, files))}")


def _whole(options: argparse.Namespace, found: HeadCheckpoint) -> None:
    from dinoneck.export import export_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="this model takes .* only")  # printed below
        done = export_model(
            found,
            options.out,
            format=options.format,
            backbone=backbone_options.rebuilt(options, found),
            size=options.size,
            maps=options.maps,
            check=options.check,
        )
    answer(
        options,
        files=list(done.files),
        format=options.format,
        with_backbone=True,
        fixed_because=done.fixed_because,
        description=done.description,
    )
    print("\n".join(_told(done)))


def _told(done: Exported) -> list[str]:
    size = file_size(sum(file.stat().st_size for file in done.files))
    lines = [f"{'written':<8} {', '.join(map(str, done.files))} ({size})"]
    taken: dict[str, Any] = done.description["input"]
    free = f"any multiples of {_size(taken['patch_size'])} px from {_size(taken['smallest'] or (0, 0))} on"
    size = free if done.size is None else f"{_size(done.size)} px only"
    lines.append(f"{'input':<8} {taken['name']}: RGB in 0 ... 1, (batch, 3, height, width), {size}")
    if done.fixed_because is not None:
        lines.append(f"{'':<8} the size is fixed, for {done.fixed_because} (--size HxW: another)")
    for output in done.description["outputs"]:
        unit = f" in {output['unit']}" if output["unit"] else ""
        lines.append(f"{'output':<8} {output['name']}: ({', '.join(map(str, output['shape']))}){unit}")
    if done.parity is None:
        return [*lines, f"{'check':<8} none (--no-check)"]
    lines.append(
        f"{'check':<8} differs from the eager model by at most {done.parity.largest:.1e} of the largest value, "
        f"{done.parity.tolerance:g} is allowed"
    )
    shapes = ", ".join("x".join(map(str, shape)) for shape in done.parity.tried)
    return [*lines, f"{'':<8} tried at batch x height x width {shapes}"]


def _size(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
