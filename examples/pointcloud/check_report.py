"""What the check found, as tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinoneck.text import counted
from examples.pointcloud.frame_check import FrameReport, view_links
from examples.pointcloud.frames import Frames
from examples.pointcloud.level_check import LevelReport

_DOT = 1  # pixels around a point that are painted
_WRONG = (255, 40, 40)  # points inside the image that are not at the depth measured there
_NEAR = (255, 230, 60)  # points that agree, from near
_FAR = (40, 90, 255)  # to far


def frame_lines(report: FrameReport, voxel: float) -> list[str]:
    """Return one frame's tables."""
    lines = [
        f"\n{report.scene}: {report.frame}",
        f"  {report.points:,} points, {report.voxels:,} voxels of {100 * voxel:g} cm; depth is "
        f"known in {report.known_depth:.2f} of the pixels",
    ]
    if report.views:
        lines.append(f"  valid projection: {report.valid_projection:.3f} of the points")
        rows = [("points in", "projected", "in front", "in bounds", "depth known", "depth agrees")]
        for number, view in enumerate(report.views):
            name = "own image" if number == 0 else view.frame
            shares = (view.projected, view.front, view.in_bounds, view.known, view.agree)
            rows.append((name, *(f"{share:.3f}" for share in shares)))
        lines += table(rows)
    if report.levels:
        lines += level_lines(report.levels)
    if report.fusion_2d is not None and report.fusion_3d is not None:
        lines.append(f"  fusion: 2D {report.fusion_2d:.3f}, 3D {report.fusion_3d:.3f}")
    counts = ", ".join(f"{stage} {count}" for stage, count in report.not_finite.items())
    lines.append(f"  NaN or infinite: {counts or 'not looked at'}")
    lines.append(f"  {report.cost.seconds:.2f} s, peak memory {report.cost.peak_memory_mb:.0f} MiB")
    lines += [f"  WRONG {problem}" for problem in report.problems]
    return lines


def level_lines(levels: Sequence[LevelReport]) -> list[str]:
    """Return the table of strides and channels."""
    rows = [
        ("stride", "block", "cells 2D", "cells 3D", "same", "seen", "channels", "agree", "hit rate")
    ]
    for level in levels:
        channels = f"{level.feature_channels}"
        if level.projected_channels is not None:
            channels += f"->{level.projected_channels}, branch {level.branch_channels}"
        rows.append(
            (
                str(level.stride),
                level.block,
                str(level.pyramid_cells),
                "-" if level.network_cells is None else str(level.network_cells),
                "yes" if level.same_cells else "NO",
                f"{level.seen:.3f}",
                channels,
                "yes" if level.channels_agree else "NO",
                "-" if level.hit_rate is None else f"{level.hit_rate:.3f}",
            )
        )
    return table(rows)


def summary_lines(reports: Sequence[FrameReport], problems: Sequence[str]) -> list[str]:
    """Return the numbers of all frames together, and the verdict."""
    run = [report for report in reports if report.views]
    frames = counted(len(reports), "frame")
    lines = [f"\n{frames}, {len(run)} of them sent through the network"]
    if run:
        agree = [report.agree_elsewhere for report in run if report.agree_elsewhere is not None]
        agreement = f"{fmean(agree):.3f}" if agree else "-"
        lines.append(
            f"  valid projection {fmean(report.valid_projection for report in run):.3f}, depth "
            f"agrees with other frames {agreement}, "
            f"{fmean(report.cost.seconds for report in run):.2f} s per frame, peak memory "
            f"{max(report.cost.peak_memory_mb for report in run):.0f} MiB"
        )
    if problems:
        lines.append(f"{counted(len(problems), 'problem')}:")
        lines += [f"  {problem}" for problem in problems]
    else:
        lines.append("nothing wrong was found")
    return lines


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines with columns of one width."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        for cell, width in zip(row[1:], widths[1:], strict=True):
            cells.append(cell.rjust(width))
        lines.append("    " + "  ".join(cells).rstrip())
    return lines


def picture(frames: Frames, view: int, points: Tensor) -> Image.Image:
    """Return an image with points painted over it: yellow (near) to blue (far), red if depth disagrees.

    Args:
        frames: of a scene.
        view: whose image.
        points: float64 (N, 3) m, not from the view's own depth, which agrees with any pose.
    """
    camera = frames.cameras[[view]]
    links = view_links(camera, frames.depth[view : view + 1], points)
    uv, z = camera.project(points)
    height, width = camera.size
    pixels = uv[0].round()
    inside = (
        (z[0] > 0) & (pixels >= 0).all(1) & (pixels < pixels.new_tensor([width, height])).all(1)
    )
    agree = torch.zeros(len(points), dtype=torch.bool)
    agree[links.point] = True
    near, far = 0.0, 1.0
    if len(links):
        near, far = float(links.z.min()), float(links.z.max())
    grey = frames.images[view].float().mean(0).numpy()
    canvas = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    order = z[0].argsort(descending=True)  # the nearest last, over the others
    for agrees in (False, True):
        painted = inside & (agree == agrees)
        rows = order[painted[order]]
        centres = pixels[rows].long().numpy()  # (n, 2): x, y
        share = ((z[0][rows] - near) / max(far - near, 1e-6)).clamp(0, 1)[:, None].numpy()
        colours = np.array(_NEAR) * (1 - share) + np.array(_FAR) * share
        if not agrees:
            colours[:] = _WRONG
        for down in range(-_DOT, _DOT + 1):
            for right in range(-_DOT, _DOT + 1):
                y = (centres[:, 1] + down).clip(0, height - 1)
                x = (centres[:, 0] + right).clip(0, width - 1)
                canvas[y, x] = colours.astype(np.uint8)
    return Image.fromarray(canvas)


def save_picture(image: Image.Image, folder: Path, frame: str) -> Path:
    """Write the picture of a frame; return its file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{frame.replace('/', '_')}.png"
    image.save(path)
    return path
