"""The tables of the verb ``compare``."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinoneck.backbones.known import TINY
from dinoneck.text import counted
from examples.pointcloud.instances import AP_OF
from examples.pointcloud.paired import LEAST_GROUPS
from examples.pointcloud.room_batches import STAND_IN
from examples.pointcloud.rooms import FLAT

_OF_INSTANCES = (
    "AP, AP50 and AP25 are of instances: connected voxels of one predicted class, matched by IoU."
)


def markdown(results: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Return the setting and the tables.

    Args:
        results: what ``point_segmentation.json`` holds.
        titles: of the blocks.
    """
    first_block = next(iter(results["blocks"].values()))
    first_seed = next(iter(first_block["seeds"].values()))
    plan = first_seed["inject"]["plan"]
    lines = [_setting(plan, results["pretrain_steps"]), ""]
    for name, block in results["blocks"].items():
        title = f"**{titles[name]}** ({len(block['seeds'])} seeds, mean ± deviation)"
        lines += [title, "", *_scores(block["summary"], _shown_classes(plan)), ""]
        lines += [*_differences(block["summary"]), ""]
        if "precision_differences" in block["summary"]:
            lines += [*precision_table(block["summary"]["precision_differences"]), ""]
    return "\n".join([*lines, f"Rule: {results['rule']}.", ""])


def _setting(plan: Mapping[str, Any], pretrain_steps: int) -> str:
    if plan.get("data"):
        held_out = ", ".join(plan["held_out"])
        rooms = f"Scans, held out: {held_out}; labels: {Path(plan['labels']).name}"
    else:
        height, width = plan["image_size"]
        rooms = (
            f"{counted(plan['rooms'], 'room')} to learn from, {plan['test_rooms']} held out, "
            f"{counted(plan['views'], 'image')} of {width}×{height} px each"
        )
    if plan.get("features"):
        source = f"features of {Path(plan['features']).name}"
    else:
        is_random = plan["random_backbone"] or plan["backbone"] in (TINY, STAND_IN)
        source = f"{plan['backbone']} ({'seeded random' if is_random else 'published'} weights)"
    start = f"{counted(pretrain_steps, 'step')} of the 3D network"
    if plan.get("init"):
        start = f"weights of {Path(plan['init']).name}, {start}"
    return (
        f"{rooms}, voxels of {100 * plan['voxel']:.0f} cm, network {plan['network']}, {source}, "
        f"{start}, then {plan['steps']} of every row from its file; `python -m "
        "examples.pointcloud compare`."
    )


def _shown_classes(plan: Mapping[str, Any]) -> Sequence[str]:
    """The classes with a column of their own: all of scans, the flat ones of drawn rooms."""
    if not plan.get("data"):
        return FLAT
    return list(dict.fromkeys(name.partition("=")[2] for name in plan["classes"]))


def _scores(summary: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    rows = summary["rows"]
    precisions = [name for name in AP_OF if name in next(iter(rows.values()))]
    columns = ["mIoU", *precisions, *shown, "other classes", "trainable parameters"]
    columns += ["seconds", "peak memory"]
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, row in rows.items():
        cells = [_plus_minus(row["miou"])]
        cells += [_plus_minus(row[precision]) for precision in precisions]
        cells += [_plus_minus(row["iou"][one]) for one in shown]
        cells += [_others(row, shown), _parameters(row["parameters"])]
        cells += [f"{row['seconds']['mean']:.1f}", f"{row['peak_memory_mb']:.0f} MiB"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if precisions:
        lines += ["", _OF_INSTANCES]
    return lines


def _others(row: Mapping[str, Any], shown: Sequence[str]) -> str:
    """The mean IoU of the classes without a column."""
    means = [one["mean"] for name, one in row["iou"].items() if name not in shown and one["each"]]
    return f"{statistics.fmean(means):.3f}" if means else "–"


def _parameters(parts: Mapping[str, int]) -> str:
    total = sum(parts.values())
    new = parts.get("fusion", 0) + parts.get("injection", 0)
    if not new:
        return f"{total:,}"
    return f"{total:,} (+{100 * new / (total - new):.1f} %)"


def _differences(summary: Mapping[str, Any]) -> list[str]:
    lines = ["| mIoU | difference | 95 % interval | exceeds seed noise |", "|---|---|---|---|"]
    for name, found in summary["differences"].items():
        low = found["mean"] - found["half_width"]
        high = found["mean"] + found["half_width"]
        shown = "yes" if found["exceeds_noise"] else "no"
        lines.append(f"| {name} | {found['mean']:+.3f} | {low:+.3f} ... {high:+.3f} | {shown} |")
    return lines


def precision_table(differences: Mapping[str, Any]) -> list[str]:
    """Return the differences of AP with their intervals, and a line on the groups behind them.

    Args:
        differences: ``A - B`` -> score -> what :meth:`PairedPrecision.difference` gives.
    """
    groups = next(iter(differences.values()))["AP"]["groups"]
    columns = [f"{score}, difference | 95 % interval" for score in AP_OF]
    lines = [f"| instances | {' | '.join(columns)} |", f"|---|{'---|---|' * len(columns)}"]
    for name, scores in differences.items():
        cells = []
        for score in AP_OF:
            found = scores[score]
            value = found["difference"]
            cells.append("–" if value is None else f"{value:+.3f}")
            if found["interval"] is None:
                cells.append("–")
            else:
                low, high = found["interval"]
                cells.append(f"{low:+.3f} ... {high:+.3f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", _groups_note(groups)]


def _groups_note(groups: int) -> str:
    """What intervals of AP rest on, or why there are none."""
    if groups < LEAST_GROUPS:
        shown = counted(groups, "group")
        return (
            f"No intervals of AP: {shown} of held-out scenes, and {LEAST_GROUPS} or more are needed; "
            "scans of one room are a group. The differences alone show nothing."
        )
    return f"Intervals draw the {groups} groups of held-out scenes; scans of one room are a group."


def _plus_minus(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "–"
    if found["deviation"] is None:
        return f"{found['mean']:.3f}"
    return f"{found['mean']:.3f} ± {found['deviation']:.3f}"
