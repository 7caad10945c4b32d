"""``dinoneck doctor``, ``bench``, ``inspect`` and ``export``, and the text of results."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.faults.signed import Change, forged
from tests.hub_server import WRITER, Hub
from tests.kit import cli, saved_head, write_images

from dinoneck import Backbone, HeadCheckpoint, PatchMeanHead, Task, checkup
from dinoneck.checkpoint import read_header
from dinoneck.cli import backbone as verbs
from dinoneck.cli.main import main
from dinoneck.cli.text import show_scores
from dinoneck.training.scores import Split, method_scores

Findings = dict[str, dict[str, str]]


def findings(capsys: pytest.CaptureFixture[str], code: int) -> Findings:
    """The findings of ``doctor --json`` by name."""
    capsys.readouterr()
    assert main(["doctor", "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert (document["broken"] > 0) == (code == 1)
    return {finding["name"]: finding for finding in document["findings"]}


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the installed package declare these requirements."""
    return lambda *lines: monkeypatch.setattr(checkup.metadata, "requires", lambda name: list(lines))


def test_nothing_is_broken_here(capsys: pytest.CaptureFixture[str], declare: Any) -> None:
    declare("torch>=2.6", "pillow", 'matplotlib>=3; extra == "viz"', 'pytest>=1; extra == "test"')
    found = findings(capsys, 0)
    assert {found[name]["state"] for name in ("torch", "pillow", "save, load, predict")} == {"ok"}
    assert found["torch"]["text"] == metadata.version("torch")
    assert "matplotlib (viz)" in found and not any("pytest" in name for name in found)
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "the core works"


def test_a_package_that_is_absent_or_too_old_is_named_with_its_remedy(
    capsys: pytest.CaptureFixture[str], declare: Any
) -> None:
    declare("torch>=2.6", "timm>=99", "no-such-package>=1", 'transformers>=99; extra == "hf"')
    found = findings(capsys, 1)
    assert {name: found[name]["state"] for name in ("torch", "timm", "no-such-package", "transformers (hf)")} == {
        "torch": "ok", "timm": "broken", "no-such-package": "broken", "transformers (hf)": "missing"
    }  # fmt: skip
    assert metadata.version("timm") in found["timm"]["text"] and ">=99" in found["timm"]["text"]
    assert found["timm"]["remedy"] == "pip install 'timm>=99'"
    assert found["transformers (hf)"]["remedy"] == "pip install 'dinoneck[hf]'"


def test_a_torchvision_for_another_torch_is_broken_and_cuda_without_a_device_noted(
    capsys: pytest.CaptureFixture[str], declare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = importlib.import_module

    def fail(name: str, *rest: Any) -> Any:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nmore")
        return original(name, *rest)

    declare("torchvision>=0.1")
    monkeypatch.setattr(checkup.importlib, "import_module", fail)
    monkeypatch.setattr(torch.version, "cuda", "99.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = findings(capsys, 1)
    vision, cuda = found["torchvision"], found["cuda"]
    assert vision["state"] == "broken" and "operator torchvision::nms does not exist" in vision["text"]
    assert "torch torchvision" in vision["remedy"]
    assert cuda["state"] == "note" and "99.1" in cuda["text"] and "nvidia-smi" in cuda["remedy"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "_SECONDS", 0.01)


def test_the_parts_are_those_of_a_prediction(tiny: Backbone, tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    class Head(PatchMeanHead):
        def predict(self, tokens):  # type: ignore[no-untyped-def]
            assert not self.training
            assert not torch.is_grad_enabled()
            seen.append(tuple(tokens.patches[0].shape))
            return super().predict(tokens)

    modules = {"backbone": tiny, "head": Head(64, [Task("x")]).train()}
    prepare = tiny.preprocess.changed(size=(32, 48))
    rows = verbs._measure(write_images(tmp_path, ["p.png"]) * 2, prepare, modules)
    assert set(seen) == {(2, 6, 64)}
    assert [row["part"] for row in rows] == ["prepare", "backbone", "head"]
    assert modules["head"].training, "modules are left as they were"


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


N, LABELS = 60, ("soil", "weed", "crop")


TRUE = np.arange(N) % 3


HALF = np.where(np.arange(N) % 2, TRUE, 0)  # right in 2 of 3 images


SPLIT = Split([np.arange(30), np.arange(30, 60)], [row % 20 for row in range(N)])


def shown(name: str, methods: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> list[list[list[str]]]:
    """The tables of a report's target, then its verdict: the words of their lines."""
    show_scores({"scores": {name: methods}, "auxiliary": [], "target_weights": {}, "verdict": "better"})
    lines = capsys.readouterr().out.splitlines()
    starts = [i - 1 for i, line in enumerate(lines) if set(line) == {"-"}]
    parts = [lines[i:j] for i, j in zip(starts, [*starts[1:], len(lines)], strict=True)]
    return [[line.split() for line in part] for part in parts]


def test_classes_are_tables_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    methods = {"head": method_scores("class", TRUE, TRUE, SPLIT, labels=LABELS)}
    methods["linear"] = method_scores("class", TRUE, HALF, SPLIT, labels=LABELS, head=TRUE)
    means, each, confusions = shown("kind", methods, capsys)
    assert means[2] == ["head", "1.000", "1.00", "...", "1.00", "1.000", "1.000", "1.00", "...", "1.00", "1.000"]
    assert means[3][:2] == ["linear", "0.667"]
    assert each[2] == ["soil", "33.3%", "1.000", f"{40 / 60:.3f}"]
    assert confusions[2:] == [["soil", "20", "0", "0"], ["weed", "0", "20", "0"], ["crop", "0", "0", "20"], ["better"]]


def test_masks_are_tables_that_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    matrices = np.tile(np.array([[90, 10], [40, 60]]), (N, 1, 1))
    own, best = ("soil", "\x1b[31mweed\n"), np.tile(np.diag([100, 100]), (N, 1, 1))
    methods = {
        "head": method_scores("mask", None, best, SPLIT, labels=own),
        "linear": method_scores("mask", None, matrices, SPLIT, labels=own, head=best),
    }
    means, each, matrix = shown("cover", methods, capsys)
    assert [line[-2:] for line in matrix[2:4]] == [["6000", "0"], ["0", "6000"]]
    assert " ".join(means[0]).startswith("cover, 60 images held out mean IoU")
    assert means[3][:2] == ["linear", f"{(90 / 140 + 60 / 110) / 2:.3f}"]
    assert each[3] == [r"\x1b[31mweed\n", "50.0%", "1.000", f"{60 / 110:.3f}"]


MODEL = ("--with-backbone", "--random-backbone", "--json")


@pytest.mark.slow
def test_a_half_model_is_written_and_compared(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    words = ("--format", "onnx", "--half", "--out", tmp_path / "m.onnx", "--size", "32x48")
    about = cli("export", saved_head(tmp_path / "h.safetensors"), *MODEL, *words).json["description"]
    assert about["half"] is True
    assert about["parity"]["largest"] < about["parity"]["tolerance"] == 2e-2
