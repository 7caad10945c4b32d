"""Headers that ask for more than their file holds, or hold records of another type, are refused at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract.cases import CASES, Case
from tests.faults.signed import content_of, forged, written

from dinoneck import CheckpointError, HeadCheckpoint, HeadEnsemble, PatchMeanHead, Task
from dinoneck.checkpoint import file as files
from dinoneck.checkpoint import read
from dinoneck.checkpoint.schema import entries_of
from dinoneck.data import Preprocessing


def plain(**options: Any) -> HeadCheckpoint:
    return HeadCheckpoint.from_module(PatchMeanHead(4, [Task("a", labels=("x",))], hidden_dim=4), **options)


def of_schema_1(head: HeadCheckpoint, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> bytes:
    meta, state = content_of(head)
    for key in ("versions", "training", "license", "tta"):
        del meta[key]
    meta["schema"] = 1
    change(meta, state)
    return written(meta, state)


def refused(content: bytes, path: Path, step: str, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        HeadCheckpoint.load(path)
    assert caught.value.step == step


def test_parts_beyond_the_tensors_of_an_older_file(tmp_path: Path) -> None:
    pair = HeadCheckpoint.from_module(HeadEnsemble.from_heads([PatchMeanHead(4, [Task("a")]) for _ in range(2)]))
    members = [{"type": "dense", "config": {}}] * 1600
    content = of_schema_1(pair, lambda meta, state: meta["config"].update(members=members))
    refused(content, tmp_path / "h", "config", "names 1601 parts, the file holds 8 tensors")


@pytest.mark.parametrize("shape", [[0, 1 << 47, 1 << 47], [1 << 30, 0, 1 << 31]])
def test_sides_that_no_empty_tensor_can_have(shape: list[int], tmp_path: Path) -> None:
    def change(meta: dict[str, Any], state: dict[str, Any]) -> None:
        meta["tensors"].append(["zz", "F32", shape])
        state["zz"] = torch.empty(0)

    for version in (of_schema_1, forged):
        with pytest.raises(CheckpointError, match=r"fewer than 2\^63"):
            entries_of([["zz", "F32", shape]])
        refused(version(plain(), change), tmp_path / "h", "tensors", "zz")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("tasks", 0, "labels"), 5, r"tasks\[0\].labels is 5: expected `array"),
        (("tasks", 0, "labels"), ["\x1b[2J"], "labels"),
        (("inputs", "size"), [65536, 65536], "at most 67108864"),
        (("inputs", "mean"), "x", "inputs.mean"),
        (("backbone", "weights"), {"kind": "merged", "base": {"repo": "\x1b[2J"}}, "backbone.weights.base.repo"),
        (("backbone", "weights"), {"kind": "merged", "base": 5}, "backbone.weights.base is 5: expected `object"),
    ],
)
def test_records_are_typed_before_anyone_shows_them(
    place: tuple[Any, ...], value: Any, message: str, tmp_path: Path
) -> None:
    def change(meta: dict[str, Any], _: dict[str, Any]) -> None:
        inner: Any = meta
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value

    head = plain(
        preprocess=Preprocessing(size=(8192, 8192), blur=5), backbone={"name": "mine", "layers": [0], "norm": True}
    )
    path = tmp_path / "h"
    path.write_bytes(forged(head, change))
    with pytest.raises(CheckpointError, match=message) as caught:
        files.read_header(path)
    assert caught.value.step == "schema"


@pytest.mark.parametrize("digest", ["", "sha256:" + "A" * 64])
def test_a_digest_has_one_spelling(digest: str, tmp_path: Path) -> None:
    content = forged(plain(), lambda meta, state: meta.update(digest=digest), sign=False)
    refused(content, tmp_path / "h", "digest", "digest is")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_here_is_built_with_few_calls_per_tensor(case: Case) -> None:
    module: Any = case.build()
    with (limited := read._Limited(10**6)):
        read.on_meta(type(module), module.config, "a file")
    assert 10**6 - limited.left <= 10 * len(module.state_dict())
    assert read._CALLS_PER_TENSOR <= 15


def test_empty_tensors_buy_no_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(meta: dict[str, Any], state: dict[str, Any]) -> None:
        meta["config"]["tasks"] = [{"$": "Task", "name": f"a{i}"} for i in range(8)]
        meta["tensors"] += [[f"z{i}", "F32", [0]] for i in range(10)]
        state.update({f"z{i}": torch.empty(0) for i in range(10)})

    monkeypatch.setattr(read, "_CALLS", 0)
    refused(forged(plain(), change), tmp_path / "h", "config", "far more tensors than the file lists")


def test_thousands_of_invented_names(tmp_path: Path) -> None:
    names = {f"aaaa{i}.a": 1 for i in range(8_000)}
    content = forged(plain(), lambda meta, state: meta["versions"].update(names))
    refused(content, tmp_path / "h", "config", "versions lists")
    pair = HeadCheckpoint.from_module(HeadEnsemble.from_heads([PatchMeanHead(4, [Task("a")]) for _ in range(2)]))
    members = [{"type": name, "config": {}} for name in names]
    content = forged(pair, lambda meta, state: meta["config"].update(members=members))
    refused(content, tmp_path / "h", "config", "names 8001 head types; a head is made of at most 256")
