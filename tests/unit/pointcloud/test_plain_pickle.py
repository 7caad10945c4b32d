"""The reader of info files: what numpy and Python write of plain values comes back, and nothing else comes in."""

from __future__ import annotations

import _codecs
import builtins
import codecs
import collections
import functools
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples.pointcloud.plain_pickle import dump_plain, load_plain

from dinoneck import DataError

codecs.lookup(
    "raw_unicode_escape"
)  # Python's own module for text of protocol 0 is there before any test counts modules

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
RECONSTRUCT = np.zeros(1).__reduce__()[0]


def plain_values() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    pose = rng.standard_normal((4, 4))
    return {
        "metainfo": {"categories": {"wall": 0, "Stühle": 1}, "info_version": "1.1", 3: None, None: "none"},
        "data_list": [
            {"pose": pose, "same": pose, "fortran": np.asfortranarray(rng.standard_normal((2, 3)))},
            {"empty": np.zeros((0, 3)), "zero": np.array(5.0), "int": np.arange(6, dtype=np.int64).reshape(1, 2, 3)},
            {"text": np.array(["ab", "c"]), "bytes": np.array([b"ab", b""]), "big": np.arange(3, dtype=">i4")},
            {"bool": np.array([True, False]), "half": np.ones(2, np.float16), "complex": np.array([1j])},
            {"scalar": np.float32(2.5), "index": np.int64(-7), "flag": np.bool_(True), "word": np.str_("wörd")},
            {"list": [1, -1, 255, 65536, 1 << 31, 1 << 80, -(1 << 90), 1.5, float("inf"), True, False, None]},
            {"tuple": (1, (2.5, ("x",), ()), [], {}), "raw": b"\x00\xff", "none": b"", "long": "x" * 300},
            {"é\n": "\u20ac"},
        ],
    }  # fmt: skip


def same(one: Any, two: Any) -> bool:
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(same(*pair) for pair in zip(one, two, strict=True))
    if isinstance(one, np.ndarray):
        alike = (one.dtype, one.shape, one.flags.f_contiguous) == (two.dtype, two.shape, two.flags.f_contiguous)
        return alike and two.flags.writeable and bool((one == two).all())
    return bool(one == two)


