"""``dinoneck doctor``, ``inspect`` and ``export``, and the text of results."""

from __future__ import annotations

import json
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from tests import kit
from tests.faults.signed import Change, forged
from tests.kit import cli, saved_head, without

from dinoneck import Backbone, HeadCheckpoint, PatchMeanHead, Task, checkup, registry
from dinoneck.backbones import openvino
from dinoneck.backbones.program_files import ProgramFolder, ProgramRecord
from dinoneck.checkpoint import read_header
from dinoneck.cli.text import show_scores
from dinoneck.heads.head import Head
from dinoneck.necks.neck import Neck
from dinoneck.training.scores import Split, score_pixels
from dinoneck.version import __version__
from dinoneck.viz.score_tables import matrix_table


def findings() -> dict[str, dict[str, str]]:
    """The findings of ``doctor --json`` by name, where something is broken."""
    found = cli("doctor", "--json")
    assert found.code == 1 and found.json["broken"] > 0
    return {finding["name"]: finding for finding in found.json["findings"]}


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the installed package declare these requirements."""
    return lambda *lines: monkeypatch.setattr(
        checkup.metadata, "requires", lambda name: list(lines)
    )


def test_doctor_begins_with_what_a_bug_report_needs(declare: Any) -> None:
    declare("torch>=2.6")
    lines = cli("doctor").out.splitlines()
    assert lines[0] == f"ok       dinoneck: {__version__}"
    assert lines[1].startswith(f"ok       python: {platform.python_version()} (")
    assert lines[2] == f"ok       platform: {platform.platform()}"
    assert lines[3].startswith("ok       torch: ")


def test_a_package_that_is_absent_or_too_old_is_named_with_its_remedy(declare: Any) -> None:
    declare("torch>=2.6", "timm>=99", "no-such-package>=1", 'transformers>=99; extra == "hf"')
    found = findings()
    states = {
        "torch": "ok",
        "timm": "broken",
        "no-such-package": "broken",
        "extra hf": "missing",
    }
    assert {name: found[name]["state"] for name in states} == states
    assert metadata.version("timm") in found["timm"]["text"] and ">=99" in found["timm"]["text"]
    assert found["timm"]["remedy"] == "pip install 'timm>=99'"
    assert found["extra hf"]["remedy"] == "pip install 'dinoneck[hf]'"


def test_an_extra_has_one_line_and_one_advice(declare: Any) -> None:
    torch_version = metadata.version("torch")
    pandas_version = metadata.version("pandas")
    declare(
        'pandas>=1; extra == "train"',
        'torch>=1; extra == "train"',
        'no-such-package>=1; extra == "hf"',
        'transformers>=99; extra == "hf"',
        'pandas>=1; extra == "hf"',
    )

    lines = cli("doctor").out.splitlines()

    assert f"ok       extra train: pandas {pandas_version}, torch {torch_version}" in lines
    row = next(i for i, line in enumerate(lines) if line.startswith("missing  extra hf: "))
    assert "no-such-package not installed; expected >=1; transformers " in lines[row]
    assert "pandas" not in lines[row]
    assert lines[row + 1] == "         -> pip install 'dinoneck[hf]'"
    assert (
        "ok       save, load, predict: a head predicts the same after it was saved and loaded"
        in (lines)
    )
    assert sum("missing" in line for line in lines) == 1


def test_a_torchvision_for_another_torch_is_broken_and_cuda_without_a_device_noted(
    declare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = mock.Mock(side_effect=RuntimeError("operator torchvision::nms does not exist\nmore"))
    declare("torchvision>=0.1")
    monkeypatch.setattr(checkup.importlib, "import_module", fail)
    monkeypatch.setattr(torch.version, "cuda", "99.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = findings()
    vision, cuda = found["torchvision"], found["cuda"]
    assert (
        vision["state"] == "broken" and "operator torchvision::nms does not exist" in vision["text"]
    )
    assert "torch torchvision" in vision["remedy"]
    assert cuda["state"] == "note" and "99.1" in cuda["text"] and "nvidia-smi" in cuda["remedy"]


@pytest.mark.parametrize("error", [SystemExit("no licence"), ImportError("no licence")], ids=repr)
def test_a_package_whose_import_fails_or_ends_the_program_is_broken(
    error: BaseException, declare: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = checkup.importlib.import_module

    def fail(name: str, *arguments: Any) -> Any:
        if name == "timm":
            raise error
        return imported(name, *arguments)

    declare("timm>=0.1")
    monkeypatch.setattr(checkup.importlib, "import_module", fail)

    found = findings()

    assert found["timm"]["state"] == "broken"
    assert f"its import fails: {type(error).__name__}: no licence" in found["timm"]["text"]


def test_doctor_names_the_runtime_and_the_command_that_installs_it(
    declare: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    declare("torch>=2.6")
    monkeypatch.setenv("DINONECK_CACHE", str(tmp_path))
    with without("openvino"):
        lines = cli("doctor").out.splitlines()
    [line] = [number for number, text in enumerate(lines) if text.startswith("note     runtime: ")]
    assert "torch; openvino" in lines[line]
    assert lines[line + 1] == "         -> pip install 'dinoneck[fast]'"
    assert (
        f"ok       program cache: {tmp_path / 'programs'}: 0 files, 0 MB of at most 2000 MB"
        in lines
    )


def test_doctor_counts_and_empties_the_program_cache(
    declare: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    declare("torch>=2.6")
    monkeypatch.setenv("DINONECK_CACHE", str(tmp_path))
    folder = ProgramFolder(tmp_path / "programs")
    record = ProgramRecord(1.0, 1.0, 0.5, [], num_bytes=3_000_000, measured_at=1e9)
    folder.write("a-1.program", record, bytes(3_000_000))
    before = cli("doctor", "--json").json
    after = cli("doctor", "--empty-cache", "--json").json
    texts = []
    for document in (before, after):
        [text] = [
            finding["text"]
            for finding in document["findings"]
            if finding["name"] == "program cache"
        ]
        texts.append(text)
    assert "1 file, 3 MB of" in texts[0]
    assert "0 files, 0 MB of" in texts[1]
    assert list(folder.path.iterdir()) == []


def test_doctor_says_why_a_cache_is_not_used(
    declare: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    declare("torch>=2.6")
    monkeypatch.setenv("DINONECK_CACHE", str(tmp_path))
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs").chmod(0o777)
    out = cli("doctor").out
    assert "it is not used, because it is not yours alone" in out
    assert f"-> chmod go-w {tmp_path / 'programs'}" in out


@pytest.mark.slow
def test_doctor_measures_both_precisions(declare: Any) -> None:
    if not openvino.is_installed():
        pytest.skip("the extra [fast] is not installed")
    declare("torch>=2.6")
    document = cli("doctor", "--measure", "--json").json
    texts = {finding["name"]: finding["text"] for finding in document["findings"]}
    for name in ("measured in float32", "measured in bfloat16"):
        assert re.match(r"OpenVINO is \d+\.\d\d x as fast as torch", texts[name])


STEERING = "\x1b[2J\x1b]0;x\x07\u202e\nok       fine"


def test_the_facts_of_a_file(tmp_path: Path) -> None:
    facts = {
        "seed": 7,
        "data": {"name": "pasture", "revision": "r1"},
        "metrics": {"R2": {"mean": 0.5, "sd": 0.25}},
    }
    file = saved_head(tmp_path / "head.safetensors", training=facts, license="MIT", tta="flip4")
    shown = (
        "seed 7",
        "data (name pasture, revision r1)",
        "metrics (R2 (mean 0.5, sd 0.25))",
        "schema 1, made by",
    )
    for named in (file, tmp_path):
        printed = cli("inspect", named).out
        for text in (*shown, "licence    MIT", "views      flip4", "mean [0.485, 0.456, 0.406]"):
            assert text in printed
    assert read_header(file).meta["digest"] in cli("verify", file).out


def tensor(meta: dict[str, Any], state: dict[str, Any]) -> None:
    meta["tensors"].append(["zz" + STEERING, "F32", [1]])
    state["zz" + STEERING] = torch.zeros(1)


def extra(meta: dict[str, Any], state: dict[str, Any]) -> None:
    meta["extra"].update({STEERING: STEERING})
    meta["tasks"][0].update(labels=[STEERING])


@pytest.mark.parametrize("change", [tensor, extra])
def test_nothing_that_is_quoted_steers_a_terminal(
    change: Change, tiny: Backbone, tmp_path: Path
) -> None:
    module = PatchMeanHead(64, [Task("a")], hidden_dim=2)
    head = HeadCheckpoint.from_module(module, backbone=tiny, preprocess=tiny.preprocess)
    (tmp_path / "bad.safetensors").write_bytes(forged(head, change))
    for verb in ("inspect", "verify"):
        found = cli(verb, tmp_path / "bad.safetensors")
        for line in (found.out + found.err).splitlines():
            assert line.isprintable(), verb
            assert not line.startswith("ok       fine")


N = 60
SPLIT = Split([np.arange(30), np.arange(30, 60)], [row % 20 for row in range(N)])


def test_masks_are_tables_that_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    matrices = np.tile(np.array([[90, 10], [40, 60]]), (N, 1, 1))
    own, best = ("soil", "\x1b[31mweed\n"), np.tile(np.diag([100, 100]), (N, 1, 1))
    methods = {
        "head": score_pixels(best, SPLIT, own),
        "linear": score_pixels(matrices, SPLIT, own, reference=best),
    }
    show_scores(
        {"scores": {"cover": methods}, "auxiliary": [], "target_weights": {}, "verdict": "better"}
    )
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[-1] == ["better"]
    assert ["soil", "100.0%", "(6000)", "0.0%", "(0)"] in lines
    assert ["linear", f"{(90 / 140 + 60 / 110) / 2:.3f}"] in [line[:2] for line in lines]
    assert [r"\x1b[31mweed\n", "50.0%", "1.000", f"{60 / 110:.3f}"] in lines


MODEL = ("--with-backbone", "--random-backbone", "--json")


@pytest.mark.slow
def test_a_half_model_is_written_and_compared(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    words = ("--format", "onnx", "--half", "--out", tmp_path / "m.onnx", "--size", "32x48")
    about = cli("export", saved_head(tmp_path / "h.safetensors"), *MODEL, *words).json[
        "description"
    ]
    assert about["half"] is True
    assert about["parity"]["largest"] < about["parity"]["tolerance"] == 2e-2


@pytest.fixture
def in_bfloat16(tmp_path: Path) -> Path:
    """The file of a head on a backbone that computes in bfloat16."""
    pytest.importorskip("onnxscript")
    backbone = kit.backbone(dtype=torch.bfloat16)
    return saved_head(tmp_path / "h.safetensors", backbone=backbone)


@pytest.mark.slow
def test_a_head_in_bfloat16_is_exported_in_float32_on_demand(
    in_bfloat16: Path, tmp_path: Path
) -> None:
    words = ("--format", "onnx", "--out", tmp_path / "m.onnx", "--size", "32x48", "--no-check")

    ran = cli("export", in_bfloat16, *MODEL, *words, "--precision", "float32")

    assert ran.code == 0, ran.err
    assert (tmp_path / "m.onnx").is_file()


def test_a_head_in_bfloat16_has_no_onnx_model_of_its_own(in_bfloat16: Path, tmp_path: Path) -> None:
    words = ("--format", "onnx", "--out", tmp_path / "m.onnx", "--size", "32x48")

    ran = cli("export", in_bfloat16, *MODEL, *words)

    assert ran.code == 1
    assert "--precision float32" in ran.err


def report_of(**pooled: float | None) -> dict[str, Any]:
    """A report with the R² of a head, of ``c`` as an auxiliary target."""
    scores = {
        name: {"head": {"r2": {"pooled": value, "folds": []}, "mae": {"pooled": 1.0}, "images": 9}}
        for name, value in pooled.items()
    }
    return {"scores": scores, "auxiliary": ["c"]}


def test_targets_that_are_predicted_no_better_than_by_their_mean_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = report_of(soil=0.4, crop=-0.1, weed=0.0)

    show_scores(report)

    assert capsys.readouterr().out.splitlines()[-1] == (
        "crop, weed: R² is not above 0, so the head is no better than the mean of all images."
    )


@pytest.mark.parametrize(
    "report",
    [
        pytest.param(report_of(soil=0.01), id="above 0"),
        pytest.param(report_of(soil=None), id="unknown"),
        pytest.param(report_of(soil=0.4, c=-1.0), id="auxiliary"),
        pytest.param(report_of(soil=0.4, overall=-0.1), id="overall"),
    ],
)
def test_targets_that_are_predicted_better_or_not_compared_are_not_named(
    report: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    show_scores(report)

    assert "not above 0" not in capsys.readouterr().out


def test_verify_goes_on_after_a_folder_without_heads(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    file = saved_head(tmp_path / "h.safetensors")

    found = cli("verify", tmp_path / "empty", file, "--json")

    rows = json.loads(found.out)["checked"]
    assert [row["state"] for row in rows] == ["refused", "ok"]
    assert found.code == 1


def test_the_heads_that_are_offered_are_those_that_a_training_takes() -> None:
    """Heads and necks; an ensemble is made of files."""
    trained = set()
    for name in registry.HOMES:
        if issubclass(registry.resolve(name), Head | Neck):
            trained.add(name)

    assert set(registry.PURPOSES) == trained - {"ensemble"}


def test_list_heads_says_what_types_are_for_and_which_ones_a_training_does_not_take() -> None:
    listed = cli("list", "heads")

    trained, _, published = listed.out.partition("\n\nPublished heads, to predict with")
    assert trained.startswith("Heads and necks to train (dinoneck train --head NAME):\n")
    assert "\n  patch_mean              numbers and classes of an image" in trained
    others = trained.rpartition("which --head does not take: ")[2].split(", ")
    assert others == sorted(registry.HOMES.keys() - registry.PURPOSES.keys())
    assert "\ndinov2_vits14_nyu_dpt " in published
    rows = cli("list", "heads", "bins", "--json").json["heads"]
    assert rows == [{"name": "bins", "class": "dinoneck.heads.linear:Bins", "purpose": None}]


def test_a_confusion_matrix_is_read_in_percent_of_the_row_and_in_counts() -> None:
    printed = matrix_table("plant", ["soil", "crop", "weed"], [[60, 30, 10], [1, 2, 0], [0, 0, 0]])

    assert printed.header == ["plant: % of row (count)", "soil", "crop", "weed"]
    assert printed.rows == [
        ["soil", "60.0% (60)", "30.0% (30)", "10.0% (10)"],
        ["crop", "33.3% (1)", "66.7% (2)", "0.0% (0)"],
        ["weed", "0.0% (0)", "0.0% (0)", "0.0% (0)"],
    ]
    assert [sum(row) for row in printed.shares] == pytest.approx([1, 1, 0])
