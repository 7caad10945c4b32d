"""``verify`` looks at every file; what verbs quote of files steers no terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.signed import Change, forged

from dinoneck import Backbone, HeadCheckpoint, PatchMeanHead, Task, save_head
from dinoneck.cli.main import main

STEERING = "\x1b[2J\x1b]0;x\x07\u202e\nok       fine"


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    torch.manual_seed(0)
    for name in ("bad", "good"):
        save_head(tmp_path / f"{name}.safetensors", PatchMeanHead(4, [Task("a")], hidden_dim=2))
    return [str(tmp_path / f"{name}.safetensors") for name in ("bad", "good")]


def test_a_refusal_keeps_no_other_from_being_checked(two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path(two[0]).write_bytes(b"x")
    missing = str(Path(two[0]).parent / "no")
    assert main(["verify", missing, *two]) == 1
    printed = capsys.readouterr()
    assert [line.split()[:2] for line in printed.err.splitlines()] == [["refused", missing], ["refused", two[0]]]
    assert two[1] in printed.out


def inputs(**changes: object) -> Change:
    return lambda meta, state: meta["inputs"].update(changes)


def base(**weights: object) -> Change:
    return lambda meta, state: meta["backbone"].update(weights={"kind": "modified", "base": weights})


def tensor(meta: dict[str, Any], state: dict[str, Any]) -> None:
    meta["tensors"].append(["zz" + STEERING, "F32", [1]])
    state["zz" + STEERING] = torch.zeros(1)


@pytest.mark.parametrize(
    "change",
    [
        inputs(mean=STEERING),
        base(kind="hub", repo=STEERING, revision=STEERING),
        tensor,
        lambda meta, state: meta["extra"].update({STEERING: STEERING}),
        lambda meta, state: meta["config"].update({STEERING: STEERING}),
        lambda meta, state: meta["tasks"][0].update(labels=[STEERING]),
    ],
)
def test_nothing_that_is_quoted_steers_a_terminal(
    change: Callable[[dict[str, Any], dict[str, Any]], object],
    tiny: Backbone,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(0)
    head = HeadCheckpoint.from_module(
        PatchMeanHead(64, [Task("a")], hidden_dim=2), backbone=tiny, preprocess=tiny.preprocess
    )
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(forged(head, change))
    for verb in ("inspect", "verify"):
        main([verb, str(bad)])
        printed = capsys.readouterr()
        for line in (printed.out + printed.err).splitlines():
            assert line.isprintable(), verb
            assert not line.startswith("ok       fine")


def test_home_is_not_expanded_and_a_message_states_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "~/h.safetensors"]) == 1
    assert "'~' is not expanded" in capsys.readouterr().err
