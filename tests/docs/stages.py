"""The page of the stages that five designs ask for: its commands, its tables, and the folder they run in."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from examples.pointcloud.frames import Frames, read_frames
from tests.conftest import DATA, ROOT
from tests.unit.detection import rf_detr_files
from tests.unit.pointcloud.test_frames import write_scene
from tests.unit.pointcloud.test_minkowski_weights import random_state

PAGE = ROOT / "docs" / "explanation" / "stages.md"
SHARED = ("blood_cells", "field_ndvi", "rgbd_room")
_BLOCK = re.compile(r'^```(\w+) title="([\w.-]+)"\n(.*?)^```', re.DOTALL | re.MULTILINE)
_ROW = re.compile(r"^\| ([A-E]\d[\w.]*) \| (.+?) \| `([\w-]+)` \| `(.+?)` \|$", re.MULTILINE)


@dataclass(frozen=True)
class Stage:
    """A row of a table.

    Attributes:
        name: the design and the number of its stage, such as ``B1.2``.
        command: name of the command that runs it.
        shows: what the command prints; ``...`` stands for anything.
    """

    name: str
    command: str
    shows: str

    def pattern(self) -> str:
        """Return the regular expression of what is printed."""
        parts = [re.escape(part.strip()) for part in self.shows.split("...")]
        return r"[\s\S]*?".join(parts)


def stages() -> list[Stage]:
    """Return the rows of the page."""
    return [Stage(row[1], row[3], row[4]) for row in _ROW.finditer(PAGE.read_text("utf-8"))]


def commands() -> dict[str, str]:
    """Return name -> command, in the order of the page."""
    blocks = _BLOCK.findall(PAGE.read_text("utf-8"))
    return {name: text.strip() for kind, name, text in blocks if kind == "sh"}


def files() -> dict[str, str]:
    """Return name -> content of the files that the page shows."""
    blocks = _BLOCK.findall(PAGE.read_text("utf-8"))
    return {name: text for kind, name, text in blocks if kind == "yaml"}


def make_folder(folder: Path) -> None:
    """Write what the page's first section says is there."""
    for name in SHARED:
        (folder / name).symlink_to(DATA / name)
    (folder / "examples").symlink_to(ROOT / "examples")
    for name, text in files().items():
        (folder / name).write_text(text, "utf-8")
    _write_boxes(folder)
    _write_scans(folder, read_frames(DATA / "rgbd_room"))
    rf_detr_files.write_folder(folder / "rf-detr-nano", rf_detr_files.BOXES)
    weights = {name: value.float() for name, value in random_state(in_channels=3).items()}
    torch.save({"state_dict": weights}, folder / "mask3d.pth")


def _write_boxes(folder: Path) -> None:
    """Write the boxes of a few of the real images: eight to learn from and six to test on."""
    dataset = json.loads((DATA / "blood_cells" / "val.json").read_text("utf-8"))
    for name, rows in (("cells_train", slice(0, 8)), ("cells_val", slice(8, 14))):
        images = dataset["images"][rows]
        ids = {image["id"] for image in images}
        boxes = [box for box in dataset["annotations"] if box["image_id"] in ids]
        subset = {"images": images, "annotations": boxes, "categories": dataset["categories"]}
        (folder / f"{name}.json").write_text(json.dumps(subset), "utf-8")


def _write_scans(folder: Path, frames: Frames) -> None:
    """Write the real frames as six scans of ScanNet's layout, with points of their depth, labels and instances."""
    (folder / "labels").mkdir()
    entries = []
    for number in range(6):
        name = f"scene000{number}_00"
        views = [number % 2, number % 2 + 1, number % 2 + 2]
        scene = frames.of(views)
        write_scene(folder / "scans", name, scene)
        cloud = scene.cameras.unproject(scene.depth).reshape(-1, 3)
        cloud = cloud[cloud.isfinite().all(1)][::50]
        height = cloud[:, 1]
        label = 1 + (height > height.median()).long()
        column = (cloud[:, 0] > cloud[:, 0].median()).long()
        instance = 2 * (label - 1) + column
        table = torch.cat((cloud, label[:, None], instance[:, None]), dim=1)
        np.save(folder / "labels" / f"{name}.npy", table.numpy())
        for view in range(len(scene)):
            image = f"2D/{name}/color/{view}.png"
            pose = scene.cameras.cam_to_world[view].numpy()
            entries.append({"img_path": image, "pose": pose})
    content = {"metainfo": {}, "data_list": entries}
    raw = pickle.dumps(content, protocol=2)
    (folder / "scans" / "scannet_oneformer3d_infos_val.pkl").write_bytes(raw)
