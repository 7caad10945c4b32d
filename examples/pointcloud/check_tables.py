"""What the check found, as small tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

import torch

from dinoneck.points import CameraCheck
from examples.pointcloud.frame_check import FrameReport
from examples.pointcloud.network_check import BlockReport

_SHOWN = 12


def print_frame(report: FrameReport, voxel: float, device: torch.device) -> None:
    """Print one frame's tables."""
    print(f"\n{report.scene}: {report.name}")
    if not report.points:
        print("  no pixel has known depth: no cloud, nothing to check")
        return
    points = f"{report.points:,} of {report.depth_points:,} points with depth"
    print(f"  {points}; {report.voxels:,} voxels of {voxel * 100:g} cm")
    rows: list[tuple[str, ...]] = [
        ("points in", "projected", "front", "in bounds", "depth known", "agrees", "grey levels")
    ]
    for place, view in enumerate(report.views):
        shares = (view.projected, view.front, view.in_bounds, view.known, view.agree)
        colour = "-" if view.grey_levels is None else f"{view.grey_levels:.1f}"
        own = "own image" if not place else view.name
        rows.append((own, *(f"{share:.3f}" for share in shares), colour))
    _table(rows)
    fused = "-" if report.fusion_2d is None else f"2D {report.fusion_2d:.3f}, 3D {report.fusion_3d:.3f}"
    print(f"  features from {', '.join(report.features_from)}: coverage {report.coverage:.3f}; fusion {fused}")
    rows = [("stride", "block", "voxels", "planned", "met", "seen", "hit rate", "zero look-ups", "NaN/Inf")]
    shown = [block for block in report.blocks if block.plan.skip or block.plan.stride == 16]
    rows += [_row(block, report.seen_voxels.get(block.plan.stride)) for block in shown]
    _table(rows)
    print("  NaN/Inf: " + ", ".join(f"{stage} {count}" for stage, count in report.bad.items()))
    times = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in report.seconds.items() if stage != "all")
    kind = "peak of torch's allocations" if device.type == "cuda" else "peak memory above the frame's start"
    print(f"  seconds: {times}; {kind} {report.memory_mb:.0f} MB")
    for problem in report.problems[:_SHOWN]:
        print(f"  WRONG {problem}")


def print_summary(reports: Sequence[FrameReport], verdicts: Mapping[str, CameraCheck], problems: Sequence[str]) -> None:
    """Print the numbers of all frames together."""
    full = [report for report in reports if report.points]
    print(f"\n{len(reports)} frames, {len(reports) - len(full)} without depth")
    if full:
        hits = [block.hit_rate for report in full for block in report.blocks if block.hit_rate is not None]
        others = [view.agree for report in full for view in report.views[1:] if view.in_bounds > 0]
        seconds = fmean(report.seconds["image"] + report.seconds["all"] for report in full)
        coverage = _mean([report.coverage for report in full])
        print(f"  coverage {coverage}, hit rate {_mean(hits)}, depth agrees with other frames {_mean(others)}")
        print(f"  {seconds:.2f} s per frame")
    for name, verdict in verdicts.items():
        print(f"  cameras of {name}: {verdict.share:.2f} of the depth agrees; {verdict}")
    if full and not verdicts:
        print("  poses: no two frames overlap, nothing tells how they are read")
    print("everything as planned" if not problems else f"{len(problems)} problems, the first: {problems[0]}")


def _row(block: BlockReport, seen: float | None) -> tuple[str, ...]:
    stride, up, skip, leaves = block.plan
    rates = ("-", "-") if block.hit_rate is None else (f"{block.hit_rate:.3f}", f"{1 - block.hit_rate:.3f}")
    return (
        str(stride),
        block.name,
        f"{block.voxels:,}",
        f"{up}+{skip}->{leaves}" if skip else f"{up}->{leaves}",
        f"{'-' if block.enters is None else block.enters}->{'-' if block.leaves is None else block.leaves}",
        "-" if seen is None else f"{seen:.3f}",
        *rates,
        str(block.bad),
    )


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("    " + "  ".join(cells).rstrip())


def _mean(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f}" if values else "-"
