"""The verb ``compare``: what images bring to a trained 3D U-Net, over seeds, and whether that exceeds their noise.

Per seed the 3D network is trained alone, or its weights are read from ``--init``; all variants then
start from its file and get the same steps, learning rate and order of rooms. Runs that are finished
are read, so that the verb may be stopped and started again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dinoneck.atomic import write_text
from dinoneck.errors import ConfigError
from dinoneck.text import reason_of
from examples.pointcloud.comparison_tables import markdown
from examples.pointcloud.data_digest import data_digest
from examples.pointcloud.instances import AP_OF, SceneMatches, matches_from_json
from examples.pointcloud.minkowski_weights import file_channels
from examples.pointcloud.paired import (
    STUDENT,
    PairedPrecision,
    difference,
    group_of,
    precisions,
    spread,
)
from examples.pointcloud.room_batches import INPUT_CHANNELS, STAND_IN, Inputs
from examples.pointcloud.training import INSTANCES, RESULT, WEIGHTS, train
from examples.pointcloud.training_plan import Plan, Rooms, check_plan, rooms_of

PRETRAIN_STEPS = 240
BlockName = Literal["geometry", "stand-in", "colours", "rgb"]
_RULE = (
    "a difference of mIoU exceeds seed noise if the 95 % interval of its paired mean over seeds "
    "(Student's t) leaves out 0; intervals of AP draw groups of held-out scenes"
)
# entry of a plan -> what a message calls it where two plans differ
_DIGESTS = {
    "init_digest": "init_digest (the content of --init)",
    "data_digest": "data_digest (files of --data, --labels or --features)",
}
_logger = logging.getLogger("examples.pointcloud")


@dataclass(frozen=True)
class Block:
    """A setting in which all rows are trained.

    Attributes:
        title: in the tables.
        inputs: what the 3D network is given of the points.
        stand_in: whether features are those of a stand-in for a trained backbone.
    """

    title: str
    inputs: Inputs
    stand_in: bool = False


BLOCKS: dict[str, Block] = {
    "geometry": Block("The points hold positions and normals", "geometry"),
    "stand-in": Block(
        "The same, and a stand-in for a trained backbone: features that name what an image shows, "
        "in noise",
        "geometry",
        stand_in=True,
    ),
    "colours": Block("The points hold positions, normals and colours", "both"),
    "rgb": Block("The points hold colours alone, as in Mask3D and ESAM", "colours"),
}
# what the plan of each row has in place of the 3D network's
ROWS: dict[str, dict[str, Any]] = {
    "3D only": {"variant": "3d"},
    "BiFusion": {"variant": "bifusion"},
    "inject": {"variant": "inject"},
    "both": {"variant": "both"},
    "both, wrong images": {"variant": "both", "wrong_images": True},
}
START = "pretrained"  # the row that all others start from
UNET_ROW = "3D only"  # the row without images
PAIRS = (
    ("BiFusion", "3D only"),
    ("inject", "3D only"),
    ("both", "3D only"),
    ("both, wrong images", "3D only"),
    ("inject", "BiFusion"),
)


def compare(
    out: Path,
    plan: Annotated[Plan, tyro.conf.arg(name="")],
    results: Path | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
    blocks: tuple[BlockName, ...] = ("geometry",),
    pretrain_steps: int | None = None,
    device: str = "cpu",
) -> None:
    """Train all variants over seeds from one 3D file each, and compare differences with the seeds' noise.

    Args:
        out: folder of the runs.
        plan: what all variants share.
        results: folder of point_segmentation.json and .md; that of the runs if it is not given.
        seeds: of rooms, weights and order.
        blocks: what points and images show.
        pretrain_steps: of the 3D network alone; 240, or 0 with --init.
        device: of the networks, such as cuda.
    """
    check_plan(plan)
    check_options(plan, seeds, blocks)
    if plan.init:
        plan = replace(plan, init_digest=_digest(Path(plan.init)))
    if plan.data:
        features = Path(plan.features) if plan.features else None
        digest = data_digest(Path(plan.data), Path(plan.labels), features, plan.every)
        plan = replace(plan, data_digest=digest)
    if pretrain_steps is None:
        pretrain_steps = 0 if plan.init else PRETRAIN_STEPS
    if pretrain_steps < 0:
        raise ConfigError(f"--pretrain-steps is {pretrain_steps}; expected 0 or more")
    runner = Runner(out, pretrain_steps, device)
    tables = {}
    for block in blocks:
        tables[block] = {}
    for seed in seeds:
        runner.forget_rooms()  # of the seed before
        for block in blocks:
            tables[block][str(seed)] = runner.run(replace(plan, seed=seed), block)
    results_of_blocks = {}
    for block, runs in tables.items():
        matches = runner.matches(block, runs)
        results_of_blocks[block] = {"summary": summary(runs, matches, plan), "seeds": runs}
    measured = {"rule": _RULE, "pretrain_steps": pretrain_steps, "blocks": results_of_blocks}
    titles = {name: block.title for name, block in BLOCKS.items()}
    folder = results or out
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "point_segmentation.json", json.dumps(measured, indent=2) + "\n")
    text = markdown(measured, titles)
    write_text(folder / "point_segmentation.md", text)
    print(text)


def check_options(plan: Plan, seeds: Sequence[int], blocks: Sequence[str]) -> None:
    """Refuse options that contradict each other, before anything runs.

    Raises:
        ConfigError: naming them.
    """
    most_seeds = len(STUDENT) + 1  # n seeds have n - 1 degrees of freedom
    if not 2 <= len(seeds) <= most_seeds:
        raise ConfigError(
            f"--seeds names {len(seeds)}; expected 2 to {most_seeds}, for which an interval is known"
        )
    repeated = [seed for seed, count in Counter(seeds).items() if count > 1]
    if repeated:
        raise ConfigError(f"--seeds names {repeated[0]} more than once; expected different ones")
    has_stand_in = plan.backbone == STAND_IN or any(BLOCKS[block].stand_in for block in blocks)
    if plan.data and has_stand_in:
        raise ConfigError(
            "a stand-in for a backbone needs rooms, whose images are known pixel by pixel; not "
            "--data"
        )
    if plan.init:
        for block in blocks:
            check_inputs(Path(plan.init), BLOCKS[block].inputs, f"--blocks {block}")


def check_inputs(path: Path, inputs: Inputs, option: str) -> None:
    """Refuse weights of a network that takes other channels per voxel.

    Raises:
        ConfigError: naming both, and the block that fits.
    """
    channels = file_channels(path)
    if INPUT_CHANNELS[inputs] == channels:
        return
    fitting = [name for name, block in BLOCKS.items() if INPUT_CHANNELS[block.inputs] == channels]
    remedy = f"choose --blocks {fitting[0]}" if fitting else "no block gives as many"
    raise ConfigError(
        f"--init {path} takes {channels} channels per voxel, and {option} gives "
        f"{INPUT_CHANNELS[inputs]}; {remedy}"
    )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Runner:
    """Runs rows, or reads those that are finished.

    Attributes:
        out: folder of the runs.
        pretrain_steps: of the 3D network alone.
        device: of the networks.
        rooms: by the backbone of their features; the same for all rows of a seed.
    """

    out: Path
    pretrain_steps: int
    device: str
    rooms: dict[str, Rooms] = field(default_factory=dict)

    def forget_rooms(self) -> None:
        """Free the rooms of a seed."""
        self.rooms.clear()

    def run(self, plan: Plan, block: str) -> dict[str, Any]:
        """Return the results of all rows of a seed, the 3D network's first."""
        plan = replace(plan, inputs=BLOCKS[block].inputs)
        start = self.folder(block, plan.seed, START)
        init = Path(plan.init) if plan.init else None
        first_plan = replace(plan, steps=self.pretrain_steps)
        rows = {START: self._result(first_plan, start, init, only_unet=True)}
        for name, changes in ROWS.items():
            row_plan = replace(plan, **changes)
            if BLOCKS[block].stand_in and name != UNET_ROW:
                row_plan = replace(row_plan, backbone=STAND_IN)
            folder = self.folder(block, plan.seed, name)
            rows[name] = self._result(row_plan, folder, start / WEIGHTS)
        return rows

    def folder(self, block: str, seed: int, row: str) -> Path:
        """Return the folder of a run; blocks that give the points alike share the runs without images."""
        if row in (START, UNET_ROW):
            inputs = BLOCKS[block].inputs
            block = next(name for name, other in BLOCKS.items() if other.inputs == inputs)
        name = row.lower().replace(",", "").replace(" ", "-")
        return self.out / block / f"seed{seed}" / name

    def _result(
        self, plan: Plan, folder: Path, start: Path | None, *, only_unet: bool = False
    ) -> dict[str, Any]:
        if (folder / RESULT).exists():
            return finished(plan, folder)
        _logger.info("%s", folder)
        if plan.backbone not in self.rooms:
            self.rooms[plan.backbone] = rooms_of(plan, images=True, device=self.device)
        return train(
            plan,
            self.rooms[plan.backbone],
            folder,
            start,
            self.device,
            only_unet=only_unet,
        )

    def matches(
        self, block: str, runs: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, list[list[SceneMatches]]]:
        """Return row -> seed -> the matched instances of the held-out scenes; empty without instance masks."""
        matches: dict[str, list[list[SceneMatches]]] = {}
        for row in ROWS:
            matches[row] = []
            for seed, results in runs.items():
                if "instances" not in results[row]["test"]:
                    return {}
                content = _read_json(self.folder(block, int(seed), row) / INSTANCES)
                matches[row].append(matches_from_json(content["matches"]))
        return matches


