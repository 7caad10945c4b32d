"""What schema 2 added to a head file: read, checked before it is written, compared; the campaigns forge it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.signed import forged

from dinoneck import Backbone, CheckpointError, HeadCheckpoint, PatchMeanHead, PatchMeanMLP, Predictor, Task, save_head


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


def test_forged_facts_that_are_sound_are_read(head: HeadCheckpoint, tmp_path: Path) -> None:
    content = forged(head, lambda meta, state: meta.update(license="CC-BY-4.0 OR (LicenseRef-my_own-1.0+ AND MIT)"))
    (tmp_path / "h").write_bytes(content)
    found = HeadCheckpoint.load(tmp_path / "h").meta
    assert found["license"].startswith("CC-BY-4.0")
    assert found["training"] == {"seed": 1, "metrics": {"R2": 0.5}}
    assert found["tta"] == {"ops": "d6", "reduce": "mean"}
    assert found["versions"] == {"patch_mean": 1}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"training": {"sed": 1}}, "unknown field `sed`; its entries are seed"),
        ({"training": {"metrics": {"R2": float("nan")}}}, "not a plain record"),
        ({"training": {"metrics": {"R2": object()}}}, "not a plain record"),
        ({"training": {"data": {"name": "x" * 20_000}}}, "larger than 16384"),
        ({"license": "© me"}, "license is '© me': .* an SPDX identifier"),
        ({"tta": "Flip 4"}, "tta.ops"),
        ({"tta": {"ops": "d6", "reduce": "max"}}, "tta.reduce"),
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
            with pytest.raises(CheckpointError, match="normalisation: the head's backbone took images with mean") as e:
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


def test_a_file_tells_what_it_was_made_by_in_plain_words(tmp_path: Path) -> None:
    save_head(tmp_path / "h", PatchMeanMLP(2, 1))
    made = HeadCheckpoint.load(tmp_path / "h").meta["created_by"]
    assert sorted(made) == ["dinoneck", "torch"]


def test_a_refused_configuration_leaves_autograd_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit on what a constructor does may strike anywhere, in the end of a torch.no_grad() too."""
    from dinoneck.checkpoint import read

    save_head(tmp_path / "h", PatchMeanMLP(2, 1))
    monkeypatch.setattr(read, "_CALLS_PER_TENSOR", 0)
    refused = 0
    for calls in range(100):
        monkeypatch.setattr(read, "_CALLS", calls)
        try:
            HeadCheckpoint.load(tmp_path / "h")
        except CheckpointError as error:
            assert error.step == "config"
            refused += 1
        assert torch.is_grad_enabled(), calls
    assert 0 < refused < 100
