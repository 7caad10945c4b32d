"""One frame through projection, lifting, pyramid and 3D network, with the numbers that show an error."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.points import Cameras, Links, PointProjector
from dinoneck.points.camera_check import FITS
from examples.pointcloud.cost import Cost, measured
from examples.pointcloud.frames import Frames
from examples.pointcloud.level_check import LevelReport, check_network, not_finite, share
from examples.pointcloud.room_batches import Batch, Scene, Voxels, batch_of
from examples.pointcloud.scans import Cloud, normals_of
from examples.pointcloud.segmentation import Segmenter

COMPARED = 4  # other frames, the nearest in order, that a frame's own points are looked for in
LEAST_POINTS = 100  # at known depth, to judge a pose by
LEAST_OVERLAP = 0.02  # of the points
# least agreement of a frame, as a share of the median of the others: in the shared RGB-D room the
# worst frame has 0.5 of it and one moved by a metre 0.25; with the room's scan 0.7 and 0.15
WEAK = 0.4
USUAL_OVERLAP = 0.2  # of other frames of the scene, before a frame without any is named


@dataclass
class ViewReport:
    """The points in one image.

    Attributes:
        frame: name of the image's frame.
        projected: share of the points that the image shows: in front, inside, at the depth there.
        front: share of the points in front of the camera.
        in_bounds: share of the points inside the image.
        known: share of those in bounds where depth is known.
        agree: share of those with known depth that lie at it.
        judged: points with known depth.
    """

    frame: str
    projected: float
    front: float
    in_bounds: float
    known: float
    agree: float
    judged: int


@dataclass
class FrameReport:
    """All numbers of one frame; ``problems`` is empty if nothing is wrong."""

    scene: str
    frame: str
    points: int
    known_depth: float
    voxels: int = 0
    valid_projection: float = 0.0
    fusion_2d: float | None = None
    fusion_3d: float | None = None
    views: list[ViewReport] = field(default_factory=list)
    levels: list[LevelReport] = field(default_factory=list)
    not_finite: dict[str, int] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)
    problems: list[str] = field(default_factory=list)

    @property
    def agree_elsewhere(self) -> float | None:
        """Share of the points that lie at the depth of other frames; None if too few are there."""
        others = [view for view in self.views if view.frame != self.frame]
        judged = sum(view.judged for view in others)
        if judged < max(LEAST_POINTS, LEAST_OVERLAP * self.points):
            return None
        return sum(view.agree * view.judged for view in others) / judged

    def best_agreement(self, without: str = "") -> float | None:
        """Highest share of points that agree with one other frame; None if too few are in any.

        Args:
            without: a frame that is not counted.
        """
        shares = []
        for view in self.views:
            is_judged = view.judged >= max(LEAST_POINTS, LEAST_OVERLAP * self.points)
            if is_judged and view.frame not in (self.frame, without):
                shares.append(view.agree)
        return max(shares, default=None)


@dataclass(frozen=True)
class Chain:
    """What every frame is sent through.

    Attributes:
        model: with fusion and injection, in ``eval`` mode.
        voxels: how points become its input.
        points: drawn from a frame at most.
        device: of the model.
    """

    model: Segmenter
    voxels: Voxels
    points: int
    device: torch.device


def check_frame(
    chain: Chain,
    scene: str,
    frames: Frames,
    view: int,
    maps: Tensor,
    cloud: Cloud | None,
    seed: int = 0,
) -> FrameReport:
    """Send one frame through the chain once; nothing is trained.

    Args:
        chain: what it is sent through.
        scene: its name.
        frames: all of the scene.
        view: which of them.
        maps: (1, C, rows, cols), features of its image.
        cloud: a scan of the scene; None = what the frame's own depth shows.
        seed: of the points that are drawn.
    """
    depth = frames.depth[view : view + 1]
    known_depth = share(depth.isfinite() & (depth > 0))
    sample = points_of(frames, view, cloud, chain.points, seed)
    report = FrameReport(scene, frames.names[view], len(sample.points), known_depth)
    if not known_depth:
        report.problems.append(
            f"{report.frame}: no pixel has known depth; expected metres above 0 in some"
        )
        return report
    report.not_finite["maps"] = not_finite(maps)
    with measured(chain.device) as report.cost:
        links = view_links(frames.cameras[[view]], depth, sample.points)
        batch = batch_of([replace(sample, maps=maps.cpu(), links=links)], chain.voxels)
        _check_levels(chain, report, batch.to(chain.device))
    report.valid_projection = links.coverage
    nearest = _nearest(view, len(frames))
    for place, other in enumerate([view, *nearest]):
        # a scan is compared with the frame itself; a frame's own depth agrees with itself always
        if place == 0 or cloud is None:
            report.views.append(_view_report(frames, other, sample.points))
    for stage, count in report.not_finite.items():
        if count:
            report.problems.append(f"{report.frame}: {count} values of {stage} are NaN or infinite")
    if cloud is not None:
        _check_own_view(report)
    return report


def _check_levels(chain: Chain, report: FrameReport, batch: Batch) -> None:
    """Run the network, and note what its levels and its fusion did."""
    report.voxels = len(batch.grid)
    pyramid = batch.pyramid or {}
    report.not_finite["lifted features"] = not_finite(pyramid[1].feats)
    network = check_network(chain.model, batch, pyramid)
    report.levels = network.levels
    report.problems += [f"{report.frame}: {problem}" for problem in network.problems()]
    fusion = network.stats.get("fusion", {})
    if "fusion_2d_ratio" in fusion:
        report.fusion_2d = fusion["fusion_2d_ratio"]
        report.fusion_3d = 1.0 - fusion["fusion_2d_ratio"]


def points_of(frames: Frames, view: int, cloud: Cloud | None, most: int, seed: int) -> Scene:
    """Return points of a scan, or those that a frame's depth shows, at most so many of them."""
    if cloud is None:
        depth = frames.depth[view : view + 1]
        world = frames.cameras[[view]].unproject(depth)[0]
        known = world.isfinite().all(-1)
        points = world[known]
        image = frames.images[view : view + 1].float()
        if image.shape[-2:] != world.shape[:2]:
            image = F.interpolate(image, size=world.shape[:2], mode="area")
        colours = image[0].permute(1, 2, 0)[known].to(torch.uint8)
    else:
        points = cloud.points
        colours = cloud.colours
        if colours is None:
            colours = torch.full_like(points, 128, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(points), generator=generator)[:most]
    normals = torch.zeros(len(rows), 3)
    if len(rows):
        normals = normals_of(points, frames.cameras[[view]])[rows]
    labels = torch.zeros(len(rows), dtype=torch.int64)
    return Scene(points[rows], normals, colours[rows], labels)


