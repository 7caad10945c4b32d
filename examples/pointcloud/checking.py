"""The verb ``check``: frames through the whole chain, one forward pass each, with the numbers that show an error."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from PIL import Image
from torch import Tensor

from dinoneck import load_backbone
from dinoneck.atomic import write_text
from dinoneck.devices import local_device
from dinoneck.errors import ConfigError, DinoneckError
from dinoneck.points import CameraCheck, check_cameras
from examples.pointcloud.check_report import frame_lines, picture, save_picture, summary_lines
from examples.pointcloud.extraction import Sampling, step_of
from examples.pointcloud.features import frame_maps, maps_of
from examples.pointcloud.frame_check import (
    Chain,
    FrameReport,
    check_against_scan,
    check_between,
    check_frame,
    points_of,
)
from examples.pointcloud.frames import Frames, read_frames, scene_folders
from examples.pointcloud.level_check import STRIDES
from examples.pointcloud.minkowski_weights import file_channels
from examples.pointcloud.room_batches import INPUT_CHANNELS, Inputs, Voxels
from examples.pointcloud.rooms import room
from examples.pointcloud.scans import Cloud, cloud_file, read_cloud
from examples.pointcloud.segmentation import build, load_unet

RESULT = "check.json"
PICTURES = "pictures"
# of a drawn room
ROOM_VIEWS = 5
ROOM_SIZE = (240, 320)  # height, width
ROOM_POINTS = 40_000
_CLASSES = 20  # of the network's random last layer; any number does
_PICTURE_POINTS = 4000  # of the scan, or of each other frame, in a picture


@dataclass
class SceneReport:
    """What was found in one scene.

    Attributes:
        name: of the scene.
        frames: a report per frame that was sent through.
        cameras: the verdict on poses, depth and K; None where nothing tells.
        problems: sentences, empty if nothing is wrong.
    """

    name: str
    frames: list[FrameReport] = field(default_factory=list)
    cameras: CameraCheck | None = None
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SceneInput:
    """A scene to check; ``read`` reads its frames, and may find what is wrong by raising."""

    name: str
    read: Callable[[], Frames]
    cloud: Callable[[], Cloud | None]


@dataclass(frozen=True)
class FeatureSource:
    """Where maps come from: ``maps(frames, views)`` gives (V, C, rows, cols)."""

    maps: Callable[[Frames, Sequence[int]], Tensor]
    channels: int


def check(
    data: tyro.conf.Positional[Path | None] = None,
    /,
    *,
    out: Path,
    frames: int = 10,
    every: int | None = None,
    sampling: Sampling | None = None,
    clouds: Path | None = None,
    features: Path | None = None,
    backbone: str = "vit_small_patch16_dinov3",
    random_backbone: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    network: Literal["34c", "small"] = "34c",
    init: Path | None = None,
    voxel: float = 0.02,
    points: int = 20_000,
    seed: int = 0,
    device: str | None = None,
) -> int:
    """Send frames through projection, lifting, pyramid and 3D network, one forward pass each, and check every step.

    Args:
        data: tree of scenes, or a scene; drawn rooms if it is left out.
        out: folder of check.json and the pictures of points over images.
        frames: how many, over all scenes.
        every: frames whose number it divides.
        sampling: every 200th frame (single-view) or every 40th (multi-view).
        clouds: folder of scans, <scene>.npy or .ply; without, each frame's own depth is the cloud.
        features: feature store or tree of .pt files; without, the backbone runs.
        backbone: name, see 'dinoneck list backbones'.
        random_backbone: seeded random weights, without download.
        network: 34c or small.
        init: weights of the 3D network, of MinkowskiEngine (Mask3D, ESAM) or of a run of compare;
            random ones without.
        voxel: metres.
        points: of a frame, at most.
        seed: of weights and points, and of the rooms.
        device: such as cpu or cuda:1; a GPU if there is one.

    Returns:
        0 if nothing wrong was found, else 1.
    """
    if frames < 1 or points < 1:
        raise ConfigError(f"--frames is {frames} and --points {points}; expected 1 or more of each")
    inputs = _inputs(data, step_of(every, sampling), clouds, frames, seed)
    run_device = local_device(device)
    source = _source(features, backbone, random_backbone, run_device, inputs)
    torch.manual_seed(seed)
    voxels = Voxels(voxel, inputs_of(init), STRIDES)
    model = build(
        "both",
        network=network,
        in_channels=voxels.channels,
        classes=_CLASSES,
        c_dino=source.channels,
    )
    if init is not None:
        load_unet(model, init)
    chain = Chain(model.to(run_device).eval(), voxels, points, run_device)
    out.mkdir(parents=True, exist_ok=True)
    print(f"features of {source.channels} channels, network {network}, {run_device}")
    reports = []
    left = frames
    for position, scene in enumerate(inputs):
        count = math.ceil(left / (len(inputs) - position))
        report = check_scene(chain, scene, source, count, out / PICTURES, seed)
        left -= len(report.frames)
        reports.append(report)
    problems = [problem for report in reports for problem in report.problems]
    frame_reports = [frame for report in reports for frame in report.frames]
    for report in reports:
        print(f"\ncameras of {report.name}: {_verdict_text(report)}")
    print("\n".join(summary_lines(frame_reports, problems)))
    write_text(out / RESULT, json.dumps(_to_json(reports), indent=2) + "\n")
    print(f"{out / RESULT}, {out / PICTURES}")
    return 1 if problems else 0


def _verdict_text(report: SceneReport) -> str:
    """Return what is known of a scene's cameras, or why nothing is."""
    if report.cameras is not None:
        return str(report.cameras)
    if not report.frames:
        return "not checked: its frames could not be read"
    return (
        "not checked: no frame shows what another one shows; take more frames (a smaller --every), "
        "or give a scan (--clouds)"
    )


