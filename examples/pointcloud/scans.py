"""Scans of your own as training scenes: a labelled cloud per scene, and the images that show it.

Points and labels come from ``<scene>.npy``, ``<scene>.ply`` or ScanNet's
``<scene>_vh_clean_2.labels.ply``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dinoneck.errors import DataError
from dinoneck.points import Cameras, PointProjector, VoxelGrid, check_cameras
from dinoneck.text import counted, some_of
from examples.pointcloud.frames import Frames
from examples.pointcloud.room_batches import IGNORED, Scene

_ENDINGS = (".npy", ".ply", "_vh_clean_2.labels.ply")
_CELL_M = 0.1  # of points whose plane is a normal
_PLY = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "float32": "f4",
    "float64": "f8",
}
_PLY_FORMS = ("ascii", "binary_little_endian", "binary_big_endian")
_LEAST_OF_PLANE = 3  # points
_GREY = 128  # colour of points whose file has none
_CHECKED = 5000  # points that cameras are checked with
_SHOWN = 5
_ONE_CLASS = 0.9  # least share of an instance's labelled points that have its class
_SCAN = re.compile(r"(scene\d{4})_\d{2}")  # ScanNet's names: several scans of one room


@dataclass(frozen=True)
class Cloud:
    """N points of a file, in its order.

    Attributes:
        points: float64 (N, 3), metres.
        labels: int64 (N,), as in the file.
        colours: uint8 (N, 3), or None.
        instances: int64 (N,), or None.
    """

    points: Tensor
    labels: Tensor
    colours: Tensor | None = None
    instances: Tensor | None = None


def scan(
    name: str, frames: Frames, labels: Path, classes: Mapping[int, int], points: int, seed: int
) -> Scene:
    """Return a scene's labelled points and which image shows which of them, still without maps.

    Args:
        name: of the scene.
        frames: its images.
        labels: folder of label files.
        classes: label in the files -> class; others are not learned.
        points: drawn at most.
        seed: of the draw.

    Raises:
        DataError: if cameras, depth and points do not fit, no drawn point has a label, or an
            instance has points of several classes.
    """
    cloud = _labelled(labels, name, classes)
    check = check_cameras(cloud.points, frames.cameras, frames.depth, max_points=_CHECKED)
    if (check.clear and check.best != "camera_to_world") or not check.fits:
        raise DataError(
            f"{name}: {check}. 'python -m examples.pointcloud check DATA --clouds LABELS' shows "
            "every frame"
        )
    normals = normals_of(cloud.points, frames.cameras)
    colours = cloud.colours
    if colours is None:
        colours = torch.full_like(cloud.points, _GREY, dtype=torch.uint8)
    scene_number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    generator = torch.Generator().manual_seed(scene_number + seed)
    drawn = torch.randperm(len(cloud.points), generator=generator)[:points]
    if not (cloud.labels[drawn] != IGNORED).any():
        raise DataError(
            f"{name}: none of {len(drawn)} points drawn has a label that is learned; raise --points"
        )
    links = PointProjector()(cloud.points[drawn], frames.cameras, frames.depth)
    return Scene(
        points=cloud.points[drawn],
        normals=normals[drawn],
        colours=colours[drawn],
        labels=cloud.labels[drawn],
        links=links,
        instances=None if cloud.instances is None else cloud.instances[drawn],
    )


def _labelled(folder: Path, name: str, classes: Mapping[int, int]) -> Cloud:
    """Read a scene's cloud with the classes of its labels; other labels are ``IGNORED``."""
    path = cloud_file(folder, name)
    cloud = read_cloud(path)
    known = torch.full_like(cloud.labels, IGNORED)
    for label, place in classes.items():
        known[cloud.labels == label] = place
    if not (known != IGNORED).any():
        ids = ", ".join(map(str, cloud.labels.unique().tolist()[:_SHOWN]))
        raise DataError(
            f"{path} holds none of the labels {', '.join(map(str, classes))}; it has {ids} ...: "
            "--classes"
        )
    if cloud.instances is not None:
        _check_instances(cloud.instances, known, path)
    return replace(cloud, labels=known)


def cloud_file(folder: Path, name: str) -> Path:
    """Return the file of a scene's cloud.

    Raises:
        DataError: if there is none.
    """
    files = [folder / f"{name}{ending}" for ending in _ENDINGS]
    for path in files:
        if path.is_file():
            return path
    raise DataError(f"{folder} has none of {', '.join(path.name for path in files)}")


