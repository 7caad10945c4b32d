"""What determines a training run: one dataclass, which is also its options on the command line, and its rooms."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tyro.conf import Suppress

from dinoneck import load_backbone
from dinoneck.backbones.backbone import Backbone
from dinoneck.errors import ConfigError, DataError
from dinoneck.text import counted, some_of
from examples.pointcloud.features import frame_maps, maps_of
from examples.pointcloud.frames import Frames, read_frames, scene_folders
from examples.pointcloud.room_batches import STAND_IN, Inputs, Scene, Voxels, scene
from examples.pointcloud.rooms import CLASSES
from examples.pointcloud.scans import check_names, scan
from examples.pointcloud.segmentation import Segmenter, Variant, build

_ROOMS_APART = 1000  # between the seeds of the first rooms of two runs
_HELD_OUT = 500  # between the seeds of the first room to learn from and the first one held out
_SHOWN = 5  # names in a message


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
        inputs: what the 3D network is given of the points: ``geometry``, ``colours`` or ``both``.
        backbone: of the images' features, or ``labels``, a stand-in.
        random_backbone: seeded random weights instead of published ones.
        network: ``34c`` or ``small``.
        wrong_images: every room is given the images' features of another one: a control that has
            all the parameters and nothing to see.
        steps: optimizer steps.
        batch: rooms per step.
        lr: the highest learning rate; one cosine, AdamW.
        data: tree of scans in place of rooms; empty = rooms.
        labels: folder of label files, <scene>.npy or .ply: x, y, z, label, instance.
        classes: of scans, ``ID=NAME`` with the label in the files.
        held_out: scenes to test on.
        features: feature store or tree of .pt files of the scans' images, as ``extract`` writes
            them; empty = the backbone runs.
        every: read every n-th frame of a scan: those whose number n divides.
        init: weights that every configuration starts from, of MinkowskiEngine (Mask3D, ESAM) or of
            another run; empty = the 3D network is trained first.
        init_digest: SHA-256 of that file.
        data_digest: of scans and features, see :func:`examples.pointcloud.data_digest.data_digest`.
    """

    variant: Suppress[Variant] = "3d"
    seed: Suppress[int] = 0
    rooms: int = 12
    test_rooms: int = 4
    views: int = 6
    image_size: tuple[int, int] = (240, 320)
    points: int = 40_000
    voxel: float = 0.1
    inputs: Suppress[Inputs] = "geometry"
    backbone: str = "vit_small_patch16_dinov3"
    random_backbone: bool = False
    network: Literal["34c", "small"] = "34c"
    wrong_images: Suppress[bool] = False
    steps: int = 240
    batch: int = 2
    lr: float = 2e-3
    data: str = ""
    labels: str = ""
    classes: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    features: str = ""
    every: int = 1
    init: str = ""
    init_digest: Suppress[str] = ""
    data_digest: Suppress[str] = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return tuple(dict.fromkeys(self.ids_and_names.values())) or CLASSES

    @property
    def ids_and_names(self) -> dict[int, str]:
        """Label in the files of scans -> name of its class; several labels may have one name.

        Raises:
            ConfigError: for another form, or a label that is given twice.
        """
        names: dict[int, str] = {}
        for text in self.classes:
            match = re.fullmatch(r"(\d+)=(.+)", text, re.ASCII)
            if match is None:
                raise ConfigError(
                    f"--classes names {text!r}; expected ID=NAME, such as 1=wall, with the label in "
                    "the files as ID"
                )
            label = int(match[1])
            if label in names:
                raise ConfigError(
                    f"--classes names {label} twice, as {names[label]!r} and {match[2]!r}; expected "
                    "each label once"
                )
            names[label] = match[2]
        return names

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        values = asdict(self)
        for key, value in values.items():
            if isinstance(value, tuple):
                values[key] = list(value)
        return values


def check_plan(plan: Plan) -> None:
    """Refuse numbers out of range, and options that the plan would not read, before anything runs.

    Raises:
        ConfigError: naming the option.
    """
    counts = {
        "rooms": plan.rooms,
        "test-rooms": plan.test_rooms,
        "views": plan.views,
        "points": plan.points,
        "batch": plan.batch,
        "every": plan.every,
        "image-size": min(plan.image_size),
    }
    for option, count in counts.items():
        if count < 1:
            raise ConfigError(f"--{option} is {count}; expected 1 or more")
    if plan.steps < 0:
        raise ConfigError(f"--steps is {plan.steps}; expected 0 or more")
    for option, number in {"voxel": plan.voxel, "lr": plan.lr}.items():
        if not 0 < number < math.inf:
            raise ConfigError(f"--{option} is {number}; expected a finite number above 0")
    if plan.data:
        if not (plan.labels and plan.classes):
            raise ConfigError(
                "--data needs --labels and --classes: labels of the files and names, such as "
                "1=wall 2=floor"
            )
        return
    of_scans = {
        "labels": plan.labels,
        "classes": plan.classes,
        "held-out": plan.held_out,
        "features": plan.features,
    }
    for option, value in of_scans.items():
        if value:
            raise ConfigError(
                f"--{option} belongs to scans and --data is not given; without it rooms are drawn"
            )


@dataclass(frozen=True)
class Rooms:
    """The rooms of a run, to learn from and held out."""

    train: tuple[Scene, ...]
    test: tuple[Scene, ...]

    @property
    def channels(self) -> int:
        """Of the images' features; 1 without images."""
        maps = self.train[0].maps
        return 1 if maps is None else maps.shape[1]