def inputs_of(init: Path | None) -> Inputs:
    """Return what a file's network is given of the points; geometry without a file.

    Raises:
        ConfigError: if the file holds no such network, or takes other channels.
        CheckpointError: if it holds several.
    """
    if init is None:
        return "geometry"
    channels = file_channels(init)
    for inputs, count in INPUT_CHANNELS.items():
        if count == channels:
            return inputs
    raise ConfigError(
        f"--init {init} takes {channels} channels per voxel; expected "
        f"{', '.join(map(str, INPUT_CHANNELS.values()))}"
    )


def check_scene(
    chain: Chain, scene: SceneInput, source: FeatureSource, count: int, pictures: Path, seed: int
) -> SceneReport:
    """Check a scene's cameras, and send ``count`` of its frames, evenly spaced, through the chain."""
    report = SceneReport(scene.name)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            frames = scene.read()
            cloud = scene.cloud()
        texts = dict.fromkeys(str(warning.message) for warning in warned)
        report.problems += [f"{scene.name}: {text}" for text in texts]
        views = _evenly(len(frames), count)
        with warnings.catch_warnings():
            if texts:  # they are said again for every size and scale that cameras are brought to
                warnings.simplefilter("ignore", UserWarning)
            report.cameras = verdict_of(frames, cloud)
            maps = source.maps(frames, views)
            _check_frames(chain, report, frames, views, maps, cloud, seed)
        for view in views:
            save_picture(_picture(frames, view, cloud, seed), pictures, frames.names[view])
    except DinoneckError as error:
        report.problems.append(f"{scene.name}: {error}")
    for frame_report in report.frames:
        report.problems += frame_report.problems
    cameras = report.cameras
    if cameras is not None and not is_right(cameras):
        report.problems.append(f"{scene.name}: {cameras}")
    elif scene.cloud is _no_cloud:
        report.problems += check_between(report.frames)
    else:
        report.problems += check_against_scan(report.frames)
    return report


def _check_frames(
    chain: Chain,
    report: SceneReport,
    frames: Frames,
    views: Sequence[int],
    maps: Tensor,
    cloud: Cloud | None,
    seed: int,
) -> None:
    """Send frames through the chain, and print what each shows as soon as it is known."""
    for row, view in enumerate(views):
        view_map = maps[row : row + 1]
        frame_report = check_frame(chain, report.name, frames, view, view_map, cloud, seed)
        report.frames.append(frame_report)
        print("\n".join(frame_lines(frame_report, chain.voxels.size)))