def _check_instances(instances: Tensor, labels: Tensor, path: Path) -> None:
    """Refuse an instance whose points have several classes: an id of all points without an object, such as 0.

    Raises:
        DataError: naming it.
    """
    has_object = instances >= 0
    has_class = labels != IGNORED
    inside = has_object & has_class
    ids, row = instances[inside].unique(return_inverse=True)
    # how many points of each instance have each class
    votes = torch.zeros(len(ids), int(labels.max()) + 1)
    votes.index_put_((row, labels[inside]), torch.ones(len(row)), accumulate=True)
    most = votes.amax(dim=1)
    all_points = votes.sum(dim=1)
    mixed = most < _ONE_CLASS * all_points
    if mixed.any():
        number = int(ids[mixed][0])
        classes = int((votes[mixed][0] > 0).sum())
        raise DataError(
            f"{path}: instance {number} has points of {classes} classes; an object has one. If "
            f"{number} marks points without an object, write -1 there"
        )


def read_cloud(path: Path) -> Cloud:
    """Read points of a ``.npy`` (N, 4 or 5: x, y, z, label, instance) or a ``.ply``.

    Of a ``.ply`` x, y, z, red, green, blue, label and instance are taken, ascii or binary.

    Raises:
        DataError: if the file has another form, a coordinate is not finite, colours are not 0 ...
            255, or labels or instances are not whole numbers.
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
    labels = columns("label")
    if points is None or labels is None:
        raise DataError(f"{path} has {', '.join(sorted(table))}; expected x, y, z and label")
    if not len(points):
        raise DataError(f"{path} holds no points")
    lost = ~points.isfinite().all(1)
    if lost.any():
        raise DataError(
            f"{path}: {int(lost.sum())} of {len(points)} points have NaN or infinite coordinates; "
            "leave them out of the file"
        )
    colours = columns("red", "green", "blue")
    instances = columns("instance")
    for what, values in (("colours", colours), ("labels", labels), ("instances", instances)):
        if values is not None and not torch.equal(values, values.long().double()):
            raise DataError(f"{path}: {what} are not whole numbers")
    if colours is not None and not 0 <= float(colours.min()) <= float(colours.max()) <= 255:
        raise DataError(f"{path}: colours reach {float(colours.max()):g}; expected 0 ... 255")
    return Cloud(
        points,
        labels[:, 0].long(),
        None if colours is None else colours.to(torch.uint8),
        None if instances is None else instances[:, 0].long(),
    )


def _of_npy(path: Path) -> dict[str, np.ndarray]:
    table = np.load(path, allow_pickle=False)
    if table.ndim != 2 or table.shape[1] not in (4, 5):
        raise ValueError(
            f"it is {table.shape}; expected (N, 4 or 5): x, y, z, label and perhaps instance"
        )
    return dict(zip(("x", "y", "z", "label", "instance"), table.T, strict=False))


@dataclass(frozen=True)
class _PlyHeader:
    """What a ``.ply`` says of its first element, its points.

    Attributes:
        form: one of ``_PLY_FORMS``.
        count: how many points.
        columns: name and type of each of their properties, in the order of the file.
    """

    form: str
    count: int
    columns: list[tuple[str, str]]


def _of_ply(path: Path) -> dict[str, np.ndarray]:
    """Return name -> column of the points of a ``.ply``.

    Raises:
        ValueError: if the file has another form, or fewer points than it announces.
    """
    parts = re.split(rb"end_header\r?\n", path.read_bytes(), maxsplit=1)
    if len(parts) == 1:
        raise ValueError("it has no line end_header; expected a .ply")
    head, body = parts
    header = _read_ply_header(head.decode("ascii", "replace"))
    if header.form == "ascii":
        table = _ascii_table(body, header)
    else:
        table = _binary_table(body, header)
    if len(table) != header.count:
        announced = counted(header.count, "point")
        raise ValueError(f"it announces {announced} and holds {len(table)}")
    return {name: table[name] for name, _ in header.columns}


def _read_ply_header(text: str) -> _PlyHeader:
    """Read the lines before ``end_header``; elements after the first are not looked at.

    Raises:
        ValueError: naming what is missing or unknown.
    """
    lines = [line.split() for line in text.splitlines()]
    if not lines or lines[0] != ["ply"]:
        raise ValueError("its first line is not 'ply'")
    form = ""
    elements = []
    columns = []
    for words in lines:
        match words:
            case ["format", form_word, *_]:
                form = form_word
            case ["element", element, count]:
                elements.append((element, int(count)))
            case ["property", kind, name] if len(elements) == 1:
                columns.append((name, _ply_type(kind, name)))
            case ["property", "list", *_, name] if len(elements) == 1:
                raise ValueError(f"property {name} of the points is a list; expected a number")
    if form not in _PLY_FORMS:
        raise ValueError(f"its format is {form!r}; expected {', '.join(_PLY_FORMS)}")
    if not elements or elements[0][0] != "vertex":
        raise ValueError("expected a .ply whose first element is vertex")
    return _PlyHeader(form, elements[0][1], columns)


def _ply_type(kind: str, name: str) -> str:
    """Return NumPy's name of a type, without its byte order."""
    if kind not in _PLY:
        raise ValueError(f"property {name} has the type {kind!r}; expected {', '.join(_PLY)}")
    return _PLY[kind]


