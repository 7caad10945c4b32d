"""Scans of your own as training scenes: a labelled cloud per scene, and the images that show it.

Labels come from ``<scene>.npy``, ``<scene>.ply`` or ScanNet's ``<scene>_vh_clean_2.labels.ply``. They belong to points
by their coordinates, never by their place in the file alone. ``geometry`` needs no files: depth itself gives the cloud,
and its normals and heights the classes ``SURFACES``.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.errors import DataError, some_of
from dinoneck.points import Cameras, PointProjector, VoxelGrid, check_cameras
from examples.pointcloud.frame_tree import images_folder
from examples.pointcloud.frames import Frames, cloud_of
from examples.pointcloud.room_batches import IGNORED, Scene

GEOMETRY = "geometry"
SURFACES = ("floor", "level", "upright", "slanted")
FLOOR, LEVEL, UPRIGHT, SLANTED = range(len(SURFACES))
_LEVEL, _UPRIGHT = 0.85, 0.3  # cosines between a normal and the vertical: within 32 degrees, beyond 73
_FLOOR_M = 0.25  # above the lowest level surface
_CELL_M = 0.1  # of points whose plane is a normal
_PLY = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
        "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
        "float32": "f4", "float64": "f8"}  # fmt: skip
_OF_FRAME = 50_000  # points of a frame's depth, at least, where it has as many
_CHECKED = 5000  # points that cameras are checked with
_OVERLAP = 0.02  # share of the points in another frame, below which poses are not judged
_SHOWN = 5
_ONE_CLASS = 0.9  # least share of an instance's labelled points that have its class
_SCAN = re.compile(r"(scene\d{4})_\d{2}")  # ScanNet's names: several scans of one room
_logger = logging.getLogger("examples.pointcloud")


@dataclass(frozen=True)
class Cloud:
    """N points of a file, in its order.

    Attributes:
        points: float64 (N, 3), metres.
        colours: uint8 (N, 3), or None.
        normals: float32 (N, 3), or None.
        labels: int64 (N,), as in the file, or None.
        instances: int64 (N,), or None.
    """

    points: Tensor
    colours: Tensor | None = None
    normals: Tensor | None = None
    labels: Tensor | None = None
    instances: Tensor | None = None


def scene_names(tree: Path) -> list[str]:
    """Return the names of a tree's scenes: folders of ``TREE/2D``, or of ``TREE``.

    Raises:
        DataError: if there are none.
    """
    folder = images_folder(tree)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(f"{folder} holds no scenes; expected a folder per scene, each as the verb check reads it")
    return names


def scan(
    name: str, frames: Frames, labels: str, classes: Mapping[int, int], clouds: Path | None, points: int, seed: int
) -> Scene:
    """Return a scene's labelled points and which image shows which of them, still without maps.

    Args:
        name: of the scene.
        frames: its images.
        labels: a folder of label files, or ``geometry``.
        classes: label in the files -> class; others are not learned.
        clouds: folder of ``<scene>.ply`` with colours or normals; None = the label files' own points.
        points: drawn at most.
        seed: of the draw.

    Raises:
        DataError: if labels and points do not belong together, cameras, depth and points do not fit, no drawn point
            has a label, or an instance has points of several classes.
    """
    if labels == GEOMETRY:
        cloud = _surfaces(frames)
        check = check_cameras(None, frames.cameras, frames.depth, max_points=_CHECKED)
        unknown = check.in_bounds["camera_to_world"] < _OVERLAP  # frames that do not overlap
    else:
        cloud, unknown = _labelled(Path(labels), clouds, name, classes), False
        check = check_cameras(cloud.points, frames.cameras, frames.depth, max_points=_CHECKED)
    if (check.clear and check.best != "camera_to_world") or not (check.fits or unknown):
        raise DataError(f"{name}: {check}. The verb check shows more; --depth-scale gives the unit of depth files")
    if cloud.normals is None:
        cloud = replace(cloud, normals=normals_of(cloud.points, frames.cameras))
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    drawn = torch.randperm(len(cloud.points), generator=torch.Generator().manual_seed(key + seed))[:points]
    here = Cloud(*(None if part is None else part[drawn] for part in vars(cloud).values()))  # type: ignore[arg-type]
    if here.labels is None or not (here.labels != IGNORED).any():
        raise DataError(f"{name}: none of {len(drawn)} points drawn has a label that is learned; raise --points")
    links = PointProjector()(here.points, frames.cameras, frames.depth)
    normals = torch.zeros(len(drawn), 3) if here.normals is None else here.normals
    colours = torch.full((len(drawn), 3), 128, dtype=torch.uint8) if here.colours is None else here.colours
    return Scene(here.points, normals, colours, here.labels, links=links, instances=here.instances)


def _labelled(folder: Path, clouds: Path | None, name: str, classes: Mapping[int, int]) -> Cloud:
    """Read a scene's labels, and bring them to the points of its cloud where that is another file."""
    path = _file(folder, name, (".npy", ".ply", "_vh_clean_2.labels.ply"))
    cloud = read_cloud(path)
    if cloud.labels is None:
        raise DataError(f"{path} has no label for its points")
    if clouds is not None:
        cloud = matched(cloud, read_cloud(_file(clouds, name, (".npy", ".ply", "_vh_clean_2.ply"))), name)
    known = torch.full_like(cloud.labels, IGNORED)  # type: ignore[arg-type]
    for label, place in classes.items():
        known[cloud.labels == label] = place
    if not (known != IGNORED).any():
        ids = ", ".join(map(str, cloud.labels.unique().tolist()[:_SHOWN]))  # type: ignore[union-attr]
        raise DataError(f"{path} holds none of the labels {', '.join(map(str, classes))}; it has {ids} ...: --classes")
    if cloud.instances is not None:
        _check_instances(cloud.instances, known, path)
    return replace(cloud, labels=known)


