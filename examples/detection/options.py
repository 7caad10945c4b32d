"""The options of the detection example: one dataclass, one parser, and what it takes to build a detector again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from dinoneck.configured import normal
from dinoneck.errors import ConfigError, DataError
from examples import kinds

DETECTORS = ("dfine", "rtdetrv2", "fcos", "retinanet", "fasterrcnn")
NECKS = ("spatial_tuning_adapter", "sta_pyramid", "simple_pyramid", "vit_fpn")
HGNET = "hgnetv2"
TRANSFORMERS = ("dfine", "rtdetrv2")
PLAN = "0=all,10=last:4"
# what would be passed over without a word, and its value when nobody asked
IDLE_CONVOLUTIONAL: dict[str, Any] = {
    "neck_option": [],
    "features_at": 1.0,
    "layer_decay": None,
    "checkpointing": False,
}
IDLE_TORCHVISION: dict[str, Any] = {"num_queries": None, "encoder_layers": None}


@dataclass(frozen=True)
class Design:
    """What a detector is made of; kept beside its weights as ``detector.json``.

    Attributes:
        detector: one of ``DETECTORS``.
        variant: of D-FINE: ``stock``, ``25m`` or ``tiny``; the others have one form.
        backbone: a backbone's name, or ``hgnetv2`` (or one of timm's, such as ``hgnetv2_b2``) for the convolutional
            baseline of the DETR family.
        layers: blocks whose tokens the neck reads; one number = the last one.
        pretrained: published weights at the start; else seeded random ones.
        neck: one of ``NECKS``.
        neck_config: further arguments of the neck.
        out_channels: of the neck's levels, for torchvision's detectors; a DETR's encoder tells it.
        features_at: the ViT sees the image at this scale; the neck's detail branch sees all of it.
        num_queries: of a DETR; None = the variant's own number.
        encoder_layers: of a DETR's hybrid encoder; None = the variant's own number.
        classes: names of the labels.
        size: (height, width) of the network's input, in pixels.
        seed: of everything drawn at random.
    """

    detector: str
    variant: str
    backbone: str
    layers: tuple[int, ...]
    pretrained: bool
    neck: str
    neck_config: dict[str, Any]
    out_channels: int
    features_at: float
    num_queries: int | None
    encoder_layers: int | None
    classes: tuple[str, ...]
    size: tuple[int, int]
    seed: int

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    @classmethod
    def read(cls, path: Path) -> Design:
        """Read it from a file.

        Raises:
            DataError: if the file is missing, damaged or of another kind.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            hints = get_type_hints(cls)
            design = cls(**{key: normal(hints.get(key, Any), value, key) for key, value in dict(found).items()})
            if design.detector not in DETECTORS:
                raise ConfigError(f"detector is {design.detector!r}; expected one of {', '.join(DETECTORS)}")
        except (OSError, ValueError, TypeError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise DataError(f"{path} does not describe a detector ({error}); expected JSON with {names}") from error
        return design


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    made = argparse.ArgumentParser(
        prog="python -m examples.detection",
        description="Train and test a detector on a DINO backbone, from photos with boxes in COCO form.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _data(made.add_argument_group("data"))
    _model(made.add_argument_group("detector"))
    _training(made.add_argument_group("training"))
    _running(made.add_argument_group("run"))
    return made


def _data(group: Any) -> None:
    group.add_argument("--train", type=Path, metavar="JSON", help="boxes to learn from")
    group.add_argument("--val", type=Path, metavar="JSON", help="boxes of the photos that are held out")
    group.add_argument("--photos", type=Path, metavar="FOLDER", help="of the photos (default: beside the JSON)")
    group.add_argument("--val-photos", type=Path, metavar="FOLDER", help="of those held out (default: as --photos)")
    group.add_argument("--size", type=size, default="640", metavar="PX|HxW", help="of the network's input")
    group.add_argument("--flips", choices=("horizontal", "both"), default="horizontal", help="mirrored views")
    group.add_argument("--plain-views", action="store_true", help="photos as they are: no mirroring, no other colours")
    group.add_argument("--photo-limit", type=kinds.count, metavar="N", help="use the first N photos of each list")
    group.add_argument("--workers", type=kinds.whole, default=0, metavar="N", help="processes that read photos")


def _model(group: Any) -> None:
    group.add_argument("--detector", choices=DETECTORS, default="dfine")
    group.add_argument("--variant", choices=("stock", "25m", "tiny"), default="25m", help="of D-FINE")
    group.add_argument("--backbone", default="vit_small_patch16_dinov3", metavar="NAME", help=f"or {HGNET}")
    group.add_argument("--layers", type=_integers, default="5,8,11", metavar="I,J,K", help="blocks the neck reads")
    group.add_argument("--random-backbone", action="store_true", help="seeded random weights instead of published ones")
    group.add_argument("--neck", choices=NECKS, default="spatial_tuning_adapter")
    group.add_argument(
        "--neck-option", type=_pair, action="append", default=[], metavar="NAME=VALUE", help="such as detail=deimv2"
    )
    group.add_argument("--out-channels", type=kinds.count, default=256, metavar="D", help="for torchvision's")
    group.add_argument(
        "--features-at", type=kinds.positive, default=1.0, metavar="SCALE", help="0.5: ViT at half the size"
    )
    group.add_argument("--num-queries", type=kinds.count, metavar="N", help="of a DETR (default: the variant's)")
    group.add_argument("--encoder-layers", type=kinds.count, metavar="N", help="of a DETR's hybrid encoder")


def _training(group: Any) -> None:
    group.add_argument("--epochs", type=kinds.count, default=72, metavar="N")
    group.add_argument("--batch", type=kinds.count, default=2, metavar="N", help="photos per process and step")
    group.add_argument("--accumulate", type=kinds.count, default=1, metavar="N", help="batches per optimizer step")
    group.add_argument("--lr", type=kinds.positive, default=2.5e-4, help="of neck and detector")
    group.add_argument(
        "--backbone-lr",
        type=backbone_rate,
        default="1e-5",
        metavar="LR|xF",
        help="or xF: F times the lr, such as x0.05",
    )
    group.add_argument("--layer-decay", type=kinds.positive, metavar="F", help="factor per block of the backbone")
    group.add_argument("--weight-decay", type=float, default=1.25e-4, help="not on norms, biases, positions")
    group.add_argument("--clip", type=kinds.positive, default=0.1, metavar="NORM", help="of the gradient")
    group.add_argument("--warmup", type=float, default=0.05, metavar="SHARE", help="of all steps")
    group.add_argument("--freeze", type=plan, metavar="PLAN", help=f"epoch=stage, ... (default: {PLAN})")
    group.add_argument("--ema", type=float, default=0.9999, metavar="DECAY", help="0: no averaging")
    group.add_argument("--amp", choices=("none", "bf16", "fp16"), default="none")
    group.add_argument("--checkpointing", action="store_true", help="recompute blocks in the backward pass")
    group.add_argument("--sync-bn", action="store_true", help="BatchNorm over all processes (GPUs)")


def _running(group: Any) -> None:
    group.add_argument("--out", type=Path, default=Path("detection-run"), metavar="FOLDER")
    group.add_argument("--seed", type=kinds.whole, default=0, metavar="N")
    group.add_argument("--device", metavar="NAME", help="default: a GPU if there is one")
    group.add_argument("--eval-every", type=kinds.count, default=1, metavar="EPOCHS")
    group.add_argument("--resume", action="store_true", help="go on with the run in --out")
    group.add_argument("--test-only", action="store_true", help="test the detector of --weights on --val")
    group.add_argument("--weights", type=Path, metavar="FOLDER", help="a saved detector (default: OUT/best)")


def design_of(options: argparse.Namespace, classes: Sequence[str]) -> Design:
    """Return what is to be built."""
    return Design(
        detector=options.detector,
        variant=options.variant,
        backbone=options.backbone,
        layers=options.layers,
        pretrained=not options.random_backbone,
        neck=options.neck,
        neck_config=dict(options.neck_option),
        out_channels=options.out_channels,
        features_at=options.features_at,
        num_queries=options.num_queries,
        encoder_layers=options.encoder_layers,
        classes=tuple(classes),
        size=options.size,
        seed=options.seed,
    )


def size(text: str) -> tuple[int, int]:
    """``640`` or ``480x640``: (height, width) in pixels."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected pixels such as 640, or HEIGHTxWIDTH")
    return int(sides[0]), int(sides[-1])


def plan(text: str) -> dict[int, str]:
    """``0=all,10=last:4``: epoch -> stage of :class:`dinoneck.training.FreezeSchedule`, which checks the stages."""
    found = {}
    for entry in text.split(","):
        epoch, sign, stage = entry.strip().partition("=")
        if not sign or not (epoch.isascii() and epoch.isdigit()):
            raise argparse.ArgumentTypeError(f"{entry!r} is no stage; expected EPOCH=STAGE such as 0=all or 10=last:4")
        if int(epoch) in found:
            raise argparse.ArgumentTypeError(f"{text!r} has two stages for epoch {int(epoch)}; expected one")
        found[int(epoch)] = stage
    return found


def backbone_rate(text: str) -> tuple[float, bool]:
    """``1e-5``, or ``x0.05`` for a share of the detector's: (number, whether it is a share)."""
    return kinds.positive(text.removeprefix("x")), text.startswith("x")


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: expected block indices such as 5,8,11") from error


def _pair(text: str) -> tuple[str, Any]:
    """``name=value``; the value is read as JSON where it is JSON."""
    name, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE such as detail=deimv2")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def check(options: argparse.Namespace) -> None:
    """Refuse options that do not go together; fill in the plan.

    Raises:
        ConfigError: naming them and the remedy.
    """
    if options.val is None:
        raise ConfigError("--val is missing; expected the COCO JSON of the held-out photos")
    if options.train is None and not options.test_only:
        raise ConfigError("--train is missing; expected the COCO JSON to learn from (or --test-only)")
    if options.test_only:
        return
    convolutional = options.backbone.startswith(HGNET)
    if convolutional and options.detector not in TRANSFORMERS:
        raise ConfigError(
            f"--backbone {options.backbone} is the baseline of {' and '.join(TRANSFORMERS)}, not of {options.detector}"
        )
    if convolutional and options.freeze is not None:
        raise ConfigError(f"--freeze is for the blocks of a ViT; {options.backbone} trains as a whole: leave it out")
    idle = IDLE_CONVOLUTIONAL if convolutional else IDLE_TORCHVISION if options.detector not in TRANSFORMERS else {}
    for name, unasked in idle.items():
        if getattr(options, name) != unasked:
            what = options.backbone if convolutional else options.detector
            raise ConfigError(f"--{name.replace('_', '-')} does nothing for {what}: leave it out")
    if options.freeze is None and not convolutional:
        options.freeze = plan(PLAN)