def rooms_of(plan: Plan, *, images: bool, device: str = "cpu") -> Rooms:
    """Draw a plan's rooms, or read its scans; with ``images`` run the backbone too, which takes longest."""
    backbone = None
    if images and not (plan.data and plan.features) and plan.backbone != STAND_IN:
        backbone = load_backbone(plan.backbone, pretrained=not plan.random_backbone).to(device)
    if plan.data:
        return _scans_of(plan, images, backbone)
    source: Backbone | Literal["labels"] | None = backbone
    if images and backbone is None:  # no backbone was loaded: the plan names the stand-in
        source = STAND_IN
    first = plan.seed * _ROOMS_APART
    train_seeds = range(first, first + plan.rooms)
    test_seeds = range(first + _HELD_OUT, first + _HELD_OUT + plan.test_rooms)
    return Rooms(
        train=tuple(_drawn_room(plan, seed, source) for seed in train_seeds),
        test=tuple(_drawn_room(plan, seed, source) for seed in test_seeds),
    )


def _drawn_room(plan: Plan, seed: int, source: Backbone | Literal["labels"] | None) -> Scene:
    """Draw one room; ``source`` makes its features, None = without images."""
    return scene(
        seed,
        views=plan.views,
        size=plan.image_size,
        points=plan.points,
        backbone=source,
    )


def _scans_of(plan: Plan, images: bool, backbone: Backbone | None) -> Rooms:
    """Read the scenes of a tree, and run the backbone over their images or read its maps from a store."""
    tree = Path(plan.data)
    folders = {folder.name: folder for folder in scene_folders(tree)}
    names = list(folders)
    check_names(plan.held_out, names)
    classes = {label: plan.names.index(name) for label, name in plan.ids_and_names.items()}

    scenes = {}
    for name, folder in folders.items():
        frames = read_frames(folder, plan.every)
        labelled = scan(name, frames, Path(plan.labels), classes, plan.points, plan.seed)
        maps = _maps_of_scan(plan, name, frames, images, backbone)
        scenes[name] = replace(labelled, maps=maps)
    _check_widths(scenes)
    learned = tuple(scenes[name] for name in names if name not in plan.held_out)
    _warn_of_missing_classes(plan, learned)
    return Rooms(learned, tuple(scenes[name] for name in plan.held_out))


def _maps_of_scan(
    plan: Plan, name: str, frames: Frames, images: bool, backbone: Backbone | None
) -> Tensor | None:
    """Return the features of a scan's images, float16 (V, C, rows, cols); None without images.

    Raises:
        DataError: if values are not finite: the network's scores would be no numbers either.
    """
    if images and plan.features:
        maps = maps_of(Path(plan.features), frames.names, frames.cameras)
    elif backbone is not None:
        maps = frame_maps(backbone, frames)[0].half().cpu()
    else:
        return None
    is_finite = maps.isfinite().flatten(1).all(1)
    if not is_finite.all():
        wrong = [frame for frame, right in zip(frames.names, is_finite, strict=True) if not right]
        raise DataError(
            f"{name}: the features of {len(wrong)} of {counted(len(frames), 'frame')} hold NaN or "
            f"infinite values: {some_of(wrong, _SHOWN)}; extract them anew"
        )
    return maps


def _check_widths(scenes: Mapping[str, Scene]) -> None:
    """Refuse features of several widths: they are of several backbones.

    Raises:
        DataError: naming two scenes.
    """
    widths = {}
    for name, scene_of_name in scenes.items():
        if scene_of_name.maps is not None:
            widths[name] = scene_of_name.maps.shape[1]
    for name, width in widths.items():
        first_name = next(iter(widths))
        if width != widths[first_name]:
            raise DataError(
                f"the features of {name} have {width} channels and those of {first_name} "
                f"{widths[first_name]}; expected one backbone for all scenes"
            )


def _warn_of_missing_classes(plan: Plan, learned: Sequence[Scene]) -> None:
    """Warn of classes that no scene teaches: their IoU is 0, or missing, whatever a variant does."""
    present = torch.cat([scene.labels.unique() for scene in learned])
    missing = [name for label, name in enumerate(plan.names) if not (present == label).any()]
    if missing:
        warnings.warn(
            f"{len(missing)} of {len(plan.names)} classes have no point in "
            f"{counted(len(learned), 'scene')} to learn from: {some_of(missing, _SHOWN)}; look at the "
            "IDs of --classes",
            stacklevel=2,
        )


def misled(rooms: Rooms) -> Rooms:
    """Give every room the maps of the next one, read at its own points' pixels; a single one those of the other set."""
    return Rooms(
        train=_with_maps_of_the_next(rooms.train, rooms.test),
        test=_with_maps_of_the_next(rooms.test, rooms.train),
    )


def _with_maps_of_the_next(
    scenes: tuple[Scene, ...], other_set: tuple[Scene, ...]
) -> tuple[Scene, ...]:
    """Give each scene the next one's maps, the last the first one's; a single one ``other_set``'s first."""
    last_source = scenes[0] if len(scenes) > 1 else other_set[0]
    sources = (*scenes[1:], last_source)
    moved = []
    for receiver, source in zip(scenes, sources, strict=True):
        # as many views as the room has, again from the first where the source has fewer
        views = torch.arange(len(receiver.maps)) % len(source.maps)
        moved.append(replace(receiver, maps=source.maps[views]))
    return tuple(moved)


def model_of(plan: Plan, rooms: Rooms) -> tuple[Segmenter, Voxels]:
    """Build a plan's model with fresh weights, and what makes its input."""
    model = build(
        plan.variant,
        network=plan.network,
        in_channels=Voxels(plan.voxel, plan.inputs).channels,
        classes=len(plan.names),
        c_dino=rooms.channels,
    )
    return model, Voxels(plan.voxel, plan.inputs, model.strides)