def _nearest(view: int, count: int) -> list[int]:
    others = [other for other in range(count) if other != view]
    return sorted(others, key=lambda other: abs(other - view))[:COMPARED]


def _view_report(frames: Frames, view: int, points: Tensor) -> ViewReport:
    links = view_links(frames.cameras[[view]], frames.depth[view : view + 1], points)
    stats = links.stats()
    return ViewReport(
        frame=frames.names[view],
        projected=len(links) / max(1, len(points)),
        front=float(stats["front"]),
        in_bounds=float(stats["in_bounds"]),
        known=float(stats["known"]),
        agree=float(stats["agree"]),
        judged=0 if links.counts is None else int(links.counts[0, 3]),
    )


def view_links(camera: Cameras, depth: Tensor, points: Tensor) -> Links:
    """Link points with one view, without the projector's own warnings: the check says what is wrong."""
    return PointProjector().link(points, camera, depth, None)


def _check_own_view(report: FrameReport) -> None:
    """Compare the scan with the frame itself."""
    own = report.views[0]
    if own.judged < LEAST_POINTS:
        report.problems.append(
            f"{report.frame}: {own.judged} points of the scan lie in the image at known depth; "
            "look at its pose and at K"
        )
    elif own.agree < FITS:
        report.problems.append(
            f"{report.frame}: depth agrees with {own.agree:.2f} of the scan's points in the image; "
            f"expected {FITS} or more: its pose or its depth is wrong"
        )


def check_against_scan(reports: list[FrameReport]) -> list[str]:
    """Return the frames that agree with the scan clearly worse than the others of their scene do.

    Args:
        reports: of a scene with a scan; frames that agree with it for less than ``FITS`` are named
            by :func:`check_frame`.
    """
    found = []
    own = {report.frame: report.views[0] for report in reports if report.views}
    for name, view in own.items():
        others = [other.agree for frame, other in own.items() if frame != name]
        if len(others) < 2 or view.judged < LEAST_POINTS or view.agree < FITS:
            continue
        usual = statistics.median(others)
        if view.agree < WEAK * usual:
            found.append(
                f"{name}: depth agrees with {view.agree:.2f} of the scan's points in the image, "
                f"and that of the other frames with {usual:.2f}; look at its pose and its depth"
            )
    return found


def check_between(reports: list[FrameReport]) -> list[str]:
    """Return the frames of a scene whose depth fits no other frame, or clearly worse than the others fit each other.

    Args:
        reports: of a scene without a scan, whose poses are read the right way as a whole.
    """
    found = []
    shares = {report.frame: report.agree_elsewhere for report in reports if report.views}
    overlapping = [name for name, agree in shares.items() if agree is not None]
    for name, agree in shares.items():
        if agree is not None and agree < FITS:
            found.append(
                f"{name}: its depth agrees with other frames for {agree:.2f} of the points; "
                f"expected {FITS} or more: its pose or its depth is wrong"
            )
        elif agree is None and len(overlapping) > USUAL_OVERLAP * len(shares) and len(shares) > 2:
            found.append(
                f"{name}: no other frame shows its points, and {len(overlapping)} frames of the "
                "scene show each other's; look at its pose"
            )
        else:
            found += _weak_frame(name, reports)
    return found


def _weak_frame(name: str, reports: list[FrameReport]) -> list[str]:
    """Say that a frame agrees with none of the others nearly as well as these with each other."""
    best = None
    others = []
    for report in reports:
        if report.frame == name:
            best = report.best_agreement()
        else:
            other = report.best_agreement(without=name)
            if other is not None:
                others.append(other)
    if best is None or len(others) < 2:
        return []
    usual = statistics.median(others)
    if best >= WEAK * usual:
        return []
    return [
        f"{name}: its depth agrees with another frame for at most {best:.2f} of the points, where "
        f"the other frames reach {usual:.2f} with each other; look at its pose and its depth"
    ]
