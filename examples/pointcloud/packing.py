"""The verb ``pack``: a new ``..._clip.pkl`` next to an info file, whose entries name the features of their frames.

An info file of ESAM (github.com/xuxw98/ESAM, 188fc6d) holds ``{"metainfo": ..., "data_list":
[entry, ...]}``. There are two kinds of entries:

* single view, a frame each: ``img_path`` is ``2D/<scene>/color/<number>.jpg``; packing adds
  ``clip_feat_path``, one path;
* several views, a scene each: ``img_paths`` is a list of such paths; packing adds
  ``clip_feat_paths``, a list as long.

Paths are relative to the folder of the info file, as those of the images are.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
import tyro

from dinoneck.atomic import write_whole
from dinoneck.data import read_image_size
from dinoneck.errors import DataError
from dinoneck.text import counted, some_of
from examples.pointcloud.feature_files import check_aspect, feature_file, read_map
from examples.pointcloud.frames import SUFFIXES
from examples.pointcloud.plain_pickle import dump_plain, load_plain

SINGLE_VIEW, SEVERAL_VIEWS = "img_path", "img_paths"
FEATURES_OF = {SINGLE_VIEW: "clip_feat_path", SEVERAL_VIEWS: "clip_feat_paths"}
PACKED = "_clip.pkl"
_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Packed:
    """A packed info file.

    Attributes:
        content: what it holds.
        images: feature file -> the image it belongs to, which need not be there; each once.
    """

    content: dict[str, Any]
    images: dict[Path, Path]


def pack(
    infos: tyro.conf.Positional[Path],
    /,
    features: Path,
    absolute: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    replace: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Write a new info file whose entries name the feature files of their frames; every file is opened.

    Args:
        infos: an info file, *_oneformer3d_infos_train.pkl or _val.pkl; it is left as it is.
        features: folder with <scene>/color/<number>.pt, as extract --layout pt writes it.
        absolute: absolute paths instead of ones below the folder of the info file.
        replace: replace the file of the new name.
    """
    target = infos.with_name(f"{infos.stem}{PACKED}")
    if target.exists() and not replace:
        raise DataError(f"{target} is there already; --replace writes it anew")
    packed = add_features(load_plain(infos), features, infos, absolute)
    shapes = check_files(packed.images)
    write_whole(target, dump_plain(packed.content))
    sizes = ", ".join("x".join(map(str, shape)) for shape in sorted(shapes))
    entries = len(packed.content["data_list"])
    files = counted(len(packed.images), "feature file")
    print(
        f"{entries} {'entry' if entries == 1 else 'entries'} with {files} ({sizes}) written to {target}"
    )


def add_features(content: Any, features: Path, infos: Path, absolute: bool = False) -> Packed:
    """Return a copy of an info file's content that names features.

    Args:
        content: as it was read.
        features: folder with ``<scene>/color/<number>.pt``.
        infos: the info file; paths are relative to its folder.
        absolute: absolute paths instead.

    Raises:
        DataError: if the content has another form, or an entry does not name its frames.
    """
    entries = content.get("data_list") if isinstance(content, dict) else None
    if entries == []:
        raise DataError(f"{infos} has an empty data_list; there is nothing to pack")
    if not isinstance(entries, list):
        form = f"a dict of {[*content]}" if isinstance(content, dict) else type(content).__name__
        raise DataError(
            f"{infos} holds {reprlib.repr(form)}; expected {{'metainfo': ..., 'data_list': [entries]}}"
        )
    root = _absolute(features) if absolute else _below(features, infos.parent)
    image_of: dict[Path, Path] = {}
    packed_entries = []
    for number, entry in enumerate(entries):
        where = f"{infos}, entry {number}"
        key = _kind_of(entry, where)
        images = [entry[key]] if key == SINGLE_VIEW else entry[key]
        frames = [frame_of(image, where) for image in images]
        _check_poses(entry, len(frames), where)
        for frame, image in zip(frames, images, strict=True):
            image_of[feature_file(features, frame)] = infos.parent / image
        paths = [feature_file(root, frame).as_posix() for frame in frames]
        feature_paths = paths[0] if key == SINGLE_VIEW else paths
        packed_entries.append({**entry, FEATURES_OF[key]: feature_paths})
    return Packed({**content, "data_list": packed_entries}, image_of)


