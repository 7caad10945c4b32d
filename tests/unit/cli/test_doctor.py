"""``dinoneck doctor``: what is broken is reported with its remedy; no network is used."""

from __future__ import annotations

import importlib
import json
from importlib import metadata
from typing import Any

import pytest

from dinoneck import checkup
from dinoneck.checkup import Finding
from dinoneck.cli.main import main


def found(group: str) -> dict[str, Finding]:
    return {finding.name: finding for finding in checkup._LOOKS[group]()}


def test_all_is_well_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["broken"] == 0
    by_name = {finding["name"]: finding for finding in document["findings"]}
    for name in ("dinoneck", "python", "torch", "timm", "cpu", "save, load, predict", "network", "temporary folder"):
        assert by_name[name]["state"] in ("ok", "note"), name
    assert {"hf", "export", "viz"} <= set(by_name)
    assert not {"dev", "test", "lint"} & set(by_name)
    assert by_name["network"]["state"] == "note", "the tests run offline"
    assert main(["doctor"]) == 0
    report = capsys.readouterr().out
    assert report.splitlines()[-1] == "the core works"
    assert f"torch: {metadata.version('torch')}" in report


def packages(monkeypatch: pytest.MonkeyPatch, *lines: str) -> dict[str, Finding]:
    monkeypatch.setattr(checkup.metadata, "requires", lambda name: list(lines))
    return found("packages")


def test_versions_are_held_against_what_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    report = packages(monkeypatch, "torch>=2.6", "timm>=99", "no-such-package>=1", "numpy<1", 'ray>=2; extra == "ray"')
    assert report.pop("ray").group == "extras"
    assert {name: finding.state for name, finding in report.items()} == {
        "torch": "ok", "timm": "broken", "no-such-package": "broken", "numpy": "broken"
    }  # fmt: skip
    assert report["timm"].remedy == "pip install 'timm>=99'"
    assert "not installed; dinoneck needs >=1" in report["no-such-package"].text


def test_extras_are_missing_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    report = packages(monkeypatch, 'transformers>=99; extra == "hf"', 'matplotlib>=3; extra == "viz"',
                    'torch>=2; extra == "hf"', 'onnx>=1; extra == "export" and sys_platform == "other"')  # fmt: skip
    assert report["hf"].text == f"transformers {metadata.version('transformers')}; dinoneck needs >=99", (
        "torch is there"
    )
    assert (report["hf"].state, report["hf"].remedy) == ("missing", "pip install 'dinoneck[hf]', if you want it")
    assert report["viz"].state == "ok"
    assert "export" not in report


def test_a_package_that_cannot_be_imported_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.import_module

    def fails(name: str, *rest: Any) -> Any:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist\nmore")
        return real(name, *rest)

    monkeypatch.setattr(checkup.importlib, "import_module", fails)
    report = packages(monkeypatch, "torchvision>=0.1")["torchvision"]
    assert report.state == "broken"
    assert "importing it fails: RuntimeError: operator torchvision::nms does not exist" in report.text
    monkeypatch.setattr(checkup, "_LOOKS", {"packages": checkup._packages})
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "  broken   torchvision:" in shown
    assert "-> pip install --force-reinstall 'torchvision>=0.1'" in shown
