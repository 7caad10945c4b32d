"""Arguments that the command lines of the examples share: numbers, sizes and the backbone."""

from __future__ import annotations

import argparse
import math

from dinoneck import Backbone
from dinoneck.training.config import BackboneConfig
from dinoneck.training.run_tokens import open_backbone


def count(text: str) -> int:
    """Parse an integer of 1 or more."""
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer of 1 or more")
    return int(text)


def whole(text: str) -> int:
    """Parse an integer of 0 or more, such as a random seed."""
    if not (text.isascii() and text.isdecimal() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer 0 ... {2**32 - 1}")
    return int(text)


def positive(text: str) -> float:
    """Parse a finite number above 0."""
    value = float(text)
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a finite number above 0")
    return value


def size(text: str) -> tuple[int, int]:
    """Parse ``HEIGHTxWIDTH`` or one number for both."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(
        side.isascii() and side.isdecimal() and 1 <= int(side) <= 100_000 for side in sides
    ):
        raise argparse.ArgumentTypeError(f"{text!r}: expected HEIGHTxWIDTH such as 480x960")
    return int(sides[0]), int(sides[-1])


def shard(text: str) -> tuple[int, int]:
    """Parse ``I/N`` with 0 <= I < N."""
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with 0 <= I < N, such as 0/4")
    return int(first), int(second)


def add_backbone(parser: argparse.ArgumentParser) -> None:
    """Declare --backbone, --backbone-source, --random-backbone, --backbone-seed, --backbone-file."""
    group = parser.add_argument_group("backbone")
    group.add_argument("--backbone", metavar="NAME", help="name, see 'dinoneck list backbones'")
    group.add_argument(
        "--backbone-source",
        choices=("timm", "transformers"),
        help="library that provides the model",
    )
    group.add_argument(
        "--random-backbone", action="store_true", help="seeded random weights, without download"
    )
    group.add_argument(
        "--backbone-seed", type=whole, metavar="N", help="which random weights (default 0)"
    )
    group.add_argument(
        "--backbone-file", metavar="FILE", help="official .pth or .safetensors weights on disk"
    )


def backbone_of(options: argparse.Namespace) -> Backbone:
    """Load the backbone that the options describe, on the CPU."""
    own = BackboneConfig(
        name=options.backbone,
        source=options.backbone_source,
        file=options.backbone_file,
        random=options.random_backbone,
        seed=options.backbone_seed,
    )
    return open_backbone(own, "cpu")