def is_right(verdict: CameraCheck) -> bool:
    """Whether poses are read the right way, and depth and K fit."""
    return verdict.fits and not (verdict.clear and verdict.best != "camera_to_world")


def verdict_of(frames: Frames, cloud: Cloud | None) -> CameraCheck | None:
    """Return the verdict on a scene's cameras; None where no frame shows what another one shows."""
    if cloud is not None:
        return check_cameras(cloud.points, frames.cameras, frames.depth)
    if len(frames) < 2:
        return None
    verdict = check_cameras(None, frames.cameras, frames.depth)
    return verdict if max(verdict.scores.values()) > 0 else None


def _evenly(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the indices below ``count``, evenly spaced."""
    number = min(count, most)
    return [step * count // number for step in range(number)]


def _picture(frames: Frames, view: int, cloud: Cloud | None, seed: int) -> Image.Image:
    """Return the scan, or what the other frames' depth shows, over the image of a frame."""
    if cloud is not None:
        points = points_of(frames, view, cloud, _PICTURE_POINTS, seed).points
        return picture(frames, view, points)
    others = [other for other in range(len(frames)) if other != view]
    if not others:
        others = [view]
    clouds = [points_of(frames, other, None, _PICTURE_POINTS, seed).points for other in others]
    return picture(frames, view, torch.cat(clouds))


def _inputs(
    data: Path | None, every: int, clouds: Path | None, frames: int, seed: int
) -> list[SceneInput]:
    """Return the scenes to check, at most one per frame asked for."""
    if data is None:
        if clouds is not None:
            raise ConfigError("--clouds belongs to scenes of your own; drawn rooms have their scan")
        rooms = math.ceil(frames / ROOM_VIEWS)
        return [_room_input(seed + number) for number in range(rooms)]
    folders = scene_folders(data)
    chosen = [folders[index] for index in _evenly(len(folders), frames)]
    return [_folder_input(folder, every, clouds) for folder in chosen]


def _room_input(seed: int) -> SceneInput:
    made = room(seed, ROOM_VIEWS, ROOM_SIZE, ROOM_POINTS)
    cloud = Cloud(made.points, made.labels, made.colours)
    return SceneInput(f"room {seed}", lambda: made.frames, lambda: cloud)


def _folder_input(folder: Path, every: int, clouds: Path | None) -> SceneInput:
    if clouds is None:
        return SceneInput(folder.name, lambda: read_frames(folder, every), _no_cloud)
    path = cloud_file(clouds, folder.name)
    return SceneInput(folder.name, lambda: read_frames(folder, every), lambda: read_cloud(path))


def _no_cloud() -> None:
    return None


def _source(
    features: Path | None,
    backbone: str,
    random_backbone: bool,
    device: torch.device,
    scenes: Sequence[SceneInput],
) -> FeatureSource:
    """Return where features come from."""
    if features is None:
        vit = load_backbone(backbone, pretrained=not random_backbone).to(device)

        def run(frames: Frames, views: Sequence[int]) -> Tensor:
            return frame_maps(vit, frames.of(views))[0]

        return FeatureSource(run, vit.embed_dim)

    def read(frames: Frames, views: Sequence[int]) -> Tensor:
        chosen = frames.of(views)
        return maps_of(features, chosen.names, chosen.cameras).float()

    first = read(scenes[0].read(), [0])
    return FeatureSource(read, first.shape[1])


def _to_json(reports: Sequence[SceneReport]) -> list[dict[str, object]]:
    scenes: list[dict[str, object]] = []
    for report in reports:
        cameras = None
        if report.cameras is not None:
            cameras = {
                "scores": dict(report.cameras.scores),
                "best": report.cameras.best,
                "factor": report.cameras.factor,
                "right": is_right(report.cameras),
                "verdict": str(report.cameras),
            }
        rows = [asdict(frame) for frame in report.frames]
        scenes.append(
            {
                "scene": report.name,
                "cameras": cameras,
                "frames": rows,
                "problems": report.problems,
            }
        )
    return scenes
