"""What determines a training run: one dataclass, its options on the command line, its rooms."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoneck import FeatureStore, load_backbone
from dinoneck.backbones.backbone import Backbone
from dinoneck.errors import ConfigError
from examples import kinds
from examples.pointcloud.features import frame_maps, store_maps
from examples.pointcloud.frame_tree import images_folder, scene_names
from examples.pointcloud.frames import read_frames
from examples.pointcloud.room_batches import STAND_IN, Scene, Voxels, scene
from examples.pointcloud.rooms import CLASSES
from examples.pointcloud.scans import check_names, scan
from examples.pointcloud.segmentation import NETWORKS, Segmenter, Variant, build

_ROOMS_APART = 1000  # room seeds of two runs
_HELD_OUT = 500


@dataclass(frozen=True)
class Plan:
    """Everything that a run's result depends on; kept in its ``result.json``.

    Attributes:
        variant: ``3d``, ``bifusion``, ``inject`` or ``both``.
        seed: of rooms, weights and order.
        rooms: to learn from.
        test_rooms: held out.
        views: images per room.
        image_size: (height, width) in pixels, as rendered.
        points: drawn per room.
        voxel: metres.
        point_colours: whether the 3D network is given the points' colours.
        backbone: of the images' features.
        random_backbone: seeded random weights instead of published ones.
        network: ``34c`` or ``small``.
        wrong_images: every room is given the images' features of another one: a control that has all the parameters
            and nothing to see.
        steps: optimizer steps.
        batch: rooms per step.
        lr: the highest learning rate.
        data: tree of scans in place of rooms; empty = rooms.
        labels: folder of label files.
        classes: names; of scans ``ID=NAME`` with the label in the files.
        held_out: scenes to test on.
        features: feature store of the scans' images; empty = the backbone runs.
        every: frames of a scan whose number it divides.
    """

    variant: Variant
    seed: int
    rooms: int
    test_rooms: int
    views: int
    image_size: tuple[int, int]
    points: int
    voxel: float
    point_colours: bool
    backbone: str
    random_backbone: bool
    network: str
    wrong_images: bool
    steps: int
    batch: int
    lr: float
    data: str = ""
    labels: str = ""
    classes: tuple[str, ...] = CLASSES
    held_out: tuple[str, ...] = ()
    features: str = ""
    every: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return tuple(dict.fromkeys(name.partition("=")[2] or name for name in self.classes))

    @property
    def ids(self) -> dict[int, int]:
        """Label in the files of scans -> class; several labels may have one name."""
        pairs = [name.split("=", 1) for name in self.classes if "=" in name]
        return {int(label): self.names.index(name) for label, name in pairs}

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Rooms:
    """The rooms of a run.

    Attributes:
        train: to learn from.
        test: held out.
    """

    train: tuple[Scene, ...]
    test: tuple[Scene, ...]

    @property
    def channels(self) -> int:
        """Of the images' features; 1 without images."""
        maps = self.train[0].maps
        return 1 if maps is None else maps.shape[1]


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add the options that variants to be compared share."""
    data = parser.add_argument_group("rooms")
    data.add_argument("--rooms", type=kinds.count, default=12, metavar="N", help="to learn from")
    data.add_argument("--test-rooms", type=kinds.count, default=4, metavar="N", help="held out")
    data.add_argument("--views", type=kinds.count, default=6, metavar="N", help="images per room")
    data.add_argument("--image-size", type=kinds.size, default="240x320", metavar="HxW", help="in pixels")
    data.add_argument("--points", type=kinds.count, default=40_000, metavar="N", help="drawn per room")
    data.add_argument("--voxel", type=kinds.positive, default=0.1, metavar="M", help="metres")
    scans = parser.add_argument_group("scans in place of rooms")
    scans.add_argument("--data", default="", metavar="TREE", help="a folder 2D/<scene> per scene")
    scans.add_argument("--labels", default="", metavar="FOLDER", help="<scene>.npy or .ply: x, y, z, label, instance")
    scans.add_argument("--classes", nargs="+", default=[], type=labelled, metavar="ID=NAME", help="labels to learn")
    scans.add_argument("--held-out", nargs="+", default=[], metavar="SCENE", help="to test on")
    scans.add_argument("--features", default="", metavar="STORE", help="maps of the images, as extract writes them")
    scans.add_argument("--every", type=kinds.count, default=1, metavar="K", help="frames whose number K divides")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--backbone", default="vit_small_patch16_dinov3", metavar="NAME", help=f"or {STAND_IN}: a stand-in"
    )
    model.add_argument("--random-backbone", action="store_true", help="seeded random weights, no download")
    model.add_argument("--network", choices=tuple(NETWORKS), default="34c", help="the 3D U-Net")
    training = parser.add_argument_group("training")
    training.add_argument("--steps", type=kinds.count, default=240, metavar="N")
    training.add_argument("--batch", type=kinds.count, default=2, metavar="N", help="rooms per step")
    training.add_argument("--lr", type=kinds.positive, default=2e-3, help="the highest; one cosine, AdamW")
    training.add_argument("--device", default="cpu", metavar="NAME", help="of the networks, such as cuda")


def plan_of(options: argparse.Namespace, **changes: Any) -> Plan:
    """Return the plan of parsed options, with changes.

    Raises:
        ConfigError: for scans without labels or classes, or labels that contradict each other.
    """
    given: dict[str, Any] = {**vars(options), **changes}
    if not options.data:
        given["classes"] = CLASSES
    elif not (options.labels and options.classes):
        raise ConfigError("--data needs --labels and --classes: labels of the files and names, such as 1=wall 2=floor")
    elif len({name.partition("=")[0] for name in options.classes}) < len(options.classes):
        raise ConfigError(f"--classes gives a label twice: {' '.join(options.classes)}")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return Plan(**{field.name: given[field.name] for field in fields(Plan)})


def rooms_of(plan: Plan, *, images: bool, device: str = "cpu") -> Rooms:
    """Draw a plan's rooms, or read its scans; with ``images`` run the backbone too, which takes longest."""
    backbone = None
    if images and not plan.features and plan.backbone != STAND_IN:
        backbone = load_backbone(plan.backbone, pretrained=not plan.random_backbone).to(device)
    if plan.data:
        return _scans_of(plan, images, backbone)

    def drawn(first: int, number: int) -> tuple[Scene, ...]:
        return tuple(
            scene(
                plan.seed * _ROOMS_APART + first + index,
                views=plan.views,
                size=plan.image_size,
                points=plan.points,
                backbone=STAND_IN if images and backbone is None else backbone,
            )
            for index in range(number)
        )

    return Rooms(drawn(0, plan.rooms), drawn(_HELD_OUT, plan.test_rooms))