def _ascii_table(body: bytes, header: _PlyHeader) -> np.ndarray:
    """Read a line of numbers per point."""
    rows = []
    for line in body.decode("ascii").splitlines()[: header.count]:
        rows.append(tuple(float(word) for word in line.split()))
    return np.array(rows, [(name, "f8") for name, _ in header.columns])


def _binary_table(body: bytes, header: _PlyHeader) -> np.ndarray:
    """Read points without gaps, in the byte order of the file."""
    order = ">" if header.form == "binary_big_endian" else "<"
    dtype = np.dtype([(name, f"{order}{kind}") for name, kind in header.columns])
    return np.frombuffer(body, dtype, header.count)


def normals_of(points: Tensor, cameras: Cameras) -> Tensor:
    """Return normals float32 (N, 3): of the plane through each cell's points, towards the camera nearest to the cell.

    Zeros in cells of fewer than three points.
    """
    cell = VoxelGrid.from_points(points, _CELL_M).inverse  # (N,), of M cells
    count = cell.bincount().double()[:, None]  # (M, 1)
    sums = points.new_zeros(len(count), 3).index_add_(0, cell, points)
    mean = sums / count
    offset = points - mean[cell]
    products = offset[:, :, None] * offset[:, None]  # (N, 3, 3)
    scatter = points.new_zeros(len(count), 9).index_add_(0, cell, products.flatten(1))
    # the plane's normal is the direction of least spread
    normals = torch.linalg.eigh(scatter.view(-1, 3, 3)).eigenvectors[:, :, 0]
    nearest = torch.cdist(mean, cameras.positions).argmin(dim=1)
    to_camera = cameras.positions[nearest] - mean
    facing = (normals * to_camera).sum(dim=1, keepdim=True)
    normals = torch.where(facing < 0, -normals, normals)
    normals = normals * (count >= _LEAST_OF_PLANE)
    return normals[cell].float()


def check_names(held_out: Sequence[str], names: Sequence[str]) -> None:
    """Refuse held-out scenes that are not there, or a choice that leaves nothing to learn from or to test.

    Raises:
        DataError: naming them.
    """
    if len(set(held_out)) < len(held_out):
        raise DataError(f"--held-out is {' '.join(held_out)}; expected each scene once")
    missing = set(held_out) - set(names)
    if missing:
        raise DataError(
            f"--held-out names {some_of(missing, _SHOWN)}; the tree has {some_of(names, _SHOWN)}"
        )
    if not held_out or set(held_out) == set(names):
        raise DataError(
            f"--held-out names {len(held_out)} of {counted(len(names), 'scene')}; expected some, and "
            "others to learn from"
        )
    learned_scan_of: dict[str, str] = {}
    for name in sorted(set(names) - set(held_out)):
        match = _SCAN.fullmatch(name)
        if match:
            learned_scan_of[match[1]] = name
    for name in held_out:
        match = _SCAN.fullmatch(name)
        if match and match[1] in learned_scan_of:
            raise DataError(
                f"--held-out names {name}, and {learned_scan_of[match[1]]}, which is learned from, is a "
                "scan of the same room; hold out all scans of a room"
            )
