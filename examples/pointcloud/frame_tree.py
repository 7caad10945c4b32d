"""Frames of a tree ``2D/<scene>/color/<number>.jpg``, the layout of ScanNet's exports, and every k-th of them.

Frames are chosen by **number**, not by place: ``every=200`` takes those whose number 200 divides. So do the sources of
the data: in ESAM (github.com/xuxw98/ESAM, 188fc6d) a tree holds every 20th frame of a video (0, 20, 40 ...; its loaders
end if it does not), SV data keep each tenth of these (numbers 0, 200, 400 ...) and MV data each second (0, 40, 80 ...),
which its info files choose by ``number % 40 == 0``. Places would mean other frames as soon as one is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dinoneck.errors import ConfigError, DataError, some_of
from examples.pointcloud.frame_layouts import SUFFIXES, numbered

IMAGES, COLOR = "2D", "color"
SV_EVERY, MV_EVERY = 200, 40
_FORM = f"ROOT/{IMAGES}/<scene>/{COLOR}/<number>.jpg"
_SHOWN = 5


@dataclass(frozen=True, order=True)
class Frame:
    """An image of a scene; frames sort by scene, then by number.

    Attributes:
        scene: name of its folder.
        number: of the frame in its video.
        path: of the image.
    """

    scene: str
    number: int
    path: Path

    @property
    def id(self) -> str:
        """``<scene>/color/<number>`` as the file writes it: the image's id in a store of the tree."""
        return f"{self.scene}/{COLOR}/{self.path.stem}"


def images_folder(root: Path) -> Path:
    """Return the folder with the scenes: ``ROOT/2D``, or ``ROOT`` where there is none.

    Raises:
        DataError: if there is no such folder.
    """
    folder = root / IMAGES if (root / IMAGES).is_dir() else root
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; expected {_FORM}")
    return folder


def frames_of(root: Path, every: int = 1, scenes: Sequence[str] | None = None) -> list[Frame]:
    """Return the frames of a tree whose number ``every`` divides, sorted by scene and, as numbers, by number.

    Args:
        root: the folder that holds ``2D``, or that folder itself.
        every: 200 for SV and 40 for MV data; 1 = all.
        scenes: names of the scenes to take; None = all.

    Raises:
        ConfigError: if ``every`` is below 1.
        DataError: if there are no frames, a scene is missing or has no colour folder or no frame of such a number, a
            image's name is not a number, or two images have one number.
    """
    if type(every) is not int or every < 1:
        raise ConfigError(f"every is {every!r}; expected 1 or more")
    folder = images_folder(root)
    there = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if COLOR in there:
        raise DataError(f"{folder} is a scene itself; give the folder of the scenes: {_FORM}")
    if not there:
        raise DataError(f"the folder {folder} holds no scenes; expected {_FORM}")
    wanted = there if scenes is None else list(scenes)
    if missing := set(wanted) - set(there):
        raise DataError(f"{folder} has {len(there)} scenes and lacks {len(missing)}: {some_of(missing, _SHOWN)}")
    return [frame for scene in sorted(set(wanted)) for frame in _frames_of_scene(folder, scene, every)]


def read_scenes(file: Path) -> list[str]:
    """Return the names of scenes in a list file, one per line; such lists tell the training scenes from the others.

    Raises:
        DataError: if the file cannot be read, is empty, or names a scene twice or something else than a name.
    """
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list of scenes {file} cannot be read: {error}") from error
    if not names:
        raise DataError(f"{file} names no scene; expected one per line, such as scene0000_00")
    wrong = [name for name in names if "/" in name or "\\" in name or name.startswith(".")]
    if wrong:
        raise DataError(f"{file} names {some_of(wrong, _SHOWN)}; expected names of folders such as scene0000_00")
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{file} names {some_of(twice, _SHOWN)} more than once")
    return names


def _frames_of_scene(folder: Path, scene: str, every: int) -> list[Frame]:
    color = folder / scene / COLOR
    if not color.is_dir():
        raise DataError(f"the scene {folder / scene} has no folder {COLOR!r}; expected {_FORM}")
    found = {number: Frame(scene, number, path) for number, path in numbered(color.iterdir()).items()}
    chosen = [frame for number, frame in found.items() if number % every == 0]
    if not found:
        raise DataError(f"{color} holds no images ({', '.join(SUFFIXES)})")
    if not chosen:
        shown = ", ".join(map(str, list(found)[:_SHOWN]))
        raise DataError(
            f"no frame in {color} has a number that {every} divides; it has {len(found)}: {shown} ... Choose another "
            "--every, or leave the scene out of the list"
        )
    return chosen