def _scans_of(plan: Plan, images: bool, backbone: Backbone | None) -> Rooms:
    """Read the scenes of a tree, and run the backbone over their images or read its maps from a store."""
    tree = Path(plan.data)
    names = scene_names(tree)
    check_names(plan.held_out, names)
    store = FeatureStore.open(plan.features) if images and plan.features else None

    def read(name: str) -> Scene:
        frames = read_frames(images_folder(tree) / name, every=plan.every)
        one = scan(name, frames, Path(plan.labels), plan.ids, plan.points, plan.seed)
        if store is not None:
            return replace(one, maps=store_maps(store, frames.names, frames.cameras)[0].half())
        return one if backbone is None else replace(one, maps=frame_maps(backbone, frames)[0].half().cpu())

    scenes = {name: read(name) for name in names}
    learned = tuple(scenes[name] for name in names if name not in plan.held_out)
    return Rooms(learned, tuple(scenes[name] for name in plan.held_out))


def misled(rooms: Rooms) -> Rooms:
    """Give every room the maps of the next one, read at its own points' pixels; a single one those of the other set."""

    def moved(scenes: tuple[Scene, ...], rest: tuple[Scene, ...]) -> tuple[Scene, ...]:
        others = (*scenes[1:], scenes[0] if len(scenes) > 1 else rest[0])
        return tuple(
            replace(one, maps=_as_many(other.maps, one.maps)) for one, other in zip(scenes, others, strict=True)
        )

    return replace(rooms, train=moved(rooms.train, rooms.test), test=moved(rooms.test, rooms.train))


def _as_many(maps: Tensor | None, wanted: Tensor | None) -> Tensor | None:
    """Return the maps of as many views as wanted, again from the first where they are fewer."""
    if maps is None or wanted is None or len(maps) == len(wanted):
        return maps
    return maps[torch.arange(len(wanted)) % len(maps)]


def model_of(plan: Plan, rooms: Rooms) -> tuple[Segmenter, Voxels]:
    """Build a plan's model with fresh weights, and what makes its input."""
    plain = Voxels(plan.voxel, plan.point_colours)
    model = build(
        plan.variant,
        network=plan.network,
        in_channels=plain.channels,
        classes=len(plan.names),
        c_dino=rooms.channels,
    )
    return model, Voxels(plan.voxel, plan.point_colours, model.strides)


def labelled(text: str) -> str:
    """``1=wall``: a label of the files and its name."""
    number, _, name = text.partition("=")
    if not (number.isascii() and number.isdigit() and name):
        raise argparse.ArgumentTypeError(f"{text!r}: expected ID=NAME, such as 1=wall")
    return text
