"""The runtime of a run: chosen once, kept by its continuation, recorded, and compared nowhere."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import kit
from tests.unit.training.histories import without_memory
from tests.unit.training.meadow import a_run, files_of
from torch import Tensor

from dinoneck import Backbone, CheckpointError, ConfigError, HeadCheckpoint
from dinoneck.training import (
    TrainConfig,
    TrainDetectorConfig,
    TrainInstancesConfig,
    engine,
    run_runtime,
    train,
)
from dinoneck.training.folder import check_same
from dinoneck.training.run import prepare

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra [fast] is not installed"
)
LAST_STEPS = 5  # a fold of six images takes four steps: the first one is finished


class Stopped(Exception):
    """Stands for anything that ends a run."""


def stopped(config: TrainConfig, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """End a run in its second fold."""
    step = torch.optim.AdamW.step
    calls: list[None] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == LAST_STEPS:
            raise Stopped
        return step(*arguments, **options)

    with patch.context() as context:
        context.setattr(engine, "SAVE_EVERY_S", 0.0)
        context.setattr(torch.optim.AdamW, "step", counted)
        with pytest.raises(Stopped):
            train(config, folder)


def with_runtime(meadow: Path, runtime: str | None) -> TrainConfig:
    return a_run(meadow, ["crop"], backbone={"runtime": runtime}, predict_with="head")  # type: ignore[arg-type]


def present_runtime(folder: Path) -> Any:
    return json.loads((folder / "unfinished" / "run.json").read_text())["runtime"]


@pytest.mark.slow
@needs_openvino
@pytest.mark.usefixtures("shared_programs")
@pytest.mark.parametrize("asked", ["auto", "torch", None])
def test_a_run_continues_with_the_runtime_that_it_began_with(
    meadow: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    asked: str | None,
) -> None:
    """Whatever is asked for, ends with the files of an uninterrupted run; a line names another runtime."""
    config = with_runtime(meadow, "openvino")
    whole = train(config, tmp_path / "whole")
    stopped(config, tmp_path / "run", monkeypatch)
    assert present_runtime(tmp_path / "run") == "openvino"
    with caplog.at_level(logging.WARNING):
        report = train(with_runtime(meadow, asked), tmp_path / "run")
    lines = [record.getMessage() for record in caplog.records]
    said = any("goes on with it, and not with torch" in line for line in lines)
    assert said == (asked == "torch")
    assert without_memory(report) == without_memory(whole)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "whole")
    assert report["backbone"]["runtime"] == "openvino"
    assert report["config"]["backbone"]["runtime"] == "openvino"


@pytest.mark.slow
def test_a_run_of_torch_is_what_it_was_and_says_so_while_it_is_unfinished(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its report and its heads state no runtime, like those of 0.3."""
    stopped(with_runtime(meadow, None), tmp_path / "run", monkeypatch)
    assert present_runtime(tmp_path / "run") == "torch"
    report = train(with_runtime(meadow, "auto"), tmp_path / "run")
    assert "runtime" not in report["backbone"]
    assert "runtime" not in report["config"]["backbone"]
    head = HeadCheckpoint.load(tmp_path / "run" / "head.safetensors")
    assert "runtime" not in head.meta["backbone"]


@pytest.mark.slow
@needs_openvino
@pytest.mark.usefixtures("shared_programs")
def test_another_runtime_does_not_change_which_run_it_is(meadow: Path, tmp_path: Path) -> None:
    identities = []
    for runtime in ("torch", "openvino"):
        trainer = prepare(with_runtime(meadow, runtime), tmp_path / runtime)
        identity = trainer.identity(as_in_0_3=False)
        del identity["predict_with"]  # which may differ in every run
        assert identity.pop("runtime") == runtime
        identities.append(identity)
    check_same(*identities, "run")
    bfloat16 = a_run(
        meadow,
        ["crop"],
        backbone={"precision": "bfloat16"},
        predict_with="head",  # type: ignore[arg-type]
    )
    half = prepare(bfloat16, tmp_path / "half").identity(as_in_0_3=False)
    del half["predict_with"]
    with pytest.raises(CheckpointError, match=r"backbone.*precision: None / bfloat16"):
        check_same(identities[0], half, "run")


