"""A digest of the scans and features that a comparison reads, so that finished runs on other data are not read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from examples.pointcloud.frame_list import JSON
from examples.pointcloud.frames import INTRINSICS, image_files, scene_folders
from examples.pointcloud.scans import cloud_file


def data_digest(data: Path, labels: Path, features: Path | None, every: int) -> str:
    """Return the SHA-256 of what a comparison reads.

    Labels, poses and intrinsics count by their content. Images, depth and features, which are large,
    count by their names and sizes.

    Args:
        data: tree of scenes.
        labels: folder of label files.
        features: feature store or tree of ``.pt`` files; None = the backbone runs.
        every: frames whose number it divides.

    Raises:
        DataError: if a scene has no frames or no labels.
    """
    digest = hashlib.sha256()
    for scene in scene_folders(data):
        images = image_files(scene, every)
        cameras = [scene / name for name in (JSON, *INTRINSICS)]
        cameras += [scene / "pose" / f"{image.stem}.txt" for image in images]
        depths = [scene / "depth" / f"{image.stem}.png" for image in images]
        _add_contents(digest, scene, cameras)
        _add_contents(digest, labels, [cloud_file(labels, scene.name)])
        _add_sizes(digest, scene, [*images, *depths])
    if features is not None:
        _add_sizes(digest, features, sorted(features.rglob("*")))
    return digest.hexdigest()


def _add_contents(digest: hashlib._Hash, root: Path, files: Iterable[Path]) -> None:
    for path in files:
        if path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(root)} {content}\n".encode())


def _add_sizes(digest: hashlib._Hash, root: Path, files: Iterable[Path]) -> None:
    for path in files:
        if path.is_file():
            digest.update(f"{path.relative_to(root)} {path.stat().st_size}\n".encode())
