"""Verb ``check``: frame by frame through the whole chain, forward only, with the numbers that show an error."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoneck import FeatureStore, load_backbone
from dinoneck.atomic import write_text
from dinoneck.backbones.known import TINY
from dinoneck.errors import ConfigError
from dinoneck.points import CameraCheck, Cameras, check_cameras
from examples import kinds
from examples.pointcloud.check_tables import print_frame, print_summary
from examples.pointcloud.features import device_of, frame_maps, store_maps
from examples.pointcloud.frame_check import Chain, FrameReport, check_frame, now
from examples.pointcloud.frames import Frames, read_frames
from examples.pointcloud.network_check import Network, plan_of, read_network
from examples.pointcloud.rooms import room
from examples.pointcloud.segmentation import NETWORKS

HELP = "send frames through projection, lifting, pyramid and U-Net, and check every step"
ROOM_VIEWS, ROOM_SIZE = 5, (240, 320)
_COMPARED = 2  # other frames that a frame's points are looked for in, at least
_OVERLAP = 0.02  # share of the points in another frame, below which poses are not judged


@dataclass(frozen=True)
class Source:
    """Where maps come from: ``maps(frames)`` gives them with the cameras of what the ViT saw."""

    maps: Callable[[Frames], tuple[Tensor, Cameras]]
    channels: int
    name: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    data = parser.add_argument_group("frames")
    data.add_argument("--frames", type=kinds.count, default=10, metavar="N", help="to check, over all scenes")
    data.add_argument("--data", type=Path, nargs="+", metavar="FOLDER", help="scenes; without, rooms from --seed")
    add_depth_scale(data)
    data.add_argument("--every", type=kinds.count, default=1, metavar="K", help="frames whose number K divides")
    data.add_argument("--points", type=kinds.whole, default=20_000, metavar="N", help="of a frame; 0: all with depth")
    data.add_argument("--voxel", type=kinds.positive, default=0.02, metavar="M", help="metres")
    images = parser.add_argument_group("features")
    add_features(images)
    images.add_argument("--views", type=kinds.count, default=1, metavar="N", help="images a frame's features come from")
    images.add_argument(
        "--without-own", action="store_true", help="from the N nearest frames, not the frame's own image"
    )
    net = parser.add_argument_group("network")
    net.add_argument("--plan", choices=tuple(NETWORKS), default="34c", help="what the network is planned as")
    net.add_argument("--network", type=Path, metavar="WEIGHTS", help="trained; without, random ones")
    net.add_argument("--engine", choices=("auto", "torch", "spconv"), default="torch", help="of sparse convolutions")
    parser.add_argument("--seed", type=kinds.whole, default=0, metavar="N", help="of all that is drawn at random")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there too")


def add_depth_scale(group: Any) -> None:
    """Declare the option that gives the unit of depth files."""
    group.add_argument(
        "--depth-scale", type=kinds.positive, metavar="N",
        help="units of the depth files per metre, 5000 in TUM's; without, what frames.json records, or 1000",
    )  # fmt: skip


def add_features(group: Any) -> None:
    """Declare the options for where features come from."""
    group.add_argument("--backbone", default=TINY, metavar="NAME", help="see 'dinoneck list backbones'")
    group.add_argument("--random-backbone", action="store_true", help="seeded random weights instead of published ones")
    group.add_argument("--size", type=kinds.size, metavar="HxW", help="of the ViT's input; without, as the images")
    group.add_argument("--features", type=Path, metavar="STORE", help="read maps from a feature store instead")
    group.add_argument("--device", default="cpu", metavar="NAME", help="such as cuda")


def run(options: argparse.Namespace) -> int:
    """Check; return 1 if anything is wrong."""
    device = device_of(options.device)
    if options.json is not None and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
        raise ConfigError(f"--json is {options.json}; expected a file in a folder that is there")
    source = source_of(options, device)
    torch.manual_seed(options.seed)
    plan = plan_of(**{name: value for name, value in NETWORKS[options.plan].items() if name != "layers"})
    net, weights = read_network(options.network, options.plan, NETWORKS, options.engine)
    chain = Chain(Network.build(plan, net, source.channels, weights).to(device), options.voxel, device)
    network = f"{options.plan}, {options.network or 'random weights'}, {net.engine}"
    print(f"features: {source.name}, {source.channels} channels; network: {network}; {device}")
    reports, verdicts, frames_left = [], {}, options.frames
    for name, frames in scenes(options):
        count = min(len(frames), frames_left)
        for report in check_scene(chain, name, frames, source, count, options):
            print_frame(report, chain.voxel, device)
            reports.append(report)
        frames_left -= count
        verdict = verdict_of(frames)
        if verdict is not None:
            verdicts[name] = verdict
    problems = [problem for report in reports for problem in report.problems] + camera_problems(verdicts)
    if not any(report.points for report in reports):
        problems.append("no frame has a pixel of known depth: nothing was checked")
    print_summary(reports, verdicts, problems)
    if options.json:
        scores = {
            name: {**asdict(verdict), "share": verdict.share, "fits": verdict.fits, "verdict": str(verdict)}
            for name, verdict in verdicts.items()
        }
        written = {"frames": [asdict(report) for report in reports], "cameras": scores, "problems": problems}
        write_text(options.json, json.dumps(written, indent=2, allow_nan=False) + "\n")
    return 1 if problems else 0


def source_of(options: argparse.Namespace, device: torch.device) -> Source:
    """Return where features come from.

    Raises:
        ConfigError: for options that contradict each other.
    """
    if options.features is not None:
        if options.random_backbone or options.size or options.backbone != TINY:
            raise ConfigError("--features brings its own backbone: leave --backbone, --random-backbone and --size out")
        store = FeatureStore.open(options.features)
        channels = int(store.backbone_record["embed_dim"])
        return Source(lambda frames: store_maps(store, frames.names, frames.cameras), channels, str(options.features))
    random = options.random_backbone or options.backbone == TINY
    backbone = load_backbone(options.backbone, pretrained=not random).to(device)
    name = f"{options.backbone} ({'seeded random' if random else 'published'} weights)"
    return Source(lambda frames: frame_maps(backbone, frames, options.size), backbone.embed_dim, name)


def scenes(options: argparse.Namespace) -> Iterator[tuple[str, Frames]]:
    """Yield names and frames: of each folder an equal share, or rooms of ROOM_VIEWS frames."""
    if options.data is None:
        for place in range(math.ceil(options.frames / ROOM_VIEWS)):
            yield f"room {options.seed + place}", room(options.seed + place, ROOM_VIEWS, ROOM_SIZE, points=1).frames
        return
    if len(options.data) > options.frames:
        raise ConfigError(f"--frames is {options.frames} for {len(options.data)} folders; expected one each at least")
    left = options.frames
    for place, folder in enumerate(options.data):
        limit = math.ceil(left / (len(options.data) - place))
        frames = read_frames(folder, limit, options.every, options.depth_scale)
        left -= len(frames)
        yield str(folder), frames


def check_scene(
    chain: Chain, name: str, frames: Frames, source: Source, count: int, options: argparse.Namespace
) -> Iterator[FrameReport]:
    """Yield the reports of a scene's first ``count`` frames.

    Raises:
        ConfigError: if features are to come from more frames than there are.
    """
    others = options.views - (0 if options.without_own else 1)
    if others >= len(frames):
        raise ConfigError(f"--views asks for {others} other frames; {len(frames)} of {name} were read (--frames)")
    start = now(chain.device)
    maps, cameras = source.maps(frames)
    each = (now(chain.device) - start) / len(frames)
    for view in range(count):
        near = sorted((other for other in range(len(frames)) if other != view), key=lambda other: abs(other - view))
        own = [*([] if options.without_own else [view]), *near[:others]]
        compared = near[: max(_COMPARED, others)]
        report = check_frame(chain, name, frames, maps, cameras, view, compared, own, options.points, options.seed)
        report.seconds = {"image": each, **report.seconds}
        yield report


def verdict_of(frames: Frames) -> CameraCheck | None:
    """Return the verdict of depth on the poses; None where frames do not overlap."""
    check = check_cameras(None, frames.cameras, frames.depth)
    return check if max(check.in_bounds.values()) >= _OVERLAP else None


def camera_problems(verdicts: dict[str, CameraCheck]) -> list[str]:
    """Return a sentence for every scene whose poses are clearly misread, or whose depth or K does not fit."""
    return [
        f"cameras: {name}: {verdict}"
        for name, verdict in verdicts.items()
        if (verdict.clear and verdict.best != "camera_to_world") or not verdict.fits
    ]