def _read_json(path: Path) -> dict[str, Any]:
    """Read a file of a finished run.

    Raises:
        ConfigError: if it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {reason_of(error)}; remove the folder {path.parent}, and this "
            "run is made again"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no result; remove the folder {path.parent}")
    return content


def finished(plan: Plan, folder: Path) -> dict[str, Any]:
    """Return the result in a folder, which must be that of the plan.

    Raises:
        ConfigError: if the folder holds another run.
    """
    result = _read_json(folder / RESULT)
    stated = result.get("plan", {})
    differing = []
    for key, value in plan.to_json().items():
        if value != stated.get(key):
            differing.append(_DIGESTS.get(key, key))
    if differing:
        raise ConfigError(
            f"{folder} holds a run with other {', '.join(differing)}; take another --out or remove it"
        )
    return result


def summary(
    seeds: Mapping[str, Mapping[str, Any]],
    matches: Mapping[str, Sequence[Sequence[SceneMatches]]],
    plan: Plan,
) -> dict[str, Any]:
    """Return means and deviations over seeds of every row, and the paired differences.

    Args:
        seeds: seed -> row -> result.
        matches: row -> seed -> held-out scenes; empty without instance masks.
        plan: of the comparison.
    """
    runs = list(seeds.values())
    rows = {row: _row_summary(row, runs) for row in (START, *ROWS)}
    differences = {}
    for a, b in PAIRS:
        differences[f"{a} - {b}"] = difference(
            [run[a]["test"]["miou"] for run in runs], [run[b]["test"]["miou"] for run in runs]
        )
    document: dict[str, Any] = {
        "rows": rows,
        "differences": differences,
        "injection_at_step_0_is_3d_only": all(
            run["inject"]["untrained"]["iou"] == run[START]["test"]["iou"] for run in runs
        ),
    }
    if matches:
        groups = [group_of(scene) for scene in plan.held_out]
        paired = PairedPrecision(matches, groups, plan.names)
        document["precision_differences"] = {}
        for a, b in PAIRS:
            scores = {score: paired.difference(a, b, score) for score in AP_OF}
            document["precision_differences"][f"{a} - {b}"] = scores
    return document


def _row_summary(row: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tests = [run[row]["test"] for run in runs]
    iou = {}
    for name in tests[0]["iou"]:
        values = [test["iou"][name] for test in tests]
        iou[name] = spread([value for value in values if value is not None])
    costs = [run[row]["cost"] for run in runs]
    return {
        "miou": spread([test["miou"] for test in tests]),
        "iou": iou,
        **precisions(tests),
        "parameters": runs[0][row]["parameters"],
        "seconds": spread([cost["training"]["seconds"] for cost in costs]),
        "peak_memory_mb": max(cost["training"]["peak_memory_mb"] for cost in costs),
    }
