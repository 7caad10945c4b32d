"""``dinoneck doctor``: what is broken is reported with its remedy; no network is used."""

from __future__ import annotations

import importlib
import json
from importlib import metadata
from typing import Any

import pytest
import torch

from dinoneck import checkup
from dinoneck.cli.main import main

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
