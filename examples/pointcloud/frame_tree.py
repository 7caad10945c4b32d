"""A tree of scenes as ScanNet's exports have them, ``2D/<scene>/color/<number>.jpg``, and every k-th of its frames.

Frames are chosen by **number**, not by place: ``every=200`` takes those whose number 200 divides, as ESAM
(github.com/xuxw98/ESAM, 188fc6d) does. Places would mean other frames as soon as one is missing.
"""

from __future__ import annotations

from pathlib import Path

from dinoneck.errors import DataError
from examples.pointcloud.frame_layouts import numbered


def images_folder(root: Path) -> Path:
    """Return the folder with the scenes: ``ROOT/2D``, or ``ROOT`` where there is none."""
    return root / "2D" if (root / "2D").is_dir() else root


def scene_names(root: Path) -> list[str]:
    """Return the names of a tree's scenes.

    Raises:
        DataError: if there are none.
    """
    names = sorted(path.parent.name for path in images_folder(root).glob("*/color"))
    if not names:
        raise DataError(f"{root} holds no scenes; expected ROOT/2D/<scene>/color/<number>.jpg")
    return names


def frames_of(root: Path, every: int = 1) -> list[Path]:
    """Return the images of all scenes whose number ``every`` divides, by scene and number.

    Raises:
        DataError: if a scene has no such frame, an image's name is not a number, or two images have one number.
    """
    frames: list[Path] = []
    for scene in scene_names(root):
        images = numbered((images_folder(root) / scene / "color").iterdir())
        chosen = [path for number, path in images.items() if number % every == 0]
        if not chosen:
            raise DataError(f"no frame of {scene} has a number that {every} divides; it has {list(images)[:5]} ...")
        frames += chosen
    return frames
