"""What schema 2 added to a head file: forged with a right digest, so the check that ought to refuses it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from dinoneck import Backbone, CheckpointError, HeadCheckpoint, PatchMeanHead, Predictor, Task, save_head
from dinoneck.checkpoint import header as headers
from dinoneck.checkpoint.state import chunks_of
from dinoneck.inference.tta import VIEWS


@pytest.fixture(scope="module")
def head() -> HeadCheckpoint:
    torch.manual_seed(0)
    return HeadCheckpoint.from_module(
        PatchMeanHead(4, [Task("a")], hidden_dim=4),
        backbone={"name": "mine", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        training={"seed": 1, "metrics": {"R2": 0.5}},
        license="MIT",
        tta="d6",
    )


def write_forged(path: Path, head: HeadCheckpoint, place: tuple[str, ...], value: object) -> None:
    meta = copy.deepcopy(head.meta)
    inner = meta
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    chunks = chunks_of(meta, head.state_dict)
    meta["digest"] = headers.digest(meta, chunks)
    path.write_bytes(headers.build(meta) + b"".join(chunks))


@pytest.mark.parametrize(
    ("place", "value", "step", "message"),
    [
        (("versions",), [], "schema", "versions is list"),
        (("versions",), {}, "config", "versions are told of ; the configuration names patch_mean"),
        (("versions",), {"patch_mean": 1, "fpn": 1}, "config", "versions are told of fpn, patch_mean"),
        (("versions",), {"patch_mean": 1, "os.system": 1}, "config", "versions are told of os.system"),
        (("versions",), {"patch_mean": 2}, "registry", "version 2; the one here is version 1. Install"),
        (("versions",), {"patch_mean": 0}, "schema", "each 1 or more"),
        (("versions",), {"patch_mean": True}, "schema", "each 1 or more"),
        (("versions",), {"patch_mean": 2**62}, "schema", "each 1 or more"),
        (("versions",), {"patch_mean": "1"}, "schema", "each 1 or more"),
        (("versions",), {"../x": 1}, "schema", "each 1 or more"),
        (("training",), [], "schema", "training is list"),
        (("training", "colour"), 1, "schema", "training holds colour"),
        (("training", "seed"), -1, "schema", "training.seed is '-1'"),
        (("training", "seed"), True, "schema", "training.seed is 'True'"),
        (("training", "folds"), 1.5, "schema", "training.folds"),
        (("training", "data"), "x", "schema", "training.data"),
        (("training", "data"), {"name": "x", "path": "/"}, "schema", "training.data"),
        (("training", "data"), {"name": "a\nb"}, "schema", "training.data"),
        (("training", "metrics"), {"R2": "1"}, "schema", "training.metrics"),
        (("training", "metrics"), {"R2": None}, "schema", "training.metrics"),
        (("training", "metrics"), {"R2": {"mean": 1}}, "schema", "training.metrics"),
        (("training", "metrics"), {"R2": {"mean": 1, "sd": []}}, "schema", "training.metrics"),
        (("training", "metrics"), {"": 1}, "schema", "training.metrics"),
        (("training", "metrics"), {"\u202ex": 1}, "schema", "training.metrics"),
        (("training", "metrics"), {f"m{i}": i for i in range(3000)}, "schema", "larger than 16384"),
        (("license",), 5, "schema", "license is int"),
        (("license",), "", "schema", "SPDX"),
        (("license",), "MIT\nevil: yes", "schema", "SPDX"),
        (("license",), "M" * 201, "schema", "SPDX"),
        (("license",), "<script>", "schema", "SPDX"),
        (("tta",), "d6", "schema", "tta is str"),
        (("tta",), {}, "schema", "tta lacks ops, reduce"),
        (("tta",), {"ops": "d6"}, "schema", "tta lacks reduce"),
        (("tta", "ops"), "../d6", "schema", "tta.ops"),
        (("tta", "ops"), None, "schema", "tta lacks ops"),
        (("tta", "reduce"), "median", "schema", "tta.reduce"),
        (("tta", "more"), 1, "schema", "tta holds more"),
        (("backbone", "mean"), [0.5], "schema", "backbone.mean"),
        (("backbone", "std"), ["a", "b", "c"], "schema", "backbone.std"),
        (("backbone", "mean"), [True, 0.5, 0.5], "schema", "backbone.mean"),
    ],
)
def test_forged_facts(
    head: HeadCheckpoint, place: tuple[str, ...], value: object, step: str, message: str, tmp_path: Path
) -> None:
    write_forged(tmp_path / "h", head, place, value)
    with pytest.raises(CheckpointError) as caught:
        HeadCheckpoint.load(tmp_path / "h")
    assert (caught.value.step, message in str(caught.value)) == (step, True), caught.value


def test_the_forger_writes_good_files(head: HeadCheckpoint, tmp_path: Path) -> None:
    write_forged(tmp_path / "h", head, ("license",), "CC-BY-4.0 OR (LicenseRef-my_own-1.0+ AND MIT)")
    found = HeadCheckpoint.load(tmp_path / "h").meta
    assert found["license"].startswith("CC-BY-4.0")
    assert found["training"] == {"seed": 1, "metrics": {"R2": 0.5}}
    assert found["tta"] == {"ops": "d6", "reduce": "mean"}
    assert found["versions"] == {"patch_mean": 1}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"training": {"sed": 1}}, "training holds sed; it may hold seed"),
        ({"training": {"metrics": {"R2": float("nan")}}}, "no plain JSON-able record"),
        ({"training": {"metrics": {"R2": object()}}}, "no plain JSON-able record"),
        ({"training": {"data": {"name": "x" * 20_000}}}, "larger than 16384"),
        ({"license": "© me"}, "license is '© me'; expected an SPDX"),
        ({"tta": "Flip 4"}, "tta.ops"),
        ({"tta": {"ops": "d6", "reduce": "max"}}, "tta.reduce"),
    ],
)
def test_facts_are_checked_before_a_byte_is_written(facts: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        save_head(tmp_path / "h", PatchMeanHead(4, [Task("a")]), **facts)
    assert caught.value.step in ("schema", "write")
    assert not list(tmp_path.iterdir())


def test_views_known_here_can_be_named() -> None:
    for name in VIEWS:
        meta = HeadCheckpoint.from_module(PatchMeanHead(4, [Task("a")]), tta=name).meta
        assert meta["tta"] == {"ops": name, "reduce": "mean"}


def test_another_normalisation_does_not_pair(tiny: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "h"
    save_head(path, PatchMeanHead(64, [Task("a")]), backbone=tiny)
    checkpoint = HeadCheckpoint.load(path)
    assert checkpoint.meta["backbone"]["mean"] == list(tiny.preprocess.mean)
    checkpoint.check_backbone(tiny)
    for changed in ({"mean": (0.43, 0.411, 0.296)}, {"std": (0.213, 0.156, 0.143)}):
        other = tiny.with_layers(tiny.layers)
        other.preprocess = tiny.preprocess.changed(**changed)
        for call in (
            lambda other=other: checkpoint.check_backbone(other),
            lambda other=other: checkpoint.check_backbone(other, probe=True),
            lambda other=other: Predictor(path, other),
        ):
            with pytest.raises(CheckpointError, match="normalisation: the head's backbone took photos with mean") as e:
                call()
            assert e.value.step == "pairing"
    near = tiny.record() | {"mean": [value + 1e-4 for value in tiny.preprocess.mean]}
    checkpoint.check_backbone(near)
    checkpoint.check_backbone({key: value for key, value in near.items() if key not in ("mean", "std")})
