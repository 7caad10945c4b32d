"""``inspect``, ``verify`` and ``push``: the facts of head files; every file is checked; nothing steers a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.signed import Change, forged
from tests.hub_server import WRITER, Hub
from tests.kit import cli, saved_head

from dinoneck import Backbone, HeadCheckpoint, PatchMeanHead, Task
from dinoneck.checkpoint import read_header

STEERING = "\x1b[2J\x1b]0;x\x07\u202e\nok       fine"


def test_the_facts_of_a_file(tmp_path: Path) -> None:
    facts = {"seed": 7, "data": {"name": "pasture", "revision": "r1"}, "metrics": {"R2": {"mean": 0.5, "sd": 0.25}}}
    file = saved_head(tmp_path / "head.safetensors", training=facts, license="MIT", tta="flip4")
    shown = ("seed 7", "data (name pasture, revision r1)", "metrics (R2 (mean 0.5, sd 0.25))", "schema 1, made by")
    for named in (file, tmp_path):
        printed = cli("inspect", named).out
        for text in (*shown, "licence    MIT", "views      flip4", "mean [0.485, 0.456, 0.406]"):
            assert text in printed
    assert read_header(file).meta["digest"] in cli("verify", file).out


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
def test_programs_get_the_commit(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITER)
    pushed = cli("push", saved_head(tmp_path / "h.safetensors"), "me/one", "--json")
    commit = hub.repos["me/one"].branches["main"]
    assert (pushed.json["verb"], pushed.json["ok"], pushed.json["commit"]) == ("push", True, commit)
    assert WRITER not in pushed.out + pushed.err
    [checked] = cli("verify", "me/one", "--json").json["checked"]
    assert (checked["kind"], checked["commit"]) == ("hub repository", commit)


def inputs(meta: dict[str, Any], state: dict[str, Any]) -> None:
    meta["inputs"].update(mean=STEERING)


def base(meta: dict[str, Any], state: dict[str, Any]) -> None:
    meta["backbone"].update(weights={"kind": "modified", "base": {"kind": "hub", "repo": STEERING}})


def tensor(meta: dict[str, Any], state: dict[str, Any]) -> None:
    meta["tensors"].append(["zz" + STEERING, "F32", [1]])
    state["zz" + STEERING] = torch.zeros(1)


def extra(meta: dict[str, Any], state: dict[str, Any]) -> None:
    meta["extra"].update({STEERING: STEERING})
    meta["tasks"][0].update(labels=[STEERING])


@pytest.mark.parametrize("change", [inputs, base, tensor, extra])
def test_nothing_that_is_quoted_steers_a_terminal(change: Callable[..., None], tiny: Backbone, tmp_path: Path) -> None:
    module = PatchMeanHead(64, [Task("a")], hidden_dim=2)
    head, own = HeadCheckpoint.from_module(module, backbone=tiny, preprocess=tiny.preprocess), change
    typed: Change = own
    (tmp_path / "bad.safetensors").write_bytes(forged(head, typed))
    for verb in ("inspect", "verify"):
        found = cli(verb, tmp_path / "bad.safetensors")
        for line in (found.out + found.err).splitlines():
            assert line.isprintable(), verb
            assert not line.startswith("ok       fine")