def _check_instances(instances: Tensor, labels: Tensor, path: Path) -> None:
    """Refuse an instance whose points have several classes: an id of all points without an object, such as 0.

    Raises:
        DataError: naming it.
    """
    inside = (instances >= 0) & (labels != IGNORED)
    ids, mask = instances[inside].unique(return_inverse=True)
    votes = torch.zeros(len(ids), int(labels.max()) + 1).index_put_(
        (mask, labels[inside]), torch.ones(len(mask)), accumulate=True
    )
    mixed = votes.amax(1) < _ONE_CLASS * votes.sum(1)
    if mixed.any():
        number = int(ids[mixed][0])
        raise DataError(
            f"{path}: instance {number} has points of {int((votes[mixed][0] > 0).sum())} classes; an object has one. "
            f"If {number} marks points without an object, write -1 there"
        )


def matched(labelled: Cloud, cloud: Cloud, name: str) -> Cloud:
    """Return the cloud with the labels of the points at the same coordinates, in whatever order.

    Coordinates are compared as float32 where one of the files has no more. Points at the same coordinates with
    different labels, or of different instances, are ``IGNORED`` there.

    Raises:
        DataError: if the counts differ, or a point of one is not in the other.
    """
    own, other = cloud.points, labelled.points
    if len(own) != len(other):
        raise DataError(f"{name}: {len(other)} labels for {len(own)} points; they belong to different clouds")
    if any(torch.equal(part, part.float().double()) for part in (own, other)):
        own, other = own.float(), other.float()
    _, place = torch.cat([own, other]).unique(dim=0, return_inverse=True)
    cells = place.split(len(own))
    ranks = [part.argsort(stable=True) for part in cells]
    if not torch.equal(cells[0][ranks[0]], cells[1][ranks[1]]):
        apart = max(1, int((~torch.isin(cells[0], cells[1])).sum()))
        raise DataError(
            f"{name}: {apart} of {len(own)} points are not at the coordinates of a label; labels and points "
            "must be of one cloud, neither aligned nor thinned"
        )

    def brought(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        empty = values.new_zeros(len(own) * 2)
        least, most = (empty.scatter_reduce(0, cells[1], values, way, include_self=False) for way in ("amin", "amax"))
        unclear = (least != most)[cells[0]]
        if unclear.any():
            _logger.warning(
                "%s: %d points share their coordinates with points of another label or instance: ignored",
                name, int(unclear.sum()),
            )  # fmt: skip
        return least[cells[0]].where(~unclear, IGNORED)

    return replace(cloud, labels=brought(labelled.labels), instances=brought(labelled.instances))


def _file(folder: Path, name: str, endings: Sequence[str]) -> Path:
    for ending in endings:
        if (folder / f"{name}{ending}").is_file():
            return folder / f"{name}{ending}"
    raise DataError(f"{folder} has none of {', '.join(f'{name}{ending}' for ending in endings)}")


def read_cloud(path: Path) -> Cloud:
    """Read points of a ``.npy`` (N, 4 or 5: x, y, z, label, instance) or a ``.ply``.

    Of a ``.ply`` x, y, z, nx, ny, nz, red, green, blue, label and instance are taken, ascii or binary.

    Raises:
        DataError: if the file has another form, a coordinate is not finite, colours are not 0 ... 255, or labels or
            instances are not whole numbers.
    """
    try:
        table = _of_npy(path) if path.suffix == ".npy" else _of_ply(path)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read as a cloud: {error}") from error

    def columns(*names: str) -> Tensor | None:
        if not all(name in table for name in names):
            return None
        return torch.from_numpy(np.stack([table[name].astype(np.float64) for name in names], 1))

    points = columns("x", "y", "z")
    if points is None or not len(points) or not bool(points.isfinite().all()):
        raise DataError(f"{path} has {sorted(table)}; expected finite x, y, z of some points")
    colours, normals = columns("red", "green", "blue"), columns("nx", "ny", "nz")
    labels, instances = columns("label"), columns("instance")
    for what, values in (("colours", colours), ("labels", labels), ("instances", instances)):
        if values is not None and not torch.equal(values, values.long().double()):
            raise DataError(
                f"{path}: {what} are not whole numbers, such as {float(values[values != values.long()][0])}"
            )
    if colours is not None and not 0 <= float(colours.min()) <= float(colours.max()) <= 255:
        raise DataError(f"{path}: colours reach {float(colours.max()):g}; expected 0 ... 255")
    return Cloud(
        points,
        None if colours is None else colours.to(torch.uint8),
        None if normals is None else normals.float(),
        None if labels is None else labels[:, 0].long(),
        None if instances is None else instances[:, 0].long(),
    )


def _of_npy(path: Path) -> dict[str, np.ndarray]:
    table = np.load(path, allow_pickle=False)
    if table.ndim != 2 or table.shape[1] not in (4, 5):
        raise ValueError(f"it is {table.shape}; expected (N, 4 or 5): x, y, z, label and perhaps instance")
    return dict(zip(("x", "y", "z", "label", "instance"), table.T, strict=False))


def _of_ply(path: Path) -> dict[str, np.ndarray]:
    head, *rest = re.split(rb"end_header\r?\n", path.read_bytes(), maxsplit=1)
    lines = [line.split() for line in head.decode("ascii", "replace").splitlines()]
    forms = [words[1] for words in lines if words[:1] == ["format"]]
    starts = [place for place, words in enumerate(lines) if words[:1] == ["element"]]
    if lines[:1] != [["ply"]] or not rest or not starts or lines[starts[0]][1] != "vertex" or not forms:
        raise ValueError("expected a .ply whose first element is vertex")
    end = [*starts, len(lines)][1]
    properties = [words for words in lines[starts[0] : end] if words[0] == "property"]
    order = ">" if forms[0] == "binary_big_endian" else "<"
    dtype = np.dtype([(words[2], f"{order}{_PLY[words[1]]}") for words in properties])
    count = int(lines[starts[0]][2])
    if forms[0] == "ascii":
        rows = rest[0].decode("ascii").splitlines()[:count]
        table = np.array([tuple(map(float, row.split())) for row in rows], [(name, "f8") for name in dtype.names or ()])
    else:
        table = np.frombuffer(rest[0], dtype, count)
    if len(table) != count:
        raise ValueError(f"it announces {count} points and holds {len(table)}")
    return {name: table[name] for name in dtype.names or ()}


def normals_of(points: Tensor, cameras: Cameras) -> Tensor:
    """Return normals float32 (N, 3): of the plane through each cell's points, towards the camera nearest to the cell.

    Zeros in cells of fewer than three points.
    """
    cell = VoxelGrid.from_points(points, _CELL_M).inverse
    number = cell.bincount().double()[:, None]
    mean = points.new_zeros(len(number), 3).index_add_(0, cell, points) / number
    off = points - mean[cell]
    spread = points.new_zeros(len(number), 9).index_add_(0, cell, (off[:, :, None] * off[:, None]).flatten(1))
    normals = torch.linalg.eigh(spread.view(-1, 3, 3)).eigenvectors[:, :, 0]
    eye = cameras.positions[torch.cdist(mean, cameras.positions).argmin(1)]
    facing = (normals * (eye - mean)).sum(1, keepdim=True)
    normals = torch.where(facing < 0, -normals, normals) * (number >= 3)
    return normals[cell].float()


def _surfaces(frames: Frames) -> Cloud:
    """Return the cloud of all frames' depth with the classes that its normals and heights give."""
    parts = []
    for view in range(len(frames)):
        cloud = cloud_of(frames, view)
        parts.append([part[:: max(1, len(cloud[0]) // _OF_FRAME)] for part in cloud])
    points, colours, normals = (torch.cat(part) for part in zip(*parts, strict=True))
    planes = normals_of(points, frames.cameras)  # those of single pixels are noise in real depth
    up = vertical(frames, planes)
    cosine = planes.double() @ up
    height = points @ up
    labels = torch.full((len(points),), SLANTED)
    labels[cosine.abs() < _UPRIGHT] = UPRIGHT
    level = cosine > _LEVEL
    labels[level] = LEVEL
    if level.any():
        lowest = height[level][:: max(1, int(level.sum()) // 100_000)].quantile(0.05)
        labels[level & (height < lowest + _FLOOR_M)] = FLOOR
    labels[normals.norm(dim=1) < 0.5] = IGNORED  # next to unknown depth there is no normal
    return Cloud(points, colours.to(torch.uint8), normals, labels)


def vertical(frames: Frames, normals: Tensor) -> Tensor:
    """Return the direction up, float64 (3,): the cameras' own, moved to the level surfaces around it."""
    up = F.normalize(-frames.cameras.cam_to_world[:, :3, 1].mean(0), dim=0)
    for _ in range(5):
        near = normals.double()[normals.double() @ up > _LEVEL]
        up = F.normalize(near.mean(0), dim=0) if len(near) else up
    return up


def check_names(held_out: Sequence[str], names: Sequence[str]) -> None:
    """Refuse held-out scenes that are not there, or a choice that leaves nothing to learn from or to test.

    Raises:
        DataError: naming them.
    """
    if len(set(held_out)) < len(held_out):
        raise DataError(f"--held-out names a scene twice: {', '.join(held_out)}")
    if missing := set(held_out) - set(names):
        raise DataError(f"--held-out names {some_of(missing, _SHOWN)}; the tree has {some_of(names, _SHOWN)}")
    if not held_out or set(held_out) == set(names):
        raise DataError(
            f"--held-out names {len(held_out)} of {len(names)} scenes; expected some, and others to learn from"
        )
    rooms = {match[1]: name for name in set(names) - set(held_out) if (match := _SCAN.fullmatch(name))}
    for name in held_out:
        match = _SCAN.fullmatch(name)
        if match and match[1] in rooms:
            raise DataError(
                f"--held-out names {name}, and {rooms[match[1]]}, which is learned from, is a scan of the same room; "
                "hold out all scans of a room"
            )