@pytest.mark.slow
@needs_openvino
@pytest.mark.usefixtures("shared_programs")
def test_heads_of_both_runtimes_predict_alike_with_either_and_without_a_warning(
    meadow: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    from dinoneck import Predictor

    files = []
    for runtime in ("torch", "openvino"):
        train(with_runtime(meadow, runtime), tmp_path / runtime)
        files.append(tmp_path / runtime / "head.safetensors")
    images = sorted(meadow.parent.glob("[0-9][0-9].png"))
    expected = torch.tensor([row["crop"] for row in Predictor(files[0])(images)])
    for file in files:
        for runtime in ("torch", "openvino"):
            rows = Predictor(file, runtime=runtime)(images)  # type: ignore[arg-type]
            values = torch.tensor([row["crop"] for row in rows])
            assert (values - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert [str(warning.message) for warning in recwarn if warning.category is UserWarning] == []


@pytest.mark.parametrize(
    ("in_torch", "compiled", "runtime"),
    [(1.0, 0.4, "openvino"), (1.0, 1.2, "torch"), (0.01, 0.004, "torch")],
    ids=["faster", "slower", "too little work"],
)
def test_auto_takes_the_faster_runtime_where_compiling_pays(
    monkeypatch: pytest.MonkeyPatch, in_torch: float, compiled: float, runtime: str
) -> None:
    """Of 100 images, in a program that is taken for twice as fast and compiled in 4 s."""
    monkeypatch.setattr(Backbone, "expected_gain", lambda backbone, images: 2.0)
    seconds = {"torch": in_torch, "openvino": compiled}
    monkeypatch.setattr(
        run_runtime, "seconds_of_a_pass", lambda backbone, image: seconds[backbone.runtime]
    )
    monkeypatch.setattr(Backbone, "with_runtime", _named)
    monkeypatch.setattr(Backbone, "preparation_seconds", lambda backbone, images: 4.0)
    backbone = kit.backbone()
    images = list(kit.images(1)) * 100
    assert run_runtime.faster_runtime(backbone, images, backbone.preprocess) == runtime


@pytest.mark.parametrize(("preparation", "runtime"), [(9.0, "openvino"), (11.0, "torch")])
def test_auto_of_a_run_counts_the_time_of_a_program_in_the_cache_folder(
    monkeypatch: pytest.MonkeyPatch, preparation: float, runtime: str
) -> None:
    """22 images of 1 s in torch and 0.5 s in the program, one of them computed by both: 10 s are saved."""
    monkeypatch.setattr(Backbone, "expected_gain", lambda backbone, images: 2.0)
    seconds = {"torch": 1.0, "openvino": 0.5}
    monkeypatch.setattr(
        run_runtime, "seconds_of_a_pass", lambda backbone, image: seconds[backbone.runtime]
    )
    monkeypatch.setattr(Backbone, "with_runtime", _named)
    monkeypatch.setattr(Backbone, "preparation_seconds", lambda backbone, images: preparation)
    backbone = kit.backbone()
    images = list(kit.images(1)) * 22
    assert run_runtime.faster_runtime(backbone, images, backbone.preprocess) == runtime


def _named(backbone: Backbone, runtime: Any) -> Backbone:
    """Stands for ``with_runtime`` where OpenVINO is not installed."""
    other = backbone.with_layers(backbone.layers)
    other.runtime = runtime
    return other


def test_auto_is_torch_where_openvino_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_runtime, "is_worth_compiling", lambda *args, **options: True)
    backbone = kit.backbone()
    with kit.without("openvino"):
        runtime = run_runtime.faster_runtime(backbone, list(kit.images(1)), backbone.preprocess)
    assert runtime == "torch"


@needs_openvino
@pytest.mark.usefixtures("shared_programs")
def test_auto_of_a_run_is_settled_before_its_tokens_are_extracted(
    meadow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_runtime, "is_worth_compiling", lambda *args, **options: True)
    monkeypatch.setattr(run_runtime, "seconds_of_a_pass", _faster_if_compiled)
    trainer = prepare(with_runtime(meadow, "auto"), tmp_path)
    assert trainer.tokens.runtime == "openvino"
    assert trainer.config.backbone.runtime == "openvino"


def _faster_if_compiled(backbone: Backbone, image: Tensor) -> float:
    return 1.0 if backbone.runtime == "torch" else 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"backbone": {"precision": "bfloat16", "lora": 2}},
            r"precision is 'bfloat16'.*trained in float32; leave it out \(--precision\)",
        ),
        (
            {"data": {"csv": "t.csv", "store": "s"}, "backbone": {"runtime": "openvino"}},
            r"runtime is 'openvino', and has no effect with data\.store.*\(--runtime\)",
        ),
        (
            {"data": {"csv": "t.csv", "store": "s"}, "backbone": {"precision": "bfloat16"}},
            r"precision is 'bfloat16', and has no effect with data\.store.*\(--precision\)",
        ),
    ],
)
def test_options_without_effect_are_refused(values: dict[str, Any], message: str) -> None:
    config = TrainConfig.from_dict(values)
    with pytest.raises(ConfigError, match=message):
        config.check_used()


@pytest.mark.parametrize("option", [{"runtime": "openvino"}, {"precision": "bfloat16"}])
def test_a_detector_is_trained_in_torch_and_float32(option: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="a detector is trained in torch and float32"):
        TrainDetectorConfig.from_dict({"data": {"boxes": "boxes.json"}, "backbone": option})


def test_live_tokens_are_computed_by_torch(meadow: Path, tmp_path: Path) -> None:
    config = a_run(
        meadow,
        ["crop"],
        backbone={"runtime": "auto", "lora": 2},
        optim={"backbone_lr": 1e-3},
    )
    trainer = prepare(config, tmp_path)
    assert trainer.tokens.runtime == "torch"
    live = trainer.tokens.live(config)
    assert live is not None
    assert live.backbone.runtime == "torch"


@pytest.mark.slow
def test_a_config_states_the_options_only_where_they_are_set() -> None:
    for config in (
        TrainConfig(),
        TrainInstancesConfig.from_dict({"data": {"instances": "i.json"}}),
    ):
        backbone = config.to_dict()["backbone"]
        assert "runtime" not in backbone
        assert "precision" not in backbone
    options = {"runtime": "openvino", "precision": "bfloat16"}
    stated = TrainConfig.from_dict({"backbone": options}).to_dict()
    assert stated["backbone"].items() >= options.items()
    assert TrainConfig.from_dict(stated).to_dict() == stated
