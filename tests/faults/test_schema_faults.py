"""Facts in a head file: checked before they are written, compared when the head is used; the campaigns forge them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dinoneck import Backbone, CheckpointError, HeadCheckpoint, PatchMeanHead, Predictor, Task, save_head


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


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"training": {"sed": 1}}, "unknown field `sed`; its entries are seed"),
        ({"training": {"metrics": {"R2": float("nan")}}}, "not a plain record"),
        ({"license": "© me"}, "license is '© me': .* an SPDX identifier"),
        ({"tta": "Flip 4"}, "tta is 'Flip 4'"),
        ({"tta": {"ops": "d6", "reduce": "max"}}, "'reduce': 'max'"),
    ],
)
def test_facts_are_checked_before_a_byte_is_written(facts: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        save_head(tmp_path / "h", PatchMeanHead(4, [Task("a")]), **facts)
    assert caught.value.step in ("schema", "write")
    assert not list(tmp_path.iterdir())


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
            with pytest.raises(CheckpointError, match="normalisation of images") as e:
                call()
            assert e.value.step == "pairing"
    near = tiny.record() | {"mean": [value + 1e-4 for value in tiny.preprocess.mean]}
    checkpoint.check_backbone(near)
    checkpoint.check_backbone({key: value for key, value in near.items() if key not in ("mean", "std")})


# -- One family of errors with plain messages, and what a refused configuration leaves behind


def test_messages_do_not_steer_a_terminal_and_are_not_endless() -> None:
    assert str(CheckpointError("a\x1b[31m\0\u202e\ud800 grün\nb")) == "a\\x1b[31m\\x00\\u202e\\ud800 grün\\nb"
    long = str(CheckpointError("begin " + "x" * 10**6 + " end"))
    assert (long[:6], long[-4:], len(long) < 2000) == ("begin ", " end", True)
