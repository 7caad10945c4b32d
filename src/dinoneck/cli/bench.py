"""``dinoneck bench``: how long a photo takes here, part by part."""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.cli import backbone_options, numbers, text
from dinoneck.cli.answers import add_json, answer
from dinoneck.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from dinoneck.backbones.backbone import Backbone
    from dinoneck.data.photos import Preprocessing
    from dinoneck.inference.timing import Pipeline, Timing

HELP = "time a head, or a backbone alone or with a neck, on this machine"
EXAMPLE = (
    "dinoneck bench head.safetensors --size 480x960 --batch-size 1 8\n"
    "         dinoneck bench --backbone dinoneck_tiny --random-backbone --size 480x960 --dtype fp32 bf16"
)
_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_LARGER = 2
_PARTS = ("prepare", "backbone", "head", "whole")
_ROUNDS = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.description = (
        f"{HELP}. Medians over {_ROUNDS} rounds (--rounds) are given, after one that does not count; every round runs "
        "each batch size and dtype once, in an order drawn anew. prepare is decoding, resizing and normalising; the "
        "photos are generated JPEGs unless --photo names one."
    )
    parser.add_argument("head", nargs="?", help="a head file, an ensemble's folder, or a hub repository (user/name)")
    parser.add_argument("--revision", help="a branch, tag or commit of the hub repository (default: main)")
    backbone_options.add_backbone(parser)
    parser.set_defaults(backbone_source=None)
    parser.add_argument("--layers", type=int, nargs="+", metavar="BLOCK", help="with --backbone: blocks to give tokens")
    parser.add_argument(
        "--neck", metavar="NAME", help="with --backbone: a registered neck on top, with its default values"
    )
    parser.add_argument(
        "--size", type=backbone_options.size, metavar="HxW", help="pixels that photos are brought to; default: a head's"
    )
    parser.add_argument(
        "--photo", type=Path, help=f"the photo to use; default: generated, {_LARGER} times as large a side as --size"
    )
    parser.add_argument(
        "--batch-size", type=numbers.count, nargs="+", default=[1], metavar="N", help="photos at once (default 1)"
    )
    parser.add_argument(
        "--dtype", choices=tuple(_DTYPES), nargs="+", default=["fp32"], help="of weights and tokens (default fp32)"
    )
    parser.add_argument(
        "--rounds", type=numbers.count, default=_ROUNDS, metavar="N", help=f"that count, 2 or more (default {_ROUNDS})"
    )
    parser.add_argument(
        "--threads", type=numbers.threads, metavar="N", help="of torch on the CPU (default: torch's own)"
    )
    parser.add_argument("--device", help="such as cuda; default: the CPU")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Load, time, and print a row per batch size and dtype."""
    import torch
    from tqdm import tqdm

    from dinoneck.devices import local_device
    from dinoneck.inference.timing import machine, peak_process_bytes, time_in_turn

    if options.rounds < 2:
        raise ConfigError(f"--rounds is {options.rounds}; expected 2 or more, for there to be a median")
    if options.threads:
        torch.set_num_threads(options.threads)
    device = local_device(options.device or "cpu")
    backbone, head, preprocess = _of_head(options) if options.head else _of_backbone(options)
    with tempfile.TemporaryDirectory() as folder:
        photo, told = _photo(options, preprocess, Path(folder))
        pipelines = _pipelines(options, photo, preprocess, backbone.to(device), head)
        with tqdm(total=options.rounds + 1, desc="rounds", unit="round", disable=None, leave=False) as bar:
            found = time_in_turn(pipelines, options.rounds, lambda _: bar.update())
    what = {"head": options.head, "backbone": backbone.name, "neck": options.neck, "layers": list(backbone.layers)}
    where = machine(device)
    answer(options, **what, photo=told, rounds=options.rounds, machine=where, rows=_rows(pipelines, found))
    answer(options, peak_process_bytes=peak_process_bytes())
    print(_told(options, what, where, told))
    print(text.table(*_table(pipelines, found)))
    print(f"milliseconds per photo, medians of {options.rounds} rounds; (quartiles) of the whole")
    if (peak := peak_process_bytes()) is not None:
        print(f"the process held {_mb(peak)} at most")
    return 0


def _of_head(options: argparse.Namespace) -> tuple[Backbone, nn.Module, Preprocessing]:
    """The head of a file with the backbone that it names, and how its photos are prepared."""
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    for name in ("backbone", "backbone_source", "backbone_seed", "neck", "layers"):
        if getattr(options, name) is not None:
            raise ConfigError(f"a head file says its backbone; leave out --{name.replace('_', '-')}")
    checkpoint = HeadCheckpoint.load(options.head, revision=options.revision)
    backbone = backbone_options.recorded(options, checkpoint)
    checkpoint.check_backbone(backbone)
    module = checkpoint.build()
    if not hasattr(module, "predict"):
        _check_neck(module, f"{options.head} holds {checkpoint.head_type}")
    preprocess = checkpoint.preprocess or backbone.preprocess
    return backbone, module, preprocess if options.size is None else preprocess.changed(size=options.size)


def _of_backbone(options: argparse.Namespace) -> tuple[Backbone, nn.Module | None, Preprocessing]:
    """A backbone by name, with a neck if one was asked for."""
    from dinoneck.configured import fields_of
    from dinoneck.necks.neck import neck_named

    if options.backbone is None:
        raise ConfigError("give a head file, or --backbone NAME")
    if options.revision is not None:
        raise ConfigError("--revision is for heads; leave it out with --backbone")
    if options.size is None:
        raise ConfigError("--backbone alone says no size; give it with --size, such as 480x960")
    backbone = backbone_options.load(options, layers=options.layers)
    neck = None
    if options.neck is not None:
        cls = neck_named(options.neck)
        sizes = {
            "embed_dim": backbone.embed_dim, "num_layers": len(backbone.layers), "patch_size": backbone.patch_size
        }  # fmt: skip
        neck = cls(**{name: size for name, size in sizes.items() if name in fields_of(cls)})
        _check_neck(neck, f"--neck is {options.neck}")
    return backbone, neck, backbone.preprocess.changed(size=options.size)


def _check_neck(module: nn.Module, what: str) -> None:
    """Refuse what does not run on tokens alone."""
    from dinoneck.necks.neck import Neck

    if not isinstance(module, Neck) or module.needs_images:
        raise ConfigError(f"{what}, which does not run on tokens alone; heads with tasks and most necks do")


def _photo(options: argparse.Namespace, preprocess: Preprocessing, folder: Path) -> tuple[Path, str]:
    """The file that is decoded again and again, and what to say of it."""
    from dinoneck.inference.timing import sample_photo

    if options.photo is not None:
        return options.photo, str(options.photo)
    if preprocess.size is None:
        raise ConfigError("this head takes photos in their own size; give one with --photo, or a size with --size")
    height, width = (_LARGER * side for side in preprocess.size)
    file = folder / "photo.jpg"
    sample_photo(height, width).save(file, "JPEG", quality=90)
    return file, f"generated JPEG of {height}x{width} px (height x width)"


def _pipelines(
    options: argparse.Namespace, photo: Path, preprocess: Preprocessing, backbone: Backbone, head: nn.Module | None
) -> dict[str, Pipeline]:
    """One per batch size and dtype; the models of a dtype are shared."""
    import torch

    from dinoneck.inference.timing import Pipeline

    device = next(backbone.parameters()).device
    found = {}
    for dtype in dict.fromkeys(options.dtype):
        kind = getattr(torch, _DTYPES[dtype])
        own = copy.deepcopy(backbone).to(kind)
        own_head = None if head is None else copy.deepcopy(head).to(device, kind)
        for size in dict.fromkeys(options.batch_size):
            found[f"{dtype} {size}"] = Pipeline([photo] * size, preprocess, own, own_head)
    return found


def _rows(pipelines: dict[str, Pipeline], found: dict[str, Timing]) -> list[dict[str, Any]]:
    return [
        {
            "dtype": name.split()[0],
            "batch_size": len(pipelines[name].photos),
            "ms_per_photo": timing.ms,
            "whole_quartiles_ms": timing.quartiles,
            "images_per_s": timing.images_per_s,
            "peak_device_bytes": timing.peak_bytes,
        }
        for name, timing in found.items()
    ]


def _table(pipelines: dict[str, Pipeline], found: dict[str, Timing]) -> tuple[list[str], list[list[str]]]:
    parts = [part for part in _PARTS if part in next(iter(found.values())).ms]
    on_device = any(timing.peak_bytes is not None for timing in found.values())
    header = ["dtype", "batch", *parts, "(quartiles)", "photos/s", *(["peak on device"] if on_device else [])]
    rows = []
    for name, timing in found.items():
        low, high = timing.quartiles
        row = [name.split()[0], str(len(pipelines[name].photos))]
        row += [f"{timing.ms[part]:.1f}" for part in parts]
        row += [f"({low:.1f} ... {high:.1f})", f"{timing.images_per_s:.2f}"]
        rows.append([*row, *([_mb(timing.peak_bytes or 0)] if on_device else [])])
    return header, rows


def _told(options: argparse.Namespace, what: dict[str, Any], where: dict[str, Any], photo: str) -> str:
    """What is timed, and on what."""
    subject = f"{options.head} on {what['backbone']}" if options.head else f"{what['backbone']}"
    subject += f" with {what['neck']}" if what["neck"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    return (
        f"{subject}, layers {what['layers']}\nphoto: {photo}\n"
        f"{where['cpu']}, device {where['device']}, {where['threads']} threads; {where['system']}; {versions}"
    )


def _mb(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
