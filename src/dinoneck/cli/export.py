"""``dinoneck export``: a head, or backbone and head as one model, for programs without dinoneck."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from dinoneck.cli import detect
from dinoneck.cli.arguments import HeadBackbone, check_output
from dinoneck.cli.text import file_size
from dinoneck.errors import ConfigError
from dinoneck.training.config_flags import SIZE

if TYPE_CHECKING:
    from dinoneck.export import Exported


def export(
    file: Annotated[str, Positional],
    format: Literal["onnx", "pt2", "state-dict", "torch"],
    out: Path,
    revision: str | None = None,
    grid: Annotated[tuple[int, int] | None, SIZE, arg(metavar="ROWSxCOLS")] = None,
    check: bool = True,
    with_backbone: bool = False,
    size: Annotated[tuple[int, int] | None, SIZE] = None,
    maps: bool = False,
    backbone: Annotated[HeadBackbone, arg(name="")] = HeadBackbone(),
) -> dict[str, Any]:
    """Write a head, or backbone and head as one model, as ONNX model, torch program or plain weights.

    A whole model takes RGB images in 0 ... 1 and gives predictions in original units.

    Example: dinoneck export head.safetensors --with-backbone --format onnx --out model.onnx

    Args:
        file: a head file, the folder of an ensemble, or a Hub repository (user/name).
        format: onnx, or pt2 (a torch.export program; torch is its earlier name), both with the metadata inside;
            state-dict is the weights of the head alone.
        out: the file to write.
        revision: a branch, tag or commit of the Hub repository (default: main).
        grid: without backbone: the one grid that the head takes (default: any where the head allows, else its own).
        check: compare it with the eager model before it is written (--no-check: do not).
        with_backbone: export both; else the head alone, which takes tokens.
        size: with backbone: the one image size it takes, in pixels (default: any multiples of the patch where the
            backbone allows, else the size of the head).
        maps: with backbone: also give the predictions of every patch, where the head has maps.
        backbone: with backbone: where its weights come from.
    """
    own = {"--backbone-file": backbone.backbone_file, "--random-backbone": backbone.random_backbone}
    _check_options(format, grid, with_backbone, {"--size": size, "--maps": maps, **own})
    check_output(out, [file, backbone.backbone_file])
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.export import export_head, export_model, export_state_dict

    head = HeadCheckpoint.load(file, revision=revision)
    if head.head_type == "detector":
        if format != "onnx" or grid is not None or maps:
            raise ConfigError("a detector is exported with its backbone: --format onnx, without --grid and --maps")
        return detect.export(head, out, backbone, size, check)
    kind: Any = "pt2" if format == "torch" else format
    document: dict[str, Any] = {"files": [out], "format": kind, "with_backbone": with_backbone}
    if not with_backbone:
        if format == "state-dict":
            export_state_dict(head, out)
        else:
            document["files"] = list(export_head(head, out, format=kind, grid=grid, check=check).files)
        print(f"{head.head_type} written: {', '.join(map(str, document['files']))}")
        return document
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="this model takes .* only")  # printed below
        done = export_model(head, out, format=kind, backbone=backbone.given(head), size=size, maps=maps, check=check)
    print("\n".join(_lines(done)))
    described = {"fixed_because": done.fixed_because, "description": done.description}
    return {**document, "files": list(done.files), **described}


def _check_options(
    format: str, grid: tuple[int, int] | None, with_backbone: bool, of_whole_models: dict[str, Any]
) -> None:
    """Refuse options that have no meaning together."""
    given = [flag for flag, value in of_whole_models.items() if value]
    if given and not with_backbone:
        raise ConfigError(f"{given[0]} is for models with their backbone: add --with-backbone, or leave it out")
    if format == "state-dict" and (with_backbone or grid is not None):
        raise ConfigError("--format state-dict is for the weights of the head; leave --with-backbone and --grid out")
    if with_backbone and grid is not None:
        raise ConfigError("--grid is for heads without backbone; give --size HEIGHTxWIDTH in pixels")


def _lines(done: Exported) -> list[str]:
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
    shapes = ", ".join("x".join(map(str, shape)) for shape in done.parity.tried)
    return [
        *lines,
        f"{'check':<8} differs from the eager model by at most {done.parity.largest:.1e} of the largest value, "
        f"{done.parity.tolerance:g} is allowed; tried at batch x height x width {shapes}",
    ]


def _size(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