class Calls:
    """Pickles as a call, which unpickling would make."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def refused(path: Path, raw: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_plain(write(path, raw))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_back(tmp_path: Path, protocol: int) -> None:
    values = plain_values()
    read = load_plain(write(tmp_path / "x.pkl", pickle.dumps(values, protocol)))
    assert same(values, read)
    assert read["data_list"][0]["pose"] is read["data_list"][0]["same"]
    for own in (3, "x", None, (1, 2), [], np.float64(2), np.eye(2)):
        assert same(own, load_plain(write(tmp_path / "x.pkl", pickle.dumps(own, protocol))))


def test_what_is_written_is_read_by_every_numpy(tmp_path: Path) -> None:
    values = plain_values()
    raw = dump_plain(values)
    assert raw.startswith(b"\x80\x02")
    assert b"numpy.core.multiarray\n_reconstruct\n" in raw
    assert b"numpy._core" not in raw
    assert same(values, load_plain(write(tmp_path / "x.pkl", raw)))
    del values["data_list"][2]["big"]  # numpy itself turns the byte order
    assert same(values, pickle.loads(dump_plain(values)))


def attacks() -> dict[str, tuple[Any, str]]:
    made = Path("made-by-a-pickle")
    return {
        "system": (Calls(os.system, f"touch {made}"), r"(posix|nt)\.system"),
        "eval": (Calls(builtins.eval, "1"), "eval"),
        "exec": (Calls(builtins.exec, "1"), "exec"),
        "getattr": (Calls(builtins.getattr, "x", "join"), "getattr"),
        "import": (Calls(builtins.__import__, "os"), "__import__"),
        "open": (Calls(open, str(made), "w"), "open"),
        "touch": (Calls(Path.touch, made), r"Path\.touch|getattr"),
        "partial": (functools.partial(os.system, f"touch {made}"), "partial"),
        "list of a call": (Calls(list, [1]), r"list"),
        "nested": ([{"a": (1, {"b": Calls(os.system, "true")})}], "system"),
        "argument": (Calls(_codecs.encode, Calls(os.system, "true"), "latin1"), "system"),
        "state": (Calls(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,), Calls(os.getcwd))),
                  "getcwd"),
        "numpy load": (Calls(np.load, "x.npy"), r"numpy\.load"),
        "fromfile": (Calls(np.fromfile, "x"), "fromfile"),
        "subclass": (Calls(RECONSTRUCT, np.recarray, (0,), b"b"), "recarray"),
        "masked": (np.ma.masked_array([1.0]), "numpy.ma"),
        "ordered": (collections.OrderedDict(a=1), r"collections.OrderedDict"),
        "set": ({1, 2}, "set|EMPTY_SET"),
        "path": (made, r"pathlib"),
        "class": (str, r"builtin.*str|unicode"),
        "tensor": (torch.zeros(2), r"torch"),
        "storage": (torch.zeros(2).untyped_storage(), r"torch"),
        "object": (Exception("x"), "Exception"),
        "complex": (1j, "complex"),
        "objects in an array": (np.array([os.system, 1], dtype=object), "dtype 'O8'|system"),
        "object scalar": (np.array([{"a": 1}], dtype=object), "dtype 'O8'"),
        "structured": (np.zeros(2, [("a", "f4"), ("b", "O")]), "dtype 'V12'"),
        "dates": (np.array(["2020-01-01"], "datetime64[D]"), "dtype 'M8'"),
        "a dtype alone": (np.dtype("f4"), "no plain value|alone"),
        "the class alone": ({"a": np.ndarray}, "the class of arrays alone"),
        "codec": (Calls(_codecs.encode, "a", "rot13"), "form that numpy does not write"),
        "codec errors": (Calls(_codecs.encode, "a", "latin1", "x"), "form that numpy does not write"),
        "bytes of a size": (Calls(bytes, 1 << 40), "form that numpy does not write|bytes"),
        "dtype of objects": (Calls(np.dtype, "O8", False, True), "dtype 'O8'"),
        "dtype of text": (Calls(np.dtype, "f4,O", False, True), "dtype 'f4,O'"),
        "dtype of a list": (Calls(np.dtype, [("a", "O")]), "form that numpy does not write"),
        "dtype called as a class": (Calls(np.ndarray, (1 << 40,)), "form that numpy does not write"),
        "reconstruct a shape": (Calls(RECONSTRUCT, np.ndarray, (1 << 40,), b"b"), "form that numpy"),
        "reconstruct a class": (Calls(RECONSTRUCT, np.dtype, (0,), b"b"), "form that numpy"),
        "state of a dict": (Calls(np.dtype, "f4", False, True, state={"a": 1}), "form that numpy does not write"),
        "fields by state": (Calls(np.dtype, "f4", False, True, state=(3, "<", None, ("a",), {}, -1, -1, 0)), "form"),
        "shape by state": (Calls(RECONSTRUCT, np.ndarray, (0,), b"b",
                                 state=(1, (1 << 40,), np.dtype("f4"), False, b"1234")), "do not make the array"),
        "shape below 0": (Calls(RECONSTRUCT, np.ndarray, (0,), b"b",
                                state=(1, (-1, -1), np.dtype("i1"), False, b"1")), "do not make the array"),
        "objects by state": (Calls(RECONSTRUCT, np.ndarray, (0,), b"b",
                                   state=(1, (1,), np.dtype("O"), False, [1])), "dtype 'O8'"),
        "tuple keys": ({(1, 2): 3}, "a key is tuple"),
    }  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", attacks())
def test_everything_else_is_refused_by_name_and_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, protocol: int
) -> None:
    value, message = attacks()[name]
    monkeypatch.chdir(tmp_path)
    raw = pickle.dumps(value, protocol)
    modules = set(sys.modules)
    refused(tmp_path / "x.pkl", raw, message)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pkl"]
    assert set(sys.modules) == modules


def test_nothing_is_imported(tmp_path: Path) -> None:
    refused(tmp_path / "x.pkl", b"cantigravity\nfly\n.", r"byte 0: it names 'antigravity.fly'")
    refused(tmp_path / "x.pkl", b"\x80\x04\x8c\x0bantigravity\x8c\x03fly\x93.", "antigravity.fly")
    refused(tmp_path / "x.pkl", b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.sort\x93.", "numpy.ndarray.sort")
    refused(tmp_path / "x.pkl", b"\x80\x04K\x01K\x02\x93.", "what.is no text")
    refused(tmp_path / "x.pkl", b"cnumpy\\q\nndarray\n.", "it names")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, protocol: int) -> None:
    raw = pickle.dumps([{"pose": np.eye(2), "a": ["x", 2.5, 1 << 40]}], protocol)
    for end in range(len(raw)):
        refused(tmp_path / "x.pkl", raw[:end], "x.pkl")


def test_a_flipped_byte_gives_plain_values_or_an_error(tmp_path: Path) -> None:
    raw = pickle.dumps([{"pose": np.eye(2), "a": ("x", 2.5, 1 << 40), "s": np.float32(1)}], 4)
    plain = (dict, list, tuple, str, bytes, bytearray, int, float, type(None), np.ndarray, np.generic)

    def check(value: Any) -> None:
        assert isinstance(value, plain)
        inner = (
            [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
        )
        for own in inner:
            check(own)

    for at in range(len(raw)):
        for flip in (1, 4, 16, 64, 255):
            changed = bytearray(raw)
            changed[at] ^= flip
            try:
                check(load_plain(write(tmp_path / "x.pkl", bytes(changed))))
            except DataError:
                continue


def test_announced_sizes_cost_no_memory(tmp_path: Path) -> None:
    huge = struct.pack("<Q", 1 << 40)
    for raw in (b"\x8e" + huge + b"a.", b"\x8d" + huge + b"a.", b"\x96" + huge + b"a.", b"\x8b\xff\xff\xff\x7f1.",
                b"\x95" + huge + b"K\x01r\xff\xff\xff\x7f.", b"I" + b"9" * 5000 + b"\n."):  # fmt: skip
        path = write(tmp_path / "x.pkl", raw)
        try:
            assert load_plain(path) == 1
        except DataError as error:
            assert "x.pkl" in str(error)


def test_deep_nesting_neither_ends_the_process_nor_is_written(tmp_path: Path) -> None:
    depth = 100_000
    deep = load_plain(write(tmp_path / "x.pkl", b"]" * depth + b"a" * (depth - 1) + b"."))
    assert isinstance(deep, list)
    with pytest.raises(DataError, match="nested too deeply"):
        dump_plain(deep)
    refused(tmp_path / "x.pkl", b"cnumpy\nndarray\n" + b"\x85" * depth + b".", "part of an array")
    while deep:
        deep = deep[0]
