"""Verb ``check``: do depth, poses and intrinsics of a scene fit, before features are lifted with them?"""

from __future__ import annotations

import argparse
from pathlib import Path

from dinoneck.points import PointProjector, check_cameras
from examples import kinds
from examples.pointcloud.frames import cloud_of, read_frames
from examples.pointcloud.rooms import room

HELP = "compare the depth of a scene's frames with each other; exit code 1 if poses, depth or K do not fit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="a scene; without, a drawn room")
    parser.add_argument("--frames", type=kinds.count, default=10, metavar="N", help="to check at most")
    parser.add_argument("--every", type=kinds.count, default=1, metavar="K", help="frames whose number K divides")
    parser.add_argument("--depth-scale", type=kinds.positive, metavar="N", help="units of the depth files per metre")


def run(options: argparse.Namespace) -> int:
    """Print the share of every frame's points that other frames see, and the verdict; return 1 if nothing fits."""
    if options.data is None:
        frames = room(0, options.frames, (240, 320), points=1).frames
    else:
        frames = read_frames(options.data, options.frames, options.every, options.depth_scale)
    for view, name in enumerate(frames.names):
        others = [other for other in range(len(frames)) if other != view]
        cloud = cloud_of(frames, view)[0]
        if others and len(cloud):
            links = PointProjector()(cloud, frames.cameras[others], frames.depth[others])
            print(f"{name}: {len(cloud):,} points, {links.coverage:.0%} of them visible in other frames")
    check = check_cameras(None, frames.cameras, frames.depth)
    print(f"{check.share:.2f} of the depth agrees; {check}")
    return 1 if not check.fits or (check.clear and check.best != "camera_to_world") else 0
