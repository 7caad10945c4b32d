"""Verb ``pack``: a new ``…_clip.pkl`` next to an info file, whose entries name the features of their frames.

What entries look like in ESAM (github.com/xuxw98/ESAM, 188fc6d: ``tools/scannet_data_utils.py``,
``tools/update_infos_to_v2.py``, ``oneformer3d/scannet_dataset.py``), all in ``{"metainfo": ..., "data_list": [...]}``:

* SV, an entry per frame: ``lidar_points.lidar_path`` (``<scene>_<number>.bin``), ``img_path``
  (``2D/<scene>/color/<number>.jpg``), ``pose`` (a numpy 4x4), ``axis_align_matrix``, mask and super point files.
* MV, an entry per scene: ``img_paths``, ``pts_paths`` (``points/<scene>/<number>.bin``), ``poses`` and the mask files,
  lists with a value per frame.

There is no ``sample_idx``: frames are known by their images' paths, relative to the folder of the data set, where the
info file lies too. The public code has nothing of ``clip_feat_path``; as with images, the paths written here are
relative to that folder. They are for loaders that join them with ``data_root``, as ESAM does with ``img_path``.
"""

from __future__ import annotations

import argparse
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from dinoneck.atomic import write_whole
from dinoneck.errors import DataError, DinoneckError
from dinoneck.weight_files import read_tensor
from examples.pointcloud.frame_layouts import SUFFIXES
from examples.pointcloud.frame_tree import COLOR
from examples.pointcloud.plain_pickle import dump_plain, load_plain

HELP = "write a new info file whose entries name the features of their frames; every path is checked"

IMAGES = {"sv": "img_path", "mv": "img_paths"}
POINTS = {"sv": "lidar_points", "mv": "pts_paths"}
FEATURES = {"sv": "clip_feat_path", "mv": "clip_feat_paths"}
_SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("infos", type=Path, metavar="INFOS.pkl", help="an info file; it is left as it is")
    parser.add_argument(
        "--features", type=Path, required=True, metavar="FOLDER", help="<scene>/color/<number>.pt in it"
    )
    parser.add_argument("--kind", choices=tuple(IMAGES), required=True, help="sv: a frame per entry; mv: a scene")
    parser.add_argument("--absolute", action="store_true", help="absolute paths instead of ones below the info file")
    parser.add_argument("--force", action="store_true", help="replace a file of the new name")


def run(options: argparse.Namespace) -> int:
    """Pack, and print how many."""
    target = options.infos.with_name(f"{options.infos.stem}_clip.pkl")
    if target.exists() and not options.force:
        raise DataError(f"{target} is there already; --force replaces it")
    content = load_plain(options.infos)
    packed, files = pack(content, options.features, options.kind, options.infos, absolute=options.absolute)
    shapes = check_features(files)
    write_whole(target, dump_plain(packed))
    sizes = ", ".join("x".join(map(str, shape)) for shape in sorted(shapes))
    print(f"{len(packed['data_list'])} entries with {len(files)} feature files ({sizes}) written to {target}")
    return 0


def pack(
    content: Any, features: Path, kind: str, infos: Path, *, absolute: bool = False
) -> tuple[dict[str, Any], list[Path]]:
    """Return a copy of an info file's content that names features, and the files it names, each once.

    Args:
        content: as it was read.
        features: the folder with ``<scene>/color/<number>.pt``.
        kind: ``sv`` or ``mv``.
        infos: the file; paths are relative to its folder.
        absolute: absolute ones instead.

    Raises:
        DataError: if the content has another form, an entry does not name its frames, or names them in two ways.
    """
    if not isinstance(content, dict) or not isinstance(content.get("data_list"), list) or not content["data_list"]:
        form = (
            f"a dict with {sorted(map(str, content))[:_SHOWN]}" if isinstance(content, dict) else type(content).__name__
        )
        raise DataError(f"{infos} holds {form}; expected {{'metainfo': ..., 'data_list': [entries]}}, mmdet3d's form")
    top = features if absolute else _below(features, infos.parent)
    entries, files = [], {}
    for index, entry in enumerate(content["data_list"]):
        name = f"{infos}, entry {index}"
        frames = _frames(entry, kind, name)
        for frame in frames:
            files[frame] = features / f"{frame}.pt"
        paths = [(_absolute(top) if absolute else top).joinpath(f"{frame}.pt").as_posix() for frame in frames]
        entries.append({**entry, FEATURES[kind]: paths[0] if kind == "sv" else paths})
    return {**content, "data_list": entries}, list(files.values())


