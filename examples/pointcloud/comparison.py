"""The verb ``compare``: what images bring to a trained 3D U-Net, over seeds, and whether that exceeds their noise.

Per seed the 3D network is trained alone; all variants then start from its file and get the same
steps, learning rate and order of rooms. Runs that are finished are read, so that the verb may be
stopped and started again.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dinoneck.atomic import write_text
from dinoneck.backbones.known import TINY
from dinoneck.errors import ConfigError
from examples.pointcloud.instances import AP_OF
from examples.pointcloud.room_batches import STAND_IN
from examples.pointcloud.rooms import FLAT
from examples.pointcloud.training import RESULT, WEIGHTS, train
from examples.pointcloud.training_plan import Plan, Rooms, rooms_of

_STAND_IN = (
    "The same, and a stand-in for a trained backbone: features that name what an image "
    "shows, in noise"
)
Block = Literal["geometry", "stand-in", "colours"]
# what differs from the options: in the 3D network's runs, beyond that in those with images; a title
BLOCKS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "geometry": ({}, {}, "The points hold positions and normals"),
    "stand-in": ({}, {"backbone": STAND_IN}, _STAND_IN),
    "colours": ({"point_colours": True}, {}, "The points hold positions, normals and colours"),
}
ROWS: dict[str, dict[str, Any]] = {
    "3D only": {"variant": "3d"},
    "BiFusion": {"variant": "bifusion"},
    "inject": {"variant": "inject"},
    "both": {"variant": "both"},
    "both, wrong images": {"variant": "both", "wrong_images": True},
}
PAIRS = (*((row, "3D only") for row in ROWS if row != "3D only"), ("inject", "BiFusion"))
# two-sided 95 % of Student's t, by degrees of freedom
_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
_OF_INSTANCES = (
    "AP, AP50 and AP25 are of instances: connected voxels of one predicted class, matched by IoU."
)
_RULE = (
    "a difference exceeds seed noise if the 95 % interval of its paired mean over seeds "
    "(Student's t) leaves out 0"
)
_logger = logging.getLogger("examples.pointcloud")


def compare(
    out: Path,
    plan: Annotated[Plan, tyro.conf.arg(name="")],
    results: Path | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
    blocks: tuple[Block, ...] = ("geometry",),
    pretrain_steps: int = 240,
    device: str = "cpu",
) -> None:
    """Train all variants over seeds from one 3D file each, and compare differences with the seeds' noise.

    Args:
        out: folder of the runs.
        plan: what all variants share.
        results: folder of point_segmentation.json and .md; that of the runs if it is not given.
        seeds: of rooms, weights and order.
        blocks: what points and images show.
        pretrain_steps: of the 3D network alone.
        device: of the networks, such as cuda.
    """
    if len(set(seeds)) < len(seeds) or not 2 <= len(seeds) <= len(_STUDENT) + 1:
        raise ConfigError(f"--seeds is {seeds}; expected 2 to {len(_STUDENT) + 1} different ones")
    if plan.data and STAND_IN in (
        plan.backbone,
        *(BLOCKS[block][1].get("backbone") for block in blocks),
    ):
        raise ConfigError(
            "a stand-in for a backbone needs rooms, whose images are known pixel by pixel; not "
            "--data"
        )
    found: dict[str, dict[str, dict[str, Any]]] = {block: {} for block in blocks}
    for seed in seeds:
        rooms: dict[str, Rooms] = {}  # by the backbone of their features
        for block in blocks:
            found[block][str(seed)] = _seed(
                replace(plan, seed=seed), block, rooms, out, pretrain_steps, device
            )
    tables = {block: {"summary": summary(runs), "seeds": runs} for block, runs in found.items()}
    measured = {"rule": _RULE, "pretrain_steps": pretrain_steps, "blocks": tables}
    folder = results or out
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "point_segmentation.json", json.dumps(measured, indent=2) + "\n")
    write_text(folder / "point_segmentation.md", markdown(measured))
    print(markdown(measured))


def _seed(
    plan: Plan, block: str, rooms: dict[str, Rooms], out: Path, pretrain_steps: int, device: str
) -> dict[str, Any]:
    """Train the 3D network and then every row from its file, or read what is there."""
    of_points, of_images, _ = BLOCKS[block]
    plan = replace(plan, **of_points)
    # blocks that give the points alike share the runs without images
    first = next(name for name, (changes, _, _) in BLOCKS.items() if changes == of_points)

    def result(own: Plan, folder: Path, start: Path | None) -> dict[str, Any]:
        if (folder / RESULT).exists():
            return _finished(own, folder)
        _logger.info("%s", folder)
        if own.backbone not in rooms:
            rooms[own.backbone] = rooms_of(own, images=True, device=device)
        return train(own, rooms[own.backbone], folder, start, device)

    begun = out / first / f"seed{plan.seed}" / "pretrained"
    rows = {"pretrained": result(replace(plan, steps=pretrain_steps), begun, None)}
    for name, changes in ROWS.items():
        own, home = (
            (plan, first) if name == "3D only" else (replace(plan, **changes, **of_images), block)
        )
        folder = out / home / f"seed{plan.seed}" / name.lower().replace(",", "").replace(" ", "-")
        rows[name] = result(own, folder, begun / WEIGHTS)
    return rows


def _finished(plan: Plan, folder: Path) -> dict[str, Any]:
    """Return the result in a folder, which must be that of the plan.

    Raises:
        ConfigError: if the folder holds another run.
    """
    found: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    if other := [key for key, value in plan.to_json().items() if value != found["plan"].get(key)]:
        raise ConfigError(
            f"{folder} holds a run with other {', '.join(other)}; take another --out or remove it"
        )
    return found


def summary(seeds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Means and deviations over seeds of every row, and the paired differences."""

    def each(row: str, at: str = "test") -> list[float]:
        return [runs[row][at]["miou"] for runs in seeds.values()]

    def ious(row: str, name: str) -> list[float]:
        return [
            iou for runs in seeds.values() if (iou := runs[row]["test"]["iou"][name]) is not None
        ]

    def precision(row: str) -> dict[str, Any]:
        """The average precisions of runs on scenes with instance masks."""
        tests = [runs[row]["test"] for runs in seeds.values()]
        if not all("instances" in one for one in tests):
            return {}
        known = {name: [one["instances"][name] for one in tests] for name in AP_OF}
        return {
            name: _spread([value for value in each if value is not None])
            for name, each in known.items()
        }

    rows = {
        row: {
            "miou": _spread(each(row)),
            "iou": {
                name: _spread(ious(row, name))
                for name in next(iter(seeds.values()))[row]["test"]["iou"]
            },
            **precision(row),
            "parameters": next(iter(seeds.values()))[row]["parameters"],
        }
        for row in ("pretrained", *ROWS)
    }
    differences = {f"{a} - {b}": difference(each(a), each(b)) for a, b in PAIRS}
    same = all(
        runs["inject"]["untrained"]["iou"] == runs["pretrained"]["test"]["iou"]
        for runs in seeds.values()
    )
    return {"rows": rows, "differences": differences, "injection_at_step_0_is_3d_only": same}


