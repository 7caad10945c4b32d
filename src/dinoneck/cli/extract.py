"""``dinoneck extract``: run a backbone over photos once and keep the tokens in a feature store."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinoneck.cli import backbone_options, numbers
from dinoneck.cli.answers import add_json, answer
from dinoneck.cli.predict import tell_other_pictures
from dinoneck.errors import ConfigError, counted

HELP = "extract tokens of photos into a feature store; may be stopped and called again"
EXAMPLE = "dinoneck extract photos/ --out store --size 480x960 --patterns color20"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("photos", nargs="+", type=Path, help="photos, or folders, which are searched to the bottom")
    parser.add_argument("--out", type=Path, required=True, metavar="STORE", help="folder of the store")
    parser.add_argument("--root", type=Path, help="folder that ids are relative to (default: the folder given)")
    backbone_options.add_backbone(parser)
    parser.add_argument("--layers", type=blocks, nargs="+", action=_Layers, metavar="L", help="block indices such as "
                        "2 5 8 11 or 2,5,8,11 ('11,' for one); 4 = the four last; default: the last")  # fmt: skip
    parser.add_argument("--no-norm", action="store_true", help="without the backbone's final norm")
    parser.add_argument("--size", type=backbone_options.size, required=True, metavar="HxW", help="such as 480x960")
    parser.add_argument("--fit", choices=("stretch", "keep", "crop", "pad"), default="stretch",
                        help="how photos come to --size: stretch bends (default), keep fits inside, crop cuts, pad "
                        "fills up")  # fmt: skip
    parser.add_argument("--interpolation", choices=("area", "bicubic", "bilinear"), default="area",
                        help="how they are resampled (default area)")  # fmt: skip
    parser.add_argument("--policy", choices=("error", "crop", "pad", "resize"), default="error",
                        help="for sizes that the patch does not divide (default error)")  # fmt: skip
    parser.add_argument("--patterns", default="none", metavar="NAME",
                        help="augmentation: none, flips4, color20 or a YAML or JSON file (default none)")  # fmt: skip
    parser.add_argument("--dtype", choices=("fp16", "bf16", "int8"), default="fp16",
                        help="of the stored values; int8 halves the size of fp16 (default)")  # fmt: skip
    parser.add_argument("--shard", type=share, metavar="I/N", help="do part I of N, counted from 0 (default: all, or "
                        "torchrun's rank)")  # fmt: skip
    parser.add_argument(
        "--skip-unusable", action="store_true", help="leave out photos that cannot be decoded; list them"
    )
    parser.add_argument("--batch-size", type=numbers.count, metavar="N",
                        help="views per backbone pass (default: those of one photo)")  # fmt: skip
    parser.add_argument("--workers", type=numbers.count, default=2, metavar="N", help="threads that decode (default 2)")
    parser.add_argument("--device", help="such as cuda; default: the CPU")
    parser.add_argument("--engine", choices=("local", "ray"), default="local",
                        help="ray: spread over a Ray cluster (extra [ray])")  # fmt: skip
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Extract, and say what was done."""
    from dinoneck.store.feature_store import FeatureStore

    backbone = backbone_options.load(options)
    if options.layers is not None or options.no_norm:
        from dinoneck.backbones.backbone import Backbone

        backbone = Backbone(
            backbone.adapter, name=backbone.name, layers=options.layers, norm=not options.no_norm, frozen=True
        )
    if options.device:
        from dinoneck.devices import local_device

        backbone = backbone.to(local_device(options.device))
    store = FeatureStore.create(
        options.out,
        backbone=backbone,
        patterns=options.patterns,
        image_size=options.size,
        dtype=options.dtype,
        fit=options.fit,
        interpolation=options.interpolation,
        policy=options.policy,
    )
    tell_other_pictures(options.photos)
    settings = {"batch_size": options.batch_size, "skip_unusable": options.skip_unusable, "workers": options.workers}
    if options.engine == "ray":
        from dinoneck.store.ray_engine import extract_on_ray

        if options.shard is not None:
            raise ConfigError("--shard and --engine ray both share the work out; give one of them")
        done = extract_on_ray(store, options.photos, options.root, **settings)
    else:
        done = store.extract(options.photos, options.root, options.shard, **settings)
    counts = {"written": len(done.written), "present": done.present, "images": len(store)}
    answer(options, store=options.out, **counts, unusable=done.unusable)
    for problem in done.unusable.values():
        print(f"left out: {problem}")
    extracted = counted(len(done.written), "photo")
    print(f"{extracted} extracted, {done.present} were there, {len(done.unusable)} left out: {store}")
    return 0


def blocks(text: str) -> tuple[bool, list[int]]:
    """Parse one word of --layers: whether it is a list for sure (``3,7`` or ``11,``), and its numbers."""
    try:
        return "," in text, [int(part) for part in text.removesuffix(",").split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected block indices such as 3,7,11, or a number") from None


def layers(words: Sequence[tuple[bool, list[int]]]) -> int | list[int]:
    """Return the blocks that --layers names; a lone number is how many of the last."""
    numbers = [number for _, found in words for number in found]
    return numbers if len(words) > 1 or words[0][0] else numbers[0]


class _Layers(argparse.Action):
    """Puts the words of --layers together."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        setattr(namespace, self.dest, layers(values))


def share(text: str) -> tuple[int, int]:
    """Parse ``I/N`` with 0 <= I < N."""
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with 0 <= I < N, such as 0/4")
    return int(first), int(second)
