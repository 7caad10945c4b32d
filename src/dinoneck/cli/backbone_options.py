"""Options that every verb with a backbone shares."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from dinoneck.backbones.known import DINOV3_SMALL, TINY
from dinoneck.cli import numbers
from dinoneck.errors import ConfigError

if TYPE_CHECKING:
    from dinoneck.backbones.backbone import Backbone
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint


_MAX_SIDE = 100_000


def add_backbone(parser: argparse.ArgumentParser) -> None:
    """Declare --backbone, --random-backbone, --backbone-file."""
    group = parser.add_argument_group("backbone")
    group.add_argument("--backbone", metavar="NAME", help=f"name, see 'dinoneck backbones' (default {DINOV3_SMALL})")
    group.add_argument(
        "--backbone-source", choices=("timm", "transformers"), default="timm", help="library whose model runs"
    )
    group.add_argument(
        "--random-backbone",
        action="store_true",
        help="seeded random weights: no download, the same everywhere",
    )
    group.add_argument("--backbone-seed", type=numbers.seed, metavar="N", help="which random weights (default 0)")
    group.add_argument("--backbone-file", metavar="FILE", help="official .pth or .safetensors weights on disk")


def load(options: argparse.Namespace, **arguments: Any) -> Backbone:
    """Load what the options say; other arguments as for :func:`dinoneck.load_backbone`."""
    from dinoneck.backbones.load import load_backbone

    random = options.random_backbone or (options.backbone == TINY and not options.backbone_file)
    if options.backbone_file and random:
        raise ConfigError("--backbone-file and --random-backbone contradict each other; give one of them")
    if options.backbone_seed is not None and not random:
        raise ConfigError("--backbone-seed says which random weights; give it with --random-backbone")
    return load_backbone(
        options.backbone or DINOV3_SMALL,
        source=options.backbone_source or "timm",
        pretrained=not random,
        checkpoint=options.backbone_file,
        seed=options.backbone_seed,
        **arguments,
    )


def add_rebuilt(parser: argparse.ArgumentParser) -> None:
    """Declare --random-backbone, --backbone-file and --device, for verbs whose backbone a head file names."""
    group = parser.add_argument_group("backbone (default: the one that the head file names)")
    group.add_argument(
        "--backbone-file", metavar="PATH", help="backbone weights (or transformers folder) the heads were trained on"
    )
    group.add_argument(
        "--random-backbone",
        action="store_true",
        help="its seeded random weights, without download; a head that was trained on other weights is refused",
    )
    group.add_argument("--device", help="such as cuda; default: the CPU")


def rebuilt(options: argparse.Namespace, head: HeadCheckpoint) -> Backbone | None:
    """Return the backbone that --backbone-file or --random-backbone ask for, with the head's LoRA weights.

    None where neither is given: the backbone is the one that the head file names, see :func:`recorded`.

    Raises:
        ConfigError: if the options contradict each other, or the head does not say which backbone it needs.
        CheckpointError: if its record cannot be followed.
        BackboneError: if the weights cannot be had, or do not fit.
    """
    if options.backbone_file and options.random_backbone:
        raise ConfigError("--backbone-file and --random-backbone contradict each other; give one of them")
    if options.backbone_file is None and not options.random_backbone:
        return None
    return recorded(options, head)


def recorded(options: argparse.Namespace, head: HeadCheckpoint) -> Backbone:
    """Return the backbone that a head file names, with its LoRA weights, as :func:`add_rebuilt`'s options say.

    It is compared with the head by who uses it (``Predictor``, ``HeadCheckpoint.check_backbone``).

    Raises:
        ConfigError: if the head does not say which backbone it needs.
        CheckpointError: if its record cannot be followed.
        BackboneError: if the weights cannot be had, or do not fit.
    """
    from dinoneck.inference.rebuild import rebuild

    record = head.meta["backbone"]
    if record is None:
        raise ConfigError(
            f"the {head.head_type} head does not state which backbone it needs, so none can be loaded for it; save "
            "it with save_head(..., backbone=backbone)"
        )
    backbone = rebuild(record, options.backbone_file, random=options.random_backbone)
    if head.adapter_state:
        head.apply_adapter(backbone)
    if options.device is None:
        return backbone
    from dinoneck.devices import local_device

    return backbone.to(local_device(options.device))


def size(text: str) -> tuple[int, int]:
    """Parse ``HEIGHTxWIDTH`` or one number for both."""
    parts = text.lower().split("x")
    try:
        sides = [int(part) for part in parts]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1 or not text.isascii() or "_" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected HEIGHTxWIDTH such as 480x960")
    if max(sides) > _MAX_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r} is too large; expected at most {_MAX_SIDE} a side")
    return sides[0], sides[-1]
