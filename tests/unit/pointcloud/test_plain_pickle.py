"""Pickles of plain values are read and written to the value; everything else is refused and nothing of it runs."""

from __future__ import annotations

import io
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples.pointcloud.plain_pickle import dump_plain, load_plain

from dinoneck import DataError


def entry() -> dict[str, Any]:
    return {
        "img_path": "2D/scene0000_00/color/0.jpg",
        "pose": np.arange(16.0).reshape(4, 4),
        "axis": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "counts": np.array([1, 2, 3], ">i2"),
        "text": np.array(["chair", "sofa"]),
        "valid": np.array([True, False]),
        "empty": np.zeros((0, 3)),
        "nested": [1, -(2**70), 0.5, None, True, b"\x00\xff", ("a", (2, 3))],
    }


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", range(6))
def test_values_of_every_protocol_are_read(protocol: int, tmp_path: Path) -> None:
    shared = [1, 2]
    content = {
        "metainfo": {"version": "1"},
        "data_list": [entry(), entry()],
        "a": shared,
        "b": shared,
    }
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert_equal(load_plain(path), content)


def test_the_names_of_numpy_1_are_read(tmp_path: Path) -> None:
    path = tmp_path / "infos.pkl"
    raw = pickle.dumps(np.arange(4.0), protocol=2)
    path.write_bytes(raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(load_plain(path), np.arange(4.0))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_large_array_is_within_the_budget(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps([np.zeros(10_000), np.zeros(10_000)], protocol=protocol))
    assert [len(array) for array in load_plain(path)] == [10_000, 10_000]


def test_scalars_of_numpy_become_numbers(tmp_path: Path) -> None:
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps([np.float32(0.1), np.int64(-3), np.bool_(True)], protocol=2))
    found = load_plain(path)
    assert found == [float(np.float32(0.1)), -3, True]
    assert [type(value) for value in found] == [float, int, bool]


def test_what_is_written_is_read_by_pickle_and_by_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "infos.pkl"
    content = entry()
    content["counts"] = np.array([1, 2, 3], np.int16)  # numpy itself reads other orders as native
    path.write_bytes(dump_plain(content))
    by_pickle = pickle.loads(path.read_bytes())
    assert_equal(by_pickle, content)
    assert by_pickle["pose"].flags.writeable
    assert_equal(load_plain(path), content)


class Recording(pickle.Unpickler):
    """Python's own unpickler, which notes the names that it looks up."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw))
        self.names: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.names.add(f"{module}.{name}")
        return super().find_class(module, name)


def test_what_is_written_has_protocol_4_and_names_that_every_numpy_has() -> None:
    raw = dump_plain(entry())
    reader = Recording(raw)
    reader.load()
    assert raw[:2] == b"\x80\x04"
    assert reader.names == {"numpy.ndarray", "numpy.dtype"}


class Runs:
    """What a forged file holds: a call when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> Any:
        return self.made


FORGED = {
    "a command": pickle.dumps(Runs(os.system, "touch HERE")),
    "a name of the builtins": pickle.dumps(Runs(eval, "1")),
    "an import": pickle.dumps(Runs(__import__, "antigravity")),
    "a class": pickle.dumps(Path("a")),
    "a set": pickle.dumps({1, 2}),
    "objects in an array": pickle.dumps(np.array([{}, None], dtype=object)),
    "an array with fields": pickle.dumps(np.zeros(2, dtype=[("a", "f4")])),
    "the codec of another encoding": b"c_codecs\nencode\n(Vabc\nVrot13\ntR.",
    "an attribute of a stand-in": b"cnumpy.core.multiarray\n_reconstruct\n}Va\nI1\nsb.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a persistent id": b"Pname\n.",
    "an instance": b"(inumpy\nndarray\n.",
    "a new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "a rest behind the pickle": pickle.dumps([1]) + b"x",
    "a place far out in the memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "more bytes than there are": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"ab.",
    "a longer array than its bytes": pickle.dumps(np.zeros(3), protocol=4).replace(
        b"K\x03\x85", b"K\x04\x85"
    ),
    "a stack without values": b"\x80\x020.",
    "no pickle": b"<html>",
    "nothing": b"",
}


@pytest.mark.parametrize("name", FORGED)
def test_anything_else_is_refused_and_nothing_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "infos.pkl"
    path.write_bytes(FORGED[name])
    before = set(sys.modules)
    with pytest.raises(DataError, match=re.escape(str(path))):
        load_plain(path)
    assert not (tmp_path / "HERE").exists()
    assert "antigravity" not in set(sys.modules) - before


def test_tuples_that_repeat_each_other_are_refused_before_they_are_hashed(tmp_path: Path) -> None:
    raw = b"\x80\x02}K\x01q\x00" + b"".join(
        b"h%ch%c\x86q%c" % (level, level, level + 1) for level in range(60)
    )
    path = tmp_path / "infos.pkl"
    path.write_bytes(raw + b"K\x01s.")
    with pytest.raises(DataError, match="same tuples over and over"):
        load_plain(path)


def test_arrays_that_share_their_bytes_are_counted(tmp_path: Path) -> None:
    # the state of one array, put into 100 more of them
    raw = b"\x80\x04]("
    state = b"(K\x01M\x10'\x85q\x01cnumpy\ndtype\n(Vu1\nI00\nI01\ntR(I3\nV|\nNNNI-1\nI-1\nI0\ntb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntC\x01btR"
    raw += array + state + b"\x89B\x10'\x00\x00" + bytes(10_000) + b"tq\x02b"
    raw += (array + b"h\x02b") * 100 + b"e."
    path = tmp_path / "infos.pkl"
    path.write_bytes(raw)
    with pytest.raises(DataError, match="same bytes over and over"):
        load_plain(path)


def test_containers_that_lie_too_deep_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "infos.pkl"
    path.write_bytes(b"]" * 5000 + b"a" * 4999 + b".")
    with pytest.raises(DataError, match="deep in each other"):
        load_plain(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(bytes(1000)))
    with pytest.raises(DataError, match="up to 500 bytes"):
        load_plain(path, largest=500)


def test_values_that_are_not_plain_are_not_written() -> None:
    with pytest.raises(DataError, match="a value is set"):
        dump_plain({"a": {1, 2}})
