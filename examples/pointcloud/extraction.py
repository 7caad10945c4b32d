"""The verb ``extract``: features of every k-th frame of a tree, into a feature store or a tree of ``.pt`` files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from dinoneck import FeatureStore, load_backbone
from dinoneck.backbones.backbone import Backbone
from dinoneck.data import read_image_size
from dinoneck.devices import local_device
from dinoneck.errors import ConfigError, DataError
from dinoneck.progress import progress
from dinoneck.store.feature_store import no_empty_store
from dinoneck.text import counted
from examples.pointcloud.feature_files import feature_file, write_map
from examples.pointcloud.features import input_size
from examples.pointcloud.frames import image_files, pixels, scene_folders

# of the data sets: every how many frames one is taken, for a frame alone and for several together
EVERY = {"single-view": 200, "multi-view": 40}
Sampling = Literal["single-view", "multi-view"]


def extract(
    root: tyro.conf.Positional[Path],
    /,
    out: Path,
    backbone: str,
    every: int | None = None,
    sampling: Sampling | None = None,
    layout: Literal["store", "pt"] = "store",
    random_backbone: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    device: str | None = None,
) -> None:
    """Run a backbone over every k-th frame of a tree of scenes.

    Args:
        root: folder that holds 2D/ or scenes, or a scene: color/<number>.jpg, or frames.json.
        out: folder of the store, or of the .pt files.
        backbone: name, see 'dinoneck list backbones'.
        every: frames whose number it divides; 1 if neither this nor --sampling is given.
        sampling: every 200th frame (single-view) or every 40th (multi-view), as ESAM samples ScanNet.
        layout: a feature store, or one float16 tensor per frame, <scene>/color/<number>.pt.
        random_backbone: seeded random weights, without download.
        device: such as cpu or cuda:1; a GPU if there is one.
    """
    step = step_of(every, sampling)
    scenes = scene_folders(root)
    tree = scenes[0].parent
    frames = [path for folder in scenes for path in image_files(folder, step)]
    check_sizes(frames)
    if layout == "pt":
        check_free(frames, tree, out)
    vit = load_backbone(backbone, pretrained=not random_backbone).to(local_device(device))
    size = input_size(read_image_size(frames[0]), vit.patch_size)
    if layout == "pt":
        done = write_maps(vit, frames, tree, out, size)
        print(f"{counted(len(frames), 'frame')}: {done} extracted; {pixels(size)} px, {out}")
        return
    with no_empty_store(out):
        store = FeatureStore.create(
            out, backbone=vit, image_size=size, dtype="fp16", resize="stretch"
        )
        report = store.extract(frames, tree)
    print(
        f"{counted(len(frames), 'frame')}: {len(report.written)} extracted, {report.present} were "
        f"there; {pixels(size)} px, {store}"
    )


def step_of(every: int | None, sampling: Sampling | None) -> int:
    """Return which frames are taken: those whose number this divides.

    Raises:
        ConfigError: if both are given, or ``every`` is below 1.
    """
    if sampling is not None and every is not None:
        raise ConfigError(
            f"--sampling {sampling} takes every {EVERY[sampling]}th frame, and --every is {every}; "
            "give one of them"
        )
    if sampling is not None:
        return EVERY[sampling]
    step = 1 if every is None else every
    if step < 1:
        raise ConfigError(f"--every is {step}; expected 1 or more")
    return step


def check_sizes(frames: list[Path]) -> None:
    """Refuse images of another size than the first: all are brought to one size.

    Raises:
        DataError: naming both.
    """
    first = read_image_size(frames[0])
    for path in frames:
        size = read_image_size(path)
        if size != first:
            raise DataError(
                f"{path} is {pixels(size)} px and {frames[0]} is {pixels(first)} px; extract "
                "scenes of different cameras apart"
            )


def check_free(frames: list[Path], tree: Path, out: Path) -> None:
    """Refuse a folder that holds features of the frames already: a file does not tell its backbone.

    Raises:
        DataError: naming the first.
    """
    for path in frames:
        target = feature_file(out, frame_id(path, tree))
        if target.exists():
            raise DataError(
                f"{target} is there already, and does not tell its backbone; remove it or take "
                "another --out"
            )


def frame_id(path: Path, tree: Path) -> str:
    """Return the id of an image, its path in the tree without the ending."""
    return path.relative_to(tree).with_suffix("").as_posix()


@torch.no_grad()
def write_maps(
    backbone: Backbone, frames: list[Path], tree: Path, out: Path, size: tuple[int, int]
) -> int:
    """Write one ``.pt`` per frame with the map of the backbone's last layer; return how many."""
    device = next(backbone.parameters()).device
    for path in progress(frames, desc="extract", unit="frame"):
        images = backbone.preprocess([path], size=size, resize="stretch")
        maps = backbone(images.to(device)).last.maps()[0]  # (1, C, rows, cols)
        write_map(out, frame_id(path, tree), maps[0])
    return len(frames)
