"""The folder and the hub that a scene starts with.

Only public names of dinoneck are used, because ``tests/against`` runs the scenes with 0.3.0 too.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from dinoneck import Backbone, PatchMeanHead, Task, load_backbone, save_head
from dinoneck.data import Pasture
from tests.hub_server import WRITER, Hub, point_client_at

SIZE = (32, 64)  # height and width of the images
RUN = """optim: {epochs: 1, batch_size: 4, optimizer: sam, rho: 0.1, patience: 4, ema_decay: 0.9}
folds: {count: 2}
backbone: {name: dinoneck_tiny}
data: {csv: csiro/table.csv, targets: [GDM_g]}
head: {type: fpn, fpn_dim: 8}
"""
TRAIN_IMAGES = 8
TEST_IMAGES = 2


@contextlib.contextmanager
def scene_folder() -> Iterator[Path]:
    """Enter a new folder with the materials, next to a new, empty hub with someone logged in."""
    with (
        tempfile.TemporaryDirectory() as parent,
        pytest.MonkeyPatch.context() as patch,
        Hub() as hub,
    ):
        folder = Path(parent) / "work"
        folder.mkdir()
        write_materials(folder)
        point_client_at(hub, patch, Path(parent) / "cache")
        patch.setenv("HF_TOKEN", WRITER)
        patch.chdir(folder)
        yield folder


def write_materials(folder: Path) -> None:
    """Write images, tables, heads of several kinds and states, and training files."""
    pasture = Pasture(seed=1, size=SIZE)
    pasture.write(folder, 6)
    write_competition(pasture, folder / "csiro")
    write_broken_images(folder / "broken")
    write_heads(folder)
    rows = "".join(f"images/{i:04}.jpg,{i}\n" for i in range(6))
    (folder / "truth.csv").write_text("image,mass\n" + rows)
    (folder / "run.yaml").write_text(RUN)
    (folder / "wrong.yaml").write_text(RUN.replace("epochs", "number_of_epochs"))
    write_strokes(folder)


def write_strokes(folder: Path) -> None:
    """Write a stroke of each of two classes on one image, and a file of another version."""
    image = folder / "images" / "0000.jpg"
    height, width = SIZE
    left = {"class": "left", "radius": 4, "points": [[8, 4], [8, 28]]}
    right = {"class": "right", "radius": 4, "points": [[56, 4], [56, 28]]}
    painted = {
        "name": image.name,
        "sha256": hashlib.sha256(image.read_bytes()).hexdigest(),
        "width": width,
        "height": height,
        "strokes": [left, right],
    }
    document = {
        "format": "dinoneck strokes",
        "version": 1,
        "classes": ["left", "right"],
        "images": [painted],
    }
    (folder / "strokes.json").write_text(json.dumps(document))
    (folder / "newer.json").write_text(json.dumps({**document, "version": 2}))


def write_competition(pasture: Pasture, folder: Path) -> None:
    """Write training and test images in two folders, and a table of the training images."""
    for name in ("train", "test"):
        (folder / name).mkdir(parents=True)
    rows = []
    for i in range(TRAIN_IMAGES + TEST_IMAGES):
        sample = pasture.sample(i)
        part = "train" if i < TRAIN_IMAGES else "test"
        image = f"{part}/ID{1000000 + i}.jpg"
        Image.fromarray(sample.image).save(folder / image, quality=92)
        if part == "train":
            masses = {name: f"{grams:.4f}" for name, grams in sample.grams.items()}
            rows.append({"image": image, **masses})
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_broken_images(folder: Path) -> None:
    """Write a file that is no image, and an image."""
    folder.mkdir()
    (folder / "a.png").write_bytes(b"not an image")
    Image.new("RGB", (64, 32), "green").save(folder / "b.png")


def write_heads(folder: Path) -> None:
    """Write single heads, a folder of two, one without a backbone's record, and a damaged file."""
    (folder / "heads").mkdir()
    tiny = load_backbone("dinoneck_tiny")
    write_head(folder / "head.safetensors", tiny, seed=0, unit="g")
    write_head(folder / "heads" / "fold-0.safetensors", tiny, seed=0, unit="g")
    write_head(folder / "heads" / "fold-1.safetensors", tiny, seed=1, unit="g")
    write_head(folder / "other.safetensors", tiny, seed=2, unit="kg")
    save_head(folder / "bare.safetensors", PatchMeanHead(64, [Task("mass")], hidden_dim=4))
    content = bytearray((folder / "head.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "damaged.safetensors").write_bytes(content)


def write_head(path: Path, backbone: Backbone, *, seed: int, unit: str) -> None:
    """Write a head of a mass and a class with the weights of a seed."""
    torch.manual_seed(seed)
    tasks = [Task("mass", unit=unit), Task("kind", dim=2, kind="classification")]
    head = PatchMeanHead(64, tasks, hidden_dim=4)
    preprocess = backbone.preprocess.changed(size=SIZE)
    save_head(path, head, backbone=backbone, preprocess=preprocess)
