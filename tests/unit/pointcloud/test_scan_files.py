"""Files of scans that look right and are not: doubled points, wrong columns, void instances, scans of one room."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from examples.pointcloud.scans import check_names, read_cloud

from dinoneck import DataError

FAR = torch.tensor([[500_000.0, 4_000_000.0, 0.0]]).double()


def write_ply(path: Path, columns: list[tuple[str, str]], table: np.ndarray, newline: str = "\n") -> None:
    words = {"f4": "float", "f8": "double", "u1": "uchar", "i4": "int"}
    order = table.dtype[0].byteorder
    lines = ["ply", f"format binary_{'big' if order == '>' else 'little'}_endian 1.0", f"element vertex {len(table)}"]
    lines += [f"property {words[kind]} {name}" for name, kind in columns]
    path.write_bytes(newline.join([*lines, "end_header", ""]).encode() + table.tobytes())


def array(tmp_path: Path, *rows: tuple[float, ...]) -> Path:
    np.save(tmp_path / "a.npy", np.array(rows))
    return tmp_path / "a.npy"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_doubles_keep_their_digits_in_both_byte_orders(tmp_path: Path, order: str, newline: str) -> None:
    columns = [("label", "i4"), ("z", "f8"), ("y", "f8"), ("x", "f8")]  # no file has to begin with x
    table = np.array([(3, 1.5, -2.25, 500_000.125), (4, 0.0, 1e-9, 7.0)], [(n, order + k) for n, k in columns])
    write_ply(tmp_path / "a.ply", columns, table, newline)
    cloud = read_cloud(tmp_path / "a.ply")
    assert cloud.points.tolist() == [[500_000.125, -2.25, 1.5], [7.0, 1e-9, 0.0]]
    assert cloud.labels.tolist() == [3, 4]


def test_no_room_is_both_learned_from_and_tested_on() -> None:
    names = ["scene0000_00", "scene0000_01", "scene0001_00", "office"]
    with pytest.raises(DataError, match="scene0000_00, which is learned from, is a scan of the same room"):
        check_names(["scene0000_01"], names)
    with pytest.raises(DataError, match="names a scene twice"):
        check_names(["office", "office"], names)
    check_names(["scene0000_00", "scene0000_01", "office"], names)