def check_features(files: list[Path]) -> set[tuple[int, ...]]:
    """Return the shapes of all feature files, whose values are not read.

    Raises:
        DataError: if files are missing, or are no floating tensors (C, rows, cols) of one C; all are counted.
    """
    missing, wrong, shapes = [], [], {}
    for path in files:
        if not path.is_file():
            missing.append(str(path))
            continue
        try:
            shapes[path] = _shape(path)
        except (DinoneckError, OSError) as error:
            wrong.append(f"{path} ({str(error).removeprefix(str(path)).strip()})")
    channels = [shape[0] for shape in shapes.values()]
    usual = max(set(channels), key=channels.count) if channels else 0
    wrong += [f"{path} ({shape[0]} channels, most have {usual})" for path, shape in shapes.items() if shape[0] != usual]
    problems = [
        f"{len(names)} of {len(files)} feature files {what}: {', '.join(names[:_SHOWN])}"
        + (" ..." * (len(names) > _SHOWN))
        for what, names in (("are missing", missing), ("cannot be used", wrong))
        if names
    ]
    if problems:
        raise DataError("; ".join(problems) + ". Nothing was written; the verbs extract and layout make them")
    return set(shapes.values())


def frame_of(path: object, name: str) -> str:
    """Return ``<scene>/color/<number>`` of an image's path that ends so.

    Raises:
        DataError: if it does not.
    """
    parts = PurePosixPath(path).parts[-3:] if isinstance(path, str) else ()
    stem, _, suffix = parts[-1].rpartition(".") if len(parts) == 3 else ("", "", "")
    numbered = stem.isascii() and stem.isdecimal() and f".{suffix.lower()}" in SUFFIXES
    if not numbered or parts[1] != COLOR or parts[0] in ("..", "/"):
        raise DataError(f"{name} names the image {_short(path)}; expected .../<scene>/{COLOR}/<number>.jpg")
    return f"{parts[0]}/{COLOR}/{stem}"


def _frames(entry: object, kind: str, name: str) -> list[str]:
    """Frames of an entry, in its order; its point files must be of the same ones."""
    if not isinstance(entry, Mapping):
        raise DataError(f"{name} is {type(entry).__name__}; expected a dict")
    key, other = IMAGES[kind], IMAGES["mv" if kind == "sv" else "sv"]
    if FEATURES[kind] in entry:
        raise DataError(f"{name} names features already ({FEATURES[kind]}); give the info file from before")
    images = entry.get(key)
    if kind == "sv":
        images = None if images is None else [images]
    if not isinstance(images, list | tuple) or not images:
        hint = f" It has {other!r}: is --kind {'mv' if kind == 'sv' else 'sv'} meant?" if other in entry else ""
        keys = ", ".join(map(str, entry))[:200]
        raise DataError(f"{name} names no frame: {key!r} is {_short(images)}; it has {keys}.{hint}")
    frames = [frame_of(image, name) for image in images]
    poses = entry.get("poses") if kind == "mv" else None
    if poses is not None and (not isinstance(poses, list | tuple) or len(poses) != len(frames)):
        raise DataError(f"{name} has {len(frames)} images and poses that are not as many")
    points = entry.get(POINTS[kind])
    if kind == "sv":
        points = points.get("lidar_path") if isinstance(points, Mapping) else None
        points = None if points is None else [points]
    if points is not None:
        _check_points(frames, points, kind, name)
    return frames


def _check_points(frames: list[str], points: Any, kind: str, name: str) -> None:
    """The image and the points of a frame have one scene and one number."""
    if not isinstance(points, list | tuple) or not all(isinstance(path, str) and path for path in points):
        raise DataError(f"{name} names the points {_short(points)}; expected paths of .bin files")
    stems = [str(PurePosixPath(path).with_suffix("")) for path in points]
    if len(stems) != len(frames):
        raise DataError(f"{name} has {len(frames)} images and {len(stems)} point files")
    for frame, stem in zip(frames, stems, strict=True):
        scene, _, number = frame.split("/")
        wanted = f"{scene}_{number}" if kind == "sv" else f"{scene}/{number}"
        if stem != wanted and not stem.endswith(f"/{wanted}"):
            raise DataError(f"{name} has the image of {frame} with the points of {stem}; expected {wanted}.bin")


def _shape(path: Path) -> tuple[int, ...]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # the header; values stay on disk
    except Exception:  # a damaged file makes torch raise almost anything, and its older form cannot be mapped
        found = read_tensor(path)
    tensor = found if isinstance(found, torch.Tensor) else None
    if tensor is None or tensor.layout != torch.strided or tensor.is_meta or not _map_like(tensor):
        form = type(found).__name__ if tensor is None else f"{tensor.dtype} {tuple(tensor.shape)}"
        form += f" ({tensor.layout}, {tensor.device})" if tensor is not None and _map_like(tensor) else ""
        raise DataError(f"it holds {form}; expected a floating tensor (C, rows, cols)")
    return tuple(found.shape)


def _map_like(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 3 and tensor.is_floating_point() and bool(tensor.numel())


def _below(features: Path, folder: Path) -> Path:
    own, top = _absolute(features), _absolute(folder)
    if not own.is_relative_to(top):
        raise DataError(
            f"the features are in {own}, which is not below the info file's folder {top}; move or link them there, "
            "or give --absolute"
        )
    return own.relative_to(top)


def _absolute(path: Path) -> Path:
    return Path(os.path.normpath(path.absolute()))


def _short(value: object) -> str:
    return reprlib.repr(value)[:200]  # which by itself stops at six levels of six values