def _kind_of(entry: Any, where: str) -> str:
    """Return the key under which an entry names its images.

    Raises:
        DataError: if it has none or both, names no image, or names features already.
    """
    if not isinstance(entry, Mapping):
        raise DataError(f"{where} is {type(entry).__name__}; expected a dict")
    keys = [key for key in FEATURES_OF if key in entry]
    if len(keys) != 1:
        raise DataError(
            f"{where} has {' and '.join(keys) or 'neither img_path nor img_paths'}; expected one "
            f"of them. Its keys are {some_of(map(str, entry), _SHOWN)}"
        )
    [key] = keys
    if FEATURES_OF[key] in entry:
        raise DataError(f"{where} names features already; give the info file from before packing")
    images = entry[key]
    if key == SEVERAL_VIEWS and (not isinstance(images, list | tuple) or not images):
        raise DataError(f"{where}: {key} is {reprlib.repr(images)}; expected a list of paths")
    return key


def frame_of(image: Any, where: str) -> str:
    """Return ``<scene>/color/<number>`` of an image's path that ends so.

    Raises:
        DataError: if it does not.
    """
    path = PurePosixPath(image) if isinstance(image, str) else PurePosixPath()
    is_frame = (
        len(path.parts) >= 3
        and path.parts[-2] == "color"
        and path.parts[-3] not in ("..", "/")
        and path.stem.isascii()
        and path.stem.isdecimal()
        and path.suffix.lower() in SUFFIXES
    )
    if not is_frame:
        raise DataError(
            f"{where} names the image {reprlib.repr(image)}; expected .../<scene>/color/<number>.jpg"
        )
    return f"{path.parts[-3]}/color/{path.stem}"


def _check_poses(entry: Mapping[str, Any], frames: int, where: str) -> None:
    poses = entry.get("poses")
    if poses is None:
        return
    is_table = isinstance(poses, np.ndarray) and poses.ndim > 0
    if not is_table and not isinstance(poses, list | tuple):
        raise DataError(f"{where}: poses is {reprlib.repr(poses)}; expected one per image")
    if len(poses) != frames:
        raise DataError(
            f"{where} has {counted(frames, 'image')} and {counted(len(poses), 'pose')}; expected one "
            "each"
        )


def check_files(images: Mapping[Path, Path]) -> set[tuple[int, ...]]:
    """Open all feature files; return their shapes.

    Args:
        images: feature file -> its image. The sides' ratio is compared where the image is there.

    Raises:
        DataError: if files are missing, all counted, or hold values that are not finite, or one
            has other channels than the first, or another ratio of the sides than its image.
    """
    missing = [path for path in images if not path.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {counted(len(images), 'feature file')} are missing: "
            f"{some_of(map(str, missing), _SHOWN)}; extract --layout pt makes them, and nothing "
            "was written"
        )
    shapes: dict[tuple[int, ...], Path] = {}
    broken = []
    for path, image in images.items():
        features = read_map(path)
        channels, rows, cols = features.shape
        shapes.setdefault((channels, rows, cols), path)
        if image.is_file():
            check_aspect(path, (rows, cols), read_image_size(image))
        if not features.isfinite().all():
            broken.append(str(path))
    if broken:
        raise DataError(
            f"{len(broken)} of {counted(len(images), 'feature file')} hold NaN or infinite values: "
            f"{some_of(broken, _SHOWN)}; extract them anew, and nothing was written"
        )
    file_of_width = {shape[0]: path for shape, path in shapes.items()}
    if len(file_of_width) > 1:
        listed = ", ".join(f"{path} has {width}" for width, path in file_of_width.items())
        raise DataError(f"the feature files have several widths: {listed}; expected one backbone")
    return set(shapes)


def _below(features: Path, folder: Path) -> Path:
    features_folder = _absolute(features)
    info_folder = _absolute(folder)
    if not features_folder.is_relative_to(info_folder):
        raise DataError(
            f"the features are in {features_folder}, not below the info file's folder {info_folder}; move them there, "
            "or pass --absolute"
        )
    return features_folder.relative_to(info_folder)


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))