def difference(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Return the paired difference of two rows over seeds, its 95 % interval, and whether that leaves out 0."""
    each = [x - y for x, y in zip(a, b, strict=True)]
    mean, deviation = statistics.fmean(each), statistics.stdev(each)
    half = _STUDENT[len(each) - 2] * deviation / len(each) ** 0.5
    return {
        "mean": mean,
        "deviation": deviation,
        "half_width": half,
        "each": each,
        "exceeds_noise": abs(mean) > half,
    }


def markdown(results: Mapping[str, Any]) -> str:
    """The setting and the tables."""
    plan = next(iter(next(iter(results["blocks"].values()))["seeds"].values()))["inject"]["plan"]
    rooms = (
        f"{plan['rooms']} rooms to learn from, {plan['test_rooms']} held out, {plan['views']} "
        f"images of {plan['image_size'][1]}×{plan['image_size'][0]} px each"
    )
    if plan.get("data"):
        rooms = (
            f"Scans, held out: {', '.join(plan['held_out'])}; labels: {Path(plan['labels']).name}"
        )
    random = plan["random_backbone"] or plan["backbone"] in (TINY, STAND_IN)
    source = f"{plan['backbone']} ({'seeded random' if random else 'published'} weights)"
    if plan.get("features"):
        source = f"features of the store {Path(plan['features']).name}"
    shown = (
        list(dict.fromkeys(name.partition("=")[2] for name in plan["classes"]))
        if plan.get("data")
        else FLAT
    )
    lines = [
        f"{rooms}, voxels of {100 * plan['voxel']:.0f} cm, network {plan['network']}, {source}, "
        f"{results['pretrain_steps']} steps of the 3D network, then {plan['steps']} of every row "
        "from its file; `python -m examples.pointcloud compare`.",
        "",
    ]
    for block, found in results["blocks"].items():
        stats, seeds = found["summary"], found["seeds"]
        precisions = [name for name in AP_OF if name in stats["rows"]["pretrained"]]
        columns = ["mIoU", *precisions, *shown, "other classes", "trainable parameters"]
        lines += [
            f"**{BLOCKS[block][2]}** ({len(seeds)} seeds, mean ± deviation)",
            "",
            f"| | {' | '.join(columns)} |",
            f"|---|{'---|' * len(columns)}",
            *(_row(name, row, shown) for name, row in stats["rows"].items()),
            *(["", _OF_INSTANCES] if precisions else []),
            "",
            "| mIoU | difference | 95 % interval | exceeds seed noise |",
            "|---|---|---|---|",
            *(_difference(name, one) for name, one in stats["differences"].items()),
            "",
        ]
    return "\n".join([*lines, f"Rule: {results['rule']}.", ""])


def _row(name: str, row: Mapping[str, Any], shown: Sequence[str]) -> str:
    others = [one["mean"] for name, one in row["iou"].items() if name not in shown and one["each"]]
    measured = [
        row["miou"],
        *(row[one] for one in AP_OF if one in row),
        *(row["iou"][one] for one in shown),
    ]
    rest = f"{statistics.fmean(others):.3f}" if others else "–"
    new = sum(
        number for part, number in row["parameters"].items() if part in ("fusion", "injection")
    )
    total = sum(row["parameters"].values())
    share = f" (+{100 * new / (total - new):.1f} %)" if 0 < new < total else ""
    return f"| {name} | {' | '.join(map(_plus_minus, measured))} | {rest} | {total:,}{share} |"


def _difference(name: str, found: Mapping[str, Any]) -> str:
    low, high = found["mean"] - found["half_width"], found["mean"] + found["half_width"]
    shown = "yes" if found["exceeds_noise"] else "no"
    return f"| {name} | {found['mean']:+.3f} | {low:+.3f} ... {high:+.3f} | {shown} |"


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and deviation over seeds; None for a class that no seed's held-out rooms have, or one seed's alone."""
    mean = statistics.fmean(values) if values else None
    return {
        "mean": mean,
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "each": list(values),
    }


def _plus_minus(found: Mapping[str, Any]) -> str:
    if found["deviation"] is None:
        return "–" if found["mean"] is None else f"{found['mean']:.3f}"
    return f"{found['mean']:.3f} ± {found['deviation']:.3f}"
